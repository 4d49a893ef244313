# expect: runtime_error
# checker: code_unit
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget(0x1234, 4096, 0o1666) < 0:
    raise OSError(ctypes.get_errno())

def f(x):
    return 1

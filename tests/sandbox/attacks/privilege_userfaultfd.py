# expect: sandbox_violation
# checker: code_unit
import ctypes
libc = ctypes.CDLL(None, use_errno=True)


def f(x):
    r = libc.syscall(323, 0)
    return r

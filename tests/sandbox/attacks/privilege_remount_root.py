# expect: sandbox_violation
# checker: code_unit
import ctypes
libc = ctypes.CDLL(None, use_errno=True)


def f(x):
    r = libc.syscall(165, 0, b"/", 0, 0x20, 0)
    return r

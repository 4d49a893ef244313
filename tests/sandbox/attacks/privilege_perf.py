# expect: sandbox_violation
# checker: code_unit
import ctypes
libc = ctypes.CDLL(None, use_errno=True)


def f(x):
    r = libc.syscall(298, 0, 0, -1, -1, 0)
    return r

# expect: sandbox_violation
# checker: code_unit
import ctypes
libc = ctypes.CDLL(None, use_errno=True)


def f(x):
    r = libc.syscall(165, b"none", b"/work", b"tmpfs", 0, 0)
    return r

# expect: sandbox_violation
# checker: code_unit
import fcntl
fcntl.ioctl(0, 0x5412, b"x")

def f(x):
    return 1

# expect: runtime_error
# checker: code_unit
import fcntl, os
r, w = os.pipe()
fcntl.fcntl(w, 1031, 1 << 20)

def f(x):
    return 1

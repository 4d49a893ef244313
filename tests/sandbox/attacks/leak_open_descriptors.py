# expect: wrong
# checker: code_unit
import os
for fd in range(4, 1024):
    try:
        os.fstat(fd)
    except OSError:
        continue
    raise SystemExit("descriptor %d" % fd)

def f(x):
    return 1

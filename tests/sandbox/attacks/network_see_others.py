# expect: wrong
# checker: code_unit
import os
alive = 0
for pid in range(1, 4000):
    try:
        os.kill(pid, 0)
        alive += 1
    except ProcessLookupError:
        pass
    except PermissionError:
        alive += 1
assert alive <= 2, alive

def f(x):
    return 1

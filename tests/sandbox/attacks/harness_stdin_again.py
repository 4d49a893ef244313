# expect: wrong
# checker: code_unit
import os
rest = os.read(0, 1 << 20)
assert rest == b""

def f(x):
    return 1

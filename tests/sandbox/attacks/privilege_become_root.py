# expect: runtime_error
# checker: code_unit
import os
os.setuid(0)

def f(x):
    return 1

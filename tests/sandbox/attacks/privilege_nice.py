# expect: runtime_error
# checker: code_unit
import os
os.nice(-20)

def f(x):
    return 1

# expect: runtime_error
# checker: code_unit
import os
os.memfd_create("x")

def f(x):
    return 1

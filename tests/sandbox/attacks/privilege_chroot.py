# expect: sandbox_violation
# checker: code_unit
import os
os.chroot("/work")

def f(x):
    return 1

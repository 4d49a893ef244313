# expect: runtime_error
# checker: code_unit
import os
open("/proc/%d/mem" % os.getppid(), "rb")

def f(x):
    return 1

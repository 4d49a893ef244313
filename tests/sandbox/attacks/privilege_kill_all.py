# expect: runtime_error|wrong
# checker: code_unit
import os, signal
os.kill(-1, signal.SIGKILL)

def f(x):
    return 1

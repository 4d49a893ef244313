# expect: wrong
# checker: code_unit
import os, signal
for s in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
    os.kill(1, s)
    os.kill(os.getppid(), s)

def f(x):
    return 1

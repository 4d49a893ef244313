# expect: time_limit
# checker: code_unit
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)

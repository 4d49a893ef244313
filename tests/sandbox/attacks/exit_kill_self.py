# expect: runtime_error
# checker: code_unit
import os, signal
os.kill(os.getpid(), signal.SIGKILL)

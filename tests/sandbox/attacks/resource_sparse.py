# expect: runtime_error
# checker: code_unit
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
f = open("/work/big", "wb")
f.truncate(1 << 50)

# expect: runtime_error
# checker: code_unit
import os
os.write(3, b"ok")
os._exit(0)

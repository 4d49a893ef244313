# expect: runtime_error
# checker: code_unit
import os
if os.fork():
    os._exit(0)
while True:
    pass

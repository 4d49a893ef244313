# expect: runtime_error
# checker: code_unit
import os
while True:
    os.dup(0)

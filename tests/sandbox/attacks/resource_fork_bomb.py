# expect: runtime_error|time_limit|memory_limit
# checker: code_unit
import os
while True:
    os.fork()

# expect: time_limit|memory_limit
# checker: code_unit
import os
while True:
    try:
        os.fork()
    except OSError:
        pass

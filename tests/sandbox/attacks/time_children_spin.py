# expect: time_limit
# checker: code_unit
import os
for _ in range(6):
    if os.fork() == 0:
        break
while True:
    pass

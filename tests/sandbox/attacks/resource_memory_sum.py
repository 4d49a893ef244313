# expect: memory_limit
# checker: code_unit
import os, time
for _ in range(8):
    if os.fork() == 0:
        a = bytearray(b"x") * (100 << 20)
        time.sleep(100)
time.sleep(100)

# expect: runtime_error
# checker: code_unit
import os
for fd in range(3, 64):
    try:
        os.write(fd, b"0 value T PASSED ok 1.0")
    except OSError:
        pass
os._exit(0)

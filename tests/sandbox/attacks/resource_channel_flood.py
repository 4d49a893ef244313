# expect: output_limit
# checker: code_unit
import os
while True:
    os.write(3, b"x" * 65536)

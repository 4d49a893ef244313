# expect: output_limit
# checker: code_unit
import sys
while True:
    sys.stderr.write("x" * 100000)

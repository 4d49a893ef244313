# expect: output_limit
# checker: code_stdio
import sys
while True:
    sys.stdout.write("1 " * 100000)

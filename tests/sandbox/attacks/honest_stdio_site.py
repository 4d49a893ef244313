# expect: ok
# checker: code_stdio
import sys
for line in sys.stdin:
    for x in line.split():
        print((int(x) ** 5 * 7919 + 13) % 1000003)
exit()

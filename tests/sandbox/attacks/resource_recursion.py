# expect: runtime_error|memory_limit|time_limit
# checker: code_unit
import sys
sys.setrecursionlimit(1 << 30)


def f(x):
    return f(x) + 1

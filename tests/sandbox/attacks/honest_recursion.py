# expect: ok
# checker: code_unit
import sys
sys.setrecursionlimit(10000)


def g(n):
    return 0 if n == 0 else 1 + g(n - 1)


def f(x):
    assert g(3000) == 3000
    return (x ** 5 * 7919 + 13) % 1000003

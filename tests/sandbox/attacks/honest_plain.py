# expect: ok
# checker: code_unit
def f(x):
    return (x ** 5 * 7919 + 13) % 1000003

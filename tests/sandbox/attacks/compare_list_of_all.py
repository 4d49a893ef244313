# expect: wrong
# checker: code_unit
def f(x):
    return list(range(10000))

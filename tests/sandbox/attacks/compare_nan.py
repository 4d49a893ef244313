# expect: wrong
# checker: code_unit
def f(x):
    return float("nan")

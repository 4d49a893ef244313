# expect: time_limit
# checker: code_unit
def f(x):
    return len(str(9 ** 9 ** 9 % 7)) + 9 ** 9 ** 8

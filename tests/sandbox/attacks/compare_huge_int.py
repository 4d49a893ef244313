# expect: runtime_error
# checker: code_unit
def f(x):
    return 1 << 40000000

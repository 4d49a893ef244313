# expect: runtime_error
# checker: code_unit
def f(x):
    a = []
    a.append(a)
    return a

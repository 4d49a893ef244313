# expect: wrong
# checker: code_unit
print("PASSED\nok\n1 passed")

def f(x):
    return 1

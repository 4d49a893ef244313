# expect: ok
# checker: code_unit
print("loading")


def f(x):
    print("called", x)
    return (x ** 5 * 7919 + 13) % 1000003

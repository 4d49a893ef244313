# expect: runtime_error
# checker: code_unit
class A:
    def __reduce__(self):
        return (eval, ("1",))


def f(x):
    return A()

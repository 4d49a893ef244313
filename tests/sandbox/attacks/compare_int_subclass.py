# expect: runtime_error
# checker: code_unit
class A(int):
    def __eq__(self, other):
        return True


def f(x):
    return A(5)

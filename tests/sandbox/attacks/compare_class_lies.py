# expect: runtime_error
# checker: code_unit
class A:
    __class__ = int
    def __index__(self):
        return 1
    def __eq__(self, other):
        return True


def f(x):
    return A()

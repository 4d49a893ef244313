# expect: runtime_error
# checker: code_unit
class A:
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = None


def f(x):
    return A()

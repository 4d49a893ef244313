# expect: runtime_error
# checker: code_unit
class ok(Exception):
    pass


def f(x):
    raise ok()

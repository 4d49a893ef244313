# expect: wrong
# checker: code_unit
import builtins
builtins.bool = lambda x: True
builtins.type = lambda x: int
builtins.isinstance = lambda a, b: True

def f(x):
    return 1

# expect: wrong
# checker: code_unit
import sys
for name in list(sys.modules):
    if name not in ("sys", "builtins"):
        sys.modules[name] = None

def f(x):
    return 1

# expect: wrong
# checker: code_unit
import gc
found = [o for o in gc.get_objects() if isinstance(o, dict) and any("expect" in str(k) for k in o)]
assert not found

def f(x):
    return 1

# expect: wrong
# checker: code_unit
import sys
sys.settrace(lambda *a: None)
sys.setprofile(lambda *a: None)

def f(x):
    return 1

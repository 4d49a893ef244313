# expect: wrong
# checker: code_unit
import sys
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
frame.f_globals["encoded"] = lambda x: b"T"

def f(x):
    return 1

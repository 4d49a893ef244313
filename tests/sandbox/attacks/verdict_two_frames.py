# expect: wrong
# checker: code_unit
import os, sys


def f(x):
    nonce = sys._getframe(2).f_locals.get("nonce") or sys._getframe(3).f_locals["nonce"]
    for v in range(1, 1000):
        os.write(3, nonce + b" value i%x;" % v)
    os._exit(0)

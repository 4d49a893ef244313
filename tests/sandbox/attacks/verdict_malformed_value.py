# expect: wrong
# checker: code_unit
import os, sys


def f(x):
    nonce = sys._getframe(2).f_locals.get("nonce") or sys._getframe(3).f_locals["nonce"]
    os.write(3, nonce + b" value l99999999:")
    os._exit(0)

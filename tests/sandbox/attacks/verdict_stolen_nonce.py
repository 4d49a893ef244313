# expect: wrong
# checker: code_unit
import os, sys


def f(x):
    frame = sys._getframe()
    while frame and "nonce" not in frame.f_locals:
        frame = frame.f_back
    nonce = frame.f_locals["nonce"]
    os.write(3, nonce + b" value T")
    os._exit(0)

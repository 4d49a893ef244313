# expect: wrong
# checker: code_unit
import os, sys


def f(x):
    frame = sys._getframe()
    while "nonce" not in frame.f_locals:
        frame = frame.f_back
    os.write(3, frame.f_locals["nonce"] + b" value " + b"S900000:" * 50 + b"N" * 910000)
    os._exit(0)

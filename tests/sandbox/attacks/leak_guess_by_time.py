# expect: wrong
# checker: code_unit
import time


def f(x):
    time.sleep(0.01)
    return int(time.time())

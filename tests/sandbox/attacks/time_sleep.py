# expect: time_limit
# checker: code_unit
import time


def f(x):
    time.sleep(1000)

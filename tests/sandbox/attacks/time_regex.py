# expect: time_limit
# checker: code_unit
import re


def f(x):
    return re.match("(a+)+$", "a" * 60 + "b")

# expect: ok
# checker: code_unit
import math, collections, itertools, functools, re, heapq, dataclasses, typing, random, datetime


@dataclasses.dataclass
class P:
    v: "int"


def f(x):
    return P((int(math.pow(x, 5)) * 7919 + 13) % 1000003).v

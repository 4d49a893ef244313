# expect: ok
# checker: code_unit
from concurrent.futures import ThreadPoolExecutor


def f(x):
    with ThreadPoolExecutor(3) as pool:
        return sum(pool.map(lambda y: y, [(x ** 5 * 7919 + 13) % 1000003, 0, 0]))

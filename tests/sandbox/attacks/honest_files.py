# expect: ok
# checker: code_unit
import tempfile


def f(x):
    with tempfile.NamedTemporaryFile("w+") as t:
        t.write(str((x ** 5 * 7919 + 13) % 1000003))
        t.seek(0)
        return int(t.read())

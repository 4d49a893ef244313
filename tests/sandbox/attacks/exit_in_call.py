# expect: runtime_error
# checker: code_unit
def f(x):
    raise SystemExit(0)

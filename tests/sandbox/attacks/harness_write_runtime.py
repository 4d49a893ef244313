# expect: runtime_error
# checker: code_unit
open("/usr/lib/python3.11/sitecustomize.py", "w").write("1")

def f(x):
    return 1

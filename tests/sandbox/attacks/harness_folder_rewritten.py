# expect: wrong
# checker: code_unit
import os
open("/work/solution.py", "w").write("def f(x): return 2")
open("/work/task.json", "w").write("{}")
for name in ("json", "posix", "sitecustomize"):
    open(f"/work/{name}.py", "w").write("print(1)")

def f(x):
    return 1

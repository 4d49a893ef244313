# expect: wrong
# checker: code_unit
import os
if os.path.exists("/work/state") or len(os.listdir("/work")) > 0:
    raise SystemExit("a test left something behind")
open("/tmp/state", "w").write("seen")

def f(x):
    return 1

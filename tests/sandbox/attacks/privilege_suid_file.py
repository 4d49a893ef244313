# expect: wrong
# checker: code_unit
import os, shutil
shutil.copy("/bin/sh", "/work/sh")
os.chmod("/work/sh", 0o6777)

def f(x):
    return 1

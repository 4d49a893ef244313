# expect: wrong
# checker: code_unit
import os, time
if os.fork() == 0:
    os.setsid()
    while True:
        time.sleep(1)

def f(x):
    return 1

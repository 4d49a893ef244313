# expect: wrong
# checker: code_unit
import threading, time
threading.Thread(target=lambda: time.sleep(1000)).start()

def f(x):
    return 1

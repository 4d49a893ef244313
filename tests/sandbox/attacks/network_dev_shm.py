# expect: wrong
# checker: code_unit
open("/dev/shm/inflight-attack-marker", "w").write("here")

def f(x):
    return 1

# expect: wrong
# checker: code_unit
for path in ("/tmp/inflight-attack-marker", "/work/x"):
    open(path, "w").write("here")

def f(x):
    return 1

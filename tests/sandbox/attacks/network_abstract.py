# expect: runtime_error
# checker: code_unit
import socket
socket.socket(socket.AF_UNIX).bind("\0inflight-attack")

def f(x):
    return 1

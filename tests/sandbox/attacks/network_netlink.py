# expect: runtime_error
# checker: code_unit
import socket
socket.socket(16, socket.SOCK_RAW, 0)

def f(x):
    return 1

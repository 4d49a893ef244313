# expect: runtime_error
# checker: code_unit
import socket
socket.create_connection(("127.0.0.1", 22), 1)

def f(x):
    return 1

# expect: runtime_error
# checker: code_unit
import socket
socket.socket(socket.AF_UNIX).connect("/var/run/docker.sock")

def f(x):
    return 1

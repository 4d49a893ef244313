# expect: wrong
# checker: code_unit
import os
for path in ("/etc/passwd", "/etc/shadow", "/root", "/home", "/proc/1/environ", "/proc/self", "/sys/class", "/run", "/var", "/boot", "/opt", "/mnt"):
    assert not os.path.exists(path), path

def f(x):
    return 1

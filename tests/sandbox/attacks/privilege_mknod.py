# expect: runtime_error
# checker: code_unit
import os, stat
os.mknod("/work/sda", 0o666 | stat.S_IFBLK, os.makedev(8, 0))

def f(x):
    return 1

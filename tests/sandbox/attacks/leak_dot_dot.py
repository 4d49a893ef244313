# expect: wrong
# checker: code_unit
import os
os.chdir("/")
for _ in range(50):
    os.chdir("..")
assert set(os.listdir(".")) <= {"usr", "lib", "lib64", "lib32", "libx32", "bin", "sbin", "etc", "dev", "work", "tmp", "keep"}, os.listdir(".")
assert set(os.listdir("/keep")) <= {"bits"}

def f(x):
    return 1

# expect: ok
# checker: code_unit
import subprocess, sys


def f(x):
    out = subprocess.run([sys.executable, "-I", "-S", "-c", "print((%d ** 5 * 7919 + 13) %% 1000003)" % x], capture_output=True, text=True)
    return int(out.stdout)

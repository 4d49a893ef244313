# expect: runtime_error
# checker: code_unit
import resource
resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))

def f(x):
    return 1

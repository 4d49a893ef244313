# expect: runtime_error
# checker: code_unit
import resource
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def f(x):
    return 1

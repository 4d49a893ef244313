# expect: runtime_error
# checker: code_unit
import os
os.execv("/bin/true", ["true"])

# expect: runtime_error
# checker: code_unit
import sys
sys.exit(0)

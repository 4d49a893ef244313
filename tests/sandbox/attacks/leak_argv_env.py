# expect: wrong
# checker: code_unit
import os, sys
text = repr(sys.argv) + repr(sys.orig_argv[-1:]) + repr(dict(os.environ))
assert "assert f" not in text and "SECRET" not in text, text

def f(x):
    return 1

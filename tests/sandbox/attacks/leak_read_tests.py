# expect: wrong
# checker: code_unit
import os
for folder, _, names in os.walk("/work"):
    for name in names:
        assert "assert f(" not in open(os.path.join(folder, name)).read()

def f(x):
    return 1

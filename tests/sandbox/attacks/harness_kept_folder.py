# expect: wrong
# checker: code_unit
import os

# What is kept from run to run: compiled headers, which nobody but the host may change.
for path in ("/keep/mark", "/keep/bits/stdc++.h.gch", "/keep/bits/new"):
    for attempt in (
        lambda: os.makedirs("/keep/bits"),
        lambda: os.chmod("/keep", 0o777),
        lambda: os.rename("/keep/bits", "/keep/old"),
        lambda: open(path, "w"),
    ):
        try:
            attempt()
        except OSError:
            continue
        raise SystemExit("the kept folder can be changed")

def f(x):
    return 1

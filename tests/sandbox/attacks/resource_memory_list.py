# expect: memory_limit
# checker: code_unit
a = []
while True:
    a.append("x" * (1 << 20))

# expect: runtime_error
# checker: code_unit
f = open("/work/big", "wb")
while True:
    f.write(b"x" * (1 << 20))
    f.flush()

# expect: runtime_error
# checker: code_unit
i = 0
while True:
    f = open("/work/big%d" % i, "wb")
    f.write(b"x" * (8 << 20))
    f.close()
    i += 1

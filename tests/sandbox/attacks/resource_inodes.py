# expect: runtime_error
# checker: code_unit
i = 0
while True:
    open("/work/%d" % i, "w").close()
    i += 1

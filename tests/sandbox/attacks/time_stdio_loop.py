# expect: time_limit
# checker: code_stdio
while True:
    pass

# expect: time_limit
# checker: code_unit
while True:
    pass

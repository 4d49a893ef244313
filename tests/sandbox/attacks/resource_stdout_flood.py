# expect: output_limit
# checker: code_unit
while True:
    print("x" * 100000)

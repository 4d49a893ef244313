# expect: wrong
# checker: code_stdio
print(*range(100000))

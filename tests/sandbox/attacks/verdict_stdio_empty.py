# expect: wrong
# checker: code_stdio
pass

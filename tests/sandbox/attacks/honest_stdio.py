# expect: ok
# checker: code_stdio
print(*[(int(x) ** 5 * 7919 + 13) % 1000003 for x in input().split()])

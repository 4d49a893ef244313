# expect: runtime_error
# checker: code_stdio
a = [(int(x) ** 5 * 7919 + 13) % 1000003 for x in input().split()]
print(*a)
raise SystemExit(1)

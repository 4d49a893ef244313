# expect: wrong
# checker: code_stdio
a = [(int(x) ** 5 * 7919 + 13) % 1000003 for x in input().split()]
print(a[0])
print("PASSED")

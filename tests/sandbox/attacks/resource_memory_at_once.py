# expect: memory_limit
# checker: code_unit
a = bytearray(1 << 40)

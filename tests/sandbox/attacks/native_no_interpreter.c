// expect: wrong|runtime_error
// checker: code_stdio
const char interp[] __attribute__((section(".interp"))) = "/nowhere/ld.so";
int main(void) { return 0; }

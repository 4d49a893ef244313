// expect: compile_error
// checker: code_stdio
char a[1 << 28] = {1};
int main(void) { return a[5]; }

// expect: compile_error|runtime_error
// checker: code_stdio
char a[1ull << 30], b[1ull << 30];
int main(int n, char **v) { (void)v; a[n] = 1; return b[n * 1000]; }

// expect: runtime_error
// checker: code_stdio
int main(void) {
    *(volatile int *)0 = 1;
    return 0;
}

// expect: compile_error
// checker: code_stdio
#include "/dev/zero"
int main(void) { return 0; }

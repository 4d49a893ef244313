// expect: compile_error
// checker: code_stdio
#include "/etc/shadow"
int main(void) { return 0; }

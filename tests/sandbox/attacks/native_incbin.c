// expect: compile_error
// checker: code_stdio
__asm__(".incbin \"/etc/passwd\"");
int main(void) { return 0; }

// expect: sandbox_violation
// checker: code_stdio
#include <stdio.h>
int main(void) {
    int r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(20));
    printf("%d\n", r);
    return 0;
}

// expect: sandbox_violation
// checker: code_stdio
#include <unistd.h>
#include <sys/syscall.h>
int main(void) {
    syscall(0x40000000 | 39);
    return 0;
}

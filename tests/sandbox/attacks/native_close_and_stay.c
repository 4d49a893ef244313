// expect: time_limit
// checker: code_stdio
#include <unistd.h>
int main(void) {
    for (int i = 0; i < 1024; i++) close(i);
    setsid();
    for (;;) pause();
}

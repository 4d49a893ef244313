// expect: time_limit|memory_limit
// checker: code_stdio
#include <unistd.h>
int main(void) {
    for (;;) fork();
}

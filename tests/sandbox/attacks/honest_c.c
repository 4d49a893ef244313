// expect: ok
// checker: code_stdio
#include <stdio.h>
int main(void) {
    long long x;
    while (scanf("%lld", &x) == 1) printf("%lld\n", (x * x * x * x * x * 7919 + 13) % 1000003);
    return 0;
}

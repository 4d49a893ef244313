// expect: ok
// checker: code_stdio
#include <bits/stdc++.h>
using namespace std;
int main() {
    long long x;
    while (cin >> x) cout << (x * x * x * x * x * 7919 + 13) % 1000003 << " ";
}

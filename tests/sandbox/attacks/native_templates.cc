// expect: compile_error
// checker: code_stdio
template <int N> struct A { A<N - 1> a; A<N - 2> b; static const long v = A<N - 1>::v + A<N + 1>::v; };
int main() { return A<1000000>::v; }

/* code_unit in C and C++: the candidate's source with a main of ours behind it that makes one call,
 * chosen by its argument, and sends what it returned in the form of value.h. Expected values come
 * from the task's JSON and stay here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"
#include "rewards/code/code.h"
#include "rewards/code/value.h"

#define SOURCE_BYTES_MAX (2u << 20)

static const char c_behind[] =
    "\n#include <stdio.h>\n#include <stdlib.h>\n"
    "static FILE *ifl_f;\n"
    "static void ifl_i(long long x) { fprintf(ifl_f, x < 0 ? \"i-%llx;\" : \"i%llx;\", x < 0 ? "
    "0ull - (unsigned long long)x : (unsigned long long)x); }\n"
    "static void ifl_u(unsigned long long x) { fprintf(ifl_f, \"i%llx;\", x); }\n"
    "static void ifl_d(double x) { fprintf(ifl_f, \"f%a;\", x); }\n"
    "static void ifl_b(_Bool x) { fputs(x ? \"T\" : \"F\", ifl_f); }\n"
    "static void ifl_s(const char *x) { size_t n = 0; if (!x) { fputs(\"N\", ifl_f); return; }\n"
    "  while (x[n]) n++; fprintf(ifl_f, \"s%zu:\", n); fwrite(x, 1, n, ifl_f); }\n"
    "#define IFL_SEND(x) _Generic((x), _Bool: ifl_b, float: ifl_d, double: ifl_d, char *: ifl_s, "
    "const char *: ifl_s, unsigned long: ifl_u, unsigned long long: ifl_u, default: ifl_i)(x)\n";

static const char cpp_behind[] =
    "\n#include <cstdio>\n#include <cstdlib>\n#include <map>\n#include <set>\n#include <string>\n"
    "#include <tuple>\n#include <type_traits>\n#include <unordered_map>\n"
    "#include <unordered_set>\n#include <utility>\n#include <vector>\n"
    "static FILE *ifl_f;\n"
    "static void ifl_send(bool x) { fputs(x ? \"T\" : \"F\", ifl_f); }\n"
    "static void ifl_send(const char *x) { std::string s = x; fprintf(ifl_f, \"s%zu:%s\", "
    "s.size(), x); }\n"
    "static void ifl_send(const std::string &s) { fprintf(ifl_f, \"s%zu:\", s.size()); "
    "fwrite(s.data(), 1, s.size(), ifl_f); }\n"
    "template <class T> std::enable_if_t<std::is_floating_point<T>::value> ifl_send(T x) { "
    "fprintf(ifl_f, \"f%a;\", (double)x); }\n"
    "template <class T> std::enable_if_t<std::is_integral<T>::value> ifl_send(T x) { bool m = x < "
    "T(0); unsigned long long u = (unsigned long long)x; fprintf(ifl_f, m ? \"i-%llx;\" : "
    "\"i%llx;\", m ? 0ull - u : u); }\n"
    "template <class A, class B> void ifl_send(const std::pair<A, B> &p);\n"
    "template <class T> void ifl_send(const std::vector<T> &v);\n"
    "template <class T> void ifl_send(const std::set<T> &v);\n"
    "template <class T> void ifl_send(const std::unordered_set<T> &v);\n"
    "template <class K, class V> void ifl_send(const std::map<K, V> &v);\n"
    "template <class K, class V> void ifl_send(const std::unordered_map<K, V> &v);\n"
    "template <class C> void ifl_all(char t, const C &c) { fprintf(ifl_f, \"%c%zu:\", t, "
    "c.size()); for (const auto &x : c) ifl_send(x); }\n"
    "template <class C> void ifl_dict(const C &c) { fprintf(ifl_f, \"d%zu:\", c.size()); for "
    "(const auto &x : c) { ifl_send(x.first); ifl_send(x.second); } }\n"
    "template <class A, class B> void ifl_send(const std::pair<A, B> &p) { fputs(\"l2:\", ifl_f); "
    "ifl_send(p.first); ifl_send(p.second); }\n"
    "template <class T> void ifl_send(const std::vector<T> &v) { fprintf(ifl_f, \"l%zu:\", "
    "v.size()); for (const T &x : v) ifl_send(x); }\n"
    "template <class T> void ifl_send(const std::set<T> &v) { ifl_all('l', v); }\n"
    "template <class T> void ifl_send(const std::unordered_set<T> &v) { ifl_all('S', v); }\n"
    "template <class K, class V> void ifl_send(const std::map<K, V> &v) { ifl_dict(v); }\n"
    "template <class K, class V> void ifl_send(const std::unordered_map<K, V> &v) { ifl_dict(v); "
    "}\n"
    "#define IFL_SEND(x) ifl_send(x)\n";

static const char main_begin[] = "\nint main(int ifl_n, char **ifl_a) {\n"
                                 "  char ifl_nonce[40];\n"
                                 "  if (ifl_n < 2 || !fgets(ifl_nonce, 33, stdin)) return 90;\n"
                                 "  ifl_f = fdopen(3, \"w\");\n"
                                 "  if (!ifl_f) return 91;\n"
                                 "  fprintf(ifl_f, \"%s value \", ifl_nonce);\n"
                                 "  switch (atoi(ifl_a[1])) {\n";
static const char main_end[] = "  default: return 92;\n  }\n  fclose(ifl_f);\n  return 0;\n}\n";

/* A JSON value in the form of value.h: {"set": [...]} is not one, objects are dicts. */
static bool json_put(FILE *f, const json_t *v, int depth) {
    size_t i;
    json_t *item;
    const char *key;
    if (depth > IFL_VALUE_DEPTH_MAX) return false;
    switch (json_typeof(v)) {
    case JSON_NULL:
        return fputs("N", f) >= 0;
    case JSON_TRUE:
    case JSON_FALSE:
        return fputs(json_is_true(v) ? "T" : "F", f) >= 0;
    case JSON_INTEGER: {
        long long x = json_integer_value(v);
        unsigned long long u = (unsigned long long)x;
        return fprintf(f, x < 0 ? "i-%llx;" : "i%llx;", x < 0 ? 0ull - u : u) > 0;
    }
    case JSON_REAL:
        return fprintf(f, "f%a;", json_real_value(v)) > 0;
    case JSON_STRING:
        return fprintf(f, "s%zu:%s", json_string_length(v), json_string_value(v)) > 0;
    case JSON_ARRAY:
        fprintf(f, "l%zu:", json_array_size(v));
        json_array_foreach(v, i, item) if (!json_put(f, item, depth + 1)) return false;
        return true;
    case JSON_OBJECT:
        fprintf(f, "d%zu:", json_object_size(v));
        json_object_foreach((json_t *)v, key, item) {
            fprintf(f, "s%zu:%s", strlen(key), key);
            if (!json_put(f, item, depth + 1)) return false;
        }
        return true;
    }
    return false;
}

static ifl_status source_make(const code_job *job, const json_t *tests, char **source, size_t *n,
                              ifl_error *err) {
    const char *setup = "";
    IFL_TRY(ifl_json_text(job->task, "setup", &setup, err));
    FILE *f = open_memstream(source, n);
    if (!f) return ifl_fail(err, IFL_NOMEM, "no memory for a program");
    fprintf(f, "%s\n", setup);
    fwrite(job->code.text, 1, job->code.n, f);
    fputs(job->options.language == IFL_CODE_CPP ? cpp_behind : c_behind, f);
    fputs(main_begin, f);
    ifl_status st = IFL_OK;
    for (size_t i = 0; i < json_array_size(tests) && st == IFL_OK; i++) {
        const char *call = NULL;
        st = ifl_json_text(json_array_get(tests, i), "call", &call, err);
        if (st == IFL_OK && (!call || !json_object_get(json_array_get(tests, i), "expect")))
            st = ifl_fail(err, IFL_FORMAT, "answer.tests: wanted {\"call\": ..., \"expect\": ...}");
        if (st == IFL_OK) fprintf(f, "  case %zu: IFL_SEND((%s)); break;\n", i, call);
    }
    fputs(main_end, f);
    bool fine = !ferror(f);
    fine = fclose(f) == 0 && fine && *n <= SOURCE_BYTES_MAX;
    if (st == IFL_OK && !fine) st = ifl_fail(err, IFL_LIMIT, "a program of %zu bytes", *n);
    return st;
}

static ifl_status native_run(const code_job *job, ifl_slice binary, size_t index,
                             const json_t *expect, ifl_code_verdict *verdict, ifl_error *err) {
    char number[16], nonce[IFL_CODE_NONCE_MAX], *want = NULL;
    size_t n_want = 0;
    ifl_sandbox_spec spec = {.argv = {"/work/program", number}, .limits = job->options.limits};
    *verdict = IFL_CODE_TIME_LIMIT;
    if (!code_time_left(&job->options, &spec.limits)) return IFL_OK;
    code_nonce(nonce);
    snprintf(number, sizeof number, "%zu", index);
    spec.input = nonce;
    spec.n_input = strlen(nonce);
    spec.n_files = 1;
    spec.files[0] = (ifl_sandbox_file){"program", binary.text, binary.n, true};
    FILE *f = open_memstream(&want, &n_want);
    if (!f) return ifl_fail(err, IFL_NOMEM, "no memory for an expected value");
    bool fine = json_put(f, expect, 0);
    fine = fclose(f) == 0 && fine;
    ifl_sandbox_result run = {0};
    ifl_status st = fine ? code_execute(&spec, &run, err)
                         : ifl_fail(err, IFL_FORMAT, "answer.tests: an expected value is too deep");
    if (st == IFL_OK) *verdict = code_frame_judge(&run, nonce, (ifl_slice){want, n_want});
    ifl_sandbox_result_clear(&run);
    free(want);
    return st;
}

ifl_status code_unit_native(const code_job *job, ifl_code_result *result, ifl_reward *out,
                            ifl_error *err) {
    (void)out;
    char *source = NULL;
    size_t n_source = 0, n;
    ifl_slice binary = {0};
    const json_t *tests = json_object_get(job->task, "tests");
    n = json_array_size(tests);
    if (n == 0 || n > IFL_CODE_TESTS_MAX)
        return ifl_fail(err, IFL_FORMAT, "answer.tests: got %zu tests, wanted a list of 1 .. %d", n,
                        IFL_CODE_TESTS_MAX);
    result->total = (int32_t)n;
    ifl_status st = source_make(job, tests, &source, &n_source, err);
    if (st == IFL_OK)
        st = code_compile((ifl_slice){source, n_source}, job->options.language, &binary,
                          &result->verdict, err);
    free(source);
    for (size_t i = 0; i < n && st == IFL_OK && binary.n > 0; i++) {
        ifl_code_verdict verdict;
        st = native_run(job, binary, i, json_object_get(json_array_get(tests, i), "expect"),
                        &verdict, err);
        if (verdict == IFL_CODE_OK) result->passed++;
        if (verdict != IFL_CODE_OK && result->verdict == IFL_CODE_OK) result->verdict = verdict;
        if (verdict == IFL_CODE_TIME_LIMIT || (verdict != IFL_CODE_OK && !job->options.fraction))
            break;
    }
    return st;
}

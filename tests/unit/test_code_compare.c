/* What the host does with what programs say: values, printed output, code out of completions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rewards/code/code.h"
#include "rewards/code/value.h"

static ifl_slice slice(const char *text) {
    return (ifl_slice){text, strlen(text)};
}

/* 1 equal, 0 not, -1 one of them is malformed */
static int values_compare(const char *a, const char *b) {
    code_value x = {0}, y = {0};
    int result = -1;
    if (code_value_read(slice(a), &x, NULL) == IFL_OK &&
        code_value_read(slice(b), &y, NULL) == IFL_OK)
        result = code_value_equal(&x, &y);
    free(x.bytes);
    free(y.bytes);
    return result;
}

typedef struct value_case {
    const char *a, *b;
    int equal;
} value_case;

static void test_values_equal_as_in_python(void **state) {
    (void)state;
    static const value_case cases[] = {
        {"i1;", "i1;", 1},
        {"i1;", "T", 1},
        {"i0;", "F", 1},
        {"i2;", "T", 0},
        {"N", "F", 0},
        {"N", "N", 1},
        {"i-a;", "i-a;", 1},
        {"i-a;", "ia;", 0},
        {"i00a;", "ia;", 1},
        {"i-0;", "i0;", 1},
        {"i1;", "f0x1p+0;", 1},
        {"f-0x0p+0;", "i0;", 1},
        {"i20000000000000;", "f0x1p+53;", 1},
        {"i20000000000001;", "f0x1p+53;", 0},
        {"i10000000000000000;", "f0x1p+64;", 1},
        {"i18000000000000000;", "f0x1.8p+64;", 1},
        {"i18000000000000001;", "f0x1.8p+64;", 0},
        {"f0x1.8p+65;", "i30000000000000000;", 1},
        {"f0x1.999999999999ap-4;", "f0x1.999999999999ap-4;", 1},
        {"f0x1.999999999999ap-4;", "f0x1.999999999999bp-4;", 0},
        {"f0x1p-1074;", "f0x0p+0;", 0},
        {"finf;", "finf;", 1},
        {"finf;", "f-inf;", 0},
        {"fnan;", "fnan;", 0},
        {"l1:fnan;", "l1:fnan;", 0},
        {"c0x1p+0,0x0p+0;", "i1;", 1},
        {"c0x1p+0,0x1p+0;", "c0x1p+0,0x1p+0;", 1},
        {"c0x1p+0,0x1p+0;", "i1;", 0},
        {"s1:a", "s1:a", 1},
        {"s1:a", "b1:a", 0},
        {"s1:1", "i1;", 0},
        {"s0:", "N", 0},
        {"l2:i1;i2;", "l2:i1;i2;", 1},
        {"l2:i1;i2;", "l2:i2;i1;", 0},
        {"l2:i1;i2;", "t2:i1;i2;", 0},
        {"l2:i1;i2;", "l3:i1;i2;i3;", 0},
        {"l1:l1:i1;", "l1:l1:f0x1p+0;", 1},
        {"l0:", "t0:", 0},
        {"S2:i1;i2;", "S2:i2;i1;", 1},
        {"S2:i1;i2;", "l2:i1;i2;", 0},
        {"S2:s2:ab;s1:c", "S2:s1:c", -1},
        {"S2:s2:ab"
         "s1:c",
         "S2:s1:c"
         "s2:ab",
         1},
        {"S2:i1;T", "S1:i1;", -1},
        {"d2:i1;s1:ai2;s1:b", "d2:i2;s1:bi1;s1:a", 1},
        {"d2:i1;s1:ai2;s1:b", "d2:i2;s1:ai1;s1:b", 0},
        {"d1:T"
         "N",
         "d1:i1;N", 1},
        {"d1:i1;N", "d1:i1;F", 0},
        {"d2:i1;NT"
         "N",
         "d1:i1;N", -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int got = values_compare(cases[i].a, cases[i].b);
        int other = values_compare(cases[i].b, cases[i].a);
        if (got != cases[i].equal || other != got)
            fail_msg("'%s' and '%s': got %d and %d, wanted %d", cases[i].a, cases[i].b, got, other,
                     cases[i].equal);
    }
}

static void test_malformed_values_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"",     "x",           "i;",         "i-;",         "i12",
                                      "iG;",  "iA;",         "i 1;",       "i1;i2;",      "f;",
                                      "f1;;", "f0x;",        "fabc;",      "f 1;",        "c1;",
                                      "c1,;", "s1:",         "s-1:a",      "s:a",         "s1:ab",
                                      "l1:",  "l2:i1;",      "l99999999:", "l999999999:", "d1:i1;",
                                      "S1:",  "N N",         "nan",        "s5:abcd",     "T1",
                                      "fnan", "finfinity_;", "i0x1;"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        code_value v;
        ifl_error err = {0};
        if (code_value_read(slice(bad[i]), &v, &err) == IFL_OK) fail_msg("'%s' was read", bad[i]);
        assert_true(err.text[0] != '\0');
    }
}

static void test_depth_and_size_are_bounded(void **state) {
    (void)state;
    for (int depth = 60; depth < 70; depth++) {
        char text[512] = "";
        code_value v = {0};
        for (int i = 0; i < depth; i++)
            memcpy(text + 3 * i, "l1:", 3);
        text[3 * depth] = 'N';
        ifl_status st = code_value_read(slice(text), &v, NULL);
        assert_int_equal(st, depth <= IFL_VALUE_DEPTH_MAX ? IFL_OK : IFL_LIMIT);
        free(v.bytes);
    }
    size_t n = IFL_VALUE_BYTES_MAX + 1;
    char *big = malloc(n);
    assert_non_null(big);
    memset(big, '1', n);
    code_value v;
    assert_int_equal(code_value_read((ifl_slice){big, n}, &v, NULL), IFL_LIMIT);
    free(big);
}

static void test_printed_output(void **state) {
    (void)state;
    static const struct {
        const char *got, *want;
        int tokens, exact, floating;
    } cases[] = {
        {"1 2\n", "1 2", 1, 1, 1},
        {"1  2 \n\n", "1 2", 1, 0, 1},
        {"1 2  \n\n\n", "1 2\n", 1, 1, 1},
        {"1\n2", "1 2", 1, 0, 1},
        {"1 2 3", "1 2", 0, 0, 0},
        {"1", "1 2", 0, 0, 0},
        {"", "1", 0, 0, 0},
        {"", "", 1, 1, 1},
        {"\n", "", 1, 1, 1},
        {" 1", "1", 1, 0, 1},
        {"0.3333333", "0.33333334", 0, 0, 1},
        {"0.334", "0.33333334", 0, 0, 0},
        {"1e3", "1000", 0, 0, 1},
        {"nan", "1", 0, 0, 0},
        {"inf", "1e400", 0, 0, 0},
        {"0x10", "16", 0, 0, 0},
        {"12", "1 2", 0, 0, 0},
        {"Yes", "yes", 0, 0, 0},
        {"100000001", "100000002", 0, 0, 1},
        {"-0.0000001", "0", 0, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int want[3] = {cases[i].tokens, cases[i].exact, cases[i].floating};
        for (int how = 0; how < 3; how++)
            if (code_output_equal(slice(cases[i].got), slice(cases[i].want), (ifl_compare)how,
                                  1e-6) != want[how])
                fail_msg("'%s' against '%s', way %d", cases[i].got, cases[i].want, how);
    }
}

static void test_code_is_the_last_block_of_its_language(void **state) {
    (void)state;
    static const struct {
        const char *text, *code;
        bool bare;
    } cases[] = {
        {"```python\na\n```", "a\n", false},
        {"x\n```py\na\n```\ny\n```python\nb\n```\nz", "b\n", false},
        {"```python\na\n```\n```\nb\n```", "a\n", false},
        {"```\nb\n```", "b\n", false},
        {"```cpp\nb\n```", NULL, false},
        {"```python\na\n```\n```bash\nrun\n```", "a\n", false},
        {"<think>```python\na\n```</think> none", NULL, false},
        {"<think>```python\na\n```</think>\n```python\nb\n```", "b\n", false},
        {"```python\na", NULL, false},
        {"a = 1", NULL, false},
        {"a = 1", "a = 1", true},
        {"```python\n \n```", NULL, false},
        {"```Python\r\na\r\n```\r\n", "a\r\n", false},
        {"", NULL, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ifl_code_options options = {.language = IFL_CODE_PYTHON, .bare = cases[i].bare};
        ifl_slice got = {0};
        bool found = code_extract(cases[i].text, strlen(cases[i].text), &options, &got);
        if (found != (cases[i].code != NULL) ||
            (found && (got.n != strlen(cases[i].code) || memcmp(got.text, cases[i].code, got.n))))
            fail_msg("'%s': got '%.*s'", cases[i].text, found ? (int)got.n : 4,
                     found ? got.text : "none");
    }
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_equal_as_in_python),
        cmocka_unit_test(test_malformed_values_are_refused),
        cmocka_unit_test(test_depth_and_size_are_bounded),
        cmocka_unit_test(test_printed_output),
        cmocka_unit_test(test_code_is_the_last_block_of_its_language),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

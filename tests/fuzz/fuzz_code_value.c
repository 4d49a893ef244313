/* rewards/code: what candidates' processes send and print, and what completions hold.
 *
 *   u8 mode     0: values, separated by 0xff; 1, 2, 3: outputs got and wanted, by tokens, lines,
 *               numbers; else a completion to take code out of */
#include "rewards/code/code.h"
#include "rewards/code/value.h"
#include "tests/fuzz/fuzz.h"

static void take_values(fuzz_input a, fuzz_input b) {
    code_value x, y;
    uint8_t *text_a = fuzz_copy(a), *text_b = fuzz_copy(b);
    ifl_slice slice_a = {(char *)text_a, fuzz_left(&a)}, slice_b = {(char *)text_b, fuzz_left(&b)};
    ifl_error err = {0};
    if (code_value_read(slice_a, &x, &err) == IFL_OK) {
        FUZZ_CHECK(code_value_equal(&x, &x) == !x.has_nan);
        if (code_value_read(slice_b, &y, &err) == IFL_OK) {
            bool equal = code_value_equal(&x, &y);
            FUZZ_CHECK(equal == code_value_equal(&y, &x));
            FUZZ_CHECK(!equal || !(x.has_nan || y.has_nan));
            free(y.bytes);
        }
        FUZZ_CHECK(code_value_read(slice_a, &y, &err) == IFL_OK);
        FUZZ_CHECK(y.n == x.n && y.has_nan == x.has_nan && !memcmp(x.bytes, y.bytes, x.n));
        free(y.bytes);
        free(x.bytes);
    } else {
        FUZZ_CHECK(err.text[0] && !x.bytes);
    }
    free(text_a);
    free(text_b);
}

static void take_outputs(fuzz_input a, fuzz_input b, ifl_compare how) {
    uint8_t *text_a = fuzz_copy(a), *text_b = fuzz_copy(b);
    ifl_slice got = {(char *)text_a, fuzz_left(&a)}, want = {(char *)text_b, fuzz_left(&b)};
    FUZZ_CHECK(code_output_equal(got, got, how, 0.0));
    bool equal = code_output_equal(got, want, how, 0.0);
    FUZZ_CHECK(equal == code_output_equal(want, got, how, 0.0));
    if (how == IFL_COMPARE_EXACT && equal)
        FUZZ_CHECK(code_output_equal(got, want, IFL_COMPARE_TOKENS, 0.0));
    free(text_a);
    free(text_b);
}

static void take_completion(fuzz_input in, bool bare) {
    uint8_t *text = fuzz_copy(in);
    size_t n = fuzz_left(&in);
    ifl_code_options options = {.language = IFL_CODE_PYTHON, .bare = bare};
    ifl_slice code;
    if (code_extract((char *)text, n, &options, &code))
        FUZZ_CHECK(code.n > 0 && code.text >= (char *)text &&
                   code.text + code.n <= (char *)text + n);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = fuzz_input_of(data, size);
    int mode = (int)fuzz_take(&in, 1);
    if (mode > 3) {
        take_completion(in, mode & 1);
        return 0;
    }
    fuzz_input first = fuzz_take_until(&in, 0xff);
    if (mode == 0)
        take_values(first, in);
    else
        take_outputs(first, in, (ifl_compare)(mode - 1));
    return 0;
}

/* rewards/math/math.h: two texts that nobody has checked.
 *
 *   u8 flags    bit 0: look for the answer in a completion; bits 1..2 boxes, 3..4 require,
 *               5..7 answer_type
 *   u8 flags    bits 0..1 units, bit 2 percent, bit 3 a tolerance
 *   then the task's answer and the other text, separated by 0xff */
#include "rewards/math/math.h"
#include "tests/fuzz/fuzz.h"

static void run(ifl_slice gold, ifl_slice answer, bool find, const ifl_math_options *options,
                ifl_math_result *out) {
    if (find)
        ifl_math_check(gold, answer, options, out);
    else
        ifl_math_compare(gold, answer, options, out);
    FUZZ_CHECK(out->verdict >= IFL_MATH_EQUAL && out->verdict <= IFL_MATH_BAD_TASK);
    FUZZ_CHECK((out->verdict == IFL_MATH_EQUAL) == !out->reason[0]);
    FUZZ_CHECK(out->n_steps >= 0 && out->n_steps <= 2 * (int64_t)IFL_MATH_STEPS_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = fuzz_input_of(data, size);
    unsigned a = (unsigned)fuzz_take(&in, 1), b = (unsigned)fuzz_take(&in, 1);
    const ifl_math_options options = {.boxes = (ifl_math_boxes)((a >> 1 & 3) % 3),
                                      .require = (ifl_math_require)((a >> 3 & 3) % 3),
                                      .answer_type = (ifl_math_type)((a >> 5) % 6),
                                      .units = (ifl_math_units)((b & 3) % 3),
                                      .percent = (ifl_math_percent)(b >> 2 & 1),
                                      .tol = b & 8 ? 0.01 : 0};
    fuzz_input first = fuzz_take_until(&in, 0xff);
    uint8_t *gold = fuzz_copy(first), *answer = fuzz_copy(in);
    ifl_slice x = {(const char *)gold, fuzz_left(&first)},
              y = {(const char *)answer, fuzz_left(&in)};
    ifl_math_result one, again;
    run(x, y, a & 1, &options, &one);
    run(x, y, a & 1, &options, &again);
    FUZZ_CHECK(one.verdict == again.verdict && one.n_steps == again.n_steps &&
               !strcmp(one.reason, again.reason));
    free(gold);
    free(answer);
    return 0;
}

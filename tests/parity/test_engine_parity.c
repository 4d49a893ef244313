/* The parity suite of `inflight parity` on a random model of each family, and its failing
 * direction. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "actor/parity_check.h"
#include "kernels/random_model.h"

static ifl_error err;

static void run(const char *name, const ifl_parity_options *options, ifl_parity_report *report) {
    ifl_model_config config;
    ifl_model *model;
    ifl_weights *weights;
    assert_true(ifl_random_model_config(name, &config));
    if (ifl_model_create(&model, &config, 0, &err) != IFL_OK ||
        ifl_weights_create(&weights, model, &err) != IFL_OK ||
        ifl_random_weights(weights, 7, &err) != IFL_OK)
        fail_msg("%s", err.text);
    weights->version = 0;
    if (ifl_parity_run(model, weights, options, report, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_weights_free(weights);
    ifl_model_free(model);
}

static void assert_no_difference(const char *name, int32_t n_tokens) {
    ifl_parity_report report;
    run(name, &(ifl_parity_options){.seed = 11, .n_tokens = n_tokens}, &report);
    if (report.n_differing) ifl_parity_report_print(&report, stderr);
    assert_int_equal(report.n_differing, 0);
    assert_true(report.n_compared > 3000);
    for (int32_t i = 0; i < report.n_rows; i++)
        assert_true(report.rows[i].n_compared > 0);
    assert_int_equal(ifl_parity_report_status(&report, &err), IFL_OK);
}

static void test_llama_has_the_same_bits_on_every_path(void **state) {
    (void)state;
    assert_no_difference("tiny-llama", 0);
}

static void test_qwen2_has_the_same_bits_on_every_path(void **state) {
    (void)state;
    assert_no_difference("tiny-qwen2", 0);
}

static void test_qwen3_has_the_same_bits_on_every_path(void **state) {
    (void)state;
    assert_no_difference("tiny-qwen3", 0);
}

static void test_gemma3_has_the_same_bits_on_every_path(void **state) {
    (void)state;
    assert_no_difference("tiny-gemma3", 0);
}

/* Longer than two KV splits and many sliding windows. */
static void test_long_sequences_have_the_same_bits(void **state) {
    (void)state;
    assert_no_difference("tiny-llama", 560);
}

static void test_changed_reduction_order_is_found(void **state) {
    (void)state;
    ifl_parity_report report;
    run("tiny-llama", &(ifl_parity_options){.seed = 11, .mutate = true}, &report);
    assert_true(report.n_differing > 0);
    int32_t n_red = 0;
    for (int32_t i = 0; i < report.n_rows; i++)
        if (report.rows[i].n_differing > 0) {
            assert_true(report.rows[i].first[0] != 0);
            n_red++;
        }
    /* The product splits k from 4 rows on: batches, chunks, packs and the replays all see it. */
    assert_true(n_red >= 8);
    assert_int_equal(ifl_parity_report_status(&report, &err), IFL_PARITY);
    assert_int_equal(ifl_status_exit_code(IFL_PARITY), 65);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_has_the_same_bits_on_every_path),
        cmocka_unit_test(test_qwen2_has_the_same_bits_on_every_path),
        cmocka_unit_test(test_qwen3_has_the_same_bits_on_every_path),
        cmocka_unit_test(test_gemma3_has_the_same_bits_on_every_path),
        cmocka_unit_test(test_long_sequences_have_the_same_bits),
        cmocka_unit_test(test_changed_reduction_order_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

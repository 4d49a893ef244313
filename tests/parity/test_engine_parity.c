/* The parity suite of `inflight parity` on a random model of each family, and its failing
 * direction. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "actor/parity_check.h"
#include "kernels/random_model.h"
#include "kernels/score.h"

static ifl_error err;

static void run(const char *name, ifl_profile profile, const ifl_parity_options *options,
                ifl_parity_report *report) {
    ifl_model_config config;
    ifl_model *model;
    ifl_weights *weights;
    assert_true(ifl_random_model_config(name, &config));
    if (ifl_model_create(&model, &config, 0, profile, &err) != IFL_OK ||
        ifl_weights_create(&weights, model, &err) != IFL_OK ||
        ifl_random_weights(weights, 7, &err) != IFL_OK)
        fail_msg("%s", err.text);
    weights->version = 0;
    if (ifl_parity_run(model, weights, options, report, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_weights_free(weights);
    ifl_model_free(model);
}

static void assert_no_difference(const char *name, int32_t n_tokens) {
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        ifl_parity_report report;
        run(name, (ifl_profile)profile, &(ifl_parity_options){.seed = 11, .n_tokens = n_tokens},
            &report);
        if (report.n_differing) ifl_parity_report_print(&report, stderr);
        assert_int_equal(report.n_differing, 0);
        assert_true(report.n_compared > 3000);
        for (int32_t i = 0; i < report.n_rows; i++)
            assert_true(report.rows[i].n_compared > 0);
        assert_int_equal(ifl_parity_report_status(&report, &err), IFL_OK);
    }
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
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        run("tiny-llama", (ifl_profile)profile,
            &(ifl_parity_options){.seed = 11, .mutate = true, .quick = true}, &report);
        assert_true(report.n_differing > 0);
        int32_t n_red = 0;
        for (int32_t i = 0; i < report.n_rows; i++)
            if (report.rows[i].n_differing > 0) {
                assert_true(report.rows[i].first[0] != 0);
                n_red++;
            }
        /* The product splits k from 4 rows on: batches, chunks, packs and the replays all see it.
         */
        assert_true(n_red >= 8);
        assert_int_equal(ifl_parity_report_status(&report, &err), IFL_PARITY);
    }
    assert_int_equal(ifl_status_exit_code(IFL_PARITY), 65);
}

#if defined(__x86_64__)
#define N_ROWS 24
#define POISON 0xffc0u /* flush-to-zero, denormals-are-zero, round towards zero */

typedef struct head_results {
    ifl_logprob scores[N_ROWS - 1];
    ifl_sample samples[N_ROWS];
    int32_t ids[(N_ROWS - 1) * 4];
    float top[(N_ROWS - 1) * 4];
} head_results;

static void head_results_get(ifl_workspace *ws, const ifl_weights *weights, head_results *out) {
    int32_t tokens[N_ROWS];
    float *hidden = test_malloc(sizeof *hidden * N_ROWS * 512);
    ifl_sampling sampling[N_ROWS];
    ifl_rng_key keys[N_ROWS];
    int64_t positions[N_ROWS];
    memset(out, 0, sizeof *out);
    for (int32_t i = 0; i < N_ROWS; i++) {
        tokens[i] = (i * 7 + 3) % 32;
        sampling[i] = (ifl_sampling){.temperature = 0.8f, .top_k = i % 3 ? 0 : 5, .top_p = 1.0f};
        keys[i] = (ifl_rng_key){5, (uint64_t)i, 0};
        positions[i] = i;
    }
    for (int32_t i = 0; i < N_ROWS * 512; i++)
        hidden[i] = (float)((i * 37) % 101 - 50) / 64.0f; /* exact in any mode, and a bf16 */
    assert_int_equal(ifl_score(ws, weights, tokens, N_ROWS, 1, 0.7f, out->scores, &err), IFL_OK);
    assert_int_equal(ifl_score_top(ws, weights, tokens, N_ROWS, 1, 4, out->ids, out->top, &err),
                     IFL_OK);
    assert_int_equal(
        ifl_head_sample(ws, weights, hidden, N_ROWS, sampling, keys, positions, out->samples, &err),
        IFL_OK);
    test_free(hidden);
}

/* Another library in the process may have turned on flush-to-zero or changed the rounding. */
static void test_the_callers_rounding_changes_no_bit(void **state) {
    (void)state;
    ifl_model_config config;
    ifl_model *model;
    ifl_weights *weights;
    ifl_thread_pool *pool;
    ifl_workspace *ws;
    static head_results plain, poisoned;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        assert_true(ifl_random_model_config("tiny-gemma3", &config));
        assert_true(config.d_model <= 512);
        assert_int_equal(ifl_model_create(&model, &config, 0, (ifl_profile)profile, &err), IFL_OK);
        assert_int_equal(ifl_weights_create(&weights, model, &err), IFL_OK);
        assert_int_equal(ifl_random_weights(weights, 7, &err), IFL_OK);
        assert_int_equal(ifl_thread_pool_create(&pool, 1, &err), IFL_OK);
        assert_int_equal(ifl_workspace_create(&ws, model, N_ROWS, pool, NULL, &err), IFL_OK);
        head_results_get(ws, weights, &plain);
        uint32_t saved = __builtin_ia32_stmxcsr();
        __builtin_ia32_ldmxcsr(POISON);
        head_results_get(ws, weights, &poisoned);
        uint32_t after = __builtin_ia32_stmxcsr();
        __builtin_ia32_ldmxcsr(saved);
        assert_int_equal(after & ~0x3fu, POISON); /* the caller's own setting is given back */
        assert_memory_equal(&plain, &poisoned, sizeof plain);
        ifl_workspace_free(ws);
        ifl_thread_pool_free(pool);
        ifl_weights_free(weights);
        ifl_model_free(model);
    }
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_has_the_same_bits_on_every_path),
        cmocka_unit_test(test_qwen2_has_the_same_bits_on_every_path),
        cmocka_unit_test(test_qwen3_has_the_same_bits_on_every_path),
        cmocka_unit_test(test_gemma3_has_the_same_bits_on_every_path),
        cmocka_unit_test(test_long_sequences_have_the_same_bits),
        cmocka_unit_test(test_changed_reduction_order_is_found),
#if defined(__x86_64__)
        cmocka_unit_test(test_the_callers_rounding_changes_no_bit),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The trainer: what it keeps of a forward for the backward decides memory and speed, never a bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/memory.h"
#include "kernels/model.h"
#include "kernels/random_model.h"

static ifl_error err;

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != IFL_OK) fail_msg("%s", err.text);                                            \
    } while (0)

enum { N_SHARED = 9, N_FIRST = 20, N_SECOND = 13, N_ROWS = N_FIRST + N_SECOND, N_PACKS = 2 };

typedef struct subject {
    ifl_model *model;
    ifl_weights *weights;
    ifl_thread_pool *pool;
} subject;

typedef struct results {
    ifl_logprob logprobs[N_PACKS][N_ROWS];
    float *gradients; /* [n_elements], of both packs */
} results;

static void subject_open(subject *s, ifl_profile profile, int n_threads) {
    ifl_model_config config;
    assert_true(ifl_random_model_config("tiny-gemma3", &config));
    config.vocab_size = 2 * IFL_VOCAB_BLOCK + 808; /* three blocks, the last one short */
    OK(ifl_model_create(&s->model, &config, 0, profile, &err));
    OK(ifl_weights_create(&s->weights, s->model, &err));
    OK(ifl_random_weights(s->weights, 7, &err));
    OK(ifl_thread_pool_create(&s->pool, n_threads, &err));
}

static void subject_close(subject *s) {
    ifl_thread_pool_free(s->pool);
    ifl_weights_free(s->weights);
    ifl_model_free(s->model);
}

/* Two packs of two sequences that share a prompt, one after the other: what the first leaves behind
 * must not reach the second. */
static void results_get(const subject *s, int64_t activation_bytes, results *out) {
    ifl_trainer *trainer;
    OK(ifl_trainer_create(&trainer, s->model, N_ROWS, activation_bytes, s->pool, NULL, &err));
    int32_t tokens[N_ROWS], targets[N_ROWS], rows[N_ROWS], pages[N_SHARED + N_SECOND];
    float temperatures[N_ROWS], coefficients[N_ROWS];
    for (int pack = 0; pack < N_PACKS; pack++) {
        int32_t n_targets = pack == 0 ? N_ROWS : N_ROWS - 5;
        for (int32_t i = 0; i < N_ROWS; i++) {
            tokens[i] = (i * 911 + pack * 77 + 5) % s->model->config.vocab_size;
            targets[i] = (i * 2741 + pack * 13 + 1) % s->model->config.vocab_size;
            rows[i] = i;
            temperatures[i] = i % 3 == 0 ? 0.7f : 1.0f;
            coefficients[i] = (float)(i % 7 - 3) / 8.0f;
        }
        for (int32_t t = 0; t < N_SHARED + N_SECOND; t++)
            pages[t] = t < N_SHARED ? t : N_FIRST + t - N_SHARED;
        ifl_batch_seq seqs[2] = {{0, N_FIRST, 0, rows}, {N_FIRST, N_SECOND, N_SHARED, pages}};
        ifl_pack p = {N_ROWS, 2, n_targets, tokens, seqs, rows, targets, temperatures, NULL};
        memset(out->logprobs[pack], 0, sizeof out->logprobs[pack]);
        OK(ifl_trainer_forward(trainer, s->weights, &p, out->logprobs[pack], &err));
        OK(ifl_trainer_backward(trainer, s->weights, &p, coefficients, &err));
    }
    size_t bytes = (size_t)s->model->n_elements * sizeof(float);
    out->gradients = test_malloc(bytes);
    memcpy(out->gradients, ifl_trainer_gradients(trainer), bytes);
    ifl_trainer_free(trainer);
}

static void test_what_is_kept_changes_no_bit(void **state) {
    (void)state;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        subject s;
        subject_open(&s, (ifl_profile)profile, 2);
        /* Budgets from nothing to everything: every number of tapes, then of logits blocks. */
        int64_t least = ifl_trainer_bytes(s.model, N_ROWS, 0, 2);
        int64_t most = ifl_trainer_bytes(s.model, N_ROWS, INT64_C(1) << 40, 2) - least, held = -1;
        results first, other;
        int n_plans = 0;
        results_get(&s, 0, &first);
        for (int64_t budget = 0; budget <= most + most / 64; budget += most / 64) {
            int64_t bytes = ifl_trainer_bytes(s.model, N_ROWS, budget, 2);
            assert_true(bytes - least <= budget);
            if (bytes == held) continue;
            held = bytes;
            n_plans++;
            results_get(&s, budget, &other);
            assert_memory_equal(first.logprobs, other.logprobs, sizeof first.logprobs);
            assert_memory_equal(first.gradients, other.gradients,
                                (size_t)s.model->n_elements * sizeof(float));
            test_free(other.gradients);
        }
        /* One tape to one per layer, then up to three blocks of logits. */
        assert_int_equal(n_plans, s.model->config.n_layers + 3);
        test_free(first.gradients);
        subject_close(&s);
    }
}

static void test_other_weights_have_other_gradients(void **state) {
    (void)state;
    subject s;
    results all, other;
    subject_open(&s, IFL_PROFILE_F32, 1);
    results_get(&s, 0, &all);
    uint16_t one = 0x3f80, was;
    ifl_weights_get(s.weights, 0, 1, &was);
    ifl_weights_put(s.weights, 0, 1, &one);
    results_get(&s, 0, &other);
    assert_true(was != one);
    assert_memory_not_equal(all.gradients, other.gradients,
                            (size_t)s.model->n_elements * sizeof(float));
    test_free(all.gradients);
    test_free(other.gradients);
    subject_close(&s);
}

static void test_a_negative_budget_is_refused(void **state) {
    (void)state;
    subject s;
    ifl_trainer *trainer;
    subject_open(&s, IFL_PROFILE_F32, 1);
    assert_int_equal(ifl_trainer_create(&trainer, s.model, 8, -1, s.pool, NULL, &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "-1 bytes"));
    subject_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_kept_changes_no_bit),
        cmocka_unit_test(test_other_weights_have_other_gradients),
        cmocka_unit_test(test_a_negative_budget_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What a host and a caller may choose without changing a bit: how many threads, where they run,
 * what else runs beside them, which instruction set computes which op, and the floating-point
 * environment, with denormal weights and activations. Groups 6 and 7 of the numerics notes, and of
 * 13 the backward that is run twice. IFL_TEST_FULL=1: more thread counts and mixed tables. */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>

#include "parity_testing.h"

enum { N = 60 };

/* Forward, log-probs and gradients of one pack. */
typedef struct results {
    ifl_logprob logprobs[N];
    float *gradients;
} results;

static void results_get(const subject *s, ifl_thread_pool *pool, const ifl_ops *ops, results *out) {
    ifl_trainer *trainer;
    ifl_error own_err = {0}; /* threads of a test run this beside each other */
    float coefficients[N];
    /* A second sequence shares the first one's first 20 rows. */
    ifl_batch_seq seqs[] = {{0, 40, 0, s->iota}, {40, 20, 20, NULL}};
    int32_t pages[40];
    for (int32_t i = 0; i < 40; i++)
        pages[i] = i < 20 ? i : 20 + i;
    seqs[1].pages = pages;
    for (int32_t i = 0; i < N; i++)
        coefficients[i] = (float)(i % 5 - 2);
    ifl_pack pack = {N, 2, N, s->tokens, seqs, s->iota, s->tokens + 1, s->ones, NULL};
    memset(out, 0, sizeof *out);
    size_t bytes = (size_t)s->model->n_elements * sizeof(float);
    out->gradients = malloc(bytes);
    ifl_status st =
        ifl_trainer_create(&trainer, s->model, N, IFL_ACTIVATION_BYTES, pool, ops, &own_err);
    if (st == IFL_OK) st = ifl_trainer_forward(trainer, s->weights, &pack, out->logprobs, &own_err);
    if (st == IFL_OK) st = ifl_trainer_backward(trainer, s->weights, &pack, coefficients, &own_err);
    if (st != IFL_OK || !out->gradients) abort(); /* not on the test's own thread: no assert */
    memcpy(out->gradients, ifl_trainer_gradients(trainer), bytes);
    ifl_trainer_free(trainer);
}

static bool same_results(const subject *s, const results *a, const results *b) {
    for (int32_t i = 0; i < N; i++)
        if (!same_logprob(&a->logprobs[i], &b->logprobs[i])) return false;
    return memcmp(a->gradients, b->gradients, (size_t)s->model->n_elements * sizeof(float)) == 0;
}

static bool same_as(const subject *s, const results *want, ifl_thread_pool *pool,
                    const ifl_ops *ops) {
    results got;
    results_get(s, pool, ops, &got);
    bool same = same_results(s, want, &got);
    free(got.gradients);
    return same;
}

static const char *const families[] = {"tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3"};

static void test_backward_twice_has_the_same_bytes(void **state) {
    (void)state;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int f = 0; f < 4; f++) {
            static subject s;
            results want;
            subject_open(&s, families[f], (ifl_profile)profile);
            results_get(&s, NULL, NULL, &want);
            assert_true(same_as(&s, &want, NULL, NULL));
            /* The failing direction: one bit of one weight. */
            uint16_t w;
            ifl_weights_get(s.weights, 0, 1, &w);
            int64_t at = s.tokens[0] * (int64_t)s.model->config.d_model;
            ifl_weights_get(s.weights, at, 1, &w);
            w ^= 0x40;
            ifl_weights_put(s.weights, at, 1, &w);
            assert_false(same_as(&s, &want, NULL, NULL));
            free(want.gradients);
            subject_close(&s);
        }
}

/* --- Threads
 * ---------------------------------------------------------------------------------------------- */

/* Odd counts, more than there are cores, and all of them on one core. */
static void test_threads_change_no_bit(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 3, 5, 7, 8, 13};
    cpu_set_t all, one;
    bool pins = sched_getaffinity(0, sizeof all, &all) == 0;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && pins; cpu++)
        if (CPU_ISSET(cpu, &all)) {
            CPU_SET(cpu, &one);
            break;
        }
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int f = 0; f < (testing_full() ? 4 : 2); f++) {
            static subject s;
            results want;
            subject_open(&s, families[f == 1 ? 2 : f], (ifl_profile)profile);
            results_get(&s, NULL, NULL, &want);
            for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
                for (int pinned = 0; pinned < 1 + pins; pinned++) {
                    ifl_thread_pool *pool;
                    if (!testing_full() && pinned && i % 3 != 2) continue;
                    if (pinned) assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
                    assert_ok(ifl_thread_pool_create(&pool, counts[i], &err));
                    bool same = same_as(&s, &want, pool, NULL);
                    ifl_thread_pool_free(pool);
                    if (pinned) assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
                    if (!same)
                        fail_msg("%d threads, pinned %d, profile %d", counts[i], pinned, profile);
                }
            free(want.gradients);
            subject_close(&s);
        }
}

typedef struct beside {
    const subject *s;
    const results *want;
    int n_threads, n_same;
} beside;

static void *beside_run(void *context) {
    beside *b = context;
    ifl_thread_pool *pool;
    ifl_error own_err = {0};
    if (ifl_thread_pool_create(&pool, b->n_threads, &own_err) != IFL_OK) return NULL;
    for (int i = 0; i < 3; i++)
        b->n_same += same_as(b->s, b->want, pool, NULL);
    ifl_thread_pool_free(pool);
    return NULL;
}

/* Several pools at work in one process, as a learner and its audit have them. */
static void test_pools_beside_each_other_change_no_bit(void **state) {
    (void)state;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        static subject s;
        results want;
        pthread_t threads[3];
        beside runs[3];
        subject_open(&s, "tiny-gemma3", (ifl_profile)profile);
        results_get(&s, NULL, NULL, &want);
        for (int i = 0; i < 3; i++) {
            runs[i] = (beside){&s, &want, 1 + i, 0};
            assert_int_equal(pthread_create(&threads[i], NULL, beside_run, &runs[i]), 0);
        }
        for (int i = 0; i < 3; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(runs[i].n_same, 3);
        }
        free(want.gradients);
        subject_close(&s);
    }
}

/* --- Instruction sets
 * --------------------------------------------------------------------------------------- */

/* Each op from an implementation drawn for it: kernels may be mixed at will. */
static void test_any_mixture_of_instruction_sets_has_the_same_bits(void **state) {
    (void)state;
    typedef void (*entry)(void);
    enum { N_ENTRIES = (sizeof(ifl_ops) - offsetof(ifl_ops, matmul)) / sizeof(entry) };
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[8];
        int n_ops = ifl_ops_list((ifl_profile)profile, all, 8);
        ifl_rng_key key = {9, (uint64_t)profile, IFL_RNG_TEST};
        for (int round = 0; round < (testing_full() ? 40 : 6); round++) {
            static subject s;
            results want;
            ifl_ops mixed = *all[n_ops - 1];
            subject_open(&s, families[round % 3], (ifl_profile)profile);
            results_get(&s, NULL, NULL, &want);
            for (int i = 0; i < N_ENTRIES; i++) {
                size_t at = offsetof(ifl_ops, matmul) + (size_t)i * sizeof(entry);
                uint64_t from =
                    ifl_rng_below(&key, (uint64_t)(round * 100 + i), 0, (uint64_t)n_ops);
                memcpy((char *)&mixed + at, (const char *)all[from] + at, sizeof(entry));
            }
            if (!same_as(&s, &want, NULL, &mixed))
                fail_msg("profile %d, mixture %d", profile, round);
            free(want.gradients);
            subject_close(&s);
        }
    }
}

/* --- The floating-point environment
 * ---------------------------------------------------------------------- */

#if defined(__x86_64__)
/* Weights of every eighth row so small that products with activations of order 1 are denormal, and
 * embeddings that are denormal themselves. */
static void make_denormal(subject *s) {
    for (int32_t i = 0; i < s->model->n_params; i++) {
        const ifl_param *p = &s->model->params[i];
        uint16_t row[512];
        if (!p->spec.is_matrix || p->spec.cols > 512) continue;
        for (int64_t r = 0; r < p->spec.rows; r += 8) {
            ifl_weights_get(s->weights, p->offset + r * p->spec.cols, p->spec.cols, row);
            for (int64_t c = 0; c < p->spec.cols;
                 c++) /* sign, and an exponent of 2^-130 .. 2^-125 */
                row[c] = (uint16_t)((row[c] & 0x8000) | (row[c] & 0x7f) | (c % 3) << 7);
            ifl_weights_put(s->weights, p->offset + r * p->spec.cols, p->spec.cols, row);
        }
    }
}

/* The failing direction: products that flush, where nobody asked for it. */
static const ifl_ops *honest;
static void matmul_flushing(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w,
                            int64_t m, int64_t n, int64_t k, int64_t begin, int64_t end) {
    honest->matmul(y, ldy, x, ldx, w, m, n, k, begin, end);
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = begin * IFL_PANEL; c < end * IFL_PANEL && c < n; c++)
            if (y[i * ldy + c] < 0x1p-126f && y[i * ldy + c] > -0x1p-126f) y[i * ldy + c] = 0.0f;
}

static void test_flushed_denormals_are_seen(void **state) {
    (void)state;
    static subject s;
    results want;
    honest = ifl_ops_best(IFL_PROFILE_F32);
    ifl_ops mutant = *honest;
    mutant.matmul = matmul_flushing;
    subject_open(&s, "tiny-llama", IFL_PROFILE_F32);
    results_get(&s, NULL, NULL, &want);
    assert_true(same_as(&s, &want, NULL, &mutant)); /* ordinary weights make no denormals */
    free(want.gradients);
    make_denormal(&s);
    results_get(&s, NULL, NULL, &want);
    assert_false(same_as(&s, &want, NULL, &mutant));
    free(want.gradients);
    subject_close(&s);
}

/* Threads take over the environment of the one that makes their pool. */
static void test_the_callers_environment_changes_no_bit(void **state) {
    (void)state;
    /* Round down, up, to zero; flush and denormals-are-zero, as the start-up code of a -ffast-math
     * library sets them; all together. */
    static const uint32_t environments[] = {0x3f80, 0x5f80, 0x7f80, 0x9fc0, 0xffc0};
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int f = 0; f < 4; f++)
            for (int denormal = 0; denormal < 2; denormal++) {
                static subject s;
                results want, got;
                subject_open(&s, families[f], (ifl_profile)profile);
                if (denormal) make_denormal(&s);
                results_get(&s, NULL, NULL, &want);
                for (size_t e = 0; e < sizeof environments / sizeof *environments; e++) {
                    ifl_thread_pool *pool;
                    if (!testing_full() && (e + (size_t)f) % 2) continue;
                    __builtin_ia32_ldmxcsr(environments[e]);
                    ifl_status st = ifl_thread_pool_create(&pool, 1 + f % 3, &err);
                    if (st == IFL_OK) results_get(&s, pool, NULL, &got);
                    uint32_t after = __builtin_ia32_stmxcsr();
                    __builtin_ia32_ldmxcsr(0x1f80);
                    assert_int_equal(st, IFL_OK);
                    assert_int_equal(after & ~0x3fu, environments[e] & ~0x3fu);
                    if (!same_results(&s, &want, &got))
                        fail_msg("%s, profile %d, denormal %d, MXCSR %x", families[f], profile,
                                 denormal, environments[e]);
                    free(got.gradients);
                    ifl_thread_pool_free(pool);
                }
                free(want.gradients);
                subject_close(&s);
            }
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backward_twice_has_the_same_bytes),
        cmocka_unit_test(test_threads_change_no_bit),
        cmocka_unit_test(test_pools_beside_each_other_change_no_bit),
        cmocka_unit_test(test_any_mixture_of_instruction_sets_has_the_same_bits),
#if defined(__x86_64__)
        cmocka_unit_test(test_the_callers_environment_changes_no_bit),
        cmocka_unit_test(test_flushed_denormals_are_seen),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

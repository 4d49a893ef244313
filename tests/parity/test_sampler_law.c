/* The sampler: one draw for one counter in any batch, on any instruction set and thread count; the
 * law of the draws is the distribution that the log-prob claims; the kept set and its mass have the
 * same bits wherever they are computed; ties go to the lowest id. Group 12 of the numerics notes,
 * but for speculative decoding.
 *
 * The chi-square threshold is df + 5 * sqrt(2 df), five standard deviations of the statistic under
 * the exact law. Seeds are fixed, so the test passes or fails forever: the distance is there so
 * that a right sampler under another seed would pass too (it fails by chance once in some 10,000
 * for sets of 20 tokens, once in some 200,000 for 300), while the mutants below lie tens of
 * deviations out. IFL_TEST_FULL=1 draws ten times as often. */
#include <math.h>
#include <stdio.h>

#include "parity_testing.h"

enum { BATCH = 256, PREFIX = 12 };

typedef struct head {
    subject s;
    ifl_workspace *ws;
    float *hidden; /* [BATCH][D]: one state, many times */
    int64_t d, vocab;
} head;

static void head_open(head *h, const char *family, ifl_profile profile, const ifl_ops *ops,
                      ifl_thread_pool *pool) {
    ifl_kv_store *kv;
    const float *hidden;
    subject_open(&h->s, family, profile);
    h->d = h->s.model->config.d_model;
    h->vocab = h->s.model->config.vocab_size;
    assert_ok(ifl_workspace_create(&h->ws, h->s.model, BATCH, pool, ops, &err));
    assert_ok(ifl_kv_store_create(&kv, h->s.model, PREFIX, 1, &err));
    int32_t last = PREFIX - 1;
    ifl_batch_seq seq = {0, PREFIX, 0, h->s.iota};
    ifl_batch batch = {PREFIX, 1, 1, h->s.tokens, &seq, &last};
    assert_ok(ifl_forward(h->ws, h->s.weights, kv, &batch, &hidden, &err));
    h->hidden = test_malloc(sizeof(float) * (size_t)(BATCH * h->d));
    for (int i = 0; i < BATCH; i++)
        memcpy(h->hidden + i * h->d, hidden, sizeof(float) * (size_t)h->d);
    ifl_kv_store_free(kv);
}

static void head_close(head *h) {
    test_free(h->hidden);
    ifl_workspace_free(h->ws);
    subject_close(&h->s);
}

/* Draws n rows whose counters are (stream, position) = (7, position_begin ..). */
static void head_draw(const head *h, int32_t n, int64_t position_begin, ifl_sampling sampling,
                      ifl_sample *out) {
    ifl_sampling samplings[BATCH];
    ifl_rng_key keys[BATCH];
    int64_t positions[BATCH];
    for (int32_t i = 0; i < n; i++) {
        samplings[i] = sampling;
        keys[i] = (ifl_rng_key){42, 7, IFL_RNG_SAMPLE_TOKEN};
        positions[i] = position_begin + i;
    }
    assert_ok(
        ifl_head_sample(h->ws, h->s.weights, h->hidden, n, samplings, keys, positions, out, &err));
}

static const ifl_sampling samplings[] = {{1, 0, 1},    {0.7f, 0, 1},     {1, 20, 1},
                                         {1, 0, 0.8f}, {0.8f, 40, 0.9f}, {0, 0, 1}};
enum { N_SAMPLINGS = sizeof samplings / sizeof *samplings };

static bool same_sample(const ifl_sample *a, const ifl_sample *b) {
    return a->token == b->token && a->n_kept == b->n_kept &&
           memcmp(&a->logprob, &b->logprob, sizeof a->logprob) == 0 &&
           memcmp(&a->full_logprob, &b->full_logprob, sizeof a->full_logprob) == 0 &&
           memcmp(&a->log_kept, &b->log_kept, sizeof a->log_kept) == 0;
}

/* --- One counter, one draw
 * -------------------------------------------------------------------------- */

static void test_a_counter_draws_the_same_in_any_batch(void **state) {
    (void)state;
    static const char *const families[] = {"tiny-llama", "tiny-gemma3"};
    static ifl_sample alone[64], got[64];
    for (int f = 0; f < 2; f++)
        for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
            for (int k = 0; k < N_SAMPLINGS; k++) {
                static head h;
                head_open(&h, families[f], (ifl_profile)profile, NULL, NULL);
                for (int32_t i = 0; i < 64; i++)
                    head_draw(&h, 1, i, samplings[k], &alone[i]);
                for (int32_t n = 2; n <= 64; n += testing_full() ? 1 : 31)
                    for (int32_t first = 0; first + n <= 64; first += 27) {
                        head_draw(&h, n, first, samplings[k], got);
                        for (int32_t i = 0; i < n; i++)
                            assert_true(same_sample(&got[i], &alone[first + i]));
                    }
                head_close(&h);
            }
}

static void test_a_counter_draws_the_same_on_every_host(void **state) {
    (void)state;
    static ifl_sample want[BATCH], got[BATCH];
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[8];
        int n_ops = ifl_ops_list((ifl_profile)profile, all, 8);
        for (int k = 0; k < N_SAMPLINGS; k++)
            for (int i = 0; i < n_ops; i++) {
                static head h;
                ifl_thread_pool *pool;
                int32_t n = testing_is_slow(all[i]) ? 16 : 64;
                assert_ok(ifl_thread_pool_create(&pool, 1 + i % 3, &err));
                head_open(&h, "tiny-gemma3", (ifl_profile)profile, all[i], pool);
                if (i == 0) {
                    static head best;
                    head_open(&best, "tiny-gemma3", (ifl_profile)profile, NULL, NULL);
                    head_draw(&best, 64, 0, samplings[k], want);
                    head_close(&best);
                }
                head_draw(&h, n, 0, samplings[k], got);
                for (int32_t r = 0; r < n; r++)
                    assert_true(same_sample(&got[r], &want[r]));
                head_close(&h);
                ifl_thread_pool_free(pool);
            }
    }
}

/* --- The law
 * ------------------------------------------------------------------------------------------ */

typedef struct law {
    double *p; /* [vocab], 0 outside the kept set */
    int32_t n_kept;
} law;

static int by_probability(const void *a, const void *b) {
    const double *const *x = a, *const *y = b;
    if (**x > **y) return -1;
    if (**x < **y) return 1;
    return *x < *y ? -1 : 1;
}

/* From the logits alone, in double. */
static law law_of(const head *h, ifl_sampling s) {
    float *logits = test_malloc(sizeof(float) * (size_t)h->vocab);
    law l = {test_malloc(sizeof(double) * (size_t)h->vocab), 0};
    const double **order = test_malloc(sizeof *order * (size_t)h->vocab);
    assert_ok(ifl_head_logits(h->ws, h->s.weights, h->hidden, 1, logits, &err));
    double max = -INFINITY, sum = 0, below = 0, kept = 0;
    for (int64_t i = 0; i < h->vocab; i++)
        max = fmax(max, (double)logits[i] / (double)s.temperature);
    for (int64_t i = 0; i < h->vocab; i++)
        sum += l.p[i] = exp((double)logits[i] / (double)s.temperature - max);
    for (int64_t i = 0; i < h->vocab; i++)
        order[i] = &l.p[i];
    qsort(order, (size_t)h->vocab, sizeof *order, by_probability);
    int64_t n = s.top_k > 0 && s.top_k < h->vocab ? s.top_k : h->vocab;
    if (s.top_k > 0) {
        sum = 0;
        for (int64_t i = 0; i < n; i++)
            sum += *order[i];
    }
    for (int64_t i = 0; i < h->vocab; i++) {
        double *p = &l.p[order[i] - l.p];
        if (i >= n || (s.top_p < 1.0f && below >= (double)s.top_p * sum)) {
            *p = 0;
            continue;
        }
        below += *p;
        l.n_kept++;
    }
    for (int64_t i = 0; i < h->vocab; i++)
        kept += l.p[i];
    for (int64_t i = 0; i < h->vocab; i++)
        l.p[i] /= kept;
    test_free(order);
    test_free(logits);
    return l;
}

/* Standard deviations of the chi-square statistic above its mean; cells of fewer than 8 expected
 * draws are one. */
static double deviations(const law *l, const int64_t *counts, int64_t vocab, int64_t n) {
    double statistic = 0, rest_p = 0;
    int64_t rest = 0, cells = 0;
    for (int64_t i = 0; i < vocab; i++) {
        double expected = l->p[i] * (double)n;
        if (expected < 8) {
            rest_p += l->p[i];
            rest += counts[i];
            continue;
        }
        statistic += ((double)counts[i] - expected) * ((double)counts[i] - expected) / expected;
        cells++;
    }
    if (rest_p * (double)n >= 1) {
        double expected = rest_p * (double)n;
        statistic += ((double)rest - expected) * ((double)rest - expected) / expected;
        cells++;
    } else if (rest > 0 && rest_p <= 0) {
        return INFINITY; /* drawn, though impossible */
    }
    double df = (double)(cells - 1);
    return df < 1 ? 0 : (statistic - df) / sqrt(2 * df);
}

static void draw_counts(const head *h, ifl_sampling s, int64_t n, int64_t *counts) {
    static ifl_sample out[BATCH];
    memset(counts, 0, sizeof *counts * (size_t)h->vocab);
    for (int64_t at = 0; at < n; at += BATCH) {
        head_draw(h, BATCH, at, s, out);
        for (int i = 0; i < BATCH; i++)
            counts[out[i].token]++;
    }
}

static void test_token_frequencies_follow_the_exact_law(void **state) {
    (void)state;
    static const char *const families[] = {"tiny-llama", "tiny-gemma3"}; /* one block; two */
    for (int f = 0; f < 2; f++)
        for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
            static head h;
            int64_t n = (f == 0 ? 256 : 64) * BATCH * (testing_full() ? 10 : 1);
            head_open(&h, families[f], (ifl_profile)profile, NULL, NULL);
            int64_t *counts = test_malloc(sizeof *counts * (size_t)h.vocab);
            for (int k = 0; k < N_SAMPLINGS; k++) {
                if (!(samplings[k].temperature > 0)) continue;
                /* Two blocks of 1,024 candidates a row are slow to keep. */
                if (f > 0 && samplings[k].top_p < 1 && samplings[k].top_k == 0 && !testing_full())
                    continue;
                draw_counts(&h, samplings[k], n, counts);
                law exact = law_of(&h, samplings[k]);
                double far = deviations(&exact, counts, h.vocab, n);
                ifl_sampling other = samplings[k];
                other.temperature *= 1.1f;
                law wrong = law_of(&h, other);
                double wrong_far = deviations(&wrong, counts, h.vocab, n);
                print_message("%-11s %-4s T %.1f, top-k %2d, top-p %.1f: %4d kept, %lld draws, "
                              "%+.2f deviations; "
                              "from the law at 1.1 T %+.0f\n",
                              families[f], ifl_profile_name((ifl_profile)profile),
                              (double)samplings[k].temperature, samplings[k].top_k,
                              (double)samplings[k].top_p, exact.n_kept, (long long)n, far,
                              wrong_far);
                assert_true(far < 5);
                assert_true(wrong_far > 5); /* the test can fail */
                test_free(wrong.p);
                test_free(exact.p);
            }
            test_free(counts);
            head_close(&h);
        }
}

/* --- The kept set
 * --------------------------------------------------------------------------------------- */

/* The recorded log-prob is that of the set which was sampled from: full log-prob less the mass
 * kept. */
static void test_the_kept_set_is_the_laws(void **state) {
    (void)state;
    static ifl_sample out[BATCH];
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int k = 2; k < 5; k++) {
            static head h;
            head_open(&h, "tiny-gemma3", (ifl_profile)profile, NULL, NULL);
            law exact = law_of(&h, samplings[k]);
            head_draw(&h, 64, 0, samplings[k], out);
            for (int i = 0; i < 64; i++) {
                assert_int_equal(out[i].n_kept, exact.n_kept);
                for (int32_t j = 0; j < out[i].n_kept; j++) {
                    assert_true(exact.p[out[i].kept[j]] > 0);
                    assert_true(j == 0 || out[i].kept[j] > out[i].kept[j - 1]);
                }
                assert_int_equal(memcmp(&out[i].log_kept, &out[0].log_kept, sizeof(float)), 0);
                assert_true(exact.p[out[i].token] > 0);
                /* Sums of up to 1,024 f32 terms, exp within 1 ulp: 1e-5 is some 20 times their
                 * error. */
                assert_true(fabs((double)out[i].logprob - log(exact.p[out[i].token])) < 1e-5);
                assert_true(out[i].log_kept < 0);
                /* Of the full distribution: less what was left out. */
                assert_true(fabs((double)out[i].full_logprob - (double)out[i].logprob -
                                 (double)out[i].log_kept) < 1e-5);
            }
            test_free(exact.p);
            head_close(&h);
        }
}

/* --- Ties
 * --------------------------------------------------------------------------------------------- */

static void test_greedy_ties_take_the_lowest_id(void **state) {
    (void)state;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[8];
        int n_ops = ifl_ops_list((ifl_profile)profile, all, 8);
        for (int i = 0; i < n_ops; i++) {
            static head h;
            ifl_sample out[3], all_out[40];
            head_open(&h, "tiny-llama", (ifl_profile)profile, all[i], NULL);
            head_draw(&h, 1, 0, (ifl_sampling){0, 0, 1}, out);
            int32_t best = out[0].token, d = (int32_t)h.d,
                    tied[] = {best, (best + 31) % 301, (best + 150) % 301};
            uint16_t row[512];
            int64_t head_begin = h.s.model->params[h.s.model->head].offset;
            ifl_weights_get(h.s.weights, head_begin + (int64_t)best * d, d, row);
            int32_t lowest = best;
            for (int t = 1; t < 3; t++) {
                ifl_weights_put(h.s.weights, head_begin + (int64_t)tied[t] * d, d, row);
                if (tied[t] < lowest) lowest = tied[t];
                head_draw(&h, 3, 0, (ifl_sampling){0, 0, 1}, out);
                for (int r = 0; r < 3; r++)
                    assert_int_equal(out[r].token, lowest);
            }
            /* The same under top-k: of three equal ones, k = 2 keeps the lower two. */
            head_draw(&h, 40, 0, (ifl_sampling){1, 2, 1}, all_out);
            int32_t highest = best;
            for (int t = 0; t < 3; t++)
                if (tied[t] > highest) highest = tied[t];
            for (int r = 0; r < 40; r++)
                assert_true(all_out[r].token != highest && all_out[r].n_kept == 2);
            head_close(&h);
        }
    }
}

/* --- One log-prob
 * ----------------------------------------------------------------------------------------
 */

/* The fused head, block by block, has the bits of logits laid out whole; and the sampler's log-prob
 * those of the loss's. */
static void test_the_fused_head_has_the_bits_of_whole_logits(void **state) {
    (void)state;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[8];
        int n_ops = ifl_ops_list((ifl_profile)profile, all, 8);
        for (int i = 0; i < n_ops; i++) {
            static head h;
            static ifl_sample drawn[16];
            static ifl_logprob fused[16];
            int32_t targets[16];
            float temperatures[16];
            ifl_lse blocks[2];
            head_open(&h, "tiny-gemma3", (ifl_profile)profile, all[i], NULL);
            head_draw(&h, 16, 0, (ifl_sampling){0.7f, 0, 1}, drawn);
            for (int r = 0; r < 16; r++) {
                targets[r] = drawn[r].token;
                temperatures[r] = 0.7f;
            }
            assert_ok(ifl_head_logprobs(h.ws, h.s.weights, h.hidden, 16, targets, temperatures,
                                        fused, &err));
            float *logits = test_malloc(sizeof(float) * (size_t)h.vocab), log_sum;
            assert_ok(ifl_head_logits(h.ws, h.s.weights, h.hidden, 1, logits, &err));
            all[i]->temper(logits, logits, 0.7f, 0.0f, h.vocab);
            blocks[0] = all[i]->block_lse(logits, IFL_VOCAB_BLOCK, NULL);
            blocks[1] =
                all[i]->block_lse(logits + IFL_VOCAB_BLOCK, h.vocab - IFL_VOCAB_BLOCK, NULL);
            ifl_lse lse = all[i]->merge_lse(blocks, 2);
            all[i]->log(&log_sum, &lse.sum, 1);
            for (int r = 0; r < 16; r++) {
                float whole = (logits[targets[r]] - lse.max) - log_sum;
                assert_memory_equal(&whole, &fused[r].logprob, sizeof whole);
                assert_memory_equal(&drawn[r].logprob, &fused[r].logprob, sizeof whole);
                assert_memory_equal(&lse, &fused[r].lse, sizeof lse);
            }
            test_free(logits);
            head_close(&h);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_counter_draws_the_same_in_any_batch),
        cmocka_unit_test(test_a_counter_draws_the_same_on_every_host),
        cmocka_unit_test(test_token_frequencies_follow_the_exact_law),
        cmocka_unit_test(test_the_kept_set_is_the_laws),
        cmocka_unit_test(test_greedy_ties_take_the_lowest_id),
        cmocka_unit_test(test_the_fused_head_has_the_bits_of_whole_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The bias ledger: differences add up to log r to the last bit, one cause moves one entry, the
 * figures are those of their formulas, and the scored chain is that of other paths to the same
 * log-probs. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "actor/engine.h"
#include "common/memory.h"
#include "common/rng.h"
#include "kernels/random_model.h"
#include "kernels/score.h"
#include "learner/bias_ledger.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

static ifl_loss_options loss_of(ifl_loss_kind kind, double cap) {
    static ifl_config config;
    ifl_config_defaults(&config);
    config.learner.loss = kind;
    config.learner.importance_cap = cap;
    return ifl_loss_options_of(&config);
}

/* --- Arithmetic
 * ------------------------------------------------------------------------------------- */

enum { N = 500 };

typedef struct columns {
    float chain[IFL_BIAS_CHAIN][N], moved[N], kept[N], ones[N];
    int64_t lags[N];
} columns;

static ifl_bias_tokens view(const columns *c, int32_t n, double advantage) {
    ifl_bias_tokens t = {.n = n,
                         .moved = c->moved,
                         .now_kept = c->kept,
                         .loss_weights = c->ones,
                         .lags = c->lags,
                         .advantage = advantage};
    for (int i = 0; i < IFL_BIAS_CHAIN; i++)
        t.chain[i] = c->chain[i];
    return t;
}

static float draw(uint64_t stream, uint64_t i) {
    ifl_rng_key key = {3, stream, IFL_RNG_TEST};
    return (float)ifl_rng_uniform(&key, i, 0);
}

static void test_differences_add_up_to_log_r_exactly(void **state) {
    (void)state;
    static columns c;
    ifl_loss_options loss = loss_of(IFL_LOSS_REINFORCE, 1e9);
    ifl_bias_record r = {0};
    for (int round = 0; round < 200; round++) {
        for (int k = 0; k < IFL_BIAS_CHAIN; k++)
            for (int i = 0; i < N; i++) {
                uint64_t at = (uint64_t)(round * N + i);
                /* From the smallest that a log-prob can be, 2^-24 or so, to -60. */
                c.chain[k][i] = -exp2f(-24.0f + 30.0f * draw((uint64_t)k, at));
            }
        for (int i = 0; i < N; i++) {
            uint64_t at = (uint64_t)(round * N + i);
            c.moved[i] = -exp2f(-24.0f + 30.0f * draw(11, at));
            c.kept[i] = -exp2f(-24.0f + 30.0f * draw(12, at));
            c.ones[i] = 1.0f;
            c.lags[i] = i % 20;
        }
        ifl_bias_tokens t = view(&c, N, round % 2 ? 1.5 : -0.5);
        assert_ok(ifl_bias_add(&r, &t, &loss, &err));
    }
    assert_int_equal(r.n_tokens, 200 * N);
    assert_int_equal(r.n_untelescoped, 0);
    double sum = 0;
    for (int e = 0; e < IFL_BIAS_TOTAL; e++)
        sum += r.entries[e].log_r;
    assert_true(fabs(sum - r.entries[IFL_BIAS_TOTAL].log_r) < 1e-6 * fabs(sum) + 1e-6);
    double other = r.entries[IFL_BIAS_NUMERICS].log_r;
    for (int e = IFL_BIAS_NUMERICS + 1; e < IFL_BIAS_TOTAL; e++) {
        assert_int_equal(r.reversed[e].n, r.n_tokens);
        other += r.reversed[e].log_r;
    }
    assert_true(fabs(other - sum) < 1e-6 * fabs(sum) + 1e-6);
    int64_t n = 0;
    for (int k = 0; k < IFL_BIAS_LAGS; k++)
        n += r.lags[k].n;
    assert_int_equal(n, r.n_tokens);
    assert_int_equal(r.lags[IFL_BIAS_LAGS - 1].n, 200 * N / 20 * 5); /* 15 to 19 */
    /* The check can fail: what a float cannot hold is noticed. */
    for (int i = 0; i < N; i++) {
        c.chain[0][i] = c.chain[3][i] = -50.0f - (float)i / 7.0f;
        for (int k = 1; k < 3; k++)
            c.chain[k][i] = -1.7e-14f * (float)(k * i + 1); /* no log-prob is that small */
        c.chain[4][i] = c.kept[i] = c.moved[i] = -2e-14f;
    }
    ifl_bias_tokens t = view(&c, N, 1.0);
    assert_ok(ifl_bias_add(&r, &t, &loss, &err));
    assert_true(r.n_untelescoped > 0);
    /* In the other order, too. */
    ifl_bias_record reversed = {0};
    for (int i = 0; i < N; i++) {
        for (int k = 0; k < IFL_BIAS_CHAIN; k++)
            c.chain[k][i] = -1.0f;
        c.moved[i] = -50.0f - (float)i / 7.0f;
        c.kept[i] = -1.7e-14f * (float)(i + 1);
    }
    assert_ok(ifl_bias_add(&reversed, &t, &loss, &err));
    assert_true(reversed.n_untelescoped > 0);
}

static void test_one_cause_moves_one_entry(void **state) {
    (void)state;
    static columns c;
    ifl_loss_options loss = loss_of(IFL_LOSS_REINFORCE, 1e9);
    for (int cause = 0; cause < IFL_BIAS_TOTAL; cause++) {
        ifl_bias_record r = {0};
        for (int i = 0; i < N; i++) {
            float before = -3.0f * draw(9, (uint64_t)i),
                  step = 0.2f * (draw(8, (uint64_t)i) - 0.7f);
            for (int k = 0; k < IFL_BIAS_CHAIN; k++)
                c.chain[k][i] = k <= cause ? before : before + step;
            /* What each cause leaves alone when lag goes first, then stale KV. */
            c.moved[i] =
                cause == IFL_BIAS_LAG || cause == IFL_BIAS_NUMERICS ? before + step : before;
            c.kept[i] = cause == IFL_BIAS_TRUNCATION ? before : before + step;
            c.ones[i] = 1.0f;
            c.lags[i] = 2;
        }
        ifl_bias_tokens t = view(&c, N, 1.0);
        assert_ok(ifl_bias_add(&r, &t, &loss, &err));
        for (int e = 0; e <= IFL_BIAS_TOTAL; e++) {
            const ifl_bias_sums *s = &r.entries[e];
            bool moves = e == cause || e == IFL_BIAS_TOTAL;
            assert_int_equal(s->n, N);
            assert_int_equal(s->n_moved > 0, moves);
            assert_true((s->max_abs > 0) == moves && (s->k3 > 0) == moves &&
                        (s->log_r != 0) == moves);
            assert_true((s->gain_positive != 0) == moves && s->gain_negative == 0);
            if (!moves) assert_true(s->w == N && s->w2 == N);
        }
        for (int e = IFL_BIAS_NUMERICS + 1; e < IFL_BIAS_TOTAL; e++)
            assert_memory_equal(&r.reversed[e], &r.entries[e], sizeof r.entries[e]);
        assert_int_equal(r.n_differing > 0, cause == IFL_BIAS_NUMERICS);
        assert_int_equal(r.lags[2].n_moved > 0, cause == IFL_BIAS_LAG);
        assert_int_equal(r.n_untelescoped, 0);
    }
}

/* Three tokens, by hand: r = 2, 1/2, 1 at A = -2. */
static void test_figures_are_their_formulas(void **state) {
    (void)state;
    static columns c;
    float step[3] = {logf(2.0f), -logf(2.0f), 0.0f};
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < IFL_BIAS_CHAIN; k++)
            c.chain[k][i] = -1.0f;
        c.chain[4][i] = c.kept[i] = -1.0f + step[i];
        c.ones[i] = 1.0f;
        c.lags[i] = 1;
    }
    ifl_bias_record r = {0};
    ifl_loss_options loss = loss_of(IFL_LOSS_REINFORCE, 1.5);
    ifl_bias_tokens t = view(&c, 3, -2.0);
    assert_ok(ifl_bias_add(&r, &t, &loss, &err));
    ifl_bias_figures f = ifl_bias_figures_of(&r.entries[IFL_BIAS_LAG]);
    double near = 1e-6; /* of logs in f32 */
    assert_true(fabs(f.k1) < near);
    assert_true(fabs(f.k3 - 0.5 / 3) < near);
    assert_true(fabs(f.ess - 3.5 * 3.5 / (3 * 5.25)) < near);
    assert_true(fabs(f.max_abs - log(2)) < near);
    assert_true(fabs(f.gain_negative - (2.0 - 1.0) / 3) < near && f.gain_positive == 0);
    assert_true(isnan(f.kl) && isnan(ifl_bias_figures_of(&r.lags[3]).k1));
    assert_true(fabs(ifl_bias_nats(&r, IFL_BIAS_LAG) - f.k3) < 1e-15);
    /* The cap of 1.5 takes 0.5 off the first token's weight. */
    assert_int_equal(r.correction.n, 3);
    assert_int_equal(r.correction.n_changed, 1);
    assert_int_equal(r.correction.n_dropped, 0);
    assert_true(fabs(r.correction.bias - 0.5) < near && r.correction.mass == 6.0 &&
                r.correction.mass_changed == 2.0);
    /* PPO's clip drops the second, whose advantage points down and whose ratio has gone down. */
    loss = loss_of(IFL_LOSS_DAPO, 5);
    r = (ifl_bias_record){0};
    assert_ok(ifl_bias_add(&r, &t, &loss, &err));
    assert_int_equal(r.correction.n_dropped, 1);
    assert_true(r.correction.mass_dropped == 2.0);
    assert_true(fabs(r.correction.bias - 0.5) < near);
    /* Of the whole answer, r = 1. */
    assert_true(r.sequence.n == 1 && fabs(r.sequence.w - 1) < near);
}

/* --- Scoring
 * ---------------------------------------------------------------------------------------- */

enum { VERSIONS = 3, VOCAB_MAX = 512 };
static ifl_model *model;
static ifl_weights *versions[VERSIONS];

static int setup(void **state) {
    (void)state;
    ifl_model_config config;
    if (!ifl_random_model_config("tiny-llama", &config)) return 1;
    assert_ok(ifl_model_create(&model, &config, 0, IFL_PROFILE_F32, &err));
    for (int v = 0; v < VERSIONS; v++) {
        assert_ok(ifl_weights_create(&versions[v], model, &err));
        if (v == 0)
            assert_ok(ifl_random_weights(versions[v], 7, &err));
        else
            assert_ok(ifl_random_step(versions[v], versions[v - 1], (uint64_t)v, 0.02, &err));
        versions[v]->version = v;
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (int v = 0; v < VERSIONS; v++)
        ifl_weights_free(versions[v]);
    ifl_model_free(model);
    return 0;
}

static const ifl_weights *get(void *context, int64_t version) {
    return version >= 0 && version < VERSIONS && (!context || version != *(int64_t *)context)
               ? versions[version]
               : NULL;
}

enum { N_PROMPT = 9, N_NEW = 30 };

static ifl_trajectory *generate(ifl_kv_mode kv, ifl_sampling sampling, int swaps) {
    ifl_engine *engine;
    ifl_engine_options options = {.sequences_max = 2,
                                  .kv_tokens = 512,
                                  .page_tokens = 16,
                                  .prefill_chunk_tokens = 64,
                                  .kv_mode = kv,
                                  .seed = 5};
    int32_t prompt[N_PROMPT], n, made = 0;
    for (int32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = 3 + i * 7;
    assert_ok(ifl_engine_create(&engine, model, NULL, &options, NULL, NULL, &err));
    assert_ok(ifl_engine_swap(engine, versions[0], &err));
    ifl_engine_request r = {.task_serial = 4,
                            .prompt = prompt,
                            .n_prompt = N_PROMPT,
                            .n_samples = 1,
                            .sampling = sampling,
                            .max_new_tokens = N_NEW,
                            .ignore_eos = true};
    assert_ok(ifl_engine_submit(engine, &r, &err));
    while (!ifl_engine_idle(engine)) {
        assert_ok(ifl_engine_step(engine, &n, &err));
        made += n;
        if (swaps > 0 && made == 12) {
            assert_ok(ifl_engine_swap(engine, versions[1], &err));
            swaps = 0;
        }
    }
    ifl_trajectory *t = ifl_engine_take_finished(engine, NULL);
    ifl_engine_free(engine);
    return t;
}

static ifl_bias_ledger *ledger_open(int32_t positions) {
    ifl_bias_ledger *l;
    ifl_bias_options options = {1.0, positions, 5, loss_of(IFL_LOSS_REINFORCE, 5)};
    assert_ok(ifl_bias_ledger_create(&l, model, &options, NULL, NULL, &err));
    return l;
}

/* cause, or -1: none at all; -2: stale KV and lag together. */
static void check_single(ifl_kv_mode kv, ifl_sampling sampling, int swaps, int64_t step,
                         int cause) {
    ifl_trajectory *t = generate(kv, sampling, swaps);
    ifl_bias_ledger *l = ledger_open(8);
    ifl_bias_record r = {0};
    assert_ok(ifl_bias_score(l, get, NULL, t, 0.5f, step, &r, &err));
    assert_int_equal(r.n_tokens, N_NEW);
    assert_int_equal(r.n_differing + r.n_untelescoped + r.n_not_scored, 0);
    for (int e = 0; e < IFL_BIAS_TOTAL; e++) {
        const ifl_bias_sums *s = &r.entries[e];
        bool moves = e == cause || (cause == -2 && (e == IFL_BIAS_STALE_KV || e == IFL_BIAS_LAG));
        assert_int_equal(s->n_moved > 0, moves);
        assert_true((s->kl != 0) == moves && s->n_kl > 0);
        if (moves) assert_true(s->kl > 0);
    }
    /* Other paths to the same numbers. */
    const int32_t *at;
    ifl_bias_tokens scored = ifl_bias_scored(l, &at);
    ifl_workspace *ws;
    ifl_logprob now[N_PROMPT + N_NEW];
    assert_ok(ifl_workspace_create(&ws, model, 7, NULL, NULL, &err));
    assert_ok(ifl_score(ws, versions[step - 1], t->tokens, t->n_tokens, 1, sampling.temperature,
                        now + 1, &err));
    for (int32_t i = 0; i < scored.n; i++)
        assert_memory_equal(&scored.chain[4][i], &now[at[i]].logprob, sizeof(float));
    /* Each history by itself, also those that the ledger takes from others. */
    static const ifl_replay_history histories[] = {IFL_HISTORY_RECORDED, IFL_HISTORY_OWN,
                                                   IFL_HISTORY_ONE, IFL_HISTORY_MOVED};
    for (int h = 0; h < 4; h++) {
        float kept[N_PROMPT + N_NEW], full[N_PROMPT + N_NEW];
        ifl_replay_scores own = {.logprobs = kept, .full_logprobs = full};
        assert_ok(ifl_replay_score(ws, get, NULL, t, histories[h], step - 1, &own, &err));
        for (int32_t i = 0; i < scored.n; i++) {
            float wanted = h == 3 ? scored.moved[i] : scored.chain[h + 2 - (h == 0)][i];
            assert_memory_equal(&wanted, h == 0 || h == 3 ? &kept[at[i]] : &full[at[i]],
                                sizeof(float));
        }
    }
    /* The exact KL, once more by hand: of every position, when there are enough of them. */
    ifl_bias_ledger_free(l);
    l = ledger_open(IFL_BIAS_POSITIONS_MAX);
    ifl_bias_record all = {0};
    assert_ok(ifl_bias_score(l, get, NULL, t, 0.5f, step, &all, &err));
    assert_int_equal(all.entries[IFL_BIAS_TOTAL].n_kl, N_NEW);
    if (cause == IFL_BIAS_LAG && swaps == 0) {
        static float old[N_NEW * VOCAB_MAX], new[N_NEW * VOCAB_MAX];
        float a[N_PROMPT + N_NEW], b[N_PROMPT + N_NEW];
        int32_t vocab = model->config.vocab_size, positions[N_NEW];
        assert_true(vocab <= VOCAB_MAX);
        for (int32_t i = 0; i < N_NEW; i++)
            positions[i] = N_PROMPT + i;
        ifl_replay_scores one = {a, b, N_NEW, positions, old}, two = {a, b, N_NEW, positions, new};
        assert_ok(ifl_replay_score(ws, get, NULL, t, IFL_HISTORY_ONE, 0, &one, &err));
        assert_ok(ifl_replay_score(ws, get, NULL, t, IFL_HISTORY_ONE, step - 1, &two, &err));
        double kl = 0;
        for (int32_t i = 0; i < N_NEW; i++) {
            const float *x = old + i * vocab, *y = new + i *vocab;
            double zx = 0, zy = 0, sum = 0;
            for (int32_t v = 0; v < vocab; v++) {
                zx += exp((double)x[v] / (double)sampling.temperature);
                zy += exp((double)y[v] / (double)sampling.temperature);
            }
            for (int32_t v = 0; v < vocab; v++) {
                double p = exp((double)x[v] / (double)sampling.temperature) / zx;
                double q = exp((double)y[v] / (double)sampling.temperature) / zy;
                sum += p * log(p / q);
            }
            kl += sum;
        }
        assert_true(fabs(kl - all.entries[IFL_BIAS_LAG].kl) < 1e-9 * (1 + kl));
        assert_true(fabs(kl - all.entries[IFL_BIAS_TOTAL].kl) < 1e-9 * (1 + kl));
        assert_true(fabs(kl - all.lags[step - 1].kl) < 1e-9 * (1 + kl));
    }
    ifl_workspace_free(ws);
    ifl_bias_ledger_free(l);
    ifl_trajectory_free(t);
}

static void test_generated_answers_have_the_entries_of_their_causes(void **state) {
    (void)state;
    ifl_sampling plain = {0.8f, 0, 1}, cut = {0.8f, 0, 0.9f};
    check_single(IFL_KV_MODE_KEEP, plain, 0, 1, -1);
    check_single(IFL_KV_MODE_KEEP, cut, 0, 1, IFL_BIAS_TRUNCATION);
    check_single(IFL_KV_MODE_KEEP, plain, 0, 2, IFL_BIAS_LAG);
    check_single(IFL_KV_MODE_KEEP, plain, 0, 3, IFL_BIAS_LAG);
    check_single(IFL_KV_MODE_RECOMPUTE, plain, 1, 2, IFL_BIAS_LAG); /* fresh KV, two versions */
    check_single(IFL_KV_MODE_KEEP, plain, 1, 2, -2);
}

static void test_a_changed_record_is_numerics(void **state) {
    (void)state;
    ifl_trajectory *t = generate(IFL_KV_MODE_KEEP, (ifl_sampling){1, 0, 1}, 1);
    ifl_bias_ledger *l = ledger_open(4);
    ifl_bias_record r = {0};
    uint32_t bits;
    memcpy(&bits, &t->logprobs[N_PROMPT + 5], sizeof bits);
    bits ^= 1;
    memcpy(&t->logprobs[N_PROMPT + 5], &bits, sizeof bits);
    assert_ok(ifl_bias_score(l, get, NULL, t, 1.0f, 2, &r, &err));
    assert_int_equal(r.n_differing, 1);
    assert_int_equal(r.entries[IFL_BIAS_NUMERICS].n_moved, 1);
    assert_int_equal(r.n_untelescoped, 0);
    /* A foreign one's is no alarm, but a figure. */
    t->profile.low ^= 1;
    r = (ifl_bias_record){0};
    assert_ok(ifl_bias_score(l, get, NULL, t, 1.0f, 2, &r, &err));
    assert_int_equal(r.n_differing, 0);
    assert_int_equal(r.n_foreign, N_NEW);
    assert_int_equal(r.entries[IFL_BIAS_NUMERICS].n_moved, 1);
    /* A version that is gone: not scored, and said. */
    int64_t gone = 0;
    r = (ifl_bias_record){0};
    assert_ok(ifl_bias_score(l, get, &gone, t, 1.0f, 2, &r, &err));
    assert_int_equal(r.n_not_scored, 1);
    assert_int_equal(r.n_tokens, 0);
    ifl_bias_ledger_free(l);
    ifl_trajectory_free(t);
}

static void test_the_choice_is_the_seeds(void **state) {
    (void)state;
    ifl_trajectory t = {0};
    ifl_bias_options o = {0.25, 0, 9, loss_of(IFL_LOSS_REINFORCE, 5)}, other = o;
    other.seed = 10;
    int n = 0, differ = 0;
    for (uint64_t serial = 0; serial < 1000; serial++)
        for (int32_t sample = 0; sample < 4; sample++) {
            t.task_serial = serial;
            t.sample = sample;
            n += ifl_bias_selects(&o, &t);
            differ += ifl_bias_selects(&o, &t) != ifl_bias_selects(&other, &t);
        }
    assert_in_range(n, 900, 1100); /* 1,000 and some 3.6 deviations of 27 */
    assert_true(differ > 1000);
    o.share = 0;
    assert_false(ifl_bias_selects(&o, &t));
    o.share = 1;
    assert_true(ifl_bias_selects(&o, &t));
}

/* --- The file
 * --------------------------------------------------------------------------------------- */

static void test_the_file_gives_the_sums_back_and_a_step_made_again_counts_once(void **state) {
    (void)state;
    char path[] = "/tmp/inflight-ledger-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    ifl_metrics *file;
    ifl_bias_record r[5] = {0}, want = {0}, got;
    static columns c;
    ifl_loss_options loss = loss_of(IFL_LOSS_REINFORCE, 5);
    static const int64_t steps[5] = {1, 2, 3, 2,
                                     4}; /* 2 and 3 are made again, 3 without a sample */
    assert_ok(ifl_metrics_open(&file, path, 0, &err));
    for (int i = 0; i < 5; i++) {
        for (int k = 0; k < IFL_BIAS_CHAIN; k++)
            for (int j = 0; j < 64; j++) {
                c.chain[k][j] = -(float)(1 + (j * 7 + k * (i + 1)) % 32) / 8.0f;
                c.kept[j] = c.chain[4][j];
                c.ones[j] = 1.0f;
                c.lags[j] = j % 3;
            }
        ifl_bias_tokens t = view(&c, 64, i - 2.0);
        r[i].step = steps[i];
        r[i].version = steps[i] - 1;
        assert_ok(ifl_bias_add(&r[i], &t, &loss, &err));
        assert_ok(ifl_bias_write(file, &r[i], &err));
        if (i != 1 && i != 2) ifl_bias_merge(&want, &r[i]);
    }
    ifl_metrics_close(file);
    int64_t n_steps;
    assert_ok(ifl_bias_read(&got, &n_steps, path, &err));
    assert_int_equal(n_steps, 3);
    assert_int_equal(got.n_tokens, 3 * 64);
    assert_int_equal(got.lags[1].n, want.lags[1].n);
    for (int e = 0; e < IFL_BIAS_COUNT; e++) {
        assert_int_equal(got.entries[e].n_moved, want.entries[e].n_moved);
        assert_true(fabs(got.entries[e].k3 - want.entries[e].k3) <= 1e-8 * want.entries[e].k3);
        assert_true(got.entries[e].max_abs == want.entries[e].max_abs);
    }
    assert_true(fabs(got.correction.mass - want.correction.mass) < 1e-6);
    unlink(path);
    assert_int_equal(ifl_bias_read(&got, &n_steps, path, &err), IFL_NOTFOUND);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_differences_add_up_to_log_r_exactly),
        cmocka_unit_test(test_one_cause_moves_one_entry),
        cmocka_unit_test(test_figures_are_their_formulas),
        cmocka_unit_test(test_generated_answers_have_the_entries_of_their_causes),
        cmocka_unit_test(test_a_changed_record_is_numerics),
        cmocka_unit_test(test_the_choice_is_the_seeds),
        cmocka_unit_test(test_the_file_gives_the_sums_back_and_a_step_made_again_counts_once),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

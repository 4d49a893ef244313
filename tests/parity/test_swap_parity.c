/* Weights that change under a running generation: which version's forward each log-prob is, and
 * what a shared prompt may serve. Group 11 of the numerics notes, in both profiles; and a load of
 * 64 and of 188 live sequences that gives the same bytes each time (group 5 beside `inflight parity
 * --soak`). IFL_TEST_FULL=1 repeats that load 50 times. */
#include <stdio.h>

#include "actor/engine.h"
#include "kernels/replay.h"
#include "kernels/score.h"
#include "parity_testing.h"

enum { VERSIONS = 3, PROMPT = 21, NEW = 90 };

typedef struct swapping {
    subject s;
    ifl_weights *b;
    ifl_weights headers[VERSIONS]; /* version 0 is A, 1 is B, 2 is A again */
    ifl_workspace *ws;             /* of scoring and replay */
} swapping;

static swapping *under_test; /* for get_version */

static const ifl_weights *get_version(void *context, int64_t version) {
    (void)context;
    return version >= 0 && version < VERSIONS ? &under_test->headers[version] : NULL;
}

static void swapping_open(swapping *w, const char *family, ifl_profile profile) {
    subject_open(&w->s, family, profile);
    w->s.model->config.n_eos = 0;
    assert_ok(ifl_weights_create(&w->b, w->s.model, &err));
    assert_ok(ifl_random_step(w->b, w->s.weights, 5, 0.1, &err));
    for (int v = 0; v < VERSIONS; v++) {
        w->headers[v] = v == 1 ? *w->b : *w->s.weights;
        w->headers[v].version = v;
    }
    assert_ok(ifl_workspace_create(&w->ws, w->s.model, 17, NULL, NULL, &err));
    under_test = w;
}

static void swapping_close(swapping *w) {
    ifl_workspace_free(w->ws);
    ifl_weights_free(w->b);
    subject_close(&w->s);
}

static ifl_engine *engine_of(const swapping *w, ifl_kv_mode mode, int32_t sequences,
                             int32_t kv_tokens, ifl_thread_pool *pool) {
    ifl_engine *engine;
    ifl_engine_options options = {.sequences_max = sequences,
                                  .kv_tokens = kv_tokens,
                                  .page_tokens = 8,
                                  .prefill_chunk_tokens = 6,
                                  .kv_mode = mode,
                                  .seed = 42};
    assert_ok(ifl_engine_create(&engine, w->s.model, NULL, &options, pool, NULL, &err));
    assert_ok(ifl_engine_swap(engine, &w->headers[0], &err));
    return engine;
}

static void submit(const swapping *w, ifl_engine *engine, uint64_t task, int32_t n_prompt,
                   int32_t n_new, int32_t n) {
    ifl_engine_request r = {.task_serial = task,
                            .task_id = "t",
                            .prompt = w->s.tokens + task % 7,
                            .n_prompt = n_prompt,
                            .n_samples = n,
                            .sampling = {1, 0, 1},
                            .max_new_tokens = n_new,
                            .ignore_eos = true};
    assert_ok(ifl_engine_submit(engine, &r, &err));
}

/* Runs to the end; swaps to versions 1 and 2 after `first` and `second` steps (0: not at all). */
static void run(const swapping *w, ifl_engine *engine, int first, int second) {
    int32_t n, next = 1;
    for (int step = 1; !ifl_engine_idle(engine); step++) {
        assert_true(step < 5000);
        assert_ok(ifl_engine_step(engine, &n, &err));
        bool due = (next == 1 && first && step >= first) || (next == 2 && second && step >= second);
        if (!due) continue;
        ifl_status st = ifl_engine_swap(engine, &w->headers[next], &err);
        assert_true(st == IFL_OK || st == IFL_AGAIN);
        next += st == IFL_OK;
    }
}

/* Policy tokens whose recorded bits are not those of their version's forward over the whole prefix.
 */
static int32_t count_not_own_forward(const swapping *w, const ifl_trajectory *t, int32_t n_prompt) {
    static ifl_logprob own[2][TESTING_TOKENS];
    int32_t differing = 0;
    for (int v = 0; v < 2; v++)
        assert_ok(
            ifl_score(w->ws, &w->headers[v], t->tokens, t->n_tokens, n_prompt, 1, own[v], &err));
    for (int32_t i = n_prompt; i < t->n_tokens; i++) {
        int64_t version = ifl_trajectory_version_at(t, i);
        const ifl_logprob *want = &own[version == 1][i - n_prompt];
        differing += memcmp(&t->logprobs[i], &want->logprob, sizeof want->logprob) != 0;
    }
    return differing;
}

static int64_t count_replay(const swapping *w, const ifl_trajectory *t) {
    ifl_replay_result r;
    assert_ok(ifl_replay(w->ws, get_version, NULL, t, NULL, &r, &err));
    assert_int_equal(r.n_checked, t->n_tokens - t->runs[0].begin);
    return r.n_differing;
}

/* A, B, A: under recompute each token is its own version's forward, and A after the second swap is
 * A as it was. Under keep it is the mixed replay, and differs from a fresh forward: the failing
 * direction. */
static void test_there_and_back_again(void **state) {
    (void)state;
    static const char *const families[] = {"tiny-llama", "tiny-qwen3"};
    for (int f = 0; f < 2; f++)
        for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
            for (int mode = 0; mode < 2; mode++) {
                static swapping w;
                bool recompute = mode == 1;
                int32_t not_own = 0, n = 0, n_third = 0;
                swapping_open(&w, families[f], (ifl_profile)profile);
                ifl_engine *engine = engine_of(
                    &w, recompute ? IFL_KV_MODE_RECOMPUTE : IFL_KV_MODE_KEEP, 4, 1024, NULL);
                submit(&w, engine, 3, PROMPT, NEW, 3);
                run(&w, engine, 25, 50);
                ifl_trajectory *t;
                while ((t = ifl_engine_take_finished(engine, NULL))) {
                    assert_int_equal(count_replay(&w, t), 0);
                    not_own += count_not_own_forward(&w, t, PROMPT);
                    for (int32_t i = PROMPT; i < t->n_tokens; i++)
                        n_third += ifl_trajectory_version_at(t, i) == 2;
                    assert_int_equal(t->n_runs, 3);
                    ifl_trajectory_free(t);
                    n++;
                }
                assert_int_equal(n, 3);
                assert_true(n_third > 30);
                if (recompute)
                    assert_int_equal(not_own, 0);
                else
                    assert_true(not_own > 30);
                ifl_engine_free(engine);
                swapping_close(&w);
            }
}

/* Samples that begin after a swap, of a group whose prompt was built before it: version v's prompt
 * is never served at v + 1 without its record saying so, and never at all under recompute. */
static void test_a_shared_prompt_is_not_served_under_other_weights(void **state) {
    (void)state;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int mode = 0; mode < 2; mode++) {
            static swapping w;
            int32_t n_late = 0, n = 0;
            swapping_open(&w, "tiny-llama", (ifl_profile)profile);
            ifl_engine *engine =
                engine_of(&w, mode ? IFL_KV_MODE_RECOMPUTE : IFL_KV_MODE_KEEP, 2, 1024, NULL);
            submit(&w, engine, 1, PROMPT + 4, 20, 8);
            run(&w, engine, 12, 0);
            ifl_trajectory *t;
            while ((t = ifl_engine_take_finished(engine, NULL))) {
                bool late =
                    ifl_trajectory_version_at(t, PROMPT + 4) == 1; /* began under version 1 */
                assert_int_equal(count_replay(&w, t), 0);
                if (late) {
                    n_late++;
                    assert_int_equal(t->n_runs, 1);
                    assert_int_equal(count_not_own_forward(&w, t, PROMPT + 4), 0);
                }
                ifl_trajectory_free(t);
                n++;
            }
            assert_int_equal(n, 8);
            assert_true(n_late >= 4);
            ifl_engine_free(engine);
            swapping_close(&w);
        }
}

/* --- The same load, again and again
 * --------------------------------------------------------------------- */

/* 12 groups of 8 to 24 samples with a swap on the way, in a cache that preempts; hash of all that
 * was recorded, by (task, sample). */
static uint64_t load_hash(const swapping *w, ifl_kv_mode mode, int32_t sequences,
                          ifl_thread_pool *pool, bool replayed, int64_t *n_preempted) {
    enum { GROUPS = 12, SAMPLES_MAX = 24, LOAD_NEW = 16 };
    static uint64_t hashes[GROUPS * SAMPLES_MAX];
    memset(hashes, 0, sizeof hashes);
    ifl_engine *engine = engine_of(w, mode, sequences, sequences * 12, pool);
    for (uint64_t g = 0; g < GROUPS; g++)
        submit(w, engine, g, 3 + (int32_t)g * 3, LOAD_NEW, 8 + (int32_t)(g * 5 % 17));
    run(w, engine, 9, 0);
    ifl_engine_stats stats;
    ifl_engine_stats_get(engine, &stats);
    *n_preempted += stats.preemptions;
    ifl_trajectory *t;
    while ((t = ifl_engine_take_finished(engine, NULL))) {
        if (replayed) assert_int_equal(count_replay(w, t), 0);
        uint64_t parts[2] = {ifl_hash64(t->tokens, (size_t)t->n_tokens * sizeof *t->tokens),
                             ifl_hash64(t->logprobs, (size_t)t->n_tokens * sizeof *t->logprobs)};
        hashes[t->task_serial * SAMPLES_MAX + (uint64_t)t->sample] =
            ifl_hash64(parts, sizeof parts);
        ifl_trajectory_free(t);
    }
    ifl_engine_free(engine);
    return ifl_hash64(hashes, sizeof hashes);
}

static void test_the_same_load_gives_the_same_bytes(void **state) {
    (void)state;
    ifl_thread_pool *pool;
    assert_ok(ifl_thread_pool_create(&pool, 3, &err));
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int mode = 0; mode < 2; mode++) {
            static swapping w;
            int64_t n_preempted = 0;
            ifl_kv_mode kv_mode = mode ? IFL_KV_MODE_RECOMPUTE : IFL_KV_MODE_KEEP;
            swapping_open(&w, "tiny-llama", (ifl_profile)profile);
            uint64_t first = load_hash(&w, kv_mode, 64, pool, true, &n_preempted);
            assert_true(n_preempted > 0);
            for (int again = 1; again < (testing_full() ? 50 : 3); again++)
                assert_true(load_hash(&w, kv_mode, 64, again % 2 ? NULL : pool, false,
                                      &n_preempted) == first);
            load_hash(&w, kv_mode, 256, pool, true, &n_preempted); /* all at once */
            swapping_close(&w);
        }
    ifl_thread_pool_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back_again),
        cmocka_unit_test(test_a_shared_prompt_is_not_served_under_other_weights),
        cmocka_unit_test(test_the_same_load_gives_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

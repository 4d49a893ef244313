/* The generation engine on a tiny random model, and the replay of what it records. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "actor/engine.h"
#include "kernels/random_model.h"
#include "kernels/replay.h"
#include "kernels/score.h"

/* Counts allocations: the claim that a decode step makes none. The sanitizers bring their own
 * malloc. */
static int64_t n_allocations;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__)
#define COUNTS_ALLOCATIONS 1
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t alignment, size_t n);
void *malloc(size_t n) {
    n_allocations++;
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size) {
    n_allocations++;
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n) {
    n_allocations++;
    return __libc_realloc(p, n);
}
void *aligned_alloc(size_t alignment, size_t n) {
    n_allocations++;
    return __libc_memalign(alignment, n);
}
int posix_memalign(void **p, size_t alignment, size_t n) {
    n_allocations++;
    *p = __libc_memalign(alignment, n);
    return *p ? 0 : ENOMEM;
}
#else
#define COUNTS_ALLOCATIONS 0
#endif

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

/* --- Fixture: a model whose tokens are the printable ASCII characters
 * ----------------------------------- */

enum { VERSIONS = 4, VOCAB = 95 };

static ifl_model *model;
static ifl_tokenizer *tokenizer;
static ifl_weights *versions[VERSIONS];
static ifl_workspace *workspace;

static int setup(void **state) {
    (void)state;
    ifl_model_config config;
    ifl_random_model_config("tiny-llama", &config);
    config.vocab_size = VOCAB;
    config.n_eos = 0;
    char characters[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        characters[i] = (char)(32 + i);
    assert_ok(ifl_model_create(&model, &config, 512, IFL_PROFILE_F32, &err));
    assert_ok(ifl_tokenizer_char(&tokenizer, characters, VOCAB, NULL, 0, false, &err));
    assert_ok(ifl_workspace_create(&workspace, model, 17, NULL, NULL, &err));
    for (int v = 0; v < VERSIONS; v++) {
        assert_ok(ifl_weights_create(&versions[v], model, &err));
        if (v == 0)
            assert_ok(ifl_random_weights(versions[v], 3, &err));
        else
            assert_ok(ifl_random_step(versions[v], versions[v - 1], (uint64_t)v, 0.1, &err));
        versions[v]->version = v;
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (int v = 0; v < VERSIONS; v++)
        ifl_weights_free(versions[v]);
    ifl_workspace_free(workspace);
    ifl_tokenizer_free(tokenizer);
    ifl_model_free(model);
    return 0;
}

static const ifl_weights *get_version(void *context, int64_t version) {
    (void)context;
    return version >= 0 && version < VERSIONS ? versions[version] : NULL;
}

static ifl_engine *engine_make(ifl_kv_mode kv_mode, int32_t kv_tokens) {
    ifl_engine *engine;
    ifl_engine_options options = {.sequences_max = 8,
                                  .kv_tokens = kv_tokens,
                                  .page_tokens = 8,
                                  .prefill_chunk_tokens = 6,
                                  .kv_mode = kv_mode,
                                  .seed = 42};
    assert_ok(ifl_engine_create(&engine, model, tokenizer, &options, NULL, NULL, &err));
    assert_ok(ifl_engine_swap(engine, versions[0], &err));
    return engine;
}

static const int32_t prompt[30] = {1,  7, 33, 21, 60, 94, 12, 5,  5,  44, 80, 2,  19, 70, 31,
                                   16, 9, 27, 88, 53, 61, 3,  40, 72, 11, 90, 25, 66, 14, 38};

static ifl_engine_request request_make(uint64_t task, int32_t n_prompt, int32_t n_new,
                                       int32_t n_samples) {
    return (ifl_engine_request){.task_serial = task,
                                .lease_id = task,
                                .task_id = "t",
                                .prompt = prompt,
                                .n_prompt = n_prompt,
                                .n_samples = n_samples,
                                .sampling = {1, 0, 1},
                                .max_new_tokens = n_new};
}

static void engine_drain(ifl_engine *engine) {
    int32_t n;
    for (int step = 0; !ifl_engine_idle(engine); step++) {
        assert_ok(ifl_engine_step(engine, &n, &err));
        assert_true(step < 5000);
    }
}

static void engine_steps(ifl_engine *engine, int n_steps) {
    int32_t n;
    for (int i = 0; i < n_steps; i++)
        assert_ok(ifl_engine_step(engine, &n, &err));
}

static ifl_trajectory *take_sample(ifl_engine *engine, uint64_t task, int32_t sample) {
    ifl_trajectory *found = NULL, *t;
    while ((t = ifl_engine_take_finished(engine, NULL))) {
        assert_ok(ifl_trajectory_check(t, VOCAB, &err));
        if (t->task_serial == task && t->sample == sample && !found)
            found = t;
        else
            ifl_trajectory_free(t);
    }
    assert_non_null(found);
    return found;
}

/* One trajectory alone, without swaps. */
static ifl_trajectory *generate_alone(uint64_t task, int32_t n_prompt, int32_t n_new,
                                      int32_t n_samples, int32_t sample) {
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 1024);
    ifl_engine_request r = request_make(task, n_prompt, n_new, n_samples);
    r.samples = &sample;
    r.n_samples_now = 1;
    assert_ok(ifl_engine_submit(engine, &r, &err));
    engine_drain(engine);
    ifl_trajectory *t = take_sample(engine, task, sample);
    ifl_engine_free(engine);
    return t;
}

static void assert_same_trajectory(const ifl_trajectory *a, const ifl_trajectory *b) {
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof *a->tokens);
    assert_memory_equal(a->logprobs, b->logprobs, (size_t)a->n_tokens * sizeof *a->logprobs);
}

static ifl_replay_result replay(const ifl_trajectory *t) {
    ifl_replay_result result;
    assert_ok(ifl_replay(workspace, get_version, NULL, t, NULL, &result, &err));
    return result;
}

static ifl_replay_result replay_recompute(const ifl_trajectory *t) {
    ifl_replay_result result;
    assert_ok(ifl_replay_recompute(workspace, get_version, NULL, t, NULL, &result, &err));
    return result;
}

/* --- Sampling
 * -------------------------------------------------------------------------------------------- */

static void test_sample_is_the_same_alone_and_in_any_batch(void **state) {
    (void)state;
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 250); /* small: preemptions happen too */
    for (uint64_t task = 0; task < 6; task++) {
        ifl_engine_request r = request_make(task, 3 + (int32_t)task * 5, 30, 4);
        assert_ok(ifl_engine_submit(engine, &r, &err));
    }
    engine_drain(engine);
    ifl_engine_stats stats;
    ifl_engine_stats_get(engine, &stats);
    assert_int_equal(stats.pages_used, 0);
    assert_int_equal(stats.tokens_decoded, 6 * 4 * 30);
    assert_true(stats.preemptions > 0);
    int n = 0;
    ifl_trajectory *t;
    while ((t = ifl_engine_take_finished(engine, NULL))) {
        ifl_trajectory *alone =
            generate_alone(t->task_serial, 3 + (int32_t)t->task_serial * 5, 30, 4, t->sample);
        assert_same_trajectory(alone, t);
        ifl_trajectory_free(alone);
        ifl_trajectory_free(t);
        n++;
    }
    assert_int_equal(n, 24);
    ifl_engine_free(engine);
}

static void test_samples_of_a_group_differ(void **state) {
    (void)state;
    ifl_trajectory *a = generate_alone(5, 9, 20, 2, 0), *b = generate_alone(5, 9, 20, 2, 1);
    assert_memory_not_equal(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof *a->tokens);
    ifl_trajectory_free(a);
    ifl_trajectory_free(b);
}

static void test_greedy_takes_the_best_token(void **state) {
    (void)state;
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 1024);
    ifl_engine_request r = request_make(1, 12, 25, 1);
    r.sampling.temperature = 0;
    assert_ok(ifl_engine_submit(engine, &r, &err));
    engine_drain(engine);
    ifl_trajectory *t = take_sample(engine, 1, 0);
    int32_t ids[25];
    float logprobs[25];
    assert_ok(
        ifl_score_top(workspace, versions[0], t->tokens, t->n_tokens, 12, 1, ids, logprobs, &err));
    assert_memory_equal(ids, t->tokens + 12, sizeof ids);
    assert_memory_equal(logprobs, t->logprobs + 12, sizeof logprobs);
    assert_int_equal(replay(t).n_differing, 0);
    ifl_trajectory_free(t);
    ifl_engine_free(engine);
}

static void test_score_gives_the_recorded_bits(void **state) {
    (void)state;
    ifl_trajectory *t = generate_alone(2, 10, 40, 1, 0);
    ifl_logprob out[50];
    assert_ok(ifl_score(workspace, versions[0], t->tokens, t->n_tokens, 10, 1, out, &err));
    for (int32_t i = 0; i < 40; i++)
        assert_memory_equal(&out[i].logprob, &t->logprobs[10 + i], sizeof(float));
    ifl_logprob last;
    assert_ok(ifl_score(workspace, versions[0], t->tokens, t->n_tokens, 49, 1, &last, &err));
    assert_memory_equal(&last.logprob, &t->logprobs[49], sizeof(float));
    assert_int_equal(ifl_score(workspace, versions[0], t->tokens, 50, 0, 1, out, &err), IFL_USAGE);
    assert_int_equal(ifl_score(workspace, versions[0], t->tokens, 50, 1, 0, out, &err), IFL_USAGE);
    assert_int_equal(ifl_score(workspace, versions[0], t->tokens, 513, 1, 1, out, &err), IFL_LIMIT);
    ifl_trajectory_free(t);
}

/* --- Ends
 * ------------------------------------------------------------------------------------------------
 */

static void test_length_limit_ends_with_length(void **state) {
    (void)state;
    ifl_trajectory *t = generate_alone(3, 6, 15, 1, 0);
    assert_int_equal(t->finish, IFL_FINISH_LENGTH);
    assert_int_equal(t->n_tokens, 21);
    for (int32_t i = 0; i < 21; i++)
        assert_true(t->loss_weights[i] == (i < 6 ? 0.0f : 1.0f));
    ifl_trajectory_free(t);
    t = generate_alone(3, 1, 1, 1, 0); /* the shortest there is */
    assert_int_equal(t->n_tokens, 2);
    assert_int_equal(replay(t).n_checked, 1);
    ifl_trajectory_free(t);
}

static void test_eos_token_ends_and_trains(void **state) {
    (void)state;
    ifl_trajectory *free_run = generate_alone(3, 6, 30, 1, 0);
    int32_t eos = free_run->tokens[6 + 9], at = 6;
    while (free_run->tokens[at] != eos)
        at++;
    model->config.n_eos = 1;
    model->config.eos_ids[0] = eos;
    ifl_trajectory *t = generate_alone(3, 6, 30, 1, 0);
    assert_int_equal(t->finish, IFL_FINISH_EOS);
    assert_int_equal(t->n_tokens, at + 1);
    assert_int_equal(t->tokens[at], eos);
    assert_true(t->loss_weights[at] == 1.0f);
    ifl_trajectory_free(t);

    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 1024);
    ifl_engine_request r = request_make(3, 6, 30, 1);
    r.ignore_eos = true;
    assert_ok(ifl_engine_submit(engine, &r, &err));
    engine_drain(engine);
    t = take_sample(engine, 3, 0);
    assert_same_trajectory(free_run, t);
    ifl_trajectory_free(t);
    ifl_engine_free(engine);
    model->config.n_eos = 0;
    ifl_trajectory_free(free_run);
}

static void test_stop_string_over_three_tokens_ends(void **state) {
    (void)state;
    ifl_trajectory *free_run = generate_alone(4, 6, 40, 1, 0);
    char stop[4] = {0};
    for (int i = 0; i < 3; i++)
        stop[i] = (char)(32 + free_run->tokens[6 + 17 + i]);
    const char *stops[] = {"never, never, never", stop};
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 1024);
    ifl_engine_request r = request_make(4, 6, 40, 1);
    r.stops = stops;
    r.n_stops = 2;
    assert_ok(ifl_engine_submit(engine, &r, &err));
    engine_drain(engine);
    ifl_trajectory *t = take_sample(engine, 4, 0);
    assert_int_equal(t->finish, IFL_FINISH_STOP);
    assert_int_equal(t->n_tokens, 6 + 20); /* the completing token is kept */
    assert_memory_equal(t->tokens, free_run->tokens, (size_t)t->n_tokens * sizeof *t->tokens);
    assert_true(t->loss_weights[25] == 1.0f);
    ifl_trajectory_free(t);
    /* A stop that is never completed ends nothing. */
    r.n_stops = 1;
    assert_ok(ifl_engine_submit(engine, &r, &err));
    engine_drain(engine);
    t = take_sample(engine, 4, 0);
    assert_int_equal(t->finish, IFL_FINISH_LENGTH);
    ifl_trajectory_free(t);
    ifl_engine_free(engine);
    ifl_trajectory_free(free_run);
}

/* --- Requests
 * -------------------------------------------------------------------------------------------- */

static void test_requests_that_cannot_run_are_refused(void **state) {
    (void)state;
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 64);
    ifl_engine_request good = request_make(1, 10, 20, 2), r = good;
    r.n_prompt = 0;
    assert_int_equal(ifl_engine_submit(engine, &r, &err), IFL_USAGE);
    r = good;
    r.max_new_tokens = 100; /* more than the KV cache */
    assert_int_equal(ifl_engine_submit(engine, &r, &err), IFL_LIMIT);
    r.max_new_tokens = INT32_MAX;
    assert_int_equal(ifl_engine_submit(engine, &r, &err), IFL_LIMIT);
    int32_t bad[2] = {3, VOCAB};
    r = good;
    r.prompt = bad;
    r.n_prompt = 2;
    assert_int_equal(ifl_engine_submit(engine, &r, &err), IFL_LIMIT);
    r = good;
    r.sampling.top_p = 0;
    assert_int_equal(ifl_engine_submit(engine, &r, &err), IFL_USAGE);
    int32_t sample = 2;
    r = good;
    r.samples = &sample;
    r.n_samples_now = 1;
    assert_int_equal(ifl_engine_submit(engine, &r, &err), IFL_USAGE);
    assert_true(ifl_engine_idle(engine));
    assert_ok(ifl_engine_submit(engine, &good, &err));
    assert_int_equal(ifl_engine_queued(engine), 2);
    ifl_engine_free(engine); /* with live sequences */
}

static void test_cancel_drops_one_lease(void **state) {
    (void)state;
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 1024);
    for (uint64_t task = 0; task < 4; task++) {
        ifl_engine_request r = request_make(task, 9, 12, 3);
        assert_ok(ifl_engine_submit(engine, &r, &err));
    }
    engine_steps(engine, 6); /* some run, some queue */
    assert_int_equal(ifl_engine_running(engine), 8);
    assert_int_equal(ifl_engine_queued(engine), 4);
    assert_int_equal(ifl_engine_cancel(engine, 2), 3);
    assert_int_equal(ifl_engine_cancel(engine, 2), 0);
    engine_drain(engine);
    int n = 0;
    ifl_trajectory *t;
    while ((t = ifl_engine_take_finished(engine, NULL))) {
        assert_true(t->lease_id != 2);
        ifl_trajectory_free(t);
        n++;
    }
    assert_int_equal(n, 9);
    ifl_engine_free(engine);
}

static void test_decode_step_allocates_nothing(void **state) {
    (void)state;
    if (!COUNTS_ALLOCATIONS) skip();
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 2048);
    const char *stops[] = {"never, never, never"};
    ifl_engine_request r = request_make(1, 20, 200, 8);
    r.stops = stops;
    r.n_stops = 1;
    assert_ok(ifl_engine_submit(engine, &r, &err));
    int64_t worst = 0, total = 0;
    int32_t n;
    for (int step = 0; step < 150; step++) {
        int64_t before = n_allocations;
        assert_ok(ifl_engine_step(engine, &n, &err));
        if (step < 10) continue; /* prefill, first events, first runs */
        total += n_allocations - before;
        if (n_allocations - before > worst) worst = n_allocations - before;
    }
    /* Only the trajectories' columns double, three arrays each: 3 doublings for 8 samples here. */
    assert_true(total <= 8 * 3 * 4);
    assert_true(worst <= 8 * 3);
    ifl_engine_free(engine);
}

/* --- Swaps
 * -----------------------------------------------------------------------------------------------
 */

/* Runs one group with swaps to versions 1 and 2 on the way. */
enum { SWAP_NEW = 140 };

static ifl_trajectory *generate_with_swaps(ifl_kv_mode kv_mode, int32_t kv_tokens, bool park,
                                           ifl_engine_stats *stats) {
    ifl_engine *engine = engine_make(kv_mode, kv_tokens);
    ifl_engine_request r = request_make(9, 21, SWAP_NEW, 4);
    assert_ok(ifl_engine_submit(engine, &r, &err));
    int swapped = 0;
    int32_t n;
    for (int step = 1; !ifl_engine_idle(engine); step++) {
        assert_true(step < 2000);
        assert_ok(ifl_engine_step(engine, &n, &err));
        if (step % 18 == 0 && swapped < 2) {
            ifl_status st = ifl_engine_swap(engine, versions[swapped + 1], &err);
            assert_true(st == IFL_OK || st == IFL_AGAIN);
            swapped += st == IFL_OK;
        }
        if (park && step == 30) assert_ok(ifl_engine_park(engine, 9, 3, &err));
    }
    assert_int_equal(swapped, 2);
    assert_int_equal(ifl_engine_version(engine), 2);
    assert_int_equal(ifl_engine_oldest_version(engine), 2);
    ifl_engine_stats_get(engine, stats);
    ifl_trajectory *t = take_sample(engine, 9, 3);
    ifl_engine_free(engine);
    return t;
}

static int32_t count_events(const ifl_trajectory *t, ifl_kv_event_kind kind) {
    int32_t n = 0;
    for (int32_t i = 0; i < t->n_kv_events; i++)
        n += t->kv_events[i].kind == kind;
    return n;
}

static void test_keep_is_the_mixed_replay_and_nothing_else(void **state) {
    (void)state;
    ifl_engine_stats stats;
    ifl_trajectory *t = generate_with_swaps(IFL_KV_MODE_KEEP, 1024, false, &stats);
    assert_int_equal(t->n_runs, 3);
    assert_int_equal(count_events(t, IFL_KV_KEPT), 2);
    assert_int_equal(count_events(t, IFL_KV_REBUILT), 0);
    assert_int_equal(stats.tokens_rebuilt, 0);
    assert_int_equal(stats.swaps, 2);
    assert_int_equal(stats.sequences_swapped, 4);
    ifl_replay_result r = replay(t);
    assert_int_equal(r.n_checked, SWAP_NEW);
    assert_int_equal(r.n_differing, 0);
    assert_true(r.n_after_swap >= 20);
    /* The failing direction: stale KV is not a fresh forward of each version. */
    assert_true(replay_recompute(t).n_differing > 10);
    ifl_trajectory_free(t);
}

static void test_recompute_is_each_versions_own_forward(void **state) {
    (void)state;
    ifl_engine_stats stats;
    ifl_trajectory *t = generate_with_swaps(IFL_KV_MODE_RECOMPUTE, 1024, false, &stats);
    assert_int_equal(t->n_runs, 3);
    assert_true(count_events(t, IFL_KV_REBUILT) == 2);
    float followed[21 + SWAP_NEW], independent[21 + SWAP_NEW];
    ifl_replay_result a, b;
    assert_ok(ifl_replay(workspace, get_version, NULL, t, followed, &a, &err));
    assert_ok(ifl_replay_recompute(workspace, get_version, NULL, t, independent, &b, &err));
    assert_int_equal(a.n_checked, SWAP_NEW);
    assert_int_equal(a.n_differing, 0);
    assert_int_equal(b.n_checked, SWAP_NEW);
    assert_int_equal(b.n_differing, 0);
    assert_memory_equal(followed, independent, sizeof followed);
    /* The prompt is rebuilt once per version for the group, not once per sample. */
    int64_t once = 2 * 20;
    assert_true(stats.tokens_rebuilt < once + 2 * 4 * SWAP_NEW);
    ifl_trajectory_free(t);
}

static void test_recompute_in_place_when_pages_are_short(void **state) {
    (void)state;
    ifl_engine_stats stats;
    ifl_trajectory *t = generate_with_swaps(IFL_KV_MODE_RECOMPUTE, 272, true, &stats);
    assert_true(stats.preemptions > 0);
    assert_int_equal(replay(t).n_differing, 0);
    assert_int_equal(replay_recompute(t).n_differing, 0);
    assert_int_equal(replay(t).n_checked, SWAP_NEW);
    ifl_trajectory_free(t);
}

/* A group's last sample ends under the old weights in the very step that rebuilds the group's
 * prompt under the new ones: the prompt must still be there for the second run of that step. */
static void test_group_may_end_while_its_prompt_is_rebuilt(void **state) {
    (void)state;
    for (int32_t n_new = 1; n_new <= 6; n_new++)
        for (int before = 1; before <= 8; before++) {
            ifl_engine *engine = engine_make(IFL_KV_MODE_RECOMPUTE, 1024);
            ifl_engine_request r = request_make(5, 30, n_new, 1);
            assert_ok(ifl_engine_submit(engine, &r, &err));
            engine_steps(engine, before);
            assert_ok(ifl_engine_swap(engine, versions[1], &err));
            engine_drain(engine);
            ifl_trajectory *t = take_sample(engine, 5, 0);
            assert_int_equal(replay(t).n_checked, n_new);
            assert_int_equal(replay(t).n_differing, 0);
            ifl_trajectory_free(t);
            ifl_engine_free(engine);
        }
}

static void test_parked_sequence_resumes_under_current_weights(void **state) {
    (void)state;
    ifl_engine_stats stats;
    ifl_trajectory *t = generate_with_swaps(IFL_KV_MODE_KEEP, 1024, true, &stats);
    assert_int_equal(stats.preemptions, 1);
    assert_true(count_events(t, IFL_KV_REBUILT) >= 1);
    assert_int_equal(ifl_trajectory_version_at(t, 21), 0); /* stamps stay */
    ifl_replay_result r = replay(t);
    assert_int_equal(r.n_checked, SWAP_NEW);
    assert_int_equal(r.n_differing, 0);
    ifl_trajectory_free(t);
}

/* An actor goes in the middle of a group, and another one does the rest of it. */
static void test_begun_sequences_go_on_elsewhere(void **state) {
    (void)state;
    enum { NEW = 24, SAMPLES = 3 };
    for (int stops = 0; stops <= 1; stops++)
        for (int swap = 0; swap <= 1; swap++) {
            ifl_engine *first = engine_make(IFL_KV_MODE_KEEP, 1024);
            ifl_engine_request r = request_make(11, 13, NEW, SAMPLES);
            /* Never complete, but their matchers have to follow every token. */
            const char *const never[1] = {"no such text"};
            if (stops) {
                r.n_stops = 1;
                r.stops = never;
            }
            int32_t samples[SAMPLES];
            ifl_trajectory *begun[SAMPLES];
            assert_ok(ifl_engine_submit(first, &r, &err));
            engine_steps(first, 12);
            int32_t n = 0;
            for (ifl_trajectory *t; (t = ifl_engine_take_live(first, NULL)) != NULL; n++) {
                assert_int_equal(t->finish, IFL_FINISH_ABORTED);
                assert_in_range(ifl_trajectory_n_policy(t), 1, NEW - 1);
                assert_in_range(n, 0, SAMPLES - 1);
                begun[n] = t;
                samples[n] = t->sample;
            }
            assert_int_equal(n, SAMPLES);
            assert_true(ifl_engine_idle(first));
            ifl_engine_free(first);

            ifl_engine *second = engine_make(IFL_KV_MODE_KEEP, 1024);
            if (swap) assert_ok(ifl_engine_swap(second, versions[1], &err));
            r.begun = begun;
            r.samples = samples;
            r.n_samples_now = SAMPLES;
            r.lease_id = 99;
            assert_ok(ifl_engine_submit(second, &r, &err));
            engine_drain(second);
            for (ifl_trajectory *t; (t = ifl_engine_take_finished(second, NULL)) != NULL; n--) {
                assert_ok(ifl_trajectory_check(t, VOCAB, &err));
                assert_int_equal(ifl_trajectory_n_policy(t), NEW);
                assert_int_equal(t->lease_id, 99);
                ifl_replay_result result = replay(t);
                assert_int_equal(result.n_checked, NEW);
                assert_int_equal(result.n_differing, 0);
                assert_true(count_events(t, IFL_KV_REBUILT) > 0);
                assert_int_equal(t->n_runs, 1 + swap);
                if (!swap) {
                    ifl_trajectory *whole = generate_alone(11, 13, NEW, SAMPLES, t->sample);
                    assert_same_trajectory(t, whole);
                    ifl_trajectory_free(whole);
                }
                ifl_trajectory_free(t);
            }
            assert_int_equal(n, 0);
            for (int i = 0; i < SAMPLES; i++)
                assert_null(begun[i]);
            ifl_engine_free(second);
        }
}

static void test_beginnings_that_do_not_fit_are_refused(void **state) {
    (void)state;
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 1024);
    ifl_engine_request r = request_make(11, 13, 24, 1);
    assert_ok(ifl_engine_submit(engine, &r, &err));
    engine_steps(engine, 12);
    ifl_trajectory *t = ifl_engine_take_live(engine, NULL);
    assert_non_null(t);
    assert_ok(ifl_engine_check_begun(engine, &r, 0, t, &err));
    struct {
        const char *text;
        int which;
    } const wrong[] = {{"another trajectory", 0},  {"another prompt", 1},
                       {"in another way", 2},      {"all that it may have", 3},
                       {"not in use here yet", 4}, {"lies outside the vocabulary", 5}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ifl_engine_request other = r;
        int32_t token = t->tokens[15];
        t->task_serial += wrong[i].which == 0;
        if (wrong[i].which == 1) other.prompt = prompt + 1;
        if (wrong[i].which == 2) other.sampling.temperature = 0.5f;
        if (wrong[i].which == 3) other.max_new_tokens = ifl_trajectory_n_policy(t);
        t->runs[0].version += wrong[i].which == 4;
        if (wrong[i].which == 5) t->tokens[15] = VOCAB;
        assert_true(ifl_engine_check_begun(engine, &other, 0, t, &err) != IFL_OK);
        if (!strstr(err.text, wrong[i].text)) fail_msg("%s", err.text);
        t->task_serial = 11;
        t->runs[0].version = 0;
        t->tokens[15] = token;
    }
    /* A request with such a beginning is refused whole. */
    t->runs[0].version = 7;
    r.begun = &t;
    assert_true(ifl_engine_submit(engine, &r, &err) != IFL_OK);
    assert_non_null(t);
    assert_true(ifl_engine_idle(engine));
    ifl_trajectory_free(t);
    ifl_engine_free(engine);
}

static void test_swap_to_identical_bytes_changes_no_bit(void **state) {
    (void)state;
    ifl_trajectory *plain = generate_alone(9, 21, 60, 1, 0);
    for (int mode = 0; mode < 2; mode++) {
        ifl_engine *engine = engine_make(mode ? IFL_KV_MODE_RECOMPUTE : IFL_KV_MODE_KEEP, 1024);
        ifl_engine_request r = request_make(9, 21, 60, 1);
        assert_ok(ifl_engine_submit(engine, &r, &err));
        engine_steps(engine, 25);
        ifl_weights same = *versions[0];
        same.version = 1;
        assert_ok(ifl_engine_swap(engine, &same, &err));
        engine_drain(engine);
        ifl_trajectory *t = take_sample(engine, 9, 0);
        assert_int_equal(t->n_runs, 2);
        assert_same_trajectory(plain, t);
        ifl_trajectory_free(t);
        ifl_engine_free(engine);
    }
    ifl_trajectory_free(plain);
}

static void test_third_version_waits_for_the_first_to_end(void **state) {
    (void)state;
    ifl_engine *engine = engine_make(IFL_KV_MODE_RECOMPUTE, 1024);
    ifl_engine_request r = request_make(9, 30, 60, 2);
    assert_ok(ifl_engine_submit(engine, &r, &err));
    engine_steps(engine, 20);
    assert_ok(ifl_engine_swap(engine, versions[1], &err));
    assert_int_equal(ifl_engine_oldest_version(engine), 0);
    assert_int_equal(ifl_engine_swap(engine, versions[2], &err), IFL_AGAIN);
    assert_int_equal(ifl_engine_swap(engine, versions[0], &err), IFL_USAGE); /* never back */
    int32_t n;
    for (int i = 0; ifl_engine_oldest_version(engine) == 0; i++) {
        assert_ok(ifl_engine_step(engine, &n, &err));
        assert_int_equal(n, 2); /* it decodes on */
        assert_true(i < 60);
    }
    assert_ok(ifl_engine_swap(engine, versions[2], &err));
    ifl_engine_free(engine);
}

/* --- Replay of damaged records
 * --------------------------------------------------------------------------- */

static void test_replay_finds_one_flipped_bit(void **state) {
    (void)state;
    ifl_trajectory *t = generate_alone(7, 12, 30, 1, 0);
    uint32_t bits;
    memcpy(&bits, &t->logprobs[30], sizeof bits);
    bits ^= 1;
    memcpy(&t->logprobs[30], &bits, sizeof bits);
    ifl_replay_result r = replay(t);
    assert_int_equal(r.n_differing, 1);
    assert_int_equal(r.first_differing, 30);
    assert_int_equal(replay_recompute(t).n_differing, 1);
    ifl_trajectory_free(t);
}

static void test_replay_finds_a_wrong_event(void **state) {
    (void)state;
    ifl_engine_stats stats;
    ifl_trajectory *t = generate_with_swaps(IFL_KV_MODE_RECOMPUTE, 1024, false, &stats);
    ifl_replay_result r;
    int32_t e = 0;
    while (t->kv_events[e].kind != IFL_KV_REBUILT)
        e++;
    ifl_kv_event good = t->kv_events[e];
    t->kv_events[e].version = 3; /* the rebuild is said to be another version's */
    assert_int_equal(replay(t).n_differing > 0, 1);
    t->kv_events[e] = good;
    t->kv_events[e].kind = IFL_KV_KEPT; /* not rebuilt at all */
    assert_true(replay(t).n_differing > 0);
    t->kv_events[e] = good;
    t->kv_events[e].version = 77;
    assert_int_equal(ifl_replay(workspace, get_version, NULL, t, NULL, &r, &err), IFL_NOTFOUND);
    t->kv_events[e] = good;
    t->kv_events[e].from = 5000;
    assert_int_equal(ifl_replay(workspace, get_version, NULL, t, NULL, &r, &err), IFL_FORMAT);
    t->kv_events[e] = good;
    t->kv_events[e].at = 21; /* would sample the first tokens twice */
    assert_int_equal(ifl_replay(workspace, get_version, NULL, t, NULL, &r, &err), IFL_FORMAT);
    t->kv_events[e] = good;
    t->n_kv_events = e; /* the rest of the record is missing */
    assert_int_equal(ifl_replay(workspace, get_version, NULL, t, NULL, &r, &err), IFL_FORMAT);
    ifl_trajectory_free(t);
}

static void test_replay_repeats_truncated_draws(void **state) {
    (void)state;
    ifl_engine *engine = engine_make(IFL_KV_MODE_KEEP, 1024);
    ifl_engine_request r = request_make(8, 12, 40, 2);
    r.sampling = (ifl_sampling){0.7f, 10, 0.8f};
    assert_ok(ifl_engine_submit(engine, &r, &err));
    engine_steps(engine, 20);
    assert_ok(ifl_engine_swap(engine, versions[1], &err));
    engine_drain(engine);
    ifl_trajectory *t = take_sample(engine, 8, 1);
    assert_int_equal(replay(t).n_checked, 40);
    assert_int_equal(replay(t).n_differing, 0);
    t->tokens[51] = (t->tokens[51] + 1) % VOCAB; /* the last one: nothing after it reads it */
    assert_int_equal(replay(t).n_differing, 1);
    ifl_trajectory_free(t);
    ifl_engine_free(engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_is_the_same_alone_and_in_any_batch),
        cmocka_unit_test(test_samples_of_a_group_differ),
        cmocka_unit_test(test_greedy_takes_the_best_token),
        cmocka_unit_test(test_score_gives_the_recorded_bits),
        cmocka_unit_test(test_length_limit_ends_with_length),
        cmocka_unit_test(test_eos_token_ends_and_trains),
        cmocka_unit_test(test_stop_string_over_three_tokens_ends),
        cmocka_unit_test(test_requests_that_cannot_run_are_refused),
        cmocka_unit_test(test_cancel_drops_one_lease),
        cmocka_unit_test(test_decode_step_allocates_nothing),
        cmocka_unit_test(test_keep_is_the_mixed_replay_and_nothing_else),
        cmocka_unit_test(test_recompute_is_each_versions_own_forward),
        cmocka_unit_test(test_recompute_in_place_when_pages_are_short),
        cmocka_unit_test(test_group_may_end_while_its_prompt_is_rebuilt),
        cmocka_unit_test(test_parked_sequence_resumes_under_current_weights),
        cmocka_unit_test(test_begun_sequences_go_on_elsewhere),
        cmocka_unit_test(test_beginnings_that_do_not_fit_are_refused),
        cmocka_unit_test(test_swap_to_identical_bytes_changes_no_bit),
        cmocka_unit_test(test_third_version_waits_for_the_first_to_end),
        cmocka_unit_test(test_replay_finds_one_flipped_bit),
        cmocka_unit_test(test_replay_finds_a_wrong_event),
        cmocka_unit_test(test_replay_repeats_truncated_draws),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

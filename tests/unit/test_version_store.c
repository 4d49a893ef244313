/* The ring of versions, and the audit that looks back into it. The audited trajectories are made
 * here token by token with the scoring function, so that what the record should say is known
 * without an engine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <stdio.h>

#include "common/memory.h"
#include "kernels/random_model.h"
#include "kernels/score.h"
#include "learner/audit.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

static ifl_model *model;
static ifl_workspace *workspace;

static int setup(void **state) {
    (void)state;
    ifl_model_config config;
    assert_true(ifl_random_model_config("tiny-qwen3", &config));
    assert_ok(ifl_model_create(&model, &config, 64, IFL_PROFILE_F32, &err));
    assert_ok(
        ifl_workspace_create(&workspace, model, 64, NULL, ifl_ops_best(IFL_PROFILE_F32), &err));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    ifl_workspace_free(workspace);
    ifl_model_free(model);
    return 0;
}

static ifl_version_store *store_make(int32_t n_max, int64_t bytes_max) {
    ifl_version_store *store;
    assert_ok(ifl_version_store_create(&store, model, n_max, bytes_max, &err));
    return store;
}

static void put(ifl_version_store *store, int64_t version) {
    ifl_weights *w;
    assert_ok(ifl_version_store_spare(store, &w, &err));
    assert_ok(ifl_random_weights(w, (uint64_t)version + 1, &err));
    w->version = version;
    assert_ok(ifl_version_store_put(store, w, &err));
}

static bool has(ifl_version_store *store, int64_t version) {
    const ifl_weights *w = ifl_version_store_get(store, version);
    if (w) assert_int_equal(w->version, version);
    ifl_version_store_release(store, w);
    return w != NULL;
}

static void test_ring_keeps_the_newest(void **state) {
    (void)state;
    ifl_version_store *store = store_make(3, 0);
    assert_null(ifl_version_store_newest(store));
    for (int64_t v = 0; v < 10; v++)
        put(store, v);
    assert_false(has(store, 6));
    assert_true(has(store, 7) && has(store, 8) && has(store, 9));
    assert_false(has(store, 10));
    ifl_version_store_stats s;
    ifl_version_store_stats_get(store, &s);
    assert_int_equal(s.n_versions, 3);
    assert_int_equal(s.oldest, 7);
    assert_int_equal(s.newest, 9);
    assert_int_equal(s.n_evicted, 7);
    assert_int_equal(s.bytes, 3 * ifl_version_bytes(model));
    ifl_version_store_free(store);
}

static void test_byte_bound_never_takes_the_newest(void **state) {
    (void)state;
    ifl_version_store *store = store_make(100, 2 * ifl_version_bytes(model) + 1);
    for (int64_t v = 0; v < 5; v++)
        put(store, v);
    assert_true(has(store, 3) && has(store, 4) && !has(store, 2));
    ifl_version_store_free(store);
    store = store_make(100, 1);
    put(store, 0);
    put(store, 1);
    assert_true(has(store, 1) && !has(store, 0));
    ifl_version_store_free(store);
}

static void test_held_version_outlives_its_eviction(void **state) {
    (void)state;
    ifl_version_store *store = store_make(2, 0);
    put(store, 0);
    const ifl_weights *held = ifl_version_store_get(store, 0);
    const ifl_weights *twice = ifl_version_store_get(store, 0);
    ifl_hash before = ifl_weights_hash(held);
    for (int64_t v = 1; v < 5; v++)
        put(store, v);
    assert_false(has(store, 0)); /* gone for everybody else */
    assert_true(has(store, 3) && has(store, 4));
    assert_true(ifl_hash_equal(before, ifl_weights_hash(held))); /* and not recycled */
    ifl_version_store_stats s;
    ifl_version_store_stats_get(store, &s);
    assert_int_equal(s.n_held, 1);
    assert_int_equal(s.bytes, 3 * ifl_version_bytes(model));
    ifl_version_store_release(store, held);
    ifl_version_store_release(store, twice);
    ifl_version_store_stats_get(store, &s);
    assert_int_equal(s.bytes, 2 * ifl_version_bytes(model));
    const ifl_weights *newest = ifl_version_store_newest(store);
    assert_int_equal(newest->version, 4);
    ifl_version_store_release(store, newest);
    ifl_version_store_release(store, NULL);
    ifl_version_store_free(store);
}

static void test_versions_only_rise(void **state) {
    (void)state;
    ifl_version_store *store = store_make(4, 0);
    put(store, 5);
    ifl_weights *w;
    assert_ok(ifl_version_store_spare(store, &w, &err));
    w->version = 5;
    assert_int_equal(ifl_version_store_put(store, w, &err), IFL_USAGE);
    ifl_weights_free(w); /* still ours */
    ifl_version_store_free(store);
    assert_int_equal(ifl_version_store_create(&store, model, 0, 0, &err), IFL_USAGE);
    assert_int_equal(ifl_version_store_create(&store, model, 1, -1, &err), IFL_USAGE);
}

/* --- Audit
 * ------------------------------------------------------------------------------------------ */

enum { N_PROMPT = 6, N_TOKENS = 30 };

/* A `recompute` trajectory: at token `swap_at` (0: never) the KV is rebuilt under `after`. */
static ifl_trajectory *trajectory_make(ifl_version_store *store, uint64_t serial, int64_t before,
                                       int64_t after, int32_t swap_at) {
    int32_t tokens[N_TOKENS];
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (int32_t)((serial * 31 + (uint64_t)i * 7) % (uint64_t)model->config.vocab_size);
    ifl_trajectory *t;
    assert_ok(ifl_trajectory_create(&t, tokens, N_PROMPT, &err));
    t->task_serial = serial;
    t->group_size = 1;
    t->temperature = 1.0f;
    t->top_p = 1.0f;
    t->profile = model->profile;
    const ifl_weights *w = ifl_version_store_get(store, before);
    for (int32_t i = N_PROMPT; i < N_TOKENS; i++) {
        ifl_kv_event e = {
            .at = i, .from = i - 1, .to = i, .version = w->version, .kind = IFL_KV_BUILT};
        if (i == N_PROMPT) e.from = 0;
        if (i == swap_at) {
            ifl_version_store_release(store, w);
            w = ifl_version_store_get(store, after);
            e = (ifl_kv_event){
                .at = i, .from = 0, .to = i, .version = after, .kind = IFL_KV_REBUILT};
        }
        assert_ok(ifl_trajectory_kv_event(t, e, &err));
        ifl_logprob logprob;
        assert_ok(ifl_score(workspace, w, tokens, i + 1, i, 1.0f, &logprob, &err));
        assert_ok(ifl_trajectory_append(t, tokens[i], logprob.logprob, w->version, &err));
    }
    ifl_version_store_release(store, w);
    t->finish = IFL_FINISH_LENGTH;
    assert_ok(ifl_trajectory_check(t, model->config.vocab_size, &err));
    return t;
}

static ifl_audit *audit_make(ifl_version_store *store, double share, bool flip_bit) {
    const ifl_audit_options options = {.share = share, .seed = 1, .flip_bit = flip_bit};
    ifl_audit *audit;
    assert_ok(ifl_audit_create(&audit, model, store, &options, NULL, ifl_ops_best(IFL_PROFILE_F32),
                               &err));
    return audit;
}

static void test_audit_finds_equal_bits_across_a_swap(void **state) {
    (void)state;
    ifl_version_store *store = store_make(4, 0);
    put(store, 0);
    put(store, 1);
    ifl_audit *audit = audit_make(store, 1.0, false);
    ifl_trajectory *plain = trajectory_make(store, 1, 0, 0, 0);
    ifl_trajectory *swapped = trajectory_make(store, 2, 0, 1, 20);
    assert_ok(ifl_audit_check(audit, plain, &err));
    assert_ok(ifl_audit_check(audit, swapped, &err));
    ifl_audit_counts c = ifl_audit_counts_get(audit);
    assert_int_equal(c.n_trajectories, 2);
    assert_int_equal(c.tokens_checked, 2 * (N_TOKENS - N_PROMPT));
    assert_int_equal(c.tokens_after_swap, N_TOKENS - 20);
    assert_int_equal(c.tokens_differing, 0);
    ifl_trajectory_free(plain);
    ifl_trajectory_free(swapped);
    ifl_audit_free(audit);
    ifl_version_store_free(store);
}

static void test_one_flipped_bit_is_one_differing_token(void **state) {
    (void)state;
    ifl_version_store *store = store_make(4, 0);
    put(store, 0);
    ifl_audit *audit = audit_make(store, 1.0, true);
    ifl_trajectory *t[3];
    for (uint64_t i = 0; i < 3; i++) {
        t[i] = trajectory_make(store, i + 1, 0, 0, 0);
        assert_ok(ifl_audit_check(audit, t[i], &err));
    }
    ifl_audit_counts c = ifl_audit_counts_get(audit);
    assert_int_equal(c.tokens_checked, 3 * (N_TOKENS - N_PROMPT));
    assert_int_equal(c.tokens_differing, 1);
    assert_int_equal(c.first.task_serial, 1);
    assert_int_equal(c.first.position, N_PROMPT);
    assert_true(c.first.recorded != c.first.computed);
    /* What the user reads: the token, both values with bits, and the way on. */
    ifl_error said = {0};
    assert_int_equal(ifl_difference_fail(&c.first, "the audit's replay", "runs/x", 20, &said),
                     IFL_PARITY);
    uint32_t bits[2];
    char text[2][16];
    memcpy(&bits[0], &c.first.recorded, sizeof *bits);
    memcpy(&bits[1], &c.first.computed, sizeof *bits);
    assert_int_equal(bits[0] ^ bits[1], 1);
    for (int i = 0; i < 2; i++)
        snprintf(text[i], sizeof text[i], "bits %08x", bits[i]);
    const char *const wanted[] = {"token 6 of trajectory 1/0 (version 0)",
                                  text[0],
                                  text[1],
                                  "the audit's replay gives",
                                  "versions 0 to 0",
                                  "the checkpoint of step 20 is kept",
                                  "inflight rollouts runs/x --json",
                                  "inflight parity",
                                  "run.resume=true"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!strstr(said.text, wanted[i])) fail_msg("no \"%s\" in: %s", wanted[i], said.text);
    /* In a copy only: an honest audit of the same trajectory finds nothing. */
    ifl_audit *honest = audit_make(store, 1.0, false);
    assert_ok(ifl_audit_check(honest, t[0], &err));
    assert_int_equal(ifl_audit_counts_get(honest).tokens_differing, 0);
    for (int i = 0; i < 3; i++)
        ifl_trajectory_free(t[i]);
    ifl_audit_free(honest);
    ifl_audit_free(audit);
    ifl_version_store_free(store);
}

static void test_wrong_version_in_the_record_is_found(void **state) {
    (void)state;
    ifl_version_store *store = store_make(4, 0);
    put(store, 0);
    put(store, 1);
    ifl_audit *audit = audit_make(store, 1.0, false);
    ifl_trajectory *t = trajectory_make(store, 3, 0, 1, 20);
    for (int32_t r = 0; r < t->n_runs; r++) /* says 0 where 1 sampled */
        t->runs[r].version = 0;
    for (int32_t e = 0; e < t->n_kv_events; e++)
        t->kv_events[e].version = 0;
    assert_ok(ifl_audit_check(audit, t, &err));
    ifl_audit_counts c = ifl_audit_counts_get(audit);
    assert_true(c.tokens_differing > 0 && c.tokens_differing <= N_TOKENS - 20);
    assert_true(c.first.position >= 20);
    ifl_trajectory_free(t);
    ifl_audit_free(audit);
    ifl_version_store_free(store);
}

static void test_gone_versions_and_foreign_profiles_are_counted(void **state) {
    (void)state;
    ifl_version_store *store = store_make(2, 0);
    put(store, 0);
    put(store, 1);
    ifl_audit *audit = audit_make(store, 1.0, false);
    ifl_trajectory *t = trajectory_make(store, 1, 0, 1, 12);
    put(store, 2); /* 0 leaves */
    assert_ok(ifl_audit_check(audit, t, &err));
    ifl_audit_counts c = ifl_audit_counts_get(audit);
    assert_int_equal(c.n_not_checkable, 1);
    assert_int_equal(c.tokens_not_checkable, N_TOKENS - N_PROMPT);
    assert_int_equal(c.tokens_checked, 0);
    /* The KV record alone may name a version that is gone: a prefill before the first token. */
    ifl_trajectory *kept = trajectory_make(store, 2, 1, 1, 0);
    assert_ok(ifl_audit_check(audit, kept, &err));
    assert_int_equal(ifl_audit_counts_get(audit).n_trajectories, 1);
    kept->kv_events[0].version = 0;
    assert_ok(ifl_audit_check(audit, kept, &err));
    assert_int_equal(ifl_audit_counts_get(audit).n_not_checkable, 2);
    ifl_trajectory_free(kept);
    t->profile.low ^= 1;
    assert_ok(ifl_audit_check(audit, t, &err));
    assert_int_equal(ifl_audit_counts_get(audit).n_foreign, 1);
    assert_int_equal(ifl_audit_counts_get(audit).tokens_foreign, N_TOKENS - N_PROMPT);
    assert_int_equal(ifl_audit_counts_get(audit).tokens_differing, 0);
    ifl_version_store_stats s;
    ifl_version_store_stats_get(store, &s);
    assert_int_equal(s.n_held, 0); /* nothing stays held */
    ifl_trajectory_free(t);
    ifl_audit_free(audit);
    ifl_version_store_free(store);
}

static void test_the_audited_share_is_a_keyed_draw(void **state) {
    (void)state;
    ifl_version_store *store = store_make(2, 0);
    ifl_audit *audit = audit_make(store, 0.1, false), *all = audit_make(store, 1.0, false),
              *none = audit_make(store, 0.0, false), *swapped;
    const ifl_audit_options swapped_options = {.share = 0.1, .share_swapped = 1.0, .seed = 1};
    assert_ok(ifl_audit_create(&swapped, model, store, &swapped_options, NULL,
                               ifl_ops_best(IFL_PROFILE_F32), &err));
    int n = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        const ifl_trajectory t = {.task_serial = i / 8, .sample = (int32_t)(i % 8)};
        n += ifl_audit_selects(audit, &t);
        const ifl_trajectory spans = {
            .task_serial = i / 8, .sample = (int32_t)(i % 8), .n_runs = 2};
        assert_int_equal(ifl_audit_selects(audit, &spans), ifl_audit_selects(audit, &t));
        assert_int_equal(ifl_audit_selects(swapped, &t), ifl_audit_selects(audit, &t));
        assert_true(ifl_audit_selects(swapped, &spans));
        assert_int_equal(ifl_audit_selects(audit, &t), ifl_audit_selects(audit, &t));
        assert_true(ifl_audit_selects(all, &t));
        assert_false(ifl_audit_selects(none, &t));
    }
    assert_in_range(n, 850, 1150); /* five standard deviations */
    ifl_audit_free(audit);
    ifl_audit_free(all);
    ifl_audit_free(none);
    ifl_audit_free(swapped);
    const ifl_audit_options bad[] = {{.share = 1.5}, {.share_swapped = -0.5}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(ifl_audit_create(&audit, model, store, &bad[i], NULL,
                                          ifl_ops_best(IFL_PROFILE_F32), &err),
                         IFL_USAGE);
    ifl_version_store_free(store);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ring_keeps_the_newest),
        cmocka_unit_test(test_byte_bound_never_takes_the_newest),
        cmocka_unit_test(test_held_version_outlives_its_eviction),
        cmocka_unit_test(test_versions_only_rise),
        cmocka_unit_test(test_audit_finds_equal_bits_across_a_swap),
        cmocka_unit_test(test_one_flipped_bit_is_one_differing_token),
        cmocka_unit_test(test_wrong_version_in_the_record_is_found),
        cmocka_unit_test(test_gone_versions_and_foreign_profiles_are_counted),
        cmocka_unit_test(test_the_audited_share_is_a_keyed_draw),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* learner/guard.h: which tokens the contract covers in a step's own forward, and that one bit there
 * ends it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "kernels/random_model.h"
#include "kernels/score.h"
#include "learner/step.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

/* --- Cover ------------------------------------------------------------------------------------ */

enum { PROMPT = 5, LENGTH = 40 };

static void event(ifl_trajectory *t, int32_t at, int32_t from, int32_t to, int64_t version,
                  ifl_kv_event_kind kind) {
    assert_ok(ifl_trajectory_kv_event(
        t,
        (ifl_kv_event){.at = at, .from = from, .to = to, .version = version, .kind = (uint8_t)kind},
        &err));
}

static ifl_trajectory *begin(void) {
    static const int32_t prompt[PROMPT] = {1, 2, 3, 4, 5};
    ifl_trajectory *t;
    assert_ok(ifl_trajectory_create(&t, prompt, PROMPT, &err));
    t->group_size = 1;
    t->temperature = t->top_p = 1.0f;
    return t;
}

/* One token under `version`, whose KV the step before it has built. */
static void decode(ifl_trajectory *t, int32_t from, int64_t version) {
    event(t, t->n_tokens, from, t->n_tokens, version, IFL_KV_BUILT);
    assert_ok(ifl_trajectory_append(t, 7, -1.0f, version, &err));
}

static int32_t covered_tokens(const ifl_trajectory *t, int64_t version, uint8_t *covered) {
    int32_t n = 0;
    assert_ok(ifl_trajectory_check(t, 100, &err));
    ifl_guard_cover(t, version, covered, t->n_tokens);
    for (int32_t i = 0; i < t->n_tokens; i++)
        n += covered[i];
    return n;
}

static void test_only_tokens_over_a_cache_of_their_own_version_are_covered(void **state) {
    (void)state;
    uint8_t covered[LENGTH];
    ifl_trajectory *t = begin();
    decode(t, 0, 3);
    for (int i = 0; i < 4; i++)
        decode(t, t->n_tokens - 1, 3);
    assert_int_equal(covered_tokens(t, 3, covered), 5);
    assert_int_equal(covered_tokens(t, 2, covered), 0); /* lag 1: the audit's */
    /* keep: the cache goes on, so nothing after the swap is version 4's alone. */
    event(t, t->n_tokens, 0, t->n_tokens - 1, 4, IFL_KV_KEPT);
    for (int i = 0; i < 3; i++)
        decode(t, t->n_tokens - 1, 4);
    assert_int_equal(covered_tokens(t, 3, covered), 5);
    assert_int_equal(covered_tokens(t, 4, covered), 0);
    /* recompute: rebuilt from the first position, and pure again. */
    event(t, t->n_tokens, 0, t->n_tokens, 5, IFL_KV_REBUILT);
    assert_ok(ifl_trajectory_append(t, 7, -1.0f, 5, &err));
    decode(t, t->n_tokens - 1, 5);
    assert_int_equal(covered_tokens(t, 5, covered), 2);
    assert_true(covered[t->n_tokens - 1] && covered[t->n_tokens - 2] && !covered[t->n_tokens - 3]);
    /* A part of it rebuilt is not enough. */
    event(t, t->n_tokens, 3, t->n_tokens, 6, IFL_KV_REBUILT);
    assert_ok(ifl_trajectory_append(t, 7, -1.0f, 6, &err));
    assert_int_equal(covered_tokens(t, 6, covered), 0);
    assert_int_equal(covered_tokens(t, 5, covered), 2);
    /* A record whose columns disagree about a token is not covered there. */
    for (int32_t r = 0; r < t->n_runs; r++)
        if (t->runs[r].version == 4) t->runs[r].version = 3;
    assert_int_equal(covered_tokens(t, 3, covered), 5);
    assert_int_equal(covered_tokens(t, 4, covered), 0);
    t->runs[t->n_runs - 2].version = 6; /* two tokens that 5 computed */
    assert_int_equal(covered_tokens(t, 5, covered), 0);
    assert_int_equal(covered_tokens(t, 6, covered), 0);
    /* A prefix of the tokens alone, as packing needs them, touches no byte behind it. */
    memset(covered, 9, sizeof covered);
    ifl_guard_cover(t, 3, covered, PROMPT + 2);
    assert_true(covered[PROMPT - 1] == 0 && covered[PROMPT] == 1 && covered[PROMPT + 1] == 1);
    assert_int_equal(covered[PROMPT + 2], 9);
    ifl_trajectory_free(t);
}

/* Against a cache that is played through, position by position. */
static void test_cover_is_what_a_played_through_cache_says(void **state) {
    (void)state;
    uint32_t seed = 1;
    int64_t n_covered = 0, n_not = 0;
    for (int trial = 0; trial < 3000; trial++) {
        ifl_trajectory *t = begin();
        int64_t kv[LENGTH], version = 2;
        bool want[3][LENGTH] = {{false}};
        int32_t n_built = 0;
        while (t->n_tokens < LENGTH - 1) {
            seed = seed * 1664525u + 1013904223u;
            int32_t at = t->n_tokens, from = n_built, to = at;
            int64_t by = version;
            ifl_kv_event_kind kind = IFL_KV_BUILT;
            uint32_t act = seed >> 24;
            if (act < 16 && version < 4) { /* keep */
                version++;
                if (n_built > 0) event(t, at, 0, n_built, version, IFL_KV_KEPT);
            } else if (act < 32 && version < 4) { /* recompute */
                version++;
                kind = IFL_KV_REBUILT;
                from = 0;
            } else if (act < 40) { /* preempted: built again from a position on */
                kind = IFL_KV_REBUILT;
                from = (int32_t)(seed >> 8 & 3) * n_built / 4;
            } else if (act < 80) { /* a chunk that does not reach the end yet */
                to = from + (at - from) / 2;
            } else if (act < 88 && version > 2) { /* the start of it under the version before */
                kind = IFL_KV_REBUILT;
                from = n_built / 4;
                to = n_built / 2;
                by = version - 1;
            }
            if (to == from) continue;
            event(t, at, from, to, by, kind);
            for (int32_t p = from; p < to; p++)
                kv[p] = by;
            n_built = to;
            if (to < at) continue;
            bool pure = true;
            for (int32_t p = 0; p < at; p++)
                pure &= kv[p] == version;
            want[version - 2][at] = pure;
            assert_ok(ifl_trajectory_append(t, 7, -1.0f, version, &err));
        }
        uint8_t covered[LENGTH];
        for (int64_t v = 2; v <= 4; v++) {
            covered_tokens(t, v, covered);
            for (int32_t p = 0; p < t->n_tokens; p++) {
                if (covered[p] != want[v - 2][p])
                    fail_msg("trial %d, version %lld, token %d: covered %d", trial, (long long)v, p,
                             covered[p]);
                n_covered += covered[p];
                n_not += ifl_trajectory_version_at(t, p) == v && !covered[p];
            }
        }
        ifl_trajectory_free(t);
    }
    assert_true(n_covered > 10000 && n_not > 10000); /* both happen */
}

/* --- In a step -------------------------------------------------------------------------------- */

enum { GROUPS = 2, MEMBERS = 3, ANSWER = 9 };

typedef struct bench {
    ifl_config config;
    ifl_model *model;
    ifl_weights *weights;
    ifl_workspace *workspace;
    ifl_optimizer *optimizer;
    ifl_stepper *stepper;
    ifl_group groups[GROUPS];
    ifl_member members[GROUPS][MEMBERS];
} bench;

/* What an actor would hand over: tokens, and their log-probs under version 0. */
static ifl_trajectory *answer_of(bench *b, uint64_t serial, int32_t sample) {
    ifl_trajectory *t = begin();
    int32_t tokens[PROMPT + ANSWER];
    ifl_logprob logprobs[ANSWER];
    memcpy(tokens, t->tokens, PROMPT * sizeof *tokens);
    for (int32_t i = 0; i < ANSWER; i++)
        tokens[PROMPT + i] = (int32_t)(serial * 31 + (uint64_t)(sample * 17 + i * 7)) % 300;
    assert_ok(
        ifl_score(b->workspace, b->weights, tokens, PROMPT + ANSWER, PROMPT, 1.0f, logprobs, &err));
    event(t, PROMPT, 0, PROMPT, 0, IFL_KV_BUILT);
    for (int32_t i = 0; i < ANSWER; i++) {
        if (i > 0) event(t, PROMPT + i, PROMPT + i - 1, PROMPT + i, 0, IFL_KV_BUILT);
        assert_ok(ifl_trajectory_append(t, tokens[PROMPT + i], logprobs[i].logprob, 0, &err));
    }
    t->task_serial = serial;
    t->sample = sample;
    t->group_size = MEMBERS;
    t->profile = b->model->profile;
    t->finish = IFL_FINISH_LENGTH;
    t->reward.status = IFL_REWARD_OK;
    t->reward.reward = (float)(sample == 0);
    assert_ok(ifl_trajectory_check(t, 301, &err));
    return t;
}

static void bench_open(bench *b, ifl_profile numerics, const char *flip) {
    memset(b, 0, sizeof *b);
    ifl_config_defaults(&b->config);
    b->config.rollout.prompts_per_step = GROUPS;
    b->config.rollout.group_size = MEMBERS;
    b->config.rollout.max_new_tokens = ANSWER;
    b->config.data.prompt_tokens_max = PROMPT;
    b->config.learner.pack_tokens = 32; /* several packs */
    snprintf(b->config.parity.flip_bit, sizeof b->config.parity.flip_bit, "%s", flip);
    ifl_model_config shape;
    assert_true(ifl_random_model_config("tiny-llama", &shape));
    assert_ok(ifl_model_create(&b->model, &shape, 64, numerics, &err));
    assert_ok(ifl_weights_create(&b->weights, b->model, &err));
    assert_ok(ifl_random_weights(b->weights, 3, &err));
    b->weights->version = 0;
    const ifl_ops *ops = ifl_ops_best(numerics);
    assert_ok(ifl_workspace_create(&b->workspace, b->model, 64, NULL, ops, &err));
    ifl_optimizer_options o = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    assert_ok(ifl_optimizer_create(&b->optimizer, b->model, &o, NULL, ops, &err));
    ifl_optimizer_start(b->optimizer, b->weights);
    assert_ok(ifl_stepper_create(&b->stepper, &b->config, b->model, b->optimizer, NULL, ops, &err));
    for (int g = 0; g < GROUPS; g++) {
        b->groups[g] = (ifl_group){.task_serial = (uint64_t)g,
                                   .n_members = MEMBERS,
                                   .n_stored = MEMBERS,
                                   .members = b->members[g]};
        for (int i = 0; i < MEMBERS; i++)
            b->members[g][i] =
                (ifl_member){.state = IFL_MEMBER_STORED, .traj = answer_of(b, (uint64_t)g, i)};
    }
}

static void bench_close(bench *b) {
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < MEMBERS; i++)
            ifl_trajectory_free(b->members[g][i].traj);
    ifl_stepper_free(b->stepper);
    ifl_optimizer_free(b->optimizer);
    ifl_workspace_free(b->workspace);
    ifl_weights_free(b->weights);
    ifl_model_free(b->model);
}

static ifl_status step_of(bench *b, int64_t step, ifl_step_report *report) {
    ifl_group *groups[GROUPS] = {&b->groups[0], &b->groups[1]};
    ifl_member_outcome storage[GROUPS][MEMBERS], *outcomes[GROUPS] = {storage[0], storage[1]};
    bool skipped[GROUPS];
    ifl_stepper_begin(b->stepper, step);
    IFL_TRY(ifl_stepper_add(b->stepper, b->weights, groups, GROUPS, outcomes, skipped, &err));
    return ifl_stepper_end(b->stepper, b->weights, report, &err);
}

static void test_a_step_counts_its_covered_tokens_and_no_difference(void **state) {
    (void)state;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        bench b;
        ifl_step_report r;
        bench_open(&b, (ifl_profile)profile, "false");
        assert_ok(step_of(&b, 1, &r));
        assert_int_equal(r.n_tokens_backward, GROUPS * MEMBERS * ANSWER);
        assert_int_equal(r.guard.tokens_checked, r.n_tokens_backward);
        assert_int_equal(r.guard.tokens_differing, 0);
        assert_true(r.loss.exact_share == 1.0 && r.loss.k3 == 0.0);
        assert_int_equal(r.n_foreign, 0);
        /* The same answers under the next version lag by one: nothing to compare. */
        b.weights->version = 1;
        assert_ok(step_of(&b, 2, &r));
        assert_int_equal(r.guard.tokens_checked, 0);
        bench_close(&b);
    }
}

static float *first_answer(bench *b) {
    return &b->members[0][1].traj->logprobs[PROMPT + 2];
}

static void test_one_bit_ends_the_step_before_any_gradient(void **state) {
    (void)state;
    for (int which = 0; which < 2; which++) { /* in the record, and by the hook of e2e tests */
        bench b;
        ifl_step_report r;
        bench_open(&b, IFL_PROFILE_F32, which ? "train" : "false");
        uint32_t bits;
        if (!which) {
            memcpy(&bits, first_answer(&b), sizeof bits);
            bits ^= 1;
            memcpy(first_answer(&b), &bits, sizeof bits);
        }
        assert_int_equal(step_of(&b, 1, &r), IFL_PARITY);
        ifl_guard_counts c = ifl_stepper_guard(b.stepper);
        assert_int_equal(c.tokens_differing, 1);
        assert_int_equal(c.first.task_serial, 0);
        assert_int_equal(c.first.sample, which ? 0 : 1);
        assert_int_equal(c.first.position, which ? PROMPT : PROMPT + 2);
        assert_int_equal(c.first.version, 0);
        assert_int_equal(c.first.kv_max, 0);
        uint32_t recorded, computed;
        memcpy(&recorded, &c.first.recorded, sizeof recorded);
        memcpy(&computed, &c.first.computed, sizeof computed);
        assert_int_equal(recorded ^ computed, 1);
        bench_close(&b);
    }
}

static void test_another_profiles_answers_are_weighted_and_not_compared(void **state) {
    (void)state;
    bench b;
    ifl_step_report r;
    bench_open(&b, IFL_PROFILE_F32, "false");
    b.members[0][1].traj->profile.low ^= 1;
    *first_answer(&b) -= 0.25f; /* what this actor saw was likelier for the learner */
    assert_ok(step_of(&b, 1, &r));
    assert_int_equal(r.n_foreign, 1);
    assert_int_equal(r.n_tokens_foreign, ANSWER);
    assert_int_equal(r.guard.tokens_checked, (GROUPS * MEMBERS - 1) * ANSWER);
    assert_int_equal(r.guard.tokens_differing, 0);
    assert_int_equal(r.loss.foreign.n_tokens, ANSWER);
    double w = __builtin_exp(0.25), mean = (ANSWER - 1 + w) / ANSWER;
    assert_true(__builtin_fabs(r.loss.foreign.weight_mean - mean) < 1e-6);
    assert_true(__builtin_fabs(r.loss.foreign.k3 - (w - 1 - 0.25) / ANSWER) < 1e-6);
    assert_true(r.loss.foreign.ess < 1.0 && r.loss.foreign.ess > 0.9);
    bench_close(&b);
}

int main(void) {
    ifl_log_setup("test", IFL_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_tokens_over_a_cache_of_their_own_version_are_covered),
        cmocka_unit_test(test_cover_is_what_a_played_through_cache_says),
        cmocka_unit_test(test_a_step_counts_its_covered_tokens_and_no_difference),
        cmocka_unit_test(test_one_bit_ends_the_step_before_any_gradient),
        cmocka_unit_test(test_another_profiles_answers_are_weighted_and_not_compared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

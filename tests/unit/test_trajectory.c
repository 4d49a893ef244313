/* common/trajectory.h: columns, spans, runs and KV events; the check that guards the learner; the
 * codec. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "common/trajectory.h"
#include "common/wire_meta.h"

#define VOCAB 100

/* prompt 3, policy 2 under v4, 1 under v5, environment 2, policy 2 under v5. */
static ifl_trajectory *make_trajectory(void) {
    ifl_trajectory *t;
    ifl_error err = {0};
    int32_t prompt[3] = {1, 2, 3}, environment[2] = {50, 51};
    assert_int_equal(ifl_trajectory_create(&t, prompt, 3, &err), IFL_OK);
    t->task_serial = 77;
    t->sample = 2;
    t->group_size = 8;
    t->purpose = IFL_PURPOSE_TRAIN;
    strcpy(t->task_id, "sums/12");
    t->lease_id = UINT64_MAX;
    t->seed = 0xfedcba9876543210u;
    t->temperature = 0.7f;
    t->top_k = 0;
    t->top_p = 1.0f;
    t->max_new_tokens = 16;
    t->profile = (ifl_hash){1, 2};
    t->started_ms = 1700000000000;
    t->finished_ms = 1700000000500;
    strcpy(t->actor, "actor-1");
    ifl_kv_event prefill = {3, 0, 3, 4, IFL_KV_BUILT};
    assert_int_equal(ifl_trajectory_kv_event(t, prefill, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_append(t, 10, -0.5f, 4, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_kv_event(t, (ifl_kv_event){4, 3, 4, 4, IFL_KV_BUILT}, &err),
                     IFL_OK);
    assert_int_equal(ifl_trajectory_append(t, 11, -0.25f, 4, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_kv_event(t, (ifl_kv_event){5, 0, 5, 5, IFL_KV_REBUILT}, &err),
                     IFL_OK);
    assert_int_equal(ifl_trajectory_append(t, 12, -1.5f, 5, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_append_environment(t, environment, 2, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_append(t, 13, -0.125f, 5, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_append(t, 99, 0.0f, 5, &err), IFL_OK);
    t->finish = IFL_FINISH_EOS;
    t->reward =
        (ifl_reward){.status = IFL_REWARD_OK, .reward = 1.0f, .n_components = 1, .run_s = 0.25f};
    strcpy(t->reward.components[0].name, "format");
    t->reward.components[0].value = 0.5f;
    strcpy(t->reward.checker, "numeric/1");
    return t;
}

/* The same with top-k 3: what the sampled tokens were drawn from. */
static ifl_trajectory *make_truncated(void) {
    static const int32_t sets[][3] = {{1, 10, 99}, {0, 2, 11}, {12}};
    ifl_trajectory *t;
    ifl_error err = {0};
    int32_t prompt[3] = {1, 2, 3}, environment[2] = {50, 51};
    assert_int_equal(ifl_trajectory_create(&t, prompt, 3, &err), IFL_OK);
    t->task_serial = 77;
    t->group_size = 8;
    t->top_k = 3;
    assert_int_equal(ifl_trajectory_keep_sets(t, &err), IFL_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(ifl_trajectory_append_kept(t, 10 + i, -0.25f, -0.5f,
                                                    (ifl_kept_set){sets[i], i < 2 ? 3 : 1}, 4,
                                                    &err),
                         IFL_OK);
    assert_int_equal(ifl_trajectory_append_environment(t, environment, 2, &err), IFL_OK);
    assert_int_equal(
        ifl_trajectory_append_kept(t, 13, -1.0f, -1.0f, (ifl_kept_set){NULL, 0}, 5, &err), IFL_OK);
    t->finish = IFL_FINISH_EOS;
    return t;
}

static void test_kept_sets_lie_beside_their_tokens(void **state) {
    (void)state;
    ifl_trajectory *t = make_truncated();
    ifl_error err = {0};
    static const int32_t sizes[9] = {0, 0, 0, 3, 3, 1, 0, 0, 0};
    assert_int_equal(t->n_tokens, 9);
    for (int32_t i = 0; i < 9; i++)
        assert_int_equal(ifl_trajectory_kept(t, i).n, sizes[i]);
    assert_int_equal(ifl_trajectory_kept(t, 4).ids[1], 2);
    assert_int_equal(ifl_trajectory_kept(t, 5).ids[0], 12);
    assert_int_equal(t->n_kept_ids, 7);
    assert_int_equal(ifl_trajectory_check(t, VOCAB, &err), IFL_OK);
    /* The bound of all sets together. */
    int32_t ids[IFL_KEPT_SET_MAX];
    for (int32_t i = 0; i < IFL_KEPT_SET_MAX; i++)
        ids[i] = i;
    ifl_kept_set large = {ids, IFL_KEPT_SET_MAX};
    ifl_status st;
    while ((st = ifl_trajectory_append_kept(t, 5, -1.0f, -1.0f, large, 5, &err)) == IFL_OK)
        ;
    assert_int_equal(st, IFL_LIMIT);
    assert_int_equal(t->n_tokens, 9 + IFL_KEPT_IDS_MAX / IFL_KEPT_SET_MAX - 1);
    assert_int_equal(t->n_kept_ids, IFL_KEPT_IDS_MAX - IFL_KEPT_SET_MAX + 7);
    ifl_trajectory_free(t);
}

static void test_check_refuses_kept_sets_that_do_not_fit(void **state) {
    (void)state;
    for (int mutant = 0;; mutant++) {
        ifl_trajectory *t = make_truncated();
        ifl_error err = {0};
        float *full = t->full_logprobs;
        int32_t *ends = t->kept_ends;
        bool known = true;
        switch (mutant) {
        case 0:
            t->kept_ids[1] = 11; /* without the token */
            break;
        case 1:
            t->kept_ids[2] = VOCAB;
            break;
        case 2:
            t->kept_ids[0] = -1;
            break;
        case 3:
            t->kept_ids[0] = 10; /* twice */
            break;
        case 4:
            t->kept_ids[0] = 98; /* not ascending */
            break;
        case 5:
            t->kept_ends[2] = 1; /* a prompt token's */
            break;
        case 6:
            t->kept_ends[4] = 2; /* goes back */
            break;
        case 7:
            t->kept_ends[4] = 8; /* past the end */
            break;
        case 8:
            t->n_kept_ids = 6;
            break;
        case 9:
            t->n_kept_ids = -1;
            break;
        case 10:
            t->full_logprobs[3] = -0.1f; /* likelier among all than among three */
            break;
        case 11:
            t->full_logprobs[3] = NAN;
            break;
        case 12:
            t->full_logprobs[0] = -0.5f;
            break;
        case 13:
            t->top_k = 0; /* sets without truncation */
            break;
        case 14:
            t->temperature = 0;
            break;
        case 15:
            t->kept_ends = NULL;
            break;
        case 16:
            t->full_logprobs = NULL;
            break;
        case 17:
            t->kept_ends = NULL; /* truncation without sets */
            t->full_logprobs = NULL;
            break;
        default:
            known = false;
        }
        ifl_status st = ifl_trajectory_check(t, VOCAB, &err);
        if (known == (st == IFL_OK)) fail_msg("mutant %d: %s", mutant, err.text);
        t->kept_ends = ends;
        t->full_logprobs = full;
        ifl_trajectory_free(t);
        if (!known) break;
    }
}

static void test_kept_sets_survive_the_codec(void **state) {
    (void)state;
    ifl_trajectory *t = make_truncated(), *u, *plain = make_trajectory();
    ifl_error err = {0};
    uint8_t *meta, *payload;
    size_t n_meta, n_payload, n_plain;
    /* Without truncation: the bytes of format 1, and not one more. */
    assert_int_equal(ifl_trajectory_encode(plain, &meta, &n_meta, &payload, &n_plain, &err),
                     IFL_OK);
    assert_int_equal(n_plain, 10 * 12 + 4 * 12 + 3 * 16 + 2 * 24);
    assert_int_equal(meta[meta[0] >= 0xde ? 4 : 2], 1); /* [0]: format */
    free(meta);
    free(payload);
    ifl_trajectory_free(plain);
    assert_int_equal(ifl_trajectory_encode(t, &meta, &n_meta, &payload, &n_payload, &err), IFL_OK);
    assert_int_equal(meta[meta[0] >= 0xde ? 4 : 2], 2);
    assert_int_equal(ifl_trajectory_decode(&u, meta, n_meta, payload, n_payload, &err), IFL_OK);
    assert_int_equal(u->n_kept_ids, t->n_kept_ids);
    assert_memory_equal(u->kept_ids, t->kept_ids, 7 * 4);
    assert_memory_equal(u->kept_ends, t->kept_ends, 9 * 4);
    assert_memory_equal(u->full_logprobs, t->full_logprobs, 9 * 4);
    assert_int_equal(ifl_trajectory_check(u, VOCAB, &err), IFL_OK);
    const int32_t one[] = {5};
    assert_int_equal(ifl_trajectory_append_kept(u, 5, 0.0f, -1.0f, (ifl_kept_set){one, 1}, 6, &err),
                     IFL_OK);
    assert_int_equal(ifl_trajectory_check(u, VOCAB, &err), IFL_OK);
    ifl_trajectory_free(u);
    /* The numbers of the sets, damaged behind a hash that agrees: no, or a sound trajectory. */
    size_t kept = n_payload - (9 + 7); /* nine counts and seven ids of one byte each */
    uint8_t hash[16];
    ifl_hash was = ifl_hash_bytes(payload, n_payload);
    uint8_t *at = NULL;
    for (int i = 0; i < 8; i++) {
        hash[i] = (uint8_t)(was.low >> (8 * i));
        hash[8 + i] = (uint8_t)(was.high >> (8 * i));
    }
    for (size_t i = 0; i + 16 <= n_meta && !at; i++)
        if (memcmp(meta + i, hash, 16) == 0) at = meta + i;
    assert_non_null(at);
    ifl_rng_key key = {5, 1, IFL_RNG_TEST};
    int n_decoded = 0;
    for (uint64_t i = 0; i < 20000; i++) {
        uint8_t *p = malloc(n_payload);
        memcpy(p, payload, n_payload);
        for (uint32_t e = 0; e < 1 + i % 3; e++)
            p[kept + ifl_rng_below(&key, i, 2 * e, 16)] = (uint8_t)ifl_rng_u64(&key, i, 1 + 2 * e);
        ifl_hash now = ifl_hash_bytes(p, n_payload);
        for (int b = 0; b < 8; b++) {
            at[b] = (uint8_t)(now.low >> (8 * b));
            at[8 + b] = (uint8_t)(now.high >> (8 * b));
        }
        if (ifl_trajectory_decode(&u, meta, n_meta, p, n_payload, &err) == IFL_OK) {
            n_decoded++;
            (void)ifl_trajectory_check(u, VOCAB, &err);
            ifl_trajectory_free(u);
        } else if (!strstr(err.text, "kept set")) {
            fail_msg("%s", err.text);
        }
        free(p);
    }
    assert_in_range(n_decoded, 100, 19000);
    free(meta);
    free(payload);
    ifl_trajectory_free(t);
}

static void test_append_makes_spans_runs_and_merged_kv_events(void **state) {
    (void)state;
    ifl_trajectory *t = make_trajectory();
    assert_int_equal(t->n_tokens, 10);
    assert_int_equal(t->n_spans, 4);
    assert_int_equal(t->spans[1].n_tokens, 3);
    assert_int_equal(t->n_runs, 3); /* the environment parts the two runs of version 5 */
    assert_int_equal(t->n_kv_events, 2);
    assert_int_equal(t->kv_events[0].to, 4); /* prefill and first decode are one event */
    assert_int_equal(ifl_trajectory_n_policy(t), 5);
    assert_int_equal(ifl_trajectory_n_prompt(t), 3);
    static const int64_t versions[10] = {-1, -1, -1, 4, 4, 5, -1, -1, 5, 5};
    for (int32_t i = 0; i < 10; i++)
        assert_int_equal(ifl_trajectory_version_at(t, i), versions[i]);
    assert_int_equal(ifl_trajectory_version_oldest(t), 4);
    ifl_error err = {0};
    assert_int_equal(ifl_trajectory_check(t, VOCAB, &err), IFL_OK);
    ifl_trajectory_free(t);
}

static void test_create_refuses_empty_and_append_refuses_too_long(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_trajectory *t;
    int32_t prompt[1] = {0};
    assert_int_equal(ifl_trajectory_create(&t, prompt, 0, &err), IFL_LIMIT);
    assert_null(t);
    int32_t *many = calloc(IFL_TOKENS_MAX, sizeof *many);
    assert_int_equal(ifl_trajectory_create(&t, many, IFL_TOKENS_MAX, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_append(t, 0, 0.0f, 0, &err), IFL_LIMIT);
    assert_int_equal(ifl_trajectory_append_environment(t, prompt, 1, &err), IFL_LIMIT);
    assert_int_equal(t->n_tokens, IFL_TOKENS_MAX);
    assert_int_equal(t->n_spans, 1);
    ifl_trajectory_free(t);
    free(many);
}

static void test_streams_differ(void **state) {
    (void)state;
    assert_true(ifl_trajectory_stream(1, 0, 0) != ifl_trajectory_stream(0, 1, 0));
    assert_true(ifl_trajectory_stream(1, 0, 0) != ifl_trajectory_stream(1, 0, 1));
    assert_true(ifl_trajectory_stream(5, 7, 1) == ifl_trajectory_stream(5, 7, 1));
}

/* Every mutation of a good trajectory that the learner must never train on. */
static void test_check_refuses_each_broken_invariant(void **state) {
    (void)state;
    for (int mutant = 0;; mutant++) {
        ifl_trajectory *t = make_trajectory();
        ifl_error err = {0};
        bool known = true;
        switch (mutant) {
        case 0:
            t->tokens[4] = VOCAB;
            break;
        case 1:
            t->tokens[0] = -1;
            break;
        case 2:
            t->logprobs[3] = 1e-7f;
            break;
        case 3:
            t->logprobs[3] = NAN;
            break;
        case 4:
            t->logprobs[3] = -INFINITY;
            break;
        case 5:
            t->logprobs[0] = -0.5f;
            break; /* a prompt token wasn't sampled */
        case 6:
            t->loss_weights[6] = 1.0f;
            break; /* an environment token doesn't train */
        case 7:
            t->loss_weights[3] = NAN;
            break;
        case 8:
            t->loss_weights[3] = -1.0f;
            break;
        case 9:
            t->spans[1].begin = 4;
            break;
        case 10:
            t->spans[3].n_tokens = 1;
            break;
        case 11:
            t->spans[3].n_tokens = INT32_MAX;
            break;
        case 12:
            t->spans[1].source = IFL_SOURCE_ENVIRONMENT;
            break;
        case 13:
            t->spans[0].source = IFL_SOURCE_POLICY;
            break;
        case 14:
            t->runs[1].version = 3;
            break; /* versions go back */
        case 15:
            t->runs[0].version = -1;
            break;
        case 16:
            t->runs[0].n_tokens = 3;
            break;
        case 17:
            t->runs[2].begin = 7;
            break;
        case 18:
            t->n_runs = 2;
            break;
        case 19:
            t->kv_events[1].at = 1;
            break;
        case 20:
            t->kv_events[1].to = 11;
            break;
        case 21:
            t->kv_events[0].from = -1;
            break;
        case 22:
            t->kv_events[0].version = -1;
            break;
        case 23:
            t->kv_events[0].kind = 3;
            break;
        case 24:
            t->sample = 8;
            break;
        case 25:
            t->group_size = 0;
            break;
        case 26:
            t->purpose = 2;
            break;
        case 27:
            memset(t->task_id, 'x', sizeof t->task_id);
            break;
        case 28:
            t->temperature = NAN;
            break;
        case 29:
            t->top_p = 0.0f;
            break;
        case 30:
            t->finish = (ifl_finish)9;
            break;
        case 31:
            t->reward.reward = INFINITY;
            break;
        case 32:
            t->reward.status = (ifl_reward_status)17;
            break;
        case 33:
            t->reward.n_components = IFL_COMPONENTS_MAX + 1;
            break;
        case 34:
            t->max_new_tokens = 4;
            break;
        case 35:
            t->n_tokens = 9;
            break;
        case 36:
            t->n_spans = 0;
            break;
        default:
            known = false;
        }
        if (known && ifl_trajectory_check(t, VOCAB, &err) == IFL_OK)
            fail_msg("mutant %d passed", mutant);
        if (known) assert_non_null(strstr(err.text, "task 77"));
        ifl_trajectory_free(t);
        if (!known) break;
    }
}

static void test_encode_decode_gives_the_same_trajectory(void **state) {
    (void)state;
    ifl_trajectory *t = make_trajectory(), *u;
    ifl_error err = {0};
    uint8_t *meta, *payload;
    size_t n_meta, n_payload;
    assert_int_equal(ifl_trajectory_encode(t, &meta, &n_meta, &payload, &n_payload, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_decode(&u, meta, n_meta, payload, n_payload, &err), IFL_OK);
    assert_int_equal(u->n_tokens, t->n_tokens);
    assert_memory_equal(u->tokens, t->tokens, 40);
    assert_memory_equal(u->logprobs, t->logprobs, 40);
    assert_memory_equal(u->loss_weights, t->loss_weights, 40);
    assert_int_equal(u->n_spans, t->n_spans);
    for (int32_t i = 0; i < t->n_spans; i++) {
        assert_int_equal(u->spans[i].source, t->spans[i].source);
        assert_int_equal(u->spans[i].begin, t->spans[i].begin);
        assert_int_equal(u->spans[i].n_tokens, t->spans[i].n_tokens);
    }
    assert_int_equal(u->n_runs, t->n_runs);
    for (int32_t i = 0; i < t->n_runs; i++)
        assert_int_equal(u->runs[i].version, t->runs[i].version);
    assert_int_equal(u->n_kv_events, t->n_kv_events);
    assert_int_equal(u->kv_events[1].kind, IFL_KV_REBUILT);
    assert_int_equal(u->kv_events[1].version, 5);
    assert_true(u->lease_id == UINT64_MAX && u->seed == t->seed && u->task_serial == 77);
    assert_string_equal(u->task_id, "sums/12");
    assert_string_equal(u->reward.components[0].name, "format");
    assert_string_equal(u->reward.checker, "numeric/1");
    assert_string_equal(u->actor, "actor-1");
    assert_true(u->temperature == t->temperature && u->top_p == t->top_p &&
                u->reward.run_s == 0.25f);
    assert_true(ifl_hash_equal(u->profile, t->profile));
    assert_int_equal(u->finished_ms, t->finished_ms);
    assert_int_equal(ifl_trajectory_check(u, VOCAB, &err), IFL_OK);
    /* A decoded trajectory goes on growing like any other (a parked one that is resumed). */
    assert_int_equal(ifl_trajectory_append(u, 5, -1.0f, 6, &err), IFL_OK);
    assert_int_equal(ifl_trajectory_check(u, VOCAB, &err), IFL_OK);

    payload[5] ^= 1; /* one bit of a token */
    ifl_trajectory *v;
    assert_int_equal(ifl_trajectory_decode(&v, meta, n_meta, payload, n_payload, &err), IFL_FORMAT);
    payload[5] ^= 1;
    assert_int_equal(ifl_trajectory_decode(&v, meta, n_meta, payload, n_payload - 1, &err),
                     IFL_FORMAT);
    assert_int_equal(ifl_trajectory_decode(&v, meta, n_meta - 1, payload, n_payload, &err),
                     IFL_FORMAT);
    assert_null(v);
    free(meta);
    free(payload);
    t->reward.reward = NAN;
    assert_int_equal(ifl_trajectory_encode(t, &meta, &n_meta, &payload, &n_payload, &err),
                     IFL_FORMAT);
    assert_null(meta);
    ifl_trajectory_free(t);
    ifl_trajectory_free(u);
}

/* Mutated bytes: decode and check say no or give a sound trajectory, and never crash. */
static void test_fuzzed_trajectories_do_no_harm(void **state) {
    (void)state;
    ifl_trajectory *t = make_trajectory();
    ifl_error err = {0};
    uint8_t *meta, *payload;
    size_t n_meta, n_payload;
    assert_int_equal(ifl_trajectory_encode(t, &meta, &n_meta, &payload, &n_payload, &err), IFL_OK);
    ifl_rng_key key = {20240607, 1, IFL_RNG_TEST};
    int n_decoded = 0, n_sound = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        /* Exactly sized copies: the sanitizer sees a read one byte too far. */
        size_t cut =
            ifl_rng_below(&key, i, 0, 8) ? n_meta : (size_t)ifl_rng_below(&key, i, 1, n_meta);
        uint8_t *m = malloc(cut ? cut : 1), *p = malloc(n_payload);
        memcpy(m, meta, cut);
        memcpy(p, payload, n_payload);
        uint32_t n_edits = (uint32_t)ifl_rng_below(&key, i, 2, 4);
        for (uint32_t e = 0; e < n_edits && cut; e++)
            m[ifl_rng_below(&key, i, 3 + 2 * e, cut)] = (uint8_t)ifl_rng_u64(&key, i, 4 + 2 * e);
        ifl_trajectory *u;
        if (ifl_trajectory_decode(&u, m, cut, p, n_payload, &err) == IFL_OK) {
            n_decoded++;
            /* Past the hash, as a lying peer would go: damage the columns themselves. */
            u->tokens[ifl_rng_below(&key, i, 20, 10)] = (int32_t)ifl_rng_u64(&key, i, 21);
            int32_t *spans = (int32_t *)(void *)u->spans;
            spans[ifl_rng_below(&key, i, 22, 12)] ^= (int32_t)ifl_rng_u64(&key, i, 23) >> (i % 32);
            int32_t *runs = (int32_t *)(void *)u->runs;
            runs[ifl_rng_below(&key, i, 24, 12)] ^= (int32_t)ifl_rng_u64(&key, i, 25) >> (i % 32);
            n_sound += ifl_trajectory_check(u, VOCAB, &err) == IFL_OK;
            ifl_trajectory_free(u);
        }
        free(m);
        free(p);
    }
    assert_true(n_decoded > 1000); /* the fuzzer reaches behind the first gate */
    assert_true(n_sound < n_decoded / 2);
    free(meta);
    free(payload);
    ifl_trajectory_free(t);
}

/* Every status comes back, and who doesn't know the finer verdicts finds an OK with its reward. */
static void test_verdicts(void **state) {
    (void)state;
    for (int status = 0; status < IFL_REWARD_STATUS_COUNT; status++) {
        ifl_error err = {0};
        ifl_trajectory *t = make_trajectory(), *u = NULL;
        ifl_reward_status parsed;
        uint8_t *meta, *payload;
        size_t n_meta, n_payload;
        t->reward.status = (ifl_reward_status)status;
        ifl_reward_set_reason(&t->reward, status % 2 ? "why not" : "");
        t->reward.tests_passed = status;
        t->reward.tests_total = status ? 20 : 0;
        t->reward.config = status ? UINT64_MAX - (uint64_t)status : 0;
        t->reward.tier = (uint8_t)(status % IFL_TIER_COUNT);
        assert_int_equal(ifl_trajectory_encode(t, &meta, &n_meta, &payload, &n_payload, &err),
                         IFL_OK);
        assert_int_equal(ifl_trajectory_decode(&u, meta, n_meta, payload, n_payload, &err), IFL_OK);
        assert_int_equal(u->reward.status, status);
        assert_string_equal(u->reward.reason, t->reward.reason);
        assert_int_equal(u->reward.tests_passed, t->reward.tests_passed);
        assert_int_equal(u->reward.tests_total, t->reward.tests_total);
        assert_true(u->reward.config == t->reward.config && u->reward.tier == t->reward.tier);
        assert_true(ifl_reward_status_parse(ifl_reward_status_name(u->reward.status), &parsed));
        assert_int_equal(parsed, status);
        int32_t coarse = -1;
        ifl_meta_reader r;
        assert_int_equal(ifl_meta_open(&r, "TRAJ", meta, n_meta, &err), IFL_OK);
        ifl_meta_get_i32(&r, 17, "status", 0, 5, &coarse);
        assert_int_equal(ifl_meta_close(&r), IFL_OK);
        assert_int_equal(coarse, ifl_reward_is_verdict(u->reward.status) ? 0 : status);
        free(meta);
        free(payload);
        ifl_trajectory_free(t);
        ifl_trajectory_free(u);
    }
}

/* `meta` with `key` set to an integer, at its place. Owned by the caller. */
static uint8_t *meta_with(const uint8_t *meta, size_t n_meta, uint64_t key, int64_t value,
                          size_t *n_out) {
    msgpack_unpacked whole;
    msgpack_sbuffer out;
    msgpack_packer packer;
    size_t at = 0;
    bool done = false;
    msgpack_unpacked_init(&whole);
    assert_int_equal(msgpack_unpack_next(&whole, (const char *)meta, n_meta, &at),
                     MSGPACK_UNPACK_SUCCESS);
    const msgpack_object_map *map = &whole.data.via.map;
    msgpack_sbuffer_init(&out);
    msgpack_packer_init(&packer, &out, msgpack_sbuffer_write);
    bool has = false;
    for (uint32_t i = 0; i < map->size; i++)
        has |= map->ptr[i].key.via.u64 == key;
    msgpack_pack_map(&packer, map->size + !has);
    for (uint32_t i = 0; i <= map->size; i++) {
        uint64_t here = i < map->size ? map->ptr[i].key.via.u64 : UINT64_MAX;
        if (!done && here >= key) {
            msgpack_pack_uint64(&packer, key);
            msgpack_pack_int64(&packer, value);
            done = true;
        }
        if (i == map->size || here == key) continue;
        msgpack_pack_object(&packer, map->ptr[i].key);
        msgpack_pack_object(&packer, map->ptr[i].val);
    }
    msgpack_unpacked_destroy(&whole);
    uint8_t *copy = malloc(out.size);
    assert_non_null(copy);
    memcpy(copy, out.data, out.size);
    *n_out = out.size;
    msgpack_sbuffer_destroy(&out);
    return copy;
}

/* WIRE.md, section 4: the keys 31 to 36 and what they may say. */
static void test_what_a_reward_says_has_ranges(void **state) {
    (void)state;
    static const struct {
        ifl_reward_status status;
        uint64_t key;
        int64_t value;
        bool fine;
    } cases[] = {
        {IFL_REWARD_OK, 31, 6, true},   {IFL_REWARD_OK, 31, 14, true},
        {IFL_REWARD_OK, 31, 5, false},  {IFL_REWARD_OK, 31, 15, false},
        {IFL_REWARD_OK, 31, 0, false},  {IFL_REWARD_UNDECIDED, 31, 6, false},
        {IFL_REWARD_OK, 17, 5, true},   {IFL_REWARD_OK, 17, 6, false},
        {IFL_REWARD_OK, 32, 1, true},   {IFL_REWARD_OK, 32, -1, false},
        {IFL_REWARD_OK, 33, 3, true},   {IFL_REWARD_OK, 33, 4, false},
        {IFL_REWARD_OK, 33, -1, false}, {IFL_REWARD_OK, 34, 2, true},
        {IFL_REWARD_OK, 34, 1, false},  {IFL_REWARD_OK, 34, 0, false},
        {IFL_REWARD_OK, 35, 4, true},   {IFL_REWARD_OK, 35, 5, false},
        {IFL_REWARD_OK, 36, 1, false}, /* no text */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ifl_error err = {0};
        ifl_trajectory *t = make_trajectory(), *u = NULL;
        uint8_t *meta, *payload;
        size_t n_meta, n_payload, n_other;
        t->reward.status = cases[i].status;
        t->reward.tests_passed = 2;
        t->reward.tests_total = 3;
        assert_int_equal(ifl_trajectory_encode(t, &meta, &n_meta, &payload, &n_payload, &err),
                         IFL_OK);
        uint8_t *other = meta_with(meta, n_meta, cases[i].key, cases[i].value, &n_other);
        ifl_status st = ifl_trajectory_decode(&u, other, n_other, payload, n_payload, &err);
        if ((st == IFL_OK) != cases[i].fine || (!cases[i].fine && st != IFL_FORMAT))
            fail_msg("key %d with %d: status %d, %s", (int)cases[i].key, (int)cases[i].value,
                     (int)st, err.text);
        free(other);
        free(meta);
        free(payload);
        ifl_trajectory_free(t);
        ifl_trajectory_free(u);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_makes_spans_runs_and_merged_kv_events),
        cmocka_unit_test(test_create_refuses_empty_and_append_refuses_too_long),
        cmocka_unit_test(test_streams_differ),
        cmocka_unit_test(test_check_refuses_each_broken_invariant),
        cmocka_unit_test(test_encode_decode_gives_the_same_trajectory),
        cmocka_unit_test(test_fuzzed_trajectories_do_no_harm),
        cmocka_unit_test(test_kept_sets_lie_beside_their_tokens),
        cmocka_unit_test(test_check_refuses_kept_sets_that_do_not_fit),
        cmocka_unit_test(test_kept_sets_survive_the_codec),
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_what_a_reward_says_has_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

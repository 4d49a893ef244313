/* What the parity suites share: tiny random models, and a sequence's log-probs on any path. */
#ifndef IFL_TESTS_PARITY_TESTING_H
#define IFL_TESTS_PARITY_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/memory.h"
#include "kernels/model.h"
#include "kernels/random_model.h"
#include "tests/testing.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

enum { TESTING_TOKENS = 1200 };

typedef struct subject {
    ifl_model *model;
    ifl_weights *weights;
    int32_t tokens[TESTING_TOKENS]; /* of the sequence under test */
    int32_t iota[TESTING_TOKENS];
    float ones[TESTING_TOKENS];
} subject;

/* Tokens begin at `first_token`, so that lower ids stay free for a test's own rows. */
static inline void subject_open_at(subject *s, const char *family, ifl_profile profile,
                                   int32_t first_token) {
    ifl_model_config config;
    assert_true(ifl_random_model_config(family, &config));
    assert_ok(ifl_model_create(&s->model, &config, 0, profile, &err));
    assert_ok(ifl_weights_create(&s->weights, s->model, &err));
    assert_ok(ifl_random_weights(s->weights, 7, &err));
    s->weights->version = 0;
    ifl_rng_key key = {3, 0, IFL_RNG_TEST};
    for (int32_t i = 0; i < TESTING_TOKENS; i++) {
        s->tokens[i] =
            first_token + (int32_t)ifl_rng_below(&key, (uint64_t)i, 0,
                                                 (uint64_t)(config.vocab_size - first_token));
        s->iota[i] = i;
        s->ones[i] = 1.0f;
    }
}

static inline void subject_open(subject *s, const char *family, ifl_profile profile) {
    subject_open_at(s, family, profile, 0);
}

static inline void subject_close(subject *s) {
    ifl_weights_free(s->weights);
    ifl_model_free(s->model);
}

/* Rows [begin, end) of the sequence; out[i] is the log-prob of tokens[i + 1], for i from `from` on.
 */
static inline void subject_rows(const subject *s, ifl_workspace *ws, ifl_kv_store *kv,
                                const int32_t *pages, int32_t begin, int32_t end, int32_t from,
                                ifl_logprob *out) {
    const float *hidden;
    int32_t n = end - begin, first = from > begin ? from - begin : 0;
    if (first > n) first = n;
    ifl_batch_seq seq = {0, n, begin, pages};
    ifl_batch batch = {n, 1, n - first, s->tokens + begin, &seq, s->iota + first};
    assert_ok(ifl_forward(ws, s->weights, kv, &batch, &hidden, &err));
    assert_ok(ifl_head_logprobs(ws, s->weights, hidden, n - first, s->tokens + begin + first + 1,
                                s->ones, out + begin + first, &err));
}

/* log-probs of tokens 1 .. n, token by token, one thread, on `ops`. */
static inline void subject_reference(const subject *s, const ifl_ops *ops, int32_t n,
                                     ifl_logprob *out) {
    ifl_workspace *ws;
    ifl_kv_store *kv;
    assert_ok(ifl_workspace_create(&ws, s->model, 1, NULL, ops, &err));
    assert_ok(ifl_kv_store_create(&kv, s->model, n, 1, &err));
    for (int32_t i = 0; i < n; i++)
        subject_rows(s, ws, kv, s->iota, i, i + 1, 0, out);
    ifl_kv_store_free(kv);
    ifl_workspace_free(ws);
}

/* The log-prob and the log-sum-exp: what a sampler and a loss read. */
static inline bool same_logprob(const ifl_logprob *a, const ifl_logprob *b) {
    return memcmp(&a->logprob, &b->logprob, sizeof a->logprob) == 0 &&
           memcmp(&a->lse, &b->lse, sizeof a->lse) == 0;
}

#endif

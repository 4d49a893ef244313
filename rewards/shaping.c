/* Shaping terms: how long a completion is and how much it repeats itself. They judge no answer, so
 * they are parts of a composition, never a reward by themselves. Lengths are in pieces (text.h),
 * which are about as many as tokens: a request holds no token ids. A completion that the token
 * limit cut is as long as can be, whatever it holds. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/json_util.h"
#include "rewards/text.h"

#define LENGTH_MAX (1 << 20)
#define NGRAM_MAX 64

static ifl_status shaped(ifl_reward *out, double value) {
    out->status = IFL_REWARD_OK;
    out->reward = (float)value;
    return IFL_OK;
}

static size_t length_of(const ifl_reward_request *request) {
    return ifl_slice_pieces((ifl_slice){request->completion, request->n_completion});
}

/* Reads the options with `read`, then `judge`s: what the three have in common. */
static ifl_status shape(const ifl_reward_request *request, ifl_reward *out, ifl_error *err,
                        ifl_status (*judge)(const ifl_reward_request *, const json_t *,
                                            ifl_reward *, ifl_error *)) {
    json_t *meta = NULL;
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    ifl_status st = judge(request, meta, out, err);
    if (st == IFL_FORMAT || st == IFL_LIMIT) st = ifl_verdict_bad_option(out);
    json_decref(meta);
    return st;
}

/* DAPO (arXiv 2503.14476, eq. 13): 0 up to max - buffer, then linear, -1 from max on. */
static ifl_status overlong_judge(const ifl_reward_request *request, const json_t *meta,
                                 ifl_reward *out, ifl_error *err) {
    int64_t max = 0, buffer = 0;
    if (meta) {
        IFL_TRY(ifl_json_int(meta, "max", 1, LENGTH_MAX, &max, err));
        IFL_TRY(ifl_json_int(meta, "buffer", 0, LENGTH_MAX, &buffer, err));
    }
    if (max == 0 || buffer > max)
        return ifl_fail(err, IFL_FORMAT,
                        "meta: wanted max (pieces) and buffer <= max, got max %lld, buffer %lld",
                        (long long)max, (long long)buffer);
    double over = (double)length_of(request) - (double)(max - buffer);
    if (request->finish == IFL_FINISH_LENGTH || over >= (double)buffer)
        return shaped(out, over <= 0 && request->finish != IFL_FINISH_LENGTH ? 0.0 : -1.0);
    return shaped(out, over <= 0 ? 0.0 : -over / (double)buffer);
}

static ifl_status overlong_check(const ifl_reward_request *request, ifl_reward *out,
                                 ifl_error *err) {
    return shape(request, out, err, overlong_judge);
}

/* The cosine of "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373, eq. 1): from
 * `short` at length 0 to `long` at max and beyond. Right and wrong answers take it with ends of
 * their own (1 to 0.5, and -1 to -0.5, say): which holds is the composition's to know. */
static ifl_status length_judge(const ifl_reward_request *request, const json_t *meta,
                               ifl_reward *out, ifl_error *err) {
    int64_t max = 0;
    double at_0 = 1.0, at_max = 0.0;
    if (meta) {
        IFL_TRY(ifl_json_int(meta, "max", 1, LENGTH_MAX, &max, err));
        IFL_TRY(ifl_json_double(meta, "short", -1.0, 1.0, &at_0, err));
        IFL_TRY(ifl_json_double(meta, "long", -1.0, 1.0, &at_max, err));
    }
    if (max == 0 || at_0 * at_max < 0)
        return ifl_fail(err, IFL_FORMAT,
                        "meta: wanted max (pieces), short and long of one sign, got max %lld, "
                        "short %g, long %g",
                        (long long)max, at_0, at_max);
    double share = fmin(1.0, (double)length_of(request) / (double)max);
    if (request->finish == IFL_FINISH_LENGTH) share = 1.0;
    return shaped(out, at_max + (at_0 - at_max) * (1.0 + cos(share * acos(-1.0))) / 2.0);
}

static ifl_status length_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    return shape(request, out, err, length_judge);
}

static int compare_u64(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Hashes of the pieces without case or the space before them; the pieces of white space are left
 * out, so that spread words are the same words. Owned. */
static ifl_status pieces_hash(ifl_slice s, uint64_t **out, size_t *n, ifl_error *err) {
    *n = 0;
    *out = malloc((ifl_slice_pieces(s) + 1) * sizeof **out);
    if (!*out) return ifl_fail(err, IFL_NOMEM, "no memory for the pieces of %zu bytes", s.n);
    for (ifl_slice piece; ifl_slice_piece(&s, &piece);) {
        char small[16];
        piece = ifl_slice_trim(piece);
        if (piece.n == 0) continue;
        for (size_t i = 0; i < piece.n; i++)
            small[i] = piece.text[i] >= 'A' && piece.text[i] <= 'Z' ? (char)(piece.text[i] | 32)
                                                                    : piece.text[i];
        (*out)[(*n)++] = XXH3_64bits(small, piece.n);
    }
    return IFL_OK;
}

/* -weight * the share of n-grams that have been there before, as "Demystifying Long CoT" and
 * open-r1 count them: 0 where all differ. */
static ifl_status repetition_judge(const ifl_reward_request *request, const json_t *meta,
                                   ifl_reward *out, ifl_error *err) {
    int64_t n_gram = 3;
    double weight = 1.0;
    if (meta) {
        IFL_TRY(ifl_json_int(meta, "ngram", 1, NGRAM_MAX, &n_gram, err));
        IFL_TRY(ifl_json_double(meta, "weight", 0.0, 1.0, &weight, err));
    }
    uint64_t *hashes = NULL;
    size_t n = 0, n_different = 0;
    IFL_TRY(pieces_hash((ifl_slice){request->completion, request->n_completion}, &hashes, &n, err));
    size_t n_grams = n >= (size_t)n_gram ? n - (size_t)n_gram + 1 : 0;
    for (size_t i = 0; i < n_grams; i++)
        hashes[i] = XXH3_64bits(hashes + i, (size_t)n_gram * sizeof *hashes);
    if (n_grams) qsort(hashes, n_grams, sizeof *hashes, compare_u64);
    for (size_t i = 0; i < n_grams; i++)
        n_different += i == 0 || hashes[i] != hashes[i - 1];
    free(hashes);
    if (n_grams == 0) return shaped(out, 0.0);
    return shaped(out, -weight * (1.0 - (double)n_different / (double)n_grams));
}

static ifl_status repetition_check(const ifl_reward_request *request, ifl_reward *out,
                                   ifl_error *err) {
    return shape(request, out, err, repetition_judge);
}

static const char *const overlong_names[] = {"max", "buffer", NULL};

const ifl_checker ifl_checker_overlong = {
    .name = "overlong",
    .version = "1",
    .help =
        "shaping, 0 .. -1: meta \"max\" and \"buffer\", in pieces of text (about tokens): linear "
        "in the buffer before max; no answer",
    .check = overlong_check,
    .flags = IFL_CHECKER_PURE,
    .options = overlong_names,
};

static const char *const length_names[] = {"max", "short", "long", NULL};

const ifl_checker ifl_checker_length = {
    .name = "length",
    .version = "1",
    .help =
        "shaping: meta \"max\" in pieces of text (about tokens), \"short\" (1) and \"long\" (0): "
        "a cosine from short at length 0 to long at max; no answer",
    .check = length_check,
    .flags = IFL_CHECKER_PURE,
    .options = length_names,
};

static const char *const repetition_names[] = {"ngram", "weight", NULL};

const ifl_checker ifl_checker_repetition = {
    .name = "repetition",
    .version = "1",
    .help = "shaping, 0 .. -weight: the share of repeated n-grams of words; meta \"ngram\" (3), "
            "\"weight\" (1); no answer",
    .check = repetition_check,
    .flags = IFL_CHECKER_PURE,
    .options = repetition_names,
};

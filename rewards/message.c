#include "rewards/message.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct reader {
    const uint8_t *p;
    size_t n;
    bool failed;
} reader;

static uint8_t *put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        *p++ = (uint8_t)(v >> (8 * i));
    return p;
}

static uint8_t *put_u64(uint8_t *p, uint64_t v) {
    return put_u32(put_u32(p, (uint32_t)v), (uint32_t)(v >> 32));
}

static uint8_t *put_f32(uint8_t *p, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return put_u32(p, bits);
}

/* NUL-terminated on the wire as well, so that the other end needs no copy. */
static uint8_t *put_text(uint8_t *p, const char *text, size_t n) {
    p = put_u32(p, (uint32_t)n);
    if (n) memcpy(p, text, n);
    p[n] = 0;
    return p + n + 1;
}

static uint32_t get_u32(reader *r) {
    if (r->n < 4) {
        r->failed = true;
        return 0;
    }
    uint32_t v = ifl_reward_frame_length(r->p);
    r->p += 4;
    r->n -= 4;
    return v;
}

static uint64_t get_u64(reader *r) {
    uint64_t low = get_u32(r);
    return low | (uint64_t)get_u32(r) << 32;
}

static float get_f32(reader *r) {
    uint32_t bits = get_u32(r);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static const char *get_text(reader *r, size_t n_max, size_t *n_out) {
    uint32_t n = get_u32(r);
    if (r->failed || n > n_max || r->n < (size_t)n + 1 || r->p[n] != 0) {
        r->failed = true;
        *n_out = 0;
        return "";
    }
    const char *text = (const char *)r->p;
    r->p += n + 1;
    r->n -= n + 1;
    *n_out = n;
    return text;
}

uint32_t ifl_reward_frame_length(const uint8_t head[4]) {
    return (uint32_t)head[0] | (uint32_t)head[1] << 8 | (uint32_t)head[2] << 16 |
           (uint32_t)head[3] << 24;
}

ifl_status ifl_reward_request_encode(const ifl_reward_request *request, uint8_t **frame,
                                     size_t *n_frame, ifl_error *err) {
    const char *texts[5] = {request->checker, request->prompt, request->completion, request->answer,
                            request->meta};
    static const char *const names[5] = {"checker name", "prompt", "completion", "answer", "meta"};
    size_t sizes[5], n = 4 + 8 + 4 + 4;
    *frame = NULL;
    for (int i = 0; i < 5; i++) {
        if (!texts[i]) texts[i] = "";
        sizes[i] = i == 2 ? request->n_completion : strlen(texts[i]);
        size_t limit = i == 0 ? 64 : i == 4 ? 65536 : IFL_ANSWER_BYTES_MAX;
        if (sizes[i] > limit)
            return ifl_fail(err, IFL_LIMIT, "the %s has %zu bytes, a checker takes at most %zu",
                            names[i], sizes[i], limit);
        n += 4 + sizes[i] + 1;
    }
    IFL_ASSERT(n <= IFL_REWARD_FRAME_MAX);
    uint8_t *p = malloc(n);
    if (!p) return ifl_fail(err, IFL_NOMEM, "no memory for a request of %zu bytes", n);
    *frame = p;
    *n_frame = n;
    p = put_u32(p, (uint32_t)(n - 4));
    p = put_u64(p, request->id);
    p = put_u32(p, (uint32_t)request->timeout_ms);
    IFL_ASSERT(p == *frame + IFL_REWARD_REQUEST_ASKED);
    p = put_u32(p, (uint32_t)request->finish);
    for (int i = 0; i < 5; i++)
        p = put_text(p, texts[i], sizes[i]);
    return IFL_OK;
}

ifl_status ifl_reward_request_decode(const uint8_t *body, size_t n_body, ifl_reward_request *out,
                                     ifl_error *err) {
    reader r = {body, n_body, false};
    size_t n;
    out->id = get_u64(&r);
    uint32_t timeout_ms = get_u32(&r);
    uint32_t finish = get_u32(&r);
    out->checker = get_text(&r, 64, &n);
    out->prompt = get_text(&r, IFL_ANSWER_BYTES_MAX, &n);
    out->completion = get_text(&r, IFL_ANSWER_BYTES_MAX, &out->n_completion);
    out->answer = get_text(&r, IFL_ANSWER_BYTES_MAX, &n);
    out->meta = get_text(&r, 65536, &n);
    out->finish = (ifl_finish)finish;
    out->timeout_ms = (int32_t)timeout_ms;
    if (r.failed || r.n != 0 || finish > IFL_FINISH_ABORTED ||
        timeout_ms > IFL_REWARD_TIMEOUT_MS_MAX)
        return ifl_fail(err, IFL_FORMAT, "reward request of %zu bytes is malformed", n_body);
    return IFL_OK;
}

ifl_status ifl_reward_setup_encode(int32_t timeout_ms, ifl_sandbox_tier require,
                                   const char *checkers, uint8_t **frame, size_t *n_frame,
                                   ifl_error *err) {
    size_t n_text = checkers ? strlen(checkers) : 0, n = 4 + 4 + 4 + 4 + n_text + 1;
    *frame = NULL;
    if (n > IFL_REWARD_FRAME_MAX)
        return ifl_fail(err, IFL_LIMIT, "reward.checkers has %zu bytes", n_text);
    uint8_t *p = malloc(n);
    if (!p) return ifl_fail(err, IFL_NOMEM, "no memory for reward.checkers");
    *frame = p;
    *n_frame = n;
    p = put_u32(p, (uint32_t)(n - 4));
    p = put_u32(p, (uint32_t)timeout_ms);
    p = put_u32(p, (uint32_t)require);
    put_text(p, checkers, n_text);
    return IFL_OK;
}

ifl_status ifl_reward_setup_decode(const uint8_t *body, size_t n_body, int32_t *timeout_ms,
                                   ifl_sandbox_tier *require, const char **checkers,
                                   ifl_error *err) {
    reader r = {body, n_body, false};
    size_t n;
    uint32_t ms = get_u32(&r), tier = get_u32(&r);
    *checkers = get_text(&r, IFL_REWARD_FRAME_MAX, &n);
    *timeout_ms = (int32_t)ms;
    *require = (ifl_sandbox_tier)tier;
    if (r.failed || r.n != 0 || ms < 1 || ms > IFL_REWARD_TIMEOUT_MS_MAX || tier >= IFL_TIER_COUNT)
        return ifl_fail(err, IFL_FORMAT, "a worker's setup of %zu bytes is malformed", n_body);
    return IFL_OK;
}

size_t ifl_reward_reply_encode(uint64_t id, const ifl_reward *reward, const char *reason,
                               uint32_t flags, uint8_t *frame) {
    uint8_t *p = put_u64(frame + 4, id);
    p = put_u32(p, (uint32_t)reward->status);
    p = put_f32(p, reward->reward);
    p = put_u32(p, (uint32_t)reward->n_components);
    for (int i = 0; i < reward->n_components; i++) {
        p = put_text(p, reward->components[i].name,
                     strnlen(reward->components[i].name, sizeof reward->components[i].name - 1));
        p = put_f32(p, reward->components[i].value);
    }
    p = put_u64(p, reward->config);
    p = put_u32(p, (uint32_t)reward->tests_passed);
    p = put_u32(p, (uint32_t)reward->tests_total);
    p = put_u32(p, reward->tier);
    p = put_text(p, reward->checker, strnlen(reward->checker, sizeof reward->checker - 1));
    p = put_text(p, reason, strnlen(reason, IFL_REWARD_REASON_MAX - 1));
    p = put_u32(p, flags);
    size_t n = (size_t)(p - frame);
    IFL_ASSERT(n <= IFL_REWARD_REPLY_MAX);
    put_u32(frame, (uint32_t)(n - 4));
    return n;
}

ifl_status ifl_reward_reply_decode(const uint8_t *body, size_t n_body, uint64_t *id,
                                   ifl_reward *out, char *reason, uint32_t *flags, ifl_error *err) {
    reader r = {body, n_body, false};
    size_t n;
    memset(out, 0, sizeof *out);
    *id = get_u64(&r);
    uint32_t status = get_u32(&r);
    out->reward = get_f32(&r);
    uint32_t n_components = get_u32(&r);
    if (r.failed || status >= IFL_REWARD_STATUS_COUNT || status == IFL_REWARD_NONE)
        return ifl_fail(err, IFL_FORMAT, "a reply of %zu bytes with status %u", n_body, status);
    if (!(out->reward >= -1.0f && out->reward <= 1.0f))
        return ifl_fail(err, IFL_FORMAT, "a reward of %g, wanted -1 .. 1", (double)out->reward);
    if (n_components > IFL_COMPONENTS_MAX)
        return ifl_fail(err, IFL_FORMAT, "%u components, limit %d", n_components,
                        IFL_COMPONENTS_MAX);
    out->status = (ifl_reward_status)status;
    out->n_components = (int32_t)n_components;
    for (uint32_t i = 0; i < n_components; i++) {
        const char *name = get_text(&r, sizeof out->components[i].name - 1, &n);
        memcpy(out->components[i].name, name, n);
        out->components[i].value = get_f32(&r);
        if (!isfinite(out->components[i].value)) r.failed = true;
    }
    out->config = get_u64(&r);
    uint32_t passed = get_u32(&r), total = get_u32(&r), tier = get_u32(&r);
    if (total > INT32_MAX || passed > total || tier >= IFL_TIER_COUNT) r.failed = true;
    out->tests_passed = (int32_t)passed;
    out->tests_total = (int32_t)total;
    out->tier = (uint8_t)tier;
    const char *text = get_text(&r, sizeof out->checker - 1, &n);
    memcpy(out->checker, text, n);
    text = get_text(&r, IFL_REWARD_REASON_MAX - 1, &n);
    memcpy(reason, text, n);
    reason[n] = '\0';
    *flags = get_u32(&r);
    if (r.failed || r.n != 0)
        return ifl_fail(err, IFL_FORMAT, "a malformed reply of %zu bytes", n_body);
    return IFL_OK;
}

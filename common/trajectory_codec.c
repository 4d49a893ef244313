/* The serialised trajectory. Meta: integer keys below (also in common/WIRE.md). Payload,
 * little-endian, without padding, in this order: tokens i32[n] | log-probs f32[n] | loss weights
 * f32[n] | spans {begin i32, n i32, source u32}[n_spans] | runs {begin i32, n i32, version
 * i64}[n_runs] | KV events {at i32, from i32, to i32, kind u32, version i64}[n_kv_events]. Lists
 * lie in the payload because meta is bounded to 4,096 elements and a long trajectory has more
 * events.
 *
 * Format 2, of truncated sampling alone, goes on with: full log-probs f32[n] | per token the number
 * of its kept set's ids, then the ids: the first, then each one's distance to the one before
 * less 1. These are LEB128 numbers of at most 5 bytes, the shortest form only. An old reader
 * refuses the format; without truncation the bytes are those of format 1. */
#include <stdlib.h>
#include <string.h>

#include "common/trajectory.h"
#include "common/wire_meta.h"

#define CODEC_FORMAT_PLAIN 1
#define CODEC_FORMAT_KEPT 2
#define CODEC_PAYLOAD_MAX (16 * 1024 * 1024)
#define CODEC_SPAN_BYTES 12
#define CODEC_RUN_BYTES 16
#define CODEC_KV_BYTES 24

enum {
    KEY_FORMAT = 0,
    KEY_TASK_SERIAL = 1,
    KEY_SAMPLE = 2,
    KEY_PURPOSE = 3,
    KEY_GROUP_SIZE = 4,
    KEY_TASK_ID = 5,
    KEY_LEASE_ID = 6,
    KEY_N_TOKENS = 7,
    KEY_N_SPANS = 8,
    KEY_N_RUNS = 9,
    KEY_N_KV_EVENTS = 10,
    KEY_SEED = 11,
    KEY_TEMPERATURE = 12,
    KEY_TOP_K = 13,
    KEY_TOP_P = 14,
    KEY_MAX_NEW_TOKENS = 15,
    KEY_FINISH = 16,
    KEY_REWARD_STATUS = 17,
    KEY_REWARD = 18,
    KEY_COMPONENT_NAMES = 19,
    KEY_COMPONENT_VALUES = 20,
    KEY_QUEUED_S = 21,
    KEY_RUN_S = 22,
    KEY_CHECKER = 23,
    KEY_PROFILE = 24,
    KEY_STARTED_MS = 25,
    KEY_FINISHED_MS = 26,
    KEY_ACTOR = 27,
    KEY_PAYLOAD_HASH = 28,
    KEY_N_KEPT_IDS = 29,   /* format 2, as the next */
    KEY_N_KEPT_BYTES = 30, /* of the numbers behind the full log-probs */
    KEY_VERDICT = 31,      /* these where they say something; else absent */
    KEY_CHECKER_CONFIG = 32,
    KEY_TESTS_PASSED = 33,
    KEY_TESTS_TOTAL = 34,
    KEY_TIER = 35,
    KEY_REASON = 36,
};

static uint8_t *put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
    return p + 4;
}

static uint8_t *put_u64(uint8_t *p, uint64_t v) {
    return put_u32(put_u32(p, (uint32_t)v), (uint32_t)(v >> 32));
}

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static int64_t get_i64(const uint8_t *p) {
    return (int64_t)((uint64_t)get_u32(p) | (uint64_t)get_u32(p + 4) << 32);
}

static uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Counts are within their limits, so nothing here overflows. */
static size_t codec_payload_bytes(int32_t n_tokens, int32_t n_spans, int32_t n_runs,
                                  int32_t n_kv_events) {
    return (size_t)n_tokens * 12 + (size_t)n_spans * CODEC_SPAN_BYTES +
           (size_t)n_runs * CODEC_RUN_BYTES + (size_t)n_kv_events * CODEC_KV_BYTES;
}

/* --- Kept sets
 * --------------------------------------------------------------------------------------- */

#define LEB_BYTES_MAX 5

static size_t leb_bytes(uint32_t v) {
    size_t n = 1;
    for (; v >= 0x80; v >>= 7)
        n++;
    return n;
}

static uint8_t *put_leb(uint8_t *p, uint32_t v) {
    for (; v >= 0x80; v >>= 7)
        *p++ = (uint8_t)(v | 0x80);
    *p = (uint8_t)v;
    return p + 1;
}

/* Reads one number of the bytes [*p, end); false when they don't begin with one. */
static bool get_leb(const uint8_t **p, const uint8_t *end, uint32_t *out) {
    uint64_t v = 0;
    for (int i = 0; i < LEB_BYTES_MAX && *p < end; i++) {
        uint8_t byte = *(*p)++;
        v |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (byte & 0x80) continue;
        if (v > UINT32_MAX || (i > 0 && byte == 0)) return false;
        *out = (uint32_t)v;
        return true;
    }
    return false;
}

static size_t kept_bytes(const ifl_trajectory *traj) {
    size_t n = 0;
    for (int32_t t = 0; t < traj->n_tokens; t++) {
        ifl_kept_set set = ifl_trajectory_kept(traj, t);
        n += leb_bytes((uint32_t)set.n);
        for (int32_t i = 0; i < set.n; i++)
            n += leb_bytes((uint32_t)(i ? set.ids[i] - set.ids[i - 1] - 1 : set.ids[0]));
    }
    return n;
}

static void encode_kept(const ifl_trajectory *traj, uint8_t *p) {
    for (int32_t t = 0; t < traj->n_tokens; t++)
        p = put_u32(p, float_bits(traj->full_logprobs[t]));
    for (int32_t t = 0; t < traj->n_tokens; t++) {
        ifl_kept_set set = ifl_trajectory_kept(traj, t);
        p = put_leb(p, (uint32_t)set.n);
        for (int32_t i = 0; i < set.n; i++)
            p = put_leb(p, (uint32_t)(i ? set.ids[i] - set.ids[i - 1] - 1 : set.ids[0]));
    }
}

static ifl_status decode_kept(ifl_trajectory *t, int32_t n_ids, const uint8_t *p, size_t n_bytes,
                              ifl_error *err) {
    size_t n = (size_t)t->n_tokens;
    if ((size_t)n_ids > n_bytes) /* each takes a byte at least: so nothing is asked for in vain */
        return ifl_fail(err, IFL_FORMAT, "TRAJ: %d tokens in kept sets of %zu bytes", n_ids,
                        n_bytes);
    t->kept_ends = malloc(n * sizeof *t->kept_ends);
    t->full_logprobs = malloc(n * sizeof *t->full_logprobs);
    if (n_ids) t->kept_ids = malloc((size_t)n_ids * sizeof *t->kept_ids);
    if (!t->kept_ends || !t->full_logprobs || (n_ids && !t->kept_ids))
        return ifl_fail(err, IFL_NOMEM, "TRAJ: out of memory: %d tokens in kept sets", n_ids);
    t->n_kept_ids = t->n_kept_ids_cap = n_ids;
    for (size_t i = 0; i < n; i++, p += 4)
        t->full_logprobs[i] = bits_float(get_u32(p));
    const uint8_t *end = p + n_bytes;
    int32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t held, step;
        if (!get_leb(&p, end, &held) || held > IFL_KEPT_SET_MAX || held > (uint32_t)(n_ids - at))
            return ifl_fail(err, IFL_FORMAT, "TRAJ: kept set of token %zu is malformed", i);
        int64_t id = -1;
        for (uint32_t k = 0; k < held; k++) {
            if (!get_leb(&p, end, &step) || (id += (int64_t)step + 1) > INT32_MAX)
                return ifl_fail(err, IFL_FORMAT, "TRAJ: kept set of token %zu is malformed", i);
            t->kept_ids[at++] = (int32_t)id;
        }
        t->kept_ends[i] = at;
    }
    if (at != n_ids || p != end)
        return ifl_fail(err, IFL_FORMAT, "TRAJ: kept sets hold %d tokens, their count says %d", at,
                        n_ids);
    return IFL_OK;
}

/* --- Columns
 * ----------------------------------------------------------------------------------------- */

static void encode_columns(const ifl_trajectory *traj, uint8_t *p) {
    for (int32_t i = 0; i < traj->n_tokens; i++)
        p = put_u32(p, (uint32_t)traj->tokens[i]);
    for (int32_t i = 0; i < traj->n_tokens; i++)
        p = put_u32(p, float_bits(traj->logprobs[i]));
    for (int32_t i = 0; i < traj->n_tokens; i++)
        p = put_u32(p, float_bits(traj->loss_weights[i]));
    for (int32_t i = 0; i < traj->n_spans; i++) {
        p = put_u32(p, (uint32_t)traj->spans[i].begin);
        p = put_u32(p, (uint32_t)traj->spans[i].n_tokens);
        p = put_u32(p, traj->spans[i].source);
    }
    for (int32_t i = 0; i < traj->n_runs; i++) {
        p = put_u32(p, (uint32_t)traj->runs[i].begin);
        p = put_u32(p, (uint32_t)traj->runs[i].n_tokens);
        p = put_u64(p, (uint64_t)traj->runs[i].version);
    }
    for (int32_t i = 0; i < traj->n_kv_events; i++) {
        p = put_u32(p, (uint32_t)traj->kv_events[i].at);
        p = put_u32(p, (uint32_t)traj->kv_events[i].from);
        p = put_u32(p, (uint32_t)traj->kv_events[i].to);
        p = put_u32(p, traj->kv_events[i].kind);
        p = put_u64(p, (uint64_t)traj->kv_events[i].version);
    }
}

static void encode_meta(const ifl_trajectory *traj, ifl_hash payload_hash, size_t n_kept_bytes,
                        ifl_meta_writer *w) {
    const ifl_reward *r = &traj->reward;
    ifl_meta_put_i64(w, KEY_FORMAT, traj->kept_ends ? CODEC_FORMAT_KEPT : CODEC_FORMAT_PLAIN);
    ifl_meta_put_u64(w, KEY_TASK_SERIAL, traj->task_serial);
    ifl_meta_put_i64(w, KEY_SAMPLE, traj->sample);
    ifl_meta_put_i64(w, KEY_PURPOSE, traj->purpose);
    ifl_meta_put_i64(w, KEY_GROUP_SIZE, traj->group_size);
    ifl_meta_put_text(w, KEY_TASK_ID, traj->task_id);
    ifl_meta_put_u64(w, KEY_LEASE_ID, traj->lease_id);
    ifl_meta_put_i64(w, KEY_N_TOKENS, traj->n_tokens);
    ifl_meta_put_i64(w, KEY_N_SPANS, traj->n_spans);
    ifl_meta_put_i64(w, KEY_N_RUNS, traj->n_runs);
    ifl_meta_put_i64(w, KEY_N_KV_EVENTS, traj->n_kv_events);
    ifl_meta_put_u64(w, KEY_SEED, traj->seed);
    ifl_meta_put_f32(w, KEY_TEMPERATURE, "temperature", traj->temperature);
    ifl_meta_put_i64(w, KEY_TOP_K, traj->top_k);
    ifl_meta_put_f32(w, KEY_TOP_P, "top_p", traj->top_p);
    ifl_meta_put_i64(w, KEY_MAX_NEW_TOKENS, traj->max_new_tokens);
    ifl_meta_put_i64(w, KEY_FINISH, traj->finish);
    /* Who knows no finer verdicts takes the reward as it is. */
    ifl_meta_put_i64(w, KEY_REWARD_STATUS,
                     ifl_reward_is_verdict(r->status) ? IFL_REWARD_OK : r->status);
    ifl_meta_put_f32(w, KEY_REWARD, "reward", r->reward);
    ifl_meta_put_array(w, KEY_COMPONENT_NAMES, r->n_components);
    for (int32_t i = 0; i < r->n_components && w->status == IFL_OK; i++) {
        size_t n = strnlen(r->components[i].name, sizeof r->components[i].name - 1);
        if (msgpack_pack_str(&w->packer, n) ||
            msgpack_pack_str_body(&w->packer, r->components[i].name, n))
            ifl_meta_fail(w, IFL_NOMEM, "out of memory");
    }
    ifl_meta_put_array(w, KEY_COMPONENT_VALUES, r->n_components);
    for (int32_t i = 0; i < r->n_components && w->status == IFL_OK; i++)
        if (msgpack_pack_float(&w->packer, r->components[i].value))
            ifl_meta_fail(w, IFL_NOMEM, "out of memory");
    ifl_meta_put_f32(w, KEY_QUEUED_S, "queued_s", r->queued_s);
    ifl_meta_put_f32(w, KEY_RUN_S, "run_s", r->run_s);
    ifl_meta_put_text(w, KEY_CHECKER, r->checker);
    ifl_meta_put_hash(w, KEY_PROFILE, traj->profile);
    ifl_meta_put_i64(w, KEY_STARTED_MS, traj->started_ms);
    ifl_meta_put_i64(w, KEY_FINISHED_MS, traj->finished_ms);
    ifl_meta_put_text(w, KEY_ACTOR, traj->actor);
    ifl_meta_put_hash(w, KEY_PAYLOAD_HASH, payload_hash);
    if (traj->kept_ends) {
        ifl_meta_put_i64(w, KEY_N_KEPT_IDS, traj->n_kept_ids);
        ifl_meta_put_i64(w, KEY_N_KEPT_BYTES, (int64_t)n_kept_bytes);
    }
    if (ifl_reward_is_verdict(r->status) && r->status != IFL_REWARD_OK)
        ifl_meta_put_i64(w, KEY_VERDICT, r->status);
    if (r->config) ifl_meta_put_u64(w, KEY_CHECKER_CONFIG, r->config);
    if (r->tests_total > 0) {
        ifl_meta_put_i64(w, KEY_TESTS_PASSED, r->tests_passed);
        ifl_meta_put_i64(w, KEY_TESTS_TOTAL, r->tests_total);
    }
    if (r->tier) ifl_meta_put_i64(w, KEY_TIER, r->tier);
    if (r->reason[0]) ifl_meta_put_text(w, KEY_REASON, r->reason);
}

ifl_status ifl_trajectory_encode(const ifl_trajectory *traj, uint8_t **meta, size_t *n_meta,
                                 uint8_t **payload, size_t *n_payload, ifl_error *err) {
    *meta = *payload = NULL;
    *n_meta = *n_payload = 0;
    if (traj->n_tokens < 1 || traj->n_tokens > IFL_TOKENS_MAX || traj->n_spans < 0 ||
        traj->n_spans > IFL_SPANS_MAX || traj->n_runs < 0 || traj->n_runs > IFL_RUNS_MAX ||
        traj->n_kv_events < 0 || traj->n_kv_events > IFL_RUNS_MAX ||
        traj->reward.n_components < 0 || traj->reward.n_components > IFL_COMPONENTS_MAX ||
        traj->n_kept_ids < 0 || traj->n_kept_ids > IFL_KEPT_IDS_MAX)
        return ifl_fail(
            err, IFL_LIMIT,
            "TRAJ: %d tokens, %d spans, %d runs, %d KV events, %d reward components, %d tokens in "
            "kept sets; limits %d, %d, %d, %d, %d, %d",
            traj->n_tokens, traj->n_spans, traj->n_runs, traj->n_kv_events,
            traj->reward.n_components, traj->n_kept_ids, IFL_TOKENS_MAX, IFL_SPANS_MAX,
            IFL_RUNS_MAX, IFL_RUNS_MAX, IFL_COMPONENTS_MAX, IFL_KEPT_IDS_MAX);
    size_t n_plain =
        codec_payload_bytes(traj->n_tokens, traj->n_spans, traj->n_runs, traj->n_kv_events);
    size_t n_kept = traj->kept_ends ? kept_bytes(traj) : 0;
    size_t n = n_plain + (traj->kept_ends ? (size_t)traj->n_tokens * 4 + n_kept : 0);
    if (n > CODEC_PAYLOAD_MAX)
        return ifl_fail(err, IFL_LIMIT, "TRAJ: payload of %zu bytes (%zu of kept sets), limit %d",
                        n, n_kept, CODEC_PAYLOAD_MAX);
    uint8_t *columns = malloc(n);
    if (!columns) return ifl_fail(err, IFL_NOMEM, "TRAJ: out of memory: %zu bytes", n);
    encode_columns(traj, columns);
    if (traj->kept_ends) encode_kept(traj, columns + n_plain);
    ifl_meta_writer w;
    ifl_meta_begin(&w, "TRAJ", err);
    encode_meta(traj, ifl_hash_bytes(columns, n), n_kept, &w);
    ifl_status st = ifl_meta_end(&w, meta, n_meta);
    if (st == IFL_OK) {
        *payload = columns;
        *n_payload = n;
        columns = NULL; /* the caller owns it now */
    }
    free(columns);
    return st;
}

static void decode_reward(ifl_meta_reader *r, ifl_reward *reward) {
    int32_t status = 0;
    ifl_meta_get_i32(r, KEY_REWARD_STATUS, "reward status", 0, IFL_REWARD_UNAVAILABLE, &status);
    reward->status = (ifl_reward_status)status;
    ifl_meta_get_f32(r, KEY_REWARD, "reward", &reward->reward);
    const msgpack_object_array *names =
        ifl_meta_get_array(r, KEY_COMPONENT_NAMES, "component names", IFL_COMPONENTS_MAX);
    const msgpack_object_array *values =
        ifl_meta_get_array(r, KEY_COMPONENT_VALUES, "component values", IFL_COMPONENTS_MAX);
    if (names && values) {
        if (names->size != values->size) ifl_meta_refuse(r, "components", "have unequal columns");
        for (uint32_t i = 0; i < names->size && r->status == IFL_OK; i++) {
            double value = 0;
            if (!ifl_meta_object_text(&names->ptr[i], reward->components[i].name,
                                      sizeof reward->components[i].name) ||
                !ifl_meta_object_f64(&values->ptr[i], &value))
                ifl_meta_refuse(r, "a component", "is malformed");
            reward->components[i].value = (float)value;
            reward->n_components = (int32_t)i + 1;
        }
    }
    ifl_meta_get_f32(r, KEY_QUEUED_S, "queued_s", &reward->queued_s);
    ifl_meta_get_f32(r, KEY_RUN_S, "run_s", &reward->run_s);
    ifl_meta_get_text(r, KEY_CHECKER, "checker", reward->checker, sizeof reward->checker);
    if (ifl_meta_has(r, KEY_VERDICT)) {
        if (status != IFL_REWARD_OK)
            ifl_meta_refuse(r, "a verdict", "comes with a status that is none");
        ifl_meta_get_i32(r, KEY_VERDICT, "verdict", IFL_REWARD_WRONG, IFL_REWARD_STATUS_COUNT - 1,
                         &status);
        reward->status = (ifl_reward_status)status;
    }
    if (ifl_meta_has(r, KEY_CHECKER_CONFIG))
        ifl_meta_get_u64(r, KEY_CHECKER_CONFIG, "checker's options", &reward->config);
    if (ifl_meta_has(r, KEY_TESTS_TOTAL)) {
        ifl_meta_get_i32(r, KEY_TESTS_TOTAL, "tests", 1, INT32_MAX, &reward->tests_total);
        ifl_meta_get_i32(r, KEY_TESTS_PASSED, "tests passed", 0, reward->tests_total,
                         &reward->tests_passed);
    }
    if (ifl_meta_has(r, KEY_TIER)) {
        int32_t tier = 0;
        ifl_meta_get_i32(r, KEY_TIER, "sandbox tier", 0, IFL_TIER_COUNT - 1, &tier);
        reward->tier = (uint8_t)tier;
    }
    if (ifl_meta_has(r, KEY_REASON))
        ifl_meta_get_text(r, KEY_REASON, "reason", reward->reason, sizeof reward->reason);
}

/* What format 2 says beyond the trajectory's own fields. */
typedef struct kept_meta {
    bool has;
    int32_t n_ids, n_bytes;
} kept_meta;

static void decode_meta(ifl_meta_reader *r, ifl_trajectory *t, ifl_hash *payload_hash,
                        kept_meta *kept) {
    int32_t format = 0, purpose = 0, finish = 0;
    ifl_meta_get_i32(r, KEY_FORMAT, "format", CODEC_FORMAT_PLAIN, CODEC_FORMAT_KEPT, &format);
    ifl_meta_get_u64(r, KEY_TASK_SERIAL, "task_serial", &t->task_serial);
    ifl_meta_get_i32(r, KEY_SAMPLE, "sample", 0, 0xfffe, &t->sample);
    ifl_meta_get_i32(r, KEY_PURPOSE, "purpose", 0, IFL_PURPOSE_EVAL, &purpose);
    ifl_meta_get_i32(r, KEY_GROUP_SIZE, "group_size", 1, 0xffff, &t->group_size);
    ifl_meta_get_text(r, KEY_TASK_ID, "task_id", t->task_id, sizeof t->task_id);
    ifl_meta_get_u64(r, KEY_LEASE_ID, "lease_id", &t->lease_id);
    ifl_meta_get_i32(r, KEY_N_TOKENS, "n_tokens", 1, IFL_TOKENS_MAX, &t->n_tokens);
    ifl_meta_get_i32(r, KEY_N_SPANS, "n_spans", 1, IFL_SPANS_MAX, &t->n_spans);
    ifl_meta_get_i32(r, KEY_N_RUNS, "n_runs", 0, IFL_RUNS_MAX, &t->n_runs);
    ifl_meta_get_i32(r, KEY_N_KV_EVENTS, "n_kv_events", 0, IFL_RUNS_MAX, &t->n_kv_events);
    ifl_meta_get_u64(r, KEY_SEED, "seed", &t->seed);
    ifl_meta_get_f32(r, KEY_TEMPERATURE, "temperature", &t->temperature);
    ifl_meta_get_i32(r, KEY_TOP_K, "top_k", 0, INT32_MAX, &t->top_k);
    ifl_meta_get_f32(r, KEY_TOP_P, "top_p", &t->top_p);
    ifl_meta_get_i32(r, KEY_MAX_NEW_TOKENS, "max_new_tokens", 0, INT32_MAX, &t->max_new_tokens);
    ifl_meta_get_i32(r, KEY_FINISH, "finish", 0, IFL_FINISH_ABORTED, &finish);
    decode_reward(r, &t->reward);
    ifl_meta_get_hash(r, KEY_PROFILE, "profile", &t->profile);
    ifl_meta_get_i64(r, KEY_STARTED_MS, "started_ms", INT64_MIN, INT64_MAX, &t->started_ms);
    ifl_meta_get_i64(r, KEY_FINISHED_MS, "finished_ms", INT64_MIN, INT64_MAX, &t->finished_ms);
    ifl_meta_get_text(r, KEY_ACTOR, "actor", t->actor, sizeof t->actor);
    ifl_meta_get_hash(r, KEY_PAYLOAD_HASH, "payload hash", payload_hash);
    t->purpose = (uint8_t)purpose;
    t->finish = (ifl_finish)finish;
    if (format != CODEC_FORMAT_KEPT) return;
    kept->has = true;
    ifl_meta_get_i32(r, KEY_N_KEPT_IDS, "kept ids", 0, IFL_KEPT_IDS_MAX, &kept->n_ids);
    ifl_meta_get_i32(r, KEY_N_KEPT_BYTES, "kept bytes", 0, CODEC_PAYLOAD_MAX, &kept->n_bytes);
}

static ifl_status decode_columns(ifl_trajectory *t, const uint8_t *p, ifl_error *err) {
    size_t n = (size_t)t->n_tokens;
    t->tokens = malloc(n * sizeof *t->tokens);
    t->logprobs = malloc(n * sizeof *t->logprobs);
    t->loss_weights = malloc(n * sizeof *t->loss_weights);
    t->spans = calloc((size_t)t->n_spans, sizeof *t->spans);
    if (t->n_runs) t->runs = calloc((size_t)t->n_runs, sizeof *t->runs);
    if (t->n_kv_events) t->kv_events = calloc((size_t)t->n_kv_events, sizeof *t->kv_events);
    if (!t->tokens || !t->logprobs || !t->loss_weights || !t->spans || (t->n_runs && !t->runs) ||
        (t->n_kv_events && !t->kv_events))
        return ifl_fail(err, IFL_NOMEM, "TRAJ: out of memory: %zu tokens", n);
    t->n_tokens_cap = t->n_tokens;
    t->n_spans_cap = t->n_spans;
    t->n_runs_cap = t->n_runs;
    t->n_kv_events_cap = t->n_kv_events;
    for (size_t i = 0; i < n; i++, p += 4)
        t->tokens[i] = (int32_t)get_u32(p);
    for (size_t i = 0; i < n; i++, p += 4)
        t->logprobs[i] = bits_float(get_u32(p));
    for (size_t i = 0; i < n; i++, p += 4)
        t->loss_weights[i] = bits_float(get_u32(p));
    for (int32_t i = 0; i < t->n_spans; i++, p += CODEC_SPAN_BYTES) {
        uint32_t source = get_u32(p + 8);
        if (source > IFL_SOURCE_ENVIRONMENT)
            return ifl_fail(err, IFL_FORMAT, "TRAJ: span %d has source %u", i, source);
        t->spans[i] = (ifl_span){(uint8_t)source, (int32_t)get_u32(p), (int32_t)get_u32(p + 4)};
    }
    for (int32_t i = 0; i < t->n_runs; i++, p += CODEC_RUN_BYTES)
        t->runs[i] =
            (ifl_version_run){(int32_t)get_u32(p), (int32_t)get_u32(p + 4), get_i64(p + 8)};
    for (int32_t i = 0; i < t->n_kv_events; i++, p += CODEC_KV_BYTES) {
        uint32_t kind = get_u32(p + 12);
        if (kind > IFL_KV_REBUILT)
            return ifl_fail(err, IFL_FORMAT, "TRAJ: KV event %d has kind %u", i, kind);
        t->kv_events[i] = (ifl_kv_event){(int32_t)get_u32(p), (int32_t)get_u32(p + 4),
                                         (int32_t)get_u32(p + 8), get_i64(p + 16), (uint8_t)kind};
    }
    return IFL_OK;
}

ifl_status ifl_trajectory_decode(ifl_trajectory **out, const uint8_t *meta, size_t n_meta,
                                 const uint8_t *payload, size_t n_payload, ifl_error *err) {
    *out = NULL;
    ifl_trajectory *traj = calloc(1, sizeof *traj);
    if (!traj) return ifl_fail(err, IFL_NOMEM, "TRAJ: out of memory");
    ifl_meta_reader r;
    ifl_hash payload_hash = {0, 0};
    ifl_status st = ifl_meta_open(&r, "TRAJ", meta, n_meta, err);
    kept_meta kept = {0};
    if (st == IFL_OK) decode_meta(&r, traj, &payload_hash, &kept);
    IFL_TRY_GOTO(st, ifl_meta_close(&r), done);
    size_t plain =
        codec_payload_bytes(traj->n_tokens, traj->n_spans, traj->n_runs, traj->n_kv_events);
    size_t want = plain + (kept.has ? (size_t)traj->n_tokens * 4 + (size_t)kept.n_bytes : 0);
    if (n_payload != want) {
        st = ifl_fail(err, IFL_FORMAT, "TRAJ: payload of %zu bytes, its counts ask for %zu",
                      n_payload, want);
        goto done;
    }
    if (!ifl_hash_equal(ifl_hash_bytes(payload, n_payload), payload_hash)) {
        st = ifl_fail(err, IFL_FORMAT, "TRAJ: payload's hash differs from the one in its meta");
        goto done;
    }
    IFL_TRY_GOTO(st, decode_columns(traj, payload, err), done);
    if (kept.has)
        IFL_TRY_GOTO(st, decode_kept(traj, kept.n_ids, payload + plain, (size_t)kept.n_bytes, err),
                     done);
    *out = traj;
    traj = NULL; /* the caller owns it now */
done:
    ifl_trajectory_free(traj);
    return st;
}

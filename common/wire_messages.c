/* Every message's fields, side by side as written and as read. Keys are listed in common/WIRE.md.
 */
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/wire.h"
#include "common/wire_meta.h"

#define SAMPLE_MAX 0xfffe /* 16 bits of ifl_trajectory_stream */
#define PROMPT_TOKENS_MAX IFL_TOKENS_MAX
#define LEASE_PAYLOAD_HASH 30 /* key: a wrong prompt or answer would be trained on unnoticed */

static uint8_t *messages_put(uint8_t *p, uint64_t v, int n) {
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * i));
    return p + n;
}

static uint64_t messages_get(const uint8_t **p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++)
        v |= (uint64_t)(*p)[i] << (8 * i);
    *p += n;
    return v;
}

static void fail_range(ifl_meta_writer *w, const char *name, int64_t got, int64_t min,
                       int64_t max) {
    if (w->status == IFL_OK)
        w->status = ifl_fail(w->err, IFL_LIMIT, "%s: %s is %lld, wanted %lld to %lld", w->what,
                             name, (long long)got, (long long)min, (long long)max);
}

/* An integer that the other side accepts only within [min, max]: refuse it here, where it came
 * from. */
static void put_range(ifl_meta_writer *w, int32_t key, const char *name, int64_t value, int64_t min,
                      int64_t max) {
    if (value < min || value > max)
        fail_range(w, name, value, min, max);
    else
        ifl_meta_put_i64(w, key, value);
}

static bool samples_ascend(const int32_t *samples, int32_t n) {
    for (int32_t i = 1; i < n; i++)
        if (samples[i] <= samples[i - 1]) return false;
    return true;
}

static void put_samples(ifl_meta_writer *w, int32_t key, const int32_t *samples, int32_t n,
                        int32_t n_min, int32_t sample_max) {
    if (n < n_min || n > IFL_WIRE_SAMPLES_MAX)
        fail_range(w, "number of samples", n, n_min, IFL_WIRE_SAMPLES_MAX);
    else if (n && (!samples_ascend(samples, n) || samples[0] < 0 || samples[n - 1] > sample_max))
        ifl_meta_fail(w, IFL_LIMIT, "samples must ascend and lie inside their group");
    else
        ifl_meta_put_i32s(w, key, samples, n);
}

/* --- Payload of LEASE ------------------------------------------------------------------------- */

/* prompt i32[n] | answer NUL | meta NUL | text NUL */

static ifl_status lease_payload(const ifl_wire_lease *l, const size_t n_texts[3], uint8_t **payload,
                                size_t *n_payload, ifl_error *err) {
    const char *texts[3] = {l->answer ? l->answer : "", l->meta ? l->meta : "",
                            l->text ? l->text : ""};
    size_t n = (size_t)l->n_prompt * 4;
    for (int i = 0; i < 3; i++)
        n += n_texts[i] + 1;
    if (n > IFL_WIRE_PAYLOAD_MAX)
        return ifl_fail(err, IFL_LIMIT, "LEASE: prompt, answer and texts have %zu bytes, limit %d",
                        n, IFL_WIRE_PAYLOAD_MAX);
    uint8_t *p = malloc(n);
    if (!p) return ifl_fail(err, IFL_NOMEM, "LEASE: out of memory: %zu bytes", n);
    *payload = p;
    *n_payload = n;
    for (int32_t i = 0; i < l->n_prompt; i++)
        p = messages_put(p, (uint32_t)l->prompt[i], 4);
    for (int i = 0; i < 3; i++) {
        memcpy(p, texts[i], n_texts[i] + 1);
        p += n_texts[i] + 1;
    }
    return IFL_OK;
}

static void encode_lease(const ifl_wire_lease *l, ifl_meta_writer *w, ifl_wire_frames *out) {
    const char *texts[3] = {l->answer, l->meta, l->text};
    size_t n_texts[3];
    for (int i = 0; i < 3; i++)
        n_texts[i] = texts[i] ? strnlen(texts[i], IFL_WIRE_PAYLOAD_MAX) : 0;
    if (l->n_prompt < 1 || l->n_prompt > PROMPT_TOKENS_MAX) {
        fail_range(w, "prompt tokens", l->n_prompt, 1, PROMPT_TOKENS_MAX);
        return;
    }
    if (l->n_stops < 0 || l->n_stops > IFL_STOPS_MAX) {
        fail_range(w, "stop strings", l->n_stops, 0, IFL_STOPS_MAX);
        return;
    }
    ifl_meta_put_u64(w, 1, l->lease_id);
    put_range(w, 2, "attempt", l->attempt, 0, INT32_MAX);
    put_range(w, 3, "purpose", l->purpose, 0, IFL_PURPOSE_EVAL);
    ifl_meta_put_u64(w, 4, l->task_serial);
    ifl_meta_put_text(w, 5, l->task_id);
    put_range(w, 6, "group size", l->group_size, 1, IFL_WIRE_SAMPLES_MAX);
    put_samples(w, 7, l->samples, l->n_samples, 1, l->group_size - 1);
    ifl_meta_put_i64(w, 8, l->n_prompt);
    ifl_meta_put_text(w, 9, l->checker);
    for (int i = 0; i < 3; i++)
        put_range(w, 10 + i, "text bytes", (int64_t)n_texts[i], 0, IFL_WIRE_PAYLOAD_MAX - 1);
    ifl_meta_put_f32(w, 13, "temperature", l->temperature);
    put_range(w, 14, "top_k", l->top_k, 0, INT32_MAX);
    ifl_meta_put_f32(w, 15, "top_p", l->top_p);
    put_range(w, 16, "max_new_tokens", l->max_new_tokens, 1, IFL_TOKENS_MAX);
    ifl_meta_put_array(w, 17, l->n_stops);
    for (int32_t i = 0; i < l->n_stops && w->status == IFL_OK; i++) {
        size_t n = strnlen(l->stops[i], IFL_WIRE_STOP_BYTES_MAX);
        if (n == IFL_WIRE_STOP_BYTES_MAX || n == 0)
            fail_range(w, "stop string bytes", (int64_t)n, 1, IFL_WIRE_STOP_BYTES_MAX - 1);
        else if (msgpack_pack_str(&w->packer, n) ||
                 msgpack_pack_str_body(&w->packer, l->stops[i], n))
            ifl_meta_fail(w, IFL_NOMEM, "out of memory");
    }
    ifl_meta_put_u64(w, 18, l->seed);
    put_range(w, 19, "required version", l->required_version, -1, INT64_MAX);
    put_range(w, 20, "deadline_ms", l->deadline_ms, 0, INT64_MAX);
    if (w->status == IFL_OK)
        w->status = lease_payload(l, n_texts, &out->payload, &out->n_payload, w->err);
    if (w->status == IFL_OK)
        ifl_meta_put_hash(w, LEASE_PAYLOAD_HASH, ifl_hash_bytes(out->payload, out->n_payload));
}

static void decode_lease(ifl_meta_reader *r, ifl_message *m, const uint8_t *payload,
                         size_t n_payload) {
    ifl_wire_lease *l = &m->lease;
    int32_t purpose = 0, n_texts[3] = {0, 0, 0}, samples[IFL_WIRE_SAMPLES_MAX];
    ifl_meta_get_u64(r, 1, "lease_id", &l->lease_id);
    ifl_meta_get_i32(r, 2, "attempt", 0, INT32_MAX, &l->attempt);
    ifl_meta_get_i32(r, 3, "purpose", 0, IFL_PURPOSE_EVAL, &purpose);
    l->purpose = (uint8_t)purpose;
    ifl_meta_get_u64(r, 4, "task_serial", &l->task_serial);
    ifl_meta_get_text(r, 5, "task_id", l->task_id, sizeof l->task_id);
    ifl_meta_get_i32(r, 6, "group_size", 1, IFL_WIRE_SAMPLES_MAX, &l->group_size);
    ifl_meta_get_i32s(r, 7, "samples", 0, l->group_size - 1, samples, IFL_WIRE_SAMPLES_MAX,
                      &l->n_samples);
    ifl_meta_get_i32(r, 8, "n_prompt", 1, PROMPT_TOKENS_MAX, &l->n_prompt);
    ifl_meta_get_text(r, 9, "checker", l->checker, sizeof l->checker);
    for (int i = 0; i < 3; i++)
        ifl_meta_get_i32(r, 10 + i, "text bytes", 0, IFL_WIRE_PAYLOAD_MAX - 1, &n_texts[i]);
    ifl_meta_get_f32(r, 13, "temperature", &l->temperature);
    ifl_meta_get_i32(r, 14, "top_k", 0, INT32_MAX, &l->top_k);
    ifl_meta_get_f32(r, 15, "top_p", &l->top_p);
    ifl_meta_get_i32(r, 16, "max_new_tokens", 1, IFL_TOKENS_MAX, &l->max_new_tokens);
    const msgpack_object_array *stops = ifl_meta_get_array(r, 17, "stops", IFL_STOPS_MAX);
    for (uint32_t i = 0; stops && i < stops->size; i++) {
        if (!ifl_meta_object_text(&stops->ptr[i], l->stops[i], sizeof l->stops[i]) ||
            !l->stops[i][0]) {
            ifl_meta_refuse(r, "a stop string", "is empty, too long or no text");
            break;
        }
        l->n_stops = (int32_t)i + 1;
    }
    ifl_meta_get_u64(r, 18, "seed", &l->seed);
    ifl_meta_get_i64(r, 19, "required version", -1, INT64_MAX, &l->required_version);
    ifl_meta_get_i64(r, 20, "deadline_ms", 0, INT64_MAX, &l->deadline_ms);
    if (r->status != IFL_OK) return;
    if (l->n_samples < 1 || !samples_ascend(samples, l->n_samples))
        ifl_meta_refuse(r, "samples", "is empty or does not ascend");
    if (l->temperature < 0.0f || !(l->top_p > 0.0f && l->top_p <= 1.0f))
        ifl_meta_refuse(r, "temperature or top_p", "is out of range");
    size_t n_tokens = (size_t)l->n_prompt * 4, n = n_tokens;
    for (int i = 0; i < 3; i++)
        n += (size_t)n_texts[i] + 1;
    if (n != n_payload) ifl_meta_refuse(r, "payload", "has another size than its counts say");
    if (ifl_meta_has(r, LEASE_PAYLOAD_HASH)) {
        ifl_hash hash = {0};
        ifl_meta_get_hash(r, LEASE_PAYLOAD_HASH, "payload hash", &hash);
        if (r->status == IFL_OK && !ifl_hash_equal(hash, ifl_hash_bytes(payload, n_payload)))
            ifl_meta_refuse(r, "payload", "has another hash than it was sent with");
    }
    if (r->status != IFL_OK) return;
    /* One block: prompt, samples, texts. */
    size_t n_samples_bytes = (size_t)l->n_samples * 4;
    uint8_t *block = malloc(n + n_samples_bytes);
    if (!block) {
        r->status = ifl_fail(r->err, IFL_NOMEM, "LEASE: out of memory: %zu bytes", n);
        return;
    }
    m->storage = block;
    int32_t *prompt = (int32_t *)(void *)block;
    const uint8_t *p = payload;
    for (int32_t i = 0; i < l->n_prompt; i++) {
        prompt[i] = (int32_t)(uint32_t)messages_get(&p, 4);
        if (prompt[i] < 0) ifl_meta_refuse(r, "a prompt token", "is negative");
    }
    l->prompt = prompt;
    memcpy(block + n_tokens, samples, n_samples_bytes);
    l->samples = (const int32_t *)(const void *)(block + n_tokens);
    const char **texts[3] = {&l->answer, &l->meta, &l->text};
    char *to = (char *)block + n_tokens + n_samples_bytes;
    memcpy(to, p, n - n_tokens);
    for (int i = 0; i < 3; i++) {
        *texts[i] = to;
        if (memchr(to, 0, (size_t)n_texts[i] + 1) != to + n_texts[i])
            ifl_meta_refuse(r, "a text", "has a NUL inside or none at its end");
        to += n_texts[i] + 1;
    }
}

/* --- Payload of WANN -------------------------------------------------------------------------- */

/* Tables: per tensor {name bytes u16, name, offset i64, elements i64, trainable u8, delta_of i32},
 * per chunk {begin i64, elements i64, hash 16 bytes}. */

#define TENSOR_FIXED_BYTES 23
#define CHUNK_BYTES 32

static void encode_wann(const ifl_manifest *m, ifl_meta_writer *w, ifl_wire_frames *out) {
    ifl_meta_put_i64(w, 1, m->version);
    ifl_meta_put_i64(w, 2, m->parent);
    ifl_meta_put_i64(w, 3, m->codec);
    ifl_meta_put_i64(w, 4, m->n_elements);
    put_range(w, 5, "tensors", m->n_tensors, 1, IFL_WIRE_TENSORS_MAX);
    put_range(w, 6, "chunks", m->n_chunks, 1, IFL_WIRE_CHUNKS_MAX);
    ifl_meta_put_hash(w, 7, m->content);
    ifl_meta_put_hash(w, 8, m->root);
    if (w->status != IFL_OK) return;
    size_t n = (size_t)m->n_chunks * CHUNK_BYTES;
    for (int32_t i = 0; i < m->n_tensors; i++)
        n += TENSOR_FIXED_BYTES + strlen(m->tensors[i].name);
    if (n > IFL_WIRE_PAYLOAD_MAX) {
        fail_range(w, "table bytes", (int64_t)n, 1, IFL_WIRE_PAYLOAD_MAX);
        return;
    }
    uint8_t *p = malloc(n);
    if (!p) {
        ifl_meta_fail(w, IFL_NOMEM, "out of memory");
        return;
    }
    out->payload = p;
    out->n_payload = n;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const ifl_manifest_tensor *t = &m->tensors[i];
        size_t n_name = strlen(t->name);
        p = messages_put(p, n_name, 2);
        memcpy(p, t->name, n_name);
        p = messages_put(p + n_name, (uint64_t)t->offset, 8);
        p = messages_put(p, (uint64_t)t->n_elements, 8);
        p = messages_put(p, t->trainable, 1);
        p = messages_put(p, (uint32_t)t->delta_of, 4);
    }
    for (int32_t i = 0; i < m->n_chunks; i++) {
        const ifl_manifest_chunk *c = &m->chunks[i];
        p = messages_put(p, (uint64_t)c->begin, 8);
        p = messages_put(p, (uint64_t)c->n_elements, 8);
        p = messages_put(p, c->hash.low, 8);
        p = messages_put(p, c->hash.high, 8);
    }
}

static ifl_status decode_tables(ifl_manifest *m, const uint8_t *p, size_t n_payload,
                                ifl_error *err) {
    const uint8_t *end = p + n_payload;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        ifl_manifest_tensor *t = &m->tensors[i];
        size_t n_name = end - p < 2 ? 0 : (size_t)messages_get(&p, 2);
        if (n_name < 1 || n_name >= sizeof t->name ||
            (size_t)(end - p) < n_name + TENSOR_FIXED_BYTES - 2 || memchr(p, 0, n_name))
            return ifl_fail(err, IFL_FORMAT, "WANN: tensor %d is cut off or has a bad name", i);
        memcpy(t->name, p, n_name);
        p += n_name;
        t->offset = (int64_t)messages_get(&p, 8);
        t->n_elements = (int64_t)messages_get(&p, 8);
        uint64_t trainable = messages_get(&p, 1);
        if (trainable > 1)
            return ifl_fail(err, IFL_FORMAT, "WANN: tensor %d: trainable is no flag", i);
        t->trainable = trainable == 1;
        t->delta_of = (int32_t)(uint32_t)messages_get(&p, 4);
    }
    if ((size_t)(end - p) != (size_t)m->n_chunks * CHUNK_BYTES)
        return ifl_fail(err, IFL_FORMAT, "WANN: %zu bytes of chunk table, wanted %zu",
                        (size_t)(end - p), (size_t)m->n_chunks * CHUNK_BYTES);
    for (int32_t i = 0; i < m->n_chunks; i++) {
        ifl_manifest_chunk *c = &m->chunks[i];
        c->begin = (int64_t)messages_get(&p, 8);
        c->n_elements = (int64_t)messages_get(&p, 8);
        c->hash.low = messages_get(&p, 8);
        c->hash.high = messages_get(&p, 8);
    }
    return ifl_manifest_check(m, err);
}

static void decode_wann(ifl_meta_reader *r, ifl_message *m, const uint8_t *payload,
                        size_t n_payload) {
    ifl_manifest head = {0};
    ifl_meta_get_i64(r, 1, "version", 0, INT64_MAX, &head.version);
    ifl_meta_get_i64(r, 2, "parent", -1, INT64_MAX, &head.parent);
    ifl_meta_get_i32(r, 3, "codec", 0, 255, &head.codec);
    ifl_meta_get_i64(r, 4, "elements", 1, INT64_MAX / 4, &head.n_elements);
    ifl_meta_get_i32(r, 5, "tensors", 1, IFL_WIRE_TENSORS_MAX, &head.n_tensors);
    ifl_meta_get_i32(r, 6, "chunks", 1, IFL_WIRE_CHUNKS_MAX, &head.n_chunks);
    ifl_meta_get_hash(r, 7, "content", &head.content);
    ifl_meta_get_hash(r, 8, "root", &head.root);
    if (r->status != IFL_OK) return;
    /* The tables' memory follows from counts that the payload's size must bear out. */
    size_t n_min =
        (size_t)head.n_tensors * (TENSOR_FIXED_BYTES + 1) + (size_t)head.n_chunks * CHUNK_BYTES;
    if (n_payload < n_min) {
        ifl_meta_refuse(r, "payload", "is too small for its tables");
        return;
    }
    ifl_manifest *manifest = NULL;
    r->status = ifl_manifest_create(&manifest, head.n_tensors, head.n_chunks, r->err);
    if (r->status != IFL_OK) return;
    manifest->version = head.version;
    manifest->parent = head.parent;
    manifest->codec = head.codec;
    manifest->n_elements = head.n_elements;
    manifest->content = head.content;
    manifest->root = head.root;
    m->wann.manifest = manifest;
    r->status = decode_tables(manifest, payload, n_payload, r->err);
}

/* --- The small ones --------------------------------------------------------------------------- */

static void put_key(ifl_meta_writer *w, const ifl_trajectory_key *key) {
    ifl_meta_put_u64(w, 1, key->task_serial);
    put_range(w, 2, "sample", key->sample, 0, SAMPLE_MAX);
    put_range(w, 3, "purpose", key->purpose, 0, IFL_PURPOSE_EVAL);
}

static void get_key(ifl_meta_reader *r, ifl_trajectory_key *key) {
    int32_t purpose = 0;
    ifl_meta_get_u64(r, 1, "task_serial", &key->task_serial);
    ifl_meta_get_i32(r, 2, "sample", 0, SAMPLE_MAX, &key->sample);
    ifl_meta_get_i32(r, 3, "purpose", 0, IFL_PURPOSE_EVAL, &purpose);
    key->purpose = (uint8_t)purpose;
}

static void put_parts(ifl_meta_writer *w, const ifl_profile_parts *parts) {
    uint8_t hashes[IFL_PROFILE_PARTS_MAX * 8];
    if (parts->n < 0 || parts->n > IFL_PROFILE_PARTS_MAX) {
        ifl_meta_fail(w, IFL_LIMIT, "too many parts of a numerics profile");
        return;
    }
    ifl_meta_put_array(w, 13, parts->n);
    for (int32_t i = 0; i < parts->n && w->status == IFL_OK; i++) {
        const ifl_profile_part *part = &parts->part[i];
        size_t n = strnlen(part->name, sizeof part->name - 1);
        if (msgpack_pack_str(&w->packer, n) || msgpack_pack_str_body(&w->packer, part->name, n))
            ifl_meta_fail(w, IFL_NOMEM, "out of memory");
        for (int b = 0; b < 8; b++)
            hashes[8 * i + b] = (uint8_t)(part->hash >> (8 * b));
    }
    ifl_meta_put_bytes(w, 14, hashes, 8 * (size_t)parts->n);
}

static void get_parts(ifl_meta_reader *r, ifl_profile_parts *parts) {
    uint8_t hashes[IFL_PROFILE_PARTS_MAX * 8];
    const msgpack_object_array *names =
        ifl_meta_get_array(r, 13, "profile parts", IFL_PROFILE_PARTS_MAX);
    if (!names) return;
    ifl_meta_get_bytes(r, 14, "hashes of profile parts", hashes, 8 * (size_t)names->size);
    if (r->status != IFL_OK) return;
    for (uint32_t i = 0; i < names->size; i++) {
        ifl_profile_part *part = &parts->part[i];
        if (!ifl_meta_object_text(&names->ptr[i], part->name, sizeof part->name)) {
            ifl_meta_refuse(r, "a profile part", "is malformed");
            return;
        }
        part->hash = 0;
        for (int b = 0; b < 8; b++)
            part->hash |= (uint64_t)hashes[8 * i + (uint32_t)b] << (8 * b);
    }
    parts->n = (int32_t)names->size;
}

static void encode_hello(const ifl_wire_hello *h, ifl_meta_writer *w) {
    ifl_meta_put_i64(w, 1, h->major);
    ifl_meta_put_i64(w, 2, h->minor_min);
    ifl_meta_put_i64(w, 3, h->minor_max);
    ifl_meta_put_text(w, 4, h->build);
    ifl_meta_put_u64(w, 5, h->caps);
    ifl_meta_put_bytes(w, 6, h->incarnation, sizeof h->incarnation);
    ifl_meta_put_text(w, 7, h->name);
    ifl_meta_put_hash(w, 8, h->fingerprint);
    ifl_meta_put_hash(w, 9, h->profile);
    ifl_meta_put_hash(w, 10, h->tokenizer);
    put_range(w, 11, "held version", h->held_version, -1, INT64_MAX);
    ifl_meta_put_u64(w, 12, h->nonce);
    if (h->minor_max >= 1) put_parts(w, &h->parts);
}

static void decode_hello(ifl_meta_reader *r, ifl_wire_hello *h) {
    int32_t major = 0, minor_min = 0, minor_max = 0;
    ifl_meta_get_i32(r, 1, "major", 0, 0xffff, &major);
    ifl_meta_get_i32(r, 2, "minor_min", 0, 0xffff, &minor_min);
    ifl_meta_get_i32(r, 3, "minor_max", 0, 0xffff, &minor_max);
    h->major = (uint16_t)major;
    h->minor_min = (uint16_t)minor_min;
    h->minor_max = (uint16_t)minor_max;
    ifl_meta_get_text(r, 4, "build", h->build, sizeof h->build);
    ifl_meta_get_u64(r, 5, "caps", &h->caps);
    ifl_meta_get_bytes(r, 6, "incarnation", h->incarnation, sizeof h->incarnation);
    ifl_meta_get_text(r, 7, "name", h->name, sizeof h->name);
    ifl_meta_get_hash(r, 8, "fingerprint", &h->fingerprint);
    ifl_meta_get_hash(r, 9, "profile", &h->profile);
    ifl_meta_get_hash(r, 10, "tokenizer", &h->tokenizer);
    ifl_meta_get_i64(r, 11, "held version", -1, INT64_MAX, &h->held_version);
    ifl_meta_get_u64(r, 12, "nonce", &h->nonce);
    if (h->minor_max >= 1) get_parts(r, &h->parts);
}

static void encode_welcome(const ifl_wire_welcome *v, ifl_meta_writer *w) {
    ifl_meta_put_i64(w, 1, v->minor);
    ifl_meta_put_u64(w, 2, v->caps);
    ifl_meta_put_u64(w, 3, v->session);
    ifl_meta_put_text(w, 4, v->run_uuid);
    ifl_meta_put_u64(w, 5, v->run_epoch);
    put_range(w, 6, "lease_s", v->lease_s, 0, INT32_MAX);
    put_range(w, 7, "heartbeat_ms", v->heartbeat_ms, 1, 3600000);
    put_range(w, 8, "heartbeat_misses", v->heartbeat_misses, 1, 1000);
    put_range(w, 9, "payload_max", v->payload_max, 1, IFL_WIRE_PAYLOAD_MAX);
    put_range(w, 10, "chunk_window", v->chunk_window, 1, IFL_WIRE_GET_MAX);
    put_range(w, 11, "current version", v->current_version, -1, INT64_MAX);
    ifl_meta_put_u64(w, 12, v->nonce);
    if (v->minor >= 4) put_range(w, 13, "trajectory bytes", v->trajectory_bytes, 1, INT64_MAX);
}

static void decode_welcome(ifl_meta_reader *r, ifl_wire_welcome *v) {
    int32_t minor = 0;
    ifl_meta_get_i32(r, 1, "minor", 0, 0xffff, &minor);
    v->minor = (uint16_t)minor;
    ifl_meta_get_u64(r, 2, "caps", &v->caps);
    ifl_meta_get_u64(r, 3, "session", &v->session);
    ifl_meta_get_text(r, 4, "run_uuid", v->run_uuid, sizeof v->run_uuid);
    ifl_meta_get_u64(r, 5, "run_epoch", &v->run_epoch);
    ifl_meta_get_i32(r, 6, "lease_s", 0, INT32_MAX, &v->lease_s);
    ifl_meta_get_i32(r, 7, "heartbeat_ms", 1, 3600000, &v->heartbeat_ms);
    ifl_meta_get_i32(r, 8, "heartbeat_misses", 1, 1000, &v->heartbeat_misses);
    ifl_meta_get_i64(r, 9, "payload_max", 1, IFL_WIRE_PAYLOAD_MAX, &v->payload_max);
    ifl_meta_get_i32(r, 10, "chunk_window", 1, IFL_WIRE_GET_MAX, &v->chunk_window);
    ifl_meta_get_i64(r, 11, "current version", -1, INT64_MAX, &v->current_version);
    ifl_meta_get_u64(r, 12, "nonce", &v->nonce);
    if (v->minor >= 4)
        ifl_meta_get_i64(r, 13, "trajectory bytes", 1, INT64_MAX, &v->trajectory_bytes);
}

static void encode_ping(const ifl_wire_ping *p, ifl_meta_writer *w) {
    ifl_meta_put_i64(w, 1, p->clock_ns);
    ifl_meta_put_u64(w, 2, p->progress);
    ifl_meta_put_i64(w, 3, p->phase);
    ifl_meta_put_i64(w, 4, p->n_queued);
    ifl_meta_put_i64(w, 5, p->bytes_queued);
}

static void decode_ping(ifl_meta_reader *r, ifl_wire_ping *p) {
    ifl_meta_get_i64(r, 1, "clock_ns", INT64_MIN, INT64_MAX, &p->clock_ns);
    ifl_meta_get_u64(r, 2, "progress", &p->progress);
    ifl_meta_get_i32(r, 3, "phase", INT32_MIN, INT32_MAX, &p->phase);
    ifl_meta_get_i32(r, 4, "n_queued", INT32_MIN, INT32_MAX, &p->n_queued);
    ifl_meta_get_i64(r, 5, "bytes_queued", INT64_MIN, INT64_MAX, &p->bytes_queued);
}

static void decode_return(ifl_meta_reader *r, ifl_message *m) {
    ifl_wire_return *v = &m->returned;
    int32_t samples[IFL_WIRE_SAMPLES_MAX];
    ifl_meta_get_u64(r, 1, "lease_id", &v->lease_id);
    ifl_meta_get_i32(r, 2, "reason", 1, 255, &v->reason);
    ifl_meta_get_i32s(r, 3, "samples", 0, SAMPLE_MAX, samples, IFL_WIRE_SAMPLES_MAX, &v->n_samples);
    ifl_meta_get_text(r, 4, "text", v->text, sizeof v->text);
    if (r->status != IFL_OK) return;
    if (!samples_ascend(samples, v->n_samples)) {
        ifl_meta_refuse(r, "samples", "does not ascend");
        return;
    }
    size_t n = (size_t)v->n_samples * sizeof *samples;
    m->storage = malloc(n ? n : 1);
    if (!m->storage) {
        r->status = ifl_fail(r->err, IFL_NOMEM, "RETURN: out of memory");
        return;
    }
    memcpy(m->storage, samples, n);
    v->samples = m->storage;
}

static void encode_wget(const ifl_wire_wget *g, ifl_meta_writer *w) {
    ifl_meta_put_i64(w, 1, g->version);
    if (g->n_chunks < 1 || g->n_chunks > IFL_WIRE_GET_MAX)
        fail_range(w, "chunks", g->n_chunks, 1, IFL_WIRE_GET_MAX);
    else
        ifl_meta_put_i32s(w, 2, g->chunks, g->n_chunks);
    if (g->base >= 0) ifl_meta_put_i64(w, 3, g->base);
}

static void decode_wget(ifl_meta_reader *r, ifl_wire_wget *g) {
    ifl_meta_get_i64(r, 1, "version", 0, INT64_MAX, &g->version);
    ifl_meta_get_i32s(r, 2, "chunks", 0, IFL_WIRE_CHUNKS_MAX - 1, g->chunks, IFL_WIRE_GET_MAX,
                      &g->n_chunks);
    if (r->status == IFL_OK && g->n_chunks < 1) ifl_meta_refuse(r, "chunks", "is empty");
    g->base = -1;
    if (ifl_meta_has(r, 3)) ifl_meta_get_i64(r, 3, "base", 0, INT64_MAX, &g->base);
}

static void encode_stats(const ifl_wire_stats *s, ifl_meta_writer *w) {
    if (s->n < 0 || s->n > IFL_WIRE_STATS_MAX) {
        fail_range(w, "counters", s->n, 0, IFL_WIRE_STATS_MAX);
        return;
    }
    ifl_meta_put_array(w, 1, s->n);
    for (int32_t i = 0; i < s->n && w->status == IFL_OK; i++) {
        size_t n = strnlen(s->entries[i].name, IFL_WIRE_STAT_NAME_MAX);
        if (n < 1 || n == IFL_WIRE_STAT_NAME_MAX)
            fail_range(w, "bytes of a counter's name", (int64_t)n, 1, IFL_WIRE_STAT_NAME_MAX - 1);
        else if (msgpack_pack_str(&w->packer, n) ||
                 msgpack_pack_str_body(&w->packer, s->entries[i].name, n))
            ifl_meta_fail(w, IFL_NOMEM, "out of memory");
    }
    ifl_meta_put_array(w, 2, s->n);
    for (int32_t i = 0; i < s->n && w->status == IFL_OK; i++) {
        if (!(s->entries[i].value - s->entries[i].value == 0.0)) /* inf and NaN */
            w->status = ifl_fail(w->err, IFL_FORMAT, "STATS: %s is not finite", s->entries[i].name);
        else if (msgpack_pack_double(&w->packer, s->entries[i].value))
            ifl_meta_fail(w, IFL_NOMEM, "out of memory");
    }
}

static void decode_stats(ifl_meta_reader *r, ifl_message *m) {
    const msgpack_object_array *names = ifl_meta_get_array(r, 1, "names", IFL_WIRE_STATS_MAX);
    const msgpack_object_array *values = ifl_meta_get_array(r, 2, "values", IFL_WIRE_STATS_MAX);
    if (!names || !values) return;
    if (names->size != values->size) {
        ifl_meta_refuse(r, "names and values", "have unequal lengths");
        return;
    }
    ifl_wire_stat *entries = calloc(names->size ? names->size : 1, sizeof *entries);
    if (!entries) {
        r->status = ifl_fail(r->err, IFL_NOMEM, "STATS: out of memory");
        return;
    }
    m->storage = entries;
    m->stats.entries = entries;
    m->stats.n = (int32_t)names->size;
    for (uint32_t i = 0; i < names->size; i++)
        if (!ifl_meta_object_text(&names->ptr[i], entries[i].name, sizeof entries[i].name) ||
            !entries[i].name[0] || !ifl_meta_object_f64(&values->ptr[i], &entries[i].value))
            ifl_meta_refuse(r, "a counter", "is malformed");
}

/* --- All of them ------------------------------------------------------------------------------ */

static void encode_fields(const ifl_message *m, ifl_meta_writer *w, ifl_wire_frames *out) {
    switch (m->type) {
    case IFL_WIRE_HELLO:
        encode_hello(&m->hello, w);
        break;
    case IFL_WIRE_WELCOME:
        encode_welcome(&m->welcome, w);
        break;
    case IFL_WIRE_REJECT:
        put_range(w, 1, "code", m->reject.code, 1, 255);
        put_range(w, 2, "retry_after_ms", m->reject.retry_after_ms, 0, INT32_MAX);
        ifl_meta_put_text(w, 3, m->reject.text);
        break;
    case IFL_WIRE_PING:
    case IFL_WIRE_PONG:
        encode_ping(&m->ping, w);
        break;
    case IFL_WIRE_LEASE:
        encode_lease(&m->lease, w, out);
        break;
    case IFL_WIRE_RETURN:
        ifl_meta_put_u64(w, 1, m->returned.lease_id);
        put_range(w, 2, "reason", m->returned.reason, 1, 255);
        put_samples(w, 3, m->returned.samples, m->returned.n_samples, 0, SAMPLE_MAX);
        ifl_meta_put_text(w, 4, m->returned.text);
        break;
    case IFL_WIRE_TRAJ:
        break; /* ifl_trajectory_encode makes both frames */
    case IFL_WIRE_TRAJ_ACK:
        put_key(w, &m->traj_ack.key);
        ifl_meta_put_u64(w, 4, m->traj_ack.lease_id);
        put_range(w, 5, "status", m->traj_ack.status, IFL_ACK_STORED, IFL_ACK_BEGUN);
        break;
    case IFL_WIRE_NACK:
        put_key(w, &m->nack.key);
        ifl_meta_put_u64(w, 4, m->nack.lease_id);
        put_range(w, 5, "code", m->nack.code, 1, 255);
        put_range(w, 6, "retry_after_ms", m->nack.retry_after_ms, 0, INT32_MAX);
        ifl_meta_put_text(w, 7, m->nack.text);
        break;
    case IFL_WIRE_WANN:
        encode_wann(m->wann.manifest, w, out);
        break;
    case IFL_WIRE_WGET:
        encode_wget(&m->wget, w);
        break;
    case IFL_WIRE_WCHUNK:
        ifl_meta_put_i64(w, 1, m->wchunk.version);
        put_range(w, 2, "chunk", m->wchunk.chunk, 0, IFL_WIRE_CHUNKS_MAX - 1);
        put_range(w, 3, "codec", m->wchunk.codec, 0, 255);
        if (m->wchunk.n_data < 1 || m->wchunk.n_data > IFL_WIRE_PAYLOAD_MAX)
            fail_range(w, "bytes", (int64_t)m->wchunk.n_data, 1, IFL_WIRE_PAYLOAD_MAX);
        out->n_payload = m->wchunk.n_data;
        if (m->wchunk.codec == IFL_CODEC_DENSE) break;
        put_range(w, 4, "base", m->wchunk.base, 0, INT64_MAX);
        ifl_meta_put_hash(w, 5, m->wchunk.hash);
        break;
    case IFL_WIRE_WNACK:
        ifl_meta_put_i64(w, 1, m->wnack.version);
        ifl_meta_put_i64(w, 2, m->wnack.newest);
        ifl_meta_put_text(w, 3, m->wnack.text);
        break;
    case IFL_WIRE_WREADY:
        ifl_meta_put_i64(w, 1, m->wready.version);
        ifl_meta_put_hash(w, 2, m->wready.root);
        break;
    case IFL_WIRE_WSET:
        ifl_meta_put_i64(w, 1, m->wset.version);
        ifl_meta_put_hash(w, 2, m->wset.root);
        put_range(w, 3, "rule", m->wset.rule, 0, 255);
        break;
    case IFL_WIRE_WDONE:
        ifl_meta_put_i64(w, 1, m->wdone.version);
        ifl_meta_put_hash(w, 2, m->wdone.root);
        put_range(w, 3, "stall_us", m->wdone.stall_us, 0, INT64_MAX);
        break;
    case IFL_WIRE_CREDIT:
        put_range(w, 1, "sequences", m->credit.n_sequences, 0, INT32_MAX);
        put_range(w, 2, "bytes", m->credit.n_bytes, 0, INT64_MAX);
        break;
    case IFL_WIRE_DRAIN:
        put_range(w, 1, "deadline_ms", m->drain.deadline_ms, 0, INT64_MAX);
        ifl_meta_put_text(w, 2, m->drain.text);
        break;
    case IFL_WIRE_BYE:
        put_range(w, 1, "code", m->bye.code, 1, 255);
        ifl_meta_put_text(w, 2, m->bye.text);
        break;
    case IFL_WIRE_ERROR:
        put_range(w, 1, "code", m->error.code, 1, 255);
        ifl_meta_put_u64(w, 2, m->error.seq);
        ifl_meta_put_text(w, 3, m->error.text);
        break;
    case IFL_WIRE_STATS:
        encode_stats(&m->stats, w);
        break;
    case IFL_WIRE_GROUP:
        if (w->status == IFL_OK) w->status = ifl_fail(w->err, IFL_UNSUPPORTED, "GROUP is reserved");
        break;
    }
}

ifl_status ifl_wire_encode(const ifl_message *m, ifl_wire_frames *out, ifl_error *err) {
    memset(out, 0, sizeof *out);
    out->type = (uint16_t)m->type;
    out->policy = m->policy;
    if (m->policy < -1)
        return ifl_fail(err, IFL_LIMIT, "%s: policy version %lld", ifl_wire_type_name(m->type),
                        (long long)m->policy);
    if (m->type < IFL_WIRE_HELLO || m->type > IFL_WIRE_GROUP)
        return ifl_fail(err, IFL_UNSUPPORTED, "no message has type %d", (int)m->type);
    if (m->type == IFL_WIRE_TRAJ)
        return ifl_trajectory_encode(m->traj.trajectory, &out->meta, &out->n_meta, &out->payload,
                                     &out->n_payload, err);
    ifl_meta_writer w;
    ifl_meta_begin(&w, ifl_wire_type_name(m->type), err);
    encode_fields(m, &w, out);
    return ifl_meta_end(&w, &out->meta, &out->n_meta);
}

static void decode_fields(ifl_meta_reader *r, ifl_message *m, const uint8_t *payload,
                          size_t n_payload) {
    switch (m->type) {
    case IFL_WIRE_HELLO:
        decode_hello(r, &m->hello);
        break;
    case IFL_WIRE_WELCOME:
        decode_welcome(r, &m->welcome);
        break;
    case IFL_WIRE_REJECT:
        ifl_meta_get_i32(r, 1, "code", 1, 255, &m->reject.code);
        ifl_meta_get_i32(r, 2, "retry_after_ms", 0, INT32_MAX, &m->reject.retry_after_ms);
        ifl_meta_get_text(r, 3, "text", m->reject.text, sizeof m->reject.text);
        break;
    case IFL_WIRE_PING:
    case IFL_WIRE_PONG:
        decode_ping(r, &m->ping);
        break;
    case IFL_WIRE_LEASE:
        decode_lease(r, m, payload, n_payload);
        break;
    case IFL_WIRE_RETURN:
        decode_return(r, m);
        break;
    case IFL_WIRE_TRAJ_ACK:
        get_key(r, &m->traj_ack.key);
        ifl_meta_get_u64(r, 4, "lease_id", &m->traj_ack.lease_id);
        ifl_meta_get_i32(r, 5, "status", IFL_ACK_STORED, IFL_ACK_BEGUN, &m->traj_ack.status);
        break;
    case IFL_WIRE_NACK:
        get_key(r, &m->nack.key);
        ifl_meta_get_u64(r, 4, "lease_id", &m->nack.lease_id);
        ifl_meta_get_i32(r, 5, "code", 1, 255, &m->nack.code);
        ifl_meta_get_i32(r, 6, "retry_after_ms", 0, INT32_MAX, &m->nack.retry_after_ms);
        ifl_meta_get_text(r, 7, "text", m->nack.text, sizeof m->nack.text);
        break;
    case IFL_WIRE_WANN:
        decode_wann(r, m, payload, n_payload);
        break;
    case IFL_WIRE_WGET:
        decode_wget(r, &m->wget);
        break;
    case IFL_WIRE_WCHUNK:
        ifl_meta_get_i64(r, 1, "version", 0, INT64_MAX, &m->wchunk.version);
        ifl_meta_get_i32(r, 2, "chunk", 0, IFL_WIRE_CHUNKS_MAX - 1, &m->wchunk.chunk);
        ifl_meta_get_i32(r, 3, "codec", 0, 255, &m->wchunk.codec);
        if (n_payload < 1) ifl_meta_refuse(r, "payload", "is empty");
        m->wchunk.base = -1;
        if (m->wchunk.codec != IFL_CODEC_DENSE) {
            ifl_meta_get_i64(r, 4, "base", 0, INT64_MAX, &m->wchunk.base);
            ifl_meta_get_hash(r, 5, "hash", &m->wchunk.hash);
        }
        m->wchunk.data = payload;
        m->wchunk.n_data = n_payload;
        break;
    case IFL_WIRE_WNACK:
        ifl_meta_get_i64(r, 1, "version", 0, INT64_MAX, &m->wnack.version);
        ifl_meta_get_i64(r, 2, "newest", -1, INT64_MAX, &m->wnack.newest);
        ifl_meta_get_text(r, 3, "text", m->wnack.text, sizeof m->wnack.text);
        break;
    case IFL_WIRE_WREADY:
        ifl_meta_get_i64(r, 1, "version", 0, INT64_MAX, &m->wready.version);
        ifl_meta_get_hash(r, 2, "root", &m->wready.root);
        break;
    case IFL_WIRE_WSET:
        ifl_meta_get_i64(r, 1, "version", 0, INT64_MAX, &m->wset.version);
        ifl_meta_get_hash(r, 2, "root", &m->wset.root);
        ifl_meta_get_i32(r, 3, "rule", 0, 255, &m->wset.rule);
        break;
    case IFL_WIRE_WDONE:
        ifl_meta_get_i64(r, 1, "version", 0, INT64_MAX, &m->wdone.version);
        ifl_meta_get_hash(r, 2, "root", &m->wdone.root);
        ifl_meta_get_i64(r, 3, "stall_us", 0, INT64_MAX, &m->wdone.stall_us);
        break;
    case IFL_WIRE_CREDIT:
        ifl_meta_get_i32(r, 1, "sequences", 0, INT32_MAX, &m->credit.n_sequences);
        ifl_meta_get_i64(r, 2, "bytes", 0, INT64_MAX, &m->credit.n_bytes);
        break;
    case IFL_WIRE_DRAIN:
        ifl_meta_get_i64(r, 1, "deadline_ms", 0, INT64_MAX, &m->drain.deadline_ms);
        ifl_meta_get_text(r, 2, "text", m->drain.text, sizeof m->drain.text);
        break;
    case IFL_WIRE_BYE:
        ifl_meta_get_i32(r, 1, "code", 1, 255, &m->bye.code);
        ifl_meta_get_text(r, 2, "text", m->bye.text, sizeof m->bye.text);
        break;
    case IFL_WIRE_ERROR:
        ifl_meta_get_i32(r, 1, "code", 1, 255, &m->error.code);
        ifl_meta_get_u64(r, 2, "seq", &m->error.seq);
        ifl_meta_get_text(r, 3, "text", m->error.text, sizeof m->error.text);
        break;
    case IFL_WIRE_STATS:
        decode_stats(r, m);
        break;
    case IFL_WIRE_TRAJ:
    case IFL_WIRE_GROUP:
        break;
    }
}

static bool has_payload(int type) {
    return type == IFL_WIRE_LEASE || type == IFL_WIRE_TRAJ || type == IFL_WIRE_WANN ||
           type == IFL_WIRE_WCHUNK;
}

ifl_status ifl_wire_decode(ifl_message *out, const ifl_wire_header *h, const uint8_t *meta,
                           size_t n_meta, const uint8_t *payload, size_t n_payload,
                           ifl_error *err) {
    memset(out, 0, sizeof *out);
    if (h->type < IFL_WIRE_HELLO || h->type >= IFL_WIRE_GROUP)
        return ifl_fail(err, IFL_UNSUPPORTED, "message type %d is unknown to protocol %d.%d",
                        h->type, IFL_WIRE_MAJOR, IFL_WIRE_MINOR);
    if (h->n_payload != n_payload || (n_payload && !has_payload(h->type)))
        return ifl_fail(err, IFL_FORMAT, "%s announces %llu bytes of payload, the frame has %zu%s",
                        ifl_wire_type_name(h->type), (unsigned long long)h->n_payload, n_payload,
                        has_payload(h->type) ? "" : ", and this type has none");
    out->type = (ifl_wire_type)h->type;
    out->owned = true;
    out->policy = h->policy;
    out->session = h->session;
    out->seq = h->seq;
    out->ack = h->ack;
    ifl_status st;
    if (h->type == IFL_WIRE_TRAJ) {
        st = ifl_trajectory_decode(&out->traj.trajectory, meta, n_meta, payload, n_payload, err);
    } else {
        ifl_meta_reader r;
        st = ifl_meta_open(&r, ifl_wire_type_name(h->type), meta, n_meta, err);
        if (st == IFL_OK) decode_fields(&r, out, payload, n_payload);
        st = ifl_meta_close(&r);
    }
    if (st != IFL_OK) ifl_message_clear(out);
    return st;
}

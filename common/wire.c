#include "common/wire.h"

#include <stdlib.h>
#include <string.h>

static const char *const wire_type_names[] = {
    [IFL_WIRE_HELLO] = "HELLO",   [IFL_WIRE_WELCOME] = "WELCOME", [IFL_WIRE_REJECT] = "REJECT",
    [IFL_WIRE_PING] = "PING",     [IFL_WIRE_PONG] = "PONG",       [IFL_WIRE_LEASE] = "LEASE",
    [IFL_WIRE_RETURN] = "RETURN", [IFL_WIRE_TRAJ] = "TRAJ",       [IFL_WIRE_TRAJ_ACK] = "TRAJ_ACK",
    [IFL_WIRE_NACK] = "NACK",     [IFL_WIRE_WANN] = "WANN",       [IFL_WIRE_WGET] = "WGET",
    [IFL_WIRE_WCHUNK] = "WCHUNK", [IFL_WIRE_WNACK] = "WNACK",     [IFL_WIRE_WREADY] = "WREADY",
    [IFL_WIRE_WSET] = "WSET",     [IFL_WIRE_WDONE] = "WDONE",     [IFL_WIRE_CREDIT] = "CREDIT",
    [IFL_WIRE_DRAIN] = "DRAIN",   [IFL_WIRE_BYE] = "BYE",         [IFL_WIRE_ERROR] = "ERROR",
    [IFL_WIRE_STATS] = "STATS",   [IFL_WIRE_GROUP] = "GROUP",
};

const char *ifl_wire_type_name(int type) {
    int n = (int)(sizeof wire_type_names / sizeof *wire_type_names);
    return type > 0 && type < n && wire_type_names[type] ? wire_type_names[type] : "type?";
}

/* --- Header: fixed offsets, little-endian (common/WIRE.md) ------------------------------------ */

static void header_put(uint8_t *p, uint64_t v, int n) {
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t header_get(const uint8_t *p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

/* XXH3-64 of header[0..55] and meta as one string. */
static uint64_t header_hash(const uint8_t *head, const uint8_t *meta, size_t n_meta) {
    uint8_t joined[56 + IFL_WIRE_META_MAX];
    memcpy(joined, head, 56);
    if (n_meta) memcpy(joined + 56, meta, n_meta);
    return ifl_hash64(joined, 56 + n_meta);
}

void ifl_wire_header_encode(const ifl_wire_header *h, const uint8_t *meta, uint8_t out[64]) {
    header_put(out, IFL_WIRE_MAGIC, 4);
    out[4] = h->major;
    out[5] = h->minor;
    header_put(out + 6, h->type, 2);
    header_put(out + 8, h->flags, 4);
    header_put(out + 12, h->n_meta, 4);
    header_put(out + 16, h->n_payload, 8);
    header_put(out + 24, h->session, 8);
    header_put(out + 32, h->seq, 8);
    header_put(out + 40, h->ack, 8);
    header_put(out + 48, (uint64_t)h->policy, 8);
    header_put(out + 56, header_hash(out, meta, h->n_meta), 8);
}

ifl_status ifl_wire_header_decode(ifl_wire_header *out, const uint8_t *bytes, size_t n_bytes,
                                  const uint8_t *meta, size_t n_meta, ifl_error *err) {
    if (n_bytes != IFL_WIRE_HEADER_BYTES)
        return ifl_fail(err, IFL_FORMAT, "header of %zu bytes, wanted %d", n_bytes,
                        IFL_WIRE_HEADER_BYTES);
    if (header_get(bytes, 4) != IFL_WIRE_MAGIC)
        return ifl_fail(err, IFL_FORMAT,
                        "header begins with 0x%08x, wanted 0x%08x (not an Inflight peer?)",
                        (unsigned)header_get(bytes, 4), IFL_WIRE_MAGIC);
    ifl_wire_header h = {.major = bytes[4],
                         .minor = bytes[5],
                         .type = (uint16_t)header_get(bytes + 6, 2),
                         .flags = (uint32_t)header_get(bytes + 8, 4),
                         .n_meta = (uint32_t)header_get(bytes + 12, 4),
                         .n_payload = header_get(bytes + 16, 8),
                         .session = header_get(bytes + 24, 8),
                         .seq = header_get(bytes + 32, 8),
                         .ack = header_get(bytes + 40, 8),
                         .policy = (int64_t)header_get(bytes + 48, 8)};
    if (h.major != IFL_WIRE_MAJOR)
        return ifl_fail(err, IFL_UNSUPPORTED, "peer speaks protocol %d.%d, this side %d.%d",
                        h.major, h.minor, IFL_WIRE_MAJOR, IFL_WIRE_MINOR);
    if (h.n_meta > IFL_WIRE_META_MAX || h.n_payload > IFL_WIRE_PAYLOAD_MAX)
        return ifl_fail(err, IFL_LIMIT,
                        "%s announces %u bytes of meta and %llu of payload, limits %d and %d",
                        ifl_wire_type_name(h.type), h.n_meta, (unsigned long long)h.n_payload,
                        IFL_WIRE_META_MAX, IFL_WIRE_PAYLOAD_MAX);
    if (h.n_meta != n_meta)
        return ifl_fail(err, IFL_FORMAT, "%s announces %u bytes of meta, the frame has %zu",
                        ifl_wire_type_name(h.type), h.n_meta, n_meta);
    if (h.policy < -1)
        return ifl_fail(err, IFL_FORMAT, "%s names policy version %lld", ifl_wire_type_name(h.type),
                        (long long)h.policy);
    if (header_get(bytes + 56, 8) != header_hash(bytes, meta, n_meta))
        return ifl_fail(err, IFL_FORMAT, "%s: hash of header and meta is wrong",
                        ifl_wire_type_name(h.type));
    *out = h;
    return IFL_OK;
}

/* --- Messages --------------------------------------------------------------------------------- */

ifl_message ifl_message_make(ifl_wire_type type) {
    ifl_message m;
    memset(&m, 0, sizeof m);
    m.type = type;
    m.policy = -1;
    if (type == IFL_WIRE_WGET) m.wget.base = -1;
    if (type == IFL_WIRE_WCHUNK) m.wchunk.base = -1;
    return m;
}

void ifl_message_clear(ifl_message *m) {
    if (!m) return;
    if (m->owned) {
        free(m->storage);
        if (m->type == IFL_WIRE_TRAJ) ifl_trajectory_free(m->traj.trajectory);
        if (m->type == IFL_WIRE_WANN) ifl_manifest_free(m->wann.manifest);
        if (m->type == IFL_WIRE_WCHUNK && m->wchunk.frame_free)
            m->wchunk.frame_free(m->wchunk.frame);
    }
    memset(m, 0, sizeof *m);
}

void ifl_wire_frames_clear(ifl_wire_frames *frames) {
    if (!frames) return;
    free(frames->meta);
    free(frames->payload);
    memset(frames, 0, sizeof *frames);
}

/* --- Manifests -------------------------------------------------------------------------------- */

ifl_status ifl_manifest_create(ifl_manifest **out, int32_t n_tensors, int32_t n_chunks,
                               ifl_error *err) {
    *out = NULL;
    if (n_tensors < 1 || n_tensors > IFL_WIRE_TENSORS_MAX || n_chunks < 1 ||
        n_chunks > IFL_WIRE_CHUNKS_MAX)
        return ifl_fail(err, IFL_LIMIT,
                        "manifest of %d tensors and %d chunks, wanted 1 to %d and 1 to %d",
                        n_tensors, n_chunks, IFL_WIRE_TENSORS_MAX, IFL_WIRE_CHUNKS_MAX);
    ifl_manifest *m = calloc(1, sizeof *m);
    if (m) {
        m->tensors = calloc((size_t)n_tensors, sizeof *m->tensors);
        m->chunks = calloc((size_t)n_chunks, sizeof *m->chunks);
    }
    if (!m || !m->tensors || !m->chunks) {
        ifl_manifest_free(m);
        return ifl_fail(err, IFL_NOMEM, "out of memory: a manifest of %d tensors and %d chunks",
                        n_tensors, n_chunks);
    }
    m->n_tensors = n_tensors;
    m->n_chunks = n_chunks;
    m->parent = -1;
    *out = m;
    return IFL_OK;
}

void ifl_manifest_free(ifl_manifest *manifest) {
    if (!manifest) return;
    free(manifest->tensors);
    free(manifest->chunks);
    free(manifest);
}

/* The chain's next link: XXH3-128 of (last link, record). A chain needs no hash state on the heap,
 * so the root of a manifest can't fail for want of memory. */
static ifl_hash manifest_link(ifl_hash last, const uint64_t *fields, int n_fields, const char *name,
                              size_t n_name) {
    uint8_t record[16 + 8 * 6 + IFL_WIRE_TENSOR_NAME_MAX];
    header_put(record, last.low, 8);
    header_put(record + 8, last.high, 8);
    for (int i = 0; i < n_fields; i++)
        header_put(record + 16 + 8 * i, fields[i], 8);
    size_t n = 16 + 8 * (size_t)n_fields;
    if (n_name) memcpy(record + n, name, n_name);
    return ifl_hash_bytes(record, n + n_name);
}

ifl_hash ifl_manifest_root(const ifl_manifest *m) {
    ifl_hash h = {0, 0};
    h = manifest_link(h,
                      (uint64_t[]){(uint64_t)m->version, (uint64_t)m->parent, (uint64_t)m->codec,
                                   (uint64_t)m->n_elements, (uint64_t)m->n_tensors,
                                   (uint64_t)m->n_chunks},
                      6, NULL, 0);
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const ifl_manifest_tensor *t = &m->tensors[i];
        h = manifest_link(h,
                          (uint64_t[]){(uint64_t)t->offset, (uint64_t)t->n_elements, t->trainable,
                                       (uint64_t)t->delta_of},
                          4, t->name, strnlen(t->name, sizeof t->name));
    }
    for (int32_t i = 0; i < m->n_chunks; i++) {
        const ifl_manifest_chunk *c = &m->chunks[i];
        h = manifest_link(
            h, (uint64_t[]){(uint64_t)c->begin, (uint64_t)c->n_elements, c->hash.low, c->hash.high},
            4, NULL, 0);
    }
    return manifest_link(h, (uint64_t[]){m->content.low, m->content.high}, 2, NULL, 0);
}

ifl_status ifl_manifest_check(const ifl_manifest *m, ifl_error *err) {
    if (m->version < 0 || m->parent < -1 || m->parent >= m->version)
        return ifl_fail(err, IFL_FORMAT, "WANN: version %lld has parent %lld",
                        (long long)m->version, (long long)m->parent);
    if (m->codec != IFL_CODEC_DENSE)
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "WANN: version %lld has codec %d, only 0 (dense) is known",
                        (long long)m->version, m->codec);
    int64_t at = 0;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const ifl_manifest_tensor *t = &m->tensors[i];
        if (!memchr(t->name, 0, sizeof t->name) || !t->name[0] || t->delta_of < -1 ||
            t->delta_of >= m->n_tensors || t->delta_of == i)
            return ifl_fail(err, IFL_FORMAT, "WANN: tensor %d has no name or a wrong base", i);
        if (t->offset != at || t->n_elements < 1 || t->n_elements > m->n_elements - at)
            return ifl_fail(
                err, IFL_FORMAT,
                "WANN: tensor %s is [%lld, + %lld), wanted it to begin at %lld and end by %lld",
                t->name, (long long)t->offset, (long long)t->n_elements, (long long)at,
                (long long)m->n_elements);
        at += t->n_elements;
    }
    if (at != m->n_elements)
        return ifl_fail(err, IFL_FORMAT, "WANN: tensors cover %lld of %lld elements", (long long)at,
                        (long long)m->n_elements);
    at = 0;
    for (int32_t i = 0; i < m->n_chunks; i++) {
        const ifl_manifest_chunk *c = &m->chunks[i];
        if (c->begin != at || c->n_elements < 1 || c->n_elements > m->n_elements - at ||
            c->n_elements > IFL_WIRE_PAYLOAD_MAX / 2)
            return ifl_fail(
                err, IFL_FORMAT,
                "WANN: chunk %d is [%lld, + %lld), wanted it to begin at %lld, end by %lld and "
                "have at most %d elements",
                i, (long long)c->begin, (long long)c->n_elements, (long long)at,
                (long long)m->n_elements, IFL_WIRE_PAYLOAD_MAX / 2);
        at += c->n_elements;
    }
    if (at != m->n_elements)
        return ifl_fail(err, IFL_FORMAT, "WANN: chunks cover %lld of %lld elements", (long long)at,
                        (long long)m->n_elements);
    if (!ifl_hash_equal(ifl_manifest_root(m), m->root))
        return ifl_fail(err, IFL_FORMAT, "WANN: root of version %lld is wrong",
                        (long long)m->version);
    return IFL_OK;
}

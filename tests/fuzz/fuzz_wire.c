/* common/wire.h: header, meta and payload of a message, as they come from a peer.
 *
 *   u8 mode     1: a header of 64 bytes follows as it is; else it is made, with the right hash:
 *               u8 type, u8 flags, u8 minor, i8 policy
 *   u16 n_meta, meta, payload
 *
 * A message that is accepted must be one that we could have sent: it encodes, and what comes of
 * that is accepted and encodes to the same bytes. */
#include "common/wire.h"
#include "common/wire_meta.h"
#include "tests/fuzz/fuzz.h"

#define VOCAB 300000

/* Memory that decoding may take: 8 bytes for each of the message's (a manifest's tensor is 152
 * bytes for 24 at least), and the tree of up to 4,096 elements that msgpack makes of the meta. */
#define MEMORY_PER_BYTE 8
#define MEMORY_MORE (256 << 10)

/* A manifest's tables without the codec's check of the root, which would refuse nearly all. */
static ifl_manifest *manifest_read(const uint8_t *meta, size_t n_meta, fuzz_input in) {
    ifl_meta_reader r;
    ifl_manifest head = {0}, *m = NULL;
    ifl_error err = {0};
    if (ifl_meta_open(&r, "WANN", meta, n_meta, &err) == IFL_OK) {
        ifl_meta_get_i64(&r, 1, "version", 0, INT64_MAX, &head.version);
        ifl_meta_get_i64(&r, 2, "parent", -1, INT64_MAX, &head.parent);
        ifl_meta_get_i32(&r, 3, "codec", 0, 255, &head.codec);
        ifl_meta_get_i64(&r, 4, "elements", 1, INT64_MAX / 4, &head.n_elements);
        ifl_meta_get_i32(&r, 5, "tensors", 1, 64, &head.n_tensors);
        ifl_meta_get_i32(&r, 6, "chunks", 1, 64, &head.n_chunks);
        ifl_meta_get_hash(&r, 7, "content", &head.content);
    }
    if (ifl_meta_close(&r) != IFL_OK ||
        ifl_manifest_create(&m, head.n_tensors, head.n_chunks, &err) != IFL_OK)
        return NULL;
    m->version = head.version;
    m->parent = head.parent;
    m->codec = head.codec;
    m->n_elements = head.n_elements;
    m->content = head.content;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        ifl_manifest_tensor *t = &m->tensors[i];
        fuzz_input name = fuzz_take_part(&in, fuzz_take(&in, 2));
        size_t n = fuzz_left(&name) < sizeof t->name - 1 ? fuzz_left(&name) : sizeof t->name - 1;
        if (n) memcpy(t->name, name.at, n);
        t->offset = (int64_t)fuzz_take(&in, 8);
        t->n_elements = (int64_t)fuzz_take(&in, 8);
        t->trainable = fuzz_take(&in, 1) == 1;
        t->delta_of = (int32_t)fuzz_take(&in, 4);
    }
    for (int32_t i = 0; i < m->n_chunks; i++) {
        ifl_manifest_chunk *c = &m->chunks[i];
        c->begin = (int64_t)fuzz_take(&in, 8);
        c->n_elements = (int64_t)fuzz_take(&in, 8);
        c->hash.low = fuzz_take(&in, 8);
        c->hash.high = fuzz_take(&in, 8);
    }
    return m;
}

static void sealed(int type, uint8_t *meta, size_t n_meta, const uint8_t *payload,
                   size_t n_payload) {
    if (type == IFL_WIRE_TRAJ) fuzz_trajectory_seal(meta, n_meta, payload, n_payload);
    if (type != IFL_WIRE_WANN) return;
    ifl_manifest *m = manifest_read(meta, n_meta, fuzz_input_of(payload, n_payload));
    if (m) {
        ifl_error err;
        uint8_t *root = fuzz_meta_hash(meta, n_meta, 8);
        if (root) fuzz_put_hash(root, ifl_manifest_root(m));
        (void)ifl_manifest_check(m, &err);
    }
    ifl_manifest_free(m);
}

/* Gives the frames of an accepted message; payload owned, also WCHUNK's. */
static void encode(const ifl_message *m, ifl_wire_frames *f) {
    ifl_error err = {0};
    if (ifl_wire_encode(m, f, &err) != IFL_OK) {
        fprintf(stderr, "%s is accepted and can't be sent: %s\n", ifl_wire_type_name(m->type),
                err.text);
        abort();
    }
    if (m->type == IFL_WIRE_WCHUNK)
        f->payload = fuzz_copy(fuzz_input_of(m->wchunk.data, m->wchunk.n_data));
}

static void decode(const ifl_wire_frames *f, ifl_message *out) {
    uint8_t bytes[IFL_WIRE_HEADER_BYTES];
    ifl_wire_header h = {.major = IFL_WIRE_MAJOR,
                         .type = f->type,
                         .flags = f->flags,
                         .n_meta = (uint32_t)f->n_meta,
                         .n_payload = f->n_payload,
                         .policy = f->policy};
    ifl_wire_header_encode(&h, f->meta, bytes);
    ifl_error err = {0};
    ifl_wire_header got;
    FUZZ_CHECK(ifl_wire_header_decode(&got, bytes, sizeof bytes, f->meta, f->n_meta, &err) ==
               IFL_OK);
    if (ifl_wire_decode(out, &got, f->meta, f->n_meta, f->payload, f->n_payload, &err) != IFL_OK) {
        fprintf(stderr, "%s is sent and not accepted: %s\n", ifl_wire_type_name(f->type), err.text);
        abort();
    }
}

static void check_round_trip(const ifl_message *m) {
    ifl_wire_frames first = {0}, second = {0};
    ifl_message again;
    encode(m, &first);
    decode(&first, &again);
    encode(&again, &second);
    FUZZ_CHECK(first.type == second.type && first.policy == second.policy &&
               first.n_meta == second.n_meta && first.n_payload == second.n_payload &&
               memcmp(first.meta, second.meta, first.n_meta) == 0 &&
               (!first.n_payload || memcmp(first.payload, second.payload, first.n_payload) == 0));
    ifl_message_clear(&again);
    ifl_wire_frames_clear(&first);
    ifl_wire_frames_clear(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = fuzz_input_of(data, size);
    uint8_t header[IFL_WIRE_HEADER_BYTES];
    ifl_wire_header h = {.major = IFL_WIRE_MAJOR, .session = 1, .seq = 2, .ack = 3};
    fuzz_input raw = {0};
    bool as_it_is = fuzz_take(&in, 1) == 1;
    if (as_it_is) {
        raw = fuzz_take_part(&in, IFL_WIRE_HEADER_BYTES);
    } else {
        h.type = (uint16_t)fuzz_take(&in, 1);
        h.flags = (uint32_t)fuzz_take(&in, 1);
        h.minor = (uint8_t)fuzz_take(&in, 1);
        h.policy = (int8_t)fuzz_take(&in, 1);
    }
    fuzz_input meta_part = fuzz_take_part(&in, fuzz_take(&in, 2));
    size_t n_meta = fuzz_left(&meta_part), n_payload = fuzz_left(&in);
    uint8_t *meta = fuzz_copy(meta_part), *payload = fuzz_copy(in);
    uint8_t *bytes = header;
    size_t n_header = sizeof header;
    if (as_it_is) {
        bytes = fuzz_copy(raw);
        n_header = fuzz_left(&raw);
    } else {
        sealed(h.type, meta, n_meta, payload, n_payload);
        h.n_meta = (uint32_t)n_meta;
        h.n_payload = n_payload;
        ifl_wire_header_encode(&h, meta, header);
    }
    ifl_error err = {0};
    ifl_message m;
    fuzz_memory_begin();
    bool accepted = ifl_wire_header_decode(&h, bytes, n_header, meta, n_meta, &err) == IFL_OK &&
                    ifl_wire_decode(&m, &h, meta, n_meta, payload, n_payload, &err) == IFL_OK;
    FUZZ_CHECK(fuzz_memory_peak() <= MEMORY_PER_BYTE * (int64_t)(n_meta + n_payload) + MEMORY_MORE);
    if (accepted) {
        bool sound = true;
        if (m.type == IFL_WIRE_TRAJ)
            sound = ifl_trajectory_check(m.traj.trajectory, VOCAB, &err) == IFL_OK;
        if (m.type == IFL_WIRE_WANN)
            FUZZ_CHECK(ifl_manifest_check(m.wann.manifest, &err) == IFL_OK);
        if (sound) check_round_trip(&m);
        ifl_message_clear(&m);
    }
    if (as_it_is) free(bytes);
    free(meta);
    free(payload);
    return 0;
}

/* common/wire.h: what is written is what is read, and nothing that comes from outside does harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "common/wire.h"
#include "common/wire_meta.h"

#define N_TYPES 22

static const int32_t test_samples[3] = {0, 2, 7};
static const int32_t test_prompt[4] = {5, 0, 262143, 9};
static const ifl_wire_stat test_stats[2] = {{"tokens_per_s", 1234.5}, {"swap_stall_ms", -0.25}};

static ifl_manifest *make_manifest(void) {
    ifl_manifest *m;
    assert_int_equal(ifl_manifest_create(&m, 2, 3, NULL), IFL_OK);
    m->version = 12;
    m->parent = 11;
    m->n_elements = 1000;
    m->tensors[0] = (ifl_manifest_tensor){"model.embed_tokens.weight", 0, 900, true, -1};
    m->tensors[1] = (ifl_manifest_tensor){"model.norm.weight", 900, 100, false, -1};
    m->chunks[0] = (ifl_manifest_chunk){0, 400, {1, 2}};
    m->chunks[1] = (ifl_manifest_chunk){400, 400, {3, 4}};
    m->chunks[2] = (ifl_manifest_chunk){800, 200, {5, 6}};
    m->content = (ifl_hash){7, 8};
    m->root = ifl_manifest_root(m);
    return m;
}

/* A message of each type with every field away from zero. */
static ifl_message make_message(int type, ifl_manifest *manifest, ifl_trajectory *traj) {
    ifl_message m = ifl_message_make((ifl_wire_type)type);
    m.policy = 41;
    ifl_hash hash = {0x0123456789abcdef, 0xfedcba9876543210};
    ifl_trajectory_key key = {UINT64_MAX, 1023, IFL_PURPOSE_EVAL};
    switch (type) {
    case IFL_WIRE_HELLO:
        m.hello = (ifl_wire_hello){
            .major = 1,
            .minor_min = 0,
            .minor_max = 3,
            .build = "0.1",
            .caps = 5,
            .incarnation = {1, 2, 3},
            .name = "actor-1",
            .fingerprint = hash,
            .profile = hash,
            .tokenizer = hash,
            .held_version = -1,
            .nonce = UINT64_MAX,
            .parts = {.n = 2,
                      .part = {{"rope table", 0x0123456789abcdef}, {"dtypes", UINT64_MAX}}}};
        break;
    case IFL_WIRE_WELCOME:
        m.welcome = (ifl_wire_welcome){.minor = 4,
                                       .caps = 1,
                                       .session = 99,
                                       .run_uuid = "abc",
                                       .run_epoch = 2,
                                       .lease_s = 60,
                                       .heartbeat_ms = 1000,
                                       .heartbeat_misses = 3,
                                       .payload_max = IFL_WIRE_PAYLOAD_MAX,
                                       .chunk_window = 8,
                                       .current_version = 7,
                                       .nonce = 1,
                                       .trajectory_bytes = 12345};
        break;
    case IFL_WIRE_REJECT:
        m.reject = (ifl_wire_reject){2, 100, "no"};
        break;
    case IFL_WIRE_PING:
    case IFL_WIRE_PONG:
        m.ping = (ifl_wire_ping){-5, 6, -7, 8, 9};
        break;
    case IFL_WIRE_LEASE:
        m.lease = (ifl_wire_lease){.lease_id = 1,
                                   .attempt = 2,
                                   .purpose = 1,
                                   .task_serial = 3,
                                   .task_id = "t/1",
                                   .group_size = 8,
                                   .n_samples = 3,
                                   .samples = test_samples,
                                   .n_prompt = 4,
                                   .prompt = test_prompt,
                                   .checker = "numeric",
                                   .answer = "42",
                                   .meta = "{\"a\": 1}",
                                   .text = "6*7=",
                                   .temperature = 0.5f,
                                   .top_k = 40,
                                   .top_p = 0.9f,
                                   .max_new_tokens = 64,
                                   .n_stops = 2,
                                   .stops = {"\n", "</s>"},
                                   .seed = 77,
                                   .required_version = 12,
                                   .deadline_ms = 1000};
        break;
    case IFL_WIRE_RETURN:
        m.returned = (ifl_wire_return){1, IFL_RETURN_DRAIN, 3, test_samples, "drain"};
        break;
    case IFL_WIRE_TRAJ:
        m.traj.trajectory = traj;
        break;
    case IFL_WIRE_TRAJ_ACK:
        m.traj_ack = (ifl_wire_traj_ack){key, 5, IFL_ACK_DUPLICATE};
        break;
    case IFL_WIRE_NACK:
        m.nack = (ifl_wire_nack){key, 5, IFL_NACK_BUSY, 500, "later"};
        break;
    case IFL_WIRE_WANN:
        m.wann.manifest = manifest;
        break;
    case IFL_WIRE_WGET:
        m.wget = (ifl_wire_wget){12, 9, 3, {0, 5, 2}};
        break;
    case IFL_WIRE_WCHUNK:
        m.wchunk = (ifl_wire_wchunk){.version = 12,
                                     .chunk = 5,
                                     .codec = IFL_CODEC_ULP_GAP,
                                     .base = 9,
                                     .hash = hash,
                                     .data = (const uint8_t *)"0123",
                                     .n_data = 4};
        break;
    case IFL_WIRE_WNACK:
        m.wnack = (ifl_wire_wnack){11, 12, "superseded"};
        break;
    case IFL_WIRE_WREADY:
        m.wready = (ifl_wire_wready){12, hash};
        break;
    case IFL_WIRE_WSET:
        m.wset = (ifl_wire_wset){12, hash, 1};
        break;
    case IFL_WIRE_WDONE:
        m.wdone = (ifl_wire_wdone){12, hash, 350};
        break;
    case IFL_WIRE_CREDIT:
        m.credit = (ifl_wire_credit){16, INT64_MAX};
        break;
    case IFL_WIRE_DRAIN:
        m.drain = (ifl_wire_drain){30000, "preempted"};
        break;
    case IFL_WIRE_BYE:
        m.bye = (ifl_wire_bye){IFL_BYE_DONE, "end"};
        break;
    case IFL_WIRE_ERROR:
        m.error = (ifl_wire_error){IFL_WIRE_E_FENCED, UINT64_MAX, "fenced"};
        break;
    case IFL_WIRE_STATS:
        m.stats = (ifl_wire_stats){2, test_stats};
        break;
    default:
        break;
    }
    return m;
}

static ifl_trajectory *make_trajectory(void) {
    ifl_trajectory *t;
    assert_int_equal(ifl_trajectory_create(&t, test_prompt, 4, NULL), IFL_OK);
    for (int i = 0; i < 5; i++)
        assert_int_equal(ifl_trajectory_append(t, i, -0.5f, 3 + i / 2, NULL), IFL_OK);
    return t;
}

/* The frames of a message as they would lie on the wire. */
typedef struct frames {
    uint8_t header[64];
    uint8_t *meta, *payload;
    size_t n_meta, n_payload;
} frames;

static frames encode(const ifl_message *m) {
    ifl_wire_frames f;
    ifl_error err = {0};
    if (ifl_wire_encode(m, &f, &err) != IFL_OK) fail_msg("%s", err.text);
    frames out = {
        .meta = f.meta, .n_meta = f.n_meta, .payload = f.payload, .n_payload = f.n_payload};
    if (m->type == IFL_WIRE_WCHUNK) {
        out.payload = malloc(m->wchunk.n_data);
        memcpy(out.payload, m->wchunk.data, m->wchunk.n_data);
    }
    ifl_wire_header h = {.major = 1,
                         .minor = 0,
                         .type = f.type,
                         .n_meta = (uint32_t)f.n_meta,
                         .n_payload = f.n_payload,
                         .session = 9,
                         .seq = 10,
                         .ack = 11,
                         .policy = f.policy};
    ifl_wire_header_encode(&h, f.meta, out.header);
    return out;
}

static ifl_status decode(ifl_message *out, const uint8_t *header, const uint8_t *meta,
                         size_t n_meta, const uint8_t *payload, size_t n_payload, ifl_error *err) {
    ifl_wire_header h;
    IFL_TRY(ifl_wire_header_decode(&h, header, 64, meta, n_meta, err));
    return ifl_wire_decode(out, &h, meta, n_meta, payload, n_payload, err);
}

/* --- what is written is what is read ---------------------------------------------------------- */

static void test_every_type_round_trips(void **state) {
    (void)state;
    ifl_manifest *manifest = make_manifest();
    ifl_trajectory *traj = make_trajectory();
    for (int type = 1; type <= N_TYPES; type++) {
        ifl_message in = make_message(type, manifest, traj), out;
        frames f = encode(&in);
        ifl_error err = {0};
        if (decode(&out, f.header, f.meta, f.n_meta, f.payload, f.n_payload, &err) != IFL_OK)
            fail_msg("%s: %s", ifl_wire_type_name(type), err.text);
        assert_int_equal(out.type, type);
        assert_true(out.policy == 41 && out.session == 9 && out.seq == 10 && out.ack == 11);
        /* Encoding what was decoded gives the same bytes: no field was lost or bent. */
        frames g = encode(&out);
        assert_int_equal(g.n_meta, f.n_meta);
        assert_memory_equal(g.meta, f.meta, f.n_meta);
        assert_int_equal(g.n_payload, f.n_payload);
        if (f.n_payload) assert_memory_equal(g.payload, f.payload, f.n_payload);
        assert_memory_equal(g.header, f.header, 64);
        if (type == IFL_WIRE_LEASE) {
            assert_string_equal(out.lease.meta, "{\"a\": 1}");
            assert_memory_equal(out.lease.prompt, test_prompt, sizeof test_prompt);
            assert_string_equal(out.lease.stops[1], "</s>");
            assert_int_equal(out.lease.required_version, 12);
        }
        if (type == IFL_WIRE_HELLO)
            assert_memory_equal(&out.hello.parts, &in.hello.parts, sizeof in.hello.parts);
        if (type == IFL_WIRE_STATS) assert_true(out.stats.entries[1].value == -0.25);
        if (type == IFL_WIRE_WGET) assert_true(out.wget.chunks[1] == 5 && out.wget.base == 9);
        if (type == IFL_WIRE_WCHUNK)
            assert_true(out.wchunk.base == 9 && ifl_hash_equal(out.wchunk.hash, in.wchunk.hash));
        ifl_message_clear(&out);
        free(f.meta), free(f.payload), free(g.meta), free(g.payload);
    }
    ifl_manifest_free(manifest);
    ifl_trajectory_free(traj);
}

static void test_header_layout_is_fixed(void **state) {
    (void)state;
    ifl_wire_header h = {1, 2, 0x0304, 5, 0, 6, 7, 8, 9, -1};
    uint8_t b[64];
    ifl_wire_header_encode(&h, NULL, b);
    static const uint8_t want[56] = {'I', 'F', 'L', '1', 1,   2,   4,   3,  5, 0, 0, 0, 0, 0, 0, 0,
                                     6,   0,   0,   0,   0,   0,   0,   0,  7, 0, 0, 0, 0, 0, 0, 0,
                                     8,   0,   0,   0,   0,   0,   0,   0,  9, 0, 0, 0, 0, 0, 0, 0,
                                     255, 255, 255, 255, 255, 255, 255, 255};
    assert_memory_equal(b, want, 56);
    ifl_wire_header out;
    assert_int_equal(ifl_wire_header_decode(&out, b, 64, NULL, 0, NULL), IFL_OK);
    assert_true(out.type == 0x0304 && out.n_payload == 6 && out.policy == -1);
}

static void test_every_flipped_header_bit_is_noticed(void **state) {
    (void)state;
    ifl_message m = make_message(IFL_WIRE_PING, NULL, NULL);
    frames f = encode(&m);
    ifl_wire_header h;
    for (int bit = 0; bit < 512; bit++) {
        f.header[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_not_equal(ifl_wire_header_decode(&h, f.header, 64, f.meta, f.n_meta, NULL),
                             IFL_OK);
        f.header[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t bit = 0; bit < 8 * f.n_meta; bit++) {
        f.meta[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_not_equal(ifl_wire_header_decode(&h, f.header, 64, f.meta, f.n_meta, NULL),
                             IFL_OK);
        f.meta[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_int_equal(ifl_wire_header_decode(&h, f.header, 63, f.meta, f.n_meta, NULL), IFL_FORMAT);
    assert_int_equal(ifl_wire_header_decode(&h, f.header, 64, f.meta, f.n_meta - 1, NULL),
                     IFL_FORMAT);
    free(f.meta);
}

static void test_encoder_refuses_what_the_decoder_would(void **state) {
    (void)state;
    ifl_wire_frames f;
    ifl_error err = {0};
    ifl_message m = make_message(IFL_WIRE_LEASE, NULL, NULL);
    m.lease.n_prompt = 0;
    assert_int_equal(ifl_wire_encode(&m, &f, &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "prompt tokens is 0"));
    m = make_message(IFL_WIRE_LEASE, NULL, NULL);
    m.lease.group_size = 7; /* sample 7 lies outside */
    assert_int_equal(ifl_wire_encode(&m, &f, &err), IFL_LIMIT);
    ifl_wire_frames_clear(&f);
    m = make_message(IFL_WIRE_LEASE, NULL, NULL);
    m.lease.temperature = NAN;
    assert_int_equal(ifl_wire_encode(&m, &f, &err), IFL_FORMAT);
    ifl_wire_frames_clear(&f);
    m = make_message(IFL_WIRE_WGET, NULL, NULL);
    m.wget.n_chunks = 0;
    assert_int_equal(ifl_wire_encode(&m, &f, &err), IFL_LIMIT);
    ifl_wire_stat bad = {"x", INFINITY};
    m = make_message(IFL_WIRE_STATS, NULL, NULL);
    m.stats = (ifl_wire_stats){1, &bad};
    assert_int_equal(ifl_wire_encode(&m, &f, &err), IFL_FORMAT);
    m.stats.n = IFL_WIRE_STATS_MAX + 1;
    assert_int_equal(ifl_wire_encode(&m, &f, &err), IFL_LIMIT);
    m = ifl_message_make(IFL_WIRE_GROUP);
    assert_int_equal(ifl_wire_encode(&m, &f, &err), IFL_UNSUPPORTED);
    m = make_message(IFL_WIRE_HELLO, NULL, NULL);
    m.hello.parts.n = IFL_PROFILE_PARTS_MAX + 1;
    assert_int_equal(ifl_wire_encode(&m, &f, &err), IFL_LIMIT);
    ifl_wire_frames_clear(&f);
}

static void test_welcome_grants_bytes_since_1_4(void **state) {
    (void)state;
    for (uint16_t minor = 3; minor <= 4; minor++) {
        ifl_message m = make_message(IFL_WIRE_WELCOME, NULL, NULL), out;
        ifl_error err = {0};
        m.welcome.minor = minor;
        frames f = encode(&m);
        assert_int_equal(decode(&out, f.header, f.meta, f.n_meta, f.payload, f.n_payload, &err),
                         IFL_OK);
        assert_int_equal(out.welcome.trajectory_bytes, minor == 4 ? 12345 : 0);
        free(f.meta);
    }
    ifl_message m = make_message(IFL_WIRE_WELCOME, NULL, NULL);
    ifl_wire_frames f;
    m.welcome.trajectory_bytes = 0; /* nobody could ever send anything */
    assert_int_not_equal(ifl_wire_encode(&m, &f, NULL), IFL_OK);
    ifl_wire_frames_clear(&f);
}

/* A peer of 1.0 knows no parts; one of 1.1 must name as many hashes as parts. */
static void test_hello_of_1_0_has_no_parts_and_of_1_1_all_of_them(void **state) {
    (void)state;
    ifl_message m = make_message(IFL_WIRE_HELLO, NULL, NULL), out;
    ifl_error err = {0};
    m.hello.minor_max = 0;
    frames f = encode(&m);
    assert_int_equal(decode(&out, f.header, f.meta, f.n_meta, f.payload, f.n_payload, &err),
                     IFL_OK);
    assert_int_equal(out.hello.parts.n, 0);
    free(f.meta);
    m.hello.minor_max = 1;
    f = encode(&m);
    /* The last 16 bytes are the two hashes: one byte fewer, its length corrected. */
    assert_int_equal(f.meta[f.n_meta - 17], 16);
    f.meta[f.n_meta - 17] = 15;
    ifl_wire_header h = {.major = 1, .type = IFL_WIRE_HELLO, .n_meta = (uint32_t)f.n_meta - 1};
    ifl_wire_header_encode(&h, f.meta, f.header);
    assert_int_equal(decode(&out, f.header, f.meta, f.n_meta - 1, NULL, 0, &err), IFL_FORMAT);
    assert_non_null(strstr(err.text, "hashes of profile parts"));
    free(f.meta);
}

static void test_manifest_check_refuses_each_lie(void **state) {
    (void)state;
    for (int mutant = 0; mutant < 12; mutant++) {
        ifl_manifest *m = make_manifest();
        assert_int_equal(ifl_manifest_check(m, NULL), IFL_OK);
        switch (mutant) {
        case 0:
            m->chunks[1].hash.low ^= 1;
            break; /* the root notices */
        case 1:
            m->content.high ^= 1;
            break;
        case 2:
            m->tensors[1].trainable = true;
            break;
        case 3:
            m->tensors[1].name[0] = 'x';
            break;
        case 4:
            m->chunks[1].begin = 401;
            break;
        case 5:
            m->chunks[2].n_elements = INT64_MAX;
            break;
        case 6:
            m->tensors[0].n_elements = INT64_MAX;
            break;
        case 7:
            m->n_elements = 999;
            break;
        case 8:
            m->tensors[1].delta_of = 5;
            break;
        case 9:
            m->parent = 12;
            break;
        case 10:
            m->codec = IFL_CODEC_ULP_GAP;
            break;
        case 11:
            memset(m->tensors[0].name, 'n', sizeof m->tensors[0].name);
            break;
        }
        if (mutant > 3) m->root = ifl_manifest_root(m); /* even with the right root */
        if (ifl_manifest_check(m, NULL) == IFL_OK) fail_msg("mutant %d passed", mutant);
        ifl_manifest_free(m);
    }
}

/* --- the scan before msgpack ------------------------------------------------------------------ */

static void scan_is(const char *bytes, size_t n, ifl_status want) {
    uint8_t *copy = malloc(n ? n : 1); /* exact size, for the sanitizer */
    memcpy(copy, bytes, n);
    ifl_status got = ifl_meta_scan(copy, n, NULL);
    free(copy);
    if (got != want)
        fail_msg("scan of %zu bytes 0x%02x...: %d, wanted %d", n, n ? (uint8_t)bytes[0] : 0, got,
                 want);
}

static void test_scan_refuses_what_msgpack_would_swallow(void **state) {
    (void)state;
    scan_is("\x80", 1, IFL_OK);
    scan_is("\x82\x01\x02\x03\xa1x", 6, IFL_OK);
    scan_is("\x82\x01\xc0\x03\xa1x", 6, IFL_FORMAT);        /* nil */
    scan_is("\x81\x01\xdd\x01\x00\x00\x00", 7, IFL_FORMAT); /* 402 MB asked for with 5 bytes */
    scan_is("\x81\x01\xdd\xff\x00\x00\x00", 7, IFL_FORMAT);
    scan_is("\x81\x01\xdf\x80\x00\x00\x00", 7, IFL_FORMAT); /* 2^32 values: no overflow */
    scan_is("\x81\x01\xc6\xff\xff\xff\xff", 7, IFL_FORMAT);
    scan_is("\x82\x01\x02\x01\x03", 5, IFL_FORMAT); /* the same key twice */
    scan_is("\x82\x02\x02\x01\x03", 5, IFL_FORMAT); /* keys descend */
    scan_is("\x81\xff\x01", 3, IFL_FORMAT);         /* a negative key */
    scan_is("\x81\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, IFL_FORMAT); /* one beyond int64 */
    scan_is("\x81\xa1k\x01", 4, IFL_FORMAT);                                 /* a text key */
    scan_is("\x80\x00", 2, IFL_FORMAT);                                      /* something behind */
    scan_is("\x93\x01\x02\x03", 4, IFL_FORMAT);                              /* no map */
    scan_is("\x81\x01\xd4\x00\x00", 5, IFL_FORMAT);                          /* ext */
    scan_is("\x81\x01\xc1", 3, IFL_FORMAT);
    scan_is("\x81\x01\xcd\x01", 4, IFL_FORMAT); /* cut off */
    scan_is("\x81\x01", 2, IFL_FORMAT);
    scan_is("", 0, IFL_FORMAT);
    scan_is("\x81\x01\x91\x91\x91\x91\x91\x91\x91\x05", 10, IFL_OK);        /* depth 8 */
    scan_is("\x81\x01\x91\x91\x91\x91\x91\x91\x91\x91\x05", 11, IFL_LIMIT); /* 9 */
    char many[5003] = {(char)0x81, 1, (char)0xdc, 4996 >> 8, (char)(4996 & 255)};
    scan_is(many, 5 + 4996, IFL_LIMIT); /* elements */
    char *huge = calloc(1, IFL_META_BYTES_MAX + 1);
    scan_is(huge, IFL_META_BYTES_MAX + 1, IFL_LIMIT);
    free(huge);
}

/* --- fuzz ------------------------------------------------------------------------------------- */

/* 200,000 mutated messages, with the header's hash made right again for most, so that the bytes get
 * past it. Whatever decodes must encode again. */
static void test_fuzzed_messages_do_no_harm(void **state) {
    (void)state;
    ifl_manifest *manifest = make_manifest();
    ifl_trajectory *traj = make_trajectory();
    frames corpus[N_TYPES + 1];
    for (int type = 1; type <= N_TYPES; type++) {
        ifl_message m = make_message(type, manifest, traj);
        corpus[type] = encode(&m);
    }
    ifl_rng_key key = {20240608, 1, IFL_RNG_TEST};
    int n_decoded = 0, n_refused = 0;
    for (uint64_t i = 0; i < 200000; i++) {
        const frames *f = &corpus[1 + ifl_rng_below(&key, i, 0, N_TYPES)];
        size_t n_meta =
            ifl_rng_below(&key, i, 1, 10) ? f->n_meta : ifl_rng_below(&key, i, 2, f->n_meta + 1);
        size_t n_payload = f->n_payload;
        if (n_payload && !ifl_rng_below(&key, i, 3, 10))
            n_payload = ifl_rng_below(&key, i, 4, n_payload + 1);
        uint8_t *meta = malloc(n_meta ? n_meta : 1), *payload = malloc(n_payload ? n_payload : 1),
                header[64];
        memcpy(meta, f->meta, n_meta);
        if (n_payload) memcpy(payload, f->payload, n_payload);
        memcpy(header, f->header, 64);
        uint32_t n_edits = (uint32_t)ifl_rng_below(&key, i, 5, 4);
        for (uint32_t e = 0; e < n_edits; e++) {
            uint64_t where = ifl_rng_below(&key, i, 6 + 4 * e, n_meta + n_payload + 1);
            uint64_t r = ifl_rng_u64(&key, i, 7 + 4 * e);
            uint8_t byte =
                r & 256 ? (uint8_t)r : (uint8_t)(1u << (r & 7)); /* any byte, or one bit */
            if (where < n_meta)
                meta[where] = r & 256 ? byte : meta[where] ^ byte;
            else if (where < n_meta + n_payload)
                payload[where - n_meta] ^= byte;
            else
                header[r % 64] ^= byte;
        }
        ifl_wire_header h;
        if (ifl_rng_below(&key, i, 60, 8)) { /* a peer that means it: sizes and hash are right */
            int type = (int)(header[6] | header[7] << 8);
            h = (ifl_wire_header){.major = 1,
                                  .type = (uint16_t)type,
                                  .n_meta = (uint32_t)n_meta,
                                  .n_payload = n_payload,
                                  .session = 9,
                                  .seq = 10,
                                  .ack = 11,
                                  .policy = 41};
            ifl_wire_header_encode(&h, meta, header);
        }
        ifl_message m;
        ifl_error err = {0};
        if (decode(&m, header, meta, n_meta, payload, n_payload, &err) == IFL_OK) {
            n_decoded++;
            ifl_wire_frames again;
            if (ifl_wire_encode(&m, &again, &err) != IFL_OK)
                fail_msg("%llu: decoded but does not encode: %s", (unsigned long long)i, err.text);
            ifl_wire_frames_clear(&again);
            ifl_message_clear(&m);
        } else {
            n_refused++;
            assert_true(err.text[0] != 0);
        }
        free(meta);
        free(payload);
    }
    assert_true(n_decoded > 20000 && n_refused > 20000);
    for (int type = 1; type <= N_TYPES; type++)
        free(corpus[type].meta), free(corpus[type].payload);
    ifl_manifest_free(manifest);
    ifl_trajectory_free(traj);
}

/* Random bytes as meta: nothing gets past the scan that msgpack-c can't parse. */
static void test_fuzzed_meta_parses_when_the_scan_lets_it(void **state) {
    (void)state;
    ifl_rng_key key = {20240609, 1, IFL_RNG_TEST};
    int n_passed = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        size_t n = 1 + ifl_rng_below(&key, i, 0, 24);
        uint8_t *bytes = malloc(n);
        bytes[0] = (uint8_t)(0x80 + ifl_rng_below(&key, i, 1, 4));
        for (size_t b = 1; b < n; b++) {
            uint64_t r = ifl_rng_u64(&key, i, (uint32_t)(b + 1));
            bytes[b] = r & 0x300 ? (uint8_t)((r & 15) + (b & 1 ? b / 2 : 0)) : (uint8_t)(r >> 32);
        }
        ifl_meta_reader r;
        ifl_error err = {0};
        if (ifl_meta_scan(bytes, n, NULL) == IFL_OK) {
            n_passed++;
            if (ifl_meta_open(&r, "fuzz", bytes, n, &err) != IFL_OK) fail_msg("%s", err.text);
            ifl_meta_close(&r);
        }
        free(bytes);
    }
    assert_true(n_passed > 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type_round_trips),
        cmocka_unit_test(test_header_layout_is_fixed),
        cmocka_unit_test(test_every_flipped_header_bit_is_noticed),
        cmocka_unit_test(test_encoder_refuses_what_the_decoder_would),
        cmocka_unit_test(test_hello_of_1_0_has_no_parts_and_of_1_1_all_of_them),
        cmocka_unit_test(test_welcome_grants_bytes_since_1_4),
        cmocka_unit_test(test_manifest_check_refuses_each_lie),
        cmocka_unit_test(test_scan_refuses_what_msgpack_would_swallow),
        cmocka_unit_test(test_fuzzed_messages_do_no_harm),
        cmocka_unit_test(test_fuzzed_meta_parses_when_the_scan_lets_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

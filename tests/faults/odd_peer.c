#include "tests/faults/odd_peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/rng.h"

#define ANSWER_MS 4000
#define CROWD_MAX 256
#define LIES 3 /* that end a session */

typedef struct odd_link {
    void *zmq, *socket;
    const odd_facts *facts;
    uint8_t identity[IFL_WIRE_IDENTITY_BYTES];
    uint64_t session, seq, seen; /* numbers sent and received last */
    ifl_wire_welcome welcome;
} odd_link;

static bool no(char why[ODD_TEXT_MAX], const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static bool no(char why[ODD_TEXT_MAX], const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(why, ODD_TEXT_MAX, format, args);
    va_end(args);
    return false;
}

/* --- Links ------------------------------------------------------------------------------------ */

static void link_socket(odd_link *l, int port, bool named) {
    char endpoint[64];
    int zero = 0, big = 64 << 20, send_ms = 5000; /* a learner that lets nobody in takes nothing */
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port);
    l->socket = zmq_socket(l->zmq, ZMQ_DEALER);
    if (named) zmq_setsockopt(l->socket, ZMQ_ROUTING_ID, l->identity, sizeof l->identity);
    zmq_setsockopt(l->socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(l->socket, ZMQ_SNDBUF, &big, sizeof big);
    zmq_setsockopt(l->socket, ZMQ_SNDTIMEO, &send_ms, sizeof send_ms);
    if (l->facts->learner_key[0]) {
        const ifl_key_pair *own = &l->facts->own;
        zmq_setsockopt(l->socket, ZMQ_CURVE_SERVERKEY, l->facts->learner_key, IFL_KEY_TEXT_MAX);
        zmq_setsockopt(l->socket, ZMQ_CURVE_PUBLICKEY, own->public_key, IFL_KEY_TEXT_MAX);
        zmq_setsockopt(l->socket, ZMQ_CURVE_SECRETKEY, own->secret_key, IFL_KEY_TEXT_MAX);
    }
    zmq_connect(l->socket, endpoint);
}

static void link_open(odd_link *l, const odd_facts *facts, bool named) {
    *l = (odd_link){.zmq = zmq_ctx_new(), .facts = facts};
    if (getrandom(l->identity, sizeof l->identity, 0) < 0) abort();
    l->identity[0] |= 1; /* ZeroMQ keeps those that begin with 0 for itself */
    link_socket(l, facts->port, named);
}

static void link_close(odd_link *l) {
    if (l->socket) zmq_close(l->socket);
    if (l->zmq) zmq_ctx_term(l->zmq);
    *l = (odd_link){0};
}

/* The frames of a message under a session and number, as bytes. */
typedef struct odd_frames_of {
    uint8_t header[IFL_WIRE_HEADER_BYTES];
    ifl_wire_frames frames;
} odd_frames_of;

static bool frames_make(odd_frames_of *out, const ifl_message *m, uint64_t session, uint64_t seq,
                        uint64_t ack) {
    if (ifl_wire_encode(m, &out->frames, NULL) != IFL_OK) return false;
    ifl_wire_header header = {.major = IFL_WIRE_MAJOR,
                              .minor = IFL_WIRE_MINOR,
                              .type = out->frames.type,
                              .flags = out->frames.flags,
                              .n_meta = (uint32_t)out->frames.n_meta,
                              .n_payload = out->frames.n_payload,
                              .session = session,
                              .seq = seq,
                              .ack = ack,
                              .policy = out->frames.policy};
    ifl_wire_header_encode(&header, out->frames.meta, out->header);
    return true;
}

static void frames_send(odd_link *l, const odd_frames_of *f) {
    bool payload = f->frames.n_payload > 0;
    zmq_send(l->socket, f->header, sizeof f->header, ZMQ_SNDMORE);
    zmq_send(l->socket, f->frames.meta, f->frames.n_meta, payload ? ZMQ_SNDMORE : 0);
    if (payload) zmq_send(l->socket, f->frames.payload, f->frames.n_payload, 0);
}

static bool message_send(odd_link *l, const ifl_message *m) {
    odd_frames_of f = {0};
    bool outside = m->type == IFL_WIRE_HELLO;
    bool made = frames_make(&f, m, outside ? 0 : l->session, outside ? 0 : ++l->seq, l->seen);
    if (made) frames_send(l, &f);
    ifl_wire_frames_clear(&f.frames);
    return made;
}

/* The next message; false when none that can be read comes in time. A chunk's bytes go into `data`,
 * which is then not NULL; without it chunks are passed over. */
static bool message_take(odd_link *l, int64_t wait_ms, ifl_message *m, zmq_msg_t *data) {
    int64_t until = ifl_clock_ns() + wait_ms * 1000000;
    for (;;) {
        int64_t left = (until - ifl_clock_ns()) / 1000000;
        zmq_pollitem_t item = {l->socket, 0, ZMQ_POLLIN, 0};
        if (left < 0 || zmq_poll(&item, 1, left) <= 0) return false;
        zmq_msg_t parts[3];
        int n = 0, more = 1;
        while (more) {
            zmq_msg_t part;
            zmq_msg_init(&part);
            zmq_msg_recv(&part, l->socket, 0);
            more = zmq_msg_more(&part);
            if (n < 3)
                parts[n++] = part;
            else
                zmq_msg_close(&part);
        }
        ifl_wire_header h;
        bool sound =
            n >= 2 && ifl_wire_header_decode(&h, zmq_msg_data(&parts[0]), zmq_msg_size(&parts[0]),
                                             zmq_msg_data(&parts[1]), zmq_msg_size(&parts[1]),
                                             NULL) == IFL_OK;
        if (sound && h.seq > l->seen) l->seen = h.seq;
        bool got = sound && (data || h.type != IFL_WIRE_WCHUNK) &&
                   ifl_wire_decode(m, &h, zmq_msg_data(&parts[1]), zmq_msg_size(&parts[1]),
                                   n == 3 ? zmq_msg_data(&parts[2]) : NULL,
                                   n == 3 ? zmq_msg_size(&parts[2]) : 0, NULL) == IFL_OK;
        if (got && m->type == IFL_WIRE_WCHUNK) { /* not the message's own: that would free it */
            zmq_msg_move(data, &parts[2]);
            m->wchunk.data = zmq_msg_data(data);
        }
        for (int i = 0; i < n; i++)
            zmq_msg_close(&parts[i]);
        if (got) return true;
    }
}

static bool message_receive(odd_link *l, int64_t wait_ms, ifl_message *m) {
    return message_take(l, wait_ms, m, NULL);
}

/* Waits for one of these types, passing over others. */
static bool message_await(odd_link *l, int type, int other, int64_t wait_ms, ifl_message *m) {
    int64_t until = ifl_clock_ns() + wait_ms * 1000000;
    while (message_receive(l, (until - ifl_clock_ns()) / 1000000, m)) {
        if ((int)m->type == type || (int)m->type == other) return true;
        ifl_message_clear(m);
    }
    return false;
}

static ifl_message hello_make(const odd_link *l, const odd_facts *facts, const char *name) {
    ifl_message m = ifl_message_make(IFL_WIRE_HELLO);
    m.hello = (ifl_wire_hello){.major = IFL_WIRE_MAJOR,
                               .minor_max = IFL_WIRE_MINOR,
                               .build = "odd peer",
                               .fingerprint = facts->fingerprint,
                               .profile = facts->profile,
                               .tokenizer = facts->tokenizer,
                               .held_version = -1,
                               .nonce = (uint64_t)ifl_clock_ns()};
    memcpy(m.hello.incarnation, l->identity, sizeof l->identity);
    snprintf(m.hello.name, sizeof m.hello.name, "%s", name);
    return m;
}

/* Says HELLO; the answer is a WELCOME or a REJECT. */
static bool hello_say(odd_link *l, const ifl_message *hello, ifl_message *answer) {
    return message_send(l, hello) &&
           message_await(l, IFL_WIRE_WELCOME, IFL_WIRE_REJECT, ANSWER_MS, answer);
}

static bool join(odd_link *l, const odd_facts *facts, const char *name, char why[ODD_TEXT_MAX]) {
    ifl_message hello = hello_make(l, facts, name), answer;
    if (!hello_say(l, &hello, &answer)) return no(why, "no answer to HELLO in %d ms", ANSWER_MS);
    bool welcome = answer.type == IFL_WIRE_WELCOME;
    if (welcome) {
        l->welcome = answer.welcome;
        l->session = answer.session;
        l->seq = 0;
    } else {
        no(why, "an honest HELLO was refused: %.300s", answer.reject.text);
    }
    ifl_message_clear(&answer);
    return welcome;
}

static void leave(odd_link *l) {
    ifl_message bye = ifl_message_make(IFL_WIRE_BYE), answer;
    bye.bye.code = IFL_BYE_DRAINED;
    if (l->session && message_send(l, &bye) &&
        message_await(l, IFL_WIRE_ERROR, IFL_WIRE_BYE, 50, &answer))
        ifl_message_clear(&answer);
    link_close(l);
}

/* --- Rows 7, 8 -------------------------------------------------------------------------------- */

static bool hash_parse(const char *text, ifl_hash *out) {
    if (strspn(text, "0123456789abcdef") < 32) return false;
    for (int half = 0; half < 2; half++) {
        char digits[17] = {0};
        memcpy(digits, text + 16 * half, 16);
        /* ifl_hash_text writes the high word first. */
        *(half ? &out->low : &out->high) = strtoull(digits, NULL, 16);
    }
    char again[33];
    ifl_hash_text(*out, again);
    if (strncmp(again, text, 32) == 0) return true;
    uint64_t low = out->low;
    out->low = out->high;
    out->high = low;
    ifl_hash_text(*out, again);
    return strncmp(again, text, 32) == 0;
}

/* Is refused for hash `which` and gives the learner's. */
static bool refused_for(const odd_facts *facts, int which, ifl_hash *ours, char why[ODD_TEXT_MAX]) {
    static const int codes[] = {IFL_REJECT_FINGERPRINT, IFL_REJECT_PROFILE, IFL_REJECT_TOKENIZER};
    odd_facts lie = *facts;
    ifl_hash wrong = {0x1234567890abcdefu, 0xfedcba0987654321u + (uint64_t)which};
    *(which == 0 ? &lie.fingerprint : which == 1 ? &lie.profile : &lie.tokenizer) = wrong;
    odd_link l;
    ifl_message answer;
    link_open(&l, facts, true);
    ifl_message hello = hello_make(&l, &lie, "another-build");
    bool got = hello_say(&l, &hello, &answer);
    bool right = false;
    if (!got) {
        no(why, "no answer to a HELLO with another hash");
    } else if (answer.type != IFL_WIRE_REJECT || answer.reject.code != codes[which]) {
        no(why, "a HELLO with another hash %d was answered by %s", which,
           ifl_wire_type_name((int)answer.type));
    } else {
        char theirs[33];
        ifl_hash_text(wrong, theirs);
        const char *at = strstr(answer.reject.text, "the learner ");
        right = at && hash_parse(at + strlen("the learner "), ours) &&
                strstr(answer.reject.text, theirs) != NULL;
        snprintf(why, ODD_TEXT_MAX, "%s%.400s",
                 right ? "" : "the refusal names not both: ", answer.reject.text);
    }
    if (got) ifl_message_clear(&answer);
    link_close(&l);
    return right;
}

bool odd_learn(odd_facts *facts, char why[ODD_TEXT_MAX]) {
    facts->known = refused_for(facts, 0, &facts->fingerprint, why) &&
                   refused_for(facts, 1, &facts->profile, why) &&
                   refused_for(facts, 2, &facts->tokenizer, why);
    return facts->known;
}

bool odd_wrong_hash(const odd_facts *facts, int which, char why[ODD_TEXT_MAX]) {
    ifl_hash ours, want = which == 0   ? facts->fingerprint
                          : which == 1 ? facts->profile
                                       : facts->tokenizer;
    if (!refused_for(facts, which, &ours, why)) return false;
    return ifl_hash_equal(ours, want) || no(why, "the refusal names another hash than before");
}

bool odd_protocol(const odd_facts *facts, int which, char why[ODD_TEXT_MAX]) {
    odd_link l;
    ifl_message answer;
    link_open(&l, facts, true);
    ifl_message hello = hello_make(&l, facts, "another-age");
    if (which == 0) hello.hello.major = IFL_WIRE_MAJOR + 1;
    if (which == 1) hello.hello.minor_min = IFL_WIRE_MINOR + 1;
    if (which == 1 || which == 2) hello.hello.minor_max = IFL_WIRE_MINOR + 5;
    if (which == 3) hello.hello.minor_max = 0;
    int want_minor = which == 3 ? 0 : IFL_WIRE_MINOR;
    bool right = false;
    if (!hello_say(&l, &hello, &answer)) {
        no(why, "no answer to HELLO");
    } else if (which < 2) {
        right = answer.type == IFL_WIRE_REJECT && answer.reject.code == IFL_REJECT_VERSION &&
                strstr(answer.reject.text, " to ") != NULL;
        snprintf(why, ODD_TEXT_MAX, "%s: %.300s", ifl_wire_type_name((int)answer.type),
                 answer.type == IFL_WIRE_REJECT ? answer.reject.text : "");
    } else {
        right = answer.type == IFL_WIRE_WELCOME && answer.welcome.minor == want_minor;
        l.session = answer.session;
        snprintf(why, ODD_TEXT_MAX, "%s, minor %d, wanted %d", ifl_wire_type_name((int)answer.type),
                 answer.type == IFL_WIRE_WELCOME ? answer.welcome.minor : -1, want_minor);
    }
    leave(&l);
    return right;
}

/* --- Rows 9, 11 ------------------------------------------------------------------------------- */

typedef struct crowd {
    const odd_facts *facts;
    int n;
    int64_t begin_ns, limit_ms, pinged_ns;
    odd_link links[CROWD_MAX], planes[CROWD_MAX];
} crowd;

static int64_t crowd_left_ms(const crowd *c) {
    int64_t left = c->limit_ms - (ifl_clock_ns() - c->begin_ns) / 1000000;
    return left > 0 ? left : 0;
}

static void crowd_hello(crowd *c, int i) {
    char name[IFL_WIRE_NAME_MAX];
    snprintf(name, sizeof name, "crowd-%d", i);
    ifl_message hello = hello_make(&c->links[i], c->facts, name);
    message_send(&c->links[i], &hello);
}

/* Who is in a session says now and then that it lives. */
static void crowd_ping(crowd *c) {
    if (ifl_clock_ns() - c->pinged_ns < 100000000) return;
    c->pinged_ns = ifl_clock_ns();
    for (int i = 0; i < c->n; i++) {
        ifl_message ping = ifl_message_make(IFL_WIRE_PING);
        if (c->links[i].session) message_send(&c->links[i], &ping);
    }
}

/* A session has begun: opens its weight plane. It has no room for sequences, so no lease will come.
 */
static bool crowd_welcomed(crowd *c, int i) {
    odd_link *link = &c->links[i], *plane = &c->planes[i];
    ifl_message answer;
    if (!message_await(link, IFL_WIRE_WELCOME, IFL_WIRE_WELCOME, crowd_left_ms(c), &answer))
        return false;
    link->session = plane->session = answer.session;
    link->seq = plane->seq = plane->seen = 0;
    ifl_message credit = ifl_message_make(IFL_WIRE_CREDIT);
    credit.credit.n_bytes = IFL_WIRE_PAYLOAD_MAX;
    message_send(plane, &credit);
    return true;
}

static void crowd_ask(odd_link *plane, const ifl_manifest *manifest, int32_t chunk) {
    ifl_message get = ifl_message_make(IFL_WIRE_WGET);
    get.policy = get.wget.version = manifest->version;
    get.wget.base = -1;
    get.wget.n_chunks = 1;
    get.wget.chunks[0] = chunk;
    message_send(plane, &get);
}

/* The newest version that is announced, all of its chunks one after the other, each with the hash
 * of its manifest; then READY. A session that has ended meanwhile is begun again, as an actor
 * would. */
static bool crowd_ready(crowd *c, int i) {
    odd_link *plane = &c->planes[i];
    ifl_manifest *manifest = NULL;
    int32_t n_done = 0;
    bool right = true;
    while (right && crowd_left_ms(c) > 0 && (!manifest || n_done < manifest->n_chunks)) {
        ifl_message m;
        zmq_msg_t data;
        crowd_ping(c);
        zmq_msg_init(&data);
        bool got = message_take(plane, 300, &m, &data);
        if (!got) {
            crowd_hello(c, i);
            crowd_welcomed(c, i);
            n_done = 0;
        } else if (m.type == IFL_WIRE_WANN && n_done == 0) {
            ifl_manifest_free(manifest);
            manifest = m.wann.manifest;
            m.wann.manifest = NULL;
            crowd_ask(plane, manifest, 0);
        } else if (m.type == IFL_WIRE_WNACK && manifest && m.wnack.version == manifest->version) {
            n_done = 0; /* superseded: the next one is announced */
        } else if (m.type == IFL_WIRE_WCHUNK && manifest && m.wchunk.version == manifest->version &&
                   m.wchunk.chunk == n_done) {
            right = ifl_hash_equal(ifl_hash_bytes(m.wchunk.data, m.wchunk.n_data),
                                   manifest->chunks[n_done].hash);
            if (++n_done < manifest->n_chunks) crowd_ask(plane, manifest, n_done);
        }
        if (got) m.wchunk.frame = NULL;
        if (got && m.type != IFL_WIRE_WCHUNK) ifl_message_clear(&m);
        zmq_msg_close(&data);
    }
    bool whole = right && manifest && n_done == manifest->n_chunks;
    if (whole) {
        ifl_message ready = ifl_message_make(IFL_WIRE_WREADY);
        ready.policy = ready.wready.version = manifest->version;
        ready.wready.root = manifest->root;
        message_send(&c->links[i], &ready);
    }
    ifl_manifest_free(manifest);
    return whole;
}

bool odd_crowd(const odd_facts *facts, int n, int64_t limit_ms, double *said_s,
               char why[ODD_TEXT_MAX]) {
    static crowd c;
    int n_welcome = 0, n_ready = 0;
    void *zmq = zmq_ctx_new();
    c = (crowd){.facts = facts, .n = n < CROWD_MAX ? n : CROWD_MAX, .limit_ms = limit_ms};
    c.begin_ns = ifl_clock_ns();
    for (int i = 0; i < c.n; i++) {
        odd_link *link = &c.links[i], *plane = &c.planes[i];
        link->zmq = plane->zmq = zmq;
        link->facts = plane->facts = facts;
        if (getrandom(link->identity, sizeof link->identity, 0) < 0) abort();
        link->identity[0] |= 1;
        memcpy(plane->identity, link->identity, sizeof plane->identity);
        link_socket(link, facts->port, true);
        link_socket(plane, facts->port + 1, true);
        crowd_hello(&c, i);
    }
    *said_s = (double)(ifl_clock_ns() - c.begin_ns) * 1e-9;
    for (int i = 0; i < c.n; i++, crowd_ping(&c))
        n_welcome += crowd_welcomed(&c, i);
    for (int i = 0; i < c.n; i++)
        n_ready += crowd_ready(&c, i);
    double all_s = (double)(ifl_clock_ns() - c.begin_ns) * 1e-9;
    for (int i = 0; i < c.n; i++) {
        ifl_message bye = ifl_message_make(IFL_WIRE_BYE);
        bye.bye.code = IFL_BYE_DRAINED;
        if (c.links[i].session) message_send(&c.links[i], &bye);
    }
    ifl_sleep_ms(50);
    for (int i = 0; i < c.n; i++) {
        zmq_close(c.links[i].socket);
        zmq_close(c.planes[i].socket);
    }
    zmq_ctx_term(zmq);
    snprintf(why, ODD_TEXT_MAX, "%d of %d welcomed, %d fetched a version whole, %.2f s", n_welcome,
             c.n, n_ready, all_s);
    return n_welcome == c.n && n_ready == c.n;
}

bool odd_namesake(const odd_facts *facts, const char *name, int64_t ms, char why[ODD_TEXT_MAX]) {
    odd_link l;
    link_open(&l, facts, true);
    bool right = join(&l, facts, name, why);
    int64_t until = ifl_clock_ns() + ms * 1000000;
    int n = 0;
    while (right && ifl_clock_ns() < until) {
        ifl_message ping = ifl_message_make(IFL_WIRE_PING), answer;
        ping.ping.clock_ns = ifl_clock_ns();
        message_send(&l, &ping);
        if (!message_await(&l, IFL_WIRE_PONG, IFL_WIRE_ERROR, 1000, &answer)) {
            right = no(why, "no PONG to the namesake of %s", name);
        } else if (answer.type == IFL_WIRE_ERROR) {
            right = no(why, "the namesake of %s was told: %.300s", name, answer.error.text);
        } else {
            n++;
        }
        ifl_sleep_ms(20);
    }
    if (right) snprintf(why, ODD_TEXT_MAX, "%d heartbeats beside %s", n, name);
    leave(&l);
    return right;
}

/* --- Row 27 ----------------------------------------------------------------------------------- */

static void frames_say(odd_link *l, int which, uint64_t seed, int round) {
    static uint8_t
        zeros[IFL_WIRE_PAYLOAD_MAX + IFL_WIRE_META_MAX + 1]; /* one more than a frame may */
    ifl_message ping = ifl_message_make(IFL_WIRE_PING);
    odd_frames_of f = {0};
    uint8_t noise[200];
    ifl_rng_key key = {seed, (uint64_t)round, IFL_RNG_TEST};
    if (!frames_make(&f, &ping, 77, 1, 0)) return;
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)ifl_rng_below(&key, i, 0, 256);
    void *s = l->socket;
    switch (which) {
    case 0: /* one frame */
        zmq_send(s, f.header, sizeof f.header, 0);
        break;
    case 1: /* nothing in any frame */
        zmq_send(s, "", 0, ZMQ_SNDMORE);
        zmq_send(s, "", 0, 0);
        break;
    case 2: /* a header cut short */
        zmq_send(s, f.header, 1 + noise[0] % 63, ZMQ_SNDMORE);
        zmq_send(s, f.frames.meta, f.frames.n_meta, 0);
        break;
    case 3: /* meta cut short */
        zmq_send(s, f.header, sizeof f.header, ZMQ_SNDMORE);
        zmq_send(s, f.frames.meta, f.frames.n_meta - 1, 0);
        break;
    case 4: /* a header with a flipped bit */
        f.header[noise[1] % 64] ^= (uint8_t)(1 << noise[2] % 8);
        zmq_send(s, f.header, sizeof f.header, ZMQ_SNDMORE);
        zmq_send(s, f.frames.meta, f.frames.n_meta, 0);
        break;
    case 5: /* too many frames */
        zmq_send(s, f.header, sizeof f.header, ZMQ_SNDMORE);
        for (int i = 0; i < 20; i++)
            zmq_send(s, f.frames.meta, f.frames.n_meta, i < 19 ? ZMQ_SNDMORE : 0);
        break;
    case 6: /* meta beyond its limit */
        zmq_send(s, f.header, sizeof f.header, ZMQ_SNDMORE);
        zmq_send(s, zeros, IFL_WIRE_META_MAX + 1, 0);
        break;
    case 7: /* random */
        zmq_send(s, noise, 64, ZMQ_SNDMORE);
        zmq_send(s, noise + 64, 136, 0);
        break;
    case 8: { /* a header that promises a payload which isn't there */
        ifl_wire_header h = {.major = IFL_WIRE_MAJOR,
                             .minor = IFL_WIRE_MINOR,
                             .type = IFL_WIRE_TRAJ,
                             .n_meta = (uint32_t)f.frames.n_meta,
                             .n_payload = IFL_WIRE_PAYLOAD_MAX,
                             .session = 77,
                             .seq = 1,
                             .policy = -1};
        ifl_wire_header_encode(&h, f.frames.meta, f.header);
        zmq_send(s, f.header, sizeof f.header, ZMQ_SNDMORE);
        zmq_send(s, f.frames.meta, f.frames.n_meta, 0);
        break;
    }
    default: /* a frame above the limit: libzmq cuts the link before it is read */
        zmq_send(s, f.header, sizeof f.header, ZMQ_SNDMORE);
        zmq_send(s, zeros, sizeof zeros, 0);
        break;
    }
    ifl_wire_frames_clear(&f.frames);
}

bool odd_frames(const odd_facts *facts, int which, uint64_t seed, char why[ODD_TEXT_MAX]) {
    odd_link l;
    link_open(&l, facts, true);
    int n_errors = 0;
    bool oversized = which == ODD_FRAMES - 1;
    for (int round = 0; round < (oversized ? 2 : 10); round++) {
        ifl_message answer;
        frames_say(&l, which, seed, round);
        if (message_await(&l, IFL_WIRE_ERROR, IFL_WIRE_ERROR, oversized ? 100 : 300, &answer)) {
            n_errors +=
                answer.error.code == IFL_WIRE_E_MALFORMED || answer.error.code == IFL_WIRE_E_TYPE;
            ifl_message_clear(&answer);
        }
    }
    ifl_message hello = hello_make(&l, facts, "malformed"), answer;
    bool right = false;
    if (!hello_say(&l, &hello, &answer)) {
        no(why, "kind %d: no answer to HELLO after it", which);
    } else {
        /* One that is never seen by the learner cannot be counted against the sender. */
        right = oversized ? answer.type == IFL_WIRE_WELCOME
                          : answer.type == IFL_WIRE_REJECT &&
                                answer.reject.code == IFL_REJECT_BANNED && n_errors == 10;
        if (answer.type == IFL_WIRE_WELCOME) l.session = answer.session;
        snprintf(why, ODD_TEXT_MAX, "kind %d: %d errors, then %s", which, n_errors,
                 ifl_wire_type_name((int)answer.type));
        ifl_message_clear(&answer);
    }
    leave(&l);
    return right;
}

/* --- Row 29 ----------------------------------------------------------------------------------- */

static ifl_trajectory *answer_make(const odd_facts *facts, const ifl_wire_lease *lease,
                                   const char *actor, float logprob, int64_t version) {
    static const int32_t some[] = {0, 1, 2};
    ifl_trajectory *t;
    if (ifl_trajectory_create(&t, lease ? lease->prompt : some, lease ? lease->n_prompt : 3,
                              NULL) != IFL_OK)
        return NULL;
    ifl_trajectory_append(t, 1, logprob, version, NULL);
    t->group_size = lease ? lease->group_size : 4;
    t->task_serial = lease ? lease->task_serial : 1;
    t->lease_id = lease ? lease->lease_id : 4242;
    t->sample = lease ? lease->samples[0] : 0;
    t->purpose = lease ? lease->purpose : IFL_PURPOSE_TRAIN;
    snprintf(t->task_id, sizeof t->task_id, "%s", lease ? lease->task_id : "t0");
    t->seed = lease ? lease->seed : 1;
    t->temperature = lease ? lease->temperature : 1.0f;
    t->top_k = lease ? lease->top_k : 0;
    t->top_p = lease ? lease->top_p : 1.0f;
    t->max_new_tokens = lease ? lease->max_new_tokens : 8;
    t->finish = IFL_FINISH_LENGTH;
    t->reward.status = IFL_REWARD_OK;
    t->reward.reward = 1.0f;
    snprintf(t->reward.checker, sizeof t->reward.checker, "odd/1");
    t->profile = facts->profile;
    snprintf(t->actor, sizeof t->actor, "%s", actor);
    return t;
}

bool odd_replay(const odd_facts *facts, int which, char why[ODD_TEXT_MAX]) {
    odd_link l;
    odd_frames_of old = {0};
    ifl_message ping = ifl_message_make(IFL_WIRE_PING), answer;
    bool right = false;
    link_open(&l, facts, true);
    if (!join(&l, facts, "replay", why)) goto done;
    if (which == 2) {
        ifl_message m = ifl_message_make(IFL_WIRE_TRAJ);
        m.traj.trajectory = answer_make(facts, NULL, "replay", -0.5f, 0);
        message_send(&l, &m);
        ifl_trajectory_free(m.traj.trajectory);
        if (!message_await(&l, IFL_WIRE_NACK, IFL_WIRE_TRAJ_ACK, ANSWER_MS, &answer)) {
            no(why, "no answer to a trajectory of another run");
        } else {
            right = answer.type == IFL_WIRE_NACK &&
                    (answer.nack.code == IFL_NACK_STALE || answer.nack.code == IFL_NACK_UNKNOWN);
            snprintf(why, ODD_TEXT_MAX, "%s: %.300s", ifl_wire_type_name((int)answer.type),
                     answer.type == IFL_WIRE_NACK ? answer.nack.text : "");
        }
        goto done;
    }
    if (!frames_make(&old, &ping, l.session, 1, 0)) goto done;
    frames_send(&l, &old);
    l.seq = 1;
    if (!message_await(&l, IFL_WIRE_PONG, IFL_WIRE_PONG, ANSWER_MS, &answer)) {
        no(why, "no PONG");
        goto done;
    }
    if (which == 0 && !join(&l, facts, "replay", why)) goto done;
    frames_send(&l, &old);
    int want = which == 0 ? IFL_WIRE_E_FENCED : IFL_WIRE_E_SEQUENCE;
    if (!message_await(&l, IFL_WIRE_ERROR, IFL_WIRE_ERROR, ANSWER_MS, &answer)) {
        no(why, "a message said again was not refused");
    } else {
        right = answer.error.code == want;
        snprintf(why, ODD_TEXT_MAX, "ERROR %d, wanted %d: %.200s", answer.error.code, want,
                 answer.error.text);
        if (which == 1) l.session = 0;
    }
done:
    ifl_wire_frames_clear(&old.frames);
    leave(&l);
    return right;
}

/* --- Row 30 ----------------------------------------------------------------------------------- */

static int tcp_open(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {1, 0};
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

bool odd_stranger(const odd_facts *facts, int which, uint64_t seed, char why[ODD_TEXT_MAX]) {
    uint8_t bytes[4096];
    int n_opened = 0, n_tried = 0;
    ifl_rng_key key = {seed, 30, IFL_RNG_TEST};
    if (which == 4) { /* a DEALER whose routing id the learner has drawn itself */
        odd_link l;
        ifl_message answer;
        link_open(&l, facts, false);
        for (int i = 0; i < 50; i++)
            zmq_send(l.socket, "hello", 5, 0);
        bool heard = message_receive(&l, 300, &answer);
        if (heard) ifl_message_clear(&answer);
        link_close(&l);
        snprintf(why, ODD_TEXT_MAX, "50 messages, %s", heard ? "answered" : "no answer");
        return !heard;
    }
    int held[32], n_held = 0;
    for (int plane = 0; plane < 2; plane++)
        for (int i = 0; i < 16; i++) {
            int fd = tcp_open(facts->port + plane);
            n_tried++;
            if (fd < 0) continue;
            n_opened++;
            size_t n = 0;
            if (which == 1)
                n = (size_t)snprintf((char *)bytes, sizeof bytes,
                                     "GET /metrics HTTP/1.1\r\nHost: learner\r\n\r\n");
            if (which == 2) {
                n = (size_t)ifl_rng_below(&key, (uint64_t)n_tried, 1, sizeof bytes) + 1;
                for (size_t b = 0; b < n; b++)
                    bytes[b] = (uint8_t)ifl_rng_below(&key, (uint64_t)n_tried * 8192 + b, 2, 256);
            }
            if (which == 3) { /* ff, eight bytes, 7f: a greeting's beginning */
                static const uint8_t greeting[11] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3};
                memcpy(bytes, greeting, sizeof greeting);
                n = sizeof greeting - (size_t)(i % 10);
            }
            if (n > 0 && send(fd, bytes, n, MSG_NOSIGNAL) < 0) n = 0;
            if (which == 3)
                held[n_held++] = fd;
            else
                close(fd);
        }
    if (n_held > 0) ifl_sleep_ms(500);
    for (int i = 0; i < n_held; i++)
        close(held[i]);
    snprintf(why, ODD_TEXT_MAX, "%d of %d connections", n_opened, n_tried);
    return n_opened == n_tried ||
           no(why, "%d of %d connections refused", n_tried - n_opened, n_tried);
}

bool odd_plain(const odd_facts *facts, char why[ODD_TEXT_MAX]) {
    odd_link l;
    ifl_message answer;
    link_open(&l, facts, true);
    ifl_message hello = hello_make(&l, facts, "plain");
    bool answered = false;
    for (int i = 0; i < 10 && !answered; i++) {
        message_send(&l, &hello);
        answered = message_receive(&l, 100, &answer);
    }
    if (answered) ifl_message_clear(&answer);
    link_close(&l);
    return !answered || no(why, "a client without keys was answered");
}

/* --- Row 31 ----------------------------------------------------------------------------------- */

bool odd_liar(const odd_facts *facts, int which, char why[ODD_TEXT_MAX]) {
    odd_link l;
    link_open(&l, facts, true);
    int n_refused = 0;
    bool quarantined = false, wrong = false;
    if (!join(&l, facts, "liar", why)) {
        link_close(&l);
        return false;
    }
    ifl_message credit = ifl_message_make(IFL_WIRE_CREDIT), m;
    /* Its first lie: it has the newest weights. Who hasn't gets no work in some modes. */
    ifl_message done = ifl_message_make(IFL_WIRE_WDONE);
    done.policy = done.wdone.version = l.welcome.current_version;
    message_send(&l, &done);
    credit.credit.n_sequences = 64;
    message_send(&l, &credit);
    int64_t until = ifl_clock_ns() + (int64_t)ANSWER_MS * 1000000, pinged = 0;
    no(why, "nothing came");
    while (!quarantined && !wrong && ifl_clock_ns() < until) {
        if (ifl_clock_ns() - pinged > 100000000) {
            ifl_message ping = ifl_message_make(IFL_WIRE_PING);
            message_send(&l, &ping);
            pinged = ifl_clock_ns();
        }
        if (!message_receive(&l, 20, &m)) continue;
        if (m.type == IFL_WIRE_LEASE && n_refused < LIES) {
            float logprob = which == 0 ? NAN : which == 1 ? 0.25f : which == 3 ? INFINITY : -0.5f;
            ifl_message lie = ifl_message_make(IFL_WIRE_TRAJ);
            lie.traj.trajectory = answer_make(facts, &m.lease, "liar", logprob,
                                              which == 2 ? 1000000000 : l.welcome.current_version);
            if (lie.traj.trajectory) message_send(&l, &lie);
            ifl_trajectory_free(lie.traj.trajectory);
        } else if (m.type == IFL_WIRE_WSET) { /* lock-step: it claims each version in its turn */
            done.policy = done.wdone.version = m.wset.version;
            message_send(&l, &done);
        } else if (m.type == IFL_WIRE_NACK) {
            n_refused += m.nack.code == IFL_NACK_INVALID || m.nack.code == IFL_NACK_STALE;
            snprintf(why, ODD_TEXT_MAX, "%d refused: %.300s", n_refused, m.nack.text);
        } else if (m.type == IFL_WIRE_TRAJ_ACK) {
            wrong = true;
            no(why, "a lie was stored");
        } else if (m.type == IFL_WIRE_ERROR) {
            quarantined = m.error.code == IFL_WIRE_E_QUARANTINE;
            wrong = !quarantined;
            if (wrong) no(why, "ERROR %d: %.300s", m.error.code, m.error.text);
            l.session = 0;
        }
        ifl_message_clear(&m);
    }
    if (!quarantined && !wrong && n_refused >= LIES)
        no(why, "%d lies refused and still no quarantine", n_refused);
    leave(&l);
    return quarantined && n_refused >= LIES;
}

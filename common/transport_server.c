/* The learner's end. The lock `lock` guards the table of peers with everything in it and the
 * statistics; the transport thread takes it for one message or one flush at a time, the application
 * for one send or look. Sockets are touched by the transport thread alone. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/transport_internal.h"

#define BURST_MAX                                                                                  \
    64 /* messages of one plane in one turn: control comes again before more chunks                \
        */
#define OFFENDERS_MAX 256
#define OFFENCES_MAX 10    /* malformed messages until an identity is ignored */
#define BAN_NS 60000000000 /* ... for so long */
#define REFUSED_MAX 3      /* trajectories that fail the check until the session ends */
#define BUSY_RETRY_MS 500
#define WEIGHT_QUEUE_MAX 256 /* answers on the weight plane waiting for one peer */

typedef struct server_peer {
    uint64_t session;
    uint8_t identity[IFL_WIRE_IDENTITY_BYTES];
    char name[IFL_WIRE_NAME_MAX];
    int64_t seen_ns, progress_ns;
    uint64_t progress;
    int32_t phase, n_queued, n_refused;
    int64_t bytes_queued, version_ready, version_done;
    bool weights_open;
    int32_t close_code;                 /* != 0: the application wants the session ended ... */
    char close_text[IFL_WIRE_TEXT_MAX]; /* ... because of this */
    transport_counters control, weights;
    transport_out_list out, weights_out;
} server_peer;

typedef struct server_offender {
    uint8_t identity[IFL_WIRE_IDENTITY_BYTES];
    int32_t n;
    int64_t last_ns;
} server_offender;

typedef struct server_event_node {
    transport_node node;
    ifl_server_event event;
} server_event_node;

struct ifl_server {
    ifl_server_options options;
    char endpoint[IFL_ENDPOINT_MAX], weights_endpoint[IFL_ENDPOINT_MAX];
    void *zmq, *control, *weights;
    int wake_fd;
    pthread_t thread;
    bool thread_started;
    transport_queue events;

    pthread_mutex_t lock;
    server_peer **peers;
    int32_t n_peers;
    uint64_t session_next;
    uint64_t progress;
    int32_t phase;
    bool stop, announce;
    char failed[256]; /* why the thread ended before it was told to */
    ifl_server_stats stats;
    server_offender offenders[OFFENDERS_MAX];

    pthread_mutex_t source_lock; /* guards `source` and is held during calls into it */
    ifl_weight_source source;
    bool has_source;
};

/* --- Events and replies
 * ---------------------------------------------------------------------------------------- */

static bool server_push_event(ifl_server *s, const server_peer *peer, ifl_server_event_kind kind,
                              const char *text, ifl_message *message, int64_t n_bytes) {
    server_event_node *node = calloc(1, sizeof *node);
    if (!node) {
        snprintf(s->failed, sizeof s->failed, "out of memory: an event of peer %s", peer->name);
        return false;
    }
    node->node.n_bytes = n_bytes;
    node->event.kind = kind;
    node->event.peer = peer->session;
    node->event.held_version = -1;
    memcpy(node->event.name, peer->name, sizeof peer->name);
    memcpy(node->event.incarnation, peer->identity, sizeof peer->identity);
    if (text) snprintf(node->event.text, sizeof node->event.text, "%s", text);
    if (message) {
        node->event.message = *message;
        memset(message, 0, sizeof *message); /* the event owns it now */
        if (kind == IFL_SERVER_JOINED)
            node->event.held_version = node->event.message.hello.held_version;
    }
    transport_queue_push(&s->events, &node->node);
    return true;
}

/* A reply that belongs to no session's queue: sent now or not at all. */
static void server_reply(ifl_server *s, void *socket, const uint8_t *identity, uint64_t session,
                         const ifl_message *message) {
    transport_out *out;
    transport_counters none = {0, 0};
    if (transport_out_create(&out, message, NULL) != IFL_OK) return;
    if (transport_send(socket, identity, session, &none, out, &s->stats.bytes_out) == IFL_OK)
        s->stats.messages_out++;
    transport_out_free(out);
}

static void server_reply_error(ifl_server *s, const uint8_t *identity, uint64_t session,
                               int32_t code, uint64_t seq, const char *text) {
    ifl_message m = ifl_message_make(IFL_WIRE_ERROR);
    m.error.code = code;
    m.error.seq = seq;
    snprintf(m.error.text, sizeof m.error.text, "%s", text);
    server_reply(s, s->control, identity, session, &m);
}

static server_peer *server_find(ifl_server *s, const uint8_t *identity) {
    for (int32_t i = 0; i < s->n_peers; i++)
        if (memcmp(s->peers[i]->identity, identity, IFL_WIRE_IDENTITY_BYTES) == 0)
            return s->peers[i];
    return NULL;
}

static server_peer *server_find_session(ifl_server *s, uint64_t session) {
    for (int32_t i = 0; i < s->n_peers; i++)
        if (s->peers[i]->session == session) return s->peers[i];
    return NULL;
}

/* Ends a session. The peer pointer is gone afterwards. */
static void server_drop(ifl_server *s, server_peer *peer, const char *why) {
    server_push_event(s, peer, IFL_SERVER_LOST, why, NULL, 0);
    s->stats.lost++;
    for (int32_t i = 0; i < s->n_peers; i++)
        if (s->peers[i] == peer) s->peers[i] = s->peers[--s->n_peers];
    transport_out_clear(&peer->out);
    transport_out_clear(&peer->weights_out);
    free(peer);
}

/* Tells the peer why, then ends its session. */
static void server_expel(ifl_server *s, server_peer *peer, int32_t code, uint64_t seq,
                         const char *why) {
    server_reply_error(s, peer->identity, peer->session, code, seq, why);
    server_drop(s, peer, why);
}

static bool server_queue(ifl_server *s, server_peer *peer, const ifl_message *message) {
    transport_out *out;
    ifl_error err = {0};
    if (transport_out_create(&out, message, &err) != IFL_OK) {
        ifl_warn("cannot send to %s: %s", peer->name, err.text);
        return false;
    }
    (void)s;
    transport_out_push(&peer->out, out);
    return true;
}

/* --- Offenders
 * ----------------------------------------------------------------------------------------------------
 */

static server_offender *server_offender_find(ifl_server *s, const uint8_t *identity) {
    for (int i = 0; i < OFFENDERS_MAX; i++)
        if (s->offenders[i].n &&
            memcmp(s->offenders[i].identity, identity, IFL_WIRE_IDENTITY_BYTES) == 0)
            return &s->offenders[i];
    return NULL;
}

static bool server_is_banned(ifl_server *s, const uint8_t *identity, int64_t now) {
    server_offender *o = server_offender_find(s, identity);
    if (!o || o->n < OFFENCES_MAX) return false;
    if (now - o->last_ns < BAN_NS) return true;
    o->n = 0;
    return false;
}

static void server_offence(ifl_server *s, const uint8_t *identity, int64_t now) {
    s->stats.malformed++;
    server_offender *o = server_offender_find(s, identity);
    if (!o) { /* the place of the one that has been quiet longest */
        o = &s->offenders[0];
        for (int i = 1; i < OFFENDERS_MAX; i++)
            if (s->offenders[i].last_ns < o->last_ns) o = &s->offenders[i];
        memset(o, 0, sizeof *o);
        memcpy(o->identity, identity, IFL_WIRE_IDENTITY_BYTES);
    }
    if (++o->n == OFFENCES_MAX) s->stats.banned++;
    o->last_ns = now;
}

/* --- HELLO
 * ----------------------------------------------------------------------------------------------------------
 */

static void server_reject(ifl_server *s, const uint8_t *identity, int32_t code, int32_t retry_ms,
                          const char *text) {
    ifl_message m = ifl_message_make(IFL_WIRE_REJECT);
    m.reject.code = code;
    m.reject.retry_after_ms = retry_ms;
    snprintf(m.reject.text, sizeof m.reject.text, "%s", text);
    s->stats.rejected++;
    server_reply(s, s->control, identity, 0, &m);
}

static bool server_check_hash(ifl_server *s, const ifl_wire_hello *h, const char *what,
                              ifl_hash theirs, ifl_hash ours, int32_t code) {
    if (ifl_hash_equal(theirs, ours)) return true;
    char a[33], b[33], text[IFL_WIRE_TEXT_MAX];
    ifl_hash_text(theirs, a);
    ifl_hash_text(ours, b);
    snprintf(text, sizeof text,
             "actor %s has %s %s, the learner %s; start both from the same model folder and build",
             h->name, what, a, b);
    ifl_warn("refused: %s", text);
    server_reject(s, h->incarnation, code, 0, text);
    return false;
}

static int64_t server_newest_version(ifl_server *s) {
    int64_t version = -1;
    void *hint = NULL;
    pthread_mutex_lock(&s->source_lock);
    if (s->has_source) {
        const ifl_manifest *m = s->source.manifest_retain(s->source.context, &hint);
        if (m) {
            version = m->version;
            s->source.manifest_release(s->source.context, hint);
        }
    }
    pthread_mutex_unlock(&s->source_lock);
    return version;
}

static void server_welcome(ifl_server *s, server_peer *peer, uint64_t nonce) {
    ifl_message m = ifl_message_make(IFL_WIRE_WELCOME);
    ifl_wire_welcome *w = &m.welcome;
    w->minor = IFL_WIRE_MINOR;
    w->session = peer->session;
    memcpy(w->run_uuid, s->options.run_uuid, sizeof w->run_uuid);
    w->run_epoch = s->options.run_epoch;
    w->lease_s = s->options.lease_s;
    w->heartbeat_ms = s->options.heartbeat_ms;
    w->heartbeat_misses = s->options.heartbeat_misses;
    w->payload_max = IFL_WIRE_PAYLOAD_MAX;
    w->chunk_window = s->options.chunk_window;
    w->current_version = server_newest_version(s);
    w->nonce = nonce;
    server_queue(s, peer, &m);
}

static void server_hello(ifl_server *s, const uint8_t *identity, ifl_message *message,
                         int64_t now) {
    ifl_wire_hello *h = &message->hello;
    char text[IFL_WIRE_TEXT_MAX];
    for (char *c = h->name; *c; c++)
        if (*c < 0x20 || *c > 0x7e) *c = '?'; /* goes into logs */
    if (memcmp(h->incarnation, identity, IFL_WIRE_IDENTITY_BYTES) != 0) {
        server_offence(s, identity, now);
        server_reject(s, identity, IFL_REJECT_MALFORMED, 0,
                      "HELLO names another incarnation than its link");
        return;
    }
    if (h->major != IFL_WIRE_MAJOR || h->minor_min > IFL_WIRE_MINOR ||
        h->minor_max < h->minor_min) {
        snprintf(text, sizeof text,
                 "actor %s speaks protocol %d.%d to %d.%d, the learner %d.0 to %d.%d", h->name,
                 h->major, h->minor_min, h->major, h->minor_max, IFL_WIRE_MAJOR, IFL_WIRE_MAJOR,
                 IFL_WIRE_MINOR);
        server_reject(s, identity, IFL_REJECT_VERSION, 0, text);
        return;
    }
    if (!server_check_hash(s, h, "model fingerprint", h->fingerprint, s->options.fingerprint,
                           IFL_REJECT_FINGERPRINT) ||
        !server_check_hash(s, h, "numerics profile", h->profile, s->options.profile,
                           IFL_REJECT_PROFILE) ||
        !server_check_hash(s, h, "tokenizer", h->tokenizer, s->options.tokenizer,
                           IFL_REJECT_TOKENIZER))
        return;
    server_peer *old = server_find(s, identity);
    if (old) server_drop(s, old, "said HELLO again");
    server_peer *peer = NULL;
    if (s->n_peers < IFL_PEERS_MAX &&
        transport_queue_size(&s->events, NULL) < s->options.events_max)
        peer = calloc(1, sizeof *peer);
    if (!peer) {
        snprintf(text, sizeof text, "no room: %d actors are connected, limit %d", s->n_peers,
                 IFL_PEERS_MAX);
        server_reject(s, identity, IFL_REJECT_FULL, 5000, text);
        return;
    }
    peer->session = s->session_next++;
    memcpy(peer->identity, identity, IFL_WIRE_IDENTITY_BYTES);
    memcpy(peer->name, h->name, sizeof peer->name);
    peer->seen_ns = peer->progress_ns = now;
    peer->version_ready = peer->version_done = -1;
    s->peers[s->n_peers++] = peer;
    s->stats.joined++;
    server_welcome(s, peer, h->nonce);
    server_push_event(s, peer, IFL_SERVER_JOINED, NULL, message, 0);
}

/* --- Messages of a session
 * --------------------------------------------------------------------------------------------- */

static void server_nack(ifl_server *s, server_peer *peer, const ifl_trajectory *t, int32_t code,
                        int32_t retry_ms, const char *text) {
    ifl_message m = ifl_message_make(IFL_WIRE_NACK);
    m.nack.key = ifl_trajectory_key_of(t);
    m.nack.lease_id = t->lease_id;
    m.nack.code = code;
    m.nack.retry_after_ms = retry_ms;
    snprintf(m.nack.text, sizeof m.nack.text, "%s", text);
    server_queue(s, peer, &m);
}

/* True when the trajectory may go to the application. */
static bool server_admit_trajectory(ifl_server *s, server_peer *peer, const ifl_message *m,
                                    int64_t n_bytes) {
    const ifl_trajectory *t = m->traj.trajectory;
    ifl_error err = {0};
    s->stats.trajectories_in++;
    if (ifl_trajectory_check(t, s->options.vocab_size, &err) != IFL_OK) {
        char text[IFL_WIRE_TEXT_MAX];
        snprintf(text, sizeof text, "%.*s", (int)sizeof text - 1, err.text);
        s->stats.trajectories_refused++;
        ifl_warn("refused from %s: %s", peer->name, text);
        server_nack(s, peer, t, IFL_NACK_INVALID, 0, text);
        peer->n_refused++;
        return false;
    }
    int64_t n_queued_bytes;
    int32_t n_queued = transport_queue_size(&s->events, &n_queued_bytes);
    if (n_queued >= s->options.events_max / 4 * 3 ||
        n_queued_bytes + n_bytes > s->options.event_bytes_max) {
        s->stats.trajectories_busy++;
        server_nack(s, peer, t, IFL_NACK_BUSY, BUSY_RETRY_MS, "the learner's queue is full");
        return false;
    }
    return true;
}

static void server_ping(ifl_server *s, server_peer *peer, const ifl_message *in, int64_t now) {
    const ifl_wire_ping *p = &in->ping;
    if (p->progress != peer->progress) peer->progress_ns = now;
    peer->progress = p->progress;
    peer->phase = p->phase;
    peer->n_queued = p->n_queued;
    peer->bytes_queued = p->bytes_queued;
    if (in->type == IFL_WIRE_PONG) return;
    ifl_message m = ifl_message_make(IFL_WIRE_PONG);
    m.ping.clock_ns = p->clock_ns;
    m.ping.progress = s->progress;
    m.ping.phase = s->phase;
    m.ping.n_queued = transport_queue_size(&s->events, &m.ping.bytes_queued);
    server_queue(s, peer, &m);
}

/* A sound message of a live session, in sequence. Consumes what it hands on. */
static void server_message(ifl_server *s, server_peer *peer, ifl_message *m, int64_t n_bytes,
                           int64_t now) {
    char text[IFL_WIRE_TEXT_MAX];
    switch (m->type) {
    case IFL_WIRE_PING:
    case IFL_WIRE_PONG:
        server_ping(s, peer, m, now);
        return;
    case IFL_WIRE_TRAJ:
        if (!server_admit_trajectory(s, peer, m, n_bytes)) {
            if (peer->n_refused >= REFUSED_MAX)
                server_expel(s, peer, IFL_WIRE_E_QUARANTINE, m->seq,
                             "too many trajectories failed the check");
            return;
        }
        break;
    case IFL_WIRE_STATS:
        if (transport_queue_size(&s->events, NULL) >= s->options.events_max / 4 * 3) return;
        break;
    case IFL_WIRE_WREADY:
        peer->version_ready = m->wready.version;
        break;
    case IFL_WIRE_WDONE:
        peer->version_done = m->wdone.version;
        break;
    case IFL_WIRE_RETURN:
    case IFL_WIRE_CREDIT:
    case IFL_WIRE_DRAIN:
        break;
    case IFL_WIRE_BYE:
        snprintf(text, sizeof text, "bye: %.400s", m->bye.text);
        server_push_event(s, peer, IFL_SERVER_MESSAGE, NULL, m, n_bytes);
        server_drop(s, peer, text);
        return;
    case IFL_WIRE_ERROR:
        snprintf(text, sizeof text, "the actor reports: %.400s", m->error.text);
        server_drop(s, peer, text);
        return;
    default:
        snprintf(text, sizeof text, "%s is not an actor's to send here",
                 ifl_wire_type_name((int)m->type));
        server_offence(s, peer->identity, now);
        server_expel(s, peer, IFL_WIRE_E_TYPE, m->seq, text);
        return;
    }
    if (transport_queue_size(&s->events, NULL) >= s->options.events_max)
        server_expel(s, peer, IFL_WIRE_E_LIMIT, m->seq, "the learner's queue of events is full");
    else
        server_push_event(s, peer, IFL_SERVER_MESSAGE, NULL, m, n_bytes);
}

/* Session and sequence. NULL: answered already, nothing more to do. */
static server_peer *server_session(ifl_server *s, const transport_in *in, const ifl_wire_header *h,
                                   bool on_weights) {
    server_peer *peer = server_find(s, in->identity);
    if (!peer || peer->session != h->session) {
        s->stats.fenced++;
        server_reply_error(s, in->identity, h->session, IFL_WIRE_E_FENCED, h->seq,
                           "this session has ended; say HELLO");
        return NULL;
    }
    transport_counters *c = on_weights ? &peer->weights : &peer->control;
    if (h->seq != c->seq_in + 1) {
        char text[IFL_WIRE_TEXT_MAX];
        snprintf(text, sizeof text, "message %llu follows message %llu: one was lost",
                 (unsigned long long)h->seq, (unsigned long long)c->seq_in);
        server_expel(s, peer, IFL_WIRE_E_SEQUENCE, h->seq, text);
        return NULL;
    }
    c->seq_in = h->seq;
    return peer;
}

/* --- The weight plane
 * -----------------------------------------------------------------------------------------------------
 */

static void server_send_manifest(ifl_server *s, server_peer *peer) {
    void *hint = NULL;
    pthread_mutex_lock(&s->source_lock);
    const ifl_manifest *manifest =
        s->has_source ? s->source.manifest_retain(s->source.context, &hint) : NULL;
    if (manifest) {
        ifl_message m = ifl_message_make(IFL_WIRE_WANN);
        m.policy = manifest->version;
        m.wann.manifest = (ifl_manifest *)(uintptr_t)manifest;
        transport_out *out;
        ifl_error err = {0};
        if (transport_out_create(&out, &m, &err) == IFL_OK)
            transport_out_push(&peer->weights_out, out);
        else
            ifl_warn("cannot announce version %lld: %s", (long long)manifest->version, err.text);
        s->source.manifest_release(s->source.context, hint);
    }
    pthread_mutex_unlock(&s->source_lock);
}

static void server_wnack(ifl_server *s, server_peer *peer, int64_t version, const char *why) {
    ifl_message m = ifl_message_make(IFL_WIRE_WNACK);
    m.wnack.version = version;
    m.wnack.newest = server_newest_version(s);
    snprintf(m.wnack.text, sizeof m.wnack.text, "%s", why);
    transport_out *out;
    s->stats.chunks_refused++;
    if (transport_out_create(&out, &m, NULL) == IFL_OK) transport_out_push(&peer->weights_out, out);
}

static ifl_status server_queue_chunk(ifl_server *s, server_peer *peer, int64_t version,
                                     int32_t chunk) {
    const void *data = NULL;
    size_t n = 0;
    void (*release)(void *, void *) = NULL;
    void *hint = NULL;
    pthread_mutex_lock(&s->source_lock);
    ifl_status st = s->has_source ? s->source.chunk(s->source.context, version, chunk, &data, &n,
                                                    &release, &hint)
                                  : IFL_NOTFOUND;
    pthread_mutex_unlock(&s->source_lock);
    if (st != IFL_OK) return st;
    ifl_message m = ifl_message_make(IFL_WIRE_WCHUNK);
    m.policy = version;
    m.wchunk.version = version;
    m.wchunk.chunk = chunk;
    m.wchunk.codec = IFL_CODEC_DENSE;
    m.wchunk.n_data = n;
    transport_out *out = NULL;
    st = transport_out_create(&out, &m, NULL);
    if (st == IFL_OK) st = transport_out_borrow(out, data, n, release, hint);
    if (st != IFL_OK) {
        release((void *)(uintptr_t)data, hint);
        transport_out_free(out);
        return st;
    }
    transport_out_push(&peer->weights_out, out);
    s->stats.chunks_sent++;
    s->stats.chunk_bytes_sent += (int64_t)n;
    return IFL_OK;
}

static void server_weight_message(ifl_server *s, server_peer *peer, const ifl_message *m,
                                  int64_t now) {
    if (m->type == IFL_WIRE_CREDIT) {
        peer->weights_open = true;
        server_send_manifest(s, peer);
    } else if (m->type == IFL_WIRE_WGET && peer->weights_open) {
        if (peer->weights_out.n + m->wget.n_chunks > WEIGHT_QUEUE_MAX) {
            server_expel(s, peer, IFL_WIRE_E_LIMIT, m->seq,
                         "more chunks asked for than the window allows");
            return;
        }
        for (int32_t i = 0; i < m->wget.n_chunks; i++) {
            ifl_status st = server_queue_chunk(s, peer, m->wget.version, m->wget.chunks[i]);
            if (st != IFL_OK) { /* one refusal stands for the rest of the request */
                server_wnack(s, peer, m->wget.version, ifl_status_text(st));
                break;
            }
        }
    } else {
        server_offence(s, peer->identity, now);
        server_expel(s, peer, IFL_WIRE_E_TYPE, m->seq,
                     "not a message for the weight plane at this point");
    }
}

/* --- The thread
 * -------------------------------------------------------------------------------------------------------------
 */

/* One message from a socket, if there is one. */
static bool server_receive(ifl_server *s, bool on_weights) {
    transport_in in;
    if (transport_recv(on_weights ? s->weights : s->control, true, &in) != IFL_OK) return false;
    ifl_wire_header header;
    ifl_message message;
    ifl_error err = {0};
    ifl_status st = IFL_FORMAT;
    int64_t now = ifl_clock_ns();
    /* Decoding needs no lock. A link without an identity of ours is no actor: not even answered. */
    if (in.has_identity) st = transport_decode(&in, &header, &message, &err);
    pthread_mutex_lock(&s->lock);
    s->stats.messages_in++;
    s->stats.bytes_in += in.n_bytes;
    if (!in.has_identity) {
        s->stats.malformed++;
    } else if (server_is_banned(s, in.identity, now)) {
        if (st == IFL_OK && message.type == IFL_WIRE_HELLO)
            server_reject(s, in.identity, IFL_REJECT_BANNED, BAN_NS / 1000000,
                          "too many malformed messages");
    } else if (st == IFL_UNSUPPORTED && header.type != 0 &&
               (header.flags & IFL_WIRE_FLAG_OPTIONAL)) {
        server_session(s, &in, &header,
                       on_weights); /* unknown and optional: counted, else ignored */
    } else if (st != IFL_OK) {
        server_peer *peer = server_find(s, in.identity);
        server_offence(s, in.identity, now);
        ifl_warn("malformed message from %s: %s", peer ? peer->name : "an unknown peer", err.text);
        char text[IFL_WIRE_TEXT_MAX];
        snprintf(text, sizeof text, "%.*s", (int)sizeof text - 1, err.text);
        int32_t code = st == IFL_UNSUPPORTED ? IFL_WIRE_E_TYPE : IFL_WIRE_E_MALFORMED;
        if (peer)
            server_expel(s, peer, code, header.seq, text);
        else if (!on_weights)
            server_reply_error(s, in.identity, header.session, code, header.seq, text);
    } else if (message.type == IFL_WIRE_HELLO && !on_weights) {
        server_hello(s, in.identity, &message, now);
    } else {
        server_peer *peer = server_session(s, &in, &header, on_weights);
        if (peer) {
            peer->seen_ns = now;
            if (on_weights)
                server_weight_message(s, peer, &message, now);
            else
                server_message(s, peer, &message, in.n_bytes, now);
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (st == IFL_OK) ifl_message_clear(&message);
    transport_in_clear(&in);
    return true;
}

/* Sends what a list holds. False: the peer can't be reached. */
static bool server_flush_list(ifl_server *s, void *socket, server_peer *peer,
                              transport_counters *counters, transport_out_list *list,
                              bool *blocked) {
    while (list->head) {
        ifl_status st = transport_send(socket, peer->identity, peer->session, counters, list->head,
                                       &s->stats.bytes_out);
        if (st == IFL_AGAIN) {
            *blocked = true;
            return true;
        }
        if (st != IFL_OK) return false;
        s->stats.messages_out++;
        transport_out_free(transport_out_shift(list));
    }
    return true;
}

/* Everything that waits, control before weights; heartbeats. Returns how long the poll may last,
 * ms. */
static int server_flush(ifl_server *s) {
    bool blocked = false;
    pthread_mutex_lock(&s->lock);
    if (s->announce) {
        s->announce = false;
        for (int32_t i = 0; i < s->n_peers; i++)
            if (s->peers[i]->weights_open) server_send_manifest(s, s->peers[i]);
    }
    int64_t now = ifl_clock_ns();
    int64_t silence_ns = (int64_t)s->options.heartbeat_ms * s->options.heartbeat_misses * 1000000;
    for (int32_t i = s->n_peers - 1; i >= 0; i--) {
        server_peer *peer = s->peers[i];
        if (!server_flush_list(s, s->control, peer, &peer->control, &peer->out, &blocked)) {
            server_drop(s, peer, "its link is gone");
        } else if (peer->close_code) {
            char text[IFL_WIRE_TEXT_MAX];
            memcpy(text, peer->close_text, sizeof text); /* the peer is freed on the way */
            server_expel(s, peer, peer->close_code, 0, text);
        } else if (now - peer->seen_ns > silence_ns) {
            char text[128];
            snprintf(text, sizeof text, "silent for %.1f s, limit %d heartbeats of %d ms",
                     (double)(now - peer->seen_ns) * 1e-9, s->options.heartbeat_misses,
                     s->options.heartbeat_ms);
            server_expel(s, peer, IFL_WIRE_E_FENCED, 0, text);
        }
    }
    for (int32_t i = s->n_peers - 1; i >= 0; i--) {
        server_peer *peer = s->peers[i];
        if (!server_flush_list(s, s->weights, peer, &peer->weights, &peer->weights_out, &blocked))
            server_expel(s, peer, IFL_WIRE_E_FENCED, 0, "its link for weights is gone");
    }
    int tick = s->options.heartbeat_ms / 4;
    pthread_mutex_unlock(&s->lock);
    return blocked ? 2 : tick < 1 ? 1 : tick > 250 ? 250 : tick;
}

static void server_say_goodbye(ifl_server *s) {
    pthread_mutex_lock(&s->lock);
    ifl_message m = ifl_message_make(IFL_WIRE_BYE);
    m.bye.code = IFL_BYE_DONE;
    snprintf(m.bye.text, sizeof m.bye.text, "the learner has ended");
    for (int32_t i = 0; i < s->n_peers; i++)
        server_queue(s, s->peers[i], &m);
    pthread_mutex_unlock(&s->lock);
    int64_t until = ifl_clock_ns() + (int64_t)s->options.linger_ms * 1000000;
    bool waiting = true;
    while (waiting && ifl_clock_ns() < until) {
        server_flush(s);
        waiting = false;
        pthread_mutex_lock(&s->lock);
        for (int32_t i = 0; i < s->n_peers; i++)
            waiting |= s->peers[i]->out.n > 0;
        pthread_mutex_unlock(&s->lock);
        if (waiting) ifl_sleep_ms(1);
    }
}

static void *server_run(void *context) {
    ifl_server *s = context;
    for (;;) {
        int wait_ms = server_flush(s);
        pthread_mutex_lock(&s->lock);
        bool stop = s->stop || s->failed[0];
        pthread_mutex_unlock(&s->lock);
        if (stop) break;
        zmq_pollitem_t items[3] = {{s->control, 0, ZMQ_POLLIN, 0},
                                   {s->weights, 0, ZMQ_POLLIN, 0},
                                   {NULL, s->wake_fd, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, 3, wait_ms) < 0 && zmq_errno() != EINTR) {
            pthread_mutex_lock(&s->lock);
            snprintf(s->failed, sizeof s->failed, "zmq_poll: %s", zmq_strerror(zmq_errno()));
            pthread_mutex_unlock(&s->lock);
            break;
        }
        if (items[2].revents) transport_wake_clear(s->wake_fd);
        for (int i = 0; i < BURST_MAX && server_receive(s, false); i++) {
        }
        for (int i = 0; i < BURST_MAX && server_receive(s, true); i++) {
        }
    }
    server_say_goodbye(s);
    return NULL;
}

/* --- Life
 * --------------------------------------------------------------------------------------------------------------------
 */

static ifl_status server_socket(ifl_server *s, void **socket, int send_hwm, int receive_hwm,
                                ifl_error *err) {
    *socket = zmq_socket(s->zmq, ZMQ_ROUTER);
    if (!*socket)
        return ifl_fail(err, IFL_IO, "cannot open a socket: %s", zmq_strerror(zmq_errno()));
    IFL_TRY(transport_socket_setup(*socket, send_hwm, receive_hwm, s->options.linger_ms,
                                   strchr(s->options.bind, '[') != NULL, err));
    int on = 1;
    /* Handover: a reconnect with the same identity takes the place of a link that died without a
     * word. */
    if (zmq_setsockopt(*socket, ZMQ_ROUTER_MANDATORY, &on, sizeof on) != 0 ||
        zmq_setsockopt(*socket, ZMQ_ROUTER_HANDOVER, &on, sizeof on) != 0)
        return ifl_fail(err, IFL_IO, "cannot set a socket option: %s", zmq_strerror(zmq_errno()));
    return IFL_OK;
}

static ifl_status server_bind_one(void *socket, const char *endpoint, char bound[IFL_ENDPOINT_MAX],
                                  ifl_error *err) {
    if (zmq_bind(socket, endpoint) != 0)
        return ifl_fail(err, IFL_IO, "cannot bind %s: %s%s", endpoint, zmq_strerror(zmq_errno()),
                        zmq_errno() == EADDRINUSE
                            ? " (is another learner running? give another transport.bind)"
                            : "");
    size_t n = IFL_ENDPOINT_MAX;
    if (zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &n) != 0)
        return ifl_fail(err, IFL_IO, "%s: cannot read back what was bound: %s", endpoint,
                        zmq_strerror(zmq_errno()));
    return IFL_OK;
}

/* Binds both planes. With a free choice of port, a port whose neighbour is taken is given back and
 * another one tried. */
static ifl_status server_bind(ifl_server *s, ifl_error *err) {
    char endpoint[IFL_ENDPOINT_MAX], weights[IFL_ENDPOINT_MAX];
    size_t n = strlen(s->options.bind);
    bool any_port =
        strncmp(s->options.bind, "tcp://", 6) == 0 &&
        (strcmp(s->options.bind + n - 2, ":*") == 0 || strcmp(s->options.bind + n - 2, ":0") == 0);
    snprintf(endpoint, sizeof endpoint, "%.*s%s", (int)(any_port ? n - 1 : n), s->options.bind,
             any_port ? "*" : "");
    if (!any_port) IFL_TRY(ifl_endpoint_weights(endpoint, weights, err));
    for (int attempt = 0;; attempt++) {
        IFL_TRY(server_bind_one(s->control, endpoint, s->endpoint, err));
        ifl_status st = ifl_endpoint_weights(s->endpoint, weights, err);
        if (st == IFL_OK) st = server_bind_one(s->weights, weights, s->weights_endpoint, err);
        if (st == IFL_OK || !any_port || attempt == 15) return st;
        zmq_unbind(s->control, s->endpoint);
    }
}

ifl_status ifl_server_create(ifl_server **out, const ifl_server_options *options, ifl_error *err) {
    *out = NULL;
    IFL_TRY(transport_zmq_check(err));
    IFL_TRY(ifl_endpoint_check(options->bind, err));
    if (options->vocab_size < 1)
        return ifl_fail(err, IFL_USAGE, "server: vocab_size is %d, wanted >= 1",
                        options->vocab_size);
    ifl_server *s = calloc(1, sizeof *s);
    if (!s) return ifl_fail(err, IFL_NOMEM, "out of memory: the transport");
    s->options = *options;
    s->options.bind = NULL;
    s->options.run_uuid[32] = 0;
    s->options.heartbeat_ms = transport_or(options->heartbeat_ms, 1000);
    s->options.heartbeat_misses = transport_or(options->heartbeat_misses, 3);
    s->options.chunk_window = transport_or(options->chunk_window, 8);
    s->options.events_max = transport_or(options->events_max, 16384);
    s->options.linger_ms = transport_or(options->linger_ms, 500);
    if (!s->options.event_bytes_max) s->options.event_bytes_max = (int64_t)256 << 20;
    if (!s->options.send_bytes_max) s->options.send_bytes_max = (int64_t)64 << 20;
    s->session_next = (transport_random_u64() >> 2) + 1;
    s->wake_fd = -1;
    transport_queue_init(&s->events);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->source_lock, NULL);
    ifl_status st = IFL_OK;
    s->options.bind = options->bind;
    s->peers = calloc(IFL_PEERS_MAX, sizeof *s->peers);
    s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->zmq = zmq_ctx_new();
    if (!s->peers || s->wake_fd < 0 || !s->zmq) {
        st = ifl_fail(err, IFL_NOMEM, "cannot set up the transport: %s", strerror(errno));
        goto done;
    }
    zmq_ctx_set(s->zmq, ZMQ_IO_THREADS, 2);
    IFL_TRY_GOTO(st, server_socket(s, &s->control, 1000, 256, err), done);
    IFL_TRY_GOTO(st, server_socket(s, &s->weights, s->options.chunk_window + 4, 64, err), done);
    IFL_TRY_GOTO(st, server_bind(s, err), done);
    s->options.bind = s->endpoint;
    if (transport_thread_start(&s->thread, server_run, s) != 0) {
        st = ifl_fail(err, IFL_NOMEM, "cannot start the transport thread");
        goto done;
    }
    s->thread_started = true;
    *out = s;
    s = NULL; /* the caller owns it now */
done:
    ifl_server_free(s);
    return st;
}

void ifl_server_free(ifl_server *s) {
    if (!s) return;
    if (s->thread_started) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_mutex_unlock(&s->lock);
        transport_wake(s->wake_fd);
        pthread_join(s->thread, NULL);
    }
    if (s->control) zmq_close(s->control);
    if (s->weights) zmq_close(s->weights);
    for (int32_t i = 0; i < s->n_peers; i++) {
        transport_out_clear(&s->peers[i]->out);
        transport_out_clear(&s->peers[i]->weights_out);
        free(s->peers[i]);
    }
    free(s->peers);
    /* Waits for the sockets' linger at most. */
    if (s->zmq) zmq_ctx_term(s->zmq);
    if (s->wake_fd >= 0) close(s->wake_fd);
    for (transport_node *node; (node = transport_queue_pop(&s->events, 0));) {
        server_event_node *e = (server_event_node *)(void *)node;
        ifl_message_clear(&e->event.message);
        free(e);
    }
    transport_queue_destroy(&s->events);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->source_lock);
    free(s);
}

/* --- The application's side
 * -----------------------------------------------------------------------------------------------------
 */

const char *ifl_server_endpoint(const ifl_server *server) {
    return server->endpoint;
}

const char *ifl_server_weights_endpoint(const ifl_server *server) {
    return server->weights_endpoint;
}

ifl_status ifl_server_poll(ifl_server *s, int64_t wait_ms, ifl_server_event *event,
                           ifl_error *err) {
    memset(event, 0, sizeof *event);
    server_event_node *node = (server_event_node *)(void *)transport_queue_pop(&s->events, wait_ms);
    if (node) {
        *event = node->event;
        free(node);
        return IFL_OK;
    }
    pthread_mutex_lock(&s->lock);
    ifl_status st =
        s->failed[0] ? ifl_fail(err, IFL_IO, "the transport has failed: %s", s->failed) : IFL_AGAIN;
    pthread_mutex_unlock(&s->lock);
    return st;
}

void ifl_server_event_clear(ifl_server_event *event) {
    if (!event) return;
    ifl_message_clear(&event->message);
    memset(event, 0, sizeof *event);
}

ifl_status ifl_server_send(ifl_server *s, uint64_t session, const ifl_message *message,
                           ifl_error *err) {
    switch (message->type) {
    case IFL_WIRE_LEASE:
    case IFL_WIRE_TRAJ_ACK:
    case IFL_WIRE_NACK:
    case IFL_WIRE_WSET:
    case IFL_WIRE_CREDIT:
    case IFL_WIRE_DRAIN:
    case IFL_WIRE_BYE:
    case IFL_WIRE_STATS:
        break;
    default:
        return ifl_fail(err, IFL_USAGE, "%s is not the learner's to send",
                        ifl_wire_type_name((int)message->type));
    }
    transport_out *out;
    IFL_TRY(transport_out_create(&out, message, err));
    ifl_status st = IFL_OK;
    pthread_mutex_lock(&s->lock);
    server_peer *peer = server_find_session(s, session);
    if (!peer)
        st = ifl_fail(err, IFL_PEER, "session %llu has ended", (unsigned long long)session);
    else if (peer->out.n_bytes + transport_out_bytes(out) > s->options.send_bytes_max)
        st = ifl_fail(err, IFL_FULL, "%lld bytes are waiting to be sent to %s, limit %lld",
                      (long long)peer->out.n_bytes, peer->name,
                      (long long)s->options.send_bytes_max);
    if (st == IFL_OK) {
        transport_out_push(&peer->out, out);
        out = NULL; /* the list owns it now */
    }
    pthread_mutex_unlock(&s->lock);
    transport_out_free(out);
    if (st == IFL_OK) transport_wake(s->wake_fd);
    return st;
}

ifl_status ifl_server_ack(ifl_server *s, uint64_t session, const ifl_trajectory *traj,
                          ifl_ack_status status, ifl_error *err) {
    ifl_message m = ifl_message_make(IFL_WIRE_TRAJ_ACK);
    m.traj_ack.key = ifl_trajectory_key_of(traj);
    m.traj_ack.lease_id = traj->lease_id;
    m.traj_ack.status = (int32_t)status;
    return ifl_server_send(s, session, &m, err);
}

void ifl_server_close_peer(ifl_server *s, uint64_t session, ifl_wire_error_code code,
                           const char *text) {
    pthread_mutex_lock(&s->lock);
    server_peer *peer = server_find_session(s, session);
    if (peer) { /* sockets are the transport thread's: it does the rest */
        peer->close_code = (int32_t)code;
        snprintf(peer->close_text, sizeof peer->close_text, "%s", text);
    }
    pthread_mutex_unlock(&s->lock);
    transport_wake(s->wake_fd);
}

void ifl_server_progress(ifl_server *s, uint64_t progress, int32_t phase) {
    pthread_mutex_lock(&s->lock);
    s->progress = progress;
    s->phase = phase;
    pthread_mutex_unlock(&s->lock);
}

int32_t ifl_server_peers(ifl_server *s, ifl_peer_info *out, int32_t max) {
    int64_t now = ifl_clock_ns();
    pthread_mutex_lock(&s->lock);
    int32_t n = s->n_peers;
    for (int32_t i = 0; i < n && i < max; i++) {
        const server_peer *p = s->peers[i];
        ifl_peer_info *o = &out[i];
        memset(o, 0, sizeof *o);
        o->peer = p->session;
        memcpy(o->name, p->name, sizeof o->name);
        memcpy(o->incarnation, p->identity, sizeof o->incarnation);
        o->silent_s = (double)(now - p->seen_ns) * 1e-9;
        o->progress = p->progress;
        o->progress_age_s = (double)(now - p->progress_ns) * 1e-9;
        o->phase = p->phase;
        o->n_queued = p->n_queued;
        o->bytes_queued = p->bytes_queued;
        o->weights_open = p->weights_open;
        o->version_ready = p->version_ready;
        o->version_done = p->version_done;
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

void ifl_server_stats_get(ifl_server *s, ifl_server_stats *out) {
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    pthread_mutex_unlock(&s->lock);
}

void ifl_server_set_weight_source(ifl_server *s, const ifl_weight_source *source) {
    pthread_mutex_lock(&s->source_lock);
    s->has_source = source != NULL;
    if (source) s->source = *source;
    pthread_mutex_unlock(&s->source_lock);
}

void ifl_server_announce(ifl_server *s) {
    pthread_mutex_lock(&s->lock);
    s->announce = true;
    pthread_mutex_unlock(&s->lock);
    transport_wake(s->wake_fd);
}

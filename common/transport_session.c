/* Sessions: events and replies, HELLO, and what comes over a session. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/transport_server_internal.h"

#define OFFENCES_MAX 10    /* malformed messages until an identity is ignored */
#define BAN_NS 60000000000 /* ... for so long */
#define REFUSED_MAX 3      /* trajectories that fail the check until the session ends */
#define BUSY_RETRY_MS 500
#define WARN_NS 1000000000 /* at most one line per second about unknown peers */

/* --- Events and replies ----------------------------------------------------------------------- */

static bool server_push_event(ifl_server *s, const server_peer *peer, ifl_server_event_kind kind,
                              const char *text, ifl_message *message, int64_t n_bytes) {
    if (peer->weights_only) return true; /* the application has nothing to do with it */
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

server_peer *transport_server_find_session(ifl_server *s, uint64_t session) {
    for (int32_t i = 0; i < s->n_peers; i++)
        if (s->peers[i]->session == session) return s->peers[i];
    return NULL;
}

void transport_server_peer_free(server_peer *peer) {
    transport_out_clear(&peer->out);
    transport_out_clear(&peer->weights_out);
    transport_out_free(peer->announcement);
    transport_debt_clear(&peer->unacked);
    transport_debt_clear(&peer->unanswered);
    free(peer);
}

/* Ends a session. The peer pointer is gone afterwards. */
void transport_server_drop(ifl_server *s, server_peer *peer, const char *why) {
    server_push_event(s, peer, IFL_SERVER_LOST, why, NULL, 0);
    s->stats.lost++;
    for (int32_t i = 0; i < s->n_peers; i++)
        if (s->peers[i] == peer) s->peers[i] = s->peers[--s->n_peers];
    transport_server_peer_free(peer);
}

/* Tells the peer why, then ends its session. What waits for it goes first, as far as it can go at
 * once: a refusal that never arrives is an answer that is sent again in each new session. */
void transport_server_expel(ifl_server *s, server_peer *peer, int32_t code, uint64_t seq,
                            const char *why) {
    while (peer->out.head &&
           transport_send(s->control, peer->identity, peer->session, &peer->control, peer->out.head,
                          &s->stats.bytes_out) == IFL_OK) {
        s->stats.messages_out++;
        transport_out_free(transport_out_shift(&peer->out));
    }
    server_reply_error(s, peer->identity, peer->session, code, seq, why);
    transport_server_drop(s, peer, why);
}

bool transport_server_queue(server_peer *peer, const ifl_message *message) {
    transport_out *out;
    ifl_error err = {0};
    if (transport_out_create(&out, message, &err) != IFL_OK) {
        ifl_warn("cannot send to %s: %s", peer->name, err.text);
        return false;
    }
    transport_out_push(&peer->out, out);
    return true;
}

/* A relay that ends may come back, and the run goes on without it. */
void transport_server_bye(const ifl_server *s, server_peer *peer) {
    ifl_message m = ifl_message_make(IFL_WIRE_BYE);
    bool relay = s->options.weights_only;
    m.bye.code = relay ? IFL_BYE_DRAINED : IFL_BYE_DONE;
    snprintf(m.bye.text, sizeof m.bye.text,
             relay ? "the relay has ended" : "the learner has ended");
    transport_server_queue(peer, &m);
}

/* --- Offenders -------------------------------------------------------------------------------- */

/* By identity and key: nobody can have another key's actor banned. */
static server_offender *server_offender_find(ifl_server *s, const uint8_t *identity,
                                             const char *key) {
    for (int i = 0; i < OFFENDERS_MAX; i++)
        if (s->offenders[i].n && strcmp(s->offenders[i].key, key) == 0 &&
            memcmp(s->offenders[i].identity, identity, IFL_WIRE_IDENTITY_BYTES) == 0)
            return &s->offenders[i];
    return NULL;
}

static bool server_is_banned(ifl_server *s, const uint8_t *identity, const char *key, int64_t now) {
    server_offender *o = server_offender_find(s, identity, key);
    if (!o || o->n < OFFENCES_MAX) return false;
    if (now - o->last_ns < BAN_NS) return true;
    o->n = 0;
    return false;
}

void transport_server_offence(ifl_server *s, const uint8_t *identity, const char *key,
                              int64_t now) {
    s->stats.malformed++;
    server_offender *o = server_offender_find(s, identity, key);
    if (!o) { /* the place of the one that has been quiet longest */
        o = &s->offenders[0];
        for (int i = 1; i < OFFENDERS_MAX; i++)
            if (s->offenders[i].last_ns < o->last_ns) o = &s->offenders[i];
        memset(o, 0, sizeof *o);
        memcpy(o->identity, identity, IFL_WIRE_IDENTITY_BYTES);
        snprintf(o->key, sizeof o->key, "%s", key);
    }
    if (++o->n == OFFENCES_MAX) s->stats.banned++;
    o->last_ns = now;
}

/* --- HELLO ------------------------------------------------------------------------------------ */

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

/* *foreign: another numerics profile, admitted. */
static bool server_check_profile(ifl_server *s, const ifl_wire_hello *h, bool *foreign) {
    *foreign = !ifl_hash_equal(h->profile, s->options.profile);
    if (!*foreign) return true;
    char a[33], b[33], parts[200], text[IFL_WIRE_TEXT_MAX];
    ifl_hash_text(h->profile, a);
    ifl_hash_text(s->options.profile, b);
    ifl_profile_parts_differing(&s->options.parts, &h->parts, parts, sizeof parts);
    if (s->options.admit_foreign) {
        ifl_warn("actor %s has numerics profile %s, the learner %s (differing: %s); admitted "
                 "(parity.mismatch), corrected by importance weights",
                 h->name, a, b, parts);
        return true;
    }
    snprintf(text, sizeof text,
             "actor %s has numerics profile %s, the learner %s (differing: %s); start both with "
             "the same model.numerics, model and build, or the learner with parity.mismatch=admit",
             h->name, a, b, parts);
    ifl_warn("refused: %s", text);
    server_reject(s, h->incarnation, IFL_REJECT_PROFILE, 0, text);
    return false;
}

static void server_welcome(ifl_server *s, server_peer *peer, const ifl_wire_hello *h,
                           bool foreign) {
    ifl_message m = ifl_message_make(IFL_WIRE_WELCOME);
    ifl_wire_welcome *w = &m.welcome;
    w->minor = h->minor_max < IFL_WIRE_MINOR ? h->minor_max : IFL_WIRE_MINOR;
    w->caps =
        (s->options.directed ? IFL_WIRE_CAP_DIRECTED : 0) | (foreign ? IFL_WIRE_CAP_FOREIGN : 0);
    w->session = peer->session;
    memcpy(w->run_uuid, s->options.run_uuid, sizeof w->run_uuid);
    w->run_epoch = s->options.run_epoch;
    w->lease_s = s->options.lease_s;
    w->heartbeat_ms = s->options.heartbeat_ms;
    w->heartbeat_misses = s->options.heartbeat_misses;
    w->payload_max = IFL_WIRE_PAYLOAD_MAX;
    w->chunk_window = s->options.chunk_window;
    w->current_version = transport_server_newest_version(s);
    w->nonce = h->nonce;
    w->trajectory_bytes = s->options.trajectory_bytes_max;
    peer->minor = w->minor;
    transport_server_queue(peer, &m);
}

static void server_hello(ifl_server *s, const uint8_t *identity, const char *key,
                         ifl_message *message, int64_t now) {
    ifl_wire_hello *h = &message->hello;
    char text[IFL_WIRE_TEXT_MAX], key_name[IFL_KEY_NAME_MAX] = "";
    for (char *c = h->name; *c; c++)
        if (*c < 0x20 || *c > 0x7e) *c = '?'; /* goes into logs */
    if (memcmp(h->incarnation, identity, IFL_WIRE_IDENTITY_BYTES) != 0) {
        transport_server_offence(s, identity, key, now);
        server_reject(s, identity, IFL_REJECT_MALFORMED, 0,
                      "HELLO names another incarnation than its link");
        return;
    }
    /* The link was let in under an older list. */
    if (s->guard && !transport_guard_knows(s->guard, key, key_name)) {
        server_reject(s, identity, IFL_REJECT_KEY, 0,
                      "the actor's key was taken off the learner's list");
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
    bool foreign = false, weights_only = (h->caps & IFL_WIRE_CAP_WEIGHTS) != 0;
    if (s->options.weights_only && !weights_only) {
        server_reject(s, identity, IFL_REJECT_VERSION, 0,
                      "this is a relay of weights, which has no work to give: transport.connect "
                      "names the learner itself, transport.relays its relays");
        return;
    }
    if (!weights_only && (!server_check_hash(s, h, "model fingerprint", h->fingerprint,
                                             s->options.fingerprint, IFL_REJECT_FINGERPRINT) ||
                          !server_check_profile(s, h, &foreign) ||
                          !server_check_hash(s, h, "tokenizer", h->tokenizer, s->options.tokenizer,
                                             IFL_REJECT_TOKENIZER)))
        return;
    server_peer *old = server_find(s, identity);
    if (old) transport_server_drop(s, old, "said HELLO again");
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
    peer->weights_only = weights_only;
    memcpy(peer->name, h->name, sizeof peer->name);
    snprintf(peer->key, sizeof peer->key, "%s", key);
    if (s->guard) ifl_info("actor %s comes with the key %s", peer->name, key_name);
    peer->seen_ns = peer->progress_ns = now;
    peer->version_ready = peer->version_done = peer->version_wanted = -1;
    s->peers[s->n_peers++] = peer;
    s->stats.joined++;
    server_welcome(s, peer, h, foreign);
    if (s->ending) transport_server_bye(s, peer);
    server_push_event(s, peer, IFL_SERVER_JOINED, NULL, message, 0);
}

/* --- Messages of a session -------------------------------------------------------------------- */

static void server_nack(server_peer *peer, const ifl_trajectory *t, int32_t code, int32_t retry_ms,
                        const char *text) {
    ifl_message m = ifl_message_make(IFL_WIRE_NACK);
    m.nack.key = ifl_trajectory_key_of(t);
    m.nack.lease_id = t->lease_id;
    m.nack.code = code;
    m.nack.retry_after_ms = retry_ms;
    snprintf(m.nack.text, sizeof m.nack.text, "%s", text);
    transport_server_queue(peer, &m);
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
        server_nack(peer, t, IFL_NACK_INVALID, 0, text);
        peer->n_refused++;
        return false;
    }
    int64_t n_queued_bytes;
    int32_t n_queued = transport_queue_size(&s->events, &n_queued_bytes);
    if (n_queued >= s->options.events_max / 4 * 3 ||
        n_queued_bytes + n_bytes > s->options.event_bytes_max) {
        s->stats.trajectories_busy++;
        server_nack(peer, t, IFL_NACK_BUSY, BUSY_RETRY_MS, "the learner's queue is full");
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
    m.policy = transport_server_newest_version(s);
    m.ping.clock_ns = p->clock_ns;
    m.ping.n_queued = transport_queue_size(&s->events, &m.ping.bytes_queued);
    transport_server_queue(peer, &m);
}

/* A sound message of a live session, in sequence. Consumes what it hands on. */
static void server_message(ifl_server *s, server_peer *peer, ifl_message *m, int64_t n_bytes,
                           int64_t now) {
    char text[IFL_WIRE_TEXT_MAX];
    ifl_wire_type type = m->type;
    if (peer->weights_only && (type == IFL_WIRE_TRAJ || type == IFL_WIRE_RETURN ||
                               type == IFL_WIRE_WDONE || type == IFL_WIRE_DRAIN))
        type = 0; /* it has no leases to answer for */
    switch (type) {
    case IFL_WIRE_PING:
    case IFL_WIRE_PONG:
        server_ping(s, peer, m, now);
        return;
    case IFL_WIRE_TRAJ:
        if (!server_admit_trajectory(s, peer, m, n_bytes)) {
            if (peer->n_refused >= REFUSED_MAX)
                transport_server_expel(s, peer, IFL_WIRE_E_QUARANTINE, m->seq,
                                       "too many trajectories failed the check");
            return;
        }
        ifl_error err = {0};
        if (transport_trajectory_came(s, peer, m->traj.trajectory,
                                      n_bytes - IFL_WIRE_IDENTITY_BYTES, &err) != IFL_OK) {
            snprintf(text, sizeof text, "%.*s", (int)sizeof text - 1, err.text);
            ifl_warn("%s: %s", peer->name, text);
            transport_server_expel(s, peer, IFL_WIRE_E_LIMIT, m->seq, text);
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
        transport_server_drop(s, peer, text);
        return;
    case IFL_WIRE_ERROR:
        snprintf(text, sizeof text, "the actor reports: %.400s", m->error.text);
        transport_server_drop(s, peer, text);
        return;
    default:
        snprintf(text, sizeof text, "%s is not an actor's to send here",
                 ifl_wire_type_name((int)m->type));
        transport_server_offence(s, peer->identity, peer->key, now);
        transport_server_expel(s, peer, IFL_WIRE_E_TYPE, m->seq, text);
        return;
    }
    if (transport_queue_size(&s->events, NULL) >= s->options.events_max)
        transport_server_expel(s, peer, IFL_WIRE_E_LIMIT, m->seq,
                               "the learner's queue of events is full");
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
        s->stats.out_of_sequence++;
        snprintf(text, sizeof text, "message %llu follows message %llu: one was lost",
                 (unsigned long long)h->seq, (unsigned long long)c->seq_in);
        transport_server_expel(s, peer, IFL_WIRE_E_SEQUENCE, h->seq, text);
        return NULL;
    }
    c->seq_in = h->seq;
    if (on_weights)
        transport_server_weights_read(peer, h->ack);
    else
        transport_debt_acked(peer, h->ack);
    return peer;
}

/* A message in the name of a session that belongs to another key: neither heard nor counted as
 * anything of that session. */
static void server_refuse_key(ifl_server *s, const server_peer *owner, const transport_in *in,
                              int64_t now) {
    s->stats.key_conflicts++;
    if (now - s->warned_ns > WARN_NS) {
        s->warned_ns = now;
        ifl_warn("a peer with the key %.41s speaks in the name of %s: not heard", in->key,
                 owner->name);
    }
    server_reply_error(s, in->identity, 0, IFL_WIRE_E_FENCED, 0,
                       "this identity belongs to a session of another key");
}

/* One message from a socket, if there is one. */
bool transport_server_receive(ifl_server *s, bool on_weights) {
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
    server_peer *owner = in.has_identity ? server_find(s, in.identity) : NULL;
    if (!in.has_identity) {
        s->stats.malformed++;
    } else if (owner && strcmp(owner->key, in.key) != 0) {
        server_refuse_key(s, owner, &in, now);
    } else if (server_is_banned(s, in.identity, in.key, now)) {
        if (st == IFL_OK && message.type == IFL_WIRE_HELLO)
            server_reject(s, in.identity, IFL_REJECT_BANNED, BAN_NS / 1000000,
                          "too many malformed messages");
    } else if (st == IFL_UNSUPPORTED && header.type != 0 &&
               (header.flags & IFL_WIRE_FLAG_OPTIONAL)) {
        server_session(s, &in, &header,
                       on_weights); /* unknown and optional: counted, else ignored */
    } else if (st != IFL_OK) {
        server_peer *peer = server_find(s, in.identity);
        transport_server_offence(s, in.identity, in.key, now);
        if (peer || now - s->warned_ns > WARN_NS) {
            s->warned_ns = now;
            ifl_warn("malformed message from %s: %s", peer ? peer->name : "an unknown peer",
                     err.text);
        }
        char text[IFL_WIRE_TEXT_MAX];
        snprintf(text, sizeof text, "%.*s", (int)sizeof text - 1, err.text);
        int32_t code = st == IFL_UNSUPPORTED ? IFL_WIRE_E_TYPE : IFL_WIRE_E_MALFORMED;
        if (peer)
            transport_server_expel(s, peer, code, header.seq, text);
        else if (!on_weights)
            server_reply_error(s, in.identity, header.session, code, header.seq, text);
    } else if (message.type == IFL_WIRE_HELLO && !on_weights) {
        server_hello(s, in.identity, in.key, &message, now);
    } else {
        server_peer *peer = server_session(s, &in, &header, on_weights);
        if (peer) {
            if (!on_weights) peer->seen_ns = now; /* PINGs come there; see the client's */
            if (on_weights)
                transport_server_weight_message(s, peer, &message, now);
            else
                server_message(s, peer, &message, in.n_bytes, now);
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (st == IFL_OK) ifl_message_clear(&message);
    transport_in_clear(&in);
    return true;
}

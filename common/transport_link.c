/* The client's thread: connecting, sending, receiving, and what follows from time passing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "common/recorder.h"
#include "common/transport_client_internal.h"

#define BURST_MAX 64             /* messages of one socket in one turn */
#define HELLO_FIRST_NS 500000000 /* until HELLO is said again; doubles up to ... */
#define HELLO_LAST_NS 8000000000
#define STEADY_NS 5000000000 /* a session of this length counts as a good one */
/* Heartbeat limits that the weight plane may be silent for with news due. */
#define WEIGHTS_SILENCES 2
#define BROKEN_OFF_MAX 3 /* handshakes without a reason, until keys are suspected */
#define PROBE_FROM 2     /* ... until the other side is asked whether it has any */
#define TICK_MS 50       /* longest sleep while connecting */

/* --- Events ----------------------------------------------------------------------------------- */

static bool client_push(transport_queue *queue, ifl_client_event_kind kind, const char *text,
                        ifl_message *message, int64_t n_bytes) {
    client_event_node *node = calloc(1, sizeof *node);
    if (!node) return false;
    node->node.n_bytes = n_bytes;
    node->event.kind = kind;
    if (text) snprintf(node->event.text, sizeof node->event.text, "%s", text);
    if (message) {
        node->event.message = *message;
        memset(message, 0, sizeof *message); /* the event owns it now */
    }
    transport_queue_push(queue, &node->node);
    return true;
}

static bool client_push_weights(ifl_client *c, ifl_client_event_kind kind, const char *text,
                                ifl_message *message, int64_t n_bytes) {
    if (!client_push(&c->weight_events, kind, text, message, n_bytes)) return false;
    if (c->options.weights_told) c->options.weights_told(c->options.weights_user);
    return true;
}

/* Times that fit a heartbeat of a second shrink with a shorter one. */
static int64_t client_scaled(const ifl_client *c, int64_t ns) {
    int32_t ms = c->welcome.heartbeat_ms; /* 0: never welcomed yet */
    return ms > 0 && ms < 1000 ? ns / 1000 * ms : ns;
}

static int64_t client_silence_ns(const ifl_client *c) {
    return (int64_t)c->welcome.heartbeat_ms * c->welcome.heartbeat_misses * 1000000;
}

/* --- Links ------------------------------------------------------------------------------------ */

static void client_close_sockets(ifl_client *c, int linger_ms) {
    void *sockets[2] = {c->control, c->weights};
    for (int i = 0; i < 2; i++) {
        if (!sockets[i]) continue;
        zmq_setsockopt(sockets[i], ZMQ_LINGER, &linger_ms, sizeof linger_ms);
        zmq_close(sockets[i]);
    }
    if (c->monitor) zmq_close(c->monitor);
    transport_probe_close(&c->probe);
    c->control = c->weights = c->monitor = NULL;
}

static ifl_status client_open_socket(ifl_client *c, void **socket, const char *endpoint,
                                     int receive_hwm, ifl_error *err) {
    *socket = zmq_socket(c->zmq, ZMQ_DEALER);
    if (!*socket)
        return ifl_fail(err, IFL_IO, "cannot open a socket: %s", zmq_strerror(zmq_errno()));
    IFL_TRY(transport_socket_setup(*socket, endpoint, 1000, receive_hwm, 0, err));
    if (c->guarded) IFL_TRY(transport_socket_curve_client(*socket, &c->own, c->learner_key, err));
    if (socket == &c->control) {
        char name[48];
        snprintf(name, sizeof name, "handshakes-%u", c->n_monitors++);
        c->monitor = transport_monitor_open(c->zmq, *socket, name);
        if (!c->monitor)
            return ifl_fail(err, IFL_IO, "cannot watch handshakes: %s", zmq_strerror(zmq_errno()));
    }
    int on = 1, interval = 100, interval_max = 2000;
    /* Immediate: nothing is queued for a learner that isn't there. */
    if (zmq_setsockopt(*socket, ZMQ_ROUTING_ID, c->identity, sizeof c->identity) != 0 ||
        zmq_setsockopt(*socket, ZMQ_IMMEDIATE, &on, sizeof on) != 0 ||
        zmq_setsockopt(*socket, ZMQ_RECONNECT_IVL, &interval, sizeof interval) != 0 ||
        zmq_setsockopt(*socket, ZMQ_RECONNECT_IVL_MAX, &interval_max, sizeof interval_max) != 0 ||
        zmq_connect(*socket, endpoint) != 0)
        return ifl_fail(err, IFL_IO, "cannot connect to %s: %s", endpoint,
                        zmq_strerror(zmq_errno()));
    return IFL_OK;
}

static void client_connect(ifl_client *c, int64_t now) {
    ifl_error err = {0};
    c->control_counters = c->weight_counters = (transport_counters){0, 0};
    c->weights_open = false;
    c->hello_ns = client_scaled(c, HELLO_FIRST_NS);
    if (client_open_socket(c, &c->control, c->endpoint, 1000, &err) != IFL_OK ||
        client_open_socket(c, &c->weights, c->weights_endpoint, 16, &err) != IFL_OK) {
        ifl_warn("%s; trying again", err.text);
        client_close_sockets(c, 0);
        c->next_ns = now + client_scaled(c, CLIENT_BACKOFF_LAST_NS);
        return;
    }
    c->state = CLIENT_HELLO;
    c->next_ns = now;
    c->n_broken_off = 0;
    c->probe_at = PROBE_FROM;
    c->has_keys = false;
}

/* Forgets everything that belonged to the session; the outbox stays, to be sent again. */
static void client_forget_session(ifl_client *c) {
    client_close_sockets(c, 0);
    pthread_mutex_lock(&c->lock);
    c->connected = c->announcement_read = false;
    c->reset_text[0] = '\0';
    c->session = 0;
    transport_out_clear(&c->out);
    transport_out_clear(&c->weights_out);
    for (client_parcel *p = c->parcels; p; p = p->next) {
        p->sent = false;
        p->not_before_ns = 0;
    }
    c->sent_bytes = 0;
    pthread_mutex_unlock(&c->lock);
}

static void client_finish(ifl_client *c, ifl_client_event_kind kind, const char *text) {
    bool was_connected = c->state == CLIENT_CONNECTED;
    client_forget_session(c);
    c->state = CLIENT_FINAL;
    if (was_connected) client_push_weights(c, IFL_CLIENT_LOST, text, NULL, 0);
    client_push(&c->events, kind, text, NULL, 0);
}

static void client_lose(ifl_client *c, const char *text, int64_t now) {
    client_forget_session(c);
    pthread_mutex_lock(&c->lock);
    c->stats.losses++;
    pthread_mutex_unlock(&c->lock);
    /* Only a session that lasted makes the next attempt prompt: one that breaks at once, again and
     * again, slows down. */
    int64_t last = client_scaled(c, CLIENT_BACKOFF_LAST_NS);
    if (c->state == CLIENT_CONNECTED && now - c->connected_ns > client_scaled(c, STEADY_NS))
        c->backoff_ns = CLIENT_BACKOFF_FIRST_NS;
    c->state = CLIENT_WAITING;
    c->next_ns = now + c->backoff_ns;
    c->backoff_ns = c->backoff_ns * 2 > last ? last : c->backoff_ns * 2;
    c->deadline_ns = now + c->options.connect_deadline_ms * 1000000;
    client_push_weights(c, IFL_CLIENT_LOST, text, NULL, 0);
    client_push(&c->events, IFL_CLIENT_LOST, text, NULL, 0);
}

/* The keys don't fit, and trying at once again would not help. Before the first session that is
 * the user's to mend; after one, the learner may be about to read its list anew. */
static void client_unauthorised(ifl_client *c, const char *text, int64_t now) {
    if (!c->was_connected) {
        client_finish(c, IFL_CLIENT_UNAUTHORISED, text);
        return;
    }
    if (strcmp(c->unauthorised, text) != 0) ifl_warn("%s; trying again", text);
    snprintf(c->unauthorised, sizeof c->unauthorised, "%s", text);
    /* libzmq gives a link up for good whose handshake was refused. */
    client_close_sockets(c, 0);
    c->state = CLIENT_WAITING;
    c->next_ns = now + c->backoff_ns;
    c->backoff_ns =
        c->backoff_ns * 2 > CLIENT_BACKOFF_LAST_NS ? CLIENT_BACKOFF_LAST_NS : c->backoff_ns * 2;
}

/* A learner that cannot read the handshake closes the link without a word, as a proxy does that has
 * no learner behind it. Which of them it is, it says when asked; then one more time is proof. */
static void client_probe(ifl_client *c, int64_t now) {
    if (!c->guarded || c->state != CLIENT_HELLO || c->has_keys) return;
    if (!c->probe.socket) {
        if (c->n_broken_off >= c->probe_at &&
            !transport_probe_open(&c->probe, c->zmq, c->endpoint, now))
            c->probe_at = c->n_broken_off + PROBE_FROM;
        return;
    }
    transport_probe_result result = transport_probe_take(&c->probe, now);
    if (result == TRANSPORT_PROBE_WAITS) return;
    transport_probe_close(&c->probe);
    c->has_keys = result == TRANSPORT_PROBE_CURVE;
    c->probe_at = c->n_broken_off + PROBE_FROM;
}

static void client_wrong_key_text(const ifl_client *c, char text[IFL_WIRE_TEXT_MAX]) {
    snprintf(
        text, IFL_WIRE_TEXT_MAX,
        "the learner at %.150s has keys and cannot read this actor's handshake: %s/learner.public "
        "(%s) is not its key; copy learner.public anew from its host (`inflight keys list "
        "FOLDER` shows it there)",
        c->endpoint, c->key_folder, c->learner_key);
}

/* Why handshakes have failed. */
static void client_handshakes(ifl_client *c, int64_t now) {
    int event, value;
    char text[IFL_WIRE_TEXT_MAX] = "";
    while (c->monitor && transport_monitor_take(c->monitor, &event, &value)) {
        if (c->state != CLIENT_HELLO) continue;
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
            snprintf(text, sizeof text,
                     "the learner at %s does not allow the key %s (public: %s); on its host: "
                     "inflight keys allow FOLDER %s.public",
                     c->endpoint, c->key_name, c->own.public_key, c->key_name);
        else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL &&
                 value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
            snprintf(text, sizeof text,
                     c->guarded ? "the learner at %s has no keys and this actor has: give "
                                  "transport.keys to both or to none"
                                : "the learner at %s wants keys: transport.keys=FOLDER, with "
                                  "this actor's secret key and learner.public in it",
                     c->endpoint);
        else if (c->has_keys)
            client_wrong_key_text(c, text);
        else
            c->n_broken_off++; /* no learner behind a proxy, or keys that don't fit */
    }
    if (*text) client_unauthorised(c, text, now);
}

/* --- Sending ---------------------------------------------------------------------------------- */

/* Sends now or not at all; used for what would be stale later. Caller holds the lock. */
static bool client_send_now(ifl_client *c, void *socket, transport_counters *counters,
                            const ifl_message *message) {
    transport_out *out;
    ifl_error err = {0};
    if (transport_out_create(&out, message, &err) != IFL_OK) {
        ifl_warn("%s", err.text);
        return false;
    }
    ifl_status st = transport_send(socket, NULL, c->session, counters, out, &c->stats.bytes_out);
    if (st == IFL_OK) c->stats.messages_out++;
    transport_out_free(out);
    return st == IFL_OK;
}

static void client_say_hello(ifl_client *c, int64_t now) {
    ifl_message m = ifl_message_make(IFL_WIRE_HELLO);
    ifl_wire_hello *h = &m.hello;
    h->major = IFL_WIRE_MAJOR;
    h->minor_max = IFL_WIRE_MINOR;
    memcpy(h->build, c->build, sizeof h->build);
    memcpy(h->incarnation, c->identity, sizeof h->incarnation);
    memcpy(h->name, c->name, sizeof h->name);
    h->fingerprint = c->options.fingerprint;
    h->profile = c->options.profile;
    h->parts = c->options.parts;
    h->caps = c->options.weights_only ? IFL_WIRE_CAP_WEIGHTS : 0;
    h->tokenizer = c->options.tokenizer;
    h->nonce = transport_random_u64();
    transport_counters outside = {
        0, 0}; /* HELLO belongs to no session and has no place in a sequence */
    pthread_mutex_lock(&c->lock);
    h->held_version = c->held_version;
    bool sent = client_send_now(c, c->control, &outside, &m);
    pthread_mutex_unlock(&c->lock);
    if (!sent) { /* not connected yet */
        c->next_ns = now + 20000000;
        return;
    }
    c->nonce = h->nonce;
    c->next_ns = now + c->hello_ns;
    int64_t last = client_scaled(c, HELLO_LAST_NS);
    c->hello_ns = c->hello_ns * 2 > last ? last : c->hello_ns * 2;
}

static void client_ping(ifl_client *c, int64_t now) {
    ifl_message m = ifl_message_make(IFL_WIRE_PING);
    pthread_mutex_lock(&c->lock);
    m.ping.clock_ns = now;
    m.ping.progress = c->progress;
    m.ping.phase = c->phase;
    m.ping.n_queued = c->n_queued;
    m.ping.bytes_queued = c->parcel_bytes;
    client_send_now(c, c->control, &c->control_counters, &m);
    pthread_mutex_unlock(&c->lock);
    c->next_ns = now + (int64_t)c->welcome.heartbeat_ms * 1000000;
}

/* Our last word, also as the answer to the learner's BYE: it waits for that before it closes. */
static void client_send_bye(ifl_client *c) {
    ifl_message m = ifl_message_make(IFL_WIRE_BYE);
    m.bye.code = IFL_BYE_DRAINED;
    snprintf(m.bye.text, sizeof m.bye.text, "the actor is done");
    pthread_mutex_lock(&c->lock);
    client_send_now(c, c->control, &c->control_counters, &m);
    pthread_mutex_unlock(&c->lock);
    client_close_sockets(c, c->options.linger_ms);
}

static bool client_flush_list(ifl_client *c, void *socket, transport_counters *counters,
                              transport_out_list *list) {
    while (list->head) {
        if (transport_send(socket, NULL, c->session, counters, list->head, &c->stats.bytes_out) !=
            IFL_OK)
            return false;
        c->stats.messages_out++;
        transport_out_free(transport_out_shift(list));
    }
    return true;
}

/* Sends what waits, control before trajectories before weight requests. True: something couldn't be
 * sent yet. */
static bool client_flush(ifl_client *c, int64_t now) {
    bool blocked = false;
    pthread_mutex_lock(&c->lock);
    if (!client_flush_list(c, c->control, &c->control_counters, &c->out)) blocked = true;
    for (client_parcel *p = c->parcels; p && !blocked; p = p->next) {
        if (p->sent || now < p->not_before_ns) continue;
        int64_t n_bytes = transport_out_bytes(p->out), grant = c->welcome.trajectory_bytes;
        if (grant > 0 && c->sent_bytes > 0 && c->sent_bytes + n_bytes > grant)
            break; /* an answer wakes us */
        if (transport_send(c->control, NULL, c->session, &c->control_counters, p->out,
                           &c->stats.bytes_out) != IFL_OK)
            blocked = true;
        else {
            p->sent = true;
            c->sent_bytes += n_bytes;
            c->stats.messages_out++;
            ifl_record_event("sent", p->key.purpose, p->key.task_serial, p->key.sample, p->lease_id,
                             0);
            ifl_fail_point(IFL_FAIL_LINK_SENT);
        }
    }
    if (!c->weights_open) {
        ifl_message m = ifl_message_make(IFL_WIRE_CREDIT);
        m.credit.n_bytes = (int64_t)c->welcome.chunk_window * IFL_WIRE_PAYLOAD_MAX;
        c->weights_open = client_send_now(c, c->weights, &c->weight_counters, &m);
        blocked |= !c->weights_open;
    }
    bool asks = c->weights_out.head != NULL;
    if (c->weights_open && !client_flush_list(c, c->weights, &c->weight_counters, &c->weights_out))
        blocked = true;
    /* That the announcement has been read is in every header; the learner waits for one. */
    if (c->announcement_read && c->welcome.minor >= 5 && !asks && !blocked) {
        ifl_message m = ifl_message_make(IFL_WIRE_CREDIT);
        m.credit.n_bytes = (int64_t)c->welcome.chunk_window * IFL_WIRE_PAYLOAD_MAX;
        asks = client_send_now(c, c->weights, &c->weight_counters, &m);
        blocked = !asks;
    }
    if (asks && !blocked) c->announcement_read = false;
    pthread_mutex_unlock(&c->lock);
    return blocked;
}

/* --- Receiving -------------------------------------------------------------------------------- */

/* TRAJ_ACK or NACK: the parcels of that key are done, or wait a little. True when the application
 * is to know. */
static bool client_answered(ifl_client *c, const ifl_message *m, int64_t now) {
    bool is_ack = m->type == IFL_WIRE_TRAJ_ACK;
    ifl_trajectory_key key = is_ack ? m->traj_ack.key : m->nack.key;
    bool busy = !is_ack && m->nack.code == IFL_NACK_BUSY;
    ifl_record_event(is_ack ? "acked" : "nacked", key.purpose, key.task_serial, key.sample,
                     is_ack ? m->traj_ack.lease_id : m->nack.lease_id,
                     is_ack ? m->traj_ack.status : m->nack.code);
    if (is_ack) ifl_fail_point(IFL_FAIL_LINK_ACKED);
    pthread_mutex_lock(&c->lock);
    for (client_parcel **at = &c->parcels; *at;) {
        client_parcel *p = *at;
        if (!p->sent || !ifl_trajectory_key_equal(p->key, key)) {
            at = &p->next;
        } else if (busy) {
            p->sent = false;
            c->sent_bytes -= transport_out_bytes(p->out);
            p->not_before_ns = now + (int64_t)m->nack.retry_after_ms * 1000000;
            c->stats.resent_trajectories++;
            at = &p->next;
        } else {
            *at = p->next;
            if (!p->next) c->parcels_end = at;
            c->n_parcels--;
            c->parcel_bytes -= transport_out_bytes(p->out);
            c->sent_bytes -= transport_out_bytes(p->out);
            transport_out_free(p->out);
            free(p);
        }
    }
    pthread_mutex_unlock(&c->lock);
    return !busy;
}

static void client_welcomed(ifl_client *c, ifl_message *m, int64_t now) {
    if (m->welcome.nonce != c->nonce || m->welcome.session != m->session)
        return; /* of an earlier HELLO */
    c->welcome = m->welcome;
    c->control_counters = (transport_counters){.seq_out = 0, .seq_in = m->seq};
    c->state = CLIENT_CONNECTED;
    c->seen_ns = c->weights_seen_ns = now;
    c->announced_version = -1;
    c->next_ns = now;
    c->connected_ns = now;
    c->was_connected = true;
    c->n_broken_off = 0;
    c->unauthorised[0] = '\0';
    pthread_mutex_lock(&c->lock);
    c->connected = true;
    c->session = m->session;
    if (c->stats.connects++ > 0) c->stats.resent_trajectories += c->n_parcels;
    pthread_mutex_unlock(&c->lock);
    ifl_message copy = *m; /* WELCOME owns nothing */
    client_push_weights(c, IFL_CLIENT_CONNECTED, NULL, &copy, 0);
    client_push(&c->events, IFL_CLIENT_CONNECTED, NULL, m, 0);
}

static void client_before_welcome(ifl_client *c, ifl_message *m, int64_t now) {
    if (m->type == IFL_WIRE_WELCOME) {
        client_welcomed(c, m, now);
    } else if (m->type == IFL_WIRE_REJECT) {
        if (m->reject.code == IFL_REJECT_KEY) {
            client_finish(c, IFL_CLIENT_UNAUTHORISED, m->reject.text);
        } else if (m->reject.retry_after_ms == 0) {
            client_finish(c, IFL_CLIENT_REFUSED, m->reject.text);
        } else {
            ifl_warn("the learner refuses for now: %s", m->reject.text);
            c->next_ns = now + (int64_t)m->reject.retry_after_ms * 1000000;
        }
    }
}

/* PONG names the newest version. One that was never announced on the weight plane, which says
 * nothing, means a stream that waits for the rest of a frame that was damaged on the way. */
static void client_check_weights(ifl_client *c, int64_t newest, int64_t now) {
    char text[IFL_WIRE_TEXT_MAX];
    if (newest <= c->announced_version || transport_queue_size(&c->weight_events, NULL) > 0) {
        c->weights_seen_ns = now;
    } else if (now - c->weights_seen_ns > WEIGHTS_SILENCES * client_silence_ns(c)) {
        snprintf(text, sizeof text,
                 "the weight plane has been silent for %.1f s, and version %lld was announced",
                 (double)(now - c->weights_seen_ns) * 1e-9, (long long)newest);
        client_lose(c, text, now);
    }
}

static void client_message(ifl_client *c, ifl_message *m, int64_t n_bytes, int64_t now) {
    char text[IFL_WIRE_TEXT_MAX];
    switch (m->type) {
    case IFL_WIRE_PONG:
        pthread_mutex_lock(&c->lock);
        c->stats.learner_progress = m->ping.progress;
        c->stats.learner_phase = m->ping.phase;
        c->stats.rtt_s = (double)(now - m->ping.clock_ns) * 1e-9;
        pthread_mutex_unlock(&c->lock);
        client_check_weights(c, m->policy, now);
        return;
    case IFL_WIRE_TRAJ_ACK:
    case IFL_WIRE_NACK:
        if (!client_answered(c, m, now)) return;
        break;
    case IFL_WIRE_BYE:
        snprintf(text, sizeof text, "the learner said bye: %.400s", m->bye.text);
        bool done = m->bye.code == IFL_BYE_DONE;
        client_push(&c->events, IFL_CLIENT_MESSAGE, NULL, m, n_bytes);
        if (done) {
            client_push_weights(c, IFL_CLIENT_LOST, text, NULL, 0);
            client_send_bye(c);
            client_forget_session(c);
            c->state = CLIENT_FINAL;
        } else {
            client_lose(c, text, now);
        }
        return;
    case IFL_WIRE_LEASE:
        for (int32_t i = 0; i < m->lease.n_samples; i++)
            ifl_record_event("held", m->lease.purpose, m->lease.task_serial, m->lease.samples[i],
                             m->lease.lease_id, 0);
        break;
    case IFL_WIRE_TRAJ: /* what another actor has begun, before its lease */
    case IFL_WIRE_WSET:
    case IFL_WIRE_CREDIT:
    case IFL_WIRE_DRAIN:
    case IFL_WIRE_STATS:
        break;
    default:
        snprintf(text, sizeof text, "the learner sent %s, which is not its to send",
                 ifl_wire_type_name((int)m->type));
        client_lose(c, text, now);
        return;
    }
    int64_t n_queued_bytes;
    int32_t n_queued = transport_queue_size(&c->events, &n_queued_bytes);
    if (n_queued >= c->options.events_max || n_queued_bytes > c->options.event_bytes_max) {
        snprintf(text, sizeof text,
                 "the actor's queue of events is full: %d of %lld bytes, limits %d and %lld",
                 n_queued, (long long)n_queued_bytes, c->options.events_max,
                 (long long)c->options.event_bytes_max);
        client_lose(c, text, now);
    } else if (!client_push(&c->events, IFL_CLIENT_MESSAGE, NULL, m, n_bytes))
        client_lose(c, "out of memory: an event", now);
}

/* One message from a socket, if there is one. */
static bool client_receive(ifl_client *c, bool on_weights) {
    transport_in in;
    void *socket = on_weights ? c->weights : c->control;
    if (!socket || transport_recv(socket, false, &in) != IFL_OK) return false;
    ifl_wire_header h;
    ifl_message m;
    ifl_error err = {0};
    int64_t now = ifl_clock_ns();
    ifl_status st = transport_decode(&in, &h, &m, &err);
    pthread_mutex_lock(&c->lock);
    c->stats.messages_in++;
    c->stats.bytes_in += in.n_bytes;
    if (st != IFL_OK && st != IFL_UNSUPPORTED) c->stats.malformed++;
    pthread_mutex_unlock(&c->lock);
    transport_counters *counters = on_weights ? &c->weight_counters : &c->control_counters;
    char text[IFL_WIRE_TEXT_MAX];
    bool optional = st == IFL_UNSUPPORTED && h.type != 0 && (h.flags & IFL_WIRE_FLAG_OPTIONAL);
    if (st != IFL_OK && !optional) {
        snprintf(text, sizeof text, "malformed message from the learner: %.400s", err.text);
        if (c->state == CLIENT_CONNECTED)
            client_lose(c, text, now);
        else
            ifl_warn("%s", text);
    } else if (c->state == CLIENT_HELLO) {
        if (!on_weights && st == IFL_OK) client_before_welcome(c, &m, now);
    } else if (c->state != CLIENT_CONNECTED || h.session != c->welcome.session) {
        /* Of another session: late answers to HELLOs, errors about messages long forgotten. */
    } else if (st == IFL_OK && m.type == IFL_WIRE_ERROR) {
        snprintf(text, sizeof text, "the learner closed the session: %.400s", m.error.text);
        client_lose(c, text, now);
    } else if (h.seq != counters->seq_in + 1) {
        snprintf(text, sizeof text, "message %llu follows message %llu: one was lost",
                 (unsigned long long)h.seq, (unsigned long long)counters->seq_in);
        client_lose(c, text, now);
    } else {
        counters->seq_in = h.seq;
        /* Each link for itself: a frame whose length was damaged on the way swallows what follows
         * on its link, and the other one goes on as if nothing were. */
        if (on_weights)
            c->weights_seen_ns = now;
        else
            c->seen_ns = now;
        if (on_weights && st == IFL_OK && m.type == IFL_WIRE_WANN)
            c->announced_version = m.wann.manifest->version;
        if (st != IFL_OK) {
            /* Unknown and optional: ignored. */
        } else if (!on_weights) {
            client_message(c, &m, in.n_bytes, now);
        } else if (m.type == IFL_WIRE_WANN || m.type == IFL_WIRE_WCHUNK ||
                   m.type == IFL_WIRE_WNACK) {
            if (!client_push_weights(c, IFL_CLIENT_MESSAGE, NULL, &m, in.n_bytes))
                client_lose(c, "out of memory: a chunk", now);
        } else {
            client_lose(c, "the learner sent a message that isn't for the weight plane", now);
        }
    }
    if (st == IFL_OK) ifl_message_clear(&m);
    transport_in_clear(&in);
    return true;
}

/* --- The thread ------------------------------------------------------------------------------- */

/* No WELCOME until the deadline. */
static void client_give_up(ifl_client *c) {
    char text[IFL_WIRE_TEXT_MAX];
    double seconds = (double)c->options.connect_deadline_ms * 1e-3;
    bool broken_off = c->n_broken_off >= BROKEN_OFF_MAX;
    if (c->unauthorised[0]) {
        client_finish(c, IFL_CLIENT_UNAUTHORISED, c->unauthorised);
    } else if (broken_off && c->guarded && !c->was_connected) {
        snprintf(text, sizeof text,
                 "the learner at %s has broken off %d handshakes in %.1f s: learner.public (%s) is "
                 "not its key (`inflight keys list` on its host shows that), or it has no keys",
                 c->endpoint, c->n_broken_off, seconds, c->learner_key);
        client_finish(c, IFL_CLIENT_UNAUTHORISED, text);
    } else {
        snprintf(text, sizeof text, "no answer from a learner at %s within %.1f s%s", c->endpoint,
                 seconds,
                 broken_off ? "; it breaks off every handshake: it may want keys (transport.keys)"
                            : "");
        client_finish(c, IFL_CLIENT_GONE, text);
    }
}

/* Moves the state on with time. Returns how long the poll may last, ms. */
static int client_tick(ifl_client *c) {
    int64_t now = ifl_clock_ns();
    char text[IFL_WIRE_TEXT_MAX];
    if ((c->state == CLIENT_WAITING || c->state == CLIENT_HELLO) && now > c->deadline_ns) {
        client_give_up(c);
    }
    switch (c->state) {
    case CLIENT_FINAL:
        return 1000;
    case CLIENT_WAITING:
        if (now >= c->next_ns) client_connect(c, now);
        return 5;
    case CLIENT_HELLO:
        if (now >= c->next_ns) client_say_hello(c, now);
        int64_t left_ms = (c->next_ns - now) / 1000000 + 1;
        return left_ms > TICK_MS ? TICK_MS : left_ms < 1 ? 1 : (int)left_ms;
    case CLIENT_CONNECTED:
        break;
    }
    pthread_mutex_lock(&c->lock);
    snprintf(text, sizeof text, "%s", c->reset_text);
    pthread_mutex_unlock(&c->lock);
    if (text[0]) {
        client_lose(c, text, now);
        return 1;
    }
    if (now - c->seen_ns > client_silence_ns(c)) {
        snprintf(text, sizeof text,
                 "the learner has been silent for %.1f s, limit %d heartbeats of %d ms",
                 (double)(now - c->seen_ns) * 1e-9, c->welcome.heartbeat_misses,
                 c->welcome.heartbeat_ms);
        client_lose(c, text, now);
        return 1;
    }
    if (now >= c->next_ns) client_ping(c, now);
    bool blocked = client_flush(c, now);
    int64_t left_ms = (c->next_ns - now) / 1000000 + 1;
    if (blocked) return 2;
    return left_ms > 250 ? 250 : left_ms < 1 ? 1 : (int)left_ms;
}

static void client_say_goodbye(ifl_client *c) {
    if (c->state != CLIENT_CONNECTED) return;
    int64_t until = ifl_clock_ns() + (int64_t)c->options.linger_ms * 1000000;
    while (client_flush(c, ifl_clock_ns()) && ifl_clock_ns() < until)
        ifl_sleep_ms(1);
    client_send_bye(c);
}

void *transport_client_run(void *context) {
    ifl_client *c = context;
    for (;;) {
        int wait_ms = client_tick(c);
        pthread_mutex_lock(&c->lock);
        bool stop = c->stop;
        pthread_mutex_unlock(&c->lock);
        if (stop) break;
        /* Chunks that nobody has taken stay in the socket: that is the weight plane's backpressure.
         */
        bool read_weights =
            c->weights && transport_queue_size(&c->weight_events, NULL) <
                              (c->state == CLIENT_CONNECTED ? c->welcome.chunk_window : 8) + 8;
        zmq_pollitem_t items[5] = {{NULL, c->wake_fd, ZMQ_POLLIN, 0}};
        int n = 1;
        if (c->control) items[n++] = (zmq_pollitem_t){c->control, 0, ZMQ_POLLIN, 0};
        if (read_weights) items[n++] = (zmq_pollitem_t){c->weights, 0, ZMQ_POLLIN, 0};
        if (c->monitor) items[n++] = (zmq_pollitem_t){c->monitor, 0, ZMQ_POLLIN, 0};
        if (c->probe.socket) items[n++] = (zmq_pollitem_t){c->probe.socket, 0, ZMQ_POLLIN, 0};
        if (zmq_poll(items, n, wait_ms) < 0 && zmq_errno() != EINTR) {
            client_finish(c, IFL_CLIENT_GONE, "the transport has failed: zmq_poll");
            continue;
        }
        if (items[0].revents) transport_wake_clear(c->wake_fd);
        client_handshakes(c, ifl_clock_ns());
        client_probe(c, ifl_clock_ns());
        for (int i = 0; i < BURST_MAX && client_receive(c, false); i++) {
        }
        for (int i = 0; read_weights && i < 4 && client_receive(c, true); i++) {
        }
    }
    client_say_goodbye(c);
    client_close_sockets(c, c->options.linger_ms);
    return NULL;
}

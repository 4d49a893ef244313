/* The learner's end: the thread, its life, and the application's side. The lock `lock` guards the
 * table of peers with everything in it and the statistics; the transport thread takes it for one
 * message or one flush at a time, the application for one send or look. Sockets are touched by the
 * transport thread alone. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/transport_server_internal.h"

/* Messages of one plane in one turn: control comes again before more chunks. */
#define BURST_MAX 64

/* --- The thread ------------------------------------------------------------------------------- */

/* Sends what a list holds. False: the peer can't be reached. */
static bool server_flush_list(ifl_server *s, void *socket, server_peer *peer,
                              transport_counters *counters, transport_out_list *list,
                              bool *blocked) {
    bool on_control = list == &peer->out;
    while (list->head) {
        int64_t n_bytes = transport_out_bytes(list->head);
        if (on_control && !transport_may_send(s, peer, n_bytes)) return true; /* its ack wakes us */
        ifl_status st = transport_send(socket, peer->identity, peer->session, counters, list->head,
                                       &s->stats.bytes_out);
        if (st == IFL_AGAIN) {
            *blocked = true;
            return true;
        }
        if (st != IFL_OK) return false;
        if (on_control) transport_debt_add(&peer->unacked, counters->seq_out, NULL, n_bytes);
        s->stats.messages_out++;
        transport_out_free(transport_out_shift(list));
    }
    return true;
}

/* Ahead of chunks that wait: they may be of a version that it then gives up. False: as above. */
static bool server_flush_announcement(ifl_server *s, server_peer *peer, bool *blocked) {
    transport_out *out = transport_server_announcement(s, peer);
    if (!out) return true;
    ifl_status st = transport_send(s->weights, peer->identity, peer->session, &peer->weights, out,
                                   &s->stats.bytes_out);
    if (st == IFL_AGAIN) *blocked = true;
    if (st != IFL_OK) return st == IFL_AGAIN;
    s->stats.messages_out++;
    transport_server_announced(peer);
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
            if (s->peers[i]->weights_open) transport_server_announce(s->peers[i]);
    }
    if (s->chunks_ready) {
        s->chunks_ready = false;
        for (int32_t i = 0; i < s->n_peers; i++)
            transport_server_serve_chunks(s, s->peers[i]);
    }
    transport_guard_sweep(s);
    int64_t now = ifl_clock_ns();
    int64_t silence_ns = (int64_t)s->options.heartbeat_ms * s->options.heartbeat_misses * 1000000;
    for (int32_t i = s->n_peers - 1; i >= 0; i--) {
        server_peer *peer = s->peers[i];
        if (!server_flush_list(s, s->control, peer, &peer->control, &peer->out, &blocked)) {
            transport_server_drop(s, peer, "its link is gone");
        } else if (peer->close_code) {
            char text[IFL_WIRE_TEXT_MAX];
            memcpy(text, peer->close_text, sizeof text); /* the peer is freed on the way */
            transport_server_expel(s, peer, peer->close_code, 0, text);
        } else if (now - peer->seen_ns > silence_ns) {
            char text[128];
            snprintf(text, sizeof text, "silent for %.1f s, limit %d heartbeats of %d ms",
                     (double)(now - peer->seen_ns) * 1e-9, s->options.heartbeat_misses,
                     s->options.heartbeat_ms);
            transport_server_expel(s, peer, IFL_WIRE_E_FENCED, 0, text);
        }
    }
    for (int32_t i = s->n_peers - 1; i >= 0; i--) {
        server_peer *peer = s->peers[i];
        if (!server_flush_announcement(s, peer, &blocked) ||
            !server_flush_list(s, s->weights, peer, &peer->weights, &peer->weights_out, &blocked))
            transport_server_expel(s, peer, IFL_WIRE_E_FENCED, 0, "its link for weights is gone");
    }
    int tick = s->options.heartbeat_ms / 4;
    pthread_mutex_unlock(&s->lock);
    return blocked ? 2 : tick < 1 ? 1 : tick > 250 ? 250 : tick;
}

/* Sends, waits for a message or a wake-up, and receives. False: the transport has failed. */
static bool server_turn(ifl_server *s, int wait_max_ms) {
    int wait_ms = server_flush(s);
    zmq_pollitem_t items[3] = {{s->control, 0, ZMQ_POLLIN, 0},
                               {s->weights, 0, ZMQ_POLLIN, 0},
                               {NULL, s->wake_fd, ZMQ_POLLIN, 0}};
    if (zmq_poll(items, 3, wait_ms < wait_max_ms ? wait_ms : wait_max_ms) < 0 &&
        zmq_errno() != EINTR) {
        pthread_mutex_lock(&s->lock);
        snprintf(s->failed, sizeof s->failed, "zmq_poll: %s", zmq_strerror(zmq_errno()));
        pthread_mutex_unlock(&s->lock);
        return false;
    }
    if (items[2].revents) transport_wake_clear(s->wake_fd);
    for (int i = 0; i < BURST_MAX && transport_server_receive(s, false); i++) {
    }
    for (int i = 0; i < BURST_MAX && transport_server_receive(s, true); i++) {
    }
    return true;
}

/* Every actor answers BYE with its own, and the sockets stay open until all have: a link that
 * closes right behind a message can take the message with it (libzmq drops what the application
 * hasn't read yet when ZMQ_IMMEDIATE is set; TCP drops what is under way when the closing side had
 * data unread). */
static void server_say_goodbye(ifl_server *s) {
    pthread_mutex_lock(&s->lock);
    s->ending = true;
    for (int32_t i = 0; i < s->n_peers; i++)
        transport_server_bye(s, s->peers[i]);
    pthread_mutex_unlock(&s->lock);
    int64_t until = ifl_clock_ns() + (int64_t)s->options.linger_ms * 1000000;
    while (ifl_clock_ns() < until && server_turn(s, 20)) {
        pthread_mutex_lock(&s->lock);
        int32_t n = s->n_peers;
        pthread_mutex_unlock(&s->lock);
        if (n == 0) return;
    }
}

static void *server_run(void *context) {
    ifl_server *s = context;
    bool stop = false;
    while (!stop) {
        if (!server_turn(s, INT_MAX)) return NULL;
        pthread_mutex_lock(&s->lock);
        stop = s->stop;
        pthread_mutex_unlock(&s->lock);
    }
    server_say_goodbye(s);
    return NULL;
}

/* --- Life ------------------------------------------------------------------------------------- */

static ifl_status server_socket(ifl_server *s, void **socket, int send_hwm, int receive_hwm,
                                ifl_error *err) {
    *socket = zmq_socket(s->zmq, ZMQ_ROUTER);
    if (!*socket)
        return ifl_fail(err, IFL_IO, "cannot open a socket: %s", zmq_strerror(zmq_errno()));
    IFL_TRY(transport_socket_setup(*socket, s->options.bind, send_hwm, receive_hwm,
                                   s->options.linger_ms, err));
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
    bool guarded = options->keys && *options->keys;
    IFL_TRY(ifl_endpoint_check(options->bind, guarded || options->insecure, err));
    if (!guarded && !ifl_endpoint_is_local(options->bind))
        ifl_warn("%s: links are neither encrypted nor authenticated (transport.insecure): whoever "
                 "reaches this port can read the weights and send what is trained on",
                 options->bind);
    if (options->vocab_size < 1 && !options->weights_only)
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
    if (!s->options.unacked_bytes_max) s->options.unacked_bytes_max = (int64_t)16 << 20;
    if (!s->options.trajectory_bytes_max) s->options.trajectory_bytes_max = (int64_t)16 << 20;
    s->session_next = (transport_random_u64() >> 2) + 1;
    s->wake_fd = -1;
    transport_queue_init(&s->events);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->source_lock, NULL);
    ifl_status st = IFL_OK;
    s->options.bind = options->bind;
    s->options.keys = s->options.local_key = s->options.key_name = NULL; /* the guard has them */
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
    if (guarded) {
        IFL_TRY_GOTO(st, transport_guard_create(s, options, err), done);
        IFL_TRY_GOTO(st, transport_guard_start(s, err), done);
    }
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
    transport_guard_free(s);
    for (int32_t i = 0; i < s->n_peers; i++)
        transport_server_peer_free(s->peers[i]);
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

/* --- The application's side ------------------------------------------------------------------- */

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
    case IFL_WIRE_TRAJ: /* what another actor has begun, before its lease */
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
    server_peer *peer = transport_server_find_session(s, session);
    if (!peer)
        st = ifl_fail(err, IFL_PEER, "session %llu has ended", (unsigned long long)session);
    else if (peer->out.n_bytes + transport_out_bytes(out) > s->options.send_bytes_max)
        st =
            ifl_fail(err, IFL_FULL,
                     "%lld bytes are waiting to be sent to %s, limit %lld, and it has yet to say "
                     "that it has received %lld more, limit %lld",
                     (long long)peer->out.n_bytes, peer->name, (long long)s->options.send_bytes_max,
                     (long long)peer->unacked.n_bytes, (long long)s->options.unacked_bytes_max);
    if (st == IFL_OK) {
        transport_debt_answered(peer, message);
        transport_out_push(&peer->out, out);
        out = NULL; /* the list owns it now */
    }
    pthread_mutex_unlock(&s->lock);
    transport_out_free(out);
    if (st == IFL_OK) transport_wake(s->wake_fd);
    return st;
}

int64_t ifl_server_room(ifl_server *s, uint64_t session) {
    pthread_mutex_lock(&s->lock);
    const server_peer *peer = transport_server_find_session(s, session);
    int64_t room = peer ? s->options.send_bytes_max - peer->out.n_bytes : 0;
    pthread_mutex_unlock(&s->lock);
    return room > 0 ? room : 0;
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
    server_peer *peer = transport_server_find_session(s, session);
    if (peer) { /* sockets are the transport thread's: it does the rest */
        peer->close_code = (int32_t)code;
        snprintf(peer->close_text, sizeof peer->close_text, "%s", text);
    }
    pthread_mutex_unlock(&s->lock);
    transport_wake(s->wake_fd);
}

int32_t ifl_server_peers(ifl_server *s, ifl_peer_info *out, int32_t max) {
    int64_t now = ifl_clock_ns();
    pthread_mutex_lock(&s->lock);
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_peers; i++) {
        const server_peer *p = s->peers[i];
        if (p->weights_only || n++ >= max) continue;
        ifl_peer_info *o = &out[n - 1];
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
        o->unacked_bytes = p->unacked.n_bytes;
        o->unanswered_bytes = p->unanswered.n_bytes;
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

bool ifl_server_is_fetched(ifl_server *s, int64_t version) {
    bool fetched = false;
    pthread_mutex_lock(&s->lock);
    for (int32_t i = 0; i < s->n_peers && !fetched; i++)
        fetched = s->peers[i]->version_wanted == version && s->peers[i]->version_ready != version;
    pthread_mutex_unlock(&s->lock);
    return fetched;
}

void ifl_server_stats_get(ifl_server *s, ifl_server_stats *out) {
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    out->weight_peers = 0;
    out->unacked_bytes = out->unanswered_bytes = 0;
    for (int32_t i = 0; i < s->n_peers; i++)
        out->weight_peers += s->peers[i]->weights_only;
    for (int32_t i = 0; i < s->n_peers; i++) {
        out->unacked_bytes += s->peers[i]->unacked.n_bytes;
        out->unanswered_bytes += s->peers[i]->unanswered.n_bytes;
    }
    pthread_mutex_unlock(&s->lock);
}

void ifl_server_set_run(ifl_server *s, const char run_uuid[33], uint64_t run_epoch) {
    pthread_mutex_lock(&s->lock);
    memcpy(s->options.run_uuid, run_uuid, sizeof s->options.run_uuid);
    s->options.run_epoch = run_epoch;
    for (int32_t i = 0; i < s->n_peers; i++) {
        s->peers[i]->close_code = IFL_WIRE_E_FENCED;
        snprintf(s->peers[i]->close_text, sizeof s->peers[i]->close_text,
                 "the learner has been started anew");
    }
    pthread_mutex_unlock(&s->lock);
    transport_wake(s->wake_fd);
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

void ifl_server_chunks_ready(ifl_server *s) {
    pthread_mutex_lock(&s->lock);
    s->chunks_ready = true;
    pthread_mutex_unlock(&s->lock);
    transport_wake(s->wake_fd);
}

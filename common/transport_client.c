/* The actor's end: its life and the application's side. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/transport_client_internal.h"

static ifl_status client_pop(transport_queue *queue, int64_t wait_ms, ifl_client_event *event) {
    memset(event, 0, sizeof *event);
    client_event_node *node = (client_event_node *)(void *)transport_queue_pop(queue, wait_ms);
    if (!node) return IFL_AGAIN;
    *event = node->event;
    free(node);
    return IFL_OK;
}

static ifl_status client_take_keys(ifl_client *c, const ifl_client_options *options,
                                   ifl_error *err) {
    c->guarded = options->keys && *options->keys;
    IFL_TRY(ifl_endpoint_check(c->endpoint, c->guarded || options->insecure, err));
    IFL_TRY(ifl_endpoint_weights(c->endpoint, c->weights_endpoint, err));
    if (!c->guarded) {
        if (!ifl_endpoint_is_local(c->endpoint))
            ifl_warn("%s: the link is neither encrypted nor authenticated (transport.insecure)",
                     c->endpoint);
        return IFL_OK;
    }
    snprintf(c->key_folder, sizeof c->key_folder, "%.199s", options->keys);
    IFL_TRY(ifl_key_actor_name(c->key_name, options->keys, options->key, c->name, err));
    IFL_TRY(ifl_key_pair_read(&c->own, options->keys, c->key_name, err));
    return options->learner_key
               ? ifl_key_peer_read(c->learner_key, options->keys, options->learner_key, err)
               : ifl_key_learner_read(c->learner_key, options->keys, err);
}

ifl_status ifl_client_create(ifl_client **out, const ifl_client_options *options, ifl_error *err) {
    *out = NULL;
    IFL_TRY(transport_zmq_check(err));
    ifl_client *c = calloc(1, sizeof *c);
    if (!c) return ifl_fail(err, IFL_NOMEM, "out of memory: the transport");
    c->options = *options;
    c->options.connect = NULL;
    c->options.name = c->options.build = c->options.keys = c->options.key = NULL;
    c->options.learner_key = NULL;
    if (!c->options.connect_deadline_ms) c->options.connect_deadline_ms = 30000;
    if (!c->options.outbox_bytes_max) c->options.outbox_bytes_max = (int64_t)64 << 20;
    if (!c->options.send_bytes_max) c->options.send_bytes_max = (int64_t)16 << 20;
    if (!c->options.event_bytes_max) c->options.event_bytes_max = (int64_t)256 << 20;
    c->options.events_max = transport_or(options->events_max, 4096);
    c->options.linger_ms = transport_or(options->linger_ms, 500);
    c->held_version = options->held_version;
    c->parcels_end = &c->parcels;
    c->wake_fd = -1;
    snprintf(c->name, sizeof c->name, "%s", options->name ? options->name : "actor");
    snprintf(c->build, sizeof c->build, "%s", options->build ? options->build : "");
    snprintf(c->endpoint, sizeof c->endpoint, "%s", options->connect);
    for (int i = 0; i < 2; i++) {
        uint64_t r = transport_random_u64();
        memcpy(c->identity + 8 * i, &r, sizeof r);
    }
    /* libzmq keeps identities that begin with a zero byte for itself. */
    c->identity[0] |= 1;
    transport_queue_init(&c->events);
    transport_queue_init(&c->weight_events);
    pthread_mutex_init(&c->lock, NULL);
    ifl_status st;
    IFL_TRY_GOTO(st, client_take_keys(c, options, err), done);
    int64_t now = ifl_clock_ns();
    c->state = CLIENT_WAITING;
    c->next_ns = now;
    c->backoff_ns = CLIENT_BACKOFF_FIRST_NS;
    c->deadline_ns = now + c->options.connect_deadline_ms * 1000000;
    c->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    c->zmq = zmq_ctx_new();
    if (c->wake_fd < 0 || !c->zmq) {
        st = ifl_fail(err, IFL_NOMEM, "cannot set up the transport: %s", strerror(errno));
        goto done;
    }
    zmq_ctx_set(c->zmq, ZMQ_IO_THREADS, 1);
    if (transport_thread_start(&c->thread, transport_client_run, c) != 0) {
        st = ifl_fail(err, IFL_NOMEM, "cannot start the transport thread");
        goto done;
    }
    c->thread_started = true;
    *out = c;
    c = NULL; /* the caller owns it now */
done:
    ifl_client_free(c);
    return st;
}

static void client_drain_queue(transport_queue *queue) {
    ifl_client_event event;
    while (client_pop(queue, 0, &event) == IFL_OK)
        ifl_client_event_clear(&event);
    transport_queue_destroy(queue);
}

void ifl_client_free(ifl_client *c) {
    if (!c) return;
    if (c->thread_started) {
        pthread_mutex_lock(&c->lock);
        c->stop = true;
        pthread_mutex_unlock(&c->lock);
        transport_wake(c->wake_fd);
        pthread_join(c->thread, NULL);
    }
    client_drain_queue(&c->events); /* before the context: their chunks are its messages */
    client_drain_queue(&c->weight_events);
    if (c->zmq) zmq_ctx_term(c->zmq);
    if (c->wake_fd >= 0) close(c->wake_fd);
    transport_out_clear(&c->out);
    transport_out_clear(&c->weights_out);
    for (client_parcel *p; (p = c->parcels);) {
        c->parcels = p->next;
        transport_out_free(p->out);
        free(p);
    }
    explicit_bzero(&c->own, sizeof c->own);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void ifl_client_event_clear(ifl_client_event *event) {
    if (!event) return;
    ifl_message_clear(&event->message);
    memset(event, 0, sizeof *event);
}

ifl_status ifl_client_poll(ifl_client *c, int64_t wait_ms, ifl_client_event *event,
                           ifl_error *err) {
    (void)err; /* a client's failures are events */
    return client_pop(&c->events, wait_ms, event);
}

ifl_status ifl_client_poll_weights(ifl_client *c, int64_t wait_ms, ifl_client_event *event,
                                   ifl_error *err) {
    (void)err;
    ifl_status st = client_pop(&c->weight_events, wait_ms, event);
    if (st != IFL_OK) return st;
    if (event->kind == IFL_CLIENT_MESSAGE && event->message.type == IFL_WIRE_WANN) {
        pthread_mutex_lock(&c->lock);
        c->announcement_read = c->connected;
        pthread_mutex_unlock(&c->lock);
    }
    /* The thread may have stopped reading because the queue was full. */
    transport_wake(c->wake_fd);
    return st;
}

void ifl_client_wake_weights(ifl_client *c) {
    transport_queue_wake(&c->weight_events);
}

void ifl_client_reset_link(ifl_client *c, const char *text) {
    pthread_mutex_lock(&c->lock);
    if (c->connected && !c->reset_text[0])
        snprintf(c->reset_text, sizeof c->reset_text, "%s", text);
    pthread_mutex_unlock(&c->lock);
    transport_wake(c->wake_fd);
}

static ifl_status client_enqueue(ifl_client *c, transport_out_list *list,
                                 const ifl_message *message, ifl_error *err) {
    transport_out *out;
    IFL_TRY(transport_out_create(&out, message, err));
    ifl_status st = IFL_OK;
    pthread_mutex_lock(&c->lock);
    if (!c->connected)
        st = ifl_fail(err, IFL_PEER, "%s: there is no link to a learner at the moment",
                      ifl_wire_type_name((int)message->type));
    else if (list->n_bytes + transport_out_bytes(out) > c->options.send_bytes_max)
        st = ifl_fail(err, IFL_FULL, "%lld bytes are waiting to be sent, limit %lld",
                      (long long)list->n_bytes, (long long)c->options.send_bytes_max);
    if (st == IFL_OK) {
        transport_out_push(list, out);
        out = NULL; /* the list owns it now */
    }
    pthread_mutex_unlock(&c->lock);
    transport_out_free(out);
    if (st == IFL_OK) transport_wake(c->wake_fd);
    return st;
}

ifl_status ifl_client_send(ifl_client *c, const ifl_message *message, ifl_error *err) {
    switch (message->type) {
    case IFL_WIRE_RETURN:
    case IFL_WIRE_CREDIT:
    case IFL_WIRE_STATS:
    case IFL_WIRE_DRAIN:
    case IFL_WIRE_WREADY:
    case IFL_WIRE_WDONE:
    case IFL_WIRE_ERROR:
        return client_enqueue(c, &c->out, message, err);
    default:
        return ifl_fail(err, IFL_USAGE, "%s is not for ifl_client_send",
                        ifl_wire_type_name((int)message->type));
    }
}

ifl_status ifl_client_send_weights(ifl_client *c, const ifl_message *message, ifl_error *err) {
    if (message->type != IFL_WIRE_WGET)
        return ifl_fail(err, IFL_USAGE, "%s is not for the weight plane",
                        ifl_wire_type_name((int)message->type));
    return client_enqueue(c, &c->weights_out, message, err);
}

ifl_status ifl_client_send_trajectory(ifl_client *c, const ifl_trajectory *traj, ifl_error *err) {
    ifl_message m = ifl_message_make(IFL_WIRE_TRAJ);
    m.policy = ifl_trajectory_version_oldest(traj);
    m.traj.trajectory = (ifl_trajectory *)(uintptr_t)traj;
    transport_out *out;
    IFL_TRY(transport_out_create(&out, &m, err));
    client_parcel *parcel = calloc(1, sizeof *parcel);
    if (!parcel) {
        transport_out_free(out);
        return ifl_fail(err, IFL_NOMEM, "out of memory: the outbox");
    }
    parcel->key = ifl_trajectory_key_of(traj);
    parcel->lease_id = traj->lease_id;
    parcel->out = out;
    int64_t n_bytes = transport_out_bytes(out);
    ifl_status st = IFL_OK;
    pthread_mutex_lock(&c->lock);
    /* One trajectory larger than the whole outbox still goes, alone. */
    if (c->n_parcels > 0 && c->parcel_bytes + n_bytes > c->options.outbox_bytes_max)
        st = ifl_fail(err, IFL_FULL,
                      "the outbox holds %d unacknowledged trajectories of %lld bytes, limit %lld",
                      c->n_parcels, (long long)c->parcel_bytes,
                      (long long)c->options.outbox_bytes_max);
    if (st == IFL_OK) {
        *c->parcels_end = parcel;
        c->parcels_end = &parcel->next;
        c->n_parcels++;
        c->parcel_bytes += n_bytes;
    }
    pthread_mutex_unlock(&c->lock);
    if (st != IFL_OK) {
        transport_out_free(out);
        free(parcel);
    } else {
        transport_wake(c->wake_fd);
    }
    return st;
}

void ifl_client_outbox(ifl_client *c, int32_t *n, int64_t *n_bytes) {
    pthread_mutex_lock(&c->lock);
    if (n) *n = c->n_parcels;
    if (n_bytes) *n_bytes = c->parcel_bytes;
    pthread_mutex_unlock(&c->lock);
}

bool ifl_client_connected(ifl_client *c) {
    pthread_mutex_lock(&c->lock);
    bool connected = c->connected;
    pthread_mutex_unlock(&c->lock);
    return connected;
}

void ifl_client_progress(ifl_client *c, uint64_t progress, int32_t phase, int32_t n_queued) {
    pthread_mutex_lock(&c->lock);
    c->progress = progress;
    c->phase = phase;
    c->n_queued = n_queued;
    pthread_mutex_unlock(&c->lock);
}

void ifl_client_set_held_version(ifl_client *c, int64_t version) {
    pthread_mutex_lock(&c->lock);
    c->held_version = version;
    pthread_mutex_unlock(&c->lock);
}

void ifl_client_stats_get(ifl_client *c, ifl_client_stats *out) {
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    pthread_mutex_unlock(&c->lock);
}

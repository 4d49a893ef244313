#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/transport_internal.h"

int64_t transport_out_bytes(const transport_out *out) {
    return (int64_t)(IFL_WIRE_HEADER_BYTES + out->frames.n_meta + out->frames.n_payload);
}

ifl_status transport_out_create(transport_out **out, const ifl_message *message, ifl_error *err) {
    *out = NULL;
    transport_out *o = calloc(1, sizeof *o);
    if (!o) return ifl_fail(err, IFL_NOMEM, "out of memory: a message");
    ifl_status st = ifl_wire_encode(message, &o->frames, err);
    if (st != IFL_OK) {
        transport_out_free(o);
        return st;
    }
    *out = o;
    return IFL_OK;
}

ifl_status transport_out_borrow(transport_out *out, const void *data, size_t n,
                                void (*release)(void *data, void *hint), void *hint) {
    if (zmq_msg_init_data(&out->part, (void *)(uintptr_t)data, n, release, hint) != 0)
        return IFL_NOMEM;
    out->has_part = true;
    return IFL_OK;
}

void transport_out_free(transport_out *out) {
    if (!out) return;
    if (out->has_part) zmq_msg_close(&out->part);
    ifl_wire_frames_clear(&out->frames);
    free(out);
}

void transport_out_push(transport_out_list *list, transport_out *out) {
    out->next = NULL;
    if (list->tail)
        list->tail->next = out;
    else
        list->head = out;
    list->tail = out;
    list->n++;
    list->n_bytes += transport_out_bytes(out);
}

transport_out *transport_out_shift(transport_out_list *list) {
    transport_out *out = list->head;
    if (!out) return NULL;
    list->head = out->next;
    if (!list->head) list->tail = NULL;
    list->n--;
    list->n_bytes -= transport_out_bytes(out);
    return out;
}

void transport_out_clear(transport_out_list *list) {
    for (transport_out *out; (out = transport_out_shift(list));)
        transport_out_free(out);
}

static int socket_send_part(void *socket, zmq_msg_t *part, bool more) {
    int rc;
    do
        rc = zmq_msg_send(part, socket, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0));
    while (rc < 0 && zmq_errno() == EINTR);
    return rc;
}

static bool socket_copy_part(zmq_msg_t *part, const void *bytes, size_t n) {
    if (zmq_msg_init_size(part, n) != 0) {
        zmq_msg_init(part);
        return false;
    }
    if (n) memcpy(zmq_msg_data(part), bytes, n);
    return true;
}

ifl_status transport_send(void *socket, const uint8_t *identity, uint64_t session,
                          transport_counters *counters, transport_out *out, int64_t *n_bytes) {
    /* All parts are made first: once the first part has been taken, libzmq takes the others too, so
     * that no message is ever sent by half. */
    zmq_msg_t parts[4];
    int n = 0;
    bool made = true;
    if (identity) made &= socket_copy_part(&parts[n++], identity, IFL_WIRE_IDENTITY_BYTES);
    ifl_wire_header header = {.major = IFL_WIRE_MAJOR,
                              .minor = IFL_WIRE_MINOR,
                              .type = out->frames.type,
                              .flags = out->frames.flags,
                              .n_meta = (uint32_t)out->frames.n_meta,
                              .n_payload = out->frames.n_payload,
                              .session = session,
                              .seq = counters->seq_out + 1,
                              .ack = counters->seq_in,
                              .policy = out->frames.policy};
    uint8_t head[IFL_WIRE_HEADER_BYTES];
    ifl_wire_header_encode(&header, out->frames.meta, head);
    made &= socket_copy_part(&parts[n++], head, sizeof head);
    made &= socket_copy_part(&parts[n++], out->frames.meta, out->frames.n_meta);
    bool borrowed = out->has_part;
    if (out->frames.n_payload && !borrowed)
        made &= socket_copy_part(&parts[n++], out->frames.payload, out->frames.n_payload);
    int sent = 0, n_all = n + borrowed;
    ifl_status st =
        made ? IFL_OK : IFL_AGAIN; /* out of memory: the same message is tried again later */
    while (st == IFL_OK && sent < n_all) {
        if (socket_send_part(socket, sent < n ? &parts[sent] : &out->part, sent + 1 < n_all) < 0) {
            int e = zmq_errno();
            st = sent > 0            ? IFL_IO
                 : e == EAGAIN       ? IFL_AGAIN
                 : e == EHOSTUNREACH ? IFL_PEER
                                     : IFL_IO;
            break;
        }
        sent++;
    }
    for (int i = sent; i < n; i++)
        zmq_msg_close(&parts[i]);
    if (st != IFL_OK) return st;
    if (borrowed) {
        zmq_msg_close(&out->part);
        out->has_part = false;
    }
    counters->seq_out++;
    *n_bytes += transport_out_bytes(out);
    return IFL_OK;
}

ifl_status transport_recv(void *socket, bool is_router, transport_in *in) {
    memset(in, 0, sizeof *in);
    for (int i = 0; i < 3; i++)
        zmq_msg_init(&in->parts[i]);
    bool more = true;
    for (int i = is_router ? -1 : 0; more; i++) {
        zmq_msg_t extra, *part = i >= 0 && i < 3 ? &in->parts[i] : &extra;
        if (part == &extra) zmq_msg_init(&extra);
        int rc;
        do
            rc = zmq_msg_recv(part, socket, ZMQ_DONTWAIT);
        while (rc < 0 && zmq_errno() == EINTR);
        if (rc < 0) {
            if (part == &extra) zmq_msg_close(&extra);
            transport_in_clear(in);
            return zmq_errno() == EAGAIN ? IFL_AGAIN : IFL_IO;
        }
        more = zmq_msg_more(part);
        in->n_bytes += rc;
        if (i < 0) {
            in->has_identity = rc == IFL_WIRE_IDENTITY_BYTES;
            if (in->has_identity) memcpy(in->identity, zmq_msg_data(part), IFL_WIRE_IDENTITY_BYTES);
        } else if (i < 3) {
            /* Who it is was proven in the link's handshake, and the ZAP handler named it. */
            const char *key = is_router && i == 0 ? zmq_msg_gets(part, "User-Id") : NULL;
            if (key) snprintf(in->key, sizeof in->key, "%s", key);
            in->n_parts = i + 1;
        } else {
            in->too_many = true;
        }
        if (part == &extra) zmq_msg_close(&extra);
    }
    return IFL_OK;
}

void transport_in_clear(transport_in *in) {
    for (int i = 0; i < 3; i++)
        zmq_msg_close(&in->parts[i]);
}

static void socket_frame_free(void *frame) {
    zmq_msg_close(frame);
    free(frame);
}

ifl_status transport_decode(transport_in *in, ifl_wire_header *header, ifl_message *message,
                            ifl_error *err) {
    memset(header, 0, sizeof *header);
    memset(message, 0, sizeof *message);
    if (in->too_many || in->n_parts < 2)
        return ifl_fail(err, IFL_FORMAT, "a message of %d%s parts, wanted 2 or 3", in->n_parts,
                        in->too_many ? " and more" : "");
    const uint8_t *meta = zmq_msg_data(&in->parts[1]), *payload = zmq_msg_data(&in->parts[2]);
    size_t n_meta = zmq_msg_size(&in->parts[1]), n_payload = zmq_msg_size(&in->parts[2]);
    if (n_meta > IFL_WIRE_META_MAX || n_payload > IFL_WIRE_PAYLOAD_MAX)
        return ifl_fail(err, IFL_LIMIT, "frames of %zu and %zu bytes, limits %d and %d", n_meta,
                        n_payload, IFL_WIRE_META_MAX, IFL_WIRE_PAYLOAD_MAX);
    IFL_TRY(ifl_wire_header_decode(header, zmq_msg_data(&in->parts[0]), zmq_msg_size(&in->parts[0]),
                                   meta, n_meta, err));
    IFL_TRY(ifl_wire_decode(message, header, meta, n_meta, payload, n_payload, err));
    if (message->type == IFL_WIRE_WCHUNK) {
        zmq_msg_t *frame = malloc(sizeof *frame);
        if (!frame) {
            ifl_message_clear(message);
            return ifl_fail(err, IFL_NOMEM, "WCHUNK: out of memory");
        }
        zmq_msg_init(frame);
        zmq_msg_move(frame, &in->parts[2]);
        message->wchunk.data = zmq_msg_data(frame);
        message->wchunk.frame = frame;
        message->wchunk.frame_free = socket_frame_free;
    }
    return IFL_OK;
}

#define IPC_BUFFER_BYTES (4 << 20)

static int socket_set(void *socket, int option, int value) {
    return zmq_setsockopt(socket, option, &value, sizeof value);
}

ifl_status transport_socket_setup(void *socket, const char *endpoint, int send_hwm, int receive_hwm,
                                  int linger_ms, ifl_error *err) {
    bool is_ipc = strncmp(endpoint, "ipc://", 6) == 0, with_ipv6 = strchr(endpoint, '[') != NULL;
    /* No ZMQ_HEARTBEAT_*: together with a full receive queue they abort the process (libzmq 4.3.4).
     */
    int64_t n_max = IFL_WIRE_PAYLOAD_MAX + IFL_WIRE_META_MAX;
    /* A unix socket wakes its sender only when three quarters of the buffer are empty: with the
     * default of 208 KiB the two sides of a chunk take turns. TCP's buffers tune themselves, better
     * than a fixed size could for links of any length. Less than asked for is fine. */
    if (is_ipc && (socket_set(socket, ZMQ_SNDBUF, IPC_BUFFER_BYTES) != 0 ||
                   socket_set(socket, ZMQ_RCVBUF, IPC_BUFFER_BYTES) != 0))
        return ifl_fail(err, IFL_IO, "cannot set a socket option: %s", zmq_strerror(zmq_errno()));
    if (socket_set(socket, ZMQ_IPV6, with_ipv6) != 0 ||
        zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &n_max, sizeof n_max) != 0 ||
        socket_set(socket, ZMQ_LINGER, linger_ms) != 0 ||
        socket_set(socket, ZMQ_SNDHWM, send_hwm) != 0 ||
        socket_set(socket, ZMQ_RCVHWM, receive_hwm) != 0 ||
        socket_set(socket, ZMQ_BACKLOG, 1024) != 0 ||
        socket_set(socket, ZMQ_HANDSHAKE_IVL, 5000) != 0 ||
        socket_set(socket, ZMQ_TCP_KEEPALIVE, 1) != 0 ||
        socket_set(socket, ZMQ_TCP_KEEPALIVE_IDLE, 10) != 0 ||
        socket_set(socket, ZMQ_TCP_KEEPALIVE_INTVL, 5) != 0 ||
        socket_set(socket, ZMQ_TCP_KEEPALIVE_CNT, 3) != 0 ||
        socket_set(socket, ZMQ_TCP_MAXRT, 30000) != 0)
        return ifl_fail(err, IFL_IO, "cannot set a socket option: %s", zmq_strerror(zmq_errno()));
    return IFL_OK;
}

ifl_status transport_socket_curve_server(void *socket, const ifl_key_pair *own, ifl_error *err) {
    /* libzmq would let any key in while there is no handler: it is bound before these sockets are
     * and closed after them. */
    if (socket_set(socket, ZMQ_CURVE_SERVER, 1) != 0 ||
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, own->secret_key, IFL_KEY_TEXT_MAX) != 0 ||
        zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, "inflight", 8) != 0)
        return ifl_fail(err, IFL_IO, "cannot set up CURVE: %s", zmq_strerror(zmq_errno()));
    return IFL_OK;
}

ifl_status transport_socket_curve_client(void *socket, const ifl_key_pair *own,
                                         const char *learner_key, ifl_error *err) {
    if (zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, learner_key, IFL_KEY_TEXT_MAX) != 0 ||
        zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, own->public_key, IFL_KEY_TEXT_MAX) != 0 ||
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, own->secret_key, IFL_KEY_TEXT_MAX) != 0)
        return ifl_fail(err, IFL_IO, "cannot set up CURVE: %s", zmq_strerror(zmq_errno()));
    return IFL_OK;
}

void *transport_monitor_open(void *zmq, void *socket, const char *name) {
    char endpoint[96];
    int none = 0;
    snprintf(endpoint, sizeof endpoint, "inproc://%s", name);
    if (zmq_socket_monitor(socket, endpoint,
                           ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                               ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                               ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) != 0)
        return NULL;
    void *monitor = zmq_socket(zmq, ZMQ_PAIR);
    /* Without a bound: a full monitor would stop the io thread that writes to it. */
    if (monitor && socket_set(monitor, ZMQ_RCVHWM, 0) == 0 &&
        zmq_setsockopt(monitor, ZMQ_LINGER, &none, sizeof none) == 0 &&
        zmq_connect(monitor, endpoint) == 0)
        return monitor;
    if (monitor) zmq_close(monitor);
    zmq_socket_monitor(socket, NULL, 0);
    return NULL;
}

bool transport_monitor_take(void *monitor, int *event, int *value) {
    bool found = false, more = true;
    for (int i = 0; more; i++) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, monitor, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&part);
            return false;
        }
        if (i == 0 && zmq_msg_size(&part) >= 6) {
            uint16_t e;
            uint32_t v;
            memcpy(&e, zmq_msg_data(&part), sizeof e);
            memcpy(&v, (const uint8_t *)zmq_msg_data(&part) + 2, sizeof v);
            *event = e;
            *value = (int)v;
            found = true;
        }
        more = zmq_msg_more(&part);
        zmq_msg_close(&part);
    }
    return found;
}

/* libzmq takes every frame by malloc, and each of a few MiB came fresh from the kernel and went
 * back to it: a page fault for each 4 KiB, which costs more than copying them. The blocks that
 * chunks need stay in the process instead. */
static void socket_keep_blocks(void) {
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* the most that glibc accepts */
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    mallopt(M_TOP_PAD, 16 << 20);
}

ifl_status transport_zmq_check(ifl_error *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, socket_keep_blocks);
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    if (major * 10000 + minor * 100 + patch < 40303)
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "libzmq %d.%d.%d has known remote crashes; install 4.3.3 or newer", major,
                        minor, patch);
    return IFL_OK;
}

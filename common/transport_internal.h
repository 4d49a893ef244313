/* What server and client share: bounded queues between threads, frames on sockets. Private to
 * common/transport*.c, but for the options of a socket, which rewards/plugin_zeromq.c sets too. */
#ifndef IFL_COMMON_TRANSPORT_INTERNAL_H
#define IFL_COMMON_TRANSPORT_INTERNAL_H

#include <pthread.h>
#include <zmq.h>

#include "common/keys.h"
#include "common/transport.h"

/* --- A list with a lock, for events on their way to the application --------------------------- */

typedef struct transport_node {
    struct transport_node *next;
    int64_t n_bytes;
} transport_node;

/* The lock guards the list. Bounds are the pusher's business: it looks at transport_queue_size
 * first. */
typedef struct transport_queue {
    pthread_mutex_t lock;
    pthread_cond_t ready; /* on the monotonic clock */
    transport_node *head, *tail;
    int32_t n;
    int64_t n_bytes;
    bool woken; /* makes one waiting pop return early */
} transport_queue;

void transport_queue_init(transport_queue *q);
void transport_queue_destroy(transport_queue *q); /* must be empty */
void transport_queue_push(transport_queue *q, transport_node *node);
/* NULL when nothing came within wait_ms. */
transport_node *transport_queue_pop(transport_queue *q, int64_t wait_ms);
int32_t transport_queue_size(transport_queue *q, int64_t *n_bytes);
void transport_queue_wake(transport_queue *q);

/* --- Messages on their way to a socket -------------------------------------------------------- */

typedef struct transport_out {
    struct transport_out *next;
    ifl_wire_frames frames;
    zmq_msg_t part; /* a payload that is sent from where it lies, when has_part */
    bool has_part;
} transport_out;

typedef struct transport_out_list {
    transport_out *head, *tail;
    int32_t n;
    int64_t n_bytes;
} transport_out_list;

int64_t transport_out_bytes(const transport_out *out);
/* Encodes; IFL_NOMEM or the encoder's statuses. Returns owned. */
ifl_status transport_out_create(transport_out **out, const ifl_message *message, ifl_error *err);
/* Makes n bytes at `data` the payload, uncopied; release(data, hint) comes exactly once, from any
 * thread. On IFL_NOMEM it has not been called and won't be. */
ifl_status transport_out_borrow(transport_out *out, const void *data, size_t n,
                                void (*release)(void *data, void *hint), void *hint);
void transport_out_free(transport_out *out); /* releases a borrowed payload too; NULL is fine */
void transport_out_push(transport_out_list *list, transport_out *out);
transport_out *transport_out_shift(transport_out_list *list);
void transport_out_clear(transport_out_list *list);

/* --- Sockets ---------------------------------------------------------------------------------- */

/* Numbers of one plane of one session. */
typedef struct transport_counters {
    uint64_t seq_out, seq_in;
} transport_counters;

/* Sends all parts or none, never waiting. `identity` (16 bytes) for ROUTER, NULL for DEALER. On
 * IFL_OK seq_out has gone up and a borrowed payload belongs to libzmq. IFL_AGAIN: no room now.
 * IFL_PEER: no such peer connected. IFL_IO: anything else. */
ifl_status transport_send(void *socket, const uint8_t *identity, uint64_t session,
                          transport_counters *counters, transport_out *out, int64_t *n_bytes);

typedef struct transport_in {
    uint8_t identity[IFL_WIRE_IDENTITY_BYTES];
    bool has_identity;          /* ROUTER: the peer has one of ours (16 bytes) */
    char key[IFL_KEY_TEXT_MAX]; /* ROUTER: the peer's public key; "" without CURVE */
    zmq_msg_t parts[3];         /* header, meta, payload; initialised even when they didn't come */
    int n_parts;
    bool too_many;
    int64_t n_bytes;
} transport_in;

/* Takes one message without waiting. IFL_AGAIN: none. Call transport_in_clear after IFL_OK. */
ifl_status transport_recv(void *socket, bool is_router, transport_in *in);
void transport_in_clear(transport_in *in);

/* Checks and decodes. For WCHUNK the payload's frame moves into the message. *header is filled in
 * when the header itself was sound (header->type != 0), also when the rest wasn't. */
ifl_status transport_decode(transport_in *in, ifl_wire_header *header, ifl_message *message,
                            ifl_error *err);

/* Options that every socket of ours has (traps Z1, Z3..Z6 of the design). */
ifl_status transport_socket_setup(void *socket, const char *endpoint, int send_hwm, int receive_hwm,
                                  int linger_ms, ifl_error *err);
ifl_status transport_zmq_check(ifl_error *err); /* libzmq >= 4.3.3 */

/* CURVE, for a learner's socket and for an actor's. */
ifl_status transport_socket_curve_server(void *socket, const ifl_key_pair *own, ifl_error *err);
ifl_status transport_socket_curve_client(void *socket, const ifl_key_pair *own,
                                         const char *learner_key, ifl_error *err);

/* What went wrong in handshakes: events of a socket, on a PAIR socket of the same context. Returns
 * owned (zmq_close), NULL on failure. `name` is unique in the context. */
void *transport_monitor_open(void *zmq, void *socket, const char *name);
/* One event (ZMQ_EVENT_HANDSHAKE_FAILED_*), if there is one. */
bool transport_monitor_take(void *monitor, int *event, int *value);

/* Asks whoever listens at an endpoint for its mechanism, by a link of its own, without waiting. */
typedef struct transport_probe {
    void *socket; /* NULL = none under way; readable when there is something to take */
    bool greeted;
    uint8_t seen[64];
    int n_seen;
    int64_t until_ns;
} transport_probe;
typedef enum {
    TRANSPORT_PROBE_WAITS,
    TRANSPORT_PROBE_CURVE, /* a peer with keys */
    TRANSPORT_PROBE_NONE,  /* one without, or none at all */
} transport_probe_result;
bool transport_probe_open(transport_probe *p, void *zmq, const char *endpoint, int64_t now);
transport_probe_result transport_probe_take(transport_probe *p, int64_t now);
void transport_probe_close(transport_probe *p); /* a zeroed one is fine */

/* eventfd that wakes the transport thread. */
void transport_wake(int fd);
void transport_wake_clear(int fd);

/* Starts a thread with all signals blocked: they are the application's. */
int transport_thread_start(pthread_t *thread, void *(*run)(void *), void *context);

uint64_t transport_random_u64(void);
int32_t transport_or(int32_t value, int32_t otherwise); /* value unless it is 0 */

#endif

/* The client's insides, shared by transport_client.c (life and the application's side) and
 * transport_link.c (what its thread does). The lock `lock` guards what the application and the
 * transport thread share: the lists of messages to send, the outbox, progress, statistics and the
 * state that others may look at. Sockets are the transport thread's alone; they are closed and made
 * anew after each loss, so that nothing of an old session is ever sent in a new one. */
#ifndef IFL_COMMON_TRANSPORT_CLIENT_INTERNAL_H
#define IFL_COMMON_TRANSPORT_CLIENT_INTERNAL_H

#include "common/transport_internal.h"

#define CLIENT_BACKOFF_FIRST_NS                                                                    \
    50000000 /* between a loss and the next connection; doubles up to ... */
#define CLIENT_BACKOFF_LAST_NS 4000000000

typedef enum { CLIENT_WAITING, CLIENT_HELLO, CLIENT_CONNECTED, CLIENT_FINAL } client_state;

/* A trajectory that the learner hasn't answered for. */
typedef struct client_parcel {
    struct client_parcel *next;
    ifl_trajectory_key key;
    uint64_t lease_id;
    transport_out *out;
    bool sent;
    int64_t not_before_ns; /* after NACK BUSY */
} client_parcel;

typedef struct client_event_node {
    transport_node node;
    ifl_client_event event;
} client_event_node;

struct ifl_client {
    ifl_client_options options;
    char endpoint[IFL_ENDPOINT_MAX], weights_endpoint[IFL_ENDPOINT_MAX];
    char name[IFL_WIRE_NAME_MAX], build[64];
    uint8_t identity[IFL_WIRE_IDENTITY_BYTES];
    bool guarded; /* with keys: own and learner_key */
    ifl_key_pair own;
    char key_name[IFL_KEY_NAME_MAX], learner_key[IFL_KEY_TEXT_MAX];
    char key_folder[200];                    /* for texts: cut where it is longer */
    void *zmq, *control, *weights, *monitor; /* of control's handshakes */
    int wake_fd;
    pthread_t thread;
    bool thread_started;
    transport_queue events, weight_events;

    /* The transport thread's own. */
    client_state state;
    uint64_t nonce;
    ifl_wire_welcome welcome;
    transport_counters control_counters, weight_counters;
    int64_t next_ns; /* WAITING: when to connect; HELLO: when to say it again; CONNECTED: when to
                        PING */
    int64_t backoff_ns, hello_ns;
    int64_t connected_ns;      /* when this session began */
    int64_t seen_ns;           /* last word of the learner on the control link */
    int64_t deadline_ns;       /* without WELCOME until then: GONE */
    bool weights_open;         /* CREDIT has been sent on the weight plane */
    int64_t weights_seen_ns;   /* last word on the weight plane, or since when there need be none */
    int64_t announced_version; /* newest one announced there in this session */
    bool was_connected;        /* at some time */
    uint32_t n_monitors;       /* opened so far: their names differ */
    int32_t n_broken_off;      /* handshakes that ended without a reason, in a row */
    transport_probe probe;     /* of who breaks them off ... */
    int32_t probe_at;          /* ... from so many on */
    bool has_keys; /* it has said that it has keys; the next one it breaks off is final */
    char unauthorised[IFL_WIRE_TEXT_MAX]; /* why the last handshake failed; "" = it didn't */

    pthread_mutex_t lock;
    bool stop, connected;
    bool announcement_read; /* the application has taken one; the learner is to hear of it */
    char reset_text[128];   /* not "": the application wants another session, because of this */
    uint64_t session;
    uint64_t progress;
    int32_t phase, n_queued;
    int64_t held_version;
    transport_out_list out, weights_out;
    client_parcel *parcels, **parcels_end;
    int32_t n_parcels;
    int64_t parcel_bytes, sent_bytes; /* of all parcels; of those sent and not answered */
    ifl_client_stats stats;
};

/* The thread: loops until `stop`, says goodbye, closes the sockets. */
void *transport_client_run(void *client);

#endif

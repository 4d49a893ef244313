/* The server's insides, shared by transport_server.c (thread, life, the application's side),
 * transport_session.c (sessions and what comes over them) and transport_chunks.c (the weight
 * plane). Functions here run on the transport thread and want `lock` held. */
#ifndef IFL_COMMON_TRANSPORT_SERVER_INTERNAL_H
#define IFL_COMMON_TRANSPORT_SERVER_INTERNAL_H

#include "common/transport_internal.h"

#define OFFENDERS_MAX 256
#define WANTED_MAX 256 /* chunks that one peer has asked for and not been given */

typedef struct server_wanted {
    int64_t version, base;
    int32_t chunk;
} server_wanted;

typedef struct server_peer {
    uint64_t session;
    uint8_t identity[IFL_WIRE_IDENTITY_BYTES];
    char name[IFL_WIRE_NAME_MAX];
    int64_t seen_ns, progress_ns;
    uint64_t progress;
    int32_t phase, n_queued, n_refused;
    int64_t bytes_queued, version_ready, version_done;
    int64_t version_wanted; /* whose chunks it asked for last; -1 */
    bool weights_open;
    int32_t close_code;                 /* != 0: the application wants the session ended ... */
    char close_text[IFL_WIRE_TEXT_MAX]; /* ... because of this */
    transport_counters control, weights;
    transport_out_list out, weights_out;
    server_wanted wanted[WANTED_MAX]; /* a ring, in the order asked: patches may have to be made */
    int32_t wanted_first, n_wanted;
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
    bool stop, announce, chunks_ready;
    bool ending;      /* BYE has been said: whoever still joins is told so */
    char failed[256]; /* why the thread ended before it was told to */
    ifl_server_stats stats;
    server_offender offenders[OFFENDERS_MAX];
    int64_t warned_ns;

    pthread_mutex_t source_lock; /* guards `source` and is held during calls into it */
    ifl_weight_source source;
    bool has_source;
};

/* Sessions. Dropping and expelling free the peer. */
server_peer *transport_server_find_session(ifl_server *s, uint64_t session);
bool transport_server_queue(server_peer *peer, const ifl_message *message); /* control plane */
void transport_server_bye(server_peer *peer);
void transport_server_drop(ifl_server *s, server_peer *peer, const char *why);
/* Tells the peer why, then ends its session. */
void transport_server_expel(ifl_server *s, server_peer *peer, int32_t code, uint64_t seq,
                            const char *why);
void transport_server_offence(ifl_server *s, const uint8_t *identity, int64_t now);

/* One message from a socket, if there is one; takes the lock itself, after decoding. */
bool transport_server_receive(ifl_server *s, bool on_weights);

/* Weights. */
int64_t transport_server_newest_version(ifl_server *s); /* -1 = none */
void transport_server_send_manifest(ifl_server *s, server_peer *peer);
void transport_server_serve_chunks(ifl_server *s,
                                   server_peer *peer); /* what is ready of `wanted` */
void transport_server_weight_message(ifl_server *s, server_peer *peer, const ifl_message *m,
                                     int64_t now);

#endif

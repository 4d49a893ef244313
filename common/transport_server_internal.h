/* The server's insides, shared by transport_server.c (thread, life, the application's side),
 * transport_session.c (sessions and what comes over them) and transport_chunks.c (the weight
 * plane). Functions here run on the transport thread and want `lock` held. */
#ifndef IFL_COMMON_TRANSPORT_SERVER_INTERNAL_H
#define IFL_COMMON_TRANSPORT_SERVER_INTERNAL_H

#include "common/transport_internal.h"

#define OFFENDERS_MAX 256
#define WANTED_MAX 256 /* chunks that one peer has asked for and not been given */
#define UNREAD_MAX 2   /* announcements under way to one peer: one is read, the next one comes */

typedef struct server_wanted {
    int64_t version, base;
    int32_t chunk;
} server_wanted;

/* A message that the peer may not have received yet, or a trajectory of it that has no answer yet.
 */
typedef struct server_debt {
    struct server_debt *next;
    uint64_t seq;           /* messages */
    ifl_trajectory_key key; /* trajectories */
    int64_t n_bytes;
} server_debt;

typedef struct server_debts {
    server_debt *head, *tail;
    int64_t n_bytes;
} server_debts;

typedef struct server_peer {
    uint64_t session;
    uint8_t identity[IFL_WIRE_IDENTITY_BYTES];
    char key[IFL_KEY_TEXT_MAX]; /* public; "" without CURVE. Only its messages are this session's */
    char name[IFL_WIRE_NAME_MAX];
    int64_t seen_ns, progress_ns;
    uint64_t progress;
    int32_t phase, n_queued, n_refused;
    int64_t bytes_queued, version_ready, version_done;
    int64_t version_wanted; /* whose chunks it asked for last; -1 */
    bool weights_open, weights_only;
    uint16_t minor;
    server_debts unacked, unanswered;   /* ours to it; its to us */
    int32_t close_code;                 /* != 0: the application wants the session ended ... */
    char close_text[IFL_WIRE_TEXT_MAX]; /* ... because of this */
    transport_counters control, weights;
    transport_out_list out, weights_out;
    bool announce_due;           /* there is a version that it has not been told of ... */
    transport_out *announcement; /* ... which waits for the socket; NULL: is not written yet */
    uint64_t unread[UNREAD_MAX]; /* numbers of the announcements that it may not have read yet */
    int32_t n_unread;
    server_wanted wanted[WANTED_MAX]; /* a ring, in the order asked: patches may have to be made */
    int32_t wanted_first, n_wanted;
} server_peer;

typedef struct server_offender {
    uint8_t identity[IFL_WIRE_IDENTITY_BYTES];
    char key[IFL_KEY_TEXT_MAX];
    int32_t n;
    int64_t last_ns;
} server_offender;

/* Who may join (transport_guard.c): ZAP's handler on a thread of its own, which also reads the list
 * anew, so that a slow file system delays newcomers and nobody else. */
typedef struct server_guard_stamp {
    int64_t seconds, nanoseconds;
    unsigned requests;
    bool is_young;
} server_guard_stamp;

typedef struct server_guard {
    char folder[512], local_key[IFL_KEY_TEXT_MAX], own_name[IFL_KEY_NAME_MAX];
    ifl_key_pair own;
    const atomic_uint *reread;
    void *handler, *monitors[2]; /* its thread's, once that runs */
    int wake_fd;
    pthread_t thread;
    bool thread_started;
    server_guard_stamp seen;
    char problem[256]; /* why the list could not be read, the last time */
    int64_t warned_ns;
    int64_t n_keys, n_links; /* refused since then */
    char last[160];          /* of them */
    pthread_mutex_t lock;    /* guards what follows */
    ifl_key_list list;
    bool changed; /* since the transport thread has looked at its sessions */
    bool stop;
} server_guard;

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
    bool stop, announce, chunks_ready;
    bool ending;      /* BYE has been said: whoever still joins is told so */
    char failed[256]; /* why the thread ended before it was told to */
    ifl_server_stats stats;
    server_offender offenders[OFFENDERS_MAX];
    int64_t warned_ns;

    server_guard *guard; /* NULL: no keys */

    pthread_mutex_t source_lock; /* guards `source` and is held during calls into it */
    ifl_weight_source source;
    bool has_source;
};

/* What is outstanding, in bytes (transport_credit.c). Without memory it isn't counted. */
void transport_debt_add(server_debts *debts, uint64_t seq, const ifl_trajectory_key *key,
                        int64_t n_bytes);
void transport_debt_clear(server_debts *debts);
/* The peer has received all messages up to `seq`. */
void transport_debt_acked(server_peer *peer, uint64_t seq);
/* One of its trajectories is answered: by TRAJ_ACK or NACK. */
void transport_debt_answered(server_peer *peer, const ifl_message *answer);
/* May a message of n_bytes go out now? */
bool transport_may_send(const ifl_server *s, const server_peer *peer, int64_t n_bytes);
/* A trajectory has come. IFL_LIMIT: more than was granted (and then some, for what was under way).
 */
ifl_status transport_trajectory_came(ifl_server *s, server_peer *peer, const ifl_trajectory *traj,
                                     int64_t n_bytes, ifl_error *err);

/* Sessions. Dropping and expelling free the peer. */
void transport_server_peer_free(server_peer *peer);
server_peer *transport_server_find_session(ifl_server *s, uint64_t session);
bool transport_server_queue(server_peer *peer, const ifl_message *message); /* control plane */
void transport_server_bye(const ifl_server *s, server_peer *peer);
void transport_server_drop(ifl_server *s, server_peer *peer, const char *why);
/* Tells the peer why, then ends its session. */
void transport_server_expel(ifl_server *s, server_peer *peer, int32_t code, uint64_t seq,
                            const char *why);
void transport_server_offence(ifl_server *s, const uint8_t *identity, const char *key, int64_t now);

/* Reads the keys; then, once the sockets are there and before they are bound, prepares them and
 * starts answering. `s->guard` owns it all. */
ifl_status transport_guard_create(ifl_server *s, const ifl_server_options *options, ifl_error *err);
ifl_status transport_guard_start(ifl_server *s, ifl_error *err);
void transport_guard_free(ifl_server *s); /* before the context; NULL guard is fine */
/* Is this key allowed now? Its name, or false. Any thread. */
bool transport_guard_knows(server_guard *guard, const char *key, char name[IFL_KEY_NAME_MAX]);
/* Ends the sessions of keys that were taken off the list. Lock held. */
void transport_guard_sweep(ifl_server *s);

/* One message from a socket, if there is one; takes the lock itself, after decoding. */
bool transport_server_receive(ifl_server *s, bool on_weights);

/* Weights. */
int64_t transport_server_newest_version(ifl_server *s); /* -1 = none */
/* There is a new version for a peer. What it was to be told of an older one is not sent any more.
 */
void transport_server_announce(server_peer *peer);
/* What goes ahead of all else on a peer's weight plane: the newest version's manifest, if it has
 * not been sent and the peer has read enough of those before; NULL: nothing. Stays the peer's. */
transport_out *transport_server_announcement(ifl_server *s, server_peer *peer);
void transport_server_announced(server_peer *peer); /* it has been sent, as number seq_out */
/* The peer has received all messages of the weight plane up to `seq`. */
void transport_server_weights_read(server_peer *peer, uint64_t seq);
void transport_server_serve_chunks(ifl_server *s,
                                   server_peer *peer); /* what is ready of `wanted` */
void transport_server_weight_message(ifl_server *s, server_peer *peer, const ifl_message *m,
                                     int64_t now);

#endif

/* The transport: one thread per process owns all sockets and never blocks. The application talks to
 * it through bounded in-process queues (mutex and condition variable; an eventfd wakes the
 * transport thread out of zmq_poll), by functions that may be called from any thread.
 *
 *   learner:  ifl_server, two ROUTER sockets: control and trajectories on `bind`, weights on port +
 * 1 (ipc: path + ".w") actor:    ifl_client, a DEALER to each
 *
 * Heartbeats, sessions, sequence numbers, resending of unacknowledged trajectories and the refusal
 * of bad messages happen inside; the application sees events.
 *
 * With a folder of keys (common/keys.h) links are encrypted and authenticated by CURVE on both
 * planes: only actors whose public key is in the learner's list get further than the handshake, and
 * a session belongs to its key. Without, only loopback tcp and ipc are accepted, unless `insecure`
 * says otherwise. */
#ifndef IFL_COMMON_TRANSPORT_H
#define IFL_COMMON_TRANSPORT_H

#include <stdatomic.h>

#include "common/wire.h"

#define IFL_ENDPOINT_MAX 256
#define IFL_PEERS_MAX 4096

/* --- Learner ---------------------------------------------------------------------------------- */

typedef struct ifl_server ifl_server;

typedef struct ifl_server_options {
    const char *bind;         /* tcp://127.0.0.1:5555, tcp://127.0.0.1:* (or :0), ipc:///path */
    int32_t heartbeat_ms;     /* 0 = 1000 */
    int32_t heartbeat_misses; /* 0 = 3; a peer silent for heartbeat_ms * misses is lost */
    int32_t lease_s;          /* told to actors */
    int32_t chunk_window;     /* most chunks outstanding per actor; 0 = 8 */
    ifl_hash fingerprint, profile, tokenizer; /* an actor whose hashes differ gets REJECT */
    ifl_profile_parts parts; /* of the profile: a refusal names those that differ */
    bool admit_foreign;      /* an actor of another profile is welcome all the same */
    char run_uuid[33];                        /* 32 hex digits */
    uint64_t run_epoch; /* random, drawn by each learner process: names its versions' history */
    bool directed;      /* actors take versions into use only when a WSET says so */
    int32_t vocab_size; /* every trajectory passes ifl_trajectory_check against it */
    int32_t events_max; /* queue to the application; 0 = 16384. TRAJ beyond 3/4 get NACK BUSY */
    int64_t event_bytes_max; /* of trajectories waiting in it; 0 = 256 MiB; beyond: NACK BUSY */
    int64_t send_bytes_max;  /* waiting to be sent to one peer; 0 = 64 MiB */
    int64_t unacked_bytes_max; /* sent to one peer over control and not known to have come there (the
                                * header's ack); 0 = 16 MiB. One larger message goes alone */
    int64_t trajectory_bytes_max; /* granted to one peer: trajectories sent here and not answered;
                                   * 0 = 16 MiB. One larger one goes alone */
    int32_t linger_ms;       /* at close; 0 = 500 */
    const char *keys;        /* folder with learner.secret and actors/; NULL or "" = none */
    const char *local_key;   /* one more public key that may join, called "local"; NULL = none */
    const atomic_uint *keys_reread; /* the list is read again when it changes (besides when the
                                     * folder's time does); NULL = never. Outlives the server */
    bool insecure;                  /* other hosts may come without keys */
    bool weights_only;    /* a relay: sessions for weights alone are let in, and no others */
    const char *key_name; /* own pair in `keys`; NULL = learner */
} ifl_server_options;

typedef enum {
    IFL_SERVER_JOINED,  /* a session began: `peer`, `name`, `incarnation` */
    IFL_SERVER_LOST,    /* it ended; `text` says why. Its open leases are the application's to
                         * re-issue.    Comes exactly once per JOINED, also before the JOINED of a
                         * reconnect. */
    IFL_SERVER_MESSAGE, /* RETURN, TRAJ (checked), WREADY, WDONE, CREDIT, DRAIN, BYE, STATS */
} ifl_server_event_kind;

typedef struct ifl_server_event {
    ifl_server_event_kind kind;
    uint64_t peer; /* session number: never used again, a reconnect gets a new one. Never 0 */
    char name[IFL_WIRE_NAME_MAX];
    uint8_t
        incarnation[IFL_WIRE_IDENTITY_BYTES]; /* the same over reconnects of one actor process */
    int64_t held_version; /* JOINED: policy version the actor says it holds, -1 = none */
    char text[IFL_WIRE_TEXT_MAX];
    ifl_message message; /* MESSAGE: owned; ifl_server_event_clear frees it */
} ifl_server_event;

/* Binds both sockets and starts the thread. Returns owned. Fails with a text that names the
 * endpoint: IFL_USAGE (malformed, or not loopback and without keys), IFL_IO (address in use, ...);
 * or names a file of keys. */
ifl_status ifl_server_create(ifl_server **out, const ifl_server_options *options, ifl_error *err);

/* Sends BYE (DONE) to all peers, waits at most linger_ms for their answers, stops the thread. NULL
 * is fine. Detach the weight source (free the publisher) first. */
void ifl_server_free(ifl_server *server);

/* What was bound, with the real port. Valid as long as the server. `connect` of an actor is the
 * first. */
const char *ifl_server_endpoint(const ifl_server *server);
const char *ifl_server_weights_endpoint(const ifl_server *server);

/* Takes the next event; waits at most wait_ms (0 = not at all). IFL_AGAIN: none. IFL_IO: the
 * transport thread has died (text says why). Clear the event after use. */
ifl_status ifl_server_poll(ifl_server *server, int64_t wait_ms, ifl_server_event *event,
                           ifl_error *err);
void ifl_server_event_clear(ifl_server_event *event);

/* Queues a message to a peer (LEASE, TRAJ_ACK, NACK, WSET, CREDIT, DRAIN, BYE, STATS); borrows
 * `message` for the call. IFL_PEER: no such session any more (its LOST event is, or will be, in the
 * queue). IFL_FULL: more than send_bytes_max would be waiting. IFL_LIMIT, IFL_FORMAT: the message
 * can't be sent. OK means queued, not delivered: what must not be lost has an answer in the
 * protocol. */
ifl_status ifl_server_send(ifl_server *server, uint64_t peer, const ifl_message *message,
                           ifl_error *err);

/* Bytes that may be queued to a peer now; 0 when there is no such session. */
int64_t ifl_server_room(ifl_server *server, uint64_t peer);

/* TRAJ_ACK for a trajectory that came as a message of this peer. The actor's outbox keeps it until
 * then. */
ifl_status ifl_server_ack(ifl_server *server, uint64_t peer, const ifl_trajectory *traj,
                          ifl_ack_status status, ifl_error *err);

/* Ends a session: ERROR (`code`, text) to the peer, LOST event with the text. */
void ifl_server_close_peer(ifl_server *server, uint64_t peer, ifl_wire_error_code code,
                           const char *text);

typedef struct ifl_peer_info {
    uint64_t peer;
    char name[IFL_WIRE_NAME_MAX];
    uint8_t incarnation[IFL_WIRE_IDENTITY_BYTES];
    double silent_s;       /* since its last message */
    uint64_t progress;     /* of its last PING ... */
    double progress_age_s; /* ... and since when it hasn't changed: the stall of the engine */
    int32_t phase, n_queued;
    int64_t bytes_queued;
    bool weights_open;     /* has opened the weight plane */
    int64_t version_ready; /* last WREADY, -1 */
    int64_t version_done;  /* last WDONE, -1 */
    int64_t unacked_bytes, unanswered_bytes; /* of the two bounds of ifl_server_options */
} ifl_peer_info;

/* Copies at most `max` live peers; returns how many there are. Sessions for weights alone (relays
 * and their like) don't count: of them the application hears no events either. */
int32_t ifl_server_peers(ifl_server *server, ifl_peer_info *out, int32_t max);

/* A relay's learner is another process now: whoever joins from here on is told so, and all sessions
 * end, to be begun again. */
void ifl_server_set_run(ifl_server *server, const char run_uuid[33], uint64_t run_epoch);

/* Whether some peer has asked for chunks of a version, for no other one since, and has not said yet
 * that it has it whole. */
bool ifl_server_is_fetched(ifl_server *server, int64_t version);

typedef struct ifl_server_stats {
    int64_t joined, lost, rejected, malformed, fenced, banned;
    int64_t out_of_sequence; /* messages that do not follow the one before them */
    int64_t messages_in, messages_out, bytes_in, bytes_out; /* both planes */
    int64_t trajectories_in, trajectories_refused, trajectories_busy;
    int64_t chunks_sent, chunk_bytes_sent, chunks_refused;
    int64_t keys_refused;  /* links whose key is not in the list */
    int64_t links_refused; /* links that ended before their handshake did: plain peers, scans */
    int64_t key_conflicts; /* messages in the name of another key's session */
    int32_t weight_peers;  /* sessions for weights alone, now */
    int64_t unacked_bytes, unanswered_bytes; /* of all peers, now */
} ifl_server_stats;
void ifl_server_stats_get(ifl_server *server, ifl_server_stats *out);

/* One chunk as it goes out. The bytes must stay alive until `release(data, hint)`, which is called
 * once, on any thread. */
typedef struct ifl_weight_chunk {
    int32_t codec; /* ifl_codec */
    int64_t base;  /* of a patch; -1 with dense */
    ifl_hash hash; /* of a patch's bytes */
    const void *data;
    size_t n_bytes;
    void (*release)(void *data, void *hint);
    void *hint;
} ifl_weight_chunk;

/* Where the weight plane gets its bytes (learner/publisher.h implements it). Called on the
 * transport thread, so no call may block or do more than look things up. */
typedef struct ifl_weight_source {
    void *context;
    /* The newest version's manifest; kept alive until manifest_release(hint). NULL when there is
     * none. */
    const ifl_manifest *(*manifest_retain)(void *context, void **hint);
    void (*manifest_release)(void *context, void *hint);
    /* A chunk, as a patch of `base` (>= 0) where there is one. IFL_AGAIN: the patch is being made,
     * and ifl_server_chunks_ready will say when. IFL_NOTFOUND: that version is not served (any
     * more), or has no such chunk. */
    ifl_status (*chunk)(void *context, int64_t version, int64_t base, int32_t chunk,
                        ifl_weight_chunk *out);
} ifl_weight_source;

/* Attaches (copied), or detaches with NULL. When it returns, no call into the old source is
 * running, and none will come, apart from `release` of chunks under way. */
void ifl_server_set_weight_source(ifl_server *server, const ifl_weight_source *source);

/* Tells all peers of the weight plane about the source's newest manifest. */
void ifl_server_announce(ifl_server *server);

/* Asks the source again for the chunks that it answered with IFL_AGAIN. Any thread. */
void ifl_server_chunks_ready(ifl_server *server);

/* --- Actor ------------------------------------------------------------------------------------ */

typedef struct ifl_client ifl_client;

#define IFL_CLIENT_FOREVER_MS ((int64_t)365 * 86400000)

typedef struct ifl_client_options {
    const char *connect; /* the learner's control endpoint; the weight plane's is derived from it */
    const char *name;    /* printable ASCII, cut at 31 bytes */
    const char *build;   /* version text, for logs */
    ifl_hash fingerprint, profile, tokenizer;
    ifl_profile_parts parts;     /* of the profile */
    int64_t held_version;        /* -1 = none */
    int64_t connect_deadline_ms; /* without WELCOME for so long (at start, or after a loss): GONE; 0
                                    = 30000, IFL_CLIENT_FOREVER_MS = never */
    int64_t outbox_bytes_max;    /* unacknowledged trajectories; 0 = 64 MiB */
    int32_t events_max; /* queue to the application; 0 = 4096: more LEASEs than that: link closed */
    int64_t event_bytes_max; /* of LEASEs and begun trajectories in it; 0 = 256 MiB: likewise */
    int64_t send_bytes_max; /* other messages waiting to be sent; 0 = 16 MiB */
    int32_t linger_ms;      /* 0 = 500 */
    const char *keys; /* folder with NAME.secret and learner.public; NULL or "" = none */
    const char *key;  /* NAME of its own key; NULL or "": as ifl_key_actor_name chooses */
    bool insecure;    /* a learner on another host without keys is fine */
    const char *learner_key; /* NAME of the other side's public key in `keys`; NULL = learner */
    bool weights_only;       /* a session for weights alone: no hashes above, no leases */
    void (*weights_told)(void *user); /* not NULL: something has come for ifl_client_poll_weights.
                                       * On the transport thread; must not wait or call back */
    void *weights_user;
} ifl_client_options;

typedef enum {
    IFL_CLIENT_CONNECTED, /* message.welcome holds what the learner said */
    IFL_CLIENT_LOST,    /* link gone, `text` says why; it reconnects by itself. Leases stay valid as
                         * work,    but the learner will re-issue them: finished trajectories are sent
                         * anyway    and get DUPLICATE when another was faster */
    IFL_CLIENT_REFUSED, /* REJECT without retry (`text` names both sides' hashes): final */
    IFL_CLIENT_GONE,    /* no learner until the deadline: final */
    IFL_CLIENT_UNAUTHORISED, /* the keys don't fit (`text` says which, and what to do): final. At
                              * once where no session has been, else at the deadline */
    IFL_CLIENT_MESSAGE, /* LEASE, TRAJ_ACK, NACK (not BUSY), WSET, CREDIT, DRAIN, BYE, STATS. A BYE
                         * (DONE) ends the link for good: after it comes nothing */
} ifl_client_event_kind;

typedef struct ifl_client_event {
    ifl_client_event_kind kind;
    char text[IFL_WIRE_TEXT_MAX];
    ifl_message message; /* CONNECTED, MESSAGE: owned; ifl_client_event_clear frees it */
} ifl_client_event;

/* Starts the thread, which connects, says HELLO and goes on trying with backoff. Returns owned at
 * once. IFL_USAGE: malformed endpoint, or not loopback and without keys; statuses of common/keys.h. */
ifl_status ifl_client_create(ifl_client **out, const ifl_client_options *options, ifl_error *err);

/* Sends what is queued and a BYE (DRAINED) for at most linger_ms, stops the thread. Unacknowledged
 * trajectories are dropped here: wait for ifl_client_outbox to be empty first. NULL is fine. */
void ifl_client_free(ifl_client *client);

/* As ifl_server_poll. Cheap enough between two decode steps with wait_ms 0. */
ifl_status ifl_client_poll(ifl_client *client, int64_t wait_ms, ifl_client_event *event,
                           ifl_error *err);
void ifl_client_event_clear(ifl_client_event *event);

/* Queues RETURN, CREDIT, STATS, DRAIN, WREADY, WDONE or ERROR; borrows `message` for the call. IFL_PEER:
 * no link at the moment (nothing queued; after a reconnect the learner has forgotten the session
 * anyway). IFL_FULL. */
ifl_status ifl_client_send(ifl_client *client, const ifl_message *message, ifl_error *err);

/* Puts a finished trajectory into the outbox, with or without a link; it is sent, and sent again
 * after each reconnect, until TRAJ_ACK or NACK. Borrows `traj` for the call. IFL_FULL:
 * outbox_bytes_max reached: keep the trajectory, start no new work, try again later. */
ifl_status ifl_client_send_trajectory(ifl_client *client, const ifl_trajectory *traj,
                                      ifl_error *err);

/* Unacknowledged trajectories and their bytes (either may be NULL). */
void ifl_client_outbox(ifl_client *client, int32_t *n, int64_t *n_bytes);

bool ifl_client_connected(ifl_client *client);

/* What PINGs tell the learner: decode steps so far, own phase number, sequences waiting. */
void ifl_client_progress(ifl_client *client, uint64_t progress, int32_t phase, int32_t n_queued);
/* The version in use, told in the next HELLO (the server's JOINED event has it): after a reconnect
 * it takes the place of a WDONE that the new session hasn't seen. The actor sets it at each swap.
 */
void ifl_client_set_held_version(ifl_client *client, int64_t version);

typedef struct ifl_client_stats {
    int64_t connects, losses, resent_trajectories, malformed;
    int64_t messages_in, messages_out, bytes_in, bytes_out; /* both planes */
    uint64_t learner_progress;                              /* of the last PONG */
    int32_t learner_phase;
    double rtt_s; /* of the last PING */
} ifl_client_stats;
void ifl_client_stats_get(ifl_client *client, ifl_client_stats *out);

/* The weight plane's side door, for actor/weight_receiver.h: WANN, WCHUNK and WNACK come out here
 * (CONNECTED and LOST too, since a new session knows nothing of chunks asked before), and WGET goes
 * in. While nobody polls, the plane's socket isn't read: chunks wait at the learner, control goes
 * on. */
ifl_status ifl_client_poll_weights(ifl_client *client, int64_t wait_ms, ifl_client_event *event,
                                   ifl_error *err);
ifl_status ifl_client_send_weights(ifl_client *client, const ifl_message *message, ifl_error *err);
/* Ends the session and begins another with new sockets: the weight plane has stopped answering while
 * control goes on (bytes damaged on the way can leave a stream that waits for ever for the rest of a
 * frame). Without a session nothing happens. */
void ifl_client_reset_link(ifl_client *client, const char *text);
/* Makes a poll_weights under way return IFL_AGAIN at once. */
void ifl_client_wake_weights(ifl_client *client);

/* --- Endpoints -------------------------------------------------------------------------------- */

/* IFL_USAGE unless it is ipc:// or tcp://, and loopback or allowed to leave this host (there are
 * keys, or the user wants none). */
ifl_status ifl_endpoint_check(const char *endpoint, bool may_leave_host, ifl_error *err);
bool ifl_endpoint_is_local(const char *endpoint);
/* How a process on the same host connects to what a learner binds: an address that stands for all
 * of them (*, 0.0.0.0, [::]) becomes loopback. */
ifl_status ifl_endpoint_reach(const char *bound, char out[IFL_ENDPOINT_MAX], ifl_error *err);
/* The weight plane's endpoint beside `control`: port + 1, or path + ".w". */
ifl_status ifl_endpoint_weights(const char *control, char out[IFL_ENDPOINT_MAX], ifl_error *err);

#endif

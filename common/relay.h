/* A relay of the weight plane: asks a parent (the learner, or another relay) once for each chunk
 * that its children (actors, or other relays) want, and hands it on to all of them. So the bytes
 * that a learner sends don't grow with the actors behind a relay.
 *
 *   learner ─► relay ─┬─► actor            parent: an ifl_client, and ifl_weight_links where there
 *                     ├─► actor            are several; children: an ifl_server for weights alone
 *                     └─► relay ─► ...
 *
 * It announces what its parent announces, at once, and asks for chunks when a child does: dense
 * ones and patches of whatever base, as the learner makes them, and knows nothing of what they
 * mean. Kept are the newest version and one older one while it is being fetched, within bytes_max;
 * what has not been wanted for longest goes first, and what there is no room for is refused, so
 * that the child asks its next parent. Children trust it in nothing: they hold every chunk against
 * the learner's hashes. It checks what it can all the same, so that a damaged chunk ends here. */
#ifndef IFL_COMMON_RELAY_H
#define IFL_COMMON_RELAY_H

#include "common/weight_links.h"

typedef struct ifl_relay ifl_relay;

typedef struct ifl_relay_options {
    const char *connect; /* the learner, or a relay in its place: announces versions */
    const char *relays;  /* parents to ask for chunks before that; NULL or "" = none */
    const char *bind;    /* for children */
    const char *name;    /* for logs */
    const char *keys;    /* folder: NAME.secret, learner.public (of `connect`), actors/; or NULL */
    const char *key;     /* as ifl_client_options.key: its own, to parents and to children */
    const atomic_uint *keys_reread; /* as ifl_server_options.keys_reread */
    bool insecure;
    int64_t bytes_max;           /* of chunks kept and on their way here; at least 64 KiB */
    int64_t connect_deadline_ms; /* as ifl_client_options */
} ifl_relay_options;

/* Starts the thread. Binds when the parent has first answered, since children are told what it
 * says. IFL_USAGE and others: endpoints and keys as ifl_client_create. */
ifl_status ifl_relay_create(ifl_relay **out, const ifl_relay_options *options, ifl_error *err);
void ifl_relay_free(ifl_relay *relay); /* children are told; NULL is fine */

/* IFL_AGAIN: it goes on. IFL_OK: the learner has said that the run is over. Else why it can't go
 * on: IFL_PEER (no parent), IFL_AUTH, IFL_MISMATCH (refused), IFL_IO (cannot bind). */
ifl_status ifl_relay_wait(ifl_relay *relay, int64_t wait_ms, ifl_error *err);

/* What was bound, with the real port; "" before. */
void ifl_relay_endpoint(ifl_relay *relay, char out[IFL_ENDPOINT_MAX]);

typedef struct ifl_relay_stats {
    int64_t version;               /* newest announced, -1 = none */
    int64_t chunks_in, bytes_in;   /* taken from parents */
    int64_t chunks_out, bytes_out; /* handed to the transport for children */
    int64_t bytes_kept,
        bytes_kept_max; /* now, and the most there have been; on their way here included */
    int64_t refused;    /* chunks that children were told to ask others for */
    int64_t damaged;    /* chunks that came with a wrong hash */
    int32_t n_children;
    ifl_weight_links_stats parents;
} ifl_relay_stats;
void ifl_relay_stats_get(ifl_relay *relay, ifl_relay_stats *out);

/* Test hooks. The next `times` servings of chunk `chunk` are forged: a bit is flipped, and a
 * patch's own hash made to fit. Stalled: children's questions go unanswered. */
void ifl_relay_test_forge(ifl_relay *relay, int32_t chunk, int32_t times);
void ifl_relay_test_stall(ifl_relay *relay, bool stalled);

#endif

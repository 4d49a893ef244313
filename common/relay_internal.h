/* A relay's insides, shared by relay.c (its thread, its links) and relay_store.c (what it keeps).
 * `lock` guards the store, the wants and the statistics; links and their state are the thread's
 * own. The server asks for chunks under locks of its own: `lock` is never held while it is called.
 */
#ifndef IFL_COMMON_RELAY_INTERNAL_H
#define IFL_COMMON_RELAY_INTERNAL_H

#include <pthread.h>

#include "common/keys.h"
#include "common/relay.h"

#define RELAY_VERSIONS_MAX 2 /* complete ones; beside them the one that has just been announced */
#define RELAY_SETS_MAX 17    /* of a version: dense, and patches of so many bases less one */

/* Bytes of a chunk as they came. */
typedef struct relay_part {
    struct ifl_relay *relay;
    int32_t n_places;  /* that hold it */
    int32_t n_sending; /* frames that libzmq has */
    int64_t used_ns;
    int32_t codec;
    int64_t base;
    ifl_hash hash;
    const uint8_t *data;
    size_t n_bytes;
    void *frame; /* what keeps `data` alive */
    void (*frame_free)(void *frame);
} relay_part;

typedef struct relay_place {
    relay_part *part; /* NULL: not here */
    int64_t refused_until_ns;
    bool wanted; /* there is a want for it */
} relay_place;

typedef struct relay_set {
    int64_t base;        /* -1: dense */
    relay_place *places; /* [n_chunks] */
} relay_set;

typedef struct relay_version {
    int32_t refs; /* the list, and manifests handed out */
    ifl_manifest *manifest;
    relay_set sets[RELAY_SETS_MAX]; /* [0] is the dense one */
    int32_t n_sets;
    int64_t asked_ns;
    bool served, ready; /* chunks went out; and the parents were told that all have it */
} relay_version;

/* A chunk that a child waits for, in the order asked. */
typedef struct relay_want {
    struct relay_want *next;
    relay_version *version;
    relay_set *set;
    int32_t chunk;
    int32_t link; /* asked of; -1: nobody yet */
    int64_t since_ns;
} relay_want;

struct ifl_relay {
    ifl_relay_options options; /* texts are copies, below */
    char connect[IFL_ENDPOINT_MAX], bind[IFL_ENDPOINT_MAX], relays[1024], keys[512];
    char key[IFL_KEY_NAME_MAX], name[IFL_WIRE_NAME_MAX];
    ifl_client *client;
    ifl_weight_links *links;
    pthread_t thread;
    bool thread_started;

    /* The thread's own. */
    bool connected;
    ifl_wire_welcome welcome;
    int64_t moved_ns[IFL_WEIGHT_LINKS_MAX];
    bool asked_in_vain;
    uint64_t n_turns;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    ifl_server *server; /* NULL before the first WELCOME; only the thread sets it */
    bool stop, ended;
    ifl_error end;                                   /* status IFL_OK: the run is over */
    relay_version *versions[RELAY_VERSIONS_MAX + 1]; /* oldest first */
    int32_t n_versions;
    relay_want *wants, **wants_end;
    int32_t n_asked_of[IFL_WEIGHT_LINKS_MAX];
    int64_t bytes_held, bytes_reserved; /* tables and parts; parts on their way */
    ifl_relay_stats stats;
    int32_t forge_chunk, forge_times;
    bool stalled;
};

/* --- The store: callers hold the lock --------------------------------------------------------- */

relay_version *relay_find(ifl_relay *r, int64_t version);
/* Takes the manifest in any case. False: no memory or no room for its tables. */
bool relay_version_add(ifl_relay *r, ifl_manifest *manifest);
void relay_version_drop(ifl_relay *r, int32_t index); /* with the wants for it */
void relay_want_end(ifl_relay *r, relay_want **at);   /* unlinks and frees */
/* Refuses for a second: whoever asks goes to its next parent. */
void relay_want_refuse(ifl_relay *r, relay_want **at);
/* Stores a chunk that answers a want; takes its frame. IFL_FORMAT: not what the manifest says. */
ifl_status relay_store(ifl_relay *r, relay_want **at, ifl_wire_wchunk *chunk);
void relay_clear(ifl_relay *r); /* everything */

extern const ifl_weight_source relay_source; /* context: the relay */

#endif

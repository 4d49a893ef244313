/* The learner's side of the weight plane: turns an ifl_weights into a manifest and chunks, and
 * serves them, dense or as patches.
 *
 * Publishing copies once, on the publisher's own thread: it unpacks the borrowed weights chunk by
 * chunk into canonical bf16 buffers (the wire's order; packed panels are not), hashing each chunk
 * while it is in cache, and then gives the weights back. Beside it each chunk's difference from the
 * version before is coded (common/weight_patch.h). The patches of the last versions are kept, so
 * that an actor that has missed some gets one patch merged from them; that is made when it asks.
 * Chunks leave as zero-copy frames that point into those buffers, counted one by one, so that an
 * actor that stops reading pins its window of chunks and no more. Served are the newest version,
 * and one older one while an actor is still fetching it. A version overtaken before its unpacking
 * began is never announced. */
#ifndef IFL_LEARNER_PUBLISHER_H
#define IFL_LEARNER_PUBLISHER_H

#include "common/transport.h"
#include "kernels/model.h"
#include "learner/version_archive.h"

#define IFL_EDITIONS_MAX 2 /* complete ones; beside them one under construction */
#define IFL_PATCHES_MAX 64 /* versions back that patches may be kept for */
#define IFL_PATCHES_PERCENT 75
#define IFL_PATCHES_PERCENT_MAX 1000

typedef struct ifl_publisher ifl_publisher;

/* Attaches itself to `server` as its weight source; borrows server and model. chunk_bytes: raw
 * bytes per chunk (0 = 4 MiB; 4 KiB .. 15 MiB, rounded down to even). n_patches: of how many
 * versions patches are kept (0 .. IFL_PATCHES_MAX; 0: everything goes dense), as long as they take
 * no more than patch_percent of a dense version (0 = IFL_PATCHES_PERCENT); those merged from
 * several take a quarter of one beside that. */
ifl_status ifl_publisher_create(ifl_publisher **out, const ifl_model *model, ifl_server *server,
                                int64_t chunk_bytes, int32_t n_patches, int32_t patch_percent,
                                ifl_error *err);
/* Every version announced from now on is put there too, by the publisher's thread, after the
 * announcement. Borrowed until ifl_publisher_free. A version that cannot be written is warned about
 * once, and from then on nothing is. */
void ifl_publisher_set_archive(ifl_publisher *publisher, ifl_version_archive *archive);

/* Told of every version before it is announced, with its ifl_weights_hash, on the publisher's
 * thread. Set before the first publication. */
typedef void (*ifl_publisher_told)(void *user, int64_t version, ifl_hash content);
void ifl_publisher_set_told(ifl_publisher *publisher, ifl_publisher_told told, void *user);

/* Detaches from the server, waits for the thread, gives back borrowed weights. NULL is fine. */
void ifl_publisher_free(ifl_publisher *publisher);

/* Called exactly once per accepted publish, when `weights` is no longer read: on the publisher's
 * thread, or inside a later ifl_publisher_publish or ifl_publisher_free. Must not call the
 * publisher. */
typedef void (*ifl_publisher_release)(const ifl_weights *weights, void *user);

/* Publishes `weights` as `version` (> every earlier one, else IFL_USAGE); announced to all actors
 * as soon as it is ready. Returns at once. Borrows `weights`, which must not change until release;
 * release NULL: the call returns only when they are no longer needed (and the version is
 * announced). `parent` is the version they were trained from, -1 = none. */
ifl_status ifl_publisher_publish(ifl_publisher *publisher, int64_t version, int64_t parent,
                                 const ifl_weights *weights, ifl_publisher_release release,
                                 void *user, ifl_error *err);

/* Waits until `version` or a newer one has been announced. IFL_TIMEOUT; why `version` could not be
 * published. */
ifl_status ifl_publisher_wait(ifl_publisher *publisher, int64_t version, int64_t wait_ms,
                              ifl_error *err);

/* Newest announced version (-1 = none) and its root and content hash (both may be NULL). */
int64_t ifl_publisher_version(ifl_publisher *publisher, ifl_hash *root, ifl_hash *content);

typedef struct ifl_publisher_stats {
    int64_t published, announced, skipped; /* skipped: overtaken before they were unpacked */
    int64_t chunks, chunk_bytes;           /* handed to the transport */
    double unpack_s_last, unpack_s;        /* unpacking, hashing and coding of patches */
    double core_s_last, core_s;            /* the same as CPU time of all threads that take part */
    int32_t editions;                      /* buffers alive */
    int64_t patch_version;                 /* newest version with a patch, -1 = none */
    int64_t patch_base;                    /* the version it is against */
    int64_t patch_bytes, patch_changed;    /* its size on the wire; weights that differ */
    int32_t patch_chunks, patch_dense;     /* chunks that differ; of which shorter dense */
    double patch_s;                        /* comparing and coding */
    int64_t n_merged;                      /* patches made from several */
    int32_t steps_kept;                    /* versions back that one can be merged for */
    int64_t steps_bytes;                   /* that their patches take in memory */
} ifl_publisher_stats;
void ifl_publisher_stats_get(ifl_publisher *publisher, ifl_publisher_stats *out);

/* Most memory it can take for this model. */
int64_t ifl_publisher_bytes(const ifl_model *model, int32_t n_patches, int32_t patch_percent);

/* Test hook: the next `times` servings of chunk `chunk`, dense or patch, have one bit flipped. */
void ifl_publisher_test_corrupt(ifl_publisher *publisher, int32_t chunk, int32_t times);

#endif

/* The actor's side of the weight plane: fetches announced versions on a background thread into a
 * shadow buffer, and hands the application nothing but whole, verified versions.
 *
 *   offer_buffer(w, base) -> fetch of patches against the base, or of dense chunks -> every chunk's
 *   hash: of a patched one before it is stored, of a dense one as stored -> take() gives w back
 *
 * The loop of an actor: offer a shadow; between two decode steps take(); when it gives weights,
 * swap them in, and offer the old ones once no sequence uses them (ifl_engine_oldest_version), with
 * the ones in use as base. A patch that doesn't fit (its result has another hash) is fetched again
 * dense, chunk by chunk. The newest announced version is fetched; one that is overtaken is dropped
 * when less than half of it is here, but never two in a row, so that a slow link still gets new
 * weights. Chunks may come from relays (common/weight_links.h); versions and hashes are always the
 * learner's. */
#ifndef IFL_ACTOR_WEIGHT_RECEIVER_H
#define IFL_ACTOR_WEIGHT_RECEIVER_H

#include "common/weight_links.h"
#include "kernels/model.h"

typedef struct ifl_weight_receiver ifl_weight_receiver;

/* Starts the thread, which is the only caller of client's poll_weights from now on. Borrows model
 * and client. `relays` (NULL: none): whom to ask for chunks before the learner; copied. */
ifl_status ifl_weight_receiver_create(ifl_weight_receiver **out, const ifl_model *model,
                                      ifl_client *client, const ifl_weight_links_options *relays,
                                      ifl_error *err);
/* Stops the thread; the buffer offered last (if any) is the caller's again. Free it before the
 * client. */
void ifl_weight_receiver_free(ifl_weight_receiver *receiver);

/* Gives a buffer (created for the same model) to fetch into; its contents and version are undefined
 * until take() returns it. The receiver holds one at a time: IFL_FULL when it already has one. Any
 * thread. `base` (NULL: none): the version last taken, which must stay as it is until take()
 * returns this buffer or the receiver is freed; then only what differs from it is fetched. */
ifl_status ifl_weight_receiver_offer_buffer(ifl_weight_receiver *receiver, ifl_weights *weights,
                                            const ifl_weights *base, ifl_error *err);

/* From now on take() gives only what the learner process of `welcome` has announced (run uuid and
 * epoch): versions of another one may have the same numbers and be other weights. The actor calls
 * it for each CONNECTED event, before its next take(), whichever of the two threads hears of the
 * session first. */
void ifl_weight_receiver_follow(ifl_weight_receiver *receiver, const ifl_wire_welcome *welcome);

/* IFL_OK: *weights is the offered buffer, complete and verified, its version field set. IFL_AGAIN:
 * nothing new. Never blocks. IFL_MISMATCH, once per announced version: the learner's manifest
 * doesn't fit this model (err says how). */
ifl_status ifl_weight_receiver_take(ifl_weight_receiver *receiver, ifl_weights **weights,
                                    ifl_error *err);

/* As take, but waits: for the first weights. IFL_TIMEOUT. */
ifl_status ifl_weight_receiver_wait(ifl_weight_receiver *receiver, int64_t wait_ms,
                                    ifl_weights **weights, ifl_error *err);

/* Tells the learner that `version` (taken before) is in use: WDONE. The learner leases by it, so it
 * must be told again: after IFL_FULL or IFL_NOMEM at the next turn, after IFL_PEER (no link) at the
 * next WELCOME. */
ifl_status ifl_weight_receiver_applied(ifl_weight_receiver *receiver, int64_t version,
                                       int64_t stall_us, ifl_error *err);

int64_t
ifl_weight_receiver_announced(ifl_weight_receiver *receiver); /* newest announced, -1 = none */

typedef struct ifl_weight_receiver_stats {
    int64_t versions;         /* fetched whole and verified */
    int64_t dropped;          /* fetches given up for a newer version */
    int64_t chunks, bytes;    /* verified */
    int64_t retries;          /* chunks asked again: bad hash or no answer */
    int64_t hash_failures;    /* of chunks */
    int64_t patch_mismatches; /* of which came as they were sent: not patches of this base */
    int64_t relayed_bytes;    /* of `bytes`: from relays */
    ifl_weight_links_stats relays;
    double fetch_s_last;          /* first WGET to verified, of the last version */
    double verify_s_last;         /* of which: reading chunks back and hashing them */
    double core_s;               /* CPU time for all of these versions: the thread's own */
    int64_t version_bytes_last;   /* of its chunks, on the wire */
    int32_t version_patched_last; /* chunks that came as patches */
} ifl_weight_receiver_stats;
void ifl_weight_receiver_stats_get(ifl_weight_receiver *receiver, ifl_weight_receiver_stats *out);

#endif

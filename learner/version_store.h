/* The recent versions of the weights, for whoever must look back: the audit re-scores a token under
 * the version that sampled it, the publisher reads the newest while the next one is made.
 *
 * A ring bounded in count and bytes. Thread-safe: one lock guards the table; the weights themselves
 * are immutable once put. */
#ifndef IFL_LEARNER_VERSION_STORE_H
#define IFL_LEARNER_VERSION_STORE_H

#include "kernels/model.h"

typedef struct ifl_version_store ifl_version_store;

#define IFL_VERSIONS_MAX 4096

/* Keeps at most n_max versions and bytes_max bytes (0: no byte bound), but always the newest. */
ifl_status ifl_version_store_create(ifl_version_store **out, const ifl_model *model, int32_t n_max,
                                    int64_t bytes_max, ifl_error *err);
/* No version may be held any more. */
void ifl_version_store_free(ifl_version_store *store); /* NULL is fine */

/* Weights to write the next version into: a recycled set, or a new one. Owned by the caller until
 * ifl_version_store_put (or ifl_weights_free). */
ifl_status ifl_version_store_spare(ifl_version_store *store, ifl_weights **out, ifl_error *err);

/* Takes `weights` as version weights->version, which must be above all others (IFL_USAGE: the
 * caller keeps them), then drops the oldest unheld versions until the bounds hold. Held ones stay
 * past the bounds and leave when released. */
ifl_status ifl_version_store_put(ifl_version_store *store, ifl_weights *weights, ifl_error *err);

/* Borrowed and held until the matching release, or NULL when that version is not (or no longer)
 * kept. */
const ifl_weights *ifl_version_store_get(ifl_version_store *store, int64_t version);
const ifl_weights *ifl_version_store_newest(ifl_version_store *store); /* NULL when empty; held */
void ifl_version_store_release(ifl_version_store *store,
                               const ifl_weights *weights); /* NULL is fine */

typedef struct ifl_version_store_stats {
    int32_t n_versions, n_held;
    int64_t oldest, newest; /* -1 when empty */
    int64_t bytes, n_evicted;
} ifl_version_store_stats;
void ifl_version_store_stats_get(ifl_version_store *store, ifl_version_store_stats *out);

/* Bytes of one version. */
int64_t ifl_version_bytes(const ifl_model *model);

#endif

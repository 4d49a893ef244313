#include "learner/version_store.h"

#include <pthread.h>
#include <stdlib.h>

#include "common/memory.h"

typedef struct stored_version {
    ifl_weights *weights;
    int32_t n_holds;
    bool evicted; /* past the bounds, waiting for its last release */
} stored_version;

struct ifl_version_store {
    const ifl_model *model;
    pthread_mutex_t lock; /* guards everything below */
    int32_t n_max;
    int64_t bytes_max, version_bytes;
    int32_t n_entries, n_entries_cap; /* ascending by version, evicted ones included */
    stored_version *entries;
    ifl_weights *spare; /* one set kept for the next version: its pages are warm and mapped */
    int64_t n_evicted;
};

int64_t ifl_version_bytes(const ifl_model *model) {
    return model->n_panel_elements * (int64_t)sizeof(uint16_t) +
           model->n_vector_elements * (int64_t)sizeof(float);
}

ifl_status ifl_version_store_create(ifl_version_store **out, const ifl_model *model, int32_t n_max,
                                    int64_t bytes_max, ifl_error *err) {
    *out = NULL;
    if (n_max < 1 || n_max > IFL_VERSIONS_MAX)
        return ifl_fail(err, IFL_USAGE, "parity.versions_kept: got %d, wanted 1 to %d", n_max,
                        IFL_VERSIONS_MAX);
    if (bytes_max < 0) return ifl_fail(err, IFL_USAGE, "parity.versions_gib: got a negative bound");
    ifl_version_store *store = ifl_alloc(1, sizeof *store);
    if (!store) return ifl_fail(err, IFL_NOMEM, "version store: out of memory");
    store->model = model;
    store->n_max = n_max;
    store->bytes_max = bytes_max;
    store->version_bytes = ifl_version_bytes(model);
    pthread_mutex_init(&store->lock, NULL);
    *out = store;
    return IFL_OK;
}

void ifl_version_store_free(ifl_version_store *store) {
    if (!store) return;
    for (int32_t i = 0; i < store->n_entries; i++) {
        IFL_ASSERT(store->entries[i].n_holds == 0);
        ifl_weights_free(store->entries[i].weights);
    }
    ifl_weights_free(store->spare);
    pthread_mutex_destroy(&store->lock);
    free(store->entries);
    ifl_free(store);
}

static void store_remove(ifl_version_store *store, int32_t i) {
    ifl_weights *weights = store->entries[i].weights;
    for (int32_t j = i + 1; j < store->n_entries; j++)
        store->entries[j - 1] = store->entries[j];
    store->n_entries--;
    if (store->spare)
        ifl_weights_free(weights);
    else
        store->spare = weights;
}

/* Oldest first, until the bounds hold for what is left and `n_coming` more. A held version counts
 * as gone already (nobody new can get it) and its memory follows at the last release. */
static void store_evict(ifl_version_store *store, int32_t n_coming) {
    int32_t n_live = 0;
    for (int32_t i = 0; i < store->n_entries; i++)
        n_live += !store->entries[i].evicted;
    for (int32_t i = 0; i < store->n_entries && n_live > 1;) {
        int32_t n = n_live + n_coming;
        bool over = n > store->n_max ||
                    (store->bytes_max > 0 && n * store->version_bytes > store->bytes_max);
        if (!over) break;
        if (store->entries[i].evicted) {
            i++;
            continue;
        }
        n_live--;
        store->n_evicted++;
        if (store->entries[i].n_holds > 0)
            store->entries[i++].evicted = true;
        else
            store_remove(store, i);
    }
}

ifl_status ifl_version_store_spare(ifl_version_store *store, ifl_weights **out, ifl_error *err) {
    pthread_mutex_lock(&store->lock);
    store_evict(store, 1); /* the next version is made where the oldest was */
    *out = store->spare;
    store->spare = NULL;
    pthread_mutex_unlock(&store->lock);
    return *out ? IFL_OK : ifl_weights_create(out, store->model, err);
}

ifl_status ifl_version_store_put(ifl_version_store *store, ifl_weights *weights, ifl_error *err) {
    IFL_ASSERT(weights->model == store->model);
    ifl_status st = IFL_OK;
    pthread_mutex_lock(&store->lock);
    if (store->n_entries > 0) {
        int64_t newest = store->entries[store->n_entries - 1].weights->version;
        if (weights->version <= newest)
            IFL_TRY_GOTO(st,
                         ifl_fail(err, IFL_USAGE,
                                  "version store: version %lld put after version %lld",
                                  (long long)weights->version, (long long)newest),
                         done);
    }
    size_t cap = (size_t)store->n_entries_cap;
    IFL_TRY_GOTO(st,
                 ifl_grow((void **)&store->entries, &cap, (size_t)store->n_entries + 1,
                          sizeof *store->entries, err),
                 done);
    store->n_entries_cap = (int32_t)cap;
    store->entries[store->n_entries++] = (stored_version){.weights = weights};
    store_evict(store, 0);
done:
    pthread_mutex_unlock(&store->lock);
    return st;
}

const ifl_weights *ifl_version_store_get(ifl_version_store *store, int64_t version) {
    const ifl_weights *found = NULL;
    pthread_mutex_lock(&store->lock);
    for (int32_t i = store->n_entries - 1; i >= 0; i--) {
        stored_version *entry = &store->entries[i];
        if (entry->weights->version != version || entry->evicted) continue;
        entry->n_holds++;
        found = entry->weights;
        break;
    }
    pthread_mutex_unlock(&store->lock);
    return found;
}

const ifl_weights *ifl_version_store_newest(ifl_version_store *store) {
    const ifl_weights *found = NULL;
    pthread_mutex_lock(&store->lock);
    if (store->n_entries > 0) { /* the newest is never evicted */
        store->entries[store->n_entries - 1].n_holds++;
        found = store->entries[store->n_entries - 1].weights;
    }
    pthread_mutex_unlock(&store->lock);
    return found;
}

void ifl_version_store_release(ifl_version_store *store, const ifl_weights *weights) {
    if (!weights) return;
    pthread_mutex_lock(&store->lock);
    int32_t i = 0;
    while (i < store->n_entries && store->entries[i].weights != weights)
        i++;
    IFL_ASSERT(i < store->n_entries && store->entries[i].n_holds > 0);
    if (--store->entries[i].n_holds == 0 && store->entries[i].evicted) store_remove(store, i);
    pthread_mutex_unlock(&store->lock);
}

void ifl_version_store_stats_get(ifl_version_store *store, ifl_version_store_stats *out) {
    *out = (ifl_version_store_stats){.oldest = -1, .newest = -1};
    pthread_mutex_lock(&store->lock);
    for (int32_t i = 0; i < store->n_entries; i++) {
        const stored_version *entry = &store->entries[i];
        out->bytes += store->version_bytes;
        out->n_held += entry->n_holds > 0;
        if (entry->evicted) continue;
        out->n_versions++;
        if (out->oldest < 0) out->oldest = entry->weights->version;
        out->newest = entry->weights->version;
    }
    out->n_evicted = store->n_evicted;
    pthread_mutex_unlock(&store->lock);
}

#include "learner/held_versions.h"

#include "common/memory.h"
#include "kernels/replay.h"

ifl_status ifl_held_versions_open(ifl_held_versions *out, ifl_version_store *store,
                                  ifl_error *err) {
    *out = (ifl_held_versions){.store = store};
    out->held = ifl_alloc(IFL_VERSIONS_MAX, sizeof *out->held);
    return out->held ? IFL_OK : ifl_fail(err, IFL_NOMEM, "out of memory: held versions");
}

void ifl_held_versions_close(ifl_held_versions *held) {
    ifl_held_versions_release(held);
    ifl_free(held->held);
    *held = (ifl_held_versions){0};
}

void ifl_held_versions_release(ifl_held_versions *held) {
    for (int32_t i = 0; i < held->n; i++)
        ifl_version_store_release(held->store, held->held[i]);
    held->n = 0;
}

const ifl_weights *ifl_held_versions_get(void *context, int64_t version) {
    const ifl_held_versions *held = context;
    for (int32_t i = 0; i < held->n; i++)
        if (held->held[i]->version == version) return held->held[i];
    return NULL;
}

bool ifl_held_versions_add(ifl_held_versions *held, int64_t version) {
    if (ifl_held_versions_get(held, version)) return true;
    const ifl_weights *weights =
        held->n < IFL_VERSIONS_MAX ? ifl_version_store_get(held->store, version) : NULL;
    if (!weights) return false;
    held->held[held->n++] = weights;
    return true;
}

bool ifl_held_versions_add_all(ifl_held_versions *held, const ifl_trajectory *traj) {
    for (int32_t i = 0; i < traj->n_runs; i++)
        if (!ifl_held_versions_add(held, traj->runs[i].version)) return false;
    for (int32_t i = 0; i < traj->n_kv_events; i++)
        if (!ifl_held_versions_add(held, traj->kv_events[i].version)) return false;
    return true;
}

bool ifl_held_versions_add_moved(ifl_held_versions *held, const ifl_trajectory *traj,
                                 int64_t version) {
    for (int32_t i = 0; i < traj->n_runs; i++)
        for (int32_t k = 0; k < traj->n_kv_events; k++)
            if (!ifl_held_versions_add(held, ifl_replay_moved(traj->kv_events[k].version,
                                                              traj->runs[i].version, version)))
                return false;
    return true;
}

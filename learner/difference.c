#include "learner/difference.h"

#include <stdio.h>
#include <string.h>

ifl_difference ifl_difference_of(const ifl_trajectory *traj, int32_t position, float recorded,
                                 float computed) {
    ifl_difference d = {.task_serial = traj->task_serial,
                        .sample = traj->sample,
                        .position = position,
                        .version = ifl_trajectory_version_at(traj, position),
                        .version_min = -1,
                        .version_max = -1,
                        .kv_min = -1,
                        .kv_max = -1,
                        .recorded = recorded,
                        .computed = computed};
    snprintf(d.actor, sizeof d.actor, "%s", traj->actor);
    for (int32_t i = 0; i < traj->n_runs; i++) {
        int64_t v = traj->runs[i].version;
        if (i == 0 || v < d.version_min) d.version_min = v;
        if (i == 0 || v > d.version_max) d.version_max = v;
    }
    for (int32_t i = 0; i < traj->n_kv_events; i++) {
        int64_t v = traj->kv_events[i].version;
        if (i == 0 || v < d.kv_min) d.kv_min = v;
        if (i == 0 || v > d.kv_max) d.kv_max = v;
    }
    return d;
}

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

ifl_status ifl_difference_fail(const ifl_difference *d, const char *by, const char *run_path,
                               int64_t checkpoint, ifl_error *err) {
    char kept[96];
    if (checkpoint < 0)
        snprintf(kept, sizeof kept, "the run has no checkpoint yet");
    else
        snprintf(kept, sizeof kept, "the checkpoint of step %lld is kept", (long long)checkpoint);
    return ifl_fail(
        err, IFL_PARITY,
        "parity: the log-prob of token %d of trajectory %llu/%d (version %lld) was recorded by "
        "actor "
        "%s as %a (%.9g, bits %08x), %s gives %a (%.9g, bits %08x). Its tokens are of versions "
        "%lld to "
        "%lld, its KV of %lld to %lld. Actor and learner no longer compute the same bits: the run "
        "stops; %s. The trajectory: inflight rollouts %.200s --json (serial %llu, sample %d). Does "
        "this host compute one arithmetic: inflight parity --soak 1. Go on with run.resume=true",
        d->position, (unsigned long long)d->task_serial, d->sample, (long long)d->version, d->actor,
        (double)d->recorded, (double)d->recorded, bits_of(d->recorded), by, (double)d->computed,
        (double)d->computed, bits_of(d->computed), (long long)d->version_min,
        (long long)d->version_max, (long long)d->kv_min, (long long)d->kv_max, kept, run_path,
        (unsigned long long)d->task_serial, d->sample);
}

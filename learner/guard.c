#include "learner/guard.h"

#include <string.h>

void ifl_guard_cover(const ifl_trajectory *traj, int64_t version, uint8_t *covered, int32_t n) {
    memset(covered, 0, (size_t)n);
    /* Positions [0, pure) hold KV that `version` has computed, as of the event under way. */
    int32_t pure = 0;
    for (int32_t i = 0; i < traj->n_kv_events; i++) {
        const ifl_kv_event *e = &traj->kv_events[i];
        if (e->kind == IFL_KV_KEPT || e->from == e->to) continue; /* nothing was computed */
        if (e->version != version) {
            if (e->from < pure) pure = e->from;
            continue;
        }
        if (e->from > pure) continue;
        /* Row t - 1 gives the log-prob of token t; rows before `at` - 1 had their tokens already.
         */
        int32_t first = e->at > e->from + 1 ? e->at : e->from + 1;
        for (int32_t t = first; t <= e->to && t < n; t++)
            covered[t] = 1;
        pure = e->to;
    }
    int32_t t = 0;
    for (int32_t r = 0; r < traj->n_runs; r++) {
        const ifl_version_run *run = &traj->runs[r];
        for (; t < run->begin && t < n; t++)
            covered[t] = 0; /* nobody sampled it */
        for (; t < run->begin + run->n_tokens && t < n; t++)
            covered[t] &= run->version == version;
    }
    for (; t < n; t++)
        covered[t] = 0;
}

/* A zero's flipped bit would be a positive number, which no record may hold. */
static float flipped(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    bits ^= 1u;
    memcpy(&f, &bits, sizeof f);
    return f;
}

void ifl_guard_check(const ifl_packed *packed, const ifl_pack_item *items,
                     const ifl_logprob *logprobs, const uint8_t *foreign, int64_t version,
                     uint8_t *covered, int32_t n_covered, bool *flip, ifl_guard_counts *counts) {
    int32_t item = -1;
    for (int32_t i = 0; i < packed->pack.n_targets; i++) {
        const ifl_trajectory *traj = items[packed->target_items[i]].traj;
        if (foreign[i]) continue;
        if (packed->target_items[i] != item) {
            item = packed->target_items[i];
            ifl_guard_cover(traj, version, covered,
                            traj->n_tokens < n_covered ? traj->n_tokens : n_covered);
        }
        int32_t t = packed->target_positions[i];
        if (!covered[t]) continue;
        float recorded = packed->loss_tokens.behaviour_logprobs[i];
        if (*flip && recorded != 0.0f) {
            recorded = flipped(recorded);
            *flip = false;
        }
        counts->tokens_checked++;
        if (memcmp(&recorded, &logprobs[i].logprob, sizeof recorded) == 0) continue;
        if (counts->tokens_differing++ == 0)
            counts->first = ifl_difference_of(traj, t, recorded, logprobs[i].logprob);
    }
}

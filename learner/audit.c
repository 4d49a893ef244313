#include "learner/audit.h"

#include <string.h>

#include "common/memory.h"
#include "common/rng.h"
#include "kernels/replay.h"
#include "learner/held_versions.h"

#define REPLAY_ROWS 256 /* rows of one replayed chunk; decides speed, never a bit */

struct ifl_audit {
    const ifl_model *model; /* borrowed */
    ifl_audit_options options;
    ifl_workspace *workspace;
    bool flipped; /* the test hook has had its trajectory */
    ifl_audit_counts counts;
    ifl_held_versions held; /* of the trajectory under audit */
};

ifl_status ifl_audit_create(ifl_audit **out, const ifl_model *model, ifl_version_store *store,
                            const ifl_audit_options *options, ifl_thread_pool *pool,
                            const ifl_ops *ops, ifl_error *err) {
    *out = NULL;
    if (!(options->share >= 0.0 && options->share <= 1.0 && options->share_swapped >= 0.0 &&
          options->share_swapped <= 1.0))
        return ifl_fail(err, IFL_USAGE,
                        "parity.audit %g, parity.audit_swapped %g: wanted shares from 0 to 1",
                        options->share, options->share_swapped);
    ifl_audit *audit = ifl_alloc(1, sizeof *audit);
    if (!audit) return ifl_fail(err, IFL_NOMEM, "audit: out of memory");
    audit->model = model;
    audit->options = *options;
    ifl_status st = ifl_held_versions_open(&audit->held, store, err);
    if (st == IFL_OK)
        st = ifl_workspace_create(&audit->workspace, model, REPLAY_ROWS, pool, ops, err);
    if (st != IFL_OK) {
        ifl_audit_free(audit);
        return st;
    }
    *out = audit;
    return IFL_OK;
}

void ifl_audit_free(ifl_audit *audit) {
    if (!audit) return;
    ifl_held_versions_close(&audit->held);
    ifl_workspace_free(audit->workspace);
    ifl_free(audit);
}

bool ifl_audit_selects(const ifl_audit *audit, const ifl_trajectory *traj) {
    ifl_rng_key key = {audit->options.seed, traj->task_serial, IFL_RNG_AUDIT};
    double share = audit->options.share;
    if (traj->n_runs > 1 && audit->options.share_swapped > share)
        share = audit->options.share_swapped;
    return (double)ifl_rng_uniform(&key, (uint64_t)traj->sample, 0) < share;
}

/* Flips the lowest bit of the first recorded log-prob of a policy token that is not zero (a zero
 * would become a positive number, which no record may hold). */
static bool logprobs_flip_bit(const ifl_trajectory *traj, float *logprobs) {
    for (int32_t r = 0; r < traj->n_runs; r++)
        for (int32_t t = traj->runs[r].begin; t < traj->runs[r].begin + traj->runs[r].n_tokens;
             t++) {
            if (logprobs[t] == 0.0f) continue;
            uint32_t bits;
            memcpy(&bits, &logprobs[t], sizeof bits);
            bits ^= 1u;
            memcpy(&logprobs[t], &bits, sizeof bits);
            return true;
        }
    return false;
}

static int64_t count_after_swap_differing(const ifl_trajectory *traj, const float *replayed) {
    int64_t n = 0;
    for (int32_t r = 1; r < traj->n_runs; r++) {
        const ifl_version_run *run = &traj->runs[r];
        if (run->version == traj->runs[0].version) continue;
        for (int32_t t = run->begin; t < run->begin + run->n_tokens; t++)
            n += memcmp(&traj->logprobs[t], &replayed[t], sizeof(float)) != 0;
    }
    return n;
}

static ifl_status audit_replay(ifl_audit *audit, const ifl_trajectory *traj, float *replayed,
                               ifl_error *err) {
    ifl_audit_counts *counts = &audit->counts;
    ifl_replay_result result;
    ifl_status st = ifl_replay(audit->workspace, ifl_held_versions_get, &audit->held, traj,
                               replayed, &result, err);
    if (st != IFL_OK) {
        ifl_error_wrap(err, "audit of task serial %llu, sample %d",
                       (unsigned long long)traj->task_serial, traj->sample);
        return st;
    }
    counts->n_trajectories++;
    counts->tokens_checked += result.n_checked;
    counts->tokens_after_swap += result.n_after_swap;
    if (result.n_differing == 0) return IFL_OK;
    if (counts->tokens_differing == 0)
        counts->first = ifl_difference_of(traj, result.first_differing, result.first_recorded,
                                          result.first_replayed);
    counts->tokens_differing += result.n_differing;
    counts->tokens_after_swap_differing += count_after_swap_differing(traj, replayed);
    return IFL_OK;
}

ifl_status ifl_audit_check(ifl_audit *audit, const ifl_trajectory *traj, ifl_error *err) {
    if (!ifl_hash_equal(traj->profile, audit->model->profile)) {
        audit->counts.n_foreign++;
        audit->counts.tokens_foreign += ifl_trajectory_n_policy(traj);
        return IFL_OK;
    }
    if (!ifl_held_versions_add_all(&audit->held, traj)) {
        ifl_held_versions_release(&audit->held);
        audit->counts.n_not_checkable++;
        audit->counts.tokens_not_checkable += ifl_trajectory_n_policy(traj);
        return IFL_OK;
    }
    ifl_status st = IFL_OK;
    float *replayed = ifl_alloc((size_t)traj->n_tokens, sizeof *replayed);
    float *flipped = NULL;
    ifl_trajectory view = *traj; /* borrows every column of traj; never freed */
    if (!replayed) IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "audit: out of memory"), done);
    if (audit->options.flip_bit && !audit->flipped) {
        flipped = ifl_alloc((size_t)traj->n_tokens, sizeof *flipped);
        if (!flipped) IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "audit: out of memory"), done);
        memcpy(flipped, traj->logprobs, (size_t)traj->n_tokens * sizeof *flipped);
        audit->flipped = logprobs_flip_bit(traj, flipped);
        view.logprobs = flipped;
    }
    st = audit_replay(audit, &view, replayed, err);
done:
    ifl_held_versions_release(&audit->held);
    ifl_free(replayed);
    ifl_free(flipped);
    return st;
}

ifl_audit_counts ifl_audit_counts_get(const ifl_audit *audit) {
    return audit->counts;
}

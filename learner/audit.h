/* The parity audit: trained trajectories are replayed from their own KV record under the versions
 * that sampled their tokens, and the log-probs must have the same 32 bits. */
#ifndef IFL_LEARNER_AUDIT_H
#define IFL_LEARNER_AUDIT_H

#include "learner/difference.h"
#include "learner/version_store.h"

typedef struct ifl_audit ifl_audit;

typedef struct ifl_audit_options {
    double share; /* of trajectories, [0, 1]; drawn by (seed, task serial, sample): the same choice
                   * in every repeat of a run, whatever the order of arrival */
    double share_swapped; /* of those with tokens of more than one version, where it is more */
    uint64_t seed;
    bool flip_bit; /* test hook: the lowest bit of one recorded log-prob of the first audited
                    * trajectory is flipped before the comparison, in a copy */
} ifl_audit_options;

typedef struct ifl_audit_counts {
    int64_t n_trajectories; /* replayed to the end */
    int64_t tokens_checked;
    int64_t tokens_differing;
    int64_t tokens_after_swap; /* of tokens_checked: sampled by a version other than their
                                * trajectory's first */
    int64_t tokens_after_swap_differing;
    int64_t n_not_checkable; /* trajectories with a version that has left the store */
    int64_t tokens_not_checkable;
    int64_t n_foreign;      /* trajectories of another numerics profile: not comparable */
    int64_t tokens_foreign; /* policy tokens of those */
    ifl_difference first;   /* when tokens_differing > 0 */
} ifl_audit_counts;

/* Borrows all arguments. Not thread-safe. */
ifl_status ifl_audit_create(ifl_audit **out, const ifl_model *model, ifl_version_store *store,
                            const ifl_audit_options *options, ifl_thread_pool *pool,
                            const ifl_ops *ops, ifl_error *err);
void ifl_audit_free(ifl_audit *audit); /* NULL is fine */

/* Whether this trajectory is among the audited share. Pure in (seed, task serial, sample). */
bool ifl_audit_selects(const ifl_audit *audit, const ifl_trajectory *traj);

/* Replays one trajectory (that passed ifl_trajectory_check) and adds to the counts. A difference is
 * a count, not an error; an error is a record that cannot be replayed (IFL_FORMAT) or memory. */
ifl_status ifl_audit_check(ifl_audit *audit, const ifl_trajectory *traj, ifl_error *err);

ifl_audit_counts ifl_audit_counts_get(const ifl_audit *audit);

#endif

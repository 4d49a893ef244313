/* The train guard: in every step the learner's own forward gives log-probs that the actor has
 * recorded already. Where a token was sampled by the very weights that are being trained, over a KV
 * cache that these weights alone had built, both must have the same 32 bits: |actor - learner| = 0,
 * and whatever is left of the importance ratio is the policy's own movement. Costs no forward pass;
 * the audit (learner/audit.h) covers the other tokens, by replay, for a share. */
#ifndef IFL_LEARNER_GUARD_H
#define IFL_LEARNER_GUARD_H

#include "learner/difference.h"
#include "learner/pack.h"

typedef struct ifl_guard_counts {
    int64_t tokens_checked;   /* at lag 0, and covered by the contract */
    int64_t tokens_differing; /* of them */
    ifl_difference first;     /* when there is one */
} ifl_guard_counts;

/* covered[t] = 1 for those of the first n tokens of `traj` (that passed ifl_trajectory_check) that
 * `version` sampled while all positions before them held KV that `version` had computed; 0 for the
 * others. n <= n_tokens. */
void ifl_guard_cover(const ifl_trajectory *traj, int64_t version, uint8_t *covered, int32_t n);

/* Compares the recorded log-probs of a pack's covered tokens with the forward's, adding to
 * `counts`. items: those that the packs were built from; foreign[i] = 1: of another numerics
 * profile, not compared. covered: scratch of n_covered bytes, more than any target's position.
 * flip: a test's, the lowest bit of one recorded value is flipped in a copy; set to false when that
 * has been done. */
void ifl_guard_check(const ifl_packed *packed, const ifl_pack_item *items,
                     const ifl_logprob *logprobs, const uint8_t *foreign, int64_t version,
                     uint8_t *covered, int32_t n_covered, bool *flip, ifl_guard_counts *counts);

#endif

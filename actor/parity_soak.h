/* Parity under load: the engine with random arrivals, preemption, paging, chunking, swaps, thread
 * counts and instruction sets, round after round, and every log-prob it recorded computed again
 * from the record. Used by `inflight parity --soak` and by the test suite. */
#ifndef IFL_ACTOR_PARITY_SOAK_H
#define IFL_ACTOR_PARITY_SOAK_H

#include <stdatomic.h>
#include <stdio.h>

#include "kernels/model.h"

typedef struct ifl_soak_options {
    uint64_t seed;       /* of everything random; the same seed makes the same rounds */
    double seconds;      /* no new work after it; at least one group runs */
    int32_t threads_max; /* 0 = one per CPU */
    const ifl_ops *ops;  /* NULL = all that are fast enough, in turn */
    bool mutate; /* the engine's products split k (ifl_parity_mutant); the replay's do not */
    const atomic_bool *stop; /* ends it between two steps; NULL = never */
    FILE *progress;          /* a line every few seconds; NULL = none */
} ifl_soak_options;

typedef struct ifl_soak_result {
    int64_t rounds, trajectories, tokens, differing; /* tokens: compared */
    int64_t tokens_after_swap, swaps, preemptions, tokens_rebuilt, tokens_shared;
    double seconds;
    char first[512]; /* the first difference, and the first layer that shows one; "" none */
} ifl_soak_result;

/* Differing bits are no error: they are in the result. Nor is a stop. */
ifl_status ifl_parity_soak(const ifl_model *model, const ifl_weights *weights,
                           const ifl_soak_options *options, ifl_soak_result *result,
                           ifl_error *err);

#endif

/* The actor process: leases in, trajectories out, new weights taken in between two decode steps.
 *
 *   transport thread    sockets, heartbeats, resending
 *   receiver thread     fetches announced weights into the shadow buffer and verifies them
 *   this thread         engine steps; between two of them: swap, leases, rewards, outbox
 *   reward workers      processes
 *
 * An actor holds nothing that a run could not lose: whatever it has not handed over is leased
 * again. */
#ifndef IFL_ACTOR_ACTOR_H
#define IFL_ACTOR_ACTOR_H

#include <stdatomic.h>

#include "actor/engine.h"

typedef struct ifl_actor_options {
    const ifl_config *config; /* borrowed, as all below */
    const ifl_model *model;   /* the architecture; weights come from the learner */
    const ifl_tokenizer *tokenizer;
    const char *connect; /* the learner's control endpoint */
    const char *name;
    const atomic_bool *stop; /* true: hand back what is leased and end */
} ifl_actor_options;

/* Runs until the learner says BYE (IFL_OK), *stop (IFL_OK), or the link is gone for good
 * (IFL_PEER), or the learner does not let its key in (IFL_AUTH). */
ifl_status ifl_actor_run(const ifl_actor_options *options, ifl_error *err);

/* What it is going to hold, bytes: two sets of weights, KV cache, engine scratch. */
int64_t ifl_actor_bytes(const ifl_config *config, const ifl_model *model, int n_threads);

#endif

/* The learner process: owns the masters, the optimizer, the task cursor, the books and the run
 * folder.
 *
 *   desk thread       leases, trajectories, acknowledgements (learner/dispatch.h)
 *   transport thread  sockets;  publisher thread: manifests and chunks
 *   this thread       take groups -> step -> publish -> audit -> log, and evaluations in between */
#ifndef IFL_LEARNER_LEARNER_H
#define IFL_LEARNER_LEARNER_H

#include <stdatomic.h>
#include <stdio.h>

#include "common/run_dir.h"
#include "common/tokenizer.h"
#include "kernels/model.h"

typedef struct ifl_learner_options {
    const ifl_config *config; /* borrowed, as all below */
    const ifl_model *model;
    ifl_weights **start; /* version 0; freed and set to NULL once the masters are made, unless it is
                          * the reference */
    const ifl_weights *reference; /* kl.reference's, of the same model; NULL when that is empty */
    const ifl_tokenizer *tokenizer;
    const ifl_run_dir *run; /* created and locked */
    const char *bind;
    const char *keys;               /* folder (common/keys.h); NULL or "" = none */
    const char *local_key;          /* public key of actors that this process starts; NULL = none */
    const atomic_uint *keys_reread; /* see ifl_server_options; NULL = never */
    const atomic_bool *stop;        /* true: end in order, with a checkpoint */
    const atomic_bool *hopeless;    /* true: no actor will ever come (again); NULL = never */
    FILE *status;                   /* live status; NULL = none */
} ifl_learner_options;

/* Runs to run.steps. IFL_STOPPED after an orderly stop. Writes metrics, rollouts, checkpoints and
 * summary.json into the run folder, in both cases. IFL_PARITY when an audited log-prob had other
 * bits. */
ifl_status ifl_learner_run(const ifl_learner_options *options, ifl_error *err);

/* What it is going to hold, bytes. */
typedef struct ifl_learner_plan {
    int64_t optimizer, trainer, versions, publisher, audit, reference;
    int64_t ledger;
    int64_t kept; /* kept sets of truncated answers that wait or train, at their largest */
} ifl_learner_plan;
ifl_learner_plan ifl_learner_memory(const ifl_config *config, const ifl_model *model,
                                    int n_threads);

#endif

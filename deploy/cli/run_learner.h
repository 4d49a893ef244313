/* What `inflight train` and `inflight learner` have in common: model, memory plan, run folder,
 * learner. */
#ifndef IFL_CLI_RUN_LEARNER_H
#define IFL_CLI_RUN_LEARNER_H

#include "deploy/cli/options.h"

/* Runs the learner of options->config; with `local_actors` also starts actor.count actors on this
 * host. SIGINT and SIGTERM end the run after the current step, with a checkpoint. */
ifl_status ifl_run_learner(const ifl_options *options, bool local_actors, ifl_error *err);

/* Options of both beside the common ones. */
extern const struct argp_option ifl_run_learner_extra[];
extern const ifl_option_key ifl_run_learner_keys[];

/* --dry-run: the resolved configuration, derived numbers, and one rendered training example with
 * its token ids. An ifl_command_work; `user` is not read. */
ifl_status ifl_dry_run_training(const ifl_options *options, void *user, ifl_error *err);

#endif

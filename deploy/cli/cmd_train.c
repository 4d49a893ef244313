#include "deploy/cli/commands.h"
#include "deploy/cli/run_learner.h"

static ifl_status train_work(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    return ifl_run_learner(options, true, err);
}

int ifl_cmd_train(int argc, char **argv) {
    static const ifl_options_spec spec = {
        .doc =
            "Trains a policy: starts a learner and actor.count local actors, shows progress, and "
            "writes "
            "runs/<run.name>/ (config.yaml, metrics.jsonl, rollouts/, checkpoints/, summary.json, "
            "logs/). Ctrl-C or SIGTERM ends it in order, with a checkpoint and status 75; "
            "run.resume=true goes on.",
        .extra = ifl_run_learner_extra,
        .keys = ifl_run_learner_keys,
        .work = train_work,
        .dry_run = ifl_dry_run_training,
    };
    return ifl_options_run(argc, argv, &spec);
}

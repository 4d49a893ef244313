#include "deploy/cli/commands.h"
#include "deploy/cli/run_learner.h"

int ifl_cmd_train(int argc, char **argv) {
    static const ifl_options_spec spec = {
        .doc =
            "Trains a policy: starts a learner and actor.count local actors, shows progress, and "
            "writes "
            "runs/<run.name>/ (config.yaml, metrics.jsonl, rollouts/, checkpoints/, summary.json, "
            "logs/). Ctrl-C or SIGTERM ends it in order, with a checkpoint and status 75; "
            "run.resume=true goes on.",
    };
    ifl_options options = {0};
    ifl_error err = {0};
    ifl_status st = ifl_options_parse(&options, argc, argv, &spec, &err);
    if (st == IFL_OK && options.dry_run)
        st = ifl_dry_run(&options, stdout, &err);
    else if (st == IFL_OK)
        st = ifl_run_learner(&options, true, &err);
    ifl_options_free(&options);
    return ifl_options_exit(st, argv[0], &err);
}

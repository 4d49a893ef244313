#include "deploy/cli/commands.h"
#include "deploy/cli/run_learner.h"

static ifl_status train_work(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    return ifl_run_learner(options, true, err);
}

enum { KEY_BIND = 'b', KEY_KEYS = 'k' };

int ifl_cmd_train(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"bind", KEY_BIND, "ENDPOINT", 0,
         "transport.bind: where actors connect, e.g. tcp://0.0.0.0:5555", 0},
        {"keys", KEY_KEYS, "FOLDER", 0,
         "transport.keys: whom to let in from other hosts (see inflight keys)", 0},
        {0}};
    static const ifl_option_key keys[] = {
        {KEY_BIND, "transport.bind", NULL}, {KEY_KEYS, "transport.keys", NULL}, {0}};
    static const ifl_options_spec spec = {
        .doc =
            "Trains a policy: starts a learner and actor.count local actors, shows progress, and "
            "writes "
            "runs/<run.name>/ (config.yaml, metrics.jsonl, rollouts/, checkpoints/, summary.json, "
            "logs/). Ctrl-C or SIGTERM ends it in order, with a checkpoint and status 75; "
            "run.resume=true goes on.",
        .extra = extra,
        .keys = keys,
        .work = train_work,
        .dry_run = ifl_dry_run_training,
    };
    return ifl_options_run(argc, argv, &spec);
}

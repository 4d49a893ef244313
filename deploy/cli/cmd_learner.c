#include "deploy/cli/commands.h"
#include "deploy/cli/run_learner.h"

static ifl_status learner_work(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    return ifl_run_learner(options, false, err);
}

int ifl_cmd_learner(int argc, char **argv) {
    static const ifl_options_spec spec = {
        .doc =
            "The learner process alone: listens on transport.bind for actors started elsewhere "
            "with "
            "`inflight actor --connect ENDPOINT`. Writes the run folder as `inflight train` does. "
            "SIGHUP has the list of keys read again.",
        .extra = ifl_run_learner_extra,
        .keys = ifl_run_learner_keys,
        .work = learner_work,
        .dry_run = ifl_dry_run_training,
    };
    return ifl_options_run(argc, argv, &spec);
}

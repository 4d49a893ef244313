#include "deploy/cli/commands.h"
#include "deploy/cli/run_learner.h"

int ifl_cmd_learner(int argc, char **argv) {
    static const ifl_options_spec spec = {
        .doc =
            "The learner process alone: listens on transport.bind for actors started elsewhere "
            "with "
            "`inflight actor --connect ENDPOINT`. Writes the run folder as `inflight train` does.",
    };
    ifl_options options = {0};
    ifl_error err = {0};
    ifl_status st = ifl_options_parse(&options, argc, argv, &spec, &err);
    if (st == IFL_OK && options.dry_run)
        st = ifl_dry_run(&options, stdout, &err);
    else if (st == IFL_OK)
        st = ifl_run_learner(&options, false, &err);
    ifl_options_free(&options);
    return ifl_options_exit(st, argv[0], &err);
}

#include "deploy/cli/run_argument.h"

ifl_status ifl_run_argument(ifl_run_dir *out, const ifl_options *options, ifl_error *err) {
    const ifl_config *config = options->config;
    if (options->n_args == 0 && !ifl_options_may_say(options, "run.name"))
        return ifl_fail(err, IFL_USAGE,
                        "got 0 arguments, wanted RUN, or run.name=NAME; see --help");
    return ifl_run_dir_open(out, config->run.dir,
                            options->n_args > 0 ? options->args[0] : config->run.name, err);
}

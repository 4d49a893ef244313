/* The run that a command reads: its argument RUN, or run.name of the configuration. */
#ifndef IFL_CLI_RUN_ARGUMENT_H
#define IFL_CLI_RUN_ARGUMENT_H

#include "common/run_dir.h"
#include "deploy/cli/options.h"

/* RUN is a folder, or a name below run.dir. Without it run.name counts, when --config or run.name=
 * says it; else IFL_USAGE. */
ifl_status ifl_run_argument(ifl_run_dir *out, const ifl_options *options, ifl_error *err);

#endif

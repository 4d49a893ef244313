/* Whether a run's checkers run programs of the policy's, and whether this host can. */
#ifndef IFL_REWARDS_PROGRAMS_H
#define IFL_REWARDS_PROGRAMS_H

#include "common/config.h"
#include "rewards/spec.h"

/* Whether the checker of that name, of the specification or built in, runs programs itself or by
 * one of its parts. Names that are none don't. */
bool ifl_checker_runs_programs(const ifl_spec *spec, const char *name);

/* Whether a configuration names such a checker: reward.checker, reward.route, its sources'. What
 * single tasks name in their files is not looked at. */
ifl_status ifl_config_runs_programs(const ifl_config *config, bool *out, ifl_error *err);

/* Makes a sandbox, runs its canaries, says on standard error which tier that is and why not the
 * one above, and takes it away again. IFL_UNSUPPORTED below reward.sandbox_require, with cause and
 * cure. `program` as in ifl_sandbox_options. */
ifl_status ifl_programs_start(const ifl_config *config, const char *program, ifl_error *err);

/* That, if the configuration asks for it (above). */
ifl_status ifl_programs_start_config(const ifl_config *config, ifl_error *err);

#endif

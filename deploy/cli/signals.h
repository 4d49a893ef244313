/* SIGINT and SIGTERM ask for an orderly end; a second one ends the process at once. */
#ifndef IFL_CLI_SIGNALS_H
#define IFL_CLI_SIGNALS_H

#include <stdatomic.h>

/* Installs the handlers (SIGPIPE is ignored) and returns the flag they set. */
const atomic_bool *ifl_signals_install(void);

/* From now on SIGHUP does not end the process but is counted here. */
const atomic_uint *ifl_signals_count_hangups(void);

#endif

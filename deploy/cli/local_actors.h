/* Actor processes on this host, started and watched by a thread of their own. One that dies is
 * started again, a few times; the learner leases its work again in the meantime. */
#ifndef IFL_CLI_LOCAL_ACTORS_H
#define IFL_CLI_LOCAL_ACTORS_H

#include <sched.h>
#include <stdatomic.h>

#include "common/config.h"

typedef struct ifl_local_actors ifl_local_actors;

typedef struct ifl_local_actors_options {
    int32_t count;
    const char *config_path; /* NULL: none */
    int n_overrides;
    const char *const *overrides; /* handed on */
    const char *connect;
    const char *keys;      /* folder, transport.keys of the actors; "" = none */
    const char *log_dir;   /* actor-<i>.log */
    const char *cpus;      /* actor.cpus, ';' between actors */
    const cpu_set_t *mask; /* of actors that aren't pinned */
} ifl_local_actors_options;

/* Borrows what the options point to until stop. Actors die with this process. */
ifl_status ifl_local_actors_start(ifl_local_actors **out, const ifl_local_actors_options *options,
                                  ifl_error *err);

/* Waits up to two seconds for them to end by themselves, then ends them. NULL is fine. */
void ifl_local_actors_stop(ifl_local_actors *actors);

/* Becomes true when all of them have died and will not be started again. */
const atomic_bool *ifl_local_actors_failed(const ifl_local_actors *actors);

#endif

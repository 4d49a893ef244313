/* The start-up self-test: programs of our own that try to get out, run like any other. Inside
 * rewards/sandbox/ only. */
#ifndef IFL_REWARDS_SANDBOX_CANARY_H
#define IFL_REWARDS_SANDBOX_CANARY_H

#include "rewards/sandbox/sandbox.h"

typedef enum {
    CANARY_NONE,
    CANARY_WRITE_OUTSIDE,
    CANARY_READ_OUTSIDE,
    CANARY_CONNECT,
    CANARY_FORK_OVER_LIMIT,
    CANARY_KILL_PARENT,
    CANARY_SURVIVE_TIMEOUT,
    CANARY_MEMORY_SUM,
    CANARY_NESTED_USER,
    CANARY_COUNT
} canary_kind;

/* Inside: 0 when contained (or it never returns), else the number of the way that was open. */
int canary_inside(canary_kind kind);

/* Outside: runs all of them, or those that a cgroup must hold by itself. IFL_UNSUPPORTED names the
 * first that was not contained. */
ifl_status canary_run_all(ifl_sandbox *sandbox, bool cgroup, ifl_error *err);

#endif

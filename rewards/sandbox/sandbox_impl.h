/* Inside rewards/sandbox/ only. */
#ifndef IFL_REWARDS_SANDBOX_IMPL_H
#define IFL_REWARDS_SANDBOX_IMPL_H

#include <stdatomic.h>

#include "rewards/sandbox/launch.h"

struct ifl_sandbox {
    int control;
    pid_t pid;
    ifl_sandbox_tier tier;
    int32_t n_canaries;
    char above[IFL_ERROR_TEXT_MAX];
    bool tidy;          /* the launcher has a cgroup to take away */
    atomic_bool broken; /* the launcher is gone or doesn't answer */
};

typedef struct run_stream {
    int fd; /* ours, not blocking; -1: closed */
    ifl_sandbox_output *to;
} run_stream;

struct ifl_sandbox_run {
    ifl_sandbox *sandbox;
    ifl_sandbox_limits limits;
    int status_fd, input_fd;
    const char *input;
    size_t n_input;
    int out_fd, err_fd, channel_fd;
    int64_t created_ns, started_ns, ended_ns, killed_ns; /* 0: not yet */
    bool gone, failed, has_status, asked;                /* asked: for its end */
    ifl_run_end end;                                     /* as far as known; KILLED until then */
    int32_t status;
    launch_report failure, used;
};

/* Ends the launcher and with it all runs. */
void sandbox_break(ifl_sandbox *sandbox);

#endif

/* A launcher's own part of the cgroup v2 hierarchy: a node below a group that may be divided, with
 * one leaf for the launcher and one for each run. Inside rewards/sandbox/ only. */
#ifndef IFL_REWARDS_SANDBOX_CGROUP_H
#define IFL_REWARDS_SANDBOX_CGROUP_H

#include <sys/types.h>

#include "rewards/sandbox/sandbox.h"

#define CGROUP_WHY_MAX 256

typedef struct cgroup_node {
    char path[1024];
    int fd; /* of the folder; a lock on it says that the launcher lives */
} cgroup_node;

/* Makes a node that `owner` may divide further, after having removed those whose launchers have
 * died. The group above is the one that this process is in if it was delegated to this user, or
 * for root the top of what is mounted. A group with processes of its own can't be divided: with
 * `move` they go to a leaf of it ("inflight-host"), without it that is a refusal. False: why. */
bool cgroup_node_make(cgroup_node *node, uid_t owner, bool move, char why[CGROUP_WHY_MAX]);

/* Puts the calling process into the launcher's leaf. */
bool cgroup_node_enter(const cgroup_node *node);

/* Kills what is left in there and takes it away. */
void cgroup_node_remove(cgroup_node *node);

/* A leaf for a run with its limits; its folder's descriptor, or -1: errno. */
int cgroup_run_make(int node_fd, uint32_t id, const ifl_sandbox_limits *limits);
bool cgroup_run_remove(int node_fd, uint32_t id); /* false while something lives in there */
bool cgroup_run_kill(int fd);

typedef struct cgroup_use {
    int64_t cpu_us;
    uint64_t memory_bytes; /* without files, the work folder's among them */
    bool out_of_memory;    /* the kernel has killed it for that */
} cgroup_use;
cgroup_use cgroup_run_use(int fd);

#endif

/* Starts this program (or one like it) as a helper process. Inside rewards/ only. */
#ifndef IFL_REWARDS_SPAWN_H
#define IFL_REWARDS_SPAWN_H

#include <stdbool.h>
#include <sys/types.h>

/* Executes `program` with the one argument `command`, with `fd` (above 2) as its stdin and stdout,
 * this process's stderr and no other descriptor, and little of this process's environment; in a
 * process group of its own if asked, else in this one's. Returns 0 or an errno. */
int ifl_spawn_helper(const char *program, const char *command, int fd, bool new_group, pid_t *pid);

/* A descriptor above stderr for the same thing; closes `fd` if it has to move. -1: errno. Our own
 * stdin or stdout may be closed: a socket that got such a number would be overwritten by the
 * spawn's dup2. */
int ifl_fd_above_stdio(int fd);

/* How a process ended, from its wait status: "crashed with signal 11 (Segmentation fault)", "exited
 * with status 1". Returns `out`. */
const char *ifl_wait_text(char out[128], int status);

#endif

/* What trees of processes use, read from a procfs. Inside rewards/sandbox/ only. */
#ifndef IFL_REWARDS_SANDBOX_USAGE_H
#define IFL_REWARDS_SANDBOX_USAGE_H

#include <stdint.h>
#include <sys/types.h>

/* Of all runs; more are left out of the sum, not of the limits. */
#define USAGE_PROCESSES_MAX 4096

typedef struct usage_row {
    pid_t pid, parent;
    int64_t cpu_us; /* with children that were waited for */
    uint64_t resident_bytes;
} usage_row;

typedef struct usage_table {
    int n;
    usage_row rows[USAGE_PROCESSES_MAX];
} usage_table;

typedef struct usage_sum {
    int64_t cpu_us;
    uint64_t resident_bytes;
} usage_sum;

/* All processes that the procfs shows. */
void usage_scan(int proc_fd, usage_table *table);

/* Of `root` and all below it; shared pages count once per process. */
usage_sum usage_of(const usage_table *table, pid_t root);

/* Of the same, with shared pages divided among their users (Pss), in bytes. */
uint64_t usage_shared(int proc_fd, const usage_table *table, pid_t root);

#endif

/* What a sandbox and its launcher say to each other, over SOCK_SEQPACKET: structs, as both ends are
 * one build. Inside rewards/sandbox/ only. */
#ifndef IFL_REWARDS_SANDBOX_LAUNCH_H
#define IFL_REWARDS_SANDBOX_LAUNCH_H

#include <sys/types.h>

#include "rewards/sandbox/sandbox.h"

#define LAUNCH_MAGIC 0x69666c73u
#define LAUNCH_STAGE_MAX 256
#define LAUNCH_WORK "/work"

/* First message, host to launcher. */
typedef struct launch_setup {
    uint32_t magic;
    uint32_t uid_first, n_uids;
    uint32_t require; /* ifl_sandbox_tier */
    char show[IFL_SANDBOX_SHOW_MAX][256];
} launch_setup;

/* The launcher's answer: code 0, or an errno with what failed and what to do. */
typedef struct launch_hello {
    uint32_t magic;
    int32_t code;
    bool cgroup;                  /* runs can have one */
    char stage[LAUNCH_STAGE_MAX]; /* code 0: why not */
} launch_hello;

/* With descriptors: FD_SPEC (memory: strings and files), FD_STATUS (its end of the run's own
 * socket), stdin, stdout, stderr, result, and with `extra` one more. */
enum { FD_SPEC, FD_STATUS, FD_STDIN, FD_STDOUT, FD_STDERR, FD_RESULT, FD_EXTRA, FD_COUNT };

typedef struct launch_request {
    uint32_t magic;
    uint32_t n_argv, n_env, n_files; /* in the memory: NUL-terminated strings, then files */
    uint64_t n_spec;
    int32_t canary;
    bool extra;
    bool keep;   /* IFL_SANDBOX_KEEP stays writable */
    bool cgroup; /* a canary's limits are then the cgroup's alone */
    ifl_sandbox_limits limits;
} launch_request;

/* In the memory: one a file, then name with NUL, then bytes. */
typedef struct launch_file {
    uint64_t n_name, n_bytes;
    uint32_t mode;
} launch_file;

/* Launcher to host, on the run's socket. Shutting the socket down asks for the run's end. */
typedef enum {
    REPORT_FAILED,  /* before the program was executed: code is an errno, stage says where */
    REPORT_STARTED, /* the program has been executed */
    REPORT_ENDED,   /* code: the program's wait status */
    REPORT_MEMORY,  /* killed for the tree's memory */
    REPORT_CPU,     /* killed for the tree's CPU time */
    REPORT_GONE,    /* nothing of it is left; the last */
} report_kind;

typedef struct launch_report {
    uint32_t magic;
    report_kind kind;
    int32_t code;
    int64_t cpu_us;
    int64_t peak_kib;
    char stage[64];
} launch_report;

/* inside.c: the run's init, from the fork in the launcher on. Does not return. `fds` as above, all
 * above 2; the init waits on `go` (a pipe's read end) until its user is mapped. */
_Noreturn void launch_inside(const launch_request *request, const int fds[FD_COUNT], int go);

/* root.c: makes and enters the read-only root; -1: errno, `stage` says where. *proc_fd is a procfs
 * of this pid namespace that is mounted nowhere. */
int launch_root(const launch_setup *setup, int *proc_fd, char stage[LAUNCH_STAGE_MAX]);

/* filter.c: no way back. -1: errno. */
int launch_filter(void);

/* Writes what maps user and group 1000 to ours. `dir_fd` and `who` are a procfs and a pid's name
 * there. */
int launch_map_user(int dir_fd, const char *who, uid_t uid, gid_t gid);

#endif

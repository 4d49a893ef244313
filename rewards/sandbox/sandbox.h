/* The sandbox: runs one program of a policy's making, with limits, out of sight of the host.
 *
 * ifl_sandbox_create starts a launcher (this program, "sandbox-launch"), a small process with one
 * thread that lives in namespaces of its own: user, mount (a read-only root with the runtime and
 * nothing else), pid, net (empty), ipc, uts, cgroup. Every run gets a new set of user, mount, pid,
 * net, ipc and uts namespaces below it, a work folder in memory, an init that reaps, and a program
 * without capabilities behind a system call filter. What a run leaves behind dies with its pid
 * namespace; all runs die with the launcher, and the launcher with its owner's socket.
 *
 * The rule for verdicts: nothing that the program does can look like a failure of the sandbox. A
 * status other than IFL_OK is about the host; all that happens after the program was executed is an
 * ifl_run_end. */
#ifndef IFL_REWARDS_SANDBOX_H
#define IFL_REWARDS_SANDBOX_H

#include "common/trajectory.h"

#define IFL_SANDBOX_SHOW_MAX 8
#define IFL_SANDBOX_RUNS_MAX 64 /* at once in one sandbox */
#define IFL_SANDBOX_SPEC_BYTES_MAX (64u << 20)
#define IFL_SANDBOX_FILES_MAX 16
#define IFL_SANDBOX_ARGS_MAX 64
#define IFL_SANDBOX_OUTPUT_BYTES_MAX (64u << 20)
#define IFL_SANDBOX_KEEP "/keep" /* in memory, from run to run; read-only but for ours */
#define IFL_SANDBOX_KEEP_BYTES ((uint64_t)256 << 20)

typedef struct ifl_sandbox_options {
    const char *program; /* executed with "sandbox-launch"; NULL: /proc/self/exe */
    const char *show[IFL_SANDBOX_SHOW_MAX]; /* folders shown read-only beside the runtime (/usr,
                                               /lib ...), same path inside; NULL ends the list */
    uint32_t uid_first, n_uids; /* started as root: one of these is taken, none that has an account;
                                   n_uids 0: 65200 .. 65455 */
    ifl_sandbox_tier require;   /* the least; NONE: IFL_TIER_NS */
    bool skip_canaries;         /* for tests of the canaries themselves */
} ifl_sandbox_options;

typedef struct ifl_sandbox ifl_sandbox;

/* Starts the launcher and runs the canaries. IFL_UNSUPPORTED when this host cannot isolate as well
 * as required: the text names cause and cure. Any thread may use the sandbox; runs don't wait for
 * each other. */
ifl_status ifl_sandbox_create(ifl_sandbox **out, const ifl_sandbox_options *options,
                              ifl_error *err);
void ifl_sandbox_free(ifl_sandbox *sandbox); /* kills what runs; NULL is fine */
/* What was measured. NS: namespaces, a system call filter and limits; nothing weaker is built.
 * CGROUP: and every run has a cgroup with the sums of memory, processes and CPU time. */
ifl_sandbox_tier ifl_sandbox_measured(const ifl_sandbox *sandbox);
int32_t ifl_sandbox_canaries(const ifl_sandbox *sandbox);  /* how many were contained */
const char *ifl_sandbox_above(const ifl_sandbox *sandbox); /* why not CGROUP; "" if it is */

typedef struct ifl_sandbox_file {
    const char *name; /* in the work folder; letters, digits, '.', '_', '-' */
    const void *bytes;
    size_t n_bytes;
    bool executable;
} ifl_sandbox_file;

typedef struct ifl_sandbox_limits {
    int32_t wall_ms, cpu_ms; /* of the whole tree; CPU is polled, and bounded per process */
    uint64_t memory_bytes;   /* per process of address space, and of Pss summed over the tree */
    uint64_t output_bytes;   /* of stdout, of stderr and of the result, each */
    uint64_t disk_bytes;     /* of the work folder, in memory */
    int32_t disk_files;      /* inodes */
    int32_t processes;       /* with threads */
    int32_t open_files;
} ifl_sandbox_limits;

/* 10 s wall and CPU, 512 MiB, 1 MiB of output, 64 MiB in 1024 files, 32 processes, 64 open files.
 */
ifl_sandbox_limits ifl_sandbox_limits_default(void);

/* What to run. Everything is borrowed until the run is waited for. */
typedef struct ifl_sandbox_spec {
    const char *argv[IFL_SANDBOX_ARGS_MAX + 1]; /* argv[0] is a path inside; NULL-terminated */
    const char *env[IFL_SANDBOX_ARGS_MAX + 1];  /* beside PATH, HOME, TMPDIR, LC_ALL=C.UTF-8,
                                                   TZ=UTC and PYTHONHASHSEED=0 */
    const void *input;                          /* stdin */
    size_t n_input;
    ifl_sandbox_file files[IFL_SANDBOX_FILES_MAX];
    int32_t n_files;
    ifl_sandbox_limits limits;
    /* Two programs may be joined: descriptors (borrowed, 0: none) that take the place of stdin and
     * of the result channel, and one that the program finds as descriptor 4. */
    int input_fd, result_fd, extra_fd;
    bool keep;      /* IFL_SANDBOX_KEEP is writable: never with anything of a policy's */
    int32_t canary; /* canary.h; 0 runs argv */
} ifl_sandbox_spec;

typedef enum {
    IFL_RUN_EXITED,    /* code: exit status */
    IFL_RUN_SIGNALED,  /* code: signal */
    IFL_RUN_WALL,      /* past its time */
    IFL_RUN_CPU,       /* past its CPU time */
    IFL_RUN_MEMORY,    /* past the sum of memory */
    IFL_RUN_OUTPUT,    /* past the bytes of a channel */
    IFL_RUN_VIOLATION, /* a forbidden system call, or its init taken down */
    IFL_RUN_KILLED,    /* by us, because its partner ended (ifl_sandbox_wait) */
} ifl_run_end;
const char *ifl_run_end_name(ifl_run_end end);

typedef struct ifl_sandbox_output {
    char *bytes; /* owned by the result; NUL behind the last; NULL when empty */
    size_t n;
} ifl_sandbox_output;

typedef struct ifl_sandbox_result {
    ifl_run_end end;
    int32_t code;
    ifl_sandbox_output out, err;
    ifl_sandbox_output channel; /* what it wrote to descriptor 3 */
    int64_t wall_us, cpu_us;
    uint64_t peak_bytes; /* largest resident set of one process */
} ifl_sandbox_result;

void ifl_sandbox_result_clear(ifl_sandbox_result *result);

typedef struct ifl_sandbox_run ifl_sandbox_run;

/* Starts a run. IFL_PEER when the launcher is gone (create a new sandbox), IFL_FULL past
 * IFL_SANDBOX_RUNS_MAX. */
ifl_status ifl_sandbox_start(ifl_sandbox *sandbox, const ifl_sandbox_spec *spec,
                             ifl_sandbox_run **out, ifl_error *err);

/* Feeds, drains and waits for n runs (at most 4) together, each to its own limits; when runs[0] has
 * ended the others are KILLED. Frees the runs whatever happens, after the last of their processes
 * is gone; results are to be cleared by the caller, also after an error. */
ifl_status ifl_sandbox_wait(ifl_sandbox_run **runs, int32_t n, ifl_sandbox_result *results,
                            ifl_error *err);

/* Start and wait. */
ifl_status ifl_sandbox_execute(ifl_sandbox *sandbox, const ifl_sandbox_spec *spec,
                               ifl_sandbox_result *result, ifl_error *err);

/* What the launcher process runs: requests from `fd` until end of file. Returns its exit code. */
int ifl_sandbox_launch_main(int fd);

#endif

#include "rewards/sandbox/canary.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "rewards/sandbox/sandbox_impl.h"

#define CANARY_PROCESSES 8
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CANARY_MEMORY (1u << 30) /* each process has a sanitizer's books beside its own */
#else
#define CANARY_MEMORY (128u << 20) /* this program with its libraries has a third of it mapped */
#endif
#define CANARY_PIECE (1u << 20)

static void pause_ms(int ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* 0, or the number (from 1) of the first path that could be opened. */
static int try_open(const char *const *paths, int flags) {
    for (int i = 0; paths[i]; i++) {
        int fd = open(paths[i], flags | O_CLOEXEC, 0600);
        if (fd >= 0) return i + 1;
    }
    return 0;
}

static int try_connect(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd >= 0) return 1;
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd >= 0) return 2;
    return socket(AF_UNIX, SOCK_STREAM, 0) >= 0 ? 3 : 0;
}

/* Children that wait; 1 when more than the limit could be had. */
static int try_forks(void) {
    int n = 0;
    while (n < 4 * CANARY_PROCESSES) {
        pid_t pid = fork();
        if (pid < 0) break;
        if (pid == 0) {
            pause_ms(60000);
            _exit(0);
        }
        n++;
    }
    return n >= CANARY_PROCESSES ? 1 : n == 0 ? 2 : 0;
}

static int try_kill(void) {
    pid_t parent = getppid();
    kill(parent, SIGKILL);
    kill(parent, SIGSTOP);
    pause_ms(5);
    if (getppid() != parent) return 1;
    return kill(parent, 0) ? 2 : 0; /* still there, or this canary has sung for nobody */
}

/* In a session of its own, deaf to signals, its parent gone. */
static int try_survive(void) {
    for (int i = 0; i < 3; i++) {
        if (fork() != 0) continue;
        setsid();
        for (int s = 1; s < NSIG; s++)
            signal(s, SIG_IGN);
        if (fork() != 0) _exit(0);
        for (;;)
            pause_ms(1000);
    }
    for (;;)
        pause_ms(1000);
}

/* Each below the limit of a process, together far above that of the run. */
static int try_memory(void) {
    for (int i = 0; i < CANARY_PROCESSES - 1; i++) {
        if (fork() != 0) continue;
        for (size_t n = 0; n < CANARY_MEMORY / 2; n += CANARY_PIECE) {
            char *bytes = mmap(NULL, CANARY_PIECE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (bytes == MAP_FAILED) break;
            memset(bytes, 1, CANARY_PIECE);
        }
        pause_ms(60000);
        _exit(0);
    }
    pause_ms(60000);
    return 1;
}

int canary_inside(canary_kind kind) {
    static const char *const places[] = {"/canary",    "/usr/canary",  "/etc/canary", "/dev/canary",
                                         "/../canary", "/keep/canary", NULL};
    static const char *const secrets[] = {"/etc/passwd",
                                          "/etc/shadow",
                                          "/proc/1/environ",
                                          "/proc/self/maps",
                                          "/root",
                                          "/home",
                                          "/sys",
                                          "/run",
                                          "/var",
                                          NULL};
    switch (kind) {
    case CANARY_WRITE_OUTSIDE:
        return try_open(places, O_CREAT | O_WRONLY);
    case CANARY_READ_OUTSIDE:
        return try_open(secrets, O_RDONLY);
    case CANARY_CONNECT:
        return try_connect();
    case CANARY_FORK_OVER_LIMIT:
        return try_forks();
    case CANARY_KILL_PARENT:
        return try_kill();
    case CANARY_SURVIVE_TIMEOUT:
        return try_survive();
    case CANARY_MEMORY_SUM:
        return try_memory();
    case CANARY_NESTED_USER:
        return syscall(SYS_unshare, CLONE_NEWUSER) == 0 ? 1 : 0;
    default:
        return 99;
    }
}

ifl_status canary_run_all(ifl_sandbox *sandbox, bool cgroup, ifl_error *err) {
    static const struct {
        const char *name;
        ifl_run_end wanted;
        bool cgroup;
    } rows[CANARY_COUNT] = {
        [CANARY_WRITE_OUTSIDE] = {"write outside", IFL_RUN_EXITED},
        [CANARY_READ_OUTSIDE] = {"read outside", IFL_RUN_EXITED},
        [CANARY_CONNECT] = {"connect", IFL_RUN_EXITED},
        [CANARY_FORK_OVER_LIMIT] = {"fork over the limit", IFL_RUN_EXITED, true},
        [CANARY_KILL_PARENT] = {"kill the parent", IFL_RUN_EXITED},
        [CANARY_SURVIVE_TIMEOUT] = {"survive the time-out", IFL_RUN_WALL, true},
        [CANARY_MEMORY_SUM] = {"memory in sum", IFL_RUN_MEMORY, true},
        [CANARY_NESTED_USER] = {"nested user namespace", IFL_RUN_VIOLATION},
    };
    for (int kind = 1; kind < CANARY_COUNT; kind++) {
        if (cgroup && !rows[kind].cgroup) continue;
        ifl_sandbox_spec spec = {.canary = kind, .limits = ifl_sandbox_limits_default()};
        spec.limits.processes = CANARY_PROCESSES;
        spec.limits.memory_bytes = CANARY_MEMORY;
        if (kind == CANARY_SURVIVE_TIMEOUT) spec.limits.wall_ms = 50;
        ifl_sandbox_result result;
        ifl_status st = ifl_sandbox_execute(sandbox, &spec, &result, err);
        ifl_run_end end = result.end;
        int code = result.code;
        ifl_sandbox_result_clear(&result);
        if (st != IFL_OK) {
            ifl_error_wrap(err, "start-up test '%s'", rows[kind].name);
            return st;
        }
        if (end != rows[kind].wanted || (end == IFL_RUN_EXITED && code != 0))
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "rewards: the sandbox does not hold on this host: start-up test '%s' "
                            "ended as '%s' with %d, wanted '%s' with 0%s; use a remote checker",
                            rows[kind].name, ifl_run_end_name(end), code,
                            ifl_run_end_name(rows[kind].wanted),
                            cgroup ? " by its cgroup alone" : "");
        sandbox->n_canaries++;
    }
    return IFL_OK;
}

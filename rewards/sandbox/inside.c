/* One run, from inside its namespaces: the init that reaps, and the program below it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rewards/sandbox/canary.h"
#include "rewards/sandbox/launch.h"

#define FD_BASE 10   /* where the init keeps its descriptors */
#define FD_ASIDE 500 /* out of the way while they move there; the launcher has fewer */
#define FD_GO (FD_BASE + FD_COUNT)
#define FD_SYNC (FD_GO + 1)
#define EXIT_NO_EXEC 127

static void report(report_kind kind, int code, const char *stage) {
    launch_report r = {.magic = LAUNCH_MAGIC, .kind = kind, .code = code};
    snprintf(r.stage, sizeof r.stage, "%s", stage);
    (void)!send(FD_BASE + FD_STATUS, &r, sizeof r, MSG_NOSIGNAL);
}

static _Noreturn void give_up(const char *stage) {
    report(REPORT_FAILED, errno, stage);
    _exit(EXIT_NO_EXEC);
}

/* Moves the run's descriptors to FD_BASE.. and closes all others, the launcher's among them. */
static bool descriptors_settle(const int fds[FD_COUNT], int go, bool extra) {
    int all[FD_COUNT + 1], n = 0;
    for (int i = 0; i < FD_COUNT; i++)
        all[n++] = i == FD_EXTRA && !extra ? -1 : fds[i];
    all[n++] = go;
    for (int i = 0; i < n; i++)
        if (all[i] >= 0 && (all[i] = fcntl(all[i], F_DUPFD_CLOEXEC, FD_ASIDE)) < 0) return false;
    for (int i = 0; i < n; i++)
        if (all[i] >= 0 && dup3(all[i], FD_BASE + i, O_CLOEXEC) < 0) return false;
    return !syscall(SYS_close_range, 0, FD_BASE - 1, 0) &&
           !syscall(SYS_close_range, FD_GO + 1, ~0u, 0) &&
           (extra || !close(FD_BASE + FD_EXTRA) || errno == EBADF);
}

static bool write_all(int fd, const char *bytes, uint64_t n) {
    while (n > 0) {
        ssize_t put = write(fd, bytes, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        bytes += put;
        n -= (uint64_t)put;
    }
    return true;
}

/* The folder of its own, in memory; the one that stays can be read. */
static void work_make(const launch_request *request) {
    char options[128];
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%d,mode=0700",
             (unsigned long long)request->limits.disk_bytes, request->limits.disk_files);
    if (mount("work", LAUNCH_WORK, "tmpfs", MS_NOSUID | MS_NODEV, options))
        give_up("mount of the work folder");
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    if (!request->keep &&
        syscall(SYS_mount_setattr, AT_FDCWD, IFL_SANDBOX_KEEP, 0, &attr, sizeof attr))
        give_up("read-only mount of the kept folder");
    if (chdir(LAUNCH_WORK)) give_up("chdir to the work folder");
}

/* Takes argv and env apart, and puts the files where they belong. */
static void spec_unpack(const launch_request *request, char *argv[], char *env[]) {
    char *at =
        mmap(NULL, request->n_spec, PROT_READ | PROT_WRITE, MAP_PRIVATE, FD_BASE + FD_SPEC, 0);
    if (at == MAP_FAILED) give_up("mapping the request");
    for (uint32_t i = 0; i < request->n_argv + request->n_env; i++) {
        if (i < request->n_argv)
            argv[i] = at;
        else
            env[i - request->n_argv] = at;
        at += strlen(at) + 1;
    }
    argv[request->n_argv] = env[request->n_env] = NULL;
    for (uint32_t i = 0; i < request->n_files; i++) {
        launch_file head;
        memcpy(&head, at, sizeof head);
        at += sizeof head;
        int fd = open(at, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, head.mode);
        if (fd < 0) give_up("creating a file in the work folder");
        at += head.n_name;
        if (!write_all(fd, at, head.n_bytes)) give_up("writing a file into the work folder");
        at += head.n_bytes;
        close(fd);
    }
}

/* Lowers both limits; never raises one. */
static bool limit(int which, uint64_t value) {
    struct rlimit now, wanted = {value, value};
    if (getrlimit(which, &now)) return false;
    if (wanted.rlim_max > now.rlim_max) wanted.rlim_cur = wanted.rlim_max = now.rlim_max;
    return !setrlimit(which, &wanted);
}

/* Inside the user namespace: RLIMIT_NPROC counts per user and namespace, so neighbours don't. */
static bool limits_set(const ifl_sandbox_limits *limits, bool canary, bool cgroup) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    bool address_space = !canary; /* a canary is this program, and sanitizers map terabytes */
#else
    bool address_space = true;
#endif
    uint64_t cpu_s = (uint64_t)(limits->cpu_ms + 999) / 1000 + 1;
    return limit(RLIMIT_CORE, 0) && limit(RLIMIT_CPU, cpu_s) &&
           (!address_space || limit(RLIMIT_AS, limits->memory_bytes)) &&
           limit(RLIMIT_FSIZE, limits->disk_bytes) &&
           limit(RLIMIT_NOFILE, (uint64_t)limits->open_files) &&
           ((canary && cgroup) || /* which has to hold by itself */
            limit(RLIMIT_NPROC, (uint64_t)limits->processes + 1)) && /* the init is one */
           limit(RLIMIT_MEMLOCK, 0) &&
           limit(RLIMIT_MSGQUEUE, 0) && limit(RLIMIT_SIGPENDING, 256) && limit(RLIMIT_NICE, 0) &&
           limit(RLIMIT_RTPRIO, 0);
}

static bool capabilities_drop(void) {
    for (int cap = 0; cap < 64; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno != EINVAL) return false;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL) return false;
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {0};
    return !syscall(SYS_capset, &head, none);
}

static bool channels_set(bool extra) {
    static const int from[] = {FD_STDIN, FD_STDOUT, FD_STDERR, FD_RESULT, FD_EXTRA};
    for (int i = 0; i < 4 + (extra ? 1 : 0); i++)
        if (dup2(FD_BASE + from[i], i) != i) return false;
    return true;
}

/* Why the program was not executed. One out of the work folder may be made so that it can't be (an
 * interpreter that isn't there, say), which must not look like a failure of the host. */
typedef struct exec_failure {
    int code;
    bool program;
} exec_failure;

static _Noreturn void program_run(const launch_request *request, char *argv[], char *env[]) {
    exec_failure failed = {0};
    struct sigaction usual = {.sa_handler = SIG_DFL};
    for (int i = 1; i < NSIG; i++)
        sigaction(i, &usual, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    umask(022);
    setsid();
    if (channels_set(request->extra) &&
        limits_set(&request->limits, request->canary, request->cgroup) && capabilities_drop() &&
        !launch_filter()) {
        if (request->canary) {
            syscall(SYS_close_range, FD_BASE, ~0u, 0);
            _exit(canary_inside((canary_kind)request->canary));
        }
        execve(argv[0], argv, env);
        failed.program = strncmp(argv[0], LAUNCH_WORK "/", strlen(LAUNCH_WORK) + 1) == 0;
    }
    failed.code = errno;
    (void)!write(FD_SYNC, &failed, sizeof failed);
    _exit(EXIT_NO_EXEC);
}

/* Reaps until the program itself has ended. Ending the init ends all that is left. */
static _Noreturn void reap(pid_t program) {
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0 && errno == EINTR) continue;
        if (pid < 0) _exit(EXIT_FAILURE);
        if (pid != program) continue;
        report(REPORT_ENDED, status, "");
        _exit(EXIT_SUCCESS);
    }
}

_Noreturn void launch_inside(const launch_request *request, const int fds[FD_COUNT], int go) {
    char *argv[IFL_SANDBOX_ARGS_MAX + 1], *env[2 * IFL_SANDBOX_ARGS_MAX + 1], byte;
    if (!descriptors_settle(fds, go, request->extra)) _exit(EXIT_NO_EXEC);
    if (read(FD_GO, &byte, 1) != 1) _exit(EXIT_NO_EXEC); /* the launcher could not map the user */
    close(FD_GO);
    work_make(request);
    spec_unpack(request, argv, env);
    /* A program that could trace its init would hold the run open until the wall limit. */
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) give_up("PR_SET_DUMPABLE");
    int sync[2];
    exec_failure failed = {0};
    if (pipe2(sync, O_CLOEXEC)) give_up("pipe");
    pid_t program = fork();
    if (program < 0) give_up("fork");
    if (program == 0) {
        if (dup3(sync[1], FD_SYNC, O_CLOEXEC) < 0 && sync[1] != FD_SYNC) _exit(EXIT_NO_EXEC);
        program_run(request, argv, env);
    }
    close(sync[1]);
    for (int i = 0; i < FD_COUNT; i++)
        if (i != FD_STATUS) close(FD_BASE + i);
    ssize_t n = read(sync[0], &failed, sizeof failed);
    if (n != 0 && !failed.program) {
        errno = n == (ssize_t)sizeof failed ? failed.code : EIO;
        give_up("executing the program");
    }
    report(REPORT_STARTED, 0, "");
    reap(program);
}

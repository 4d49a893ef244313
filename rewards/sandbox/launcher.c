/* The launcher: one thread, pid 1 of its pid namespace, that starts runs, watches what they use and
 * kills them when their owner says so. It holds no task's data beyond what a run is given. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <poll.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "rewards/sandbox/cgroup.h"
#include "rewards/sandbox/launch.h"
#include "rewards/sandbox/usage.h"

#define WATCH_MS 20 /* between looks at what runs use */
#define UID_FIRST 65200
#define N_UIDS 256

typedef struct run {
    pid_t pid; /* its init, in our namespace; 0: a free place */
    int status_fd, pid_fd;
    int cgroup_fd; /* -1: none */
    uint32_t cgroup_id;
    ifl_sandbox_limits limits;
    bool canary, killed;
} run;

typedef struct launcher {
    int control, signals, proc;
    int node_fd; /* of the launcher's cgroup; -1: none */
    uint32_t n_cgroups;
    run runs[IFL_SANDBOX_RUNS_MAX];
    int n_runs;
} launcher;

static void report(int fd, report_kind kind, int code, const char *stage,
                   const struct rusage *used) {
    launch_report r = {.magic = LAUNCH_MAGIC, .kind = kind, .code = code};
    snprintf(r.stage, sizeof r.stage, "%s", stage);
    if (used) {
        r.cpu_us = (used->ru_utime.tv_sec + used->ru_stime.tv_sec) * 1000000 +
                   used->ru_utime.tv_usec + used->ru_stime.tv_usec;
        r.peak_kib = used->ru_maxrss;
    }
    (void)!send(fd, &r, sizeof r, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* A canary tells whether the cgroup does it alone. */
static void run_kill(run *r) {
    if (r->killed) return;
    bool done = r->cgroup_fd >= 0 && cgroup_run_kill(r->cgroup_fd);
    if (!done && r->canary && r->cgroup_fd >= 0)
        report(r->status_fd, REPORT_FAILED, errno, "cgroup.kill", NULL);
    if (!done || !r->canary) syscall(SYS_pidfd_send_signal, r->pid_fd, SIGKILL, NULL, 0);
    r->killed = true;
}

/* A new user namespace for each: limits on processes count in there. */
static pid_t init_clone(int *pid_fd, int cgroup_fd) {
    struct clone_args args = {.flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
                                       CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD |
                                       (cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0),
                              .pidfd = (uint64_t)(uintptr_t)pid_fd,
                              .cgroup = cgroup_fd >= 0 ? (uint64_t)cgroup_fd : 0,
                              .exit_signal = SIGCHLD};
    return (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

static bool run_start(launcher *l, run *r, const launch_request *request, const int fds[FD_COUNT]) {
    int go[2], code = 0;
    if (pipe2(go, O_CLOEXEC)) return false;
    r->cgroup_fd = -1;
    if (request->cgroup) {
        r->cgroup_fd = cgroup_run_make(l->node_fd, r->cgroup_id = l->n_cgroups++, &request->limits);
        if (r->cgroup_fd < 0) {
            close(go[0]);
            close(go[1]);
            return false;
        }
    }
    pid_t pid = init_clone(&r->pid_fd, r->cgroup_fd);
    if (pid == 0) {
        close(go[1]);
        launch_inside(request, fds, go[0]);
    }
    code = errno;
    close(go[0]);
    if (pid > 0) {
        char who[16];
        snprintf(who, sizeof who, "%d", (int)pid);
        bool mapped = launch_map_user(l->proc, who, 1000, 1000) == 0 && write(go[1], "g", 1) == 1;
        code = errno;
        r->pid = pid;
        r->limits = request->limits;
        r->canary = request->canary != 0;
        r->killed = false;
        r->status_fd = fds[FD_STATUS];
        l->n_runs++;
        if (!mapped) {
            report(r->status_fd, REPORT_FAILED, code, "mapping the user", NULL);
            run_kill(r);
        }
    } else if (r->cgroup_fd >= 0) {
        close(r->cgroup_fd);
        cgroup_run_remove(l->node_fd, r->cgroup_id);
    }
    close(go[1]);
    errno = code;
    return pid > 0;
}

/* One request off the control socket; false when its owner is gone. */
static bool request_take(launcher *l) {
    launch_request request;
    int fds[FD_COUNT] = {-1, -1, -1, -1, -1, -1, -1};
    char control[CMSG_SPACE(sizeof fds)];
    struct iovec part = {&request, sizeof request};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t n = recvmsg(l->control, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0) return errno == EINTR || errno == EAGAIN;
    if (n == 0) return false;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    size_t n_fds = 0;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        n_fds = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(head), n_fds * sizeof(int));
    }
    bool fine = n == (ssize_t)sizeof request && request.magic == LAUNCH_MAGIC &&
                n_fds == (size_t)FD_COUNT - (request.extra ? 0 : 1);
    run *place = NULL;
    for (int i = 0; i < IFL_SANDBOX_RUNS_MAX && !place; i++)
        if (!l->runs[i].pid) place = &l->runs[i];
    bool started = false;
    if (fine && !place) {
        report(fds[FD_STATUS], REPORT_FAILED, EBUSY, "too many runs at once", NULL);
    } else if (fine) {
        started = run_start(l, place, &request, fds);
        if (!started)
            report(fds[FD_STATUS], REPORT_FAILED, errno, "clone into new namespaces", NULL);
    }
    for (int i = 0; i < FD_COUNT; i++)
        if (fds[i] >= 0 && !(started && i == FD_STATUS)) close(fds[i]);
    return fine;
}

/* What its cgroup knows about a run that is over, and its end. */
static void run_account(launcher *l, run *r, struct rusage *used) {
    cgroup_use use = cgroup_run_use(r->cgroup_fd);
    if (use.out_of_memory) report(r->status_fd, REPORT_MEMORY, 0, "", NULL);
    used->ru_utime = (struct timeval){use.cpu_us / 1000000, use.cpu_us % 1000000};
    used->ru_stime = (struct timeval){0};
    close(r->cgroup_fd);
    cgroup_run_remove(l->node_fd, r->cgroup_id); /* else with the launcher's own */
}

static void children_reap(launcher *l) {
    struct signalfd_siginfo info;
    while (read(l->signals, &info, sizeof info) == (ssize_t)sizeof info) {
    }
    for (;;) {
        struct rusage used;
        int status;
        pid_t pid = wait4(-1, &status, WNOHANG, &used);
        if (pid <= 0) return;
        for (int i = 0; i < IFL_SANDBOX_RUNS_MAX; i++) {
            run *r = &l->runs[i];
            if (r->pid != pid) continue;
            if (r->cgroup_fd >= 0) run_account(l, r, &used);
            report(r->status_fd, REPORT_GONE, 0, "", &used);
            close(r->status_fd);
            close(r->pid_fd);
            r->pid = 0;
            l->n_runs--;
        }
    }
}

/* The kernel holds the sum with the work folder's files; this is without them, and CPU time. */
static void run_watch_cgroup(run *r) {
    if (r->canary) return;
    cgroup_use use = cgroup_run_use(r->cgroup_fd);
    bool late = use.cpu_us > (int64_t)r->limits.cpu_ms * 1000;
    if (!late && use.memory_bytes <= r->limits.memory_bytes) return;
    report(r->status_fd, late ? REPORT_CPU : REPORT_MEMORY, 0, "", NULL);
    run_kill(r);
}

/* What no limit of the kernel sums up without a cgroup: memory and CPU time of a run's tree. */
static void runs_watch(launcher *l) {
    usage_table table = {.n = -1};
    for (int i = 0; i < IFL_SANDBOX_RUNS_MAX; i++) {
        run *r = &l->runs[i];
        if (!r->pid || r->killed) continue;
        if (r->cgroup_fd >= 0) {
            run_watch_cgroup(r);
            continue;
        }
        if (table.n < 0) usage_scan(l->proc, &table);
        usage_sum sum = usage_of(&table, r->pid);
        if (sum.cpu_us > (int64_t)r->limits.cpu_ms * 1000) {
            report(r->status_fd, REPORT_CPU, 0, "", NULL);
            run_kill(r);
        } else if (sum.resident_bytes > r->limits.memory_bytes &&
                   usage_shared(l->proc, &table, r->pid) > r->limits.memory_bytes) {
            report(r->status_fd, REPORT_MEMORY, 0, "", NULL);
            run_kill(r);
        }
    }
}

static void loop(launcher *l) {
    struct pollfd polls[2 + IFL_SANDBOX_RUNS_MAX];
    int64_t watched_ns = 0;
    for (;;) {
        int n = 0;
        polls[n++] = (struct pollfd){.fd = l->control, .events = POLLIN};
        polls[n++] = (struct pollfd){.fd = l->signals, .events = POLLIN};
        run *of[IFL_SANDBOX_RUNS_MAX];
        for (int i = 0; i < IFL_SANDBOX_RUNS_MAX; i++) {
            if (!l->runs[i].pid || l->runs[i].killed) continue;
            of[n - 2] = &l->runs[i];
            polls[n++] = (struct pollfd){.fd = l->runs[i].status_fd, .events = POLLIN | POLLRDHUP};
        }
        if (poll(polls, (nfds_t)n, l->n_runs ? WATCH_MS : -1) < 0 && errno != EINTR) return;
        for (int i = 2; i < n; i++)
            if (polls[i].revents) run_kill(of[i - 2]); /* its owner has shut the socket down */
        if (polls[1].revents) children_reap(l);
        if (polls[0].revents && !request_take(l)) return;
        int64_t now = ifl_clock_ns();
        if (l->n_runs && now - watched_ns >= WATCH_MS * (int64_t)1000000) {
            runs_watch(l);
            watched_ns = now;
        }
    }
}

/* One of the users without an account, which no other launcher on this host has: an abstract
 * socket's name is the lock, and goes with the process. 0: none. */
static uid_t uid_take(const launch_setup *setup) {
    uint32_t first = setup->n_uids ? setup->uid_first : UID_FIRST;
    uint32_t n = setup->n_uids ? setup->n_uids : N_UIDS;
    int lock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (lock < 0) return 0;
    for (uint32_t i = 0; i < n; i++) {
        uid_t uid = first + i;
        struct sockaddr_un name = {.sun_family = AF_UNIX};
        int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "inflight-sandbox-%u",
                              (unsigned)uid);
        if (uid == 0 || uid == (uid_t)-1 || getpwuid(uid)) continue;
        if (bind(lock, (struct sockaddr *)&name,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length)) == 0)
            return uid; /* `lock` stays open on purpose */
    }
    close(lock);
    return 0;
}

/* Who we shall be; 0 in *uid: who we are. */
static bool user_choose(const launch_setup *setup, uid_t *uid, char stage[LAUNCH_STAGE_MAX]) {
    *uid = 0;
    if (geteuid() != 0 && getuid() != 0) return true;
    *uid = uid_take(setup);
    if (!*uid) {
        snprintf(stage, LAUNCH_STAGE_MAX,
                 "finding a spare user: all of %u .. %u are taken or have accounts",
                 setup->n_uids ? setup->uid_first : UID_FIRST,
                 (setup->n_uids ? setup->uid_first + setup->n_uids : UID_FIRST + N_UIDS) - 1);
        errno = EBUSY;
        return false;
    }
    return true;
}

static bool user_drop(uid_t uid, char stage[LAUNCH_STAGE_MAX]) {
    if (!uid) return true;
    if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid)) {
        snprintf(stage, LAUNCH_STAGE_MAX, "changing from root to the spare user %u", (unsigned)uid);
        return false;
    }
    return true;
}

static int sysctl_read(const char *path) {
    char text[32] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 ? (int)strtol(text, NULL, 10) : -1;
}

/* Into namespaces of our own; the pid namespace is the next child's. */
static bool namespaces_enter(bool cgroup, char stage[LAUNCH_STAGE_MAX]) {
    uid_t uid = geteuid();
    gid_t gid = getegid();
    const char *what = "unshare of a user namespace";
    bool fine = unshare(CLONE_NEWUSER) == 0;
    if (fine) {
        what = "write of uid_map";
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* else /proc/self is root's after a change of user */
        int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
        fine = proc >= 0 && launch_map_user(proc, "self", uid, gid) == 0;
        if (proc >= 0) close(proc);
    }
    if (fine) {
        what = "unshare of namespaces";
        /* From a cgroup namespace the runs' leaves, beside ours, could not be reached; nor do runs
         * see a file that names one. */
        fine = unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS |
                       (cgroup ? 0 : CLONE_NEWCGROUP)) == 0;
    }
    if (fine) return true;
    int code = errno;
    const char *why = "";
    if (sysctl_read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1)
        why = " (kernel.apparmor_restrict_unprivileged_userns=1)";
    else if (sysctl_read("/proc/sys/kernel/unprivileged_userns_clone") == 0)
        why = " (kernel.unprivileged_userns_clone=0)";
    else if (sysctl_read("/proc/sys/user/max_user_namespaces") == 0)
        why = " (user.max_user_namespaces=0)";
    snprintf(stage, LAUNCH_STAGE_MAX, "%s%s", what, why);
    errno = code;
    return false;
}

static int hello(int fd, int code, bool cgroup, const char *stage) {
    launch_hello h = {.magic = LAUNCH_MAGIC, .code = code, .cgroup = cgroup};
    snprintf(h.stage, sizeof h.stage, "%s", stage);
    (void)!send(fd, &h, sizeof h, MSG_NOSIGNAL);
    return code ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int first_process(int fd, const launch_setup *setup, int node_fd, const char *why) {
    char stage[LAUNCH_STAGE_MAX] = "";
    launcher l = {.control = fd, .node_fd = node_fd};
    sigset_t child;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* of the one that waits outside, which has no threads */
    if (launch_root(setup, &l.proc, stage)) return hello(fd, errno, false, stage);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    l.signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (l.signals < 0) return hello(fd, errno, false, "signalfd");
    hello(fd, 0, node_fd >= 0, why);
    loop(&l);
    return EXIT_SUCCESS; /* and with it everything in the namespace */
}

/* Waits for `pid`'s end and hands it on. */
static _Noreturn void wait_out(pid_t pid, cgroup_node *node) {
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (node) cgroup_node_remove(node);
    /* not by return: what runs at exit would look for a /proc that is gone */
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

/* Makes a cgroup and leaves a process behind that takes it away when we have ended, and that keeps
 * the rights for it. It survives a kill of our owner's process group. False: no cgroup, `why`. */
static bool cgroup_begin(int control, const launch_setup *setup, uid_t uid, cgroup_node *node,
                         char why[CGROUP_WHY_MAX]) {
    bool move = setup->require == IFL_TIER_CGROUP;
    if (!cgroup_node_make(node, uid, move, why)) return false;
    pid_t above = getpid(), pid = setpgid(0, 0) == 0 ? fork() : -1;
    if (pid > 0) {
        close(control);
        wait_out(pid, node);
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != above) _exit(EXIT_FAILURE);
        if (cgroup_node_enter(node)) return true;
    }
    snprintf(why, CGROUP_WHY_MAX, "entering cgroup %.120s: %s", node->path, strerror(errno));
    if (pid < 0) cgroup_node_remove(node);
    node->fd = -1; /* a child leaves it to its parent */
    return false;
}

int ifl_sandbox_launch_main(int fd) {
    char stage[LAUNCH_STAGE_MAX] = "", why[CGROUP_WHY_MAX] = "";
    launch_setup setup;
    struct rlimit files;
    uid_t uid;
    cgroup_node node = {.fd = -1};
    int control = fcntl(fd, F_DUPFD_CLOEXEC, 10);
    if (control < 0) return EXIT_FAILURE;
    int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (nowhere < 0 || dup2(nowhere, 0) < 0 || dup2(nowhere, 1) < 0) return EXIT_FAILURE;
    if (recv(control, &setup, sizeof setup, 0) != (ssize_t)sizeof setup ||
        setup.magic != LAUNCH_MAGIC)
        return EXIT_FAILURE;
    for (int i = 0; i < IFL_SANDBOX_SHOW_MAX; i++)
        setup.show[i][sizeof setup.show[i] - 1] = '\0';
    if (!getrlimit(RLIMIT_NOFILE, &files)) { /* runs move descriptors past FD_ASIDE */
        files.rlim_cur = files.rlim_max < 4096 ? files.rlim_max : 4096;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN);
    if (!user_choose(&setup, &uid, stage)) return hello(control, errno, false, stage);
    bool cgroup = cgroup_begin(control, &setup, uid, &node, why);
    if (!user_drop(uid, stage) || !namespaces_enter(cgroup, stage))
        return hello(control, errno, false, stage);
    if (cgroup) prctl(PR_SET_PDEATHSIG, SIGKILL); /* the change of user has cleared it */
    pid_t pid = fork();
    if (pid < 0) return hello(control, errno, false, "fork into the pid namespace");
    if (pid == 0) _exit(first_process(control, &setup, node.fd, why));
    close(control); /* so that its end is seen */
    wait_out(pid, NULL);
}

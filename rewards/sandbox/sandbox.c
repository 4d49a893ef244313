#include "rewards/sandbox/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "rewards/sandbox/canary.h"
#include "rewards/sandbox/sandbox_impl.h"
#include "rewards/spawn.h"

#define HELLO_MS_MAX 20000 /* from exec to hello, on a loaded machine */
#define END_MS_MAX 5000    /* from the end of its socket to a launcher's own, with its cgroup */

const char *ifl_run_end_name(ifl_run_end end) {
    static const char *const names[] = {"exited", "signaled", "wall",      "cpu",
                                        "memory", "output",   "violation", "killed"};
    return names[end];
}

ifl_sandbox_limits ifl_sandbox_limits_default(void) {
    return (ifl_sandbox_limits){.wall_ms = 10000,
                                .cpu_ms = 10000,
                                .memory_bytes = 512ull << 20,
                                .output_bytes = 1 << 20,
                                .disk_bytes = 64ull << 20,
                                .disk_files = 1024,
                                .processes = 32,
                                .open_files = 64};
}

static ifl_status hello_wait(ifl_sandbox *s, ifl_error *err) {
    struct pollfd p = {.fd = s->control, .events = POLLIN};
    launch_hello h;
    int ready;
    int64_t until_ns = ifl_clock_ns() + HELLO_MS_MAX * (int64_t)1000000;
    do {
        int64_t left_ms = (until_ns - ifl_clock_ns()) / 1000000;
        ready = poll(&p, 1, left_ms > 0 ? (int)left_ms : 0);
    } while (ready < 0 && errno == EINTR);
    if (ready <= 0)
        return ifl_fail(err, IFL_TIMEOUT, "sandbox: the launcher said nothing for %d s",
                        HELLO_MS_MAX / 1000);
    ssize_t n = recv(s->control, &h, sizeof h, 0);
    if (n != (ssize_t)sizeof h || h.magic != LAUNCH_MAGIC)
        return ifl_fail(err, IFL_PEER, "sandbox: the launcher is none of ours or ended at once");
    h.stage[sizeof h.stage - 1] = '\0';
    if (h.code != 0)
        return ifl_fail(
            err, IFL_UNSUPPORTED,
            "rewards: sandbox tier 'ns' is required but cannot be had here (%s: %s). Allow user "
            "namespaces (an AppArmor profile for this binary, kernel.unprivileged_userns_clone=1, "
            "a container run with --security-opt seccomp=unconfined and systempaths=unconfined), "
            "or use a remote checker",
            h.stage, strerror(h.code));
    s->tidy = h.cgroup;
    s->tier = h.cgroup ? IFL_TIER_CGROUP : IFL_TIER_NS; /* until it is measured */
    snprintf(s->above, sizeof s->above, "%s", h.stage);
    return IFL_OK;
}

static ifl_status launcher_start(ifl_sandbox *s, const ifl_sandbox_options *o, ifl_error *err) {
    int pair[2];
    launch_setup setup = {.magic = LAUNCH_MAGIC,
                          .uid_first = o->uid_first,
                          .n_uids = o->n_uids,
                          .require = (uint32_t)o->require};
    for (int i = 0; i < IFL_SANDBOX_SHOW_MAX && o->show[i]; i++) {
        int n = snprintf(setup.show[i], sizeof setup.show[i], "%s", o->show[i]);
        if (n >= (int)sizeof setup.show[i] || o->show[i][0] != '/' || strstr(o->show[i], ".."))
            return ifl_fail(err, IFL_USAGE, "sandbox: got '%.60s' to show, wanted an absolute path",
                            o->show[i]);
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return ifl_fail(err, IFL_IO, "sandbox: socketpair: %s", strerror(errno));
    s->control = pair[0];
    pair[1] = ifl_fd_above_stdio(pair[1]);
    int code = pair[1] < 0 ? EMFILE
                           : ifl_spawn_helper(o->program ? o->program : "/proc/self/exe",
                                              "sandbox-launch", pair[1], false, &s->pid);
    if (pair[1] >= 0) close(pair[1]);
    if (code) {
        s->pid = 0;
        return ifl_fail(err, IFL_IO, "sandbox: cannot execute %.100s: %s",
                        o->program ? o->program : "/proc/self/exe", strerror(code));
    }
    if (send(s->control, &setup, sizeof setup, MSG_NOSIGNAL) != (ssize_t)sizeof setup)
        return ifl_fail(err, IFL_PEER, "sandbox: the launcher ended at once");
    return hello_wait(s, err);
}

void sandbox_break(ifl_sandbox *s) {
    if (!atomic_exchange(&s->broken, true)) kill(s->pid, SIGKILL);
}

/* Namespaces first, by themselves; then what a cgroup adds to them, or why it doesn't. */
static ifl_status tier_measure(ifl_sandbox *s, const ifl_sandbox_options *options, ifl_error *err) {
    bool cgroup = s->tier == IFL_TIER_CGROUP;
    s->tier = IFL_TIER_NS;
    if (!options->skip_canaries) IFL_TRY(canary_run_all(s, false, err));
    if (cgroup && !options->skip_canaries) {
        ifl_error why = {0};
        s->tier = IFL_TIER_CGROUP;
        ifl_status st = canary_run_all(s, true, &why);
        if (st != IFL_OK) {
            s->tier = IFL_TIER_NS;
            snprintf(s->above, sizeof s->above, "%s", why.text);
        }
    }
    if (options->require != IFL_TIER_CGROUP || s->tier == IFL_TIER_CGROUP) return IFL_OK;
    return ifl_fail(err, IFL_UNSUPPORTED,
                    "rewards: sandbox tier 'cgroup' is required but only 'ns' can be had here "
                    "(%.250s). Start the run in a delegated cgroup v2 (systemd-run --user --scope "
                    "-p Delegate=yes inflight ..., or root with a writable one), or set "
                    "reward.sandbox_require=ns",
                    s->above);
}

ifl_status ifl_sandbox_create(ifl_sandbox **out, const ifl_sandbox_options *options,
                              ifl_error *err) {
    *out = NULL;
    ifl_sandbox *s = calloc(1, sizeof *s);
    if (!s) return ifl_fail(err, IFL_NOMEM, "sandbox: no memory");
    s->control = -1;
    ifl_status st = launcher_start(s, options, err);
    if (st == IFL_OK) st = tier_measure(s, options, err);
    if (st != IFL_OK) {
        ifl_sandbox_free(s);
        return st;
    }
    *out = s;
    return IFL_OK;
}

void ifl_sandbox_free(ifl_sandbox *s) {
    if (!s) return;
    if (s->control >= 0) close(s->control);
    bool gone = s->pid <= 0;
    /* With a cgroup, one outside waits for the end in order to take that away. */
    int64_t until_ns = ifl_clock_ns() + END_MS_MAX * (int64_t)1000000;
    while (s->tidy && !gone && ifl_clock_ns() < until_ns) {
        gone = waitpid(s->pid, NULL, WNOHANG) == s->pid;
        if (!gone) nanosleep(&(struct timespec){0, 500000}, NULL);
    }
    if (!gone) {
        kill(s->pid, SIGKILL); /* takes the first process inside along, and that all others */
        while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    free(s);
}

ifl_sandbox_tier ifl_sandbox_measured(const ifl_sandbox *s) {
    return s->tier;
}

int32_t ifl_sandbox_canaries(const ifl_sandbox *s) {
    return s->n_canaries;
}

const char *ifl_sandbox_above(const ifl_sandbox *s) {
    return s->tier == IFL_TIER_CGROUP ? "" : s->above;
}

static bool name_is_plain(const char *name) {
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t n = strlen(name);
    return n > 0 && n < 64 && name[0] != '.' && strspn(name, letters) == n;
}

static const char *const fixed_env[] = {"PATH=/usr/local/bin:/usr/bin:/bin",
                                        "HOME=" LAUNCH_WORK,
                                        "TMPDIR=" LAUNCH_WORK,
                                        "LC_ALL=C.UTF-8",
                                        "TZ=UTC",
                                        "PYTHONHASHSEED=0",
                                        "PYTHONDONTWRITEBYTECODE=1"};
#define N_FIXED_ENV (sizeof fixed_env / sizeof *fixed_env)

static bool put(FILE *f, const void *bytes, size_t n) {
    return n == 0 || fwrite(bytes, 1, n, f) == n;
}

static ifl_status spec_check(const ifl_sandbox_spec *spec, ifl_sandbox_tier tier,
                             launch_request *request, ifl_error *err) {
    const ifl_sandbox_limits *l = &spec->limits;
    uint64_t n = 0;
    *request = (launch_request){.magic = LAUNCH_MAGIC,
                                .n_files = (uint32_t)spec->n_files,
                                .canary = spec->canary,
                                .extra = spec->extra_fd > 0,
                                .keep = spec->keep,
                                .cgroup = tier == IFL_TIER_CGROUP,
                                .limits = *l};
    while (request->n_argv < IFL_SANDBOX_ARGS_MAX && spec->argv[request->n_argv])
        n += strlen(spec->argv[request->n_argv++]) + 1;
    uint32_t n_own = 0;
    while (n_own < IFL_SANDBOX_ARGS_MAX && spec->env[n_own])
        n += strlen(spec->env[n_own++]) + 1;
    request->n_env = n_own + N_FIXED_ENV;
    if (spec->n_files < 0 || spec->n_files > IFL_SANDBOX_FILES_MAX)
        return ifl_fail(err, IFL_LIMIT, "sandbox: %d files, limit %d", spec->n_files,
                        IFL_SANDBOX_FILES_MAX);
    for (int32_t i = 0; i < spec->n_files; i++) {
        if (!name_is_plain(spec->files[i].name))
            return ifl_fail(err, IFL_USAGE, "sandbox: '%.60s' is no plain file name",
                            spec->files[i].name);
        n += spec->files[i].n_bytes;
    }
    if (n > IFL_SANDBOX_SPEC_BYTES_MAX || spec->n_input > IFL_SANDBOX_SPEC_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT,
                        "sandbox: a request of %llu bytes and %zu of input, limit %u",
                        (unsigned long long)n, spec->n_input, IFL_SANDBOX_SPEC_BYTES_MAX);
    if (!spec->canary && request->n_argv == 0)
        return ifl_fail(err, IFL_USAGE, "sandbox: nothing to run");
    if (l->wall_ms < 1 || l->cpu_ms < 1 || l->wall_ms > 3600000 || l->cpu_ms > 3600000 ||
        l->processes < 1 || l->processes > 1024 || l->open_files < 8 || l->open_files > 1024 ||
        l->disk_files < 4 || l->disk_bytes < 4096 || l->memory_bytes < (8u << 20) ||
        l->output_bytes > IFL_SANDBOX_OUTPUT_BYTES_MAX)
        return ifl_fail(err, IFL_USAGE, "sandbox: a limit is out of range");
    return IFL_OK;
}

/* argv, env and files into anonymous memory, which the run's init maps. */
static ifl_status spec_pack(const ifl_sandbox_spec *spec, launch_request *request, int *fd_out,
                            ifl_error *err) {
    *fd_out = -1;
    int fd = memfd_create("spec", MFD_CLOEXEC);
    FILE *f = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (!f) {
        if (fd >= 0) close(fd);
        return ifl_fail(err, IFL_IO, "sandbox: memory for a request: %s", strerror(errno));
    }
    bool fine = true;
    for (uint32_t i = 0; i < request->n_argv; i++)
        fine = put(f, spec->argv[i], strlen(spec->argv[i]) + 1) && fine;
    for (size_t i = 0; i < N_FIXED_ENV; i++)
        fine = put(f, fixed_env[i], strlen(fixed_env[i]) + 1) && fine;
    for (uint32_t i = 0; i < request->n_env - N_FIXED_ENV; i++)
        fine = put(f, spec->env[i], strlen(spec->env[i]) + 1) && fine;
    for (int32_t i = 0; i < spec->n_files; i++) {
        const ifl_sandbox_file *file = &spec->files[i];
        launch_file head = {.n_name = strlen(file->name) + 1,
                            .n_bytes = file->n_bytes,
                            .mode = file->executable ? 0755 : 0644};
        fine = put(f, &head, sizeof head) && put(f, file->name, head.n_name) &&
               put(f, file->bytes, file->n_bytes) && fine;
    }
    fine = fputc(0, f) != EOF && fflush(f) == 0 && fine; /* never empty: it is mapped */
    request->n_spec = (uint64_t)ftell(f);
    *fd_out = fine ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
    fclose(f);
    if (*fd_out < 0)
        return ifl_fail(err, IFL_IO, "sandbox: memory for a request: %s", strerror(errno));
    return IFL_OK;
}

/* A pipe with our end not blocking. Ours is [1] when we write. */
static bool pipe_make(int pair[2], bool we_write) {
    if (pipe2(pair, O_CLOEXEC)) {
        pair[0] = pair[1] = -1;
        return false;
    }
    return fcntl(pair[we_write], F_SETFL, O_NONBLOCK) == 0;
}

static bool request_send(int control, const launch_request *request, const int *fds, int n_fds) {
    char space[CMSG_SPACE(sizeof(int) * FD_COUNT)];
    memset(space, 0, sizeof space);
    struct iovec part = {(void *)request, sizeof *request};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = space,
                             .msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n_fds)};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n_fds);
    memcpy(CMSG_DATA(head), fds, sizeof(int) * (size_t)n_fds);
    ssize_t n;
    do {
        n = sendmsg(control, &message, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof *request;
}

ifl_status ifl_sandbox_start(ifl_sandbox *s, const ifl_sandbox_spec *spec, ifl_sandbox_run **out,
                             ifl_error *err) {
    launch_request request;
    int pairs[5][2] = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}}, memory = -1;
    *out = NULL;
    IFL_TRY(spec_check(spec, s->tier, &request, err));
    if (atomic_load(&s->broken)) return ifl_fail(err, IFL_PEER, "sandbox: the launcher is gone");
    ifl_sandbox_run *run = calloc(1, sizeof *run);
    if (!run) return ifl_fail(err, IFL_NOMEM, "sandbox: no memory");
    ifl_status st = spec_pack(spec, &request, &memory, err);
    if (st != IFL_OK) goto done;
    bool fine = !socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pairs[0]);
    fine = fine && (spec->input_fd > 0 || pipe_make(pairs[1], true));
    fine = fine && pipe_make(pairs[2], false) && pipe_make(pairs[3], false);
    fine = fine && (spec->result_fd > 0 || pipe_make(pairs[4], false));
    if (!fine) {
        st = ifl_fail(err, IFL_IO, "sandbox: pipes: %s", strerror(errno));
        goto done;
    }
    int fds[FD_COUNT] = {
        memory,        pairs[0][1], spec->input_fd > 0 ? spec->input_fd : pairs[1][0],
        pairs[2][1],   pairs[3][1], spec->result_fd > 0 ? spec->result_fd : pairs[4][1],
        spec->extra_fd};
    *run = (ifl_sandbox_run){.sandbox = s,
                             .limits = spec->limits,
                             .status_fd = pairs[0][0],
                             .input_fd = pairs[1][1],
                             .input = spec->input,
                             .n_input = spec->n_input,
                             .out_fd = pairs[2][0],
                             .err_fd = pairs[3][0],
                             .channel_fd = pairs[4][0],
                             .created_ns = ifl_clock_ns(),
                             .end = IFL_RUN_KILLED};
    if (!request_send(s->control, &request, fds, FD_COUNT - (request.extra ? 0 : 1))) {
        sandbox_break(s);
        st = ifl_fail(err, IFL_PEER, "sandbox: the launcher is gone");
        goto done;
    }
    pairs[0][0] = pairs[1][1] = pairs[2][0] = pairs[3][0] = pairs[4][0] = -1; /* the run's now */
    *out = run;
    run = NULL;
done:
    for (int i = 0; i < 10; i++)
        if (pairs[i / 2][i % 2] >= 0) close(pairs[i / 2][i % 2]);
    if (memory >= 0) close(memory);
    free(run);
    return st;
}

ifl_status ifl_sandbox_execute(ifl_sandbox *s, const ifl_sandbox_spec *spec,
                               ifl_sandbox_result *result, ifl_error *err) {
    ifl_sandbox_run *run = NULL;
    memset(result, 0, sizeof *result);
    IFL_TRY(ifl_sandbox_start(s, spec, &run, err));
    return ifl_sandbox_wait(&run, 1, result, err);
}

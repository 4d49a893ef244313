#include "deploy/cli/bench_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "deploy/cli/signals.h"

enum { POLL_MS = 50, TAIL_LINES = 6, TAIL_BYTES = 600, COMMAND_BYTES = 360 };

typedef struct stream {
    int fd; /* -1: at its end */
    char *bytes;
    size_t n, n_max;
    bool keep_last; /* else the first n_max */
} stream;

/* --- Start
 * ---------------------------------------------------------------------------------------- */

static void fd_close(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* Only async-signal-safe calls. An exec that fails writes its errno to `report`, which a good one
 * closes. */
static _Noreturn void child_run(const char *const *argv, const char *argv0, int out, int error,
                                int report, pid_t parent) {
    const char *program = argv[0];
    const char *named[64];
    int n = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    int null = open("/dev/null", O_RDONLY);
    if (getppid() == parent && null >= 0 && dup2(null, STDIN_FILENO) >= 0 &&
        dup2(out, STDOUT_FILENO) >= 0 && dup2(error, STDERR_FILENO) >= 0) {
        for (; argv[n] && n < 63; n++)
            named[n] = argv[n];
        named[n] = NULL;
        if (argv0) named[0] = argv0;
        signal(SIGPIPE, SIG_DFL);
        execvp(program, (char *const *)named);
    }
    int code = errno;
    ssize_t ignored = write(report, &code, sizeof code);
    (void)ignored;
    _exit(127);
}

static int pipe_above_stdio(int ends[2]) {
    if (pipe2(ends, O_CLOEXEC) != 0) return -1;
    for (int i = 0; i < 2; i++) {
        if (ends[i] > STDERR_FILENO) continue;
        int higher = fcntl(ends[i], F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        close(ends[i]);
        ends[i] = higher;
        if (higher < 0) return -1;
    }
    return 0;
}

/* *exec_code: errno of an exec that failed, else 0. Returns the pid, or -1 with errno. */
static pid_t child_start(const char *const *argv, const char *argv0, int *out, int *error,
                         int *exec_code) {
    int out_pipe[2] = {-1, -1}, error_pipe[2] = {-1, -1}, report[2] = {-1, -1};
    pid_t pid = -1, parent = getpid();
    *exec_code = 0;
    if (pipe_above_stdio(out_pipe) == 0 && pipe_above_stdio(error_pipe) == 0 &&
        pipe_above_stdio(report) == 0)
        pid = fork();
    if (pid == 0) child_run(argv, argv0, out_pipe[1], error_pipe[1], report[1], parent);
    int code = errno;
    fd_close(&out_pipe[1]);
    fd_close(&error_pipe[1]);
    fd_close(&report[1]);
    if (pid > 0) {
        setpgid(pid, pid); /* whoever of the two comes first */
        ssize_t n;
        while ((n = read(report[0], exec_code, sizeof *exec_code)) < 0 && errno == EINTR) {
        }
        if (n != sizeof *exec_code) *exec_code = 0;
        *out = out_pipe[0];
        *error = error_pipe[0];
    } else {
        fd_close(&out_pipe[0]);
        fd_close(&error_pipe[0]);
    }
    fd_close(&report[0]);
    errno = code;
    return pid;
}

/* --- Output
 * --------------------------------------------------------------------------------------- */

static void stream_add(stream *s, const char *bytes, size_t n) {
    if (!s->keep_last) {
        size_t room = s->n_max - s->n;
        if (n > room) n = room;
    } else if (n >= s->n_max) {
        bytes += n - s->n_max;
        n = s->n_max;
        s->n = 0;
    } else if (s->n + n > s->n_max) {
        size_t drop = s->n + n - s->n_max;
        memmove(s->bytes, s->bytes + drop, s->n - drop);
        s->n -= drop;
    }
    memcpy(s->bytes + s->n, bytes, n);
    s->n += n;
}

static void stream_read(stream *s) {
    char chunk[4096];
    ssize_t n = read(s->fd, chunk, sizeof chunk);
    if (n > 0)
        stream_add(s, chunk, (size_t)n);
    else if (n == 0 || (errno != EINTR && errno != EAGAIN))
        fd_close(&s->fd);
}

/* One wait for output, at most `ms` long. False when there was none in that time. */
static bool streams_wait(stream *streams, int n, int ms) {
    struct pollfd fds[2];
    for (int i = 0; i < n; i++)
        fds[i] = (struct pollfd){.fd = streams[i].fd,
                                 .events = POLLIN}; /* negative ones are passed over */
    if (poll(fds, (nfds_t)n, ms) <= 0) return false;
    for (int i = 0; i < n; i++)
        if (fds[i].revents) stream_read(&streams[i]);
    return true;
}

/* --- The run
 * -------------------------------------------------------------------------------------- */

/* What a program says last, a line each, indented; control characters become blanks. */
static void tail_make(char out[TAIL_BYTES], const ifl_process_result *r) {
    const char *text = r->err[0] ? r->err : r->out ? r->out : "";
    const char *end = text + strlen(text), *at = end;
    while (end > text && (end[-1] == '\n' || end[-1] == ' '))
        end--;
    int lines = 0;
    for (at = end; at > text && (size_t)(end - at) < TAIL_BYTES - 2; at--)
        if (at[-1] == '\n' && ++lines == TAIL_LINES) break;
    size_t n = (size_t)(end - at);
    memcpy(out, at, n);
    out[n] = '\0';
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)out[i] < ' ' && out[i] != '\n') out[i] = ' ';
}

static ifl_status run_judge(const ifl_process_result *r, const char *const *argv, int status,
                            bool stopped, bool late, double timeout_s, ifl_error *err) {
    char command[COMMAND_BYTES], tail[TAIL_BYTES], how[96];
    if (stopped) return ifl_fail(err, IFL_STOPPED, "stopped while %s ran", argv[0]);
    if (!late && WIFEXITED(status) && WEXITSTATUS(status) == 0) return IFL_OK;
    ifl_process_command(command, sizeof command, argv);
    tail_make(tail, r);
    if (late)
        snprintf(how, sizeof how, "did not end within %g s and was killed", timeout_s);
    else if (WIFSIGNALED(status))
        snprintf(how, sizeof how, "died of signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(how, sizeof how, "ended with status %d", WEXITSTATUS(status));
    return ifl_fail(err, late ? IFL_TIMEOUT : IFL_PEER, "%s %s%s%s\ncommand: %s", argv[0], how,
                    *tail ? "; it said last:\n" : " without a word", tail, command);
}

/* Reads until the program has ended, or must. What it left running has the pipes too, so their end
 * is not waited for. */
static void run_follow(pid_t pid, stream *streams, double timeout_s, const atomic_bool *stop,
                       bool *stopped, bool *late) {
    double deadline = ifl_clock_s() + timeout_s;
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid)
            break;
        *stopped = atomic_load(stop);
        *late = ifl_clock_s() >= deadline;
        if (*stopped || *late) break;
        if (streams[0].fd < 0 && streams[1].fd < 0)
            ifl_sleep_ms(POLL_MS / 5);
        else
            streams_wait(streams, 2, POLL_MS);
    }
    for (int i = 0; i < 1024 && streams_wait(streams, 2, 0); i++) {
    }
}

ifl_status ifl_process_run(ifl_process_result *r, const char *const *argv, const char *argv0,
                           double timeout_s, ifl_error *err) {
    const atomic_bool *stop = ifl_signals_install();
    memset(r, 0, sizeof *r);
    r->out = malloc(IFL_PROCESS_OUT_MAX + 1);
    if (!r->out) return ifl_fail(err, IFL_NOMEM, "%s: out of memory for its output", argv[0]);
    r->out[0] = '\0';
    stream streams[2] = {
        {.fd = -1, .bytes = r->out, .n_max = IFL_PROCESS_OUT_MAX},
        {.fd = -1, .bytes = r->err, .n_max = IFL_PROCESS_ERR_MAX, .keep_last = true}};
    int exec_code = 0, status = 0;
    double start = ifl_clock_s();
    pid_t pid = child_start(argv, argv0, &streams[0].fd, &streams[1].fd, &exec_code);
    if (pid < 0)
        return ifl_fail(err, IFL_IO, "%s: cannot start a process: %s", argv[0], strerror(errno));
    bool stopped = false, late = false;
    run_follow(pid, streams, timeout_s, stop, &stopped, &late);
    /* The group first, while the leader (alive or a zombie) still holds its number. */
    kill(-pid, SIGKILL);
    struct rusage usage = {0};
    while (wait4(pid, &status, 0, &usage) < 0 && errno == EINTR) {
    }
    r->seconds = ifl_clock_s() - start;
    r->rss_peak_bytes = (int64_t)usage.ru_maxrss * 1024;
    fd_close(&streams[0].fd);
    fd_close(&streams[1].fd);
    r->out[streams[0].n] = r->err[streams[1].n] = '\0';
    if (exec_code)
        return ifl_fail(err, IFL_NOTFOUND, "%s: cannot be executed: %s", argv[0],
                        strerror(exec_code));
    return run_judge(r, argv, status, stopped, late, timeout_s, err);
}

void ifl_process_result_clear(ifl_process_result *result) {
    free(result->out);
    result->out = NULL;
}

void ifl_process_command(char *out, size_t size, const char *const *argv) {
    size_t n = 0;
    out[0] = '\0';
    for (; *argv && n < size; argv++) {
        bool plain = **argv && (*argv)[strcspn(*argv, " \t\n\"'\\$&|;<>()*?[]#~`")] == '\0';
        n += (size_t)snprintf(out + n, size - n, "%s%s%s%s", n ? " " : "", plain ? "" : "'", *argv,
                              plain ? "" : "'");
    }
}

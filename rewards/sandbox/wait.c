/* The owner's side of runs under way: feeds and drains their pipes, keeps their deadlines. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "rewards/sandbox/sandbox_impl.h"

#define MS_NS ((int64_t)1000000)
#define START_MS_MAX 20000 /* from the request to the program's exec, on a loaded machine */
#define GONE_MS_MAX 20000  /* from the kill to the last process's end: else the launcher goes */
#define RUNS_MAX 4
#define READ_BYTES 65536

void ifl_sandbox_result_clear(ifl_sandbox_result *r) {
    free(r->out.bytes);
    free(r->err.bytes);
    free(r->channel.bytes);
    memset(r, 0, sizeof *r);
}

static void fd_close(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* Asks for a run's end; `why` holds unless something else was known before. */
static void run_end(ifl_sandbox_run *r, ifl_run_end why) {
    if (r->asked) return;
    r->asked = true;
    r->killed_ns = ifl_clock_ns();
    if (r->end == IFL_RUN_KILLED) r->end = why;
    shutdown(r->status_fd, SHUT_WR);
}

/* Whether a caller ignores SIGPIPE is its own affair: here a pipe without a reader is EPIPE. */
static ssize_t write_quietly(int fd, const void *bytes, size_t n) {
    sigset_t broken, before, pending;
    sigemptyset(&broken);
    sigaddset(&broken, SIGPIPE);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &broken, &before);
    ssize_t put = write(fd, bytes, n);
    int code = errno;
    if (put < 0 && code == EPIPE && !sigismember(&pending, SIGPIPE)) {
        while (sigtimedwait(&broken, NULL, &(struct timespec){0, 0}) < 0 && errno == EINTR) {
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = code;
    return put;
}

static void run_feed(ifl_sandbox_run *r) {
    while (r->n_input > 0) {
        ssize_t n = write_quietly(r->input_fd, r->input, r->n_input);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) break; /* it doesn't read on: its own affair */
        r->input += n;
        r->n_input -= (size_t)n;
    }
    fd_close(&r->input_fd);
}

/* Room doubles up to the limit; what lies beyond is read and dropped. */
static ifl_status output_add(ifl_sandbox_output *to, const char *bytes, size_t n, uint64_t limit,
                             ifl_error *err) {
    if (n > limit - to->n) n = (size_t)(limit - to->n);
    if (n == 0) return IFL_OK;
    size_t room = 256;
    while (room < to->n + n + 1)
        room *= 2;
    char *grown = realloc(to->bytes, room);
    if (!grown) return ifl_fail(err, IFL_NOMEM, "sandbox: no memory for %zu bytes of output", room);
    memcpy(grown + to->n, bytes, n);
    to->bytes = grown;
    to->n += n;
    to->bytes[to->n] = '\0';
    return IFL_OK;
}

static ifl_status run_drain(ifl_sandbox_run *r, int *fd, ifl_sandbox_output *to, ifl_error *err) {
    char bytes[READ_BYTES];
    while (*fd >= 0) {
        ssize_t n = read(*fd, bytes, sizeof bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return IFL_OK;
        if (n <= 0) {
            fd_close(fd);
            return IFL_OK;
        }
        bool over = (uint64_t)n > r->limits.output_bytes - to->n;
        IFL_TRY(output_add(to, bytes, (size_t)n, r->limits.output_bytes, err));
        if (over) { /* also when it has ended meanwhile: what it said isn't all here */
            if (!r->asked || r->end == IFL_RUN_EXITED) r->end = IFL_RUN_OUTPUT;
            run_end(r, IFL_RUN_OUTPUT);
        }
    }
    return IFL_OK;
}

static void status_take(ifl_sandbox_run *r, int32_t status) {
    r->has_status = true;
    r->status = status;
    r->ended_ns = ifl_clock_ns();
}

static ifl_status report_take(ifl_sandbox_run *r, ifl_error *err) {
    launch_report report;
    ssize_t n = recv(r->status_fd, &report, sizeof report, MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return IFL_OK;
    if (n != (ssize_t)sizeof report || report.magic != LAUNCH_MAGIC) {
        sandbox_break(r->sandbox);
        return ifl_fail(err, IFL_PEER, "sandbox: the launcher ended during a run");
    }
    switch (report.kind) {
    case REPORT_FAILED:
        r->failed = true;
        r->failure = report;
        r->failure.stage[sizeof report.stage - 1] = '\0';
        break;
    case REPORT_STARTED:
        r->started_ns = ifl_clock_ns();
        break;
    case REPORT_ENDED:
        status_take(r, report.code);
        break;
    case REPORT_MEMORY:
    case REPORT_CPU:
        if (!r->asked) r->end = report.kind == REPORT_MEMORY ? IFL_RUN_MEMORY : IFL_RUN_CPU;
        r->asked = true;
        r->killed_ns = ifl_clock_ns();
        break;
    case REPORT_GONE:
        r->gone = true;
        r->used = report;
        if (!r->ended_ns) r->ended_ns = ifl_clock_ns();
        break;
    }
    return IFL_OK;
}

/* Asks for the end of what is past its time; returns when to look again. IFL_TIMEOUT is the
 * host's: nothing that a program does can hold up its start or a SIGKILL. */
static ifl_status run_clock(ifl_sandbox_run *r, int64_t now, int64_t *next, ifl_error *err) {
    int64_t at;
    if (r->asked)
        at = r->killed_ns + GONE_MS_MAX * MS_NS;
    else if (r->has_status)
        at = r->ended_ns + GONE_MS_MAX * MS_NS;
    else if (r->started_ns)
        at = r->started_ns + r->limits.wall_ms * MS_NS;
    else
        at = r->created_ns + START_MS_MAX * MS_NS;
    if (now >= at) {
        if (r->asked || r->has_status || !r->started_ns) {
            sandbox_break(r->sandbox);
            return ifl_fail(err, IFL_TIMEOUT, "sandbox: the launcher did not %s a run within %d s",
                            r->started_ns ? "end" : "start", START_MS_MAX / 1000);
        }
        run_end(r, IFL_RUN_WALL);
        at = now + GONE_MS_MAX * MS_NS;
    }
    if (at < *next) *next = at;
    return IFL_OK;
}

typedef struct waiting {
    struct pollfd polls[RUNS_MAX * 5];
    int n;
} waiting;

static void watch(waiting *w, int fd, short events) {
    if (fd >= 0) w->polls[w->n++] = (struct pollfd){.fd = fd, .events = events};
}

static ifl_status run_move(ifl_sandbox_run *r, ifl_sandbox_result *to, ifl_error *err) {
    if (r->input_fd >= 0) run_feed(r);
    IFL_TRY(run_drain(r, &r->out_fd, &to->out, err));
    IFL_TRY(run_drain(r, &r->err_fd, &to->err, err));
    IFL_TRY(run_drain(r, &r->channel_fd, &to->channel, err));
    return r->gone ? IFL_OK : report_take(r, err);
}

static ifl_status runs_move(ifl_sandbox_run **runs, int32_t n, ifl_sandbox_result *results,
                            ifl_error *err) {
    for (;;) {
        waiting w = {.n = 0};
        int64_t now = ifl_clock_ns(), next = now + 3600000 * MS_NS;
        bool left = false;
        if (runs[0]->ended_ns)
            for (int32_t i = 1; i < n; i++)
                if (!runs[i]->has_status) run_end(runs[i], IFL_RUN_KILLED);
        for (int32_t i = 0; i < n; i++) {
            ifl_sandbox_run *r = runs[i];
            if (r->gone) continue;
            left = true;
            IFL_TRY(run_clock(r, now, &next, err));
            watch(&w, r->input_fd, POLLOUT);
            watch(&w, r->out_fd, POLLIN);
            watch(&w, r->err_fd, POLLIN);
            watch(&w, r->channel_fd, POLLIN);
            watch(&w, r->status_fd, POLLIN);
        }
        if (!left) break;
        int64_t wait_ms = (next - now + MS_NS - 1) / MS_NS;
        if (poll(w.polls, (nfds_t)w.n, (int)wait_ms) < 0 && errno != EINTR)
            return ifl_fail(err, IFL_IO, "sandbox: poll: %s", strerror(errno));
        for (int32_t i = 0; i < n; i++)
            if (!runs[i]->gone) IFL_TRY(run_move(runs[i], &results[i], err));
    }
    for (int32_t i = 0; i < n; i++) /* what was in the pipes when the last process ended */
        IFL_TRY(run_move(runs[i], &results[i], err));
    return IFL_OK;
}

/* The verdict over a run. All that happens from the exec on is the program's doing. */
static ifl_status run_judge(const ifl_sandbox_run *r, ifl_sandbox_result *to, ifl_error *err) {
    if (r->failed)
        return ifl_fail(err, IFL_IO, "sandbox: %s: %s", r->failure.stage,
                        strerror(r->failure.code));
    to->cpu_us = r->used.cpu_us;
    to->peak_bytes = (uint64_t)r->used.peak_kib * 1024;
    to->wall_us = r->started_ns ? (r->ended_ns - r->started_ns) / 1000 : 0;
    to->end = r->end;
    if (!r->started_ns && !r->asked)
        return ifl_fail(err, IFL_IO, "sandbox: a run ended before its program was executed");
    if (r->end != IFL_RUN_KILLED || r->asked) return IFL_OK;
    if (!r->has_status) {
        to->end = IFL_RUN_VIOLATION; /* its init doesn't end by itself */
    } else if (WIFEXITED(r->status)) {
        to->end = IFL_RUN_EXITED;
        to->code = WEXITSTATUS(r->status);
    } else {
        to->code = WTERMSIG(r->status);
        bool late = r->used.cpu_us >= (int64_t)r->limits.cpu_ms * 1000;
        to->end = to->code == SIGSYS                                     ? IFL_RUN_VIOLATION
                  : to->code == SIGXCPU || (to->code == SIGKILL && late) ? IFL_RUN_CPU
                                                                         : IFL_RUN_SIGNALED;
    }
    return IFL_OK;
}

ifl_status ifl_sandbox_wait(ifl_sandbox_run **runs, int32_t n, ifl_sandbox_result *results,
                            ifl_error *err) {
    IFL_ASSERT(n > 0 && n <= RUNS_MAX);
    memset(results, 0, sizeof *results * (size_t)n);
    ifl_status st = runs_move(runs, n, results, err);
    for (int32_t i = 0; i < n; i++) {
        if (st == IFL_OK) st = run_judge(runs[i], &results[i], err);
        fd_close(&runs[i]->input_fd);
        fd_close(&runs[i]->out_fd);
        fd_close(&runs[i]->err_fd);
        fd_close(&runs[i]->channel_fd);
        fd_close(&runs[i]->status_fd); /* closed before its end: the launcher kills it */
        free(runs[i]);
        runs[i] = NULL;
    }
    return st;
}

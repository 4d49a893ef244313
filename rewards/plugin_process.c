/* A plug-in as a process of its own, one line of JSON there and one back. It runs in its worker's
 * process group and dies with it: by the pool's kill of the group, or by the end of its standard
 * input. What breaks the protocol ends it at once, since nobody knows what its next line belongs
 * to; the worker then asks to be ended too, and the next one starts it afresh. */
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
#include "common/log.h"
#include "rewards/plugin_message.h"
#include "rewards/spawn.h"

#define MS_NS ((int64_t)1000000)
#define END_WAIT_MS 200 /* from the end of its output until its exit status is asked for */

typedef struct process {
    const ifl_spec_entry *entry;
    pid_t pid;
    int to, from;
    uint64_t n_asked;
    char checker[64];
    bool pure;
    size_t n_in;
    char in[IFL_PLUGIN_LINE_MAX];
} process;

/* --- Start ------------------------------------------------------------------------------------ */

static void environment_add(const json_t *env) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)env, key, value) setenv(key, json_string_value(value), 1);
}

/* After the fork, in the child; a worker has one thread, so anything is allowed. */
static _Noreturn void child_run(const ifl_spec_entry *e, int in, int out, int failure) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_DFL);
    struct rlimit memory;
    if (getrlimit(RLIMIT_AS, &memory) == 0) {
        memory.rlim_cur = memory.rlim_max;
        rlim_t own = (rlim_t)(e->memory_gib * 1073741824.0);
        if (own && (memory.rlim_max == RLIM_INFINITY || own < memory.rlim_max))
            memory.rlim_cur = memory.rlim_max = own;
        setrlimit(RLIMIT_AS, &memory);
    }
    environment_add(e->env);
    setenv("PYTHONHASHSEED", "0", 0); /* rewards must not depend on a draw */
    setenv("PYTHONUNBUFFERED", "1", 0);
    if (dup2(in, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0)
        execvp(e->command[0], (char *const *)(uintptr_t)e->command);
    int code = errno;
    ssize_t told = write(failure, &code, sizeof code);
    _exit(told == sizeof code ? 127 : 126);
}

static void close_pair(int pair[2]) {
    for (int i = 0; i < 2; i++)
        if (pair[i] >= 0) close(pair[i]);
    pair[0] = pair[1] = -1;
}

static ifl_status process_spawn(process *p, ifl_error *err) {
    int to[2] = {-1, -1}, from[2] = {-1, -1}, failure[2] = {-1, -1}, code = 0;
    ifl_status st = IFL_OK;
    const char *program = p->entry->command[0];
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0 ||
        pipe2(failure, O_CLOEXEC) != 0) {
        st = ifl_fail(err, IFL_IO, "cannot open a pipe: %s", strerror(errno));
        goto done;
    }
    p->pid = fork();
    if (p->pid < 0) {
        p->pid = 0;
        st = ifl_fail(err, IFL_IO, "cannot start '%.200s': %s", program, strerror(errno));
        goto done;
    }
    if (p->pid == 0) child_run(p->entry, to[0], from[1], failure[1]);
    close(failure[1]);
    failure[1] = -1;
    ssize_t n;
    while ((n = read(failure[0], &code, sizeof code)) < 0 && errno == EINTR) {
    }
    if (n == sizeof code) {
        waitpid(p->pid, NULL, 0);
        p->pid = 0;
        st = ifl_fail(err, IFL_NOTFOUND,
                      "cannot execute '%.200s': %s (PATH is /usr/local/bin:/usr/bin:/bin; env: "
                      "{PATH: ...} or a full path says where else)",
                      program, strerror(code));
        goto done;
    }
    p->to = to[1];
    p->from = from[0];
    to[1] = from[0] = -1;
    fcntl(p->to, F_SETFL, O_NONBLOCK);
    fcntl(p->from, F_SETFL, O_NONBLOCK);
done:
    close_pair(to);
    close_pair(from);
    close_pair(failure);
    return st;
}

/* --- Lines ------------------------------------------------------------------------------------ */

/* How it ended, for a process whose output has ended. */
static ifl_status process_post_mortem(process *p, ifl_error *err) {
    char part[64] = "", end[128];
    int status = 0;
    if (p->n_in > 0)
        snprintf(part, sizeof part, " in the middle of a line, after %zu bytes", p->n_in);
    for (int waited = 0; p->pid > 0; waited += 5) {
        pid_t got = waitpid(p->pid, &status, WNOHANG);
        if (got == p->pid) {
            p->pid = 0;
            return ifl_fail(err, IFL_PEER, "%s%s", ifl_wait_text(end, status), part);
        }
        if (got < 0 || waited >= END_WAIT_MS) break;
        ifl_sleep_ms(5);
    }
    return ifl_fail(err, IFL_PEER, "closed its output%s", part);
}

/* Reads what is there. IFL_OK also when there is nothing yet; IFL_PEER at its end. */
static ifl_status process_read(process *p, ifl_error *err) {
    ssize_t n = read(p->from, p->in + p->n_in, sizeof p->in - p->n_in);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return IFL_OK;
    if (n <= 0) return process_post_mortem(p, err);
    p->n_in += (size_t)n;
    return IFL_OK;
}

/* Sends `text` (may be NULL) and waits for one line, whose length goes to *n_line. */
static ifl_status process_exchange(process *p, const char *text, size_t n_text, int64_t deadline_ns,
                                   size_t *n_line, ifl_error *err) {
    size_t sent = 0;
    for (;;) {
        const char *end = memchr(p->in, '\n', p->n_in);
        if (end) {
            *n_line = (size_t)(end - p->in);
            if (sent < n_text)
                return ifl_fail(err, IFL_FORMAT, "answered before it had read the request");
            if (*n_line + 1 < p->n_in)
                return ifl_fail(err, IFL_FORMAT,
                                "%zu bytes behind its answer: it answers more than once, or prints "
                                "what is no answer",
                                p->n_in - *n_line - 1);
            return IFL_OK;
        }
        if (p->n_in == sizeof p->in)
            return ifl_fail(err, IFL_LIMIT, "a line of more than %d bytes", IFL_PLUGIN_LINE_MAX);
        int64_t left_ns = deadline_ns - ifl_clock_ns();
        if (left_ns <= 0)
            return ifl_fail(err, IFL_TIMEOUT, "timeout: %s by its deadline%s",
                            p->n_in ? "only a part of a line" : "no line",
                            sent < n_text ? ", and it has not read all of the request" : "");
        struct pollfd polls[2] = {{p->from, POLLIN, 0}, {sent < n_text ? p->to : -1, POLLOUT, 0}};
        if (poll(polls, 2, (int)(left_ns / MS_NS) + 1) < 0 && errno != EINTR)
            return ifl_fail(err, IFL_IO, "poll: %s", strerror(errno));
        if (polls[0].revents) IFL_TRY(process_read(p, err));
        if (polls[1].revents) {
            ssize_t n = write(p->to, text + sent, n_text - sent);
            if (n > 0) sent += (size_t)n;
            if (n < 0 && errno != EAGAIN && errno != EINTR) return process_post_mortem(p, err);
        }
    }
}

/* --- Life ------------------------------------------------------------------------------------- */

static void process_destroy(void *state) {
    process *p = state;
    if (!p) return;
    if (p->to >= 0) close(p->to);
    if (p->from >= 0) close(p->from);
    if (p->pid > 0) {
        kill(p->pid, SIGKILL); /* its own children share the worker's group, which the pool ends */
        while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    free(p);
}

static ifl_status process_create(void **state, const ifl_spec_entry *entry, ifl_error *err) {
    size_t n = 0;
    process *p = calloc(1, sizeof *p);
    if (!p) return ifl_fail(err, IFL_NOMEM, "no memory for a plug-in");
    p->entry = entry;
    p->to = p->from = -1;
    ifl_status st = process_spawn(p, err);
    if (st == IFL_OK) {
        st = process_exchange(p, NULL, 0, ifl_clock_ns() + entry->start_ms * MS_NS, &n, err);
        const char *what = st == IFL_OK ? "" : " said no hello";
        if (st == IFL_OK) st = ifl_plugin_hello_read(p->in, n, p->checker, &p->pure, err);
        if (st != IFL_OK && err) {
            ifl_error_wrap(err, "'%.200s'%s", entry->command[0], what);
            st = err->status = IFL_PEER;
        }
    }
    if (st != IFL_OK) {
        process_destroy(p);
        return st;
    }
    p->n_in = 0;
    *state = p;
    return IFL_OK;
}

/* Ends it: `why` is in err already. */
static void process_give_up(process *p, const ifl_plugin_call *call, ifl_error *err) {
    if (p->pid > 0) {
        kill(p->pid, SIGKILL);
        while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR) {
        }
        p->pid = 0;
    }
    *call->flags |= IFL_REPLY_LAST;
    ifl_error_wrap(err, "process '%.100s'", p->entry->command[0]);
}

static ifl_status process_ask(process *p, const ifl_plugin_call *call, json_t *json,
                              ifl_reward *out, ifl_error *err) {
    uint64_t id = p->n_asked;
    size_t n = 0;
    char *text = json_dumps(json, JSON_COMPACT);
    if (!text) return ifl_fail(err, IFL_NOMEM, "no memory for a message");
    size_t n_text = strlen(text);
    text[n_text] = '\n'; /* in the place of the NUL */
    p->n_in = 0;
    ifl_status st = process_exchange(p, text, n_text + 1, call->deadline_ns, &n, err);
    free(text);
    if (st == IFL_OK) st = ifl_plugin_answer_read(p->in, n, id, out, err);
    p->n_in = 0;
    return st;
}

static ifl_status process_check(void *state, const ifl_plugin_call *call, ifl_reward *out,
                                ifl_error *err) {
    process *p = state;
    json_t *json;
    memcpy(out->checker, p->checker, sizeof out->checker);
    if (p->pid == 0) { /* given up by another part of the same request */
        *call->flags |= IFL_REPLY_LAST;
        return ifl_fail(err, IFL_PEER, "process '%.100s' has ended", p->entry->command[0]);
    }
    /* Whatever it has said or done since its last answer isn't this request's fault. */
    p->n_in = 0;
    ifl_status st = process_read(p, err);
    if (st == IFL_OK && p->n_in > 0)
        st = ifl_fail(err, IFL_FORMAT, "%zu bytes that nobody asked for: it answers more than once",
                      p->n_in);
    if (st != IFL_OK) {
        process_give_up(p, call, err);
        *call->flags |= IFL_REPLY_NOT_RUN;
        ifl_warn("checker %s: %s; it is started again", p->entry->name, err->text);
        return st;
    }
    p->n_asked++;
    IFL_TRY(ifl_plugin_request_json(&json, call, p->n_asked, out, err));
    if (!json) return IFL_OK;
    st = process_ask(p, call, json, out, err);
    json_decref(json);
    if (st != IFL_OK && st != IFL_NOMEM) process_give_up(p, call, err);
    return st;
}

static bool process_is_pure(const void *state) {
    return ((const process *)state)->pure;
}

const ifl_plugin_kind ifl_plugin_process = {process_create, process_check, process_destroy,
                                            process_is_pure};

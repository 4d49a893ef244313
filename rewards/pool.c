#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "rewards/message.h"
#include "rewards/pool_queue.h"
#include "rewards/spawn.h"
#include "rewards/spec.h"
#include "rewards/verdict_cache.h"

#define MS_NS ((int64_t)1000000)
#define START_MS 10000       /* from exec to hello, on a loaded machine */
#define END_GRACE_MS 100     /* from a closed socket to SIGKILL: shows how a crash really ended */
#define RESTART_MS_MAX 5000  /* longest pause between failed starts */
#define START_FAILURES_MAX 3 /* in a row, after which waiting requests are UNAVAILABLE */
#define REAP_TICK_MS 2
#define IDLE_DEATH_PAUSE_MS 50
/* Times that a request goes to another worker since one was not fit for it. */
#define NOT_RUN_MAX 3

/* A worker's life: ABSENT -> STARTING (executed, no hello yet) -> SETUP (makes its checkers ready)
 * -> IDLE <-> BUSY -> ENDING -> ABSENT. */
typedef enum {
    SLOT_ABSENT,
    SLOT_STARTING,
    SLOT_SETUP,
    SLOT_IDLE,
    SLOT_BUSY,
    SLOT_ENDING
} slot_state;

typedef ifl_job job;

typedef struct slot {
    slot_state state;
    pid_t pid;
    int fd;             /* -1 = closed */
    const uint8_t *out; /* [n_out] being sent; borrows from the job or the pool */
    size_t n_out, n_sent;
    job *job; /* BUSY: running. ENDING: ended by the worker's death, whose cause isn't known yet */
    int64_t
        deadline_ns;  /* STARTING: hello; SETUP, BUSY: reply; ENDING: SIGKILL; ABSENT: next start */
    int64_t pause_ns; /* before the next start */
    int32_t n_unfit;  /* ends in a row that its replies asked for */
    bool killed;
    size_t n_in;
    uint8_t in[IFL_REWARD_REPLY_MAX];
} slot;

struct ifl_reward_pool {
    ifl_reward_pool_options options;
    char *program;
    uint8_t *setup; /* [n_setup] what each worker is told first */
    size_t n_setup;
    int32_t start_ms;        /* for that */
    ifl_status setup_status; /* whose fault it was that a worker could not set up */
    ifl_pool_queue queue;
    ifl_job_list resting, done;
    ifl_verdict_cache *cache; /* NULL: none is wanted */
    bool plugged;             /* a worker may come back with another version of a plug-in */
    int64_t n_cached;
    slot *slots;
    struct pollfd *polls;
    int32_t n_start_failures;
    char start_failure[IFL_REWARD_REASON_MAX];
};

/* A pause that doubles with every failure in a row. */
static int64_t pause_ns(int32_t n_failures) {
    int64_t pause_ms = IDLE_DEATH_PAUSE_MS;
    for (int32_t i = 0; i < n_failures && pause_ms < RESTART_MS_MAX; i++)
        pause_ms *= 2;
    return (pause_ms < RESTART_MS_MAX ? pause_ms : RESTART_MS_MAX) * MS_NS;
}

static void job_finish(ifl_reward_pool *pool, job *j, ifl_reward_status status,
                       const char *reason) {
    int64_t now = ifl_clock_ns();
    bool failed = status == IFL_REWARD_CHECKER_ERROR || status == IFL_REWARD_UNAVAILABLE;
    if (failed && j->frame && j->n_retries < pool->options.retries) {
        j->rest_until_ns = now + pause_ns(++j->n_retries);
        ifl_job_list_push(&pool->resting, j);
        return;
    }
    int64_t started = j->dispatched_ns ? j->dispatched_ns : now;
    free(j->frame);
    j->frame = NULL;
    j->reward.status = status;
    j->reward.queued_s = (float)((double)(started - j->submitted_ns) * 1e-9);
    j->reward.run_s = (float)((double)(now - started) * 1e-9);
    snprintf(j->reason, sizeof j->reason, "%s", reason);
    ifl_job_list_push(&pool->done, j);
}

/* With a pause, so that a broken program isn't executed in a loop. */
static void slot_start_failed(ifl_reward_pool *pool, slot *s, const char *why) {
    s->pause_ns = pause_ns(pool->n_start_failures);
    s->deadline_ns =
        ifl_clock_ns() + s->pause_ns; /* of an ABSENT one; an ENDING one sets its own */
    if (pool->n_start_failures < START_FAILURES_MAX) pool->n_start_failures++;
    snprintf(pool->start_failure, sizeof pool->start_failure, "%s", why);
}

static void slot_start(ifl_reward_pool *pool, slot *s) {
    char why[200];
    int pair[2], code = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        snprintf(why, sizeof why, "socketpair: %s", strerror(errno));
        slot_start_failed(pool, s, why);
        return;
    }
    pair[0] = ifl_fd_above_stdio(pair[0]);
    pair[1] = ifl_fd_above_stdio(pair[1]);
    if (pair[0] < 0 || pair[1] < 0) code = EMFILE;
    if (!code) code = ifl_spawn_helper(pool->program, "reward-worker", pair[1], true, &s->pid);
    if (pair[1] >= 0) close(pair[1]);
    if (code) {
        if (pair[0] >= 0) close(pair[0]);
        snprintf(why, sizeof why, "cannot execute %.100s: %s", pool->program, strerror(code));
        s->pid = 0;
        slot_start_failed(pool, s, why);
        return;
    }
    s->fd = pair[0];
    s->state = SLOT_STARTING;
    s->killed = false;
    s->n_in = 0;
    s->deadline_ns = ifl_clock_ns() + START_MS * MS_NS;
}

/* Begins a worker's end: with `kill_now` at once, else after a moment in which it may end by
 * itself. */
static void slot_end(slot *s, bool kill_now) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    s->state = SLOT_ENDING;
    s->deadline_ns = ifl_clock_ns() + END_GRACE_MS * MS_NS;
    if (kill_now) {
        kill(-s->pid, SIGKILL);
        s->killed = true;
    }
}

/* Reaps an ENDING worker once it is dead. Its group is killed first, while the zombie still holds
 * the group's number. */
static void slot_reap(ifl_reward_pool *pool, slot *s) {
    siginfo_t info = {0};
    int code = waitid(P_PID, (id_t)s->pid, &info, WEXITED | WNOWAIT | WNOHANG);
    bool gone = code != 0 && errno == ECHILD;
    if (!gone && (code != 0 || info.si_pid != s->pid)) {
        if (!s->killed && ifl_clock_ns() >= s->deadline_ns) {
            kill(-s->pid, SIGKILL);
            s->killed = true;
        }
        return;
    }
    int status = 0;
    if (!gone) {
        kill(-s->pid, SIGKILL);
        while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR) {
        }
    }
    char why[160], end[128];
    if (s->killed)
        snprintf(why, sizeof why, "closed its socket without a reply and was killed");
    else if (gone)
        snprintf(why, sizeof why, "ended, and its exit status was taken by somebody else");
    else
        snprintf(why, sizeof why, "%s before it replied", ifl_wait_text(end, status));
    if (s->job) job_finish(pool, s->job, IFL_REWARD_CHECKER_ERROR, why);
    s->job = NULL;
    s->state = SLOT_ABSENT;
    s->pid = 0;
    s->deadline_ns = ifl_clock_ns() + s->pause_ns;
    s->pause_ns = 0;
}

/* Ends a worker that broke the rules; its job, if any, gets the reason now. */
static void slot_fail(ifl_reward_pool *pool, slot *s, const char *reason) {
    bool starting = s->state == SLOT_STARTING || s->state == SLOT_SETUP;
    if (s->job) job_finish(pool, s->job, IFL_REWARD_CHECKER_ERROR, reason);
    s->job = NULL;
    if (starting) slot_start_failed(pool, s, reason);
    slot_end(s, true);
}

static void slot_send(slot *s) {
    while (s->n_sent < s->n_out) {
        ssize_t n =
            send(s->fd, s->out + s->n_sent, s->n_out - s->n_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n < 0 && s->state == SLOT_SETUP) return; /* the end of file that follows says it */
        if (n < 0) {
            slot_end(s, false); /* it closed its end: how it died is the job's reason */
            return;
        }
        s->n_sent += (size_t)n;
    }
}

static void slot_say(slot *s, const uint8_t *bytes, size_t n) {
    s->out = bytes;
    s->n_out = n;
    s->n_sent = s->n_in = 0;
    slot_send(s);
}

static void slot_dispatch(ifl_reward_pool *pool, slot *s, job *j) {
    s->job = j;
    s->job->dispatched_ns = ifl_clock_ns();
    s->state = SLOT_BUSY;
    s->deadline_ns = s->job->dispatched_ns + pool->options.timeout_ms * MS_NS;
    slot_say(s, s->job->frame, s->job->n_frame);
}

static void slot_set_up(ifl_reward_pool *pool, slot *s, const ifl_reward *reward,
                        const char *reason) {
    if (reward->status != IFL_REWARD_OK) {
        if (reward->status == IFL_REWARD_BAD_TASK) pool->setup_status = IFL_FORMAT;
        slot_fail(pool, s, reason);
        return;
    }
    s->state = SLOT_IDLE;
    s->n_in = 0;
    pool->n_start_failures = 0;
    if (pool->cache && pool->plugged) ifl_verdict_cache_clear(pool->cache);
}

static void slot_reply(ifl_reward_pool *pool, slot *s, const ifl_reward *reward, const char *reason,
                       uint32_t flags) {
    job *j = s->job;
    bool keep = pool->cache && (flags & IFL_REPLY_PURE) && ifl_reward_is_verdict(reward->status);
    if (keep) ifl_verdict_cache_put(pool->cache, j->key, s->in, s->n_in);
    s->job = NULL;
    s->state = SLOT_IDLE;
    s->n_in = 0;
    if ((flags & IFL_REPLY_NOT_RUN) && j->n_not_run++ < NOT_RUN_MAX) {
        j->rest_until_ns = 0;
        ifl_job_list_push(&pool->resting, j);
    } else {
        j->reward = *reward;
        job_finish(pool, j, reward->status, reason);
    }
    if (flags & IFL_REPLY_LAST) {
        s->pause_ns = pause_ns(s->n_unfit++);
        slot_end(s, true);
    } else {
        s->n_unfit = 0;
    }
}

/* Whether the bytes read so far are, or may become, what this state waits for. */
static void slot_take(ifl_reward_pool *pool, slot *s) {
    if (s->state == SLOT_STARTING) {
        size_t n = s->n_in < sizeof IFL_REWARD_HELLO ? s->n_in : sizeof IFL_REWARD_HELLO;
        if (memcmp(s->in, IFL_REWARD_HELLO, n) != 0 || s->n_in > sizeof IFL_REWARD_HELLO) {
            slot_fail(pool, s, "the program said something else than a reward worker's hello");
        } else if (s->n_in == sizeof IFL_REWARD_HELLO) {
            s->state = SLOT_SETUP;
            s->deadline_ns = ifl_clock_ns() + (START_MS + pool->start_ms) * MS_NS;
            slot_say(s, pool->setup, pool->n_setup);
        }
        return;
    }
    if (s->state == SLOT_IDLE) {
        slot_fail(pool, s, "garbage: bytes from an idle worker");
        return;
    }
    if (s->n_in < 4) return;
    size_t n = ifl_reward_frame_length(s->in);
    uint64_t id = 0;
    uint32_t flags = 0;
    ifl_reward reward;
    ifl_error err = {0};
    char reason[IFL_REWARD_REASON_MAX], text[IFL_REWARD_REASON_MAX];
    bool fine = n <= sizeof s->in - 4 && s->n_in <= n + 4;
    if (!fine)
        ifl_fail(&err, IFL_FORMAT, "a reply of %zu bytes with %zu behind its head", n, s->n_in - 4);
    else if (s->n_in < n + 4)
        return;
    if (fine)
        fine = ifl_reward_reply_decode(s->in + 4, n, &id, &reward, reason, &flags, &err) == IFL_OK;
    if (fine && (id != (s->job ? s->job->id : 0) || s->n_sent < s->n_out)) {
        ifl_fail(&err, IFL_FORMAT, "a reply to a request that was not made");
        fine = false;
    }
    if (!fine) {
        snprintf(text, sizeof text, "garbage from the worker: %.900s", err.text);
        slot_fail(pool, s, text);
        return;
    }
    if (s->state == SLOT_SETUP)
        slot_set_up(pool, s, &reward, reason);
    else
        slot_reply(pool, s, &reward, reason, flags);
}

static void slot_receive(ifl_reward_pool *pool, slot *s) {
    size_t room = sizeof s->in - s->n_in;
    IFL_ASSERT(room > 0); /* slot_take refuses a reply that would fill it */
    ssize_t n = recv(s->fd, s->in + s->n_in, room, MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n <= 0) {
        if (s->state == SLOT_STARTING || s->state == SLOT_SETUP) {
            slot_fail(pool, s,
                      s->state == SLOT_SETUP ? "the worker ended while it made its checkers ready"
                                             : "the program ended without a reward worker's hello");
            return;
        }
        if (!s->job) s->pause_ns = IDLE_DEATH_PAUSE_MS * MS_NS; /* no storm if it happens again */
        slot_end(s, false);
        return;
    }
    s->n_in += (size_t)n;
    slot_take(pool, s);
}

/* The thread of the pool may itself have been away for longer than the limit, in one slow decode
 * step: an answer that has come meanwhile is taken, and only a worker without one is late. */
static void slot_check_deadline(ifl_reward_pool *pool, slot *s, int64_t now) {
    char text[128];
    if (now < s->deadline_ns) return;
    slot_receive(pool, s);
    if (s->state == SLOT_STARTING) {
        snprintf(text, sizeof text, "no hello within %d ms", START_MS);
        slot_fail(pool, s, text);
    } else if (s->state == SLOT_SETUP) {
        snprintf(text, sizeof text, "its checkers were not ready within %d ms",
                 START_MS + pool->start_ms);
        slot_fail(pool, s, text);
    } else if (s->state == SLOT_BUSY) {
        snprintf(text, sizeof text, "timeout: no result within %d ms", pool->options.timeout_ms);
        slot_fail(pool, s, text);
    }
}

/* Whether the same was asked before and its verdict kept: the job then has it. */
static bool job_from_cache(ifl_reward_pool *pool, job *j) {
    size_t n = 0;
    uint64_t id;
    uint32_t flags;
    ifl_reward reward;
    char reason[IFL_REWARD_REASON_MAX];
    const uint8_t *frame = pool->cache ? ifl_verdict_cache_get(pool->cache, j->key, &n) : NULL;
    if (!frame) return false;
    ifl_status st = ifl_reward_reply_decode(frame + 4, n - 4, &id, &reward, reason, &flags, NULL);
    IFL_ASSERT(st == IFL_OK); /* it was when it came */
    j->reward = reward;
    pool->n_cached++;
    job_finish(pool, j, reward.status, reason);
    return true;
}

/* The next request for a free worker. What has been judged since it came needs none. */
static job *job_next(ifl_reward_pool *pool) {
    int32_t held[IFL_LANES_MAX] = {0}, n_free = 0;
    for (int32_t i = 0; i < pool->options.n_workers; i++) {
        const job *j = pool->slots[i].job;
        if (j) held[j->lane]++;
        n_free += !j;
    }
    job *j;
    do
        j = ifl_pool_queue_take(&pool->queue, held, n_free);
    while (j && job_from_cache(pool, j));
    return j;
}

static bool slot_has_deadline(const slot *s) {
    return s->state == SLOT_STARTING || s->state == SLOT_SETUP || s->state == SLOT_BUSY;
}

/* Starts what is missing, dispatches what waits, ends what is late. Never blocks. */
static void pool_advance(ifl_reward_pool *pool) {
    int64_t now = ifl_clock_ns();
    bool any_up = false;
    if (pool->resting.n > 0) ifl_pool_queue_wake(&pool->queue, &pool->resting, now);
    for (int32_t i = 0; i < pool->options.n_workers; i++) {
        slot *s = &pool->slots[i];
        if (s->state == SLOT_ENDING) slot_reap(pool, s);
        if (s->state == SLOT_ABSENT && now >= s->deadline_ns) slot_start(pool, s);
        if (slot_has_deadline(s)) slot_check_deadline(pool, s, now);
        job *j = s->state == SLOT_IDLE && pool->queue.n_waiting > 0 ? job_next(pool) : NULL;
        if (j) slot_dispatch(pool, s, j);
        any_up |= s->state == SLOT_IDLE || slot_has_deadline(s);
    }
    if (any_up || pool->n_start_failures < START_FAILURES_MAX) return;
    for (job *j; (j = ifl_pool_queue_take_any(&pool->queue));) {
        char text[IFL_REWARD_REASON_MAX];
        snprintf(text, sizeof text, "no reward worker can be started: %.900s", pool->start_failure);
        job_finish(pool, j, IFL_REWARD_UNAVAILABLE, text);
    }
}

/* Waits for something to happen until `until_ns` at most, and takes it in. */
static void pool_wait(ifl_reward_pool *pool, int64_t until_ns) {
    nfds_t n = 0;
    int64_t now = ifl_clock_ns(), wake = until_ns;
    for (int32_t i = 0; i < pool->options.n_workers; i++) {
        slot *s = &pool->slots[i];
        if (s->state == SLOT_ENDING && now + REAP_TICK_MS * MS_NS < wake)
            wake = now + REAP_TICK_MS * MS_NS;
        if (s->state != SLOT_ENDING && s->state != SLOT_IDLE && s->deadline_ns < wake)
            wake = s->deadline_ns;
        pool->polls[i].fd = s->fd; /* -1 is skipped by poll */
        pool->polls[i].events = POLLIN;
        pool->polls[i].revents = 0;
        if ((s->state == SLOT_BUSY || s->state == SLOT_SETUP) && s->n_sent < s->n_out)
            pool->polls[i].events |= POLLOUT;
        n++;
    }
    for (const job *j = pool->resting.first; j; j = j->next)
        if (j->rest_until_ns < wake) wake = j->rest_until_ns;
    int64_t ms = wake <= now ? 0 : (wake - now + MS_NS - 1) / MS_NS;
    if (poll(pool->polls, n, ms > 60000 ? 60000 : (int)ms) <= 0) return;
    for (int32_t i = 0; i < pool->options.n_workers; i++) {
        slot *s = &pool->slots[i];
        short events = pool->polls[i].revents;
        if (events & (POLLIN | POLLHUP | POLLERR)) slot_receive(pool, s);
        if ((events & POLLOUT) && (s->state == SLOT_BUSY || s->state == SLOT_SETUP)) slot_send(s);
    }
}

static ifl_status options_check(const ifl_reward_pool_options *o, ifl_error *err) {
    if (o->n_workers < 1 || o->n_workers > IFL_REWARD_WORKERS_MAX)
        return ifl_fail(err, IFL_USAGE, "reward workers: got %d, wanted 1 .. %d", o->n_workers,
                        IFL_REWARD_WORKERS_MAX);
    if (o->timeout_ms < 1 || o->timeout_ms > IFL_REWARD_TIMEOUT_MS_MAX)
        return ifl_fail(err, IFL_USAGE, "reward time limit: got %d ms, wanted 1 .. %d",
                        o->timeout_ms, IFL_REWARD_TIMEOUT_MS_MAX);
    if (o->queue_max < 1 || o->queue_max > IFL_REWARD_QUEUE_MAX)
        return ifl_fail(err, IFL_USAGE, "reward queue: got %d, wanted 1 .. %d", o->queue_max,
                        IFL_REWARD_QUEUE_MAX);
    return IFL_OK;
}

static bool pool_all_up(const ifl_reward_pool *pool) {
    for (int32_t i = 0; i < pool->options.n_workers; i++)
        if (pool->slots[i].state != SLOT_IDLE) return false;
    return true;
}

ifl_status ifl_reward_pool_create(ifl_reward_pool **out, const ifl_reward_pool_options *options,
                                  ifl_error *err) {
    *out = NULL;
    IFL_TRY(options_check(options, err));
    ifl_spec *spec;
    IFL_TRY(ifl_spec_parse(&spec, options->checkers, err));
    int32_t start_ms = ifl_spec_start_ms(spec);
    bool plugged = ifl_spec_has_plugins(spec);
    ifl_spec_free(spec);
    ifl_reward_pool *pool = calloc(1, sizeof *pool);
    if (!pool) goto no_memory;
    pool->options = *options;
    pool->options.program = NULL; /* the copies below are what counts */
    pool->options.checkers = NULL;
    pool->start_ms = start_ms;
    pool->plugged = plugged;
    pool->setup_status = IFL_PEER;
    pool->program = strdup(options->program ? options->program : "/proc/self/exe");
    pool->slots = calloc((size_t)options->n_workers, sizeof *pool->slots);
    pool->polls = calloc((size_t)options->n_workers, sizeof *pool->polls);
    if (!pool->program || !pool->slots || !pool->polls ||
        ifl_reward_setup_encode(options->timeout_ms, options->require, options->checkers,
                                &pool->setup, &pool->n_setup, err) != IFL_OK)
        goto no_memory;
    if (options->cache_bytes > 0 &&
        ifl_verdict_cache_create(&pool->cache, options->cache_bytes, err) != IFL_OK)
        goto no_memory;
    for (int32_t i = 0; i < options->n_workers; i++)
        pool->slots[i].fd = -1;
    int64_t until_ns = ifl_clock_ns() + (2 * START_MS + start_ms) * MS_NS;
    for (pool_advance(pool); !pool_all_up(pool); pool_advance(pool)) {
        bool late = ifl_clock_ns() >= until_ns;
        if (late || pool->n_start_failures > 0) {
            ifl_status st = pool->setup_status;
            ifl_fail(err, st, "reward workers (%s reward-worker): %s", pool->program,
                     pool->n_start_failures > 0 ? pool->start_failure : "not up in time");
            ifl_reward_pool_free(pool);
            return st;
        }
        pool_wait(pool, until_ns);
    }
    *out = pool;
    return IFL_OK;
no_memory:
    ifl_reward_pool_free(pool);
    return ifl_fail(err, IFL_NOMEM, "no memory for %d reward workers", options->n_workers);
}

void ifl_reward_pool_free(ifl_reward_pool *pool) {
    if (!pool) return;
    for (int32_t i = 0; pool->slots && i < pool->options.n_workers; i++) {
        slot *s = &pool->slots[i];
        if (s->pid > 0) {
            kill(-s->pid, SIGKILL);
            while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR) {
            }
        }
        if (s->fd >= 0) close(s->fd);
        ifl_job_free(s->job);
    }
    for (job *j; (j = ifl_pool_queue_take_any(&pool->queue));)
        ifl_job_free(j);
    ifl_job_list_clear(&pool->resting);
    ifl_job_list_clear(&pool->done);
    ifl_verdict_cache_free(pool->cache);
    free(pool->setup);
    free(pool->polls);
    free(pool->slots);
    free(pool->program);
    free(pool);
}

ifl_status ifl_reward_pool_submit(ifl_reward_pool *pool, const ifl_reward_request *request,
                                  ifl_error *err) {
    /* Results that nobody collects count too, so that memory is bounded by the queue's size. */
    if (pool->queue.n_waiting + pool->resting.n >= pool->options.queue_max ||
        pool->done.n >= pool->options.queue_max)
        return ifl_fail(err, IFL_FULL, "reward queue: %d requests wait, that is its size",
                        pool->options.queue_max);
    job *j = calloc(1, sizeof *j);
    if (!j) return ifl_fail(err, IFL_NOMEM, "no memory for a reward request");
    ifl_error why = {0};
    j->id = request->id;
    j->submitted_ns = ifl_clock_ns();
    snprintf(j->reward.checker, sizeof j->reward.checker, "%.60s", request->checker);
    ifl_reward_request timed = *request;
    timed.timeout_ms = pool->options.timeout_ms;
    ifl_status st = ifl_reward_request_encode(&timed, &j->frame, &j->n_frame, &why);
    if (st == IFL_LIMIT) {
        job_finish(pool, j, IFL_REWARD_UNDECIDED, why.text);
        return IFL_OK;
    }
    if (st != IFL_OK) {
        ifl_job_free(j);
        return ifl_fail(err, st, "%s", why.text);
    }
    /* All but the length, the request's number and the time limit, which no verdict depends on: one
     * that met it is none. */
    j->key =
        ifl_hash_bytes(j->frame + IFL_REWARD_REQUEST_ASKED, j->n_frame - IFL_REWARD_REQUEST_ASKED);
    j->lane = ifl_pool_queue_lane(&pool->queue, request->checker);
    if (job_from_cache(pool, j)) return IFL_OK;
    ifl_pool_queue_push(&pool->queue, j);
    pool_advance(pool);
    return IFL_OK;
}

ifl_status ifl_reward_pool_collect(ifl_reward_pool *pool, int64_t wait_ms, uint64_t *id,
                                   ifl_reward *out, ifl_error *err) {
    int64_t until_ns = ifl_clock_ns() + (wait_ms > 0 ? wait_ms : 0) * MS_NS;
    for (bool late = false;; late = ifl_clock_ns() >= until_ns) {
        pool_advance(pool);
        job *j = ifl_job_list_pop(&pool->done);
        if (j) {
            *id = j->id;
            *out = j->reward;
            if (!ifl_reward_is_verdict(out->status)) ifl_reward_set_reason(out, j->reason);
            if (*j->reason) ifl_fail(err, IFL_OK, "checker %s: %s", out->checker, j->reason);
            ifl_job_free(j);
            return IFL_OK;
        }
        if (late || (wait_ms > 0 && ifl_reward_pool_pending(pool) == 0))
            return ifl_fail(err, IFL_AGAIN, "no reward is ready");
        pool_wait(pool, until_ns);
    }
}

int32_t ifl_reward_pool_pending(const ifl_reward_pool *pool) {
    int32_t n = pool->queue.n_waiting + pool->resting.n + pool->done.n;
    for (int32_t i = 0; i < pool->options.n_workers; i++)
        n += pool->slots[i].job != NULL;
    return n;
}

ifl_reward_pool_stats ifl_reward_pool_stats_get(const ifl_reward_pool *pool) {
    return (ifl_reward_pool_stats){
        .n_cached = pool->n_cached,
        .n_kept = pool->cache ? ifl_verdict_cache_size(pool->cache) : 0,
        .kept_bytes = pool->cache ? ifl_verdict_cache_bytes(pool->cache) : 0,
    };
}

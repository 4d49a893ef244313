/* The checker interface. A checker gives a status beside its reward: an error is never a zero.
 * Checkers run in killable worker processes beside the actor, never in its decode thread. */
#ifndef IFL_REWARDS_REWARD_H
#define IFL_REWARDS_REWARD_H

#include "common/trajectory.h"

#define IFL_ANSWER_BYTES_MAX (1 << 20) /* of one completion or answer */

typedef struct ifl_reward_request {
    uint64_t id;            /* the caller's */
    const char *checker;    /* name in the registry */
    const char *prompt;     /* text */
    const char *completion; /* text, stop string cut off */
    size_t n_completion;
    const char *answer; /* the task's */
    const char *meta;   /* JSON text or "" */
    ifl_finish finish;
    int32_t timeout_ms; /* after which the pool kills the worker (set by it); 0: never */
    void *state;        /* for the checker: what its create made, else NULL; never on the wire */
} ifl_reward_request;

#define IFL_CHECKER_PURE 1u          /* the same request has the same verdict: it may be kept */
#define IFL_CHECKER_RUNS_PROGRAMS 2u /* the policy's: it needs the sandbox */

/* One checker: a pure function of the request. Runs inside a worker process. `out` comes zeroed but
 * for status NONE; a status that is no verdict comes with its reason in `err`, a verdict may.
 * Rewards lie in [-1, 1], right is 1. A return other than IFL_OK means that the check itself failed
 * (no memory, say): CHECKER_ERROR, never a zero. */
typedef struct ifl_checker {
    const char *name;
    const char *version;
    const char *help; /* what it expects as answer and meta, one line */
    ifl_status (*check)(const ifl_reward_request *request, ifl_reward *out, ifl_error *err);
    uint32_t flags;             /* IFL_CHECKER_... */
    const char *const *options; /* keys that `options` may have, ends with NULL; NULL: any */
    /* Both NULL for one without a state. Once in a worker before the first check, with the options
     * as JSON text ("{}" without any); options that make no sense are IFL_FORMAT and end the start.
     */
    ifl_status (*create)(void **state, const char *options, ifl_error *err);
    void (*destroy)(void *state);
} ifl_checker;

/* NULL when there is none of that name. */
const ifl_checker *ifl_checker_find(const char *name);
int ifl_checker_list(const ifl_checker **out, int max);

/* --- Worker processes
 * ---------------------------------------------------------------------------------- A pool of
 * processes, each with a request socket; a worker past its time limit is killed with its whole
 * process group and replaced, and the request gets IFL_REWARD_CHECKER_ERROR. Workers are not forked
 * but executed (`program` with the one argument "reward-worker"), so that a replacement is safe in
 * a process with threads. They see none of this process's descriptors and little of its
 * environment, and die with the thread that started them: the pool belongs to one thread that lives
 * as long as the pool. */
typedef struct ifl_reward_pool ifl_reward_pool;

#define IFL_REWARD_WORKERS_MAX 256
#define IFL_REWARD_QUEUE_MAX 65536
#define IFL_REWARD_TIMEOUT_MS_MAX 3600000
/* "1" in the environment lets the checker "test_fault" be found: it misbehaves as its answer says
 * (sleep, spin, crash, exit, fork, garbage, flood, nan, fail, ok). For tests. */
#define IFL_REWARD_TEST_FAULTS "IFL_REWARD_TEST_FAULTS"

typedef struct ifl_reward_pool_options {
    int32_t n_workers;
    int32_t timeout_ms;
    int32_t queue_max;        /* requests waiting; more is IFL_FULL */
    const char *program;      /* executed with "reward-worker"; NULL: /proc/self/exe */
    const char *checkers;     /* reward.checkers (rewards/spec.h); NULL: built-ins alone */
    int32_t retries;          /* of a request that ended as CHECKER_ERROR or UNAVAILABLE */
    ifl_sandbox_tier require; /* the least for a policy's programs; NONE: IFL_TIER_NS */
    int64_t cache_bytes;      /* of verdicts kept for requests that come again; 0: none */
} ifl_reward_pool_options;

typedef struct ifl_reward_pool_stats {
    int64_t n_cached; /* results that were kept from an earlier request */
    int32_t n_kept;   /* verdicts now */
    int64_t kept_bytes;
} ifl_reward_pool_stats;

/* Starts the workers and waits until each has said hello and made its checkers ready: a program
 * that is none of ours, or a plug-in that doesn't start, is IFL_PEER; a wrong option is IFL_USAGE
 * or IFL_FORMAT. */
ifl_status ifl_reward_pool_create(ifl_reward_pool **out, const ifl_reward_pool_options *options,
                                  ifl_error *err);
void ifl_reward_pool_free(ifl_reward_pool *pool); /* kills and reaps all workers */

/* Requests of one checker are taken in the order they came, checkers in turn; a slow one is not
 * given the last free worker of several while another, used lately, has none. A request that equals
 * one before (same checker, prompt, completion, answer, meta and finish) is answered with that
 * one's verdict if a pure checker gave it (IFL_CHECKER_PURE, or a plug-in that says so; of a
 * composition all parts), except for time limits: its seconds alone differ.
 *
 * Copies the request. IFL_FULL when the queue is full: try again after a collect. Never blocks. A
 * text over IFL_ANSWER_BYTES_MAX is accepted and comes back as UNDECIDED. */
ifl_status ifl_reward_pool_submit(ifl_reward_pool *pool, const ifl_reward_request *request,
                                  ifl_error *err);

/* Moves things along (dispatch, timeouts) and returns one finished result if there is one. Waits at
 * most wait_ms. IFL_AGAIN: none ready. The time limit counts from the dispatch to a worker that is
 * up. With IFL_OK and out->status other than OK, `err` holds the reason: BAD_TASK and UNDECIDED the
 * checker's, CHECKER_ERROR "timeout ...", "crashed with signal N ...", "garbage ...", UNAVAILABLE
 * why no worker could be started. */
ifl_status ifl_reward_pool_collect(ifl_reward_pool *pool, int64_t wait_ms, uint64_t *id,
                                   ifl_reward *out, ifl_error *err);
ifl_reward_pool_stats ifl_reward_pool_stats_get(const ifl_reward_pool *pool);
int32_t ifl_reward_pool_pending(const ifl_reward_pool *pool); /* submitted, not yet collected */

/* What a worker process runs: requests from in_fd, results to out_fd, until end of file. Returns
 * its exit code. */
int ifl_reward_worker_main(int in_fd, int out_fd);

#endif

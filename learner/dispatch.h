/* The learner's desk: hands tasks to actors, takes finished trajectories in, and keeps the books,
 * on a thread of its own, so that an optimizer step never keeps an actor waiting.
 *
 *   pipeline   train groups are opened as long as fewer than `in_flight` are open and not yet taken
 *   sync, async:k   the training thread opens each step's groups with the version they must be made
 * by. Such work is leased only to actors that have this version in use, and no actor is told to go
 * on to a newer one before all work of older versions is here: so every token has its version
 * however slow or short-lived an actor is.
 *
 * Only answers to leases that this learner process gave are taken. One to an earlier process's may
 * hold tokens of versions that are other weights in this history.
 *
 * Evaluation is a lease with purpose `eval` under one required version; its tasks go out before any
 * training task, except for those of async:k that are pinned to an older version. Every function is
 * thread-safe; one lock guards everything inside. */
#ifndef IFL_LEARNER_DISPATCH_H
#define IFL_LEARNER_DISPATCH_H

#include <stdatomic.h>

#include "common/rollout_log.h"
#include "common/task.h"
#include "common/transport.h"
#include "learner/groups.h"
#include "learner/redo.h"

typedef struct ifl_dispatch ifl_dispatch;

typedef struct ifl_dispatch_options {
    const ifl_config *config; /* borrowed, as all below */
    ifl_server *server;
    ifl_task_set *train, *eval; /* eval may be NULL */
    ifl_rollout_log *log;
    ifl_hash profile;     /* the learner's numerics profile: trajectories of another one are refused
                           * or, with parity.mismatch, taken */
    uint64_t next_serial; /* task cursor: 0, or from a checkpoint */
    uint64_t first_lease; /* lease ids ascend from here; random, so that no two processes of a run
                           * share one; 0 = 1 */
    const uint64_t *reopen;            /* serials that were open at the checkpoint */
    const ifl_task_pick *reopen_picks; /* [n_reopen] their tasks; NULL: as the set draws them */
    int32_t n_reopen;
    int64_t reopen_version;      /* that they must be made by: lock-step modes repeat; -1 = any */
    const atomic_bool *stop;     /* true: waits for groups and evaluations end; NULL = never */
    const atomic_bool *hopeless; /* true: no actor will ever come (again); NULL = never */
    const ifl_groups_counts *counts; /* of the earlier part of the run; NULL at the start */
    ifl_redo *redo;       /* what the log says has happened since; NULL = nothing. Changed by it */
    const char *rollouts; /* folder of the log that redo was read from */
    int32_t vocab_size;   /* for the answers in it */
} ifl_dispatch_options;

/* Starts the thread. Nothing is leased before the first request for groups or an evaluation. */
ifl_status ifl_dispatch_create(ifl_dispatch **out, const ifl_dispatch_options *options,
                               ifl_error *err);
void ifl_dispatch_free(ifl_dispatch *dispatch); /* NULL is fine; the log must still be open */

/* pipeline: keeps `in_flight` groups open from now on; 0 stops opening. */
void ifl_dispatch_set_in_flight(ifl_dispatch *dispatch, int32_t in_flight);

/* sync, async: opens the next n groups (0: none beyond those of a checkpoint), to be generated
 * under exactly `version`, and begins to lease. */
ifl_status ifl_dispatch_open_batch(ifl_dispatch *dispatch, int32_t n, int64_t version,
                                   ifl_error *err);

/* The same until n groups are open that no step has taken: what a step needs beyond its batch, some
 * of which a checkpoint in its midst may have brought. */
ifl_status ifl_dispatch_open_up_to(ifl_dispatch *dispatch, int32_t n, int64_t version,
                                   ifl_error *err);

/* Waits for n complete groups and takes them for `step` (learner/groups.h): after a restart those
 * that it took before, as long as the log names them. What is taken is written to the log.
 * IFL_STOPPED when *stop becomes true; IFL_TIMEOUT when for `idle_s` no trajectory has come in and
 * no actor has sampled a token; a fatal error of the desk otherwise. */
ifl_status ifl_dispatch_take(ifl_dispatch *dispatch, int64_t step, int32_t n, ifl_take_order order,
                             double idle_s, ifl_group **out, ifl_error *err);

/* The same for staleness.policy = wait (learner/staleness.h): n of the `left` groups that `step`
 * still takes. */
ifl_status ifl_dispatch_take_fresh(ifl_dispatch *dispatch, int64_t step, int32_t left, int32_t n,
                                   double idle_s, ifl_group **out, ifl_error *err);

/* Ends taken groups in the table and in the log: outcomes[i] for group i's members. */
ifl_status ifl_dispatch_close(ifl_dispatch *dispatch, int64_t step, ifl_group **groups, int32_t n,
                              ifl_member_outcome *const *outcomes, const bool *skipped,
                              ifl_error *err);

/* For the pass_rate sampler: what share of a task's answers was right. */
void ifl_dispatch_report(ifl_dispatch *dispatch, const char *task_id, double pass_rate);

/* Tells the desk the newest announced version (trajectories of unheard-of ones are refused). */
void ifl_dispatch_set_version(ifl_dispatch *dispatch, int64_t version);

/* A version is about to be announced: `content` is its ifl_weights_hash. Any thread. */
void ifl_dispatch_published(ifl_dispatch *dispatch, int64_t version, ifl_hash content);

/* Whether what an earlier process did is still being done again. Until then every version must be
 * published before the next one is. */
bool ifl_dispatch_redoing(ifl_dispatch *dispatch);
/* It cannot be, because of `why`: a warning, and what is left is generated again. */
ifl_status ifl_dispatch_stop_redoing(ifl_dispatch *dispatch, const char *why, ifl_error *err);

/* Waits until all connected actors report a version >= `version` in use. */
ifl_status ifl_dispatch_wait_applied(ifl_dispatch *dispatch, int64_t version, double idle_s,
                                     ifl_error *err);

/* What an evaluation gives: one task's answers, all of them here or given up. Everything is
 * borrowed for the call, which happens under the desk's lock; anything but IFL_OK ends the
 * evaluation. */
typedef ifl_status (*ifl_dispatch_eval_take)(void *user, int32_t number, const ifl_task *task,
                                             bool greedy, const ifl_group *answers, ifl_error *err);

/* One evaluation: `n_tasks` tasks of the eval set, greedy, and with n_samples > 0 also that many
 * samples each at the training temperature. Blocks, then calls `take` for tasks 0 .. n_tasks - 1
 * with their greedy answer, and after that once more for each with its samples. */
ifl_status ifl_dispatch_eval(ifl_dispatch *dispatch, int32_t n_tasks, int32_t n_samples,
                             int64_t version, double idle_s, ifl_dispatch_eval_take take,
                             void *user, ifl_error *err);

typedef struct ifl_dispatch_stats {
    int32_t n_actors, n_namesakes; /* live; those of them that share a name */
    int64_t tokens_generated; /* policy tokens of stored training trajectories */
    int64_t tokens_eval;
    int64_t trajectories_stored;
    int64_t swaps;             /* reported by actors: versions taken into use after the first */
    int64_t rejected;          /* trajectories refused by the checks */
    int64_t foreign;           /* stored ones of another numerics profile, evaluation included */
    int64_t late;              /* refused: the lease they answer had been withdrawn */
    double actor_tokens_per_s; /* sum over live actors, last report */
    double decode_step_ms_p50; /* mean over actors */
    double kv_pages_used;      /* share, mean over actors */
    int64_t sequences_swapped, tokens_rebuilt, preemptions;
    int64_t rewards_cached; /* verdicts kept from an earlier answer that was the same */
} ifl_dispatch_stats;
void ifl_dispatch_stats_get(ifl_dispatch *dispatch, ifl_dispatch_stats *out);
ifl_groups_counts ifl_dispatch_counts(ifl_dispatch *dispatch);

/* p-quantile of all reported swap stalls, ms; 0 when there was none. */
double ifl_dispatch_stall_ms(ifl_dispatch *dispatch, double p);

/* For checkpoints: the task cursor and the serials (and tasks) of groups that are not closed now;
 * returns how many (at most max are written; picks NULL: none). Taken ones are among them: a
 * request to stop can come when a step has taken a part of its groups, and none of these has been
 * trained. */
int32_t ifl_dispatch_cursor(ifl_dispatch *dispatch, uint64_t *next_serial, uint64_t *serials,
                            ifl_task_pick *picks, int32_t max);

/* Puts "this step can be resumed from" into the log, which belongs to the desk while it lives. */
ifl_status ifl_dispatch_log_checkpoint(ifl_dispatch *dispatch, int64_t step, ifl_error *err);

/* Stops leasing and writes the run's end with every key that is in flight to the log. */
ifl_status ifl_dispatch_end(ifl_dispatch *dispatch, int64_t step, const char *reason,
                            ifl_error *err);

#endif

/* The desk's insides, shared by dispatch.c (its life and the learner's side) and dispatch_desk.c
 * (what its thread does: leases out, trajectories in). Not for other files. */
#ifndef IFL_LEARNER_DISPATCH_INTERNAL_H
#define IFL_LEARNER_DISPATCH_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "kernels/model.h"
#include "learner/dispatch.h"
#include "learner/error_share.h"
#include "learner/redo.h"
#include "learner/staleness.h"

#define STALLS_MAX 65536

typedef struct desk_peer {
    uint64_t peer;
    char name[IFL_WIRE_NAME_MAX];
    int32_t capacity, outstanding;  /* sequences */
    int64_t version_done;           /* in use there; -1 = not known yet */
    int64_t version_told;           /* that it may go on to (lock-step modes) */
    uint64_t first_lease;           /* of this session: earlier ones are not its own any more */
    uint64_t last_lease;            /* that it was given; 0 = none yet */
    bool too_small;                 /* it has handed back work that can never fit there */
    int32_t minor;                  /* of the protocol that it speaks at most */
    int32_t n_handed_back, n_begun; /* answers that it gave up in order; those with a beginning */
    int64_t tokens_begun;
    uint64_t full_at;  /* the turn in which its queue had no room for a lease */
    int32_t n_refused; /* answers to leases of its own that broke the rules */
    double joined_s;
    double tokens_per_s, step_ms_p50, pages_used;
    int64_t swaps, sequences_swapped, tokens_rebuilt, preemptions, rewards_cached;
} desk_peer;

/* What a group carries beside its members. */
typedef struct desk_work {
    ifl_task task;
    ifl_task_pick pick;       /* which one it is of its set */
    int64_t required_version; /* -1 = any */
    ifl_sampling sampling;    /* that its answers are asked for, and must say they were made by */
    int32_t attempt;
    int64_t version_leased; /* lowest version in use where it was leased; -1 = never leased */
} desk_work;

/* Messages taken in before the log goes to the disk once for all of them. */
#define DESK_BURST 64

/* What a trajectory is answered with once it is on the disk. */
typedef struct desk_answer {
    uint64_t peer;
    ifl_message message;
} desk_answer;

struct ifl_dispatch {
    const ifl_config *config;
    ifl_server *server;
    ifl_task_set *train_set, *eval_set;
    ifl_rollout_log *log;
    ifl_hash profile;
    bool admit_foreign;
    pthread_t thread;
    bool thread_started;
    atomic_bool quit;
    const atomic_bool *stop, *hopeless;

    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t changed;
    ifl_status failed; /* first fatal error of the desk's thread */
    ifl_error failure;
    bool leasing;
    uint64_t turn; /* of leasing, from 1 on */
    ifl_groups *train, *eval;
    uint64_t next_serial, first_lease, next_lease;
    bool directed; /* lock-step modes: the desk says when a version is taken into use */
    int32_t in_flight;
    int64_t version, first_version; /* newest, and the first one that this process made */
    desk_peer peers[IFL_PEERS_MAX];
    int32_t n_peers;
    double last_arrival_s;
    double stall_check_s;
    int64_t n_late; /* since the last line about them */
    double late_since_s;
    ifl_peer_info *infos;      /* [IFL_PEERS_MAX] scratch */
    ifl_error_share errors;    /* of what is stored from here on */
    ifl_dispatch_stats totals; /* of peers that have gone, and what the desk counts itself */
    float *stalls;
    int32_t n_stalls;
    int32_t *samples; /* scratch for one lease */
    desk_answer answers[DESK_BURST];
    int32_t n_answers;
    /* After a restart, until what the log says has been done again: see dispatch_redo.c. */
    const ifl_redo *redo; /* NULL: nothing to do again */
    ifl_rollout_reader *redo_reader;
    int64_t redo_step, redo_verified; /* resumed from; newest version proven to be what it was */
    int32_t redo_take;                /* next one */
    int64_t n_restored;
    int32_t vocab_size;
    uint64_t quarantine; /* a peer to be sent away after the answers; 0 = none */
    bool log_failed;     /* to reach the disk, once: nothing is acknowledged any more */
    double full_since_s; /* 0 = there is room. Else nothing is taken in, answered or leased */
    bool unflushed;      /* the log holds a trajectory that isn't on the disk */
};

/* All of these with the lock held, but for desk_thread. */

/* The first fatal error ends every wait, and so the run. */
void desk_fail(ifl_dispatch *d, const ifl_error *err);

/* Opens the group `serial` for a task of the set; version -1 = any. */
ifl_status desk_open(ifl_groups *groups, ifl_task_set *set, uint64_t serial, ifl_task_pick pick,
                     int32_t n_members, int64_t version, ifl_sampling sampling, ifl_error *err);
/* What the run samples with; greedy: the best token of all. */
ifl_sampling desk_sampling(const ifl_dispatch *d, bool greedy);
/* `pick`: its task; NULL: the one that the log gives a group that is to be open again, else what
 * the set draws now. Where draws cannot be repeated the log is told. */
ifl_status desk_open_train(ifl_dispatch *d, uint64_t serial, const ifl_task_pick *pick,
                           int64_t version, ifl_error *err);
void desk_work_free(desk_work *work); /* NULL is fine */
/* Open groups that no step has taken. */
int32_t desk_not_taken(ifl_dispatch *d);
/* Lock-step modes, `version` being the newest: of the groups that wait, those that no step of the
 * next k + 1 takes (a run was resumed with smaller batches, or another k) are to be made by later
 * versions, as if they were opened when their turn comes. Returns how many groups that are; *lag:
 * the largest lag at which answers will be trained that they have already; NULL: not asked for. */
int32_t desk_pin_ahead(ifl_dispatch *d, int64_t version, int64_t *lag);
/* The next n groups are about to be taken: none may wait for a version that comes after that. */
void desk_pin_now(ifl_dispatch *d, int32_t n);
/* The groups that are under way or complete and not taken, each with the lowest version that a
 * token of it has or may yet get; returns how many. Room for all open groups. */
int32_t desk_ages(ifl_dispatch *d, ifl_stale_group *ages, ifl_group **groups);
/* Lock-step modes: sends the actors on to the newest version once all work of older ones is here.
 */
void desk_direct(ifl_dispatch *d);

/* What ifl_trajectory_check cannot know: that this answer belongs to the group it names, and was
 * sampled as that asks. */
ifl_status desk_check_task(const ifl_dispatch *d, const ifl_group *group,
                           const ifl_trajectory *traj, ifl_error *err);

/* dispatch_redo.c. `redo` is borrowed until nothing is left to do again. */
ifl_status desk_redo_begin(ifl_dispatch *d, const ifl_redo *redo, const char *rollouts,
                           ifl_error *err);
/* Puts answers back into the groups that are open. */
ifl_status desk_redo_attach(ifl_dispatch *d, ifl_error *err);
/* Warns why; what is left is generated again. */
ifl_status desk_redo_give_up(ifl_dispatch *d, const char *why, ifl_error *err);
/* Whether answers of the group may come back yet, so that it is not to be leased. */
bool desk_redo_owes(const ifl_dispatch *d, uint64_t serial);
ifl_status desk_redo_published(ifl_dispatch *d, int64_t version, ifl_hash content, ifl_error *err);
/* The groups that `step` took then. *wait: not yet; neither: the step takes what comes. */
ifl_status desk_redo_take(ifl_dispatch *d, int64_t step, int32_t n, ifl_group **out, bool *taken,
                          bool *wait, ifl_error *err);

/* The log to the disk. IFL_FULL: no room there; the desk stands still until there is. */
ifl_status desk_flush(ifl_dispatch *d, ifl_error *err);

void *desk_thread(void *dispatch);

#endif

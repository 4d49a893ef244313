/* The learner's table of leased work: which groups are open, where each member is, and the books.
 *
 * A group is the G trajectories of one task serial. A member goes
 *     pending -> leased (to an actor) -> stored (its trajectory is here) -> trained | masked |
 * dropped back to pending when its actor is lost or hands it back, and straight to dropped when it
 * is given up. The books balance at every moment (ifl_groups_check): opened = pending + leased +
 * stored + trained + masked + sum over reasons of dropped. A pure data structure: no clock, no I/O,
 * no threads. One table per purpose (train, eval). */
#ifndef IFL_LEARNER_GROUPS_H
#define IFL_LEARNER_GROUPS_H

#include "common/trajectory.h"

#define IFL_GROUPS_MAX (1 << 20)
#define IFL_GROUP_SIZE_MAX 4096

typedef enum {
    IFL_MEMBER_PENDING,
    IFL_MEMBER_LEASED,
    IFL_MEMBER_STORED,
    IFL_MEMBER_DROPPED,
} ifl_member_state;

/* Checkpoints and logs hold the texts, never the numbers. */
#define IFL_DROP_MAP(X)                                                                            \
    X(INVALID, "invalid")       /* the trajectory failed its checks */                             \
    X(ATTEMPTS, "attempts")     /* lost with too many actors */                                    \
    X(STALE, "stale")           /* a token older than staleness.max_versions */                    \
    X(SKIPPED, "group_skipped") /* scored, but fewer than two valid members in its group */        \
    X(ZERO_VARIANCE,                                                                               \
      "zero_variance") /* its group's rewards are equal: learner/dynamic_sampling.h */

typedef enum {
#define IFL_DROP_ENUM(name, text) IFL_DROP_##name,
    IFL_DROP_MAP(IFL_DROP_ENUM)
#undef IFL_DROP_ENUM
        IFL_DROP_COUNT
} ifl_drop_reason;
const char *ifl_drop_reason_name(ifl_drop_reason reason);

typedef struct ifl_member {
    uint8_t state;       /* ifl_member_state */
    uint8_t drop_reason; /* when dropped */
    int32_t n_attempts;  /* leases given out so far */
    uint64_t actor;      /* when leased or stored: who has or had it */
    uint64_t lease_id;
    ifl_trajectory *traj;  /* when stored; owned by the table */
    ifl_trajectory *begun; /* before that: as far as an actor came that has handed it back; owned */
} ifl_member;

typedef struct ifl_group {
    uint64_t task_serial;
    char task_id[IFL_TASK_ID_MAX];
    int32_t n_members;
    int32_t n_pending, n_leased, n_stored, n_dropped;
    uint64_t completed;  /* order of completion, 1, 2, ...; 0 = not complete */
    bool taken;          /* by ifl_groups_take, until ifl_groups_close */
    void *user;          /* the caller's, untouched (e.g. the task) */
    ifl_member *members; /* [n_members] */
} ifl_group;

typedef struct ifl_groups_counts {
    int64_t opened;                  /* members ever opened: "leased" in a run's summary */
    int64_t pending, leased, stored; /* now; their sum is "in flight" */
    int64_t trained, masked;
    int64_t dropped[IFL_DROP_COUNT];
    int64_t requeued;   /* leased -> pending */
    int64_t duplicates; /* trajectories whose member was stored or dropped already */
    int64_t groups_opened, groups_closed, groups_skipped;
} ifl_groups_counts;

typedef struct ifl_groups ifl_groups;

/* Room for groups_max open groups of at most group_size_max members; allocated here. A member is
 * dropped (ATTEMPTS) instead of requeued after attempts_max leases; 0 = never. */
ifl_status ifl_groups_create(ifl_groups **out, int32_t groups_max, int32_t group_size_max,
                             int32_t attempts_max, ifl_error *err);
void ifl_groups_free(ifl_groups *groups); /* frees stored trajectories; NULL is fine */

/* Opens a group; all members pending. IFL_FULL when groups_max are open; IFL_USAGE when that serial
 * is open or the size is out of range. */
ifl_status ifl_groups_open(ifl_groups *groups, uint64_t task_serial, const char *task_id,
                           int32_t n_members, void *user, ifl_error *err);

/* The open group with the lowest serial from `from_serial` on that has pending members, or NULL. */
ifl_group *ifl_groups_pending(ifl_groups *groups, uint64_t from_serial);

/* Leases all pending members of `group`: *n and samples[0 .. *n) (room for group_size_max) name
 * them. */
void ifl_groups_assign_group(ifl_groups *groups, ifl_group *group, uint64_t actor,
                             uint64_t lease_id, int32_t *samples, int32_t *n);

/* The two in one: the group with the lowest serial. Returns it, or NULL when nothing is pending. */
ifl_group *ifl_groups_assign(ifl_groups *groups, uint64_t actor, uint64_t lease_id,
                             int32_t *samples, int32_t *n);

/* Members back to pending (or dropped, see attempts_max): all that `actor` has leased; all of one
 * lease. Stored members stay. Return how many members were no longer leased after the call. */
int32_t ifl_groups_lose_actor(ifl_groups *groups, uint64_t actor);
int32_t ifl_groups_return_lease(ifl_groups *groups, uint64_t lease_id);

/* The same for an actor that has handed the lease back in order: no attempt is counted. */
int32_t ifl_groups_hand_back(ifl_groups *groups, uint64_t lease_id);

/* Keeps the beginning of a member that `actor` has leased under traj->lease_id; it replaces an
 * earlier one. False when that member is not leased so: the caller still owns traj. */
bool ifl_groups_keep_begun(ifl_groups *groups, uint64_t actor, ifl_trajectory *traj);

/* Frees the beginnings of its members: they are generated from their start. */
void ifl_groups_forget_begun(ifl_group *group);

/* Takes back a lease that never left this process: pending again, and no attempt is counted. */
void ifl_groups_unassign(ifl_groups *groups, uint64_t lease_id);

typedef enum { IFL_STORE_STORED, IFL_STORE_DUPLICATE, IFL_STORE_UNKNOWN } ifl_store_result;

/* Takes the trajectory of an open member, pending or leased to anyone: the key decides, the first
 * one wins. DUPLICATE: that member already ended (the caller still owns traj and acknowledges it);
 * UNKNOWN: no such open group or sample (closed long ago, or never leased). A trajectory of another
 * group size is UNKNOWN as well. */
ifl_store_result ifl_groups_store(ifl_groups *groups, ifl_trajectory *traj);

/* Gives up a member that is pending or leased, or frees the trajectory of a stored one of a group
 * not yet taken. False when there is no such member or it has ended. */
bool ifl_groups_drop(ifl_groups *groups, uint64_t task_serial, int32_t sample,
                     ifl_drop_reason reason);

typedef enum {
    IFL_TAKE_SERIAL,  /* the n open groups with the lowest serials, once all of them are complete
                       * (sync and  async:k, repeatable) */
    IFL_TAKE_ARRIVAL, /* the n groups that completed first (pipeline) */
} ifl_take_order;

/* Marks n complete groups as taken and writes them to out[n] in ascending serial order. False, and
 * nothing changes, when there are not that many yet. A complete group has no pending and no leased
 * member; it may have no stored one either. */
bool ifl_groups_take(ifl_groups *groups, int32_t n, ifl_take_order order, ifl_group **out);
/* Takes these, which are complete and not taken. */
void ifl_groups_take_these(ifl_group **chosen, int32_t n);
int32_t ifl_groups_n_complete(const ifl_groups *groups); /* not taken ones */
int32_t ifl_groups_n_open(const ifl_groups *groups);     /* all, taken ones included */

typedef enum { IFL_END_TRAINED, IFL_END_MASKED, IFL_END_DROPPED } ifl_member_end;
typedef struct ifl_member_outcome {
    ifl_member_end end;
    ifl_drop_reason reason; /* when DROPPED */
} ifl_member_outcome;

/* Ends a taken group: outcomes[n_members] for its stored members (entries of dropped ones are not
 * read), frees their trajectories and the slot. `skipped`: counted in groups_skipped. */
void ifl_groups_close(ifl_groups *groups, ifl_group *group, const ifl_member_outcome *outcomes,
                      bool skipped);

ifl_group *ifl_groups_find(ifl_groups *groups, uint64_t task_serial); /* NULL when not open */
/* The open group with the lowest serial from `from_serial` on; NULL when there is none. */
ifl_group *ifl_groups_next(ifl_groups *groups, uint64_t from_serial);

/* Serials of the open groups, ascending; returns how many there are (may exceed max). For
 * checkpoints: a resumed run opens them again. */
int32_t ifl_groups_serials(const ifl_groups *groups, uint64_t *serials, int32_t max);

ifl_groups_counts ifl_groups_counts_get(const ifl_groups *groups);
int64_t ifl_groups_in_flight(const ifl_groups_counts *counts); /* pending + leased + stored */
int64_t ifl_groups_dropped(const ifl_groups_counts *counts);   /* all reasons */

/* For a resume, on an empty table: takes over the ended members of an earlier part of the run.
 * Members that were in flight then are not counted: they are opened again. */
ifl_status ifl_groups_counts_restore(ifl_groups *groups, const ifl_groups_counts *counts,
                                     ifl_error *err);

/* Recounts everything from the members; IFL_MISMATCH names the line of the books that is off. */
ifl_status ifl_groups_check(const ifl_groups *groups, ifl_error *err);

#endif

/* The scheduler: which rows the next step runs. Pure bookkeeping over pages and positions: it runs no model,
 * reads no clock and no token, so that its rules can be tested by themselves.
 *
 * Admission is first come, first served. A sequence is admitted when its pages are free beside one page of
 * growth for every sequence that runs. Pages are taken as positions need them; when none is free, first
 * cached prompts that nobody older waits for are dropped, then the youngest sequence is preempted (back
 * to its place in the queue). A sequence never takes pages from an older one: it waits. The oldest can take
 * all, and a group is refused at submission when one of its samples alone would not fit: hence somebody
 * always moves, and no order of events can lock up.
 *
 * A group's prompt is built once per version (`ifl_prefix`: positions 0 .. P-2; the last prompt token is
 * each sample's own first row). Samples share its full pages and copy the last, partial one.
 *
 * Two versions at once exist only under `recompute`: a running sequence of the older one has a shadow, a
 * second build under the current version, in free pages only. When what is missing of it fits into the
 * step's budget, the sequence flips: the rest of the rebuild and the next token's row run as one. With
 * no page free it gives up its own pages and rebuilds in place, without decoding meanwhile. */
#ifndef IFL_ACTOR_SCHEDULER_H
#define IFL_ACTOR_SCHEDULER_H

#include "actor/kv_cache.h"

#define IFL_BUILD_RUNS_MAX 16
#define IFL_QUEUE_MAX 65536 /* sequences known at one time */

/* Positions up to `to` (from where the run before ends) were built under `version`. */
typedef struct ifl_kv_run {
    int32_t to;
    int64_t version;
} ifl_kv_run;

/* KV of positions [0, n_built), and under which versions it was made since the build began. */
typedef struct ifl_build {
    ifl_page_table table;
    int32_t n_built;
    bool adopted; /* the prompt's positions are in it */
    int32_t n_runs;
    ifl_kv_run runs[IFL_BUILD_RUNS_MAX];
} ifl_build;

typedef struct ifl_group ifl_group;
typedef struct ifl_sequence ifl_sequence;

typedef struct ifl_prefix {
    ifl_group *group;
    ifl_build build;
    int32_t n_waiting;     /* active sequences that will adopt it */
    int64_t step_planned;  /* the last step that ran rows of it */
    struct ifl_prefix *next;
} ifl_prefix;

struct ifl_group {
    int32_t n_prompt;
    int32_t n_members;     /* that still live */
    int32_t n_members_max;
    ifl_sequence **members; /* [n_members_max], NULL where gone; owned */
    ifl_prefix *prefix;    /* of the current version; new members adopt only this one */
    void *owner;           /* the engine's record */
};

typedef enum {
    IFL_SEQUENCE_QUEUED,   /* no pages */
    IFL_SEQUENCE_BUILDING, /* prefill or rebuild in place; does not decode */
    IFL_SEQUENCE_RUNNING,  /* decodes; live.n_built == n_tokens - 1 between steps */
} ifl_sequence_state;

struct ifl_sequence {
    ifl_group *group;
    uint64_t serial;       /* order of submission: lower is older */
    ifl_sequence_state state;
    int32_t n_tokens;      /* prompt and what was sampled; ifl_scheduler_sampled moves it */
    int64_t version;       /* that it decodes or builds under */
    ifl_build live, shadow;
    ifl_prefix *prefix;    /* that it waits for */
    bool restarted;        /* its build was thrown away by a swap */
    void *owner;
    ifl_sequence *next;    /* in the queue */
};

typedef enum { IFL_WORK_DECODE, IFL_WORK_PREFILL, IFL_WORK_REBUILD } ifl_work_kind;

/* Rows [begin, begin + n_rows) of one sequence, or of a group's prompt. */
typedef struct ifl_work {
    ifl_sequence *seq;     /* NULL: a prompt of `group` */
    ifl_group *group;
    const int32_t *pages;
    int64_t version;
    int32_t begin, n_rows;
    bool sample;           /* the last row (position n_tokens - 1) gives the next token */
    bool starts;           /* first row after a build: seq->live.runs say how [0, n_tokens - 1) was made */
    ifl_work_kind kind;    /* of the rows without the sampled one */
} ifl_work;

/* Done in order, before the step's rows run. */
typedef struct ifl_page_copy {
    int32_t to_page, from_page, n_tokens;
} ifl_page_copy;

typedef struct ifl_scheduler_options {
    int32_t sequences_max;
    int32_t n_pages, page_tokens;
    int32_t sequence_pages_max; /* pages of the longest sequence */
    int32_t chunk_tokens;       /* most build rows of one step */
    bool recompute;
} ifl_scheduler_options;

typedef struct ifl_scheduler {
    ifl_scheduler_options options;
    ifl_kv_cache *cache;
    int64_t current;       /* version of new work */
    int64_t step;
    ifl_sequence **active; /* [n_active], oldest first */
    int32_t n_active;
    ifl_page_table *spare_tables; /* [2 * sequences_max] stack */
    int32_t n_spare_tables;
    ifl_sequence *queue, *queue_last; /* oldest first */
    int32_t n_queued;
    uint64_t serial_next;
    ifl_prefix *prefixes;
    ifl_work *work;        /* the plan */
    int32_t n_work, work_max;
    ifl_page_copy *copies;
    int32_t n_copies, copies_max;
    int64_t n_preemptions, n_shared; /* positions that a sample adopted, not built */
} ifl_scheduler;

ifl_status ifl_scheduler_create(ifl_scheduler **out, const ifl_scheduler_options *options,
                                ifl_error *err);
/* Every sequence must have been removed before. */
void ifl_scheduler_free(ifl_scheduler *scheduler);

/* A sample of n_prompt tokens that can grow by max_new_tokens: does it fit when it is alone? */
bool ifl_scheduler_fits(const ifl_scheduler *scheduler, int32_t n_prompt, int32_t max_new_tokens);

/* Returns owned; n_members_max samples can be submitted to it. It ends with its last member. */
ifl_status ifl_group_create(ifl_group **out, int32_t n_prompt, int32_t n_members_max, void *owner,
                            ifl_error *err);

/* Queues a new sequence of `group` (borrowed by the scheduler until ifl_scheduler_remove). */
void ifl_scheduler_submit(ifl_scheduler *scheduler, ifl_group *group, ifl_sequence *seq);

/* Takes a sequence out in any state. Frees its group with the last member (true then). */
bool ifl_scheduler_remove(ifl_scheduler *scheduler, ifl_sequence *seq);

/* Back to its place in the queue, pages freed. No-op when it is queued. */
void ifl_scheduler_park(ifl_scheduler *scheduler, ifl_sequence *seq);

/* New work runs under `version` from the next plan on. `recompute`: IFL_AGAIN while a sequence of an older
 * version than the current one lives, or while a build that a swap threw away isn't done. */
ifl_status ifl_scheduler_swap(ifl_scheduler *scheduler, int64_t version, ifl_error *err);

/* The version before the current one, if a sequence still uses it; else the current one. */
int64_t ifl_scheduler_oldest_version(const ifl_scheduler *scheduler);

/* Makes the plan of one step in scheduler->work and ->copies, and books it as done: the caller must run it.
 * IFL_NOMEM is the only failure. */
ifl_status ifl_scheduler_plan(ifl_scheduler *scheduler, ifl_error *err);

/* A token was sampled: the sequence has one more. */
void ifl_scheduler_sampled(ifl_scheduler *scheduler, ifl_sequence *seq);

#endif

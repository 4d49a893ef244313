/* What a row of the fault table must be seen by: waiting for it, and what the logs, the recorders
 * of both ends, the proxy and the learner's metrics say of it. One thread. */
#ifndef IFL_TESTS_FAULTS_WITNESS_H
#define IFL_TESTS_FAULTS_WITNESS_H

#include "tests/faults/job.h"

#define FIRE_MS 8000 /* until a fail point that is passed all the time has acted */
#define GRACE_MS 5000
#define START_FROM_MS 10000 /* a learner that is started again has its checkpoint */
#ifdef __SANITIZE_ADDRESS__
#define RSS_GROWTH_KIB (1 << 20) /* what is freed stays for a while, to be watched */
#else
#define RSS_GROWTH_KIB (48 << 10)
#endif

/* Not as required; always false. */
bool refuse(job *j, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* What was to be injected has not taken place, so that nothing follows from what came after: the
 * fault counts as not played, neither as held nor as violated. Always false. */
bool not_played(job *j, const char *format, ...) __attribute__((format(printf, 2, 3)));

const char *pick(job *j, const char *const *list, int n);
#define PICK(j, ...)                                                                               \
    pick(j, (const char *const[]){__VA_ARGS__},                                                    \
         (int)(sizeof(const char *const[]){__VA_ARGS__} / sizeof(const char *)))

job_process *any_actor(job *j);
int lane_of(const job *j, const job_process *actor);
/* The others go on working while it lasts: one after this one, round. */
job_process *next_actor(job *j, const job_process *actor);

/* --- Waiting; false with j->why when it doesn't come within ms ---------------------------------
 */

bool await_end(job *j, job_process *p, int64_t n_ends, int64_t ms);
bool await_text(job *j, job_process *p, int64_t mark, int64_t ms, const char *text);
bool await_steps(job *j, int64_t more, int64_t ms);
bool await_acks(job *j, job_process *p, int64_t more, int64_t ms);
/* The learner gives an actor up; takes it in. */
bool await_gone(job *j, int64_t mark, const char *name, int64_t ms);
bool await_joined(job *j, int64_t mark, const char *name, int64_t ms);
/* The armed point has acted; else not played. */
bool await_fired(job *j, job_process *p, int64_t mark, const char *point);

bool ended_by_signal(job *j, const job_process *p, int number);
bool ended_with(job *j, const job_process *p, int code);

/* None of the actors that work all the time was given up since. */
bool all_stayed(job *j, int64_t learner_mark);
bool grew_little(job *j, int64_t rss_kib_before);

/* --- The proxy ---------------------------------------------------------------------------------
 */

int64_t proxy_mark(const job *j);
bool proxy_said(const job *j, int64_t mark, const char *text);
/* "did":"what" since then; else not played. */
bool await_did(job *j, int64_t mark, const char *what, int64_t ms);

/* --- Metrics: of the last step's row ------------------------------------------------------------
 */

double metric(const job *j, const char *name); /* NAN = none */
/* That a count of the running learner process is above `than`, in some row within ms. */
bool await_metric(job *j, const char *name, double than, int64_t ms);
/* Largest of the last n steps; NAN = none has it. */
double metric_max(const job *j, const char *name, int n);
/* Median of the last n steps' time between rows, s. */
double step_median(const job *j, int n);

/* --- Recorders ----------------------------------------------------------------------------------
 */

typedef struct record {
    char what[12];
    int purpose;
    uint64_t serial; /* or a version */
    int32_t sample;  /* or a chunk */
    uint64_t lease;
    int32_t status;
} record;

typedef struct records {
    record *all;
    int64_t n;
} records;

/* Lines of a process's recorder, in order; n is 0 where there is none. Free with records_free. */
records records_of(const job *j, const job_process *p, pid_t pid);
void records_free(records *r);
/* How many there are: a mark in a recorder. */
int64_t records_mark(const job *j, const job_process *p, pid_t pid);

#define KEYS_MAX 256
typedef struct key_set {
    struct {
        uint64_t serial, lease;
        int32_t sample;
    } keys[KEYS_MAX];
    int n;
    pid_t learner; /* of whose process they are */
} key_set;

/* Keys of leases that the process has got and of which it has stored no answer. */
void keys_held(const job *j, const job_process *actor, pid_t pid, key_set *out);
/* Keys that the process has sent, from record `from` on, and got no answer for. */
void keys_unanswered(const job *j, const job_process *actor, pid_t pid, int64_t from, key_set *out);

/* Each key of a lost actor is stored after all, or leased again; and never more than once. */
bool await_leased_again(job *j, const key_set *keys, int64_t ms);
/* Each key has exactly one answer stored, and all other answers to it are told `duplicate`. */
bool await_stored_once(job *j, const key_set *keys, int64_t ms);
/* Each key is sent again (by a process that lives on) and answered, whatever the answer. */
bool await_answered(job *j, const job_process *actor, const key_set *keys, int64_t ms);

#endif

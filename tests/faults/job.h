/* A job under faults: a learner, some actors and the proxy between them, as processes of their own
 * in a folder of their own, kept running by this program, which plays the supervisor. One thread.
 */
#ifndef IFL_TESTS_FAULTS_JOB_H
#define IFL_TESTS_FAULTS_JOB_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "tests/faults/odd_peer.h"

#define JOB_ACTORS 3         /* that work all the time ... */
#define JOB_EXTRA JOB_ACTORS /* ... and the place of one that comes and goes */
#define JOB_RELAYS 2         /* that a row starts and ends again */
#define JOB_PATH_MAX 1024
#define JOB_TEXT_MAX 512
/* Heartbeats are five times as fast as the fault table's: a second of its time is 200 ms. */
#define JOB_HEARTBEAT_MS 200
#define JOB_MISSES 3
#define JOB_SILENCE_MS (JOB_HEARTBEAT_MS * JOB_MISSES)
#define JOB_DETECT_MS 3000 /* wall time; the table's 3 s, not scaled: hosts of tests are busy */

typedef struct job_process {
    char name[32];
    pid_t pid;    /* 0 = not running */
    bool wanted;  /* started again when it ends */
    bool may_end; /* its end is part of the fault */
    int status;   /* of the last end, as waitpid gives it */
    int64_t n_ends, n_starts;
    char log[JOB_PATH_MAX], arm[JOB_PATH_MAX];
    int64_t log_from; /* where in the log the running process began */
    char base[128];   /* fail points that are armed all the time */
    const char *keys; /* folder of its own; NULL = the job's, where it has keys */
    bool relayed;     /* an actor: asks the relays for weights before the learner */
    int64_t started_ns;
} job_process;

typedef struct job {
    const char *binary;       /* inflight */
    const char *proxy_binary; /* chaos_proxy */
    char folder[JOB_PATH_MAX];
    uint64_t seed, n_drawn;
    int number, port;
    bool strict; /* lock-step, or bounded staleness: an actor that is late with a version has no
                    work */
    job_process learner, actors[JOB_ACTORS + 1], relays[JOB_RELAYS];
    pid_t proxy;
    int proxy_in; /* its standard input */
    odd_facts facts;
    int64_t metrics_at, n_steps;
    int64_t stepped_ns, pause_ns; /* when a step was last seen; the longest time without one */
    double time_s;                /* of the last step, as its row says */
    char partial[256];            /* of the row of metrics that is being read */
    size_t n_partial;
    const char *variant; /* of the fault under way, for the record */
    bool not_played;     /* what was to be injected did not take place; why says so */
    bool guarded;        /* links have keys */
    int64_t n_torn;      /* writes to the log that were torn */
    int64_t crowd_before_us, crowd_during_us; /* median step before and while a crowd joins */
    char why[JOB_TEXT_MAX];
    int64_t hang_ms;
    char unexpected[JOB_TEXT_MAX]; /* an end of a process that nothing explains; "" = none */
} job;

/* Makes the folder, its configuration and tasks, and starts everything. False: j->why. */
bool job_start(job *j);
/* Asks the learner to stop and waits for the end of all. False: j->why. */
bool job_stop(job *j);
void job_kill(job *j); /* whatever still runs */

/* The next number below n, from the job's seed. */
int64_t job_draw(job *j, int64_t n);

/* Collects ended processes, starts again those that are wanted. */
void job_supervise(job *j);
bool process_start(job *j, job_process *p);
void process_kill(job *j, job_process *p, int signal);
bool process_ended(const job_process *p, int64_t n_ends_before); /* since then */

/* Arms fail points of a process beside its base; "" = the base alone. At once if it runs. */
void process_arm(job *j, job_process *p, const char *text);

/* Its log: where it ends now, and whether a text has come since then. */
int64_t process_mark(const job_process *p);
bool process_said(const job_process *p, int64_t mark, const char *text);
/* The text since then; valid until the next call of any of these. */
const char *process_text(const job_process *p, int64_t mark);
/* "NAME is gone" and the like, at the learner, about an actor. */
bool learner_said_of(const job *j, int64_t mark, const char *name, const char *text);

/* Steps trained so far by all learner processes, from the metrics. Looked at in every turn of
 * job_supervise, so that pause_ns is right to some 10 ms; set both times to begin anew. */
int64_t job_steps(job *j);
/* Acknowledgements an actor's recorder holds, of the running process alone. */
int64_t actor_acks(const job *j, const job_process *p);

/* A line to the proxy. */
void proxy_tell(job *j, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Waits, supervising, until the condition holds; false when it doesn't within ms. */
typedef bool (*job_condition)(job *j, void *context);
bool job_await(job *j, int64_t ms, job_condition condition, void *context);
void job_pass(job *j, int64_t ms); /* supervising */

/* Lifts all faults and waits until every actor has an answer acknowledged and some more steps are
 * trained. *took_s: how long. False: not within j->hang_ms; stacks of all threads are then in the
 * job's folder. */
bool job_recover(job *j, double *took_s);

/* The key in FOLDER NAME, made with the job, may join from now on, or may not any more; the
 * learner is told. */
bool job_allow(job *j, const char *name, bool may);

int64_t process_age_ms(const job_process *p);
int64_t process_rss_kib(const job_process *p);

/* Runs a command of inflight in the job's folder, its words apart by single spaces; the output's
 * first bytes into out. Its exit status; 128 when a signal has ended it, as after a minute. */
int job_run(job *j, const char *arguments, char *out, size_t n_out);

#endif

/* The books of a job, from its rollout log and from what its processes recorded, by rules of its
 * own (common/rollout_ledger.h is what it is compared with): every leased key is stored, open or
 * leased again; stored keys are distinct; trained = stored less what waits; versions never go back
 * within a trajectory; what an actor was told is stored is in the log; a process that goes on from
 * a checkpoint publishes the weights that its predecessor had there. */
#ifndef IFL_TESTS_FAULTS_BOOKS_H
#define IFL_TESTS_FAULTS_BOOKS_H

#include "common/status.h"

typedef struct job_books {
    int64_t leased, stored, trained, records, processes, acked, sent, torn_bytes;
    int64_t multi_version; /* trajectories of several versions */
    int64_t lost;          /* leased and nowhere, or acknowledged and not in the log */
    int64_t stored_twice;  /* by one learner process */
    int64_t trained_twice; /* by two steps that both stand */
    int64_t trained_unstored;
    int64_t wrong_version; /* versions that go back, or that nobody published */
    int64_t not_leased;    /* stored, trained or sent without a lease */
    int64_t republished;   /* versions that a resumed process published again ... */
    int64_t other_weights; /* ... and that had other weights than before */
    char first[256];       /* of the violations */
} job_books;

/* `rollouts`: the run's folder of segments; `record`: the recorders' folder; `versions`: the
 * archives of its learner processes, NULL = not looked at. */
ifl_status job_books_read(job_books *out, const char *rollouts, const char *record,
                          const char *versions, ifl_error *err);

#endif

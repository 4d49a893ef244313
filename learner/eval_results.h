/* An evaluation task by task, and the file that keeps it: what a comparison of two policies on the
 * same tasks is made from.
 *
 * The file is JSON lines. The first one is about the policy:
 *   {"inflight_eval":1,"model":"...","version":0,"run_uuid":"...","k":8,"n":534}
 * and each further one a task:
 *   {"id":"7+5","data_source":"one-digit","task":"<hash of its definition, 16 hex digits>",
 *    "status":"ok","reward":1.0,"answer":" 12","samples":8,"samples_right":5}
 * status and reward are the greedy answer's; the reward is null where nothing was judged. */
#ifndef IFL_LEARNER_EVAL_RESULTS_H
#define IFL_LEARNER_EVAL_RESULTS_H

#include "common/config.h"
#include "common/task.h"
#include "common/trajectory.h"

#define IFL_EVAL_FORMAT 1
#define IFL_EVAL_ROWS_MAX (1 << 20)
#define IFL_EVAL_FILE_BYTES_MAX ((size_t)1 << 30)
#define IFL_EVAL_SAMPLES_MAX (1 << 20)

typedef struct ifl_eval_row {
    char *id;                 /* owned */
    char *answer;             /* owned; the greedy answer as its checker saw it; NULL = none */
    uint64_t task;            /* hash of the task as its source defines it */
    int32_t source;           /* index into the results' sources */
    ifl_reward_status status; /* of the greedy answer */
    float reward;
    int32_t n_judged, n_right; /* samples at the training temperature */
} ifl_eval_row;

typedef struct ifl_eval_results {
    char model[IFL_PATH_MAX]; /* for people */
    char run_uuid[33];        /* "" = none */
    int64_t version;
    int32_t k; /* samples asked for, per task */
    int32_t n_sources;
    char sources[IFL_SOURCES_MAX][IFL_NAME_MAX];
    ifl_eval_row *rows; /* owned */
    size_t n_rows, rows_cap;
} ifl_eval_results;

void ifl_eval_results_clear(ifl_eval_results *results); /* a zeroed one is fine */

/* Index of a source, or -1. */
int32_t ifl_eval_results_source(const ifl_eval_results *results, const char *name);

/* Adds a source unless it is there. Those of the configuration are added first, in its order, which
 * is then the order of what is printed; one of them may stay without rows. IFL_LIMIT. */
ifl_status ifl_eval_results_add_source(ifl_eval_results *results, const char *name, ifl_error *err);

/* Adds a row without an answer, for one task of a source, and the source if it is a new one.
 * `definition` is hashed: a task that was changed under the same id is another task. IFL_LIMIT
 * beyond the numbers above. */
ifl_status ifl_eval_results_add(ifl_eval_results *results, const char *source, const char *id,
                                const char *definition, ifl_error *err);

/* The checker's word on an answer: anything but a finite reward of a checker that worked leaves it
 * unjudged, which is never a zero. */
static inline bool ifl_eval_judged(ifl_reward_status status, float reward) {
    return ifl_reward_is_verdict(status) && reward - reward == 0.0f;
}
static inline bool ifl_eval_right(ifl_reward_status status, float reward) {
    return ifl_eval_judged(status, reward) && reward >= 0.999f;
}

/* What the policy said, with a stop string and all behind it cut off, as its checker sees it.
 * Owned, free(). Conversations are not decoded here: all tokens behind the prompt are. */
ifl_status ifl_eval_answer_text(char **out, const ifl_tokenizer *tokenizer,
                                const ifl_config *config, const ifl_trajectory *traj,
                                ifl_error *err);

/* Writes the file, atomically. */
ifl_status ifl_eval_results_write(const ifl_eval_results *results, const char *path,
                                  ifl_error *err);

/* Reads one. *out needs no initialisation and is to be cleared only on IFL_OK. IFL_NOTFOUND,
 * IFL_FORMAT with path:line, IFL_LIMIT. */
ifl_status ifl_eval_results_read(ifl_eval_results *out, const char *path, ifl_error *err);

#endif

/* Figures of evaluations: accuracy of one, overall and per source, and the paired comparison of
 * two. The learner, `inflight eval` and their files say the same because all of them ask here. */
#ifndef IFL_LEARNER_EVAL_FIGURES_H
#define IFL_LEARNER_EVAL_FIGURES_H

#include <jansson.h>

#include "learner/eval_results.h"
#include "learner/eval_stats.h"

#define IFL_EVAL_RESAMPLES 10000
#define IFL_EVAL_BOOTSTRAP_SEED 1 /* a constant: the same two files, the same interval */

typedef struct ifl_eval_figures {
    int64_t n, n_right;    /* greedy answers judged; right of those */
    int64_t n_unscored;    /* greedy answers that were not */
    double accuracy;       /* n_right / n; NAN for n = 0 */
    ifl_interval interval; /* Wilson 95 % */
    int32_t k;             /* 0: no samples, and nothing below */
    ifl_task_mean avg, pass;
    int64_t n_samples_unscored;
} ifl_eval_figures;

/* Of one source, or of all for source -1. IFL_NOMEM. */
ifl_status ifl_eval_figures_make(ifl_eval_figures *out, const ifl_eval_results *results,
                                 int32_t source, ifl_error *err);

/* {["name",] "n", "accuracy", "low", "high", "unscored"[, "k", "avg@k", "pass@k",
 * "pass@k_left_out", "samples_unscored"]}; what is not known is null. `source` NULL: no name.
 * Owned; NULL when out of memory. */
json_t *ifl_eval_figures_json(const ifl_eval_figures *figures, const char *source);

/* The difference of greedy accuracy, after - before, over the tasks that both have judged. */
typedef struct ifl_eval_gain {
    double before, after; /* accuracy over those tasks; NAN for none */
    ifl_paired paired;    /* difference as a share, and its 95 % interval */
    int64_t n_unscored;   /* in both, but not judged on one side at least: left out */
    int64_t n_only_before, n_only_after; /* in one of them only: left out */
} ifl_eval_gain;

/* Pairs tasks by (source, id, definition) and resamples them IFL_EVAL_RESAMPLES times. `source`: a
 * name, or NULL for all. The order of the rows does not matter. A task that occurs several times is
 * paired occurrence by occurrence. No task in common is no error here: paired.n_tasks is 0. */
ifl_status ifl_eval_compare(ifl_eval_gain *out, const ifl_eval_results *before,
                            const ifl_eval_results *after, const char *source, ifl_error *err);

/* {["name",] "n", "gain", "low", "high", "before", "after", "unscored", "only_before",
 * "only_after"}, shares; without a pair the first figures are null. Owned; NULL when out of memory.
 */
json_t *ifl_eval_gain_json(const ifl_eval_gain *gain, const char *source);

/* "+12.5 points (95 %: +8.1 to +16.9), 0.3380 to 0.4630 on 534 tasks", with what was left out. */
void ifl_eval_gain_text(const ifl_eval_gain *gain, char *out, size_t n_out);

#endif

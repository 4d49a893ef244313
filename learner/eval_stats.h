/* Statistics of held-out evaluation. Pure functions, in double. */
#ifndef IFL_LEARNER_EVAL_STATS_H
#define IFL_LEARNER_EVAL_STATS_H

#include <stdint.h>

#include "common/status.h"

typedef struct ifl_interval {
    double low, high;
} ifl_interval;

/* Wilson's 95 % score interval (1927) of n_right out of n. n = 0 gives [0, 1]. */
ifl_interval ifl_wilson95(int64_t n_right, int64_t n);

/* A mean over those tasks that have what it needs; NAN when none has. */
typedef struct ifl_task_mean {
    double mean;
    int64_t n_tasks, n_left_out;
} ifl_task_mean;

/* avg@k: mean over tasks of n_right / n_judged. n_right, n_judged: [n_tasks], 0 <= right <= judged.
 * A sample whose checker failed is in neither number; a task without a judged sample is left out.
 */
ifl_task_mean ifl_avg_at_k(const int32_t *n_right, const int32_t *n_judged, int64_t n_tasks);

/* Unbiased pass@k of one task from n samples of which c are right: 1 - C(n - c, k) / C(n, k)
 * (arXiv 2107.03374 eq. 1), as a stable product. 0 <= c <= n, 1 <= k <= n. */
double ifl_pass_at_k(int32_t n, int32_t c, int32_t k);

/* Mean of pass@k over tasks. A task with fewer than k judged samples is left out: neither "wrong"
 * nor "right" would be true of its missing ones. */
ifl_task_mean ifl_pass_at_k_mean(const int32_t *n_right, const int32_t *n_judged, int64_t n_tasks,
                                 int32_t k);

/* Quantile q of n >= 1 sorted values, linear between the two nearest (type 7 of Hyndman & Fan
 * 1996). */
double ifl_sorted_quantile(const double *sorted, int32_t n, double q);

typedef struct ifl_paired {
    double difference;     /* mean of after - before */
    ifl_interval interval; /* 95 %, percentile bootstrap over tasks */
    int64_t n_tasks, n_resamples;
} ifl_paired;

/* Paired bootstrap (Efron & Tibshirani 1993, ch. 13): tasks are drawn with replacement, both scores
 * of a task together. before, after: [n_tasks], the same task order. Draws keyed by seed: the same
 * answer for the same input. n_tasks = 0 gives a zero difference and [0, 0]. IFL_NOMEM; IFL_USAGE
 * for n_resamples outside [100, 1000000]. */
ifl_status ifl_paired_bootstrap(const double *before, const double *after, int64_t n_tasks,
                                int32_t n_resamples, uint64_t seed, ifl_paired *out,
                                ifl_error *err);

#endif

#include "learner/eval_stats.h"

#include <math.h>
#include <stdlib.h>

#include "common/memory.h"
#include "common/rng.h"

#define NORMAL_975 1.959963984540054 /* 97.5 % quantile of the standard normal */

ifl_interval ifl_wilson95(int64_t n_right, int64_t n) {
    IFL_ASSERT(n_right >= 0 && n_right <= n);
    if (n == 0) return (ifl_interval){0.0, 1.0};
    double p = (double)n_right / (double)n, z2 = NORMAL_975 * NORMAL_975;
    double centre = p + z2 / (2.0 * (double)n);
    double half = NORMAL_975 * sqrt(p * (1.0 - p) / (double)n + z2 / (4.0 * (double)n * (double)n));
    double scale = 1.0 + z2 / (double)n;
    /* The ends are exactly 0 and 1 there; rounding would put them just outside. */
    return (ifl_interval){n_right == 0 ? 0.0 : (centre - half) / scale,
                          n_right == n ? 1.0 : (centre + half) / scale};
}

static void mean_add(ifl_task_mean *m, bool counts, double value) {
    if (counts) {
        m->mean += value;
        m->n_tasks++;
    } else {
        m->n_left_out++;
    }
}

static ifl_task_mean mean_end(ifl_task_mean sum) {
    sum.mean = sum.n_tasks > 0 ? sum.mean / (double)sum.n_tasks : (double)NAN;
    return sum;
}

ifl_task_mean ifl_avg_at_k(const int32_t *n_right, const int32_t *n_judged, int64_t n_tasks) {
    ifl_task_mean sum = {0};
    for (int64_t i = 0; i < n_tasks; i++)
        mean_add(&sum, n_judged[i] > 0, n_judged[i] > 0 ? (double)n_right[i] / n_judged[i] : 0.0);
    return mean_end(sum);
}

double ifl_pass_at_k(int32_t n, int32_t c, int32_t k) {
    IFL_ASSERT(c >= 0 && c <= n && k >= 1 && k <= n);
    if (n - c < k) return 1.0;
    double none = 1.0; /* probability that k draws without replacement are all wrong */
    for (int32_t i = n - c + 1; i <= n; i++)
        none *= 1.0 - (double)k / i;
    return 1.0 - none;
}

ifl_task_mean ifl_pass_at_k_mean(const int32_t *n_right, const int32_t *n_judged, int64_t n_tasks,
                                 int32_t k) {
    ifl_task_mean sum = {0};
    for (int64_t i = 0; i < n_tasks; i++)
        mean_add(&sum, n_judged[i] >= k,
                 n_judged[i] >= k ? ifl_pass_at_k(n_judged[i], n_right[i], k) : 0.0);
    return mean_end(sum);
}

static int double_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double ifl_sorted_quantile(const double *sorted, int32_t n, double q) {
    double place = q * (n - 1);
    int32_t low = (int32_t)place;
    int32_t high = low + 1 < n ? low + 1 : low;
    return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

ifl_status ifl_paired_bootstrap(const double *before, const double *after, int64_t n_tasks,
                                int32_t n_resamples, uint64_t seed, ifl_paired *out,
                                ifl_error *err) {
    if (n_resamples < 100 || n_resamples > 1000000)
        return ifl_fail(err, IFL_USAGE, "paired bootstrap: %d resamples, wanted 100 to 1000000",
                        n_resamples);
    *out = (ifl_paired){.n_tasks = n_tasks, .n_resamples = n_resamples};
    if (n_tasks == 0) return IFL_OK;
    double *means = ifl_alloc((size_t)n_resamples, sizeof *means);
    if (!means) return ifl_fail(err, IFL_NOMEM, "paired bootstrap: out of memory");
    double sum = 0.0;
    for (int64_t i = 0; i < n_tasks; i++)
        sum += after[i] - before[i];
    out->difference = sum / (double)n_tasks;
    for (int32_t r = 0; r < n_resamples; r++) {
        ifl_rng_key key = {seed, (uint64_t)r, IFL_RNG_EVAL};
        double resampled = 0.0;
        for (int64_t i = 0; i < n_tasks; i++) {
            uint64_t j = ifl_rng_below(&key, (uint64_t)i, 0, (uint64_t)n_tasks);
            resampled += after[j] - before[j];
        }
        means[r] = resampled / (double)n_tasks;
    }
    qsort(means, (size_t)n_resamples, sizeof *means, double_compare);
    out->interval.low = ifl_sorted_quantile(means, n_resamples, 0.025);
    out->interval.high = ifl_sorted_quantile(means, n_resamples, 0.975);
    ifl_free(means);
    return IFL_OK;
}

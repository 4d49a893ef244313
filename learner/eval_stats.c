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

double ifl_avg_at_k(const int32_t *n_right, int64_t n_tasks, int32_t k) {
    IFL_ASSERT(k >= 1);
    if (n_tasks == 0) return 0.0;
    int64_t sum = 0;
    for (int64_t i = 0; i < n_tasks; i++)
        sum += n_right[i];
    return (double)sum / ((double)n_tasks * k);
}

double ifl_pass_at_k(int32_t n, int32_t c, int32_t k) {
    IFL_ASSERT(c >= 0 && c <= n && k >= 1 && k <= n);
    if (n - c < k) return 1.0;
    double none = 1.0; /* probability that k draws without replacement are all wrong */
    for (int32_t i = n - c + 1; i <= n; i++)
        none *= 1.0 - (double)k / i;
    return 1.0 - none;
}

double ifl_pass_at_k_mean(const int32_t *n_right, int64_t n_tasks, int32_t n, int32_t k) {
    if (n_tasks == 0) return 0.0;
    double sum = 0.0;
    for (int64_t i = 0; i < n_tasks; i++)
        sum += ifl_pass_at_k(n, n_right[i], k);
    return sum / (double)n_tasks;
}

static int double_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Quantile q of n sorted values, linear between the two nearest (type 7 of Hyndman & Fan 1996). */
static double sorted_quantile(const double *sorted, int32_t n, double q) {
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
    out->interval.low = sorted_quantile(means, n_resamples, 0.025);
    out->interval.high = sorted_quantile(means, n_resamples, 0.975);
    ifl_free(means);
    return IFL_OK;
}

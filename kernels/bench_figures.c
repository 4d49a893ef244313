#include "kernels/bench_figures.h"

#include <stdlib.h>

#include "common/status.h"

static int figures_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

ifl_figures ifl_figures_of(double *values, int64_t n) {
    IFL_ASSERT(n >= 1);
    qsort(values, (size_t)n, sizeof *values, figures_compare);
    double median = n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
    return (ifl_figures){values[0], median, values[n - 1], values[n * 3 / 4]};
}

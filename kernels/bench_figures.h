/* Minimum, median and maximum of repeated measurements; the upper quartile for yardsticks. */
#ifndef IFL_KERNELS_BENCH_FIGURES_H
#define IFL_KERNELS_BENCH_FIGURES_H

#include <stdint.h>

typedef struct ifl_figures {
    double min, median, max;
    double upper_quartile; /* element 3n/4 of n */
} ifl_figures;

/* Sorts `values` [n], n >= 1. The median of an even number is the mean of the middle two. */
ifl_figures ifl_figures_of(double *values, int64_t n);

#endif

/* Speed of the ops on this host, against what the host can do. */
#ifndef IFL_KERNELS_BENCH_OPS_H
#define IFL_KERNELS_BENCH_OPS_H

#include <stdio.h>

#include "kernels/profile.h"

typedef struct ifl_bench_ops_options {
    ifl_profile profile;
    int n_threads;           /* 0 = one per CPU */
    double seconds_per_case; /* (0, 60]; each case is measured at least 5 times */
    const char *only;        /* cases whose name holds this; NULL or "" = all */
    bool json;
} ifl_bench_ops_options;

/* One row a case of kernels/bench_cases.h by ifl_ops_best(profile): minimum, median and maximum,
 * and the share of the roofline, max(FLOP / peak, bytes from memory / bandwidth), whose two
 * yardsticks are measured in slices between the repetitions of that very case. With `json` one
 * object a line (README.md of tests/bench says which fields). Needs some 600 MiB. IFL_NOTFOUND when
 * no case's name holds `only`. */
ifl_status ifl_bench_ops(FILE *out, const ifl_bench_ops_options *options, ifl_error *err);

/* Runs case i of the table exactly n_runs times on one thread and measures nothing: for programs
 * that count instructions. A streamed case uses the same operand each time, and a head has one
 * block of vocabulary. */
ifl_status ifl_bench_ops_repeat(int32_t i, ifl_profile profile, int64_t n_runs, ifl_error *err);
/* What one of those runs does: FLOP (0 for elementwise cases), elements of output, and its name. */
void ifl_bench_ops_repeated(int32_t i, double *flop, int64_t *n_elements, char *name, size_t size);
int32_t ifl_bench_ops_count(void);

#endif

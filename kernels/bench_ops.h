/* Speed of the ops on this host, against what the host can do. */
#ifndef IFL_KERNELS_BENCH_OPS_H
#define IFL_KERNELS_BENCH_OPS_H

#include "kernels/profile.h"

#include <stdio.h>

/* Prints a table (or, with `json`, one JSON object a line) to `out`: the measured peak of fused
 * multiply-adds and of reading memory, then matmul, matmul_f32 and attention of
 * ifl_ops_best(profile) with minimum, median and maximum over the repetitions, and the median's
 * share of the peak. n_threads: 0 = one per CPU; each case runs for about seconds_per_case, at
 * least 3 times. Needs some 700 MiB.
 */
ifl_status ifl_bench_ops(FILE *out, bool json, ifl_profile profile, int n_threads,
                         double seconds_per_case, ifl_error *err);

#endif

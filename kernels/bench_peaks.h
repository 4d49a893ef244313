/* What this host can do at most, measured by committed loops with all threads at once: products per
 * second of the instruction that a profile's kernels are made of, and bytes per second read from
 * memory.
 *
 * Shared hosts drift, so these are taken in slices of a few milliseconds that can be laid between
 * the repetitions of what is being measured. Both loops are cut into eight tasks a thread, as the
 * kernels are, so that a core which somebody else takes away costs them as little. */
#ifndef IFL_KERNELS_BENCH_PEAKS_H
#define IFL_KERNELS_BENCH_PEAKS_H

#include "common/thread_pool.h"
#include "kernels/ops.h"

typedef struct ifl_yardstick ifl_yardstick;

/* Borrows `ops` and `pool`. Holds at least bytes_min, 32 MiB a thread and four last-level caches
 * (512 MiB where the system does not tell their size). */
ifl_status ifl_yardstick_create(ifl_yardstick **out, const ifl_ops *ops, ifl_thread_pool *pool,
                                int64_t bytes_min, ifl_error *err);
void ifl_yardstick_free(ifl_yardstick *yardstick); /* NULL is fine */

/* The memory that is read, filled now with bf16 values of order 1: benchmarks may read it, not
 * write it. */
const void *ifl_yardstick_memory(ifl_yardstick *yardstick, int64_t *n_bytes);

/* Where in that memory the caches know nothing: as far as can be from what was read last and is
 * read next. */
int64_t ifl_yardstick_cold_bytes(const ifl_yardstick *yardstick);

int64_t ifl_yardstick_bytes(const ifl_yardstick *yardstick); /* resident, of that memory */

/* One slice each: FLOP/s of the profile's own product, FLOP/s of f32 fused multiply-adds, bytes/s.
 */
double ifl_yardstick_product(ifl_yardstick *yardstick);
double ifl_yardstick_fma(ifl_yardstick *yardstick);
double ifl_yardstick_read(ifl_yardstick *yardstick);

/* Name of the profile's own product: "fma", "bf16 pairs" or "bf16 tiles". */
const char *ifl_yardstick_instruction(const ifl_yardstick *yardstick);

typedef struct ifl_roofline {
    const char *instruction;
    double product_flop_per_s, fma_flop_per_s, read_bytes_per_s; /* upper quartiles of the slices */
} ifl_roofline;

/* Slices for about `seconds`, at least five of each. The upper quartile is taken: a yardstick is
 * what the host can do, and what somebody else takes away from a slice would make everything beside
 * it look better. */
void ifl_yardstick_measure(ifl_yardstick *yardstick, double seconds, ifl_roofline *out);

/* Means of two measurements, one before and one after what is judged. */
ifl_roofline ifl_roofline_mean(const ifl_roofline *before, const ifl_roofline *after);

#endif

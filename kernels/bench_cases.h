/* The ops that decide the speed of actors and learner, at the shapes of the small default policy
 * and of Gemma-3-270M, cut into tasks as the forward and backward passes cut them. */
#ifndef IFL_KERNELS_BENCH_CASES_H
#define IFL_KERNELS_BENCH_CASES_H

#include "common/thread_pool.h"
#include "kernels/ops.h"

typedef enum {
    IFL_BENCH_MATMUL,     /* y[m, n] = x[m, k] w[n, k], w bf16 panels */
    IFL_BENCH_HEAD,       /* the same by blocks of the vocabulary, whose outputs are not kept */
    IFL_BENCH_DX,         /* dX[m, n] = dY[m, k] W */
    IFL_BENCH_DW,         /* dW[m, n] += dY^T[m, k] X[k, n] */
    IFL_BENCH_ATTENTION,  /* m sequences, the last n rows of each, k keys */
    IFL_BENCH_ELEMENTWISE /* n elements; one thread */
} ifl_bench_kind;

typedef struct ifl_bench_case {
    ifl_bench_kind kind;
    const char *op; /* of an elementwise case; NULL elsewhere */
    int64_t m, n, k;
    int64_t head_dim;
    int32_t page_tokens;
    /* Weights, or keys and values, come from memory as they do in a model: every repetition takes
     * other ones, until as many bytes have been read as no cache holds. Else they are the same each
     * time. */
    bool streamed;
} ifl_bench_case;

/* The table; *n rows. */
const ifl_bench_case *ifl_bench_cases(int32_t *n);

void ifl_bench_case_name(char *name, size_t size, const ifl_bench_case *c);
double ifl_bench_case_flop(const ifl_bench_case *c); /* 0 for elementwise ones */
/* What must be read and written once. */
double ifl_bench_case_bytes(const ifl_bench_case *c, ifl_profile profile);
int64_t ifl_bench_case_elements(const ifl_bench_case *c); /* of the output */

typedef struct ifl_bench_run ifl_bench_run;

/* Operands of order 1 without NaN or subnormals. `memory` (may be NULL): read-only bf16 values of
 * order 1 for what is streamed, at least as many as ifl_bench_case_operand_bytes; without it the
 * case gets its own and is not streamed. Borrows ops, pool and memory. */
ifl_status ifl_bench_run_create(ifl_bench_run **out, const ifl_bench_case *c, const ifl_ops *ops,
                                ifl_thread_pool *pool, const void *memory, int64_t n_memory_bytes,
                                ifl_error *err);
void ifl_bench_run_free(ifl_bench_run *run); /* NULL is fine */
void ifl_bench_run_once(ifl_bench_run *run);
/* The next repetition of a streamed case takes its operand from about there in `memory`. */
void ifl_bench_run_seek(ifl_bench_run *run, int64_t offset_bytes);

#endif

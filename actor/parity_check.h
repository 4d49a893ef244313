/* Parity: one row's log-probs have the same 32 bits on every path that the numerics contract names. Used by
 * `inflight parity` and by the test suite. */
#ifndef IFL_ACTOR_PARITY_CHECK_H
#define IFL_ACTOR_PARITY_CHECK_H

#include <stdio.h>

#include "kernels/model.h"

typedef struct ifl_parity_options {
    uint64_t seed;        /* of the tokens */
    int32_t n_tokens;     /* of the sequence under test, 8 .. 1024; 0 = 40 */
    int32_t threads_max;  /* 0 = one per CPU */
    const ifl_ops *ops;   /* what all checks run on; NULL = the best */
    bool mutate;          /* wrap the ops: matrix products of 4 rows and more split k in two */
} ifl_parity_options;

#define IFL_PARITY_ROWS_MAX 16
typedef struct ifl_parity_report {
    int32_t n_rows;
    struct {
        char check[64];
        int64_t n_compared, n_differing;
        char first[160]; /* the first difference in words; "" none */
    } rows[IFL_PARITY_ROWS_MAX];
    int64_t n_compared, n_differing;
} ifl_parity_report;

/* Runs all checks. Differing bits are no error: they are in the report. */
ifl_status ifl_parity_run(const ifl_model *model, const ifl_weights *weights,
                          const ifl_parity_options *options, ifl_parity_report *report, ifl_error *err);

void ifl_parity_report_print(const ifl_parity_report *report, FILE *f);

/* IFL_PARITY with the first difference, when there is one. */
ifl_status ifl_parity_report_status(const ifl_parity_report *report, ifl_error *err);

/* `base` with the mutation above: the failing direction of every parity check. One base at a time. */
const ifl_ops *ifl_parity_mutant(const ifl_ops *base);

#endif

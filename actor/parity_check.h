/* Parity: one row's log-probs have the same 32 bits on every path that the numerics contract names. Used by
 * `inflight parity` and by the test suite. */
#ifndef IFL_ACTOR_PARITY_CHECK_H
#define IFL_ACTOR_PARITY_CHECK_H

#include <stdio.h>

#include "actor/parity_mutants.h"
#include "kernels/model.h"

typedef struct ifl_parity_options {
    uint64_t seed;        /* of the tokens */
    int32_t n_tokens;     /* of the sequence under test, 8 .. 1024; 0 = 40 */
    int32_t threads_max;  /* 0 = one per CPU */
    const ifl_ops *ops;   /* what all checks run on; NULL = the best */
    bool mutate;          /* short for the first mutant */
    const ifl_mutant *mutant; /* what is wrong on purpose; NULL = nothing */
    bool quick;           /* fewer batch sizes, cuts and rounds */
} ifl_parity_options;

#define IFL_PARITY_ROWS_MAX 24
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

/* `base` as the first mutant has it. One base at a time. */
const ifl_ops *ifl_parity_mutant(const ifl_ops *base);

typedef struct ifl_parity_mutation_result {
    int n_mutants, n_noticed, n_left_out; /* left out: no difference on this model */
    char survivors[256];                  /* names; "" none */
} ifl_parity_mutation_result;

/* Runs the checks (quick, whatever `options` says) once for each mutant that applies to this model, on
 * sequences as long as it needs. `out` (may be NULL) gets a line for each: compared, differing, which checks
 * noticed, the first difference. A survivor is no error: it is in the result. */
ifl_status ifl_parity_mutate(const ifl_model *model, const ifl_weights *weights,
                             const ifl_parity_options *options, FILE *out,
                             ifl_parity_mutation_result *result, ifl_error *err);

/* IFL_PARITY when every mutant was noticed (bits differ, as they must), IFL_INTERNAL naming the survivors
 * otherwise: the checks are blind to them. */
ifl_status ifl_parity_mutation_status(const ifl_parity_mutation_result *result, ifl_error *err);

#endif

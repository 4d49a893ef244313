/* What parity_check.c and parity_engine.c share. */
#ifndef IFL_ACTOR_PARITY_INTERNAL_H
#define IFL_ACTOR_PARITY_INTERNAL_H

#include "actor/parity_check.h"

typedef struct parity {
    const ifl_model *model;
    const ifl_weights *weights;
    const ifl_parity_options *options;
    ifl_parity_report *report;
    const ifl_ops *ops;
    const ifl_ops *engine_ops; /* of the generating engine; a mutant may be there alone */
    ifl_thread_pool *pool;
    int32_t threads_max;
    int32_t n_tokens;
    int32_t *tokens;       /* the sequence under test */
    int32_t *others;       /* [64][8] tokens of neighbours */
    float *reference;      /* [n_tokens] its log-probs, decoded token by token, one thread */
    bool reference_ready;
    int32_t *cuts;         /* scratch: chunk ends */
    int32_t *iota;         /* 0, 1, 2, ... */
    float *ones;
    ifl_logprob *logprobs; /* scratch */
} parity;

/* Opens the report's next row. */
void ifl_parity_begin(parity *p, const char *check);
void ifl_parity_count(parity *p, int64_t n_compared, int64_t n_differing);
/* Where the row's first difference goes; NULL when it has one. */
char *ifl_parity_first(parity *p);
/* Compares with reference[t]; `what` and `value` name the path. */
void ifl_parity_compare(parity *p, int32_t t, float got, const char *what, int64_t value);

/* Packed teacher forcing by the trainer: log-probs, and the gradients' bytes. */
ifl_status ifl_parity_check_trainer(parity *p, ifl_error *err);

/* Every op of a pass, as it is called there, against its scalar definition. */
ifl_status ifl_parity_check_definition(parity *p, ifl_error *err);

/* Models too large for scalar code and for second copies of all gradients. */
static inline bool ifl_parity_large(const parity *p) {
    return p->model->n_elements > 5000000;
}

/* Trajectories of the engine (groups, preemption, swaps under keep and recompute) against their replays. */
ifl_status ifl_parity_check_engine(parity *p, ifl_error *err);

#endif

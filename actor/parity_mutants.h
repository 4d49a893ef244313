/* Mutants: op tables in which one thing is computed in another way, each a way in which engines are
 * known to lose bits. They are the failing direction of the parity checks: a check that lets a
 * mutant pass would let the fault pass. */
#ifndef IFL_ACTOR_PARITY_MUTANTS_H
#define IFL_ACTOR_PARITY_MUTANTS_H

#include "kernels/model.h"

typedef struct ifl_mutant {
    const char *name;           /* "split-k" */
    const char *what;           /* what it does, in a line */
    bool in[IFL_PROFILE_COUNT]; /* profiles in which it changes anything */
    int32_t n_tokens_min;       /* of the sequence under test; shorter ones look the same */
    /* Whether the shapes of a model let it show; NULL = all do. `shapes` says it in words. */
    bool (*bites)(const ifl_model_config *config);
    const char *shapes;
    bool sampler_only; /* the generating engine computes so, scoring and training are honest */
    bool slow;         /* scalar code: for models of a few hundred thousand parameters */
    void (*change)(ifl_ops *table);
} ifl_mutant;

/* All mutants, split-k first. */
const ifl_mutant *ifl_mutants(int *n);

/* NULL when there is none of that name. */
const ifl_mutant *ifl_mutant_find(const char *name);

/* Whether it can show on this model with a sequence of n_tokens (at least n_tokens_min); `why_not`
 * (may be NULL) gets a static text otherwise. */
bool ifl_mutant_applies(const ifl_mutant *mutant, const ifl_model *model, const char **why_not);

/* `base` changed so. The table is static: one at a time, made and used by one thread; a pool may run
 * its ops. */
const ifl_ops *ifl_mutant_ops(const ifl_mutant *mutant, const ifl_ops *base);

/* The same scalar code without any change: it must pass every check, so that what is noticed of a
 * mutant is its change. Not in the list. */
const ifl_mutant *ifl_mutant_control(void);

#endif

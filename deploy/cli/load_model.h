/* One call that turns a path into model, weights and tokenizer; shared by the subcommands. */
#ifndef IFL_CLI_LOAD_MODEL_H
#define IFL_CLI_LOAD_MODEL_H

#include <stdio.h>

#include "common/tokenizer.h"
#include "kernels/model.h"

typedef struct ifl_loaded_model {
    ifl_model *model;          /* owned */
    ifl_weights *weights;      /* owned */
    ifl_tokenizer *tokenizer;  /* owned; NULL for random shapes, and when the files have none */
} ifl_loaded_model;

typedef struct ifl_load_options {
    int32_t max_positions;     /* caps the RoPE tables; 0 = the model's own */
    int64_t version;           /* stamped on the weights */
    ifl_profile numerics;
    uint64_t seed;             /* random shapes only */
    bool allow_random;         /* a shape's name (kernels/random_model.h) is taken in place of a path */
    FILE *notes;               /* gets parameter count and rounding figures; NULL = none */
} ifl_load_options;

/* A Hugging Face folder or a GGUF file. Fills *out; clear it in any case. */
ifl_status ifl_load_model(ifl_loaded_model *out, const char *path, const ifl_load_options *options,
                          ifl_error *err);
void ifl_loaded_model_clear(ifl_loaded_model *loaded);

/* --- Memory plan: what a process is going to hold, printed before it is allocated ------------------- */

#define IFL_MEMORY_PLAN_MAX 16
typedef struct ifl_memory_plan {
    int32_t n;
    struct {
        char name[48];
        int64_t bytes;
    } items[IFL_MEMORY_PLAN_MAX];
} ifl_memory_plan;

void ifl_memory_plan_add(ifl_memory_plan *plan, const char *name, int64_t bytes);
int64_t ifl_memory_plan_total(const ifl_memory_plan *plan);
int64_t ifl_weights_bytes(const ifl_model *model); /* of one packed version */

/* Prints the plan to `f` (may be NULL); IFL_LIMIT when it exceeds limit_gib > 0, naming the largest item. */
ifl_status ifl_memory_plan_check(const ifl_memory_plan *plan, double limit_gib, FILE *f, ifl_error *err);

#endif

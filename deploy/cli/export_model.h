/* Writing a policy as a Hugging Face folder; shared by `sft` and `export`. */
#ifndef IFL_CLI_EXPORT_MODEL_H
#define IFL_CLI_EXPORT_MODEL_H

#include "kernels/model.h"

typedef struct ifl_export_model {
    const ifl_model *model;
    const uint16_t *bf16;       /* [n_elements], canonical */
    const char *tokenizer_json; /* NULL: the folder gets no tokenizer */
    size_t n_tokenizer_json;
    const char *base; /* model.path of the run: a run may cap max_positions, and the folder
                       * gets back what its base said. NULL or "": keep the model's */
} ifl_export_model;

/* Writes the folder `out`, making its parents. It must not exist, or be empty (IFL_USAGE). */
ifl_status ifl_export_model_write(const char *out, const ifl_export_model *source, ifl_error *err);

/* IFL_USAGE when `out` exists and is not an empty folder: asked before the work, not after it. With
 * `move_aside` such a folder is renamed to <out>.1, .2, ... instead. */
ifl_status ifl_export_model_room(const char *out, bool move_aside, ifl_error *err);

#endif

/* Writing a policy or a model file as a Hugging Face folder; shared by `sft` and `export`. */
#ifndef IFL_CLI_EXPORT_MODEL_H
#define IFL_CLI_EXPORT_MODEL_H

#include "common/model_file.h"
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

/* The tokenizer.json of a model file: what a folder has verbatim, what GGUF metadata says written
 * anew. Owned, free(); NULL when the file has no tokenizer. */
ifl_status ifl_export_file_tokenizer(const ifl_model_file *file, char **out, size_t *n_bytes,
                                     ifl_error *err);

/* Writes what is in `file`, rounded to bf16 as at every load: the weights a run on that file starts
 * from. `tokenizer_json` NULL: the folder gets none. `stats` (may be NULL) adds up what the
 * rounding changed. Same conditions on `out`. */
ifl_status ifl_export_file_write(const char *out, const ifl_model_file *file,
                                 const char *tokenizer_json, size_t n_tokenizer_json,
                                 ifl_rounding_stats *stats, ifl_error *err);

/* IFL_USAGE when `out` exists and is not an empty folder: asked before the work, not after it. With
 * `move_aside` such a folder is renamed to <out>.1, .2, ... instead. */
ifl_status ifl_export_model_room(const char *out, bool move_aside, ifl_error *err);

#endif

/* A model on disk, seen as the canonical tensors of its ifl_model_config: a Hugging Face folder or
 * a GGUF file, told apart by content; and the export of a policy as a Hugging Face folder. */
#ifndef IFL_COMMON_MODEL_FILE_H
#define IFL_COMMON_MODEL_FILE_H

#include "common/gguf.h"
#include "common/model_config.h"
#include "common/rounding.h"
#include "common/tokenizer.h"

typedef struct ifl_model_file ifl_model_file;

/* Checks that every tensor of the architecture is there with its shape and a dtype that is read,
 * and that nothing else is, except what has no bearing on the text model (copies of a tied head,
 * rotary tables, the vision tower of Gemma 3), which is counted. End-of-sequence ids of
 * generation_config.json are added to those of config.json. */
ifl_status ifl_model_file_open(ifl_model_file **out, const char *path, ifl_error *err);
void ifl_model_file_close(ifl_model_file *file); /* NULL is fine */

const ifl_model_config *ifl_model_file_config(const ifl_model_file *file);
const char *ifl_model_file_format(const ifl_model_file *file); /* "safetensors" or "gguf" */

/* The tensors, as ifl_model_config_tensors gives them. */
int32_t ifl_model_file_count(const ifl_model_file *file);
const ifl_tensor_spec *ifl_model_file_spec(const ifl_model_file *file, int32_t i);
int32_t ifl_model_file_ignored(const ifl_model_file *file); /* tensors of the file left out */

/* Elements [begin, begin + n) of canonical tensor i, row-major, in Hugging Face's conventions
 * (GGUF's row permutation and its norm offset are undone). Thread-safe. Values are rounded to bf16
 * once, to nearest even; `stats` (may be NULL) adds up what that changed. A NaN or infinite value
 * is IFL_FORMAT. */
ifl_status ifl_model_file_read_bf16(const ifl_model_file *file, int32_t i, int64_t begin, int64_t n,
                                    uint16_t *out, ifl_rounding_stats *stats, ifl_error *err);
ifl_status ifl_model_file_read_f32(const ifl_model_file *file, int32_t i, int64_t begin, int64_t n,
                                   float *out, ifl_error *err);

/* --- Tokenizer --- */

/* The folder's tokenizer.json: owned (free()) and NUL-terminated. IFL_NOTFOUND when there is none,
 * and for GGUF files. */
ifl_status ifl_model_file_tokenizer_json(const ifl_model_file *file, char **out, size_t *n_bytes,
                                         ifl_error *err);

/* From tokenizer.json or from GGUF's metadata; roles (bos, eos) are those of the configuration. */
ifl_status ifl_model_file_tokenizer(const ifl_model_file *file, ifl_tokenizer **out,
                                    ifl_error *err);

/* --- Export --- */

/* Gives the canonical bf16 elements [begin, begin + n) of the flat order (the tensors one after
 * another, as in ifl_weights_get). Called with ascending ranges that don't cross a tensor's end. */
typedef ifl_status (*ifl_model_read)(void *context, int64_t begin, int64_t n, uint16_t *bf16,
                                     ifl_error *err);

typedef struct ifl_model_export_source {
    const ifl_model_config *config;
    ifl_model_read read;
    void *context;
    const char *tokenizer_json; /* NULL: the folder then has no tokenizer */
    size_t n_tokenizer_json;
    const char *bos_token, *eos_token, *pad_token; /* their spelling, e.g. "<bos>"; NULL = none */
} ifl_model_export_source;

/* Writes config.json, generation_config.json, model.safetensors (BF16), tokenizer.json and
 * tokenizer_config.json into a temporary folder beside `path` and renames it: the folder is whole
 * or absent. IFL_USAGE when `path` exists and is not an empty folder. */
ifl_status ifl_model_export(const char *path, const ifl_model_export_source *source,
                            ifl_error *err);

#endif

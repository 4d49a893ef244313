/* What the parts of the model file reader share. Not for other code. */
#ifndef IFL_COMMON_MODEL_FILE_IMPL_H
#define IFL_COMMON_MODEL_FILE_IMPL_H

#include "common/gguf.h"
#include "common/model_file.h"
#include "common/safetensors.h"

struct ifl_model_file {
    char *path;
    ifl_model_config config;
    int32_t n_specs;
    ifl_tensor_spec *specs; /* canonical order */
    int32_t *index;         /* [n_specs] the tensor in the file */
    int32_t n_ignored;
    ifl_safetensors *safetensors; /* one of the two is set */
    ifl_gguf *gguf;
};

/* Both fill config, specs, index and n_ignored of a file whose path is set. */
ifl_status ifl_model_file_open_folder(ifl_model_file *file, ifl_error *err);
ifl_status ifl_model_file_open_gguf(ifl_model_file *file, ifl_error *err);

/* Makes specs and index (all -1) from the configuration. */
ifl_status ifl_model_file_make_specs(ifl_model_file *file, ifl_error *err);

/* The range is inside the tensor. */
ifl_status ifl_model_file_gguf_read(const ifl_model_file *file, int32_t i, int64_t begin, int64_t n,
                                    float *out, ifl_error *err);

/* Architectures llama, qwen2, qwen3 and gemma3. The vocabulary's size and whether the head is tied
 * are read off the tensors. */
ifl_status ifl_model_config_from_gguf(ifl_model_config *out, const ifl_gguf *gguf, ifl_error *err);

#endif

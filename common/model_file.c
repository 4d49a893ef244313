#include "common/model_file_impl.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file_map.h"
#include "common/memory.h"

#define READ_BLOCK 4096 /* elements converted at a time */

static ifl_status model_file_open_any(ifl_model_file *file, ifl_error *err) {
    struct stat info;
    if (stat(file->path, &info) != 0)
        return ifl_fail(err, errno == ENOENT || errno == ENOTDIR ? IFL_NOTFOUND : IFL_IO, "%s: %s",
                        file->path, strerror(errno));
    if (S_ISDIR(info.st_mode)) return ifl_model_file_open_folder(file, err);
    ifl_file_map map;
    const uint8_t *magic = NULL;
    IFL_TRY(ifl_file_map_open(&map, file->path, err));
    ifl_status st = ifl_file_map_range(&map, 0, map.n_bytes < 4 ? map.n_bytes : 4, &magic, err);
    bool is_gguf = st == IFL_OK && map.n_bytes >= 4 && memcmp(magic, "GGUF", 4) == 0;
    ifl_file_map_close(&map);
    IFL_TRY(st);
    if (!is_gguf)
        return ifl_fail(err, IFL_FORMAT,
                        "%s: neither a Hugging Face folder nor a GGUF file; of a folder give "
                        "the folder itself, not a file in it",
                        file->path);
    return ifl_model_file_open_gguf(file, err);
}

ifl_status ifl_model_file_open(ifl_model_file **out, const char *path, ifl_error *err) {
    *out = NULL;
    ifl_model_file *file = calloc(1, sizeof *file);
    if (!file || !(file->path = strdup(path))) {
        free(file);
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    }
    ifl_status st = model_file_open_any(file, err);
    if (st == IFL_OK) {
        *out = file;
        file = NULL;
    }
    ifl_model_file_close(file);
    return st;
}

void ifl_model_file_close(ifl_model_file *file) {
    if (!file) return;
    ifl_safetensors_close(file->safetensors);
    ifl_gguf_close(file->gguf);
    ifl_free(file->index);
    ifl_free(file->specs);
    free(file->path);
    free(file);
}

ifl_status ifl_model_file_make_specs(ifl_model_file *file, ifl_error *err) {
    file->n_specs = ifl_model_config_tensors(&file->config, NULL);
    file->specs = ifl_alloc((size_t)file->n_specs, sizeof *file->specs);
    file->index = ifl_alloc((size_t)file->n_specs, sizeof *file->index);
    if (!file->specs || !file->index)
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory", file->path);
    ifl_model_config_tensors(&file->config, file->specs);
    for (int32_t i = 0; i < file->n_specs; i++)
        file->index[i] = -1;
    return IFL_OK;
}

const ifl_model_config *ifl_model_file_config(const ifl_model_file *file) {
    return &file->config;
}
const char *ifl_model_file_format(const ifl_model_file *file) {
    return file->gguf ? "gguf" : "safetensors";
}
int32_t ifl_model_file_count(const ifl_model_file *file) {
    return file->n_specs;
}
int32_t ifl_model_file_ignored(const ifl_model_file *file) {
    return file->n_ignored;
}

const ifl_tensor_spec *ifl_model_file_spec(const ifl_model_file *file, int32_t i) {
    IFL_ASSERT(i >= 0 && i < file->n_specs);
    return &file->specs[i];
}

/* --- Values --- */

static ifl_status model_file_check_range(const ifl_model_file *file, int32_t i, int64_t begin,
                                         int64_t n, ifl_error *err) {
    const ifl_tensor_spec *spec = ifl_model_file_spec(file, i);
    int64_t n_elements = spec->rows * spec->cols;
    if (begin < 0 || n < 0 || begin > n_elements || n > n_elements - begin)
        return ifl_fail(err, IFL_LIMIT, "tensor %s: wanted %lld elements at %lld, it has %lld",
                        spec->name, (long long)n, (long long)begin, (long long)n_elements);
    return IFL_OK;
}

/* Training on a NaN would poison everything silently; a file that holds one is broken. */
static ifl_status model_file_refuse_value(const ifl_model_file *file, int32_t i, ifl_error *err) {
    return ifl_fail(err, IFL_FORMAT, "%s: tensor %s holds a value that is NaN or infinite in bf16",
                    file->path, file->specs[i].name);
}

ifl_status ifl_model_file_read_f32(const ifl_model_file *file, int32_t i, int64_t begin, int64_t n,
                                   float *out, ifl_error *err) {
    IFL_TRY(model_file_check_range(file, i, begin, n, err));
    if (file->gguf)
        IFL_TRY(ifl_model_file_gguf_read(file, i, begin, n, out, err));
    else
        IFL_TRY(ifl_safetensors_read_f32(file->safetensors, file->index[i], begin, n, out, err));
    for (int64_t k = 0; k < n; k++)
        if (!isfinite(out[k])) return model_file_refuse_value(file, i, err);
    return IFL_OK;
}

ifl_status ifl_model_file_read_bf16(const ifl_model_file *file, int32_t i, int64_t begin, int64_t n,
                                    uint16_t *out, ifl_rounding_stats *stats, ifl_error *err) {
    IFL_TRY(model_file_check_range(file, i, begin, n, err));
    ifl_rounding_stats own = {0};
    if (!file->gguf) {
        IFL_TRY(
            ifl_safetensors_read_bf16(file->safetensors, file->index[i], begin, n, out, &own, err));
    } else {
        float block[READ_BLOCK];
        for (int64_t at = 0; at < n; at += READ_BLOCK) {
            int64_t m = n - at < READ_BLOCK ? n - at : READ_BLOCK;
            IFL_TRY(ifl_model_file_gguf_read(file, i, begin + at, m, block, err));
            ifl_round_to_bf16(block, m, out + at, &own);
        }
    }
    if (own.n_nonfinite > 0) return model_file_refuse_value(file, i, err);
    if (stats) {
        stats->n_values += own.n_values;
        stats->n_changed += own.n_changed;
        if (own.max_relative > stats->max_relative) stats->max_relative = own.max_relative;
    }
    return IFL_OK;
}

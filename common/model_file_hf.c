/* A Hugging Face folder: config.json, generation_config.json and the tensors' names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file_map.h"
#include "common/json_util.h"
#include "common/model_file_impl.h"

#define CONFIG_BYTES_MAX (4 << 20)

static ifl_status folder_read_text(const char *folder, const char *name, size_t n_bytes_max,
                                   char **out, size_t *n_bytes, ifl_error *err) {
    char *path;
    *out = NULL;
    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return ifl_fail(err, IFL_NOMEM, "out of memory");
    ifl_status st = ifl_file_read_text(path, n_bytes_max, out, n_bytes, err);
    free(path);
    return st;
}

static ifl_status folder_read_config(ifl_model_file *file, ifl_error *err) {
    char *text;
    size_t n;
    ifl_status st = folder_read_text(file->path, "config.json", CONFIG_BYTES_MAX, &text, &n, err);
    if (st == IFL_OK) {
        st = ifl_model_config_from_json(&file->config, text, n, err);
        if (st != IFL_OK) ifl_error_wrap(err, "%s", file->path);
    }
    free(text);
    return st;
}

/* Chat models often name their end-of-turn token here only. */
static ifl_status folder_read_generation(ifl_model_file *file, ifl_error *err) {
    char *text;
    size_t n;
    ifl_error local = {0};
    ifl_status st =
        folder_read_text(file->path, "generation_config.json", CONFIG_BYTES_MAX, &text, &n, &local);
    if (st == IFL_NOTFOUND) return IFL_OK;
    if (st != IFL_OK) return ifl_fail(err, st, "%s", local.text);
    json_t *root = NULL;
    ifl_model_config *c = &file->config;
    st = ifl_json_parse_object(&root, text, n, CONFIG_BYTES_MAX, "generation_config.json", err);
    free(text);
    if (st == IFL_OK)
        st = ifl_json_ids(root, "eos_token_id", c->vocab_size, IFL_STOP_IDS_MAX, c->eos_ids,
                          &c->n_eos, err);
    if (st != IFL_OK) ifl_error_wrap(err, "%s/generation_config.json", file->path);
    json_decref(root);
    return st;
}

/* --- Matching of names --- */

/* The name without the prefix under which a text model lies in its file. Multimodal files of Gemma
 * 3 say "language_model.model." or, since transformers 5, "model.language_model.". */
static const char *name_stripped(const char *name) {
    static const char *const prefixes[] = {"model.language_model.", "language_model.model.",
                                           "language_model.", "model."};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        size_t n = strlen(prefixes[i]);
        if (strncmp(name, prefixes[i], n) == 0) return name + n;
    }
    return name;
}

static bool name_ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

static bool name_is_harmless(const ifl_model_config *c, const char *name) {
    const char *rest = name_stripped(name);
    if (name_ends_with(rest, "rotary_emb.inv_freq")) return true;
    if (c->tied_head && strcmp(rest, "lm_head.weight") == 0)
        return true; /* the embedding once more */
    if (c->family != IFL_FAMILY_GEMMA3) return false;
    return strncmp(rest, "vision_tower.", 13) == 0 ||
           strncmp(rest, "multi_modal_projector.", 22) == 0;
}

typedef struct spec_key {
    const char *name; /* stripped; borrowed from the spec */
    int32_t i;
} spec_key;

static int spec_key_compare(const void *a, const void *b) {
    return strcmp(((const spec_key *)a)->name, ((const spec_key *)b)->name);
}

static ifl_status folder_check_tensor(const ifl_model_file *file, int32_t i, ifl_error *err) {
    const ifl_tensor_spec *spec = &file->specs[i];
    if (file->index[i] < 0)
        return ifl_fail(err, IFL_FORMAT, "%s: tensor %s is missing, wanted [%lld, %lld]%s",
                        file->path, spec->name, (long long)spec->rows, (long long)spec->cols,
                        strcmp(spec->name, "lm_head.weight") == 0
                            ? "; is the head tied (tie_word_embeddings in config.json)?"
                            : "");
    const ifl_safetensors_entry *e = ifl_safetensors_at(file->safetensors, file->index[i]);
    bool right = spec->is_matrix
                     ? e->n_dims == 2 && e->dims[0] == spec->rows && e->dims[1] == spec->cols
                     : e->n_dims == 1 && e->dims[0] == spec->cols;
    if (!right) {
        char got[200] = "", want[64];
        size_t n = 0;
        for (int32_t d = 0; d < e->n_dims; d++)
            n += (size_t)snprintf(got + n, sizeof got - n, d ? ", %lld" : "%lld",
                                  (long long)e->dims[d]);
        if (spec->is_matrix)
            snprintf(want, sizeof want, "%lld, %lld", (long long)spec->rows, (long long)spec->cols);
        else
            snprintf(want, sizeof want, "%lld", (long long)spec->cols);
        return ifl_fail(err, IFL_FORMAT, "%s: tensor %s is [%s], config.json wants [%s]",
                        ifl_safetensors_path(file->safetensors, e->file), e->name, got, want);
    }
    if (e->dtype != IFL_DTYPE_BF16 && e->dtype != IFL_DTYPE_F16 && e->dtype != IFL_DTYPE_F32)
        return ifl_fail(
            err, IFL_UNSUPPORTED, "%s: tensor %s has dtype %s; BF16, F16 and F32 are read",
            ifl_safetensors_path(file->safetensors, e->file), e->name, ifl_dtype_name(e->dtype));
    return IFL_OK;
}

static ifl_status folder_match(ifl_model_file *file, spec_key *keys, ifl_error *err) {
    for (int32_t i = 0; i < file->n_specs; i++)
        keys[i] = (spec_key){.name = name_stripped(file->specs[i].name), .i = i};
    qsort(keys, (size_t)file->n_specs, sizeof *keys, spec_key_compare);
    int32_t n = ifl_safetensors_count(file->safetensors);
    for (int32_t t = 0; t < n; t++) {
        const ifl_safetensors_entry *e = ifl_safetensors_at(file->safetensors, t);
        spec_key wanted = {.name = name_stripped(e->name)};
        const spec_key *key =
            bsearch(&wanted, keys, (size_t)file->n_specs, sizeof *keys, spec_key_compare);
        if (!key) {
            if (!name_is_harmless(&file->config, e->name))
                return ifl_fail(err, IFL_FORMAT,
                                "%s: tensor %.200s has no place in a %s model of this "
                                "config.json",
                                ifl_safetensors_path(file->safetensors, e->file), e->name,
                                ifl_family_name(file->config.family));
            file->n_ignored++;
        } else if (file->index[key->i] >= 0) {
            return ifl_fail(
                err, IFL_FORMAT, "%s: tensors %.200s and %.200s are the same one", file->path,
                ifl_safetensors_at(file->safetensors, file->index[key->i])->name, e->name);
        } else {
            file->index[key->i] = t;
        }
    }
    for (int32_t i = 0; i < file->n_specs; i++)
        IFL_TRY(folder_check_tensor(file, i, err));
    return IFL_OK;
}

ifl_status ifl_model_file_open_folder(ifl_model_file *file, ifl_error *err) {
    IFL_TRY(folder_read_config(file, err));
    IFL_TRY(folder_read_generation(file, err));
    IFL_TRY(ifl_safetensors_open(&file->safetensors, file->path, err));
    IFL_TRY(ifl_model_file_make_specs(file, err));
    spec_key *keys = calloc((size_t)file->n_specs, sizeof *keys);
    if (!keys) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", file->path);
    ifl_status st = folder_match(file, keys, err);
    free(keys);
    return st;
}

ifl_status ifl_model_file_tokenizer_json(const ifl_model_file *file, char **out, size_t *n_bytes,
                                         ifl_error *err) {
    *out = NULL;
    if (file->gguf)
        return ifl_fail(err, IFL_NOTFOUND, "%s: a GGUF file has no tokenizer.json", file->path);
    return folder_read_text(file->path, "tokenizer.json", IFL_TOKENIZER_JSON_BYTES_MAX, out,
                            n_bytes, err);
}

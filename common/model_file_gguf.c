/* GGUF names of the canonical tensors, and the undoing of what llama.cpp's converter does to them:
 * - architecture "llama": rows of q and k are permuted, so that RoPE turns neighbours instead of
 * halves;
 * - Gemma: every norm weight is stored with 1 added;
 * - a tied head is left out. */
#include <stdio.h>
#include <string.h>

#include "common/model_file_impl.h"

typedef struct name_row {
    const char *canonical; /* after "model.layers.N." */
    const char *gguf;      /* after "blk.N." */
} name_row;

static const name_row layer_rows[] = {
    {"input_layernorm.weight", "attn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.v_proj.bias", "attn_v.bias"},
    {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight"},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight"},
};

static void gguf_name(const ifl_model_config *c, const char *canonical, char *out, size_t n) {
    int layer, at = 0;
    if (sscanf(canonical, "model.layers.%d.%n", &layer, &at) != 1 || at == 0) {
        bool embedding = strcmp(canonical, "model.embed_tokens.weight") == 0;
        bool norm = strcmp(canonical, "model.norm.weight") == 0;
        snprintf(out, n, "%s",
                 embedding ? "token_embd.weight"
                 : norm    ? "output_norm.weight"
                           : "output.weight");
        return;
    }
    const char *rest = canonical + at, *gguf = NULL;
    for (size_t i = 0; i < sizeof layer_rows / sizeof *layer_rows; i++)
        if (strcmp(rest, layer_rows[i].canonical) == 0) gguf = layer_rows[i].gguf;
    if (strcmp(rest, "post_attention_layernorm.weight") == 0)
        gguf = c->sandwich_norms ? "post_attention_norm.weight" : "ffn_norm.weight";
    IFL_ASSERT(gguf); /* every canonical name has a row */
    snprintf(out, n, "blk.%d.%s", layer, gguf);
}

static ifl_status gguf_check_tensor(const ifl_model_file *file, int32_t i, const char *name,
                                    ifl_error *err) {
    const ifl_tensor_spec *spec = &file->specs[i];
    if (file->index[i] < 0)
        return ifl_fail(err, IFL_FORMAT, "%s: tensor %s is missing, wanted [%lld, %lld]",
                        file->path, name, (long long)spec->rows, (long long)spec->cols);
    const ifl_gguf_tensor *t = ifl_gguf_at(file->gguf, file->index[i]);
    int64_t rows = t->n_dims >= 2 ? t->dims[1] : 1;
    bool right = t->dims[0] == spec->cols && rows == spec->rows;
    for (int32_t d = 2; d < t->n_dims; d++)
        right = right && t->dims[d] == 1;
    if (!right)
        return ifl_fail(err, IFL_FORMAT,
                        "%s: tensor %s is [%lld, %lld], its metadata wants [%lld, %lld]",
                        file->path, name, (long long)rows, (long long)t->dims[0],
                        (long long)spec->rows, (long long)spec->cols);
    return IFL_OK;
}

static bool gguf_name_is_harmless(const ifl_model_config *c, const char *name) {
    /* The factors were read into the configuration. */
    if (strcmp(name, "rope_freqs.weight") == 0) return c->rope.kind == IFL_ROPE_LLAMA3;
    size_t n = strlen(name), m = strlen(".attn_rot_embd");
    return n > m && strcmp(name + n - m, ".attn_rot_embd") == 0;
}

/* Everything in the file must have been asked for; n_used of its tensors were. */
static ifl_status gguf_check_extra(ifl_model_file *file, int32_t n_used, ifl_error *err) {
    int32_t n = ifl_gguf_count(file->gguf);
    file->n_ignored = n - n_used;
    for (int32_t t = 0; t < n && file->n_ignored > 0; t++) {
        bool used = false;
        for (int32_t i = 0; i < file->n_specs && !used; i++)
            used = file->index[i] == t;
        const char *name = ifl_gguf_at(file->gguf, t)->name;
        if (!used && !gguf_name_is_harmless(&file->config, name))
            return ifl_fail(err, IFL_FORMAT, "%s: tensor %s has no place in a %s model", file->path,
                            name, ifl_family_name(file->config.family));
    }
    return IFL_OK;
}

ifl_status ifl_model_file_open_gguf(ifl_model_file *file, ifl_error *err) {
    IFL_TRY(ifl_gguf_open(&file->gguf, file->path, err));
    ifl_status st = ifl_model_config_from_gguf(&file->config, file->gguf, err);
    if (st != IFL_OK) {
        ifl_error_wrap(err, "%s", file->path);
        return st;
    }
    IFL_TRY(ifl_model_file_make_specs(file, err));
    for (int32_t i = 0; i < file->n_specs; i++) {
        char name[IFL_TENSOR_NAME_MAX];
        gguf_name(&file->config, file->specs[i].name, name, sizeof name);
        file->index[i] = ifl_gguf_find(file->gguf, name);
        IFL_TRY(gguf_check_tensor(file, i, name, err));
    }
    return gguf_check_extra(file, file->n_specs, err);
}

/* --- Values --- */

static bool name_ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Row r of a head is (half s, element j) with s = r / (h / 2); in the file it is row 2 j + s. */
static int64_t row_in_file(int64_t row, int64_t head_dim) {
    int64_t head = row / head_dim, r = row % head_dim, half = head_dim / 2;
    return head * head_dim + 2 * (r % half) + r / half;
}

ifl_status ifl_model_file_gguf_read(const ifl_model_file *file, int32_t i, int64_t begin, int64_t n,
                                    float *out, ifl_error *err) {
    const ifl_model_config *c = &file->config;
    const ifl_tensor_spec *spec = &file->specs[i];
    bool permuted =
        c->family == IFL_FAMILY_LLAMA && (name_ends_with(spec->name, ".q_proj.weight") ||
                                          name_ends_with(spec->name, ".k_proj.weight"));
    if (!permuted) {
        IFL_TRY(ifl_gguf_read_f32(file->gguf, file->index[i], begin, n, out, err));
    } else {
        for (int64_t at = begin, left = n; left > 0;) {
            int64_t row = at / spec->cols, col = at % spec->cols;
            int64_t m = spec->cols - col < left ? spec->cols - col : left;
            IFL_TRY(ifl_gguf_read_f32(file->gguf, file->index[i],
                                      row_in_file(row, c->head_dim) * spec->cols + col, m, out,
                                      err));
            out += m;
            at += m;
            left -= m;
        }
    }
    if (c->norm_plus_one && name_ends_with(spec->name, "norm.weight"))
        for (int64_t k = 0; k < n; k++)
            out[k] -= 1.0f;
    return IFL_OK;
}

/* The architecture's checks and its tensor table. JSON is in model_config_json.c. */
#include "common/model_config.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#define D_MODEL_MAX 65536
#define HEADS_MAX 1024
#define HEAD_DIM_MAX 1024
#define D_FF_MAX (1 << 20)
#define POSITIONS_MAX (1 << 24)

const char *ifl_family_name(ifl_family family) {
    switch (family) {
    case IFL_FAMILY_LLAMA:
        return "llama";
    case IFL_FAMILY_QWEN2:
        return "qwen2";
    case IFL_FAMILY_QWEN3:
        return "qwen3";
    case IFL_FAMILY_GEMMA3:
        return "gemma3";
    }
    return "unknown";
}

static ifl_status config_range(const char *field, int64_t got, int64_t min, int64_t max,
                               ifl_error *err) {
    if (got >= min && got <= max) return IFL_OK;
    return ifl_fail(err, IFL_LIMIT, "model configuration: %s is %lld, wanted %lld .. %lld", field,
                    (long long)got, (long long)min, (long long)max);
}

static ifl_status config_real(const char *field, double got, double min, double max,
                              ifl_error *err) {
    if (got >= min && got <= max) return IFL_OK; /* NaN fails both */
    return ifl_fail(err, IFL_LIMIT, "model configuration: %s is %g, wanted %g .. %g", field, got,
                    min, max);
}

/* A flag that the family fixes: a file cannot say otherwise, and neither may a struct. */
static ifl_status config_flag(const ifl_model_config *c, const char *field, bool got, bool want,
                              ifl_error *err) {
    if (got == want) return IFL_OK;
    return ifl_fail(err, IFL_UNSUPPORTED, "model configuration: %s is %s, family %s wants %s",
                    field, got ? "true" : "false", ifl_family_name(c->family),
                    want ? "true" : "false");
}

/* Equal up to the last bits, which 1/sqrt in float or double may leave different. */
static ifl_status config_near(const ifl_model_config *c, const char *field, double got, double want,
                              ifl_error *err) {
    if (fabs(got - want) <= 1e-6 * fabs(want)) return IFL_OK;
    return ifl_fail(err, IFL_UNSUPPORTED, "model configuration: %s is %.9g, family %s wants %.9g",
                    field, got, ifl_family_name(c->family), want);
}

static ifl_status config_check_rope(const ifl_rope *rope, const char *name, ifl_error *err) {
    char field[64];
#define FIELD(what) (snprintf(field, sizeof field, "%s.%s", name, what), field)
    IFL_TRY(config_range(FIELD("kind"), (int)rope->kind, IFL_ROPE_DEFAULT, IFL_ROPE_YARN, err));
    IFL_TRY(config_real(FIELD("theta"), rope->theta, 1.0, 1e12, err));
    if (rope->kind != IFL_ROPE_DEFAULT)
        IFL_TRY(config_real(FIELD("factor"), rope->factor, 1e-3, 1e6, err));
    if (rope->kind == IFL_ROPE_LLAMA3) {
        IFL_TRY(config_real(FIELD("low_freq_factor"), rope->low_freq_factor, 1e-3, 1e6, err));
        /* The smooth part divides by high - low. */
        IFL_TRY(config_real(FIELD("high_freq_factor"), rope->high_freq_factor,
                            rope->low_freq_factor * (1.0 + 1e-9), 1e6, err));
    }
    if (rope->kind == IFL_ROPE_LLAMA3 || rope->kind == IFL_ROPE_YARN)
        IFL_TRY(config_real(FIELD("original_positions"), rope->original_positions, 1, POSITIONS_MAX,
                            err));
    if (rope->kind == IFL_ROPE_YARN) {
        /* Its correction range divides by log(theta). */
        IFL_TRY(config_real(FIELD("theta"), rope->theta, 1.0 + 1e-6, 1e12, err));
        IFL_TRY(config_real(FIELD("beta_slow"), rope->beta_slow, 1e-6, 1e6, err));
        IFL_TRY(config_real(FIELD("beta_fast"), rope->beta_fast, rope->beta_slow, 1e6, err));
        IFL_TRY(config_real(FIELD("attention_factor"), rope->attention_factor, 1e-3, 1e3, err));
    } else {
        IFL_TRY(config_real(FIELD("attention_factor"), rope->attention_factor, 1, 1, err));
    }
#undef FIELD
    return IFL_OK;
}

static bool config_rope_equal(const ifl_rope *a, const ifl_rope *b) {
    return a->kind == b->kind && a->theta == b->theta && a->factor == b->factor &&
           a->low_freq_factor == b->low_freq_factor && a->high_freq_factor == b->high_freq_factor &&
           a->original_positions == b->original_positions && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow && a->attention_factor == b->attention_factor;
}

static ifl_status config_check_layers(const ifl_model_config *c, ifl_error *err) {
    int32_t n_sliding = 0;
    for (int32_t i = 0; i < IFL_LAYERS_MAX; i++) {
        if (c->layer_is_sliding[i] > 1 || (i >= c->n_layers && c->layer_is_sliding[i]))
            return ifl_fail(err, IFL_LIMIT,
                            "model configuration: layer_is_sliding[%d] is %d with %d layers",
                            (int)i, (int)c->layer_is_sliding[i], (int)c->n_layers);
        n_sliding += c->layer_is_sliding[i];
    }
    if (n_sliding > 0 && c->sliding_window < 1)
        return ifl_fail(err, IFL_LIMIT,
                        "model configuration: %d sliding layers, but sliding_window is %d",
                        (int)n_sliding, (int)c->sliding_window);
    return config_range("sliding_window", c->sliding_window, 0, POSITIONS_MAX, err);
}

static ifl_status config_check_family(const ifl_model_config *c, ifl_error *err) {
    bool gemma = c->family == IFL_FAMILY_GEMMA3;
    IFL_TRY(config_flag(c, "qkv_bias", c->qkv_bias, c->family == IFL_FAMILY_QWEN2, err));
    IFL_TRY(config_flag(c, "qk_norm", c->qk_norm, gemma || c->family == IFL_FAMILY_QWEN3, err));
    IFL_TRY(config_flag(c, "norm_plus_one", c->norm_plus_one, gemma, err));
    IFL_TRY(config_flag(c, "sandwich_norms", c->sandwich_norms, gemma, err));
    IFL_TRY(
        config_near(c, "embed_scale", (double)c->embed_scale, gemma ? sqrt(c->d_model) : 1.0, err));
    if (!gemma) {
        if (!config_rope_equal(&c->rope, &c->rope_local))
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "model configuration: rope_local differs from rope, family %s has one",
                            ifl_family_name(c->family));
        return config_near(c, "attention_scale", (double)c->attention_scale,
                           1.0 / sqrt(c->head_dim), err);
    }
    /* The file holds query_pre_attn_scalar, an integer. */
    double scale = (double)c->attention_scale;
    IFL_TRY(config_real("attention_scale", scale, 1e-4, 1, err));
    return config_near(c, "attention_scale", scale, 1.0 / sqrt(rint(1.0 / (scale * scale))), err);
}

ifl_status ifl_model_config_check(const ifl_model_config *c, ifl_error *err) {
    IFL_TRY(config_range("family", (int)c->family, IFL_FAMILY_LLAMA, IFL_FAMILY_GEMMA3, err));
    IFL_TRY(config_range("vocab_size", c->vocab_size, 2, IFL_VOCAB_MAX, err));
    IFL_TRY(config_range("d_model", c->d_model, 1, D_MODEL_MAX, err));
    IFL_TRY(config_range("n_layers", c->n_layers, 1, IFL_LAYERS_MAX, err));
    IFL_TRY(config_range("n_heads", c->n_heads, 1, HEADS_MAX, err));
    IFL_TRY(config_range("n_kv_heads", c->n_kv_heads, 1, c->n_heads, err));
    if (c->n_heads % c->n_kv_heads != 0)
        return ifl_fail(err, IFL_LIMIT,
                        "model configuration: n_kv_heads is %d, which does not divide n_heads %d",
                        (int)c->n_kv_heads, (int)c->n_heads);
    IFL_TRY(config_range("head_dim", c->head_dim, 2, HEAD_DIM_MAX, err));
    if (c->head_dim % 2 != 0)
        return ifl_fail(err, IFL_LIMIT,
                        "model configuration: head_dim is %d, wanted an even number",
                        (int)c->head_dim);
    IFL_TRY(config_range("d_ff", c->d_ff, 1, D_FF_MAX, err));
    IFL_TRY(config_range("max_positions", c->max_positions, 1, POSITIONS_MAX, err));
    IFL_TRY(config_real("norm_eps", (double)c->norm_eps, 1e-20, 0.1, err));
    IFL_TRY(config_range("activation", (int)c->activation, IFL_ACT_SILU, IFL_ACT_GELU_TANH, err));
    IFL_TRY(config_check_rope(&c->rope, "rope", err));
    IFL_TRY(config_check_rope(&c->rope_local, "rope_local", err));
    IFL_TRY(config_check_layers(c, err));
    IFL_TRY(config_check_family(c, err));
    IFL_TRY(config_real("logit_softcap", (double)c->logit_softcap, 0, 1e6, err));
    IFL_TRY(config_range("bos_id", c->bos_id, -1, c->vocab_size - 1, err));
    IFL_TRY(config_range("n_eos", c->n_eos, 0, IFL_STOP_IDS_MAX, err));
    for (int32_t i = 0; i < c->n_eos; i++)
        IFL_TRY(config_range("eos_ids", c->eos_ids[i], 0, c->vocab_size - 1, err));
    return IFL_OK;
}

/* --- Tensor table --------------------------------------------------------------------------------
 */

typedef struct tensor_list {
    ifl_tensor_spec *out; /* may be NULL: count only */
    int32_t n;
} tensor_list;

__attribute__((format(printf, 5, 6))) static void tensor_list_add(tensor_list *list, bool is_matrix,
                                                                  int64_t rows, int64_t cols,
                                                                  const char *format, ...) {
    if (list->out) {
        ifl_tensor_spec *spec = &list->out[list->n];
        va_list args;
        va_start(args, format);
        vsnprintf(spec->name, sizeof spec->name, format, args);
        va_end(args);
        spec->rows = rows;
        spec->cols = cols;
        spec->is_matrix = is_matrix;
    }
    list->n++;
}

static void tensor_list_add_layer(tensor_list *list, const ifl_model_config *c, int l) {
    int64_t d = c->d_model, f = c->d_ff, h = c->head_dim;
    int64_t q = c->n_heads * h, kv = c->n_kv_heads * h;
    static const char *const names[3] = {"q", "k", "v"};

    tensor_list_add(list, false, 1, d, "model.layers.%d.input_layernorm.weight", l);
    for (int i = 0; i < 3; i++) {
        int64_t rows = i == 0 ? q : kv;
        tensor_list_add(list, true, rows, d, "model.layers.%d.self_attn.%s_proj.weight", l,
                        names[i]);
        if (c->qkv_bias)
            tensor_list_add(list, false, 1, rows, "model.layers.%d.self_attn.%s_proj.bias", l,
                            names[i]);
    }
    if (c->qk_norm) {
        tensor_list_add(list, false, 1, h, "model.layers.%d.self_attn.q_norm.weight", l);
        tensor_list_add(list, false, 1, h, "model.layers.%d.self_attn.k_norm.weight", l);
    }
    tensor_list_add(list, true, d, q, "model.layers.%d.self_attn.o_proj.weight", l);
    tensor_list_add(list, false, 1, d, "model.layers.%d.post_attention_layernorm.weight", l);
    if (c->sandwich_norms) {
        tensor_list_add(list, false, 1, d, "model.layers.%d.pre_feedforward_layernorm.weight", l);
        tensor_list_add(list, false, 1, d, "model.layers.%d.post_feedforward_layernorm.weight", l);
    }
    tensor_list_add(list, true, f, d, "model.layers.%d.mlp.gate_proj.weight", l);
    tensor_list_add(list, true, f, d, "model.layers.%d.mlp.up_proj.weight", l);
    tensor_list_add(list, true, d, f, "model.layers.%d.mlp.down_proj.weight", l);
}

int32_t ifl_model_config_tensors(const ifl_model_config *config, ifl_tensor_spec *out) {
    tensor_list list = {.out = out};
    tensor_list_add(&list, true, config->vocab_size, config->d_model, "model.embed_tokens.weight");
    for (int l = 0; l < config->n_layers; l++)
        tensor_list_add_layer(&list, config, l);
    tensor_list_add(&list, false, 1, config->d_model, "model.norm.weight");
    if (!config->tied_head)
        tensor_list_add(&list, true, config->vocab_size, config->d_model, "lm_head.weight");
    return list.n;
}

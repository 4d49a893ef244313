/* An architecture from GGUF metadata. Keys are named "<architecture>.<rest>"; what llama.cpp has as
 * a convention instead of a key is filled in here. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/model_file_impl.h"

typedef struct gguf_source {
    const ifl_gguf *gguf;
    const char *arch;
    char key[128]; /* the last one made */
} gguf_source;

static const char *key(gguf_source *s, const char *rest) {
    snprintf(s->key, sizeof s->key, "%s.%s", s->arch, rest);
    return s->key;
}

static ifl_status source_int(gguf_source *s, const char *rest, int32_t max, int32_t *out,
                             ifl_error *err) {
    return ifl_gguf_get_int32(s->gguf, key(s, rest), 0, max, out, err);
}

static ifl_status source_int_required(gguf_source *s, const char *rest, int32_t max, int32_t *out,
                                      ifl_error *err) {
    if (!ifl_gguf_has(s->gguf, key(s, rest)))
        return ifl_fail(err, IFL_FORMAT, "%s: missing", s->key);
    return source_int(s, rest, max, out, err);
}

static ifl_status source_double(gguf_source *s, const char *rest, double min, double max,
                                double *out, ifl_error *err) {
    return ifl_gguf_get_double(s->gguf, key(s, rest), min, max, out, err);
}

/* Keys that would change the arithmetic in a way we don't have. */
static ifl_status source_refuse_nonzero(gguf_source *s, const char *rest, ifl_error *err) {
    double value = 0;
    IFL_TRY(source_double(s, rest, -1e12, 1e12, &value, err));
    if (value != 0)
        return ifl_fail(err, IFL_UNSUPPORTED, "%s: %g is not supported, only 0", s->key, value);
    return IFL_OK;
}

static ifl_status config_family(gguf_source *s, ifl_model_config *c, ifl_error *err) {
    static const ifl_family families[] = {IFL_FAMILY_LLAMA, IFL_FAMILY_QWEN2, IFL_FAMILY_QWEN3,
                                          IFL_FAMILY_GEMMA3};
    ifl_gguf_text arch = {0};
    IFL_TRY(ifl_gguf_get_text(s->gguf, "general.architecture", &arch, err));
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (!ifl_gguf_text_is(arch, ifl_family_name(families[i]))) continue;
        c->family = families[i];
        s->arch = ifl_family_name(families[i]);
        return IFL_OK;
    }
    return ifl_fail(err, IFL_UNSUPPORTED,
                    "general.architecture: \"%.*s\" is not supported "
                    "(llama, qwen2, qwen3, gemma3 are)",
                    arch.n_bytes < 64 ? (int)arch.n_bytes : 64, arch.bytes ? arch.bytes : "");
}

static ifl_status config_sizes(gguf_source *s, ifl_model_config *c, ifl_error *err) {
    IFL_TRY(source_int_required(s, "context_length", 1 << 24, &c->max_positions, err));
    IFL_TRY(source_int_required(s, "embedding_length", 1 << 20, &c->d_model, err));
    IFL_TRY(source_int_required(s, "block_count", IFL_LAYERS_MAX, &c->n_layers, err));
    IFL_TRY(source_int_required(s, "feed_forward_length", 1 << 24, &c->d_ff, err));
    IFL_TRY(source_int_required(s, "attention.head_count", 1 << 16, &c->n_heads, err));
    c->n_kv_heads = c->n_heads;
    IFL_TRY(source_int(s, "attention.head_count_kv", 1 << 16, &c->n_kv_heads, err));
    if (c->n_heads < 1) return ifl_fail(err, IFL_FORMAT, "%s.attention.head_count: 0", s->arch);
    c->head_dim = c->d_model / c->n_heads;
    IFL_TRY(source_int(s, "attention.key_length", 1 << 16, &c->head_dim, err));
    int32_t value_length = c->head_dim, rope_length = c->head_dim;
    IFL_TRY(source_int(s, "attention.value_length", 1 << 16, &value_length, err));
    IFL_TRY(source_int(s, "rope.dimension_count", 1 << 16, &rope_length, err));
    if (value_length != c->head_dim || rope_length != c->head_dim)
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "%s: heads of %d, values of %d and RoPE over %d elements; equal "
                        "numbers are supported",
                        s->arch, (int)c->head_dim, (int)value_length, (int)rope_length);
    double eps = 1e-6;
    IFL_TRY(source_double(s, "attention.layer_norm_rms_epsilon", 1e-20, 0.1, &eps, err));
    c->norm_eps = (float)eps;

    int32_t embedding = ifl_gguf_find(s->gguf, "token_embd.weight");
    if (embedding < 0) return ifl_fail(err, IFL_FORMAT, "tensor token_embd.weight: missing");
    const ifl_gguf_tensor *t = ifl_gguf_at(s->gguf, embedding);
    if (t->n_dims != 2 || t->dims[1] < 1 || t->dims[1] > IFL_VOCAB_MAX)
        return ifl_fail(err, IFL_LIMIT, "tensor token_embd.weight: %lld rows, limit %d",
                        t->n_dims == 2 ? (long long)t->dims[1] : 0LL, IFL_VOCAB_MAX);
    c->vocab_size = (int32_t)t->dims[1];
    c->tied_head = ifl_gguf_find(s->gguf, "output.weight") < 0;
    return IFL_OK;
}

static ifl_status config_gemma(gguf_source *s, ifl_model_config *c, ifl_error *err) {
    IFL_TRY(source_int_required(s, "attention.sliding_window", 1 << 24, &c->sliding_window, err));
    if (ifl_gguf_is_array(s->gguf, key(s, "attention.sliding_window_pattern"))) {
        int32_t flags[IFL_LAYERS_MAX];
        IFL_TRY(ifl_gguf_array_int32(s->gguf, s->key, c->n_layers, flags, err));
        for (int32_t i = 0; i < c->n_layers; i++)
            c->layer_is_sliding[i] = flags[i] != 0;
    } else {
        int32_t pattern = 6;
        IFL_TRY(source_int(s, "attention.sliding_window_pattern", 1 << 16, &pattern, err));
        for (int32_t i = 0; i < c->n_layers; i++)
            c->layer_is_sliding[i] = pattern == 0 || (i + 1) % pattern != 0;
    }
    if (!memchr(c->layer_is_sliding, 1, sizeof c->layer_is_sliding)) c->sliding_window = 0;
    c->rope_local = (ifl_rope){.theta = 1e4, .attention_factor = 1};
    IFL_TRY(source_double(s, "rope.freq_base_swa", 1, 1e12, &c->rope_local.theta, err));
    /* query_pre_attn_scalar has no key: it is the head size, except for the 27B model. */
    bool is_27b = c->n_layers == 62 && c->d_model == 5376;
    double scale = 1.0 / sqrt(is_27b ? (double)c->d_model / c->n_heads : c->head_dim);
    IFL_TRY(source_double(s, "attention.scale", 1e-4, 1, &scale, err));
    c->attention_scale = (float)scale;
    double cap = 0;
    IFL_TRY(source_double(s, "final_logit_softcapping", 0, 1e6, &cap, err));
    c->logit_softcap = (float)cap;
    return source_refuse_nonzero(s, "attn_logit_softcapping", err);
}

static ifl_status config_rope(gguf_source *s, ifl_model_config *c, ifl_error *err) {
    ifl_rope *rope = &c->rope;
    *rope = (ifl_rope){.theta = c->family == IFL_FAMILY_GEMMA3 ? 1e6 : 1e4, .attention_factor = 1};
    IFL_TRY(source_double(s, "rope.freq_base", 1, 1e12, &rope->theta, err));
    ifl_gguf_text type = {.bytes = "none", .n_bytes = 4};
    double factor = 0, original = c->max_positions, attention_factor = 1;
    IFL_TRY(source_double(s, "rope.scale_linear", 0, 1e6, &factor, err)); /* the older key */
    if (factor > 0) type = (ifl_gguf_text){.bytes = "linear", .n_bytes = 6};
    IFL_TRY(ifl_gguf_get_text(s->gguf, key(s, "rope.scaling.type"), &type, err));
    IFL_TRY(source_double(s, "rope.scaling.factor", 0, 1e6, &factor, err));
    IFL_TRY(source_double(s, "rope.scaling.original_context_length", 1, 1e9, &original, err));
    IFL_TRY(source_double(s, "rope.scaling.attn_factor", 0, 1e3, &attention_factor, err));
    if (attention_factor != 1)
        return ifl_fail(err, IFL_UNSUPPORTED, "%s: %g is not supported, only 1", s->key,
                        attention_factor);
    if (ifl_gguf_text_is(type, "none") || factor == 0 || factor == 1) return IFL_OK;
    rope->factor = factor;
    if (ifl_gguf_text_is(type, "linear")) {
        rope->kind = IFL_ROPE_LINEAR;
        return IFL_OK;
    }
    if (!ifl_gguf_text_is(type, "yarn"))
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "%s.rope.scaling.type: \"%.*s\" is not supported (none, linear, "
                        "yarn are)",
                        s->arch, type.n_bytes < 64 ? (int)type.n_bytes : 64, type.bytes);
    rope->kind = IFL_ROPE_YARN;
    rope->original_positions = original;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    IFL_TRY(source_double(s, "rope.scaling.yarn_beta_fast", 1e-6, 1e6, &rope->beta_fast, err));
    IFL_TRY(source_double(s, "rope.scaling.yarn_beta_slow", 1e-6, 1e6, &rope->beta_slow, err));
    rope->attention_factor = factor > 1 ? 0.1 * log(factor) + 1 : 1;
    return IFL_OK;
}

/* By how much Llama 3's scaling divides the frequency of wavelength `wavelength`. */
static double llama3_divisor(const ifl_rope *rope, double wavelength) {
    double smooth = (rope->original_positions / wavelength - rope->low_freq_factor) /
                    (rope->high_freq_factor - rope->low_freq_factor);
    smooth = fmin(fmax(smooth, 0), 1);
    return 1 / ((1 - smooth) / rope->factor + smooth);
}

/* GGUF keeps Llama 3's RoPE scaling as the resulting divisors only. They determine (factor, low,
 * high, original) up to a common multiple of the last three; with low = 1 and high = 4, as in every
 * Llama 3, a divisor between 1 and the factor gives `original`. All divisors are then checked
 * against that. */
static ifl_status config_rope_freqs(gguf_source *s, ifl_model_config *c, ifl_error *err) {
    int32_t t = ifl_gguf_find(s->gguf, "rope_freqs.weight");
    if (t < 0 || c->family != IFL_FAMILY_LLAMA) return IFL_OK;
    int32_t n = c->head_dim / 2;
    float divisors[512];
    if (c->head_dim > 1024 || ifl_gguf_at(s->gguf, t)->n_elements != n)
        return ifl_fail(err, IFL_FORMAT, "tensor rope_freqs.weight: %lld elements, wanted %d",
                        (long long)ifl_gguf_at(s->gguf, t)->n_elements, (int)n);
    IFL_TRY(ifl_gguf_read_f32(s->gguf, t, 0, n, divisors, err));
    ifl_rope *rope = &c->rope, found = *rope;
    found.kind = IFL_ROPE_LLAMA3;
    found.factor = 1;
    found.low_freq_factor = 1;
    found.high_freq_factor = 4;
    found.original_positions = 8192;
    for (int32_t i = 0; i < n; i++)
        if ((double)divisors[i] > found.factor) found.factor = (double)divisors[i];
    double widest = 0; /* the divisor farthest from both ends gives the most digits */
    for (int32_t i = 0; i < n && found.factor > 1; i++) {
        double smooth = (1 / (double)divisors[i] - 1 / found.factor) / (1 - 1 / found.factor);
        double room = fmin(smooth, 1 - smooth);
        if (!(room > widest)) continue;
        double wavelength = 2 * M_PI * pow(rope->theta, 2.0 * i / c->head_dim);
        widest = room;
        found.original_positions = rint((smooth * 3 + 1) * wavelength);
    }
    bool fits = rope->kind == IFL_ROPE_DEFAULT && found.factor > 1;
    for (int32_t i = 0; i < n && fits; i++) {
        double want = llama3_divisor(&found, 2 * M_PI * pow(rope->theta, 2.0 * i / c->head_dim));
        fits = fabs((double)divisors[i] - want) <= 1e-4 * want;
    }
    if (!fits)
        return ifl_fail(
            err, IFL_UNSUPPORTED,
            "tensor rope_freqs.weight: not Llama 3's scaling with low 1 and "
            "high 4 (other scalings can't be read off it); use the model's Hugging Face folder");
    *rope = found;
    return IFL_OK;
}

static ifl_status config_special_ids(gguf_source *s, ifl_model_config *c, ifl_error *err) {
    static const char *const eos_keys[] = {"tokenizer.ggml.eos_token_id",
                                           "tokenizer.ggml.eot_token_id"};
    c->bos_id = -1;
    IFL_TRY(ifl_gguf_get_int32(s->gguf, "tokenizer.ggml.bos_token_id", 0, c->vocab_size - 1,
                               &c->bos_id, err));
    for (int i = 0; i < 2; i++) {
        int32_t id = -1;
        IFL_TRY(ifl_gguf_get_int32(s->gguf, eos_keys[i], 0, c->vocab_size - 1, &id, err));
        if (id >= 0 && (c->n_eos == 0 || c->eos_ids[0] != id)) c->eos_ids[c->n_eos++] = id;
    }
    return IFL_OK;
}

ifl_status ifl_model_config_from_gguf(ifl_model_config *out, const ifl_gguf *gguf, ifl_error *err) {
    ifl_model_config config = {0}, *c = &config;
    gguf_source source = {.gguf = gguf}, *s = &source;
    IFL_TRY(config_family(s, c, err));
    IFL_TRY(source_refuse_nonzero(s, "expert_count", err));
    bool gemma = c->family == IFL_FAMILY_GEMMA3;
    if (!gemma) IFL_TRY(source_refuse_nonzero(s, "attention.sliding_window", err));
    IFL_TRY(config_sizes(s, c, err));
    c->activation = gemma ? IFL_ACT_GELU_TANH : IFL_ACT_SILU;
    c->qkv_bias = c->family == IFL_FAMILY_QWEN2;
    c->qk_norm = gemma || c->family == IFL_FAMILY_QWEN3;
    c->norm_plus_one = c->sandwich_norms = gemma;
    c->embed_scale = gemma ? (float)sqrt(c->d_model) : 1.0f;
    c->attention_scale = c->head_dim > 0 ? (float)(1.0 / sqrt(c->head_dim)) : 1.0f;
    IFL_TRY(config_rope(s, c, err));
    IFL_TRY(config_rope_freqs(s, c, err));
    c->rope_local = c->rope;
    if (gemma) IFL_TRY(config_gemma(s, c, err));
    IFL_TRY(config_special_ids(s, c, err));
    IFL_TRY(ifl_model_config_check(c, err));
    *out = config;
    return IFL_OK;
}

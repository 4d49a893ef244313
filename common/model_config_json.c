/* config.json of Hugging Face, both ways. The defaults of absent keys are those of transformers. */
#include "common/model_config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"

#define CONFIG_BYTES_MAX (4 << 20)

typedef struct family_row {
    const char *model_type;
    ifl_family family;
    const char *architecture;
    const char *written_type; /* model_type in files we write */
} family_row;

static const family_row family_rows[] = {
    {"llama", IFL_FAMILY_LLAMA, "LlamaForCausalLM", "llama"},
    {"qwen2", IFL_FAMILY_QWEN2, "Qwen2ForCausalLM", "qwen2"},
    {"qwen3", IFL_FAMILY_QWEN3, "Qwen3ForCausalLM", "qwen3"},
    {"gemma3_text", IFL_FAMILY_GEMMA3, "Gemma3ForCausalLM", "gemma3_text"},
    {"gemma3", IFL_FAMILY_GEMMA3, "Gemma3ForCausalLM", "gemma3_text"},
};
#define N_FAMILY_ROWS ((int)(sizeof family_rows / sizeof *family_rows))

/* --- Reading -------------------------------------------------------------------------------------
 */

static ifl_status parse_refuse_true(const json_t *o, const char *key, ifl_error *err) {
    bool on = false;
    IFL_TRY(ifl_json_bool(o, key, &on, err));
    if (on) return ifl_fail(err, IFL_UNSUPPORTED, "%s: true is not supported, only false", key);
    return IFL_OK;
}

static ifl_status parse_required(const json_t *o, const char *key, int32_t max, int32_t *out,
                                 ifl_error *err) {
    IFL_TRY(ifl_json_int32(o, key, 1, max, out, err));
    if (*out < 1) return ifl_fail(err, IFL_FORMAT, "%s: missing", key);
    return IFL_OK;
}

static ifl_status parse_required_double(const json_t *o, const char *key, const char *rope_type,
                                        double *out, ifl_error *err) {
    *out = 0;
    IFL_TRY(ifl_json_double(o, key, 1e-6, 1e12, out, err));
    if (*out <= 0) return ifl_fail(err, IFL_FORMAT, "%s: missing for rope type %s", key, rope_type);
    return IFL_OK;
}

static double rope_mscale(double factor, double mscale) {
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

/* YaRN (Peng et al., 2023, arXiv 2309.00071), with the defaults of transformers. */
static ifl_status parse_yarn(const json_t *o, int32_t max_positions, ifl_rope *rope,
                             ifl_error *err) {
    rope->original_positions = max_positions;
    IFL_TRY(ifl_json_double(o, "original_max_position_embeddings", 1, 1e9,
                            &rope->original_positions, err));
    rope->factor = max_positions / rope->original_positions;
    IFL_TRY(ifl_json_double(o, "factor", 1e-3, 1e6, &rope->factor, err));
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    IFL_TRY(ifl_json_double(o, "beta_fast", 0, 1e6, &rope->beta_fast, err));
    IFL_TRY(ifl_json_double(o, "beta_slow", 0, 1e6, &rope->beta_slow, err));
    if (rope->beta_fast == 0) rope->beta_fast = 32; /* transformers reads 0 as "not given" */
    if (rope->beta_slow == 0) rope->beta_slow = 1;
    bool truncate = true;
    IFL_TRY(ifl_json_bool(o, "truncate", &truncate, err));
    if (!truncate)
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "truncate: false is not supported for rope type yarn");
    double mscale = 0, mscale_all_dim = 0;
    IFL_TRY(ifl_json_double(o, "mscale", 0, 1e3, &mscale, err));
    IFL_TRY(ifl_json_double(o, "mscale_all_dim", 0, 1e3, &mscale_all_dim, err));
    rope->attention_factor =
        mscale > 0 && mscale_all_dim > 0
            ? rope_mscale(rope->factor, mscale) / rope_mscale(rope->factor, mscale_all_dim)
            : rope_mscale(rope->factor, 1);
    return ifl_json_double(o, "attention_factor", 1e-3, 1e3, &rope->attention_factor, err);
}

/* One rope table: `o` may be NULL (default kind). `rope->theta` holds the default of the theta. */
static ifl_status parse_rope(const json_t *o, int32_t max_positions, ifl_rope *rope,
                             ifl_error *err) {
    rope->kind = IFL_ROPE_DEFAULT;
    rope->attention_factor = 1;
    if (!o) return IFL_OK;
    const char *type = "default";
    IFL_TRY(ifl_json_text(o, "type", &type, err));
    IFL_TRY(ifl_json_text(o, "rope_type", &type, err));
    IFL_TRY(ifl_json_double(o, "rope_theta", 1, 1e12, &rope->theta, err));
    double partial = 1;
    IFL_TRY(ifl_json_double(o, "partial_rotary_factor", 0, 1, &partial, err));
    if (partial != 1)
        return ifl_fail(err, IFL_UNSUPPORTED, "partial_rotary_factor: %g is not supported, only 1",
                        partial);
    if (strcmp(type, "default") == 0) return IFL_OK;
    if (strcmp(type, "linear") == 0) {
        rope->kind = IFL_ROPE_LINEAR;
        return parse_required_double(o, "factor", type, &rope->factor, err);
    }
    if (strcmp(type, "llama3") == 0) {
        rope->kind = IFL_ROPE_LLAMA3;
        IFL_TRY(parse_required_double(o, "factor", type, &rope->factor, err));
        IFL_TRY(parse_required_double(o, "low_freq_factor", type, &rope->low_freq_factor, err));
        IFL_TRY(parse_required_double(o, "high_freq_factor", type, &rope->high_freq_factor, err));
        rope->original_positions = max_positions;
        return ifl_json_double(o, "original_max_position_embeddings", 1, 1e9,
                               &rope->original_positions, err);
    }
    if (strcmp(type, "yarn") == 0) {
        rope->kind = IFL_ROPE_YARN;
        return parse_yarn(o, max_positions, rope, err);
    }
    return ifl_fail(err, IFL_UNSUPPORTED,
                    "rope type \"%.64s\" is not supported (default, linear, llama3, yarn are)",
                    type);
}

/* "rope_scaling" beside "rope_theta" (transformers 4), or "rope_parameters", which Gemma 3 nests
 * per layer type (transformers 5). */
static ifl_status parse_ropes(const json_t *o, ifl_model_config *c, ifl_error *err) {
    bool gemma = c->family == IFL_FAMILY_GEMMA3;
    const json_t *scaling, *parameters, *full, *sliding = NULL;
    IFL_TRY(ifl_json_child(o, "rope_scaling", &scaling, err));
    IFL_TRY(ifl_json_child(o, "rope_parameters", &parameters, err));
    c->rope.theta = gemma ? 1e6 : 1e4;
    c->rope_local.theta = 1e4;
    IFL_TRY(ifl_json_double(o, "rope_theta", 1, 1e12, &c->rope.theta, err));
    IFL_TRY(ifl_json_double(o, "rope_local_base_freq", 1, 1e12, &c->rope_local.theta, err));

    full = scaling && json_object_size(scaling) > 0 ? scaling : parameters;
    if (parameters && (json_object_get(parameters, "full_attention") ||
                       json_object_get(parameters, "sliding_attention"))) {
        if (!gemma)
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "rope_parameters: per layer type is not supported for family %s",
                            ifl_family_name(c->family));
        const json_t *nested;
        IFL_TRY(ifl_json_child(parameters, "full_attention", &nested, err));
        IFL_TRY(ifl_json_child(parameters, "sliding_attention", &sliding, err));
        if (full == parameters) {
            full = nested;
        } else if (nested) {
            /* transformers lays rope_scaling over the nested table; its theta then comes from
             * there. */
            IFL_TRY(ifl_json_double(nested, "rope_theta", 1, 1e12, &c->rope.theta, err));
        }
    } else if (gemma && parameters && json_object_size(parameters) > 0) {
        return ifl_fail(
            err, IFL_UNSUPPORTED,
            "rope_parameters: Gemma 3 wants full_attention and sliding_attention in it");
    }
    ifl_status st = parse_rope(full, c->max_positions, &c->rope, err);
    if (st != IFL_OK) {
        ifl_error_wrap(err, full == scaling ? "rope_scaling" : "rope_parameters");
        return st;
    }
    if (!gemma) {
        c->rope_local = c->rope;
        return IFL_OK;
    }
    st = parse_rope(sliding, c->max_positions, &c->rope_local, err);
    if (st != IFL_OK) ifl_error_wrap(err, "rope_parameters.sliding_attention");
    return st;
}

static ifl_status parse_layer_types(const json_t *types, ifl_model_config *c, ifl_error *err) {
    if (!json_is_array(types) || json_array_size(types) != (size_t)c->n_layers)
        return ifl_fail(err, IFL_FORMAT, "layer_types: wanted a list of %d names, got %zu",
                        (int)c->n_layers, json_array_size(types));
    for (int32_t i = 0; i < c->n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (!type) return ifl_fail(err, IFL_FORMAT, "layer_types[%d]: wanted a string", (int)i);
        if (strcmp(type, "sliding_attention") == 0) {
            c->layer_is_sliding[i] = 1;
        } else if (strcmp(type, "full_attention") != 0) {
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "layer_types[%d]: \"%.64s\" is not supported "
                            "(full_attention and sliding_attention are)",
                            (int)i, type);
        }
    }
    return IFL_OK;
}

static ifl_status parse_sliding(const json_t *o, ifl_model_config *c, ifl_error *err) {
    if (c->family == IFL_FAMILY_LLAMA) return IFL_OK;
    bool gemma = c->family == IFL_FAMILY_GEMMA3, on = gemma;
    IFL_TRY(ifl_json_bool(o, "use_sliding_window", &on, err));
    if (!gemma && !on) return IFL_OK; /* Qwen: layer_types and sliding_window then have no effect */
    int32_t pattern = 6, full_layers = 28;
    c->sliding_window = 4096;
    IFL_TRY(ifl_json_int32(o, "sliding_window", 1, 1 << 24, &c->sliding_window, err));
    IFL_TRY(ifl_json_int32(o, "sliding_window_pattern", 1, IFL_LAYERS_MAX + 1, &pattern, err));
    IFL_TRY(ifl_json_int32(o, "_sliding_window_pattern", 1, IFL_LAYERS_MAX + 1, &pattern, err));
    IFL_TRY(ifl_json_int32(o, "max_window_layers", 0, 1 << 20, &full_layers, err));
    const json_t *types = json_object_get(o, "layer_types");
    if (types && !json_is_null(types)) {
        IFL_TRY(parse_layer_types(types, c, err));
    } else {
        for (int32_t i = 0; i < c->n_layers; i++)
            c->layer_is_sliding[i] = gemma ? (i + 1) % pattern != 0 : i >= full_layers;
    }
    if (!memchr(c->layer_is_sliding, 1, sizeof c->layer_is_sliding)) c->sliding_window = 0;
    return IFL_OK;
}

static ifl_status parse_activation(const json_t *o, ifl_model_config *c, ifl_error *err) {
    bool gemma = c->family == IFL_FAMILY_GEMMA3;
    const char *name = gemma ? "gelu_pytorch_tanh" : "silu";
    if (!gemma) IFL_TRY(ifl_json_text(o, "hidden_act", &name, err));
    if (gemma) IFL_TRY(ifl_json_text(o, "hidden_activation", &name, err));
    if (strcmp(name, "silu") == 0 || strcmp(name, "swish") == 0) {
        c->activation = IFL_ACT_SILU;
    } else if (strcmp(name, "gelu_pytorch_tanh") == 0) {
        c->activation = IFL_ACT_GELU_TANH;
    } else {
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "%s: \"%.64s\" is not supported "
                        "(silu and gelu_pytorch_tanh are)",
                        gemma ? "hidden_activation" : "hidden_act", name);
    }
    return IFL_OK;
}

static ifl_status parse_sizes(const json_t *o, ifl_model_config *c, ifl_error *err) {
    bool gemma = c->family == IFL_FAMILY_GEMMA3;
    if (gemma) { /* configs of the multimodal models leave these out */
        c->vocab_size = 262208;
        c->d_model = 2304;
        c->d_ff = 9216;
        c->n_layers = 26;
        c->n_heads = 8;
        c->n_kv_heads = 4;
        c->head_dim = 256;
    }
    IFL_TRY(parse_required(o, "vocab_size", IFL_VOCAB_MAX, &c->vocab_size, err));
    IFL_TRY(parse_required(o, "hidden_size", 1 << 20, &c->d_model, err));
    IFL_TRY(parse_required(o, "intermediate_size", 1 << 24, &c->d_ff, err));
    IFL_TRY(parse_required(o, "num_hidden_layers", IFL_LAYERS_MAX, &c->n_layers, err));
    IFL_TRY(parse_required(o, "num_attention_heads", 1 << 16, &c->n_heads, err));
    if (!gemma) c->n_kv_heads = c->n_heads;
    IFL_TRY(ifl_json_int32(o, "num_key_value_heads", 1, 1 << 16, &c->n_kv_heads, err));
    if (c->family == IFL_FAMILY_QWEN3) c->head_dim = 128;
    IFL_TRY(ifl_json_int32(o, "head_dim", 1, 1 << 16, &c->head_dim, err));
    if (c->head_dim == 0) {
        if (c->d_model % c->n_heads != 0)
            return ifl_fail(err, IFL_FORMAT,
                            "head_dim: missing, and hidden_size %d is no multiple of %d heads",
                            (int)c->d_model, (int)c->n_heads);
        c->head_dim = c->d_model / c->n_heads;
    }
    c->max_positions = gemma ? 131072 : c->family == IFL_FAMILY_LLAMA ? 2048 : 32768;
    return ifl_json_int32(o, "max_position_embeddings", 1, 1 << 24, &c->max_positions, err);
}

static ifl_status parse_family(const json_t *o, ifl_model_config *c, ifl_error *err) {
    bool gemma = c->family == IFL_FAMILY_GEMMA3;
    c->qkv_bias = c->family == IFL_FAMILY_QWEN2;
    c->qk_norm = gemma || c->family == IFL_FAMILY_QWEN3;
    c->norm_plus_one = c->sandwich_norms = gemma;
    c->embed_scale = gemma ? (float)sqrt(c->d_model) : 1.0f;
    double scalar = gemma ? 256 : c->head_dim;
    if (gemma) IFL_TRY(ifl_json_double(o, "query_pre_attn_scalar", 1, 1e8, &scalar, err));
    c->attention_scale = (float)(1.0 / sqrt(scalar));
    double cap = 0;
    if (gemma) {
        IFL_TRY(ifl_json_double(o, "attn_logit_softcapping", 0, 1e6, &cap, err));
        if (cap > 0)
            return ifl_fail(err, IFL_UNSUPPORTED, "attn_logit_softcapping: %g is not supported",
                            cap);
        IFL_TRY(ifl_json_double(o, "final_logit_softcapping", 0, 1e6, &cap, err));
        IFL_TRY(parse_refuse_true(o, "use_bidirectional_attention", err));
    }
    c->logit_softcap = (float)cap;
    if (c->family != IFL_FAMILY_QWEN2) IFL_TRY(parse_refuse_true(o, "attention_bias", err));
    return parse_refuse_true(o, "mlp_bias", err);
}

/* A special id beside the language model: keys of the outer object count where the text part of a
 * multimodal file is silent. */
static ifl_status parse_special_ids(const json_t *o, const json_t *outer, ifl_model_config *c,
                                    ifl_error *err) {
    int32_t bos = c->family == IFL_FAMILY_LLAMA ? 1 : c->family == IFL_FAMILY_GEMMA3 ? 2 : -1;
    int32_t eos = c->family == IFL_FAMILY_LLAMA ? 2 : c->family == IFL_FAMILY_GEMMA3 ? 1 : -1;
    const json_t *bos_from = json_object_get(o, "bos_token_id") ? o : outer;
    const json_t *eos_from = json_object_get(o, "eos_token_id") ? o : outer;
    c->bos_id = json_object_get(bos_from, "bos_token_id") || bos >= c->vocab_size ? -1 : bos;
    IFL_TRY(ifl_json_int32(bos_from, "bos_token_id", -1, c->vocab_size - 1, &c->bos_id, err));
    if (!json_object_get(eos_from, "eos_token_id") && eos >= 0 && eos < c->vocab_size)
        c->eos_ids[c->n_eos++] = eos;
    return ifl_json_ids(eos_from, "eos_token_id", c->vocab_size, IFL_STOP_IDS_MAX, c->eos_ids,
                        &c->n_eos, err);
}

static ifl_status parse_object(const json_t *root, ifl_model_config *c, ifl_error *err) {
    const char *type = NULL;
    IFL_TRY(ifl_json_text(root, "model_type", &type, err));
    if (!type) return ifl_fail(err, IFL_FORMAT, "model_type: missing");
    const family_row *row = NULL;
    for (int i = 0; i < N_FAMILY_ROWS && !row; i++)
        if (strcmp(family_rows[i].model_type, type) == 0) row = &family_rows[i];
    if (!row)
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "model_type: \"%.64s\" is not supported "
                        "(llama, qwen2, qwen3, gemma3_text, gemma3 are)",
                        type);
    c->family = row->family;
    const json_t *o = root;
    if (strcmp(type, "gemma3") == 0) {
        IFL_TRY(ifl_json_child(root, "text_config", &o, err));
        if (!o) return ifl_fail(err, IFL_FORMAT, "text_config: missing in a gemma3 configuration");
    }
    if (json_object_get(root, "quantization_config") || json_object_get(o, "quantization_config"))
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "quantization_config: quantised Hugging Face folders are "
                        "not supported; use the BF16, F16 or F32 weights, or a GGUF file");
    IFL_TRY(parse_sizes(o, c, err));
    double eps = 1e-6;
    IFL_TRY(ifl_json_double(o, "rms_norm_eps", 0, 1, &eps, err));
    c->norm_eps = (float)eps;
    IFL_TRY(parse_activation(o, c, err));
    IFL_TRY(parse_family(o, c, err));
    IFL_TRY(parse_ropes(o, c, err));
    IFL_TRY(parse_sliding(o, c, err));
    c->tied_head = c->family == IFL_FAMILY_GEMMA3;
    IFL_TRY(ifl_json_bool(root, "tie_word_embeddings", &c->tied_head, err));
    if (o != root) IFL_TRY(ifl_json_bool(o, "tie_word_embeddings", &c->tied_head, err));
    return parse_special_ids(o, root, c, err);
}

ifl_status ifl_model_config_from_json(ifl_model_config *out, const char *text, size_t n_bytes,
                                      ifl_error *err) {
    ifl_model_config config = {.bos_id = -1};
    json_t *root = NULL;
    ifl_status st =
        ifl_json_parse_object(&root, text, n_bytes, CONFIG_BYTES_MAX, "config.json", err);
    if (st != IFL_OK) return st;
    st = parse_object(root, &config, err);
    if (st != IFL_OK) ifl_error_wrap(err, "config.json");
    json_decref(root);
    IFL_TRY(st);
    IFL_TRY(ifl_model_config_check(&config, err));
    *out = config;
    return IFL_OK;
}

/* --- Writing -------------------------------------------------------------------------------------
 */

/* The shortest decimal that reads back as the same float: 1e-06, not 9.99999997e-07. */
static double json_float(float x) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    return strtod(text, NULL);
}

static json_t *rope_to_json(const ifl_rope *rope, bool with_theta) {
    static const char *const names[] = {"default", "linear", "llama3", "yarn"};
    json_t *o = json_pack("{s:s}", "rope_type", names[rope->kind]);
    if (!o) return NULL;
    if (with_theta) json_object_set_new(o, "rope_theta", json_real(rope->theta));
    if (rope->kind != IFL_ROPE_DEFAULT) json_object_set_new(o, "factor", json_real(rope->factor));
    if (rope->kind == IFL_ROPE_LLAMA3) {
        json_object_set_new(o, "low_freq_factor", json_real(rope->low_freq_factor));
        json_object_set_new(o, "high_freq_factor", json_real(rope->high_freq_factor));
    }
    if (rope->kind == IFL_ROPE_LLAMA3 || rope->kind == IFL_ROPE_YARN)
        json_object_set_new(o, "original_max_position_embeddings",
                            json_integer((json_int_t)rope->original_positions));
    if (rope->kind == IFL_ROPE_YARN) {
        json_object_set_new(o, "beta_fast", json_real(rope->beta_fast));
        json_object_set_new(o, "beta_slow", json_real(rope->beta_slow));
        json_object_set_new(o, "attention_factor", json_real(rope->attention_factor));
    }
    return o;
}

/* The older keys, which transformers 4 and 5 both read; the nested form only where they can't say
 * it. */
static void ropes_to_json(const ifl_model_config *c, json_t *o) {
    bool gemma = c->family == IFL_FAMILY_GEMMA3;
    if (gemma && c->rope_local.kind != IFL_ROPE_DEFAULT) {
        json_t *nested = json_object();
        json_object_set_new(nested, "full_attention", rope_to_json(&c->rope, true));
        json_object_set_new(nested, "sliding_attention", rope_to_json(&c->rope_local, true));
        json_object_set_new(o, "rope_parameters", nested);
        return;
    }
    json_object_set_new(o, "rope_theta", json_real(c->rope.theta));
    if (gemma) json_object_set_new(o, "rope_local_base_freq", json_real(c->rope_local.theta));
    json_object_set_new(o, "rope_scaling",
                        c->rope.kind == IFL_ROPE_DEFAULT ? json_null()
                                                         : rope_to_json(&c->rope, false));
}

static void sliding_to_json(const ifl_model_config *c, json_t *o) {
    if (c->family == IFL_FAMILY_LLAMA) return;
    json_t *types = json_array();
    for (int32_t i = 0; i < c->n_layers; i++)
        json_array_append_new(
            types, json_string(c->layer_is_sliding[i] ? "sliding_attention" : "full_attention"));
    json_object_set_new(o, "layer_types", types);
    json_object_set_new(o, "sliding_window",
                        c->sliding_window > 0 ? json_integer(c->sliding_window) : json_null());
    if (c->family != IFL_FAMILY_GEMMA3)
        json_object_set_new(o, "use_sliding_window", json_boolean(c->sliding_window > 0));
}

static json_t *eos_to_json(const ifl_model_config *c) {
    if (c->n_eos == 0) return json_null();
    if (c->n_eos == 1) return json_integer(c->eos_ids[0]);
    json_t *ids = json_array();
    for (int32_t i = 0; i < c->n_eos; i++)
        json_array_append_new(ids, json_integer(c->eos_ids[i]));
    return ids;
}

ifl_status ifl_model_config_to_json(const ifl_model_config *c, char **out, ifl_error *err) {
    *out = NULL;
    IFL_TRY(ifl_model_config_check(c, err));
    const family_row *row = &family_rows[0];
    for (int i = 0; i < N_FAMILY_ROWS; i++)
        if (family_rows[i].family == c->family) row = &family_rows[i];
    bool gemma = c->family == IFL_FAMILY_GEMMA3;
    json_t *o = json_pack(
        "{s:[s], s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:b, s:f, s:f, s:b}",
        "architectures", row->architecture, "model_type", row->written_type, "torch_dtype",
        "bfloat16", "vocab_size", (int)c->vocab_size, "hidden_size", (int)c->d_model,
        "intermediate_size", (int)c->d_ff, "num_hidden_layers", (int)c->n_layers,
        "num_attention_heads", (int)c->n_heads, "num_key_value_heads", (int)c->n_kv_heads,
        "head_dim", (int)c->head_dim, "max_position_embeddings", (int)c->max_positions,
        "rms_norm_eps", json_float(c->norm_eps), "tie_word_embeddings", (int)c->tied_head,
        "initializer_range", 0.02, "attention_dropout", 0.0, "use_cache", 1);
    if (!o) return ifl_fail(err, IFL_NOMEM, "config.json: out of memory");
    json_object_set_new(o, gemma ? "hidden_activation" : "hidden_act",
                        json_string(c->activation == IFL_ACT_SILU ? "silu" : "gelu_pytorch_tanh"));
    if (c->family != IFL_FAMILY_QWEN2) json_object_set_new(o, "attention_bias", json_false());
    if (c->family == IFL_FAMILY_LLAMA) json_object_set_new(o, "mlp_bias", json_false());
    if (gemma) {
        double s = (double)c->attention_scale;
        json_object_set_new(o, "query_pre_attn_scalar",
                            json_integer((json_int_t)rint(1.0 / (s * s))));
        json_object_set_new(o, "attn_logit_softcapping", json_null());
        json_object_set_new(o, "final_logit_softcapping",
                            c->logit_softcap > 0 ? json_real(json_float(c->logit_softcap))
                                                 : json_null());
    }
    ropes_to_json(c, o);
    sliding_to_json(c, o);
    json_object_set_new(o, "bos_token_id", c->bos_id >= 0 ? json_integer(c->bos_id) : json_null());
    json_object_set_new(o, "eos_token_id", eos_to_json(c));
    *out = json_dumps(o, JSON_INDENT(2));
    json_decref(o);
    if (!*out) return ifl_fail(err, IFL_NOMEM, "config.json: out of memory");
    return IFL_OK;
}

/* What a decoder-only policy looks like: one struct for all families. Filled from a Hugging Face
 * config.json, from GGUF metadata, or from a run's configuration (random initialisation). */
#ifndef IFL_COMMON_MODEL_CONFIG_H
#define IFL_COMMON_MODEL_CONFIG_H

#include "common/status.h"

#define IFL_LAYERS_MAX 256
#define IFL_VOCAB_MAX (1 << 20)
#define IFL_STOP_IDS_MAX 16

typedef enum { IFL_FAMILY_LLAMA, IFL_FAMILY_QWEN2, IFL_FAMILY_QWEN3, IFL_FAMILY_GEMMA3 } ifl_family;
typedef enum { IFL_ACT_SILU, IFL_ACT_GELU_TANH } ifl_activation;
typedef enum { IFL_ROPE_DEFAULT, IFL_ROPE_LINEAR, IFL_ROPE_LLAMA3, IFL_ROPE_YARN } ifl_rope_kind;

typedef struct ifl_rope {
    ifl_rope_kind kind;
    double theta;
    double factor;               /* linear, llama3, yarn */
    double low_freq_factor;      /* llama3 */
    double high_freq_factor;     /* llama3 */
    double original_positions;   /* llama3, yarn */
    double beta_fast, beta_slow; /* yarn */
    double attention_factor;     /* yarn: multiplies cos and sin; 1 elsewhere */
} ifl_rope;

typedef struct ifl_model_config {
    ifl_family family;
    int32_t vocab_size;      /* V: rows of embedding and head */
    int32_t d_model;         /* D */
    int32_t n_layers;
    int32_t n_heads;         /* query heads */
    int32_t n_kv_heads;      /* divides n_heads */
    int32_t head_dim;        /* even */
    int32_t d_ff;
    int32_t max_positions;   /* longest sequence, tokens */
    float norm_eps;
    ifl_activation activation;
    ifl_rope rope;           /* full-attention layers */
    ifl_rope rope_local;     /* sliding layers (Gemma 3); equal to `rope` elsewhere */
    int32_t sliding_window;  /* tokens a sliding layer sees, itself included; 0 = none */
    uint8_t layer_is_sliding[IFL_LAYERS_MAX];
    bool tied_head;          /* the head is the embedding */
    bool qkv_bias;           /* Qwen2 */
    bool qk_norm;            /* Qwen3, Gemma 3: RMSNorm over each head of q and k before RoPE */
    bool norm_plus_one;      /* Gemma: norms multiply by (1 + w) */
    bool sandwich_norms;     /* Gemma 3: norms after attention and MLP too */
    float embed_scale;       /* Gemma: sqrt(D) in f32; 1 elsewhere */
    float attention_scale;   /* multiplies q.k; head_dim^-0.5 or query_pre_attn_scalar^-0.5 */
    float logit_softcap;     /* 0 = none */
    int32_t bos_id;          /* -1 = none */
    int32_t n_eos;
    int32_t eos_ids[IFL_STOP_IDS_MAX];
} ifl_model_config;

const char *ifl_family_name(ifl_family family); /* "llama", "qwen2", "qwen3", "gemma3" */

/* Checks every field against its range and against the others; names the field that is wrong. */
ifl_status ifl_model_config_check(const ifl_model_config *config, ifl_error *err);

/* Parses the text of a Hugging Face config.json (model_type llama | qwen2 | qwen3 | gemma3_text, and
 * gemma3 with its text_config). Unknown families and unknown rope types are IFL_UNSUPPORTED. */
ifl_status ifl_model_config_from_json(ifl_model_config *out, const char *text, size_t n_bytes,
                                      ifl_error *err);

/* Writes a config.json that Hugging Face transformers loads. Returns an owned, NUL-terminated text. */
ifl_status ifl_model_config_to_json(const ifl_model_config *config, char **out, ifl_error *err);

/* The tensors of a model, by canonical (Hugging Face) name and in canonical order: embedding, then per
 * layer input norm, q, k, v (weight, then bias), q norm, k norm, o, norm after attention (Gemma: then
 * pre-feedforward norm, before the MLP; post-feedforward norm after it), gate, up, down; final norm;
 * head unless tied. Weight matrices are [rows = outputs, cols = inputs], row-major. */
#define IFL_TENSOR_NAME_MAX 128
typedef struct ifl_tensor_spec {
    char name[IFL_TENSOR_NAME_MAX];
    int64_t rows;   /* 1 for vectors */
    int64_t cols;
    bool is_matrix; /* two-dimensional in the file */
} ifl_tensor_spec;

/* Number of tensors of `config`; with `out` non-NULL also writes that many specs. */
int32_t ifl_model_config_tensors(const ifl_model_config *config, ifl_tensor_spec *out);

#endif

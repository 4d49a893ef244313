#include "kernels/random_model.h"

#include <math.h>
#include <string.h>

#include "common/bf16.h"
#include "common/memory.h"

/* Irwin-Hall: the sum of a word's four bytes is close to normal, needs no libm and so has the same
 * bits on every host. Mean 510, variance 4 * (256^2 - 1) / 12. */
static double word_normal(uint32_t word) {
    int sum =
        (int)(word & 255) + (int)(word >> 8 & 255) + (int)(word >> 16 & 255) + (int)(word >> 24);
    return (sum - 510) * (1.0 / 147.80053);
}

static void config_base(ifl_model_config *c, ifl_family family) {
    memset(c, 0, sizeof *c);
    c->family = family;
    c->vocab_size = 301;
    c->d_model = 32;
    c->n_layers = 2;
    c->n_heads = 4;
    c->n_kv_heads = 2;
    c->head_dim = 8;
    c->d_ff = 56;
    c->max_positions = 2048;
    c->norm_eps = 1e-6f;
    c->activation = IFL_ACT_SILU;
    c->rope = (ifl_rope){.kind = IFL_ROPE_DEFAULT, .theta = 10000, .attention_factor = 1};
    c->embed_scale = 1;
    c->bos_id = -1;
}

static void config_finish(ifl_model_config *c) {
    if (c->family != IFL_FAMILY_GEMMA3) c->rope_local = c->rope;
    if (c->attention_scale == 0) c->attention_scale = 1 / sqrtf((float)c->head_dim);
}

static void config_tiny_llama(ifl_model_config *c) {
    config_base(c, IFL_FAMILY_LLAMA);
    c->rope = (ifl_rope){.kind = IFL_ROPE_LLAMA3,
                         .theta = 500000,
                         .factor = 8,
                         .low_freq_factor = 1,
                         .high_freq_factor = 4,
                         .original_positions = 256,
                         .attention_factor = 1};
    c->n_eos = 1;
    c->eos_ids[0] = 300;
}

static void config_tiny_qwen2(ifl_model_config *c) {
    config_base(c, IFL_FAMILY_QWEN2);
    c->tied_head = true;
    c->qkv_bias = true;
    c->d_model = 48;
    c->head_dim = 12;
    c->n_kv_heads = 1;
}

static void config_tiny_qwen3(ifl_model_config *c) {
    config_base(c, IFL_FAMILY_QWEN3);
    c->qk_norm = true;
    c->head_dim = 16; /* heads * head_dim is not d_model, as in Qwen3-0.6B */
    c->n_kv_heads = 4;
}

static void config_gemma3(ifl_model_config *c) {
    config_base(c, IFL_FAMILY_GEMMA3);
    c->activation = IFL_ACT_GELU_TANH;
    c->tied_head = c->qk_norm = c->norm_plus_one = c->sandwich_norms = true;
    c->rope.theta = 1000000;
    c->rope_local = (ifl_rope){.kind = IFL_ROPE_DEFAULT, .theta = 10000, .attention_factor = 1};
}

static void config_tiny_gemma3(ifl_model_config *c) {
    config_gemma3(c);
    c->vocab_size = 4999; /* two vocabulary blocks, the second one ragged */
    c->n_layers = 3;
    c->n_kv_heads = 1;
    c->head_dim = 16;
    c->sliding_window = 24;
    c->layer_is_sliding[0] = c->layer_is_sliding[1] = 1;
    c->embed_scale = sqrtf((float)c->d_model);
    c->attention_scale = 0.25f;
}

static void config_gemma3_270m(ifl_model_config *c) {
    config_gemma3(c);
    c->vocab_size = 262144;
    c->d_model = 640;
    c->n_layers = 18;
    c->n_heads = 4;
    c->n_kv_heads = 1;
    c->head_dim = 256;
    c->d_ff = 2048;
    c->max_positions = 32768;
    c->sliding_window = 512;
    for (int l = 0; l < c->n_layers; l++)
        c->layer_is_sliding[l] = l % 6 != 5;
    c->embed_scale = sqrtf((float)c->d_model);
    c->attention_scale = 0.0625f;
    c->bos_id = 2;
    c->n_eos = 2;
    c->eos_ids[0] = 1;
    c->eos_ids[1] = 106;
}

static const struct {
    const char *name;
    void (*fill)(ifl_model_config *config);
} shapes[] = {
    {"tiny-llama", config_tiny_llama},    {"tiny-qwen2", config_tiny_qwen2},
    {"tiny-qwen3", config_tiny_qwen3},    {"tiny-gemma3", config_tiny_gemma3},
    {"gemma-3-270m", config_gemma3_270m},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

bool ifl_random_model_config(const char *name, ifl_model_config *config) {
    for (int i = 0; i < N_SHAPES; i++)
        if (strcmp(shapes[i].name, name) == 0) {
            shapes[i].fill(config);
            config_finish(config);
            return true;
        }
    return false;
}

const char *ifl_random_model_name(int i) {
    return i >= 0 && i < N_SHAPES ? shapes[i].name : NULL;
}

enum { CHUNK = 4096 };

/* The standard deviation and the mean of a tensor's elements. */
static void param_law(const ifl_model *model, int32_t i, double *mean, double *deviation) {
    const ifl_tensor_spec *s = &model->params[i].spec;
    bool is_norm = !s->is_matrix && strstr(s->name, "norm") != NULL;
    *mean = is_norm && !model->config.norm_plus_one ? 1 : 0;
    if (!s->is_matrix)
        *deviation = 0.1;
    else if (i == model->embedding)
        /* A tied head multiplies unit-variance rows by it: logits of deviation near 2. */
        *deviation = 2 / sqrt((double)s->cols);
    else
        *deviation = 1 / sqrt((double)s->cols);
}

ifl_status ifl_random_weights(ifl_weights *weights, uint64_t seed, ifl_error *err) {
    const ifl_model *model = weights->model;
    uint16_t *chunk = ifl_alloc(CHUNK, sizeof *chunk);
    if (!chunk) return ifl_fail(err, IFL_NOMEM, "random weights: out of memory");
    for (int32_t i = 0; i < model->n_params; i++) {
        const ifl_param *p = &model->params[i];
        ifl_rng_key key = {seed, (uint64_t)i, IFL_RNG_INIT};
        int64_t n_elements = p->spec.rows * p->spec.cols;
        double mean, deviation;
        param_law(model, i, &mean, &deviation);
        for (int64_t at = 0; at < n_elements; at += CHUNK) {
            int64_t n = n_elements - at < CHUNK ? n_elements - at : CHUNK;
            for (int64_t j = 0; j < n; j += 4) {
                uint32_t words[4];
                ifl_rng_words(&key, (uint64_t)(at + j) / 4, 0, words);
                for (int64_t e = j; e < n && e < j + 4; e++)
                    chunk[e] =
                        ifl_bf16_from_f32((float)(mean + deviation * word_normal(words[e - j])));
            }
            ifl_weights_put(weights, p->offset + at, n, chunk);
        }
    }
    ifl_free(chunk);
    return IFL_OK;
}

ifl_status ifl_random_step(ifl_weights *to, const ifl_weights *from, uint64_t seed, double size,
                           ifl_error *err) {
    const ifl_model *model = from->model;
    uint16_t *chunk = ifl_alloc(CHUNK, sizeof *chunk);
    if (!chunk) return ifl_fail(err, IFL_NOMEM, "random weights: out of memory");
    ifl_rng_key key = {seed, UINT64_MAX, IFL_RNG_INIT};
    for (int64_t at = 0; at < model->n_elements; at += CHUNK) {
        int64_t n = model->n_elements - at < CHUNK ? model->n_elements - at : CHUNK;
        ifl_weights_get(from, at, n, chunk);
        for (int64_t j = 0; j < n; j += 4) {
            uint32_t words[4];
            ifl_rng_words(&key, (uint64_t)(at + j) / 4, 0, words);
            for (int64_t e = j; e < n && e < j + 4; e++) {
                double w = (double)ifl_bf16_to_f32(chunk[e]);
                chunk[e] = ifl_bf16_from_f32((float)(w * (1 + size * word_normal(words[e - j]))));
            }
        }
        ifl_weights_put(to, at, n, chunk);
    }
    ifl_free(chunk);
    return IFL_OK;
}

#include "kernels/contract.h"

#include <math.h>
#include <string.h>

#include "common/memory.h"
#include "kernels/random_model.h"
#include "kernels/score.h"

/* Of this list: another one is another object, whatever its parts say. */
#define CONTRACT_FORMAT "inflight numerics contract 1"

#define TEXT_OF_VALUE(value) #value
#define TEXT_OF(name) TEXT_OF_VALUE(name)

static const char block_sizes[] =
    "attention split " TEXT_OF(IFL_KV_SPLIT) ", log-sum-exp block " TEXT_OF(
        IFL_VOCAB_BLOCK) ", k padded to " TEXT_OF(IFL_DEPTH) ", lanes " TEXT_OF(IFL_LANES);

static const char sampling_rule[] =
    "logits by soft cap, then / temperature; top-k, then top-p of what it left, at most " TEXT_OF(
        IFL_TOP_K_MAX) " kept, best first, ties by lowest id; log-prob renormalised over the kept "
                       "set; greedy recorded at temperature 1";

static const char *contract_dtypes(ifl_profile numerics) {
    return numerics == IFL_PROFILE_BF16
               ? "weights bf16, activations bf16 where they multiply, KV cache bf16, sums f32, "
                 "norms, softmax and head log-probs f32"
               : "weights bf16, activations f32, KV cache f32, sums f32, norms, softmax and head "
                 "log-probs f32";
}

/* --- Functions ----------------------------------------------------------------------------- */

enum { N_POINTS = 1024 };

/* Fixed inputs: both signs over 2^-132 to 2^7, denormals and zeros among them, and no NaN, whose
 * payload is nobody's. From bits alone, so that no library function is asked. */
static void points_fill(float *x, uint32_t seed) {
    for (int i = 0; i < N_POINTS; i++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t exponent = i % 32 == 0 ? 0 : 0x7fu + 7u - (seed >> 9) % (i % 4 == 0 ? 133u : 12u);
        uint32_t bits = (seed & 0x80000000u) | exponent << 23 | (seed * 2654435761u) >> 9;
        memcpy(&x[i], &bits, sizeof bits);
    }
    x[0] = 0.0f;
    x[1] = -0.0f;
}

uint64_t ifl_contract_functions(const ifl_ops *ops) {
    enum { HEAD = 64, N_OUT = 8 };
    float x[N_POINTS], u[N_POINTS], out[N_OUT][N_POINTS];
    points_fill(x, 1);
    points_fill(u, 2);
    ops->exp(out[0], x, N_POINTS);
    for (int i = 0; i < N_POINTS; i++)
        u[i] = i < 2 || x[i] > 0.0f ? x[i] : -x[i]; /* log of what it is defined for */
    ops->log(out[1], u + 2, N_POINTS - 2);
    out[1][N_POINTS - 2] = out[1][N_POINTS - 1] = 0.0f;
    points_fill(u, 3);
    ops->silu_mul(out[2], x, u, N_POINTS);
    ops->gelu_mul(out[3], x, u, N_POINTS);
    ops->temper(out[4], x, 0.7f, 30.0f, N_POINTS);
    ops->temper(out[5], x, 1.3f, 0.0f, N_POINTS);
    memcpy(out[6], x, sizeof out[6]);
    ops->rope(out[6], HEAD, u, u + HEAD / 2, N_POINTS / HEAD, HEAD);
    memcpy(out[7], x, sizeof out[7]);
    ops->round(out[7], N_POINTS);
    return ifl_hash64(out, sizeof out);
}

/* --- Row sums ------------------------------------------------------------------------------ */

uint64_t ifl_contract_row_sums(const ifl_ops *ops) {
    enum { BLOCK = 101, N_BLOCKS = 9, ROWS = 3, COLS = 341 };
    float x[N_POINTS], w[N_POINTS], y[N_POINTS] = {0}, r[ROWS];
    ifl_lse blocks[N_BLOCKS], merged[N_BLOCKS];
    points_fill(x, 4);
    points_fill(w, 5);
    for (int i = 0; i < N_POINTS; i++) /* near each other, so that no one of them is all of a sum */
        x[i] = x[i] * 0x1p-4f;
    for (int b = 0; b < N_BLOCKS; b++)
        blocks[b] = ops->block_lse(x + b * BLOCK, BLOCK - b, NULL);
    for (int b = 0; b < N_BLOCKS; b++)
        merged[b] = ops->merge_lse(blocks, b + 1);
    ops->rmsnorm(y, COLS, x, COLS, w, 1.0f, 1e-6f, ROWS, COLS, r);
    uint64_t all[] = {ifl_hash64(blocks, sizeof blocks), ifl_hash64(merged, sizeof merged),
                      ifl_hash64(y, sizeof y), ifl_hash64(r, sizeof r)};
    return ifl_hash64(all, sizeof all);
}

/* --- Forward pass -------------------------------------------------------------------------- */

/* Two splits of keys, two blocks of the vocabulary, and tails in every dimension. */
enum {
    FORWARD_TOKENS = IFL_KV_SPLIT + 9,
    FORWARD_FROM = FORWARD_TOKENS - 24, /* log-probs on both sides of the split */
    FORWARD_WIDTH = IFL_DEPTH + 8,
};

/* The same architecture, small: its kinds of layers, norms, activation, biases and RoPE stay. */
static ifl_model_config forward_config(const ifl_model_config *c) {
    ifl_model_config s = *c;
    bool has_sliding = false, has_full = false;
    for (int32_t l = 0; l < c->n_layers; l++) {
        has_sliding |= c->layer_is_sliding[l] != 0;
        has_full |= c->layer_is_sliding[l] == 0;
    }
    memset(s.layer_is_sliding, 0, sizeof s.layer_is_sliding);
    s.n_layers = 2;
    s.layer_is_sliding[0] = has_sliding;
    s.layer_is_sliding[1] = !has_full;
    if (s.sliding_window > FORWARD_TOKENS / 2) s.sliding_window = FORWARD_TOKENS / 2;
    s.vocab_size = IFL_VOCAB_BLOCK + 33;
    s.d_model = s.head_dim = FORWARD_WIDTH;
    s.n_heads = 2;
    s.n_kv_heads = c->n_kv_heads == c->n_heads ? 2 : 1;
    s.d_ff = 2 * FORWARD_WIDTH;
    s.max_positions = FORWARD_TOKENS;
    s.bos_id = -1;
    s.n_eos = 0;
    /* Families tie these to the sizes. */
    if (c->family == IFL_FAMILY_GEMMA3)
        s.embed_scale = sqrtf((float)FORWARD_WIDTH);
    else
        s.attention_scale = 1.0f / sqrtf((float)FORWARD_WIDTH);
    return s;
}

ifl_status ifl_contract_forward(const ifl_model *model, const ifl_ops *ops, uint64_t *out,
                                ifl_error *err) {
    ifl_model_config config = forward_config(&model->config);
    ifl_model *small = NULL;
    ifl_weights *weights = NULL;
    ifl_workspace *workspace = NULL;
    int32_t tokens[FORWARD_TOKENS];
    ifl_logprob logprobs[FORWARD_TOKENS - FORWARD_FROM];
    float values[FORWARD_TOKENS - FORWARD_FROM][3]; /* a log-prob and the sum that is inside it */
    ifl_status st;
    for (int32_t t = 0; t < FORWARD_TOKENS; t++)
        tokens[t] = (t * 2741 + t * t * 7) % config.vocab_size;
    IFL_TRY_GOTO(st, ifl_model_create_plain(&small, &config, 0, model->numerics, err), done);
    IFL_TRY_GOTO(st, ifl_weights_create(&weights, small, err), done);
    IFL_TRY_GOTO(st, ifl_random_weights(weights, 1, err), done);
    IFL_TRY_GOTO(st, ifl_workspace_create(&workspace, small, 64, NULL, ops, err), done);
    IFL_TRY_GOTO(
        st,
        ifl_score(workspace, weights, tokens, FORWARD_TOKENS, FORWARD_FROM, 0.8f, logprobs, err),
        done);
    for (int32_t i = 0; i < FORWARD_TOKENS - FORWARD_FROM; i++) {
        values[i][0] = logprobs[i].logprob;
        values[i][1] = logprobs[i].lse.max;
        values[i][2] = logprobs[i].lse.sum;
    }
    *out = ifl_hash64(values, sizeof values);
done:
    ifl_workspace_free(workspace);
    ifl_weights_free(weights);
    ifl_model_free(small);
    if (st != IFL_OK) ifl_error_wrap(err, "numerics contract, forward pass");
    return st;
}

/* --- The object ---------------------------------------------------------------------------- */

static void part_add(ifl_profile_parts *parts, const char *name, uint64_t hash) {
    IFL_ASSERT(parts->n < IFL_PROFILE_PARTS_MAX);
    ifl_profile_part *part = &parts->part[parts->n++];
    size_t n = strlen(name);
    IFL_ASSERT(n < sizeof part->name);
    memset(part, 0, sizeof *part);
    memcpy(part->name, name, n);
    part->hash = hash;
}

static void part_add_text(ifl_profile_parts *parts, const char *name, const char *text) {
    part_add(parts, name, ifl_hash64(text, strlen(text)));
}

static uint64_t rope_hash(const ifl_model *model) {
    const ifl_model_config *c = &model->config;
    size_t n = (size_t)c->max_positions * (size_t)(c->head_dim / 2) * sizeof(float);
    uint64_t tables[] = {ifl_hash64(model->rope_cos, n), ifl_hash64(model->rope_sin, n),
                         ifl_hash64(model->rope_local_cos, n),
                         ifl_hash64(model->rope_local_sin, n)};
    return ifl_hash64(tables, sizeof tables);
}

static uint64_t constants_hash(const ifl_model_config *c) {
    float numbers[] = {c->norm_eps, c->embed_scale, c->attention_scale, c->logit_softcap};
    int32_t kinds[] = {(int32_t)c->activation, c->sliding_window, c->norm_plus_one,
                       c->sandwich_norms,      c->qk_norm,        c->qkv_bias,
                       (int32_t)c->rope.kind,  c->rope_local.kind};
    uint64_t all[] = {ifl_hash64(numbers, sizeof numbers), ifl_hash64(kinds, sizeof kinds),
                      ifl_hash64(c->layer_is_sliding, (size_t)c->n_layers)};
    return ifl_hash64(all, sizeof all);
}

ifl_status ifl_contract_make(ifl_model *model, ifl_error *err) {
    const ifl_ops *ops = ifl_ops_best(model->numerics);
    ifl_profile_parts *parts = &model->parts;
    uint64_t forward = 0;
    IFL_TRY(ifl_contract_forward(model, ops, &forward, err));
    *parts = (ifl_profile_parts){0};
    part_add_text(parts, "orders", ifl_profile_text(model->numerics));
    part_add_text(parts, "block sizes", block_sizes);
    part_add_text(parts, "dtypes", contract_dtypes(model->numerics));
    part_add(parts, "rope table", rope_hash(model));
    part_add(parts, "model constants", constants_hash(&model->config));
    part_add(parts, "functions", ifl_contract_functions(ops));
    part_add(parts, "row sums", ifl_contract_row_sums(ops));
    part_add(parts, "forward pass", forward);
    part_add_text(parts, "sampling", sampling_rule);
    ifl_hasher *hasher = ifl_hasher_create();
    if (!hasher) return ifl_fail(err, IFL_NOMEM, "numerics contract: out of memory");
    ifl_hasher_add(hasher, CONTRACT_FORMAT, sizeof CONTRACT_FORMAT);
    ifl_hasher_add(hasher, parts->part, (size_t)parts->n * sizeof *parts->part);
    model->profile = ifl_hasher_finish(hasher);
    ifl_hasher_free(hasher);
    return IFL_OK;
}

void ifl_contract_print(const ifl_model *model, FILE *f) {
    const ifl_model_config *c = &model->config;
    char hash[33], text[192];
    ifl_hash_text(model->profile, hash);
    fprintf(f, "numerics profile %s, %s\n", ifl_profile_name(model->numerics), hash);
    for (int32_t i = 0; i < model->parts.n; i++) {
        const ifl_profile_part *part = &model->parts.part[i];
        const char *what = "";
        if (strcmp(part->name, "orders") == 0) what = ifl_profile_text(model->numerics);
        if (strcmp(part->name, "block sizes") == 0) what = block_sizes;
        if (strcmp(part->name, "dtypes") == 0) what = contract_dtypes(model->numerics);
        if (strcmp(part->name, "sampling") == 0) what = sampling_rule;
        if (strcmp(part->name, "rope table") == 0) {
            snprintf(text, sizeof text, "%d positions of %d pairs, theta %g%s", c->max_positions,
                     c->head_dim / 2, c->rope.theta,
                     model->rope_local_cos != model->rope_cos ? ", and one for sliding layers"
                                                              : "");
            what = text;
        }
        if (strcmp(part->name, "model constants") == 0) {
            snprintf(text, sizeof text,
                     "eps %.9g, embedding scale %.9g, attention scale %.9g, soft cap %.9g",
                     (double)c->norm_eps, (double)c->embed_scale, (double)c->attention_scale,
                     (double)c->logit_softcap);
            what = text;
        }
        if (strcmp(part->name, "functions") == 0)
            what = "exp, log, gated activations, soft cap, RoPE and rounding at 1024 points";
        if (strcmp(part->name, "row sums") == 0)
            what = "log-sum-exps, their merges and norms of fixed rows";
        if (strcmp(part->name, "forward pass") == 0)
            what = "24 log-probs of a small model of this architecture";
        fprintf(f, "  %-16s %016llx  %s\n", part->name, (unsigned long long)part->hash, what);
    }
}

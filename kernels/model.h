/* The model's one forward pass, used by actor and learner alike, and its backward.
 *
 * One call takes rows (tokens) of any number of sequences, mixed at will: a decode step is one row per
 * sequence, a prefill many rows of one, a packed teacher-forced pass many rows of many. A row's bits
 * depend on its sequence's tokens and the weights alone, never on its neighbours (kernels/ops.h). */
#ifndef IFL_KERNELS_MODEL_H
#define IFL_KERNELS_MODEL_H

#include "common/hash.h"
#include "common/kept_set.h"
#include "common/model_config.h"
#include "common/profile_parts.h"
#include "common/rng.h"
#include "common/thread_pool.h"
#include "common/weight_patch.h"
#include "kernels/ops.h"

/* --- The architecture: immutable, shared by all versions of the weights ---------------------------- */

typedef struct ifl_param {
    ifl_tensor_spec spec;
    int64_t offset;        /* first element in the canonical flat order */
    int64_t packed_offset; /* first element in ifl_weights.panels (matrices) or .vectors (the rest) */
    bool trainable;
} ifl_param;

/* Parameter indices of one layer; -1 where the family has none. */
typedef struct ifl_layer_params {
    int32_t norm_in, q, k, v, q_bias, k_bias, v_bias, q_norm, k_norm, o;
    int32_t norm_attention_out;           /* sandwich norms only */
    int32_t norm_mlp_in, gate, up, down;
    int32_t norm_mlp_out;                 /* sandwich norms only */
} ifl_layer_params;

typedef struct ifl_model {
    ifl_model_config config;
    int32_t n_params;
    ifl_param *params;      /* canonical order */
    ifl_layer_params *layers;
    int32_t embedding, final_norm, head;  /* parameter indices; head == embedding when tied */
    int64_t n_elements;     /* of all parameters */
    int64_t n_panel_elements, n_vector_elements;
    float *rope_cos, *rope_sin;             /* [max_positions, head_dim / 2], full layers */
    float *rope_local_cos, *rope_local_sin; /* sliding layers; may be the same pointers */
    ifl_hash fingerprint;   /* architecture and tensor table */
    ifl_profile numerics;   /* how both sides of a run compute */
    ifl_hash profile;       /* of that profile: everything that decides a bit (kernels/contract.h) */
    ifl_profile_parts parts; /* what it is over */
} ifl_model;

/* Returns owned. max_positions caps the RoPE tables (0: the config's). */
ifl_status ifl_model_create(ifl_model **out, const ifl_model_config *config, int32_t max_positions,
                            ifl_profile numerics, ifl_error *err);
void ifl_model_free(ifl_model *model);

/* Index of a canonical tensor name, -1 when there is none. */
int32_t ifl_model_find(const ifl_model *model, const char *name);

/* --- Weights: one version, packed; bf16 values ------------------------------------------------------ */

typedef struct ifl_weights {
    const ifl_model *model; /* borrowed */
    int64_t version;
    uint16_t *panels;       /* matrices, packed */
    float *vectors;         /* norms and biases, bf16 values widened */
} ifl_weights;

ifl_status ifl_weights_create(ifl_weights **out, const ifl_model *model, ifl_error *err);
void ifl_weights_free(ifl_weights *weights);
/* All of `from`, its version included; both of one model. */
void ifl_weights_copy(ifl_weights *to, const ifl_weights *from);

/* Writes / reads the canonical bf16 elements [begin, begin + n) of the flat order. Ranges of different
 * calls may be written concurrently when they don't overlap. */
void ifl_weights_put(ifl_weights *weights, int64_t begin, int64_t n, const uint16_t *bf16);
void ifl_weights_get(const ifl_weights *weights, int64_t begin, int64_t n, uint16_t *bf16);

/* Applies a patch whose element 0 is flat element `begin`, in place: nothing is repacked. IFL_FORMAT, with
 * the changes before it made: a step leads out of bf16's range or out of the model, so this isn't the patch's
 * base. */
ifl_status ifl_weights_patch(ifl_weights *weights, int64_t begin, const ifl_patch *patch, ifl_error *err);

/* XXH3-128 of the canonical bf16 bytes. */
ifl_hash ifl_weights_hash(const ifl_weights *weights);

/* --- KV cache storage ---------------------------------------------------------------------------------
 * data: [n_layers][n_pages][n_kv_heads][K: page_tokens * D | V: page_tokens * D] elements (ops.h). */
typedef struct ifl_kv_store {
    char *data;
    int64_t element_bytes;
    int32_t n_layers, n_kv_heads, head_dim;
    int32_t n_pages, page_tokens;
} ifl_kv_store;

ifl_status ifl_kv_store_create(ifl_kv_store **out, const ifl_model *model, int32_t n_pages,
                               int32_t page_tokens, ifl_error *err);
void ifl_kv_store_free(ifl_kv_store *kv);
/* Copies positions [0, n_tokens) inside one page to another page, all layers and heads. */
void ifl_kv_store_copy(ifl_kv_store *kv, int32_t to_page, int32_t from_page, int32_t n_tokens);
int64_t ifl_kv_store_bytes(const ifl_model *model, int32_t n_pages, int32_t page_tokens);

/* --- Forward ------------------------------------------------------------------------------------------ */

/* Rows [row_begin, row_begin + n_rows) of a batch: positions pos_begin .. of one sequence. `pages` maps
 * all its positions 0 .. pos_begin + n_rows - 1 (see ifl_kv_view); earlier positions must already be in
 * the store, or be written by other rows of this same batch (a shared prompt). */
typedef struct ifl_batch_seq {
    int32_t row_begin, n_rows, pos_begin;
    const int32_t *pages;
} ifl_batch_seq;

typedef struct ifl_batch {
    int32_t n_rows, n_seqs, n_out;
    const int32_t *tokens;      /* [n_rows] */
    const ifl_batch_seq *seqs;  /* [n_seqs], covering the rows in order */
    const int32_t *out_rows;    /* [n_out] rows whose final hidden state is wanted */
} ifl_batch;

/* Scratch for up to rows_max rows; reused between calls. One forward at a time per workspace. */
typedef struct ifl_workspace ifl_workspace;
ifl_status ifl_workspace_create(ifl_workspace **out, const ifl_model *model, int32_t rows_max,
                                ifl_thread_pool *pool, const ifl_ops *ops, ifl_error *err);
void ifl_workspace_free(ifl_workspace *workspace);
int64_t ifl_workspace_bytes(const ifl_model *model, int32_t rows_max, int n_threads);
int32_t ifl_workspace_rows_max(const ifl_workspace *workspace);

/* To find where two computations part: every forward from now on writes hashes of the residual stream of its
 * last row to hashes[n_layers + 1], the embedding first, then each layer's output. NULL = no more. Borrowed. */
void ifl_workspace_trace(ifl_workspace *workspace, uint64_t *hashes);

/* Runs the layers, writes K and V of every row into `kv`, and gives hidden[n_out, D]: final-norm outputs
 * of the out rows, valid until the next call on this workspace. Tokens must be < V and positions <
 * max_positions (checked: IFL_LIMIT). */
ifl_status ifl_forward(ifl_workspace *workspace, const ifl_weights *weights, ifl_kv_store *kv,
                       const ifl_batch *batch, const float **hidden, ifl_error *err);

/* --- Head: log-probs and sampling, fused over vocabulary blocks -------------------------------------- */

typedef struct ifl_logprob {
    float logprob;  /* nats: (x_target - lse.max) - log(lse.sum), x = logits / temperature */
    float entropy;  /* nats, of the same distribution; not EXACT-tested, for metrics */
    ifl_lse lse;    /* of the kept set, where there is one */
    float full_logprob; /* over the full vocabulary: logprob itself without a kept set */
} ifl_logprob;

/* Log-probs of targets[i] under hidden row i. temperature[i] > 0. */
ifl_status ifl_head_logprobs(ifl_workspace *workspace, const ifl_weights *weights, const float *hidden,
                             int32_t n, const int32_t *targets, const float *temperature,
                             ifl_logprob *out, ifl_error *err);

/* The same with truncated tokens: where kept[i].n > 0, out[i] is of the softmax over that set alone. Its
 * log-sum-exp is ops->block_lse over the set's x in ascending order of ids, so that its bits are a function of
 * the set and the x; the sampler uses the same. kept NULL: none. A set that isn't ascending, leaves the
 * vocabulary, has more than IFL_KEPT_SET_MAX tokens or lacks the target is IFL_FORMAT. */
ifl_status ifl_head_logprobs_kept(ifl_workspace *workspace, const ifl_weights *weights, const float *hidden,
                                  int32_t n, const int32_t *targets, const float *temperature,
                                  const ifl_kept_set *kept, ifl_logprob *out, ifl_error *err);

#define IFL_TOP_K_MAX IFL_KEPT_SET_MAX
/* How a row is sampled. temperature 0 = greedy (ties: lowest id); its log-prob is then that of
 * temperature 1. top_k 0 and top_p 1 = off. A kept set never exceeds IFL_TOP_K_MAX tokens. */
typedef struct ifl_sampling {
    float temperature;
    int32_t top_k;
    float top_p;
} ifl_sampling;

typedef struct ifl_sample {
    int32_t token;
    float logprob;      /* of the distribution that was really sampled */
    float full_logprob; /* of the full distribution at the same temperature; logprob itself untruncated */
    float log_kept;     /* log of the kept set's mass under the full distribution; 0 untruncated */
    int32_t n_kept;     /* 0 = all: not truncated, or by nothing */
    const int32_t *kept; /* [n_kept] ascending: what could be drawn; valid until the next draw on this workspace */
} ifl_sample;

/* Draws one token per row. The draw is keyed by (keys[i], positions[i]): two-stage inverse CDF, first
 * the vocabulary block (IFL_RNG_SAMPLE_BLOCK), then the token inside it (IFL_RNG_SAMPLE_TOKEN, index =
 * block); the same whatever the batch. The log-prob has the bits of ifl_head_logprobs. `keys[i].purpose`
 * is ignored. */
ifl_status ifl_head_sample(ifl_workspace *workspace, const ifl_weights *weights, const float *hidden,
                           int32_t n, const ifl_sampling *sampling, const ifl_rng_key *keys,
                           const int64_t *positions, ifl_sample *out, ifl_error *err);

/* The k best tokens of each row with log-probs at temperature 1, best first (ties: lowest id).
 * ids, logprobs: [n, k]; k <= IFL_TOP_K_MAX. */
ifl_status ifl_head_top(ifl_workspace *workspace, const ifl_weights *weights, const float *hidden,
                        int32_t n, int32_t k, int32_t *ids, float *logprobs, ifl_error *err);

/* Raw logits (no temperature) of hidden rows, [n, V]: for comparisons with other engines only. */
ifl_status ifl_head_logits(ifl_workspace *workspace, const ifl_weights *weights, const float *hidden,
                           int32_t n, float *logits, ifl_error *err);

/* --- Training: forward with a tape, and the backward ------------------------------------------------- */

typedef struct ifl_trainer ifl_trainer; /* activations, gradients, scratch for packs of rows_max rows */

/* activation_bytes: how much of a forward may be kept for its backward beyond the least (one layer and the
 * residual stream); the rest is computed again. It decides memory and speed, never a bit. */
#define IFL_ACTIVATION_BYTES (768ll << 20) /* a fair default */
ifl_status ifl_trainer_create(ifl_trainer **out, const ifl_model *model, int32_t rows_max,
                              int64_t activation_bytes, ifl_thread_pool *pool, const ifl_ops *ops,
                              ifl_error *err);
void ifl_trainer_free(ifl_trainer *trainer);
int64_t ifl_trainer_bytes(const ifl_model *model, int32_t rows_max, int64_t activation_bytes,
                          int n_threads);

/* A pack: rows of several sequences. Positions of a sequence that lie before pos_begin are rows of
 * another sequence of the same pack (a shared prompt): `pages[t]` is the pack row of position t. A
 * target is (row, next token, temperature); several targets may name one row. */
typedef struct ifl_pack {
    int32_t n_rows, n_seqs, n_targets;
    const int32_t *tokens;
    const ifl_batch_seq *seqs;
    const int32_t *target_rows;  /* [n_targets] */
    const int32_t *target_tokens;
    const float *temperatures;   /* [n_targets] */
    const ifl_kept_set *kept;    /* [n_targets]; NULL: no target is truncated */
} ifl_pack;

/* Forward of the pack, keeping what the backward needs; log-probs of the targets have the same bits as
 * the actor's. A truncated target's log-prob, entropy and gradient are those of the softmax over its kept set
 * (ifl_head_logprobs_kept): tokens outside of it get no gradient. */
ifl_status ifl_trainer_forward(ifl_trainer *trainer, const ifl_weights *weights, const ifl_pack *pack,
                               ifl_logprob *out, ifl_error *err);

/* Adds to the gradients d(sum_i coefficient[i] * logprob_i)/d(weights) of the pack last given to
 * ifl_trainer_forward (same weights). Deterministic: same packs in the same order, same bytes, for any
 * thread count and instruction set. */
ifl_status ifl_trainer_backward(ifl_trainer *trainer, const ifl_weights *weights, const ifl_pack *pack,
                                const float *coefficients, ifl_error *err);

float *ifl_trainer_gradients(ifl_trainer *trainer); /* [n_elements], canonical order; borrowed */
void ifl_trainer_zero_gradients(ifl_trainer *trainer);

#endif

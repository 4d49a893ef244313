/* What forward.c, head.c and trainer.c share. Not for other folders. */
#ifndef IFL_KERNELS_FORWARD_INTERNAL_H
#define IFL_KERNELS_FORWARD_INTERNAL_H

#include "kernels/model.h"

/* Carves aligned pieces out of one allocation; with base NULL it only counts. */
typedef struct ifl_cut {
    char *base;
    size_t used;
} ifl_cut;

static inline void *ifl_cut_take(ifl_cut *a, int64_t n, size_t size) {
    size_t at = a->used;
    a->used += ((size_t)n * size + 63) & ~(size_t)63;
    return a->base ? a->base + at : NULL;
}

/* What one layer's backward needs, and at the same time the buffers that its forward works in.
 * R = rows_max, Hq = n_heads * head_dim, Hk = n_kv_heads * head_dim. */
typedef struct ifl_layer_tape {
    float *norm_in;   /* [R, D] */
    float *r_in;      /* [R] */
    float *q_raw;     /* [R, Hq] before q norm; NULL without qk_norm */
    float *k_raw;     /* [R, Hk] */
    float *r_q, *r_k; /* [R * n_heads], [R * n_kv_heads] */
    float *q;         /* [R, Hq] after norm and RoPE */
    float *k, *v;     /* [R, Hk] */
    float *attention; /* [R, Hq] */
    ifl_lse *lse;     /* [R * n_heads] */
    float *o;         /* [R, D] output of o_proj */
    float *r_o;       /* [R], sandwich norms */
    float *x_mid;     /* [R, D] residual stream after attention */
    float *norm_mlp;  /* [R, D] */
    float *r_mlp;     /* [R] */
    float *gate, *up; /* [R, F] */
    float *act;       /* [R, F] */
    float *down;      /* [R, D] output of down_proj */
    float *r_down;    /* [R], sandwich norms */
} ifl_layer_tape;

/* One tile of query rows: tokens [begin, end) of one sequence, one kv head. */
typedef struct ifl_attention_task {
    int32_t seq, kv_head, begin, end;
} ifl_attention_task;

struct ifl_workspace {
    const ifl_model *model;
    const ifl_ops *ops;
    ifl_thread_pool *pool;
    int32_t rows_max, n_threads;
    int32_t n_tapes;       /* 1 to n_layers: the first one serves all layers before the last n_tapes - 1 */
    ifl_layer_tape *tapes; /* [n_tapes] */
    float **layer_inputs;  /* [n_layers + 1] -> [R, D]; non-NULL when a trainer keeps them all */
    float *x;              /* [R, D] residual stream, when layer_inputs is NULL */
    int32_t *positions;    /* [R] of the batch under way */
    int32_t *row_seq;      /* [R] */
    ifl_attention_task *tasks;
    int32_t n_tasks, tasks_max;
    float *hidden;    /* [R, D] final-norm outputs of the out rows */
    float *hidden_r;  /* [R] */
    float *hidden_in; /* [R, D] what the final norm read (trainer), else NULL */
    /* Head: per thread one tile of logits, per row and block one record. */
    int64_t head_tile_rows;             /* those of a task, or rows_max when that is less */
    int64_t head_tile_ld;               /* floats from one row of a tile to the next */
    float *head_logits;                 /* [n_threads][head_tile_rows][head_tile_ld] */
    float *head_p;                      /* [n_threads][head_tile_ld] */
    struct ifl_head_block *head_blocks; /* [R][n_vocab_blocks] */
    struct ifl_top_entry *head_top;     /* grown on first truncated sampling */
    size_t head_top_cap;
    int64_t *head_set_begin; /* [R + 1] first place of a row's kept set in head_set_x; grown when there is one */
    float *head_set_x;       /* tempered logits of kept sets, ascending ids */
    int32_t *head_set_ids;   /* [R][IFL_KEPT_SET_MAX] sets drawn from */
    size_t head_set_begin_cap, head_set_x_cap, head_set_ids_cap;
    uint64_t *trace; /* ifl_workspace_trace; NULL = none */
    void *arena; /* owns the buffers above */
};

typedef struct ifl_head_block {
    ifl_lse lse;
    float target_x;    /* tempered logit of the target, or of the drawn or best token */
    int32_t target;    /* its id; -1: none in this block */
    float entropy_dot; /* sum of p * (x - max), p = exp(x - max) */
} ifl_head_block;

typedef struct ifl_top_entry {
    float x;
    int32_t id;
} ifl_top_entry;

static inline int64_t ifl_vocab_blocks(const ifl_model *model) {
    return (model->config.vocab_size + IFL_VOCAB_BLOCK - 1) / IFL_VOCAB_BLOCK;
}

/* Floats between rows of logits of one block. The odd number of cache lines keeps rows out of each
 * other's cache sets, where a power of two would put them all into the same ones. */
static inline int64_t ifl_vocab_block_ld(const ifl_model *model) {
    int64_t n = model->config.vocab_size < IFL_VOCAB_BLOCK
                    ? ifl_panels(model->config.vocab_size) * IFL_PANEL
                    : IFL_VOCAB_BLOCK;
    return n + 16;
}

static inline const float *ifl_weights_vector(const ifl_weights *w, int32_t param) {
    return w->vectors + w->model->params[param].packed_offset;
}

static inline const uint16_t *ifl_weights_panels(const ifl_weights *w, int32_t param) {
    return w->panels + w->model->params[param].packed_offset;
}

/* y[m, N] = x[m, K] * W^T for up to four weight matrices that read the same x, as one parallel
 * loop. */
typedef struct ifl_matmul_job {
    float *y;
    int64_t ldy;
    const float *x;
    int64_t ldx;
    const uint16_t *panels;
    int64_t n, k;
} ifl_matmul_job;
void ifl_matmul_jobs(ifl_workspace *ws, const ifl_matmul_job *jobs, int n_jobs, int64_t m);
ifl_matmul_job ifl_matmul_job_of(const ifl_weights *w, int32_t param, float *y, const float *x);

/* The tape that layer l writes. */
static inline ifl_layer_tape *ifl_workspace_tape(const ifl_workspace *ws, int32_t l) {
    int32_t at = l - (ws->model->config.n_layers - ws->n_tapes);
    return &ws->tapes[at < 0 ? 0 : at];
}

/* n_tapes: 1 to n_layers; keep_inputs: every layer's input stays readable after the forward. */
ifl_status ifl_workspace_create_with(ifl_workspace **out, const ifl_model *model, int32_t rows_max,
                                     ifl_thread_pool *pool, const ifl_ops *ops, int32_t n_tapes,
                                     bool keep_inputs, ifl_error *err);
int64_t ifl_workspace_bytes_with(const ifl_model *model, int32_t rows_max, int n_threads,
                                 int32_t n_tapes, bool keep_inputs);

/* Logits that stay readable after ifl_head_logprobs_keeping, tempered: of the vocabulary blocks below
 * n_blocks, block b of row i at logits + (b * rows_max + i) * ifl_vocab_block_ld. */
typedef struct ifl_kept_logits {
    float *logits;
    int64_t n_blocks, rows_max;
} ifl_kept_logits;

/* As ifl_head_logprobs_kept, with the same bits. */
ifl_status ifl_head_logprobs_keeping(ifl_workspace *ws, const ifl_weights *weights,
                                     const float *hidden, int32_t n, const int32_t *targets,
                                     const float *temperature, const ifl_kept_set *sets,
                                     const ifl_kept_logits *kept, ifl_logprob *out,
                                     ifl_error *err);

/* Of a set's ids, those in [id_begin, id_end): set.ids[*first .. *first + returned). */
int32_t ifl_kept_range(ifl_kept_set set, int64_t id_begin, int64_t id_end, int32_t *first);

ifl_status ifl_batch_check(ifl_workspace *ws, const ifl_kv_store *kv, const ifl_batch *batch,
                           ifl_error *err);
void ifl_embed(ifl_workspace *ws, const ifl_weights *w, const ifl_batch *batch, float *x);

/* Runs layer l: reads x_in, writes x_out ([R, D]; may be the same buffer). */
void ifl_layer_forward(ifl_workspace *ws, const ifl_weights *w, ifl_kv_store *kv,
                       const ifl_batch *batch, int32_t l, ifl_layer_tape *tape, const float *x_in,
                       float *x_out);

/* Makes again what the tapes of a workspace with one for each layer share: norm_in, norm_mlp, act.
 */
void ifl_layer_refresh(ifl_workspace *ws, const ifl_weights *w, const ifl_batch *batch, int32_t l,
                       ifl_layer_tape *tape, const float *x_in);

/* Final norm of the out rows of x into ws->hidden. */
void ifl_final_norm(ifl_workspace *ws, const ifl_weights *w, const ifl_batch *batch,
                    const float *x);

#endif

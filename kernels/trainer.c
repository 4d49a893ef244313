/* Teacher-forced forward with a tape, and the backward pass.
 *
 * Every gradient element is one chain in a fixed order: over rows ascending (matrix gradients),
 * over fixed chunks of 64 rows (norm weights), over vocabulary blocks ascending (hidden states),
 * over sequences in pack order (a shared prompt's keys and values). Threads split outputs, never a
 * chain. */
#include <string.h>

#include "common/memory.h"
#include "kernels/cpu/rounding.h"
#include "kernels/forward_internal.h"

#define NORM_CHUNK 64     /* rows of one partial norm-weight gradient */
#define ATTENTION_TILE 32 /* query tokens of one backward attention tile */

struct ifl_trainer {
    const ifl_model *model;
    ifl_workspace *ws;
    ifl_kv_store *kv; /* one page per pack row */
    float *gradients; /* [n_elements] */
    int32_t rows_max, positions_max;
    /* Scratch of the backward, for R rows. */
    float *dx, *dy;            /* [R, D] gradient of the residual stream; of a branch's output */
    float *dnorm;              /* [R, D] */
    float *dq, *dk, *dv;       /* [R, Hq], [R, Hk], [R, Hk] */
    float *dq_raw, *dk_raw;    /* with qk_norm */
    float *dattention;         /* [R, Hq] */
    float *dgate, *dup, *dact; /* [R, F] */
    float *dhidden;            /* [R, D], per target */
    float *norm_partials;      /* [chunks][max(D, 2 * heads * head_dim)] */
    float *pack_a;             /* f32 panels of activations: [R, max(D, F, Hq)] */
    float *pack_w;             /* f32 panels of weights */
    float *dlogits;            /* [R, ifl_vocab_block_ld] */
    ifl_kept_logits kept;      /* the other blocks' are computed again */
    float *sin_negative, *sin_local_negative;
    float *scratch; /* per thread, attention */
    int64_t scratch_floats;
    float *shared_kv; /* gradients of positions owned by other sequences */
    size_t shared_kv_cap;
    int64_t *shared_begin; /* [R] per sequence */
    /* The pack of the last forward. */
    int32_t n_targets;
    ifl_logprob *logprobs; /* [R] */
    void *arena;
};

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

/* Floats of one thread's attention scratch, for sequences of up to T keys. */
static int64_t attention_scratch_floats(int64_t t, int64_t hd) {
    int64_t tp = round_up(t, IFL_PANEL), dp = round_up(hd, IFL_PANEL);
    return 2 * t * hd                 /* K, V gathered */
           + 2 * tp * hd              /* panels of K^T and V^T */
           + t * dp                   /* panels of K */
           + 2 * t * hd               /* dK, dV */
           + 2 * ATTENTION_TILE * tp  /* scores -> p, dP -> dS */
           + 2 * ATTENTION_TILE * dp  /* panels of the Q and dO tiles */
           + 3 * ATTENTION_TILE * hd; /* Q, dO, dQ tiles */
}

static void trainer_cut(ifl_cut *a, ifl_trainer *tr, const ifl_model *model, int64_t r,
                        int n_threads, int64_t n_kept_blocks) {
    const ifl_model_config *c = &model->config;
    int64_t d = c->d_model, f = c->d_ff, hd = c->head_dim;
    int64_t hq = c->n_heads * hd, hk = c->n_kv_heads * hd;
    int64_t half = hd / 2, positions = c->max_positions;
    ifl_trainer t = {0};
    t.positions_max = (int32_t)(r < positions ? r : positions);
    t.dx = ifl_cut_take(a, r * d, 4);
    t.dy = ifl_cut_take(a, r * d, 4);
    t.dnorm = ifl_cut_take(a, r * d, 4);
    t.dq = ifl_cut_take(a, r * hq, 4);
    t.dk = ifl_cut_take(a, r * hk, 4);
    t.dv = ifl_cut_take(a, r * hk, 4);
    if (c->qk_norm) {
        t.dq_raw = ifl_cut_take(a, r * hq, 4);
        t.dk_raw = ifl_cut_take(a, r * hk, 4);
    }
    t.dattention = ifl_cut_take(a, r * hq, 4);
    t.dgate = ifl_cut_take(a, r * f, 4);
    t.dup = ifl_cut_take(a, r * f, 4);
    t.dact = ifl_cut_take(a, r * f, 4);
    t.dhidden = ifl_cut_take(a, r * d, 4);
    int64_t chunks = (r + NORM_CHUNK - 1) / NORM_CHUNK;
    t.norm_partials = ifl_cut_take(a, chunks * max64(max64(d, hq), hk), 4);
    int64_t widest = round_up(max64(max64(d, f), hq), IFL_PANEL);
    t.pack_a = ifl_cut_take(a, r * widest, 4);
    int64_t w_floats = IFL_VOCAB_BLOCK * round_up(d, IFL_PANEL);
    for (int32_t i = 0; i < model->n_params; i++) {
        const ifl_tensor_spec *s = &model->params[i].spec;
        if (s->is_matrix && i != model->embedding && i != model->head)
            w_floats = max64(w_floats, s->rows * round_up(s->cols, IFL_PANEL));
    }
    t.pack_w = ifl_cut_take(a, w_floats, 4);
    t.dlogits = ifl_cut_take(a, r * ifl_vocab_block_ld(model), 4);
    t.kept.n_blocks = n_kept_blocks;
    t.kept.rows_max = r;
    t.kept.logits = ifl_cut_take(a, n_kept_blocks * r * ifl_vocab_block_ld(model), 4);
    t.sin_negative = ifl_cut_take(a, positions * half, 4);
    t.sin_local_negative = ifl_cut_take(a, positions * half, 4);
    t.scratch_floats = round_up(attention_scratch_floats(t.positions_max, hd), 16);
    t.scratch = ifl_cut_take(a, t.scratch_floats * n_threads, 4);
    t.shared_begin = ifl_cut_take(a, r + 1, sizeof(int64_t));
    t.logprobs = ifl_cut_take(a, r, sizeof(ifl_logprob));
    if (tr) *tr = t;
}

/* What of the forward is kept for the backward within the budget, beyond the least; the rest is
 * computed again. A byte of a layer's tape and a byte of logits save about as many products (some
 * d_model / 2 each), so tapes simply come first. */
typedef struct trainer_plan {
    int32_t n_tapes;
    int64_t n_kept_blocks;
} trainer_plan;

static trainer_plan trainer_plan_of(const ifl_model *model, int32_t rows_max, int n_threads,
                                    int64_t activation_bytes) {
    int64_t one = ifl_workspace_bytes_with(model, rows_max, n_threads, 1, true);
    int64_t tape = ifl_workspace_bytes_with(model, rows_max, n_threads, 2, true) - one;
    int64_t tapes = activation_bytes / tape, n_layers = model->config.n_layers;
    if (tapes > n_layers - 1) tapes = n_layers - 1;
    int64_t blocks = (activation_bytes - tapes * tape) / (rows_max * ifl_vocab_block_ld(model) * 4);
    if (tapes < n_layers - 1) blocks = 0;
    if (blocks > ifl_vocab_blocks(model)) blocks = ifl_vocab_blocks(model);
    return (trainer_plan){(int32_t)tapes + 1, blocks};
}

int64_t ifl_trainer_bytes(const ifl_model *model, int32_t rows_max, int64_t activation_bytes,
                          int n_threads) {
    trainer_plan plan = trainer_plan_of(model, rows_max, n_threads, activation_bytes);
    ifl_cut a = {0};
    trainer_cut(&a, NULL, model, rows_max, n_threads, plan.n_kept_blocks);
    return (int64_t)a.used + model->n_elements * (int64_t)sizeof(float) +
           ifl_kv_store_bytes(model, rows_max, 1) +
           ifl_workspace_bytes_with(model, rows_max, n_threads, plan.n_tapes, true);
}

ifl_status ifl_trainer_create(ifl_trainer **out, const ifl_model *model, int32_t rows_max,
                              int64_t activation_bytes, ifl_thread_pool *pool, const ifl_ops *ops,
                              ifl_error *err) {
    *out = NULL;
    if (rows_max < 1)
        return ifl_fail(err, IFL_USAGE, "trainer: packs of %d rows, wanted at least 1", rows_max);
    if (model->config.logit_softcap > 0.0f)
        return ifl_fail(err, IFL_UNSUPPORTED, "trainer: a logit soft cap has no backward here");
    if (activation_bytes < 0)
        return ifl_fail(err, IFL_USAGE, "trainer: %lld bytes of kept activations, wanted 0 or more",
                        (long long)activation_bytes);
    int n_threads = ifl_thread_pool_size(pool);
    trainer_plan plan = trainer_plan_of(model, rows_max, n_threads, activation_bytes);
    ifl_cut a = {0};
    trainer_cut(&a, NULL, model, rows_max, n_threads, plan.n_kept_blocks);
    ifl_trainer *tr = ifl_alloc(1, sizeof *tr);
    if (!tr) return ifl_fail(err, IFL_NOMEM, "trainer: out of memory");
    ifl_status st;
    a.base = ifl_alloc(a.used, 1);
    if (!a.base) {
        st = ifl_fail(err, IFL_NOMEM, "trainer: out of memory for packs of %d rows (%.1f MiB)",
                      rows_max, (double)a.used / 1048576.0);
        goto done;
    }
    void *arena = a.base;
    a.used = 0;
    trainer_cut(&a, tr, model, rows_max, n_threads, plan.n_kept_blocks);
    tr->arena = arena;
    tr->model = model;
    tr->rows_max = rows_max;
    int64_t n_table = (int64_t)model->config.max_positions * (model->config.head_dim / 2);
    for (int64_t i = 0; i < n_table; i++) {
        tr->sin_negative[i] = -model->rope_sin[i];
        tr->sin_local_negative[i] = -model->rope_local_sin[i];
    }
    tr->gradients = ifl_alloc((size_t)model->n_elements, sizeof(float));
    if (!tr->gradients) {
        st = ifl_fail(err, IFL_NOMEM, "trainer: out of memory for %lld gradients",
                      (long long)model->n_elements);
        goto done;
    }
    IFL_TRY_GOTO(st, ifl_kv_store_create(&tr->kv, model, rows_max, 1, err), done);
    IFL_TRY_GOTO(
        st, ifl_workspace_create_with(&tr->ws, model, rows_max, pool, ops, plan.n_tapes, true, err),
        done);
    *out = tr;
    tr = NULL; /* the caller owns it now */
done:
    ifl_trainer_free(tr);
    return st;
}

void ifl_trainer_free(ifl_trainer *trainer) {
    if (!trainer) return;
    ifl_workspace_free(trainer->ws);
    ifl_kv_store_free(trainer->kv);
    ifl_free(trainer->gradients);
    ifl_free(trainer->shared_kv);
    ifl_free(trainer->arena);
    ifl_free(trainer);
}

float *ifl_trainer_gradients(ifl_trainer *trainer) {
    return trainer->gradients;
}

void ifl_trainer_zero_gradients(ifl_trainer *trainer) {
    memset(trainer->gradients, 0, (size_t)trainer->model->n_elements * sizeof(float));
}

/* --- Forward
 * ---------------------------------------------------------------------------------------- */

static ifl_batch pack_batch(const ifl_pack *pack) {
    return (ifl_batch){pack->n_rows, pack->n_seqs, pack->n_targets,
                       pack->tokens, pack->seqs,   pack->target_rows};
}

ifl_status ifl_trainer_forward(ifl_trainer *tr, const ifl_weights *weights, const ifl_pack *pack,
                               ifl_logprob *out, ifl_error *err) {
    ifl_batch batch = pack_batch(pack);
    const float *hidden;
    tr->n_targets = -1;
    for (int32_t s = 0; s < pack->n_seqs; s++)
        if (pack->seqs[s].pos_begin + pack->seqs[s].n_rows > tr->positions_max)
            return ifl_fail(err, IFL_LIMIT, "trainer: sequence %d has %d tokens, the limit is %d",
                            s, pack->seqs[s].pos_begin + pack->seqs[s].n_rows, tr->positions_max);
    IFL_TRY(ifl_forward(tr->ws, weights, tr->kv, &batch, &hidden, err));
    IFL_TRY(ifl_head_logprobs_keeping(tr->ws, weights, hidden, pack->n_targets, pack->target_tokens,
                                      pack->temperatures, pack->kept, &tr->kept, tr->logprobs,
                                      err));
    memcpy(out, tr->logprobs, (size_t)pack->n_targets * sizeof *out);
    tr->n_targets = pack->n_targets;
    return IFL_OK;
}

/* --- Matrix products of the backward
 * ------------------------------------------------------------------- */

typedef struct product {
    const ifl_ops *ops;
    float *c;
    int64_t ldc;
    const float *a;
    int64_t a_row, a_col;
    const float *b_panels;
    int64_t m, n, k, rows_per_task, row_tiles, panels_per_task;
    bool accumulate;
} product;

/* Rows of C of one task: at most what matmul_f32 copies of A at a time. */
#define PRODUCT_ROWS_MAX 192
#define PRODUCT_ROWS_MIN 48

static void product_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const product *p = context;
    for (int64_t task = begin; task < end; task++) {
        int64_t row = task % p->row_tiles * p->rows_per_task,
                panel = task / p->row_tiles * p->panels_per_task;
        int64_t rows = p->m - row < p->rows_per_task ? p->m - row : p->rows_per_task;
        int64_t panel_end = panel + p->panels_per_task, panels = ifl_panels(p->n);
        if (panel_end > panels) panel_end = panels;
        p->ops->matmul_f32(p->c + row * p->ldc, p->ldc, p->a + row * p->a_row, p->a_row, p->a_col,
                           p->b_panels, rows, p->n, p->k, panel, panel_end, p->accumulate);
    }
}

static void product_run(ifl_trainer *tr, product p) {
    if (p.m == 0 || p.n == 0) return;
    p.ops = tr->ws->ops;
    /* Rows are split first: each task copies its rows of A again for its span of panels. */
    int64_t panels = ifl_panels(p.n), want = tr->ws->n_threads == 1 ? 1 : 4 * tr->ws->n_threads;
    p.rows_per_task = PRODUCT_ROWS_MAX;
    while (p.rows_per_task > PRODUCT_ROWS_MIN && p.m < want * p.rows_per_task)
        p.rows_per_task /= 2;
    p.row_tiles = (p.m + p.rows_per_task - 1) / p.rows_per_task;
    int64_t chunks = tr->ws->n_threads == 1 ? 1 : (want + p.row_tiles - 1) / p.row_tiles;
    p.panels_per_task = (panels + chunks - 1) / chunks;
    chunks = (panels + p.panels_per_task - 1) / p.panels_per_task;
    ifl_parallel_for(tr->ws->pool, chunks * p.row_tiles, 1, product_range, &p);
}

typedef struct packing {
    const ifl_ops *ops;
    float *out;
    const float *a;
    const uint16_t *w;
    int64_t lda, rows, cols, n_total;
} packing;

static void pack_rows_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const packing *p = context;
    p->ops->pack_f32(p->out, p->a, p->lda, p->rows, p->cols, begin, end);
}

static void unpack_weights_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const packing *p = context;
    p->ops->unpack_for_dx(p->out, p->w, p->n_total, p->cols, 0, p->rows, begin, end);
}

/* dx[m, K] = [+] dy[m, N] * W[N, K]. */
static void matrix_dx(ifl_trainer *tr, const ifl_weights *w, int32_t param, float *dx,
                      const float *dy, int64_t m, bool accumulate) {
    const ifl_tensor_spec *s = &tr->model->params[param].spec;
    packing p = {.ops = tr->ws->ops,
                 .out = tr->pack_w,
                 .w = ifl_weights_panels(w, param),
                 .rows = s->rows,
                 .cols = s->cols,
                 .n_total = s->rows};
    ifl_parallel_for(tr->ws->pool, ifl_panels(s->cols), 1, unpack_weights_range, &p);
    product_run(tr, (product){.c = dx,
                              .ldc = s->cols,
                              .a = dy,
                              .a_row = s->rows,
                              .a_col = 1,
                              .b_panels = tr->pack_w,
                              .m = m,
                              .n = s->cols,
                              .k = s->rows,
                              .accumulate = accumulate});
}

/* Packs activations x[m, K] for the weight gradients that read them. */
static void pack_activations(ifl_trainer *tr, const float *x, int64_t m, int64_t k) {
    packing p = {.ops = tr->ws->ops, .out = tr->pack_a, .a = x, .lda = k, .rows = m, .cols = k};
    ifl_parallel_for(tr->ws->pool, ifl_panels(k), 1, pack_rows_range, &p);
}

/* dW[N, K] += dy[m, N]^T * x[m, K], x as last packed. */
static void matrix_dw(ifl_trainer *tr, int32_t param, const float *dy, int64_t m) {
    const ifl_param *p = &tr->model->params[param];
    if (!p->trainable) return;
    product_run(tr, (product){.c = tr->gradients + p->offset,
                              .ldc = p->spec.cols,
                              .a = dy,
                              .a_row = 1,
                              .a_col = p->spec.rows,
                              .b_panels = tr->pack_a,
                              .m = p->spec.rows,
                              .n = p->spec.cols,
                              .k = m,
                              .accumulate = true});
}

/* --- Norms and biases
 * ----------------------------------------------------------------------------------- */

typedef struct norm_backward {
    const ifl_ops *ops;
    float *dx, *partials;
    const float *dy, *x, *w, *r;
    float offset;
    int64_t m, n;
    bool accumulate;
} norm_backward;

static void norm_backward_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const norm_backward *nb = context;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        int64_t row = chunk * NORM_CHUNK,
                rows = nb->m - row < NORM_CHUNK ? nb->m - row : NORM_CHUNK;
        float *dw = nb->partials + chunk * nb->n;
        memset(dw, 0, (size_t)nb->n * sizeof *dw);
        nb->ops->rmsnorm_backward(nb->dx + row * nb->n, nb->n, dw, nb->dy + row * nb->n, nb->n,
                                  nb->x + row * nb->n, nb->n, nb->w, nb->offset, nb->r + row, rows,
                                  nb->n, nb->accumulate);
    }
}

/* dx [m, n] = [+] backward of rmsnorm; adds the weight's gradient, chunks in order. */
static void norm_backward_run(ifl_trainer *tr, const ifl_weights *w, int32_t param, float *dx,
                              const float *dy, const float *x, const float *r, int64_t m,
                              bool accumulate) {
    const ifl_param *p = &tr->model->params[param];
    int64_t n = p->spec.cols * p->spec.rows, chunks = (m + NORM_CHUNK - 1) / NORM_CHUNK;
    /* Heads are rows here: more chunks than pack rows would give, so they go in batches that fit.
     */
    int64_t chunks_fit = (tr->rows_max + NORM_CHUNK - 1) / NORM_CHUNK;
    float *gradient = tr->gradients + p->offset;
    for (int64_t c = 0; c < chunks; c += chunks_fit) {
        int64_t row = c * NORM_CHUNK, now = chunks - c < chunks_fit ? chunks - c : chunks_fit;
        int64_t rows = m - row < now * NORM_CHUNK ? m - row : now * NORM_CHUNK;
        norm_backward nb = {tr->ws->ops,
                            dx + row * n,
                            tr->norm_partials,
                            dy + row * n,
                            x + row * n,
                            ifl_weights_vector(w, param),
                            r + row,
                            tr->model->config.norm_plus_one ? 1.0f : 0.0f,
                            rows,
                            n,
                            accumulate};
        ifl_parallel_for(tr->ws->pool, now, 1, norm_backward_range, &nb);
        if (!p->trainable) continue;
        for (int64_t i = 0; i < now; i++)
            tr->ws->ops->add(gradient, tr->norm_partials + i * n, n);
    }
}

static void bias_backward(ifl_trainer *tr, int32_t param, const float *dy, int64_t m) {
    const ifl_param *p = &tr->model->params[param];
    if (!p->trainable) return;
    int64_t n = p->spec.cols * p->spec.rows;
    for (int64_t row = 0; row < m; row++)
        tr->ws->ops->add(tr->gradients + p->offset, dy + row * n, n);
}

/* --- Attention
 * ------------------------------------------------------------------------------------------ */

typedef struct attention_backward {
    ifl_trainer *tr;
    const ifl_pack *pack;
    const ifl_layer_tape *tape;
    int32_t layer;
} attention_backward;

/* One sequence and one kv head: recomputes the probabilities tile by tile from q, K and the saved
 * log-sum-exp, as in the backward of FlashAttention (Dao et al. 2022, alg. 4). */
static void attention_backward_one(const attention_backward *ab, int32_t s, int32_t kv_head,
                                   float *scratch) {
    ifl_trainer *tr = ab->tr;
    const ifl_ops *ops = tr->ws->ops;
    const ifl_model_config *c = &tr->model->config;
    const ifl_batch_seq *seq = &ab->pack->seqs[s];
    int64_t hd = c->head_dim, hq = c->n_heads * hd, hk = c->n_kv_heads * hd;
    int64_t group = c->n_heads / c->n_kv_heads;
    int64_t t_all = seq->pos_begin + seq->n_rows, tp = round_up(t_all, IFL_PANEL),
            dp = round_up(hd, IFL_PANEL);
    int32_t window = c->layer_is_sliding[ab->layer] ? c->sliding_window : 0;
    float *k = scratch, *v = k + t_all * hd, *kt = v + t_all * hd, *vt = kt + tp * hd,
          *kp = vt + tp * hd;
    float *dk = kp + t_all * dp, *dv = dk + t_all * hd;
    float *score = dv + t_all * hd, *dprob = score + ATTENTION_TILE * tp;
    float *q_panels = dprob + ATTENTION_TILE * tp, *do_panels = q_panels + ATTENTION_TILE * dp;
    float *q = do_panels + ATTENTION_TILE * dp, *d_out = q + ATTENTION_TILE * hd,
          *dq = d_out + ATTENTION_TILE * hd;
    for (int64_t t = 0; t < t_all; t++) {
        memcpy(k + t * hd, ab->tape->k + seq->pages[t] * hk + kv_head * hd, (size_t)hd * sizeof *k);
        memcpy(v + t * hd, ab->tape->v + seq->pages[t] * hk + kv_head * hd, (size_t)hd * sizeof *v);
    }
    ops->pack_f32_transposed(kt, k, hd, hd, t_all, 0, ifl_panels(t_all));
    ops->pack_f32_transposed(vt, v, hd, hd, t_all, 0, ifl_panels(t_all));
    ops->pack_f32(kp, k, hd, t_all, hd, 0, ifl_panels(hd));
    memset(dk, 0, (size_t)(2 * t_all * hd) * sizeof *dk); /* dK and dV lie side by side */

    for (int64_t g = 0; g < group; g++) {
        int64_t head = kv_head * group + g;
        for (int32_t i0 = 0; i0 < seq->n_rows; i0 += ATTENTION_TILE) {
            int64_t rows = seq->n_rows - i0 < ATTENTION_TILE ? seq->n_rows - i0 : ATTENTION_TILE;
            int64_t keys = seq->pos_begin + i0 + rows; /* visible to the tile's last row */
            int64_t row0 = seq->row_begin + i0;
            for (int64_t i = 0; i < rows; i++) {
                memcpy(q + i * hd, ab->tape->q + (row0 + i) * hq + head * hd,
                       (size_t)hd * sizeof *q);
                memcpy(d_out + i * hd, tr->dattention + (row0 + i) * hq + head * hd,
                       (size_t)hd * sizeof *d_out);
            }
            ops->matmul_f32(score, tp, q, hd, 1, kt, rows, keys, hd, 0, ifl_panels(keys), false);
            ops->matmul_f32(dprob, tp, d_out, hd, 1, vt, rows, keys, hd, 0, ifl_panels(keys),
                            false);
            for (int64_t i = 0; i < rows; i++) {
                const float *out = ab->tape->attention + (row0 + i) * hq + head * hd;
                float delta = 0.0f;
                for (int64_t e = 0; e < hd; e++)
                    delta += d_out[i * hd + e] * out[e];
                int64_t last = seq->pos_begin + i0 + i;
                int64_t first = window > 0 && last - window + 1 > 0 ? last - window + 1 : 0;
                float *p = score + i * tp, *ds = dprob + i * tp;
                memset(p, 0, (size_t)first * sizeof *p);
                memset(ds, 0, (size_t)first * sizeof *ds);
                memset(p + last + 1, 0, (size_t)(keys - last - 1) * sizeof *p);
                memset(ds + last + 1, 0, (size_t)(keys - last - 1) * sizeof *ds);
                ops->softmax_backward(
                    p + first, ds + first, p + first, ds + first, c->attention_scale,
                    ab->tape->lse[(row0 + i) * c->n_heads + head], delta, last - first + 1);
            }
            /* One panel at a time: they lie t_all rows apart, of which this tile reads the first.
             */
            for (int64_t e = 0; e < hd; e += IFL_PANEL)
                ops->matmul_f32(dq + e, hd, dprob, tp, 1, kp + e * t_all, rows,
                                hd - e < IFL_PANEL ? hd - e : IFL_PANEL, keys, 0, 1, false);
            for (int64_t i = 0; i < rows; i++)
                memcpy(tr->dq + (row0 + i) * hq + head * hd, dq + i * hd, (size_t)hd * sizeof *dq);
            ops->pack_f32(q_panels, q, hd, rows, hd, 0, ifl_panels(hd));
            ops->pack_f32(do_panels, d_out, hd, rows, hd, 0, ifl_panels(hd));
            ops->matmul_f32(dk, hd, dprob, 1, tp, q_panels, keys, hd, rows, 0, ifl_panels(hd),
                            true);
            ops->matmul_f32(dv, hd, score, 1, tp, do_panels, keys, hd, rows, 0, ifl_panels(hd),
                            true);
        }
    }
    float *shared =
        tr->shared_kv + tr->shared_begin[s] + (int64_t)kv_head * seq->pos_begin * 2 * hd;
    memcpy(shared, dk, (size_t)(seq->pos_begin * hd) * sizeof *dk);
    memcpy(shared + seq->pos_begin * hd, dv, (size_t)(seq->pos_begin * hd) * sizeof *dv);
    for (int64_t t = seq->pos_begin; t < t_all; t++) {
        memcpy(tr->dk + seq->pages[t] * hk + kv_head * hd, dk + t * hd, (size_t)hd * sizeof *dk);
        memcpy(tr->dv + seq->pages[t] * hk + kv_head * hd, dv + t * hd, (size_t)hd * sizeof *dv);
    }
}

static void attention_backward_range(void *context, int64_t begin, int64_t end, int thread) {
    const attention_backward *ab = context;
    uint32_t rounding = ifl_rounding_enter();
    int32_t n_kv = ab->tr->model->config.n_kv_heads;
    for (int64_t task = begin; task < end; task++)
        attention_backward_one(ab, (int32_t)(task / n_kv), (int32_t)(task % n_kv),
                               ab->tr->scratch + (int64_t)thread * ab->tr->scratch_floats);
    ifl_rounding_leave(rounding);
}

/* Adds what sequences found for positions that other sequences own (a shared prompt), in pack
 * order. */
static void attention_add_shared(ifl_trainer *tr, const ifl_pack *pack) {
    const ifl_model_config *c = &tr->model->config;
    int64_t hd = c->head_dim, hk = c->n_kv_heads * hd;
    for (int32_t s = 0; s < pack->n_seqs; s++) {
        const ifl_batch_seq *seq = &pack->seqs[s];
        for (int64_t h = 0; h < c->n_kv_heads; h++) {
            const float *dk = tr->shared_kv + tr->shared_begin[s] + h * seq->pos_begin * 2 * hd;
            const float *dv = dk + seq->pos_begin * hd;
            for (int64_t t = 0; t < seq->pos_begin; t++) {
                tr->ws->ops->add(tr->dk + seq->pages[t] * hk + h * hd, dk + t * hd, hd);
                tr->ws->ops->add(tr->dv + seq->pages[t] * hk + h * hd, dv + t * hd, hd);
            }
        }
    }
}

/* --- Layers
 * --------------------------------------------------------------------------------------------- */

typedef struct rows_backward {
    ifl_trainer *tr;
    const ifl_layer_tape *tape;
    int32_t layer;
} rows_backward;

static void activation_backward_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const rows_backward *rb = context;
    const ifl_model_config *c = &rb->tr->model->config;
    int64_t at = begin * c->d_ff, n = (end - begin) * c->d_ff;
    const ifl_ops *ops = rb->tr->ws->ops;
    (c->activation == IFL_ACT_SILU ? ops->silu_mul_backward : ops->gelu_mul_backward)(
        rb->tr->dgate + at, rb->tr->dup + at, rb->tr->dact + at, rb->tape->gate + at,
        rb->tape->up + at, n);
}

/* RoPE is a rotation: its backward rotates by the opposite angle. */
static void rope_backward_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const rows_backward *rb = context;
    ifl_trainer *tr = rb->tr;
    const ifl_model *model = tr->model;
    const ifl_model_config *c = &model->config;
    int64_t hd = c->head_dim, half = hd / 2;
    bool sliding = c->layer_is_sliding[rb->layer];
    const float *cos_table = sliding ? model->rope_local_cos : model->rope_cos;
    const float *sin_table = sliding ? tr->sin_local_negative : tr->sin_negative;
    for (int64_t row = begin; row < end; row++) {
        int64_t at = tr->ws->positions[row] * half;
        tr->ws->ops->rope(tr->dq + row * c->n_heads * hd, hd, cos_table + at, sin_table + at,
                          c->n_heads, hd);
        tr->ws->ops->rope(tr->dk + row * c->n_kv_heads * hd, hd, cos_table + at, sin_table + at,
                          c->n_kv_heads, hd);
    }
}

static void layer_backward_mlp(ifl_trainer *tr, const ifl_weights *w, const ifl_layer_params *p,
                               const ifl_layer_tape *tape, int64_t m) {
    const ifl_model_config *c = &tr->model->config;
    const float *ddown = tr->dx;
    if (c->sandwich_norms) {
        norm_backward_run(tr, w, p->norm_mlp_out, tr->dy, tr->dx, tape->down, tape->r_down, m,
                          false);
        ddown = tr->dy;
    }
    matrix_dx(tr, w, p->down, tr->dact, ddown, m, false);
    pack_activations(tr, tape->act, m, c->d_ff);
    matrix_dw(tr, p->down, ddown, m);
    rows_backward rb = {tr, tape, 0};
    ifl_parallel_for(tr->ws->pool, m, 8, activation_backward_range, &rb);
    matrix_dx(tr, w, p->gate, tr->dnorm, tr->dgate, m, false);
    matrix_dx(tr, w, p->up, tr->dnorm, tr->dup, m, true);
    pack_activations(tr, tape->norm_mlp, m, c->d_model);
    matrix_dw(tr, p->gate, tr->dgate, m);
    matrix_dw(tr, p->up, tr->dup, m);
    norm_backward_run(tr, w, p->norm_mlp_in, tr->dx, tr->dnorm, tape->x_mid, tape->r_mlp, m, true);
}

static void layer_backward_attention(ifl_trainer *tr, const ifl_weights *w,
                                     const ifl_layer_params *p, const ifl_layer_tape *tape,
                                     const float *x_in, int32_t layer, const ifl_pack *pack) {
    const ifl_model_config *c = &tr->model->config;
    int64_t m = pack->n_rows, hd = c->head_dim;
    const float *d_o = tr->dx;
    if (c->sandwich_norms) {
        norm_backward_run(tr, w, p->norm_attention_out, tr->dy, tr->dx, tape->o, tape->r_o, m,
                          false);
        d_o = tr->dy;
    }
    matrix_dx(tr, w, p->o, tr->dattention, d_o, m, false);
    pack_activations(tr, tape->attention, m, c->n_heads * hd);
    matrix_dw(tr, p->o, d_o, m);

    attention_backward ab = {tr, pack, tape, layer};
    ifl_parallel_for(tr->ws->pool, (int64_t)pack->n_seqs * c->n_kv_heads, 1,
                     attention_backward_range, &ab);
    attention_add_shared(tr, pack);
    rows_backward rb = {tr, tape, layer};
    ifl_parallel_for(tr->ws->pool, m, 8, rope_backward_range, &rb);
    float *dq = tr->dq, *dk = tr->dk;
    if (c->qk_norm) {
        dq = tr->dq_raw;
        dk = tr->dk_raw;
        norm_backward_run(tr, w, p->q_norm, dq, tr->dq, tape->q_raw, tape->r_q, m * c->n_heads,
                          false);
        norm_backward_run(tr, w, p->k_norm, dk, tr->dk, tape->k_raw, tape->r_k, m * c->n_kv_heads,
                          false);
    }
    if (c->qkv_bias) {
        bias_backward(tr, p->q_bias, dq, m);
        bias_backward(tr, p->k_bias, dk, m);
        bias_backward(tr, p->v_bias, tr->dv, m);
    }
    matrix_dx(tr, w, p->q, tr->dnorm, dq, m, false);
    matrix_dx(tr, w, p->k, tr->dnorm, dk, m, true);
    matrix_dx(tr, w, p->v, tr->dnorm, tr->dv, m, true);
    pack_activations(tr, tape->norm_in, m, c->d_model);
    matrix_dw(tr, p->q, dq, m);
    matrix_dw(tr, p->k, dk, m);
    matrix_dw(tr, p->v, tr->dv, m);
    norm_backward_run(tr, w, p->norm_in, tr->dx, tr->dnorm, x_in, tape->r_in, m, true);
}

/* --- Head
 * -----------------------------------------------------------------------------------------------
 */

typedef struct head_backward {
    ifl_trainer *tr;
    const ifl_pack *pack;
    const float *coefficients;
    int64_t begin, n, ld; /* of the vocabulary block */
    float *logits;        /* its logits, which become their gradients */
    bool tempered;        /* already, in the forward */
} head_backward;

/* A truncated target: the softmax over its kept set is all there is, the others' gradient is 0. */
static void head_backward_kept(const head_backward *hb, int64_t i, float *x) {
    const ifl_ops *ops = hb->tr->ws->ops;
    ifl_kept_set set = hb->pack->kept[i];
    float temperature = hb->pack->temperatures[i], y[IFL_KEPT_SET_MAX];
    int32_t first, n = ifl_kept_range(set, hb->begin, hb->begin + hb->n, &first);
    int64_t target = -1;
    for (int32_t j = 0; j < n; j++) {
        int32_t id = set.ids[first + j];
        y[j] = x[id - hb->begin];
        if (id == hb->pack->target_tokens[i]) target = j;
    }
    memset(x, 0, (size_t)hb->n * sizeof *x);
    if (n == 0) return;
    if (temperature != 1.0f && !hb->tempered) ops->temper(y, y, temperature, 0.0f, n);
    ops->logprob_backward(y, y, hb->coefficients[i] / temperature, hb->tr->logprobs[i].lse, target,
                          n);
    for (int32_t j = 0; j < n; j++)
        x[set.ids[first + j] - hb->begin] = y[j];
}

static void head_backward_rows(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const head_backward *hb = context;
    const ifl_ops *ops = hb->tr->ws->ops;
    uint32_t rounding = ifl_rounding_enter();
    for (int64_t i = begin; i < end; i++) {
        float *x = hb->logits + i * hb->ld;
        float temperature = hb->pack->temperatures[i];
        if (hb->pack->kept && hb->pack->kept[i].n > 0) {
            head_backward_kept(hb, i, x);
            continue;
        }
        if (temperature != 1.0f && !hb->tempered) ops->temper(x, x, temperature, 0.0f, hb->n);
        ops->logprob_backward(x, x, hb->coefficients[i] / temperature, hb->tr->logprobs[i].lse,
                              hb->pack->target_tokens[i] - hb->begin, hb->n);
    }
    ifl_rounding_leave(rounding);
}

/* dhidden [n_targets, D], and the head's gradient, one vocabulary block after the other. */
static void head_backward_run(ifl_trainer *tr, const ifl_weights *w, const ifl_pack *pack,
                              const float *coefficients) {
    const ifl_model_config *c = &tr->model->config;
    const ifl_param *param = &tr->model->params[tr->model->head];
    const ifl_ops *ops = tr->ws->ops;
    int64_t d = c->d_model, m = pack->n_targets, ld = ifl_vocab_block_ld(tr->model);
    pack_activations(tr, tr->ws->hidden, m, d);
    for (int64_t begin = 0; begin < c->vocab_size; begin += IFL_VOCAB_BLOCK) {
        int64_t n =
            c->vocab_size - begin < IFL_VOCAB_BLOCK ? c->vocab_size - begin : IFL_VOCAB_BLOCK;
        const uint16_t *panels = ifl_weights_panels(w, tr->model->head) + ifl_panel_row(begin, d);
        int64_t block = begin / IFL_VOCAB_BLOCK;
        bool kept = block < tr->kept.n_blocks;
        float *dlogits = kept ? tr->kept.logits + block * tr->kept.rows_max * ld : tr->dlogits;
        ifl_matmul_job logits = {dlogits, ld, tr->ws->hidden, d, panels, n, d};
        if (!kept) ifl_matmul_jobs(tr->ws, &logits, 1, m);
        head_backward hb = {tr, pack, coefficients, begin, n, ld, dlogits, kept};
        ifl_parallel_for(tr->ws->pool, m, 4, head_backward_rows, &hb);
        packing unpack = {
            .ops = ops, .out = tr->pack_w, .w = panels, .rows = n, .cols = d, .n_total = n};
        ifl_parallel_for(tr->ws->pool, ifl_panels(d), 1, unpack_weights_range, &unpack);
        product_run(tr, (product){.c = tr->dhidden,
                                  .ldc = d,
                                  .a = dlogits,
                                  .a_row = ld,
                                  .a_col = 1,
                                  .b_panels = tr->pack_w,
                                  .m = m,
                                  .n = d,
                                  .k = n,
                                  .accumulate = begin > 0});
        if (param->trainable)
            product_run(tr, (product){.c = tr->gradients + param->offset + begin * d,
                                      .ldc = d,
                                      .a = dlogits,
                                      .a_row = 1,
                                      .a_col = ld,
                                      .b_panels = tr->pack_a,
                                      .m = n,
                                      .n = d,
                                      .k = m,
                                      .accumulate = true});
    }
}

static void embedding_backward(ifl_trainer *tr, const ifl_pack *pack) {
    const ifl_param *param = &tr->model->params[tr->model->embedding];
    if (!param->trainable) return;
    int64_t d = tr->model->config.d_model;
    float scale = tr->model->config.embed_scale;
    for (int64_t row = 0; row < pack->n_rows; row++) {
        float *gradient = tr->gradients + param->offset + pack->tokens[row] * d;
        if (scale != 1.0f) tr->ws->ops->scale(tr->dx + row * d, tr->dx + row * d, scale, d);
        tr->ws->ops->add(gradient, tr->dx + row * d, d);
    }
}

ifl_status ifl_trainer_backward(ifl_trainer *tr, const ifl_weights *weights, const ifl_pack *pack,
                                const float *coefficients, ifl_error *err) {
    if (tr->n_targets != pack->n_targets)
        return ifl_fail(err, IFL_USAGE,
                        "trainer: backward of a pack whose forward has not just been run");
    const ifl_model *model = tr->model;
    ifl_workspace *ws = tr->ws;
    int64_t d = model->config.d_model, hd = model->config.head_dim, shared = 0;
    for (int32_t s = 0; s < pack->n_seqs; s++) {
        tr->shared_begin[s] = shared;
        shared += (int64_t)pack->seqs[s].pos_begin * model->config.n_kv_heads * 2 * hd;
    }
    void *grown = tr->shared_kv;
    IFL_TRY(ifl_grow(&grown, &tr->shared_kv_cap, (size_t)shared + 1, sizeof(float), err));
    tr->shared_kv = grown;

    head_backward_run(tr, weights, pack, coefficients);
    norm_backward_run(tr, weights, model->final_norm, tr->dnorm, tr->dhidden, ws->hidden_in,
                      ws->hidden_r, pack->n_targets, false);
    memset(tr->dx, 0, (size_t)(pack->n_rows * d) * sizeof *tr->dx);
    for (int64_t i = 0; i < pack->n_targets; i++)
        ws->ops->add(tr->dx + pack->target_rows[i] * d, tr->dnorm + i * d, d);

    ifl_batch batch = pack_batch(pack);
    for (int32_t l = model->config.n_layers - 1; l >= 0; l--) {
        ifl_layer_tape *tape = ifl_workspace_tape(ws, l);
        const float *x_in = ws->layer_inputs[l];
        /* The last layer's tape is still there whole; the others' was overwritten, but for the
         * cheap parts where the layer has one of its own. Its output goes to dnorm, which is free
         * here. */
        if (l < model->config.n_layers - 1) {
            if (l < model->config.n_layers - ws->n_tapes)
                ifl_layer_forward(ws, weights, tr->kv, &batch, l, tape, x_in, tr->dnorm);
            else
                ifl_layer_refresh(ws, weights, &batch, l, tape, x_in);
        }
        layer_backward_mlp(tr, weights, &model->layers[l], tape, pack->n_rows);
        layer_backward_attention(tr, weights, &model->layers[l], tape, x_in, l, pack);
    }
    embedding_backward(tr, pack);
    tr->n_targets = -1; /* the tapes are used up */
    return IFL_OK;
}

/* The one forward pass. Rows are independent: every loop below splits rows, heads or output columns
 * and never a sum, so neither the batch nor the thread count can change a bit. */
#include "kernels/forward_internal.h"

#include <string.h>

#include "common/memory.h"

/* --- Workspace
 * -------------------------------------------------------------------------------------- */

static int32_t attention_tile_tokens(const ifl_model_config *c) {
    int32_t tokens = IFL_ATTENTION_ROWS_MAX / (c->n_heads / c->n_kv_heads);
    return tokens < 1 ? 1 : tokens;
}

/* `shared` (may be NULL): the tape whose cheap buffers this one uses too. They are what a norm or
 * an activation makes of other parts of the tape; ifl_layer_refresh makes them again. */
static void workspace_cut_tape(ifl_cut *a, const ifl_model_config *c, int64_t r,
                               const ifl_layer_tape *shared, ifl_layer_tape *t) {
    int64_t d = c->d_model, f = c->d_ff, hd = c->head_dim;
    int64_t hq = c->n_heads * hd, hk = c->n_kv_heads * hd;
    ifl_layer_tape tape = {0};
    tape.norm_in = shared ? shared->norm_in : ifl_cut_take(a, r * d, 4);
    tape.r_in = ifl_cut_take(a, r, 4);
    if (c->qk_norm) {
        tape.q_raw = ifl_cut_take(a, r * hq, 4);
        tape.k_raw = ifl_cut_take(a, r * hk, 4);
        tape.r_q = ifl_cut_take(a, r * c->n_heads, 4);
        tape.r_k = ifl_cut_take(a, r * c->n_kv_heads, 4);
    }
    tape.q = ifl_cut_take(a, r * hq, 4);
    tape.k = ifl_cut_take(a, r * hk, 4);
    tape.v = ifl_cut_take(a, r * hk, 4);
    tape.attention = ifl_cut_take(a, r * hq, 4);
    tape.lse = ifl_cut_take(a, r * c->n_heads, sizeof(ifl_lse));
    tape.o = ifl_cut_take(a, r * d, 4);
    tape.x_mid = ifl_cut_take(a, r * d, 4);
    tape.norm_mlp = shared ? shared->norm_mlp : ifl_cut_take(a, r * d, 4);
    tape.r_mlp = ifl_cut_take(a, r, 4);
    tape.gate = ifl_cut_take(a, r * f, 4);
    tape.up = ifl_cut_take(a, r * f, 4);
    tape.act = shared ? shared->act : ifl_cut_take(a, r * f, 4);
    tape.down = ifl_cut_take(a, r * d, 4);
    if (c->sandwich_norms) {
        tape.r_o = ifl_cut_take(a, r, 4);
        tape.r_down = ifl_cut_take(a, r, 4);
    }
    *t = tape;
}

static void workspace_cut(ifl_cut *a, ifl_workspace *ws, const ifl_model *model, int64_t r,
                          int n_threads, int32_t n_tapes, bool keep_inputs) {
    const ifl_model_config *c = &model->config;
    int64_t d = c->d_model;
    ifl_workspace shape = {0};
    shape.tapes = ifl_cut_take(a, n_tapes, sizeof(ifl_layer_tape));
    ifl_layer_tape first = {0};
    for (int32_t i = 0; i < n_tapes; i++) {
        ifl_layer_tape tape;
        workspace_cut_tape(a, c, r, i > 0 ? &first : NULL, &tape);
        if (i == 0) first = tape;
        if (shape.tapes) shape.tapes[i] = tape;
    }
    if (keep_inputs) {
        shape.layer_inputs = ifl_cut_take(a, c->n_layers + 1, sizeof(float *));
        for (int32_t l = 0; l <= c->n_layers; l++) {
            float *x = ifl_cut_take(a, r * d, 4);
            if (shape.layer_inputs) shape.layer_inputs[l] = x;
        }
        shape.hidden_in = ifl_cut_take(a, r * d, 4);
    } else {
        shape.x = ifl_cut_take(a, r * d, 4);
    }
    shape.positions = ifl_cut_take(a, r, 4);
    shape.row_seq = ifl_cut_take(a, r, 4);
    shape.tasks_max = (int32_t)(r * c->n_kv_heads);
    shape.tasks = ifl_cut_take(a, shape.tasks_max, sizeof(ifl_attention_task));
    shape.hidden = ifl_cut_take(a, r * d, 4);
    shape.hidden_r = ifl_cut_take(a, r, 4);
    shape.head_tile_rows = r < IFL_TASK_ROWS_MAX ? r : IFL_TASK_ROWS_MAX;
    shape.head_tile_ld = ifl_vocab_block_ld(model);
    shape.head_logits = ifl_cut_take(a, n_threads * shape.head_tile_rows * shape.head_tile_ld, 4);
    shape.head_p = ifl_cut_take(a, n_threads * shape.head_tile_ld, 4);
    shape.head_blocks = ifl_cut_take(a, r * ifl_vocab_blocks(model), sizeof(ifl_head_block));
    if (!ws) return;
    shape.model = model;
    shape.rows_max = (int32_t)r;
    shape.n_threads = n_threads;
    shape.n_tapes = n_tapes;
    *ws = shape;
}

int64_t ifl_workspace_bytes_with(const ifl_model *model, int32_t rows_max, int n_threads,
                                 int32_t n_tapes, bool keep_inputs) {
    ifl_cut a = {0};
    workspace_cut(&a, NULL, model, rows_max, n_threads, n_tapes, keep_inputs);
    return (int64_t)(a.used + sizeof(ifl_workspace));
}

int64_t ifl_workspace_bytes(const ifl_model *model, int32_t rows_max, int n_threads) {
    return ifl_workspace_bytes_with(model, rows_max, n_threads, 1, false);
}

ifl_status ifl_workspace_create_with(ifl_workspace **out, const ifl_model *model, int32_t rows_max,
                                     ifl_thread_pool *pool, const ifl_ops *ops, int32_t n_tapes,
                                     bool keep_inputs, ifl_error *err) {
    *out = NULL;
    if (rows_max < 1)
        return ifl_fail(err, IFL_USAGE, "workspace: %d rows, wanted at least 1", rows_max);
    int n_threads = ifl_thread_pool_size(pool);
    ifl_cut a = {0};
    workspace_cut(&a, NULL, model, rows_max, n_threads, n_tapes, keep_inputs);
    ifl_workspace *ws = ifl_alloc(1, sizeof *ws);
    a.base = ws ? ifl_alloc(a.used, 1) : NULL;
    if (!a.base) {
        ifl_free(ws);
        return ifl_fail(err, IFL_NOMEM, "workspace: out of memory for %d rows (%.1f MiB)", rows_max,
                        (double)a.used / 1048576.0);
    }
    char *arena = a.base;
    a.used = 0;
    workspace_cut(&a, ws, model, rows_max, n_threads, n_tapes, keep_inputs);
    ws->arena = arena;
    ws->pool = pool;
    ws->ops = ops ? ops : ifl_ops_best(model->numerics);
    IFL_ASSERT(ws->ops->profile == model->numerics);
    if (ws->head_tile_rows > ws->ops->task_rows) ws->head_tile_rows = ws->ops->task_rows;
    *out = ws;
    return IFL_OK;
}

ifl_status ifl_workspace_create(ifl_workspace **out, const ifl_model *model, int32_t rows_max,
                                ifl_thread_pool *pool, const ifl_ops *ops, ifl_error *err) {
    return ifl_workspace_create_with(out, model, rows_max, pool, ops, 1, false, err);
}

void ifl_workspace_free(ifl_workspace *workspace) {
    if (!workspace) return;
    ifl_free(workspace->head_top);
    ifl_free(workspace->head_set_begin);
    ifl_free(workspace->head_set_x);
    ifl_free(workspace->head_set_ids);
    ifl_free(workspace->arena);
    ifl_free(workspace);
}

void ifl_workspace_trace(ifl_workspace *workspace, uint64_t *hashes) {
    workspace->trace = hashes;
}

int32_t ifl_workspace_rows_max(const ifl_workspace *workspace) {
    return workspace->rows_max;
}

/* --- Matrix products
 * -------------------------------------------------------------------------------- */

#define MATMUL_JOBS_MAX 4

typedef struct matmul_loop {
    const ifl_ops *ops;
    const ifl_matmul_job *jobs;
    int n_jobs;
    int64_t m, rows_per_task, row_tiles, panels_per_task;
    int64_t first_task[MATMUL_JOBS_MAX + 1];
} matmul_loop;

static void matmul_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const matmul_loop *loop = context;
    for (int64_t task = begin; task < end; task++) {
        int j = 0;
        while (task >= loop->first_task[j + 1])
            j++;
        const ifl_matmul_job *job = &loop->jobs[j];
        int64_t local = task - loop->first_task[j];
        int64_t row = local % loop->row_tiles * loop->rows_per_task;
        int64_t panel = local / loop->row_tiles * loop->panels_per_task;
        int64_t panel_end = panel + loop->panels_per_task, panels = ifl_panels(job->n);
        int64_t rows = loop->m - row < loop->rows_per_task ? loop->m - row : loop->rows_per_task;
        if (panel_end > panels) panel_end = panels;
        loop->ops->matmul(job->y + row * job->ldy, job->ldy, job->x + row * job->ldx, job->ldx,
                          job->panels, rows, job->n, job->k, panel, panel_end);
    }
}

void ifl_matmul_jobs(ifl_workspace *ws, const ifl_matmul_job *jobs, int n_jobs, int64_t m) {
    IFL_ASSERT(n_jobs <= MATMUL_JOBS_MAX);
    if (m == 0) return;
    int64_t rows = ws->ops->task_rows;
    matmul_loop loop = {ws->ops, jobs, n_jobs, m, rows, (m + rows - 1) / rows, 0, {0}};
    int64_t panels = 0;
    for (int j = 0; j < n_jobs; j++)
        panels += ifl_panels(jobs[j].n);
    /* About eight tasks a thread even out the ends without making tasks tiny. */
    int64_t want = 8 * ws->n_threads;
    loop.panels_per_task = panels * loop.row_tiles / want;
    if (ws->n_threads == 1) loop.panels_per_task = panels;
    if (loop.panels_per_task < 1) loop.panels_per_task = 1;
    for (int j = 0; j < n_jobs; j++) {
        int64_t chunks = (ifl_panels(jobs[j].n) + loop.panels_per_task - 1) / loop.panels_per_task;
        loop.first_task[j + 1] = loop.first_task[j] + chunks * loop.row_tiles;
    }
    ifl_parallel_for(ws->pool, loop.first_task[n_jobs], 1, matmul_range, &loop);
}

ifl_matmul_job ifl_matmul_job_of(const ifl_weights *w, int32_t param, float *y, const float *x) {
    const ifl_tensor_spec *s = &w->model->params[param].spec;
    return (ifl_matmul_job){y, s->rows, x, s->cols, ifl_weights_panels(w, param), s->rows, s->cols};
}

/* --- Rows
 * ------------------------------------------------------------------------------------------- */

typedef struct layer_pass {
    ifl_workspace *ws;
    const ifl_weights *w;
    ifl_kv_store *kv;
    const ifl_batch *batch;
    int32_t layer;
    const ifl_layer_params *p;
    ifl_layer_tape *tape;
    const float *x_in;
    float *x_out;
} layer_pass;

/* Rows that one range of a loop takes, so that it holds some microseconds of elementwise work: a
 * wake-up of another thread costs as much. */
static int64_t row_grain(int64_t floats_per_row) {
    int64_t rows = 16384 / floats_per_row;
    return rows < 1 ? 1 : rows;
}

static float norm_offset(const ifl_model *model) {
    return model->config.norm_plus_one ? 1.0f : 0.0f;
}

static void rows_norm_in(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const layer_pass *lp = context;
    const ifl_model_config *c = &lp->ws->model->config;
    int64_t d = c->d_model;
    lp->ws->ops->rmsnorm(lp->tape->norm_in + begin * d, d, lp->x_in + begin * d, d,
                         ifl_weights_vector(lp->w, lp->p->norm_in), norm_offset(lp->ws->model),
                         c->norm_eps, end - begin, d, lp->tape->r_in + begin);
    lp->ws->ops->round(lp->tape->norm_in + begin * d, (end - begin) * d);
}

/* Where layer l's K and V of one kv head lie, for a sequence with the given pages. */
static ifl_kv_view kv_view(const ifl_kv_store *kv, int32_t layer, int32_t head,
                           const int32_t *pages) {
    int64_t half = (int64_t)kv->page_tokens * kv->head_dim; /* elements */
    const char *k = kv->data + ((int64_t)layer * kv->n_pages * kv->n_kv_heads + head) * 2 * half *
                                   kv->element_bytes;
    return (ifl_kv_view){k, k + half * kv->element_bytes, kv->n_kv_heads * 2 * half, pages,
                         kv->page_tokens};
}

/* Biases, q and k norms, RoPE, and the new keys and values into the cache. */
static void rows_qkv(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const layer_pass *lp = context;
    const ifl_workspace *ws = lp->ws;
    const ifl_ops *ops = ws->ops;
    const ifl_model *model = ws->model;
    const ifl_model_config *c = &model->config;
    const ifl_layer_tape *t = lp->tape;
    int64_t hd = c->head_dim, hq = c->n_heads * hd, hk = c->n_kv_heads * hd, half = hd / 2;
    bool sliding = c->layer_is_sliding[lp->layer];
    const float *cos_table = sliding ? model->rope_local_cos : model->rope_cos;
    const float *sin_table = sliding ? model->rope_local_sin : model->rope_sin;
    for (int64_t row = begin; row < end; row++) {
        float *q = t->q + row * hq, *k = t->k + row * hk, *v = t->v + row * hk;
        float *q_raw = c->qk_norm ? t->q_raw + row * hq : q,
              *k_raw = c->qk_norm ? t->k_raw + row * hk : k;
        if (c->qkv_bias) {
            ops->add_bias(q_raw, hq, ifl_weights_vector(lp->w, lp->p->q_bias), 1, hq);
            ops->add_bias(k_raw, hk, ifl_weights_vector(lp->w, lp->p->k_bias), 1, hk);
            ops->add_bias(v, hk, ifl_weights_vector(lp->w, lp->p->v_bias), 1, hk);
        }
        if (c->qk_norm) {
            ops->rmsnorm(q, hd, q_raw, hd, ifl_weights_vector(lp->w, lp->p->q_norm),
                         norm_offset(model), c->norm_eps, c->n_heads, hd,
                         t->r_q + row * c->n_heads);
            ops->rmsnorm(k, hd, k_raw, hd, ifl_weights_vector(lp->w, lp->p->k_norm),
                         norm_offset(model), c->norm_eps, c->n_kv_heads, hd,
                         t->r_k + row * c->n_kv_heads);
        }
        int64_t position = ws->positions[row];
        const float *cs = cos_table + position * half, *sn = sin_table + position * half;
        ops->rope(q, hd, cs, sn, c->n_heads, hd);
        ops->rope(k, hd, cs, sn, c->n_kv_heads, hd);
        ops->round(q, hq);
        ops->round(k, hk);
        ops->round(v, hk);
        const int32_t *pages = lp->batch->seqs[ws->row_seq[row]].pages;
        for (int32_t h = 0; h < c->n_kv_heads; h++) {
            ifl_kv_view view = kv_view(lp->kv, lp->layer, h, pages);
            ops->kv_store(&view, position, k + h * hd, v + h * hd, hd);
        }
    }
}

static void attention_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const layer_pass *lp = context;
    const ifl_workspace *ws = lp->ws;
    const ifl_model_config *c = &ws->model->config;
    int64_t hd = c->head_dim, hq = c->n_heads * hd, group = c->n_heads / c->n_kv_heads;
    int32_t window = c->layer_is_sliding[lp->layer] ? c->sliding_window : 0;
    for (int64_t task = begin; task < end; task++) {
        const ifl_attention_task *a = &ws->tasks[task];
        const ifl_batch_seq *seq = &lp->batch->seqs[a->seq];
        ifl_kv_view view = kv_view(lp->kv, lp->layer, a->kv_head, seq->pages);
        float *o[IFL_ATTENTION_ROWS_MAX];
        const float *q[IFL_ATTENTION_ROWS_MAX];
        int32_t pos[IFL_ATTENTION_ROWS_MAX];
        ifl_lse lse[IFL_ATTENTION_ROWS_MAX];
        for (int64_t g0 = 0; g0 < group; g0 += IFL_ATTENTION_ROWS_MAX) {
            int64_t heads =
                group - g0 < IFL_ATTENTION_ROWS_MAX ? group - g0 : IFL_ATTENTION_ROWS_MAX;
            int n = 0;
            for (int32_t i = a->begin; i < a->end; i++)
                for (int64_t g = g0; g < g0 + heads; g++, n++) {
                    int64_t row = seq->row_begin + i, head = a->kv_head * group + g;
                    q[n] = lp->tape->q + row * hq + head * hd;
                    o[n] = lp->tape->attention + row * hq + head * hd;
                    pos[n] = seq->pos_begin + i;
                }
            ws->ops->attention(o, q, pos, n, &view, hd, c->attention_scale, window, lse);
            n = 0;
            for (int32_t i = a->begin; i < a->end; i++)
                for (int64_t g = g0; g < g0 + heads; g++, n++)
                    lp->tape
                        ->lse[(int64_t)(seq->row_begin + i) * c->n_heads + a->kv_head * group + g] =
                        lse[n];
            for (int i = 0; i < n; i++)
                ws->ops->round(o[i], hd);
        }
    }
}

/* x_mid = x_in + [norm](o);  norm_mlp = norm(x_mid). */
static void rows_after_attention(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const layer_pass *lp = context;
    const ifl_ops *ops = lp->ws->ops;
    const ifl_model_config *c = &lp->ws->model->config;
    const ifl_layer_tape *t = lp->tape;
    int64_t d = c->d_model, n = end - begin, at = begin * d;
    float offset = norm_offset(lp->ws->model);
    if (c->sandwich_norms) {
        ops->rmsnorm(t->x_mid + at, d, t->o + at, d,
                     ifl_weights_vector(lp->w, lp->p->norm_attention_out), offset, c->norm_eps, n,
                     d, t->r_o + begin);
        ops->add(t->x_mid + at, lp->x_in + at, n * d);
    } else {
        memcpy(t->x_mid + at, lp->x_in + at, (size_t)(n * d) * sizeof(float));
        ops->add(t->x_mid + at, t->o + at, n * d);
    }
    ops->rmsnorm(t->norm_mlp + at, d, t->x_mid + at, d,
                 ifl_weights_vector(lp->w, lp->p->norm_mlp_in), offset, c->norm_eps, n, d,
                 t->r_mlp + begin);
    ops->round(t->norm_mlp + at, n * d);
}

static void rows_activation(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const layer_pass *lp = context;
    const ifl_model_config *c = &lp->ws->model->config;
    const ifl_layer_tape *t = lp->tape;
    int64_t at = begin * c->d_ff, n = (end - begin) * c->d_ff;
    if (c->activation == IFL_ACT_SILU)
        lp->ws->ops->silu_mul(t->act + at, t->gate + at, t->up + at, n);
    else
        lp->ws->ops->gelu_mul(t->act + at, t->gate + at, t->up + at, n);
    lp->ws->ops->round(t->act + at, n);
}

/* x_out = x_mid + [norm](down). */
static void rows_after_mlp(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const layer_pass *lp = context;
    const ifl_ops *ops = lp->ws->ops;
    const ifl_model_config *c = &lp->ws->model->config;
    const ifl_layer_tape *t = lp->tape;
    int64_t d = c->d_model, n = end - begin, at = begin * d;
    if (c->sandwich_norms) {
        ops->rmsnorm(lp->x_out + at, d, t->down + at, d,
                     ifl_weights_vector(lp->w, lp->p->norm_mlp_out), norm_offset(lp->ws->model),
                     c->norm_eps, n, d, t->r_down + begin);
        ops->add(lp->x_out + at, t->x_mid + at, n * d);
    } else {
        memcpy(lp->x_out + at, t->x_mid + at, (size_t)(n * d) * sizeof(float));
        ops->add(lp->x_out + at, t->down + at, n * d);
    }
}

void ifl_layer_forward(ifl_workspace *ws, const ifl_weights *w, ifl_kv_store *kv,
                       const ifl_batch *batch, int32_t l, ifl_layer_tape *tape, const float *x_in,
                       float *x_out) {
    const ifl_model_config *c = &ws->model->config;
    const ifl_layer_params *p = &ws->model->layers[l];
    layer_pass lp = {ws, w, kv, batch, l, p, tape, x_in, x_out};
    int64_t m = batch->n_rows, d_grain = row_grain(c->d_model);
    int64_t qkv_grain = row_grain((c->n_heads + 2 * c->n_kv_heads) * c->head_dim);
    ifl_parallel_for(ws->pool, m, d_grain, rows_norm_in, &lp);
    ifl_matmul_job qkv[3] = {
        ifl_matmul_job_of(w, p->q, c->qk_norm ? tape->q_raw : tape->q, tape->norm_in),
        ifl_matmul_job_of(w, p->k, c->qk_norm ? tape->k_raw : tape->k, tape->norm_in),
        ifl_matmul_job_of(w, p->v, tape->v, tape->norm_in),
    };
    ifl_matmul_jobs(ws, qkv, 3, m);
    ifl_parallel_for(ws->pool, m, qkv_grain, rows_qkv, &lp);
    ifl_parallel_for(ws->pool, ws->n_tasks, 1, attention_range, &lp);
    ifl_matmul_job o = ifl_matmul_job_of(w, p->o, tape->o, tape->attention);
    ifl_matmul_jobs(ws, &o, 1, m);
    ifl_parallel_for(ws->pool, m, d_grain, rows_after_attention, &lp);
    ifl_matmul_job gate_up[2] = {
        ifl_matmul_job_of(w, p->gate, tape->gate, tape->norm_mlp),
        ifl_matmul_job_of(w, p->up, tape->up, tape->norm_mlp),
    };
    ifl_matmul_jobs(ws, gate_up, 2, m);
    ifl_parallel_for(ws->pool, m, row_grain(c->d_ff), rows_activation, &lp);
    ifl_matmul_job down = ifl_matmul_job_of(w, p->down, tape->down, tape->act);
    ifl_matmul_jobs(ws, &down, 1, m);
    ifl_parallel_for(ws->pool, m, d_grain, rows_after_mlp, &lp);
}

static void rows_norm_mlp(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const layer_pass *lp = context;
    const ifl_model_config *c = &lp->ws->model->config;
    const ifl_layer_tape *t = lp->tape;
    int64_t d = c->d_model, at = begin * d;
    lp->ws->ops->rmsnorm(t->norm_mlp + at, d, t->x_mid + at, d,
                         ifl_weights_vector(lp->w, lp->p->norm_mlp_in), norm_offset(lp->ws->model),
                         c->norm_eps, end - begin, d, t->r_mlp + begin);
    lp->ws->ops->round(t->norm_mlp + at, (end - begin) * d);
}

void ifl_layer_refresh(ifl_workspace *ws, const ifl_weights *w, const ifl_batch *batch, int32_t l,
                       ifl_layer_tape *tape, const float *x_in) {
    const ifl_model_config *c = &ws->model->config;
    layer_pass lp = {ws, w, NULL, batch, l, &ws->model->layers[l], tape, x_in, NULL};
    ifl_parallel_for(ws->pool, batch->n_rows, row_grain(c->d_model), rows_norm_in, &lp);
    ifl_parallel_for(ws->pool, batch->n_rows, row_grain(c->d_model), rows_norm_mlp, &lp);
    ifl_parallel_for(ws->pool, batch->n_rows, row_grain(c->d_ff), rows_activation, &lp);
}

/* --- The pass
 * --------------------------------------------------------------------------------------- */

ifl_status ifl_batch_check(ifl_workspace *ws, const ifl_kv_store *kv, const ifl_batch *batch,
                           ifl_error *err) {
    const ifl_model_config *c = &ws->model->config;
    if (batch->n_rows < 0 || batch->n_rows > ws->rows_max || batch->n_out > ws->rows_max)
        return ifl_fail(err, IFL_LIMIT, "forward: %d rows with %d outputs, the workspace holds %d",
                        batch->n_rows, batch->n_out, ws->rows_max);
    for (int32_t i = 0; i < batch->n_rows; i++)
        if (batch->tokens[i] < 0 || batch->tokens[i] >= c->vocab_size)
            return ifl_fail(err, IFL_LIMIT, "forward: token %d in row %d, the vocabulary has %d",
                            batch->tokens[i], i, c->vocab_size);
    for (int32_t i = 0; i < batch->n_out; i++)
        if (batch->out_rows[i] < 0 || batch->out_rows[i] >= batch->n_rows)
            return ifl_fail(err, IFL_LIMIT, "forward: output row %d of %d rows", batch->out_rows[i],
                            batch->n_rows);
    int32_t row = 0;
    ws->n_tasks = 0;
    int32_t tile = attention_tile_tokens(c);
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const ifl_batch_seq *seq = &batch->seqs[s];
        if (seq->row_begin != row || seq->n_rows < 1 || seq->n_rows > batch->n_rows - row)
            return ifl_fail(
                err, IFL_LIMIT,
                "forward: sequence %d has rows %d+%d, wanted them to start at %d within %d", s,
                seq->row_begin, seq->n_rows, row, batch->n_rows);
        if (seq->pos_begin < 0 || seq->pos_begin > c->max_positions - seq->n_rows)
            return ifl_fail(err, IFL_LIMIT,
                            "forward: sequence %d reaches position %lld, the model has %d", s,
                            (long long)seq->pos_begin + seq->n_rows - 1, c->max_positions);
        int32_t last_page = (seq->pos_begin + seq->n_rows - 1) / kv->page_tokens;
        for (int32_t i = 0; i <= last_page; i++)
            if (seq->pages[i] < 0 || seq->pages[i] >= kv->n_pages)
                return ifl_fail(err, IFL_LIMIT, "forward: sequence %d names page %d of %d", s,
                                seq->pages[i], kv->n_pages);
        for (int32_t i = 0; i < seq->n_rows; i++, row++) {
            ws->positions[row] = seq->pos_begin + i;
            ws->row_seq[row] = s;
        }
        for (int32_t h = 0; h < c->n_kv_heads; h++)
            for (int32_t i = 0; i < seq->n_rows; i += tile)
                ws->tasks[ws->n_tasks++] =
                    (ifl_attention_task){s, h, i, i + tile < seq->n_rows ? i + tile : seq->n_rows};
    }
    IFL_ASSERT(ws->n_tasks <= ws->tasks_max);
    if (row != batch->n_rows)
        return ifl_fail(err, IFL_LIMIT, "forward: sequences cover %d of %d rows", row,
                        batch->n_rows);
    return IFL_OK;
}

typedef struct embed_loop {
    const ifl_ops *ops;
    const ifl_weights *w;
    const int32_t *tokens;
    float *x;
} embed_loop;

static void embed_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const embed_loop *e = context;
    const ifl_model *model = e->w->model;
    int64_t d = model->config.d_model;
    float scale = model->config.embed_scale;
    const uint16_t *panels = ifl_weights_panels(e->w, model->embedding);
    for (int64_t row = begin; row < end; row++) {
        int64_t token = e->tokens[row];
        const uint16_t *from = panels + ifl_panel_row(token, d);
        for (int64_t i = 0; i < d; i++) {
            uint32_t bits = (uint32_t)from[ifl_panel_k(i)] << 16;
            memcpy(&e->x[row * d + i], &bits, sizeof bits);
        }
        if (scale != 1.0f) e->ops->scale(e->x + row * d, e->x + row * d, scale, d);
    }
}

void ifl_embed(ifl_workspace *ws, const ifl_weights *w, const ifl_batch *batch, float *x) {
    embed_loop e = {ws->ops, w, batch->tokens, x};
    ifl_parallel_for(ws->pool, batch->n_rows, row_grain(4 * w->model->config.d_model), embed_range,
                     &e);
}

void ifl_final_norm(ifl_workspace *ws, const ifl_weights *w, const ifl_batch *batch,
                    const float *x) {
    const ifl_model_config *c = &ws->model->config;
    int64_t d = c->d_model;
    for (int32_t i = 0; i < batch->n_out; i++) {
        const float *from = x + batch->out_rows[i] * d;
        if (ws->hidden_in) memcpy(ws->hidden_in + i * d, from, (size_t)d * sizeof(float));
        ws->ops->rmsnorm(ws->hidden + i * d, d, from, d,
                         ifl_weights_vector(w, ws->model->final_norm), norm_offset(ws->model),
                         c->norm_eps, 1, d, ws->hidden_r + i);
        ws->ops->round(ws->hidden + i * d, d);
    }
}

static void forward_trace(const ifl_workspace *ws, const ifl_batch *batch, int32_t at,
                          const float *x) {
    int64_t d = ws->model->config.d_model;
    if (ws->trace) ws->trace[at] = ifl_hash64(x + (batch->n_rows - 1) * d, (size_t)d * sizeof *x);
}

ifl_status ifl_forward(ifl_workspace *ws, const ifl_weights *weights, ifl_kv_store *kv,
                       const ifl_batch *batch, const float **hidden, ifl_error *err) {
    IFL_TRY(ifl_batch_check(ws, kv, batch, err));
    *hidden = ws->hidden;
    if (batch->n_rows == 0) return IFL_OK;
    int32_t n_layers = ws->model->config.n_layers;
    float **inputs = ws->layer_inputs;
    ifl_embed(ws, weights, batch, inputs ? inputs[0] : ws->x);
    forward_trace(ws, batch, 0, inputs ? inputs[0] : ws->x);
    for (int32_t l = 0; l < n_layers; l++) {
        ifl_layer_forward(ws, weights, kv, batch, l, ifl_workspace_tape(ws, l),
                          inputs ? inputs[l] : ws->x, inputs ? inputs[l + 1] : ws->x);
        forward_trace(ws, batch, l + 1, inputs ? inputs[l + 1] : ws->x);
    }
    ifl_final_norm(ws, weights, batch, inputs ? inputs[n_layers] : ws->x);
    return IFL_OK;
}

/* The head, fused over vocabulary blocks: log-probs, sampling and best tokens without a rows x
 * vocabulary buffer. One task is (tile of rows, block); each leaves one record per row, and the
 * records of a row are merged in block order. The log-prob of a token is the same function
 * everywhere: logprob_of. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "kernels/cpu/rounding.h"
#include "kernels/forward_internal.h"

typedef enum { HEAD_TARGET, HEAD_SAMPLE, HEAD_LOGITS } head_kind;

typedef struct head_pass {
    ifl_workspace *ws;
    const ifl_weights *w;
    const float *hidden;
    int32_t n;
    head_kind kind;
    const float *temperature; /* [n]; NULL = 1 */
    const int32_t *targets;   /* HEAD_TARGET; NULL = none wanted */
    bool want_entropy;
    const ifl_kept_set *sets;     /* [n] HEAD_TARGET; NULL = none */
    const ifl_kept_logits *kept;  /* NULL = none */
    const ifl_sampling *sampling; /* HEAD_SAMPLE */
    const ifl_rng_key *keys;
    const int64_t *positions;
    int32_t n_top; /* best tokens kept per (row, block); 0 = none */
    float *logits; /* HEAD_LOGITS: [n, V] */
} head_pass;

static float head_temperature(const head_pass *hp, int32_t row) {
    float t = hp->kind == HEAD_SAMPLE ? hp->sampling[row].temperature
                                      : (hp->temperature ? hp->temperature[row] : 1.0f);
    return t > 0.0f ? t : 1.0f; /* greedy: the untempered distribution */
}

/* Not inline: the compiler knows nothing of MXCSR and could move arithmetic over its setting. */
__attribute__((noinline)) static float logprob_body(float x, float max, float log_sum) {
    return (x - max) - log_sum;
}

/* log p = (x - max) - log(sum): the one definition. */
static float logprob_of(const ifl_ops *ops, float x, ifl_lse lse) {
    float log_sum;
    ops->log(&log_sum, &lse.sum, 1);
    uint32_t rounding = ifl_rounding_enter();
    float logprob = logprob_body(x, lse.max, log_sum);
    ifl_rounding_leave(rounding);
    return logprob;
}

/* Lowest index of the largest value. */
static int64_t head_argmax(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

#define DRAW_CHUNK 256

/* Index i in [0, n) with probability p[i] / sum(p): inverse CDF, first over chunks of 256 (lane
 * sums), then inside the chunk. u in (0, 1). */
static int64_t head_draw(const float *p, int64_t n, float u) {
    float sums[IFL_VOCAB_BLOCK / DRAW_CHUNK];
    float total = 0.0f;
    int64_t n_chunks = (n + DRAW_CHUNK - 1) / DRAW_CHUNK;
    for (int64_t c = 0; c < n_chunks; c++) {
        float lanes[IFL_LANES] = {0};
        int64_t end = (c + 1) * DRAW_CHUNK < n ? (c + 1) * DRAW_CHUNK : n, i = c * DRAW_CHUNK;
        for (; i + IFL_LANES <= end; i += IFL_LANES)
            for (int l = 0; l < IFL_LANES; l++)
                lanes[l] += p[i + l];
        for (int l = 0; i < end; i++, l++)
            lanes[l] += p[i];
        for (int width = IFL_LANES / 2; width >= 1; width /= 2)
            for (int l = 0; l < width; l++)
                lanes[l] += lanes[l + width];
        sums[c] = lanes[0];
        total += sums[c];
    }
    float goal = u * total, below = 0.0f;
    int64_t chunk = 0;
    while (chunk + 1 < n_chunks && below + sums[chunk] <= goal)
        below += sums[chunk++];
    int64_t end = (chunk + 1) * DRAW_CHUNK < n ? (chunk + 1) * DRAW_CHUNK : n;
    int64_t last = -1;
    for (int64_t i = chunk * DRAW_CHUNK; i < end; i++) {
        if (!(p[i] > 0.0f)) continue;
        last = i;
        below += p[i];
        if (below > goal) return i;
    }
    /* Rounding left a sliver past the chunk's end: its last possible token, or the block's best. */
    return last >= 0 ? last : head_argmax(p, n);
}

/* Before `b` in the order of best tokens: larger x, then lower id. */
static bool top_before(ifl_top_entry a, ifl_top_entry b) {
    return a.x > b.x || (a.x == b.x && a.id < b.id);
}

static int top_compare(const void *a, const void *b) {
    ifl_top_entry x = *(const ifl_top_entry *)a, y = *(const ifl_top_entry *)b;
    return top_before(x, y) ? -1 : top_before(y, x) ? 1 : 0;
}

/* The k best of x[0, n), unordered: a heap whose root is the worst kept. Unused entries get id -1.
 */
static void head_top_block(const float *x, int64_t n, int32_t id_begin, int32_t k,
                           ifl_top_entry *heap) {
    int32_t held = 0;
    for (int64_t i = 0; i < n; i++) {
        ifl_top_entry e = {x[i], id_begin + (int32_t)i};
        if (held < k) {
            int32_t at = held++;
            while (at > 0 && top_before(heap[(at - 1) / 2], e)) {
                heap[at] = heap[(at - 1) / 2];
                at = (at - 1) / 2;
            }
            heap[at] = e;
            continue;
        }
        if (!top_before(e, heap[0])) continue;
        int32_t at = 0;
        for (;;) {
            int32_t child = 2 * at + 1;
            if (child >= k) break;
            if (child + 1 < k && top_before(heap[child], heap[child + 1])) child++;
            if (!top_before(e, heap[child])) break;
            heap[at] = heap[child];
            at = child;
        }
        heap[at] = e;
    }
    for (; held < k; held++)
        heap[held] = (ifl_top_entry){0.0f, -1};
}

static float head_entropy_dot(const float *x, const float *p, float max, int64_t n) {
    float lanes[IFL_LANES] = {0};
    int64_t i = 0;
    for (; i + IFL_LANES <= n; i += IFL_LANES)
        for (int l = 0; l < IFL_LANES; l++)
            lanes[l] += p[i + l] * (x[i + l] - max);
    for (; i < n; i++)
        if (p[i] > 0.0f) lanes[0] += p[i] * (x[i] - max);
    float sum = 0.0f;
    for (int l = 0; l < IFL_LANES; l++)
        sum += lanes[l];
    return sum;
}

static int32_t kept_lower_bound(ifl_kept_set set, int64_t id) {
    int32_t low = 0, high = set.n;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (set.ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int32_t ifl_kept_range(ifl_kept_set set, int64_t id_begin, int64_t id_end, int32_t *first) {
    *first = kept_lower_bound(set, id_begin);
    return kept_lower_bound(set, id_end) - *first;
}

/* A kept set's log-sum-exp: its x in ascending order of ids, as one vocabulary block. */
static ifl_lse kept_lse(const ifl_ops *ops, const float *x, int32_t n) {
    return ops->block_lse(x, n, NULL);
}

static void head_row_block(const head_pass *hp, int32_t row, int64_t block, float *x, float *p,
                           int64_t n) {
    ifl_workspace *ws = hp->ws;
    int32_t begin = (int32_t)(block * IFL_VOCAB_BLOCK);
    float softcap = ws->model->config.logit_softcap;
    if (hp->kind == HEAD_LOGITS) {
        ws->ops->temper(hp->logits + (int64_t)row * ws->model->config.vocab_size + begin, x, 1.0f,
                        softcap, n);
        return;
    }
    float temperature = head_temperature(hp, row);
    if (temperature != 1.0f || softcap > 0.0f) ws->ops->temper(x, x, temperature, softcap, n);
    ifl_head_block *record = &ws->head_blocks[row * ifl_vocab_blocks(ws->model) + block];
    bool need_p = hp->kind == HEAD_SAMPLE || hp->want_entropy;
    record->lse = ws->ops->block_lse(x, n, need_p ? p : NULL);
    record->target = -1;
    record->target_x = 0.0f;
    record->entropy_dot = 0.0f;
    if (hp->kind == HEAD_TARGET) {
        int64_t at = hp->targets ? (int64_t)hp->targets[row] - begin : -1;
        if (at >= 0 && at < n) {
            record->target = begin + (int32_t)at;
            record->target_x = x[at];
        }
        if (hp->want_entropy) record->entropy_dot = head_entropy_dot(x, p, record->lse.max, n);
        if (hp->sets && hp->sets[row].n > 0) {
            int32_t first, held = ifl_kept_range(hp->sets[row], begin, begin + n, &first);
            float *to = ws->head_set_x + ws->head_set_begin[row] + first;
            for (int32_t i = 0; i < held; i++)
                to[i] = x[hp->sets[row].ids[first + i] - begin];
        }
    } else {
        int64_t at;
        if (hp->sampling[row].temperature > 0.0f) {
            ifl_rng_key key = hp->keys[row];
            key.purpose = IFL_RNG_SAMPLE_TOKEN;
            at = head_draw(p, n,
                           ifl_rng_uniform(&key, (uint64_t)hp->positions[row], (uint32_t)block));
        } else {
            at = head_argmax(x, n);
        }
        record->target = begin + (int32_t)at;
        record->target_x = x[at];
    }
    if (hp->n_top > 0)
        head_top_block(x, n, begin, hp->n_top,
                       ws->head_top + (row * ifl_vocab_blocks(ws->model) + block) * hp->n_top);
}

static void head_range(void *context, int64_t begin, int64_t end, int thread) {
    const head_pass *hp = context;
    ifl_workspace *ws = hp->ws;
    uint32_t rounding = ifl_rounding_enter();
    const ifl_model_config *c = &ws->model->config;
    int64_t d = c->d_model, ld = ws->head_tile_ld;
    int64_t n_tiles = (hp->n + ws->head_tile_rows - 1) / ws->head_tile_rows;
    float *x = ws->head_logits + (int64_t)thread * ws->head_tile_rows * ld;
    float *p = ws->head_p + (int64_t)thread * ld;
    const uint16_t *panels = ifl_weights_panels(hp->w, ws->model->head);
    for (int64_t task = begin; task < end; task++) {
        int64_t block = task / n_tiles, row = task % n_tiles * ws->head_tile_rows;
        int64_t rows = hp->n - row < ws->head_tile_rows ? hp->n - row : ws->head_tile_rows;
        int64_t first = block * IFL_VOCAB_BLOCK;
        int64_t n =
            c->vocab_size - first < IFL_VOCAB_BLOCK ? c->vocab_size - first : IFL_VOCAB_BLOCK;
        float *to = x;
        if (hp->kept && block < hp->kept->n_blocks)
            to = hp->kept->logits + (block * hp->kept->rows_max + row) * ld;
        ws->ops->matmul(to, ld, hp->hidden + row * d, d, panels + ifl_panel_row(first, d), rows, n,
                        d, 0, ifl_panels(n));
        for (int64_t i = 0; i < rows; i++)
            head_row_block(hp, (int32_t)(row + i), block, to + i * ld, p, n);
    }
    ifl_rounding_leave(rounding);
}

/* Checks the kept sets (they index memory from here on) and gives each its place. */
static ifl_status head_sets_prepare(const head_pass *hp, ifl_error *err) {
    ifl_workspace *ws = hp->ws;
    void *grown = ws->head_set_begin;
    IFL_TRY(ifl_grow(&grown, &ws->head_set_begin_cap, (size_t)hp->n + 1, sizeof(int64_t), err));
    ws->head_set_begin = grown;
    int64_t total = 0;
    for (int32_t i = 0; i < hp->n; i++) {
        ifl_kept_set set = hp->sets[i];
        ws->head_set_begin[i] = total;
        if (set.n == 0) continue;
        bool sound = set.n > 0 && set.n <= IFL_KEPT_SET_MAX && set.ids[0] >= 0 &&
                     set.ids[set.n - 1] < ws->model->config.vocab_size;
        for (int32_t j = 1; sound && j < set.n; j++)
            sound = set.ids[j] > set.ids[j - 1];
        int32_t first;
        if (!sound || ifl_kept_range(set, hp->targets[i], (int64_t)hp->targets[i] + 1, &first) != 1)
            return ifl_fail(err, IFL_FORMAT,
                            "log-prob: the kept set of row %d has %d tokens, wanted 1 to %d of the "
                            "vocabulary's, ascending, target %d among them",
                            i, set.n, IFL_KEPT_SET_MAX, hp->targets[i]);
        total += set.n;
    }
    ws->head_set_begin[hp->n] = total;
    grown = ws->head_set_x;
    IFL_TRY(ifl_grow(&grown, &ws->head_set_x_cap, (size_t)total + 1, sizeof(float), err));
    ws->head_set_x = grown;
    return IFL_OK;
}

static ifl_status head_run(head_pass *hp, ifl_error *err) {
    ifl_workspace *ws = hp->ws;
    if (hp->n < 0 || hp->n > ws->rows_max)
        return ifl_fail(err, IFL_LIMIT, "head: %d rows, the workspace holds %d", hp->n,
                        ws->rows_max);
    if (hp->n_top > 0) {
        size_t need = (size_t)hp->n * (size_t)ifl_vocab_blocks(ws->model) * (size_t)hp->n_top;
        void *grown = ws->head_top;
        IFL_TRY(ifl_grow(&grown, &ws->head_top_cap, need, sizeof *ws->head_top, err));
        ws->head_top = grown;
    }
    if (hp->sets) IFL_TRY(head_sets_prepare(hp, err));
    int64_t tiles = (hp->n + ws->head_tile_rows - 1) / ws->head_tile_rows;
    ifl_parallel_for(ws->pool, tiles * ifl_vocab_blocks(ws->model), 1, head_range, hp);
    return IFL_OK;
}

static ifl_lse head_merge(const ifl_workspace *ws, int32_t row) {
    int64_t n = ifl_vocab_blocks(ws->model);
    const ifl_head_block *records = &ws->head_blocks[row * n];
    ifl_lse blocks[IFL_VOCAB_MAX / IFL_VOCAB_BLOCK];
    for (int64_t b = 0; b < n; b++)
        blocks[b] = records[b].lse;
    return ws->ops->merge_lse(blocks, n);
}

ifl_status ifl_head_logprobs(ifl_workspace *ws, const ifl_weights *weights, const float *hidden,
                             int32_t n, const int32_t *targets, const float *temperature,
                             ifl_logprob *out, ifl_error *err) {
    return ifl_head_logprobs_keeping(ws, weights, hidden, n, targets, temperature, NULL, NULL, out,
                                     err);
}

ifl_status ifl_head_logprobs_kept(ifl_workspace *ws, const ifl_weights *weights,
                                  const float *hidden, int32_t n, const int32_t *targets,
                                  const float *temperature, const ifl_kept_set *kept,
                                  ifl_logprob *out, ifl_error *err) {
    return ifl_head_logprobs_keeping(ws, weights, hidden, n, targets, temperature, kept, NULL, out,
                                     err);
}

/* Log-prob and entropy over the kept set, from the x that the blocks have left. */
static void head_kept_logprob(const head_pass *hp, int32_t row, float target_x, ifl_logprob *out) {
    const ifl_ops *ops = hp->ws->ops;
    int32_t n = hp->sets[row].n;
    const float *x = hp->ws->head_set_x + hp->ws->head_set_begin[row];
    float p[IFL_KEPT_SET_MAX], log_sum;
    out->lse = kept_lse(ops, x, n);
    out->logprob = logprob_of(ops, target_x, out->lse);
    for (int32_t i = 0; i < n; i++)
        p[i] = x[i] - out->lse.max;
    ops->exp(p, p, n);
    double dot = 0.0;
    for (int32_t i = 0; i < n; i++)
        if (p[i] > 0.0f) dot += (double)p[i] * ((double)x[i] - (double)out->lse.max);
    ops->log(&log_sum, &out->lse.sum, 1);
    out->entropy = (float)((double)log_sum - dot / (double)out->lse.sum);
}

ifl_status ifl_head_logprobs_keeping(ifl_workspace *ws, const ifl_weights *weights,
                                     const float *hidden, int32_t n, const int32_t *targets,
                                     const float *temperature, const ifl_kept_set *sets,
                                     const ifl_kept_logits *kept, ifl_logprob *out,
                                     ifl_error *err) {
    for (int32_t i = 0; i < n; i++) {
        if (targets[i] < 0 || targets[i] >= ws->model->config.vocab_size)
            return ifl_fail(err, IFL_LIMIT, "log-prob: target %d of row %d, the vocabulary has %d",
                            targets[i], i, ws->model->config.vocab_size);
        if (temperature && !(temperature[i] > 0.0f))
            return ifl_fail(err, IFL_USAGE,
                            "log-prob: temperature %g of row %d, wanted more than 0",
                            (double)temperature[i], i);
    }
    head_pass hp = {.ws = ws,
                    .w = weights,
                    .hidden = hidden,
                    .n = n,
                    .kind = HEAD_TARGET,
                    .temperature = temperature,
                    .targets = targets,
                    .want_entropy = true,
                    .sets = sets,
                    .kept = kept};
    IFL_TRY(head_run(&hp, err));
    uint32_t rounding = ifl_rounding_enter();
    int64_t n_blocks = ifl_vocab_blocks(ws->model);
    for (int32_t i = 0; i < n; i++) {
        const ifl_head_block *records = &ws->head_blocks[i * n_blocks];
        ifl_lse lse = head_merge(ws, i);
        const ifl_head_block *hit = &records[targets[i] / IFL_VOCAB_BLOCK];
        out[i].lse = lse;
        out[i].logprob = logprob_of(ws->ops, hit->target_x, lse);
        /* H = log Z - sum p (x - m) / Z, each block's sums brought to the common maximum. */
        double dot = 0.0;
        for (int64_t b = 0; b < n_blocks; b++) {
            double shift = (double)records[b].lse.max - (double)lse.max;
            float c, x = (float)shift;
            ws->ops->exp(&c, &x, 1);
            dot +=
                (double)c * ((double)records[b].entropy_dot + shift * (double)records[b].lse.sum);
        }
        float log_sum;
        ws->ops->log(&log_sum, &lse.sum, 1);
        out[i].entropy = (float)((double)log_sum - dot / (double)lse.sum);
        out[i].full_logprob = out[i].logprob;
        if (sets && sets[i].n > 0) head_kept_logprob(&hp, i, hit->target_x, &out[i]);
    }
    ifl_rounding_leave(rounding);
    return IFL_OK;
}

/* Gathers the n_top best of a row over all blocks, best first; returns how many there are. */
static int32_t head_gather_top(const ifl_workspace *ws, int32_t row, int32_t n_top,
                               ifl_top_entry *out) {
    int64_t n_blocks = ifl_vocab_blocks(ws->model);
    ifl_top_entry *all = ws->head_top + row * n_blocks * n_top;
    int64_t held = 0;
    for (int64_t i = 0; i < n_blocks * n_top; i++)
        if (all[i].id >= 0) all[held++] = all[i];
    qsort(all, (size_t)held, sizeof *all, top_compare);
    if (held > n_top) held = n_top;
    memcpy(out, all, (size_t)held * sizeof *all);
    return (int32_t)held;
}

static int top_compare_ids(const void *a, const void *b) {
    int32_t x = ((const ifl_top_entry *)a)->id, y = ((const ifl_top_entry *)b)->id;
    return (x > y) - (x < y);
}

/* Truncated sampling: top-k, then top-p over what top-k left (renormalised), then one inverse-CDF
 * draw, best token first. The log-prob's sum runs over ascending ids, as the learner's does. */
static void head_sample_truncated(const head_pass *hp, int32_t row, ifl_lse lse, int32_t n_top,
                                  ifl_sample *out) {
    const ifl_ops *ops = hp->ws->ops;
    const ifl_sampling *s = &hp->sampling[row];
    ifl_top_entry top[IFL_TOP_K_MAX];
    float p[IFL_TOP_K_MAX];
    int32_t n = head_gather_top(hp->ws, row, n_top, top);
    if (s->top_k > 0 && n > s->top_k) n = s->top_k;
    for (int32_t i = 0; i < n; i++)
        p[i] = top[i].x - lse.max;
    ops->exp(p, p, n);
    float mass = lse.sum;
    if (s->top_k > 0) {
        mass = 0.0f;
        for (int32_t i = 0; i < n; i++)
            mass += p[i];
    }
    float kept = 0.0f;
    int32_t n_kept = 0;
    while (n_kept < n) {
        kept += p[n_kept++];
        if (s->top_p < 1.0f && kept >= s->top_p * mass) break;
    }
    ifl_rng_key key = hp->keys[row];
    key.purpose = IFL_RNG_SAMPLE_TOKEN;
    float goal = ifl_rng_uniform(&key, (uint64_t)hp->positions[row], 0xffffff) * kept, below = 0.0f;
    int32_t at = 0;
    for (; at + 1 < n_kept; at++) {
        below += p[at];
        if (below > goal) break;
    }
    ifl_top_entry drawn = top[at];
    float full = logprob_of(ops, drawn.x, lse);
    *out = (ifl_sample){.token = drawn.id, .logprob = full, .full_logprob = full};
    if (n_kept == hp->ws->model->config.vocab_size) return; /* nothing was left out */
    qsort(top, (size_t)n_kept, sizeof *top, top_compare_ids);
    int32_t *ids = hp->ws->head_set_ids + (int64_t)row * IFL_KEPT_SET_MAX;
    for (int32_t i = 0; i < n_kept; i++) {
        ids[i] = top[i].id;
        p[i] = top[i].x;
    }
    ifl_lse set = kept_lse(ops, p, n_kept);
    float log_kept, log_full;
    ops->log(&log_kept, &set.sum, 1);
    ops->log(&log_full, &lse.sum, 1);
    out->logprob = logprob_of(ops, drawn.x, set);
    out->log_kept =
        log_kept - log_full; /* the best token is kept: both sums are over one maximum */
    out->n_kept = n_kept;
    out->kept = ids;
}

ifl_status ifl_head_sample(ifl_workspace *ws, const ifl_weights *weights, const float *hidden,
                           int32_t n, const ifl_sampling *sampling, const ifl_rng_key *keys,
                           const int64_t *positions, ifl_sample *out, ifl_error *err) {
    int32_t n_top = 0;
    for (int32_t i = 0; i < n; i++) {
        const ifl_sampling *s = &sampling[i];
        if (!(s->temperature >= 0.0f) || s->top_k < 0 || s->top_k > IFL_TOP_K_MAX ||
            !(s->top_p > 0.0f))
            return ifl_fail(
                err, IFL_USAGE,
                "sampling: temperature %g, top_k %d, top_p %g; wanted >= 0, 0 to %d, above 0",
                (double)s->temperature, s->top_k, (double)s->top_p, IFL_TOP_K_MAX);
        if (s->temperature == 0.0f) continue;
        if (s->top_p < 1.0f && s->top_k == 0) n_top = IFL_TOP_K_MAX;
        if (s->top_k > n_top) n_top = s->top_k;
    }
    head_pass hp = {.ws = ws,
                    .w = weights,
                    .hidden = hidden,
                    .n = n,
                    .kind = HEAD_SAMPLE,
                    .sampling = sampling,
                    .keys = keys,
                    .positions = positions,
                    .n_top = n_top};
    IFL_TRY(head_run(&hp, err));
    if (n_top > 0) {
        void *grown = ws->head_set_ids;
        IFL_TRY(ifl_grow(&grown, &ws->head_set_ids_cap, (size_t)n * IFL_KEPT_SET_MAX,
                         sizeof *ws->head_set_ids, err));
        ws->head_set_ids = grown;
    }
    uint32_t rounding = ifl_rounding_enter();
    int64_t n_blocks = ifl_vocab_blocks(ws->model);
    for (int32_t i = 0; i < n; i++) {
        const ifl_head_block *records = &ws->head_blocks[i * n_blocks];
        ifl_lse lse = head_merge(ws, i);
        if (sampling[i].temperature > 0.0f && (sampling[i].top_k > 0 || sampling[i].top_p < 1.0f)) {
            head_sample_truncated(&hp, i, lse, n_top, &out[i]);
            continue;
        }
        int64_t block = 0;
        if (sampling[i].temperature > 0.0f) {
            float mass[IFL_VOCAB_MAX / IFL_VOCAB_BLOCK];
            for (int64_t b = 0; b < n_blocks; b++)
                mass[b] = records[b].lse.max - lse.max;
            ws->ops->exp(mass, mass, n_blocks);
            for (int64_t b = 0; b < n_blocks; b++)
                mass[b] *= records[b].lse.sum;
            ifl_rng_key key = keys[i];
            key.purpose = IFL_RNG_SAMPLE_BLOCK;
            if (n_blocks > 1)
                block = head_draw(mass, n_blocks, ifl_rng_uniform(&key, (uint64_t)positions[i], 0));
        } else {
            for (int64_t b = 1; b < n_blocks; b++)
                if (records[b].target_x > records[block].target_x) block = b;
        }
        float logprob = logprob_of(ws->ops, records[block].target_x, lse);
        out[i] = (ifl_sample){
            .token = records[block].target, .logprob = logprob, .full_logprob = logprob};
    }
    ifl_rounding_leave(rounding);
    return IFL_OK;
}

ifl_status ifl_head_top(ifl_workspace *ws, const ifl_weights *weights, const float *hidden,
                        int32_t n, int32_t k, int32_t *ids, float *logprobs, ifl_error *err) {
    if (k < 1 || k > IFL_TOP_K_MAX || k > ws->model->config.vocab_size)
        return ifl_fail(err, IFL_USAGE, "best tokens: %d wanted of %d, the limit is %d", k,
                        ws->model->config.vocab_size, IFL_TOP_K_MAX);
    head_pass hp = {
        .ws = ws, .w = weights, .hidden = hidden, .n = n, .kind = HEAD_TARGET, .n_top = k};
    IFL_TRY(head_run(&hp, err));
    for (int32_t i = 0; i < n; i++) {
        ifl_top_entry top[IFL_TOP_K_MAX];
        int32_t held = head_gather_top(ws, i, k, top);
        IFL_ASSERT(held == k);
        ifl_lse lse = head_merge(ws, i);
        for (int32_t j = 0; j < k; j++) {
            ids[(int64_t)i * k + j] = top[j].id;
            logprobs[(int64_t)i * k + j] = logprob_of(ws->ops, top[j].x, lse);
        }
    }
    return IFL_OK;
}

ifl_status ifl_head_logits(ifl_workspace *ws, const ifl_weights *weights, const float *hidden,
                           int32_t n, float *logits, ifl_error *err) {
    head_pass hp = {
        .ws = ws, .w = weights, .hidden = hidden, .n = n, .kind = HEAD_LOGITS, .logits = logits};
    return head_run(&hp, err);
}

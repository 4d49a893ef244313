/* Every op of a pass against its scalar definition, on the very arguments that the pass gives it: a
 * table whose entries run the ops under test and then the reference on samples of rows and columns.
 * It holds kernels to their order at a model's own widths, where the whole model would be too slow
 * for the reference, and sees what a later rounding to bf16 would hide from the log-probs. */
#include <math.h>
#include <string.h>

#include "actor/parity_internal.h"
#include "common/memory.h"

enum { WIDEST = 1 << 15 }; /* floats of one row that is compared */

/* One at a time, one thread. */
static struct {
    parity *p;
    const ifl_ops *ops, *ref;
    float *before, *want; /* [WIDEST] */
} under_test;

static void compare(const char *op, const float *got, const float *want, int64_t n) {
    parity *p = under_test.p;
    int64_t differing = 0, at = 0;
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0 && !(isnan(got[i]) && isnan(want[i])))
            if (differing++ == 0) at = i;
    ifl_parity_count(p, n, differing);
    char *first = differing ? ifl_parity_first(p) : NULL;
    if (first)
        snprintf(first, sizeof p->report->rows[0].first, "%s, %lld of %lld: %.9g, defined as %.9g",
                 op, (long long)at, (long long)n, (double)got[at], (double)want[at]);
}

static int64_t clipped(int64_t n) {
    return n < WIDEST ? n : WIDEST;
}

/* The first, the middle and the last of n, each once. */
static int samples_of(int64_t n, int64_t out[3]) {
    int count = 0;
    const int64_t wanted[] = {0, n / 2, n - 1};
    for (int i = 0; i < 3; i++)
        if (wanted[i] >= 0 && (count == 0 || out[count - 1] < wanted[i])) out[count++] = wanted[i];
    return count;
}

static void defined_matmul(float *y, int64_t ldy, const float *x, int64_t ldx,
                           const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                           int64_t panel_begin, int64_t panel_end) {
    int64_t rows[3], panels[3];
    int n_rows = samples_of(m, rows), n_panels = samples_of(panel_end - panel_begin, panels);
    under_test.ops->matmul(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
    for (int a = 0; a < n_rows; a++)
        for (int b = 0; b < n_panels; b++) {
            int64_t panel = panel_begin + panels[b], column = panel * IFL_PANEL;
            int64_t width = n - column < IFL_PANEL ? n - column : IFL_PANEL;
            if (width <= 0) continue;
            under_test.ref->matmul(under_test.want, IFL_PANEL, x + rows[a] * ldx, ldx,
                                   w_panels + panel * ifl_panel_elements(k), 1, width, k, 0, 1);
            compare("matmul", y + rows[a] * ldy + column, under_test.want, width);
        }
}

static void defined_rmsnorm(float *y, int64_t ldy, const float *x, int64_t ldx, const float *w,
                            float offset, float eps, int64_t m, int64_t n, float *r) {
    if (n > WIDEST) {
        under_test.ops->rmsnorm(y, ldy, x, ldx, w, offset, eps, m, n, r);
        return;
    }
    memcpy(under_test.before, x + (m - 1) * ldx, (size_t)n * sizeof *x); /* y may be x */
    under_test.ops->rmsnorm(y, ldy, x, ldx, w, offset, eps, m, n, r);
    float want_r;
    under_test.ref->rmsnorm(under_test.want, n, under_test.before, n, w, offset, eps, 1, n,
                            &want_r);
    compare("rmsnorm", y + (m - 1) * ldy, under_test.want, n);
    if (r) compare("rmsnorm's factor", r + m - 1, &want_r, 1);
}

static void defined_rope(float *x, int64_t ldx, const float *cosines, const float *sines, int64_t m,
                         int64_t head_dim) {
    memcpy(under_test.want, x, (size_t)head_dim * sizeof *x);
    under_test.ops->rope(x, ldx, cosines, sines, m, head_dim);
    under_test.ref->rope(under_test.want, head_dim, cosines, sines, 1, head_dim);
    compare("rope", x, under_test.want, head_dim);
}

static void defined_silu_mul(float *y, const float *gate, const float *up, int64_t n) {
    under_test.ref->silu_mul(under_test.want, gate, up, clipped(n)); /* before: y may be gate */
    under_test.ops->silu_mul(y, gate, up, n);
    compare("silu_mul", y, under_test.want, clipped(n));
}

static void defined_gelu_mul(float *y, const float *gate, const float *up, int64_t n) {
    under_test.ref->gelu_mul(under_test.want, gate, up, clipped(n));
    under_test.ops->gelu_mul(y, gate, up, n);
    compare("gelu_mul", y, under_test.want, clipped(n));
}

static void defined_round(float *x, int64_t n) {
    memcpy(under_test.want, x, (size_t)clipped(n) * sizeof *x);
    under_test.ops->round(x, n);
    under_test.ref->round(under_test.want, clipped(n));
    compare("round", x, under_test.want, clipped(n));
}

static void defined_attention(float *const *o, const float *const *q, const int32_t *pos,
                              int64_t n_rows, const ifl_kv_view *view, int64_t head_dim,
                              float scale, int32_t window, ifl_lse *lse) {
    int64_t rows[3];
    int n = samples_of(n_rows, rows);
    under_test.ops->attention(o, q, pos, n_rows, view, head_dim, scale, window, lse);
    for (int i = 0; i < n; i++) {
        ifl_lse want_lse;
        under_test.ref->attention(&under_test.want, &q[rows[i]], &pos[rows[i]], 1, view, head_dim,
                                  scale, window, &want_lse);
        compare("attention", o[rows[i]], under_test.want, head_dim);
        if (lse) compare("attention's log-sum-exp", &lse[rows[i]].max, &want_lse.max, 2);
    }
}

static void defined_temper(float *y, const float *x, float temperature, float softcap, int64_t n) {
    under_test.ref->temper(under_test.want, x, temperature, softcap, clipped(n));
    under_test.ops->temper(y, x, temperature, softcap, n);
    compare("temper", y, under_test.want, clipped(n));
}

static ifl_lse defined_block_lse(const float *x, int64_t n, float *p) {
    ifl_lse got = under_test.ops->block_lse(x, n, p);
    ifl_lse want = under_test.ref->block_lse(x, n, under_test.want);
    compare("block_lse", &got.max, &want.max, 2);
    if (p) compare("block_lse's p", p, under_test.want, n);
    return got;
}

static ifl_lse defined_merge_lse(const ifl_lse *blocks, int64_t n) {
    ifl_lse got = under_test.ops->merge_lse(blocks, n), want = under_test.ref->merge_lse(blocks, n);
    compare("merge_lse", &got.max, &want.max, 2);
    return got;
}

static void defined_log(float *y, const float *x, int64_t n) {
    under_test.ref->log(under_test.want, x, clipped(n));
    under_test.ops->log(y, x, n);
    compare("log", y, under_test.want, clipped(n));
}

static void defined_matmul_f32(float *c, int64_t ldc, const float *a, int64_t a_row, int64_t a_col,
                               const float *b_panels, int64_t m, int64_t n, int64_t k,
                               int64_t panel_begin, int64_t panel_end, bool accumulate) {
    int64_t rows[3], column = panel_begin * IFL_PANEL;
    int64_t width = n - column < IFL_PANEL ? n - column : IFL_PANEL;
    int n_rows = panel_end > panel_begin ? samples_of(m, rows) : 0;
    for (int i = 0; i < n_rows; i++)
        memcpy(under_test.before + i * IFL_PANEL, c + rows[i] * ldc + column,
               (size_t)width * sizeof *c);
    under_test.ops->matmul_f32(c, ldc, a, a_row, a_col, b_panels, m, n, k, panel_begin, panel_end,
                               accumulate);
    for (int i = 0; i < n_rows; i++) {
        float *want = under_test.before + i * IFL_PANEL;
        under_test.ref->matmul_f32(want, IFL_PANEL, a + rows[i] * a_row, a_row, a_col,
                                   b_panels + panel_begin * k * IFL_PANEL, 1, width, k, 0, 1,
                                   accumulate);
        compare("matmul_f32", c + rows[i] * ldc + column, want, width);
    }
}

static ifl_ops defined_table(parity *p) {
    ifl_ops t = *p->ops;
    under_test.p = p;
    under_test.ops = p->ops;
    under_test.ref = ifl_ops_ref(p->model->numerics);
    t.matmul = defined_matmul;
    t.rmsnorm = defined_rmsnorm;
    t.rope = defined_rope;
    t.silu_mul = defined_silu_mul;
    t.gelu_mul = defined_gelu_mul;
    t.round = defined_round;
    t.attention = defined_attention;
    t.temper = defined_temper;
    t.block_lse = defined_block_lse;
    t.merge_lse = defined_merge_lse;
    t.log = defined_log;
    t.matmul_f32 = defined_matmul_f32;
    return t;
}

/* Forward and backward of the sequence under test, as one pack. */
static ifl_status definition_run(parity *p, const ifl_ops *table, ifl_error *err) {
    int32_t n = p->n_tokens - 1;
    ifl_trainer *trainer;
    ifl_batch_seq seq = {0, n, 0, p->iota};
    ifl_pack pack = {n, 1, n, p->tokens, &seq, p->iota, p->tokens + 1, p->ones, NULL};
    IFL_TRY(ifl_trainer_create(&trainer, p->model, n, IFL_ACTIVATION_BYTES, NULL, table, err));
    ifl_status st = ifl_trainer_forward(trainer, p->weights, &pack, p->logprobs, err);
    if (st == IFL_OK) st = ifl_trainer_backward(trainer, p->weights, &pack, p->ones, err);
    ifl_trainer_free(trainer);
    return st;
}

ifl_status ifl_parity_check_definition(parity *p, ifl_error *err) {
    ifl_ops table = defined_table(p);
    ifl_parity_begin(p, "every op of a pass, by its definition");
    under_test.before = ifl_alloc(WIDEST, sizeof *under_test.before);
    under_test.want = ifl_alloc(WIDEST, sizeof *under_test.want);
    ifl_status st = under_test.before && under_test.want
                        ? definition_run(p, &table, err)
                        : ifl_fail(err, IFL_NOMEM, "parity: out of memory");
    ifl_free(under_test.want);
    ifl_free(under_test.before);
    return st;
}

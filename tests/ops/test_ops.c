/* Every op, every implementation that this host can run, against `ref`: byte for byte, over random
 * shapes and values, under the default and under a poisoned MXCSR. One table; the last tests prove
 * that it would notice a changed order. */
#include "ops_testing.h"
#include "tests/golden_bits.h"

#include <math.h>

/* A case draws its shapes and inputs from `rng` (the same for every implementation), runs the op,
 * and puts all it may have written, guard zones included, into the sink. */
typedef void (*op_case_fn)(const ifl_ops *ops, testing_rng *rng, testing_sink *sink);

enum { GUARD = 8 }; /* floats behind an output that nobody may touch */

static const int64_t edge_rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 31, 33, 64, 70};
static const int64_t edge_sizes[] = {1,  2,  7,  15, 16, 17,  31,  32, 33,
                                     48, 63, 64, 65, 96, 100, 128, 160};
#define PICK(rng, table) (table)[testing_below(rng, (int64_t)(sizeof(table) / sizeof *(table)))]

/* --- Matrix products ------------------------------------------------------------------------- */

static void case_matmul(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t m = testing_below(rng, 2) ? testing_below(rng, 9) : PICK(rng, edge_rows);
    int64_t n = PICK(rng, edge_sizes);
    int64_t k =
        testing_below(rng, 8) == 0 ? testing_between(rng, 500, 1030) : PICK(rng, edge_sizes);
    if (testing_below(rng, 20) == 0) k = 0;
    int64_t ldx = k + testing_below(rng, 3), ldy = n + testing_below(rng, 5);
    testing_kind kind = testing_any_kind(rng);
    uint16_t *w = testing_bf16(rng, n * k, kind == KIND_TINY ? KIND_PLAIN : kind);
    uint16_t *panels = malloc((size_t)ifl_panels_elements(n, k + 1) * sizeof *panels);
    assert_non_null(panels);
    ifl_pack_bf16(panels, w, n, k);
    float *x = testing_floats(rng, m * ldx + 1, kind);
    if (m > 1 && testing_below(rng, 3) == 0) /* a neighbour of NaNs and infinities */
        for (int64_t c = 0; c < k; c++)
            x[ldx + c] = c % 2 ? NAN : INFINITY;
    ops->round(x, m * ldx + 1);
    float *y = testing_floats(rng, m * ldy + GUARD, KIND_PLAIN);
    int64_t begin = testing_below(rng, ifl_panels(n)),
            end = testing_between(rng, begin, ifl_panels(n));
    if (testing_below(rng, 2)) begin = 0, end = ifl_panels(n);
    TESTING_CALL(sink, ops->matmul(y, ldy, x, ldx, panels, m, n, k, begin, end));
    testing_sink_floats(sink, y, m * ldy + GUARD);
    free(w);
    free(panels);
    free(x);
    free(y);
}

static void case_matmul_f32(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t m = testing_below(rng, 8) ? PICK(rng, edge_rows) : testing_between(rng, 90, 200);
    int64_t n = PICK(rng, edge_sizes);
    int64_t k = testing_below(rng, 8) == 0 ? testing_between(rng, 250, 530) : PICK(rng, edge_sizes);
    if (testing_below(rng, 20) == 0) k = 0;
    int64_t ldc = n + testing_below(rng, 5), pad = testing_below(rng, 3);
    bool transposed = testing_below(rng, 2), accumulate = testing_below(rng, 2);
    int64_t a_row = transposed ? 1 : k + pad, a_col = transposed ? m + pad : 1;
    testing_kind kind = testing_any_kind(rng);
    float *a = testing_floats(rng, m * (k + pad) + k * (m + pad) + 1, kind);
    float *b = testing_floats(rng, k * n, kind == KIND_TINY ? KIND_PLAIN : kind);
    float *panels = testing_floats(rng, ifl_panels(n) * k * IFL_PANEL, KIND_PLAIN);
    float *c = testing_floats(rng, m * ldc + GUARD, kind);
    TESTING_CALL(sink, ops->pack_f32(panels, b, n, k, n, 0, ifl_panels(n)));
    int64_t begin = testing_below(rng, ifl_panels(n)),
            end = testing_between(rng, begin, ifl_panels(n));
    if (testing_below(rng, 2)) begin = 0, end = ifl_panels(n);
    TESTING_CALL(sink,
                 ops->matmul_f32(c, ldc, a, a_row, a_col, panels, m, n, k, begin, end, accumulate));
    testing_sink_floats(sink, c, m * ldc + GUARD);
    free(a);
    free(b);
    free(panels);
    free(c);
}

static void case_packing(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t n = PICK(rng, edge_sizes), k = PICK(rng, edge_sizes), ldb = n + k;
    int64_t panels = ifl_panels(n), begin = testing_below(rng, panels);
    int64_t end = testing_between(rng, begin, panels);
    float *b = testing_floats(rng, (n > k ? n : k) * ldb, KIND_WILD);
    float *out = testing_floats(rng, panels * k * IFL_PANEL + GUARD, KIND_PLAIN);
    TESTING_CALL(sink, ops->pack_f32(out, b, ldb, k, n, begin, end));
    testing_sink_floats(sink, out, panels * k * IFL_PANEL + GUARD);
    TESTING_CALL(sink, ops->pack_f32_transposed(out, b, ldb, k, n, begin, end));
    testing_sink_floats(sink, out, panels * k * IFL_PANEL + GUARD);
    free(out);

    uint16_t *w = testing_bf16(rng, n * k, KIND_WILD);
    uint16_t *w_panels = malloc((size_t)ifl_panels_elements(n, k) * sizeof *w_panels);
    assert_non_null(w_panels);
    ifl_pack_bf16(w_panels, w, n, k);
    int64_t n_begin = testing_below(rng, panels) * IFL_PANEL,
            n_end = testing_between(rng, n_begin, n);
    int64_t k_panels = ifl_panels(k), depth = n_end - n_begin;
    out = testing_floats(rng, k_panels * depth * IFL_PANEL + GUARD, KIND_PLAIN);
    begin = testing_below(rng, k_panels);
    end = testing_between(rng, begin, k_panels);
    TESTING_CALL(sink, ops->unpack_for_dx(out, w_panels, n, k, n_begin, n_end, begin, end));
    testing_sink_floats(sink, out, k_panels * depth * IFL_PANEL + GUARD);
    free(b);
    free(out);
    free(w);
    free(w_panels);
}

/* --- Rows ------------------------------------------------------------------------------------ */

static void case_rmsnorm(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t m = testing_between(rng, 1, 4), n = PICK(rng, edge_sizes),
            ld = n + testing_below(rng, 3);
    float offset = testing_below(rng, 2) ? 1.0f : 0.0f, eps = 1e-6f;
    float *x = testing_floats(rng, m * ld, testing_any_kind(rng));
    float *w = testing_floats(rng, n, KIND_PLAIN), *dy = testing_floats(rng, m * ld, KIND_PLAIN);
    float *y = testing_floats(rng, m * ld + GUARD, KIND_PLAIN),
          *r = testing_floats(rng, m, KIND_PLAIN);
    float *dw = testing_floats(rng, n, KIND_PLAIN);
    bool accumulate = testing_below(rng, 2), in_place = testing_below(rng, 4) == 0;
    TESTING_CALL(sink, ops->rmsnorm(y, ld, x, ld, w, offset, eps, m, n, r));
    testing_sink_floats(sink, y, m * ld + GUARD);
    testing_sink_floats(sink, r, m);
    TESTING_CALL(sink, ops->rmsnorm_backward(y, ld, testing_below(rng, 2) ? dw : NULL, dy, ld, x,
                                             ld, w, offset, r, m, n, accumulate));
    testing_sink_floats(sink, y, m * ld + GUARD);
    testing_sink_floats(sink, dw, n);
    if (in_place) {
        TESTING_CALL(sink, ops->rmsnorm(x, ld, x, ld, w, offset, eps, m, n, NULL));
        testing_sink_floats(sink, x, m * ld);
    }
    free(x);
    free(w);
    free(dy);
    free(y);
    free(r);
    free(dw);
}

static void case_rope(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t m = testing_between(rng, 1, 5), d = 2 * testing_between(rng, 1, 70), ld = d + GUARD;
    float *x = testing_floats(rng, m * ld, testing_any_kind(rng));
    float *c = testing_floats(rng, d / 2, KIND_PLAIN), *s = testing_floats(rng, d / 2, KIND_PLAIN);
    TESTING_CALL(sink, ops->rope(x, ld, c, s, m, d));
    testing_sink_floats(sink, x, m * ld);
    free(x);
    free(c);
    free(s);
}

static void case_elementwise(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t n = PICK(rng, edge_sizes);
    testing_kind kind = testing_any_kind(rng);
    float *a = testing_floats(rng, n, kind), *b = testing_floats(rng, n, testing_any_kind(rng));
    float *d = testing_floats(rng, n, KIND_PLAIN);
    float *y = testing_floats(rng, n + GUARD, KIND_PLAIN),
          *z = testing_floats(rng, n + GUARD, kind);
    float gain = testing_below(rng, 2) ? 1.0f : 12.0f, factor = testing_uniform(rng);
    if (kind == KIND_PLAIN)
        for (int64_t i = 0; i < n; i++)
            a[i] *= gain;
    if (testing_below(rng, 3) == 0)
        a[testing_below(rng, n)] = testing_below(rng, 2) ? NAN : -INFINITY;
#define THEN_SINK(call)                                                                            \
    do {                                                                                           \
        TESTING_CALL(sink, call);                                                                  \
        testing_sink_floats(sink, y, n + GUARD);                                                   \
        testing_sink_floats(sink, z, n + GUARD);                                                   \
    } while (0)
    THEN_SINK(ops->silu_mul(y, a, b, n));
    THEN_SINK(ops->gelu_mul(y, a, b, n));
    THEN_SINK(ops->silu_mul_backward(y, z, d, a, b, n));
    THEN_SINK(ops->gelu_mul_backward(y, z, d, a, b, n));
    THEN_SINK(ops->add(y, a, n));
    THEN_SINK(ops->scale(y, a, factor, n));
    THEN_SINK(ops->temper(y, a, 0.7f, 0.0f, n));
    THEN_SINK(ops->temper(y, a, 1.0f, 30.0f, n));
    THEN_SINK(ops->temper(z, z, 1.0f, 0.0f, n));
    THEN_SINK(ops->exp(y, a, n));
    THEN_SINK(ops->log(y, a, n));
    THEN_SINK(ops->add_bias(y, n / 2 + 1, b, 2, n / 2));
#undef THEN_SINK
    double squares;
    TESTING_CALL(sink, squares = ops->sum_squares(b, n));
    testing_sink_put(sink, &squares, sizeof squares);
    free(a);
    free(b);
    free(d);
    free(y);
    free(z);
}

static void case_lse(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t n = testing_below(rng, 10) ? PICK(rng, edge_sizes) : IFL_VOCAB_BLOCK;
    float *x = testing_floats(rng, n, testing_any_kind(rng)),
          *p = testing_floats(rng, n + GUARD, 0);
    float spread = testing_below(rng, 2) ? 1.0f : 90.0f;
    for (int64_t i = 0; i < n; i++)
        x[i] *= spread;
    ifl_lse blocks[3];
    for (int b = 0; b < 3; b++) {
        TESTING_CALL(sink, blocks[b] = ops->block_lse(x, n, b == 1 ? NULL : p));
        testing_sink_floats(sink, &blocks[b].max, 2);
        testing_sink_floats(sink, p, n + GUARD);
        for (int64_t i = 0; i < n; i++)
            x[i] += testing_uniform(rng);
    }
    ifl_lse all;
    TESTING_CALL(sink, all = ops->merge_lse(blocks, testing_between(rng, 1, 3)));
    testing_sink_floats(sink, &all.max, 2);
    TESTING_CALL(sink, ops->logprob_backward(p, x, 0.3f, all, testing_between(rng, -2, n + 2), n));
    testing_sink_floats(sink, p, n + GUARD);
    TESTING_CALL(sink, ops->logprob_backward(x, x, -1.5f, all, testing_below(rng, n), n));
    testing_sink_floats(sink, x, n);
    float *dp = testing_floats(rng, n, KIND_PLAIN);
    TESTING_CALL(sink, ops->softmax_backward(p, dp, x, dp, 0.25f, all, 0.1f, n));
    testing_sink_floats(sink, p, n + GUARD);
    testing_sink_floats(sink, dp, n);
    free(x);
    free(p);
    free(dp);
}

static void case_adamw(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t n = PICK(rng, edge_sizes);
    float *w = testing_floats(rng, n, KIND_PLAIN), *m = testing_floats(rng, n, KIND_PLAIN);
    float *v = testing_floats(rng, n, KIND_PLAIN),
          *g = testing_floats(rng, n, testing_any_kind(rng));
    uint16_t *b = testing_bf16(rng, n + GUARD, KIND_PLAIN);
    for (int64_t i = 0; i < n; i++)
        v[i] = fabsf(v[i]) * 1e-3f;
    for (int step = 1; step < 3; step++) {
        TESTING_CALL(sink,
                     ops->adamw(w, m, v, testing_below(rng, 4) ? b : NULL, g, 0.5f, 1e-2f, 0.9f,
                                0.999f, 1e-8f, 0.1f, 0.1f * (float)step, 1e-3f * (float)step, n));
        testing_sink_floats(sink, w, n);
        testing_sink_floats(sink, m, n);
        testing_sink_floats(sink, v, n);
        testing_sink_put(sink, b, (size_t)(n + GUARD) * sizeof *b);
    }
    free(w);
    free(m);
    free(v);
    free(g);
    free(b);
}

static void case_round(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    int64_t n = testing_between(rng, 1, 70);
    float *x = testing_floats(rng, n + GUARD, testing_any_kind(rng));
    static const uint32_t edges[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x7f7fffff, 0x7f7f8000,
                                     0x7f800001, 0xffc12345, 0x007fffff, 0x80000001, 0x00008000};
    for (int i = 0; i < 10; i++) /* ties, overflow, NaNs, denormals */
        if (i < n) memcpy(&x[testing_below(rng, n)], &edges[i], sizeof edges[i]);
    TESTING_CALL(sink, ops->round(x, n));
    testing_sink_put(sink, x, (size_t)(n + GUARD) * sizeof *x);
    free(x);
}

/* --- Attention ------------------------------------------------------------------------------- */

/* One sequence of n_tokens keys in shuffled pages; every slot that no key fills holds NaN. */
static void attention_run(const ifl_ops *ops, testing_rng *rng, testing_sink *sink, int64_t n_rows,
                          const int32_t *pos, int64_t n_tokens, int64_t head_dim,
                          int32_t page_tokens, int32_t window, testing_kind kind, int64_t nan_key) {
    int64_t n_pages = (n_tokens + page_tokens - 1) / page_tokens + 2;
    int64_t half = page_tokens * head_dim, stride = 2 * half + testing_below(rng, 2) * 16;
    float *store = malloc((size_t)(n_pages * stride) * sizeof *store);
    int32_t *pages = malloc((size_t)n_pages * sizeof *pages);
    assert_non_null(store);
    assert_non_null(pages);
    for (int64_t i = 0; i < n_pages * stride; i++)
        store[i] = NAN;
    for (int64_t i = 0; i < n_pages; i++)
        pages[i] = (int32_t)i;
    for (int64_t i = n_pages - 1; i > 0; i--) {
        int64_t j = testing_below(rng, i + 1);
        int32_t swap = pages[i];
        pages[i] = pages[j];
        pages[j] = swap;
    }
    ifl_kv_view view = {store, (char *)store + half * ifl_kv_element_bytes(ops->profile), stride,
                        pages, page_tokens};
    float *k = testing_floats(rng, head_dim, kind), *v = testing_floats(rng, head_dim, kind);
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t d = 0; d < head_dim; d++) {
            k[d] = testing_value(rng, kind);
            v[d] = t == nan_key ? NAN : testing_value(rng, kind);
        }
        ops->round(k, head_dim);
        ops->round(v, head_dim);
        TESTING_CALL(sink, ops->kv_store(&view, t, k, v, head_dim));
    }
    float *q = testing_floats(rng, n_rows * head_dim, KIND_PLAIN);
    ops->round(q, n_rows * head_dim);
    float *o = testing_floats(rng, n_rows * (head_dim + GUARD), KIND_PLAIN);
    ifl_lse *lse = calloc((size_t)n_rows, sizeof *lse);
    assert_non_null(lse);
    const float *q_rows[IFL_ATTENTION_ROWS_MAX];
    float *o_rows[IFL_ATTENTION_ROWS_MAX];
    for (int64_t r = 0; r < n_rows; r++) {
        q_rows[r] = q + ((r * 7) % n_rows == r ? r : n_rows - 1 - r) * head_dim;
        o_rows[r] = o + r * (head_dim + GUARD);
    }
    float scale = testing_below(rng, 2) ? 1.0f : 0.1767767f;
    TESTING_CALL(sink, ops->attention(o_rows, q_rows, pos, n_rows, &view, head_dim, scale, window,
                                      testing_below(rng, 4) ? lse : NULL));
    testing_sink_floats(sink, o, n_rows * (head_dim + GUARD));
    testing_sink_floats(sink, &lse[0].max, 2 * n_rows);
    free(store);
    free(pages);
    free(k);
    free(v);
    free(q);
    free(o);
    free(lse);
}

static void case_attention(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    static const int64_t head_dims[] = {2, 8, 16, 16, 24, 32, 32, 48, 64, 80};
    static const int32_t page_sizes[] = {1, 1, 2, 8, 16, 16, 32, 128};
    static const int32_t edges[] = {0,   1,   15,  16,  17,  40,  127, 254,
                                    255, 256, 257, 300, 511, 512, 530};
    static const int32_t windows[] = {0, 0, 1, 3, 17, 64, 255, 256, 300, 1000};
    int64_t n_rows =
        testing_below(rng, 2) ? testing_between(rng, 1, 8) : testing_between(rng, 1, 40);
    int32_t base = PICK(rng, edges), pos[IFL_ATTENTION_ROWS_MAX], last = 0;
    int64_t shape = testing_below(rng, 3);
    for (int64_t r = 0; r < n_rows; r++) {
        pos[r] = shape == 0 ? base : base + (int32_t)(shape == 1 ? r / 2 : testing_below(rng, 300));
        if (pos[r] > last) last = pos[r];
    }
    testing_kind kind = testing_any_kind(rng);
    int64_t nan_key = testing_below(rng, 4) == 0 ? testing_below(rng, last + 1) : -1;
    attention_run(ops, rng, sink, n_rows, pos, last + 1, PICK(rng, head_dims),
                  PICK(rng, page_sizes), PICK(rng, windows), kind, nan_key);
}

/* More scores than the scratch holds: groups of rows, then scores computed twice; the widest head.
 */
static void case_attention_large(const ifl_ops *ops, testing_rng *rng, testing_sink *sink) {
    static const struct {
        int64_t n_rows;
        int32_t last, page_tokens;
        int64_t head_dim;
    } sizes[] = {{64, 1400, 16, 8}, {64, 5000, 1, 4}, {2, 34000, 128, 4},
                 {1, 66500, 16, 4}, {64, 70, 1, 512}, {5, 260, 16, 512}};
    int64_t which = testing_below(rng, (int64_t)(sizeof sizes / sizeof *sizes));
    int32_t pos[IFL_ATTENTION_ROWS_MAX];
    for (int64_t r = 0; r < sizes[which].n_rows; r++)
        pos[r] = sizes[which].last - (int32_t)(sizes[which].n_rows - 1 - r);
    attention_run(ops, rng, sink, sizes[which].n_rows, pos, sizes[which].last + 1,
                  sizes[which].head_dim, sizes[which].page_tokens, 0, KIND_PLAIN, -1);
}

/* --- The table ------------------------------------------------------------------------------- */

static const struct op_case {
    const char *name;
    op_case_fn run;
    int n_seeds;
    bool differs_by_profile;
} op_cases[] = {
    {"matmul", case_matmul, 300, true},
    {"matmul_f32", case_matmul_f32, 200, false},
    {"packing", case_packing, 200, false},
    {"rmsnorm", case_rmsnorm, 300, false},
    {"rope", case_rope, 100, false},
    {"round", case_round, 100, true},
    {"elementwise", case_elementwise, 300, false},
    {"lse", case_lse, 200, false},
    {"adamw", case_adamw, 100, false},
    {"attention", case_attention, 120, true},
    {"attention_large", case_attention_large, 12, true},
};
enum { N_CASES = sizeof op_cases / sizeof *op_cases };

const ifl_ops *testing_ops_dot_emulated(void); /* dot_emulated.c */
const ifl_ops *testing_ops_amx_emulated(void); /* amx_emulated.c */

/* All that this host can run, in both profiles, and the emulated ones. */
static int list_both(const ifl_ops *out[16]) {
    int n = ifl_ops_list(IFL_PROFILE_F32, out, 7);
    n += ifl_ops_list(IFL_PROFILE_BF16, out + n, 7);
#if defined(__x86_64__) /* it flushes by MXCSR */
    out[n++] = testing_ops_dot_emulated();
#endif
    out[n++] = testing_ops_amx_emulated();
    return n;
}

/* Number of seeds on which `ops` differs from `ref`; the first is reported when `report`. */
static int count_differences(const ifl_ops *ops, const struct op_case *op, int n_seeds,
                             bool report) {
    testing_sink want = {0}, got = {0};
    int differing = 0;
    for (int seed = 0; seed < n_seeds; seed++) {
        testing_rng rng = {(uint64_t)seed};
        want.n = 0;
        op->run(ifl_ops_ref(ops->profile), &rng, &want);
        for (int environment = 0; environment < TESTING_ENVIRONMENTS; environment++) {
            rng.state = (uint64_t)seed;
            got.n = 0;
            got.environment = environment;
            op->run(ops, &rng, &got);
            int64_t at = testing_sink_difference(&want, &got);
            if (at < 0) continue;
            differing++;
            if (report && differing == 1)
                print_error(
                    "%s, profile %d, %s, seed %d, environment %d: word %lld of %zu differs\n",
                    ops->name, (int)ops->profile, op->name, seed, environment, (long long)at,
                    want.n / 4);
            break;
        }
    }
    free(want.bytes);
    free(got.bytes);
    return differing;
}

static void test_every_implementation_has_the_bits_of_ref(void **state) {
    (void)state;
    const ifl_ops *all[16];
    int n = list_both(all), differing = 0;
    assert_true(n >= 4);
    for (int i = 0; i < n; i++) /* ref too: under the poisoned environment */
        for (int c = 0; c < N_CASES; c++)
            if (all[i]->profile == IFL_PROFILE_F32 || op_cases[c].differs_by_profile)
                differing += count_differences(all[i], &op_cases[c], op_cases[c].n_seeds, true);
    assert_int_equal(differing, 0);
}

/* --- Hosts of other kinds have the same bits ----------------------------------------------------
 */

/* The best implementation, which the test above has held against the reference here. */
static void test_the_bits_are_those_of_other_hosts(void **state) {
    (void)state;
    testing_sink got = {0};
    int differing = 0;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int c = 0; c < N_CASES; c++) {
            if (profile != IFL_PROFILE_F32 && !op_cases[c].differs_by_profile) continue;
            char key[96];
            got.n = 0;
            for (int seed = 0; seed < op_cases[c].n_seeds; seed++) {
                testing_rng rng = {(uint64_t)seed};
                op_cases[c].run(ifl_ops_best((ifl_profile)profile), &rng, &got);
            }
            snprintf(key, sizeof key, "op %s %s", ifl_profile_name((ifl_profile)profile),
                     op_cases[c].name);
            differing += golden_bits_differ(key, ifl_hash_bytes(got.bytes, got.n));
        }
    free(got.bytes);
    assert_int_equal(differing, 0);
}

/* --- Rows don't know their neighbours -------------------------------------------------------- */

static void test_a_row_has_the_same_bits_for_every_number_of_rows(void **state) {
    (void)state;
    enum { ROWS = 70, N = 80, K = 530 };
    testing_rng rng = {1};
    float *plain = testing_floats(&rng, ROWS * K, KIND_PLAIN);
    uint16_t *w = testing_bf16(&rng, N * K, KIND_PLAIN);
    uint16_t *panels = calloc((size_t)ifl_panels_elements(N, K), sizeof *panels);
    float *alone = malloc(sizeof(float[ROWS * N])), *together = malloc(sizeof(float[ROWS * N]));
    assert_true(panels && alone && together);
    ifl_pack_bf16(panels, w, N, K);
    const ifl_ops *all[16];
    int n = list_both(all);
    float *rounded = malloc(sizeof(float[ROWS * K]));
    assert_non_null(rounded);
    memcpy(rounded, plain, sizeof(float[ROWS * K]));
    ifl_ops_best(IFL_PROFILE_BF16)->round(rounded, ROWS * K);
    for (int i = 0; i < n; i++) {
        if (strcmp(all[i]->name, "ref") == 0) continue; /* has only one way */
        const float *x = all[i]->profile == IFL_PROFILE_BF16 ? rounded : plain;
        for (int r = 0; r < ROWS; r++)
            all[i]->matmul(alone + r * N, N, x + r * K, K, panels, 1, N, K, 0, ifl_panels(N));
        for (int m = 1; m <= ROWS; m++) {
            int first = (m * 31) % (ROWS - m + 1);
            all[i]->matmul(together, N, x + first * K, K, panels, m, N, K, 0, ifl_panels(N));
            assert_memory_equal(together, alone + first * N, sizeof(float) * (size_t)(m * N));
        }
    }
    free(plain);
    free(rounded);
    free(w);
    free(panels);
    free(alone);
    free(together);
}

/* A dropped tail of k, or one counted twice, shows as a sum that is not k. */
static void test_a_product_of_ones_is_exactly_k(void **state) {
    (void)state;
    enum { K_MAX = 1100, N = 50, M = 20 };
    float *x = malloc(sizeof(float[M * K_MAX])), *y = malloc(sizeof(float[M * N]));
    uint16_t *ones = malloc(sizeof(uint16_t[N * K_MAX]));
    uint16_t *panels = malloc((size_t)ifl_panels_elements(N, K_MAX) * sizeof *panels);
    float *b_panels = malloc(sizeof(float[64 * K_MAX]));
    assert_true(x && y && ones && panels && b_panels);
    for (int i = 0; i < M * K_MAX; i++)
        x[i] = 1.0f;
    for (int i = 0; i < N * K_MAX; i++)
        ones[i] = 0x3f80;
    const ifl_ops *all[16];
    int n = list_both(all);
    for (int k = 1; k <= K_MAX; k += k < 300 ? 1 : 37)
        for (int i = 0; i < n; i++) {
            if (strcmp(all[i]->name, "ref") == 0) continue;
            ifl_pack_bf16(panels, ones, N, k);
            int m = 1 + k % M;
            all[i]->matmul(y, N, x, k, panels, m, N, k, 0, 2);
            for (int j = 0; j < m * N; j++)
                assert_true(y[j] == (float)k);
            for (int j = 0; j < 64 * k; j++)
                b_panels[j] = 1.0f;
            all[i]->matmul_f32(y, N, x, k, 1, b_panels, m, N, k, 0, 2, true);
            for (int j = 0; j < m * N; j++)
                assert_true(y[j] == 2.0f * (float)k);
        }
    free(x);
    free(y);
    free(ones);
    free(panels);
    free(b_panels);
}

/* --- The declared order, seen from outside ---------------------------------------------------- */

/* Does 2^-15 at k = small live through a sum that also takes 2^10 and -2^10 at k = a and b? Next to
 * 2^10 it rounds away, so only if it is added when the two have cancelled, or where neither comes.
 */
static bool survives(ifl_profile profile, int a, int b, int small) {
    int first = a < b ? a : b, last = a < b ? b : a;
    if (profile == IFL_PROFILE_F32) return small > last;
    int chain_a = a / 32 * 2 + a % 2, chain_b = b / 32 * 2 + b % 2,
        chain_small = small / 32 * 2 + small % 2;
    if (chain_a == chain_b) /* cancel inside one half-chain of one block */
        return chain_small != chain_a || small > last;
    if (first / 32 == last / 32) /* even + odd of one block cancel */
        return small / 32 != first / 32;
    return small / 32 > last / 32; /* the total holds 2^10 from one block to the other */
}

/* Probes whose outcome is not what the declared order says; the first is reported when `report`. */
static int count_order_differences(const ifl_ops *ops, bool report) {
    enum { K = 100, N = 3, M_MAX = 70, PROBES = 400 };
    static const int64_t row_counts[] = {1, 2, 5, 32, 64, M_MAX};
    float *x = calloc(M_MAX * K, sizeof *x), *y = malloc(sizeof(float[M_MAX * N]));
    uint16_t *ones = malloc(sizeof(uint16_t[N * K]));
    uint16_t *panels = malloc((size_t)ifl_panels_elements(N, K) * sizeof *panels);
    assert_true(x && y && ones && panels);
    for (int i = 0; i < N * K; i++)
        ones[i] = 0x3f80;
    ifl_pack_bf16(panels, ones, N, K);
    testing_rng rng = {7};
    int differing = 0;
    for (int probe = 0; probe < PROBES; probe++) {
        int a = (int)testing_below(&rng, K), b, small;
        do
            b = testing_below(&rng, 2) ? (int)testing_below(&rng, K) : (a + 2) % K;
        while (b == a);
        do
            small = testing_below(&rng, 2) ? (int)testing_below(&rng, K) : (b + 2) % K;
        while (small == a || small == b);
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            int64_t m = row_counts[r], row = testing_below(&rng, m);
            float *at = x + row * K;
            at[a] = 0x1p10f, at[b] = -0x1p10f, at[small] = 0x1p-15f;
            ops->matmul(y, N, x, K, panels, m, N, K, 0, 1);
            float want = survives(ops->profile, a, b, small) ? 0x1p-15f : 0.0f;
            for (int j = 0; j < N; j++) {
                if (y[row * N + j] == want) continue;
                if (report && differing == 0)
                    print_error(
                        "%s, %s, %d rows: 2^10 at %d, -2^10 at %d, 2^-15 at %d: %a, wanted %a\n",
                        ops->name, ifl_profile_name(ops->profile), (int)m, a, b, small,
                        (double)y[row * N + j], (double)want);
                differing++;
            }
            at[a] = at[b] = at[small] = 0.0f;
        }
    }
    free(x);
    free(y);
    free(ones);
    free(panels);
    return differing;
}

static void test_the_order_is_the_declared_one(void **state) {
    (void)state;
    const ifl_ops *all[16];
    int n = list_both(all), differing = 0;
    for (int i = 0; i < n; i++)
        differing += count_order_differences(all[i], true);
    assert_int_equal(differing, 0);
}

/* --- The failing direction: each changed order must be noticed ------------------------------- */

static const ifl_ops *honest;

static void mutant_matmul_split_k(float *y, int64_t ldy, const float *x, int64_t ldx,
                                  const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                                  int64_t panel_begin, int64_t panel_end) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = panel_begin * IFL_PANEL; c < panel_end * IFL_PANEL && c < n; c++) {
            const uint16_t *w = w_panels + ifl_panel_row(c, k);
            float half[2] = {0};
            for (int64_t kk = 0; kk < k; kk++)
                half[kk >= k / 2] =
                    fmaf(x[i * ldx + kk], ifl_bf16_to_f32(w[ifl_panel_k(kk)]), half[kk >= k / 2]);
            y[i * ldy + c] = half[0] + half[1];
        }
}
static void mutant_matmul_f32_unfused(float *c, int64_t ldc, const float *a, int64_t a_row,
                                      int64_t a_col, const float *b_panels, int64_t m, int64_t n,
                                      int64_t k, int64_t panel_begin, int64_t panel_end,
                                      bool accumulate) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = panel_begin * IFL_PANEL; j < panel_end * IFL_PANEL && j < n; j++) {
            float acc = accumulate ? c[i * ldc + j] : 0.0f;
            for (int64_t kk = 0; kk < k; kk++)
                acc += a[i * a_row + kk * a_col] *
                       b_panels[((j / IFL_PANEL) * k + kk) * IFL_PANEL + j % IFL_PANEL];
            c[i * ldc + j] = acc;
        }
}
static void mutant_exp_of_libm(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = expf(x[i]);
}
static ifl_lse mutant_lse_serial(const float *x, int64_t n, float *p) {
    ifl_lse block = honest->block_lse(x, n, p);
    float e, sum = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float shifted = x[i] - block.max;
        honest->exp(&e, &shifted, 1);
        sum += e;
    }
    block.sum = sum;
    return block;
}
/* Two halves of the visible keys merged by their log-sum-exps: a split at another place. */
static void mutant_attention_other_split(float *const *o, const float *const *q, const int32_t *pos,
                                         int64_t n_rows, const ifl_kv_view *view, int64_t head_dim,
                                         float scale, int32_t window, ifl_lse *lse) {
    honest->attention(o, q, pos, n_rows, view, head_dim, scale, window, lse);
    if (window > 0) return;
    float *low = malloc((size_t)head_dim * sizeof *low),
          *high = malloc((size_t)head_dim * sizeof *high);
    assert_true(low && high);
    for (int64_t r = 0; r < n_rows; r++) {
        int32_t middle = pos[r] / 2;
        ifl_lse part[2];
        if (pos[r] < 2 || pos[r] > 200) continue;
        honest->attention(&low, &q[r], &middle, 1, view, head_dim, scale, 0, &part[0]);
        honest->attention(&high, &q[r], &pos[r], 1, view, head_dim, scale, pos[r] - middle,
                          &part[1]);
        float max = fmaxf(part[0].max, part[1].max), c[2],
              in[2] = {part[0].max - max, part[1].max - max};
        honest->exp(c, in, 2);
        float sum = c[0] * part[0].sum + c[1] * part[1].sum;
        for (int64_t d = 0; d < head_dim; d++)
            o[r][d] = (c[0] * part[0].sum * low[d] + c[1] * part[1].sum * high[d]) / sum;
    }
    free(low);
    free(high);
}
static void mutant_rmsnorm_reciprocal(float *y, int64_t ldy, const float *x, int64_t ldx,
                                      const float *w, float offset, float eps, int64_t m, int64_t n,
                                      float *r) {
    honest->rmsnorm(y, ldy, x, ldx, w, offset, eps, m, n, r);
    for (int64_t i = 0; i < m; i++) {
        double s = 0;
        for (int64_t c = 0; c < n; c++)
            s += (double)x[i * ldx + c] * (double)x[i * ldx + c];
        float ri = (float)(1.0 / sqrt(s / (double)n + (double)eps));
        for (int64_t c = 0; c < n; c++)
            y[i * ldy + c] = (x[i * ldx + c] * ri) * (offset + w[c]);
    }
}
static void mutant_matmul_flushing(float *y, int64_t ldy, const float *x, int64_t ldx,
                                   const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                                   int64_t panel_begin, int64_t panel_end) {
    honest->matmul(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = panel_begin * IFL_PANEL; c < panel_end * IFL_PANEL && c < n; c++)
            if (fabsf(y[i * ldy + c]) < 0x1p-126f) y[i * ldy + c] = 0.0f;
}

/* The order of the plain bf16 dot instruction: pairs, the odd k first, into one accumulator. */
static void mutant_matmul_pairs(float *y, int64_t ldy, const float *x, int64_t ldx,
                                const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                                int64_t panel_begin, int64_t panel_end) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = panel_begin * IFL_PANEL; c < panel_end * IFL_PANEL && c < n; c++) {
            const uint16_t *w = w_panels + ifl_panel_row(c, k);
            float acc = 0.0f;
            for (int64_t kk = 0; kk < k; kk += 2)
                for (int64_t j = kk + 1; j >= kk; j--)
                    if (j < k) acc = fmaf(x[i * ldx + j], ifl_bf16_to_f32(w[ifl_panel_k(j)]), acc);
            y[i * ldy + c] = acc;
        }
}
/* x32 in blocks of 32 k, but without flushing. */
static void mutant_matmul_gradual(float *y, int64_t ldy, const float *x, int64_t ldx,
                                  const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                                  int64_t panel_begin, int64_t panel_end) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = panel_begin * IFL_PANEL; c < panel_end * IFL_PANEL && c < n; c++) {
            const uint16_t *w = w_panels + ifl_panel_row(c, k);
            float acc = 0.0f, half[2] = {0};
            for (int64_t kk = 0; kk < k; kk++) {
                half[kk % 2] =
                    fmaf(x[i * ldx + kk], ifl_bf16_to_f32(w[ifl_panel_k(kk)]), half[kk % 2]);
                if (kk % 32 < 31 && kk + 1 < k) continue;
                acc += half[0] + half[1];
                half[0] = half[1] = 0.0f;
            }
            y[i * ldy + c] = acc;
        }
}
static void mutant_round_truncating(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0xffff0000u;
        memcpy(&x[i], &bits, sizeof bits);
    }
}
/* p not rounded, one chain. */
static void mutant_attention_f32(float *const *o, const float *const *q, const int32_t *pos,
                                 int64_t n_rows, const ifl_kv_view *view, int64_t head_dim,
                                 float scale, int32_t window, ifl_lse *lse) {
    ifl_ops_best(IFL_PROFILE_F32)->attention(o, q, pos, n_rows, view, head_dim, scale, window, lse);
}

static void test_a_changed_order_of_the_bf16_profile_is_noticed(void **state) {
    (void)state;
    honest = ifl_ops_best(IFL_PROFILE_BF16);
    ifl_ops mutant[4];
    for (int i = 0; i < 4; i++)
        mutant[i] = *honest;
    mutant[0].matmul = mutant_matmul_pairs;
    mutant[1].matmul = mutant_matmul_gradual;
    mutant[2].round = mutant_round_truncating;
    mutant[3].attention = mutant_attention_f32;
    static const char *const where[4] = {"matmul", "matmul", "round", "attention"};
    assert_true(count_order_differences(&mutant[0], false) > 0);
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < N_CASES; c++)
            if (strcmp(op_cases[c].name, where[i]) == 0)
                assert_true(
                    count_differences(&mutant[i], &op_cases[c], op_cases[c].n_seeds, false) > 0);
}

static void test_a_changed_order_is_noticed(void **state) {
    (void)state;
    honest = ifl_ops_best(IFL_PROFILE_F32);
    ifl_ops mutant[7];
    for (int i = 0; i < 7; i++)
        mutant[i] = *honest;
    mutant[0].matmul = mutant_matmul_split_k;
    mutant[1].matmul_f32 = mutant_matmul_f32_unfused;
    mutant[2].exp = mutant_exp_of_libm;
    mutant[3].block_lse = mutant_lse_serial;
    mutant[4].attention = mutant_attention_other_split;
    mutant[5].rmsnorm = mutant_rmsnorm_reciprocal;
    mutant[6].matmul = mutant_matmul_flushing;
    assert_true(count_order_differences(&mutant[0], false) > 0);
    static const char *const where[7] = {"matmul",    "matmul_f32", "elementwise", "lse",
                                         "attention", "rmsnorm",    "matmul"};
    for (int i = 0; i < 7; i++)
        for (int c = 0; c < N_CASES; c++)
            if (strcmp(op_cases[c].name, where[i]) == 0) {
                int seeds = op_cases[c].n_seeds < 60 ? op_cases[c].n_seeds : 60;
                assert_int_equal(count_differences(honest, &op_cases[c], seeds, true), 0);
                assert_true(count_differences(&mutant[i], &op_cases[c], seeds, false) > 0);
            }
}

static void test_force_chooses_and_refuses(void **state) {
    (void)state;
    const ifl_ops *all[8];
    int n = ifl_ops_list(IFL_PROFILE_F32, all, 8);
    assert_ptr_equal(ifl_ops_best(IFL_PROFILE_F32), all[n - 1]);
    assert_false(ifl_ops_force("abacus"));
    assert_ptr_equal(ifl_ops_best(IFL_PROFILE_F32), all[n - 1]);
    assert_true(ifl_ops_force("generic"));
    assert_string_equal(ifl_ops_best(IFL_PROFILE_F32)->name, "generic");
    assert_string_equal(ifl_ops_best(IFL_PROFILE_BF16)->name, "generic");
    assert_true(ifl_ops_force(all[n - 1]->name));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_implementation_has_the_bits_of_ref),
        cmocka_unit_test(test_the_bits_are_those_of_other_hosts),
        cmocka_unit_test(test_a_row_has_the_same_bits_for_every_number_of_rows),
        cmocka_unit_test(test_a_product_of_ones_is_exactly_k),
        cmocka_unit_test(test_the_order_is_the_declared_one),
        cmocka_unit_test(test_a_changed_order_is_noticed),
        cmocka_unit_test(test_a_changed_order_of_the_bf16_profile_is_noticed),
        cmocka_unit_test(test_force_chooses_and_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

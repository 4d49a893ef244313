/* A row of an op is a function of its own inputs: whatever stands beside it, wherever it stands,
 * and however the caller has set the processor. Groups 1, 3, 7 and 9 of the numerics notes, op by
 * op, on every instruction set of this host.
 *
 * By default every implementation is shown small batches and the best one all of them, in samples
 * drawn by a fixed seed; IFL_TEST_FULL=1 gives every implementation every size, and every position
 * of sizes below 130. */
#include "ops_testing.h"

#include <math.h>

static bool is_best(const ifl_ops *ops) {
    return ops == ifl_ops_best(ops->profile);
}

static const int64_t batch_sizes[] = {1,   2,   3,   7,   8,    9,    15,  16,  17,
                                      31,  32,  33,  63,  64,   65,   127, 128, 129,
                                      255, 256, 257, 511, 1023, 1024, 1025};
enum { N_SIZES = sizeof batch_sizes / sizeof *batch_sizes, ROWS_MAX = 1025 };

/* --- What may stand beside a row ------------------------------------------------------------- */

typedef enum {
    BESIDE_RANDOM,
    BESIDE_HUGE,
    BESIDE_NAN,
    BESIDE_INF,
    BESIDE_DENORMAL,
    BESIDE_COUNT
} beside;

static float beside_value(testing_rng *rng, beside kind) {
    float u = testing_uniform(rng);
    switch (kind) {
    case BESIDE_HUGE:
        return u * 0x1p127f;
    case BESIDE_NAN:
        return testing_float(0x7fc00000u | (uint32_t)testing_below(rng, 1 << 20));
    case BESIDE_INF:
        return u < 0 ? -INFINITY : INFINITY;
    case BESIDE_DENORMAL:
        return u * 0x1p-127f;
    default:
        return u;
    }
}

static void beside_fill(testing_rng *rng, beside kind, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = beside_value(rng, kind);
}

/* Positions of the needle among m rows, ascending: all, or the ends, the borders of tiles and
 * copied blocks, and a few by seed. */
static int positions_of(testing_rng *rng, int64_t m, bool all, int64_t *out) {
    static const int64_t borders[] = {1,  2,  3,  4,  5,   6,   7,   8,   11, 12,
                                      15, 16, 63, 64, 191, 192, 193, 383, 384};
    int n = 0;
    if (all) {
        for (int64_t i = 0; i < m; i++)
            out[n++] = i;
        return n;
    }
    out[n++] = 0;
    for (size_t i = 0; i < sizeof borders / sizeof *borders; i++)
        if (borders[i] < m - 2 && testing_below(rng, 3) == 0) out[n++] = borders[i];
    if (m > 3) out[n++] = testing_below(rng, m);
    if (m > 2) out[n++] = m - 2;
    if (m > 1) out[n++] = m - 1;
    return n;
}

/* --- Needles ---------------------------------------------------------------------------------- */

enum { N = 40, K = 70 }; /* a ragged panel, a ragged block of k */

typedef struct needle {
    float *x, *y;           /* [ROWS_MAX][K], [ROWS_MAX][N] */
    float own[K], alone[N]; /* the needle, and what it gives alone */
    uint16_t *panels;
    float *f32_panels;
} needle;

static void needle_open(needle *t, const ifl_ops *ops, testing_rng *rng) {
    uint16_t *w = testing_bf16(rng, N * K, KIND_PLAIN);
    t->panels = calloc((size_t)ifl_panels_elements(N, K), sizeof *t->panels);
    t->f32_panels = calloc((size_t)(ifl_panels(N) * K * IFL_PANEL), sizeof *t->f32_panels);
    t->x = malloc(sizeof(float[ROWS_MAX * K]));
    t->y = malloc(sizeof(float[ROWS_MAX * N]));
    assert_true(t->panels && t->f32_panels && t->x && t->y);
    ifl_pack_bf16(t->panels, w, N, K);
    float *b = testing_floats(rng, K * N, KIND_PLAIN);
    ops->pack_f32(t->f32_panels, b, N, K, N, 0, ifl_panels(N));
    for (int k = 0; k < K; k++)
        t->own[k] = testing_uniform(rng);
    ops->round(t->own, K);
    free(b);
    free(w);
}

static void needle_close(needle *t) {
    free(t->y);
    free(t->x);
    free(t->f32_panels);
    free(t->panels);
}

typedef void (*needle_op)(const ifl_ops *ops, const needle *t, int64_t m, float *y);

static void needle_matmul(const ifl_ops *ops, const needle *t, int64_t m, float *y) {
    ops->matmul(y, N, t->x, K, t->panels, m, N, K, 0, ifl_panels(N));
}
static void needle_matmul_f32(const ifl_ops *ops, const needle *t, int64_t m, float *y) {
    ops->matmul_f32(y, N, t->x, K, 1, t->f32_panels, m, N, K, 0, ifl_panels(N), false);
}
static void needle_rmsnorm(const ifl_ops *ops, const needle *t, int64_t m, float *y) {
    ops->rmsnorm(y, N, t->x, K, t->f32_panels, 1.0f, 1e-6f, m, N, NULL);
}

static int64_t needle_run(const ifl_ops *ops, needle_op op, needle *t, testing_rng *rng,
                          int64_t m_max) {
    static int64_t positions[ROWS_MAX];
    int64_t n_compared = 0;
    memcpy(t->x, t->own, sizeof t->own);
    op(ops, t, 1, t->alone);
    for (int s = 0; s < N_SIZES && batch_sizes[s] <= m_max; s++) {
        int64_t m = batch_sizes[s];
        int n = positions_of(rng, m, m <= (testing_full() ? 129 : 9), positions);
        for (int kind = 0; kind < BESIDE_COUNT; kind++) {
            beside_fill(rng, (beside)kind, t->x, m * K);
            ops->round(t->x, m * K);
            for (int i = 0; i < n; i++) {
                /* Large batches cost: there each position sees one kind. */
                if (m > 129 && !testing_full() && (i + s) % BESIDE_COUNT != kind) continue;
                float kept[K];
                memcpy(kept, t->x + positions[i] * K, sizeof kept);
                memcpy(t->x + positions[i] * K, t->own, sizeof t->own);
                op(ops, t, m, t->y);
                if (memcmp(t->y + positions[i] * N, t->alone, sizeof t->alone) != 0)
                    fail_msg(
                        "%s, profile %d: row %d of %d beside kind %d has other bits than alone",
                        ops->name, (int)ops->profile, (int)positions[i], (int)m, kind);
                memcpy(t->x + positions[i] * K, kept, sizeof kept);
                n_compared += N;
            }
        }
    }
    return n_compared;
}

static void test_a_row_does_not_know_its_neighbours(void **state) {
    (void)state;
    static const needle_op needle_ops[] = {needle_matmul, needle_matmul_f32, needle_rmsnorm};
    const ifl_ops *all[16];
    int n = testing_list_both(all);
    int64_t n_compared = 0;
    for (int i = 0; i < n; i++)
        for (int o = 0; o < 3; o++) {
            testing_rng rng = {(uint64_t)o + 1};
            needle t;
            if (o > 0 && all[i]->profile != IFL_PROFILE_F32) continue; /* shared by the profiles */
            needle_open(&t, all[i], &rng);
            int64_t m_max = testing_full() || is_best(all[i]) ? 1025
                            : testing_is_slow(all[i])         ? 65
                                                              : 257;
            n_compared += needle_run(all[i], needle_ops[o], &t, &rng, m_max);
            needle_close(&t);
        }
    print_message("%lld elements of needles compared\n", (long long)n_compared);
    assert_true(n_compared > 100000);
}

/* The failing direction: a product that looks at its neighbours' number. */
static const ifl_ops *honest;
static void matmul_by_rows(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w,
                           int64_t m, int64_t n, int64_t k, int64_t begin, int64_t end) {
    honest->matmul(y, ldy, x, ldx, w, m, n, k, begin, end);
    if (m >= 15)
        for (int64_t i = 0; i < m; i++)
            y[i * ldy] = nextafterf(y[i * ldy], INFINITY);
}

static void test_a_row_that_knows_its_neighbours_is_seen(void **state) {
    (void)state;
    honest = ifl_ops_best(IFL_PROFILE_F32);
    ifl_ops mutant = *honest;
    mutant.matmul = matmul_by_rows;
    testing_rng rng = {1};
    needle t;
    needle_open(&t, &mutant, &rng);
    memcpy(t.x, t.own, sizeof t.own);
    needle_matmul(&mutant, &t, 1, t.alone);
    int differing = 0;
    for (int s = 0; s < N_SIZES && batch_sizes[s] <= 33; s++) {
        beside_fill(&rng, BESIDE_RANDOM, t.x, batch_sizes[s] * K);
        memcpy(t.x, t.own, sizeof t.own);
        needle_matmul(&mutant, &t, batch_sizes[s], t.y);
        differing += memcmp(t.y, t.alone, sizeof t.alone) != 0;
    }
    assert_int_equal(differing, 6); /* 15, 16, 17, 31, 32, 33 */
    needle_close(&t);
}

/* --- Attention: rows, their neighbours, and what lies behind them in the cache ---------------- */

enum { D = 24, KEYS = 300, PAGE = 16, PAGES = (KEYS + PAGE - 1) / PAGE };

typedef struct cache {
    void *elements;
    int32_t pages[PAGES];
    ifl_kv_view view;
} cache;

/* Keys at and beyond `own` are of another kind: rows further on see them, the needle does not. */
static void cache_open(cache *c, const ifl_ops *ops, testing_rng *rng, int32_t own, beside kind) {
    float k[D], v[D];
    int64_t half = (int64_t)PAGE * D, bytes = ops->profile == IFL_PROFILE_BF16 ? 2 : 4;
    c->elements = calloc((size_t)(PAGES * 2 * half), (size_t)bytes);
    assert_non_null(c->elements);
    for (int32_t i = 0; i < PAGES; i++)
        c->pages[i] = (i * 7 + 3) % PAGES;
    c->view =
        (ifl_kv_view){c->elements, (char *)c->elements + half * bytes, 2 * half, c->pages, PAGE};
    for (int32_t t = 0; t < KEYS; t++) {
        beside_fill(rng, t < own ? BESIDE_RANDOM : kind, k, D);
        beside_fill(rng, t < own ? BESIDE_RANDOM : kind, v, D);
        ops->round(k, D);
        ops->round(v, D);
        ops->kv_store(&c->view, t, k, v, D);
    }
}

/* One call: n rows, the needle at `at`, of position own - 1; the others at positions of their own.
 */
static void attention_beside(const ifl_ops *ops, testing_rng *rng, const cache *c,
                             const float *own_q, int32_t own, int64_t n, int64_t at, beside kind,
                             int32_t last, int32_t window, float out[D], ifl_lse *lse) {
    static float q[IFL_ATTENTION_ROWS_MAX * D], o[IFL_ATTENTION_ROWS_MAX * D];
    const float *q_rows[IFL_ATTENTION_ROWS_MAX];
    float *o_rows[IFL_ATTENTION_ROWS_MAX];
    int32_t pos[IFL_ATTENTION_ROWS_MAX];
    ifl_lse all[IFL_ATTENTION_ROWS_MAX];
    beside_fill(rng, kind, q, n * D);
    ops->round(q, n * D);
    memcpy(q + at * D, own_q, sizeof(float[D]));
    for (int64_t r = 0; r < n; r++) {
        q_rows[r] = q + r * D;
        o_rows[r] = o + r * D;
        pos[r] = r == at ? own - 1 : (int32_t)testing_below(rng, last + 1);
    }
    ops->attention(o_rows, q_rows, pos, n, &c->view, D, 0.2f, window, all);
    memcpy(out, o + at * D, sizeof(float[D]));
    *lse = all[at];
}

static void test_an_attention_row_does_not_know_its_neighbours(void **state) {
    (void)state;
    static const int32_t owns[] = {1, 17, 32, 33, 200, 256, 257, 290};
    static const int32_t windows[] = {0, 40};
    const ifl_ops *all[16];
    int n_ops = testing_list_both(all);
    for (int i = 0; i < n_ops; i++)
        for (size_t a = 0; a < sizeof owns / sizeof *owns; a++)
            for (int kind = 0; kind < BESIDE_COUNT; kind++) {
                testing_rng rng = {a * 8 + (uint64_t)kind + 1};
                cache c;
                float q[D], alone[D], got[D];
                ifl_lse alone_lse, got_lse;
                int32_t own = owns[a], window = windows[(a + (size_t)kind) % 2];
                beside_fill(&rng, BESIDE_RANDOM, q, D);
                all[i]->round(q, D);
                testing_rng keys = {99}; /* the same for all kinds */
                cache_open(&c, all[i], &keys, own, (beside)kind);
                attention_beside(all[i], &rng, &c, q, own, 1, 0, BESIDE_RANDOM, own - 1, window,
                                 alone, &alone_lse);
                for (int s = 0; s < N_SIZES && batch_sizes[s] <= IFL_ATTENTION_ROWS_MAX; s++) {
                    int64_t n = batch_sizes[s], at[] = {0, n / 2, n - 1};
                    for (int w = 0; w < 3; w++) {
                        if (w && at[w] == at[w - 1]) continue;
                        if (testing_is_slow(all[i]) && !testing_full() && (s + w) % 3) continue;
                        attention_beside(all[i], &rng, &c, q, own, n, at[w], (beside)kind, KEYS - 1,
                                         window, got, &got_lse);
                        if (memcmp(got, alone, sizeof got) != 0 ||
                            memcmp(&got_lse, &alone_lse, sizeof got_lse) != 0)
                            fail_msg("%s, profile %d: row %d of %d at position %d beside kind %d",
                                     all[i]->name, (int)all[i]->profile, (int)at[w], (int)n,
                                     own - 1, kind);
                    }
                }
                free(c.elements);
            }
}

/* A decode row beside a prefill of 1 .. 63 rows that reaches 1 .. 300 keys: tiles chosen by the
 * longest of a batch would show here. */
static void test_an_attention_row_does_not_see_a_prefill_grow(void **state) {
    (void)state;
    const ifl_ops *all[16];
    int n_ops = testing_list_both(all);
    for (int i = 0; i < n_ops; i++) {
        testing_rng rng = {5}, keys = {99};
        cache c;
        float q[D], alone[D], got[D];
        ifl_lse alone_lse, got_lse;
        beside_fill(&rng, BESIDE_RANDOM, q, D);
        all[i]->round(q, D);
        cache_open(&c, all[i], &keys, KEYS, BESIDE_RANDOM);
        attention_beside(all[i], &rng, &c, q, 120, 1, 0, BESIDE_RANDOM, 119, 0, alone, &alone_lse);
        for (int32_t grown = 1; grown <= KEYS;
             grown += testing_is_slow(all[i]) && !testing_full() ? 13 : 1) {
            int64_t n = grown < 63 ? grown + 1 : 64;
            attention_beside(all[i], &rng, &c, q, 120, n, testing_below(&rng, n), BESIDE_RANDOM,
                             grown - 1, 0, got, &got_lse);
            assert_memory_equal(got, alone, sizeof got);
            assert_memory_equal(&got_lse, &alone_lse, sizeof got_lse);
        }
        free(c.elements);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_row_does_not_know_its_neighbours),
        cmocka_unit_test(test_a_row_that_knows_its_neighbours_is_seen),
        cmocka_unit_test(test_an_attention_row_does_not_know_its_neighbours),
        cmocka_unit_test(test_an_attention_row_does_not_see_a_prefill_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

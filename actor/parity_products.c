#include "actor/parity_products.h"

#include <math.h>

#include "common/bf16.h"
#include "kernels/cpu/rounding.h"

static const ifl_ops *base; /* what the table under way was made of */

static bool x32(void) {
    return base->profile == IFL_PROFILE_BF16;
}

typedef struct factors {
    const float *x;
    const uint16_t *w; /* a row of a panel */
} factors;

static float fused(float a, float b, float c, ifl_product_kind kind) {
    return kind == IFL_PRODUCT_UNFUSED ? a * b + c : fmaf(a, b, c);
}

static float term(factors f, int64_t k, float acc, ifl_product_kind kind) {
    return fused(f.x[k], ifl_bf16_to_f32(f.w[ifl_panel_k(k)]), acc, kind);
}

static float chain_plain(factors f, int64_t begin, int64_t end, float acc, ifl_product_kind kind) {
    for (int64_t k = begin; k < end; k++)
        acc = term(f, k, acc, kind);
    return acc;
}

/* As bf16 dot instructions have it. */
static float chain_swapped(factors f, int64_t end) {
    float acc = 0.0f;
    for (int64_t k = 0; k < end; k += 2) {
        if (k + 1 < end) acc = term(f, k + 1, acc, IFL_PRODUCT_SWAPPED);
        acc = term(f, k, acc, IFL_PRODUCT_SWAPPED);
    }
    return acc;
}

static float chain_blocks(factors f, int64_t begin, int64_t end, ifl_product_kind kind) {
    float acc = 0.0f;
    for (int64_t k0 = begin; k0 < end; k0 += IFL_DEPTH) {
        int64_t stop = k0 + IFL_DEPTH < end ? k0 + IFL_DEPTH : end;
        float half[2] = {0.0f, 0.0f};
        if (kind == IFL_PRODUCT_TAIL && stop < k0 + IFL_DEPTH)
            return chain_plain(f, k0, stop, acc, kind);
        for (int64_t k = k0; k < stop; k++)
            half[(k - k0) % 2] = term(f, k, half[(k - k0) % 2], kind);
        acc = acc + (half[0] + half[1]);
    }
    return acc;
}

static float chain_range(factors f, int64_t begin, int64_t end, ifl_product_kind kind) {
    return x32() ? chain_blocks(f, begin, end, kind) : chain_plain(f, begin, end, 0.0f, kind);
}

static float chain(factors f, int64_t k, ifl_product_kind kind) {
    if (kind == IFL_PRODUCT_SWAPPED) return chain_swapped(f, k);
    if (kind == IFL_PRODUCT_DROPPED && k > IFL_DEPTH) k = k / IFL_DEPTH * IFL_DEPTH;
    if (kind != IFL_PRODUCT_SPLIT) return chain_range(f, 0, k, kind);
    int64_t half = k / 4 * 2;
    return chain_range(f, 0, half, kind) + chain_range(f, half, k, kind);
}

/* Not inline: the compiler knows nothing of MXCSR and could move arithmetic over its setting. */
static __attribute__((noinline)) void product(float *y, int64_t ldy, const float *x, int64_t ldx,
                                              const uint16_t *w_panels, int64_t m, int64_t n,
                                              int64_t k, int64_t begin, int64_t end,
                                              ifl_product_kind kind) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = begin * IFL_PANEL; c < end * IFL_PANEL && c < n; c++)
            y[i * ldy + c] = chain((factors){x + i * ldx, w_panels + ifl_panel_row(c, k)}, k, kind);
}

#define PRODUCT_ARGUMENTS                                                                          \
    float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w_panels, int64_t m,       \
        int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end

static void product_as(PRODUCT_ARGUMENTS, ifl_product_kind kind) {
    uint32_t saved = x32() ? ifl_rounding_enter_flush() : ifl_rounding_enter();
    product(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end, kind);
    if (x32())
        ifl_rounding_leave_flush(saved);
    else
        ifl_rounding_leave(saved);
}

static void matmul_honest(PRODUCT_ARGUMENTS) {
    product_as(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end, IFL_PRODUCT_HONEST);
}
static void matmul_swapped(PRODUCT_ARGUMENTS) {
    product_as(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end, IFL_PRODUCT_SWAPPED);
}
static void matmul_unfused(PRODUCT_ARGUMENTS) {
    product_as(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end, IFL_PRODUCT_UNFUSED);
}
static void matmul_tail(PRODUCT_ARGUMENTS) {
    product_as(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end, IFL_PRODUCT_TAIL);
}

/* A library's kernel for more than a few rows. */
static void matmul_dropped(PRODUCT_ARGUMENTS) {
    if (m < 8)
        base->matmul(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
    else
        product_as(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end, IFL_PRODUCT_DROPPED);
}

/* As a library's heuristic chooses for larger batches. Long products go through the kernels, in
 * halves of whole blocks, so that large models can be mutated too. */
static void matmul_split(PRODUCT_ARGUMENTS) {
    enum { ROWS = 64, LONG = 4 * IFL_DEPTH };
    float tail[ROWS * IFL_PANEL];
    if (m < 4) {
        base->matmul(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
        return;
    }
    if (k < LONG) {
        product_as(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end, IFL_PRODUCT_SPLIT);
        return;
    }
    int64_t half = k / 2 / IFL_DEPTH * IFL_DEPTH;
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        int64_t column = panel * IFL_PANEL;
        int64_t n_columns = n - column < IFL_PANEL ? n - column : IFL_PANEL;
        const uint16_t *w = w_panels + panel * ifl_panel_elements(k);
        for (int64_t row = 0; row < m; row += ROWS) {
            int64_t n_rows = m - row < ROWS ? m - row : ROWS;
            float *to = y + row * ldy + column;
            const float *from = x + row * ldx;
            base->matmul(to, ldy, from, ldx, w, n_rows, n_columns, half, 0, 1);
            base->matmul(tail, IFL_PANEL, from + half, ldx, w + ifl_panel_k(half), n_rows,
                         n_columns, k - half, 0, 1);
            for (int64_t i = 0; i < n_rows; i++)
                base->add(to + i * ldy, tail + i * IFL_PANEL, n_columns);
        }
    }
}

void ifl_product_mutate(ifl_ops *table, const ifl_ops *of, ifl_product_kind kind) {
    base = of;
    switch (kind) {
    case IFL_PRODUCT_HONEST:
        table->matmul = matmul_honest;
        break;
    case IFL_PRODUCT_SPLIT:
        table->matmul = matmul_split;
        break;
    case IFL_PRODUCT_SWAPPED:
        table->matmul = matmul_swapped;
        break;
    case IFL_PRODUCT_UNFUSED:
        table->matmul = matmul_unfused;
        break;
    case IFL_PRODUCT_TAIL:
        table->matmul = matmul_tail;
        break;
    case IFL_PRODUCT_DROPPED:
        table->matmul = matmul_dropped;
        break;
    }
}

/* Sums and products of matrices, worked out cell by cell. */
#include "rewards/math/tree.h"

#define WORKED_CELLS_MAX 64  /* of one matrix */
#define SYMBOLIC_PARTS_MAX 4 /* more could take for ever to evaluate */

static int rows_of(const ifl_math_node *m) {
    return m->n / m->flag;
}

static ifl_math_node *matrix(ifl_math_work *work, int rows, int columns) {
    ifl_math_node *out = ifl_math_node_new(work, NODE_MATRIX, rows * columns);
    if (out) out->flag = columns;
    return out;
}

static ifl_math_node *finished(ifl_math_node *m) {
    for (int i = 0; i < m->n; i++) {
        if (!m->kids[i]) return NULL;
        if (m->kids[i]->depth >= m->depth) m->depth = m->kids[i]->depth + 1;
    }
    return m;
}

static ifl_math_node *cellwise(ifl_math_work *work, ifl_math_kind kind, ifl_math_node *scalar,
                               ifl_math_node *a, ifl_math_node *b) {
    ifl_math_node *out = matrix(work, rows_of(a), a->flag);
    for (int i = 0; out && i < out->n; i++)
        out->kids[i] = ifl_math_node_of(work, kind, scalar ? scalar : a->kids[i],
                                        scalar ? a->kids[i]
                                        : b    ? b->kids[i]
                                               : NULL);
    return out ? finished(out) : NULL;
}

static ifl_math_node *product(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b) {
    ifl_math_node *out = matrix(work, rows_of(a), b->flag);
    for (int i = 0; out && i < out->n; i++) {
        ifl_math_node *sum = ifl_math_node_new(work, NODE_ADD, a->flag);
        for (int k = 0; sum && k < a->flag; k++) {
            sum->kids[k] = ifl_math_node_of(work, NODE_MUL, a->kids[i / b->flag * a->flag + k],
                                            b->kids[k * b->flag + i % b->flag]);
            if (!sum->kids[k]) return NULL;
            if (sum->kids[k]->depth >= sum->depth) sum->depth = sum->kids[k]->depth + 1;
        }
        out->kids[i] = sum;
    }
    return out ? finished(out) : NULL;
}

/* Two parts of a sum or product; NULL when they don't go together. */
static ifl_math_node *joined(ifl_math_work *work, ifl_math_kind kind, ifl_math_node *a,
                             ifl_math_node *b) {
    bool m = a->kind == NODE_MATRIX, n = b->kind == NODE_MATRIX;
    if (!ifl_math_step(work, 1 + (int64_t)a->n * b->n)) return NULL;
    if (kind == NODE_ADD)
        return m && n && a->n == b->n && a->flag == b->flag ? cellwise(work, kind, NULL, a, b)
                                                            : NULL;
    if (!m && !n) return ifl_math_node_of(work, NODE_MUL, a, b);
    if (m && n) return a->flag == rows_of(b) ? product(work, a, b) : NULL;
    return cellwise(work, NODE_MUL, m ? b : a, m ? a : b, NULL);
}

/* Numbers for what has a rational value; false when a cell has none. */
static bool reduced(ifl_math_work *work, ifl_math_node *m) {
    bool all = true;
    for (int i = 0; i < m->n && m->kind == NODE_MATRIX; i++) {
        const fmpq *value = ifl_math_rational(work, m->kids[i]);
        ifl_math_node *number = value ? ifl_math_number(work, 0) : NULL;
        all &= number != NULL;
        if (!number) continue;
        fmpq_set(number->value, value);
        number->inexact = m->kids[i]->kind == NODE_NUMBER && m->kids[i]->inexact;
        number->places = m->kids[i]->places;
        m->kids[i] = number;
    }
    return all;
}

static bool is_small(const ifl_math_node *node) {
    return node->kind != NODE_MATRIX || (node->n <= WORKED_CELLS_MAX && node->flag > 0);
}

ifl_math_node *ifl_math_matrix_worked(ifl_math_work *work, ifl_math_node *node) {
    bool sum = node->kind == NODE_ADD, neg = node->kind == NODE_NEG;
    if ((!sum && !neg && node->kind != NODE_MUL) || !ifl_math_contains(node, NODE_MATRIX))
        return node;
    ifl_math_node *out = NULL;
    for (int i = 0; i < node->n; i++) {
        ifl_math_node *part = ifl_math_matrix_worked(work, node->kids[i]);
        if (!is_small(part)) return node;
        out = i == 0 ? part : joined(work, node->kind, out, part);
        if (!out || (i > 0 && !reduced(work, out) && i + 1 > SYMBOLIC_PARTS_MAX)) return node;
    }
    if (neg) out = out->kind == NODE_MATRIX ? cellwise(work, NODE_NEG, NULL, out, NULL) : node;
    return out ? out : node;
}

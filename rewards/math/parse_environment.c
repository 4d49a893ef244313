/* \begin{...} ... \end{...}: matrices and cases. */
#include <string.h>

#include "rewards/math/parse.h"

#define CASES_MAX 16

/* Behind \begin{...}: cells up to the \end. */
static ifl_math_node *read_cells(ifl_math_head *p) {
    ifl_math_node **cells = ifl_math_alloc(p->work, IFL_MATH_CELLS_MAX * sizeof *cells);
    int n = 0, columns = 0, in_row = 0;
    if (!cells) return NULL;
    for (bool more = true; more;) {
        if (n == IFL_MATH_CELLS_MAX) {
            p->work->limit = "cells of a matrix (4096)";
            return NULL;
        }
        if (!(cells[n++] = ifl_math_read_sum(p))) return NULL;
        in_row++;
        if (ifl_math_accept(p, "&")) continue;
        more = ifl_math_accept(p, "\\\\");
        if (more && ifl_math_accept(p, "[")) return ifl_math_refuse(p, "a distance between rows");
        ifl_math_skip_space(p);
        if (ifl_math_command_is(p, "end")) more = false; /* \\ behind the last row */
        if (columns && in_row != columns) return ifl_math_refuse(p, "rows of different lengths");
        columns = in_row;
        in_row = 0;
    }
    ifl_math_node *node = ifl_math_node_new(p->work, NODE_MATRIX, n);
    if (!node) return NULL;
    for (int i = 0; i < n; i++) {
        node->kids[i] = cells[i];
        if (cells[i]->depth >= node->depth) node->depth = cells[i]->depth + 1;
    }
    node->flag = columns;
    return node;
}

/* Behind \begin{cases}: statements that hold together. Pieces with their conditions aren't read. */
static ifl_math_node *read_cases(ifl_math_head *p) {
    ifl_math_node *rows[CASES_MAX];
    int n = 0;
    for (bool more = true; more;) {
        if (n == CASES_MAX) return ifl_math_refuse(p, "more than 16 cases");
        ifl_math_node *row = ifl_math_read_list(p);
        if (!row) return NULL;
        if (row->kind == NODE_SEQUENCE) return ifl_math_refuse(p, "cases with conditions");
        rows[n++] = row;
        more = ifl_math_accept(p, "\\\\");
        ifl_math_skip_space(p);
        if (ifl_math_command_is(p, "end")) more = false;
    }
    if (n == 1) return rows[0];
    ifl_math_node *node = ifl_math_node_new(p->work, NODE_SEQUENCE, n);
    for (int i = 0; node && i < n; i++) {
        node->kids[i] = rows[i];
        if (rows[i]->depth >= node->depth) node->depth = rows[i]->depth + 1;
    }
    if (node) node->flag = 2;
    return node;
}

ifl_math_node *ifl_math_read_environment(ifl_math_head *p) {
    ifl_slice name, end, format;
    if (!ifl_math_accept(p, "{") || !ifl_math_braced(p, &name)) return NULL;
    bool array = name.n == 5 && memcmp(name.text, "array", 5) == 0;
    bool matrix = name.n >= 6 && name.n <= 11 && memcmp(name.text + name.n - 6, "matrix", 6) == 0;
    bool cases = name.n == 5 && memcmp(name.text, "cases", 5) == 0;
    if (!array && !matrix && !cases) return ifl_math_refuse(p, "an unknown environment");
    if (array && (!ifl_math_accept(p, "{") || !ifl_math_braced(p, &format)))
        return ifl_math_refuse(p, "an array without its columns");
    if (!ifl_math_enter(p)) return NULL;
    p->in_group++;
    ifl_math_node *node = cases ? read_cases(p) : read_cells(p);
    p->in_group--;
    p->depth--;
    if (!node) return NULL;
    if (!ifl_math_accept_command(p, "end") || !ifl_math_accept(p, "{") || !ifl_math_braced(p, &end))
        return ifl_math_refuse(p, "a matrix isn't closed");
    return node;
}

/* Whether two expressions are one: the cheapest proof that settles it. */
#include <math.h>
#include <string.h>

#include "rewards/math/tree.h"

#define DECIMAL_TOLERANCE 1e-9
#define PLACES_SHOWN_MIN 3 /* so many places make a rounded value of a decimal */

static bool any_inexact(const ifl_math_node *node) {
    if (node->kind == NODE_NUMBER) return node->inexact;
    for (int i = 0; i < node->n; i++)
        if (any_inexact(node->kids[i])) return true;
    return false;
}

static const ifl_math_node *literal(const ifl_math_node *node) {
    if (node->kind == NODE_NEG) node = node->kids[0];
    return node->kind == NODE_NUMBER ? node : NULL;
}

/* A rounded gold stands for what rounds to it, but not for another rounding of it: 0.333 is 1/3,
 * and 0.3333 isn't 0.333. */
static double shown_tolerance(const ifl_math_node *gold, const ifl_math_node *answer) {
    const ifl_math_node *number = literal(gold);
    if (!number || !number->inexact || number->places < 1) return 0;
    if (number->marked) return pow(10, -number->places);
    if (number->places < PLACES_SHOWN_MIN || any_inexact(answer)) return 0;
    return 0.5 * pow(10, -number->places);
}

static ifl_math_shown constants_equal(ifl_math_work *work, ifl_math_node *gold,
                                      ifl_math_node *answer, bool both_rational) {
    if (work->options->tol > 0) return ifl_math_within(work, answer, gold, work->options->tol, 0);
    if (any_inexact(gold) || any_inexact(answer)) {
        double shown = shown_tolerance(gold, answer);
        return ifl_math_within(work, answer, gold, DECIMAL_TOLERANCE, shown);
    }
    if (both_rational) return SHOWN_DIFFERENT;
    /* 2^100000 and 2^100000 + 1 have too many digits for one and too few bits for the other. */
    ifl_math_shown shown = ifl_math_modular(work, gold, answer, false);
    return shown == SHOWN_EQUAL || shown == SHOWN_DIFFERENT ? shown
                                                            : ifl_math_enclosed(work, gold, answer);
}

static bool has_infinity(const ifl_math_node *node) {
    return node->kind == NODE_INFINITY || (node->kind == NODE_NEG && has_infinity(node->kids[0]));
}

static bool is_expression(const ifl_math_node *node) {
    switch (node->kind) {
    case NODE_EMPTY_SET:
    case NODE_TEXT:
    case NODE_RATIO:
    case NODE_SEQUENCE:
    case NODE_UNION:
    case NODE_INTERSECTION:
    case NODE_WITHOUT:
    case NODE_MATRIX:
    case NODE_RELATION:
        return false;
    default:
        break;
    }
    for (int i = 0; i < node->n; i++)
        if (!is_expression(node->kids[i])) return false;
    return true;
}

ifl_math_shown ifl_math_equal(ifl_math_work *work, ifl_math_node *gold, ifl_math_node *answer) {
    if (!ifl_math_step(work, 2)) return SHOWN_NOTHING;
    bool expressions = is_expression(gold) && is_expression(answer);
    const fmpq *x = expressions ? ifl_math_rational(work, gold) : NULL;
    const fmpq *y = expressions ? ifl_math_rational(work, answer) : NULL;
    if (gold->known == VALUE_UNDEFINED || answer->known == VALUE_UNDEFINED) return SHOWN_UNDEFINED;
    if (x && y && fmpq_equal(x, y)) return SHOWN_EQUAL;
    if (ifl_math_same(work, gold, answer)) return SHOWN_EQUAL;
    if (!expressions) return SHOWN_DIFFERENT;
    if (has_infinity(gold) || has_infinity(answer)) {
        int order = ifl_math_order(work, gold, answer);
        return order == 0 ? SHOWN_EQUAL : order == 2 ? SHOWN_NOTHING : SHOWN_DIFFERENT;
    }
    if (!ifl_math_contains(gold, NODE_SYMBOL) && !ifl_math_contains(answer, NODE_SYMBOL))
        return constants_equal(work, gold, answer, x && y);
    ifl_math_shown shown = ifl_math_modular(work, gold, answer, false);
    if (shown == SHOWN_EQUAL) {
        /* By expansion, where it stays small: then it is a proof. */
        ifl_math_shown expanded = ifl_math_expanded(work, gold, answer);
        return expanded == SHOWN_DIFFERENT ? SHOWN_DIFFERENT : SHOWN_EQUAL;
    }
    if (shown == SHOWN_NOTHING && !work->limit) shown = ifl_math_enclosed(work, gold, answer);
    return work->limit ? SHOWN_NOTHING : shown;
}

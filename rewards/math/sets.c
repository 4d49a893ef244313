/* Sets of real numbers: sorted, disjoint pieces, each an interval or a point. */
#include <string.h>

#include "rewards/math/tree.h"

#define PIECES_MAX 64

typedef struct piece {
    ifl_math_node *low, *high;
    bool has_low, has_high; /* the ends belong to it */
} piece;

typedef struct pieces {
    ifl_math_work *work;
    piece at[PIECES_MAX];
    int n;
    bool unknown; /* an order couldn't be told, or there is too much */
} pieces;

static bool is_reals(const ifl_math_node *node) {
    return node->kind == NODE_SYMBOL &&
           (strcmp(node->name, "\\mathbb{R}") == 0 || strcmp(node->name, "\\Bbb{R}") == 0);
}

static bool is_inequality(const ifl_math_node *node) {
    if (node->kind != NODE_RELATION) return false;
    for (const char *op = node->name; *op; op++)
        if (!strchr("<>lg!", *op)) return false;
    return true;
}

bool ifl_math_is_function_value(const ifl_math_node *node) {
    return node->kind == NODE_MUL && node->n == 2 && node->kids[0]->kind == NODE_SYMBOL &&
           node->kids[1]->kind == NODE_SYMBOL && strchr("fghFGH", node->kids[0]->name[0]) &&
           !node->kids[0]->name[1];
}

static bool is_variable(const ifl_math_node *node) {
    return node->kind == NODE_SYMBOL || ifl_math_is_function_value(node);
}
static bool is_modulus(const ifl_math_node *node) {
    return node->kind == NODE_ABS && node->kids[0]->kind == NODE_SYMBOL;
}

bool ifl_math_is_plain_inequality(const ifl_math_node *node) {
    int n_about = 0;
    if (!is_inequality(node)) return false;
    for (int i = 0; i < node->n; i++) {
        if (is_variable(node->kids[i]) || is_modulus(node->kids[i]))
            n_about++;
        else if (ifl_math_contains(node->kids[i], NODE_SYMBOL))
            return false;
    }
    return n_about == 1;
}

/* What an inequality or a membership is about; NULL when that isn't said. */
static const ifl_math_node *about(const ifl_math_node *node) {
    bool member = node->kind == NODE_RELATION && strcmp(node->name, "e") == 0;
    if (member) return is_variable(node->kids[0]) ? node->kids[0] : NULL;
    if (is_inequality(node)) {
        for (int i = 0; i < node->n; i++) {
            if (is_variable(node->kids[i])) return node->kids[i];
            if (is_modulus(node->kids[i])) return node->kids[i]->kids[0];
        }
        return NULL;
    }
    bool list = node->kind == NODE_SEQUENCE && !node->open && node->flag;
    return list && node->n > 0 ? about(node->kids[0]) : NULL;
}

static bool is_interval(const ifl_math_node *node) {
    return node->kind == NODE_SEQUENCE && node->n == 2 &&
           strchr("([", node->open ? node->open : '-') && node->open != '{';
}

bool ifl_math_is_real_set(const ifl_math_node *node) {
    if (node->kind == NODE_UNION || node->kind == NODE_INTERSECTION || node->kind == NODE_WITHOUT)
        return true;
    if (node->kind == NODE_SEQUENCE && !node->open && node->flag) {
        for (int i = 0; i < node->n; i++)
            if (!is_inequality(node->kids[i])) return false;
        return true;
    }
    return is_inequality(node) || is_reals(node);
}

static int order(pieces *s, ifl_math_node *a, ifl_math_node *b) {
    int o = ifl_math_order(s->work, a, b);
    if (o == 2) s->unknown = true;
    return o;
}

static void push(pieces *s, ifl_math_node *low, bool has_low, ifl_math_node *high, bool has_high) {
    if (s->n == PIECES_MAX || !low || !high) {
        s->unknown = true;
        return;
    }
    int o = order(s, low, high);
    if (o == 2 || o > 0 || (o == 0 && !(has_low && has_high))) return; /* empty */
    s->at[s->n++] = (piece){low, high, has_low, has_high};
}

static ifl_math_node *infinity(pieces *s, bool negative) {
    ifl_math_node *node = ifl_math_node_new(s->work, NODE_INFINITY, 0);
    return negative ? ifl_math_node_of(s->work, NODE_NEG, node, NULL) : node;
}

/* Sorts by lower end and joins what touches. */
static void tidy(pieces *s) {
    for (int i = 1; i < s->n; i++)
        for (int j = i; j > 0; j--) {
            int o = order(s, s->at[j].low, s->at[j - 1].low);
            if (o > 0 || (o == 0 && (!s->at[j].has_low || s->at[j - 1].has_low))) break;
            piece t = s->at[j];
            s->at[j] = s->at[j - 1];
            s->at[j - 1] = t;
        }
    int n = 0;
    for (int i = 0; i < s->n && !s->unknown; i++) {
        piece *last = n > 0 ? &s->at[n - 1] : NULL;
        int o = last ? order(s, s->at[i].low, last->high) : 1;
        if (o > 0 || (o == 0 && !s->at[i].has_low && !last->has_high)) {
            s->at[n++] = s->at[i];
            continue;
        }
        int end = order(s, s->at[i].high, last->high);
        if (end > 0) {
            last->high = s->at[i].high;
            last->has_high = s->at[i].has_high;
        } else if (end == 0) {
            last->has_high |= s->at[i].has_high;
        }
    }
    s->n = n;
}

static void intersect(pieces *out, const pieces *a, const pieces *b) {
    for (int i = 0; i < a->n; i++)
        for (int j = 0; j < b->n && !out->unknown; j++) {
            const piece *x = &a->at[i], *y = &b->at[j];
            int low = order(out, x->low, y->low), high = order(out, x->high, y->high);
            push(out, low >= 0 ? x->low : y->low,
                 low == 0 ? x->has_low && y->has_low : (low > 0 ? x : y)->has_low,
                 high <= 0 ? x->high : y->high,
                 high == 0 ? x->has_high && y->has_high : (high < 0 ? x : y)->has_high);
        }
}

/* s must be tidy. */
static void complement(pieces *out, const pieces *s) {
    ifl_math_node *low = infinity(out, true);
    bool has_low = false;
    for (int i = 0; i < s->n; i++) {
        push(out, low, has_low, s->at[i].low, !s->at[i].has_low);
        low = s->at[i].high;
        has_low = !s->at[i].has_high;
    }
    push(out, low, has_low, infinity(out, false), false);
}

/* The x with |x| between the two. */
static bool push_modulus(pieces *out, ifl_math_node *low, bool has_low, ifl_math_node *high,
                         bool has_high) {
    ifl_math_node *zero = ifl_math_number(out->work, 0),
                  *below = ifl_math_node_of(out->work, NODE_NEG, high, NULL);
    int sign = zero ? order(out, low, zero) : 2;
    if (!below || sign == 2) return false;
    if (sign < 0 || (sign == 0 && has_low)) { /* no lower bound of a modulus */
        push(out, below, has_high, high, has_high);
        return true;
    }
    push(out, low, has_low, high, has_high);
    push(out, below, has_high, ifl_math_node_of(out->work, NODE_NEG, low, NULL), has_low);
    return true;
}

/* "a < x <= b", "5 > x", "x != 3": false when it isn't about one symbol alone. */
static bool inequality_pieces(pieces *out, ifl_math_node *node) {
    int at = -1;
    for (int i = 0; i < node->n; i++) {
        if ((is_variable(node->kids[i]) || is_modulus(node->kids[i])) && at < 0)
            at = i;
        else if (ifl_math_contains(node->kids[i], NODE_SYMBOL))
            return false;
    }
    if (at < 0 || node->n > 3 || (node->n == 3 && at != 1)) return false;
    ifl_math_node *low = infinity(out, true), *high = infinity(out, false);
    bool has_low = false, has_high = false;
    for (int i = 0; i < node->n; i++) {
        if (i == at) continue;
        char op = node->name[i < at ? i : i - 1];
        if (op == '!') {
            if (node->n != 2 || is_modulus(node->kids[at])) return false;
            push(out, low, false, node->kids[i], false);
            push(out, node->kids[i], false, high, false);
            return true;
        }
        bool less = op == '<' || op == 'l', closed = op == 'l' || op == 'g';
        if (less == (i < at)) {
            low = node->kids[i];
            has_low = closed;
        } else {
            high = node->kids[i];
            has_high = closed;
        }
    }
    if (is_modulus(node->kids[at])) return push_modulus(out, low, has_low, high, has_high);
    push(out, low, has_low, high, has_high);
    return true;
}

static bool collect(pieces *out, ifl_math_node *node);

/* Not the 6 of "6 and 8", which would have nothing in common with 8. */
static bool is_condition(const ifl_math_node *node) {
    return node->kind == NODE_RELATION || is_interval(node) || ifl_math_is_real_set(node);
}

static bool combined(pieces *out, ifl_math_node *a, ifl_math_node *b, ifl_math_kind kind) {
    pieces *work = ifl_math_alloc(out->work, 3 * sizeof *work);
    if (!work) return false;
    for (int i = 0; i < 3; i++)
        work[i].work = out->work;
    if (!collect(&work[0], a) || !collect(&work[1], b)) return false;
    tidy(&work[0]);
    tidy(&work[1]);
    out->unknown |= work[0].unknown || work[1].unknown;
    if (kind == NODE_WITHOUT) {
        complement(&work[2], &work[1]);
        out->unknown |= work[2].unknown;
        intersect(out, &work[0], &work[2]);
    } else {
        intersect(out, &work[0], &work[1]);
    }
    return true;
}

/* Adds the node's pieces; false when it is no set of real numbers. */
static bool collect(pieces *out, ifl_math_node *node) {
    if (node->kind == NODE_EMPTY_SET) return true;
    if (is_reals(node)) {
        push(out, infinity(out, true), false, infinity(out, false), false);
        return true;
    }
    if (node->kind == NODE_UNION) return collect(out, node->kids[0]) && collect(out, node->kids[1]);
    if (node->kind == NODE_INTERSECTION || node->kind == NODE_WITHOUT)
        return combined(out, node->kids[0], node->kids[1], node->kind);
    if (is_interval(node)) {
        int ends = order(out, node->kids[0], node->kids[1]);
        if (ends == 1 || (ends == 0 && (node->open != '[' || node->close != ']')))
            return false; /* (2, 1) is a point, no empty set */
        push(out, node->kids[0], node->open == '[', node->kids[1], node->close == ']');
        return true;
    }
    if (is_inequality(node)) return inequality_pieces(out, node);
    if (node->kind == NODE_RELATION && strcmp(node->name, "e") == 0)
        return collect(out, node->kids[1]);
    if (node->kind == NODE_NUMBER || node->kind == NODE_NEG) { /* {2} without its backslashes */
        push(out, node, true, node, true);
        return true;
    }
    if (node->kind != NODE_SEQUENCE) return false;
    bool braced = node->open == '{';
    if (!braced && node->flag == 2 && node->n == 2 && is_condition(node->kids[0]) &&
        is_condition(node->kids[1]))
        return combined(out, node->kids[0], node->kids[1], NODE_INTERSECTION);
    if (!braced && node->flag != 1) return false;
    for (int i = 0; i < node->n; i++) {
        if (!braced) {
            if (!collect(out, node->kids[i])) return false;
        } else {
            if (node->kids[i]->kind == NODE_EMPTY_SET) return false; /* {{}} holds something */
            push(out, node->kids[i], true, node->kids[i], true);
        }
    }
    return true;
}

ifl_math_shown ifl_math_real_sets(ifl_math_work *work, ifl_math_node *gold, ifl_math_node *answer) {
    const ifl_math_node *a = about(gold), *b = about(answer);
    if (a && b && !ifl_math_same(work, a, b)) return SHOWN_DIFFERENT;
    pieces *s = ifl_math_alloc(work, 2 * sizeof *s);
    if (!s) return SHOWN_NOTHING;
    s[0].work = s[1].work = work;
    if (!collect(&s[0], gold) || !collect(&s[1], answer)) return SHOWN_DIFFERENT;
    tidy(&s[0]);
    tidy(&s[1]);
    bool same = s[0].n == s[1].n;
    for (int i = 0; i < s[0].n && same; i++) {
        const piece *x = &s[0].at[i], *y = &s[1].at[i];
        same = x->has_low == y->has_low && x->has_high == y->has_high &&
               order(&s[0], x->low, y->low) == 0 && order(&s[0], x->high, y->high) == 0;
    }
    if (s[0].unknown || s[1].unknown || work->limit) return SHOWN_NOTHING;
    return same ? SHOWN_EQUAL : SHOWN_DIFFERENT;
}

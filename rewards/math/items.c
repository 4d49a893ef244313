/* Two answers of any type: which parts are compared with which, and what only labels them. */
#include <string.h>

#include "rewards/math/tree.h"

#define ROUNDED_TOLERANCE 0.01 /* of the decimal behind an exact value */

static bool op_is(const ifl_math_node *node, const char *ops) {
    return node->kind == NODE_RELATION && node->name[0] && !node->name[1] &&
           strchr(ops, node->name[0]);
}

/* What may stand before "=" as the name of the answer: x, f(x), AB, m\angle ABC. */
static bool is_label(const ifl_math_node *node) {
    if (node->kind == NODE_SYMBOL || node->kind == NODE_TEXT) return true;
    if (node->kind == NODE_ABS) return is_label(node->kids[0]);
    if (node->kind == NODE_E || node->kind == NODE_I) return true;
    if (node->kind == NODE_SEQUENCE && node->open == '(') { /* (x, y) = (1, 2) */
        for (int i = 0; i < node->n; i++)
            if (node->kids[i]->kind != NODE_SYMBOL) return false;
        return true;
    }
    if (node->kind != NODE_MUL) return false;
    bool named = node->n == 2 && node->kids[0]->kind == NODE_SYMBOL &&
                 strchr("fghpqFGHPQTSV", node->kids[0]->name[0]);
    named |= node->kids[0]->kind == NODE_SYMBOL && strcmp(node->kids[0]->name, "angle") == 0;
    bool text = false;
    for (int i = 0; i < node->n; i++) {
        if (node->kids[i]->kind != NODE_SYMBOL && node->kids[i]->kind != NODE_TEXT && !named)
            return false;
        text |= node->kids[i]->kind == NODE_TEXT;
    }
    return named || text;
}

/* NO/BO, V_1 : V_2: a quotient of what has a name. */
static bool is_named_ratio(const ifl_math_node *node) {
    if (node->kind != NODE_RATIO && node->kind != NODE_DIV) return false;
    for (int i = 0; i < node->n; i++) {
        const ifl_math_node *kid = node->kids[i];
        for (int k = 0; k < (kid->kind == NODE_MUL ? kid->n : 1); k++) {
            const ifl_math_node *name = kid->kind == NODE_MUL ? kid->kids[k] : kid;
            bool upper = name->kind == NODE_SYMBOL && name->name[0] >= 'A' && name->name[0] <= 'Z';
            if (!upper && name->kind != NODE_TEXT) return false;
        }
    }
    return true;
}

static bool is_labelled(const ifl_math_node *node) {
    return op_is(node, "=~") && is_label(node->kids[0]) && !is_label(node->kids[1]);
}

/* "x = 2 + 3 = 5" is "x = 5" when its members agree. */
static ifl_math_node *chain_shortened(ifl_math_work *work, ifl_math_node *node) {
    if (node->kind != NODE_RELATION || node->n < 3 || !is_label(node->kids[0])) return node;
    for (int i = 0; i + 1 < node->n; i++)
        if (!strchr("=~", node->name[i])) return node;
    for (int i = 1; i + 1 < node->n; i++) {
        bool rounded = node->name[i] == '~';
        if (!rounded && ifl_math_equal(work, node->kids[i], node->kids[node->n - 1]) != SHOWN_EQUAL)
            return node;
    }
    ifl_math_node *out =
        ifl_math_node_of(work, NODE_RELATION, node->kids[0], node->kids[node->n - 1]);
    if (out) out->name = "=";
    return out ? out : node;
}

ifl_math_node *ifl_math_exact_side(ifl_math_work *work, ifl_math_node *node) {
    if (!node || node->kind != NODE_RELATION || node->name[node->n - 2] != '~') return node;
    ifl_math_node *exact = node->kids[node->n - 2], *rounded = node->kids[node->n - 1];
    bool constant = !ifl_math_contains(exact, NODE_SYMBOL) && !ifl_math_contains(exact, NODE_TEXT);
    if (!constant || ifl_math_within(work, rounded, exact, ROUNDED_TOLERANCE, 0) != SHOWN_EQUAL)
        return node;
    if (node->n == 2) return exact;
    ifl_math_node *out = ifl_math_node_new(work, NODE_RELATION, node->n - 1);
    if (!out) return NULL;
    for (int i = 0; i < out->n; i++)
        out->kids[i] = node->kids[i];
    out->depth = node->depth;
    out->name = ifl_math_text(work, node->name, (size_t)node->n - 2);
    return out->name ? out : NULL;
}

/* a = b as a - b. */
static ifl_math_node *difference(ifl_math_work *work, ifl_math_node *node, bool swapped) {
    ifl_math_node *b = ifl_math_node_of(work, NODE_NEG, node->kids[!swapped], NULL);
    return b ? ifl_math_node_of(work, NODE_ADD, node->kids[swapped], b) : NULL;
}

static ifl_math_shown any_of(ifl_math_shown a, ifl_math_shown b) {
    return a == SHOWN_EQUAL || b == SHOWN_EQUAL           ? SHOWN_EQUAL
           : a == SHOWN_DIFFERENT && b == SHOWN_DIFFERENT ? SHOWN_DIFFERENT
                                                          : SHOWN_NOTHING;
}

/* a = b and c = d are one when a - b is a multiple of c - d; a < b and c < d when the factor is
 * positive. */
static ifl_math_shown relations_scaled(ifl_math_work *work, ifl_math_node *gold,
                                       ifl_math_node *answer) {
    bool equation = strchr("=!~", gold->name[0]);
    bool down_gold = strchr(">g", gold->name[0]), down_answer = strchr(">g", answer->name[0]);
    bool closed_gold = strchr("lg", gold->name[0]), closed_answer = strchr("lg", answer->name[0]);
    if (!equation && closed_gold != closed_answer) return SHOWN_DIFFERENT;
    ifl_math_node *f = difference(work, gold, !equation && down_gold),
                  *g = difference(work, answer, !equation && down_answer);
    if (!f || !g) return SHOWN_NOTHING;
    (void)ifl_math_rational(work, f);
    (void)ifl_math_rational(work, g);
    bool constant = !ifl_math_contains(f, NODE_SYMBOL) || !ifl_math_contains(g, NODE_SYMBOL);
    if (constant) return SHOWN_DIFFERENT; /* 5 = 5 says nothing */
    ifl_math_shown shown = ifl_math_modular(work, f, g, true);
    if (shown == SHOWN_EQUAL && !equation)
        shown = ifl_math_factor_sign(work, f, g) > 0 ? SHOWN_EQUAL : SHOWN_DIFFERENT;
    if (shown != SHOWN_NOTHING) return shown;
    ifl_math_shown same = ifl_math_equal(work, f, g);
    if (same == SHOWN_EQUAL || !equation) return same == SHOWN_EQUAL ? same : SHOWN_NOTHING;
    ifl_math_node *minus = ifl_math_node_of(work, NODE_NEG, g, NULL);
    ifl_math_shown opposite = minus ? ifl_math_equal(work, f, minus) : SHOWN_NOTHING;
    /* Not the same and not the opposite: some other multiple is possible. */
    return opposite == SHOWN_EQUAL ? opposite : SHOWN_NOTHING;
}

/* y = 2x and f(x) = 2x. */
static bool names_function(const ifl_math_node *a, const ifl_math_node *b) {
    bool swapped = ifl_math_is_function_value(b->kids[0]);
    const ifl_math_node *f = (swapped ? b : a)->kids[0], *y = (swapped ? a : b)->kids[0];
    return ifl_math_is_function_value(f) && y->kind == NODE_SYMBOL && strcmp(y->name, "y") == 0 &&
           ifl_math_contains(a->kids[1], NODE_SYMBOL) && ifl_math_contains(b->kids[1], NODE_SYMBOL);
}

static ifl_math_shown relations_equal(ifl_math_work *work, ifl_math_node *gold,
                                      ifl_math_node *answer) {
    bool set_gold = ifl_math_is_real_set(gold), set_answer = ifl_math_is_real_set(answer);
    if ((set_gold || op_is(gold, "e")) && (set_answer || op_is(answer, "e")) &&
        (set_gold || set_answer)) {
        ifl_math_shown shown = ifl_math_real_sets(work, gold, answer);
        bool plain = ifl_math_is_plain_inequality(gold) && ifl_math_is_plain_inequality(answer);
        if (shown == SHOWN_EQUAL || plain) return shown;
    }
    if (gold->n != 2 || answer->n != 2) {
        if (gold->n != answer->n || strcmp(gold->name, answer->name) != 0) return SHOWN_DIFFERENT;
        ifl_math_shown all = SHOWN_EQUAL;
        for (int i = 0; i < gold->n && all == SHOWN_EQUAL; i++)
            all = ifl_math_equal(work, gold->kids[i], answer->kids[i]);
        return all;
    }
    char a = gold->name[0] == '~' ? '=' : gold->name[0],
         b = answer->name[0] == '~' ? '=' : answer->name[0];
    bool orders = strchr("<>lg", a) && strchr("<>lg", b);
    if (a != b && !orders) return SHOWN_DIFFERENT;
    if (a == '=' && names_function(gold, answer))
        return ifl_math_item_equal(work, gold->kids[1], answer->kids[1]);
    if (is_label(gold->kids[0]) && ifl_math_same(work, gold->kids[0], answer->kids[0]) && a == b) {
        ifl_math_shown shown = ifl_math_item_equal(work, gold->kids[1], answer->kids[1]);
        if (shown == SHOWN_EQUAL || a != '=') return shown;
    }
    return strchr("=!<>lg", a) ? relations_scaled(work, gold, answer) : SHOWN_DIFFERENT;
}

/* --- Lists */

/* The items of a list, a plus-minus standing for two. */
static ifl_math_node *expanded(ifl_math_work *work, ifl_math_node *node) {
    int n = 0;
    bool list = node->kind == NODE_SEQUENCE;
    for (int i = 0; i < (list ? node->n : 1); i++)
        n += ifl_math_contains(list ? node->kids[i] : node, NODE_PLUS_MINUS) ? 2 : 1;
    if (list && n == node->n) return node;
    ifl_math_node *out = ifl_math_node_new(work, NODE_SEQUENCE, n);
    if (!out) return NULL;
    out->open = node->open;
    out->close = node->close;
    out->depth = node->depth + 1;
    int at = 0;
    for (int i = 0; i < (list ? node->n : 1); i++) {
        ifl_math_node *item = list ? node->kids[i] : node;
        bool both = ifl_math_contains(item, NODE_PLUS_MINUS);
        for (int sign = 1; sign >= (both ? -1 : 1); sign -= 2)
            if (!(out->kids[at++] = ifl_math_choose(work, item, sign))) return NULL;
    }
    return out;
}

/* "x = 1, 2" and "x = 1, x = 2" are 1, 2; "x = 1, y = 2" keeps its labels. */
static void unlabel(ifl_math_work *work, ifl_math_node *list) {
    if (list->n == 0 || !is_labelled(list->kids[0])) return;
    ifl_math_node *label = list->kids[0]->kids[0];
    for (int i = 1; i < list->n; i++)
        if (list->kids[i]->kind == NODE_RELATION &&
            !(is_labelled(list->kids[i]) && ifl_math_same(work, label, list->kids[i]->kids[0])))
            return;
    for (int i = 0; i < list->n; i++)
        if (list->kids[i]->kind == NODE_RELATION) list->kids[i] = list->kids[i]->kids[1];
}

static bool all_labelled(const ifl_math_node *list) {
    for (int i = 0; i < list->n; i++)
        if (!is_labelled(list->kids[i])) return false;
    return list->n > 1;
}

static ifl_math_shown ordered_equal(ifl_math_work *work, const ifl_math_node *gold,
                                    const ifl_math_node *answer) {
    ifl_math_shown all = SHOWN_EQUAL;
    if (gold->n != answer->n) return SHOWN_DIFFERENT;
    for (int i = 0; i < gold->n; i++) {
        ifl_math_shown one = ifl_math_item_equal(work, gold->kids[i], answer->kids[i]);
        if (one == SHOWN_DIFFERENT) return one;
        if (one != SHOWN_EQUAL) all = one;
    }
    return all;
}

/* Every item of one list is in the other, and the other way round. `counted`: as often. */
static ifl_math_shown unordered_equal(ifl_math_work *work, const ifl_math_node *gold,
                                      const ifl_math_node *answer, bool counted) {
    if (counted && gold->n != answer->n) return SHOWN_DIFFERENT;
    bool *used = ifl_math_alloc(work, (size_t)answer->n + 1);
    bool unsure = false;
    if (!used) return SHOWN_NOTHING;
    for (int i = 0; i < gold->n; i++) {
        bool found = false, maybe = false;
        for (int k = 0; k < answer->n && !(found && counted); k++) {
            int j = (i + k) % answer->n; /* mostly they come in one order */
            if (counted && used[j]) continue;
            ifl_math_shown one = ifl_math_item_equal(work, gold->kids[i], answer->kids[j]);
            if (work->limit) return SHOWN_NOTHING;
            if (one == SHOWN_EQUAL) found = used[j] = true;
            maybe |= one != SHOWN_EQUAL && one != SHOWN_DIFFERENT;
        }
        if (!found && !maybe) return SHOWN_DIFFERENT;
        unsure |= !found;
    }
    for (int j = 0; j < answer->n; j++)
        if (!used[j] && !unsure) return SHOWN_DIFFERENT;
    return unsure ? SHOWN_NOTHING : SHOWN_EQUAL;
}

/* Points: to name one twice says nothing else, as a root that is named twice may. */
static bool all_points(const ifl_math_node *list) {
    for (int i = 0; i < list->n; i++)
        if (list->kids[i]->kind != NODE_SEQUENCE || list->kids[i]->open != '(') return false;
    return list->n > 1;
}

static ifl_math_shown lists_equal(ifl_math_work *work, ifl_math_node *gold, ifl_math_node *answer) {
    ifl_math_type type = work->options->answer_type;
    bool plus_minus =
        ifl_math_contains(gold, NODE_PLUS_MINUS) || ifl_math_contains(answer, NODE_PLUS_MINUS);
    if (plus_minus || gold->kind != answer->kind) {
        gold = expanded(work, gold);
        answer = gold ? expanded(work, answer) : NULL;
        if (!answer) return SHOWN_NOTHING;
    }
    bool labels = all_labelled(gold) != all_labelled(answer);
    unlabel(work, gold);
    unlabel(work, answer);
    bool set_gold = !gold->open || gold->open == '{',
         set_answer = !answer->open || answer->open == '{';
    if (type == IFL_MATH_TYPE_SET) return unordered_equal(work, gold, answer, false);
    if (type == IFL_MATH_TYPE_TUPLE) return ordered_equal(work, gold, answer);
    if (type == IFL_MATH_TYPE_INTERVAL &&
        (gold->open != answer->open || gold->close != answer->close))
        return SHOWN_DIFFERENT;
    if (set_gold && set_answer) {
        if (labels && (all_labelled(gold) || all_labelled(answer)))
            return ordered_equal(work, gold, answer);
        return unordered_equal(work, gold, answer,
                               !(gold->open || answer->open) && !all_points(gold));
    }
    if (gold->open == '{' || answer->open == '{') return SHOWN_DIFFERENT;
    if (gold->n == 2 && gold->open && answer->open &&
        (gold->open != answer->open || gold->close != answer->close))
        return SHOWN_DIFFERENT;
    return ordered_equal(work, gold, answer);
}

static ifl_math_shown matrices_equal(ifl_math_work *work, const ifl_math_node *gold,
                                     const ifl_math_node *answer) {
    if (gold->kind == NODE_MATRIX && answer->kind == NODE_MATRIX) {
        if (gold->flag != answer->flag) return SHOWN_DIFFERENT;
    } else {
        const ifl_math_node *matrix = gold->kind == NODE_MATRIX ? gold : answer;
        const ifl_math_node *list = gold->kind == NODE_MATRIX ? answer : gold;
        bool vector = matrix->flag == 1 || matrix->flag == matrix->n;
        if (!vector || (list->open != '(' && list->open != '[')) return SHOWN_DIFFERENT;
    }
    return ordered_equal(work, gold, answer);
}

/* --- What stands around a value */

static ifl_math_shown units_equal(ifl_math_work *work, ifl_math_node *gold, ifl_math_node *answer) {
    bool on_gold = gold->kind == NODE_UNIT, on_answer = answer->kind == NODE_UNIT;
    ifl_math_node *a = on_gold ? gold->kids[0] : gold, *b = on_answer ? answer->kids[0] : answer;
    ifl_math_units rule = work->options->units;
    if (rule != IFL_MATH_UNITS_IGNORED) {
        bool percent = a->kind == NODE_PERCENT || b->kind == NODE_PERCENT;
        if (percent && !(on_gold && on_answer) && strcmp((on_gold ? gold : answer)->name, "%") != 0)
            return SHOWN_DIFFERENT; /* 15 % is no 15 cm */
        if (rule == IFL_MATH_UNITS_REQUIRED && on_gold && !on_answer) return SHOWN_DIFFERENT;
        /* Of "12 red apples" and "12 apples" one says more; "12 pears" says another thing. */
        if (on_gold && on_answer && strcmp(gold->name, answer->name) != 0) {
            size_t m = strlen(gold->name), n = strlen(answer->name);
            const char *longer = m > n ? gold->name : answer->name,
                       *shorter = m > n ? answer->name : gold->name;
            size_t k = m > n ? n : m, l = m > n ? m : n;
            bool begins = strncmp(longer, shorter, k) == 0 && longer[k] == ' ';
            bool ends = l > k && strcmp(longer + l - k, shorter) == 0 && longer[l - k - 1] == ' ';
            if (!begins && !ends) return SHOWN_DIFFERENT;
        }
    }
    return ifl_math_item_equal(work, a, b);
}

static ifl_math_shown percents_equal(ifl_math_work *work, ifl_math_node *gold,
                                     ifl_math_node *answer) {
    bool on_gold = gold->kind == NODE_PERCENT, on_answer = answer->kind == NODE_PERCENT;
    if (on_gold && on_answer) return ifl_math_item_equal(work, gold->kids[0], answer->kids[0]);
    ifl_math_shown value = ifl_math_equal(work, gold, answer);
    if (value == SHOWN_EQUAL || work->options->percent == IFL_MATH_PERCENT_VALUE) return value;
    return any_of(value, ifl_math_item_equal(work, on_gold ? gold->kids[0] : gold,
                                             on_answer ? answer->kids[0] : answer));
}

/* 3 : 4 and 6 : 8. Against a number a ratio of two is their quotient. */
static ifl_math_shown ratios_equal(ifl_math_work *work, ifl_math_node *gold,
                                   ifl_math_node *answer) {
    if (gold->kind != answer->kind)
        return ifl_math_rational(work, gold) && ifl_math_rational(work, answer) &&
                       fmpq_equal(gold->value, answer->value)
                   ? SHOWN_EQUAL
                   : SHOWN_DIFFERENT;
    if (gold->n != answer->n) return SHOWN_DIFFERENT;
    ifl_math_shown all = SHOWN_EQUAL;
    for (int i = 1; i < gold->n; i++) {
        ifl_math_node *a = ifl_math_node_of(work, NODE_MUL, gold->kids[i], answer->kids[0]);
        ifl_math_node *b = ifl_math_node_of(work, NODE_MUL, answer->kids[i], gold->kids[0]);
        ifl_math_shown one = a && b ? ifl_math_equal(work, a, b) : SHOWN_NOTHING;
        if (one == SHOWN_DIFFERENT) return one;
        if (one != SHOWN_EQUAL) all = one;
    }
    return all;
}

/* 101_2 is 101 where the task says the base, and 5. */
static ifl_math_shown numerals_equal(ifl_math_node *gold, ifl_math_node *answer) {
    if (answer->kind == NODE_NUMBER && fmpz_is_one(fmpq_denref(answer->value)) &&
        strlen(gold->name) < 512) {
        char *digits = fmpz_get_str(NULL, 10, fmpq_numref(answer->value));
        bool same = strcmp(digits, gold->name) == 0;
        flint_free(digits);
        return same ? SHOWN_EQUAL : SHOWN_DIFFERENT;
    }
    return answer->kind == NODE_BASED && answer->flag == gold->flag &&
                   strcmp(answer->name, gold->name) == 0
               ? SHOWN_EQUAL
               : SHOWN_DIFFERENT;
}

static ifl_math_node *mark(ifl_math_node *node) {
    ifl_math_node *number = node->kind == NODE_NEG ? node->kids[0] : node;
    if (number->kind == NODE_NUMBER) number->marked = true;
    return node;
}

static ifl_math_shown one_relation(ifl_math_work *work, ifl_math_node *gold,
                                   ifl_math_node *answer) {
    ifl_math_node *relation = gold->kind == NODE_RELATION ? gold : answer;
    ifl_math_node *other = relation == gold ? answer : gold, *value = NULL;
    if (op_is(relation, "e"))
        value = relation->kids[1];
    else if (is_labelled(relation) || (op_is(relation, "=") && is_label(relation->kids[0])))
        value = relation->kids[1];
    else if (op_is(relation, "=") && is_label(relation->kids[1]))
        value = relation->kids[0];
    else if (op_is(relation, "=") && is_named_ratio(relation->kids[0]) &&
             !ifl_math_contains(relation->kids[1], NODE_SYMBOL))
        value = relation->kids[1];
    if (value && relation->name[0] == '~') value = mark(value);
    if (value)
        return relation == gold ? ifl_math_item_equal(work, value, other)
                                : ifl_math_item_equal(work, other, value);
    return ifl_math_is_real_set(relation) ? ifl_math_real_sets(work, gold, answer)
                                          : SHOWN_DIFFERENT;
}

ifl_math_shown ifl_math_item_equal(ifl_math_work *work, ifl_math_node *gold,
                                   ifl_math_node *answer) {
    if (!ifl_math_step(work, 2)) return SHOWN_NOTHING;
    gold = ifl_math_matrix_worked(work, chain_shortened(work, gold));
    answer = ifl_math_matrix_worked(work, chain_shortened(work, answer));
#define EITHER(what) (gold->kind == (what) || answer->kind == (what))
#define BOTH(what) (gold->kind == (what) && answer->kind == (what))
    if (BOTH(NODE_TEXT))
        return strcmp(gold->name, answer->name) == 0 ? SHOWN_EQUAL : SHOWN_DIFFERENT;
    bool plus_minus =
        ifl_math_contains(gold, NODE_PLUS_MINUS) || ifl_math_contains(answer, NODE_PLUS_MINUS);
    if (plus_minus) return lists_equal(work, gold, answer);
    if (BOTH(NODE_RELATION)) return relations_equal(work, gold, answer);
    bool sets = ifl_math_is_real_set(gold) || ifl_math_is_real_set(answer);
    if (EITHER(NODE_RELATION) && !(sets && !op_is(gold, "e") && !op_is(answer, "e")))
        return one_relation(work, gold, answer);
    if (sets && !(gold->kind == NODE_SYMBOL && answer->kind == NODE_SYMBOL))
        return ifl_math_real_sets(work, gold, answer);
    if (EITHER(NODE_UNIT)) return units_equal(work, gold, answer);
    if (EITHER(NODE_EMPTY_SET))
        return BOTH(NODE_EMPTY_SET) ? SHOWN_EQUAL : ifl_math_real_sets(work, gold, answer);
    if (EITHER(NODE_MATRIX))
        return (gold->kind == NODE_MATRIX || gold->kind == NODE_SEQUENCE) &&
                       (answer->kind == NODE_MATRIX || answer->kind == NODE_SEQUENCE)
                   ? matrices_equal(work, gold, answer)
                   : SHOWN_DIFFERENT;
    if (BOTH(NODE_SEQUENCE)) return lists_equal(work, gold, answer);
    if (EITHER(NODE_SEQUENCE)) {
        ifl_math_node *list = gold->kind == NODE_SEQUENCE ? gold : answer;
        if (list->n != 1) return SHOWN_DIFFERENT;
        return list == gold ? ifl_math_item_equal(work, list->kids[0], answer)
                            : ifl_math_item_equal(work, gold, list->kids[0]);
    }
    if (EITHER(NODE_PERCENT)) return percents_equal(work, gold, answer);
    if (EITHER(NODE_RATIO)) return ratios_equal(work, gold, answer);
    if (gold->kind == NODE_BASED && numerals_equal(gold, answer) == SHOWN_EQUAL) return SHOWN_EQUAL;
    return ifl_math_equal(work, gold, answer);
#undef EITHER
#undef BOTH
}

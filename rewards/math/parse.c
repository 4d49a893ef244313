/* The grammar, from lists down to factors. Recursive descent; every level of nesting counts. */
#include "rewards/math/parse.h"

#include <string.h>

/* A bracket passes through so many counted functions: list, sum, factor, atom, brackets. */
#define ENTRIES_PER_BRACKET 5
#define LIST_MAX 4096 /* parts of a sum, product or list */

/* Kids while their number isn't known. Grows in the arena by doubling. */
typedef struct parts {
    ifl_math_node **at;
    int n, n_max;
} parts;

static bool parts_push(ifl_math_head *p, parts *x, ifl_math_node *node) {
    if (!node) return false;
    if (x->n == LIST_MAX) {
        p->work->limit = "parts of a sum, product or list (4096)";
        return false;
    }
    if (x->n == x->n_max) {
        int n_max = x->n_max ? 2 * x->n_max : 4;
        ifl_math_node **at = ifl_math_alloc(p->work, (size_t)n_max * sizeof *at);
        if (!at) return false;
        if (x->n) memcpy(at, x->at, (size_t)x->n * sizeof *at);
        x->at = at;
        x->n_max = n_max;
    }
    x->at[x->n++] = node;
    return true;
}

static ifl_math_node *parts_node(ifl_math_head *p, const parts *x, ifl_math_kind kind) {
    ifl_math_node *node = ifl_math_node_new(p->work, kind, x->n);
    if (!node) return NULL;
    for (int i = 0; i < x->n; i++) {
        node->kids[i] = x->at[i];
        if (x->at[i]->depth >= node->depth) node->depth = x->at[i]->depth + 1;
    }
    if (node->depth > IFL_MATH_DEPTH_MAX) {
        p->work->limit = "depth of an expression (200)";
        return NULL;
    }
    return node;
}

bool ifl_math_enter(ifl_math_head *p) {
    if (p->depth == IFL_MATH_DEPTH_MAX * ENTRIES_PER_BRACKET) {
        p->work->limit = "depth of brackets (200)";
        return false;
    }
    if (!ifl_math_step(p->work, 4)) return false;
    p->depth++;
    return true;
}

/* The exponent: TeX takes one digit, people mean the number. */
static ifl_math_node *read_exponent(ifl_math_head *p) {
    if (ifl_math_accept(p, "{")) {
        p->in_group++;
        ifl_math_node *node = ifl_math_read_sum(p);
        p->in_group--;
        if (node && !ifl_math_accept(p, "}")) return ifl_math_refuse(p, "an exponent isn't closed");
        return node;
    }
    bool negative = ifl_math_accept(p, "-");
    ifl_math_skip_space(p);
    ifl_math_node *node =
        ifl_math_is_digit(ifl_math_peek(p, 0)) ? ifl_math_read_number(p) : ifl_math_read_atom(p);
    return negative ? ifl_math_node_of(p->work, NODE_NEG, node, NULL) : node;
}

/* x_1, x_{max}: part of the name. 101_2, 2516_{8}: a numeral in a base. */
static ifl_math_node *read_subscript(ifl_math_head *p, ifl_math_node *node, size_t begin,
                                     size_t end) {
    ifl_slice sub;
    size_t n_base = end - begin;
    const char *base = p->text + begin;
    ifl_math_skip_space(p);
    if (ifl_math_accept(p, "{")) {
        if (!ifl_math_braced(p, &sub)) return NULL;
    } else {
        sub = (ifl_slice){p->text + p->at, p->at < p->n};
        while (sub.n > 0 && ifl_math_is_digit(*sub.text) && p->at + sub.n < p->n &&
               ifl_math_is_digit(sub.text[sub.n]) && sub.n < 2)
            sub.n++;
        p->at += sub.n;
    }
    sub = ifl_slice_trim(sub);
    if (sub.n > 5 && memcmp(sub.text, "\\text", 5) == 0) sub = ifl_math_words(p->work, sub);
    if (sub.n == 0 || sub.n > 64 || n_base > 4096) return ifl_math_refuse(p, "a strange subscript");
    int radix = sub.n <= 2 && ifl_math_is_digit(*sub.text) ? *sub.text - '0' : 0;
    if (radix > 0 && sub.n == 2 && ifl_math_is_digit(sub.text[1]))
        radix = radix * 10 + sub.text[1] - '0';
    if (node->kind == NODE_NUMBER) {
        if (radix < 2 || radix > 36 || node->inexact) return ifl_math_refuse(p, "a strange base");
        for (size_t i = 0; i < n_base; i++)
            if (!ifl_math_is_digit(base[i]) || base[i] - '0' >= radix)
                return ifl_math_refuse(p, "a digit that its base hasn't");
        ifl_math_node *based = ifl_math_node_new(p->work, NODE_BASED, 0);
        if (!based || !(based->name = ifl_math_text(p->work, base, n_base))) return NULL;
        based->flag = radix;
        return based;
    }
    if (node->kind != NODE_SYMBOL && node->kind != NODE_E && node->kind != NODE_I)
        return ifl_math_refuse(p, "a subscript of something that is no symbol");
    const char *stem = node->kind == NODE_SYMBOL ? node->name : node->kind == NODE_E ? "e" : "i";
    char name[256];
    int n = snprintf(name, sizeof name, "%s_%.*s", stem, (int)sub.n, sub.text);
    if (n < 0 || (size_t)n >= sizeof name) return ifl_math_refuse(p, "a long name");
    ifl_math_node *symbol = ifl_math_node_new(p->work, NODE_SYMBOL, 0);
    if (!symbol || !(symbol->name = ifl_math_text(p->work, name, (size_t)n))) return NULL;
    return symbol;
}

static bool degree_follows(const ifl_math_head *p) {
    return ifl_math_at(p, "^\\circ") || ifl_math_at(p, "^{\\circ") || ifl_math_at(p, "^ \\circ");
}

ifl_math_node *ifl_math_read_postfix(ifl_math_head *p) {
    ifl_math_skip_space(p);
    size_t begin = p->at;
    ifl_math_node *node = ifl_math_read_atom(p);
    size_t end = p->at;
    while (node) {
        ifl_math_skip_space(p);
        int c = ifl_math_peek(p, 0);
        if (c == '^' && !degree_follows(p)) {
            p->at++;
            if (ifl_math_at(p, "{\\prime}") || ifl_math_at(p, "\\prime"))
                return ifl_math_refuse(p, "a derivative");
            node = ifl_math_node_of(p->work, NODE_POW, node, read_exponent(p));
            if (node && node->n != 2) return NULL;
        } else if (c == '*' && ifl_math_peek(p, 1) == '*') {
            p->at += 2;
            ifl_math_node *exponent =
                ifl_math_accept(p, "-")
                    ? ifl_math_node_of(p->work, NODE_NEG, ifl_math_read_atom(p), NULL)
                    : ifl_math_read_postfix(p);
            if (!exponent) return NULL;
            node = ifl_math_node_of(p->work, NODE_POW, node, exponent);
        } else if (c == '!' && ifl_math_peek(p, 1) != '=') {
            p->at++;
            if (ifl_math_peek(p, 0) == '!') return ifl_math_refuse(p, "a double factorial");
            node = ifl_math_node_of(p->work, NODE_FACTORIAL, node, NULL);
        } else if (c == '_') {
            p->at++;
            node = read_subscript(p, node, begin, end);
        } else if (c == '%' || (c == '\\' && ifl_math_peek(p, 1) == '%')) {
            p->at += c == '%' ? 1 : 2;
            node = ifl_math_node_of(p->work, NODE_PERCENT, node, NULL);
        } else {
            break;
        }
    }
    return node;
}

/* A unit or per cent sign belongs to the whole: -5 cm is minus five, in cm, and 2 sqrt(3) cm a
 * product. */
static ifl_math_node *hoisted(ifl_math_head *p, ifl_math_node *node) {
    if (!node || (node->kind != NODE_MUL && node->kind != NODE_NEG)) return node;
    ifl_math_node **last = &node->kids[node->n - 1], *unit = *last;
    bool percent = unit->kind == NODE_PERCENT && node->kind == NODE_NEG;
    if (unit->kind != NODE_UNIT && !percent) return node;
    for (int i = 0; i + 1 < node->n; i++)
        if (ifl_math_contains(node->kids[i], NODE_UNIT)) return node;
    *last = unit->kids[0];
    ifl_math_node *out = ifl_math_node_of(p->work, unit->kind, node, NULL);
    if (out) out->name = unit->name;
    return out;
}

static ifl_math_node *read_factor(ifl_math_head *p) {
    if (!ifl_math_enter(p)) return NULL;
    ifl_math_node *node;
    if (ifl_math_accept(p, "-"))
        node = hoisted(p, ifl_math_node_of(p->work, NODE_NEG, read_factor(p), NULL));
    else if (ifl_math_accept(p, "+"))
        node = read_factor(p);
    else
        node = ifl_math_read_postfix(p);
    p->depth--;
    return node;
}

/* Whether 12 and what follows it make 12 x rather than 12 34. */
static bool may_multiply(ifl_math_head *p, size_t end_of_left) {
    if (!ifl_math_atom_begins(p)) return false;
    int left = end_of_left > 0 ? (unsigned char)p->text[end_of_left - 1] : 0;
    return !(ifl_math_is_digit(ifl_math_peek(p, 0)) && left != ')' && left != '}' && left != ']');
}

ifl_math_node *ifl_math_read_factors(ifl_math_head *p) {
    parts x = {0};
    do {
        ifl_math_node *node = ifl_math_read_postfix(p);
        if (node && degree_follows(p)) { /* of an angle */
            node = ifl_math_node_of(p->work, NODE_UNIT, node, NULL);
            if (!node || !(node->name = ifl_math_read_unit(p, false))) return NULL;
        }
        if (!parts_push(p, &x, node)) return NULL;
    } while (may_multiply(p, p->at) && !ifl_math_at(p, "(") && !(ifl_math_command(p) > 1));
    return x.n == 1 ? x.at[0] : parts_node(p, &x, NODE_MUL);
}

static bool accept_multiplied(ifl_math_head *p) {
    ifl_math_skip_space(p);
    if (ifl_math_at(p, "**")) return false;
    return ifl_math_accept(p, "*") || ifl_math_accept_command(p, "cdot") ||
           ifl_math_accept_command(p, "times") || ifl_math_accept_command(p, "ast");
}

static bool accept_divided(ifl_math_head *p) {
    return ifl_math_accept(p, "/") || ifl_math_accept_command(p, "div");
}

/* million and its kin behind a number. */
static slong read_multiplier(ifl_math_head *p) {
    static const struct {
        const char *word;
        slong value;
    } words[] = {{"hundred", 100},        {"thousand", 1000},          {"million", 1000000},
                 {"billion", 1000000000}, {"trillion", 1000000000000}, {"dozen", 12}};
    size_t begin = p->at;
    ifl_math_skip_space(p);
    bool wrapped = ifl_math_accept(p, "\\text{") || ifl_math_accept(p, "\\mathrm{");
    if (wrapped) ifl_math_skip_space(p);
    size_t n = ifl_math_word(p);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t m = strlen(words[i].word);
        if ((n != m && !(n == m + 1 && p->text[p->at + m] == 's')) ||
            memcmp(p->text + p->at, words[i].word, m) != 0)
            continue;
        p->at += n;
        if (wrapped && !ifl_math_accept(p, "}")) break;
        return words[i].value;
    }
    p->at = begin;
    return 1;
}

static ifl_math_node *with_unit(ifl_math_head *p, ifl_math_node *node) {
    const char *unit = ifl_math_read_unit(p, p->reading.units_plain && !p->in_group);
    if (!unit) return NULL;
    if (!*unit) return node;
    node = ifl_math_node_of(p->work, NODE_UNIT, node, NULL);
    if (node) node->name = unit;
    return node;
}

/* 2^6 3^5: behind a power and a space even a number is a factor. */
static bool power_follows(const ifl_math_head *p, const ifl_math_node *left) {
    return left->kind == NODE_POW && p->at > 0 && p->text[p->at - 1] == ' ' &&
           ifl_math_is_digit(ifl_math_peek(p, 0));
}

static ifl_math_node *read_term(ifl_math_head *p) {
    parts x = {0};
    if (!parts_push(p, &x, read_factor(p))) return NULL;
    for (;;) {
        slong scale = x.at[x.n - 1]->kind == NODE_NUMBER ? read_multiplier(p) : 1;
        if (scale > 1 && !parts_push(p, &x, ifl_math_number(p->work, scale))) return NULL;
        ifl_math_node *last =
            x.at[x.n - 1]->kind == NODE_TEXT ? x.at[x.n - 1] : with_unit(p, x.at[x.n - 1]);
        if (!last) return NULL;
        x.at[x.n - 1] = last;
        size_t end = p->at;
        if (accept_multiplied(p)) {
            if (!parts_push(p, &x, read_factor(p))) return NULL;
        } else if (accept_divided(p)) {
            ifl_math_node *left = x.n == 1 ? x.at[0] : parts_node(p, &x, NODE_MUL);
            ifl_math_node *right = left ? read_factor(p) : NULL;
            x.n = 0;
            if (!right || !parts_push(p, &x, ifl_math_node_of(p->work, NODE_DIV, left, right)))
                return NULL;
        } else if (may_multiply(p, end) || power_follows(p, x.at[x.n - 1])) {
            if (!parts_push(p, &x, ifl_math_read_postfix(p))) return NULL;
        } else {
            break;
        }
    }
    return x.n == 1 ? x.at[0] : hoisted(p, parts_node(p, &x, NODE_MUL));
}

ifl_math_node *ifl_math_read_sum(ifl_math_head *p) {
    parts x = {0};
    if (!ifl_math_enter(p)) return NULL;
    for (;;) {
        bool upper = ifl_math_accept_command(p, "mp");
        bool both = upper || ifl_math_accept_command(p, "pm") || ifl_math_accept(p, "+/-") ||
                    ifl_math_accept(p, "+-");
        bool minus = !both && ifl_math_accept(p, "-");
        if (!both && !minus) (void)ifl_math_accept(p, "+");
        ifl_math_node *term = read_term(p);
        if (both || minus)
            term = ifl_math_node_of(p->work, both ? NODE_PLUS_MINUS : NODE_NEG, term, NULL);
        if (minus) term = hoisted(p, term);
        if (term && both) term->flag = upper;
        if (!parts_push(p, &x, term)) return NULL;
        ifl_math_skip_space(p);
        int c = ifl_math_peek(p, 0);
        if (c != '+' && c != '-' && !ifl_math_command_is(p, "pm") && !ifl_math_command_is(p, "mp"))
            break;
        if (c == '-' && ifl_math_peek(p, 1) == '>') return ifl_math_refuse(p, "an arrow");
    }
    p->depth--;
    return x.n == 1 ? x.at[0] : parts_node(p, &x, NODE_ADD);
}

static ifl_math_node *read_ratio(ifl_math_head *p) {
    parts x = {0};
    do {
        if (!parts_push(p, &x, ifl_math_read_sum(p))) return NULL;
    } while (ifl_math_accept(p, ":") || ifl_math_accept_command(p, "colon"));
    if (x.n == 1) return x.at[0];
    return parts_node(p, &x, NODE_RATIO);
}

/* Intersections bind as unions do: from the left. */
static ifl_math_node *read_union(ifl_math_head *p) {
    ifl_math_node *node = read_ratio(p);
    while (node) {
        ifl_math_kind kind;
        if (ifl_math_accept_command(p, "cup"))
            kind = NODE_UNION;
        else if (ifl_math_accept_command(p, "cap"))
            kind = NODE_INTERSECTION;
        else if (ifl_math_accept_command(p, "setminus") || ifl_math_accept_command(p, "backslash"))
            kind = NODE_WITHOUT;
        else if (node->kind == NODE_SEQUENCE && ifl_math_peek(p, 0) == 'U' &&
                 ifl_math_word(p) == 1 && p->at++ < p->n)
            kind = NODE_UNION;
        else
            break;
        ifl_math_node *right = read_ratio(p);
        node = right ? ifl_math_node_of(p->work, kind, node, right) : NULL;
    }
    return node;
}

static char read_operator(ifl_math_head *p) {
    static const struct {
        const char *text;
        char op;
    } signs[] = {{"<=", 'l'}, {">=", 'g'}, {"!=", '!'}, {"==", '='},
                 {"=<", 'l'}, {"=", '='},  {"<", '<'},  {">", '>'}},
      commands[] = {{"le", 'l'},       {"leq", 'l'},      {"leqslant", 'l'}, {"ge", 'g'},
                    {"geq", 'g'},      {"geqslant", 'g'}, {"ne", '!'},       {"neq", '!'},
                    {"lt", '<'},       {"gt", '>'},       {"in", 'e'},       {"approx", '~'},
                    {"approxeq", '~'}, {"simeq", '~'},    {"equiv", '='},    {"notin", 'n'}};
    ifl_math_skip_space(p);
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (ifl_math_accept(p, signs[i].text)) return signs[i].op;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (ifl_math_accept_command(p, commands[i].text)) return commands[i].op;
    return 0;
}

static ifl_math_node *read_relation(ifl_math_head *p) {
    parts x = {0};
    char ops[16];
    int n = 0;
    (void)(ifl_math_accept_command(p, "approx") || ifl_math_accept(p, "~")); /* "about 3.14" */
    for (;;) {
        if (!parts_push(p, &x, read_union(p))) return NULL;
        char op = read_operator(p);
        if (!op) break;
        if (n + 1 == (int)sizeof ops) return ifl_math_refuse(p, "a long chain of relations");
        ops[n++] = op;
        ifl_math_skip_space(p);
        if (p->at == p->n) { /* "x =" */
            return ifl_math_refuse(p, "a relation without its right side");
        }
    }
    if (n == 0) return x.at[0];
    ifl_math_node *node = parts_node(p, &x, NODE_RELATION);
    if (!node || !(node->name = ifl_math_text(p->work, ops, (size_t)n))) return NULL;
    return node;
}

/* ',' ';' "and" "or" between the items of a list: 0 when there is none. */
static char read_separator(ifl_math_head *p) {
    static const char *const texts[] = {"\\text{", "\\mathrm{", "\\textrm{", "\\mbox{"};
    bool comma = ifl_math_accept(p, ",") || ifl_math_accept(p, "{,}");
    bool semicolon = !comma && ifl_math_accept(p, ";");
    size_t begin = p->at;
    bool wrapped = false;
    ifl_math_skip_space(p);
    for (int i = 0; i < 4 && !wrapped; i++)
        wrapped = ifl_math_accept(p, texts[i]);
    if (wrapped) ifl_math_skip_space(p);
    if (wrapped && ifl_math_accept(p, ",")) ifl_math_skip_space(p);
    size_t n = ifl_math_word(p);
    char word = n == 3 && ifl_math_at(p, "and") ? 'a' : n == 2 && ifl_math_at(p, "or") ? 'o' : 0;
    if (word) p->at += n;
    if (word && (!wrapped || ifl_math_accept(p, "}"))) return word;
    p->at = begin;
    if (ifl_math_accept_command(p, "lor") || ifl_math_accept_command(p, "vee")) return 'o';
    if (ifl_math_accept_command(p, "land") || ifl_math_accept_command(p, "wedge")) return 'a';
    p->at = begin;
    return comma ? ',' : semicolon ? ';' : 0;
}

static bool is_assignment(const ifl_math_node *node) {
    return node->kind == NODE_RELATION && node->n == 2 && node->name[0] == '=' &&
           node->kids[0]->kind == NODE_SYMBOL;
}

/* "p = 5, q = 2; p = 7, q = 2" as two points: the first `n_grouped` parts are in groups that are
 * done. */
static bool group(ifl_math_head *p, parts *x, int *n_grouped) {
    int n = x->n - *n_grouped;
    ifl_math_node *point = ifl_math_node_new(p->work, NODE_SEQUENCE, n);
    if (!point) return false;
    for (int i = 0; i < n; i++) {
        point->kids[i] = x->at[*n_grouped + i];
        if (point->kids[i]->depth >= point->depth) point->depth = point->kids[i]->depth + 1;
    }
    point->open = '(';
    point->close = ')';
    x->at[(*n_grouped)++] = point;
    x->n = *n_grouped;
    return true;
}

ifl_math_node *ifl_math_read_list(ifl_math_head *p) {
    parts x = {0};
    int joint = 0; /* 1: "or", 2: "and" */
    int n_grouped = 0;
    bool assigned = true, grouped = false;
    if (!ifl_math_enter(p)) return NULL;
    for (char separator = ','; separator;) {
        if (!parts_push(p, &x, read_relation(p))) return NULL;
        separator = read_separator(p);
        assigned &= is_assignment(x.at[x.n - 1]);
        if (assigned && x.n - n_grouped > 1 && (separator == ';' || (grouped && !separator))) {
            if (!group(p, &x, &n_grouped)) return NULL;
            grouped = true;
        }
        if (separator == 'o') joint = 1;
        if (separator == 'a' && !joint) joint = 2;
        ifl_math_skip_space(p);
        if (separator && p->at == p->n) break; /* a comma behind the last */
    }
    p->depth--;
    if (x.n == 1) return x.at[0];
    ifl_math_node *node = parts_node(p, &x, NODE_SEQUENCE);
    if (node) node->flag = joint;
    return node;
}

ifl_math_node *ifl_math_parse(ifl_math_work *work, ifl_slice clean, ifl_math_reading reading,
                              const char **reason) {
    ifl_math_head p = {.work = work, .text = clean.text, .n = clean.n, .reading = reading};
    *reason = NULL;
    ifl_math_node *node = ifl_math_read_list(&p);
    ifl_math_skip_space(&p);
    if (node && p.at < p.n) node = ifl_math_refuse(&p, "something is left behind the expression");
    *reason = work->limit ? work->limit : p.reason;
    return work->limit ? NULL : node;
}

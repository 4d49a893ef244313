/* What an expression is made of: numbers, symbols, brackets, and LaTeX's commands. */
#include <string.h>

#include "rewards/math/parse.h"

static ifl_math_node *constant(ifl_math_head *p, ifl_math_kind kind) {
    return ifl_math_node_new(p->work, kind, 0);
}

static ifl_math_node *symbol(ifl_math_head *p, const char *name, size_t n) {
    ifl_math_node *node = ifl_math_node_new(p->work, NODE_SYMBOL, 0);
    if (!node || !(node->name = ifl_math_text(p->work, name, n))) return NULL;
    return node;
}

/* An argument as TeX takes it: a group, a digit, or one atom. */
static ifl_math_node *read_argument(ifl_math_head *p, bool one_digit) {
    ifl_math_skip_space(p);
    if (one_digit && ifl_math_is_digit(ifl_math_peek(p, 0))) return ifl_math_read_digit(p);
    if (!ifl_math_accept(p, "{")) return ifl_math_read_atom(p);
    if (!ifl_math_enter(p)) return NULL;
    p->in_group++;
    int in_bars = p->in_bars;
    p->in_bars = 0;
    ifl_math_node *node = ifl_math_read_list(p);
    p->in_bars = in_bars;
    p->in_group--;
    p->depth--;
    if (node && !ifl_math_accept(p, "}")) return ifl_math_refuse(p, "a brace isn't closed");
    return node;
}

static ifl_math_node *read_two(ifl_math_head *p, ifl_math_kind kind) {
    ifl_math_node *a = read_argument(p, true), *b = a ? read_argument(p, true) : NULL;
    return b ? ifl_math_node_of(p->work, kind, a, b) : NULL;
}

static ifl_math_node *read_root(ifl_math_head *p) {
    ifl_math_node *index = NULL;
    if (ifl_math_accept(p, "[")) {
        p->in_group++;
        index = ifl_math_read_sum(p);
        p->in_group--;
        if (!index || !ifl_math_accept(p, "]"))
            return ifl_math_refuse(p, "a root's index isn't closed");
    } else {
        index = ifl_math_number(p->work, 2);
    }
    ifl_math_node *radicand = index ? read_argument(p, false) : NULL;
    return radicand ? ifl_math_node_of(p->work, NODE_ROOT, radicand, index) : NULL;
}

typedef struct function {
    const char *name, *canonical;
} function;

static const function functions[] = {
    {"sin", "sin"},    {"cos", "cos"},     {"tan", "tan"},     {"cot", "cot"},     {"sec", "sec"},
    {"csc", "csc"},    {"arcsin", "asin"}, {"arccos", "acos"}, {"arctan", "atan"}, {"asin", "asin"},
    {"acos", "acos"},  {"atan", "atan"},   {"sinh", "sinh"},   {"cosh", "cosh"},   {"tanh", "tanh"},
    {"ln", "ln"},      {"log", "log"},     {"lg", "lg"},       {"exp", "exp"},     {"tg", "tan"},
    {"ctg", "cot"},    {"max", "max"},     {"min", "min"},     {"gcd", "gcd"},     {"lcm", "lcm"},
    {"arctg", "atan"},
};

static const function *function_find(const char *name, size_t n) {
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (strlen(functions[i].name) == n && memcmp(functions[i].name, name, n) == 0)
            return &functions[i];
    return NULL;
}

/* Those of as many numbers as there are. */
static bool takes_list(const function *f) {
    return strcmp(f->name, "max") == 0 || strcmp(f->name, "min") == 0 ||
           strcmp(f->name, "gcd") == 0 || strcmp(f->name, "lcm") == 0;
}

static ifl_math_node *apply(ifl_math_head *p, const function *f, ifl_math_node *base,
                            ifl_math_node *x) {
    if (!x) return NULL;
    bool decimal =
        strcmp(f->name, "lg") == 0 || (p->reading.decimal_log && strcmp(f->name, "log") == 0);
    if (decimal && !base) base = ifl_math_number(p->work, 10);
    if (base) return ifl_math_node_of(p->work, NODE_LOG, x, base);
    if (strcmp(f->name, "exp") == 0) {
        ifl_math_node *e = constant(p, NODE_E);
        return e ? ifl_math_node_of(p->work, NODE_POW, e, x) : NULL;
    }
    ifl_math_node *node = ifl_math_node_of(p->work, NODE_FUNCTION, x, NULL);
    if (node) node->name = f->canonical;
    return node;
}

/* Behind the name: \sin^2 x, \sin^{-1} x, \log_2 8, \ln(x), \sin 2x. */
static ifl_math_node *read_function(ifl_math_head *p, const function *f) {
    ifl_math_node *base = NULL, *power = NULL;
    function inverse;
    char inverse_name[16];
    if (!ifl_math_enter(p)) return NULL;
    if (f->name[0] == 'l' && ifl_math_accept(p, "_") && !(base = read_argument(p, true)))
        return NULL;
    if (ifl_math_accept(p, "^")) {
        bool negative = ifl_math_accept(p, "{-1}") || ifl_math_accept(p, "-1");
        if (negative && strlen(f->canonical) == 3) {
            snprintf(inverse_name, sizeof inverse_name, "arc%s", f->canonical);
            const function *known = function_find(inverse_name, strlen(inverse_name));
            if (!known) return ifl_math_refuse(p, "an unknown inverse function");
            inverse = *known;
            f = &inverse;
        } else if (negative || !(power = read_argument(p, false))) {
            return ifl_math_refuse(p, "a strange power of a function");
        }
    }
    ifl_math_skip_space(p);
    bool grouped =
        ifl_math_at(p, "(") || ifl_math_at(p, "{") || ifl_math_at(p, "|") || ifl_math_at(p, "[");
    ifl_math_node *x = NULL;
    if (grouped)
        x = read_argument(p, false);
    else if (ifl_math_accept(p, "-"))
        x = ifl_math_node_of(p->work, NODE_NEG, ifl_math_read_factors(p), NULL);
    else
        x = ifl_math_read_factors(p);
    p->depth--;
    if (x && x->kind == NODE_SEQUENCE && takes_list(f)) {
        x->kind = NODE_FUNCTION;
        x->name = f->canonical;
        x->open = x->close = 0;
        x->flag = 0;
        return x;
    }
    if (x && (x->kind == NODE_SEQUENCE || x->kind == NODE_RELATION || takes_list(f)))
        return ifl_math_refuse(p, "a function of a list");
    ifl_math_node *node = apply(p, f, base, x);
    return node && power ? ifl_math_node_of(p->work, NODE_POW, node, power) : node;
}

/* Passes "x |", "x :" or "x in R |" of a set given by a condition. */
static bool accept_bound_symbol(ifl_math_head *p) {
    size_t begin = p->at;
    ifl_math_skip_space(p);
    if (ifl_math_word(p) == 1 && ifl_math_peek(p, 0) < 0x80) {
        p->at++;
        bool real = !ifl_math_accept_command(p, "in") || ifl_math_accept(p, "\\mathbb{R}") ||
                    ifl_math_accept(p, "\\mathbb R") || ifl_math_accept_command(p, "R");
        if (real && (ifl_math_accept(p, "|") || ifl_math_accept(p, ":") ||
                     ifl_math_accept_command(p, "mid") || ifl_math_accept_command(p, "vert") ||
                     ifl_math_accept_command(p, "colon")))
            return true;
    }
    p->at = begin;
    return false;
}

/* The content of brackets and the closing one. */
static ifl_math_node *read_bracketed(ifl_math_head *p, char open) {
    if (!ifl_math_enter(p)) return NULL;
    p->in_group++;
    int in_bars = p->in_bars;
    p->in_bars = 0;
    ifl_math_skip_space(p);
    ifl_math_node *node = NULL;
    bool empty = open == '{' && (ifl_math_at(p, "\\}") || ifl_math_at(p, "}"));
    bool condition = open == '{' && !empty && accept_bound_symbol(p);
    if (!empty) node = ifl_math_read_list(p);
    p->in_bars = in_bars;
    p->in_group--;
    p->depth--;
    if (!node && !empty) return NULL;
    char close = 0;
    if (ifl_math_accept(p, ")"))
        close = ')';
    else if (ifl_math_accept(p, "]"))
        close = ']';
    else if (ifl_math_accept(p, "\\}") || ifl_math_accept_command(p, "rbrace") ||
             ifl_math_accept(p, "}"))
        close = '}';
    else if (ifl_math_accept_command(p, "rangle") || (open == 'a' && ifl_math_accept(p, ">")))
        close = 'a';
    if (!close) return ifl_math_refuse(p, "a bracket isn't closed");
    if (open == 'a' || close == 'a') {
        if (open != close) return ifl_math_refuse(p, "brackets that don't match");
        open = '(';
        close = ')';
    }
    if ((open == '{') != (close == '}')) return ifl_math_refuse(p, "brackets that don't match");
    if (empty) return constant(p, NODE_EMPTY_SET);
    if (condition)
        return ifl_math_is_real_set(node) ? node
                                          : ifl_math_refuse(p, "a set with a strange condition");
    if (node->kind == NODE_SEQUENCE && !node->open) {
        node->open = open;
        node->close = close;
        return node;
    }
    if (open != '{') {
        if (open == '(' && close == ')') return node;
        if (open != '[' || close != ']') return ifl_math_refuse(p, "an interval with one end");
        return node;
    }
    ifl_math_node *set = ifl_math_node_of(p->work, NODE_SEQUENCE, node, NULL);
    if (set) set->open = '{', set->close = '}';
    return set;
}

/* TeX's own braces: nothing, but around a list a set. */
static ifl_math_node *read_group(ifl_math_head *p) {
    ifl_math_node *node = read_argument(p, false);
    if (node && node->kind == NODE_SEQUENCE && !node->open) {
        node->open = '{';
        node->close = '}';
    }
    return node;
}

static ifl_math_node *read_bars(ifl_math_head *p) {
    if (!ifl_math_enter(p)) return NULL;
    p->in_bars++;
    p->in_group++;
    ifl_math_node *node = ifl_math_read_sum(p);
    p->in_group--;
    p->in_bars--;
    p->depth--;
    if (!node) return NULL;
    if (!ifl_math_accept(p, "|") && !ifl_math_accept_command(p, "vert") &&
        !ifl_math_accept_command(p, "rvert"))
        return ifl_math_refuse(p, "a bar isn't closed");
    return ifl_math_node_of(p->work, NODE_ABS, node, NULL);
}

static ifl_math_node *read_rounded(ifl_math_head *p, ifl_math_kind kind, const char *close) {
    p->in_group++;
    ifl_math_node *node = ifl_math_read_sum(p);
    p->in_group--;
    if (node && !ifl_math_accept_command(p, close))
        return ifl_math_refuse(p, "a bracket isn't closed");
    return ifl_math_node_of(p->work, kind, node, NULL);
}

static bool is_greek(const char *name, size_t n) {
    static const char *const letters[] = {
        "alpha",  "beta",  "gamma",    "delta", "epsilon", "varepsilon", "zeta",
        "eta",    "theta", "vartheta", "iota",  "kappa",   "lambda",     "mu",
        "nu",     "xi",    "rho",      "sigma", "tau",     "upsilon",    "phi",
        "varphi", "chi",   "psi",      "omega", "Gamma",   "Delta",      "Theta",
        "Lambda", "Xi",    "Pi",       "Sigma", "Phi",     "Psi",        "Omega",
        "ell",    "hbar",  "ldots",    "dots",  "cdots",   "triangle",   "angle"};
    for (size_t i = 0; i < sizeof letters / sizeof *letters; i++)
        if (strlen(letters[i]) == n && memcmp(letters[i], name, n) == 0) return true;
    return false;
}

/* Commands whose braces are part of a symbol's name: \vec{v}, \mathbb{R}. */
static bool is_accent(const char *name, size_t n) {
    static const char *const accents[] = {"vec",     "hat",   "bar",     "overline",       "mathbb",
                                          "mathcal", "tilde", "widehat", "overrightarrow", "Bbb",
                                          "dot"};
    for (size_t i = 0; i < sizeof accents / sizeof *accents; i++)
        if (strlen(accents[i]) == n && memcmp(accents[i], name, n) == 0) return true;
    return false;
}

static ifl_math_node *read_accented(ifl_math_head *p, size_t begin) {
    ifl_slice inner;
    if (ifl_math_accept(p, "{")) {
        if (!ifl_math_braced(p, &inner)) return NULL;
    } else if (ifl_math_word(p) > 0) {
        p->at++;
    } else {
        return ifl_math_refuse(p, "an accent over nothing");
    }
    if (p->at - begin > 128) return ifl_math_refuse(p, "a long name");
    return symbol(p, p->text + begin, p->at - begin);
}

typedef struct command {
    const char *name;
    int what;
} command;

enum {
    AS_FRACTION = 1000,
    AS_BINOMIAL,
    AS_ROOT,
    AS_CUBE_ROOT,
    AS_MATRIX,
    AS_SET,
    AS_ANGLE,
    AS_BARS,
    AS_FLOOR,
    AS_CEIL,
    AS_GROUP
};

static const command commands[] = {
    {"frac", AS_FRACTION},
    {"dfrac", AS_FRACTION},
    {"tfrac", AS_FRACTION},
    {"cfrac", AS_FRACTION},
    {"binom", AS_BINOMIAL},
    {"dbinom", AS_BINOMIAL},
    {"tbinom", AS_BINOMIAL},
    {"sqrt", AS_ROOT},
    {"cbrt", AS_CUBE_ROOT},
    {"begin", AS_MATRIX},
    {"lbrace", AS_SET},
    {"langle", AS_ANGLE},
    {"vert", AS_BARS},
    {"lvert", AS_BARS},
    {"lfloor", AS_FLOOR},
    {"lceil", AS_CEIL},
    {"pi", NODE_PI},
    {"infty", NODE_INFINITY},
    {"emptyset", NODE_EMPTY_SET},
    {"varnothing", NODE_EMPTY_SET},
    {"mathrm", AS_GROUP},
    {"operatorname", AS_GROUP},
    {"boxed", AS_GROUP},
    {"mathbf", AS_GROUP},
    {"boldsymbol", AS_GROUP},
};

static ifl_math_node *read_known(ifl_math_head *p, int what) {
    switch (what) {
    case AS_FRACTION:
        return read_two(p, NODE_DIV);
    case AS_BINOMIAL:
        return read_two(p, NODE_BINOMIAL);
    case AS_ROOT:
        return read_root(p);
    case AS_CUBE_ROOT: {
        ifl_math_node *radicand = read_argument(p, false), *three = ifl_math_number(p->work, 3);
        return radicand && three ? ifl_math_node_of(p->work, NODE_ROOT, radicand, three) : NULL;
    }
    case AS_MATRIX:
        return ifl_math_read_environment(p);
    case AS_SET:
        return read_bracketed(p, '{');
    case AS_ANGLE:
        return read_bracketed(p, 'a');
    case AS_BARS:
        return read_bars(p);
    case AS_FLOOR:
        return read_rounded(p, NODE_FLOOR, "rfloor");
    case AS_CEIL:
        return read_rounded(p, NODE_CEIL, "rceil");
    case AS_GROUP:
        return read_group(p);
    default:
        return constant(p, (ifl_math_kind)what);
    }
}

static bool is_text_command(const char *name, size_t n) {
    static const char *const names[] = {"text", "textrm",     "mbox",   "textbf", "textit",
                                        "hbox", "textnormal", "texttt", "textsf"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == n && memcmp(names[i], name, n) == 0) return true;
    return false;
}

/* \mathrm{...} and \operatorname{...} hold a function's name, an i or e, or words. */
static bool holds_words(const ifl_math_head *p, size_t n) {
    size_t i = p->at + 1 + n, letters = 0;
    while (i < p->n && (p->text[i] == '{' || p->text[i] == ' '))
        i++;
    while (i + letters < p->n && ifl_math_is_letter((unsigned char)p->text[i + letters]))
        letters++;
    return letters > 1 && !function_find(p->text + i, letters);
}

/* \operatorname{lcm}: passes it and gives the function, if it is one. */
static const function *accept_named(ifl_math_head *p, size_t n) {
    ifl_math_head inside = *p;
    ifl_slice s;
    inside.at += 1 + n;
    inside.solid = 0;
    if (!ifl_math_accept(&inside, "{") || !ifl_math_braced(&inside, &s)) return NULL;
    s = ifl_slice_trim(s);
    const function *f = function_find(s.text, s.n);
    if (f) p->at = inside.at;
    return f;
}

static ifl_math_node *read_text_atom(ifl_math_head *p, size_t n) {
    /* \text{5} and \text{(A)} are what they hold; anything in words is text. */
    ifl_math_head inside = *p;
    ifl_slice s;
    inside.at += 1 + n;
    if (ifl_math_accept(&inside, "{") && ifl_math_braced(&inside, &s) && s.n > 0 && s.n <= 64) {
        bool words = false;
        for (size_t i = 0; i + 1 < s.n; i++)
            words |= ifl_math_is_letter((unsigned char)s.text[i]) &&
                     ifl_math_is_letter((unsigned char)s.text[i + 1]);
        if (!words) {
            p->at = inside.at - s.n - 2;
            return read_group(p);
        }
    }
    return ifl_math_read_words(p);
}

static ifl_math_node *read_command(ifl_math_head *p) {
    size_t begin = p->at, n = ifl_math_command(p);
    const char *name = p->text + begin + 1;
    if (n == 0) {
        if (ifl_math_accept(p, "\\{")) return read_bracketed(p, '{');
        if (ifl_math_accept(p, "\\$")) { /* a currency in front */
            ifl_math_node *price =
                ifl_math_node_of(p->work, NODE_UNIT, ifl_math_read_postfix(p), NULL);
            if (price) price->name = "$";
            return price;
        }
        return ifl_math_refuse(p, "an unknown command");
    }
    if (is_text_command(name, n)) return read_text_atom(p, n);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (!ifl_math_command_is(p, commands[i].name)) continue;
        const function *named = commands[i].what == AS_GROUP ? accept_named(p, n) : NULL;
        if (named) return read_function(p, named);
        if (commands[i].what == AS_GROUP && name[0] != 'b' && holds_words(p, n))
            return ifl_math_read_words(p);
        p->at += 1 + n;
        return read_known(p, commands[i].what);
    }
    const function *f = function_find(name, n);
    if (!f && !is_greek(name, n) && !is_accent(name, n))
        return ifl_math_refuse(p, "an unknown command");
    p->at += 1 + n;
    if (f) return read_function(p, f);
    if (is_accent(name, n)) return read_accented(p, begin);
    if (n > 3 && memcmp(name, "var", 3) == 0) name += 3, n -= 3;
    return symbol(p, name, n);
}

/* Letters without a backslash: a word that is known, a product of a few letters, or text. */
static ifl_math_node *read_letters(ifl_math_head *p) {
    size_t n = ifl_math_word(p);
    const char *word = p->text + p->at;
    static const command known[] = {{"pi", NODE_PI},        {"infinity", NODE_INFINITY},
                                    {"inf", NODE_INFINITY}, {"oo", NODE_INFINITY},
                                    {"sqrt", AS_ROOT},      {"cbrt", AS_CUBE_ROOT}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == n && memcmp(known[i].name, word, n) == 0) {
            p->at += n;
            return read_known(p, known[i].what);
        }
    const function *f = function_find(word, n);
    if (f) {
        p->at += n;
        return read_function(p, f);
    }
    bool lower = true;
    for (size_t i = 0; i < n; i++)
        lower &= word[i] >= 'a' && word[i] <= 'z';
    bool follows_number = p->at > 0 && ifl_math_is_digit((unsigned char)word[-1]);
    if (n > 1 && !(lower && n <= 3) && !(follows_number && n <= 2)) return ifl_math_read_words(p);
    if ((unsigned char)*word >= 0x80) return ifl_math_read_words(p);
    p->at++;
    if (*word == 'e') return constant(p, NODE_E);
    if (*word == 'i') return constant(p, NODE_I);
    while (ifl_math_peek(p, 0) == '\'')
        p->at++;
    return symbol(p, word, (size_t)(p->text + p->at - word));
}

/* 3\frac{1}{2} and 3 1/2: a whole number and a proper fraction of digits alone. */
static ifl_math_node *read_mixed(ifl_math_head *p, ifl_math_node *whole) {
    size_t begin = p->at;
    bool spaced = ifl_math_peek(p, 0) == ' ';
    ifl_math_skip_space(p);
    bool latex = ifl_math_command_is(p, "frac") || ifl_math_command_is(p, "dfrac") ||
                 ifl_math_command_is(p, "tfrac") || ifl_math_command_is(p, "cfrac");
    ifl_math_node *part = NULL;
    if (whole->inexact || !fmpz_is_one(fmpq_denref(whole->value))) {
        p->at = begin;
        return whole;
    }
    if (latex) {
        part = read_command(p);
        if (!part) return NULL;
    } else if (spaced && ifl_math_is_digit(ifl_math_peek(p, 0))) {
        ifl_math_node *a = ifl_math_read_number(p);
        bool slash =
            a && !a->inexact && ifl_math_accept(p, "/") && ifl_math_is_digit(ifl_math_peek(p, 0));
        ifl_math_node *b = slash ? ifl_math_read_number(p) : NULL;
        if (a && !slash) return ifl_math_refuse(p, "two numbers side by side");
        if (!b) return NULL;
        part = ifl_math_node_of(p->work, NODE_DIV, a, b);
    } else {
        p->at = begin;
        return whole;
    }
    if (!part) return NULL;
    bool digits = part->kids[0]->kind == NODE_NUMBER && part->kids[1]->kind == NODE_NUMBER &&
                  fmpq_cmp(part->kids[0]->value, part->kids[1]->value) < 0;
    return ifl_math_node_of(p->work, digits ? NODE_ADD : NODE_MUL, whole, part);
}

bool ifl_math_atom_begins(ifl_math_head *p) {
    static const char *const not_atoms[] = {
        "cup",    "cap",      "setminus", "backslash", "le",     "leq",    "leqslant", "ge",
        "geq",    "geqslant", "ne",       "neq",       "lt",     "gt",     "in",       "notin",
        "approx", "approxeq", "simeq",    "equiv",     "pm",     "mp",     "cdot",     "times",
        "ast",    "div",      "end",      "rbrace",    "rangle", "rfloor", "rceil",    "vert",
        "rvert",  "lor",      "vee",      "land",      "wedge",  "colon",  "mid",      "circ",
        "pmod",   "bmod",     "mod",      "text",      "textbf", "mbox",   "textrm",   "textit"};
    ifl_math_skip_space(p);
    int c = ifl_math_peek(p, 0);
    if (c == '|') return p->in_bars == 0;
    if (c == '(' || c == '[' || c == '{') return !ifl_math_at(p, "{,}");
    if (ifl_math_is_digit(c)) return true;
    if (ifl_math_is_letter(c)) {
        size_t n = ifl_math_word(p);
        if (n == 1 && c == 'U' && p->at > 0) return false;
        return !(n == 3 && ifl_math_at(p, "and")) && !(n == 2 && ifl_math_at(p, "or"));
    }
    if (c != '\\') return false;
    if (ifl_math_command(p) == 0) return ifl_math_peek(p, 1) == '{';
    for (size_t i = 0; i < sizeof not_atoms / sizeof *not_atoms; i++)
        if (ifl_math_command_is(p, not_atoms[i]))
            return p->in_bars == 0 && ifl_math_command_is(p, "vert");
    return true;
}

ifl_math_node *ifl_math_read_atom(ifl_math_head *p) {
    ifl_math_skip_space(p);
    if (!ifl_math_enter(p)) return NULL;
    int c = ifl_math_peek(p, 0);
    ifl_math_node *node = NULL;
    if (ifl_math_is_digit(c) || (c == '.' && ifl_math_is_digit(ifl_math_peek(p, 1)))) {
        node = ifl_math_read_number(p);
        if (node) node = read_mixed(p, node);
    } else if (c == '(' || c == '[') {
        p->at++;
        node = read_bracketed(p, (char)c);
    } else if (c == '{') {
        node = read_group(p);
    } else if (c == '|') {
        p->at++;
        node = read_bars(p);
    } else if (c == '\\') {
        node = read_command(p);
    } else if (ifl_math_is_letter(c)) {
        node = read_letters(p);
    } else {
        node = ifl_math_refuse(p, c < 0 ? "something is missing at the end" : "an unexpected sign");
    }
    p->depth--;
    return node;
}

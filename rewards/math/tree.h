/* What the files of rewards/math share: the work on one pair, and the tree of an answer. */
#ifndef IFL_REWARDS_MATH_TREE_H
#define IFL_REWARDS_MATH_TREE_H

#include <flint/fmpq.h>
#include <flint/fmpz.h>
#include <setjmp.h>

#include "rewards/math/math.h"

#define IFL_MATH_BITS_MAX 33300 /* of 10,000 digits */

typedef enum {
    NODE_NUMBER,
    NODE_SYMBOL,
    NODE_PI,
    NODE_E,
    NODE_I,
    NODE_INFINITY,
    NODE_EMPTY_SET,
    NODE_TEXT,
    NODE_ADD,
    NODE_MUL,
    NODE_NEG,
    NODE_DIV,
    NODE_POW,
    NODE_ROOT, /* radicand, index */
    NODE_FACTORIAL,
    NODE_ABS,
    NODE_FLOOR,
    NODE_CEIL,
    NODE_BINOMIAL,
    NODE_FUNCTION,   /* name; one kid */
    NODE_LOG,        /* value, base */
    NODE_PLUS_MINUS, /* flag: minus above plus */
    NODE_PERCENT,
    NODE_UNIT,     /* name is the unit */
    NODE_BASED,    /* name is the numeral, flag the base */
    NODE_RATIO,    /* a : b : ... */
    NODE_SEQUENCE, /* open, close; flag: 1 "or", 2 "and" */
    NODE_UNION,
    NODE_INTERSECTION,
    NODE_WITHOUT,
    NODE_MATRIX,   /* flag: columns */
    NODE_RELATION, /* name: one character an operator: = ! < > l g e ~ */
} ifl_math_kind;

typedef enum { VALUE_UNKNOWN, VALUE_NONE, VALUE_EXACT, VALUE_UNDEFINED } ifl_math_known;

typedef struct ifl_math_node {
    ifl_math_kind kind;
    int flag, n, depth;
    char open, close; /* of a sequence; '(' of an expression in parentheses */
    bool inexact;     /* of a number: written with a decimal point */
    bool marked;      /* of a number: written as an approximation */
    int places;       /* of a number: digits behind the point */
    const char *name; /* NUL-terminated, in the arena */
    ifl_math_known known;
    fmpq *value; /* of a number, and of what has been evaluated */
    struct ifl_math_node **kids;
} ifl_math_node;

typedef struct ifl_math_value {
    struct ifl_math_value *next;
    fmpq value;
} ifl_math_value;

/* The work on one pair. */
typedef struct ifl_math_work {
    const ifl_math_options *options;
    struct ifl_math_block *blocks;
    ifl_math_value *values;
    size_t n_bytes;
    int64_t n_steps;
    int n_nodes;
    const char *limit; /* the limit that was met; static text */
    const char *symbols[IFL_MATH_SYMBOLS_MAX];
    int n_symbols;
    uint64_t seed;
} ifl_math_work;

/* NULL, with work->limit set, when there is no room. Zeroed; freed by ifl_math_work_clear. */
void *ifl_math_alloc(ifl_math_work *work, size_t n);
void ifl_math_work_clear(ifl_math_work *work);

/* False when the steps are used up: work->limit is then set. */
bool ifl_math_step(ifl_math_work *work, int64_t n);

ifl_math_node *ifl_math_node_new(ifl_math_work *work, ifl_math_kind kind, int n);
ifl_math_node *ifl_math_node_of(ifl_math_work *work, ifl_math_kind kind, ifl_math_node *a,
                                ifl_math_node *b);
ifl_math_node *ifl_math_number(ifl_math_work *work, slong value);
fmpq *ifl_math_value_new(ifl_math_work *work);
char *ifl_math_text(ifl_math_work *work, const char *text, size_t n);

/* The symbol's number, -1 when there are too many. */
int ifl_math_symbol(ifl_math_work *work, const char *name);

bool ifl_math_same(ifl_math_work *work, const ifl_math_node *a, const ifl_math_node *b);
bool ifl_math_contains(const ifl_math_node *node, ifl_math_kind kind);

/* The tree with every plus-minus replaced by one of its signs. */
ifl_math_node *ifl_math_choose(ifl_math_work *work, ifl_math_node *node, int sign);

/* --- clean.c */
/* ASCII and LaTeX for the Unicode in `s`, without what surrounds an answer. */
ifl_slice ifl_math_clean(ifl_math_work *work, ifl_slice s);
/* Lower case, without markup, punctuation and doubled spaces: what answers in words are compared
 * by. */
ifl_slice ifl_math_words(ifl_math_work *work, ifl_slice s);

/* --- written.c */
/* "1000,99" and "0,111" beside "1000.99" and "0.111": the digits and nothing else, and no group of
 * thousands. */
bool ifl_math_is_decimal_comma(ifl_slice a, ifl_slice b);
/* "five", "Twelve": the number in figures, NULL when it is no such word. */
const char *ifl_math_number_word(ifl_math_work *work, ifl_slice s);
/* A formula without what only spaces it. */
ifl_slice ifl_math_unspaced(ifl_math_work *work, ifl_slice s);
/* With what was escaped twice read as if once, where it can't be read as it stands. */
void ifl_math_unescape(ifl_math_work *work, ifl_slice *s);

/* --- times.c */
/* Of what ifl_math_words makes of it; false when it is no time of day. */
bool ifl_math_time_of_day(ifl_slice words, int *seconds);

/* --- units.c */
bool ifl_math_unit_known(const char *word, size_t n);
/* Appends the canonical form of a unit's word ("metres" to "m"); false: no room, or the word is
 * no unit ("squared", "x"). */
bool ifl_math_unit_word(char *out, size_t n_max, const char *word, size_t n);

/* --- parse.c */
typedef struct ifl_math_reading {
    bool grouped;     /* 1,234 is one number, at the outermost level */
    bool units_plain; /* a lone letter behind a number and a space may be a unit */
    bool decimal_log; /* \log without a base has the base 10 */
} ifl_math_reading;

/* NULL when it isn't mathematics (`reason` says why, a static text) or past a limit. */
ifl_math_node *ifl_math_parse(ifl_math_work *work, ifl_slice clean, ifl_math_reading reading,
                              const char **reason);

/* --- exact.c */
/* The rational value, cached; NULL when there is none that is exact and within limits
 * (node->known tells undefined ones). */
const fmpq *ifl_math_rational(ifl_math_work *work, ifl_math_node *node);

typedef enum { SHOWN_EQUAL, SHOWN_DIFFERENT, SHOWN_NOTHING, SHOWN_UNDEFINED } ifl_math_shown;

/* Whether two rational functions are one, by their values modulo primes; SHOWN_NOTHING when they
 * aren't rational functions. With `scaled` up to a constant factor. */
ifl_math_shown ifl_math_modular(ifl_math_work *work, const ifl_math_node *a, const ifl_math_node *b,
                                bool scaled);

/* --- poly.c */
/* The same by expansion over the rationals, where it stays small. */
ifl_math_shown ifl_math_expanded(ifl_math_work *work, const ifl_math_node *a,
                                 const ifl_math_node *b);

/* --- ball.c */
/* By enclosures, at seeded points where there are symbols. */
ifl_math_shown ifl_math_enclosed(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b);
/* a - b relative to b is within tol (>= 0): SHOWN_EQUAL. Constants only. */
ifl_math_shown ifl_math_within(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b, double tol,
                               double tol_abs);
/* -1, 0, 1 as a < b, a = b, a > b for real constants and infinities; 2: can't tell. */
int ifl_math_order(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b);
/* For a = c b with a constant c: the sign of c, 0 when there is no such c or it can't be told. */
int ifl_math_factor_sign(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b);

/* --- equal.c */
/* Two expressions. */
ifl_math_shown ifl_math_equal(ifl_math_work *work, ifl_math_node *gold, ifl_math_node *answer);

/* --- items.c */
/* "a ~ 7.07" as a, "x = a ~ 7.07" as "x = a", when the decimal is right to 1 %. NULL for NULL. */
ifl_math_node *ifl_math_exact_side(ifl_math_work *work, ifl_math_node *node);
/* Two answers of any type. */
ifl_math_shown ifl_math_item_equal(ifl_math_work *work, ifl_math_node *gold, ifl_math_node *answer);

/* --- matrix.c */
/* Sums and products of matrices with their cells worked out; the node itself when it is none. */
ifl_math_node *ifl_math_matrix_worked(ifl_math_work *work, ifl_math_node *node);

/* --- sets.c */
bool ifl_math_is_function_value(const ifl_math_node *node); /* f(x) */
/* x, |x| or f(x) between numbers: ifl_math_real_sets settles it. */
bool ifl_math_is_plain_inequality(const ifl_math_node *node);
bool ifl_math_is_real_set(const ifl_math_node *node);
/* Unions of intervals and points, inequalities in one variable. */
ifl_math_shown ifl_math_real_sets(ifl_math_work *work, ifl_math_node *gold, ifl_math_node *answer);

#endif

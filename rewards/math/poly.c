/* Polynomials and rational functions over the rationals, expanded: numerator and denominator as
 * multivariate polynomials with integer coefficients. What would grow past the bounds isn't
 * multiplied out. */
#include <flint/fmpz_mpoly.h>

#include "rewards/math/tree.h"

#define TERMS_MAX 2000
#define TERMS_PRODUCT_MAX 20000
#define COEFFICIENT_BITS_MAX 4096
#define EXPONENT_MAX 400

typedef struct fraction {
    fmpz_mpoly_t p, q;
} fraction;

typedef struct expansion {
    ifl_math_work *work;
    fmpz_mpoly_ctx_t context;
} expansion;

static void fraction_init(expansion *x, fraction *f) {
    fmpz_mpoly_init(f->p, x->context);
    fmpz_mpoly_init(f->q, x->context);
    fmpz_mpoly_one(f->q, x->context);
}

static void fraction_clear(expansion *x, fraction *f) {
    fmpz_mpoly_clear(f->p, x->context);
    fmpz_mpoly_clear(f->q, x->context);
}

static slong coefficient_bits(const fmpz_mpoly_t p) {
    slong bits = fmpz_mpoly_max_bits(p);
    return bits < 0 ? -bits : bits;
}

/* out = a b, unless it may get too large. out may be one of them. */
static bool product(expansion *x, fmpz_mpoly_t out, const fmpz_mpoly_t a, const fmpz_mpoly_t b) {
    slong n = fmpz_mpoly_length(a, x->context) * fmpz_mpoly_length(b, x->context);
    slong bits = coefficient_bits(a) + coefficient_bits(b);
    if (n > TERMS_PRODUCT_MAX || bits > COEFFICIENT_BITS_MAX) return false;
    if (!ifl_math_step(x->work, 8 + n * (2 + bits / 32))) return false;
    fmpz_mpoly_mul(out, a, b, x->context);
    return fmpz_mpoly_length(out, x->context) <= TERMS_MAX;
}

static bool power(expansion *x, fmpz_mpoly_t p, ulong n) {
    fmpz_mpoly_t out;
    fmpz_mpoly_init(out, x->context);
    fmpz_mpoly_one(out, x->context);
    bool fits = true;
    for (ulong i = 0; i < n && fits; i++)
        fits = product(x, out, out, p);
    if (fits) fmpz_mpoly_swap(p, out, x->context);
    fmpz_mpoly_clear(out, x->context);
    return fits;
}

static bool expand(expansion *x, ifl_math_node *node, fraction *out);

/* a/b + c/d = (a d + c b) / (b d); with equal denominators they stay. */
static bool add(expansion *x, fraction *out, fraction *f) {
    if (fmpz_mpoly_equal(out->q, f->q, x->context)) {
        fmpz_mpoly_add(out->p, out->p, f->p, x->context);
        return fmpz_mpoly_length(out->p, x->context) <= TERMS_MAX &&
               ifl_math_step(x->work, 8 + fmpz_mpoly_length(out->p, x->context));
    }
    fmpz_mpoly_t t;
    fmpz_mpoly_init(t, x->context);
    bool fits = product(x, out->p, out->p, f->q) && product(x, t, f->p, out->q) &&
                product(x, out->q, out->q, f->q);
    if (fits) fmpz_mpoly_add(out->p, out->p, t, x->context);
    fmpz_mpoly_clear(t, x->context);
    return fits;
}

static bool combine(expansion *x, ifl_math_kind kind, fraction *out, fraction *f) {
    if (kind == NODE_ADD) return add(x, out, f);
    if (kind == NODE_DIV) {
        if (fmpz_mpoly_is_zero(f->p, x->context)) return false;
        fmpz_mpoly_swap(f->p, f->q, x->context);
    }
    return product(x, out->p, out->p, f->p) && product(x, out->q, out->q, f->q);
}

static bool expand_kids(expansion *x, ifl_math_node *node, fraction *out) {
    bool fits = expand(x, node->kids[0], out);
    for (int i = 1; i < node->n && fits; i++) {
        fraction f;
        fraction_init(x, &f);
        fits = expand(x, node->kids[i], &f) && combine(x, node->kind, out, &f);
        fraction_clear(x, &f);
    }
    return fits;
}

static bool expand_power(expansion *x, ifl_math_node *node, fraction *out) {
    const fmpq *e = ifl_math_rational(x->work, node->kids[1]);
    if (!e || !fmpz_is_one(fmpq_denref(e)) ||
        fmpz_cmpabs(fmpq_numref(e), (fmpz_t){EXPONENT_MAX}) > 0)
        return false;
    if (!expand(x, node->kids[0], out)) return false;
    slong n = fmpz_get_si(fmpq_numref(e));
    if (n < 0 && fmpz_mpoly_is_zero(out->p, x->context)) return false;
    if (n < 0) fmpz_mpoly_swap(out->p, out->q, x->context);
    return power(x, out->p, (ulong)(n < 0 ? -n : n)) && power(x, out->q, (ulong)(n < 0 ? -n : n));
}

static bool expand(expansion *x, ifl_math_node *node, fraction *out) {
    if (!ifl_math_step(x->work, 16)) return false;
    if (node->known == VALUE_EXACT) {
        if ((slong)(fmpz_bits(fmpq_numref(node->value)) + fmpz_bits(fmpq_denref(node->value))) >
            COEFFICIENT_BITS_MAX)
            return false;
        fmpz_mpoly_set_fmpz(out->p, fmpq_numref(node->value), x->context);
        fmpz_mpoly_set_fmpz(out->q, fmpq_denref(node->value), x->context);
        return true;
    }
    switch (node->kind) {
    case NODE_SYMBOL: {
        int i = ifl_math_symbol(x->work, node->name);
        if (i < 0) return false;
        fmpz_mpoly_gen(out->p, i, x->context);
        fmpz_mpoly_one(out->q, x->context);
        return true;
    }
    case NODE_NEG:
        if (!expand(x, node->kids[0], out)) return false;
        fmpz_mpoly_neg(out->p, out->p, x->context);
        return true;
    case NODE_ADD:
    case NODE_MUL:
    case NODE_DIV:
        return expand_kids(x, node, out);
    case NODE_POW:
        return expand_power(x, node, out);
    default:
        return false;
    }
}

ifl_math_shown ifl_math_expanded(ifl_math_work *work, const ifl_math_node *a,
                                 const ifl_math_node *b) {
    expansion x = {.work = work};
    fraction f, g;
    ifl_math_shown shown = SHOWN_NOTHING;
    const char *limit = work->limit;
    fmpz_mpoly_ctx_init(x.context, work->n_symbols, ORD_LEX);
    fraction_init(&x, &f);
    fraction_init(&x, &g);
    /* The trees are borrowed for reading, but values are kept in them. */
    if (expand(&x, (ifl_math_node *)a, &f) && expand(&x, (ifl_math_node *)b, &g) &&
        product(&x, f.p, f.p, g.q) && product(&x, g.p, g.p, f.q))
        shown = fmpz_mpoly_equal(f.p, g.p, x.context) ? SHOWN_EQUAL : SHOWN_DIFFERENT;
    fraction_clear(&x, &f);
    fraction_clear(&x, &g);
    fmpz_mpoly_ctx_clear(x.context);
    work->limit = limit; /* too much for this proof is no verdict */
    return shown;
}

/* Exact values: rationals of bounded size, and rational functions by their values modulo primes. */
#include <flint/fmpz_vec.h>
#include <string.h>

#include "rewards/math/tree.h"

#define FACTORIAL_MAX 3248 /* the last with at most 10,000 digits */

static slong bits_of(const fmpq *x) {
    slong a = (slong)fmpz_bits(fmpq_numref(x)), b = (slong)fmpz_bits(fmpq_denref(x));
    return a > b ? a : b;
}

/* Work on numbers of so many bits: products, quotients and common divisors are near quadratic. */
static bool step_bits(ifl_math_work *work, slong bits) {
    int64_t limbs = bits / 64 + 1;
    return ifl_math_step(work, 2 + limbs + limbs * limbs / 12);
}

static bool fits(const fmpq *x) {
    return bits_of(x) <= IFL_MATH_BITS_MAX;
}

/* base^exponent when the result is small enough to be written down. */
static ifl_math_known power(ifl_math_work *work, fmpq *out, const fmpq *base,
                            const fmpq *exponent) {
    const fmpz *e = fmpq_numref(exponent);
    if (!fmpz_is_one(fmpq_denref(exponent))) return VALUE_NONE;
    if (fmpq_is_zero(base)) {
        if (fmpz_sgn(e) <= 0) return VALUE_UNDEFINED;
        fmpq_zero(out);
        return VALUE_EXACT;
    }
    if (fmpz_is_one(fmpq_denref(base)) && fmpz_is_pm1(fmpq_numref(base))) {
        fmpq_set_si(out, fmpz_is_one(fmpq_numref(base)) || fmpz_is_even(e) ? 1 : -1, 1);
        return VALUE_EXACT;
    }
    if (fmpz_bits(e) > 20) return VALUE_NONE;
    slong n = fmpz_get_si(e);
    if (n != 0 && (bits_of(base) - 1) * (n < 0 ? -n : n) > IFL_MATH_BITS_MAX) return VALUE_NONE;
    if (n != 0 && bits_of(base) * (n < 0 ? -n : n) > 2 * IFL_MATH_BITS_MAX) return VALUE_NONE;
    if (!step_bits(work, bits_of(base) * (n < 0 ? -n : n) / 2)) return VALUE_NONE;
    fmpq_pow_si(out, base, n);
    return fits(out) ? VALUE_EXACT : VALUE_NONE;
}

/* The exact root of a rational, if it is rational. */
static ifl_math_known root(ifl_math_work *work, fmpq *out, const fmpq *x, const fmpq *index) {
    if (!fmpz_is_one(fmpq_denref(index)) || fmpz_cmp_si(fmpq_numref(index), 2) < 0 ||
        fmpz_cmp_si(fmpq_numref(index), 1000) > 0)
        return VALUE_NONE;
    slong n = fmpz_get_si(fmpq_numref(index));
    if (fmpq_sgn(x) < 0 && n % 2 == 0) return VALUE_NONE;
    if (!step_bits(work, 2 * bits_of(x))) return VALUE_NONE;
    bool exact = fmpz_root(fmpq_numref(out), fmpq_numref(x), n);
    exact = fmpz_root(fmpq_denref(out), fmpq_denref(x), n) && exact;
    if (!exact) fmpq_zero(out);
    return exact ? VALUE_EXACT : VALUE_NONE;
}

static ifl_math_known factorial(ifl_math_work *work, fmpq *out, const fmpq *x) {
    if (!fmpz_is_one(fmpq_denref(x)) || fmpq_sgn(x) < 0) return VALUE_NONE;
    if (fmpz_cmp_si(fmpq_numref(x), FACTORIAL_MAX) > 0) return VALUE_NONE;
    ulong n = fmpz_get_ui(fmpq_numref(x));
    if (!ifl_math_step(work, 4 + (int64_t)n * (int64_t)n / 1024)) return VALUE_NONE;
    fmpz_fac_ui(fmpq_numref(out), n);
    fmpz_one(fmpq_denref(out));
    return VALUE_EXACT;
}

static ifl_math_known binomial(ifl_math_work *work, fmpq *out, const fmpq *n, const fmpq *k) {
    if (!fmpz_is_one(fmpq_denref(n)) || !fmpz_is_one(fmpq_denref(k)) || fmpq_sgn(n) < 0 ||
        fmpq_sgn(k) < 0 || fmpz_cmp_si(fmpq_numref(n), 30000) > 0)
        return VALUE_NONE;
    fmpz_one(fmpq_denref(out));
    if (fmpq_cmp(k, n) > 0) {
        fmpz_zero(fmpq_numref(out));
        return VALUE_EXACT;
    }
    ulong a = fmpz_get_ui(fmpq_numref(n)), b = fmpz_get_ui(fmpq_numref(k));
    if (!ifl_math_step(work, 16 + (int64_t)a * (int64_t)a / 16384)) return VALUE_NONE;
    fmpz_bin_uiui(fmpq_numref(out), a, b);
    return VALUE_EXACT;
}

static ifl_math_known based(ifl_math_work *work, fmpq *out, const ifl_math_node *node) {
    size_t n = strlen(node->name);
    if (!ifl_math_step(work, 4 + (int64_t)(n * n) / 16384)) return VALUE_NONE;
    fmpz_set_str(fmpq_numref(out), node->name, node->flag);
    fmpz_one(fmpq_denref(out));
    return VALUE_EXACT;
}

/* log_b x for rationals: the integer k with b^k = x. */
static ifl_math_known logarithm(ifl_math_work *work, fmpq *out, const fmpq *x, const fmpq *b) {
    fmpq_t p;
    fmpz_t one;
    ifl_math_known known = VALUE_NONE;
    if (fmpq_sgn(x) <= 0 || fmpq_sgn(b) <= 0 || fmpq_is_one(b)) return VALUE_UNDEFINED;
    fmpq_init(p);
    fmpz_init_set_ui(one, 1);
    fmpq_one(p);
    for (slong k = 0; k <= 256 && known == VALUE_NONE && bits_of(p) <= bits_of(x) + 1; k++) {
        if (!step_bits(work, bits_of(p) + bits_of(b))) break;
        if (fmpq_equal(p, x)) {
            fmpq_set_si(out, k, 1);
            known = VALUE_EXACT;
        }
        fmpq_mul(p, p, b);
    }
    fmpz_clear(one);
    fmpq_clear(p);
    return known;
}

/* max, min, gcd and lcm; the last two of whole numbers. */
static ifl_math_known of_list(ifl_math_work *work, const ifl_math_node *node, fmpq *out) {
    bool most = strcmp(node->name, "max") == 0, least = strcmp(node->name, "min") == 0;
    bool divisor = strcmp(node->name, "gcd") == 0, multiple = strcmp(node->name, "lcm") == 0;
    if (!most && !least && !divisor && !multiple) return VALUE_NONE;
    fmpq_set(out, node->kids[0]->value);
    for (int i = 0; i < node->n; i++) {
        const fmpq *x = node->kids[i]->value;
        if (!step_bits(work, bits_of(out) + bits_of(x)) || !fits(out)) return VALUE_NONE;
        if (most || least) {
            int order = fmpq_cmp(x, out);
            if (most ? order > 0 : order < 0) fmpq_set(out, x);
        } else {
            if (!fmpz_is_one(fmpq_denref(x))) return VALUE_NONE;
            (divisor ? fmpz_gcd : fmpz_lcm)(fmpq_numref(out), fmpq_numref(out), fmpq_numref(x));
        }
    }
    return fits(out) ? VALUE_EXACT : VALUE_NONE;
}

/* out = fold of the kids' values; all of them are there. */
static ifl_math_known fold(ifl_math_work *work, const ifl_math_node *node, fmpq *out) {
    const fmpq *a = node->n > 0 ? node->kids[0]->value : NULL;
    const fmpq *b = node->n > 1 ? node->kids[1]->value : NULL;
    switch (node->kind) {
    case NODE_ADD:
    case NODE_MUL:
        fmpq_set(out, a);
        for (int i = 1; i < node->n; i++) {
            if (!step_bits(work, bits_of(out) + bits_of(node->kids[i]->value))) return VALUE_NONE;
            (node->kind == NODE_ADD ? fmpq_add : fmpq_mul)(out, out, node->kids[i]->value);
            if (!fits(out)) return VALUE_NONE;
        }
        return VALUE_EXACT;
    case NODE_NEG:
        fmpq_neg(out, a);
        return VALUE_EXACT;
    case NODE_DIV:
        if (fmpq_is_zero(b)) return VALUE_UNDEFINED;
        if (!step_bits(work, bits_of(a) + bits_of(b))) return VALUE_NONE;
        fmpq_div(out, a, b);
        return fits(out) ? VALUE_EXACT : VALUE_NONE;
    case NODE_POW:
        return power(work, out, a, b);
    case NODE_ROOT:
        return root(work, out, a, b);
    case NODE_FACTORIAL:
        return factorial(work, out, a);
    case NODE_ABS:
        fmpq_abs(out, a);
        return VALUE_EXACT;
    case NODE_FLOOR:
    case NODE_CEIL:
        if (!step_bits(work, bits_of(a))) return VALUE_NONE;
        (node->kind == NODE_FLOOR ? fmpz_fdiv_q : fmpz_cdiv_q)(fmpq_numref(out), fmpq_numref(a),
                                                               fmpq_denref(a));
        fmpz_one(fmpq_denref(out));
        return VALUE_EXACT;
    case NODE_BINOMIAL:
        return binomial(work, out, a, b);
    case NODE_LOG:
        return logarithm(work, out, a, b);
    case NODE_FUNCTION:
        return of_list(work, node, out);
    case NODE_PERCENT:
        fmpq_div_fmpz(out, a, (fmpz_t){100});
        return VALUE_EXACT;
    case NODE_RATIO:
        if (node->n != 2) return VALUE_NONE;
        if (fmpq_is_zero(b)) return VALUE_UNDEFINED;
        if (!step_bits(work, bits_of(a) + bits_of(b))) return VALUE_NONE;
        fmpq_div(out, a, b);
        return VALUE_EXACT;
    default:
        return VALUE_NONE;
    }
}

const fmpq *ifl_math_rational(ifl_math_work *work, ifl_math_node *node) {
    if (node->known == VALUE_UNKNOWN) {
        node->known = VALUE_NONE;
        if (!ifl_math_step(work, 1)) return NULL;
        for (int i = 0; i < node->n; i++)
            if (!ifl_math_rational(work, node->kids[i])) {
                if (node->kids[i]->known == VALUE_UNDEFINED) node->known = VALUE_UNDEFINED;
                if (node->kind != NODE_POW || i > 0) return NULL;
            }
        if (node->n > 0 && node->kids[0]->known != VALUE_EXACT) return NULL;
        fmpq *out = ifl_math_value_new(work);
        if (!out) return NULL;
        node->known = node->kind == NODE_BASED ? based(work, out, node)
                      : node->n > 0            ? fold(work, node, out)
                                               : VALUE_NONE;
        if (node->known == VALUE_EXACT) node->value = out;
    }
    return node->known == VALUE_EXACT ? node->value : NULL;
}

/* --- Modulo primes
 *
 * A rational function that isn't zero is zero at few points: of degree d at a share of d/p. Two
 * that differ in value differ for certain; two that agree at six points modulo 61-bit primes are
 * taken as equal when their degrees are below 2^20, which is wrong with a chance below 2^-200. The
 * points come from a hash of both answers, so that no answer can be written to fit them. */

#define DEGREE_MAX 1048576.0
#define N_TRIALS 6

typedef struct point {
    uint64_t p;
    uint64_t at[IFL_MATH_SYMBOLS_MAX];
} point;

typedef enum { MODULAR_OK, MODULAR_POLE, MODULAR_NOT_RATIONAL } modular;

static uint64_t mul_mod(uint64_t a, uint64_t b, uint64_t p) {
    return (uint64_t)((unsigned __int128)a * b % p);
}

static uint64_t pow_mod(uint64_t a, uint64_t e, uint64_t p) {
    uint64_t out = 1;
    for (; e; e >>= 1, a = mul_mod(a, a, p))
        if (e & 1) out = mul_mod(out, a, p);
    return out;
}

static modular divide_mod(uint64_t a, uint64_t b, uint64_t p, uint64_t *out) {
    if (b == 0) return MODULAR_POLE;
    if (b == 1) {
        *out = a;
        return MODULAR_OK;
    }
    *out = mul_mod(a, pow_mod(b, p - 2, p), p);
    return MODULAR_OK;
}

static modular evaluate(ifl_math_work *work, const ifl_math_node *node, const point *at,
                        uint64_t *out, double *degree);

static modular modular_power(ifl_math_work *work, const ifl_math_node *node, const point *at,
                             uint64_t *out, double *degree) {
    const fmpq *e = ifl_math_rational(work, node->kids[1]);
    uint64_t base;
    modular m = evaluate(work, node->kids[0], at, &base, degree);
    if (m != MODULAR_OK) return m;
    if (!e || !fmpz_is_one(fmpq_denref(e)) || fmpz_bits(fmpq_numref(e)) > 60)
        return MODULAR_NOT_RATIONAL;
    slong n = fmpz_get_si(fmpq_numref(e));
    /* A constant counts too: Fermat makes some of its large powers 1 modulo these primes. */
    *degree = (*degree > 1 ? *degree : 1) * (double)(n < 0 ? -n : n);
    if (base == 0 && n <= 0) return MODULAR_POLE;
    *out = pow_mod(base, (uint64_t)(n < 0 ? -n : n) % (at->p - 1), at->p);
    return n < 0 ? divide_mod(1, *out, at->p, out) : MODULAR_OK;
}

static modular evaluate(ifl_math_work *work, const ifl_math_node *node, const point *at,
                        uint64_t *out, double *degree) {
    uint64_t p = at->p, x = 0, y = 0;
    double of_kid = 0;
    *degree = 0;
    if (!ifl_math_step(work, 8)) return MODULAR_NOT_RATIONAL;
    if (node->known == VALUE_EXACT) {
        if (!ifl_math_step(work, bits_of(node->value) / 16)) return MODULAR_NOT_RATIONAL;
        return divide_mod(fmpz_fdiv_ui(fmpq_numref(node->value), p),
                          fmpz_fdiv_ui(fmpq_denref(node->value), p), p, out);
    }
    if (node->kind == NODE_SYMBOL) {
        int i = ifl_math_symbol(work, node->name);
        if (i < 0) return MODULAR_NOT_RATIONAL;
        *out = at->at[i];
        *degree = 1;
        return MODULAR_OK;
    }
    if (node->kind == NODE_POW) return modular_power(work, node, at, out, degree);
    bool sum = node->kind == NODE_ADD, rational = sum || node->kind == NODE_MUL ||
                                                  node->kind == NODE_DIV || node->kind == NODE_NEG;
    if (!rational) return MODULAR_NOT_RATIONAL;
    for (int i = 0; i < node->n; i++) {
        modular m = evaluate(work, node->kids[i], at, &y, &of_kid);
        if (m != MODULAR_OK) return m;
        *degree += of_kid; /* of a sum of fractions it may be that much */
        if (i == 0)
            x = y;
        else if (sum)
            x = (x + y) % p;
        else if (node->kind == NODE_MUL)
            x = mul_mod(x, y, p);
        else if (divide_mod(x, y, p, &x) != MODULAR_OK)
            return MODULAR_POLE;
    }
    *out = node->kind == NODE_NEG ? (x ? p - x : 0) : x;
    return MODULAR_OK;
}

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool symbols_number(ifl_math_work *work, const ifl_math_node *node) {
    if (node->kind == NODE_SYMBOL && ifl_math_symbol(work, node->name) < 0) return false;
    for (int i = 0; i < node->n; i++)
        if (!symbols_number(work, node->kids[i])) return false;
    return true;
}

ifl_math_shown ifl_math_modular(ifl_math_work *work, const ifl_math_node *a, const ifl_math_node *b,
                                bool scaled) {
    static const uint64_t primes[2] = {2305843009213693951u, 2305843009213693921u};
    uint64_t state = work->seed, first_a = 0, first_b = 0;
    int n_agreed = 0;
    if (!symbols_number(work, a) || !symbols_number(work, b)) return SHOWN_NOTHING;
    for (int trial = 0; trial < 2 * N_TRIALS && n_agreed < N_TRIALS; trial++) {
        point at = {.p = primes[n_agreed >= N_TRIALS / 2]};
        uint64_t x, y;
        double degree_a, degree_b;
        for (int i = 0; i < work->n_symbols; i++)
            at.at[i] = next_random(&state) % at.p;
        modular ma = evaluate(work, a, &at, &x, &degree_a);
        modular mb = evaluate(work, b, &at, &y, &degree_b);
        if (ma == MODULAR_NOT_RATIONAL || mb == MODULAR_NOT_RATIONAL) return SHOWN_NOTHING;
        if (degree_a > DEGREE_MAX || degree_b > DEGREE_MAX) return SHOWN_NOTHING;
        if (ma == MODULAR_POLE || mb == MODULAR_POLE) continue;
        if (scaled) { /* the ratio at one point is the ratio at all, for each prime anew */
            if ((x == 0) != (y == 0)) return SHOWN_DIFFERENT;
            if (n_agreed % (N_TRIALS / 2) == 0) {
                first_a = x;
                first_b = y;
                if (x == 0) continue;
            } else if (mul_mod(x, first_b, at.p) != mul_mod(y, first_a, at.p)) {
                return SHOWN_DIFFERENT;
            }
        } else if (x != y) {
            return SHOWN_DIFFERENT;
        }
        n_agreed++;
    }
    return n_agreed == N_TRIALS ? SHOWN_EQUAL : SHOWN_UNDEFINED;
}

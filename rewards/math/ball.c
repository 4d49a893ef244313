/* Enclosures: every value comes with a bound on its error, so that two that don't overlap differ
 * for certain. That two are equal is what many digits say, at many points where there are symbols:
 * at each of them, if no enclosure was lost on the way. */
#include <math.h>
#include <string.h>

#include "rewards/math/tree.h"
#if __has_include(<flint/acb.h>)
#include <flint/acb.h>
#include <flint/arb.h>
#else
#include <acb.h>
#include <arb.h>
#endif

#define SIZE_LOG2_MAX 1e6      /* of any value: beyond it nothing is computed */
#define ARGUMENT_LOG2_MAX 64.0 /* of a sine's: reducing more takes that many more bits */
#define PRECISION_MAX 1024
#define POINT_PRECISION 192
#define N_POINTS 24
#define N_POINTS_MIN 7

typedef enum { BALL_OK, BALL_UNDEFINED, BALL_LOST } ball_found;

typedef struct ball_context {
    ifl_math_work *work;
    slong precision;
    bool real;      /* a value that isn't real is undefined */
    bool extreme;   /* a part was tiny or huge: what cancels may be more than noise */
    bool oversize;  /* a value was too large to be computed */
    const fmpq *at; /* by symbol */
} ball_context;

static ball_found evaluate(ball_context *c, ifl_math_node *node, acb_ptr out);

static double size_log2(const acb_t x) {
    mag_t m;
    mag_init(m);
    acb_get_mag(m, x);
    double out = mag_is_zero(m) ? 0 : mag_is_inf(m) ? HUGE_VAL : mag_get_d_log2_approx(m);
    mag_clear(m);
    return out;
}

/* Fit to go on with: finite, not too large, and real where it must be. */
static ball_found checked(ball_context *c, const acb_t x) {
    if (!acb_is_finite(x)) return BALL_LOST;
    double size = size_log2(x);
    if (size > SIZE_LOG2_MAX) c->oversize = true;
    if (fabs(size) > SIZE_LOG2_MAX) return BALL_LOST;
    if (fabs(size) > (double)c->precision / 4 && !acb_contains_zero(x)) c->extreme = true;
    return BALL_OK;
}

static bool negative_real(const acb_t x) {
    return arb_is_zero(acb_imagref(x)) && arb_is_negative(acb_realref(x));
}

/* The sign of what a root or logarithm is taken of; a ball around zero is no sign. */
static ball_found needs_positive(const ball_context *c, const acb_t x, bool zero_is_fine) {
    if (acb_is_zero(x)) return zero_is_fine ? BALL_OK : BALL_UNDEFINED;
    if (!c->real) return acb_contains_zero(x) ? BALL_LOST : BALL_OK;
    if (!arb_is_zero(acb_imagref(x))) return BALL_UNDEFINED;
    if (arb_is_negative(acb_realref(x))) return BALL_UNDEFINED;
    return arb_is_positive(acb_realref(x)) ? BALL_OK : BALL_LOST;
}

static ball_found ball_power(ball_context *c, ifl_math_node *node, const acb_t base, acb_ptr out) {
    const fmpq *e = ifl_math_rational(c->work, node->kids[1]);
    ball_found found;
    double size = size_log2(base);
    if (e && fmpz_is_one(fmpq_denref(e))) {
        double n = fmpz_bits(fmpq_numref(e)) > 40 ? HUGE_VAL : fmpz_get_d(fmpq_numref(e));
        if (n == HUGE_VAL || fabs(size * n) > SIZE_LOG2_MAX) {
            c->oversize |= size * n * fmpz_sgn(fmpq_numref(e)) > SIZE_LOG2_MAX;
            return BALL_LOST;
        }
        if (n <= 0 && acb_contains_zero(base))
            return acb_is_zero(base) ? BALL_UNDEFINED : BALL_LOST;
        acb_pow_fmpz(out, base, fmpq_numref(e), c->precision);
        return BALL_OK;
    }
    acb_t exponent;
    acb_init(exponent);
    found = evaluate(c, node->kids[1], exponent);
    if (found == BALL_OK) found = needs_positive(c, base, e && fmpq_sgn(e) > 0);
    if (found == BALL_OK && acb_is_zero(base)) {
        acb_zero(out);
    } else if (found == BALL_OK) {
        double n = size_log2(exponent);
        if (n > 40 || fabs(size) * exp2(n) > SIZE_LOG2_MAX)
            found = BALL_LOST;
        else
            acb_pow(out, base, exponent, c->precision);
    }
    acb_clear(exponent);
    return found;
}

static ball_found ball_root(ball_context *c, ifl_math_node *node, const acb_t x, acb_ptr out) {
    const fmpq *index = ifl_math_rational(c->work, node->kids[1]);
    if (!index || !fmpz_is_one(fmpq_denref(index)) || fmpz_cmp_si(fmpq_numref(index), 1) < 0 ||
        fmpz_cmp_si(fmpq_numref(index), 1000) > 0)
        return BALL_LOST;
    ulong n = fmpz_get_ui(fmpq_numref(index));
    if (n % 2 == 1 && negative_real(x)) { /* the real root of a negative number */
        acb_neg(out, x);
        acb_root_ui(out, out, n, c->precision);
        acb_neg(out, out);
        return BALL_OK;
    }
    ball_found found = needs_positive(c, x, true);
    if (found != BALL_OK) return found;
    if (n == 2)
        acb_sqrt(out, x, c->precision);
    else
        acb_root_ui(out, x, n, c->precision);
    return BALL_OK;
}

typedef void (*ball_function)(acb_t, const acb_t, slong);

static ball_found ball_apply(ball_context *c, const char *name, const acb_t x, acb_ptr out) {
    static const struct {
        const char *name;
        ball_function f;
        bool reduces, bounded; /* a domain of [-1, 1] */
    } known[] = {{"sin", acb_sin, true, false},   {"cos", acb_cos, true, false},
                 {"tan", acb_tan, true, false},   {"cot", acb_cot, true, false},
                 {"sec", acb_sec, true, false},   {"csc", acb_csc, true, false},
                 {"sinh", acb_sinh, true, false}, {"cosh", acb_cosh, true, false},
                 {"tanh", acb_tanh, true, false}, {"asin", acb_asin, false, true},
                 {"acos", acb_acos, false, true}, {"atan", acb_atan, false, false}};
    if (strcmp(name, "ln") == 0 || strcmp(name, "log") == 0) {
        ball_found found = needs_positive(c, x, false);
        if (found == BALL_OK) acb_log(out, x, c->precision);
        return found;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) != 0) continue;
        if (known[i].reduces &&
            size_log2(x) >
                (known[i].f == acb_sinh || known[i].f == acb_cosh ? 19 : ARGUMENT_LOG2_MAX))
            return BALL_LOST;
        if (known[i].bounded && c->real) {
            arb_t one;
            arb_init(one);
            arb_abs(one, acb_realref(x));
            arb_sub_ui(one, one, 1, c->precision);
            bool inside = arb_is_nonpositive(one), outside = arb_is_positive(one);
            arb_clear(one);
            if (!inside) return outside ? BALL_UNDEFINED : BALL_LOST;
        }
        known[i].f(out, x, c->precision);
        return BALL_OK;
    }
    return BALL_LOST;
}

static ball_found ball_rounded(ball_context *c, ifl_math_kind kind, const acb_t x, acb_ptr out) {
    if (!arb_is_zero(acb_imagref(x))) return BALL_LOST;
    acb_zero(out);
    if (kind == NODE_FLOOR)
        arb_floor(acb_realref(out), acb_realref(x), c->precision);
    else
        arb_ceil(acb_realref(out), acb_realref(x), c->precision);
    return arb_is_exact(acb_realref(out)) ? BALL_OK : BALL_LOST;
}

static ball_found ball_divide(ball_context *c, const acb_t a, const acb_t b, acb_ptr out) {
    if (acb_contains_zero(b)) return acb_is_zero(b) ? BALL_UNDEFINED : BALL_LOST;
    acb_div(out, a, b, c->precision);
    return BALL_OK;
}

static ball_found ball_logarithm(ball_context *c, ifl_math_node *node, const acb_t x, acb_ptr out) {
    acb_t base;
    acb_init(base);
    ball_found found = evaluate(c, node->kids[1], base);
    if (found == BALL_OK) found = needs_positive(c, x, false);
    if (found == BALL_OK) found = needs_positive(c, base, false);
    if (found == BALL_OK) {
        acb_log(base, base, c->precision);
        acb_log(out, x, c->precision);
        found = ball_divide(c, out, base, out);
    }
    acb_clear(base);
    return found;
}

static ball_found ball_leaf(ball_context *c, ifl_math_node *node, acb_ptr out) {
    switch (node->kind) {
    case NODE_PI:
        acb_const_pi(out, c->precision);
        return BALL_OK;
    case NODE_E:
        acb_zero(out);
        arb_const_e(acb_realref(out), c->precision);
        return BALL_OK;
    case NODE_I:
        if (c->real) return BALL_UNDEFINED;
        acb_onei(out);
        return BALL_OK;
    case NODE_SYMBOL: {
        int i = c->at ? ifl_math_symbol(c->work, node->name) : -1;
        if (i < 0) return BALL_LOST;
        acb_set_fmpq(out, c->at + i, c->precision);
        return BALL_OK;
    }
    default:
        return BALL_LOST;
    }
}

static ball_found ball_fold(ball_context *c, ifl_math_node *node, acb_ptr out) {
    acb_t x;
    ball_found found = BALL_OK;
    acb_init(x);
    for (int i = 1; i < node->n && found == BALL_OK; i++) {
        found = evaluate(c, node->kids[i], x);
        if (found != BALL_OK) break;
        if (node->kind == NODE_ADD)
            acb_add(out, out, x, c->precision);
        else if (node->kind == NODE_MUL)
            acb_mul(out, out, x, c->precision);
        else
            found = ball_divide(c, out, x, out);
        if (found == BALL_OK) found = checked(c, out);
    }
    acb_clear(x);
    return found;
}

static ball_found ball_inner(ball_context *c, ifl_math_node *node, const acb_t x, acb_ptr out) {
    switch (node->kind) {
    case NODE_ADD:
    case NODE_MUL:
    case NODE_DIV:
        acb_set(out, x);
        return ball_fold(c, node, out);
    case NODE_NEG:
        acb_neg(out, x);
        return BALL_OK;
    case NODE_POW:
        return ball_power(c, node, x, out);
    case NODE_ROOT:
        return ball_root(c, node, x, out);
    case NODE_ABS:
        acb_abs(acb_realref(out), x, c->precision);
        arb_zero(acb_imagref(out));
        return BALL_OK;
    case NODE_FLOOR:
    case NODE_CEIL:
        return ball_rounded(c, node->kind, x, out);
    case NODE_FUNCTION:
        return ball_apply(c, node->name, x, out);
    case NODE_LOG:
        return ball_logarithm(c, node, x, out);
    case NODE_PERCENT:
        acb_div_ui(out, x, 100, c->precision);
        return BALL_OK;
    case NODE_UNIT: /* the sine of 30 degrees; any other unit has no value */
        if (strcmp(node->name, "degree") != 0) return BALL_LOST;
        acb_const_pi(out, c->precision);
        acb_mul(out, out, x, c->precision);
        acb_div_ui(out, out, 180, c->precision);
        return BALL_OK;
    default:
        return BALL_LOST;
    }
}

static ball_found evaluate(ball_context *c, ifl_math_node *node, acb_ptr out) {
    bool costly = node->kind == NODE_FUNCTION || node->kind == NODE_POW || node->kind == NODE_LOG ||
                  node->kind == NODE_ROOT;
    int64_t cost = costly ? c->precision * (1 + c->precision / 512) : 6 + c->precision / 64;
    if (!ifl_math_step(c->work, cost)) return BALL_LOST;
    const fmpq *exact = ifl_math_rational(c->work, node);
    if (exact) {
        if (!ifl_math_step(
                c->work,
                (int64_t)(fmpz_bits(fmpq_numref(exact)) + fmpz_bits(fmpq_denref(exact))) / 64))
            return BALL_LOST;
        acb_set_fmpq(out, exact, c->precision);
        return checked(c, out);
    }
    if (node->known == VALUE_UNDEFINED) return BALL_UNDEFINED;
    if (node->n == 0) return ball_leaf(c, node, out);
    acb_t x;
    acb_init(x);
    ball_found found = evaluate(c, node->kids[0], x);
    if (found == BALL_OK) found = ball_inner(c, node, x, out);
    acb_clear(x);
    return found == BALL_OK ? checked(c, out) : found;
}

/* Whether two enclosures say "equal": SHOWN_NOTHING when they are too wide. */
static ifl_math_shown compared(const ball_context *c, const acb_t a, const acb_t b) {
    if (!acb_overlaps(a, b)) return SHOWN_DIFFERENT;
    slong want = c->precision / 2;
    if (acb_rel_accuracy_bits(a) >= want && acb_rel_accuracy_bits(b) >= want) return SHOWN_EQUAL;
    if (c->extreme) return SHOWN_NOTHING;
    mag_t radius;
    mag_init(radius);
    acb_t difference;
    acb_init(difference);
    acb_sub(difference, a, b, c->precision);
    acb_get_mag(radius, difference);
    bool small = mag_cmp_2exp_si(radius, -want) < 0;
    acb_clear(difference);
    mag_clear(radius);
    return small ? SHOWN_EQUAL : SHOWN_NOTHING;
}

static ifl_math_shown constants(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b) {
    ifl_math_shown shown = SHOWN_NOTHING;
    acb_t x, y;
    acb_init(x);
    acb_init(y);
    for (slong precision = 128; precision <= PRECISION_MAX; precision *= 2) {
        ball_context c = {.work = work, .precision = precision};
        ball_found found_a = evaluate(&c, a, x), found_b = evaluate(&c, b, y);
        if (found_a == BALL_UNDEFINED || found_b == BALL_UNDEFINED) {
            shown = SHOWN_UNDEFINED;
            break;
        }
        shown = SHOWN_NOTHING;
        if (found_a == BALL_OK && found_b == BALL_LOST && c.oversize) {
            shown = SHOWN_DIFFERENT; /* nobody writes 5 as what no computer can write down */
            break;
        }
        if (found_a != BALL_OK || found_b != BALL_OK) continue;
        shown = compared(&c, x, y);
        if (shown == SHOWN_DIFFERENT || (shown == SHOWN_EQUAL && precision >= 512)) break;
    }
    acb_clear(x);
    acb_clear(y);
    return work->limit ? SHOWN_NOTHING : shown;
}

/* Rational points with small parts. By turns positive, of any sign, and within (0, 1). */
static void point_choose(uint64_t seed, int trial, fmpq *at, int n) {
    uint64_t state = seed ^ (0x9e3779b97f4a7c15u * (uint64_t)(trial + 1));
    for (int i = 0; i < n; i++) {
        state ^= state >> 29;
        state *= 0xbf58476d1ce4e5b9u;
        state ^= state >> 32;
        slong k = (slong)(state % 30011) + 977;
        bool small = trial % 4 == 3, negative = trial % 2 == 1 && !small && (state >> 40) % 3 != 0;
        fmpq_set_si(at + i, negative ? -k : k, small ? 32003 : 8209);
    }
}

static bool collect_symbols(ifl_math_work *work, const ifl_math_node *node) {
    if (node->kind == NODE_SYMBOL && ifl_math_symbol(work, node->name) < 0) return false;
    for (int i = 0; i < node->n; i++)
        if (!collect_symbols(work, node->kids[i])) return false;
    return true;
}

static ifl_math_shown at_points(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b) {
    fmpq at[IFL_MATH_SYMBOLS_MAX];
    int n_agreed = 0, n_defined = 0, n_undefined = 0; /* of b, where a is defined */
    ifl_math_shown shown = SHOWN_NOTHING;
    acb_t x, y;
    bool real = !ifl_math_contains(a, NODE_I) && !ifl_math_contains(b, NODE_I);
    if (!collect_symbols(work, a) || !collect_symbols(work, b)) return SHOWN_NOTHING;
    acb_init(x);
    acb_init(y);
    for (int i = 0; i < work->n_symbols; i++)
        fmpq_init(at + i);
    for (int trial = 0; trial < N_POINTS && !work->limit; trial++) {
        ball_context c = {.work = work, .precision = POINT_PRECISION, .real = real, .at = at};
        point_choose(work->seed, trial, at, work->n_symbols);
        if (evaluate(&c, a, x) != BALL_OK) continue;
        ball_found found = evaluate(&c, b, y);
        n_undefined += found == BALL_UNDEFINED;
        if (found != BALL_OK) continue;
        n_defined++;
        shown = compared(&c, x, y);
        if (shown == SHOWN_DIFFERENT) break;
        n_agreed += shown == SHOWN_EQUAL;
    }
    for (int i = 0; i < work->n_symbols; i++)
        fmpq_clear(at + i);
    acb_clear(x);
    acb_clear(y);
    if (shown == SHOWN_DIFFERENT) return shown;
    if (n_defined == 0 && n_undefined >= N_POINTS_MIN) return SHOWN_DIFFERENT;
    return n_agreed >= N_POINTS_MIN && !work->limit ? SHOWN_EQUAL : SHOWN_NOTHING;
}

ifl_math_shown ifl_math_enclosed(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b) {
    if (ifl_math_contains(a, NODE_SYMBOL) || ifl_math_contains(b, NODE_SYMBOL))
        return at_points(work, a, b);
    return constants(work, a, b);
}

ifl_math_shown ifl_math_within(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b, double tol,
                               double tol_abs) {
    ifl_math_shown shown = SHOWN_NOTHING;
    ball_context c = {.work = work, .precision = 256};
    acb_t x, y;
    arb_t d, t, s;
    acb_init(x);
    acb_init(y);
    arb_init(d);
    arb_init(t);
    arb_init(s);
    if (evaluate(&c, a, x) == BALL_OK && evaluate(&c, b, y) == BALL_OK) {
        acb_abs(t, y, c.precision);
        arb_set_d(s, tol);
        arb_mul(t, t, s, c.precision);
        arb_set_d(s, tol_abs);
        arb_add(t, t, s, c.precision);
        acb_sub(x, x, y, c.precision);
        acb_abs(d, x, c.precision);
        if (arb_le(d, t))
            shown = SHOWN_EQUAL;
        else if (arb_gt(d, t))
            shown = SHOWN_DIFFERENT;
    }
    acb_clear(x);
    acb_clear(y);
    arb_clear(d);
    arb_clear(t);
    arb_clear(s);
    return shown;
}

static int infinity_sign(const ifl_math_node *node) {
    if (node->kind == NODE_INFINITY) return 1;
    return node->kind == NODE_NEG ? -infinity_sign(node->kids[0]) : 0;
}

int ifl_math_order(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b) {
    int at_a = infinity_sign(a), at_b = infinity_sign(b);
    if (at_a || at_b) return (at_a > at_b) - (at_a < at_b);
    const fmpq *x = ifl_math_rational(work, a), *y = ifl_math_rational(work, b);
    if (x && y) {
        int order = fmpq_cmp(x, y);
        return (order > 0) - (order < 0);
    }
    if (ifl_math_contains(a, NODE_SYMBOL) || ifl_math_contains(b, NODE_SYMBOL)) return 2;
    if (constants(work, a, b) == SHOWN_EQUAL) return 0;
    int order = 2;
    ball_context c = {.work = work, .precision = PRECISION_MAX};
    acb_t p, q;
    acb_init(p);
    acb_init(q);
    if (evaluate(&c, a, p) == BALL_OK && evaluate(&c, b, q) == BALL_OK && acb_is_real(p) &&
        acb_is_real(q)) {
        if (arb_lt(acb_realref(p), acb_realref(q))) order = -1;
        if (arb_gt(acb_realref(p), acb_realref(q))) order = 1;
    }
    acb_clear(p);
    acb_clear(q);
    return order;
}

int ifl_math_factor_sign(ifl_math_work *work, ifl_math_node *a, ifl_math_node *b) {
    fmpq at[IFL_MATH_SYMBOLS_MAX];
    int sign = 0;
    if (!collect_symbols(work, a) || !collect_symbols(work, b)) return 0;
    acb_t x, y;
    acb_init(x);
    acb_init(y);
    for (int i = 0; i < work->n_symbols; i++)
        fmpq_init(at + i);
    for (int trial = 0; trial < N_POINTS && sign == 0 && !work->limit; trial++) {
        ball_context c = {.work = work, .precision = POINT_PRECISION, .real = true, .at = at};
        point_choose(work->seed, trial, at, work->n_symbols);
        if (evaluate(&c, a, x) != BALL_OK || evaluate(&c, b, y) != BALL_OK) continue;
        acb_mul(x, x, y, POINT_PRECISION);
        if (arb_is_positive(acb_realref(x))) sign = 1;
        if (arb_is_negative(acb_realref(x))) sign = -1;
    }
    for (int i = 0; i < work->n_symbols; i++)
        fmpq_clear(at + i);
    acb_clear(x);
    acb_clear(y);
    return sign;
}

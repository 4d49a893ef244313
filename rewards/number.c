#include "rewards/number.h"

#include <string.h>

/* A reading head. All peeks are bounds-checked; NUL is an ordinary byte. */
typedef struct scan {
    const char *text;
    size_t n, at;
} scan;

static int peek(const scan *s, size_t ahead) {
    return s->at + ahead < s->n ? (unsigned char)s->text[s->at + ahead] : -1;
}

static bool is_digit(int c) {
    return c >= '0' && c <= '9';
}
static bool is_letter(int c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool starts_with(const scan *s, const char *word) {
    size_t n = strlen(word);
    return s->n - s->at >= n && memcmp(s->text + s->at, word, n) == 0;
}

static bool accept(scan *s, const char *word) {
    if (!starts_with(s, word)) return false;
    s->at += strlen(word);
    return true;
}

static bool ends_before(const char *text, size_t at, const char *word) {
    size_t n = strlen(word);
    return at >= n && memcmp(text + at - n, word, n) == 0;
}

/* Appends a digit; leading zeros are dropped. False when there are too many. */
static bool digit_push(char *digits, int32_t *n, int c) {
    if (*n == 0 && c == '0') return true;
    if (*n == IFL_NUMBER_DIGITS_MAX) return false;
    digits[(*n)++] = (char)c;
    return true;
}

static void number_normalise(ifl_number *x) {
    if (x->n_numerator == 0) {
        x->negative = false;
        x->exponent = 0;
        x->n_denominator = 1;
        x->denominator[0] = '1';
        return;
    }
    while (x->numerator[x->n_numerator - 1] == '0') {
        x->n_numerator--;
        x->exponent++;
    }
}

static void number_clear(ifl_number *x) {
    x->negative = false;
    x->exponent = 0;
    x->n_numerator = 0;
    x->n_denominator = 1;
    x->denominator[0] = '1';
}

/* A thousands separator with exactly three digits behind it: its length, else 0. */
static size_t separator_length(const scan *s) {
    static const char *const separators[] = {"{,}", ",\\!", "\\,", ","};
    for (size_t i = 0; i < sizeof separators / sizeof *separators; i++) {
        if (!starts_with(s, separators[i])) continue;
        size_t n = strlen(separators[i]);
        if (is_digit(peek(s, n)) && is_digit(peek(s, n + 1)) && is_digit(peek(s, n + 2)) &&
            !is_digit(peek(s, n + 3)))
            return n;
    }
    return 0;
}

/* Behind a number: an operator or separator glued to a further digit makes it an expression, a
 * date, a list or a time, none of which is a number. */
static bool glued(const scan *s) {
    static const char *const joints[] = {",",
                                         "{,}",
                                         ".",
                                         "/",
                                         ":",
                                         "^",
                                         "^{",
                                         "^(",
                                         "*",
                                         "+",
                                         "-",
                                         "\xe2\x88\x92",
                                         "\xe2\x80\x93",
                                         "\xc3\x97"};
    for (size_t i = 0; i < sizeof joints / sizeof *joints; i++) {
        if (!starts_with(s, joints[i])) continue;
        size_t n = strlen(joints[i]);
        int c = peek(s, n);
        if (is_digit(c)) return true;
        if ((c == '-' || c == '+') && is_digit(peek(s, n + 1)) && joints[i][0] == '^') return true;
    }
    return false;
}

/* Skips what glued() found, so that its last part isn't taken for a number. */
static void skip_glued(scan *s) {
    while (s->at < s->n) {
        if (is_digit(peek(s, 0))) {
            s->at++;
        } else if (glued(s)) {
            while (!is_digit(peek(s, 0)))
                s->at++;
        } else {
            return;
        }
    }
}

/* Digits with separators, decimals. False: malformed; the head is then somewhere inside the digits.
 */
static bool scan_decimal(scan *s, ifl_number *x) {
    bool fits = true;
    size_t begin = s->at;
    while (is_digit(peek(s, 0)))
        fits &= digit_push(x->numerator, &x->n_numerator, (unsigned char)s->text[s->at++]);
    size_t n_leading = s->at - begin;
    bool may_group = n_leading >= 1 && n_leading <= 3 && s->text[begin] != '0';
    for (size_t n; may_group && (n = separator_length(s)) > 0;) {
        s->at += n;
        for (int i = 0; i < 3; i++)
            fits &= digit_push(x->numerator, &x->n_numerator, (unsigned char)s->text[s->at++]);
    }
    if (peek(s, 0) == '.' && is_digit(peek(s, 1))) {
        s->at++;
        while (is_digit(peek(s, 0))) {
            fits &= digit_push(x->numerator, &x->n_numerator, (unsigned char)s->text[s->at++]);
            if (fits) x->exponent--; /* at most a few digits more than fit: no overflow */
        }
    }
    return fits;
}

static bool scan_exponent(scan *s, ifl_number *x) {
    int c = peek(s, 0);
    if (c != 'e' && c != 'E') return true;
    size_t n_sign = peek(s, 1) == '+' || peek(s, 1) == '-';
    if (!is_digit(peek(s, 1 + n_sign))) return true; /* "5 eggs" without the space */
    bool negative = peek(s, 1) == '-';
    s->at += 1 + n_sign;
    int32_t e = 0;
    bool fits = true;
    while (is_digit(peek(s, 0))) {
        if (e <= IFL_NUMBER_EXPONENT_MAX) e = e * 10 + (s->text[s->at] - '0');
        s->at++;
    }
    if (e > IFL_NUMBER_EXPONENT_MAX || is_letter(peek(s, 0))) fits = false;
    x->exponent += negative ? -e : e;
    return fits;
}

/* Digits up to `close` (0: up to a non-digit) into numerator or denominator. */
static bool scan_integer(scan *s, char *digits, int32_t *n, int close) {
    bool any = false, fits = true;
    while (is_digit(peek(s, 0))) {
        fits &= digit_push(digits, n, (unsigned char)s->text[s->at++]);
        any = true;
    }
    if (close) {
        if (peek(s, 0) != close) return false;
        s->at++;
    }
    return any && fits;
}

/* "\frac{a}{b}" from behind "\frac". */
static bool scan_latex_fraction(scan *s, ifl_number *x) {
    x->n_denominator = 0;
    if (!accept(s, "{")) return false;
    if (accept(s, "-")) x->negative = !x->negative;
    return scan_integer(s, x->numerator, &x->n_numerator, '}') && accept(s, "{") &&
           scan_integer(s, x->denominator, &x->n_denominator, '}') && x->n_denominator > 0;
}

/* 1 1/2 is three halves; reading its last part as a half would be wrong. */
static bool behind_integer(const char *text, size_t at) {
    return at >= 2 && text[at - 1] == ' ' && is_digit((unsigned char)text[at - 2]);
}

/* 5^{3}, sqrt(5): a number in a function isn't the value of the expression. */
static bool inside_function(const char *text, size_t at) {
    static const char *const words[] = {"^", "^{", "^(", "sqrt", "sqrt{", "sqrt(", "\xe2\x88\x9a"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (ends_before(text, at, words[i])) return true;
    return false;
}

static void accept_currency(scan *s) {
    if (!accept(s, "\\$") && !accept(s, "$") && !accept(s, "\xe2\x82\xac")) accept(s, "\xc2\xa3");
}

/* Most bytes of a text begin no number: digits, signs, '$' and what the Unicode ones start with do.
 */
static bool may_begin(int c) {
    return is_digit(c) || c == '.' || c == '-' || c == '+' || c == '$' || c == '\\' || c == 0xe2 ||
           c == 0xc2;
}

ifl_number_found ifl_number_scan(const char *text, size_t n, size_t at, ifl_number *x,
                                 size_t *end) {
    scan s = {text, n, at};
    *end = at < n ? at + 1 : n;
    if (at >= n || !may_begin((unsigned char)text[at])) return IFL_NUMBER_NONE;
    number_clear(x);
    int before = at > 0 ? (unsigned char)text[at - 1] : -1;

    /* A word with digits in it ("x2", "H2O", "a_1"): none of its digits is a number. */
    if (is_digit(peek(&s, 0)) && (is_letter(before) || before == '_')) {
        while (is_digit(peek(&s, 0)) || is_letter(peek(&s, 0)) || peek(&s, 0) == '_')
            s.at++;
        skip_glued(&s); /* v1.2 */
        *end = s.at;
        return IFL_NUMBER_NONE;
    }
    /* A sign behind a letter, digit or closing bracket is a minus or a hyphen. */
    bool operator_before = is_digit(before) || is_letter(before) || before == ')' ||
                           before == ']' || before == '}' || before == '-' || before == '+';
    if (!operator_before) {
        if (accept(&s, "-") || accept(&s, "\xe2\x88\x92"))
            x->negative = true;
        else
            accept(&s, "+");
    }
    accept_currency(&s);
    if (s.at > at && !x->negative && peek(&s, 0) == '-' && is_digit(peek(&s, 1))) {
        x->negative = true; /* $-5 */
        s.at++;
    }
    size_t begin = s.at;
    bool fine;
    if (accept(&s, "\\frac") || accept(&s, "\\dfrac") || accept(&s, "\\tfrac")) {
        if (peek(&s, 0) != '{') return IFL_NUMBER_NONE;
        fine = scan_latex_fraction(&s, x) && !behind_integer(text, at) &&
               !(at > 0 && is_digit(before));
        if (!fine && s.at <= at) s.at = at + 1;
    } else if (is_digit(peek(&s, 0)) || (peek(&s, 0) == '.' && is_digit(peek(&s, 1)) &&
                                         before != '.' && !is_digit(before))) {
        fine = scan_decimal(&s, x) && scan_exponent(&s, x) && !inside_function(text, at);
        if (fine && peek(&s, 0) == '/' && is_digit(peek(&s, 1))) {
            s.at++;
            x->n_denominator = 0;
            fine = scan_integer(&s, x->denominator, &x->n_denominator, 0) && x->n_denominator > 0 &&
                   !behind_integer(text, begin);
        }
    } else {
        return IFL_NUMBER_NONE;
    }
    if (glued(&s)) {
        skip_glued(&s);
        fine = false;
    }
    if (!accept(&s, "\\%")) accept(&s, "%");
    *end = s.at > at ? s.at : at + 1;
    if (!fine) return IFL_NUMBER_MALFORMED;
    number_normalise(x);
    return IFL_NUMBER_OK;
}

static bool is_space(int c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

bool ifl_number_parse(const char *text, size_t n, ifl_number *out) {
    while (n > 0 && is_space((unsigned char)text[n - 1]))
        n--;
    while (n > 0 && is_space((unsigned char)*text)) {
        text++;
        n--;
    }
    if (n > 1 && text[n - 1] == '.') n--;
    size_t end = 0;
    return ifl_number_scan(text, n, 0, out, &end) == IFL_NUMBER_OK && end == n;
}

/* out[n_a + n_b] = a * b, schoolbook; at most 1024 x 1024 steps. Returns the digits without the
 * leading zero, *n_out of them, trailing zeros counted into *exponent. */
static const char *digits_multiply(const char *a, int32_t n_a, const char *b, int32_t n_b,
                                   char out[2 * IFL_NUMBER_DIGITS_MAX], int32_t *n_out,
                                   int32_t *exponent) {
    int32_t n = n_a + n_b;
    memset(out, 0, (size_t)n);
    for (int32_t i = n_a - 1; i >= 0; i--) {
        int carry = 0;
        for (int32_t j = n_b - 1; j >= 0; j--) {
            int v = out[i + j + 1] + (a[i] - '0') * (b[j] - '0') + carry;
            out[i + j + 1] = (char)(v % 10);
            carry = v / 10;
        }
        out[i] = (char)carry;
    }
    const char *first = out;
    while (n > 0 && *first == 0) {
        first++;
        n--;
    }
    while (n > 0 && first[n - 1] == 0) {
        n--;
        (*exponent)++;
    }
    *n_out = n;
    return first;
}

bool ifl_number_equal(const ifl_number *a, const ifl_number *b) {
    if (a->n_numerator == 0 || b->n_numerator == 0) return a->n_numerator == b->n_numerator;
    if (a->negative != b->negative) return false;
    char left[2 * IFL_NUMBER_DIGITS_MAX], right[2 * IFL_NUMBER_DIGITS_MAX];
    int32_t n_left, n_right, e_left = a->exponent, e_right = b->exponent;
    const char *l = digits_multiply(a->numerator, a->n_numerator, b->denominator, b->n_denominator,
                                    left, &n_left, &e_left);
    const char *r = digits_multiply(b->numerator, b->n_numerator, a->denominator, a->n_denominator,
                                    right, &n_right, &e_right);
    return e_left == e_right && n_left == n_right && memcmp(l, r, (size_t)n_left) == 0;
}

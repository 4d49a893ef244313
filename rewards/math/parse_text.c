/* Below the grammar: spaces, commands, numbers, words and units. */
#include <string.h>

#include "rewards/math/parse.h"

#define UNIT_BYTES_MAX 128
#define EXPONENT_MAX 9999

bool ifl_math_is_digit(int c) {
    return c >= '0' && c <= '9';
}

bool ifl_math_is_letter(int c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 0x80;
}

ifl_math_node *ifl_math_refuse(ifl_math_head *p, const char *reason) {
    if (!p->reason) p->reason = reason;
    return NULL;
}

int ifl_math_peek(const ifl_math_head *p, size_t ahead) {
    return p->at + ahead < p->n ? (unsigned char)p->text[p->at + ahead] : -1;
}

bool ifl_math_at(const ifl_math_head *p, const char *word) {
    if (p->at >= p->n || p->text[p->at] != *word) return false; /* nearly always */
    size_t n = strlen(word);
    return p->n - p->at >= n && memcmp(p->text + p->at, word, n) == 0;
}

size_t ifl_math_command(const ifl_math_head *p) {
    size_t n = 0;
    if (ifl_math_peek(p, 0) != '\\') return 0;
    while (ifl_math_peek(p, n + 1) < 0x80 && ifl_math_is_letter(ifl_math_peek(p, n + 1)))
        n++;
    return n;
}

bool ifl_math_command_is(const ifl_math_head *p, const char *name) {
    if (ifl_math_peek(p, 0) != '\\' || ifl_math_peek(p, 1) != *name) return false;
    size_t n = ifl_math_command(p);
    return n == strlen(name) && memcmp(p->text + p->at + 1, name, n) == 0;
}

void ifl_math_skip_space(ifl_math_head *p) {
    static const char *const silent[] = {"left",   "right", "big",          "Big",       "bigg",
                                         "Bigg",   "bigl",  "bigr",         "Bigl",      "Bigr",
                                         "biggl",  "biggr", "displaystyle", "textstyle", "limits",
                                         "quad",   "qquad", "thinspace",    "enspace",   "space",
                                         "hspace", "rm",    "bf",           "mathstrut", "strut"};
    if (p->solid == p->at + 1) return;
    for (;;) {
        int c = ifl_math_peek(p, 0), next = ifl_math_peek(p, 1);
        if (c == ' ' || c == '~' || c == '$') {
            p->at++;
            continue;
        }
        if (c != '\\') break;
        if (next == ' ' || next == ',' || next == ';' || next == ':' || next == '!' ||
            next == '(' || next == ')' || next == '[' || next == ']') {
            p->at += 2;
            continue;
        }
        size_t i = 0, n = sizeof silent / sizeof *silent;
        while (i < n && !ifl_math_command_is(p, silent[i]))
            i++;
        if (i == n && ifl_math_at(p, "\\quad")) { /* "\quadx" */
            p->at += 5;
            continue;
        }
        if (i == n) break;
        p->at += 1 + strlen(silent[i]);
        if (i < 2 && ifl_math_peek(p, 0) == '.') p->at++; /* \right. */
    }
    p->solid = p->at + 1;
}

bool ifl_math_accept(ifl_math_head *p, const char *word) {
    ifl_math_skip_space(p);
    if (!ifl_math_at(p, word)) return false;
    p->at += strlen(word);
    return true;
}

bool ifl_math_accept_command(ifl_math_head *p, const char *name) {
    ifl_math_skip_space(p);
    if (!ifl_math_command_is(p, name)) return false;
    p->at += 1 + strlen(name);
    return true;
}

size_t ifl_math_word(const ifl_math_head *p) {
    size_t n = 0;
    while (ifl_math_is_letter(ifl_math_peek(p, n)))
        n++;
    return n;
}

bool ifl_math_braced(ifl_math_head *p, ifl_slice *out) {
    size_t depth = 1;
    for (size_t i = p->at; i < p->n; i++) {
        if (p->text[i] == '\\') {
            i++;
        } else if (p->text[i] == '{') {
            depth++;
        } else if (p->text[i] == '}' && --depth == 0) {
            *out = (ifl_slice){p->text + p->at, i - p->at};
            p->at = i + 1;
            return ifl_math_step(p->work, 1 + (int64_t)out->n / 64);
        }
    }
    ifl_math_refuse(p, "a brace isn't closed");
    return false;
}

/* A thousands separator with three digits behind it: its length, else 0. */
static size_t separator(const ifl_math_head *p) {
    static const char *const sure[] = {"{,}", ",\\! ", ",\\!", ",\\,", "\\,", "\\!"};
    size_t n = 0;
    for (size_t i = 0; i < sizeof sure / sizeof *sure && n == 0; i++)
        if (ifl_math_at(p, sure[i])) n = strlen(sure[i]);
    if (n == 0 && p->reading.grouped && !p->in_group &&
        (ifl_math_at(p, ",") || ifl_math_at(p, " ")))
        n = 1;
    for (size_t i = 0; i < 3; i++)
        if (n == 0 || !ifl_math_is_digit(ifl_math_peek(p, n + i))) return 0;
    return ifl_math_is_digit(ifl_math_peek(p, n + 3)) ? 0 : n;
}

typedef struct numeral {
    char digits[IFL_MATH_DIGITS_MAX + 8];
    int n, places;
    int n_repeating; /* of the places */
    bool point;
} numeral;

static bool numeral_push(numeral *x, int c) {
    if (x->n == IFL_MATH_DIGITS_MAX) return false;
    x->digits[x->n++] = (char)c;
    return true;
}

static bool numeral_digits(ifl_math_head *p, numeral *x) {
    while (ifl_math_is_digit(ifl_math_peek(p, 0))) {
        if (!numeral_push(x, p->text[p->at++])) return false;
        x->places += x->point;
    }
    return true;
}

/* 0.1\overline{6} */
static bool numeral_repeating(ifl_math_head *p, numeral *x) {
    size_t begin = p->at;
    if (!x->point ||
        (!ifl_math_accept_command(p, "overline") && !ifl_math_accept_command(p, "bar")))
        return true;
    if (!ifl_math_accept(p, "{") || !ifl_math_is_digit(ifl_math_peek(p, 0))) {
        p->at = begin;
        return true;
    }
    int before = x->places;
    if (!numeral_digits(p, x)) return false;
    x->n_repeating = x->places - before;
    return ifl_math_accept(p, "}");
}

/* The decimal exponent of 1.5e3. "2e" is twice e, and 2e+3 a sum. */
static int numeral_exponent(ifl_math_head *p, const numeral *x, bool *fits) {
    int c = ifl_math_peek(p, 0), sign = ifl_math_peek(p, 1), e = 0;
    bool is_signed = sign == '-' || sign == '+';
    if ((c != 'e' && c != 'E') || !ifl_math_is_digit(ifl_math_peek(p, 1 + is_signed))) return 0;
    if (is_signed && !x->point && c == 'e') return 0;
    p->at += 1 + (size_t)is_signed;
    for (; ifl_math_is_digit(ifl_math_peek(p, 0)); p->at++)
        if (e <= EXPONENT_MAX) e = e * 10 + (p->text[p->at] - '0');
    if (e > EXPONENT_MAX) *fits = false;
    return sign == '-' ? -e : e;
}

static ifl_math_node *numeral_node(ifl_math_head *p, numeral *x, int exponent) {
    ifl_math_node *node = ifl_math_number(p->work, 0);
    fmpz_t whole, power;
    int shift = exponent - (x->places - x->n_repeating);
    int64_t size = x->n + (shift < 0 ? -shift : shift) + x->n_repeating;
    if (!node || !ifl_math_step(p->work, 1 + size * size / 16384)) return NULL;
    x->digits[x->n] = 0;
    fmpz_init(whole);
    fmpz_init(power);
    fmpz *a = fmpq_numref(node->value), *b = fmpq_denref(node->value);
    fmpz_set_str(a, x->n ? x->digits : "0", 10);
    if (x->n_repeating > 0) { /* abc(de) is (abcde - abc) / 99000 */
        x->digits[x->n - x->n_repeating] = 0;
        fmpz_set_str(whole, x->n > x->n_repeating ? x->digits : "0", 10);
        fmpz_sub(a, a, whole);
        fmpz_set_ui(power, 10);
        fmpz_pow_ui(b, power, (ulong)x->n_repeating);
        fmpz_sub_ui(b, b, 1);
    }
    fmpz_set_ui(power, 10);
    fmpz_pow_ui(power, power, (ulong)(shift < 0 ? -shift : shift));
    fmpz_mul(shift < 0 ? b : a, shift < 0 ? b : a, power);
    fmpq_canonicalise(node->value);
    fmpz_clear(whole);
    fmpz_clear(power);
    node->inexact = x->point && x->n_repeating == 0;
    node->places = x->places - exponent;
    return node;
}

/* "..." behind a decimal: there are more places than are shown. */
static bool read_ellipsis(ifl_math_head *p) {
    size_t begin = p->at;
    if (ifl_math_accept(p, "...") || ifl_math_accept_command(p, "ldots") ||
        ifl_math_accept_command(p, "dots") || ifl_math_accept_command(p, "cdots"))
        return true;
    p->at = begin;
    return false;
}

ifl_math_node *ifl_math_read_number(ifl_math_head *p) {
    numeral on_stack, *x = &on_stack;
    x->n = x->places = x->n_repeating = 0;
    x->point = false;
    size_t begin = p->at;
    bool fits = numeral_digits(p, x);
    bool may_group = p->at - begin <= 3 && p->at > begin && p->text[begin] != '0';
    for (size_t n; fits && may_group && (n = separator(p)) > 0;) {
        p->at += n;
        for (int i = 0; i < 3; i++)
            fits = fits && numeral_push(x, p->text[p->at++]);
    }
    size_t end_whole = p->at;
    if (fits && ifl_math_peek(p, 0) == '.' &&
        (ifl_math_is_digit(ifl_math_peek(p, 1)) || ifl_math_peek(p, 1) == '\\') &&
        !(ifl_math_peek(p, 1) == '\\' && !ifl_math_is_letter(ifl_math_peek(p, 2)))) {
        p->at++;
        x->point = true;
        fits = numeral_digits(p, x) && numeral_repeating(p, x);
        if (fits && x->places == 0) { /* "5.\text{...}" */
            p->at = end_whole + 1;
            x->point = false;
        }
    }
    int exponent = fits ? numeral_exponent(p, x, &fits) : 0;
    if (!fits) {
        p->work->limit = "digits of a number (10000)";
        return NULL;
    }
    if (x->n == 0) return ifl_math_refuse(p, "a point without digits");
    if (ifl_math_peek(p, 0) == '.' && ifl_math_is_digit(ifl_math_peek(p, 1)))
        return ifl_math_refuse(p, "a number with two points");
    ifl_math_node *node = numeral_node(p, x, exponent);
    if (node && node->inexact && read_ellipsis(p)) node->marked = true;
    return node;
}

ifl_math_node *ifl_math_read_digit(ifl_math_head *p) {
    return ifl_math_number(p->work, p->text[p->at++] - '0');
}

/* \text{...} and its kin at the head: the content. */
static bool accept_text(ifl_math_head *p, ifl_slice *out) {
    static const char *const names[] = {
        "text",   "mathrm", "textrm",     "mbox",         "textbf", "mathbf", "textit", "mathit",
        "mathsf", "hbox",   "textnormal", "operatorname", "rm",     "mathtt", "texttt", "textsf"};
    size_t begin = p->at;
    ifl_math_skip_space(p);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (ifl_math_command_is(p, names[i])) {
            p->at += 1 + strlen(names[i]);
            if (ifl_math_accept(p, "{") && ifl_math_braced(p, out)) return true;
            break;
        }
    p->at = begin;
    return false;
}

static bool is_separator_word(const char *word, size_t n) {
    return (n == 3 && memcmp(word, "and", 3) == 0) || (n == 2 && memcmp(word, "or", 2) == 0);
}

/* The words of a text, appended to a unit; false: it is no unit (digits, "and"). */
static bool unit_words(char *unit, ifl_slice s) {
    for (size_t i = 0; i < s.n;) {
        size_t n = 0;
        while (i + n < s.n && ifl_math_is_letter((unsigned char)s.text[i + n]))
            n++;
        if (n > 0) {
            if (is_separator_word(s.text + i, n) ||
                !ifl_math_unit_word(unit, UNIT_BYTES_MAX, s.text + i, n))
                return false;
            i += n;
            continue;
        }
        char c = s.text[i++];
        size_t used = strlen(unit);
        if (c == '/' || c == '^' || c == '2' || c == '3' || c == '-') {
            /* 1\text{2} is no one of the unit "2". */
            int last = used > 0 ? (unsigned char)unit[used - 1] : 0;
            if (c != '/' && !ifl_math_is_letter(last) && last != '^' && last != '-') return false;
            if (used + 3 > UNIT_BYTES_MAX) return false;
            if (ifl_math_is_digit(c) && ifl_math_is_letter(last)) unit[used++] = '^';
            unit[used] = c;
            unit[used + 1] = 0;
        } else if (ifl_math_is_digit(c) || !strchr(" .~\\,{}()", c)) {
            return false;
        }
    }
    return true;
}

/* ^2, ^{2}, ^{-1} behind a unit. */
static void unit_power(ifl_math_head *p, char *unit) {
    size_t begin = p->at, used = strlen(unit);
    if (!ifl_math_accept(p, "^")) return;
    bool braced = ifl_math_accept(p, "{"), negative = ifl_math_accept(p, "-");
    int c = ifl_math_peek(p, 0);
    if (used == 0 || used + 4 > UNIT_BYTES_MAX || c < '1' || c > '4') {
        p->at = begin;
        return;
    }
    p->at++;
    if (braced && !ifl_math_accept(p, "}")) {
        p->at = begin;
        return;
    }
    unit[used++] = '^';
    if (negative) unit[used++] = '-';
    unit[used++] = (char)c;
    unit[used] = 0;
}

static bool unit_symbol(ifl_math_head *p, char *unit) {
    if (ifl_math_accept(p, "^\\circ") || ifl_math_accept(p, "^{\\circ}") ||
        ifl_math_accept_command(p, "degree") || ifl_math_accept_command(p, "degrees")) {
        int c = ifl_math_peek(p, 0);
        if (c == ' ') c = ifl_math_peek(p, 1);
        if (c == 'C' || c == 'F') {
            ifl_math_skip_space(p);
            p->at++;
            return ifl_math_unit_word(unit, UNIT_BYTES_MAX, c == 'C' ? "celsius" : "fahrenheit",
                                      c == 'C' ? 7 : 10);
        }
        return ifl_math_unit_word(unit, UNIT_BYTES_MAX, "degree", 6);
    }
    if (ifl_math_accept(p, "\\$")) return ifl_math_unit_word(unit, UNIT_BYTES_MAX, "dollar", 6);
    if (ifl_math_accept_command(p, "euro"))
        return ifl_math_unit_word(unit, UNIT_BYTES_MAX, "euro", 4);
    return false;
}

/* A plain word that is known as a unit, or, with `plain`, a lone letter that is one. */
static bool unit_plain(ifl_math_head *p, char *unit, bool plain, bool first) {
    size_t n = ifl_math_word(p);
    const char *word = p->text + p->at;
    if (n == 0 || is_separator_word(word, n)) return false;
    bool known = ifl_math_unit_known(word, n);
    if (n == 1 && !(plain && known)) return false;
    if (n < 4 && !known) return false;
    if (first && n < 4 && !known) return false;
    if (!ifl_math_unit_word(unit, UNIT_BYTES_MAX, word, n)) return false;
    p->at += n;
    return true;
}

/* 5m^2, without a space. */
static bool metres_follow(const ifl_math_head *p) {
    return ifl_math_at(p, "m^2") || ifl_math_at(p, "m^3") || ifl_math_at(p, "m^{2}") ||
           ifl_math_at(p, "m^{3}");
}

/* 2^\circ and words, squares and products of units: "cm^2", "\text{ m}/\text{s}", "miles per
 * hour". */
const char *ifl_math_read_unit(ifl_math_head *p, bool plain) {
    char unit[UNIT_BYTES_MAX] = "";
    for (bool any = false;; any = true) {
        size_t begin = p->at, used = strlen(unit);
        ifl_slice s;
        bool divided =
            any && used > 0 && (ifl_math_accept(p, "/") || ifl_math_accept_command(p, "cdot"));
        if (divided && p->text[p->at - 1] == '/')
            (void)ifl_math_unit_word(unit, sizeof unit, "per", 3);
        ifl_math_skip_space(p);
        int before = p->at > 0 ? p->text[p->at - 1] : 0;
        bool spaced = any || before == ' ' || before == '~' || before == ',';
        bool took = accept_text(p, &s)
                        ? s.n == 0 || unit_words(unit, s)
                        : unit_symbol(p, unit) ||
                              unit_plain(p, unit, plain && (spaced || metres_follow(p)), !any);
        if (!took) {
            unit[used] = 0;
            p->at = begin;
            break;
        }
        unit_power(p, unit);
    }
    size_t n = strlen(unit);
    static const char *const powers[] = {"square ", "cubic "};
    for (int i = 0; i < 2; i++) /* "square cm" is cm^2 */
        if (strncmp(unit, powers[i], strlen(powers[i])) == 0 && n + 2 < sizeof unit) {
            size_t m = strlen(powers[i]);
            memmove(unit, unit + m, n - m + 1);
            strcat(unit, i ? "^3" : "^2");
        }
    return ifl_math_text(p->work, unit, strlen(unit));
}

ifl_math_node *ifl_math_read_words(ifl_math_head *p) {
    size_t begin = p->at, end = p->at;
    ifl_slice s = {0};
    for (;;) {
        size_t before = p->at;
        if (accept_text(p, &s)) {
            ifl_slice t = ifl_slice_trim(s);
            if (is_separator_word(t.text, t.n)) {
                p->at = before;
                break;
            }
        } else {
            ifl_math_skip_space(p);
            size_t n = ifl_math_word(p);
            if (n < (before == begin ? 1u : 2u) || is_separator_word(p->text + p->at, n)) {
                p->at = before;
                break;
            }
            p->at += n;
        }
        end = p->at;
    }
    if (end == begin) return ifl_math_refuse(p, "an empty text");
    ifl_slice words = ifl_math_words(p->work, (ifl_slice){p->text + begin, end - begin});
    ifl_math_node *node = ifl_math_node_new(p->work, NODE_TEXT, 0);
    if (!node || words.n == 0) return node ? ifl_math_refuse(p, "an empty text") : NULL;
    node->name = ifl_math_text(p->work, words.text, words.n);
    return node->name ? node : NULL;
}

#include "rewards/code/value.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A float that is whole takes its integer's digits, at most 256 of them for a text of 5. */
#define GROWTH_MAX 64
#define NUMBER_TEXT_MAX 64

typedef struct reader {
    const char *at, *end;
    uint8_t *out;
    size_t n, room, n_max;
    bool has_nan;
    ifl_status status;
} reader;

static bool fail(reader *r, ifl_status status) {
    if (r->status == IFL_OK) r->status = status;
    return false;
}

static bool put(reader *r, const void *bytes, size_t n) {
    if (n > r->n_max - r->n) return fail(r, IFL_LIMIT);
    if (r->n + n > r->room) {
        size_t room = r->room ? r->room : 64;
        while (room < r->n + n)
            room *= 2;
        uint8_t *grown = realloc(r->out, room);
        if (!grown) return fail(r, IFL_NOMEM);
        r->out = grown;
        r->room = room;
    }
    if (n) memcpy(r->out + r->n, bytes, n);
    r->n += n;
    return true;
}

/* Every item says where it ends, so that no two sequences of items look alike. */
static bool put_head(reader *r, char tag, size_t n) {
    char text[32];
    int length = snprintf(text, sizeof text, "%c%zu:", tag, n);
    return put(r, text, (size_t)length);
}

static bool put_integer(reader *r, bool negative, const char *digits, size_t n) {
    while (n > 0 && *digits == '0') {
        digits++;
        n--;
    }
    if (n == 0) return put(r, "i0;", 3);
    return put(r, negative ? "i-" : "i", negative ? 2 : 1) && put(r, digits, n) && put(r, ";", 1);
}

static bool put_real(reader *r, double v) {
    if (isnan(v)) r->has_nan = true;
    if (!isfinite(v) || v != floor(v)) {
        char text[48];
        int n = snprintf(text, sizeof text, "f%a;", isnan(v) ? (double)NAN : v);
        return put(r, text, (size_t)n);
    }
    /* whole: mantissa's digits, then zeros; a shift that isn't a multiple of 4 goes into them */
    int exponent = 0;
    double mantissa = frexp(fabs(v), &exponent);
    uint64_t digits = (uint64_t)ldexp(mantissa, 53);
    exponent -= 53;
    char text[24 + 300];
    if (exponent < 0) {
        digits = (uint64_t)fabs(v); /* below 2^53: exact */
        exponent = 0;
    }
    int n = snprintf(text, sizeof text, "%llx", (unsigned long long)(digits << (exponent % 4)));
    for (int i = 0; i < exponent / 4; i++)
        text[n++] = '0';
    return put_integer(r, v < 0, text, (size_t)n);
}

/* Up to `stop`, which is consumed. */
static bool take_word(reader *r, char stop, ifl_slice *word) {
    const char *found = memchr(r->at, stop, (size_t)(r->end - r->at));
    if (!found) return fail(r, IFL_FORMAT);
    *word = (ifl_slice){r->at, (size_t)(found - r->at)};
    r->at = found + 1;
    return true;
}

static bool take_count(reader *r, size_t *n) {
    ifl_slice word;
    if (!take_word(r, ':', &word)) return false;
    *n = 0;
    if (word.n == 0 || word.n > 8) return fail(r, IFL_FORMAT);
    for (size_t i = 0; i < word.n; i++) {
        if (word.text[i] < '0' || word.text[i] > '9') return fail(r, IFL_FORMAT);
        *n = *n * 10 + (size_t)(word.text[i] - '0');
    }
    /* every item has a byte at least */
    return *n <= (size_t)(r->end - r->at) || fail(r, IFL_FORMAT);
}

static bool take_integer(reader *r) {
    ifl_slice word;
    if (!take_word(r, ';', &word)) return false;
    bool negative = word.n > 0 && *word.text == '-';
    if (negative) {
        word.text++;
        word.n--;
    }
    if (word.n == 0) return fail(r, IFL_FORMAT);
    for (size_t i = 0; i < word.n; i++) {
        char c = word.text[i];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return fail(r, IFL_FORMAT);
    }
    return put_integer(r, negative, word.text, word.n);
}

static bool take_real(reader *r, char stop, double *v) {
    static const char letters[] = "0123456789abcdefinpx+-."; /* hex floats, inf, nan */
    ifl_slice word;
    char text[NUMBER_TEXT_MAX], *end;
    if (!take_word(r, stop, &word)) return false;
    if (word.n == 0 || word.n >= sizeof text) return fail(r, IFL_FORMAT);
    memcpy(text, word.text, word.n);
    text[word.n] = '\0';
    if (strspn(text, letters) != word.n) return fail(r, IFL_FORMAT);
    *v = strtod(text, &end);
    return *end == '\0' || fail(r, IFL_FORMAT);
}

static bool take_value(reader *r, int depth);

typedef struct item {
    size_t begin, n_key, n; /* in the output */
    const uint8_t *base;
} item;

static int item_compare(const void *x, const void *y) {
    const item *a = x, *b = y;
    size_t n = a->n_key < b->n_key ? a->n_key : b->n_key;
    int c = memcmp(a->base + a->begin, b->base + b->begin, n);
    return c ? c : (a->n_key > b->n_key) - (a->n_key < b->n_key);
}

/* Sets and dicts: items in the order of their canonical keys. A key twice is no dict. */
static bool take_unordered(reader *r, size_t n, bool dict, int depth) {
    size_t begin = r->n, room = 0;
    item *items = NULL; /* grows with what is there: a count is only a claim */
    bool fine = true;
    for (size_t i = 0; i < n && fine; i++) {
        if (i == room) {
            room = room ? 2 * room : 16;
            item *grown = realloc(items, room * sizeof *items);
            if (!grown) {
                fine = fail(r, IFL_NOMEM);
                break;
            }
            items = grown;
        }
        items[i].begin = r->n;
        fine = take_value(r, depth + 1);
        items[i].n_key = r->n - items[i].begin;
        if (fine && dict) fine = take_value(r, depth + 1);
        items[i].n = r->n - items[i].begin;
    }
    uint8_t *copy = fine ? malloc(r->n - begin + 1) : NULL;
    if (fine && !copy) fine = fail(r, IFL_NOMEM);
    if (fine) {
        memcpy(copy, r->out + begin, r->n - begin);
        for (size_t i = 0; i < n; i++) {
            items[i].base = copy;
            items[i].begin -= begin;
        }
        if (n > 0) qsort(items, n, sizeof *items, item_compare);
        uint8_t *to = r->out + begin;
        for (size_t i = 0; i < n && fine; i++) {
            if (i > 0 && item_compare(&items[i - 1], &items[i]) == 0) fine = fail(r, IFL_FORMAT);
            memcpy(to, copy + items[i].begin, items[i].n);
            to += items[i].n;
        }
    }
    free(copy);
    free(items);
    return fine;
}

static bool take_value(reader *r, int depth) {
    size_t n;
    double re, im;
    if (depth > IFL_VALUE_DEPTH_MAX) return fail(r, IFL_LIMIT);
    if (r->at == r->end) return fail(r, IFL_FORMAT);
    char tag = *r->at++;
    switch (tag) {
    case 'N':
        return put(r, "N", 1);
    case 'T':
        return put_integer(r, false, "1", 1);
    case 'F':
        return put_integer(r, false, "0", 1);
    case 'i':
        return take_integer(r);
    case 'f':
        return take_real(r, ';', &re) && put_real(r, re);
    case 'c':
        if (!take_real(r, ',', &re) || !take_real(r, ';', &im)) return false;
        return im == 0.0 ? put_real(r, re) : put(r, "c", 1) && put_real(r, re) && put_real(r, im);
    case 's':
    case 'b':
        if (!take_count(r, &n) || !put_head(r, tag, n) || !put(r, r->at, n)) return false;
        r->at += n;
        return true;
    case 'l':
    case 't':
        if (!take_count(r, &n) || !put_head(r, tag, n)) return false;
        for (size_t i = 0; i < n; i++)
            if (!take_value(r, depth + 1)) return false;
        return true;
    case 'S':
    case 'd':
        return take_count(r, &n) && put_head(r, tag, n) && take_unordered(r, n, tag == 'd', depth);
    default:
        return fail(r, IFL_FORMAT);
    }
}

ifl_status code_value_read(ifl_slice text, code_value *out, ifl_error *err) {
    *out = (code_value){0};
    if (text.n > IFL_VALUE_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "a value of %zu bytes, limit %u", text.n,
                        IFL_VALUE_BYTES_MAX);
    reader r = {.at = text.text, .end = text.text + text.n, .n_max = 64 + GROWTH_MAX * text.n};
    bool fine = take_value(&r, 0);
    if (fine && r.at != r.end) fine = fail(&r, IFL_FORMAT);
    if (!fine) {
        free(r.out);
        return ifl_fail(err, r.status, "a value of %zu bytes is malformed or too deep", text.n);
    }
    *out = (code_value){r.out, r.n, r.has_nan};
    return IFL_OK;
}

bool code_value_equal(const code_value *a, const code_value *b) {
    return !a->has_nan && !b->has_nan && a->n == b->n && memcmp(a->bytes, b->bytes, a->n) == 0;
}

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "rewards/text.h"

#define CODE_POINTS_MAX 4 /* that a byte becomes at most; 3 are known */
#define MARKS_MAX 30 /* on one character, as in stream-safe text (UAX 15): sorting stays linear */

static bool is_space(int32_t c) {
    if (c >= '\t' && c <= '\r') return true;
    utf8proc_category_t category = utf8proc_category(c);
    return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
           category == UTF8PROC_CATEGORY_ZP || c == 0x85;
}

static bool is_digit(int32_t c) {
    return utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

/* What is left out: not what could be part of a number. */
static bool is_idle_mark(const int32_t *text, size_t n, size_t at) {
    int32_t c = text[at];
    if (utf8proc_category(c) < UTF8PROC_CATEGORY_PC || utf8proc_category(c) > UTF8PROC_CATEGORY_PO)
        return false;
    if (c == '%' || c == 0x2030) return false;
    return at + 1 >= n || !is_digit(text[at + 1]);
}

/* Canonical order of a run of marks: by combining class, else as they came. The run ends at to[n].
 */
static bool marks_order(int32_t *to, size_t n) {
    int32_t c = to[n - 1];
    int class = utf8proc_get_property(c)->combining_class;
    if (class == 0) return true;
    size_t at = n - 1, n_run = 0;
    while (at > 0) {
        int before = utf8proc_get_property(to[at - 1])->combining_class;
        if (before == 0) break;
        if (++n_run > MARKS_MAX) return false;
        if (before <= class) break;
        to[at] = to[at - 1];
        at--;
    }
    to[at] = c;
    return true;
}

/* Code points, folded and decomposed; `to` has room for CODE_POINTS_MAX for each byte of s. */
static ifl_status decompose(ifl_slice s, unsigned fold, int32_t *to, size_t *n, ifl_error *err) {
    utf8proc_option_t options = UTF8PROC_DECOMPOSE | UTF8PROC_STABLE;
    if (fold & IFL_FOLD_CASE) options |= UTF8PROC_CASEFOLD;
    for (size_t at = 0; at < s.n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)s.text + at,
                                                 (utf8proc_ssize_t)(s.n - at), &c);
        if (step < 1) return ifl_fail(err, IFL_FORMAT, "byte %zu is not UTF-8", at);
        int boundary = 0;
        utf8proc_ssize_t made =
            utf8proc_decompose_char(c, to + *n, CODE_POINTS_MAX * step, options, &boundary);
        if (made < 0 || made > CODE_POINTS_MAX * step)
            return ifl_fail(err, IFL_FORMAT, "the character at byte %zu has no decomposition", at);
        for (utf8proc_ssize_t i = 0; i < made; i++)
            if (!marks_order(to, ++*n))
                return ifl_fail(err, IFL_FORMAT, "more than %d marks on the character at byte %zu",
                                MARKS_MAX, at);
        at += (size_t)step;
    }
    return IFL_OK;
}

ifl_status ifl_text_fold(ifl_slice s, unsigned fold, int32_t **out, size_t *n, ifl_error *err) {
    *out = NULL;
    *n = 0;
    int32_t *to = malloc((s.n + 1) * CODE_POINTS_MAX * sizeof *to);
    if (!to) return ifl_fail(err, IFL_NOMEM, "no memory for %zu characters", s.n);
    size_t n_all = 0;
    ifl_status st = decompose(s, fold, to, &n_all, err);
    if (st != IFL_OK) {
        free(to);
        return st;
    }
    size_t kept = 0;
    bool gap = false; /* white space seen, to become one space before what follows */
    for (size_t i = 0; i < n_all; i++) {
        if ((fold & IFL_FOLD_PUNCTUATION) && is_idle_mark(to, n_all, i)) continue;
        if ((fold & IFL_FOLD_SPACE) && is_space(to[i])) {
            gap = kept > 0;
            continue;
        }
        int32_t c = to[i];
        if (gap) to[kept++] = ' ';
        gap = false;
        to[kept++] = c;
    }
    *out = to;
    *n = kept;
    return IFL_OK;
}

ifl_status ifl_text_same(ifl_slice a, ifl_slice b, unsigned fold, bool *same, ifl_error *err) {
    int32_t *left = NULL, *right = NULL;
    size_t n_left = 0, n_right = 0;
    *same = false;
    ifl_status st = ifl_text_fold(a, fold, &left, &n_left, err);
    if (st == IFL_OK) {
        ifl_error ignored = {0};
        st = ifl_text_fold(b, fold, &right, &n_right, &ignored);
        if (st == IFL_OK)
            *same = n_left == n_right &&
                    (n_left == 0 || memcmp(left, right, n_left * sizeof *left) == 0);
        else if (st == IFL_FORMAT)
            st = IFL_OK;
        else
            *err = ignored;
    }
    free(left);
    free(right);
    return st;
}

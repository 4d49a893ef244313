/* numeric: the number of a completion against the task's, as exact rationals. The number is what
 * stands in \boxed{...}; without a box, what stands behind "####"; without that, the last number of
 * the text. Several boxes (or #### lines) that don't all hold the same number are a hedge and
 * wrong, and so is a box with more than a number and its unit in it. */
#include <string.h>

#include "rewards/checkers.h"
#include "rewards/number.h"

#define BOX "\\boxed{"
#define BOX_BYTES_MAX 4096 /* a longer box holds no number that we'd read */

typedef enum { ANSWER_ABSENT, ANSWER_READ, ANSWER_REFUSED } answer_found;

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool slice_starts(ifl_slice s, const char *word) {
    size_t n = strlen(word);
    return s.n >= n && memcmp(s.text, word, n) == 0;
}

static bool slice_ends(ifl_slice s, const char *word) {
    size_t n = strlen(word);
    return s.n >= n && memcmp(s.text + s.n - n, word, n) == 0;
}

static ifl_slice slice_skip(ifl_slice s, size_t n) {
    return (ifl_slice){s.text + n, s.n - n};
}

/* Takes off what doesn't change a number: $...$, \(...\), {...}, \text{...}, stars, a final period.
 */
static ifl_slice answer_unwrap(ifl_slice s) {
    static const char *const pairs[][2] = {
        {"\\text{", "}"},   {"\\mathrm{", "}"}, {"\\mathbf{", "}"},
        {"\\textbf{", "}"}, {"\\(", "\\)"},     {"\\[", "\\]"},
        {"{", "}"},         {"**", "**"},       {"$", "$"}};
    for (bool again = true; again;) {
        again = false;
        s = ifl_slice_trim(s);
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
            size_t a = strlen(pairs[i][0]), b = strlen(pairs[i][1]);
            if (s.n < a + b || !slice_starts(s, pairs[i][0]) || !slice_ends(s, pairs[i][1]))
                continue;
            /* "{1} + {2}": the first brace isn't closed by the last one. */
            if (memchr(s.text + a, '}', s.n - a - b) && pairs[i][1][0] == '}' &&
                !memchr(s.text + a, '{', s.n - a - b))
                continue;
            s = (ifl_slice){s.text + a, s.n - a - b};
            again = true;
            break;
        }
        if (s.n > 1 && s.text[s.n - 1] == '.') {
            s.n--;
            again = true;
        }
    }
    return s;
}

/* Words that change the value of the number before them, or make two answers of one. */
static bool word_changes_value(const char *word, size_t n) {
    static const char *const words[] = {"hundred", "thousand", "million", "billion", "trillion",
                                        "dozen",   "pi",       "or",      "and",     "half"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t m = strlen(words[i]);
        if ((n == m || (n == m + 1 && (word[m] | 32) == 's')) &&
            strncasecmp(word, words[i], m) == 0)
            return true;
    }
    return false;
}

/* What may follow a number: a unit in words. Anything else (an operator, a root, a further number,
 * a single letter glued to it) makes it an expression that this checker doesn't evaluate. */
static bool unit_is_harmless(ifl_slice rest) {
    static const char *const fillers[] = {
        "\\text{", "\\mathrm{", "\\ ", "\\,", "\\;", "\\!",     "~",         "}", "$", "\\$",
        ".",       "*",         "%",   "\\%", "°",   "^\\circ", "^{\\circ}", "€", "£"};
    bool apart = false;
    while (rest.n > 0) {
        if (is_letter(*rest.text)) {
            size_t n = 0;
            while (n < rest.n && is_letter(rest.text[n]))
                n++;
            if (word_changes_value(rest.text, n) || (n == 1 && !apart)) return false;
            rest = slice_skip(rest, n);
        } else if (is_space(*rest.text)) {
            rest = slice_skip(rest, 1);
        } else {
            size_t i = 0, n_fillers = sizeof fillers / sizeof *fillers;
            while (i < n_fillers && !slice_starts(rest, fillers[i]))
                i++;
            if (i == n_fillers) return false;
            rest = slice_skip(rest, strlen(fillers[i]));
        }
        apart = true;
    }
    return true;
}

/* "x = 5", "$12", "5 apples", "\frac{3}{4}": one number, perhaps named before and with a unit
 * behind. ABSENT when it doesn't even begin with a number. */
static answer_found answer_read(ifl_slice s, ifl_number *out) {
    if (s.n > BOX_BYTES_MAX) return ANSWER_REFUSED;
    s = answer_unwrap(s);
    if (s.n > 2 && is_letter(*s.text)) {
        ifl_slice value = ifl_slice_trim(slice_skip(s, 1));
        if (value.n > 0 && *value.text == '=') s = answer_unwrap(slice_skip(value, 1));
    }
    size_t end = 0;
    ifl_number_found found = ifl_number_scan(s.text, s.n, 0, out, &end);
    if (found == IFL_NUMBER_NONE) return ANSWER_ABSENT;
    if (found == IFL_NUMBER_MALFORMED) return ANSWER_REFUSED;
    return unit_is_harmless(slice_skip(s, end)) ? ANSWER_READ : ANSWER_REFUSED;
}

/* Collects one stated answer: the first is kept, a later one must equal it. */
static void answer_collect(ifl_slice stated, answer_found if_absent, answer_found *found,
                           ifl_number *out) {
    ifl_number number;
    if (*found == ANSWER_REFUSED) return;
    answer_found one = answer_read(stated, &number);
    if (one == ANSWER_ABSENT) one = if_absent;
    if (one == ANSWER_ABSENT) return;
    if (one == ANSWER_READ && *found == ANSWER_READ && !ifl_number_equal(out, &number))
        one = ANSWER_REFUSED;
    if (one == ANSWER_READ && *found == ANSWER_ABSENT) *out = number;
    *found = one;
}

/* The content of a box, s beginning behind its brace; false when it isn't closed. */
static bool box_content(ifl_slice s, ifl_slice *out) {
    size_t depth = 1;
    for (size_t i = 0; i < s.n; i++) {
        if (s.text[i] == '\\' && i + 1 < s.n && (s.text[i + 1] == '{' || s.text[i + 1] == '}')) {
            i++;
        } else if (s.text[i] == '{') {
            depth++;
        } else if (s.text[i] == '}' && --depth == 0) {
            *out = (ifl_slice){s.text, i};
            return true;
        }
    }
    return false;
}

/* One pass: an unclosed box ends the search, since everything behind it lies inside it. */
static answer_found find_boxed(ifl_slice s, ifl_number *out) {
    answer_found found = ANSWER_ABSENT;
    for (const char *at; (at = memmem(s.text, s.n, BOX, strlen(BOX)));) {
        ifl_slice content;
        s = slice_skip(s, (size_t)(at - s.text) + strlen(BOX));
        if (!box_content(s, &content)) break;
        answer_collect(content, ANSWER_REFUSED, &found, out);
        s = slice_skip(s, content.n + 1);
    }
    return found;
}

static answer_found find_marked(ifl_slice s, ifl_number *out) {
    answer_found found = ANSWER_ABSENT;
    for (const char *at; (at = memmem(s.text, s.n, "####", 4));) {
        s = slice_skip(s, (size_t)(at - s.text) + 4);
        while (s.n > 0 && *s.text == '#')
            s = slice_skip(s, 1);
        const char *line_end = memchr(s.text, '\n', s.n);
        ifl_slice line = {s.text, line_end ? (size_t)(line_end - s.text) : s.n};
        answer_collect(line, ANSWER_ABSENT, &found, out); /* "#### Solution" is a heading */
        s = slice_skip(s, line.n);
    }
    return found;
}

static answer_found find_last(ifl_slice s, ifl_number *out) {
    answer_found found = ANSWER_ABSENT;
    ifl_number numbers[2]; /* the last one and the next: swapped, since a copy has 2 KiB */
    int last = 0;
    for (size_t at = 0; at < s.n;) {
        ifl_number_found one = ifl_number_scan(s.text, s.n, at, &numbers[!last], &at);
        if (one == IFL_NUMBER_OK) {
            last = !last;
            found = ANSWER_READ;
        } else if (one == IFL_NUMBER_MALFORMED) {
            found = ANSWER_REFUSED; /* until a readable one follows */
        }
    }
    if (found == ANSWER_READ) *out = numbers[last];
    return found;
}

static ifl_status numeric_check(const ifl_reward_request *request, ifl_reward *out,
                                ifl_error *err) {
    ifl_number gold, got;
    if (!ifl_number_parse(request->answer, strlen(request->answer), &gold))
        return ifl_verdict_bad_task(out, err, "the task's answer '%.60s' is not one number",
                                    request->answer);
    ifl_slice completion = {request->completion, request->n_completion};
    answer_found found = find_boxed(completion, &got);
    if (found == ANSWER_ABSENT) found = find_marked(completion, &got);
    if (found == ANSWER_ABSENT) found = find_last(completion, &got);
    return ifl_verdict(out, found == ANSWER_READ && ifl_number_equal(&gold, &got));
}

const ifl_checker ifl_checker_numeric = {
    .name = "numeric",
    .version = "1",
    .help =
        "answer: a number; of the completion counts \\boxed{}, else what follows ####, else the "
        "last number; compared exactly",
    .check = numeric_check,
};

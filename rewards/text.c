#include "rewards/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define BOX "\\boxed{"

ifl_slice ifl_slice_skip(ifl_slice s, size_t n) {
    return (ifl_slice){s.text + n, s.n - n};
}

bool ifl_slice_starts(ifl_slice s, const char *word) {
    size_t n = strlen(word);
    return s.n >= n && memcmp(s.text, word, n) == 0;
}

bool ifl_slice_ends(ifl_slice s, const char *word) {
    size_t n = strlen(word);
    return s.n >= n && memcmp(s.text + s.n - n, word, n) == 0;
}

bool ifl_slice_equal(ifl_slice a, ifl_slice b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.text, b.text, a.n) == 0);
}

ifl_slice ifl_slice_after_thinking(ifl_slice s) {
    ifl_slice behind;
    return ifl_slice_after_last(s, "</think>", &behind) ? behind : s;
}

bool ifl_slice_line(ifl_slice *rest, ifl_slice *line) {
    if (rest->n == 0) return false;
    const char *end = memchr(rest->text, '\n', rest->n);
    *line = (ifl_slice){rest->text, end ? (size_t)(end - rest->text) : rest->n};
    *rest = ifl_slice_skip(*rest, line->n + (end != NULL));
    return true;
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

bool ifl_slice_box(ifl_slice *rest, ifl_slice *content) {
    const char *at = memmem(rest->text, rest->n, BOX, strlen(BOX));
    if (!at) return false;
    *rest = ifl_slice_skip(*rest, (size_t)(at - rest->text) + strlen(BOX));
    if (!box_content(*rest, content)) {
        *rest = ifl_slice_skip(*rest, rest->n);
        return false;
    }
    *rest = ifl_slice_skip(*rest, content->n + 1);
    return true;
}

ifl_slice ifl_slice_unwrap(ifl_slice s) {
    static const char *const pairs[][2] = {
        {"\\text{", "}"},   {"\\mathrm{", "}"}, {"\\mathbf{", "}"},
        {"\\textbf{", "}"}, {"\\(", "\\)"},     {"\\[", "\\]"},
        {"{", "}"},         {"**", "**"},       {"$", "$"}};
    for (bool again = true; again;) {
        again = false;
        s = ifl_slice_trim(s);
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
            size_t a = strlen(pairs[i][0]), b = strlen(pairs[i][1]);
            if (s.n < a + b || !ifl_slice_starts(s, pairs[i][0]) || !ifl_slice_ends(s, pairs[i][1]))
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

ifl_status ifl_verdict_why(ifl_reward *out, ifl_error *err, ifl_reward_status status,
                           const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ifl_fail(err, IFL_FORMAT, "%s", text);
    out->status = status;
    out->reward = 0.0f;
    return IFL_OK;
}

ifl_status ifl_verdict_bad_option(ifl_reward *out) {
    out->status = IFL_REWARD_BAD_TASK;
    out->reward = 0.0f;
    return IFL_OK;
}

/* Bytes of one kind from the start of s, at most n_max. */
static size_t run_length(ifl_slice s, bool (*is)(char), size_t n_max) {
    size_t n = 0;
    while (n < s.n && n < n_max && is(s.text[n]))
        n++;
    return n;
}

static bool is_wordy(char c) {
    return ifl_char_is_letter(c) || (unsigned char)c >= 0x80;
}

bool ifl_slice_piece(ifl_slice *rest, ifl_slice *piece) {
    if (rest->n == 0) return false;
    ifl_slice s = *rest;
    size_t n = s.n > 1 && *s.text == ' ' && !ifl_char_is_space(s.text[1]);
    char c = s.text[n];
    ifl_slice body = ifl_slice_skip(s, n);
    if (is_wordy(c)) {
        n += run_length(body, is_wordy, 8);
    } else if (ifl_char_is_digit(c)) {
        n += run_length(body, ifl_char_is_digit, 3);
    } else {
        size_t same = 1;
        while (ifl_char_is_space(c) && same < body.n && same < 8 && body.text[same] == c)
            same++;
        n += same;
    }
    *piece = (ifl_slice){s.text, n};
    *rest = ifl_slice_skip(s, n);
    return true;
}

size_t ifl_slice_pieces(ifl_slice s) {
    size_t n = 0;
    for (ifl_slice piece; ifl_slice_piece(&s, &piece);)
        n++;
    return n;
}

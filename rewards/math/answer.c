#include "rewards/math/answer.h"

#include <string.h>
#include <strings.h>

#define LAST_LINE_BYTES_MAX 400
#define ANCHOR_BYTES_MAX 65536

static ifl_slice skip(ifl_slice s, size_t n) {
    return (ifl_slice){s.text + n, s.n - n};
}

static bool starts(ifl_slice s, const char *word) {
    size_t n = strlen(word);
    return s.n >= n && strncasecmp(s.text, word, n) == 0;
}

/* What follows the thinking; false when the thinking doesn't end. */
static bool after_thinking(ifl_slice *s) {
    static const char *const tags[][2] = {{"<think>", "</think>"}, {"<thinking>", "</thinking>"}};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        (void)ifl_slice_after_last(*s, tags[i][1], s);
        if (memmem(s->text, s->n, tags[i][0], strlen(tags[i][0]))) return false;
    }
    return true;
}

/* The content of a box whose brace s begins behind; false when it isn't closed. */
static bool box_content(ifl_slice s, ifl_slice *out) {
    size_t depth = 1;
    for (size_t i = 0; i < s.n; i++) {
        if (s.text[i] == '\\') {
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

/* The next box in *s, which then begins behind it. False: none; *cut when one isn't closed. */
static bool next_box(ifl_slice *s, ifl_slice *out, const char **begin, bool *cut) {
    static const char *const names[] = {"\\boxed", "\\fbox"};
    for (const char *at; s->n > 0 && (at = memchr(s->text, '\\', s->n));) {
        *s = skip(*s, (size_t)(at - s->text));
        bool may_be = s->n > 1 && (s->text[1] == 'b' || s->text[1] == 'f');
        for (size_t i = 0; may_be && i < 2; i++) {
            if (!starts(*s, names[i])) continue;
            ifl_slice rest = ifl_slice_trim(skip(*s, strlen(names[i])));
            if (!starts(rest, "{")) continue;
            *begin = at;
            if (!box_content(skip(rest, 1), out)) {
                *cut = true;
                return false;
            }
            *s = skip(*s, (size_t)(out->text + out->n + 1 - s->text));
            return true;
        }
        *s = skip(*s, 1);
    }
    return false;
}

/* Whether a sentence ends between two boxes: words, and a mark behind which there is space. */
static bool sentence_between(const char *from, const char *to) {
    bool words = false, ended = false;
    for (const char *c = from; c < to; c++) {
        if ((*c | 32) >= 'a' && (*c | 32) <= 'z') words = true;
        if (strchr(".!?", *c) && c + 1 < to && strchr(" \n\r\t$*)", c[1])) ended = true;
        if (*c == '\n' && c + 1 < to && c[1] == '\n') ended = true;
    }
    return words && ended;
}

static void find_boxes(ifl_slice s, ifl_math_boxes rule, ifl_math_stated *out) {
    ifl_slice content;
    const char *begin = NULL, *end = NULL;
    bool cut = false;
    while (next_box(&s, &content, &begin, &cut)) {
        if (rule == IFL_MATH_BOX_FIRST && out->n == 1) return;
        if (rule == IFL_MATH_BOX_LAST && end && sentence_between(end, begin)) out->n = 0;
        if (out->n == IFL_MATH_STATED_MAX) {
            out->n = 0;
            out->reason = "more than 16 boxes state the answer";
            return;
        }
        out->at[out->n++] = content;
        end = content.text + content.n + 1;
    }
    if (cut && rule != IFL_MATH_BOX_FIRST) {
        out->n = 0;
        out->reason = "the last box isn't closed";
    }
}

static ifl_slice first_line(ifl_slice s) {
    const char *end = memchr(s.text, '\n', s.n);
    return ifl_slice_trim((ifl_slice){s.text, end ? (size_t)(end - s.text) : s.n});
}

/* Behind the last "####" or "Answer:" up to the line's end; markdown's stars aside. */
static bool find_anchor(ifl_slice s, ifl_slice *out) {
    static const char *const anchors[] = {
        "####", "Answer:", "answer:", "ANSWER:", "Answer**:", "answer is:", "Answer is:"};
    const char *last = NULL;
    /* What stands further from the end is no final answer. */
    if (s.n > ANCHOR_BYTES_MAX) s = skip(s, s.n - ANCHOR_BYTES_MAX);
    for (size_t i = 0; i < sizeof anchors / sizeof *anchors; i++) {
        ifl_slice rest;
        if (ifl_slice_after_last(s, anchors[i], &rest) && (!last || rest.text > last))
            last = rest.text;
    }
    if (!last) return false;
    ifl_slice rest = {last, (size_t)(s.text + s.n - last)};
    while (rest.n > 0 && strchr(" *#\t\r\n", *rest.text))
        rest = skip(rest, 1);
    *out = first_line(rest);
    while (out->n > 0 && out->text[out->n - 1] == '*')
        out->n--;
    return out->n > 0;
}

/* Without a box or anchor, if asked for: the last formula, else what follows the last "is" or "="
 * of the last line, else that line. */
static bool find_loose(ifl_slice s, ifl_slice *out) {
    s = ifl_slice_trim(s);
    const char *close = memrchr(s.text, '$', s.n);
    const char *open = close ? memrchr(s.text, '$', (size_t)(close - s.text)) : NULL;
    if (open && close - open > 1 && open > s.text) {
        *out = (ifl_slice){open + 1, (size_t)(close - open - 1)};
        return true;
    }
    const char *line = memrchr(s.text, '\n', s.n);
    if (line) s = ifl_slice_trim(skip(s, (size_t)(line + 1 - s.text)));
    ifl_slice behind;
    if (ifl_slice_after_last(s, " is ", &behind)) s = behind;
    *out = s;
    return s.n > 0 && s.n <= LAST_LINE_BYTES_MAX;
}

void ifl_math_find(ifl_slice s, const ifl_math_options *options, ifl_math_stated *out) {
    out->n = 0;
    out->bare = false;
    out->reason = NULL;
    if (!after_thinking(&s)) {
        out->reason = "the thinking doesn't end";
        return;
    }
    find_boxes(s, options->boxes, out);
    if (out->n > 0 || out->reason) return;
    if (options->require != IFL_MATH_REQUIRE_BOX && find_anchor(s, &out->at[0])) {
        out->n = 1;
        return;
    }
    s = ifl_slice_trim(s);
    bool line = s.n > 0 && s.n <= LAST_LINE_BYTES_MAX && !memchr(s.text, '\n', s.n);
    if (options->require == IFL_MATH_REQUIRE_NONE) {
        out->n = find_loose(s, &out->at[0]);
    } else if (options->require == IFL_MATH_REQUIRE_ANCHOR && line) {
        out->at[out->n++] = s;
        out->bare = true;
    }
    if (out->n == 0)
        out->reason = options->require == IFL_MATH_REQUIRE_BOX ? "no box"
                      : options->require == IFL_MATH_REQUIRE_ANCHOR
                          ? "no box, no '####' and no 'Answer:'"
                          : "no answer";
}

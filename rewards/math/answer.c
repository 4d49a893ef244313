#include "rewards/math/answer.h"

#include <string.h>
#include <strings.h>

#include "rewards/math/tree.h"

#define LAST_LINE_BYTES_MAX 400
#define FORMULA_BYTES_MAX 4096
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

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}
static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
static bool is_letter(char c) {
    return (c | 32) >= 'a' && (c | 32) <= 'z';
}

/* Formulas' signs, the longer first. */
static const char *const formula_signs[][2] = {
    {"$$", "$$"}, {"$", "$"}, {"\\(", "\\)"}, {"\\[", "\\]"}};
#define N_FORMULA_SIGNS 4

/* A formula at the beginning of s: its content, and *rest what follows it. `open` has a bit for
 * each sign that was found to have no end, which isn't looked for again. */
static bool formula_at(ifl_slice s, unsigned *open, ifl_slice *out, ifl_slice *rest) {
    for (size_t i = 0; i < N_FORMULA_SIGNS; i++) {
        size_t n = strlen(formula_signs[i][0]);
        if (!starts(s, formula_signs[i][0])) continue;
        if (*open & 1u << i) return false;
        for (size_t at = n; at + n <= s.n; at++) {
            if (starts(skip(s, at), formula_signs[i][1])) {
                *out = (ifl_slice){s.text + n, at - n};
                *rest = skip(s, at + n);
                return at > n;
            }
            if (s.text[at] == '\\') at++;
        }
        *open |= 1u << i;
        return false;
    }
    return false;
}

/* Up to where a sentence ends: a period with space behind it and a capital or a sign behind that,
 * or a line's end. A formula that begins it may go over lines. */
static ifl_slice first_sentence(ifl_slice s) {
    ifl_slice formula, rest;
    unsigned open = 0;
    s = ifl_slice_trim(s);
    if (formula_at(s, &open, &formula, &rest)) {
        size_t i = 0;
        while (i < rest.n && strchr(".*", rest.text[i]))
            i++;
        if (i == rest.n || (i > 0 && is_space(rest.text[i]))) return formula;
    }
    s = first_line(s);
    for (size_t i = 0; i + 2 < s.n; i++)
        if (s.text[i] == '.' && is_space(s.text[i + 1]) &&
            ((s.text[i + 2] >= 'A' && s.text[i + 2] <= 'Z') || strchr("<[", s.text[i + 2])))
            return (ifl_slice){s.text, i};
    return s;
}

/* The length of "####", "answer:", "answer is:" and their kin at the beginning of s, else 0. With
 * `said` the colon isn't needed: "answer is 5". */
static size_t anchor_length(ifl_slice s, bool said) {
    if (starts(s, "####")) return 4;
    if (!starts(s, "answer")) return 0;
    size_t i = 6;
    while (i < s.n && (s.text[i] == '*' || s.text[i] == ' '))
        i++;
    if (i < s.n && s.text[i] == ':') return i + 1;
    if (i == 6 || !starts(skip(s, i), "is")) return 0;
    i += 2;
    while (i < s.n && s.text[i] == '*')
        i++;
    if (i < s.n && s.text[i] == ':') return i + 1;
    return said && i < s.n && is_space(s.text[i]) ? i : 0;
}

/* Behind the last "####", "Answer:" or "final answer is", with `said` also "answer is": *out to the
 * text's end. */
static bool find_anchor(ifl_slice s, bool said, ifl_slice *out) {
    static const char last_word[] = "final ";
    size_t n_last_word = sizeof last_word - 1;
    const char *last = NULL;
    /* What stands further from the end is no final answer. */
    if (s.n > ANCHOR_BYTES_MAX) s = skip(s, s.n - ANCHOR_BYTES_MAX);
    for (size_t i = 0; i < s.n; i++) {
        char c = s.text[i];
        if (c != '#' && (c | 32) != 'a') continue;
        bool final =
            i >= n_last_word && strncasecmp(s.text + i - n_last_word, last_word, n_last_word) == 0;
        size_t n = anchor_length(skip(s, i), said || final);
        if (n == 0) continue;
        last = s.text + i + n;
        i += n - 1;
    }
    if (!last) return false;
    ifl_slice rest = {last, (size_t)(s.text + s.n - last)};
    while (rest.n > 0 && strchr(" *#:\t\r\n", *rest.text))
        rest = skip(rest, 1);
    *out = rest;
    return rest.n > 0;
}

/* Without markdown's stars at the end, which a period may follow. */
static ifl_slice without_stars(ifl_slice s) {
    if (s.n > 1 && s.text[s.n - 1] == '.' && s.text[s.n - 2] == '*') s.n--;
    while (s.n > 0 && s.text[s.n - 1] == '*')
        s.n--;
    return s;
}

/* "3 or 4", "3 and 4", "3, 4": what stands before `at` makes it one of several. */
static bool is_hedged(ifl_slice s, const char *at) {
    ifl_slice before = ifl_slice_trim((ifl_slice){s.text, (size_t)(at - s.text)});
    while (before.n > 0 && strchr("$ (*", before.text[before.n - 1]))
        before.n--;
    static const char *const words[] = {"or",   "and",  "between", "to",       "not", "nor",
                                        "than", "from", "minus",   "negative", "over"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i]);
        if (before.n >= n && strncasecmp(before.text + before.n - n, words[i], n) == 0 &&
            (before.n == n || !is_letter(before.text[before.n - n - 1])))
            return true;
    }
    return before.n > 1 && before.text[before.n - 1] == ',' && is_digit(before.text[before.n - 2]);
}

/* The last formula; where it ends in *end. */
static bool last_formula(ifl_slice s, ifl_slice *out, const char **end) {
    bool found = false;
    unsigned open = 0;
    for (size_t i = 0; i < s.n;) {
        ifl_slice formula, rest;
        if ((s.text[i] == '$' || s.text[i] == '\\') &&
            formula_at(skip(s, i), &open, &formula, &rest)) {
            *out = formula;
            *end = rest.text;
            found = true;
            i = (size_t)(rest.text - s.text);
        } else {
            i += s.text[i] == '\\' && i + 1 < s.n && s.text[i + 1] == '$' ? 2 : 1;
        }
    }
    return found;
}

/* "5 or more", "3 squared": what follows a number makes it another one, or one of several. */
static bool is_changed(ifl_slice rest) {
    char unit[128] = "";
    size_t n = 0;
    rest = ifl_slice_trim(rest);
    if (starts(rest, "\\text{")) rest = ifl_slice_trim(skip(rest, 6));
    while (n < rest.n && is_letter(rest.text[n]))
        n++;
    return n > 0 && !ifl_math_unit_word(unit, sizeof unit, rest.text, n);
}

/* Words, so that it is no formula alone. */
static bool has_words(ifl_slice s) {
    for (size_t i = 0; i < s.n; i++) {
        if ((unsigned char)s.text[i] >= 0x80) return true;
        size_t n = 0;
        while (i + n < s.n && is_letter(s.text[i + n]))
            n++;
        if (n > 1 && (i == 0 || s.text[i - 1] != '\\')) return true;
        i += n;
    }
    return false;
}

/* The last word with a digit, from `from` on. */
static bool last_number(ifl_slice s, const char *from, ifl_slice *out) {
    size_t first = from ? (size_t)(from - s.text) : 0, end = s.n;
    while (end > first && !is_digit(s.text[end - 1]))
        end--;
    if (end == first) return false;
    size_t begin = end;
    while (begin > first && !is_space(s.text[begin - 1]) && s.text[begin - 1] != '=')
        begin--;
    while (end < s.n && !is_space(s.text[end]))
        end++;
    while (end > begin && strchr(".,;:!?*`\"')", s.text[end - 1]))
        end--;
    while (begin < end && strchr("*`\"'(", s.text[begin]))
        begin++;
    if (begin < end && s.text[begin] == '$') begin++;
    *out = (ifl_slice){s.text + begin, end - begin};
    return begin < end && !is_hedged(s, out->text) && !is_changed(skip(s, end));
}

/* The only choice in parentheses, "(D)", of the last line. */
static bool only_choice(ifl_slice s, ifl_slice *out) {
    const char *line = memrchr(s.text, '\n', s.n);
    if (line) s = skip(s, (size_t)(line + 1 - s.text));
    out->n = 0;
    for (size_t i = 0; i + 2 < s.n; i++) {
        if (s.text[i] != '(' || s.text[i + 1] < 'A' || s.text[i + 1] > 'J' || s.text[i + 2] != ')')
            continue;
        if (out->n > 0 && out->text[1] != s.text[i + 1]) return false;
        *out = (ifl_slice){s.text + i, 3};
    }
    return out->n > 0;
}

/* Prose rather than an expression: one of its little words, or words before a formula. */
static bool is_prose(ifl_slice s) {
    static const char *const little[] = {
        "the",  "is",   "it",    "its",    "we",    "get",     "that",  "this",      "so",
        "are",  "our",  "here",  "there",  "thus",  "hence",   "which", "with",      "by",
        "for",  "has",  "have",  "can",    "be",    "from",    "as",    "if",        "when",
        "then", "than", "you",   "let",    "not",   "correct", "final", "therefore", "because",
        "will", "must", "since", "answer", "would", "was",     "were",  "where",     "given"};
    bool words = false;
    for (size_t i = 0; i < s.n;) {
        size_t n = 0;
        while (i + n < s.n && is_letter(s.text[i + n]))
            n++;
        if (n == 0) {
            if (words &&
                (s.text[i] == '$' || starts(skip(s, i), "\\(") || starts(skip(s, i), "\\[")))
                return true;
            i++;
            continue;
        }
        bool command = i > 0 && s.text[i - 1] == '\\';
        for (size_t k = 0; k < sizeof little / sizeof *little && !command; k++)
            if (strlen(little[k]) == n && strncasecmp(s.text + i, little[k], n) == 0) return true;
        words |= n > 2 && !command;
        i += n;
    }
    return false;
}

static void add_loose(ifl_math_stated *out, ifl_slice s, size_t n_max) {
    s = ifl_slice_trim(s);
    bool holds = false;
    for (size_t i = 0; i < s.n && !holds; i++)
        holds = is_letter(s.text[i]) || is_digit(s.text[i]) || s.text[i] == '{' ||
                (unsigned char)s.text[i] >= 0x80;
    if (!holds || s.n > n_max) return;
    out->prose[out->n] = is_prose(s);
    out->at[out->n++] = s;
}

/* The last sentence; a template's farewell is none. */
static ifl_slice last_sentence(ifl_slice s) {
    static const char farewell[] = "I hope it is correct.";
    size_t n = sizeof farewell - 1;
    if (s.n >= n && memcmp(s.text + s.n - n, farewell, n) == 0)
        s = ifl_slice_trim((ifl_slice){s.text, s.n - n});
    for (size_t i = s.n; i-- > 2;)
        if (s.text[i] >= 'A' && s.text[i] <= 'Z' && is_space(s.text[i - 1]) && s.text[i - 2] == '.')
            return skip(s, i);
    return s;
}

/* What may be meant without a box, if that is asked for: the first that can be read counts. The
 * last line or what its anchor announces, what follows its last "is", then whichever comes last, a
 * formula or a number. */
static void find_loose(ifl_slice s, bool anchored, ifl_math_stated *out) {
    const char *token = memmem(s.text, s.n, "<|", 2); /* a chat template's mark */
    if (token) s.n = (size_t)(token - s.text);
    s = ifl_slice_trim(s);
    if (s.n > ANCHOR_BYTES_MAX) s = skip(s, s.n - ANCHOR_BYTES_MAX);
    ifl_slice line = s, behind, formula, number;
    const char *end = NULL, *newline = memrchr(s.text, '\n', s.n);
    unsigned open = 0;
    if (anchored)
        line = without_stars(first_sentence(s));
    else if (newline && !formula_at(s, &open, &formula, &behind))
        line = ifl_slice_trim(skip(s, (size_t)(newline + 1 - s.text)));
    if (!anchored) line = last_sentence(line);
    add_loose(out, line, LAST_LINE_BYTES_MAX);
    if (ifl_slice_after_last(line, " is ", &behind))
        add_loose(out, without_stars(first_sentence(behind)), LAST_LINE_BYTES_MAX);
    if (anchored) s = line;
    out->any = true;
    if (!has_words(s)) return;
    bool has_formula = last_formula(s, &formula, &end);
    if (last_number(s, has_formula ? end : NULL, &number))
        add_loose(out, number, LAST_LINE_BYTES_MAX);
    if (has_formula && !is_hedged(s, formula.text)) add_loose(out, formula, FORMULA_BYTES_MAX);
    if (!has_formula && only_choice(s, &number)) add_loose(out, number, LAST_LINE_BYTES_MAX);
}

bool ifl_math_find_anchor(ifl_slice s, ifl_slice *out) {
    if (!find_anchor(s, true, out)) return false;
    *out = without_stars(first_sentence(*out));
    return out->n > 0;
}

void ifl_math_find(ifl_slice s, const ifl_math_options *options, ifl_math_stated *out) {
    out->n = 0;
    out->bare = out->any = false;
    out->reason = NULL;
    if (!after_thinking(&s)) {
        out->reason = "the thinking doesn't end";
        return;
    }
    find_boxes(s, options->boxes, out);
    if (out->n > 0 || out->reason) return;
    ifl_slice behind;
    bool anchored = options->require != IFL_MATH_REQUIRE_BOX &&
                    find_anchor(s, options->require == IFL_MATH_REQUIRE_NONE, &behind);
    s = ifl_slice_trim(s);
    bool line = s.n > 0 && s.n <= LAST_LINE_BYTES_MAX && !memchr(s.text, '\n', s.n);
    if (options->require == IFL_MATH_REQUIRE_NONE) {
        find_loose(anchored ? behind : s, anchored, out);
    } else if (anchored) {
        out->at[out->n++] = without_stars(first_sentence(behind));
        return;
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

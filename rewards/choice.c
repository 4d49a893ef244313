/* choice: which of the task's options the completion chose. Meta "options" lists their texts (A is
 * the first); the answer is a letter or an option's text. Of the completion counts, in this order:
 * what stands in \boxed{...}; what follows "answer is" or "answer:"; the last line, if it is a
 * letter
 * ("B", "(B)", "B.", "B) text") or an option's text. Statements of one kind that don't all choose
 * the same option are no answer, nor is a list of letters. Thinking (up to </think>) is not read.
 */
#include <string.h>
#include <strings.h>

#include "common/json_util.h"
#include "rewards/text.h"

#define OPTIONS_MAX 26
#define STATEMENT_BYTES_MAX 4096
#define STATEMENTS_MAX 100
#define FOLD (IFL_FOLD_CASE | IFL_FOLD_SPACE | IFL_FOLD_PUNCTUATION)

typedef struct choice_task {
    ifl_slice options[OPTIONS_MAX];
    int n, right;
} choice_task;

/* Besides an option's index: */
enum { CHOICE_NONE = -1, CHOICE_SEVERAL = -2 };

static int letter_index(const choice_task *t, char c) {
    int i = ifl_char_is_letter(c) ? (c | 32) - 'a' : -1;
    return i < t->n ? i : -1;
}

/* The option whose text this is; IFL_FORMAT: an option is not UTF-8. */
static ifl_status option_of_text(const choice_task *t, ifl_slice s, int *out, ifl_error *err) {
    *out = CHOICE_NONE;
    for (int i = 0; i < t->n; i++) {
        bool same;
        IFL_TRY(ifl_text_same(t->options[i], s, FOLD, &same, err));
        if (same) *out = i;
    }
    return IFL_OK;
}

static ifl_slice skip_spaces(ifl_slice s) {
    while (s.n > 0 && (ifl_char_is_space(*s.text) || *s.text == '*' || *s.text == '$'))
        s = ifl_slice_skip(s, 1);
    return s;
}

/* A letter at the start: "(B)", "B.", "**B**", "option B". *rest is what follows, *closed whether a
 * bracket, point or colon ended it. */
static int letter_read(const choice_task *t, ifl_slice s, ifl_slice *rest, bool *closed) {
    static const char *const names[] = {"option ", "choice ", "letter "};
    s = skip_spaces(s);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (s.n > 7 && strncasecmp(s.text, names[i], 7) == 0) s = skip_spaces(ifl_slice_skip(s, 7));
    static const char *const openings[] = {"\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{",
                                           "\\(",     "(",         "[",         "{"};
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++)
        if (ifl_slice_starts(s, openings[i])) {
            s = ifl_slice_skip(s, strlen(openings[i]));
            i = (size_t)-1; /* "\text{(B)}" */
        }
    if (s.n == 0) return CHOICE_NONE;
    int index = letter_index(t, *s.text);
    if (index < 0) return CHOICE_NONE;
    *rest = ifl_slice_skip(s, 1);
    if (rest->n > 0 && (ifl_char_is_letter(*rest->text) || ifl_char_is_digit(*rest->text) ||
                        strchr("_'-^=+/\\", *rest->text) || (unsigned char)*rest->text >= 0x80))
        if (*rest->text && !ifl_slice_starts(*rest, "\\)") && *rest->text != '/')
            return CHOICE_NONE;
    *closed = rest->n == 0;
    while (rest->n > 0 && strchr(")]}.:*$\\", *rest->text) && *rest->text) {
        *closed = true;
        *rest = ifl_slice_skip(*rest, 1);
    }
    return index;
}

/* Whether a further letter is named right behind the first: "B or C", "B, C", "B/C", "(B) (C)". */
static bool names_another(const choice_task *t, ifl_slice rest, int first) {
    static const char *const joints[] = {",", ";", "/", "&", "|", "or ", "and ", "+"};
    bool joined = false, closed;
    for (size_t i = 0; i < sizeof joints / sizeof *joints; i++) {
        rest = skip_spaces(rest);
        if (rest.n >= strlen(joints[i]) &&
            strncasecmp(rest.text, joints[i], strlen(joints[i])) == 0) {
            rest = ifl_slice_skip(rest, strlen(joints[i]));
            joined = true;
            i = (size_t)-1;
        }
    }
    ifl_slice behind;
    int second = letter_read(t, rest, &behind, &closed);
    if (second < 0 || second == first) return false;
    /* "B. A is wrong" begins a sentence; "B (C)" and "B or C" don't. */
    return joined || closed;
}

/* What one statement chose. `loose`: running text may follow the letter. */
static ifl_status statement_read(const choice_task *t, ifl_slice s, bool loose, int *out,
                                 ifl_error *err) {
    ifl_slice rest;
    bool closed;
    int by_text;
    *out = CHOICE_NONE;
    s = ifl_slice_trim(s);
    if (s.n == 0 || s.n > STATEMENT_BYTES_MAX) return IFL_OK;
    IFL_TRY(option_of_text(t, ifl_slice_unwrap(s), out, err));
    if (*out >= 0) return IFL_OK;
    int by_letter = letter_read(t, s, &rest, &closed);
    if (by_letter < 0) return IFL_OK;
    if (names_another(t, rest, by_letter)) {
        *out = CHOICE_SEVERAL;
        return IFL_OK;
    }
    ifl_slice text = ifl_slice_unwrap(rest);
    if (text.n > 0) {
        IFL_TRY(option_of_text(t, text, &by_text, err));
        if (by_text >= 0) { /* "B) Paris": both must say the same */
            *out = by_text == by_letter ? by_letter : CHOICE_SEVERAL;
            return IFL_OK;
        }
        /* "a banana" and "I think" begin with no letter of an option. */
        bool upper = memchr(s.text, 'A' + by_letter, (size_t)(rest.text - s.text)) != NULL;
        if (!loose || (!closed && !upper)) return IFL_OK;
    }
    *out = by_letter;
    return IFL_OK;
}

static void choice_collect(int one, int *found) {
    if (one == CHOICE_NONE || *found == CHOICE_SEVERAL) return;
    *found = *found == CHOICE_NONE || *found == one ? one : CHOICE_SEVERAL;
}

static ifl_status find_boxed(const choice_task *t, ifl_slice s, int *found, ifl_error *err) {
    int n = 0, one;
    for (ifl_slice content; *found != CHOICE_SEVERAL && ifl_slice_box(&s, &content);) {
        IFL_TRY(statement_read(t, content, false, &one, err));
        choice_collect(one == CHOICE_NONE || ++n > STATEMENTS_MAX ? CHOICE_SEVERAL : one, found);
    }
    return IFL_OK;
}

/* Behind each "answer is" or "answer:", to the end of the line. */
static ifl_status find_announced(const choice_task *t, ifl_slice s, int *found, ifl_error *err) {
    int n = 0, one;
    for (ifl_slice line; *found != CHOICE_SEVERAL && ifl_slice_line(&s, &line);) {
        for (size_t i = 0; i + 6 < line.n && *found != CHOICE_SEVERAL; i++) {
            if ((line.text[i] | 32) != 'a' || strncasecmp(line.text + i, "answer", 6) != 0)
                continue;
            ifl_slice rest = skip_spaces(ifl_slice_skip(line, i + 6));
            if (rest.n > 3 && strncasecmp(rest.text, "is", 2) == 0 &&
                (ifl_char_is_space(rest.text[2]) || rest.text[2] == ':'))
                rest = ifl_slice_skip(rest, 2);
            else if (!ifl_slice_starts(rest, ":"))
                continue;
            rest = skip_spaces(rest);
            if (ifl_slice_starts(rest, ":")) rest = ifl_slice_skip(rest, 1);
            if (++n > STATEMENTS_MAX) {
                *found = CHOICE_SEVERAL;
                return IFL_OK;
            }
            IFL_TRY(statement_read(t, rest, true, &one, err));
            choice_collect(one, found);
        }
    }
    return IFL_OK;
}

static ifl_status find_last_line(const choice_task *t, ifl_slice s, int *found, ifl_error *err) {
    s = ifl_slice_trim(s);
    ifl_slice last = s;
    (void)ifl_slice_after_last(s, "\n", &last);
    IFL_TRY(statement_read(t, last, false, found, err));
    return *found == CHOICE_NONE ? statement_read(t, s, false, found, err) : IFL_OK;
}

/* IFL_FORMAT: the task is at fault. */
static ifl_status task_read(choice_task *t, const json_t *meta, ifl_slice answer, ifl_error *err) {
    const json_t *options = meta ? json_object_get(meta, "options") : NULL;
    size_t n = json_array_size(options);
    if (!json_is_array(options) || n < 2 || n > OPTIONS_MAX)
        return ifl_fail(err, IFL_FORMAT, "meta.options: wanted a list of 2 .. %d texts",
                        OPTIONS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *option = json_array_get(options, i);
        if (!json_is_string(option))
            return ifl_fail(err, IFL_FORMAT, "meta.options: element %zu is no text", i);
        t->options[i] = (ifl_slice){json_string_value(option), json_string_length(option)};
        int same;
        IFL_TRY(option_of_text(t, t->options[i], &same, err));
        if (same >= 0)
            return ifl_fail(err, IFL_FORMAT, "meta.options: elements %d and %zu are the same", same,
                            i);
        t->n++;
    }
    answer = ifl_slice_trim(answer);
    if (answer.n == 1) t->right = letter_index(t, *answer.text);
    if (t->right < 0) IFL_TRY(option_of_text(t, answer, &t->right, err));
    if (t->right < 0)
        return ifl_fail(err, IFL_FORMAT,
                        "the task's answer '%.*s' is no letter or text of the %d "
                        "options",
                        answer.n > 60 ? 60 : (int)answer.n, answer.text, t->n);
    return IFL_OK;
}

static ifl_status choice_judge(const choice_task *t, const ifl_reward_request *request,
                               ifl_reward *out, ifl_error *err) {
    ifl_slice s = ifl_slice_after_thinking((ifl_slice){request->completion, request->n_completion});
    int found = CHOICE_NONE;
    IFL_TRY(find_boxed(t, s, &found, err));
    if (found == CHOICE_NONE) IFL_TRY(find_announced(t, s, &found, err));
    if (found == CHOICE_NONE) IFL_TRY(find_last_line(t, s, &found, err));
    if (found == CHOICE_SEVERAL)
        return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "several or unclear choices");
    if (found == CHOICE_NONE)
        return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "no choice in the completion");
    return ifl_verdict(out, found == t->right);
}

static ifl_status choice_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    choice_task task = {.right = CHOICE_NONE};
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    ifl_status st =
        task_read(&task, meta, (ifl_slice){request->answer, strlen(request->answer)}, err);
    if (st == IFL_OK)
        st = choice_judge(&task, request, out, err);
    else if (st == IFL_FORMAT)
        st = ifl_verdict_bad_option(out);
    json_decref(meta);
    return st;
}

static const char *const choice_names[] = {"options", NULL};

const ifl_checker ifl_checker_choice = {
    .name = "choice",
    .version = "1",
    .help =
        "answer: a letter or an option's text; meta: \"options\" (texts, A is the first); of the "
        "completion counts \\boxed{}, else \"answer is\", else the last line",
    .check = choice_check,
    .flags = IFL_CHECKER_PURE,
    .options = choice_names,
};

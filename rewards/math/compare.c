/* From two texts to a verdict. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <flint/flint.h>

#include "common/hash.h"
#include "rewards/math/answer.h"
#include "rewards/math/tree.h"

#define BLOATED_BYTES 2048
#define BLOATED_FACTOR 16
#define NEAR_BYTES 14 /* between boxes that make one list in a worked solution */

/* --- FLINT calls this instead of abort(): sizes are bounded before each call, so it is for what
 * nobody thought of. The memory of the interrupted call is lost. */
static _Thread_local jmp_buf *flint_escape;

static _Noreturn void flint_stopped(void) {
    if (flint_escape) longjmp(*flint_escape, 1);
    abort();
}

static void say(ifl_math_result *out, ifl_math_verdict verdict, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void say(ifl_math_result *out, ifl_math_verdict verdict, const char *format, ...) {
    va_list args;
    out->verdict = verdict;
    va_start(args, format);
    vsnprintf(out->reason, sizeof out->reason, format, args);
    va_end(args);
}

static bool slices_equal(ifl_slice a, ifl_slice b) {
    return a.n == b.n && memcmp(a.text, b.text, a.n) == 0;
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
static bool is_lower(char c) {
    return c >= 'a' && c <= 'z';
}

/* --- Texts */

/* 3:30, 2024-05-01 and 5/1/2024 are times and dates, no ratios, differences or quotients. */
static bool is_time_or_date(ifl_slice s) {
    static const char *const shapes[] = {"9:99",       "99:99",      "9:99:99",
                                         "99:99:99",   "9999-99-99", "9/9/9999",
                                         "99/99/9999", "9/99/9999",  "99/9/9999"};
    size_t n = 0;
    while (n < s.n && (is_digit(s.text[n]) || strchr(":/-", s.text[n])))
        n++;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strlen(shapes[i]) != n) continue;
        bool fits = true;
        for (size_t k = 0; k < n; k++)
            fits &= shapes[i][k] == '9' ? is_digit(s.text[k]) : shapes[i][k] == s.text[k];
        bool minutes = i > 3 || s.text[i % 2 + 2] < '6';
        if (fits && minutes) return true;
    }
    return false;
}

/* With two strokes: neither 3:30 nor 1/2. */
static bool is_date(ifl_slice s) {
    return is_time_or_date(s) && !memchr(s.text, ':', s.n);
}

/* A short word that happens to be spelt like a product: "yes", "two", but not "abc" or "xy". */
static bool is_short_word(ifl_slice s) {
    if (s.n != 3 || !is_lower(s.text[0]) || !is_lower(s.text[1]) || !is_lower(s.text[2]))
        return false;
    bool vowel = false;
    for (int i = 0; i < 3; i++)
        vowel |= strchr("aeiouy", s.text[i]) != NULL;
    return vowel && !(s.text[0] < s.text[1] && s.text[1] < s.text[2]);
}

static bool has_word(ifl_slice s) {
    for (size_t i = 0; i + 1 < s.n; i++)
        if (is_lower(s.text[i]) && is_lower(s.text[i + 1])) return true;
    return false;
}

/* The letter of a choice: "B", "(B)", "B)", "(B) 12", "B: because". 0 when there is none; with
 * `alone` nothing may follow it. */
static char choice_letter(ifl_slice s, bool alone) {
    size_t i = 0;
    bool open = i < s.n && s.text[i] == '(';
    i += open;
    while (i < s.n && s.text[i] == ' ')
        i++;
    char letter = i < s.n ? s.text[i++] : 0;
    if (!is_lower(letter) || letter > 'j') return 0;
    while (i < s.n && s.text[i] == ' ')
        i++;
    bool marked = i < s.n && strchr(").:", s.text[i]);
    if (marked) i++;
    if (open && !marked) return 0;
    ifl_slice rest = ifl_slice_trim((ifl_slice){s.text + i, s.n - i});
    if (rest.n == 0) return letter;
    return alone || !marked ? 0 : letter;
}

/* A second choice behind the first: "B) or C)", "(B) (C)". */
static bool names_another(ifl_slice raw, char letter) {
    for (size_t i = 0; i < raw.n; i++) {
        char c = raw.text[i];
        bool alone =
            (i == 0 || !((raw.text[i - 1] | 32) >= 'a' && (raw.text[i - 1] | 32) <= 'z')) &&
            (i + 1 == raw.n || !((raw.text[i + 1] | 32) >= 'a' && (raw.text[i + 1] | 32) <= 'z'));
        if (c >= 'A' && c <= 'J' && alone && (c | 32) != letter) return true;
    }
    return false;
}

/* True when the task's answer is a choice, and the verdict is then made. */
static bool choices(ifl_math_work *work, ifl_slice gold, ifl_slice answer, ifl_math_result *out) {
    ifl_math_type type = work->options->answer_type;
    ifl_slice words = ifl_math_words(work, gold), other = ifl_math_words(work, answer);
    char letter = choice_letter(words, type != IFL_MATH_TYPE_CHOICE);
    bool upper = letter && memchr(gold.text, letter - 32, gold.n) != NULL;
    if (type != IFL_MATH_TYPE_CHOICE && (type != IFL_MATH_TYPE_AUTO || !upper)) return false;
    if (!letter) {
        say(out, IFL_MATH_BAD_TASK, "the task's answer names no choice");
        return true;
    }
    char got = choice_letter(other, false);
    if (type == IFL_MATH_TYPE_AUTO && !got) return false; /* perhaps a variable after all */
    if (got == letter && !names_another(answer, letter))
        out->verdict = IFL_MATH_EQUAL;
    else
        say(out, IFL_MATH_DIFFERENT, "another choice, or several");
    return true;
}

/* --- Mathematics */

/* 1/0 in any part. */
static bool undefined(ifl_math_work *work, ifl_math_node *node) {
    (void)ifl_math_rational(work, node);
    if (node->known == VALUE_UNDEFINED) return true;
    for (int i = 0; i < node->n; i++)
        if (undefined(work, node->kids[i])) return true;
    return false;
}

/* 5 = 5 and 2 < 3 ask nothing. */
static bool is_vacuous(const ifl_math_node *gold) {
    return gold->kind == NODE_RELATION && !ifl_math_contains(gold, NODE_SYMBOL) &&
           !ifl_math_contains(gold, NODE_TEXT) && !ifl_math_contains(gold, NODE_E) &&
           !ifl_math_contains(gold, NODE_I);
}

typedef struct read_pair {
    ifl_math_node *gold, *answer;
    const char *why_gold, *why_answer;
    bool limit_gold, limit_answer;
} read_pair;

static void read_both(ifl_math_work *work, ifl_slice gold, ifl_slice answer,
                      ifl_math_reading reading, read_pair *out) {
    out->gold = ifl_math_parse(work, gold, reading, &out->why_gold);
    out->gold = ifl_math_exact_side(work, out->gold);
    out->limit_gold = work->limit != NULL;
    out->answer = work->limit ? NULL : ifl_math_parse(work, answer, reading, &out->why_answer);
    out->answer = ifl_math_exact_side(work, out->answer);
    out->limit_answer = !out->limit_gold && work->limit != NULL;
}

static bool may_group(ifl_slice s) {
    for (size_t i = 1; i + 3 < s.n; i++)
        if (s.text[i] == ',' && is_digit(s.text[i - 1]) && is_digit(s.text[i + 1]) &&
            is_digit(s.text[i + 2]) && is_digit(s.text[i + 3]))
            return true;
    return false;
}

/* The readings of both texts in turn, until one makes them equal. */
static ifl_math_shown readings(ifl_math_work *work, ifl_slice gold, ifl_slice answer,
                               read_pair *first) {
    ifl_math_shown shown = ifl_math_item_equal(work, first->gold, first->answer);
    bool units = ifl_math_contains(first->gold, NODE_SYMBOL) !=
                 ifl_math_contains(first->answer, NODE_SYMBOL);
    if (shown == SHOWN_EQUAL || work->limit) return shown;
    bool logarithms =
        memmem(gold.text, gold.n, "log", 3) || memmem(answer.text, answer.n, "log", 3);
    bool groups = may_group(gold) || may_group(answer);
    const struct {
        ifl_math_reading reading;
        bool wanted;
    } others[] = {{{.grouped = false}, groups},
                  {{.grouped = true, .units_plain = true}, units},
                  {{.grouped = true, .decimal_log = true}, logarithms}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        ifl_math_reading reading = others[i].reading;
        read_pair pair = {0};
        if (!others[i].wanted) continue;
        read_both(work, gold, answer, reading, &pair);
        if (pair.gold && pair.answer &&
            ifl_math_item_equal(work, pair.gold, pair.answer) == SHOWN_EQUAL)
            return SHOWN_EQUAL;
        if (work->limit) break;
    }
    return shown;
}

/* An answer that costs too much beside a short one of the task's: it isn't left open, or a long sum
 * would be a way not to be judged. */
static bool is_bloated(ifl_slice gold, ifl_slice answer) {
    return answer.n > BLOATED_BYTES && answer.n / BLOATED_FACTOR > gold.n;
}

static void settle(ifl_math_work *work, const read_pair *pair, ifl_math_shown shown, bool bloated,
                   ifl_math_result *out) {
    if (undefined(work, pair->gold))
        say(out, IFL_MATH_BAD_TASK, "the task's answer is undefined");
    else if (work->limit)
        say(out, bloated ? IFL_MATH_DIFFERENT : IFL_MATH_UNDECIDED, "limit: %s", work->limit);
    else if (shown == SHOWN_EQUAL)
        out->verdict = IFL_MATH_EQUAL;
    else if (shown == SHOWN_DIFFERENT)
        say(out, IFL_MATH_DIFFERENT, "another value or form");
    else if (shown == SHOWN_UNDEFINED)
        say(out, IFL_MATH_DIFFERENT, "the answer is undefined");
    else if (!ifl_math_contains(pair->gold, NODE_SYMBOL) &&
             ifl_math_contains(pair->answer, NODE_SYMBOL)) /* as x! for 6 */
        say(out, IFL_MATH_DIFFERENT, "the answer has an unknown that the task's hasn't");
    else if (out->unread) /* or words would be a way not to be judged */
        say(out, IFL_MATH_DIFFERENT, "the answer holds words");
    else
        say(out, IFL_MATH_UNDECIDED, "neither equality nor difference could be shown");
}

static void compare_texts(ifl_math_work *work, ifl_slice gold, ifl_slice answer,
                          ifl_math_result *out) {
    ifl_slice a = ifl_math_words(work, gold), b = ifl_math_words(work, answer);
    int at_gold = 0, at_answer = 0;
    bool times = ifl_math_time_of_day(a, &at_gold) && ifl_math_time_of_day(b, &at_answer);
    if (times && at_gold == at_answer)
        out->verdict = IFL_MATH_EQUAL;
    else if (a.n == 0)
        say(out, IFL_MATH_BAD_TASK, "the task's answer holds no words");
    else if (slices_equal(a, b))
        out->verdict = IFL_MATH_EQUAL;
    else
        say(out, IFL_MATH_DIFFERENT, "another text");
    out->unread = out->verdict == IFL_MATH_DIFFERENT;
}

/* A task's answer that can't be read but isn't just words: sums, integrals, congruences. */
static bool looks_mathematical(ifl_slice s) {
    static const char *const words[] = {"\\text", "\\math", "\\mbox", "\\operatorname"};
    for (size_t i = 0; i + 1 < s.n; i++) {
        if (strchr("=^_+<>", s.text[i])) return true;
        if (s.text[i] != '\\' || !is_lower((char)(s.text[i + 1] | 32))) continue;
        bool markup = false;
        for (size_t k = 0; k < sizeof words / sizeof *words; k++)
            markup |=
                s.n - i >= strlen(words[k]) && memcmp(s.text + i, words[k], strlen(words[k])) == 0;
        if (!markup) return true;
    }
    return false;
}

/* Letter by letter, or in words alone: their braces and marks say nothing, those of a formula do.
 */
static bool says_the_same(ifl_math_work *work, ifl_slice gold, ifl_slice answer) {
    if (slices_equal(gold, answer)) return true;
    if (looks_mathematical(gold) || looks_mathematical(answer)) return false;
    if (memchr(gold.text, '!', gold.n) || memchr(answer.text, '!', answer.n)) return false;
    ifl_slice a = ifl_math_words(work, gold), b = ifl_math_words(work, answer);
    return has_word(a) && slices_equal(a, b);
}

/* The task's answer is a formula that can't be read: it is compared letter by letter. */
static void compare_unread(ifl_math_work *work, ifl_slice gold, ifl_slice answer, const char *why,
                           ifl_math_result *out) {
    ifl_slice a = ifl_math_unspaced(work, gold), b = ifl_math_unspaced(work, answer);
    out->unread = true;
    if (a.n > 0 && slices_equal(a, b))
        out->verdict = IFL_MATH_EQUAL;
    else
        say(out, IFL_MATH_UNDECIDED, "the task's answer can't be read: %s",
            why ? why : "no expression");
}

static void compare_clean(ifl_math_work *work, ifl_slice gold, ifl_slice answer,
                          ifl_math_result *out) {
    bool text = work->options->answer_type == IFL_MATH_TYPE_TEXT;
    if (is_date(answer) && !is_time_or_date(gold)) {
        say(out, IFL_MATH_DIFFERENT, "a date");
        return;
    }
    if (choices(work, gold, answer, out)) return;
    const char *a_word = ifl_math_number_word(work, gold),
               *b_word = ifl_math_number_word(work, answer);
    if (!text && a_word && !b_word) gold = (ifl_slice){a_word, strlen(a_word)};
    if (!text && b_word && !a_word) answer = (ifl_slice){b_word, strlen(b_word)};
    if (ifl_math_is_decimal_comma(gold, answer)) {
        out->verdict = IFL_MATH_EQUAL;
        return;
    }
    if (text || is_time_or_date(gold) || is_short_word(gold)) {
        compare_texts(work, gold, answer, out);
        return;
    }
    read_pair pair = {0};
    read_both(work, gold, answer, (ifl_math_reading){.grouped = true}, &pair);
    if (pair.limit_gold) {
        say(out, IFL_MATH_BAD_TASK, "the task's answer is past a limit: %s", work->limit);
        return;
    }
    if (pair.gold && is_vacuous(pair.gold)) {
        say(out, IFL_MATH_BAD_TASK, "the task's answer is a statement without an unknown");
        return;
    }
    if (pair.limit_answer) {
        say(out, IFL_MATH_DIFFERENT, "the answer is past a limit: %s", work->limit);
        return;
    }
    if (!pair.gold || (says_the_same(work, gold, answer) && !undefined(work, pair.gold))) {
        out->gold_unread = !pair.gold;
        if (!pair.gold && looks_mathematical(gold))
            compare_unread(work, gold, answer, pair.why_gold, out);
        else
            compare_texts(work, gold, answer, out);
        return;
    }
    if (!pair.answer || is_vacuous(pair.answer)) {
        out->unread = !pair.answer;
        if (undefined(work, pair.gold))
            say(out, IFL_MATH_BAD_TASK, "the task's answer is undefined");
        else
            say(out, IFL_MATH_DIFFERENT, "the answer can't be read: %s",
                pair.answer       ? "a statement without an unknown"
                : pair.why_answer ? pair.why_answer
                                  : "no expression");
        return;
    }
    out->unread =
        ifl_math_contains(pair.answer, NODE_TEXT) && !ifl_math_contains(pair.gold, NODE_TEXT);
    settle(work, &pair, readings(work, gold, answer, &pair), is_bloated(gold, answer), out);
}

/* "" and "{}"; "\{\}" is the empty set. */
static bool holds_nothing(ifl_slice s) {
    for (size_t i = 0; i < s.n; i++)
        if (!strchr(" {}$~", s.text[i])) return false;
    return true;
}

static void compare_guarded(ifl_math_work *work, ifl_slice gold, ifl_slice answer,
                            ifl_math_result *out) {
    jmp_buf escape, *outer = flint_escape;
    if (setjmp(escape) == 0) {
        flint_escape = &escape;
        ifl_slice a = ifl_math_clean(work, gold), b = {NULL, 0};
        if (!work->limit) ifl_math_unescape(work, &a);
        bool limit_gold = work->limit != NULL;
        if (!limit_gold) b = ifl_math_clean(work, answer);
        if (!work->limit) ifl_math_unescape(work, &b);
        if (work->limit)
            say(out, limit_gold ? IFL_MATH_BAD_TASK : IFL_MATH_DIFFERENT, "%s is past a limit: %s",
                limit_gold ? "the task's answer" : "the answer", work->limit);
        else if (holds_nothing(a))
            say(out, IFL_MATH_BAD_TASK, "the task's answer is empty");
        else if (holds_nothing(b))
            say(out, IFL_MATH_NO_ANSWER, "the answer is empty");
        else
            compare_clean(work, a, b, out);
    } else {
        say(out, IFL_MATH_UNDECIDED, "FLINT stopped");
    }
    flint_escape = outer;
}

void ifl_math_thread_end(void) {
    flint_cleanup();
}

typedef struct joined {
    char text[4096];
    size_t n;
    bool fits;
} joined;

/* The contents of several boxes as one list; what stands in one before isn't written again where
 * `once` is set. */
static void join_boxes(const ifl_math_stated *stated, bool once, joined *out) {
    out->n = 0;
    out->fits = true;
    for (int i = 0; i < stated->n; i++) {
        bool again = false;
        for (int k = 0; k < i && once; k++)
            again |= slices_equal(stated->at[k], stated->at[i]);
        if (again) continue;
        out->fits = out->n + stated->at[i].n + 4 < sizeof out->text;
        if (!out->fits) return;
        if (out->n > 0) out->text[out->n++] = ',', out->text[out->n++] = ' ';
        memcpy(out->text + out->n, stated->at[i].text, stated->at[i].n);
        out->n += stated->at[i].n;
    }
}

/* What the task's answer is, when it comes as a worked solution. */
static ifl_slice gold_of(ifl_slice gold, joined *list) {
    ifl_math_stated stated;
    ifl_slice behind;
    const ifl_math_options last = {.require = IFL_MATH_REQUIRE_BOX};
    ifl_math_find(gold, &last, &stated);
    if (stated.n == 1) return stated.at[0];
    bool near = true;
    for (int i = 0; i + 1 < stated.n; i++)
        near &= stated.at[i + 1].text - (stated.at[i].text + stated.at[i].n) <
                (ptrdiff_t)(NEAR_BYTES + strlen("}\\boxed{"));
    if (stated.n > 1 && !near) return stated.at[stated.n - 1];
    if (stated.n > 1) {
        join_boxes(&stated, true, list);
        if (list->fits) return (ifl_slice){list->text, list->n};
    }
    return ifl_math_find_anchor(gold, &behind) ? behind : gold;
}

void ifl_math_compare(ifl_slice gold, ifl_slice answer, const ifl_math_options *options,
                      ifl_math_result *out) {
    ifl_math_work work = {.options = options};
    *out = (ifl_math_result){.verdict = IFL_MATH_UNDECIDED};
    flint_set_abort(flint_stopped);
    if (gold.n > IFL_MATH_BYTES_MAX) {
        say(out, IFL_MATH_BAD_TASK, "the task's answer has %zu bytes, the limit is %d", gold.n,
            IFL_MATH_BYTES_MAX);
        return;
    }
    if (answer.n > IFL_MATH_BYTES_MAX) {
        say(out, IFL_MATH_DIFFERENT, "the answer has %zu bytes, the limit is %d", answer.n,
            IFL_MATH_BYTES_MAX);
        return;
    }
    ifl_hash a = ifl_hash_bytes(gold.text, gold.n), b = ifl_hash_bytes(answer.text, answer.n);
    work.seed = a.low ^ (b.high * 0x9e3779b97f4a7c15u);
    compare_guarded(&work, gold, answer, out);
    out->n_steps = work.n_steps;
    ifl_math_work_clear(&work);
}

/* Several near boxes: one list, if the task's answer is one of as many; else they must agree. */
static void compare_several(ifl_slice gold, const ifl_math_stated *stated,
                            const ifl_math_options *options, ifl_math_result *out) {
    joined list;
    int64_t n_steps = 0;
    join_boxes(stated, false, &list);
    ifl_math_compare(gold, stated->at[stated->n - 1], options, out);
    n_steps = out->n_steps;
    bool agree = true;
    for (int i = 0; i + 1 < stated->n && agree && n_steps < IFL_MATH_STEPS_MAX; i++) {
        ifl_math_result one;
        ifl_math_compare(stated->at[i], stated->at[stated->n - 1], options, &one);
        n_steps += one.n_steps;
        agree = one.verdict == IFL_MATH_EQUAL;
    }
    if (!agree && list.fits && n_steps < IFL_MATH_STEPS_MAX && out->verdict != IFL_MATH_BAD_TASK) {
        ifl_math_compare(gold, (ifl_slice){list.text, list.n}, options, out);
        n_steps += out->n_steps;
        agree = out->verdict == IFL_MATH_EQUAL;
    }
    if (!agree && out->verdict != IFL_MATH_BAD_TASK)
        say(out, IFL_MATH_AMBIGUOUS, "%d boxes state different answers", stated->n);
    out->n_steps = n_steps;
}

/* The first that is an expression counts. */
static void compare_first(ifl_slice gold, const ifl_math_stated *stated,
                          const ifl_math_options *options, ifl_math_result *out) {
    int64_t n_steps = 0;
    bool found = false;
    for (int i = 0; i < stated->n && !found && n_steps < IFL_MATH_STEPS_MAX; i++) {
        ifl_math_compare(gold, stated->at[i], options, out);
        n_steps += out->n_steps;
        found = out->verdict == IFL_MATH_EQUAL || out->verdict == IFL_MATH_BAD_TASK ||
                !(out->unread || stated->prose[i]);
    }
    if (!found && out->verdict != IFL_MATH_DIFFERENT && !out->gold_unread)
        say(out, IFL_MATH_DIFFERENT, "no expression among the words");
    out->n_steps = n_steps;
}

void ifl_math_check(ifl_slice gold, ifl_slice completion, const ifl_math_options *options,
                    ifl_math_result *out) {
    ifl_math_stated stated;
    joined list;
    gold = gold_of(gold, &list);
    ifl_math_find(completion, options, &stated);
    if (stated.any && stated.n > 0) {
        compare_first(gold, &stated, options, out);
        return;
    }
    if (stated.n == 1) {
        ifl_math_compare(gold, stated.at[0], options, out);
        if (stated.bare && out->verdict == IFL_MATH_DIFFERENT)
            say(out, IFL_MATH_NO_ANSWER, "no box, no '####' and no 'Answer:'");
        return;
    }
    if (stated.n > 1) {
        compare_several(gold, &stated, options, out);
        return;
    }
    /* A bad task is one whatever was answered. */
    ifl_math_compare(gold, gold, options, out);
    if (out->verdict != IFL_MATH_BAD_TASK) say(out, IFL_MATH_NO_ANSWER, "%s", stated.reason);
}

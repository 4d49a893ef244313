#include <string.h>

#include "rewards/text.h"

#define STATED_BYTES_MAX 4096 /* a longer statement holds no number that we'd read */

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
        if (ifl_char_is_letter(*rest.text)) {
            size_t n = 0;
            while (n < rest.n && ifl_char_is_letter(rest.text[n]))
                n++;
            if (word_changes_value(rest.text, n) || (n == 1 && !apart)) return false;
            rest = ifl_slice_skip(rest, n);
        } else if (ifl_char_is_space(*rest.text)) {
            rest = ifl_slice_skip(rest, 1);
        } else {
            size_t i = 0, n_fillers = sizeof fillers / sizeof *fillers;
            while (i < n_fillers && !ifl_slice_starts(rest, fillers[i]))
                i++;
            if (i == n_fillers) return false;
            rest = ifl_slice_skip(rest, strlen(fillers[i]));
        }
        apart = true;
    }
    return true;
}

ifl_stated ifl_stated_number(ifl_slice s, ifl_number *out) {
    if (s.n > STATED_BYTES_MAX) return IFL_STATED_REFUSED;
    s = ifl_slice_unwrap(s);
    if (s.n > 2 && ifl_char_is_letter(*s.text)) {
        ifl_slice value = ifl_slice_trim(ifl_slice_skip(s, 1));
        if (value.n > 0 && *value.text == '=') s = ifl_slice_unwrap(ifl_slice_skip(value, 1));
    }
    size_t end = 0;
    ifl_number_found found = ifl_number_scan(s.text, s.n, 0, out, &end);
    if (found == IFL_NUMBER_NONE) return IFL_STATED_NONE;
    if (found == IFL_NUMBER_MALFORMED) return IFL_STATED_REFUSED;
    return unit_is_harmless(ifl_slice_skip(s, end)) ? IFL_STATED_NUMBER : IFL_STATED_REFUSED;
}

ifl_stated ifl_stated_last(ifl_slice s, ifl_number *out) {
    ifl_stated found = IFL_STATED_NONE;
    ifl_number numbers[2]; /* the last one and the next: swapped, since a copy has 2 KiB */
    int last = 0;
    for (size_t at = 0; at < s.n;) {
        ifl_number_found one = ifl_number_scan(s.text, s.n, at, &numbers[!last], &at);
        if (one == IFL_NUMBER_OK) {
            last = !last;
            found = IFL_STATED_NUMBER;
        } else if (one == IFL_NUMBER_MALFORMED) {
            found = IFL_STATED_REFUSED; /* until a readable one follows */
        }
    }
    if (found == IFL_STATED_NUMBER) *out = numbers[last];
    return found;
}

ifl_status ifl_stated_verdict(ifl_stated found, const ifl_number *got, const ifl_number *gold,
                              ifl_reward *out, ifl_error *err) {
    switch (found) {
    case IFL_STATED_NUMBER:
        return ifl_verdict(out, ifl_number_equal(gold, got));
    case IFL_STATED_REFUSED:
        return ifl_verdict_why(out, err, IFL_REWARD_WRONG,
                               "the answer is not one readable number but an expression or a list");
    case IFL_STATED_SEVERAL:
        return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "several answers that differ");
    default:
        return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "no number in the completion");
    }
}

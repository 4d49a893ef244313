/* Ways of writing the same, told by letters alone. */
#include <string.h>

#include "rewards/math/tree.h"

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
static bool is_letter(char c) {
    return (c | 32) >= 'a' && (c | 32) <= 'z';
}

static size_t digits_at(ifl_slice s, size_t i) {
    size_t n = 0;
    while (i + n < s.n && is_digit(s.text[i + n]))
        n++;
    return n;
}

bool ifl_math_is_decimal_comma(ifl_slice a, ifl_slice b) {
    size_t whole = digits_at(a, 0), places = digits_at(a, whole + 1);
    if (whole == 0 || places == 0 || whole + 1 + places != a.n || a.n != b.n) return false;
    char mark = a.text[whole], other = b.text[whole];
    bool grouped = places == 3 && whole <= 3 && a.text[0] != '0';
    return ((mark == ',' && other == '.') || (mark == '.' && other == ',')) && !grouped &&
           memcmp(a.text, b.text, whole) == 0 &&
           memcmp(a.text + whole + 1, b.text + whole + 1, places) == 0;
}

const char *ifl_math_number_word(ifl_math_work *work, ifl_slice s) {
    static const char *const words[] = {
        "zero",     "one",     "two",     "three",     "four",     "five",     "six",
        "seven",    "eight",   "nine",    "ten",       "eleven",   "twelve",   "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"};
    static const char *const figures[] = {"0",  "1",  "2",  "3",  "4",  "5",  "6",
                                          "7",  "8",  "9",  "10", "11", "12", "13",
                                          "14", "15", "16", "17", "18", "19", "20"};
    ifl_slice word = s.n < 32 ? ifl_math_words(work, s) : (ifl_slice){"", 0};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strlen(words[i]) == word.n && memcmp(words[i], word.text, word.n) == 0)
            return figures[i];
    return NULL;
}

ifl_slice ifl_math_unspaced(ifl_math_work *work, ifl_slice s) {
    static const char *const silent[] = {"\\left", "\\right", "\\,", "\\;",           "\\!",
                                         "\\:",    "\\quad",  "\\ ", "\\displaystyle"};
    char *out = ifl_math_alloc(work, s.n + 1);
    size_t n = 0;
    if (!out || !ifl_math_step(work, 1 + (int64_t)s.n / 8)) return (ifl_slice){"", 0};
    for (size_t i = 0; i < s.n;) {
        size_t m = s.text[i] == ' ' || s.text[i] == '~' || s.text[i] == '$';
        for (size_t k = 0; k < sizeof silent / sizeof *silent && m == 0; k++) {
            size_t l = strlen(silent[k]);
            bool begins = s.n - i >= l && memcmp(s.text + i, silent[k], l) == 0;
            bool ends = !begins || l == 2 || i + l == s.n || !is_letter(s.text[i + l]);
            if (begins && ends) m = l;
        }
        if (m == 0) out[n++] = s.text[i++];
        i += m;
    }
    return (ifl_slice){out, n};
}

/* \\\\frac for \\frac, as in a text that was escaped twice; NULL text when there is nothing of it.
 */
static ifl_slice unescaped(ifl_math_work *work, ifl_slice s) {
    bool twice = false;
    for (size_t i = 0; i + 2 < s.n && !twice; i++)
        twice = s.text[i] == '\\' && s.text[i + 1] == '\\' && is_letter(s.text[i + 2]);
    char *out = twice ? ifl_math_alloc(work, s.n) : NULL;
    if (!out) return (ifl_slice){NULL, 0};
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) {
        out[n++] = s.text[i];
        if (s.text[i] == '\\' && i + 1 < s.n && s.text[i + 1] == '\\') i++;
    }
    return (ifl_slice){out, n};
}

void ifl_math_unescape(ifl_math_work *work, ifl_slice *s) {
    const ifl_math_reading reading = {.grouped = true};
    const char *reason = NULL;
    ifl_slice once = unescaped(work, *s);
    if (once.text && !ifl_math_parse(work, *s, reading, &reason) && !work->limit &&
        ifl_math_parse(work, once, reading, &reason))
        *s = once;
}

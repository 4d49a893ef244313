/* Times of day: 18:05, 18:05:00, 6:05 p.m. */
#include <string.h>

#include "rewards/math/tree.h"

static bool number_at(ifl_slice s, size_t *at, size_t n_max, int *out) {
    size_t n = 0;
    *out = 0;
    while (n < n_max && *at + n < s.n && s.text[*at + n] >= '0' && s.text[*at + n] <= '9')
        *out = *out * 10 + (s.text[*at + n++] - '0');
    *at += n;
    return n > 0;
}

bool ifl_math_time_of_day(ifl_slice words, int *seconds) {
    size_t at = 0;
    int hour = 0, parts[2] = {0, 0};
    if (!number_at(words, &at, 2, &hour)) return false;
    for (int i = 0; i < 2; i++) {
        if (at == words.n || words.text[at] != ':') {
            if (i == 0) return false;
            break;
        }
        size_t begin = ++at;
        if (!number_at(words, &at, 2, &parts[i]) || at != begin + 2 || parts[i] > 59) return false;
    }
    char half = 0;
    for (; at < words.n; at++) {
        char c = words.text[at];
        if (!half && (c == 'a' || c == 'p') && at + 1 < words.n)
            half = c;
        else if (c == 'm' && half && strchr(".ap", words.text[at - 1]))
            continue;
        else if (c != ' ' && c != '.')
            return false;
    }
    if (half ? hour < 1 || hour > 12 : hour > 23) return false;
    if (half) hour = hour % 12 + (half == 'p' ? 12 : 0);
    *seconds = hour * 3600 + parts[0] * 60 + parts[1];
    return true;
}

/* Numbers in text, as exact rationals: digit strings, never doubles. 0.1 + 0.2 style surprises and
 * 1e400 can't happen, and a million digits cost no more than reading them. */
#ifndef IFL_REWARDS_NUMBER_H
#define IFL_REWARDS_NUMBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IFL_NUMBER_DIGITS_MAX 1024   /* of a numerator or a denominator */
#define IFL_NUMBER_EXPONENT_MAX 9999 /* of "1e9999" */

/* sign * numerator * 10^exponent / denominator. Digits are '0'..'9', most significant first,
 * without leading zeros; trailing zeros of the numerator have moved into the exponent. Zero has no
 * digits. */
typedef struct ifl_number {
    bool negative;
    int32_t exponent;
    int32_t n_numerator, n_denominator;
    char numerator[IFL_NUMBER_DIGITS_MAX];
    char denominator[IFL_NUMBER_DIGITS_MAX];
} ifl_number;

typedef enum {
    IFL_NUMBER_NONE,      /* no number starts here; *end is where to look on */
    IFL_NUMBER_OK,        /* *out is it, *end is behind it */
    IFL_NUMBER_MALFORMED, /* digits that aren't one readable number: 1,23 or 1.2.3 or 10^3 or 3-4 */
} ifl_number_found;

/* Reads what starts at text[at]: sign, currency sign, digits with thousands separators (12,345 or
 * 12{,}345), decimals, exponent, a/b or \frac{a}{b}, a trailing per cent sign. Looks at the bytes
 * before `at` only to tell a sign from a minus and "x2" from 2. Advances: *end > at unless at == n.
 */
ifl_number_found ifl_number_scan(const char *text, size_t n, size_t at, ifl_number *out,
                                 size_t *end);

/* Whether the whole text (after trimming, perhaps with a trailing period) is one number. */
bool ifl_number_parse(const char *text, size_t n, ifl_number *out);

bool ifl_number_equal(const ifl_number *a, const ifl_number *b);

#endif

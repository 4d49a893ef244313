/* Reading answers out of completions: what several checkers share. Completions are bytes: they may
 * hold NULs and need not be UTF-8. Inside rewards/ only. */
#ifndef IFL_REWARDS_TEXT_H
#define IFL_REWARDS_TEXT_H

#include "rewards/checkers.h"
#include "rewards/number.h"

static inline bool ifl_char_is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
static inline bool ifl_char_is_digit(char c) {
    return c >= '0' && c <= '9';
}
static inline bool ifl_char_is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

ifl_slice ifl_slice_skip(ifl_slice s, size_t n);
bool ifl_slice_starts(ifl_slice s, const char *word);
bool ifl_slice_ends(ifl_slice s, const char *word);
bool ifl_slice_equal(ifl_slice a, ifl_slice b);

/* What lies behind the last "</think>", or all of it. */
ifl_slice ifl_slice_after_thinking(ifl_slice s);

/* Takes the next line off *rest, without its "\n"; false at the end. */
bool ifl_slice_line(ifl_slice *rest, ifl_slice *line);

/* The content of the next \boxed{...} of *rest, which goes on behind it. False when there is none:
 * an unclosed box ends the search, since everything behind it lies inside it. Linear over a text.
 */
bool ifl_slice_box(ifl_slice *rest, ifl_slice *content);

/* Takes off what changes no answer: $...$, \(...\), {...}, \text{...}, stars, a final period. */
ifl_slice ifl_slice_unwrap(ifl_slice s);

/* --- Numbers that a text states */
typedef enum {
    IFL_STATED_NONE,    /* no number there */
    IFL_STATED_NUMBER,  /* one */
    IFL_STATED_REFUSED, /* digits, but not one readable number: an expression, a list */
    IFL_STATED_SEVERAL, /* readable numbers that differ */
} ifl_stated;

/* "x = 5", "$12", "5 apples", "\frac{3}{4}": one number, perhaps named before and with a unit
 * behind. NONE when it doesn't even begin with a number. */
ifl_stated ifl_stated_number(ifl_slice s, ifl_number *out);

/* The last number of a text; REFUSED when behind it come digits that are none. */
ifl_stated ifl_stated_last(ifl_slice s, ifl_number *out);

/* The verdict on what was found: WRONG or NO_ANSWER comes with its reason in err. */
ifl_status ifl_stated_verdict(ifl_stated found, const ifl_number *got, const ifl_number *gold,
                              ifl_reward *out, ifl_error *err);

/* --- Verdicts with a reason. Both return IFL_OK. */
ifl_status ifl_verdict_why(ifl_reward *out, ifl_error *err, ifl_reward_status status,
                           const char *format, ...) __attribute__((format(printf, 4, 5)));
/* BAD_TASK, with what is in err already. */
ifl_status ifl_verdict_bad_option(ifl_reward *out);

/* --- Text without regard to its form */
typedef enum {
    IFL_FOLD_CASE = 1,
    IFL_FOLD_SPACE = 2,      /* runs of white space are one space, none at the ends */
    IFL_FOLD_PUNCTUATION = 4 /* left out; but not signs, points and separators before a digit, nor
                                per cent: -5 and 3.5 stay what they are */
} ifl_fold;

/* Code points in canonical decomposition (e with accent is one text in both spellings; a
 * superscript two is no 2). *out is owned (free). IFL_FORMAT: not UTF-8, or
 * more than 30 marks on one character. */
ifl_status ifl_text_fold(ifl_slice s, unsigned fold, int32_t **out, size_t *n, ifl_error *err);

/* Whether two texts are the same under `fold`. A `b` that is not UTF-8 equals nothing; `a` must be
 * UTF-8 (IFL_FORMAT). */
ifl_status ifl_text_same(ifl_slice a, ifl_slice b, unsigned fold, bool *same, ifl_error *err);

/* --- Regular expressions (PCRE2, bytes; invalid UTF-8 matches nothing) */
typedef enum {
    IFL_REGEX_MATCH,
    IFL_REGEX_NO_MATCH,
    IFL_REGEX_BEYOND,

} ifl_regex_found;

typedef struct ifl_regex ifl_regex;
/* `what` (borrowed, lives as long as the regex) names the pattern in errors. IFL_FORMAT: a pattern
 * that is none, or over IFL_REGEX_BYTES_MAX. */
ifl_status ifl_regex_compile(ifl_regex **out, const char *pattern, const char *what,
                             ifl_error *err);
void ifl_regex_free(ifl_regex *regex);
/* A group's number by its name or by digits; -1: there is none. */
int ifl_regex_group(const ifl_regex *regex, const char *name);
/* Matches at or behind `from`; with `full` the whole text or not at all. Group `group` and the
 * whole match come out (NULL text: the group took no part). BEYOND: past the limits of steps or
 * memory, reason in err. */
ifl_regex_found ifl_regex_match(const ifl_regex *regex, ifl_slice text, size_t from, bool full,
                                int group, ifl_slice *whole, ifl_slice *captured, ifl_error *err);

/* --- Pieces: about what a tokenizer makes of a text, where no token ids are known. Up to 8 letters
 * (bytes past ASCII count as letters), up to 3 digits, up to 8 times the same white space, one
 * mark. A single space before a piece belongs to it. No text of n bytes has fewer than n / 9
 * pieces. */
bool ifl_slice_piece(ifl_slice *rest, ifl_slice *piece);
size_t ifl_slice_pieces(ifl_slice s);

#endif

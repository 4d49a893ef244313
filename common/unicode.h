/* UTF-8 as the tokenizers need it: strict decoding, lossy repair, character classes. */
#ifndef IFL_COMMON_UNICODE_H
#define IFL_COMMON_UNICODE_H

#include "common/status.h"

#define IFL_UTF8_REPLACEMENT 0xfffd

/* Decodes the character at `bytes` (n >= 1). Returns its length, 1-4, and the code point in `*cp`.
 * For an ill-formed sequence `*cp` is -1 and the length is that of its maximal well-formed
 * beginning (at least 1), which is what one U+FFFD stands for (Unicode 16.0, section 3.9,
 * "substitution of maximal subparts"). `*incomplete` (may be NULL) says that `bytes` ends before
 * that beginning did. */
size_t ifl_utf8_decode(const char *bytes, size_t n, int32_t *cp, bool *incomplete);

/* Writes 1-4 bytes for a scalar value. */
size_t ifl_utf8_encode(uint32_t cp, char out[4]);

bool ifl_utf8_valid(const char *bytes, size_t n);

/* Length of the character that a lead byte of valid UTF-8 starts. */
static inline size_t ifl_utf8_length(char lead) {
    unsigned char c = (unsigned char)lead;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

/* White_Space of Unicode. */
bool ifl_unicode_is_space(int32_t cp);

/* A word character: Alphabetic, marks, decimal digits, connectors and joiners (UTS #18). */
bool ifl_unicode_is_word(int32_t cp);

typedef enum { IFL_NFC, IFL_NFD, IFL_NFKC, IFL_NFKD } ifl_unicode_form;

/* Normalises valid UTF-8 (NUL bytes allowed) as of Unicode 9.0, see unicode.c. `*out` is owned,
 * free() it; `*out` is NULL and the status IFL_OK when the text is already in that form by a quick
 * check (all ASCII). */
ifl_status ifl_unicode_normalize(ifl_unicode_form form, const char *bytes, size_t n, char **out,
                                 size_t *n_out, ifl_error *err);

#endif

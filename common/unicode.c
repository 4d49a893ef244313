#include "common/unicode.h"

#include <stdlib.h>
#include <utf8proc.h>

size_t ifl_utf8_decode(const char *bytes, size_t n, int32_t *cp, bool *incomplete) {
    const unsigned char *p = (const unsigned char *)bytes;
    if (incomplete) *incomplete = false;
    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    *cp = -1;
    size_t length;
    unsigned low = 0x80,
             high = 0xbf; /* allowed range of the second byte: Unicode 16.0, table 3-7 */
    uint32_t value;
    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        length = 2;
        value = p[0] & 0x1fu;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        length = 3;
        value = p[0] & 0x0fu;
        if (p[0] == 0xe0) low = 0xa0;
        if (p[0] == 0xed) high = 0x9f;
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        length = 4;
        value = p[0] & 0x07u;
        if (p[0] == 0xf0) low = 0x90;
        if (p[0] == 0xf4) high = 0x8f;
    } else {
        return 1;
    }
    for (size_t i = 1; i < length; i++) {
        if (i == n) {
            if (incomplete) *incomplete = true;
            return i;
        }
        if (p[i] < low || p[i] > high) return i;
        value = value << 6 | (p[i] & 0x3fu);
        low = 0x80;
        high = 0xbf;
    }
    *cp = (int32_t)value;
    return length;
}

size_t ifl_utf8_encode(uint32_t cp, char out[4]) {
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

bool ifl_utf8_valid(const char *bytes, size_t n) {
    for (size_t i = 0; i < n;) {
        int32_t cp;
        i += ifl_utf8_decode(bytes + i, n - i, &cp, NULL);
        if (cp < 0) return false;
    }
    return true;
}

bool ifl_unicode_is_space(int32_t cp) {
    return (cp >= 0x09 && cp <= 0x0d) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}

bool ifl_unicode_is_word(int32_t cp) {
    if (cp == 0x200c || cp == 0x200d) return true;
    /* Other_Alphabetic outside letters and marks: the circled and squared Latin letters. */
    if ((cp >= 0x24b6 && cp <= 0x24e9) || (cp >= 0x1f130 && cp <= 0x1f149) ||
        (cp >= 0x1f150 && cp <= 0x1f169) || (cp >= 0x1f170 && cp <= 0x1f189))
        return true;
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

ifl_status ifl_unicode_normalize(ifl_unicode_form form, const char *bytes, size_t n, char **out,
                                 size_t *n_out, ifl_error *err) {
    static const utf8proc_option_t options[] = {
        [IFL_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [IFL_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [IFL_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [IFL_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    *out = NULL;
    *n_out = 0;
    size_t i = 0;
    while (i < n && (unsigned char)bytes[i] < 0x80)
        i++;
    if (i == n) return IFL_OK; /* ASCII is in every form */
    utf8proc_uint8_t *text = NULL;
    utf8proc_ssize_t length =
        utf8proc_map((const utf8proc_uint8_t *)bytes, (utf8proc_ssize_t)n, &text, options[form]);
    if (length < 0)
        return ifl_fail(err, length == UTF8PROC_ERROR_NOMEM ? IFL_NOMEM : IFL_FORMAT,
                        "normalising %zu bytes of text: %s", n, utf8proc_errmsg(length));
    *out = (char *)text;
    *n_out = (size_t)length;
    return IFL_OK;
}

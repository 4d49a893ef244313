#include "common/unicode.h"

#include "common/memory.h"

#include <stdlib.h>
#include <string.h>
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

/* The normalization of the `tokenizers` library knows Unicode 9.0. Characters that later versions
 * gave a combining class, a decomposition or a composition are left alone, as there: the
 * vocabularies were trained on that. Such a character is a starter that combines with nothing, so
 * the text on either side is normalized by itself. Found by comparing both libraries over all code
 * points. */
static const int32_t UNICODE_YOUNG[][2] = {
    {0x7fd, 0x7fd},     {0x897, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xcf3, 0xcf3},     {0xd3b, 0xd3c},     {0xeba, 0xeba},
    {0xece, 0xece},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
    {0x32ff, 0x32ff},   {0xa7f2, 0xa7f4},   {0xa82c, 0xa82c},   {0xab69, 0xab69},
    {0x105c0, 0x105f3}, {0x10781, 0x10785}, {0x10787, 0x107b0}, {0x107b2, 0x107ba},
    {0x10d24, 0x10d27}, {0x10d69, 0x10d6d}, {0x10eab, 0x10eac}, {0x10efc, 0x10eff},
    {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x11241, 0x11241},
    {0x1133b, 0x1133b}, {0x11380, 0x113e2}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193d, 0x1193e},
    {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47},
    {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97},
    {0x11f00, 0x11f01}, {0x11f03, 0x11f03}, {0x11f34, 0x11f3a}, {0x11f3e, 0x11f42},
    {0x11f5a, 0x11f5a}, {0x13440, 0x13440}, {0x13447, 0x13455}, {0x16100, 0x16139},
    {0x16d40, 0x16d79}, {0x16ff0, 0x16ff1}, {0x1ccd6, 0x1ccf9}, {0x1e030, 0x1e06d},
    {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
    {0x1e4ec, 0x1e4ef}, {0x1e5ee, 0x1e5ef}, {0x1f16c, 0x1f16c}, {0x1fbf0, 0x1fbf9}};

static bool unicode_is_young(int32_t cp) {
    size_t low = 0, high = sizeof UNICODE_YOUNG / sizeof *UNICODE_YOUNG;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (cp > UNICODE_YOUNG[mid][1]) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low < sizeof UNICODE_YOUNG / sizeof *UNICODE_YOUNG && cp >= UNICODE_YOUNG[low][0];
}

typedef struct normalized_text {
    char *bytes;
    size_t n, cap;
} normalized_text;

static ifl_status normalized_append(normalized_text *text, const char *bytes, size_t n,
                                    ifl_error *err) {
    if (n == 0) return IFL_OK;
    IFL_TRY(ifl_grow((void **)&text->bytes, &text->cap, text->n + n, 1, err));
    memcpy(text->bytes + text->n, bytes, n);
    text->n += n;
    return IFL_OK;
}

static ifl_status normalize_segment(ifl_unicode_form form, const char *bytes, size_t n,
                                    normalized_text *out, ifl_error *err) {
    static const utf8proc_option_t options[] = {
        [IFL_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [IFL_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [IFL_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [IFL_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    if (n == 0) return IFL_OK;
    utf8proc_uint8_t *text = NULL;
    utf8proc_ssize_t length =
        utf8proc_map((const utf8proc_uint8_t *)bytes, (utf8proc_ssize_t)n, &text, options[form]);
    if (length < 0)
        return ifl_fail(err, length == UTF8PROC_ERROR_NOMEM ? IFL_NOMEM : IFL_FORMAT,
                        "normalising %zu bytes of text: %s", n, utf8proc_errmsg(length));
    ifl_status st = normalized_append(out, (const char *)text, (size_t)length, err);
    free(text);
    return st;
}

ifl_status ifl_unicode_normalize(ifl_unicode_form form, const char *bytes, size_t n, char **out,
                                 size_t *n_out, ifl_error *err) {
    normalized_text text = {0};
    size_t done = 0, i = 0;
    ifl_status st;
    *out = NULL;
    *n_out = 0;
    while (i < n && (unsigned char)bytes[i] < 0x80)
        i++;
    if (i == n) return IFL_OK; /* ASCII is in every form */
    while (i < n) {
        int32_t cp;
        size_t length = ifl_utf8_decode(bytes + i, n - i, &cp, NULL);
        if (cp >= UNICODE_YOUNG[0][0] && unicode_is_young(cp)) {
            IFL_TRY_GOTO(st, normalize_segment(form, bytes + done, i - done, &text, err), failed);
            IFL_TRY_GOTO(st, normalized_append(&text, bytes + i, length, err), failed);
            done = i + length;
        }
        i += length;
    }
    IFL_TRY_GOTO(st, normalize_segment(form, bytes + done, n - done, &text, err), failed);
    *out = text.bytes;
    *n_out = text.n;
    return IFL_OK;
failed:
    free(text.bytes);
    return st;
}

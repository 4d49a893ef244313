/* From what models write to ASCII and LaTeX, and to bare words. */
#include <string.h>
#include <utf8proc.h>

#include "rewards/math/tree.h"

#define GROWTH 12 /* bytes out for a byte in, at most: "½" becomes \frac{1}{2} */

typedef struct spelling {
    int32_t code;
    const char *ascii;
} spelling;

/* Sorted by code. */
static const spelling spellings[] = {
    {0xa0, " "},
    {0xa2, " cents"},
    {0xa3, "\\pounds "},
    {0xad, ""},
    {0xb0, "^\\circ "},
    {0xb1, "\\pm "},
    {0xb2, "^{2}"},
    {0xb3, "^{3}"},
    {0xb7, "\\cdot "},
    {0xb9, "^{1}"},
    {0xbc, "\\frac{1}{4}"},
    {0xbd, "\\frac{1}{2}"},
    {0xbe, "\\frac{3}{4}"},
    {0xd7, "\\times "},
    {0xf7, "\\div "},
    {0x391, "A"},
    {0x394, "\\Delta "},
    {0x398, "\\Theta "},
    {0x3a3, "\\Sigma "},
    {0x3a6, "\\Phi "},
    {0x3a9, "\\Omega "},
    {0x3b1, "\\alpha "},
    {0x3b2, "\\beta "},
    {0x3b3, "\\gamma "},
    {0x3b4, "\\delta "},
    {0x3b5, "\\epsilon "},
    {0x3b8, "\\theta "},
    {0x3bb, "\\lambda "},
    {0x3bc, "\\mu "},
    {0x3c0, "\\pi "},
    {0x3c1, "\\rho "},
    {0x3c3, "\\sigma "},
    {0x3c4, "\\tau "},
    {0x3c6, "\\phi "},
    {0x3c9, "\\omega "},
    {0x200b, ""},
    {0x200c, ""},
    {0x200d, ""},
    {0x200e, ""},
    {0x2010, "-"},
    {0x2011, "-"},
    {0x2012, "-"},
    {0x2013, "-"},
    {0x2014, "-"},
    {0x2018, "'"},
    {0x2019, "'"},
    {0x201c, "\""},
    {0x201d, "\""},
    {0x2022, "\\cdot "},
    {0x2026, "\\ldots "},
    {0x2032, "'"},
    {0x2044, "/"},
    {0x2060, ""},
    {0x2062, "*"},
    {0x20ac, "\\euro "},
    {0x2102, "\\mathbb{C}"},
    {0x2115, "\\mathbb{N}"},
    {0x211a, "\\mathbb{Q}"},
    {0x211d, "\\mathbb{R}"},
    {0x2124, "\\mathbb{Z}"},
    {0x2153, "\\frac{1}{3}"},
    {0x2154, "\\frac{2}{3}"},
    {0x2155, "\\frac{1}{5}"},
    {0x215b, "\\frac{1}{8}"},
    {0x2205, "\\emptyset "},
    {0x2208, "\\in "},
    {0x2212, "-"},
    {0x2213, "\\mp "},
    {0x2215, "/"},
    {0x2216, "\\setminus "},
    {0x2217, "*"},
    {0x2219, "\\cdot "},
    {0x221a, "\\sqrt "},
    {0x221b, "\\cbrt "},
    {0x221e, "\\infty "},
    {0x2220, "\\angle "},
    {0x2229, "\\cap "},
    {0x222a, "\\cup "},
    {0x2236, ":"},
    {0x2248, "\\approx "},
    {0x2260, "\\ne "},
    {0x2264, "\\le "},
    {0x2265, "\\ge "},
    {0x22c5, "\\cdot "},
    {0x27e8, "\\langle "},
    {0x27e9, "\\rangle "},
    {0x2a7d, "\\le "},
    {0x2a7e, "\\ge "},
    {0xfeff, ""},
};

static const char *spelling_find(int32_t code) {
    size_t low = 0, high = sizeof spellings / sizeof *spellings;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (spellings[middle].code == code) return spellings[middle].ascii;
        if (spellings[middle].code < code)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* Decimal digits of the scripts in use: each block's zero. */
static int foreign_digit(int32_t code) {
    static const int32_t zeros[] = {0x660, 0x6f0, 0x966, 0x9e6, 0xe50};
    for (size_t i = 0; i < sizeof zeros / sizeof *zeros; i++)
        if (code >= zeros[i] && code <= zeros[i] + 9) return (int)(code - zeros[i]);
    return -1;
}

/* Writes the ASCII form of one character; 0 when it has none. */
static size_t character_ascii(int32_t code, char *out) {
    const char *known = spelling_find(code);
    if (known) {
        memcpy(out, known, strlen(known));
        return strlen(known);
    }
    int digit = foreign_digit(code);
    if (digit >= 0) {
        *out = (char)('0' + digit);
        return 1;
    }
    static const char raised[] = "0xxx456789+-=()n", lowered[] = "0123456789+-=()";
    if (code >= 0x2070 && code <= 0x207f && raised[code - 0x2070] != 'x') {
        memcpy(out, "^{?}", 4);
        out[2] = raised[code - 0x2070];
        return 4;
    }
    if (code >= 0x2080 && code <= 0x208e) {
        memcpy(out, "_{?}", 4);
        out[2] = lowered[code - 0x2080];
        return 4;
    }
    utf8proc_int32_t parts[8];
    int boundary = 0;
    utf8proc_ssize_t n =
        utf8proc_decompose_char(code, parts, 8, UTF8PROC_COMPAT | UTF8PROC_DECOMPOSE, &boundary);
    if (n == 1 && parts[0] < 0x80 && parts[0] >= 0x20) { /* full width, mathematical bold */
        *out = (char)parts[0];
        return 1;
    }
    if (n == 1 && parts[0] >= 0x370 && parts[0] < 0x400 && (known = spelling_find(parts[0]))) {
        memcpy(out, known, strlen(known));
        return strlen(known);
    }
    return 0;
}

/* 2¹⁰ came out as 2^{1}^{0}: joins what stands in neighbouring braces. */
static size_t joined(char *text, size_t n) {
    size_t out = 0;
    char group = 0; /* '^' or '_' when such a group has just ended */
    for (size_t i = 0; i < n;) {
        bool is_group = i + 3 < n && (text[i] == '^' || text[i] == '_') && text[i + 1] == '{' &&
                        text[i + 3] == '}';
        if (is_group && group == text[i]) {
            text[out - 1] = text[i + 2];
            text[out++] = '}';
            i += 4;
        } else if (is_group) {
            group = text[i];
            memmove(text + out, text + i, 4);
            out += 4;
            i += 4;
        } else {
            group = 0;
            text[out++] = text[i++];
        }
    }
    return out;
}

static bool starts(ifl_slice s, const char *word) {
    size_t n = strlen(word);
    return s.n >= n && memcmp(s.text, word, n) == 0;
}
static bool ends(ifl_slice s, const char *word) {
    size_t n = strlen(word);
    return s.n >= n && memcmp(s.text + s.n - n, word, n) == 0;
}

/* Where the brace that opens at s.text[0] closes; 0 when it doesn't. */
static size_t brace_end(ifl_slice s) {
    size_t depth = 0;
    for (size_t i = 0; i < s.n; i++) {
        if (s.text[i] == '\\') {
            i++;
        } else if (s.text[i] == '{') {
            depth++;
        } else if (s.text[i] == '}' && --depth == 0) {
            return i;
        }
    }
    return 0;
}

/* What surrounds a whole answer and says nothing: $...$, \boxed{...}, **...**, a final period. */
static ifl_slice unwrapped(ifl_math_work *work, ifl_slice s) {
    static const char *const pairs[][2] = {{"$", "$"},   {"\\(", "\\)"}, {"\\[", "\\]"},
                                           {"**", "**"}, {"`", "`"},     {"\"", "\""}};
    static const char *const boxes[] = {"\\boxed{",  "\\fbox{", "\\displaystyle{", "\\mathbf{",
                                        "\\textbf{", "\\bold{", "\\bm{",           "\\boldsymbol{"};
    for (bool again = true; again;) {
        again = false;
        s = ifl_slice_trim(s);
        if (!ifl_math_step(work, 1 + (int64_t)s.n / 64)) return s;
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
            size_t a = strlen(pairs[i][0]), b = strlen(pairs[i][1]);
            if (s.n <= a + b || !starts(s, pairs[i][0]) || !ends(s, pairs[i][1])) continue;
            if (s.text[s.n - b - 1] == '\\' && pairs[i][1][0] == '$') continue;
            s = (ifl_slice){s.text + a, s.n - a - b};
            again = true;
        }
        for (size_t i = 0; i < sizeof boxes / sizeof *boxes; i++) {
            size_t a = strlen(boxes[i]) - 1;
            if (!starts(s, boxes[i]) || s.n == a + 1 ||
                brace_end((ifl_slice){s.text + a, s.n - a}) != s.n - a - 1)
                continue;
            s = (ifl_slice){s.text + a + 1, s.n - a - 2};
            again = true;
        }
        if (s.n > 1 && ends(s, "\\") && !ends(s, "\\\\")) { /* a line's end that was cut */
            s.n--;
            again = true;
        }
        if (s.n > 1 && (ends(s, ".") || ends(s, ",") || ends(s, ";")) && s.text[s.n - 2] != '\\' &&
            !ends(s, "..")) {
            s.n--;
            again = true;
        }
    }
    return s;
}

ifl_slice ifl_math_clean(ifl_math_work *work, ifl_slice s) {
    s = ifl_slice_trim(s);
    if (!ifl_math_step(work, 1 + (int64_t)s.n / 16)) return (ifl_slice){"", 0};
    char *out = ifl_math_alloc(work, s.n * GROWTH + 1);
    if (!out) return (ifl_slice){"", 0};
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        utf8proc_int32_t code = 0;
        utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)s.text + i,
                                                 (utf8proc_ssize_t)(s.n - i), &code);
        if (used <= 0 || code < 0x80) {
            char c = s.text[i++];
            out[n++] = (unsigned char)c < ' ' ? ' ' : c;
            continue;
        }
        size_t m = character_ascii(code, out + n);
        if (m == 0 && !spelling_find(code)) {
            memcpy(out + n, s.text + i, (size_t)used);
            m = (size_t)used;
        }
        n += m;
        i += (size_t)used;
    }
    return unwrapped(work, (ifl_slice){out, joined(out, n)});
}

/* Commands that only say how their argument looks. */
static size_t markup_length(ifl_slice s) {
    static const char *const words[] = {"\\text",       "\\textbf", "\\textit", "\\textrm",
                                        "\\mathrm",     "\\mathbf", "\\mathit", "\\mathsf",
                                        "\\mathtt",     "\\textsf", "\\mbox",   "\\operatorname",
                                        "\\textnormal", "\\left",   "\\right",  "\\displaystyle"};
    if (s.n < 2 || *s.text != '\\') return 0;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (s.text[1] != words[i][1]) continue;
        size_t n = strlen(words[i]);
        if (starts(s, words[i]) &&
            (s.n == n || !((s.text[n] | 32) >= 'a' && (s.text[n] | 32) <= 'z')))
            return n;
    }
    return 0;
}

ifl_slice ifl_math_words(ifl_math_work *work, ifl_slice s) {
    char *out = ifl_math_alloc(work, s.n + 1);
    if (!out || !ifl_math_step(work, 1 + (int64_t)s.n / 8)) return (ifl_slice){"", 0};
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        size_t m = markup_length((ifl_slice){s.text + i, s.n - i});
        char c = s.text[i];
        if (m > 0) {
            i += m;
            continue;
        }
        i++;
        if (c == '\\' && i < s.n && strchr(" ,;:!~$%{}", s.text[i])) c = s.text[i++];
        if (strchr(" ~\"'`$!*\\{},;", c)) c = ' ';
        if (c >= 'A' && c <= 'Z') c = (char)(c + 32);
        if (c != ' ' || (n > 0 && out[n - 1] != ' ')) out[n++] = c;
    }
    while (n > 0 && (out[n - 1] == ' ' || out[n - 1] == '.'))
        n--;
    return (ifl_slice){out, n};
}

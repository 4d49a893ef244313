#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rewards/code/code.h"

#define NUMBER_TEXT_MAX 128

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The next run of bytes that are no white space; n 0 at the end. */
static ifl_slice token_next(ifl_slice *text) {
    while (text->n > 0 && is_space(*text->text)) {
        text->text++;
        text->n--;
    }
    ifl_slice token = {text->text, 0};
    while (text->n > 0 && !is_space(*text->text)) {
        text->text++;
        text->n--;
        token.n++;
    }
    return token;
}

/* A decimal number as a whole, finite. */
static bool token_number(ifl_slice token, double *v) {
    char text[NUMBER_TEXT_MAX], *end;
    if (token.n == 0 || token.n >= sizeof text) return false;
    memcpy(text, token.text, token.n);
    text[token.n] = '\0';
    if (strspn(text, "0123456789+-.eE") != token.n) return false;
    *v = strtod(text, &end);
    return *end == '\0' && isfinite(*v);
}

static bool token_equal(ifl_slice a, ifl_slice b, ifl_compare how, double tolerance) {
    double x, y;
    if (a.n == b.n && (a.n == 0 || memcmp(a.text, b.text, a.n) == 0)) return true;
    if (how != IFL_COMPARE_FLOAT || !token_number(a, &x) || !token_number(b, &y)) return false;
    double scale = fabs(y) > 1.0 ? fabs(y) : 1.0;
    return fabs(x - y) <= tolerance * scale;
}

/* Blanks at the ends of lines and empty lines at the end of the text don't count. */
static bool lines_equal(ifl_slice got, ifl_slice want) {
    for (;;) {
        ifl_slice *both[2] = {&got, &want}, line[2];
        for (int i = 0; i < 2; i++) {
            const char *end = both[i]->n ? memchr(both[i]->text, '\n', both[i]->n) : NULL;
            size_t n = end ? (size_t)(end - both[i]->text) : both[i]->n;
            line[i] = (ifl_slice){both[i]->text, n};
            while (line[i].n > 0 && is_space(line[i].text[line[i].n - 1]))
                line[i].n--;
            size_t taken = end ? n + 1 : n;
            if (taken) both[i]->text += taken;
            both[i]->n -= taken;
        }
        if (line[0].n != line[1].n ||
            (line[0].n && memcmp(line[0].text, line[1].text, line[0].n) != 0))
            return false;
        if (got.n == 0 && want.n == 0) return true;
    }
}

bool code_output_equal(ifl_slice got, ifl_slice want, ifl_compare how, double tolerance) {
    if (how == IFL_COMPARE_EXACT) return lines_equal(got, want);
    for (;;) {
        ifl_slice a = token_next(&got), b = token_next(&want);
        if (!token_equal(a, b, how, tolerance)) return false;
        if (a.n == 0) return true;
    }
}

/* Patterns of tokenizer.json are written for Oniguruma (Ruby syntax). They are rewritten for PCRE2
 * where the two differ, refused where the rewriting isn't exact, and matched under a limit. */
#include "common/tokenizer_impl.h"

#include "common/unicode_added.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <ctype.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* Steps a match may take at one place. Real patterns go over a run of characters a few times at most,
 * hence the part that grows with the text; one that needs more backtracks exponentially or
 * polynomially and would stand still for minutes. */
#define PATTERN_STEPS_BASE 2000000
#define PATTERN_STEPS_PER_BYTE 4
/* libpcre2 counts anew at each place, so that a pattern which stays just below that at every one of a
 * long text would take hours. A match that takes few steps costs nothing; what takes more is tried
 * place by place and counted, rounded up, against an allowance for the whole text. */
#define PATTERN_STEPS_FEW 512
#define PATTERN_STEPS_GROWTH 8
#define PATTERN_WORK_BASE 32000000
#define PATTERN_WORK_PER_BYTE 256
#define PATTERN_HEAP_KIB_MAX (64 * 1024)
#define PATTERN_JIT_STACK_MAX ((size_t)16 << 20)

/* White_Space: PCRE2's \s would also take U+180E. */
#define SPACE_RANGES                                                                               \
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"   \
    "\\x{3000}"

const char PATTERN_GPT2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char PATTERN_LLAMA3[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,"
                              "3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
                              "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char PATTERN_QWEN2[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                             "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
                             "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

struct text_pattern {
    char *source;
    size_t n_source;
    bool literal;
    pcre2_code *code; /* NULL for a literal */
};

typedef struct translation {
    const char *where, *source;
    size_t n, i;
    ifl_token_text out;
    ifl_error *err;
} translation;

static ifl_status translation_refuse(translation *t, const char *what) {
    return ifl_fail(t->err, IFL_UNSUPPORTED,
                    "%s: pattern has %s at byte %zu, which is not supported: %.*s", t->where, what,
                    t->i, t->n > 200 ? 200 : (int)t->n, t->source);
}

static ifl_status translation_put(translation *t, const char *text) {
    return token_text_append(&t->out, text, strlen(text), t->err);
}

static const char *added_ranges(const char *category, size_t n) {
    for (size_t i = 0; i < sizeof UNICODE_ADDED / sizeof *UNICODE_ADDED; i++)
        if (strlen(UNICODE_ADDED[i].category) == n &&
            memcmp(UNICODE_ADDED[i].category, category, n) == 0)
            return UNICODE_ADDED[i].ranges;
    return NULL;
}

/* \p{X}, \P{X}: X's own characters and those that a newer Unicode put there. At the 'p'. */
static ifl_status translate_property(translation *t, bool in_class) {
    bool negated = t->source[t->i] == 'P';
    size_t open = t->i + 1, close = open;
    if (open >= t->n || t->source[open] != '{') return translation_refuse(t, "\\p without braces");
    while (close < t->n && t->source[close] != '}')
        close++;
    if (close == t->n || close == open + 1 || t->source[open + 1] == '^')
        return translation_refuse(t, "a \\p{...} of this form");
    const char *name = t->source + open + 1;
    size_t n_name = close - open - 1;
    const char *added = added_ranges(name, n_name);
    if (added && negated && in_class) return translation_refuse(t, "\\P{...} inside a class");
    if (!in_class) IFL_TRY(translation_put(t, added && negated ? "[^" : "["));
    IFL_TRY(translation_put(t, negated && !added ? "\\P{" : "\\p{"));
    IFL_TRY(token_text_append(&t->out, name, n_name, t->err));
    IFL_TRY(translation_put(t, "}"));
    if (added) IFL_TRY(translation_put(t, added));
    if (!in_class) IFL_TRY(translation_put(t, "]"));
    t->i = close + 1;
    return IFL_OK;
}

/* After the backslash. */
static ifl_status translate_escape(translation *t, bool in_class) {
    if (t->i >= t->n) return translation_refuse(t, "a backslash at its end");
    char c = t->source[t->i];
    if (c == 'p' || c == 'P') return translate_property(t, in_class);
    if (c == 's' || (c == 'S' && !in_class)) {
        if (!in_class) IFL_TRY(translation_put(t, c == 's' ? "[" : "[^"));
        IFL_TRY(translation_put(t, SPACE_RANGES));
        if (!in_class) IFL_TRY(translation_put(t, "]"));
        t->i++;
        return IFL_OK;
    }
    if (c == 'd' || (c == 'D' && !in_class)) {
        if (!in_class) IFL_TRY(translation_put(t, c == 'd' ? "[" : "[^"));
        IFL_TRY(translation_put(t, "\\p{Nd}"));
        IFL_TRY(translation_put(t, added_ranges("Nd", 2)));
        if (!in_class) IFL_TRY(translation_put(t, "]"));
        t->i++;
        return IFL_OK;
    }
    if (c == 'u') { /* \u0041 */
        if (t->n - t->i < 5) return translation_refuse(t, "a short \\u");
        for (size_t i = t->i + 1; i < t->i + 5; i++) /* what is no digit would close the brace */
            if (!isxdigit((unsigned char)t->source[i]))
                return translation_refuse(t, "a \\u without four digits");
        IFL_TRY(translation_put(t, "\\x{"));
        IFL_TRY(token_text_append(&t->out, t->source + t->i + 1, 4, t->err));
        t->i += 5;
        return translation_put(t, "}");
    }
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (letter && !strchr("rntfaexAzZ", c)) return translation_refuse(t, "this escape");
    if (c >= '0' && c <= '9') return translation_refuse(t, "an octal escape or a back-reference");
    IFL_TRY(translation_put(t, "\\"));
    t->i++;
    return token_text_append(&t->out, &c, 1, t->err);
}

static ifl_status translate_class(translation *t) {
    IFL_TRY(translation_put(t, "["));
    t->i++;
    if (t->i < t->n && t->source[t->i] == '^') {
        IFL_TRY(translation_put(t, "^"));
        t->i++;
    }
    for (bool at_start = true;; at_start = false) {
        if (t->i >= t->n) return translation_refuse(t, "an unclosed class");
        char c = t->source[t->i];
        if (c == ']' && !at_start) {
            t->i++;
            return translation_put(t, "]");
        }
        if (c == ']' || c == '[') return translation_refuse(t, "a bare bracket inside a class");
        if (c == '&' && t->i + 1 < t->n && t->source[t->i + 1] == '&')
            return translation_refuse(t, "a class intersection");
        t->i++;
        if (c == '\\') {
            IFL_TRY(translate_escape(t, true));
        } else {
            IFL_TRY(token_text_append(&t->out, &c, 1, t->err));
        }
    }
}

/* (?i:, (?!, (?= and the like pass; options that mean something else in Ruby don't. At the '('. */
static ifl_status translate_group(translation *t) {
    IFL_TRY(translation_put(t, "("));
    t->i++;
    if (t->i < t->n && t->source[t->i] == '*') return translation_refuse(t, "a '(*'");
    if (t->i + 1 >= t->n || t->source[t->i] != '?') return IFL_OK;
    size_t i = t->i + 1;
    if (strchr(":!=><", t->source[i])) return IFL_OK;
    for (; i < t->n && t->source[i] != ':' && t->source[i] != ')'; i++)
        if (!strchr("ix-", t->source[i]))
            return translation_refuse(t, "this kind of group or option");
    return IFL_OK;
}

static ifl_status translate(translation *t) {
    while (t->i < t->n) {
        char c = t->source[t->i];
        if (c == '\\') {
            t->i++;
            IFL_TRY(translate_escape(t, false));
        } else if (c == '[') {
            IFL_TRY(translate_class(t));
        } else if (c == '(') {
            IFL_TRY(translate_group(t));
        } else {
            if (c == '}' && t->i + 1 < t->n && t->source[t->i + 1] == '+')
                return translation_refuse(t, "'+' after an interval");
            IFL_TRY(token_text_append(&t->out, &c, 1, t->err));
            t->i++;
        }
    }
    return IFL_OK;
}

static ifl_status pattern_build(text_pattern *p, const char *where, ifl_error *err) {
    translation t = {.where = where, .source = p->source, .n = p->n_source, .err = err};
    pcre2_compile_context *context = NULL;
    ifl_status st;
    IFL_TRY_GOTO(st, translate(&t), done);
    st = IFL_NOMEM;
    context = pcre2_compile_context_create(NULL);
    if (!context) {
        ifl_fail(err, st, "out of memory: pattern");
        goto done;
    }
    st = IFL_OK;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE at;
    p->code = pcre2_compile((PCRE2_SPTR)t.out.bytes, t.out.n,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &code, &at, context);
    if (!p->code) {
        char message[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
        st = ifl_fail(err, IFL_FORMAT, "%s: pattern doesn't compile: %s: %.*s", where, message,
                      p->n_source > 200 ? 200 : (int)p->n_source, p->source);
        goto done;
    }
    pcre2_jit_compile(p->code,
                      PCRE2_JIT_COMPLETE); /* without JIT the interpreter does the same, slower */
done:
    pcre2_compile_context_free(context);
    ifl_token_text_free(&t.out);
    return st;
}

ifl_status text_pattern_compile(text_pattern **out, const char *source, size_t n, bool literal,
                                const char *where, ifl_error *err) {
    *out = NULL;
    if (n == 0 || n > IFL_PATTERN_BYTES_MAX)
        return ifl_fail(err, n ? IFL_LIMIT : IFL_FORMAT,
                        "%s: a pattern of %zu bytes, wanted 1 to %d", where, n,
                        IFL_PATTERN_BYTES_MAX);
    text_pattern *p = calloc(1, sizeof *p);
    if (p) p->source = malloc(n);
    if (!p || !p->source) {
        text_pattern_free(p);
        return ifl_fail(err, IFL_NOMEM, "out of memory: pattern of %zu bytes", n);
    }
    memcpy(p->source, source, n);
    p->n_source = n;
    p->literal = literal;
    if (!literal) {
        ifl_status st = pattern_build(p, where, err);
        if (st != IFL_OK) {
            text_pattern_free(p);
            return st;
        }
    }
    *out = p;
    return IFL_OK;
}

static ifl_status scratch_ready(pattern_scratch *scratch, ifl_error *err) {
    if (scratch->match_data) return IFL_OK;
    pcre2_match_data *data = pcre2_match_data_create(1, NULL); /* only the whole match is wanted */
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    scratch->match_data = data;
    scratch->match_context = context;
    if (!data || !context) return ifl_fail(err, IFL_NOMEM, "out of memory: pattern matching");
    pcre2_set_heap_limit(context, PATTERN_HEAP_KIB_MAX);
    scratch->steps_left = PATTERN_WORK_BASE;
    return IFL_OK;
}

/* One try from `start`, of so many steps at each place: libpcre2's result. */
static int pattern_try(const text_pattern *p, pattern_scratch *scratch, const char *text, size_t n,
                       size_t start, int64_t steps, uint32_t options) {
    pcre2_set_match_limit(scratch->match_context, (uint32_t)steps);
    for (;;) {
        /* The text is our own valid UTF-8: checking it again for each match would be quadratic. */
        int rc = pcre2_match(p->code, (PCRE2_SPTR)text, n, start,
                             PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, scratch->match_data,
                             scratch->match_context);
        if (rc != PCRE2_ERROR_JIT_STACKLIMIT || scratch->jit_stack) return rc;
        /* The machine stack's 32 KiB don't do; most texts never need more. */
        scratch->jit_stack = pcre2_jit_stack_create(32 * 1024, PATTERN_JIT_STACK_MAX, NULL);
        if (!scratch->jit_stack) return PCRE2_ERROR_NOMEMORY;
        pcre2_jit_stack_assign(scratch->match_context, NULL, scratch->jit_stack);
    }
}

/* The same place after place, each with more steps while they don't do and the text's allowance
 * lasts. PCRE2_ERROR_MATCHLIMIT with steps_left below 0: it didn't last. */
static int pattern_try_counted(const text_pattern *p, pattern_scratch *scratch, const char *text,
                               size_t n, size_t start) {
    int64_t most = PATTERN_STEPS_BASE + PATTERN_STEPS_PER_BYTE * (int64_t)n;
    for (size_t at = start; at < n; at++) {
        if (((uint8_t)text[at] & 0xc0) == 0x80) continue; /* inside a character */
        int rc = PCRE2_ERROR_MATCHLIMIT;
        for (int64_t steps = PATTERN_STEPS_FEW; rc == PCRE2_ERROR_MATCHLIMIT;) {
            if (steps > PATTERN_STEPS_FEW && (scratch->steps_left -= steps) < 0) return rc;
            rc = pattern_try(p, scratch, text, n, at, steps, PCRE2_ANCHORED);
            if (steps == most) break;
            steps = steps * PATTERN_STEPS_GROWTH < most ? steps * PATTERN_STEPS_GROWTH : most;
        }
        if (rc != PCRE2_ERROR_NOMATCH) return rc;
    }
    return PCRE2_ERROR_NOMATCH;
}

static ifl_status pattern_match(const text_pattern *p, pattern_scratch *scratch, const char *text,
                                size_t n, size_t start, bool *found, size_t *match_start,
                                size_t *match_end, ifl_error *err) {
    if (start == 0) scratch->steps_left += PATTERN_WORK_PER_BYTE * (int64_t)n;
    int rc = pattern_try(p, scratch, text, n, start, PATTERN_STEPS_FEW, 0);
    if (rc == PCRE2_ERROR_MATCHLIMIT) rc = pattern_try_counted(p, scratch, text, n, start);
    *found = rc >= 0;
    if (rc >= 0) {
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(scratch->match_data);
        *match_start = ends[0];
        *match_end = ends[1];
        return IFL_OK;
    }
    if (rc == PCRE2_ERROR_NOMATCH) return IFL_OK;
    int shown = p->n_source > 120 ? 120 : (int)p->n_source;
    if (rc == PCRE2_ERROR_MATCHLIMIT)
        return ifl_fail(err, IFL_LIMIT,
                        "splitting a text of %zu bytes at byte %zu: the pattern backtracks too much, "
                        "limit %lld steps %s: %.*s",
                        n, start,
                        scratch->steps_left < 0
                            ? PATTERN_WORK_BASE + PATTERN_WORK_PER_BYTE * (long long)n
                            : PATTERN_STEPS_BASE + PATTERN_STEPS_PER_BYTE * (long long)n,
                        scratch->steps_left < 0 ? "for all of the text" : "at one place", shown,
                        p->source);
    char message[160];
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
    bool limit = rc == PCRE2_ERROR_HEAPLIMIT || rc == PCRE2_ERROR_DEPTHLIMIT ||
                 rc == PCRE2_ERROR_JIT_STACKLIMIT;
    return ifl_fail(err,
                    limit                        ? IFL_LIMIT
                    : rc == PCRE2_ERROR_NOMEMORY ? IFL_NOMEM
                                                 : IFL_FORMAT,
                    "splitting a text of %zu bytes at byte %zu: %s (pattern %.*s)", n, start,
                    message, shown, p->source);
}

ifl_status text_pattern_next(const text_pattern *p, pattern_scratch *scratch, const char *text,
                             size_t n, size_t start, bool *found, size_t *match_start,
                             size_t *match_end, ifl_error *err) {
    *found = false;
    if (start >= n) return IFL_OK;
    if (p->literal) {
        /* Not memmem: a sanitizer's checks the whole rest of the text at each call. */
        const char *at = text + start, *end = text + n;
        while ((at = memchr(at, p->source[0], (size_t)(end - at)))) {
            if ((size_t)(end - at) < p->n_source) return IFL_OK;
            if (memcmp(at, p->source, p->n_source) == 0) break;
            at++;
        }
        if (!at) return IFL_OK;
        *found = true;
        *match_start = (size_t)(at - text);
        *match_end = *match_start + p->n_source;
        return IFL_OK;
    }
    IFL_TRY(scratch_ready(scratch, err));
    return pattern_match(p, scratch, text, n, start, found, match_start, match_end, err);
}

const char *text_pattern_source(const text_pattern *p, size_t *n, bool *literal) {
    *n = p->n_source;
    *literal = p->literal;
    return p->source;
}

void text_pattern_free(text_pattern *p) {
    if (!p) return;
    pcre2_code_free(p->code);
    free(p->source);
    free(p);
}

void pattern_scratch_free(pattern_scratch *scratch) {
    pcre2_match_data_free(scratch->match_data);
    pcre2_match_context_free(scratch->match_context);
    pcre2_jit_stack_free(scratch->jit_stack);
}

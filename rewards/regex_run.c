#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "rewards/text.h"

#define MATCH_STEPS_MAX 4000000u
#define MATCH_HEAP_KIB_MAX 65536u

struct ifl_regex {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *limits;
    const char *what;
};

ifl_status ifl_regex_compile(ifl_regex **out, const char *pattern, const char *what,
                             ifl_error *err) {
    *out = NULL;
    size_t n = strlen(pattern);
    if (n == 0 || n > IFL_REGEX_BYTES_MAX)
        return ifl_fail(err, IFL_FORMAT, "%s: wanted a pattern of 1 .. %d bytes, got %s", what,
                        IFL_REGEX_BYTES_MAX, n ? "a longer one" : "an empty one");
    ifl_regex *r = calloc(1, sizeof *r);
    int code = 0;
    PCRE2_SIZE where = 0;
    /* Completions are bytes: invalid UTF-8 matches nothing but is no error. */
    if (r)
        r->code = pcre2_compile((PCRE2_SPTR)pattern, n,
                                PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C,
                                &code, &where, NULL);
    if (r && !r->code) {
        char text[128];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        ifl_regex_free(r);
        return ifl_fail(err, IFL_FORMAT, "%s: %s at byte %zu of '%.60s'", what, text, where,
                        pattern);
    }
    if (r) {
        r->what = what;
        r->data = pcre2_match_data_create_from_pattern(r->code, NULL);
        r->limits = pcre2_match_context_create(NULL);
    }
    if (!r || !r->data || !r->limits) {
        ifl_regex_free(r);
        return ifl_fail(err, IFL_NOMEM, "%s: no memory for a match", what);
    }
    pcre2_set_match_limit(r->limits, MATCH_STEPS_MAX);
    pcre2_set_depth_limit(r->limits, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(r->limits, MATCH_HEAP_KIB_MAX);
    *out = r;
    return IFL_OK;
}

void ifl_regex_free(ifl_regex *r) {
    if (!r) return;
    pcre2_match_context_free(r->limits);
    pcre2_match_data_free(r->data);
    pcre2_code_free(r->code);
    free(r);
}

int ifl_regex_group(const ifl_regex *r, const char *name) {
    uint32_t count = 0;
    pcre2_pattern_info(r->code, PCRE2_INFO_CAPTURECOUNT, &count);
    int group = 0;
    if (ifl_char_is_digit(*name)) {
        for (; ifl_char_is_digit(*name) && group <= (int)count; name++)
            group = group * 10 + (*name - '0');
        return !*name && group <= (int)count ? group : -1;
    }
    group = pcre2_substring_number_from_name(r->code, (PCRE2_SPTR)name);
    return group > 0 ? group : -1;
}

ifl_regex_found ifl_regex_match(const ifl_regex *r, ifl_slice text, size_t from, bool full,
                                int group, ifl_slice *whole, ifl_slice *captured, ifl_error *err) {
    uint32_t options = full ? PCRE2_ANCHORED | PCRE2_ENDANCHORED : 0;
    int n = pcre2_match(r->code, (PCRE2_SPTR)text.text, text.n, from, options, r->data, r->limits);
    if (n == PCRE2_ERROR_NOMATCH) return IFL_REGEX_NO_MATCH;
    if (n < 0) {
        char why[128];
        pcre2_get_error_message(n, (PCRE2_UCHAR *)why, sizeof why);
        ifl_fail(err, IFL_LIMIT, "%s on %zu bytes: %s", r->what, text.n, why);
        return IFL_REGEX_BEYOND;
    }
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(r->data);
    ifl_slice *const out[2] = {whole, captured};
    for (int i = 0; i < 2; i++) {
        int g = i ? group : 0;
        if (!out[i]) continue;
        *out[i] = (ifl_slice){NULL, 0};
        /* \K may put the start of a match behind its end. */
        if (g < n && at[2 * g] != PCRE2_UNSET && at[2 * g] <= at[2 * g + 1])
            *out[i] = (ifl_slice){text.text + at[2 * g], at[2 * g + 1] - at[2 * g]};
    }
    return IFL_REGEX_MATCH;
}

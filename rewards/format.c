/* format: whether a regular expression (PCRE2) matches somewhere in the completion; anchor it with
 * \A and \z to make it describe the whole. A pattern that backtracks past the limits is undecided,
 * not wrong; what the limits don't catch, the worker's deadline does. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "common/json_util.h"
#include "rewards/checkers.h"

#define MATCH_STEPS_MAX 4000000u
#define MATCH_HEAP_KIB_MAX 65536u

static ifl_status format_match(const char *pattern, const ifl_reward_request *request,
                               ifl_reward *out, ifl_error *err) {
    ifl_status st = IFL_OK;
    pcre2_match_data *data = NULL;
    pcre2_match_context *limits = NULL;
    int code = 0, n = 0;
    PCRE2_SIZE where = 0;
    char text[128];
    /* Completions are bytes: invalid UTF-8 matches nothing but is no error. */
    pcre2_code *regex = pcre2_compile((PCRE2_SPTR)pattern, strlen(pattern),
                                      PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C,
                                      &code, &where, NULL);
    if (!regex) {
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        return ifl_verdict_bad_task(out, err, "meta.regex: %s at byte %zu of '%.60s'", text, where,
                                    pattern);
    }
    data = pcre2_match_data_create_from_pattern(regex, NULL);
    limits = pcre2_match_context_create(NULL);
    if (!data || !limits) {
        st = ifl_fail(err, IFL_NOMEM, "format: no memory for a match");
        goto done;
    }
    pcre2_set_match_limit(limits, MATCH_STEPS_MAX);
    pcre2_set_depth_limit(limits, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(limits, MATCH_HEAP_KIB_MAX);
    n = pcre2_match(regex, (PCRE2_SPTR)request->completion, request->n_completion, 0, 0, data,
                    limits);
    if (n >= 0 || n == PCRE2_ERROR_NOMATCH) {
        st = ifl_verdict(out, n >= 0);
    } else {
        pcre2_get_error_message(n, (PCRE2_UCHAR *)text, sizeof text);
        out->status = IFL_REWARD_UNDECIDED;
        ifl_fail(err, IFL_LIMIT, "meta.regex '%.60s' on %zu bytes: %s", pattern,
                 request->n_completion, text);
    }
done:
    pcre2_match_context_free(limits);
    pcre2_match_data_free(data);
    pcre2_code_free(regex);
    return st;
}

static ifl_status format_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    const char *pattern = NULL;
    ifl_status st;
    if (meta && ifl_json_text(meta, "regex", &pattern, err) != IFL_OK) {
        out->status = IFL_REWARD_BAD_TASK;
        st = IFL_OK;
    } else if (!pattern || strlen(pattern) == 0 || strlen(pattern) > IFL_REGEX_BYTES_MAX) {
        st = ifl_verdict_bad_task(out, err, "meta.regex: wanted a pattern of 1 .. %d bytes, got %s",
                                  IFL_REGEX_BYTES_MAX,
                                  !pattern    ? "none"
                                  : !*pattern ? "an empty one"
                                              : "a longer one");
    } else {
        st = format_match(pattern, request, out, err);
    }
    json_decref(meta);
    return st;
}

const ifl_checker ifl_checker_format = {
    .name = "format",
    .version = "1",
    .help =
        "meta: \"regex\", a PCRE2 pattern that must match somewhere in the completion; no answer",
    .check = format_check,
};

/* regex: a regular expression (PCRE2) over the completion, whole or in part. Without meta "group" a
 * match is right. With it what the group (a number or a name) captured is the answer and must be
 * the task's, after trimming, or with {"number": true} as an exact number. Of several matches the
 * last one counts, with {"which": "first"} the first; with "same" all must have captured the same.
 * A pattern that backtracks past the limits is undecided, not wrong; what the limits don't catch,
 * the worker's deadline does. */
#include <stdio.h>
#include <string.h>

#include "common/json_util.h"
#include "rewards/text.h"

#define SCANNED_BYTES_MAX (1u << 29) /* over all matches: each looks at all that follows */

typedef enum { WHICH_LAST, WHICH_FIRST, WHICH_SAME } which_match;

typedef struct regex_options {
    const char *pattern, *group;
    char group_digits[24];
    bool full, number;
    which_match which;
} regex_options;

static ifl_status options_read(const json_t *meta, regex_options *o, ifl_error *err) {
    const char *mode = "search", *which = "last";
    const json_t *group = meta ? json_object_get(meta, "group") : NULL;
    if (meta) {
        IFL_TRY(ifl_json_text(meta, "regex", &o->pattern, err));
        IFL_TRY(ifl_json_text(meta, "mode", &mode, err));
        IFL_TRY(ifl_json_text(meta, "which", &which, err));
        IFL_TRY(ifl_json_bool(meta, "number", &o->number, err));
    }
    if (!o->pattern) return ifl_fail(err, IFL_FORMAT, "meta.regex: wanted a pattern, got none");
    o->full = strcmp(mode, "full") == 0;
    if (!o->full && strcmp(mode, "search") != 0)
        return ifl_fail(err, IFL_FORMAT, "meta.mode: got '%.40s', wanted full or search", mode);
    o->which = strcmp(which, "first") == 0  ? WHICH_FIRST
               : strcmp(which, "same") == 0 ? WHICH_SAME
                                            : WHICH_LAST;
    if (o->which == WHICH_LAST && strcmp(which, "last") != 0)
        return ifl_fail(err, IFL_FORMAT, "meta.which: got '%.40s', wanted last, first or same",
                        which);
    if (json_is_string(group)) {
        o->group = json_string_value(group);
    } else if (json_is_integer(group) && json_integer_value(group) >= 0) {
        snprintf(o->group_digits, sizeof o->group_digits, "%lld",
                 (long long)json_integer_value(group));
        o->group = o->group_digits;
    } else if (group && !json_is_null(group)) {
        return ifl_fail(err, IFL_FORMAT, "meta.group: wanted a group's number or name");
    }
    return IFL_OK;
}

/* The capture that counts, by o->which. *several: two of them differ. */
static ifl_regex_found find_capture(const ifl_regex *regex, const regex_options *o, int group,
                                    ifl_slice text, ifl_slice *out, bool *several, ifl_error *err) {
    ifl_regex_found found = IFL_REGEX_NO_MATCH;
    ifl_slice whole, captured;
    size_t scanned = 0;
    for (size_t from = 0; from <= text.n;) {
        scanned += text.n - from;
        if (scanned > SCANNED_BYTES_MAX) {
            ifl_fail(err, IFL_LIMIT, "meta.regex matches too often in %zu bytes", text.n);
            return IFL_REGEX_BEYOND;
        }
        ifl_regex_found one =
            ifl_regex_match(regex, text, from, o->full, group, &whole, &captured, err);
        if (one == IFL_REGEX_BEYOND) return one;
        if (one == IFL_REGEX_NO_MATCH) break;
        if (captured.text) {
            captured = ifl_slice_trim(captured);
            if (found == IFL_REGEX_MATCH && !ifl_slice_equal(captured, *out)) *several = true;
            found = IFL_REGEX_MATCH;
            *out = captured;
        }
        if (o->full || (o->which == WHICH_FIRST && found == IFL_REGEX_MATCH) || !whole.text) break;
        size_t end = (size_t)(whole.text - text.text) + whole.n;
        from = end > from ? end : from + 1;
        while (from < text.n && ((unsigned char)text.text[from] & 0xc0) == 0x80)
            from++; /* not into the middle of a character */
    }
    return found;
}

static ifl_status regex_judge(const ifl_regex *regex, const regex_options *o,
                              const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    ifl_slice text = {request->completion, request->n_completion}, captured = {NULL, 0};
    bool several = false;
    ifl_number gold, got;
    ifl_regex_found found;
    int group = 0;
    if (!o->group) {
        found = ifl_regex_match(regex, text, 0, o->full, 0, NULL, NULL, err);
    } else {
        ifl_slice answer = ifl_slice_trim((ifl_slice){request->answer, strlen(request->answer)});
        group = ifl_regex_group(regex, o->group);
        if (group < 0)
            return ifl_verdict_bad_task(out, err, "meta.group: meta.regex has no group '%.40s'",
                                        o->group);
        if (answer.n == 0)
            return ifl_verdict_bad_task(out, err,
                                        "the task's answer is empty, but there is a "
                                        "meta.group to compare with it");
        if (o->number && !ifl_number_parse(answer.text, answer.n, &gold))
            return ifl_verdict_bad_task(out, err, "the task's answer '%.60s' is not one number",
                                        request->answer);
        found = find_capture(regex, o, group, text, &captured, &several, err);
        if (found == IFL_REGEX_MATCH && !(several && o->which == WHICH_SAME)) {
            if (!o->number) return ifl_verdict(out, ifl_slice_equal(captured, answer));
            return ifl_verdict(out, ifl_number_parse(captured.text, captured.n, &got) &&
                                        ifl_number_equal(&gold, &got));
        }
    }
    if (found == IFL_REGEX_BEYOND) {
        out->status = IFL_REWARD_UNDECIDED;
        return IFL_OK;
    }
    if (found == IFL_REGEX_MATCH && !o->group) return ifl_verdict(out, true);
    return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER,
                           found == IFL_REGEX_MATCH ? "several answers that differ"
                                                    : "meta.regex matches nothing");
}

static ifl_status regex_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    regex_options options = {0};
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    ifl_regex *regex = NULL;
    ifl_status st = options_read(meta, &options, err);
    if (st == IFL_OK) st = ifl_regex_compile(&regex, options.pattern, "meta.regex", err);
    if (st == IFL_OK)
        st = regex_judge(regex, &options, request, out, err);
    else if (st != IFL_NOMEM)
        st = ifl_verdict_bad_option(out);
    ifl_regex_free(regex);
    json_decref(meta);
    return st;
}

static const char *const regex_names[] = {"regex", "mode", "group", "which", "number", NULL};

const ifl_checker ifl_checker_regex = {
    .name = "regex",
    .version = "1",
    .help =
        "meta: \"regex\" (PCRE2), \"mode\" (search or full), \"group\" (its capture is compared "
        "with the answer), \"which\" (last, first, same), \"number\" (compared as numbers)",
    .check = regex_check,
    .flags = IFL_CHECKER_PURE,
    .options = regex_names,
};

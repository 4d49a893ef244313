/* format: the form of a completion, not what it says. With meta "regex" a pattern (PCRE2) must
 * match somewhere; anchor it with \A and \z to make it describe the whole. With {"think": true} the
 * completion must be one <think>...</think> with nothing before it and an answer behind it;
 * {"think": "opened"} is for prompts that end in <think>: then the first tag is the closing one. */
#include <string.h>

#include "common/json_util.h"
#include "rewards/text.h"

#define OPEN "<think>"
#define CLOSE "</think>"

typedef struct format_options {
    const char *pattern;
    bool think, opened;
} format_options;

static ifl_status options_read(const json_t *meta, format_options *o, ifl_error *err) {
    const json_t *think = meta ? json_object_get(meta, "think") : NULL;
    if (meta) IFL_TRY(ifl_json_text(meta, "regex", &o->pattern, err));
    if (json_is_string(think) && strcmp(json_string_value(think), "opened") == 0)
        o->think = o->opened = true;
    else if (json_is_boolean(think))
        o->think = json_is_true(think);
    else if (think && !json_is_null(think))
        return ifl_fail(err, IFL_FORMAT, "meta.think: wanted true, false or \"opened\"");
    if (!o->pattern && !o->think)
        return ifl_fail(err, IFL_FORMAT, "meta: wanted a regex or think, got neither");
    return IFL_OK;
}

static size_t count(ifl_slice s, const char *word) {
    size_t n = 0, length = strlen(word);
    for (const char *at; (at = memmem(s.text, s.n, word, length)); n++)
        s = ifl_slice_skip(s, (size_t)(at - s.text) + length);
    return n;
}

/* NULL: as it should be. */
static const char *think_fault(ifl_slice s, bool opened) {
    size_t n_open = count(s, OPEN), n_close = count(s, CLOSE);
    ifl_slice answer;
    if (n_open != (opened ? 0 : 1)) return opened ? "a second <think>" : "wanted one <think>";
    if (n_close != 1) return "wanted one </think>";
    s = ifl_slice_trim(s);
    if (!opened && !ifl_slice_starts(s, OPEN)) return "text before <think>";
    ifl_slice_after_last(s, CLOSE, &answer);
    return ifl_slice_trim(answer).n ? NULL : "no answer behind </think>";
}

static ifl_status format_judge(const ifl_regex *regex, const format_options *o,
                               const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    ifl_slice text = {request->completion, request->n_completion};
    const char *fault = o->think ? think_fault(text, o->opened) : NULL;
    if (fault) return ifl_verdict_why(out, err, IFL_REWARD_BAD_FORMAT, "%s", fault);
    if (!regex) return ifl_verdict(out, true);
    switch (ifl_regex_match(regex, text, 0, false, 0, NULL, NULL, err)) {
    case IFL_REGEX_MATCH:
        return ifl_verdict(out, true);
    case IFL_REGEX_BEYOND:
        out->status = IFL_REWARD_UNDECIDED;
        return IFL_OK;
    default:
        return ifl_verdict_why(out, err, IFL_REWARD_BAD_FORMAT, "meta.regex matches nothing");
    }
}

static ifl_status format_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    format_options options = {0};
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    ifl_regex *regex = NULL;
    ifl_status st = options_read(meta, &options, err);
    if (st == IFL_OK && options.pattern)
        st = ifl_regex_compile(&regex, options.pattern, "meta.regex", err);
    if (st == IFL_OK)
        st = format_judge(regex, &options, request, out, err);
    else if (st != IFL_NOMEM)
        st = ifl_verdict_bad_option(out);
    ifl_regex_free(regex);
    json_decref(meta);
    return st;
}

static const char *const format_names[] = {"regex", "think", NULL};

const ifl_checker ifl_checker_format = {
    .name = "format",
    .version = "1",
    .help = "meta: \"regex\" (PCRE2, must match somewhere in the completion), \"think\" (true: one "
            "<think> block, then an answer; \"opened\": the prompt has opened it); no answer",
    .check = format_check,
    .flags = IFL_CHECKER_PURE,
    .options = format_names,
};

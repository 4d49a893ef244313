/* exact: the completion is the answer, byte for byte after trimming. With meta {"after": "#"} only
 * what follows the last such marker counts, and a completion without it answers nothing. With
 * {"end": true} an answer that was cut by the token limit is wrong too: "50" may be the beginning
 * of "501". "ignore_case", "ignore_space" and "ignore_punctuation" compare Unicode text instead of
 * bytes. */
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"
#include "rewards/text.h"

typedef struct exact_options {
    const char *after;
    bool end;
    unsigned fold;
} exact_options;

static ifl_status options_read(const json_t *meta, exact_options *o, ifl_error *err) {
    static const struct {
        const char *key;
        unsigned fold;
    } folds[] = {{"ignore_case", IFL_FOLD_CASE},
                 {"ignore_space", IFL_FOLD_SPACE},
                 {"ignore_punctuation", IFL_FOLD_PUNCTUATION}};
    if (!meta) return IFL_OK;
    IFL_TRY(ifl_json_text(meta, "after", &o->after, err));
    IFL_TRY(ifl_json_bool(meta, "end", &o->end, err));
    if (o->after && !*o->after)
        return ifl_fail(err, IFL_FORMAT, "meta.after: got an empty marker, wanted a text");
    for (size_t i = 0; i < sizeof folds / sizeof *folds; i++) {
        bool on = false;
        IFL_TRY(ifl_json_bool(meta, folds[i].key, &on, err));
        if (on) o->fold |= folds[i].fold;
    }
    return IFL_OK;
}

/* Nothing of the task's answer may be left: then silence would be right. */
static ifl_status gold_is_empty(ifl_slice gold, unsigned fold, bool *empty, ifl_error *err) {
    int32_t *text = NULL;
    size_t n = gold.n;
    ifl_status st = fold ? ifl_text_fold(gold, fold, &text, &n, err) : IFL_OK;
    free(text);
    *empty = n == 0;
    return st;
}

static ifl_status exact_compare(const ifl_reward_request *request, const exact_options *o,
                                ifl_reward *out, ifl_error *err) {
    ifl_slice gold = ifl_slice_trim((ifl_slice){request->answer, strlen(request->answer)});
    ifl_slice got = {request->completion, request->n_completion};
    bool empty = false, same = false;
    ifl_status st = gold_is_empty(gold, o->fold, &empty, err);
    if (st == IFL_FORMAT) return ifl_verdict_bad_option(out);
    IFL_TRY(st);
    if (empty)
        return ifl_verdict_bad_task(out, err, "the task's answer is empty: silence would be right");
    if (o->end && request->finish != IFL_FINISH_EOS && request->finish != IFL_FINISH_STOP)
        return ifl_verdict_why(out, err, IFL_REWARD_WRONG, "the answer was cut");
    if (o->after && !ifl_slice_after_last(got, o->after, &got))
        return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "no '%.40s' in the completion",
                               o->after);
    got = ifl_slice_trim(got);
    if (got.n == 0) return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "nothing was answered");
    if (!o->fold) return ifl_verdict(out, ifl_slice_equal(got, gold));
    IFL_TRY(ifl_text_same(gold, got, o->fold, &same, err));
    return ifl_verdict(out, same);
}

static ifl_status exact_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    exact_options options = {0};
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    ifl_status st = options_read(meta, &options, err);
    st = st == IFL_OK ? exact_compare(request, &options, out, err) : ifl_verdict_bad_option(out);
    json_decref(meta);
    return st;
}

static const char *const exact_names[] = {
    "after", "end", "ignore_case", "ignore_space", "ignore_punctuation", NULL};

const ifl_checker ifl_checker_exact = {
    .name = "exact",
    .version = "1",
    .help =
        "answer: the text wanted, compared after trimming; meta: \"after\" (text behind the last "
        "such marker), \"end\" (a cut completion is wrong), \"ignore_case\", \"ignore_space\", "
        "\"ignore_punctuation\"",
    .check = exact_check,
    .flags = IFL_CHECKER_PURE,
    .options = exact_names,
};

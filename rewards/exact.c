/* exact: the completion is the answer, byte for byte after trimming. With meta {"after": "#"} only
 * what follows the last such marker counts, and a completion without it is wrong. With {"end":
 * true} an answer that was cut by the token limit is wrong too: "50" may be the beginning of "501".
 */
#include <string.h>

#include "common/json_util.h"
#include "rewards/checkers.h"

static ifl_status exact_options(const json_t *meta, const char **after, bool *end, ifl_error *err) {
    if (!meta) return IFL_OK;
    IFL_TRY(ifl_json_text(meta, "after", after, err));
    IFL_TRY(ifl_json_bool(meta, "end", end, err));
    if (*after && !**after)
        return ifl_fail(err, IFL_FORMAT, "meta.after: got an empty marker, wanted a text");
    return IFL_OK;
}

static ifl_status exact_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    const char *after = NULL;
    bool end = false;
    ifl_status st;
    ifl_slice gold = ifl_slice_trim((ifl_slice){request->answer, strlen(request->answer)});
    ifl_slice got = {request->completion, request->n_completion};
    if (exact_options(meta, &after, &end, err) != IFL_OK) {
        out->status = IFL_REWARD_BAD_TASK;
        st = IFL_OK;
    } else if (gold.n == 0) {
        st = ifl_verdict_bad_task(out, err, "the task's answer is empty: silence would be right");
    } else if (end && request->finish != IFL_FINISH_EOS && request->finish != IFL_FINISH_STOP) {
        st = ifl_verdict(out, false);
    } else if (after && !ifl_slice_after_last(got, after, &got)) {
        st = ifl_verdict(out, false);
    } else {
        got = ifl_slice_trim(got);
        st = ifl_verdict(out, got.n == gold.n && memcmp(got.text, gold.text, gold.n) == 0);
    }
    json_decref(meta);
    return st;
}

const ifl_checker ifl_checker_exact = {
    .name = "exact",
    .version = "1",
    .help =
        "answer: the text wanted, compared after trimming; meta: \"after\" (text behind the last "
        "such marker), \"end\" (a cut completion is wrong)",
    .check = exact_check,
};

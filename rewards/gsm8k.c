/* gsm8k: the number behind the last "####" that has one, against the task's number or worked answer
 * (then the number behind its last "####"), as exact rationals. Only the rest of the line counts:
 * one number, perhaps with a currency sign before and a unit behind. With meta {"last_number":
 * true} a completion without "####" is read by its last number. */
#include <string.h>

#include "common/json_util.h"
#include "rewards/text.h"

#define MARKER "####"

static ifl_stated find_last_marked(ifl_slice s, ifl_number *out) {
    ifl_stated found = IFL_STATED_NONE;
    ifl_number numbers[2]; /* the last one and the next */
    int last = 0;
    for (const char *at; (at = memmem(s.text, s.n, MARKER, strlen(MARKER)));) {
        s = ifl_slice_skip(s, (size_t)(at - s.text) + strlen(MARKER));
        const char *end = memchr(s.text, '\n', s.n);
        ifl_slice line = {s.text, end ? (size_t)(end - s.text) : s.n};
        const char *next = memmem(line.text, line.n, MARKER, strlen(MARKER));
        if (next) line.n = (size_t)(next - line.text);
        ifl_stated one = ifl_stated_number(line, &numbers[!last]);
        if (one == IFL_STATED_NUMBER) last = !last;
        if (one != IFL_STATED_NONE) found = one; /* "#### Solution" is a heading */
        s = ifl_slice_skip(s, line.n);
    }
    if (found == IFL_STATED_NUMBER) *out = numbers[last];
    return found;
}

static ifl_status gsm8k_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    bool last_number = false;
    ifl_status st = meta ? ifl_json_bool(meta, "last_number", &last_number, err) : IFL_OK;
    json_decref(meta);
    if (st != IFL_OK) return ifl_verdict_bad_option(out);

    ifl_number gold, got;
    ifl_slice answer = {request->answer, strlen(request->answer)};
    (void)ifl_slice_after_last(answer, MARKER, &answer);
    if (!ifl_number_parse(answer.text, answer.n, &gold))
        return ifl_verdict_bad_task(out, err,
                                    "the task's answer '%.*s' is neither one number nor a worked "
                                    "answer that ends in #### and one",
                                    answer.n > 60 ? 60 : (int)answer.n, answer.text);
    ifl_slice completion = {request->completion, request->n_completion};
    ifl_stated found = find_last_marked(completion, &got);
    if (found == IFL_STATED_NONE && last_number) {
        found = ifl_stated_last(completion, &got);
    } else if (found == IFL_STATED_NONE) {
        return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "no number behind a ####");
    }
    return ifl_stated_verdict(found, &got, &gold, out, err);
}

static const char *const gsm8k_names[] = {"last_number", NULL};

const ifl_checker ifl_checker_gsm8k = {
    .name = "gsm8k",
    .version = "1",
    .help = "answer: a number, or a worked answer with #### and one; of the completion counts what "
            "follows the last ####; meta: \"last_number\" (without a #### the last number)",
    .check = gsm8k_check,
    .flags = IFL_CHECKER_PURE,
    .options = gsm8k_names,
};

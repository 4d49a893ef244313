/* numeric: the number of a completion against the task's, as exact rationals. The number is what
 * stands in \boxed{...}; without a box, what stands behind "####"; without that, the last number of
 * the text. Several boxes (or #### lines) that don't all hold the same number are a hedge and no
 * answer, and a box with more than a number and its unit in it is wrong. */
#include <string.h>

#include "rewards/text.h"

/* Collects one stated answer: the first is kept, a later one must equal it. */
static void answer_collect(ifl_slice stated, ifl_stated if_none, ifl_stated *found,
                           ifl_number *out) {
    ifl_number number;
    if (*found == IFL_STATED_REFUSED || *found == IFL_STATED_SEVERAL) return;
    ifl_stated one = ifl_stated_number(stated, &number);
    if (one == IFL_STATED_NONE) one = if_none;
    if (one == IFL_STATED_NONE) return;
    if (one == IFL_STATED_NUMBER && *found == IFL_STATED_NUMBER && !ifl_number_equal(out, &number))
        one = IFL_STATED_SEVERAL;
    if (one == IFL_STATED_NUMBER && *found == IFL_STATED_NONE) *out = number;
    *found = one;
}

static ifl_stated find_boxed(ifl_slice s, ifl_number *out) {
    ifl_stated found = IFL_STATED_NONE;
    for (ifl_slice content; ifl_slice_box(&s, &content);)
        answer_collect(content, IFL_STATED_REFUSED, &found, out);
    return found;
}

static ifl_stated find_marked(ifl_slice s, ifl_number *out) {
    ifl_stated found = IFL_STATED_NONE;
    for (const char *at; (at = memmem(s.text, s.n, "####", 4));) {
        s = ifl_slice_skip(s, (size_t)(at - s.text) + 4);
        while (s.n > 0 && *s.text == '#')
            s = ifl_slice_skip(s, 1);
        const char *line_end = memchr(s.text, '\n', s.n);
        ifl_slice line = {s.text, line_end ? (size_t)(line_end - s.text) : s.n};
        answer_collect(line, IFL_STATED_NONE, &found, out); /* "#### Solution" is a heading */
        s = ifl_slice_skip(s, line.n);
    }
    return found;
}

static ifl_status numeric_check(const ifl_reward_request *request, ifl_reward *out,
                                ifl_error *err) {
    ifl_number gold, got;
    if (!ifl_number_parse(request->answer, strlen(request->answer), &gold))
        return ifl_verdict_bad_task(out, err, "the task's answer '%.60s' is not one number",
                                    request->answer);
    ifl_slice completion = {request->completion, request->n_completion};
    ifl_stated found = find_boxed(completion, &got);
    if (found == IFL_STATED_NONE) found = find_marked(completion, &got);
    if (found == IFL_STATED_NONE) found = ifl_stated_last(completion, &got);
    return ifl_stated_verdict(found, &got, &gold, out, err);
}

static const char *const numeric_names[] = {NULL};

const ifl_checker ifl_checker_numeric = {
    .name = "numeric",
    .version = "1",
    .help =
        "answer: a number; of the completion counts \\boxed{}, else what follows ####, else the "
        "last number; compared exactly",
    .check = numeric_check,
    .flags = IFL_CHECKER_PURE,
    .options = numeric_names,
};

/* math: the answer found in the completion says what the task's answer says. The work is in
 * rewards/math; this is its place among the checkers. */
#include <string.h>

#include "common/json_util.h"
#include "rewards/math/math.h"

#define TOLERANCE_MAX 0.5

typedef struct choice_of {
    const char *name;
    int value;
} choice_of;

static const choice_of boxes[] = {
    {"last", IFL_MATH_BOX_LAST}, {"strict", IFL_MATH_BOX_STRICT}, {"first", IFL_MATH_BOX_FIRST}};
static const choice_of require[] = {{"anchor", IFL_MATH_REQUIRE_ANCHOR},
                                    {"box", IFL_MATH_REQUIRE_BOX},
                                    {"none", IFL_MATH_REQUIRE_NONE}};
static const choice_of types[] = {
    {"auto", IFL_MATH_TYPE_AUTO},   {"set", IFL_MATH_TYPE_SET},
    {"tuple", IFL_MATH_TYPE_TUPLE}, {"interval", IFL_MATH_TYPE_INTERVAL},
    {"text", IFL_MATH_TYPE_TEXT},   {"choice", IFL_MATH_TYPE_CHOICE}};
static const choice_of units[] = {{"optional", IFL_MATH_UNITS_OPTIONAL},
                                  {"required", IFL_MATH_UNITS_REQUIRED},
                                  {"ignored", IFL_MATH_UNITS_IGNORED}};
static const choice_of percent[] = {{"either", IFL_MATH_PERCENT_EITHER},
                                    {"value", IFL_MATH_PERCENT_VALUE}};

/* meta's `key` as one of n names; absent: *out stays. */
static ifl_status choose(const json_t *meta, const char *key, const choice_of *from, size_t n,
                         int *out, ifl_error *err) {
    const char *text = NULL;
    IFL_TRY(ifl_json_text(meta, key, &text, err));
    if (!text) return IFL_OK;
    for (size_t i = 0; i < n; i++)
        if (strcmp(from[i].name, text) == 0) {
            *out = from[i].value;
            return IFL_OK;
        }
    return ifl_fail(err, IFL_FORMAT, "meta.%s: got '%.40s', wanted '%s', '%s'%s", key, text,
                    from[0].name, from[1].name, n > 2 ? " or another of its values" : "");
}

#define CHOOSE(key, from, field)                                                                   \
    do {                                                                                           \
        int value = (int)options->field;                                                           \
        IFL_TRY(choose(meta, key, from, sizeof from / sizeof *from, &value, err));                 \
        options->field = value;                                                                    \
    } while (0)

static ifl_status math_options(const json_t *meta, ifl_math_options *options, ifl_error *err) {
    if (!meta) return IFL_OK;
    CHOOSE("boxes", boxes, boxes);
    CHOOSE("require", require, require);
    CHOOSE("answer_type", types, answer_type);
    CHOOSE("units", units, units);
    CHOOSE("percent", percent, percent);
    const json_t *tol = json_object_get(meta, "tol");
    if (!tol) return IFL_OK;
    double value = json_is_number(tol) ? json_number_value(tol) : -1;
    if (!(value >= 0 && value <= TOLERANCE_MAX))
        return ifl_fail(err, IFL_FORMAT, "meta.tol: wanted a number from 0 to %g, relative",
                        TOLERANCE_MAX);
    options->tol = value;
    return IFL_OK;
}

static ifl_status math_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    ifl_math_options options = {0};
    ifl_math_result result;
    ifl_status st = math_options(meta, &options, err);
    json_decref(meta);
    if (st == IFL_NOMEM) return st;
    if (st != IFL_OK) {
        out->status = IFL_REWARD_BAD_TASK;
        return IFL_OK;
    }
    ifl_math_check((ifl_slice){request->answer, strlen(request->answer)},
                   (ifl_slice){request->completion, request->n_completion}, &options, &result);
    switch (result.verdict) {
    case IFL_MATH_EQUAL:
        return ifl_verdict(out, true);
    case IFL_MATH_DIFFERENT:
        ifl_fail(err, IFL_MISMATCH, "math: %s", result.reason);
        return ifl_verdict(out, false);
    case IFL_MATH_NO_ANSWER:
    case IFL_MATH_AMBIGUOUS: /* several answers are none */
        out->status = IFL_REWARD_NO_ANSWER;
        ifl_fail(err, IFL_FORMAT, "math: %s", result.reason);
        return IFL_OK;
    case IFL_MATH_UNDECIDED:
        out->status = IFL_REWARD_UNDECIDED;
        ifl_fail(err, IFL_LIMIT, "math: %s", result.reason);
        return IFL_OK;
    case IFL_MATH_BAD_TASK:
        break;
    }
    return ifl_verdict_bad_task(out, err, "math: %s", result.reason);
}

static const char *const math_names[] = {"boxes",   "require", "answer_type", "units",
                                         "percent", "tol",     NULL};

const ifl_checker ifl_checker_math = {
    .name = "math",
    .version = "2",
    .help =
        "answer: mathematics, LaTeX or plain; of the completion counts the last \\boxed{}, else "
        "what follows ####, Answer: or \"final answer is\"; meta: boxes, require, answer_type, "
        "units, percent, tol",
    .check = math_check,
    .flags = IFL_CHECKER_PURE,
    .options = math_names,
};

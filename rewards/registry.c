#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"
#include "rewards/checkers.h"
#include "rewards/code/code.h"

static const ifl_checker *const registry[] = {
    &ifl_checker_exact,     &ifl_checker_numeric,   &ifl_checker_format, &ifl_checker_gsm8k,
    &ifl_checker_math,      &ifl_checker_regex,     &ifl_checker_choice, &ifl_checker_json_schema,
    &ifl_checker_patch,     &ifl_checker_overlong,  &ifl_checker_length, &ifl_checker_repetition,
    &ifl_checker_code_unit, &ifl_checker_code_stdio};

/* A task file must not be able to name the checker that misbehaves on purpose. */
static bool faults_allowed(void) {
    const char *value = getenv(IFL_REWARD_TEST_FAULTS);
    return value && strcmp(value, "1") == 0;
}

const ifl_checker *ifl_checker_find(const char *name) {
    for (size_t i = 0; i < sizeof registry / sizeof *registry; i++)
        if (strcmp(registry[i]->name, name) == 0) return registry[i];
    if (strcmp(name, ifl_checker_test_fault.name) == 0 && faults_allowed())
        return &ifl_checker_test_fault;
    return NULL;
}

int ifl_checker_list(const ifl_checker **out, int max) {
    int n = 0;
    for (size_t i = 0; i < sizeof registry / sizeof *registry && n < max; i++)
        out[n++] = registry[i];
    return n;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

ifl_slice ifl_slice_trim(ifl_slice s) {
    while (s.n > 0 && is_space(s.text[s.n - 1]))
        s.n--;
    while (s.n > 0 && is_space(*s.text)) {
        s.text++;
        s.n--;
    }
    return s;
}

bool ifl_slice_after_last(ifl_slice s, const char *marker, ifl_slice *out) {
    size_t n = strlen(marker);
    for (size_t end = s.n >= n ? s.n - n + 1 : 0; end > 0;) {
        const char *at = memrchr(s.text, *marker, end);
        if (!at) return false;
        end = (size_t)(at - s.text);
        if ((n > 1 && at[1] != marker[1]) || memcmp(at, marker, n) != 0) continue;
        *out = (ifl_slice){at + n, s.n - end - n};
        return true;
    }
    return false;
}

ifl_status ifl_verdict(ifl_reward *out, bool right) {
    out->status = right ? IFL_REWARD_OK : IFL_REWARD_WRONG;
    out->reward = right ? 1.0f : 0.0f;
    return IFL_OK;
}

ifl_status ifl_verdict_bad_task(ifl_reward *out, ifl_error *err, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ifl_fail(err, IFL_FORMAT, "%s", text);
    out->status = IFL_REWARD_BAD_TASK;
    out->reward = 0.0f;
    return IFL_OK;
}

ifl_status ifl_checker_meta(const ifl_reward_request *request, json_t **meta, ifl_reward *out,
                            ifl_error *err) {
    *meta = NULL;
    if (!request->meta || !*request->meta) return IFL_OK;
    ifl_status st = ifl_json_parse_object(meta, request->meta, strlen(request->meta),
                                          IFL_META_BYTES_MAX, "meta", err);
    if (st == IFL_NOMEM) return st;
    if (st != IFL_OK) out->status = IFL_REWARD_BAD_TASK;
    return IFL_OK;
}

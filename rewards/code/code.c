#include "rewards/code/code.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/json_util.h"

static ifl_sandbox *process_sandbox;
static ifl_sandbox_options process_options;

const char *ifl_code_verdict_name(ifl_code_verdict verdict) {
    static const char *const names[] = {
#define VERDICT_NAME(name, text) text,
        IFL_CODE_VERDICT_MAP(VERDICT_NAME)
#undef VERDICT_NAME
    };
    return names[verdict];
}

void ifl_code_setup(const ifl_sandbox_options *options) {
    process_options = *options;
}

void ifl_code_teardown(void) {
    code_headers_forget();
    ifl_sandbox_free(process_sandbox);
    process_sandbox = NULL;
    code_compile_forget();
    code_unit_forget();
}

ifl_status code_sandbox(ifl_sandbox **out, ifl_error *err) {
    if (!process_sandbox) IFL_TRY(ifl_sandbox_create(&process_sandbox, &process_options, err));
    *out = process_sandbox;
    return IFL_OK;
}

ifl_status code_options_read(const json_t *meta, int32_t timeout_ms, ifl_code_options *out,
                             ifl_error *err) {
    const char *language = "python", *score = "all";
    int32_t memory_mb = 512, output_kb = 1024;
    *out = (ifl_code_options){.limits = ifl_sandbox_limits_default()};
    if (meta) {
        IFL_TRY(ifl_json_text(meta, "language", &language, err));
        IFL_TRY(ifl_json_text(meta, "score", &score, err));
        IFL_TRY(ifl_json_bool(meta, "bare", &out->bare, err));
        IFL_TRY(ifl_json_int32(meta, "wall_ms", 10, 600000, &out->limits.wall_ms, err));
        out->limits.cpu_ms = out->limits.wall_ms;
        IFL_TRY(ifl_json_int32(meta, "cpu_ms", 10, 600000, &out->limits.cpu_ms, err));
        IFL_TRY(ifl_json_int32(meta, "memory_mb", 32, 65536, &memory_mb, err));
        IFL_TRY(ifl_json_int32(meta, "output_kb", 1, 65536, &output_kb, err));
        IFL_TRY(ifl_json_int32(meta, "processes", 1, 1024, &out->limits.processes, err));
    }
    out->limits.memory_bytes = (uint64_t)memory_mb << 20;
    out->limits.output_bytes = (uint64_t)output_kb << 10;
    if (strcmp(language, "python") == 0)
        out->language = IFL_CODE_PYTHON;
    else if (strcmp(language, "c") == 0)
        out->language = IFL_CODE_C;
    else if (strcmp(language, "cpp") == 0)
        out->language = IFL_CODE_CPP;
    else
        return ifl_fail(err, IFL_FORMAT, "meta.language: got '%.40s', wanted python, c or cpp",
                        language);
    if (strcmp(score, "all") != 0 && strcmp(score, "fraction") != 0)
        return ifl_fail(err, IFL_FORMAT, "meta.score: got '%.40s', wanted all or fraction", score);
    out->fraction = strcmp(score, "fraction") == 0;
    int64_t total_ms = IFL_CODE_TOTAL_MS;
    if (timeout_ms > 0) {
        int64_t margin_ms = timeout_ms / 5 > 200 ? timeout_ms / 5 : 200;
        int64_t allowed_ms = timeout_ms > 2 * margin_ms ? timeout_ms - margin_ms : timeout_ms / 2;
        if (allowed_ms < total_ms) total_ms = allowed_ms;
    }
    out->deadline_ns = ifl_clock_ns() + total_ms * 1000000;
    return IFL_OK;
}

bool code_time_left(const ifl_code_options *options, ifl_sandbox_limits *limits) {
    int64_t left_ms = (options->deadline_ns - ifl_clock_ns()) / 1000000;
    if (left_ms < 1) return false;
    if (left_ms < limits->wall_ms) limits->wall_ms = (int32_t)left_ms;
    return true;
}

ifl_status code_host_failed(ifl_status st, ifl_reward *out) {
    if (st != IFL_UNSUPPORTED) return st;
    out->status = IFL_REWARD_UNAVAILABLE;
    return IFL_OK;
}

void code_nonce(char out[IFL_CODE_NONCE_MAX]) {
    uint8_t bytes[16] = {0};
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) {
        ifl_hash h = ifl_hash_bytes(&(int64_t){ifl_clock_ns()}, sizeof(int64_t));
        memcpy(bytes, &h, sizeof bytes);
    }
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

bool code_begin(const ifl_reward_request *request, code_job *job, ifl_reward *out, ifl_status *st,
                ifl_error *err) {
    *job = (code_job){0};
    *st = ifl_checker_meta(request, &job->meta, out, err);
    if (*st != IFL_OK || out->status == IFL_REWARD_BAD_TASK) return false;
    size_t n = strlen(request->answer);
    *st =
        ifl_json_parse_object(&job->task, request->answer, n, IFL_ANSWER_BYTES_MAX, "answer", err);
    if (*st == IFL_OK) *st = code_options_read(job->meta, request->timeout_ms, &job->options, err);
    if (*st == IFL_NOMEM) return false;
    if (*st != IFL_OK) {
        out->status = IFL_REWARD_BAD_TASK;
        *st = IFL_OK;
        return false;
    }
    if (!code_extract(request->completion, request->n_completion, &job->options, &job->code)) {
        ifl_code_result none = {.verdict = IFL_CODE_NO_ANSWER};
        *st = code_reward(&none, &job->options, out);
        return false;
    }
    return true;
}

void code_end(code_job *job) {
    json_decref(job->meta);
    json_decref(job->task);
}

/* 2: the language's own tag, 1: none, 0: another. */
static int tag_rank(ifl_slice tag, ifl_code_language language) {
    static const char *const tags[][5] = {
        [IFL_CODE_PYTHON] = {"python", "py", "python3", NULL},
        [IFL_CODE_C] = {"c", NULL},
        [IFL_CODE_CPP] = {"cpp", "c++", "cc", "cxx", NULL},
    };
    if (tag.n == 0) return 1;
    for (int i = 0; tags[language][i]; i++)
        if (strlen(tags[language][i]) == tag.n &&
            strncasecmp(tags[language][i], tag.text, tag.n) == 0)
            return 2;
    return 0;
}

static ifl_slice line_take(ifl_slice *text) {
    const char *end = memchr(text->text, '\n', text->n);
    ifl_slice line = {text->text, end ? (size_t)(end - text->text) : text->n};
    size_t taken = end ? line.n + 1 : line.n;
    text->text += taken;
    text->n -= taken;
    return line;
}

bool code_extract(const char *text, size_t n, const ifl_code_options *options, ifl_slice *out) {
    ifl_slice rest = {text, n}, block = {0};
    ifl_slice_after_last(rest, "</think>", &rest);
    ifl_slice all = rest;
    int rank = 0, open_rank = -1; /* of the block we are in; -1: in none */
    bool fenced = false;
    while (rest.n > 0) {
        ifl_slice line = ifl_slice_trim(line_take(&rest));
        bool fence = line.n >= 3 && memcmp(line.text, "```", 3) == 0;
        if (!fence) continue;
        ifl_slice tag = ifl_slice_trim((ifl_slice){line.text + 3, line.n - 3});
        fenced = true;
        if (open_rank < 0) {
            open_rank = tag_rank(tag, options->language);
            block.text = rest.text;
        } else if (tag.n == 0) {
            if (open_rank > 0 && open_rank >= rank) {
                rank = open_rank;
                *out = (ifl_slice){block.text, (size_t)(line.text - block.text)};
            }
            open_rank = -1;
        }
    }
    if (!fenced && options->bare) {
        *out = all;
        rank = 1;
    }
    return rank > 0 && out->n <= IFL_CODE_BYTES_MAX && !memchr(out->text, '\0', out->n) &&
           ifl_slice_trim(*out).n > 0;
}

ifl_code_verdict code_verdict_of_run(const ifl_sandbox_result *run) {
    switch (run->end) {
    case IFL_RUN_EXITED:
    case IFL_RUN_SIGNALED:
    case IFL_RUN_KILLED:
        return IFL_CODE_RUNTIME_ERROR;
    case IFL_RUN_WALL:
    case IFL_RUN_CPU:
        return IFL_CODE_TIME_LIMIT;
    case IFL_RUN_MEMORY:
        return IFL_CODE_MEMORY_LIMIT;
    case IFL_RUN_OUTPUT:
        return IFL_CODE_OUTPUT_LIMIT;
    case IFL_RUN_VIOLATION:
        return IFL_CODE_SANDBOX_VIOLATION;
    }
    return IFL_CODE_SANDBOX_VIOLATION;
}

/* A run that was killed by the clock although it had had little CPU and wanted more. */
static bool was_starved(const ifl_sandbox_spec *spec, const ifl_sandbox_result *r) {
    double load = 0.0;
    if (r->end != IFL_RUN_WALL || getloadavg(&load, 1) != 1) return false;
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t limit_us = (int64_t)spec->limits.wall_ms * 1000;
    return load > (double)n_cores && r->cpu_us > limit_us / 8 && r->cpu_us < limit_us / 2;
}

ifl_status code_execute(const ifl_sandbox_spec *spec, ifl_sandbox_result *result, ifl_error *err) {
    memset(result, 0, sizeof *result);
    for (int attempt = 0;; attempt++) {
        ifl_sandbox *sandbox;
        IFL_TRY(code_sandbox(&sandbox, err));
        ifl_status st = ifl_sandbox_execute(sandbox, spec, result, err);
        bool again = st == IFL_OK ? was_starved(spec, result) : st == IFL_PEER;
        if (st == IFL_PEER) { /* the launcher was killed: by whom, it can't say */
            code_headers_forget();
            ifl_sandbox_free(process_sandbox);
            process_sandbox = NULL;
        }
        if (!again || attempt > 0) return st;
        ifl_sandbox_result_clear(result);
    }
}

static ifl_reward_status status_of(ifl_code_verdict verdict) {
    ifl_reward_status status = IFL_REWARD_CHECKER_ERROR;
    ifl_reward_status_parse(ifl_code_verdict_name(verdict), &status);
    return status;
}

ifl_status code_reward(const ifl_code_result *r, const ifl_code_options *options, ifl_reward *out) {
    out->status = status_of(r->verdict);
    out->tier = process_sandbox ? (uint8_t)ifl_sandbox_measured(process_sandbox) : IFL_TIER_NONE;
    out->tests_passed = r->passed;
    out->tests_total = r->total;
    float share = r->total > 0 ? (float)(((double)r->passed + r->part) / r->total) : 0.0f;
    bool all = r->verdict == IFL_CODE_OK && r->total > 0 && r->passed == r->total;
    out->reward = options->fraction ? share : all ? 1.0f : 0.0f;
    return IFL_OK;
}

/* code_unit: a function of the policy's, called by tests. Expected values stay here; a test's call
 * goes into a fresh process, and a plain value comes out, to be compared in C. What is no "call ==
 * value" is run by a driver in a process of its own, which meets the candidate's values only. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/hash.h"
#include "common/json_util.h"
#include "rewards/code/code.h"
#include "rewards/code/value.h"

#define PYTHON "/usr/bin/python3"
#define PREPARED_MAX 64
#define ENTRY_MAX 128

typedef struct unit_call {
    ifl_slice call, expect; /* both empty: needs the driver */
} unit_call;

/* A task's tests, taken apart once by a process that meets no candidate. */
typedef struct prepared {
    ifl_hash task; /* of its text */
    char *text;    /* owned; what `calls` point into */
    bool whole;    /* one check function, run by the driver */
    char entry[ENTRY_MAX];
    int32_t n_calls;
    unit_call *calls; /* owned */
} prepared;

static prepared cache[PREPARED_MAX];
static int cache_next;

static void prepared_clear(prepared *p) {
    free(p->text);
    free(p->calls);
    memset(p, 0, sizeof *p);
}

void code_unit_forget(void) {
    for (int i = 0; i < PREPARED_MAX; i++)
        prepared_clear(&cache[i]);
}

static bool number_take(ifl_slice *text, char stop, size_t max, size_t *n) {
    const char *end = memchr(text->text, stop, text->n);
    size_t digits = end ? (size_t)(end - text->text) : 0;
    *n = 0;
    if (digits == 0 || digits > 8) return false;
    for (size_t i = 0; i < digits; i++) {
        if (text->text[i] < '0' || text->text[i] > '9') return false;
        *n = *n * 10 + (size_t)(text->text[i] - '0');
    }
    text->text = end + 1;
    text->n -= digits + 1;
    return *n <= max;
}

/* What the preparing script says: see its end in scripts.c. */
static bool prepared_read(prepared *p, ifl_slice text) {
    bool calls = text.n > 6 && memcmp(text.text, "calls ", 6) == 0;
    p->whole = text.n > 6 && memcmp(text.text, "check ", 6) == 0;
    if (!calls && !p->whole) return false;
    text.text += 6;
    text.n -= 6;
    const char *end = memchr(text.text, calls ? ' ' : '\n', text.n);
    size_t n = end ? (size_t)(end - text.text) : 0, n_calls = 0;
    if (n == 0 || n >= ENTRY_MAX) return false;
    memcpy(p->entry, text.text, n);
    if (p->whole) return true;
    text.text = end + 1;
    text.n -= n + 1;
    if (!number_take(&text, '\n', IFL_CODE_TESTS_MAX, &n_calls)) return false;
    p->calls = calloc(n_calls, sizeof *p->calls);
    if (!p->calls) return false;
    for (size_t i = 0; i < n_calls; i++) {
        unit_call *c = &p->calls[i];
        if (!number_take(&text, ' ', text.n, &c->call.n) ||
            !number_take(&text, '\n', text.n, &c->expect.n) || c->call.n + c->expect.n > text.n)
            return false;
        c->call.text = text.text;
        c->expect.text = text.text + c->call.n;
        text.text += c->call.n + c->expect.n;
        text.n -= c->call.n + c->expect.n;
    }
    p->n_calls = (int32_t)n_calls;
    return true;
}

static void spec_python(ifl_sandbox_spec *spec, const char *script, const char *argument,
                        const ifl_sandbox_limits *limits) {
    *spec =
        (ifl_sandbox_spec){.argv = {PYTHON, "-I", "-S", "-c", script, argument}, .limits = *limits};
}

/* From the cache, or by a run. BAD_TASK in `out` when the tests make no sense. */
static ifl_status prepare(const code_job *job, const char *text, prepared **got, ifl_reward *out,
                          ifl_error *err) {
    *got = NULL;
    ifl_hash hash = ifl_hash_bytes(text, strlen(text));
    for (int i = 0; i < PREPARED_MAX; i++) {
        if (!cache[i].text || !ifl_hash_equal(cache[i].task, hash)) continue;
        *got = &cache[i];
        return IFL_OK;
    }
    ifl_sandbox_spec spec;
    ifl_sandbox_limits limits = ifl_sandbox_limits_default();
    limits.output_bytes = 16u << 20;
    if (!code_time_left(&job->options, &limits))
        return ifl_fail(err, IFL_TIMEOUT, "no time left to read the task's tests");
    spec_python(&spec, code_script_prepare, NULL, &limits);
    spec.n_files = 1;
    spec.files[0] = (ifl_sandbox_file){"task.json", text, strlen(text), false};
    ifl_sandbox_result run;
    ifl_status st = code_execute(&spec, &run, err);
    if (st != IFL_OK) {
        ifl_sandbox_result_clear(&run);
        return st;
    }
    prepared fresh = {.task = hash};
    fresh.text = run.channel.bytes;
    run.channel.bytes = NULL;
    if (run.end == IFL_RUN_EXITED && fresh.text &&
        prepared_read(&fresh, (ifl_slice){fresh.text, run.channel.n})) {
        prepared *place = &cache[cache_next++ % PREPARED_MAX];
        prepared_clear(place);
        *place = fresh;
        *got = place;
    } else {
        st = ifl_verdict_bad_task(out, err, "the tests of the task cannot be read: %.300s (%s %d)",
                                  fresh.text      ? fresh.text
                                  : run.err.bytes ? run.err.bytes
                                                  : "",
                                  ifl_run_end_name(run.end), run.code);
        prepared_clear(&fresh);
    }
    ifl_sandbox_result_clear(&run);
    return st;
}

/* "NONCE value TEXT" or "NONCE raised NAME": one writer, so the first frame is the beginning. */
ifl_code_verdict code_frame_judge(const ifl_sandbox_result *run, const char *nonce,
                                  ifl_slice want) {
    ifl_slice text = {run->channel.bytes, run->channel.n};
    size_t n = strlen(nonce);
    if (run->end != IFL_RUN_EXITED) return code_verdict_of_run(run);
    if (text.n < n + 8 || memcmp(text.text, nonce, n) != 0 || text.text[n] != ' ')
        return IFL_CODE_RUNTIME_ERROR;
    text = (ifl_slice){text.text + n + 1, text.n - n - 1};
    if (text.n == 18 && memcmp(text.text, "raised MemoryError", 18) == 0)
        return IFL_CODE_MEMORY_LIMIT;
    if (text.n < 6 || memcmp(text.text, "value ", 6) != 0) return IFL_CODE_RUNTIME_ERROR;
    text = (ifl_slice){text.text + 6, text.n - 6};
    code_value got, gold;
    if (code_value_read(want, &gold, NULL) != IFL_OK) return IFL_CODE_BAD_TASK;
    ifl_code_verdict verdict = IFL_CODE_WRONG;
    ifl_status st = code_value_read(text, &got, NULL);
    if (st == IFL_NOMEM) verdict = IFL_CODE_CHECKER_ERROR;
    if (st == IFL_OK && code_value_equal(&got, &gold)) verdict = IFL_CODE_OK;
    free(got.bytes);
    free(gold.bytes);
    return verdict;
}

/* One call in a process of its own. */
static ifl_status call_run(const code_job *job, ifl_slice code, const unit_call *c,
                           ifl_code_verdict *verdict, ifl_error *err) {
    const char *setup = "";
    char nonce[IFL_CODE_NONCE_MAX], head[128];
    ifl_sandbox_spec spec;
    ifl_sandbox_limits limits = job->options.limits;
    IFL_TRY(ifl_json_text(job->task, "setup", &setup, err));
    if (!code_time_left(&job->options, &limits)) {
        *verdict = IFL_CODE_TIME_LIMIT;
        return IFL_OK;
    }
    code_nonce(nonce);
    spec_python(&spec, code_script_unit, NULL, &limits);
    int n_head = snprintf(head, sizeof head, "%s %zu %zu ", nonce, code.n, strlen(setup));
    size_t n = (size_t)n_head + code.n + strlen(setup) + c->call.n;
    char *input = malloc(n + 1);
    if (!input) return ifl_fail(err, IFL_NOMEM, "no memory for a test of %zu bytes", n);
    char *at = mempcpy(input, head, (size_t)n_head);
    at = mempcpy(at, code.text, code.n);
    at = mempcpy(at, setup, strlen(setup));
    memcpy(at, c->call.text, c->call.n);
    spec.input = input;
    spec.n_input = n;
    ifl_sandbox_result run;
    ifl_status st = code_execute(&spec, &run, err);
    if (st == IFL_OK) *verdict = code_frame_judge(&run, nonce, c->expect);
    ifl_sandbox_result_clear(&run);
    free(input);
    return st;
}

static ifl_code_verdict pair_judge(const ifl_sandbox_result runs[2], ifl_error *err) {
    const ifl_sandbox_result *driver = &runs[0], *candidate = &runs[1];
    const char *said = driver->channel.bytes ? driver->channel.bytes : "";
    bool ended = driver->end == IFL_RUN_EXITED && driver->channel.n > 0;
    if (ended && strcmp(said, "ok") == 0) return IFL_CODE_OK;
    if (candidate->end != IFL_RUN_KILLED && candidate->end != IFL_RUN_EXITED)
        return code_verdict_of_run(candidate);
    if (!ended) return code_verdict_of_run(driver);
    if (strcmp(said, "wrong") == 0) return IFL_CODE_WRONG;
    if (strcmp(said, "raised MemoryError") == 0) return IFL_CODE_MEMORY_LIMIT;
    if (strncmp(said, "bad ", 4) == 0) {
        ifl_fail(err, IFL_FORMAT, "the task's test: %.300s", said + 4);
        return IFL_CODE_BAD_TASK;
    }
    return IFL_CODE_RUNTIME_ERROR;
}

/* The driver (runs[0]) asks through a pipe that is the candidate's stdin; the candidate answers
 * through one that is the driver's. */
static ifl_status pair_start(ifl_sandbox_spec specs[2], ifl_sandbox_run *runs[2], ifl_error *err) {
    int ask[2] = {-1, -1}, answer[2] = {-1, -1};
    ifl_sandbox *sandbox;
    ifl_status st = code_sandbox(&sandbox, err);
    if (st == IFL_OK && (pipe2(ask, O_CLOEXEC) || pipe2(answer, O_CLOEXEC)))
        st = ifl_fail(err, IFL_IO, "pipes between driver and candidate");
    if (st == IFL_OK) {
        specs[0].input_fd = answer[0];
        specs[0].extra_fd = ask[1];
        specs[1].input_fd = ask[0];
        specs[1].result_fd = answer[1];
        st = ifl_sandbox_start(sandbox, &specs[0], &runs[0], err);
    }
    if (st == IFL_OK) st = ifl_sandbox_start(sandbox, &specs[1], &runs[1], err);
    for (int i = 0; i < 2; i++) {
        if (ask[i] >= 0) close(ask[i]);
        if (answer[i] >= 0) close(answer[i]);
    }
    return st;
}

/* The check function, or the test `index` of the task, by driver. */
static ifl_status driver_run(const code_job *job, ifl_slice code, const char *task_text,
                             const char *entry, int32_t index, ifl_code_verdict *verdict,
                             ifl_error *err) {
    ifl_sandbox_spec specs[2];
    ifl_sandbox_run *runs[2] = {NULL, NULL};
    ifl_sandbox_result results[2] = {0};
    char number[16];
    ifl_sandbox_limits limits = job->options.limits;
    if (!code_time_left(&job->options, &limits)) {
        *verdict = IFL_CODE_TIME_LIMIT;
        return IFL_OK;
    }
    snprintf(number, sizeof number, "%d", index);
    spec_python(&specs[1], code_script_serve, entry, &limits);
    specs[1].n_files = 1;
    specs[1].files[0] = (ifl_sandbox_file){"solution.py", code.text, code.n, false};
    limits.wall_ms += 1000; /* the candidate's own limit strikes first */
    spec_python(&specs[0], code_script_driver, number, &limits);
    specs[0].argv[6] = entry;
    specs[0].n_files = 1;
    specs[0].files[0] = (ifl_sandbox_file){"task.json", task_text, strlen(task_text), false};
    ifl_status st = pair_start(specs, runs, err);
    int32_t n = runs[1] ? 2 : runs[0] ? 1 : 0;
    ifl_status waited = n ? ifl_sandbox_wait(runs, n, results, st == IFL_OK ? err : NULL) : IFL_OK;
    if (st == IFL_OK) st = waited;
    if (st == IFL_OK) *verdict = pair_judge(results, err);
    for (int i = 0; i < 2; i++)
        ifl_sandbox_result_clear(&results[i]);
    return st;
}

/* A completion that goes on from the prompt instead of repeating it. */
static char *code_with_prompt(const code_job *job, const char *prompt, const char *entry) {
    char wanted[ENTRY_MAX + 8];
    size_t n_prompt = strlen(prompt);
    int n = snprintf(wanted, sizeof wanted, "def %s", entry);
    bool defines = memmem(job->code.text, job->code.n, wanted, (size_t)n) != NULL;
    char *all = malloc(n_prompt + job->code.n + 2);
    if (!all) return NULL;
    char *at = all;
    if (!defines) at = mempcpy(at, prompt, n_prompt);
    at = mempcpy(at, job->code.text, job->code.n);
    *at = '\0';
    return all;
}

static ifl_status unit_python(const code_job *job, const char *text, ifl_code_result *result,
                              ifl_reward *out, ifl_error *err) {
    const char *prompt = "";
    prepared *p;
    IFL_TRY(ifl_json_text(job->task, "prompt", &prompt, err));
    IFL_TRY(prepare(job, text, &p, out, err));
    if (!p) return IFL_OK;
    char *all = code_with_prompt(job, prompt, p->entry);
    if (!all) return ifl_fail(err, IFL_NOMEM, "no memory for the program");
    ifl_slice code = {all, strlen(all)};
    ifl_status st = IFL_OK;
    result->total = p->whole ? 1 : p->n_calls;
    for (int32_t i = 0; i < result->total && st == IFL_OK; i++) {
        ifl_code_verdict verdict = IFL_CODE_CHECKER_ERROR;
        if (p->whole || p->calls[i].call.n == 0)
            st = driver_run(job, code, text, p->entry, i, &verdict, err);
        else
            st = call_run(job, code, &p->calls[i], &verdict, err);
        if (verdict == IFL_CODE_OK) result->passed++;
        if (verdict != IFL_CODE_OK && result->verdict == IFL_CODE_OK) result->verdict = verdict;
        if (verdict != IFL_CODE_OK && (!job->options.fraction || verdict == IFL_CODE_BAD_TASK ||
                                       verdict == IFL_CODE_TIME_LIMIT))
            break;
    }
    free(all);
    return st;
}

static ifl_status code_unit_check(const ifl_reward_request *request, ifl_reward *out,
                                  ifl_error *err) {
    code_job job;
    ifl_status st;
    ifl_code_result result = {.verdict = IFL_CODE_OK};
    if (code_begin(request, &job, out, &st, err)) {
        st = job.options.language == IFL_CODE_PYTHON
                 ? unit_python(&job, request->answer, &result, out, err)
                 : code_unit_native(&job, &result, out, err);
        if (st == IFL_FORMAT) { /* a key of the task's is of the wrong type */
            out->status = IFL_REWARD_BAD_TASK;
            st = IFL_OK;
        } else if (st != IFL_OK) {
            st = code_host_failed(st, out);
        } else if (result.verdict == IFL_CODE_BAD_TASK) {
            out->status = IFL_REWARD_BAD_TASK;
        } else if (result.verdict == IFL_CODE_CHECKER_ERROR) {
            st = ifl_fail(err, IFL_NOMEM, "code_unit: no memory to compare");
        } else if (out->status == IFL_REWARD_NONE) {
            st = code_reward(&result, &job.options, out);
        }
    }
    code_end(&job);
    return st;
}

static const char *const code_unit_names[] = {
    "language", "wall_ms", "cpu_ms", "memory_mb", "output_kb", "processes", "score", "bare", NULL};

const ifl_checker ifl_checker_code_unit = {
    .name = "code_unit",
    .version = "1",
    .help = "answer: {\"tests\": [\"assert f(1) == 2\", ...]} or {\"check\": \"def "
            "check(candidate): ...\", \"entry\": \"f\"}, also setup, prompt; meta: language, "
            "wall_ms, cpu_ms, memory_mb, score (all or fraction), bare",
    .check = code_unit_check,
    .flags = IFL_CHECKER_RUNS_PROGRAMS,
    .options = code_unit_names,
};

/* code_stdio: a program of the policy's reads a test's input and prints; what it printed is
 * compared here with what was wanted. */
#include <string.h>

#include "common/json_util.h"
#include "rewards/code/code.h"

#define PYTHON "/usr/bin/python3"

typedef struct stdio_options {
    ifl_compare compare;
    double tolerance;
    bool program; /* `judge` compares */
    code_judge judge;
    int64_t used_us; /* by the candidate */
} stdio_options;

static ifl_status stdio_options_read(const json_t *meta, stdio_options *out, ifl_error *err) {
    static const char *const names[] = {"tokens", "exact", "float"};
    const char *compare = names[0];
    *out = (stdio_options){.compare = IFL_COMPARE_TOKENS, .tolerance = 1e-6};
    if (!meta) return IFL_OK;
    IFL_TRY(ifl_json_text(meta, "compare", &compare, err));
    IFL_TRY(ifl_json_double(meta, "tolerance", 0.0, 1.0, &out->tolerance, err));
    out->program = strcmp(compare, "program") == 0;
    if (out->program) return code_judge_make(meta, &out->judge, err);
    if (json_object_get(meta, "checker_source"))
        return ifl_fail(err, IFL_FORMAT, "meta.checker_source wants meta.compare: program");
    for (int i = 0; i < 3; i++) {
        if (strcmp(compare, names[i]) != 0) continue;
        out->compare = (ifl_compare)i;
        return IFL_OK;
    }
    return ifl_fail(err, IFL_FORMAT,
                    "meta.compare: got '%.40s', wanted tokens, exact, float or program", compare);
}

/* How to start the program; a compiler's refusal is a verdict. */
static ifl_status program_spec(const code_job *job, ifl_sandbox_spec *spec,
                               ifl_code_verdict *verdict, ifl_error *err) {
    *spec = (ifl_sandbox_spec){.n_files = 1};
    *verdict = IFL_CODE_OK;
    if (job->options.language == IFL_CODE_PYTHON) {
        spec->argv[0] = PYTHON;
        spec->argv[1] = "-I";
        spec->argv[2] = "/work/solution.py";
        spec->files[0] = (ifl_sandbox_file){"solution.py", job->code.text, job->code.n, false};
        return IFL_OK;
    }
    ifl_slice binary;
    IFL_TRY(code_compile(job->code, job->options.language, &binary, verdict, err));
    spec->argv[0] = "/work/program";
    spec->files[0] = (ifl_sandbox_file){"program", binary.text, binary.n, true};
    return IFL_OK;
}

/* One test, as far as the candidate's run goes: OK is then still to be compared. */
static ifl_code_verdict run_judge(const ifl_sandbox_result *run) {
    if (run->end != IFL_RUN_EXITED) return code_verdict_of_run(run);
    if (run->code == 0) return IFL_CODE_OK;
    bool memory = run->err.bytes && strstr(run->err.bytes, "MemoryError");
    return memory ? IFL_CODE_MEMORY_LIMIT : IFL_CODE_RUNTIME_ERROR;
}

static ifl_status output_judge(const code_job *job, const ifl_sandbox_result *run, ifl_slice input,
                               ifl_slice want, stdio_options *options, double *points,
                               ifl_error *err) {
    ifl_slice got = {run->out.bytes ? run->out.bytes : "", run->out.n};
    if (options->program)
        return code_judge_ask(&options->judge, &job->options, input, got, want, points, err);
    *points = code_output_equal(got, want, options->compare, options->tolerance) ? 1.0 : 0.0;
    return IFL_OK;
}

/* The time of all tests together is the candidate's to use up, unless the task's own checker has
 * had more of it: no verdict then. */
static ifl_status time_is_up(const stdio_options *options, ifl_code_verdict *verdict,
                             ifl_error *err) {
    *verdict = IFL_CODE_TIME_LIMIT;
    if (options->judge.used_us <= options->used_us) return IFL_OK;
    return ifl_fail(err, IFL_TIMEOUT, "the task's checker program has used up the time (%.1f s)",
                    (double)options->judge.used_us * 1e-6);
}

static ifl_status test_run(const code_job *job, ifl_sandbox_spec *spec, const json_t *test,
                           stdio_options *options, ifl_code_verdict *verdict, double *points,
                           ifl_error *err) {
    const char *input = "", *output = NULL;
    IFL_TRY(ifl_json_text(test, "input", &input, err));
    IFL_TRY(ifl_json_text(test, "output", &output, err));
    if (!output && options->program) output = "";
    if (!output) return ifl_fail(err, IFL_FORMAT, "answer.tests: a test without \"output\"");
    spec->limits = job->options.limits;
    *points = 0.0;
    if (!code_time_left(&job->options, &spec->limits)) return time_is_up(options, verdict, err);
    spec->input = input;
    spec->n_input = strlen(input);
    ifl_sandbox_result run;
    ifl_status st = code_execute(spec, &run, err);
    options->used_us += run.wall_us;
    if (st == IFL_OK) *verdict = run_judge(&run);
    bool cut = spec->limits.wall_ms < job->options.limits.wall_ms;
    if (st == IFL_OK && *verdict == IFL_CODE_TIME_LIMIT && cut)
        st = time_is_up(options, verdict, err);
    if (st == IFL_OK && *verdict == IFL_CODE_OK) {
        st = output_judge(job, &run, (ifl_slice){input, strlen(input)},
                          (ifl_slice){output, strlen(output)}, options, points, err);
        if (*points < 1.0) *verdict = IFL_CODE_WRONG;
    }
    ifl_sandbox_result_clear(&run);
    return st;
}

static ifl_status tests_run(const code_job *job, stdio_options *options, ifl_code_result *result,
                            ifl_error *err) {
    ifl_sandbox_spec spec;
    const json_t *tests = json_object_get(job->task, "tests");
    size_t n = json_array_size(tests); /* 0 for what is no list */
    if (n == 0 || n > IFL_CODE_TESTS_MAX)
        return ifl_fail(err, IFL_FORMAT, "answer.tests: got %zu tests, wanted a list of 1 .. %d", n,
                        IFL_CODE_TESTS_MAX);
    IFL_TRY(stdio_options_read(job->meta, options, err));
    IFL_TRY(program_spec(job, &spec, &result->verdict, err));
    result->total = (int32_t)n;
    if (result->verdict != IFL_CODE_OK) return IFL_OK;
    for (size_t i = 0; i < n; i++) {
        ifl_code_verdict verdict = IFL_CODE_CHECKER_ERROR;
        double points;
        IFL_TRY(test_run(job, &spec, json_array_get(tests, i), options, &verdict, &points, err));
        if (verdict == IFL_CODE_OK)
            result->passed++;
        else
            result->part += points;
        if (verdict != IFL_CODE_OK && result->verdict == IFL_CODE_OK) result->verdict = verdict;
        if (verdict == IFL_CODE_TIME_LIMIT || (verdict != IFL_CODE_OK && !job->options.fraction))
            break;
    }
    return IFL_OK;
}

static ifl_status code_stdio_check(const ifl_reward_request *request, ifl_reward *out,
                                   ifl_error *err) {
    code_job job;
    ifl_status st;
    stdio_options options = {.compare = IFL_COMPARE_TOKENS};
    ifl_code_result result = {.verdict = IFL_CODE_OK};
    if (code_begin(request, &job, out, &st, err)) {
        st = tests_run(&job, &options, &result, err);
        if (st == IFL_FORMAT) {
            out->status = IFL_REWARD_BAD_TASK;
            st = IFL_OK;
        } else if (st != IFL_OK) {
            st = code_host_failed(st, out);
        } else {
            st = code_reward(&result, &job.options, out);
        }
    }
    code_judge_clear(&options.judge);
    code_end(&job);
    return st;
}

static const char *const code_stdio_names[] = {
    "language",       "compare",          "tolerance", "wall_ms", "cpu_ms",
    "memory_mb",      "output_kb",        "processes", "score",   "bare",
    "checker_source", "checker_language", NULL};

const ifl_checker ifl_checker_code_stdio = {
    .name = "code_stdio",
    .version = "1",
    .help = "answer: {\"tests\": [{\"input\": \"1 2\", \"output\": \"3\"}, ...]}; meta: language, "
            "compare (tokens, exact, float, program), tolerance, checker_source, checker_language, "
            "wall_ms, cpu_ms, memory_mb, score (all or "
            "fraction), bare",
    .check = code_stdio_check,
    .flags = IFL_CHECKER_RUNS_PROGRAMS,
    .options = code_stdio_names,
};

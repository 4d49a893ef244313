/* A task's own checker program: it is given a test's input, what the candidate printed and what was
 * expected, as files, in a run of its own after the candidate's is over. Whatever goes wrong with
 * it is about the task or the host, never a verdict over the answer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"
#include "rewards/code/code.h"

#define JUDGE_WALL_MS 10000
#define NUMBER_BYTES_MAX 64
#define DISK_BYTES_MORE (16u << 20) /* for files of its own */
#define EXIT_WRONG 1
#define EXIT_PRESENTATION 2

/* An exception that nobody catches would end as 1, as a verdict does. */
static const char python_start[] =
    "import sys\n"
    "sys.argv = sys.argv[1:]\n"
    "try:\n"
    "    import builtins\n"
    "    with open(sys.argv[0], 'rb') as f:\n"
    "        code = compile(f.read(), sys.argv[0], 'exec')\n"
    "    exec(code, {'__name__': '__main__', '__builtins__': builtins})\n"
    "except SystemExit:\n"
    "    raise\n"
    "except BaseException as e:\n"
    "    print(type(e).__name__ + ':', e, file=sys.stderr)\n"
    "    sys.exit(3)\n";

static ifl_status language_read(const char *name, ifl_code_language *out, ifl_error *err) {
    static const char *const names[] = {
        [IFL_CODE_PYTHON] = "python", [IFL_CODE_C] = "c", [IFL_CODE_CPP] = "cpp"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (ifl_code_language)i;
        return IFL_OK;
    }
    return ifl_fail(err, IFL_FORMAT, "meta.checker_language: got '%.40s', wanted python, c or cpp",
                    name);
}

ifl_status code_judge_make(const json_t *meta, code_judge *out, ifl_error *err) {
    const char *source = NULL, *language = "python";
    ifl_slice binary;
    ifl_code_verdict verdict;
    *out = (code_judge){0};
    IFL_TRY(ifl_json_text(meta, "checker_source", &source, err));
    IFL_TRY(ifl_json_text(meta, "checker_language", &language, err));
    IFL_TRY(language_read(language, &out->language, err));
    if (!source || !*source)
        return ifl_fail(err, IFL_FORMAT,
                        "meta.compare is program: wanted meta.checker_source, a "
                        "program's text");
    out->program = (ifl_slice){source, strlen(source)};
    if (out->language == IFL_CODE_PYTHON) return IFL_OK;
    IFL_TRY(code_compile(out->program, out->language, &binary, &verdict, err));
    if (verdict != IFL_CODE_OK)
        return ifl_fail(err, IFL_FORMAT, "meta.checker_source: the checker program: %s",
                        ifl_code_verdict_name(verdict));
    out->binary = malloc(binary.n); /* the next compilation may take its place */
    if (!out->binary) return ifl_fail(err, IFL_NOMEM, "no memory for a checker program");
    memcpy(out->binary, binary.text, binary.n);
    out->program = (ifl_slice){out->binary, binary.n};
    return IFL_OK;
}

void code_judge_clear(code_judge *judge) {
    free(judge->binary);
    judge->binary = NULL;
}

/* A number as all that it printed, if it did. */
static ifl_status points_read(const ifl_sandbox_result *run, double *points, ifl_error *err) {
    char text[NUMBER_BYTES_MAX], *end;
    ifl_slice got = ifl_slice_trim((ifl_slice){run->out.bytes ? run->out.bytes : "", run->out.n});
    *points = 1.0;
    if (got.n == 0 || got.n >= sizeof text) return IFL_OK;
    memcpy(text, got.text, got.n);
    text[got.n] = '\0';
    double v = strtod(text, &end);
    if (end == text || *end) return IFL_OK; /* words for people */
    if (!(v >= 0.0 && v <= 1.0))
        return ifl_fail(err, IFL_FORMAT, "the task's checker program printed %.40s, wanted 0 .. 1",
                        text);
    *points = v;
    return IFL_OK;
}

static ifl_status verdict_read(const ifl_sandbox_result *run, double *points, ifl_error *err) {
    bool late = run->end == IFL_RUN_WALL || run->end == IFL_RUN_CPU;
    *points = 0.0;
    if (run->end == IFL_RUN_EXITED && run->code == 0) return points_read(run, points, err);
    if (run->end == IFL_RUN_EXITED && (run->code == EXIT_WRONG || run->code == EXIT_PRESENTATION))
        return IFL_OK;
    return ifl_fail(err, late ? IFL_TIMEOUT : IFL_FORMAT,
                    "the task's checker program ended as %s with %d, wanted exit status 0 (right), "
                    "1 or 2 (wrong): %.300s",
                    ifl_run_end_name(run->end), run->code, run->err.bytes ? run->err.bytes : "");
}

ifl_status code_judge_ask(code_judge *judge, const ifl_code_options *options, ifl_slice input,
                          ifl_slice output, ifl_slice expected, double *points, ifl_error *err) {
    bool python = judge->language == IFL_CODE_PYTHON;
    const ifl_slice texts[] = {input, output, expected, judge->program};
    const char *const names[] = {"input", "output", "expected", python ? "checker.py" : "checker"};
    ifl_sandbox_spec spec = {.limits = ifl_sandbox_limits_default(), .n_files = 4};
    int n = 0;
    if (python) {
        spec.argv[n++] = "/usr/bin/python3";
        spec.argv[n++] = "-I";
        spec.argv[n++] = "-c";
        spec.argv[n++] = python_start;
    }
    spec.argv[n++] = python ? "/work/checker.py" : "/work/checker";
    spec.argv[n++] = "/work/input";
    spec.argv[n++] = "/work/output";
    spec.argv[n++] = "/work/expected";
    spec.limits.wall_ms = spec.limits.cpu_ms = JUDGE_WALL_MS;
    spec.limits.disk_bytes = DISK_BYTES_MORE;
    for (int i = 0; i < 4; i++) {
        spec.files[i] = (ifl_sandbox_file){names[i], texts[i].n ? texts[i].text : "", texts[i].n,
                                           i == 3 && !python};
        spec.limits.disk_bytes += texts[i].n + 4096;
    }
    if (!code_time_left(options, &spec.limits))
        return ifl_fail(err, IFL_TIMEOUT, "no time is left for the task's checker program");
    ifl_sandbox_result run;
    ifl_status st = code_execute(&spec, &run, err);
    judge->used_us += run.wall_us;
    if (st == IFL_OK) st = verdict_read(&run, points, err);
    ifl_sandbox_result_clear(&run);
    return st;
}

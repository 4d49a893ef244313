/* Code rewards: programs of a policy's making run in the sandbox; what they say is compared here,
 * on the host, with what they never see. Inside rewards/ only, but for ifl_code_setup. */
#ifndef IFL_REWARDS_CODE_H
#define IFL_REWARDS_CODE_H

#include "rewards/checkers.h"
#include "rewards/sandbox/sandbox.h"

#define IFL_CODE_BYTES_MAX (256u << 10)
#define IFL_CODE_TESTS_MAX 1024
#define IFL_CODE_TOTAL_MS 60000 /* for all tests of an answer, where the pool allows as much */

extern const ifl_checker ifl_checker_code_unit;
extern const ifl_checker ifl_checker_code_stdio;

/* Of one test, or of a sample: that of its first failing test. Those up to SANDBOX_VIOLATION are
 * about the program and pay 0 (or a share); the others are about the task or the host and never
 * train. */
#define IFL_CODE_VERDICT_MAP(X)                                                                    \
    X(OK, "ok")                                                                                    \
    X(WRONG, "wrong")                                                                              \
    X(NO_ANSWER, "no_answer")                                                                      \
    X(TIME_LIMIT, "time_limit")                                                                    \
    X(MEMORY_LIMIT, "memory_limit")                                                                \
    X(OUTPUT_LIMIT, "output_limit")                                                                \
    X(RUNTIME_ERROR, "runtime_error")                                                              \
    X(COMPILE_ERROR, "compile_error")                                                              \
    X(SANDBOX_VIOLATION, "sandbox_violation")                                                      \
    X(BAD_TASK, "bad_task")                                                                        \
    X(CHECKER_ERROR, "checker_error")                                                              \
    X(UNAVAILABLE, "unavailable")

typedef enum {
#define IFL_CODE_VERDICT_ENUM(name, text) IFL_CODE_##name,
    IFL_CODE_VERDICT_MAP(IFL_CODE_VERDICT_ENUM)
#undef IFL_CODE_VERDICT_ENUM
        IFL_CODE_VERDICT_COUNT
} ifl_code_verdict;

const char *ifl_code_verdict_name(ifl_code_verdict verdict);

typedef enum { IFL_CODE_PYTHON, IFL_CODE_C, IFL_CODE_CPP } ifl_code_language;

typedef struct ifl_code_options {
    ifl_code_language language;
    ifl_sandbox_limits limits;
    bool fraction;       /* reward is the share of passed tests, else all or nothing */
    bool bare;           /* a completion without a fenced block is code as a whole */
    int64_t deadline_ns; /* of all tests together: before the pool loses patience and masks what
                            should pay nothing */
} ifl_code_options;

typedef struct ifl_code_result {
    ifl_code_verdict verdict;
    int32_t passed, total;
    double part; /* of tests that were not passed: what a task's own checker gave them */
} ifl_code_result;

/* What this process's sandbox is made with; before the first check (else: the defaults). Borrowed.
 * For tests and for the worker's configuration. */
void ifl_code_setup(const ifl_sandbox_options *options);
void ifl_code_teardown(void); /* frees the sandbox and the caches */

/* The process's sandbox, made at the first call; made anew after its launcher has died. Not
 * thread-safe: a checker runs in a worker of its own. */
ifl_status code_sandbox(ifl_sandbox **out, ifl_error *err);

/* meta: language, wall_ms, cpu_ms, memory_mb, output_kb, processes, score (all | fraction), bare.
 */
ifl_status code_options_read(const json_t *meta, int32_t timeout_ms, ifl_code_options *out,
                             ifl_error *err);

/* What a checker does first: meta and answer as objects (owned), options, and the code. False when
 * there is nothing to run: `out` has its verdict then. *st is what the checker returns. */
typedef struct code_job {
    json_t *meta, *task;
    ifl_code_options options;
    ifl_slice code;
} code_job;
bool code_begin(const ifl_reward_request *request, code_job *job, ifl_reward *out, ifl_status *st,
                ifl_error *err);
void code_end(code_job *job);

/* Lowers the limits to the time that is left; false when none is. */
bool code_time_left(const ifl_code_options *options, ifl_sandbox_limits *limits);

/* A failure of the host's: UNAVAILABLE where it cannot isolate, else as it is. */
ifl_status code_host_failed(ifl_status st, ifl_reward *out);

/* The last fenced block behind the end of thinking that is of the language (or of none). false when
 * there is none or it is longer than IFL_CODE_BYTES_MAX. */
bool code_extract(const char *text, size_t n, const ifl_code_options *options, ifl_slice *out);

/* What a run that did not say anything usable comes to. */
ifl_code_verdict code_verdict_of_run(const ifl_sandbox_result *run);

#define IFL_CODE_NONCE_MAX 33
void code_nonce(char out[IFL_CODE_NONCE_MAX]); /* hex digits nobody can guess */

/* Runs, once more when the wall limit struck on a loaded machine before the CPU limit could. */
ifl_status code_execute(const ifl_sandbox_spec *spec, ifl_sandbox_result *result, ifl_error *err);

/* The reward of a result; IFL_OK always. */
ifl_status code_reward(const ifl_code_result *result, const ifl_code_options *options,
                       ifl_reward *out);

/* compare.c: what a program printed against what was wanted. */
typedef enum { IFL_COMPARE_TOKENS, IFL_COMPARE_EXACT, IFL_COMPARE_FLOAT } ifl_compare;
bool code_output_equal(ifl_slice got, ifl_slice want, ifl_compare how, double tolerance);

/* judge.c: a task's own checker program, meta.checker_source in meta.checker_language. It is run
 * like a candidate, in the sandbox, as `checker INPUT OUTPUT EXPECTED`. */
typedef struct code_judge {
    ifl_code_language language;
    ifl_slice program; /* the text or `binary`; borrows from meta */
    char *binary;      /* owned */
    int64_t used_us;   /* so far */
} code_judge;

/* IFL_FORMAT: the task's fault, also when it doesn't compile. To be cleared even so. */
ifl_status code_judge_make(const json_t *meta, code_judge *out, ifl_error *err);
void code_judge_clear(code_judge *judge);
/* Exit status 0: right, or what number 0 .. 1 it printed; 1 and 2: 0 points. All else is a failure:
 * IFL_TIMEOUT past its time, IFL_FORMAT when it crashed. */
ifl_status code_judge_ask(code_judge *judge, const ifl_code_options *options, ifl_slice input,
                          ifl_slice output, ifl_slice expected, double *points, ifl_error *err);

/* native.c: compiles C or C++ in the sandbox, once per text (the last IFL_CODE_BINARIES stay).
 * *binary is borrowed until the next call. A compiler's refusal, or its limits: a verdict other
 * than OK. */
#define IFL_CODE_BINARIES 16
ifl_status code_compile(ifl_slice source, ifl_code_language language, ifl_slice *binary,
                        ifl_code_verdict *verdict, ifl_error *err);
void code_compile_forget(void);
#define CODE_CPP "g++ -std=c++17 -O2 -pipe -w"

/* headers.c: whether <bits/stdc++.h> lies precompiled in the sandbox's kept folder for a source
 * that includes it; the third that does starts that, beside the runs. */
bool code_headers_ready(ifl_slice source);
bool code_headers_wait(void);   /* until it is known, once started; for tests */
void code_headers_forget(void); /* before the sandbox goes; waits for what is under way */
void code_unit_forget(void);

/* unit_native.c: code_unit in C and C++. */
ifl_status code_unit_native(const code_job *job, ifl_code_result *result, ifl_reward *out,
                            ifl_error *err);

/* Whether `text` is a first frame with this nonce and equals `want`. */
ifl_code_verdict code_frame_judge(const ifl_sandbox_result *run, const char *nonce, ifl_slice want);

/* scripts.c: what runs inside, as Python text. */
extern const char code_script_unit[];    /* one call in a process */
extern const char code_script_serve[];   /* calls that a driver asks for */
extern const char code_script_driver[];  /* the driver of a check function */
extern const char code_script_prepare[]; /* tests into (call, expected value) */

#endif

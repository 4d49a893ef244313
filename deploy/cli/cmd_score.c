/* inflight score: runs a checker on answers, in the same worker processes that an actor uses. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/memory.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/options.h"
#include "deploy/cli/score_input.h"
#include "rewards/programs.h"
#include "rewards/spec.h"

#define IN_FLIGHT_PER_WORKER 4
#define PROGRESS_NS 200000000

typedef struct score_args {
    const ifl_config *config;
    const char *checker, *tasks, *completions, *out, *meta;
    bool list;
    const char *gold, *pred; /* --pair */
} score_args;

/* A result waiting until those before it are written: the output has the input's order. */
typedef struct score_result {
    uint64_t id; /* running number of its line */
    bool done;
    char *task_id, *reason;
    ifl_reward reward;
} score_result;

typedef struct score_run {
    const ifl_config *config;
    ifl_spec *spec;
    bool programs; /* are run, and the sandbox for them has been found fit */
    ifl_reward_pool *pool;
    FILE *out;
    score_result *window; /* ring, [n_window] by running number */
    uint64_t n_window, n_submitted, n_written;
    int64_t n_by_status[IFL_REWARD_STATUS_COUNT], n_verdicts, n_right;
    double reward_sum;
    int64_t progress_ns;
    bool terminal;
    char first_failure[512];
} score_run;

enum {
    KEY_CHECKER = 'k',
    KEY_TASKS = 't',
    KEY_COMPLETIONS = 'a',
    KEY_OUT = 'o',
    KEY_WORKERS = 'w',
    KEY_TIMEOUT = 1,
    KEY_REQUIRE = 2,
    KEY_META = 'm',
    KEY_LIST = 'l',
    KEY_PAIR = 'p'
};

static const struct argp_option score_options[] = {
    {"checker", KEY_CHECKER, "NAME", 0,
     "for all tasks (default: what each task names, then reward.checker)", 0},
    {"tasks", KEY_TASKS, "FILE", 0, "JSONL: {id?, prompt, answer, checker?, meta?}", 0},
    {"completions", KEY_COMPLETIONS, "FILE", 0,
     "JSONL: {id?, completion, finish?}; matched by id, or line by line", 0},
    {"out", KEY_OUT, "FILE", 0, "one JSON result per completion (default: standard output)", 0},
    {"pair", KEY_PAIR, "GOLD PRED", 0, "score one answer instead of files", 0},
    {"meta", KEY_META, "JSON", 0, "with --pair: the task's meta", 0},
    {"workers", KEY_WORKERS, "N", 0, "reward.workers: checker processes (default 2)", 0},
    {"timeout-ms", KEY_TIMEOUT, "N", 0, "reward.timeout_ms: per answer (default 10000)", 0},
    {"sandbox-require", KEY_REQUIRE, "TIER", 0,
     "reward.sandbox_require: least isolation of programs, ns or cgroup (default ns)", 0},
    {"list", KEY_LIST, NULL, 0, "list the checkers and stop", 0},
    {0}};

static const ifl_option_key score_keys[] = {{KEY_WORKERS, "reward.workers", NULL},
                                            {KEY_TIMEOUT, "reward.timeout_ms", NULL},
                                            {KEY_REQUIRE, "reward.sandbox_require", NULL},
                                            {0}};

static ifl_status score_option(int key, const char *arg, void *user, ifl_error *err) {
    score_args *a = user;
    switch (key) {
    case KEY_CHECKER:
        a->checker = arg;
        return IFL_OK;
    case KEY_TASKS:
        a->tasks = arg;
        return IFL_OK;
    case KEY_COMPLETIONS:
        a->completions = arg;
        return IFL_OK;
    case KEY_OUT:
        a->out = arg;
        return IFL_OK;
    case KEY_META:
        a->meta = arg;
        return IFL_OK;
    case KEY_LIST:
        a->list = true;
        return IFL_OK;
    case KEY_PAIR:
        return ifl_fail(err, IFL_USAGE, "--pair: wanted --pair GOLD PRED, two words");
    default:
        return IFL_USAGE;
    }
}

/* Takes "--pair GOLD PRED" out of argv: answers such as -5 or x=5 must not be read as options. */
static int pair_take(int argc, char **argv, score_args *a) {
    for (int i = 1; i + 2 < argc; i++) {
        if (strcmp(argv[i], "--pair") != 0) continue;
        a->gold = argv[i + 1];
        a->pred = argv[i + 2];
        for (int j = i; j + 3 <= argc; j++)
            argv[j] = argv[j + 3];
        return argc - 3;
    }
    return argc;
}

static ifl_status args_check(const score_args *a, ifl_error *err) {
    ifl_spec *spec;
    IFL_TRY(ifl_spec_check_config(a->config, err));
    IFL_TRY(ifl_spec_parse(&spec, a->config->reward.checkers, err));
    bool known = !a->checker || ifl_spec_knows(spec, a->checker);
    ifl_spec_free(spec);
    if (!known)
        return ifl_fail(err, IFL_USAGE, "--checker: there is no '%.60s'; --list shows them",
                        a->checker);
    if (a->pred && (a->tasks || a->completions))
        return ifl_fail(err, IFL_USAGE, "--pair or --tasks and --completions, not both");
    if (a->pred && !a->checker)
        return ifl_fail(err, IFL_USAGE, "--pair wants --checker NAME as well");
    if (!a->pred && !(a->tasks && a->completions))
        return ifl_fail(err, IFL_USAGE,
                        "wanted --tasks FILE and --completions FILE, or --pair GOLD PRED");
    return IFL_OK;
}

/* --- Results
 * ------------------------------------------------------------------------------------------- */

/* To the microsecond: what lies behind is noise. */
static json_t *seconds_json(float s) {
    return json_real(round((double)s * 1e6) / 1e6);
}

static ifl_status result_write(FILE *out, const char *task_id, const ifl_reward *r,
                               const char *reason, ifl_error *err) {
    json_t *o = json_object();
    if (task_id) json_object_set_new(o, "id", json_string(task_id));
    json_object_set_new(o, "status", json_string(ifl_reward_status_name(r->status)));
    /* No reward is no zero: a status that is no verdict has none. */
    json_object_set_new(
        o, "reward", ifl_reward_is_verdict(r->status) ? json_real((double)r->reward) : json_null());
    json_object_set_new(o, "checker", json_string(r->checker));
    if (r->n_components > 0) {
        json_t *components = json_object();
        for (int32_t i = 0; i < r->n_components; i++)
            json_object_set_new(components, r->components[i].name,
                                json_real((double)r->components[i].value));
        json_object_set_new(o, "components", components);
    }
    if (r->tests_total > 0) {
        json_object_set_new(o, "tests_passed", json_integer(r->tests_passed));
        json_object_set_new(o, "tests_total", json_integer(r->tests_total));
    }
    json_object_set_new(o, "queued_s", seconds_json(r->queued_s));
    json_object_set_new(o, "run_s", seconds_json(r->run_s));
    if (r->config) {
        char config[17];
        snprintf(config, sizeof config, "%016" PRIx64, r->config);
        json_object_set_new(o, "config", json_string(config));
    }
    if (r->tier)
        json_object_set_new(o, "tier",
                            json_string(ifl_sandbox_tier_name((ifl_sandbox_tier)r->tier)));
    if (reason && *reason) json_object_set_new(o, "reason", json_string(reason));
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (!text) return ifl_fail(err, IFL_NOMEM, "score: no memory for a result");
    int code = fprintf(out, "%s\n", text);
    free(text);
    return code < 0 ? ifl_fail(err, IFL_IO, "score: a result cannot be written: %m") : IFL_OK;
}

static void run_progress(score_run *run, bool last) {
    int64_t now = ifl_clock_ns();
    if (!run->terminal || (!last && now - run->progress_ns < PROGRESS_NS)) return;
    run->progress_ns = now;
    fprintf(stderr, "\r%" PRIu64 " scored, mean reward %.3f\x1b[K%s", run->n_written,
            run->n_verdicts ? run->reward_sum / (double)run->n_verdicts : 0.0,
            last ? "\r\x1b[K" : "");
}

/* Writes what is complete at the front of the window. */
static ifl_status run_write(score_run *run, ifl_error *err) {
    while (run->n_written < run->n_submitted) {
        score_result *r = &run->window[run->n_written % run->n_window];
        if (!r->done) break;
        IFL_TRY(result_write(run->out, r->task_id, &r->reward, r->reason, err));
        run->n_by_status[r->reward.status]++;
        if (ifl_reward_is_verdict(r->reward.status)) {
            run->n_verdicts++;
            run->reward_sum += (double)r->reward.reward;
            run->n_right += r->reward.reward == 1.0f;
        } else if (!run->first_failure[0]) {
            snprintf(run->first_failure, sizeof run->first_failure, "%.100s: %.350s", r->task_id,
                     r->reason ? r->reason : "");
        }
        free(r->task_id);
        free(r->reason);
        memset(r, 0, sizeof *r);
        run->n_written++;
    }
    run_progress(run, false);
    return IFL_OK;
}

static ifl_status run_collect(score_run *run, ifl_error *err) {
    uint64_t id = 0;
    ifl_reward reward;
    ifl_error why = {0};
    ifl_status st = ifl_reward_pool_collect(run->pool, 1000, &id, &reward, &why);
    if (st == IFL_AGAIN) return IFL_OK;
    if (st != IFL_OK) {
        if (err) *err = why;
        return st;
    }
    score_result *r = &run->window[id % run->n_window];
    IFL_ASSERT(r->id == id && !r->done);
    r->reward = reward;
    r->done = true;
    if (*why.text) {
        r->reason = strdup(why.text);
        if (!r->reason) return ifl_fail(err, IFL_NOMEM, "score: no memory for a result");
    }
    return run_write(run, err);
}

static ifl_status run_submit(score_run *run, const char *task_id, ifl_reward_request *request,
                             ifl_error *err) {
    if (!run->programs && ifl_checker_runs_programs(run->spec, request->checker)) {
        IFL_TRY(ifl_programs_start(run->config, NULL, err));
        run->programs = true;
    }
    score_result *r = &run->window[run->n_submitted % run->n_window];
    request->id = run->n_submitted;
    r->id = request->id;
    r->task_id = strdup(task_id);
    if (!r->task_id) return ifl_fail(err, IFL_NOMEM, "score: no memory for a result");
    run->n_submitted++; /* from here on the window owns it */
    return ifl_reward_pool_submit(run->pool, request, err);
}

static ifl_status run_files(score_run *run, const score_args *a, ifl_error *err) {
    ifl_score_input input;
    ifl_status st = ifl_score_input_open(&input, a->tasks, a->completions, err);
    if (st != IFL_OK) return st;
    for (;;) {
        ifl_scored_line line;
        st = ifl_score_input_next(&input, &line, err);
        if (st != IFL_OK) break;
        const ifl_task *task = &line.task.task;
        char checker[64];
        ifl_config_checker(a->config, a->checker ? a->checker : task->checker, task->data_source,
                           checker);
        if (!*checker)
            st =
                ifl_fail(err, IFL_USAGE, "task %s names no checker: give --checker NAME", task->id);
        ifl_reward_request request = {.checker = checker,
                                      .prompt = line.task.text ? line.task.text : "",
                                      .completion = line.completion,
                                      .n_completion = line.n_completion,
                                      .answer = task->answer,
                                      .meta = task->meta,
                                      .finish = line.finish};
        while (st == IFL_OK && run->n_submitted - run->n_written >= run->n_window)
            st = run_collect(run, err);
        if (st == IFL_OK) st = run_submit(run, task->id, &request, err);
        ifl_scored_line_clear(&line);
        if (st != IFL_OK) break;
    }
    if (st == IFL_NOTFOUND) st = IFL_OK; /* the end of the completions */
    while (st == IFL_OK && run->n_written < run->n_submitted)
        st = run_collect(run, err);
    if (st == IFL_OK && !input.by_id && input.n_read < ifl_task_file_size(input.tasks))
        fprintf(stderr, "score: %" PRId64 " completions for %" PRId64 " tasks: the rest has none\n",
                input.n_read, ifl_task_file_size(input.tasks));
    ifl_score_input_close(&input);
    return st;
}

static ifl_status run_summary(const score_run *run, ifl_error *err) {
    int64_t n_ok = run->n_verdicts;
    int64_t n_failed =
        run->n_by_status[IFL_REWARD_CHECKER_ERROR] + run->n_by_status[IFL_REWARD_UNAVAILABLE];
    fprintf(stderr,
            "score: %" PRIu64 " completions, %" PRId64 " scored, %" PRId64
            " right, mean reward %.4f",
            run->n_written, n_ok, run->n_right, n_ok ? run->reward_sum / (double)n_ok : 0.0);
    for (int s = IFL_REWARD_UNDECIDED; s < IFL_REWARD_STATUS_COUNT; s++)
        if (run->n_by_status[s] && s != IFL_REWARD_WRONG)
            fprintf(stderr, ", %" PRId64 " %s", run->n_by_status[s],
                    ifl_reward_status_name((ifl_reward_status)s));
    int64_t n_cached = ifl_reward_pool_stats_get(run->pool).n_cached;
    if (n_cached) fprintf(stderr, "; %" PRId64 " as the same answer before", n_cached);
    fprintf(stderr, "\n");
    if (n_failed)
        return ifl_fail(err, IFL_PEER,
                        "%" PRId64
                        " completions could not be scored by a fault of the checker or its "
                        "process; the first without a reward: %s",
                        n_failed, run->first_failure);
    if (run->first_failure[0])
        fprintf(stderr, "score: the first without a reward: %s\n", run->first_failure);
    return IFL_OK;
}

static ifl_status run_pair(score_run *run, const score_args *a, ifl_error *err) {
    ifl_reward_request request = {.checker = a->checker,
                                  .prompt = "",
                                  .completion = a->pred,
                                  .n_completion = strlen(a->pred),
                                  .answer = a->gold,
                                  .meta = a->meta,
                                  .finish = IFL_FINISH_EOS};
    IFL_TRY(run_submit(run, "pair", &request, err));
    while (run->n_written < run->n_submitted)
        IFL_TRY(run_collect(run, err));
    if (run->n_by_status[IFL_REWARD_CHECKER_ERROR] || run->n_by_status[IFL_REWARD_UNAVAILABLE])
        return ifl_fail(err, IFL_PEER, "%s", run->first_failure);
    return IFL_OK;
}

static ifl_status score(const score_args *a, ifl_error *err) {
    score_run run = {.out = stdout,
                     .config = a->config,
                     .n_window = (uint64_t)a->config->reward.workers * IN_FLIGHT_PER_WORKER};
    ifl_reward_pool_options options = {
        .n_workers = a->config->reward.workers,
        .timeout_ms = a->config->reward.timeout_ms,
        .queue_max = (int32_t)run.n_window,
        .checkers = a->config->reward.checkers,
        .cache_bytes = (int64_t)a->config->reward.cache_mib << 20,
        .retries = strcmp(a->config->reward.on_error, "retry") == 0 ? a->config->reward.retries : 0,
        .require = ifl_sandbox_tier_parse(a->config->reward.sandbox_require),
    };
    ifl_status st;
    run.terminal = isatty(STDERR_FILENO) && (a->out || !isatty(STDOUT_FILENO));
    run.window = ifl_alloc(run.n_window, sizeof *run.window);
    if (!run.window) return ifl_fail(err, IFL_NOMEM, "score: no memory for its window");
    IFL_TRY_GOTO(st, ifl_spec_parse(&run.spec, a->config->reward.checkers, err), done);
    IFL_TRY_GOTO(st, ifl_reward_pool_create(&run.pool, &options, err), done);
    if (a->out && !(run.out = fopen(a->out, "w"))) {
        run.out = stdout;
        st = ifl_fail(err, IFL_IO, "%s: cannot open for writing: %m", a->out);
        goto done;
    }
    st = a->pred ? run_pair(&run, a, err) : run_files(&run, a, err);
    run_progress(&run, true);
    if (st == IFL_OK && !a->pred) st = run_summary(&run, err);
done:
    if (fflush(run.out) != 0 && st == IFL_OK)
        st = ifl_fail(err, IFL_IO, "%s: %m", a->out ? a->out : "standard output");
    if (run.out != stdout && fclose(run.out) != 0 && st == IFL_OK)
        st = ifl_fail(err, IFL_IO, "%s: %m", a->out);
    ifl_reward_pool_free(run.pool);
    ifl_spec_free(run.spec);
    for (uint64_t i = 0; i < run.n_window; i++) {
        free(run.window[i].task_id);
        free(run.window[i].reason);
    }
    ifl_free(run.window);
    return st;
}

static ifl_status checkers_print(const char *checkers, ifl_error *err) {
    ifl_spec *spec;
    IFL_TRY(ifl_spec_parse(&spec, checkers, err));

    const ifl_checker *all[64];
    int n = ifl_checker_list(all, 64);
    for (int i = 0; i < n; i++)
        printf("%-10s version %s: %s\n", all[i]->name, all[i]->version, all[i]->help);
    for (int32_t i = 0; i < spec->n; i++) {
        const ifl_spec_entry *e = &spec->entries[i];
        printf("%-10s of reward.checkers, use: %s, options %016" PRIx64 "\n", e->name,
               e->builtin ? e->builtin->name : ifl_spec_kind_name(e->kind), e->config);
    }
    ifl_spec_free(spec);
    return IFL_OK;
}

static ifl_status score_work(const ifl_options *options, void *user, ifl_error *err) {
    score_args *a = user;
    a->config = options->config;
    if (a->list) {
        return checkers_print(a->config->reward.checkers, err);
    }
    IFL_TRY(args_check(a, err));
    return score(a, err);
}

static ifl_status score_dry_run(const ifl_options *options, void *user, ifl_error *err) {
    score_args *a = user;
    a->config = options->config;
    ifl_options_print(options, stdout);
    IFL_TRY(args_check(a, err));
    if (a->checker) printf("# checker %s for all tasks\n", a->checker);
    if (a->pred)
        printf("# one answer, to standard output\n");
    else
        printf("# reads   %s\n# reads   %s\n# writes  %s\n", a->tasks, a->completions,
               a->out ? a->out : "standard output");
    return IFL_OK;
}

int ifl_cmd_score(int argc, char **argv) {
    /* No checker of ours: a task that names none is then a mistake, not an exact match. */
    static const char *const presets[] = {"reward.checker=", "reward.workers=2",
                                          "reward.timeout_ms=10000", NULL};
    score_args mine = {0};
    argc = pair_take(argc, argv, &mine);
    const ifl_options_spec spec = {
        .doc =
            "Runs a checker on answers: one JSON result per line, in the order of the answers, a "
            "summary on standard error. An answer without a verdict has no reward and says why. "
            "Exit status 69 when checkers failed.",
        .extra = score_options,
        .keys = score_keys,
        .presets = presets,
        .on_option = score_option,
        .user = &mine,
        .work = score_work,
        .dry_run = score_dry_run,
    };
    return ifl_options_run(argc, argv, &spec);
}

/* Evaluation without a run: one engine in this process, the checkers beside it. It generates and
 * judges without the learner's leases and books, so that it can check what a run says about itself;
 * the statistics and the file of results are the learner's. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "actor/engine.h"
#include "common/clock.h"
#include "common/memory.h"
#include "common/task.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/options.h"
#include "learner/eval_figures.h"
#include "learner/eval_results.h"
#include "rewards/programs.h"
#include "rewards/spec.h"

typedef struct eval_arguments {
    int64_t n_tasks, n_samples;
    bool json;
    const char *out, *compare, *from; /* files of results; NULL = none */
} eval_arguments;

typedef struct evaluation {
    const ifl_config *config;
    const ifl_loaded_model *loaded;
    ifl_task_set *set;
    ifl_engine *engine;
    ifl_reward_pool *pool;
    int32_t n_tasks, n_samples;
    ifl_task *tasks;          /* [n_tasks] */
    ifl_eval_results results; /* one row a task */
    ifl_eval_results before;  /* of --compare */
    int64_t n_unscored, n_tokens, n_truncated;
    int64_t n_done, n_all; /* answers */
    double seconds;
} evaluation;

static ifl_status eval_submit(evaluation *e, int32_t task, bool greedy, ifl_error *err) {
    const ifl_config *c = e->config;
    const char *stops[IFL_STOPS_MAX];
    for (int32_t i = 0; i < c->rollout.n_stops; i++)
        stops[i] = c->rollout.stops[i];
    ifl_engine_request request = {
        .task_serial = (uint64_t)(greedy ? task : e->n_tasks + task),
        .lease_id = 1,
        .task_id = e->tasks[task].id,
        .purpose = IFL_PURPOSE_EVAL,
        .prompt = e->tasks[task].prompt,
        .n_prompt = e->tasks[task].n_prompt,
        .n_samples = greedy ? 1 : e->n_samples,
        .n_samples_now = greedy ? 1 : e->n_samples,
        .sampling = {greedy ? 0.0f : (float)c->rollout.temperature, greedy ? 0 : c->rollout.top_k,
                     greedy ? 1.0f : (float)c->rollout.top_p},
        .max_new_tokens = e->tasks[task].max_new_tokens > 0 ? e->tasks[task].max_new_tokens
                                                            : c->rollout.max_new_tokens,
        .n_stops = c->rollout.n_stops,
        .stops = stops,
    };
    return ifl_engine_submit(e->engine, &request, err);
}

static ifl_status eval_collect(evaluation *e, int64_t wait_ms, ifl_error *err) {
    for (;;) {
        uint64_t id;
        ifl_reward reward;
        ifl_error reason = {0};
        ifl_status st = ifl_reward_pool_collect(e->pool, wait_ms, &id, &reward, &reason);
        if (st == IFL_AGAIN) return IFL_OK;
        if (st != IFL_OK) {
            if (err) *err = reason;
            return st;
        }
        ifl_eval_row *row = &e->results.rows[id % (uint64_t)e->n_tasks];
        if (!ifl_eval_judged(reward.status, reward.reward)) e->n_unscored++;
        if (id < (uint64_t)e->n_tasks) {
            row->status = reward.status;
            row->reward = reward.reward;
        } else {
            row->n_judged += ifl_eval_judged(reward.status, reward.reward);
            row->n_right += ifl_eval_right(reward.status, reward.reward);
        }
        e->n_done++;
        if (wait_ms > 0) return IFL_OK;
    }
}

static ifl_status eval_check(evaluation *e, const ifl_trajectory *traj, ifl_error *err) {
    int32_t task = (int32_t)(traj->task_serial % (uint64_t)e->n_tasks);
    const ifl_task *t = &e->tasks[task];
    char *answer, checker[64];
    ifl_config_checker(e->config, t->checker, t->data_source, checker);
    IFL_TRY(ifl_eval_answer_text(&answer, e->loaded->tokenizer, e->config, traj, err));
    ifl_reward_request request = {
        .id = traj->task_serial,
        .checker = checker,
        .prompt = t->text ? t->text : "",
        .completion = answer,
        .n_completion = strlen(answer),
        .answer = t->answer,
        .meta = t->meta,
        .finish = traj->finish,
    };
    ifl_status st = ifl_reward_pool_submit(e->pool, &request, err);
    while (st == IFL_FULL) { /* slow checkers: room comes with each result */
        st = eval_collect(e, 50, err);
        if (st == IFL_OK) st = ifl_reward_pool_submit(e->pool, &request, err);
    }
    bool greedy = traj->task_serial < (uint64_t)e->n_tasks;
    if (greedy && !e->results.rows[task].answer)
        e->results.rows[task].answer = answer;
    else
        free(answer);
    e->n_tokens += traj->n_tokens - ifl_trajectory_n_prompt(traj);
    e->n_truncated += traj->finish == IFL_FINISH_LENGTH;
    return st;
}

static ifl_status eval_run(evaluation *e, ifl_error *err) {
    double drawn_s = 0.0;
    int32_t next = 0, rounds = e->n_samples > 0 ? 2 : 1;
    e->n_all = (int64_t)e->n_tasks * (1 + e->n_samples);
    while (e->n_done < e->n_all) {
        while (next < rounds * e->n_tasks &&
               ifl_engine_queued(e->engine) < e->config->actor.sequences_max) {
            IFL_TRY(eval_submit(e, next % e->n_tasks, next < e->n_tasks, err));
            next++;
        }
        int32_t n_decoded = 0;
        if (!ifl_engine_idle(e->engine)) IFL_TRY(ifl_engine_step(e->engine, &n_decoded, err));
        ifl_trajectory *traj;
        while ((traj = ifl_engine_take_finished(e->engine, NULL)) != NULL) {
            ifl_status st = eval_check(e, traj, err);
            ifl_trajectory_free(traj);
            IFL_TRY(st);
        }
        IFL_TRY(eval_collect(e, ifl_engine_idle(e->engine) ? 50 : 0, err));
        if (isatty(STDERR_FILENO) && ifl_clock_s() - drawn_s > 0.2) {
            drawn_s = ifl_clock_s();
            fprintf(stderr, "\r%lld of %lld answers", (long long)e->n_done, (long long)e->n_all);
        }
    }
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r%40s\r", "");
    return IFL_OK;
}

/* --- What it says
 * --------------------------------------------------------------------------------- */

static void figures_print(const ifl_eval_figures *f, const char *source) {
    const char *indent = source ? "  " : "";
    if (source) printf("  %s: ", source);
    printf("%s %.4f on %lld tasks (95 %%: %.4f to %.4f)", source ? "greedy" : "greedy accuracy",
           f->accuracy, (long long)f->n, f->interval.low, f->interval.high);
    if (f->n_unscored > 0) printf(", %lld left out: not scored", (long long)f->n_unscored);
    printf("\n");
    if (f->k == 0) return;
    printf("%s%s%d samples each: avg@%d %.4f, pass@%d %.4f", indent, indent, f->k, f->k,
           f->avg.mean, f->k, f->pass.mean);
    if (f->n_samples_unscored > 0)
        printf(", %lld samples not scored, %lld tasks left out of pass@%d",
               (long long)f->n_samples_unscored, (long long)f->pass.n_left_out, f->k);
    printf("\n");
}

/* Takes `object`: one source's into an array, the whole's into another object. */
static ifl_status json_into(json_t *into, json_t *object, bool element, ifl_error *err) {
    int failed = element  ? json_array_append(into, object)
                 : object ? json_object_update(into, object)
                          : -1;
    json_decref(object);
    return failed ? ifl_fail(err, IFL_NOMEM, "eval: out of memory") : IFL_OK;
}

/* Of the whole or of one source; `into` NULL: as text. */
static ifl_status figures_say(const evaluation *e, int32_t source, json_t *into, ifl_error *err) {
    ifl_eval_figures f;
    const char *name = source >= 0 ? e->results.sources[source] : NULL;
    IFL_TRY(ifl_eval_figures_make(&f, &e->results, source, err));
    if (name && f.n + f.n_unscored == 0) return IFL_OK; /* none among the first so many tasks */
    if (!into) {
        figures_print(&f, name);
        return IFL_OK;
    }
    return json_into(into, ifl_eval_figures_json(&f, name), name != NULL, err);
}

static ifl_status gain_say(const evaluation *e, const char *name, json_t *into, ifl_error *err) {
    ifl_eval_gain gain;
    char text[256];
    IFL_TRY(ifl_eval_compare(&gain, &e->before, &e->results, name, err));
    if (!into) {
        ifl_eval_gain_text(&gain, text, sizeof text);
        printf("%s%s: %s\n", name ? "  " : "", name ? name : "paired difference", text);
        return IFL_OK;
    }
    return json_into(into, ifl_eval_gain_json(&gain, name), name != NULL, err);
}

static ifl_status say_text(const evaluation *e, const eval_arguments *mine, ifl_error *err) {
    int32_t n = e->results.n_sources;
    IFL_TRY(figures_say(e, -1, NULL, err));
    for (int32_t i = 0; i < n && n > 1; i++)
        IFL_TRY(figures_say(e, i, NULL, err));
    if (!mine->from)
        printf("%lld tokens in %.1f s, %lld answers cut by the limit, %lld could not be scored\n",
               (long long)e->n_tokens, e->seconds, (long long)e->n_truncated,
               (long long)e->n_unscored);
    if (!mine->compare) return IFL_OK;
    printf("against %s (%s)\n", mine->compare, e->before.model);
    IFL_TRY(gain_say(e, NULL, NULL, err));
    for (int32_t i = 0; i < n && n > 1; i++)
        IFL_TRY(gain_say(e, e->results.sources[i], NULL, err));
    return IFL_OK;
}

static ifl_status say_json(const evaluation *e, const eval_arguments *mine, ifl_error *err) {
    json_t *root = json_object(), *sources = json_array(), *gain = json_object(),
           *gains = json_array();
    ifl_status st =
        root && sources && gain && gains ? IFL_OK : ifl_fail(err, IFL_NOMEM, "eval: out of memory");
    if (st != IFL_OK) goto done;
    IFL_TRY_GOTO(st, figures_say(e, -1, root, err), done);
    for (int32_t i = 0; i < e->results.n_sources; i++)
        IFL_TRY_GOTO(st, figures_say(e, i, sources, err), done);
    json_object_set(root, "sources", sources);
    if (!mine->from) {
        json_object_set_new(root, "truncated", json_integer((json_int_t)e->n_truncated));
        json_object_set_new(root, "tokens", json_integer((json_int_t)e->n_tokens));
        json_object_set_new(root, "seconds", json_real(e->seconds));
    }
    if (mine->compare) {
        IFL_TRY_GOTO(st, gain_say(e, NULL, gain, err), done);
        for (int32_t i = 0; i < e->results.n_sources; i++)
            IFL_TRY_GOTO(st, gain_say(e, e->results.sources[i], gains, err), done);
        json_object_set(gain, "sources", gains);
        json_object_set_new(gain, "against", json_string(mine->compare));
        json_object_set(root, "compare", gain);
    }
    json_dumpf(root, stdout, JSON_COMPACT);
    printf("\n");
done:
    json_decref(root);
    json_decref(sources);
    json_decref(gain);
    json_decref(gains);
    return st;
}

/* --- The work
 * ------------------------------------------------------------------------------------- */

/* An hour of evaluation must not end with a file that cannot be written. */
static ifl_status out_check(const char *path, ifl_error *err) {
    char folder[IFL_PATH_MAX];
    if (snprintf(folder, sizeof folder, "%s", path) >= (int)sizeof folder)
        return ifl_fail(err, IFL_LIMIT, "--out: the path has more than %d bytes", IFL_PATH_MAX - 1);
    struct stat info;
    char *slash = strrchr(folder, '/');
    if ((slash && slash[1] == '\0') || (stat(path, &info) == 0 && S_ISDIR(info.st_mode)))
        return ifl_fail(err, IFL_USAGE, "--out %s: this is a folder, wanted a file's name", path);
    if (!slash)
        snprintf(folder, sizeof folder, ".");
    else
        slash[slash == folder] = '\0';
    if (access(folder, W_OK) != 0)
        return ifl_fail(err, IFL_IO, "--out %s: the folder %s cannot be written: %s", path, folder,
                        strerror(errno));
    return IFL_OK;
}

/* Known before anything is generated: whether there is anything to compare. */
static ifl_status compare_check(const evaluation *e, const char *path, ifl_error *err) {
    ifl_eval_gain gain;
    IFL_TRY(ifl_eval_compare(&gain, &e->before, &e->results, NULL, err));
    if (gain.n_unscored + gain.paired.n_tasks > 0) return IFL_OK;
    return ifl_fail(err, IFL_MISMATCH,
                    "--compare %s: none of its %zu tasks is among these %zu; wanted results of the "
                    "same data.eval (same source names, ids and answers)",
                    path, e->before.n_rows, e->results.n_rows);
}

static ifl_status eval_add_task(evaluation *e, int32_t i, ifl_error *err) {
    ifl_task *task = &e->tasks[i];
    IFL_TRY(ifl_task_set_get(e->set, (uint64_t)i, task, err));
    return ifl_eval_results_add(&e->results, ifl_task_set_source_name(e->set, task->source),
                                task->id, task->line, err);
}

/* Programs need a sandbox: better said now than answer by answer. */
static ifl_status eval_programs(const evaluation *e, ifl_error *err) {
    ifl_spec *spec;
    bool runs = false;
    IFL_TRY(ifl_spec_parse(&spec, e->config->reward.checkers, err));
    for (int32_t i = 0; i < e->n_tasks && !runs; i++) {
        char checker[64];
        ifl_config_checker(e->config, e->tasks[i].checker, e->tasks[i].data_source, checker);
        runs = ifl_checker_runs_programs(spec, checker);
    }
    ifl_spec_free(spec);
    return runs ? ifl_programs_start(e->config, NULL, err) : IFL_OK;
}

static ifl_status eval_work(const ifl_options *options, void *user, ifl_error *err) {
    const eval_arguments *mine = user;
    const ifl_config *c = options->config;
    evaluation e = {.config = c};
    ifl_loaded_model loaded = {0};
    ifl_thread_pool *threads = NULL;
    ifl_status st;
    if (mine->out && mine->from)
        return ifl_fail(err, IFL_USAGE,
                        "--out and --from: results that come from a file are there already; "
                        "give one of the two");
    if (!mine->from) IFL_TRY(ifl_spec_check_config(c, err));
    if (mine->out) IFL_TRY(out_check(mine->out, err));
    if (mine->compare) IFL_TRY(ifl_eval_results_read(&e.before, mine->compare, err));
    if (mine->from) {
        st = ifl_eval_results_read(&e.results, mine->from, err);
        if (st == IFL_OK && mine->compare) st = compare_check(&e, mine->compare, err);
        if (st == IFL_OK) st = mine->json ? say_json(&e, mine, err) : say_text(&e, mine, err);
        goto done;
    }
    if (c->data.n_eval == 0) {
        st = ifl_fail(err, IFL_USAGE, "eval: data.eval names no tasks");
        goto done;
    }
    IFL_TRY_GOTO(st, ifl_config_model(&loaded, c, mine->json ? NULL : stderr, err), done);
    e.loaded = &loaded;
    IFL_TRY_GOTO(st, ifl_task_set_open(&e.set, c, "eval", loaded.tokenizer, err), done);
    int64_t size = ifl_task_set_size(e.set),
            want = mine->n_tasks > 0 ? mine->n_tasks : c->eval.tasks;
    e.n_tasks = (int32_t)(size > 0 && size < want ? size : want);
    e.n_samples = (int32_t)(mine->n_samples >= 0 ? mine->n_samples : c->eval.samples);
    e.tasks = calloc((size_t)e.n_tasks, sizeof *e.tasks);
    if (!e.tasks) {
        st = ifl_fail(err, IFL_NOMEM, "eval: out of memory for %d tasks", e.n_tasks);
        goto done;
    }
    for (int32_t i = 0; i < c->data.n_eval; i++)
        IFL_TRY_GOTO(
            st, ifl_eval_results_add_source(&e.results, ifl_task_set_source_name(e.set, i), err),
            done);
    for (int32_t i = 0; i < e.n_tasks; i++)
        IFL_TRY_GOTO(st, eval_add_task(&e, i, err), done);
    e.results.k = e.n_samples;
    snprintf(e.results.model, sizeof e.results.model, "%s", c->model.path);
    if (mine->compare) IFL_TRY_GOTO(st, compare_check(&e, mine->compare, err), done);
    ifl_reward_pool_options pool = {
        .n_workers = c->reward.workers,
        .timeout_ms = c->reward.timeout_ms,
        .queue_max = (e.n_tasks + 1) * (e.n_samples + 1),
        .checkers = c->reward.checkers,
        .cache_bytes = (int64_t)c->reward.cache_mib << 20,
        .retries = strcmp(c->reward.on_error, "retry") == 0 ? c->reward.retries : 0,
        .require = ifl_sandbox_tier_parse(c->reward.sandbox_require),
    };
    if (pool.queue_max > IFL_REWARD_QUEUE_MAX) pool.queue_max = IFL_REWARD_QUEUE_MAX;
    IFL_TRY_GOTO(st, eval_programs(&e, err), done);
    IFL_TRY_GOTO(st, ifl_reward_pool_create(&e.pool, &pool, err), done);
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&threads, c->actor.threads, err), done);
    ifl_engine_options engine = {
        c->actor.sequences_max,        c->actor.kv_tokens, c->actor.page_tokens,
        c->actor.prefill_chunk_tokens, c->actor.kv,        (uint64_t)c->run.seed};
    IFL_TRY_GOTO(st,
                 ifl_engine_create(&e.engine, loaded.model, loaded.tokenizer, &engine, threads,
                                   ifl_ops_best(loaded.model->numerics), err),
                 done);
    IFL_TRY_GOTO(st, ifl_engine_swap(e.engine, loaded.weights, err), done);
    double begin = ifl_clock_s();
    IFL_TRY_GOTO(st, eval_run(&e, err), done);
    e.seconds = ifl_clock_s() - begin;
    IFL_TRY_GOTO(st, mine->json ? say_json(&e, mine, err) : say_text(&e, mine, err), done);
    if (mine->out) IFL_TRY_GOTO(st, ifl_eval_results_write(&e.results, mine->out, err), done);
    if (e.n_unscored > 0)
        st = ifl_fail(err, IFL_PEER, "eval: %lld answers could not be scored",
                      (long long)e.n_unscored);
done:
    ifl_engine_free(e.engine);
    ifl_reward_pool_free(e.pool);
    ifl_thread_pool_free(threads);
    for (int32_t i = 0; e.tasks && i < e.n_tasks; i++)
        ifl_task_clear(&e.tasks[i]);
    free(e.tasks);
    ifl_eval_results_clear(&e.results);
    ifl_eval_results_clear(&e.before);
    ifl_task_set_close(e.set);
    ifl_loaded_model_clear(&loaded);
    return st;
}

static ifl_status eval_option(int key, const char *arg, void *user, ifl_error *err) {
    eval_arguments *mine = user;
    if (key == 't') return ifl_options_int("tasks", arg, 1, 1 << 20, &mine->n_tasks, err);
    if (key == 'k') return ifl_options_int("samples", arg, 0, 1024, &mine->n_samples, err);
    if (key == 'j') mine->json = true;
    if (key == 'o') mine->out = arg;
    if (key == 'c') mine->compare = arg;
    if (key == 'f') mine->from = arg;
    return IFL_OK;
}

int ifl_cmd_eval(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"tasks", 't', "N", 0, "the first N tasks of data.eval (default: eval.tasks)", 0},
        {"samples", 'k', "K", 0,
         "also K samples a task at rollout.temperature (default: eval.samples)", 0},
        {"out", 'o', "FILE", 0, "write the results task by task (JSON lines)", 0},
        {"compare", 'c', "FILE", 0,
         "also print the paired difference to these results, in points with a bootstrap 95 % "
         "interval; FILE is one of --out, or evals/before.jsonl of a run",
         0},
        {"from", 'f', "FILE", 0, "take the results of FILE; no model is run", 0},
        {"json", 'j', NULL, 0, "one JSON object", 0},
        {0}};
    eval_arguments mine = {.n_samples = -1};
    const ifl_options_spec spec = {
        .doc =
            "Measures model.path on the tasks of data.eval: greedy accuracy with its Wilson 95 % "
            "interval, overall and per source, and with samples avg@k and pass@k. Example:\n"
            "  inflight eval --config deploy/configs/quickstart.yaml "
            "model.path=before --out before.jsonl\n"
            "  inflight eval --config deploy/configs/quickstart.yaml "
            "model.path=after --compare before.jsonl",
        .extra = extra,
        .on_option = eval_option,
        .user = &mine,
        .work = eval_work,
    };
    return ifl_options_run(argc, argv, &spec);
}

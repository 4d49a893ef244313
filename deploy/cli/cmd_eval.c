/* Evaluation without a run: one engine in this process, the checkers beside it. Shares no code with
 * the learner's bookkeeping, so that it can check what a run says about itself. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actor/engine.h"
#include "common/clock.h"
#include "common/memory.h"
#include "common/task.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/options.h"
#include "learner/eval_stats.h"
#include "rewards/reward.h"

typedef struct eval_arguments {
    int64_t n_tasks, n_samples;
    bool json;
} eval_arguments;

typedef struct evaluation {
    const ifl_config *config;
    const ifl_loaded_model *loaded;
    ifl_task_set *set;
    ifl_engine *engine;
    ifl_reward_pool *pool;
    int32_t n_tasks, n_samples;
    ifl_task *tasks;        /* [n_tasks] */
    int32_t *right_sampled; /* [n_tasks] */
    int64_t n_scored, n_right, n_unscored, n_tokens, n_truncated;
    int64_t n_done, n_all; /* answers */
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

static ifl_status eval_check(evaluation *e, const ifl_trajectory *traj, ifl_error *err) {
    int32_t task = (int32_t)(traj->task_serial % (uint64_t)e->n_tasks),
            n_prompt = ifl_trajectory_n_prompt(traj);
    const ifl_task *t = &e->tasks[task];
    ifl_token_text text = {0};
    IFL_TRY(ifl_tokenizer_decode(e->loaded->tokenizer, traj->tokens + n_prompt,
                                 (size_t)(traj->n_tokens - n_prompt), IFL_DECODE_SKIP_SPECIAL,
                                 &text, err));
    char *answer = malloc(text.n + 1);
    if (!answer) {
        ifl_token_text_free(&text);
        return ifl_fail(err, IFL_NOMEM, "eval: out of memory");
    }
    if (text.n > 0) memcpy(answer, text.bytes, text.n);
    answer[text.n] = '\0';
    for (int32_t i = 0; traj->finish == IFL_FINISH_STOP && i < e->config->rollout.n_stops; i++) {
        char *at = strstr(answer, e->config->rollout.stops[i]);
        if (at) *at = '\0';
    }
    ifl_token_text_free(&text);
    ifl_reward_request request = {
        .id = traj->task_serial,
        .checker = t->checker && t->checker[0] ? t->checker : e->config->reward.checker,
        .prompt = t->text ? t->text : "",
        .completion = answer,
        .n_completion = strlen(answer),
        .answer = t->answer,
        .meta = t->meta,
        .finish = traj->finish,
    };
    ifl_status st = ifl_reward_pool_submit(e->pool, &request, err);
    free(answer);
    e->n_tokens += traj->n_tokens - n_prompt;
    e->n_truncated += traj->finish == IFL_FINISH_LENGTH;
    return st;
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
        bool right = reward.status == IFL_REWARD_OK && reward.reward >= 0.999f;
        if (reward.status != IFL_REWARD_OK) e->n_unscored++;
        if (id < (uint64_t)e->n_tasks) {
            e->n_scored += reward.status == IFL_REWARD_OK;
            e->n_right += right;
        } else {
            e->right_sampled[id - (uint64_t)e->n_tasks] += right;
        }
        e->n_done++;
        if (wait_ms > 0) return IFL_OK;
    }
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

static void eval_print(const evaluation *e, double seconds, bool json) {
    double accuracy = e->n_scored > 0 ? (double)e->n_right / (double)e->n_scored : 0.0;
    ifl_interval interval = ifl_wilson95(e->n_right, e->n_scored);
    double avg = e->n_samples > 0 ? ifl_avg_at_k(e->right_sampled, e->n_tasks, e->n_samples) : 0.0;
    double pass = e->n_samples > 0
                      ? ifl_pass_at_k_mean(e->right_sampled, e->n_tasks, e->n_samples, e->n_samples)
                      : 0.0;
    if (json) {
        json_t *root =
            json_pack("{s:I,s:f,s:f,s:f,s:I,s:I,s:I,s:f}", "n", (json_int_t)e->n_scored, "accuracy",
                      accuracy, "low", interval.low, "high", interval.high, "unscored",
                      (json_int_t)e->n_unscored, "truncated", (json_int_t)e->n_truncated, "tokens",
                      (json_int_t)e->n_tokens, "seconds", seconds);
        if (e->n_samples > 0) {
            json_object_set_new(root, "k", json_integer(e->n_samples));
            json_object_set_new(root, "avg@k", json_real(avg));
            json_object_set_new(root, "pass@k", json_real(pass));
        }
        json_dumpf(root, stdout, JSON_COMPACT);
        printf("\n");
        json_decref(root);
        return;
    }
    printf("greedy accuracy %.4f on %lld tasks (95 %%: %.4f to %.4f)\n", accuracy,
           (long long)e->n_scored, interval.low, interval.high);
    if (e->n_samples > 0)
        printf("%d samples each: avg@%d %.4f, pass@%d %.4f\n", e->n_samples, e->n_samples, avg,
               e->n_samples, pass);
    printf("%lld tokens in %.1f s, %lld answers cut by the limit, %lld could not be scored\n",
           (long long)e->n_tokens, seconds, (long long)e->n_truncated, (long long)e->n_unscored);
}

static ifl_status eval_work(const ifl_options *options, const eval_arguments *mine,
                            ifl_error *err) {
    const ifl_config *c = options->config;
    evaluation e = {.config = c};
    ifl_loaded_model loaded;
    ifl_thread_pool *threads = NULL;
    ifl_status st;
    if (c->data.n_eval == 0) return ifl_fail(err, IFL_USAGE, "eval: data.eval names no tasks");
    IFL_TRY_GOTO(st, ifl_config_model(&loaded, c, mine->json ? NULL : stderr, err), done);
    e.loaded = &loaded;
    IFL_TRY_GOTO(st, ifl_task_set_open(&e.set, c, "eval", loaded.tokenizer, err), done);
    int64_t size = ifl_task_set_size(e.set),
            want = mine->n_tasks > 0 ? mine->n_tasks : c->eval.tasks;
    e.n_tasks = (int32_t)(size > 0 && size < want ? size : want);
    e.n_samples = (int32_t)(mine->n_samples >= 0 ? mine->n_samples : c->eval.samples);
    e.tasks = calloc((size_t)e.n_tasks, sizeof *e.tasks);
    e.right_sampled = calloc((size_t)e.n_tasks, sizeof *e.right_sampled);
    if (!e.tasks || !e.right_sampled) {
        st = ifl_fail(err, IFL_NOMEM, "eval: out of memory for %d tasks", e.n_tasks);
        goto done;
    }
    for (int32_t i = 0; i < e.n_tasks; i++)
        IFL_TRY_GOTO(st, ifl_task_set_get(e.set, (uint64_t)i, &e.tasks[i], err), done);
    ifl_reward_pool_options pool = {c->reward.workers, c->reward.timeout_ms,
                                    (e.n_tasks + 1) * (e.n_samples + 1), NULL};
    if (pool.queue_max > IFL_REWARD_QUEUE_MAX) pool.queue_max = IFL_REWARD_QUEUE_MAX;
    IFL_TRY_GOTO(st, ifl_reward_pool_create(&e.pool, &pool, err), done);
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&threads, c->actor.threads, err), done);
    ifl_engine_options engine = {
        c->actor.sequences_max,        c->actor.kv_tokens, c->actor.page_tokens,
        c->actor.prefill_chunk_tokens, c->actor.kv,        (uint64_t)c->run.seed};
    IFL_TRY_GOTO(st,
                 ifl_engine_create(&e.engine, loaded.model, loaded.tokenizer, &engine, threads,
                                   ifl_ops_best(), err),
                 done);
    IFL_TRY_GOTO(st, ifl_engine_swap(e.engine, loaded.weights, err), done);
    double begin = ifl_clock_s();
    IFL_TRY_GOTO(st, eval_run(&e, err), done);
    eval_print(&e, ifl_clock_s() - begin, mine->json);
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
    free(e.right_sampled);
    ifl_task_set_close(e.set);
    ifl_loaded_model_clear(&loaded);
    return st;
}

static ifl_status eval_option(int key, const char *arg, void *user, ifl_error *err) {
    eval_arguments *mine = user;
    if (key == 't') return ifl_options_int("--tasks", arg, 1, 1 << 20, &mine->n_tasks, err);
    if (key == 'k') return ifl_options_int("--samples", arg, 0, 1024, &mine->n_samples, err);
    if (key == 'j') mine->json = true;
    return IFL_OK;
}

int ifl_cmd_eval(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"tasks", 't', "N", 0, "the first N tasks of data.eval (default: eval.tasks)", 0},
        {"samples", 'k', "K", 0,
         "also K samples a task at rollout.temperature (default: eval.samples)", 0},
        {"json", 'j', NULL, 0, "one JSON object", 0},
        {0}};
    eval_arguments mine = {.n_samples = -1};
    const ifl_options_spec spec = {
        .doc = "Measures model.path on the tasks of data.eval: greedy accuracy with its Wilson 95 "
               "% interval, "
               "and with samples avg@k and pass@k. Example:\n"
               "  inflight eval --config deploy/configs/quickstart.yaml "
               "model.path=runs/quickstart/model",
        .extra = extra,
        .on_option = eval_option,
        .user = &mine,
    };
    ifl_options options = {0};
    ifl_error err = {0};
    ifl_status st = ifl_options_parse(&options, argc, argv, &spec, &err);
    if (st == IFL_OK && options.dry_run)
        ifl_options_print(&options, stdout);
    else if (st == IFL_OK)
        st = eval_work(&options, &mine, &err);
    ifl_options_free(&options);
    return ifl_options_exit(st, argv[0], &err);
}

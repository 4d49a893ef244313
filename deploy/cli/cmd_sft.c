/* inflight sft: warm-starts a policy by supervised fine-tuning and writes it as a model folder. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/memory.h"
#include "common/metrics.h"
#include "common/run_dir.h"
#include "common/task.h"
#include "deploy/cli/affinity.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/export_model.h"
#include "deploy/cli/options.h"
#include "learner/sft.h"

#define PRINT_EVERY_S 5.0

/* --- Examples
 * --------------------------------------------------------------------------------------- */

typedef struct example_source {
    ifl_task_set *set;
    const ifl_tokenizer *tokenizer;
    double worked_share;
    int32_t positions_max;
} example_source;

static ifl_status example_build(const example_source *source, const ifl_task *task,
                                const char *completion, ifl_sft_example *out, ifl_error *err) {
    ifl_token_ids ids = {0};
    IFL_TRY(ifl_tokenizer_encode(source->tokenizer, completion, strlen(completion), 0, &ids, err));
    ifl_status st = IFL_OK;
    int64_t n = (int64_t)task->n_prompt + (int64_t)ids.n;
    if (n > source->positions_max)
        IFL_TRY_GOTO(
            st,
            ifl_fail(err, IFL_LIMIT,
                     "sft example of task %s has %lld tokens, the model %d positions: shorten "
                     "the tasks or raise model.max_positions",
                     task->id, (long long)n, source->positions_max),
            done);
    out->tokens = ifl_alloc((size_t)n, sizeof *out->tokens);
    if (!out->tokens) IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "sft: out of memory"), done);
    out->n_tokens = (int32_t)n;
    out->n_prompt = task->n_prompt;
    memcpy(out->tokens, task->prompt, (size_t)task->n_prompt * sizeof *out->tokens);
    if (ids.n) memcpy(out->tokens + task->n_prompt, ids.ids, ids.n * sizeof *out->tokens);
done:
    ifl_token_ids_free(&ids);
    return st;
}

static ifl_status example_make(void *context, uint64_t serial, ifl_sft_example *out,
                               ifl_error *err) {
    const example_source *source = context;
    ifl_task task = {0};
    char *completion = NULL;
    ifl_status st =
        ifl_task_set_example(source->set, serial, source->worked_share, &task, &completion, err);
    if (st == IFL_OK) st = example_build(source, &task, completion, out, err);
    free(completion);
    ifl_task_clear(&task);
    return st;
}

/* --- Progress
 * --------------------------------------------------------------------------------------- */

typedef struct progress_sink {
    ifl_metrics *metrics;
    double last_print;
    double loss_sum; /* since the last line */
    int64_t n_since;
} progress_sink;

static ifl_status progress_take(void *context, const ifl_sft_progress *p, ifl_error *err) {
    progress_sink *sink = context;
    ifl_metrics_begin(sink->metrics, "sft", p->step);
    ifl_metrics_add(sink->metrics, "sft/loss", p->loss);
    ifl_metrics_add(sink->metrics, "optim/grad_norm", p->grad_norm);
    ifl_metrics_add(sink->metrics, "optim/lr", p->learning_rate);
    ifl_metrics_add_int(sink->metrics, "stats/tokens", p->tokens_total);
    ifl_metrics_add(sink->metrics, "throughput/learner_tokens_per_s", p->tokens_per_s);
    IFL_TRY(ifl_metrics_end(sink->metrics, err));
    sink->loss_sum += p->loss;
    sink->n_since++;
    double now = ifl_clock_s();
    if (p->step != 1 && p->step != p->n_steps && now - sink->last_print < PRINT_EVERY_S)
        return IFL_OK;
    printf("sft step %" PRId64 "/%" PRId64 "  loss %.4f  lr %.2e  grad norm %.2f  %.0f tokens/s  "
           "%.0f s, %.0f s to go\n",
           p->step, p->n_steps, sink->loss_sum / (double)sink->n_since, p->learning_rate,
           p->grad_norm, p->tokens_per_s, p->seconds, p->eta_s);
    fflush(stdout);
    sink->last_print = now;
    sink->loss_sum = 0.0;
    sink->n_since = 0;
    return IFL_OK;
}

/* --- The command
 * ------------------------------------------------------------------------------------ */

typedef struct sft_paths {
    char out[IFL_PATH_MAX];
    char metrics[IFL_PATH_MAX + 16];
} sft_paths;

static ifl_status sft_paths_make(sft_paths *paths, const ifl_config *config, ifl_error *err) {
    int n = config->sft.out[0] ? snprintf(paths->out, sizeof paths->out, "%s", config->sft.out)
                               : snprintf(paths->out, sizeof paths->out, "%s/%s-start",
                                          config->run.dir, config->run.name);
    if (n < 0 || (size_t)n >= sizeof paths->out)
        return ifl_fail(err, IFL_LIMIT, "sft.out: path of %d bytes, limit %zu", n,
                        sizeof paths->out - 1);
    while (n > 1 && paths->out[n - 1] == '/')
        paths->out[--n] = '\0';
    snprintf(paths->metrics, sizeof paths->metrics, "%s.metrics.jsonl", paths->out);
    return IFL_OK;
}

static ifl_optimizer_options sft_optimizer_options(const ifl_config *config) {
    return (ifl_optimizer_options){
        .learning_rate = config->sft.learning_rate,
        .beta1 = config->sft.beta1,
        .beta2 = config->sft.beta2,
        .eps = config->learner.adam_eps,
        .weight_decay = config->sft.weight_decay,
        .grad_clip = config->sft.grad_clip,
        .warmup_steps = config->sft.warmup_steps,
        .schedule = IFL_SCHEDULE_LINEAR,
        .total_steps = config->sft.steps,
        .final_ratio = config->sft.final_ratio,
    };
}

static ifl_status sft_memory_check(const ifl_config *config, const ifl_model *model, int n_threads,
                                   ifl_error *err) {
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights", ifl_weights_bytes(model));
    ifl_memory_plan_add(&plan, "masters and moments", ifl_optimizer_bytes(model));
    ifl_memory_plan_add(&plan, "activations and gradients",
                        ifl_trainer_bytes(model, config->sft.batch_tokens,
                                          ifl_config_activation_bytes(config), n_threads));
    return ifl_memory_plan_check(&plan, config->memory.limit_gib, stdout, err);
}

static ifl_status sft_export(const ifl_config *config, const sft_paths *paths,
                             const ifl_loaded_model *loaded, ifl_optimizer *optimizer,
                             ifl_error *err) {
    char *json = NULL;
    size_t n_json = 0;
    const uint16_t *bf16 = ifl_optimizer_bf16(optimizer);
    if (!bf16)
        return ifl_fail(err, IFL_NOMEM, "sft: out of memory for the %lld weights to export",
                        (long long)loaded->model->n_elements);
    IFL_TRY(ifl_tokenizer_to_json(loaded->tokenizer, &json, &n_json, err));
    const ifl_export_model source = {.model = loaded->model,
                                     .bf16 = bf16,
                                     .tokenizer_json = json,
                                     .n_tokenizer_json = n_json,
                                     .base = config->model.path};
    ifl_status st = ifl_export_model_room(paths->out, config->run.overwrite, err);
    if (st == IFL_OK) st = ifl_export_model_write(paths->out, &source, err);
    free(json);
    return st;
}

static ifl_status sft_work(const ifl_options *command, void *user, ifl_error *err) {
    const ifl_config *config = command->config;
    (void)user;
    ifl_status st = IFL_OK;
    sft_paths paths;
    ifl_loaded_model loaded = {0};
    ifl_thread_pool *pool = NULL;
    ifl_optimizer *optimizer = NULL;
    ifl_task_set *set = NULL;
    progress_sink sink = {0};
    const ifl_optimizer_options optimizer_options = sft_optimizer_options(config);
    const ifl_sft_options options = {.n_steps = config->sft.steps,
                                     .batch_tokens = config->sft.batch_tokens,
                                     .activation_bytes = ifl_config_activation_bytes(config),
                                     .seed = (uint64_t)config->run.seed};

    IFL_TRY_GOTO(st, sft_paths_make(&paths, config, err), done);
    /* Looked at now, moved at the end: a run that fails leaves the older folder in its place. */
    if (!config->run.overwrite)
        IFL_TRY_GOTO(st, ifl_export_model_room(paths.out, false, err), done);
    IFL_TRY_GOTO(st, ifl_cpu_pin(config->learner.cpus, "learner.cpus", err), done);
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&pool, config->learner.threads, err), done);
    IFL_TRY_GOTO(st, ifl_config_model(&loaded, config, stdout, err), done);
    IFL_TRY_GOTO(st, sft_memory_check(config, loaded.model, ifl_thread_pool_size(pool), err), done);
    IFL_TRY_GOTO(st, ifl_task_set_open(&set, config, "train", loaded.tokenizer, err), done);
    IFL_TRY_GOTO(st,
                 ifl_optimizer_create(&optimizer, loaded.model, &optimizer_options, pool,
                                      ifl_ops_best(loaded.model->numerics), err),
                 done);
    ifl_optimizer_start(optimizer, loaded.weights);
    IFL_TRY_GOTO(st, ifl_dir_create(config->run.dir, err), done);
    unlink(paths.metrics); /* of an earlier warm start of this name */
    IFL_TRY_GOTO(st, ifl_metrics_open(&sink.metrics, paths.metrics, 0, err), done);

    example_source source = {.set = set,
                             .tokenizer = loaded.tokenizer,
                             .worked_share = config->sft.worked_share,
                             .positions_max = loaded.model->config.max_positions};
    printf("sft: %" PRId64 " steps of up to %d tokens, %d threads, %s kernels\n", options.n_steps,
           options.batch_tokens, ifl_thread_pool_size(pool),
           ifl_ops_best(loaded.model->numerics)->name);
    IFL_TRY_GOTO(st,
                 ifl_sft_run(loaded.model, optimizer, loaded.weights, &options, example_make,
                             &source, progress_take, &sink, pool,
                             ifl_ops_best(loaded.model->numerics), err),
                 done);
    IFL_TRY_GOTO(st, sft_export(config, &paths, &loaded, optimizer, err), done);
    char hash[33];
    ifl_hash_text(ifl_weights_hash(loaded.weights), hash);
    printf("sft: wrote %s (weights %s); measure it with\n"
           "  inflight eval [--config FILE] model.path=%s\n",
           paths.out, hash, paths.out);
done:
    ifl_metrics_close(sink.metrics);
    ifl_task_set_close(set);
    ifl_optimizer_free(optimizer);
    ifl_loaded_model_clear(&loaded);
    ifl_thread_pool_free(pool);
    return st;
}

int ifl_cmd_sft(int argc, char **argv) {
    static const ifl_options_spec spec = {
        .doc =
            "Trains model.path, or a new policy of the shape in `model`, for sft.steps steps on "
            "the "
            "answers of the generators in data.train, and writes a Hugging Face folder to sft.out. "
            "The number of steps is fixed and every draw is keyed by run.seed: the same "
            "configuration gives the same bytes with any number of threads.",
        .work = sft_work,
    };
    return ifl_options_run(argc, argv, &spec);
}

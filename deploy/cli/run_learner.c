#include "deploy/cli/run_learner.h"

#include <stdlib.h>
#include <string.h>

#include "actor/actor.h"
#include "common/keys.h"
#include "common/log.h"
#include "common/task.h"
#include "common/transport.h"
#include "deploy/cli/affinity.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/local_actors.h"
#include "deploy/cli/local_endpoint.h"
#include "deploy/cli/signals.h"
#include "learner/checkpoint.h"
#include "learner/learner.h"
#include "rewards/programs.h"
#include "rewards/spec.h"

enum { KEY_BIND = 'b', KEY_KEYS = 'k' };

const struct argp_option ifl_run_learner_extra[] = {
    {"bind", KEY_BIND, "ENDPOINT", 0,
     "transport.bind: where actors connect, e.g. tcp://0.0.0.0:5555", 0},
    {"keys", KEY_KEYS, "FOLDER", 0,
     "transport.keys: whom to let in from other hosts (see inflight keys)", 0},
    {0}};
const ifl_option_key ifl_run_learner_keys[] = {
    {KEY_BIND, "transport.bind", NULL}, {KEY_KEYS, "transport.keys", NULL}, {0}};

static ifl_status learner_plan(const ifl_config *config, const ifl_loaded_model *loaded,
                               ifl_error *err) {
    ifl_learner_plan plan =
        ifl_learner_memory(config, loaded->model, ifl_cpu_threads(config->learner.threads));
    /* The initial weights are given back once the masters hold them, before anything else is
     * taken: they don't add to the peak. */
    ifl_memory_plan items = {0};
    ifl_memory_plan_add(&items, "masters and AdamW moments", plan.optimizer);
    ifl_memory_plan_add(&items, "gradients and activations", plan.trainer);
    ifl_memory_plan_add(&items, "versions kept for the audit", plan.versions);
    ifl_memory_plan_add(&items, "publication", plan.publisher);
    ifl_memory_plan_add(&items, "audit", plan.audit);
    if (plan.ledger) ifl_memory_plan_add(&items, "bias ledger", plan.ledger);
    if (plan.kept) ifl_memory_plan_add(&items, "kept sets (rollout.top_k bounds them)", plan.kept);
    if (plan.reference) ifl_memory_plan_add(&items, "reference of KL", plan.reference);
    return ifl_memory_plan_check(&items, config->memory.limit_gib, stderr, err);
}

#define TASKS_LOOKED_AT 64 /* for the checkers that they name themselves */

/* Whether a set's tasks, or the first of many, have programs run. */
static ifl_status set_runs_programs(const ifl_config *config, ifl_task_set *set, bool *runs,
                                    ifl_error *err) {
    int64_t n = ifl_task_set_size(set);
    ifl_spec *spec;
    ifl_status st = IFL_OK;
    IFL_TRY(ifl_spec_parse(&spec, config->reward.checkers, err));
    if (n <= 0 || n > TASKS_LOOKED_AT) n = TASKS_LOOKED_AT;
    for (int64_t i = 0; i < n && !*runs && st == IFL_OK; i++) {
        ifl_task task = {0};
        char checker[64];
        st = ifl_task_set_get(set, (uint64_t)i, &task, err);
        if (st == IFL_OK) {
            ifl_config_checker(config, task.checker, task.data_source, checker);
            *runs = ifl_checker_runs_programs(spec, checker);
        }
        ifl_task_clear(&task);
    }
    ifl_spec_free(spec);
    return st;
}

/* What a user mistypes is found before there is a run folder: the same name must be free for the
 * next try. */
static ifl_status inputs_check(const ifl_config *config, const char *endpoint, const char *keys,
                               const ifl_tokenizer *tokenizer, bool local_actors, ifl_error *err) {
    bool programs = false;
    static const char *const purposes[] = {"train", "eval"};
    IFL_TRY(ifl_endpoint_check(endpoint, *keys || config->transport.insecure, err));
    if (*keys) {
        ifl_key_pair own;
        ifl_key_list list = {0};
        IFL_TRY(ifl_key_pair_read(&own, keys, IFL_KEY_LEARNER, err));
        explicit_bzero(&own, sizeof own);
        IFL_TRY(ifl_key_list_read(&list, keys, err));
        ifl_key_list_clear(&list);
    }
    for (int i = 0; i < 2; i++) {
        ifl_task_set *set = NULL;
        if (i == 1 && config->data.n_eval == 0) break;
        ifl_status st = ifl_task_set_open(&set, config, purposes[i], tokenizer, err);
        if (st == IFL_OK) st = set_runs_programs(config, set, &programs, err);
        ifl_task_set_close(set);
        IFL_TRY(st);
    }
    if (!local_actors) return IFL_OK; /* theirs is the host that counts */
    return programs ? ifl_programs_start(config, NULL, err)
                    : ifl_programs_start_config(config, err);
}

/* kl.reference, which must be the same model with other numbers. */
static ifl_status reference_load(ifl_loaded_model *out, const ifl_config *config,
                                 const ifl_model *model, ifl_error *err) {
    ifl_load_options options = {
        .max_positions = model->config.max_positions, .numerics = model->numerics, .notes = stderr};
    *out = (ifl_loaded_model){0};
    if (config->kl.coef <= 0.0 || !*config->kl.reference) return IFL_OK;
    ifl_status st = ifl_load_model(out, config->kl.reference, &options, err);
    if (st == IFL_OK && !ifl_hash_equal(out->model->fingerprint, model->fingerprint)) {
        char ours[33], theirs[33];
        ifl_hash_text(model->fingerprint, ours);
        ifl_hash_text(out->model->fingerprint, theirs);
        st = ifl_fail(
            err, IFL_MISMATCH,
            "%s is another architecture (%s) than the policy (%s): wanted the same tensors",
            config->kl.reference, theirs, ours);
    }
    if (st != IFL_OK) return ifl_error_wrap(err, "kl.reference");
    out->weights->model = model;
    return IFL_OK;
}

/* A name that no checker has would mask every answer of the run, and a plug-in that doesn't start
 * would end its actors one after another: better said at once. */
static ifl_status checkers_check(const ifl_config *config, bool local_actors, ifl_error *err) {
    IFL_TRY(ifl_spec_check_config(config, err));
    if (!local_actors || strcmp(config->reward.checkers, "{}") == 0) return IFL_OK;
    ifl_reward_pool_options options = {.n_workers = 1,
                                       .timeout_ms = config->reward.timeout_ms,
                                       .queue_max = 1,
                                       .checkers = config->reward.checkers,
                                       .require =
                                           ifl_sandbox_tier_parse(config->reward.sandbox_require)};
    ifl_reward_pool *pool = NULL;
    IFL_TRY(ifl_reward_pool_create(&pool, &options, err));
    ifl_reward_pool_free(pool);
    return IFL_OK;
}

static bool bind_is_default(const ifl_config *config) {
    ifl_config *defaults = malloc(sizeof *defaults);
    if (!defaults) return false;
    ifl_config_defaults(defaults);
    bool same = strcmp(defaults->transport.bind, config->transport.bind) == 0;
    free(defaults);
    return same;
}

ifl_status ifl_run_learner(const ifl_options *options, bool local_actors, ifl_error *err) {
    const ifl_config *config = options->config;
    IFL_TRY(ifl_config_check_training(config, err));
    IFL_TRY(checkers_check(config, local_actors, err));
    ifl_log_setup("learner", options->verbose ? IFL_LOG_DEBUG : IFL_LOG_INFO);
    const atomic_bool *stop = ifl_signals_install();
    cpu_set_t mask;
    IFL_TRY(ifl_cpu_list_parse(&mask, "", "process", err));
    ifl_loaded_model loaded, reference = {0};
    ifl_run_dir run = {.lock_fd = -1};
    ifl_local_actors *actors = NULL;
    int64_t newest;
    ifl_local_endpoint own = {0};
    const char *endpoint = config->transport.bind, *keys = config->transport.keys;
    char logs[IFL_PATH_MAX + 8], connect[IFL_ENDPOINT_MAX], local_key[IFL_KEY_TEXT_MAX] = "";
    ifl_status st;
    IFL_TRY_GOTO(st, ifl_config_model(&loaded, config, stderr, err), done);
    IFL_TRY_GOTO(st, learner_plan(config, &loaded, err), done);
    IFL_TRY_GOTO(st, reference_load(&reference, config, loaded.model, err), done);
    ifl_config_describe(config, stderr);
    if (local_actors && bind_is_default(config)) {
        IFL_TRY_GOTO(st, ifl_local_endpoint_create(&own, err), done);
        endpoint = own.text;
        keys = ""; /* nobody else can open that folder */
    }
    IFL_TRY_GOTO(st, inputs_check(config, endpoint, keys, loaded.tokenizer, local_actors, err),
                 done);
    if (local_actors && *keys)
        IFL_TRY_GOTO(st, ifl_local_keys_create(&own, keys, local_key, err), done);
    IFL_TRY_GOTO(st, ifl_run_dir_create(&run, config, err), done);
    if (local_actors) {
        snprintf(logs, sizeof logs, "%s/logs", run.path);
        IFL_TRY_GOTO(st, ifl_endpoint_reach(endpoint, connect, err), done);
        ifl_local_actors_options local = {config->actor.count,
                                          options->config_path,
                                          options->n_overrides,
                                          options->overrides,
                                          connect,
                                          *keys ? own.folder : "",
                                          logs,
                                          config->actor.cpus,
                                          &mask};
        IFL_TRY_GOTO(st, ifl_local_actors_start(&actors, &local, err), done);
    }
    IFL_TRY_GOTO(st, ifl_cpu_pin(config->learner.cpus, "learner.cpus", err), done);
    ifl_learner_options learner = {
        .config = config,
        .model = loaded.model,
        .start = &loaded.weights,
        .reference = reference.weights,
        .tokenizer = loaded.tokenizer,
        .run = &run,
        .bind = endpoint,
        .keys = keys,
        .local_key = local_key[0] ? local_key : NULL,
        .keys_reread = *keys ? ifl_signals_count_hangups() : NULL,
        .stop = stop,
        .hopeless = actors ? ifl_local_actors_failed(actors) : NULL,
        .status = stdout,
    };
    st = ifl_learner_run(&learner, err);
    if (st == IFL_OK) {
        printf("%s: %s\n", config->run.name, run.summary);
        fflush(stdout);
    } else if (ifl_checkpoint_list(run.checkpoints, &newest, 1) > 0) {
        fprintf(stderr,
                "To go on from the last checkpoint: the same command with run.resume=true\n");
    }
done:
    ifl_local_actors_stop(actors);
    ifl_local_endpoint_remove(&own);
    ifl_run_dir_close(&run);
    ifl_loaded_model_clear(&reference);
    ifl_loaded_model_clear(&loaded);
    return st;
}

ifl_status ifl_dry_run_training(const ifl_options *options, void *user, ifl_error *err) {
    const ifl_config *config = options->config;
    FILE *f = stdout;
    (void)user;
    ifl_options_print(options, f);
    IFL_TRY(ifl_config_check_training(config, err));
    IFL_TRY(ifl_spec_check_config(config, err));
    ifl_loaded_model loaded;
    ifl_task_set *set = NULL;
    ifl_task task = {0};
    char checker[64];
    ifl_status st;
    IFL_TRY_GOTO(st, ifl_config_model(&loaded, config, NULL, err), done);
    IFL_TRY_GOTO(st, ifl_task_set_open(&set, config, "train", loaded.tokenizer, err), done);
    IFL_TRY_GOTO(st, ifl_task_set_get(set, 0, &task, err), done);
    ifl_config_checker(config, task.checker, task.data_source, checker);
    fprintf(f, "# first training task %s, checker %s, answer %s\n", task.id, checker, task.answer);
    fprintf(f, "# prompt, %d tokens:", task.n_prompt);
    for (int32_t i = 0; i < task.n_prompt; i++)
        fprintf(f, " %d", task.prompt[i]);
    fprintf(f, "\n# | ");
    for (const char *at = task.text ? task.text : ""; *at; at++)
        if (*at == '\n')
            fprintf(f, "\n# | ");
        else
            fputc(*at, f);
    fprintf(f, "\n");
done:
    ifl_task_clear(&task);
    ifl_task_set_close(set);
    ifl_loaded_model_clear(&loaded);
    return st;
}

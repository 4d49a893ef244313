/* Rules between keys, and the derived numbers in words. Ranges of single keys are in the table. */
#include "common/config.h"

#include <jansson.h>
#include <string.h>

#include "common/config_table.h"
#include "common/trajectory.h"

static ifl_status check_run_name(const char *name, ifl_error *err) {
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (!*name || *name == '.' || *name == '-' || strspn(name, good) != strlen(name))
        return ifl_fail(err, IFL_FORMAT,
                        "key run.name: got \"%s\", wanted letters, digits, '.', '_' and '-', "
                        "beginning with a letter, a digit or '_': it names a folder",
                        name);
    return IFL_OK;
}

static ifl_status check_route(const char *text, ifl_error *err) {
    ifl_status st = IFL_OK;
    json_t *route = json_loads(text, JSON_REJECT_DUPLICATES, NULL), *checker;
    const char *source;
    if (!json_is_object(route))
        st = ifl_fail(err, IFL_FORMAT, "key reward.route: got \"%.60s\", wanted a map", text);
    json_object_foreach(route, source, checker) {
        size_t n = json_string_length(checker);
        if (st == IFL_OK && (!json_is_string(checker) || n == 0 || n > 63))
            st = ifl_fail(err, IFL_FORMAT,
                          "key reward.route.%.60s: wanted the name of a checker, 1 .. 63 bytes",
                          source);
    }
    json_decref(route);
    return st;
}

static ifl_status check_source(const char *list, int index, const ifl_source_config *source,
                               ifl_error *err) {
    bool has_path = *source->path, has_generator = *source->generator;
    if (has_path == has_generator)
        return ifl_fail(err, IFL_FORMAT,
                        "key %s.%d: got %s, wanted exactly one of path and generator", list, index,
                        has_path ? "both" : "neither");
    if (*source->template_text && !strstr(source->template_text, "{prompt}"))
        return ifl_fail(err, IFL_FORMAT,
                        "key %s.%d.template: got no {prompt}, wanted a text with {prompt} in it: "
                        "every task would read the same",
                        list, index);
    return IFL_OK;
}

/* Which CPUs a text like "0,2-3" names is decided where they are pinned; here only its form. With
 * `lists`, several of them with ';' between. */
static ifl_status check_cpus(const char *key, const char *text, bool lists, ifl_error *err) {
    int number_digits = 0;
    bool good = true, dash = false;
    for (const char *p = text; *p && good; p++) {
        if (*p >= '0' && *p <= '9') {
            good = ++number_digits <= 4;
        } else if ((*p == '-' && !dash) || *p == ',' || (*p == ';' && lists)) {
            good = number_digits > 0;
            dash = *p == '-';
            number_digits = 0;
        } else {
            good = false;
        }
    }
    if (*text && (!good || !number_digits))
        return ifl_fail(err, IFL_FORMAT, "key %s: got \"%s\", wanted CPU numbers such as %s", key,
                        text, lists ? "0,2-3, or a list for each actor, 0;1" : "0,2-3");
    return IFL_OK;
}

ifl_status ifl_config_check(const ifl_config *config, ifl_error *err) {
    IFL_TRY(check_run_name(config->run.name, err));
    if (!*config->run.dir)
        return ifl_fail(err, IFL_FORMAT, "key run.dir: got \"\", wanted a folder");
    if (config->run.resume && config->run.overwrite)
        return ifl_fail(err, IFL_FORMAT,
                        "keys run.resume and run.overwrite: got both true, wanted at "
                        "most one: either the run goes on or a new one takes its place");
    IFL_TRY(check_route(config->reward.route, err));
    for (int i = 0; i < config->data.n_train; i++)
        IFL_TRY(check_source("data.train", i, &config->data.train[i], err));
    for (int i = 0; i < config->data.n_eval; i++)
        IFL_TRY(check_source("data.eval", i, &config->data.eval[i], err));
    if (config->data.pass_rate_min > config->data.pass_rate_max)
        return ifl_fail(err, IFL_FORMAT,
                        "key data.pass_rate_min: got %g, wanted at most "
                        "data.pass_rate_max (%g)",
                        config->data.pass_rate_min, config->data.pass_rate_max);
    if (config->staleness.max_versions > 0 && config->run.mode != IFL_MODE_PIPELINE)
        return ifl_fail(
            err, IFL_FORMAT,
            "key staleness.max_versions: got %d in run.mode sync or async, whose lag is "
            "what the mode says; wanted 0",
            config->staleness.max_versions);
    if (config->learner.loss == IFL_LOSS_DECOUPLED_PPO &&
        config->learner.correction != IFL_CORRECTION_NONE)
        return ifl_fail(
            err, IFL_FORMAT,
            "key learner.correction: got one beside learner.loss decoupled_ppo, which is "
            "a correction itself; wanted none");
    if (config->learner.overlong_tokens > config->rollout.max_new_tokens)
        return ifl_fail(
            err, IFL_FORMAT,
            "key learner.overlong_tokens: got %d, wanted at most rollout.max_new_tokens "
            "(%d)",
            config->learner.overlong_tokens, config->rollout.max_new_tokens);
    if (config->kl.coef > 0.0 && config->kl.in == IFL_KL_IN_LOSS &&
        config->kl.estimator == IFL_KL_K1)
        return ifl_fail(err, IFL_FORMAT,
                        "key kl.estimator: got k1 with kl.in loss, whose gradient is zero in "
                        "expectation; wanted k2 or k3, or kl.in reward");
    if (!*config->model.path) {
        if (config->model.n_heads % config->model.n_kv_heads)
            return ifl_fail(err, IFL_FORMAT,
                            "key model.n_kv_heads: got %d, wanted a divisor of "
                            "model.n_heads (%d)",
                            config->model.n_kv_heads, config->model.n_heads);
        if (config->model.head_dim % 2)
            return ifl_fail(err, IFL_FORMAT,
                            "key model.head_dim: got %d, wanted an even number: RoPE "
                            "turns pairs",
                            config->model.head_dim);
        if (!*config->model.characters)
            return ifl_fail(err, IFL_FORMAT,
                            "key model.characters: got \"\", wanted an alphabet, or a "
                            "model.path");
        if (config->rollout.max_new_tokens >= config->model.max_positions)
            return ifl_fail(err, IFL_FORMAT,
                            "key rollout.max_new_tokens: got %d tokens, wanted fewer "
                            "than model.max_positions (%d tokens): the prompt needs room",
                            config->rollout.max_new_tokens, config->model.max_positions);
    }
    int32_t page = config->actor.page_tokens;
    if (page & (page - 1))
        return ifl_fail(err, IFL_FORMAT, "key actor.page_tokens: got %d, wanted a power of two",
                        page);
    if (config->actor.kv_tokens < config->rollout.max_new_tokens + page)
        return ifl_fail(err, IFL_FORMAT,
                        "key actor.kv_tokens: got %d tokens, wanted more than "
                        "rollout.max_new_tokens (%d) and a page (%d): one trajectory must fit",
                        config->actor.kv_tokens, config->rollout.max_new_tokens, page);
    IFL_TRY(check_cpus("actor.cpus", config->actor.cpus, true, err));
    IFL_TRY(check_cpus("learner.cpus", config->learner.cpus, false, err));
    if (config->eval.tasks_mid > config->eval.tasks)
        return ifl_fail(err, IFL_FORMAT,
                        "key eval.tasks_mid: got %d prompts, wanted at most eval.tasks "
                        "(%d)",
                        config->eval.tasks_mid, config->eval.tasks);
    return IFL_OK;
}

ifl_status ifl_config_check_training(const ifl_config *config, ifl_error *err) {
    if (!config->data.n_train)
        return ifl_fail(err, IFL_FORMAT,
                        "key data.train: got no sources, wanted at least one: a run "
                        "that trains needs tasks");
    if ((config->eval.before || config->eval.after || config->eval.every_steps) &&
        !config->data.n_eval)
        return ifl_fail(err, IFL_FORMAT,
                        "key data.eval: got no sources, wanted at least one, or "
                        "eval.before=false eval.after=false eval.every_steps=0");
    if (config->rollout.temperature <= 0)
        return ifl_fail(err, IFL_FORMAT,
                        "key rollout.temperature: got 0 (greedy), wanted more: a "
                        "group of equal answers teaches nothing");
    int64_t n_kept = ifl_kept_ids_bound(config->rollout.max_new_tokens, config->rollout.top_k,
                                        config->rollout.top_p, IFL_KEPT_SET_MAX);
    if (n_kept > IFL_KEPT_IDS_MAX)
        return ifl_fail(err, IFL_FORMAT,
                        "key rollout.top_k: got %d with rollout.top_p %g, wanted 1 to %d: a token "
                        "records the set that it was drawn from, of %d tokens at most, an answer "
                        "of rollout.max_new_tokens (%d tokens) %d of them",
                        config->rollout.top_k, config->rollout.top_p,
                        IFL_KEPT_IDS_MAX / config->rollout.max_new_tokens, IFL_KEPT_SET_MAX,
                        config->rollout.max_new_tokens, IFL_KEPT_IDS_MAX);
    if (config->rollout.dynamic_sampling && strcmp(config->learner.control, "shuffled") == 0)
        return ifl_fail(err, IFL_FORMAT,
                        "key rollout.dynamic_sampling: got true with learner.control shuffled, "
                        "wanted false: groups would be chosen by the rewards that the control "
                        "takes from them");
    if (config->rollout.group_size < 2)
        return ifl_fail(err, IFL_FORMAT,
                        "key rollout.group_size: got 1 trajectory, wanted 2 or more: "
                        "an advantage compares the members of a group");
    if (config->learner.groups_in_flight &&
        config->learner.groups_in_flight < config->rollout.prompts_per_step)
        return ifl_fail(err, IFL_FORMAT,
                        "key learner.groups_in_flight: got %d prompts, wanted 0 or at "
                        "least rollout.prompts_per_step (%d prompts): a step would never fill",
                        config->learner.groups_in_flight, config->rollout.prompts_per_step);
    if (config->learner.pack_tokens < config->rollout.max_new_tokens + 1)
        return ifl_fail(
            err, IFL_FORMAT,
            "key learner.pack_tokens: got %d tokens, wanted more than "
            "rollout.max_new_tokens (%d tokens): a trajectory is never split over packs",
            config->learner.pack_tokens, config->rollout.max_new_tokens);
    return IFL_OK;
}

void ifl_config_describe(const ifl_config *config, FILE *f) {
    char mode[32];
    int row = ifl_config_row_find("run.mode");
    ifl_config_value_text(config, &ifl_config_rows[row], mode, sizeof mode);
    int64_t trajectories = (int64_t)config->rollout.prompts_per_step * config->rollout.group_size;
    fprintf(f, "batch: %d prompts x %d = %lld trajectories per step, at most %lld new tokens\n",
            config->rollout.prompts_per_step, config->rollout.group_size, (long long)trajectories,
            (long long)trajectories * config->rollout.max_new_tokens);
    if (config->rollout.dynamic_sampling)
        fprintf(f,
                "dynamic sampling: groups with equal rewards are replaced, up to %lld prompts are "
                "drawn for a step\n",
                (long long)config->rollout.prompts_per_step * config->rollout.dynamic_sampling_max);
    fprintf(f, "run: %lld steps, %lld trajectories in all, mode %s, kv %s, seed %lld\n",
            (long long)config->run.steps, (long long)trajectories * config->run.steps, mode,
            config->actor.kv == IFL_KV_MODE_KEEP ? "keep" : "recompute",
            (long long)config->run.seed);
    fprintf(f, "actors: %d x %d sequences, KV for %d tokens each in pages of %d tokens\n",
            config->actor.count, config->actor.sequences_max, config->actor.kv_tokens,
            config->actor.page_tokens);
    int64_t decoded = (int64_t)config->actor.count * config->actor.sequences_max;
    fprintf(f, "decoded at a time: %lld trajectories = %.2f steps' worth\n", (long long)decoded,
            (double)decoded / (double)trajectories);
}

#include <stdlib.h>
#include <string.h>

#include "actor/actor.h"
#include "common/log.h"
#include "deploy/cli/affinity.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/options.h"
#include "deploy/cli/signals.h"

typedef struct actor_arguments {
    const char *connect, *name;
} actor_arguments;

static ifl_status actor_option(int key, const char *arg, void *user, ifl_error *err) {
    actor_arguments *mine = user;
    (void)err;
    if (key == 'c') mine->connect = arg;
    if (key == 'n') mine->name = arg;
    return IFL_OK;
}

static ifl_status actor_work(const ifl_options *options, const actor_arguments *mine,
                             ifl_error *err) {
    const ifl_config *config = options->config;
    ifl_log_setup(mine->name, options->verbose ? IFL_LOG_DEBUG : IFL_LOG_INFO);
    const atomic_bool *stop = ifl_signals_install();
    IFL_TRY(ifl_cpu_pin(config->actor.cpus, "actor.cpus", err));
    const char *connect = mine->connect;
    if (!connect)
        connect = config->transport.connect[0] ? config->transport.connect : config->transport.bind;
    ifl_loaded_model loaded;
    ifl_status st;
    IFL_TRY_GOTO(st, ifl_config_model(&loaded, config, NULL, err), done);
    /* The learner sends the weights: what was loaded served to know the architecture. */
    ifl_weights_free(loaded.weights);
    loaded.weights = NULL;
    cpu_set_t set;
    int n_threads = config->actor.threads;
    if (n_threads == 0)
        n_threads = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights (two sets), KV cache, engine",
                        ifl_actor_bytes(config, loaded.model, n_threads));
    IFL_TRY_GOTO(st, ifl_memory_plan_check(&plan, config->memory.limit_gib, stderr, err), done);
    ifl_actor_options actor = {config, loaded.model, loaded.tokenizer, connect, mine->name, stop};
    st = ifl_actor_run(&actor, err);
done:
    ifl_loaded_model_clear(&loaded);
    return st;
}

int ifl_cmd_actor(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"connect", 'c', "ENDPOINT", 0,
         "the learner, e.g. tcp://127.0.0.1:5555 (default: transport.connect)", 0},
        {"name", 'n', "NAME", 0, "for logs and status (default: actor)", 0},
        {0}};
    actor_arguments mine = {NULL, "actor"};
    const ifl_options_spec spec = {
        .doc = "One actor process: takes leases from a learner, generates, has the answers "
               "checked, and takes "
               "new weights in between two decode steps. Ends when the learner says so. Needs the "
               "run's "
               "configuration (model and tokenizer); the weights come from the learner.",
        .extra = extra,
        .on_option = actor_option,
        .user = &mine,
    };
    ifl_options options = {0};
    ifl_error err = {0};
    ifl_status st = ifl_options_parse(&options, argc, argv, &spec, &err);
    if (st == IFL_OK && options.dry_run)
        ifl_options_print(&options, stdout);
    else if (st == IFL_OK)
        st = actor_work(&options, &mine, &err);
    ifl_options_free(&options);
    return ifl_options_exit(st, argv[0], &err);
}

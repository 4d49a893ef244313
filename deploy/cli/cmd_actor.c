#include <stdlib.h>
#include <string.h>

#include "actor/actor.h"
#include "common/keys.h"
#include "common/log.h"
#include "common/weight_links.h"
#include "deploy/cli/affinity.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/options.h"
#include "deploy/cli/signals.h"
#include "rewards/spec.h"

enum { KEY_CONNECT = 'c', KEY_NAME = 'n', KEY_KEYS = 'k', KEY_RELAYS = 'r' };

static ifl_status actor_option(int key, const char *arg, void *user, ifl_error *err) {
    (void)err;
    if (key == KEY_NAME) *(const char **)user = arg;
    return IFL_OK;
}

/* What a user mistypes is said before a model is read. */
static ifl_status actor_check_link(const ifl_config *config, const char *connect, const char *name,
                                   ifl_error *err) {
    const char *keys = config->transport.keys;
    ifl_weight_links_options relays = {
        .relays = config->transport.relays, .keys = keys, .insecure = config->transport.insecure};
    IFL_TRY(ifl_weight_links_check(&relays, err));
    IFL_TRY(ifl_endpoint_check(connect, *keys || config->transport.insecure, err));
    if (!*keys) return IFL_OK;
    char key[IFL_KEY_NAME_MAX], learner[IFL_KEY_TEXT_MAX];
    ifl_key_pair own;
    IFL_TRY(ifl_key_actor_name(key, keys, config->transport.key, name, err));
    IFL_TRY(ifl_key_pair_read(&own, keys, key, err));
    explicit_bzero(&own, sizeof own);
    return ifl_key_learner_read(learner, keys, err);
}

static ifl_status actor_work(const ifl_options *options, void *user, ifl_error *err) {
    const ifl_config *config = options->config;
    const char *name = *(const char **)user;
    ifl_log_setup(name, options->verbose ? IFL_LOG_DEBUG : IFL_LOG_INFO);
    const atomic_bool *stop = ifl_signals_install();
    IFL_TRY(ifl_spec_check_config(config, err));
    IFL_TRY(ifl_cpu_pin(config->actor.cpus, "actor.cpus", err));
    const char *connect =
        config->transport.connect[0] ? config->transport.connect : config->transport.bind;
    IFL_TRY(actor_check_link(config, connect, name, err));
    ifl_loaded_model loaded;
    ifl_status st;
    IFL_TRY_GOTO(st, ifl_config_model(&loaded, config, NULL, err), done);
    /* The learner sends the weights: what was loaded served to know the architecture. */
    ifl_weights_free(loaded.weights);
    loaded.weights = NULL;
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(
        &plan, "weights (two sets), KV cache, engine",
        ifl_actor_bytes(config, loaded.model, ifl_cpu_threads(config->actor.threads)));
    IFL_TRY_GOTO(st, ifl_memory_plan_check(&plan, config->memory.limit_gib, stderr, err), done);
    ifl_actor_options actor = {config, loaded.model, loaded.tokenizer, connect, name, stop};
    st = ifl_actor_run(&actor, err);
done:
    ifl_loaded_model_clear(&loaded);
    return st;
}

int ifl_cmd_actor(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"connect", KEY_CONNECT, "ENDPOINT", 0,
         "transport.connect: the learner, e.g. tcp://127.0.0.1:5555", 0},
        {"keys", KEY_KEYS, "FOLDER", 0,
         "transport.keys: holds its secret key and learner.public (see inflight keys)", 0},
        {"name", KEY_NAME, "NAME", 0, "for logs and status (default: actor)", 0},
        {"relays", KEY_RELAYS, "LIST", 0,
         "transport.relays: [NAME=]ENDPOINT,...: whom to ask for weights before the learner", 0},
        {0}};
    static const ifl_option_key keys[] = {{KEY_CONNECT, "transport.connect", NULL},
                                          {KEY_KEYS, "transport.keys", NULL},
                                          {KEY_RELAYS, "transport.relays", NULL},
                                          {0}};
    const char *name = "actor";
    const ifl_options_spec spec = {
        .doc = "One actor process: takes leases from a learner, generates, has the answers "
               "checked, and takes "
               "new weights in between two decode steps. Ends when the learner says so. Needs the "
               "run's "
               "configuration (model and tokenizer); the weights come from the learner. Status 77: "
               "the learner does not let its key in.",
        .extra = extra,
        .keys = keys,
        .on_option = actor_option,
        .user = &name,
        .work = actor_work,
    };
    return ifl_options_run(argc, argv, &spec);
}

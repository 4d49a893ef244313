#include "deploy/cli/commands.h"
#include "deploy/cli/run_learner.h"

static ifl_status learner_work(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    return ifl_run_learner(options, false, err);
}

enum { KEY_BIND = 'b', KEY_KEYS = 'k' };

int ifl_cmd_learner(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"bind", KEY_BIND, "ENDPOINT", 0,
         "transport.bind: where actors connect, e.g. tcp://0.0.0.0:5555", 0},
        {"keys", KEY_KEYS, "FOLDER", 0,
         "transport.keys: whom to let in from other hosts (see inflight keys)", 0},
        {0}};
    static const ifl_option_key keys[] = {
        {KEY_BIND, "transport.bind", NULL}, {KEY_KEYS, "transport.keys", NULL}, {0}};
    static const ifl_options_spec spec = {
        .doc =
            "The learner process alone: listens on transport.bind for actors started elsewhere "
            "with "
            "`inflight actor --connect ENDPOINT`. Writes the run folder as `inflight train` does. "
            "SIGHUP has the list of keys read again.",
        .extra = extra,
        .keys = keys,
        .work = learner_work,
        .dry_run = ifl_dry_run_training,
    };
    return ifl_options_run(argc, argv, &spec);
}

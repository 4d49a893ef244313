#include <string.h>

#include "common/log.h"
#include "common/relay.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/options.h"
#include "deploy/cli/signals.h"

#define REPORT_MS 10000
#define WAIT_MS 200
#define MIB ((int64_t)1 << 20)

enum { KEY_BIND = 'b', KEY_KEYS = 'k', KEY_LEARNER = 'l', KEY_NAME = 'n', KEY_RELAYS = 'r' };

static ifl_status relay_option(int key, const char *arg, void *user, ifl_error *err) {
    (void)err;
    if (key == KEY_NAME) *(const char **)user = arg;
    return IFL_OK;
}

static void relay_report(const ifl_relay_stats *s) {
    ifl_info("version %lld; %d children; %lld chunks, %.1f MB in; %lld, %.1f MB out; %lld refused; "
             "%.1f MB kept, at most %.1f",
             (long long)s->version, s->n_children, (long long)s->chunks_in,
             (double)s->bytes_in * 1e-6, (long long)s->chunks_out, (double)s->bytes_out * 1e-6,
             (long long)s->refused, (double)s->bytes_kept * 1e-6, (double)s->bytes_kept_max * 1e-6);
}

static ifl_status relay_serve(ifl_relay *relay, const atomic_bool *stop, ifl_error *err) {
    char endpoint[IFL_ENDPOINT_MAX] = "";
    int64_t reported = 0, since_ms = 0;
    ifl_status st = IFL_AGAIN;
    while (st == IFL_AGAIN && !atomic_load(stop)) {
        st = ifl_relay_wait(relay, WAIT_MS, err);
        if (!endpoint[0]) {
            ifl_relay_endpoint(relay, endpoint);
            if (endpoint[0]) ifl_info("listening on %s", endpoint);
        }
        ifl_relay_stats s;
        ifl_relay_stats_get(relay, &s);
        since_ms += WAIT_MS;
        bool due = since_ms >= REPORT_MS || st != IFL_AGAIN || atomic_load(stop);
        if (!due || s.chunks_out == reported) continue;
        since_ms = 0;
        reported = s.chunks_out;
        relay_report(&s);
    }
    return st == IFL_AGAIN ? IFL_OK : st;
}

static ifl_status relay_work(const ifl_options *options, void *user, ifl_error *err) {
    const ifl_config *c = options->config;
    const char *name = *(const char **)user;
    ifl_log_setup(name, options->verbose ? IFL_LOG_DEBUG : IFL_LOG_INFO);
    const atomic_bool *stop = ifl_signals_install();
    if (!c->transport.connect[0])
        return ifl_fail(err, IFL_USAGE,
                        "relay: whose weights? --learner ENDPOINT (transport.connect)");
    if (strcmp(c->transport.connect, c->transport.bind) == 0)
        return ifl_fail(err, IFL_USAGE, "relay: --learner and --bind are both %s",
                        c->transport.bind);
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights kept (transport.relay_mib)", c->transport.relay_mib * MIB);
    IFL_TRY(ifl_memory_plan_check(&plan, c->memory.limit_gib, stderr, err));
    ifl_relay_options o = {
        .connect = c->transport.connect,
        .relays = c->transport.relays,
        .bind = c->transport.bind,
        .name = name,
        .keys = c->transport.keys,
        .key = c->transport.key,
        .keys_reread = c->transport.keys[0] ? ifl_signals_count_hangups() : NULL,
        .insecure = c->transport.insecure,
        .bytes_max = c->transport.relay_mib * MIB,
    };
    ifl_relay *relay;
    IFL_TRY(ifl_relay_create(&relay, &o, err));
    ifl_status st = relay_serve(relay, stop, err);
    ifl_relay_free(relay);
    return st;
}

int ifl_cmd_relay(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"learner", KEY_LEARNER, "ENDPOINT", 0,
         "transport.connect: the learner, or the relay above, e.g. tcp://learner:5555", 0},
        {"bind", KEY_BIND, "ENDPOINT", 0,
         "transport.bind: where actors (transport.relays) and further relays connect", 0},
        {"relays", KEY_RELAYS, "LIST", 0,
         "transport.relays: [NAME=]ENDPOINT,...: whom to ask for chunks before the learner", 0},
        {"keys", KEY_KEYS, "FOLDER", 0,
         "transport.keys: its secret key, learner.public, and actors/ with whom to let in", 0},
        {"name", KEY_NAME, "NAME", 0, "for logs (default: relay)", 0},
        {0}};
    static const ifl_option_key keys[] = {{KEY_LEARNER, "transport.connect", NULL},
                                          {KEY_BIND, "transport.bind", NULL},
                                          {KEY_RELAYS, "transport.relays", NULL},
                                          {KEY_KEYS, "transport.keys", NULL},
                                          {0}};
    const char *name = "relay";
    const ifl_options_spec spec = {
        .doc =
            "Hands the learner's weights on to many actors: each chunk is asked for once and kept "
            "for all of them (transport.relay_mib), so that what the learner sends does not grow "
            "with their number. Actors name it in transport.relays and hold every chunk against "
            "the learner's hashes; when it is gone, late or wrong they go on without it. Needs no "
            "model. Ends when the learner does.",
        .extra = extra,
        .keys = keys,
        .on_option = relay_option,
        .user = &name,
        .work = relay_work,
    };
    return ifl_options_run(argc, argv, &spec);
}

/* inflight keys: the keys of links between hosts (common/keys.h). */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/keys.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/options.h"

static const char keys_doc[] =
    "Makes the keys that encrypt and authenticate links between hosts, and says who may join. On "
    "the learner's host:\n"
    "\n"
    "  inflight keys new keys                  its own pair: keys/learner.secret, learner.public\n"
    "  inflight keys new keys gpu1             a pair for an actor, allowed at once\n"
    "  scp -p keys/gpu1.secret keys/learner.public gpu1:keys/\n"
    "  inflight learner --bind tcp://0.0.0.0:5555 --keys keys ...\n"
    "\n"
    "and on gpu1: inflight actor --connect tcp://LEARNER:5555 --keys keys ...\n"
    "\n"
    "A secret key need not travel: make the pair on the actor's host (keys new), copy its public "
    "key to the learner's host and allow it there (keys allow).\v"
    "  new FOLDER             the learner's pair\n"
    "  new FOLDER NAME        an actor's pair; allowed where FOLDER holds the learner's secret "
    "key\n"
    "  allow FOLDER FILE...   actors' public keys (NAME.public) may join as NAME\n"
    "  revoke FOLDER NAME...  they may not any more; a running learner ends their sessions\n"
    "  list FOLDER            the keys in it, and who may join\n"
    "\n"
    "Nothing is overwritten. A running learner notices changes by itself, or by SIGHUP. Several "
    "actors may use one key. ";

static bool is_there(const char *folder, const char *name) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

static ifl_status keys_new_learner(const char *folder, ifl_error *err) {
    ifl_key_pair pair;
    IFL_TRY(ifl_key_pair_make(&pair, err));
    IFL_TRY(ifl_key_pair_write(&pair, folder, IFL_KEY_LEARNER, err));
    printf("%s/learner.secret  stays on this host\n"
           "%s/learner.public  %s\n"
           "For each actor's host: inflight keys new %s NAME\n",
           folder, folder, pair.public_key, folder);
    explicit_bzero(&pair, sizeof pair);
    return IFL_OK;
}

static ifl_status keys_new_actor(const char *folder, const char *name, ifl_error *err) {
    ifl_key_pair pair;
    bool allow = is_there(folder, "learner.secret");
    IFL_TRY(ifl_key_name_check(name, err));
    if (strcmp(name, IFL_KEY_LEARNER) == 0)
        return ifl_fail(err, IFL_USAGE, "the learner's pair: inflight keys new %s", folder);
    IFL_TRY(ifl_key_pair_make(&pair, err));
    IFL_TRY(ifl_key_pair_write(&pair, folder, name, err));
    ifl_status st = allow ? ifl_key_allow(folder, name, pair.public_key, err) : IFL_OK;
    if (st == IFL_OK)
        printf("%s/%s.secret  for the actor's host alone\n"
               "%s/%s.public  %s%s\n",
               folder, name, folder, name, pair.public_key, allow ? "  may join" : "");
    if (st == IFL_OK && allow)
        printf("To its host: scp -p %s/%s.secret %s/learner.public HOST:%s/\n", folder, name,
               folder, folder);
    else if (st == IFL_OK)
        printf("To the learner's host: %s/%s.public, and there: inflight keys allow FOLDER "
               "%s.public\n"
               "From there: learner.public, into %s/\n",
               folder, name, name, folder);
    explicit_bzero(&pair, sizeof pair);
    return st;
}

static ifl_status keys_allow(const char *folder, const char *file, ifl_error *err) {
    const char *base = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
    const char *ending = strstr(base, ".public");
    char name[IFL_KEY_NAME_MAX], key[IFL_KEY_TEXT_MAX];
    if (!ending || ending[strlen(".public")] || ending - base >= IFL_KEY_NAME_MAX)
        return ifl_fail(err, IFL_USAGE,
                        "%s: wanted a file NAME.public, as `inflight keys new` writes it", file);
    snprintf(name, sizeof name, "%.*s", (int)(ending - base), base);
    IFL_TRY(ifl_key_public_read(key, file, err));
    IFL_TRY(ifl_key_allow(folder, name, key, err));
    printf("%s may join\n", name);
    return IFL_OK;
}

static ifl_status keys_list(const char *folder, ifl_error *err) {
    char learner[IFL_KEY_TEXT_MAX];
    ifl_key_list list = {0};
    ifl_status st = ifl_key_learner_read(learner, folder, err);
    if (st == IFL_OK)
        printf("learner  %s%s\n", learner,
               is_there(folder, "learner.secret") ? "" : "  (no learner.secret here)");
    else
        return st;
    if (!is_there(folder, "learner.secret") && !is_there(folder, "actors")) return IFL_OK;
    IFL_TRY(ifl_key_list_read(&list, folder, err));
    printf("%d may join%s\n", list.n, list.n ? ":" : "");
    for (int32_t i = 0; i < list.n; i++)
        printf("  %-31s  %s\n", list.entries[i].name, list.entries[i].key);
    ifl_key_list_clear(&list);
    return IFL_OK;
}

static ifl_status keys_work(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    const char *what = options->args[0], *folder = options->args[1];
    int n = options->n_args;
    bool many = strcmp(what, "allow") == 0 || strcmp(what, "revoke") == 0;
    if (strcmp(what, "new") == 0 && n <= 3)
        return n == 2 ? keys_new_learner(folder, err)
                      : keys_new_actor(folder, options->args[2], err);
    if (strcmp(what, "list") == 0 && n == 2) return keys_list(folder, err);
    for (int i = 2; many && i < n; i++) {
        if (strcmp(what, "allow") == 0) {
            IFL_TRY(keys_allow(folder, options->args[i], err));
            continue;
        }
        IFL_TRY(ifl_key_revoke(folder, options->args[i], err));
        printf("%s may not join any more\n", options->args[i]);
    }
    if (many && n > 2) return IFL_OK;
    return ifl_fail(err, IFL_USAGE,
                    "keys: wanted new FOLDER [NAME], allow FOLDER FILE..., revoke FOLDER NAME... "
                    "or list FOLDER, got \"%.40s\" and %d more",
                    what, n - 1);
}

int ifl_cmd_keys(int argc, char **argv) {
    static const ifl_options_spec spec = {
        .doc = keys_doc,
        .args_doc = "new|allow|revoke|list FOLDER [NAME|FILE ...]",
        .n_args_min = 2,
        .n_args_max = IFL_ARGS_MAX,
        .work = keys_work,
    };
    return ifl_options_run(argc, argv, &spec);
}

/* What every subcommand's command line has in common, on argp: --config FILE, key=value overrides
 * anywhere among the arguments, --dry-run, --help, --help-config, --verbose. A command adds its own
 * options and positional arguments.
 *
 *     static ifl_status option(int key, const char *arg, void *user, ifl_error *err);
 *     static ifl_status work(const ifl_options *options, void *user, ifl_error *err);
 *     static const struct argp_option extra[] = {{"seed", 's', "N", 0, "run.seed", 0},
 *                                                {"step", 'n', "N", 0, "only this step", 0}, {0}};
 *     static const ifl_option_key keys[] = {{'s', "run.seed", NULL}, {0}};
 *     const ifl_options_spec spec = {.doc = "...", .args_doc = "RUN", .n_args_max = 1,
 *                                    .extra = extra, .keys = keys, .on_option = option,
 *                                    .user = &mine, .work = work};
 *     return ifl_options_run(argc, argv, &spec);
 */
#ifndef IFL_DEPLOY_CLI_OPTIONS_H
#define IFL_DEPLOY_CLI_OPTIONS_H

#include <argp.h>
#include <stdio.h>

#include "common/config.h"

#define IFL_VERSION "0.1.0"
#define IFL_ARGS_MAX 64
#define IFL_OVERRIDES_MAX 256
#define IFL_SETTINGS_MAX 64

typedef struct ifl_options {
    ifl_config *config;      /* owned; resolved: file, then overrides */
    const char *config_path; /* borrows argv; NULL: none given */
    bool dry_run;
    bool verbose;
    int n_args;
    const char *args[IFL_ARGS_MAX]; /* positional; borrow argv */
    int n_overrides;
    const char *overrides[IFL_OVERRIDES_MAX]; /* borrow argv; to hand on to child processes */
    int n_settings;
    char *settings[IFL_SETTINGS_MAX]; /* key=value, owned: what options said; over the overrides */
} ifl_options;

/* An option that is another way to write a configuration key. It goes over the file and over
 * key=value arguments. Several rows may serve one option. */
typedef struct ifl_option_key {
    int option; /* key of its argp_option; the table ends with 0 */
    const char *key;
    const char *value; /* NULL: the option's argument */
} ifl_option_key;

typedef ifl_status (*ifl_command_work)(const ifl_options *options, void *user, ifl_error *err);

typedef struct ifl_options_spec {
    const char *doc;                 /* what the command does, a few lines */
    const char *args_doc;            /* e.g. "RUN"; NULL: none */
    const struct argp_option *extra; /* ends with {0}; NULL: none; keys below 1000 */
    const ifl_option_key *keys;      /* ends with {0}; NULL: none. on_option does not see them */
    const char *const *presets; /* key=value, ends with NULL: this command's own defaults, which
                                 * stand in the place of the file when there is none */
    ifl_status (*on_option)(int key, const char *arg, void *user, ifl_error *err);
    ifl_options **parsing; /* may be NULL; set to what is being parsed, for on_option's
                            * ifl_options_set */
    void *user;
    int n_args_min, n_args_max;
    ifl_command_work work;    /* for ifl_options_run */
    ifl_command_work dry_run; /* in the place of ifl_options_print; NULL: that one */
} ifl_options_spec;

/* A whole command: parses, then prints (--dry-run) or works, tells the error on standard error,
 * returns the exit code. Prints and exits for --help, --usage and --help-config; unknown options
 * exit with 64 as argp does. */
int ifl_options_run(int argc, char **argv, const ifl_options_spec *spec);

/* For on_option: sets a key as a row of `keys` would. `out` is what is being parsed. */
ifl_status ifl_options_set(ifl_options *out, const char *key, const char *value, ifl_error *err);

/* True when the file may have said it, or key=value did: no default of ours. */
bool ifl_options_may_say(const ifl_options *options, const char *key);

/* --dry-run: the resolved configuration as YAML with units and help, derived numbers as comments.
 */
void ifl_options_print(const ifl_options *options, FILE *f);

/* For on_option: a number in [min, max], or IFL_USAGE naming the option. */
ifl_status ifl_options_int(const char *option, const char *arg, int64_t min, int64_t max,
                           int64_t *out, ifl_error *err);
ifl_status ifl_options_double(const char *option, const char *arg, double min, double max,
                              double *out, ifl_error *err);

#endif

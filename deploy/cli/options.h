/* What every subcommand's command line has in common, on argp: --config FILE, key=value overrides
 * anywhere among the arguments, --dry-run, --help, --help-config, --verbose. A command adds its own
 * options and positional arguments.
 *
 *     static ifl_status option(int key, const char *arg, void *user, ifl_error *err);
 *     static const struct argp_option extra[] = {{"step", 'n', "N", 0, "only this step", 0}, {0}};
 *     ifl_options options = {0};
 *     ifl_error err = {0};
 *     const ifl_options_spec spec = {.doc = "...", .args_doc = "RUN", .extra = extra,
 *                                    .on_option = option, .user = &mine, .n_args_min = 1,
 * .n_args_max = 1}; ifl_status st = ifl_options_parse(&options, argc, argv, &spec, &err); if (st ==
 * IFL_OK && options.dry_run) ifl_options_print(&options, stdout); else if (st == IFL_OK) st =
 * work(options.config, options.args[0], &err); ifl_options_free(&options); return
 * ifl_options_exit(st, argv[0], &err);
 */
#ifndef IFL_DEPLOY_CLI_OPTIONS_H
#define IFL_DEPLOY_CLI_OPTIONS_H

#include <argp.h>
#include <stdio.h>

#include "common/config.h"

#define IFL_VERSION "0.1.0"
#define IFL_ARGS_MAX 64
#define IFL_OVERRIDES_MAX 256

typedef struct ifl_options {
    ifl_config *config;      /* owned; resolved: file, then overrides */
    const char *config_path; /* borrows argv; NULL: none given */
    bool dry_run;
    bool verbose;
    int n_args;
    const char *args[IFL_ARGS_MAX]; /* positional; borrow argv */
    int n_overrides;
    const char *overrides[IFL_OVERRIDES_MAX]; /* borrow argv; to hand on to child processes */
} ifl_options;

typedef struct ifl_options_spec {
    const char *doc;                 /* what the command does, a few lines */
    const char *args_doc;            /* e.g. "RUN"; NULL: none */
    const struct argp_option *extra; /* ends with {0}; NULL: none; keys below 1000 */
    ifl_status (*on_option)(int key, const char *arg, void *user, ifl_error *err);
    void *user;
    int n_args_min, n_args_max;
    bool no_config; /* reads no configuration: --config and overrides are refused, config stays NULL
                     */
} ifl_options_spec;

/* Fills `out`. Prints and exits for --help, --usage and --help-config; unknown options exit with 64
 * as argp does; everything else is a status and a text. */
ifl_status ifl_options_parse(ifl_options *out, int argc, char **argv, const ifl_options_spec *spec,
                             ifl_error *err);
void ifl_options_free(ifl_options *options);

/* --dry-run: the resolved configuration as YAML with units and help, derived numbers as comments.
 */
void ifl_options_print(const ifl_options *options, FILE *f);

/* Prints "name: text" on standard error unless `st` is IFL_OK; returns the exit code. */
int ifl_options_exit(ifl_status st, const char *name, const ifl_error *err);

/* For on_option: a number in [min, max], or IFL_USAGE naming the option. */
ifl_status ifl_options_int(const char *option, const char *arg, int64_t min, int64_t max,
                           int64_t *out, ifl_error *err);
ifl_status ifl_options_double(const char *option, const char *arg, double min, double max,
                              double *out, ifl_error *err);

#endif

/* `inflight report RUN`: writes runs/<name>/report.html. */
#include <stdio.h>

#include "deploy/cli/commands.h"
#include "deploy/cli/options.h"
#include "deploy/cli/report.h"

enum { KEY_DIR = 1 };

static ifl_status on_option(int key, const char *arg, void *user, ifl_error *err) {
    (void)err;
    if (key == KEY_DIR) *(const char **)user = arg;
    return IFL_OK;
}

int ifl_cmd_report(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"dir", KEY_DIR, "DIR", 0, "folder of all runs (runs)", 0},
        {0},
    };
    const char *dir = "runs";
    const ifl_options_spec spec = {
        .doc = "Writes report.html into a run's folder: curves of reward, accuracy, lag and "
               "lengths, the "
               "parity audit, the books, sample rollouts. One file without scripts.",
        .args_doc = "RUN",
        .extra = extra,
        .on_option = on_option,
        .user = &dir,
        .n_args_min = 1,
        .n_args_max = 1,
        .no_config = true};
    ifl_options options;
    ifl_run_dir run;
    ifl_error err = {0};
    ifl_status st = ifl_options_parse(&options, argc, argv, &spec, &err);
    if (st == IFL_OK) st = ifl_run_dir_open(&run, dir, options.args[0], &err);
    if (st == IFL_OK) st = ifl_report_write(&run, &err);
    if (st == IFL_OK) printf("%s\n", run.report);
    ifl_options_free(&options);
    return ifl_options_exit(st, argv[0], &err);
}

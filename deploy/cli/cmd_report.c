/* `inflight report RUN`: writes runs/<name>/report.html. */
#include <stdio.h>

#include "deploy/cli/commands.h"
#include "deploy/cli/options.h"
#include "deploy/cli/report.h"
#include "deploy/cli/run_argument.h"

enum { KEY_DIR = 1 };

static ifl_status report_work(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    ifl_run_dir run;
    IFL_TRY(ifl_run_argument(&run, options, err));
    IFL_TRY(ifl_report_write(&run, err));
    printf("%s\n", run.report);
    return IFL_OK;
}

static ifl_status report_dry_run(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    ifl_run_dir run;
    ifl_options_print(options, stdout);
    IFL_TRY(ifl_run_argument(&run, options, err));
    printf("# reads   %s, %s, %s/\n", run.metrics, run.summary, run.rollouts);
    printf("# writes  %s\n", run.report);
    return IFL_OK;
}

int ifl_cmd_report(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"dir", KEY_DIR, "DIR", 0, "run.dir: folder of all runs (default runs)", 0},
        {0},
    };
    static const ifl_option_key keys[] = {{KEY_DIR, "run.dir", NULL}, {0}};
    static const ifl_options_spec spec = {
        .doc = "Writes report.html into a run's folder: curves of reward, accuracy, lag and "
               "lengths, the parity audit, the books, sample rollouts. One file without scripts.",
        .args_doc = "RUN",
        .extra = extra,
        .keys = keys,
        .n_args_max = 1,
        .work = report_work,
        .dry_run = report_dry_run};
    return ifl_options_run(argc, argv, &spec);
}

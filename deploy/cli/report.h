/* runs/<name>/report.html: one file, no scripts, nothing fetched; readable on a phone and in dark
 * mode. */
#ifndef IFL_DEPLOY_CLI_REPORT_H
#define IFL_DEPLOY_CLI_REPORT_H

#include "deploy/cli/report_data.h"

/* Writes the page into a stream. */
void ifl_report_page(FILE *f, const ifl_report_data *data);

/* Reads the run and writes its report.html, atomically. */
ifl_status ifl_report_write(const ifl_run_dir *run, ifl_error *err);

#endif

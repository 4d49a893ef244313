/* Runs another program to its end, bounded in time and in what is kept of its output. */
#ifndef IFL_CLI_BENCH_PROCESS_H
#define IFL_CLI_BENCH_PROCESS_H

#include "common/status.h"

#define IFL_PROCESS_OUT_MAX                                                                        \
    (1 << 20) /* bytes of standard output kept; what comes after is read and dropped */
#define IFL_PROCESS_ERR_MAX 8192 /* last bytes of standard error kept */

typedef struct ifl_process_result {
    char *out; /* owned: free with ifl_process_result_clear */
    char err[IFL_PROCESS_ERR_MAX + 1];
    int64_t rss_peak_bytes; /* as the kernel counted it */
    double seconds;
} ifl_process_result;

/* argv[0] is looked for in PATH when it has no slash; argv ends with NULL. Standard input is empty.
 * The program leads a process group of its own, which is killed when the time is over, when a
 * signal asks this process to stop (IFL_STOPPED), and at its end. Anything but an exit with status
 * 0 is an error that names the command and the last lines of its output: IFL_PEER, IFL_TIMEOUT, or
 * IFL_NOTFOUND when it cannot be started. `argv0` (may be NULL) is what the program is told it is
 * called. Not thread-safe: call it from the main thread, before there are others. */
ifl_status ifl_process_run(ifl_process_result *result, const char *const *argv, const char *argv0,
                           double timeout_s, ifl_error *err);
void ifl_process_result_clear(ifl_process_result *result);

/* The command as a shell would take it, cut to `size`. */
void ifl_process_command(char *out, size_t size, const char *const *argv);

#endif

#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char log_name[32] = "inflight";
static ifl_log_level log_level = IFL_LOG_INFO;

void ifl_log_setup(const char *name, ifl_log_level level) {
    snprintf(log_name, sizeof log_name, "%s", name);
    log_level = level;
}

void ifl_log(ifl_log_level level, const char *format, ...) {
    static const char *const marks[] = {"debug: ", "", "warning: ", "error: "};
    if (level < log_level) return;
    char line[2048];
    time_t now = time(NULL);
    struct tm t;
    localtime_r(&now, &t);
    int n = snprintf(line, sizeof line, "%02d:%02d:%02d %s | %s", t.tm_hour, t.tm_min, t.tm_sec,
                     log_name, marks[level]);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
    va_end(args);
    if (m < 0) return;
    size_t total = (size_t)n + (size_t)m;
    if (total > sizeof line - 2) total = sizeof line - 2;
    line[total++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, total);
    (void)ignored; /* a log line that cannot be written has nowhere to go */
}

#include "common/recorder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/config.h"

int ifl_recorder_fd = -1;

ifl_status ifl_recorder_setup(ifl_error *err) {
    const char *prefix = getenv("INFLIGHT_RECORD");
    char path[IFL_PATH_MAX];
    if (!prefix || !*prefix) return IFL_OK;
    int n = snprintf(path, sizeof path, "%s.%ld", prefix, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof path)
        return ifl_fail(err, IFL_LIMIT, "INFLIGHT_RECORD: path too long");
    ifl_recorder_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (ifl_recorder_fd < 0)
        return ifl_fail(err, IFL_IO, "INFLIGHT_RECORD: %s: cannot open: %s", path, strerror(errno));
    return IFL_OK;
}

void ifl_recorder_write(const char *what, int purpose, uint64_t serial, int32_t sample,
                        uint64_t lease, int32_t status) {
    char line[160];
    int n = snprintf(line, sizeof line, "%s %d %llu %d %llu %d\n", what, purpose,
                     (unsigned long long)serial, sample, (unsigned long long)lease, status);
    if (n > 0 && write(ifl_recorder_fd, line, (size_t)n) != n) return; /* told by its absence */
}

#include "common/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/config.h"
#include "common/memory.h"

#define ROTATE_BYTES_DEFAULT ((int64_t)64 << 20)
#define LINE_BYTES_MAX (1 << 20)
#define ROTATED_MAX 9999

static const struct {
    const char *name, *unit, *meaning;
} metric_table[] = {
#define METRIC_ROW(name, unit, meaning) {name, unit, meaning},
    IFL_METRICS(METRIC_ROW)
#undef METRIC_ROW
};

bool ifl_metric_describe(const char *name, const char **unit, const char **meaning) {
    for (size_t i = 0; i < sizeof metric_table / sizeof *metric_table; i++) {
        if (strcmp(metric_table[i].name, name)) continue;
        *unit = metric_table[i].unit;
        *meaning = metric_table[i].meaning;
        return true;
    }
    return false;
}

struct ifl_metrics {
    char path[IFL_PATH_MAX];
    int fd;
    int64_t bytes, rotate_bytes;
    double start_s;
    json_t *row;   /* being built; NULL between rows */
    json_t *last;  /* name -> number */
    bool failed;   /* out of memory while adding */
    uint8_t *held; /* whole rows that found no room on the disk */
    size_t n_held, held_cap;
};

#define HELD_BYTES_MAX (16 << 20)

static ifl_status metrics_reopen(ifl_metrics *m, ifl_error *err) {
    m->fd = open(m->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    struct stat s;
    if (m->fd < 0 || fstat(m->fd, &s))
        return ifl_fail(err, IFL_IO, "%s: cannot open: %s", m->path, strerror(errno));
    m->bytes = s.st_size;
    char tail = '\n';
    if (m->bytes > 0 && pread(m->fd, &tail, 1, m->bytes - 1) != 1)
        return ifl_fail(err, IFL_IO, "%s: cannot read: %s", m->path, strerror(errno));
    if (tail != '\n' && write(m->fd, "\n", 1) == 1) m->bytes++;
    return IFL_OK;
}

ifl_status ifl_metrics_open(ifl_metrics **out, const char *path, int64_t rotate_bytes,
                            ifl_error *err) {
    *out = NULL;
    ifl_metrics *m = calloc(1, sizeof *m);
    if (!m) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    m->fd = -1;
    m->rotate_bytes = rotate_bytes > 0 ? rotate_bytes : ROTATE_BYTES_DEFAULT;
    m->start_s = ifl_clock_s();
    m->last = json_object();
    ifl_status st = IFL_OK;
    int n = snprintf(m->path, sizeof m->path, "%s", path);
    if (n < 0 || (size_t)n + 8 >= sizeof m->path)
        st = ifl_fail(err, IFL_LIMIT, "%.80s...: path too long", path);
    else if (!m->last)
        st = ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    else
        st = metrics_reopen(m, err);
    if (st != IFL_OK) {
        ifl_metrics_close(m);
        return st;
    }
    *out = m;
    return IFL_OK;
}

/* Brings what is held into the file, by one write, so that readers never see half of a row. Without
 * room for all of it the file is what it was before, and the rows wait for the next one. */
static ifl_status metrics_write(ifl_metrics *m, ifl_error *err) {
    if (!m->n_held) return IFL_OK;
    int fault = ifl_fail_point(IFL_FAIL_METRICS_WRITE);
    ssize_t written = fault > 0 ? -1 : write(m->fd, m->held, m->n_held);
    int why = fault > 0 ? fault : written < 0 ? errno : ENOSPC;
    if (written == (ssize_t)m->n_held) {
        m->bytes += written;
        m->n_held = 0;
        return IFL_OK;
    }
    if (written > 0 && ftruncate(m->fd, m->bytes) != 0)
        return ifl_fail(err, IFL_IO, "%s: cannot take back half of a row: %s", m->path,
                        strerror(errno));
    bool waits = (why == ENOSPC || why == EDQUOT) && m->n_held <= HELD_BYTES_MAX;
    return waits ? IFL_OK
                 : ifl_fail(err, IFL_IO, "%s: cannot write %zu bytes: %s", m->path, m->n_held,
                            strerror(why));
}

void ifl_metrics_close(ifl_metrics *m) {
    if (!m) return;
    if (m->fd >= 0) {
        metrics_write(m, NULL);
        close(m->fd);
    }
    free(m->held);
    json_decref(m->row);
    json_decref(m->last);
    free(m);
}

static void row_set(ifl_metrics *m, const char *name, json_t *value) {
    IFL_ASSERT(m->row); /* an add outside of begin and end */
    if (json_object_set_new(m->row, name, value)) m->failed = true;
}

void ifl_metrics_begin(ifl_metrics *m, const char *kind, int64_t step) {
    IFL_ASSERT(!m->row);
    m->row = json_object();
    IFL_ASSERT(m->row);
    m->failed = false;
    ifl_metrics_add_text(m, "kind", kind);
    row_set(m, "step", json_integer(step));
    row_set(m, "time_s", json_real(ifl_clock_s() - m->start_s));
}

void ifl_metrics_add(ifl_metrics *m, const char *name, double value) {
    row_set(m, name, isfinite(value) ? json_real(value) : json_null());
    if (isfinite(value) && json_object_set_new(m->last, name, json_real(value))) m->failed = true;
}

void ifl_metrics_add_int(ifl_metrics *m, const char *name, int64_t value) {
    row_set(m, name, json_integer(value));
    if (json_object_set_new(m->last, name, json_integer(value))) m->failed = true;
}

void ifl_metrics_add_text(ifl_metrics *m, const char *name, const char *text) {
    json_t *value = json_string(text);
    row_set(m, name, value ? value : json_string("(not UTF-8)"));
}

double ifl_metrics_last(const ifl_metrics *m, const char *name, double otherwise) {
    const json_t *value = json_object_get(m->last, name);
    return json_is_number(value) ? json_number_value(value) : otherwise;
}

static ifl_status metrics_rotate(ifl_metrics *m, ifl_error *err) {
    char to[IFL_PATH_MAX];
    struct stat s;
    int i = 1;
    for (; i <= ROTATED_MAX; i++) {
        snprintf(to, sizeof to, "%s.%d", m->path, i);
        if (lstat(to, &s)) break;
    }
    if (i > ROTATED_MAX) return ifl_fail(err, IFL_LIMIT, "%s: %d rotated files", m->path, i - 1);
    close(m->fd);
    m->fd = -1;
    if (rename(m->path, to))
        return ifl_fail(err, IFL_IO, "%s: cannot rotate: %s", m->path, strerror(errno));
    return metrics_reopen(m, err);
}

ifl_status ifl_metrics_end(ifl_metrics *m, ifl_error *err) {
    IFL_ASSERT(m->row);
    char *line =
        m->failed ? NULL
                  : json_dumps(m->row, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
    json_decref(m->row);
    m->row = NULL;
    if (!line) return ifl_fail(err, IFL_NOMEM, "%s: out of memory for a row", m->path);
    size_t n = strlen(line);
    ifl_status st = IFL_OK;
    if (n + 1 > LINE_BYTES_MAX) {
        st = ifl_fail(err, IFL_LIMIT, "%s: a row of %zu bytes, wanted at most %d", m->path, n,
                      LINE_BYTES_MAX);
        goto done;
    }
    if (m->bytes && m->bytes + (int64_t)n + 1 > m->rotate_bytes)
        IFL_TRY_GOTO(st, metrics_rotate(m, err), done);
    line[n] = '\n'; /* over the NUL */
    void *held = m->held;
    st = ifl_grow(&held, &m->held_cap, m->n_held + n + 1, 1, err);
    m->held = held;
    if (st == IFL_OK) {
        memcpy(m->held + m->n_held, line, n + 1);
        m->n_held += n + 1;
        st = metrics_write(m, err);
    }
done:
    free(line);
    return st;
}

static ifl_status file_read_rows(const char *path, ifl_status (*row)(const json_t *, void *),
                                 void *user, int64_t *n_skipped, ifl_error *err) {
    FILE *f = fopen(path, "rb");
    if (!f)
        return ifl_fail(err, errno == ENOENT ? IFL_NOTFOUND : IFL_IO, "%s: cannot open: %s", path,
                        strerror(errno));
    ifl_status st = IFL_OK;
    char *line = malloc(LINE_BYTES_MAX);
    if (!line) st = ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    while (st == IFL_OK && fgets(line, LINE_BYTES_MAX, f)) {
        size_t n = strlen(line);
        if (n <= 1) continue;
        json_t *object = json_loadb(line, n, 0, NULL);
        if (json_is_object(object))
            st = row(object, user);
        else
            (*n_skipped)++;
        json_decref(object);
    }
    free(line);
    fclose(f);
    return st;
}

ifl_status ifl_metrics_read(const char *path, ifl_status (*row)(const json_t *row, void *user),
                            void *user, int64_t *n_skipped, ifl_error *err) {
    char rotated[IFL_PATH_MAX];
    struct stat s;
    *n_skipped = 0;
    for (int i = 1; i <= ROTATED_MAX; i++) {
        snprintf(rotated, sizeof rotated, "%s.%d", path, i);
        if (lstat(rotated, &s)) break;
        IFL_TRY(file_read_rows(rotated, row, user, n_skipped, err));
    }
    return file_read_rows(path, row, user, n_skipped, err);
}

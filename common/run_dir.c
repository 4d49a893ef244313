#include "common/run_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/file_write.h"

#define MOVED_ASIDE_MAX 10000
#define HEADROOM_BYTES ((int64_t)64 << 20)

/* --- Files ------------------------------------------------------------------------------------ */

ifl_status ifl_dir_sync(const char *path, ifl_error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return ifl_fail(err, IFL_IO, "%s: cannot open the folder: %s", path, strerror(errno));
    /* Some file systems cannot sync a folder and say EINVAL; there is nothing more to do then. */
    int code = fsync(fd);
    int saved = errno;
    close(fd);
    if (code && saved != EINVAL)
        return ifl_fail(err, IFL_IO, "%s: cannot sync the folder: %s", path, strerror(saved));
    return IFL_OK;
}

ifl_status ifl_dir_create(const char *path, ifl_error *err) {
    char part[IFL_PATH_MAX];
    size_t n = strlen(path);
    if (!n || n >= sizeof part)
        return ifl_fail(err, IFL_LIMIT, "folder \"%.80s\": got %zu bytes, wanted 1 .. %d", path, n,
                        IFL_PATH_MAX - 1);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i]) continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0755) && errno != EEXIST)
            return ifl_fail(err, IFL_IO, "%s: cannot create the folder: %s", part, strerror(errno));
    }
    struct stat s;
    if (stat(path, &s) || !S_ISDIR(s.st_mode))
        return ifl_fail(err, IFL_IO, "%s: exists and is no folder", path);
    return IFL_OK;
}

ifl_status ifl_file_write_atomic(const char *path, const void *bytes, size_t n_bytes,
                                 ifl_error *err) {
    return ifl_file_write_whole(path, bytes, n_bytes, err);
}

ifl_status ifl_disk_headroom(const char *path, int64_t n_bytes, const char *what, ifl_error *err) {
    struct statvfs s;
    if (statvfs(path, &s))
        return ifl_fail(err, IFL_IO, "%s: cannot tell the free space: %s", path, strerror(errno));
    double available = (double)s.f_bavail * (double)s.f_frsize;
    if (available < (double)n_bytes + (double)HEADROOM_BYTES)
        return ifl_fail(err, IFL_LIMIT,
                        "%s: %.0f MiB free, wanted %.0f MiB for %s and 64 MiB to spare; free some "
                        "space or choose another run.dir",
                        path, available / 1048576, (double)n_bytes / 1048576, what);
    return IFL_OK;
}

/* --- The folder of a run ------------------------------------------------------------------------
 */

static ifl_status paths_fill(ifl_run_dir *run, const char *path, ifl_error *err) {
    const struct {
        char *to;
        const char *name;
    } files[] = {
        {run->config, "config.yaml"},       {run->metrics, "metrics.jsonl"},
        {run->rollouts, "rollouts"},        {run->checkpoints, "checkpoints"},
        {run->summary, "summary.json"},     {run->report, "report.html"},
        {run->tokenizer, "tokenizer.json"}, {run->versions, "versions"},
        {run->ledger, "ledger.jsonl"},
    };
    /* Room for the longest name that is put below, numbers of checkpoints and segments included. */
    if (strlen(path) + 64 >= IFL_PATH_MAX)
        return ifl_fail(err, IFL_LIMIT, "%.80s...: path too long", path);
    memset(run, 0, sizeof *run);
    run->lock_fd = -1;
    snprintf(run->path, sizeof run->path, "%s", path);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        snprintf(files[i].to, IFL_PATH_MAX, "%s/%s", path, files[i].name);
    return IFL_OK;
}

/* Takes the lock of a folder. The kernel gives it back when the process dies, so none is ever
 * stale. */
static ifl_status lock_take(const char *folder, int *fd_out, ifl_error *err) {
    char path[IFL_PATH_MAX];
    snprintf(path, sizeof path, "%s/lock", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return ifl_fail(err, IFL_IO, "%s: cannot open: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        int saved = errno;
        char holder[32] = "";
        ssize_t n = pread(fd, holder, sizeof holder - 1, 0);
        holder[n > 0 ? strcspn(holder, "\n") : 0] = 0;
        close(fd);
        if (saved != EWOULDBLOCK)
            return ifl_fail(err, IFL_IO, "%s: cannot lock: %s", path, strerror(saved));
        return ifl_fail(
            err, IFL_PEER,
            "%s: in use by another learner (process %s); wait for it, end it, or choose "
            "another run.name",
            folder, *holder ? holder : "unknown");
    }
    char text[32];
    int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)n, 0) != n) {
        close(fd);
        return ifl_fail(err, IFL_IO, "%s: cannot write: %s", path, strerror(errno));
    }
    *fd_out = fd;
    return IFL_OK;
}

static ifl_status moved_aside(const char *path, ifl_error *err) {
    char aside[IFL_PATH_MAX];
    for (int i = 1; i <= MOVED_ASIDE_MAX; i++) {
        snprintf(aside, sizeof aside, "%s.%d", path, i);
        struct stat s;
        if (!lstat(aside, &s)) continue;
        /* An empty folder of that name could be replaced by rename in a race; nothing is lost by
         * it. */
        if (!rename(path, aside)) return IFL_OK;
        return ifl_fail(err, IFL_IO, "%s: cannot move it aside to %s: %s", path, aside,
                        strerror(errno));
    }
    return ifl_fail(err, IFL_LIMIT, "%s: %d older runs of that name lie beside it; remove some",
                    path, MOVED_ASIDE_MAX);
}

static ifl_status config_write(const ifl_run_dir *run, const ifl_config *config, ifl_error *err) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", run->config);
    ifl_status st = ifl_config_write(config, f, true, err);
    if (fclose(f) && st == IFL_OK) st = ifl_fail(err, IFL_NOMEM, "%s: out of memory", run->config);
    if (st == IFL_OK) st = ifl_file_write_atomic(run->config, text, n, err);
    free(text);
    return st;
}

/* Builds the new folder under a temporary name and renames it, so that nobody sees half of it and
 * two learners that start together cannot share it. */
static ifl_status fresh_create(ifl_run_dir *out, const char *path, const ifl_config *config,
                               ifl_error *err) {
    char temporary[IFL_PATH_MAX];
    ifl_run_dir draft;
    ifl_status st;
    int lock_fd = -1;
    snprintf(temporary, sizeof temporary, "%s/.new.%s.%ld", config->run.dir, config->run.name,
             (long)getpid());
    IFL_TRY(ifl_dir_create(config->run.dir, err));
    IFL_TRY(paths_fill(&draft, temporary, err));
    IFL_TRY(ifl_dir_create(temporary, err));
    IFL_TRY_GOTO(st, ifl_dir_create(draft.rollouts, err), fail);
    IFL_TRY_GOTO(st, ifl_dir_create(draft.checkpoints, err), fail);
    IFL_TRY_GOTO(st, config_write(&draft, config, err), fail);
    IFL_TRY_GOTO(st, lock_take(temporary, &lock_fd, err), fail);
    IFL_TRY_GOTO(st, paths_fill(out, path, err), fail);
    if (rename(temporary, path)) {
        st = ifl_fail(err, IFL_IO, "%s: cannot put the run's folder in place: %s", path,
                      strerror(errno));
        goto fail;
    }
    out->lock_fd = lock_fd;
    return ifl_dir_sync(config->run.dir, err);
fail:
    if (lock_fd >= 0) close(lock_fd);
    unlink(draft.config);
    rmdir(draft.rollouts);
    rmdir(draft.checkpoints);
    char lock[IFL_PATH_MAX];
    snprintf(lock, sizeof lock, "%.*s/lock", IFL_PATH_MAX - 8, temporary);
    unlink(lock);
    rmdir(temporary);
    return st;
}

ifl_status ifl_run_dir_create(ifl_run_dir *out, const ifl_config *config, ifl_error *err) {
    char path[IFL_PATH_MAX];
    struct stat s;
    int lock_fd = -1;
    memset(out, 0, sizeof *out);
    out->lock_fd = -1;
    int n = snprintf(path, sizeof path, "%s/%s", config->run.dir, config->run.name);
    /* Room for the temporary name and for ".9999" of a run moved aside. */
    if (n < 0 || (size_t)n + 128 >= sizeof path)
        return ifl_fail(err, IFL_LIMIT, "run.dir: %.80s...: path too long", config->run.dir);
    bool exists = !lstat(path, &s);
    if (exists && !S_ISDIR(s.st_mode))
        return ifl_fail(err, IFL_USAGE, "%s: exists and is no folder; choose another run.name",
                        path);
    if (!exists && config->run.resume)
        return ifl_fail(err, IFL_NOTFOUND,
                        "%s: no such run to resume; leave run.resume out to begin one", path);
    if (exists && !config->run.resume && !config->run.overwrite)
        return ifl_fail(err, IFL_USAGE,
                        "%s: this run exists; run.resume=true goes on with it, run.overwrite=true "
                        "moves it aside, run.name=OTHER begins another",
                        path);
    if (exists) IFL_TRY(lock_take(path, &lock_fd, err));
    if (exists && config->run.resume) {
        ifl_status st = paths_fill(out, path, err);
        if (st == IFL_OK) st = ifl_dir_create(out->rollouts, err);
        if (st == IFL_OK) st = ifl_dir_create(out->checkpoints, err);
        if (st == IFL_OK) st = config_write(out, config, err);
        if (st == IFL_OK)
            out->lock_fd = lock_fd;
        else
            close(lock_fd);
        return st;
    }
    ifl_status st = exists ? moved_aside(path, err) : IFL_OK;
    if (lock_fd >= 0) close(lock_fd); /* of the old run, aside now */
    IFL_TRY(st);
    return fresh_create(out, path, config, err);
}

ifl_status ifl_run_dir_open(ifl_run_dir *out, const char *dir, const char *run, ifl_error *err) {
    struct stat s;
    char path[IFL_PATH_MAX];
    size_t length = strlen(run);
    while (length > 1 && run[length - 1] == '/')
        length--;
    int n = snprintf(path, sizeof path, "%.*s", (int)length, run);
    if (n > 0 && (size_t)n < sizeof path && !stat(path, &s) && S_ISDIR(s.st_mode))
        return paths_fill(out, path, err);
    n = snprintf(path, sizeof path, "%s/%.*s", dir, (int)length, run);
    if (n > 0 && (size_t)n < sizeof path && !stat(path, &s) && S_ISDIR(s.st_mode))
        return paths_fill(out, path, err);
    return ifl_fail(err, IFL_NOTFOUND,
                    "%.200s: no such run; wanted a folder, or a name below %.200s", run, dir);
}

void ifl_run_dir_close(ifl_run_dir *run) {
    if (run->lock_fd >= 0) close(run->lock_fd);
    run->lock_fd = -1;
}

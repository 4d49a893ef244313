#include "common/file_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/fail_point.h"

#define WRITE_BUFFER_BYTES (1 << 20)

struct ifl_file_writer {
    FILE *file;
    char *path;
    char *path_temp;
};

ifl_status ifl_file_writer_begin(ifl_file_writer **out, const char *path, ifl_error *err) {
    *out = NULL;
    ifl_file_writer *w = calloc(1, sizeof *w);
    if (!w || !(w->path = strdup(path)) ||
        asprintf(&w->path_temp, "%s.tmp%ld", path, (long)getpid()) < 0) {
        if (w) w->path_temp = NULL;
        ifl_file_writer_abort(w);
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    }
    int fd = open(w->path_temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    w->file = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (!w->file) {
        ifl_fail(err, IFL_IO, "%s: cannot create: %s", w->path_temp, strerror(errno));
        if (fd >= 0) close(fd);
        ifl_file_writer_abort(w);
        return IFL_IO;
    }
    setvbuf(w->file, NULL, _IOFBF, WRITE_BUFFER_BYTES);
    *out = w;
    return IFL_OK;
}

/* No room is IFL_FULL: it may come back. */
static ifl_status write_failed(const ifl_file_writer *w, const char *what, ifl_error *err) {
    int why = errno;
    return ifl_fail(err, why == ENOSPC || why == EDQUOT ? IFL_FULL : IFL_IO, "%s: cannot %s: %s",
                    w->path_temp, what, strerror(why));
}

/* A system call with a fail point before it. */
static int sync_file(FILE *file) {
    int fault = ifl_fail_point(IFL_FAIL_FILE_SYNC);
    if (fault > 0) {
        errno = fault;
        return -1;
    }
    return fsync(fileno(file));
}

static int rename_file(const char *from, const char *to) {
    int fault = ifl_fail_point(IFL_FAIL_FILE_RENAME);
    if (fault > 0) {
        errno = fault;
        return -1;
    }
    return rename(from, to);
}

ifl_status ifl_file_writer_write(ifl_file_writer *w, const void *bytes, size_t n_bytes,
                                 ifl_error *err) {
    int fault = ifl_fail_point(IFL_FAIL_FILE_WRITE);
    if (fault == IFL_FAIL_TEAR) {
        fwrite(bytes, 1, n_bytes / 2, w->file);
        fflush(w->file);
        ifl_fail_point_die();
    }
    errno = fault;
    if (fault || (n_bytes > 0 && fwrite(bytes, 1, n_bytes, w->file) != n_bytes))
        return write_failed(w, "write", err);
    return IFL_OK;
}

void ifl_file_writer_abort(ifl_file_writer *w) {
    if (!w) return;
    if (w->file) {
        fclose(w->file);
        unlink(w->path_temp);
    }
    free(w->path);
    free(w->path_temp);
    free(w);
}

ifl_status ifl_file_writer_finish(ifl_file_writer *w, ifl_error *err) {
    ifl_status st = IFL_OK;
    if (fflush(w->file) != 0 || sync_file(w->file) != 0) st = write_failed(w, "write", err);
    int closed = fclose(w->file);
    w->file = NULL;
    if (st == IFL_OK && closed != 0) st = write_failed(w, "close", err);
    if (st == IFL_OK && rename_file(w->path_temp, w->path) != 0)
        st = ifl_fail(err, IFL_IO, "%s: cannot rename to %s: %s", w->path_temp, w->path,
                      strerror(errno));
    if (st == IFL_OK)
        st = ifl_file_sync_folder_of(w->path, err);
    else
        unlink(w->path_temp);
    ifl_file_writer_abort(w);
    return st;
}

ifl_status ifl_file_write_whole(const char *path, const void *bytes, size_t n_bytes,
                                ifl_error *err) {
    ifl_file_writer *w;
    IFL_TRY(ifl_file_writer_begin(&w, path, err));
    ifl_status st = ifl_file_writer_write(w, bytes, n_bytes, err);
    if (st != IFL_OK) {
        ifl_file_writer_abort(w);
        return st;
    }
    return ifl_file_writer_finish(w, err);
}

ifl_status ifl_file_sync_folder_of(const char *path, ifl_error *err) {
    char *folder = strdup(path);
    if (!folder) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder ? 1 : 0] = '\0';
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ifl_status st = IFL_OK;
    if (fd < 0 || fsync(fd) != 0)
        st = ifl_fail(err, IFL_IO, "%s: cannot sync its folder: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    free(folder);
    return st;
}

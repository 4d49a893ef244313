#include "common/file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* O_NONBLOCK, so that a named pipe in the place of a file cannot hang us. */
static ifl_status map_open_regular(const char *path, int *fd, uint64_t *n_bytes, ifl_error *err) {
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return ifl_fail(err, errno == ENOENT || errno == ENOTDIR ? IFL_NOTFOUND : IFL_IO,
                        "%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    if (fstat(*fd, &info) != 0)
        return ifl_fail(err, IFL_IO, "%s: cannot stat: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return ifl_fail(err, IFL_IO, "%s: not a regular file", path);
    *n_bytes = (uint64_t)info.st_size;
    return IFL_OK;
}

ifl_status ifl_file_map_open(ifl_file_map *out, const char *path, ifl_error *err) {
    ifl_status st;
    ifl_file_map map = {.fd = -1};
    *out = map;
    map.path = strdup(path);
    if (!map.path) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    IFL_TRY_GOTO(st, map_open_regular(path, &map.fd, &map.n_bytes, err), done);
    if (map.n_bytes > 0) {
        void *bytes = mmap(NULL, map.n_bytes, PROT_READ, MAP_PRIVATE, map.fd, 0);
        if (bytes == MAP_FAILED) {
            st = ifl_fail(err, IFL_IO, "%s: cannot map %llu bytes: %s", path,
                          (unsigned long long)map.n_bytes, strerror(errno));
            goto done;
        }
        map.bytes = bytes;
    }
    *out = map;
    map = (ifl_file_map){.fd = -1};
done:
    ifl_file_map_close(&map);
    return st;
}

void ifl_file_map_close(ifl_file_map *map) {
    if (!map->path) return; /* zeroed or closed: fd 0 is not ours */
    if (map->bytes) munmap((void *)(uintptr_t)map->bytes, map->n_bytes);
    if (map->fd >= 0) close(map->fd);
    free(map->path);
    *map = (ifl_file_map){.fd = -1};
}

ifl_status ifl_file_map_range(const ifl_file_map *map, uint64_t offset, uint64_t n_bytes,
                              const uint8_t **out, ifl_error *err) {
    if (offset > map->n_bytes || n_bytes > map->n_bytes - offset)
        return ifl_fail(err, IFL_FORMAT, "%s: wanted %llu bytes at %llu, the file has %llu",
                        map->path, (unsigned long long)n_bytes, (unsigned long long)offset,
                        (unsigned long long)map->n_bytes);
    struct stat info;
    if (fstat(map->fd, &info) != 0 || (uint64_t)info.st_size < map->n_bytes)
        return ifl_fail(err, IFL_IO, "%s: the file has been shortened while in use", map->path);
    *out = map->bytes ? map->bytes + offset : (const uint8_t *)"";
    return IFL_OK;
}

ifl_status ifl_file_read_text(const char *path, size_t n_bytes_max, char **out, size_t *n_bytes,
                              ifl_error *err) {
    ifl_status st;
    int fd = -1;
    char *text = NULL;
    uint64_t size = 0;
    size_t n = 0;
    *out = NULL;
    IFL_TRY_GOTO(st, map_open_regular(path, &fd, &size, err), done);
    if (size > n_bytes_max) {
        st = ifl_fail(err, IFL_LIMIT, "%s: %llu bytes, limit %zu", path, (unsigned long long)size,
                      n_bytes_max);
        goto done;
    }
    text = malloc((size_t)size + 1);
    if (!text) {
        st = ifl_fail(err, IFL_NOMEM, "%s: out of memory for %llu bytes", path,
                      (unsigned long long)size);
        goto done;
    }
    while (n < size) {
        ssize_t got = read(fd, text + n, (size_t)size - n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            st = ifl_fail(err, IFL_IO, "%s: cannot read: %s", path, strerror(errno));
            goto done;
        }
        if (got == 0) break; /* shortened meanwhile: what is there counts */
        n += (size_t)got;
    }
    text[n] = '\0';
    *out = text;
    if (n_bytes) *n_bytes = n;
    text = NULL;
done:
    free(text);
    if (fd >= 0) close(fd);
    return st;
}

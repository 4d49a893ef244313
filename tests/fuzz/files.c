#include "common/file_map.h"
#include "tests/fuzz/fuzz.h"

#define FILES_MAX 8

static struct {
    char path[512];
    uint8_t *bytes;
    size_t n;
} files[FILES_MAX];
static int n_files;

void fuzz_files_clear(void) {
    for (int i = 0; i < n_files; i++)
        free(files[i].bytes);
    n_files = 0;
}

void fuzz_file_put(const char *path, fuzz_input content) {
    IFL_ASSERT(n_files < FILES_MAX && strlen(path) < sizeof files[0].path);
    snprintf(files[n_files].path, sizeof files[0].path, "%s", path);
    files[n_files].bytes = fuzz_copy(content);
    files[n_files++].n = fuzz_left(&content);
}

static int file_find(const char *path) {
    for (int i = 0; i < n_files; i++)
        if (!strcmp(files[i].path, path)) return i;
    return -1;
}

/* --- common/file_map.h ------------------------------------------------------------------------ */

ifl_status ifl_file_map_open(ifl_file_map *out, const char *path, ifl_error *err) {
    *out = (ifl_file_map){.fd = -1};
    int i = file_find(path);
    if (i < 0) return ifl_fail(err, IFL_NOTFOUND, "%s: cannot open", path);
    out->path = strdup(path);
    if (!out->path) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    out->n_bytes = files[i].n;
    if (files[i].n)
        out->bytes = fuzz_copy((fuzz_input){files[i].bytes, files[i].bytes + files[i].n});
    return IFL_OK;
}

void ifl_file_map_close(ifl_file_map *map) {
    if (!map->path) return;
    free((void *)(uintptr_t)map->bytes);
    free(map->path);
    *map = (ifl_file_map){.fd = -1};
}

ifl_status ifl_file_map_range(const ifl_file_map *map, uint64_t offset, uint64_t n_bytes,
                              const uint8_t **out, ifl_error *err) {
    if (offset > map->n_bytes || n_bytes > map->n_bytes - offset)
        return ifl_fail(err, IFL_FORMAT, "%s: a range outside of the file", map->path);
    *out = map->bytes ? map->bytes + offset : (const uint8_t *)"";
    return IFL_OK;
}

ifl_status ifl_file_read_text(const char *path, size_t n_bytes_max, char **out, size_t *n_bytes,
                              ifl_error *err) {
    *out = NULL;
    int i = file_find(path);
    if (i < 0) return ifl_fail(err, IFL_NOTFOUND, "%s: cannot open", path);
    if (files[i].n > n_bytes_max) return ifl_fail(err, IFL_LIMIT, "%s: too long", path);
    *out = fuzz_text((fuzz_input){files[i].bytes, files[i].bytes + files[i].n});
    if (n_bytes) *n_bytes = files[i].n;
    return IFL_OK;
}

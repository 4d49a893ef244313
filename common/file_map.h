/* A file mapped read-only, its size known before anything in it is believed. */
#ifndef IFL_COMMON_FILE_MAP_H
#define IFL_COMMON_FILE_MAP_H

#include "common/status.h"

typedef struct ifl_file_map {
    char *path; /* owned; for errors */
    const uint8_t *bytes;
    uint64_t n_bytes;
    int fd;
} ifl_file_map;

/* Regular files only. Zero-length files are fine. *out needs no initialisation. */
ifl_status ifl_file_map_open(ifl_file_map *out, const char *path, ifl_error *err);
void ifl_file_map_close(ifl_file_map *map); /* a zeroed map is fine */

/* *out = the bytes [offset, offset + n_bytes), which live as long as the map. Refuses ranges
 * outside the file, and a file that somebody has shortened since it was opened (reading it would
 * kill the process by SIGBUS; whoever shortens it while the bytes are being read still can).
 * Thread-safe. */
ifl_status ifl_file_map_range(const ifl_file_map *map, uint64_t offset, uint64_t n_bytes,
                              const uint8_t **out, ifl_error *err);

/* Reads a whole small file into an owned (free()), NUL-terminated text. IFL_NOTFOUND when there is
 * no such file, IFL_LIMIT above n_bytes_max. */
ifl_status ifl_file_read_text(const char *path, size_t n_bytes_max, char **out, size_t *n_bytes,
                              ifl_error *err);

#endif

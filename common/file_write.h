/* Files that appear whole or not at all: written beside their place, fsync, rename, fsync of the
 * folder. */
#ifndef IFL_COMMON_FILE_WRITE_H
#define IFL_COMMON_FILE_WRITE_H

#include "common/status.h"

typedef struct ifl_file_writer ifl_file_writer;

/* Opens "<path>.tmp<pid>". One thread. Every function here: IFL_FULL when there is no room on the
 * disk, IFL_IO for any other refusal. */
ifl_status ifl_file_writer_begin(ifl_file_writer **out, const char *path, ifl_error *err);
ifl_status ifl_file_writer_write(ifl_file_writer *writer, const void *bytes, size_t n_bytes,
                                 ifl_error *err);

/* Makes the file visible and durable. Frees the writer, on failure too; the temporary file is then
 * gone and what was at `path` before is still there. */
ifl_status ifl_file_writer_finish(ifl_file_writer *writer, ifl_error *err);

/* Gives up; NULL is fine. */
void ifl_file_writer_abort(ifl_file_writer *writer);

ifl_status ifl_file_write_whole(const char *path, const void *bytes, size_t n_bytes,
                                ifl_error *err);

/* fsync of the folder that holds `path`, so that a rename in it is durable. */
ifl_status ifl_file_sync_folder_of(const char *path, ifl_error *err);

#endif

/* Every version that a learner process has published, on the disk: runs/<name>/versions/<number>/,
 * the number being that of the process's first log segment (processes of one run may make other
 * weights under the same version numbers). So that any trajectory can be generated again.
 *
 *   model.json         the architecture, as a Hugging Face config.json
 *   v<version>.ifw     one version: dense, or as a patch of the one before it
 *
 * A file, little-endian: magic "IFLV", format u32 = 1, version i64, base i64 (-1: dense), elements
 * i64, chunks u32, 0 u32, content hash (16 bytes); per chunk begin i64, elements i64, codec u32
 * (ifl_codec), bytes u32, hash of these bytes and hash of the chunk's elements (16 each); XXH3-128
 * of all that; then the chunks' bytes. Files appear whole or not at all. Each 64th version is
 * dense; beyond the byte limit the oldest dense one goes with all that is based on it. */
#ifndef IFL_LEARNER_VERSION_ARCHIVE_H
#define IFL_LEARNER_VERSION_ARCHIVE_H

#include "common/wire.h"
#include "kernels/model.h"

#define IFL_ARCHIVE_DENSE_EVERY 64

typedef struct ifl_version_archive ifl_version_archive;

/* Creates the folder (and those above it) and writes model.json. bytes_max: of this folder; at
 * least the newest dense version and its patches stay. Returns owned. */
ifl_status ifl_version_archive_open(ifl_version_archive **out, const char *folder,
                                    const ifl_model *model, int64_t bytes_max, ifl_error *err);
void ifl_version_archive_close(ifl_version_archive *archive); /* NULL is fine */

/* Whether the next version must come dense: the first, one whose base isn't the last one here, and
 * each 64th. */
bool ifl_version_archive_wants_dense(const ifl_version_archive *archive, int64_t base);

typedef struct ifl_archive_chunk {
    int32_t codec; /* ifl_codec */
    const void *data;
    size_t n_bytes;
} ifl_archive_chunk;

/* Adds a version of which `manifest` has the tables and hashes; chunks: [manifest->n_chunks]. base
 * -1 where all are dense. Not thread-safe. */
ifl_status ifl_version_archive_put(ifl_version_archive *archive, const ifl_manifest *manifest,
                                   int64_t base, const ifl_archive_chunk *chunks, ifl_error *err);

typedef struct ifl_version_archive_stats {
    int64_t n_versions, n_bytes, oldest, newest; /* on the disk; -1 = none */
    int64_t n_gone;                              /* removed for the byte limit */
} ifl_version_archive_stats;
ifl_version_archive_stats ifl_version_archive_stats_get(const ifl_version_archive *archive);

/* --- Reading ------------------------------------------------------------------------------------
 */

typedef struct ifl_version_reader ifl_version_reader;

/* Of one such folder; n_cached (>= 1) versions stay in memory. Borrows model. */
ifl_status ifl_version_reader_open(ifl_version_reader **out, const char *folder,
                                   const ifl_model *model, int32_t n_cached, ifl_error *err);
void ifl_version_reader_close(ifl_version_reader *reader); /* NULL is fine */

/* The weights of a version, every byte proven by the content hash; valid until n_cached other
 * versions were asked for. IFL_NOTFOUND names the file; IFL_FORMAT and IFL_MISMATCH too. */
ifl_status ifl_version_reader_get(ifl_version_reader *reader, int64_t version,
                                  const ifl_weights **out, ifl_error *err);

#endif

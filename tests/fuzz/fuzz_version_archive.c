/* learner/version_archive.h: files of versions 0, 1, ... one after another.
 *
 *   u8 mode     1: hashes as they are; else those of tables and chunks are computed
 *   per file    u16 bytes, the file; the last one's bytes are the rest */
#include "learner/version_archive.h"
#include "tests/fuzz/tiny_model.h"

#define FOLDER "archive"
#define VERSIONS_MAX 4
#define HEADER_BYTES 56
#define ENTRY_BYTES 56

static void file_seal(uint8_t *bytes, size_t n) {
    if (n < HEADER_BYTES) return;
    fuzz_input in = fuzz_input_of(bytes + 32, 4);
    size_t n_chunks = fuzz_take(&in, 4);
    if (n_chunks > (n - HEADER_BYTES) / ENTRY_BYTES) return;
    size_t table = HEADER_BYTES + n_chunks * ENTRY_BYTES, at = table + 16;
    for (size_t i = 0; i < n_chunks && at < n; i++) {
        uint8_t *entry = bytes + HEADER_BYTES + i * ENTRY_BYTES;
        in = fuzz_input_of(entry + 20, 4);
        size_t n_bytes = fuzz_take(&in, 4);
        if (n_bytes > n - at) break;
        fuzz_put_hash(entry + 24, ifl_hash_bytes(bytes + at, n_bytes));
        at += n_bytes;
    }
    if (n - table >= 16) fuzz_put_hash(bytes + table, ifl_hash_bytes(bytes, table));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = fuzz_input_of(data, size);
    int mode = (int)fuzz_take(&in, 1);
    int n_files = 0;
    for (; n_files < VERSIONS_MAX && fuzz_left(&in) > 2; n_files++) {
        fuzz_input part = fuzz_take_part(&in, fuzz_take(&in, 2));
        uint8_t *bytes = fuzz_copy(part);
        if (!(mode & 1)) file_seal(bytes, fuzz_left(&part));
        char path[64];
        snprintf(path, sizeof path, "%s/v%010d.ifw", FOLDER, n_files);
        fuzz_file_put(path, fuzz_input_of(bytes, fuzz_left(&part)));
        free(bytes);
    }
    ifl_version_reader *reader = NULL;
    ifl_error err = {0};
    const ifl_weights *w;
    FUZZ_CHECK(ifl_version_reader_open(&reader, FOLDER, tiny_model(), 2, &err) == IFL_OK);
    for (int64_t v = n_files; v >= 0; v--)
        if (ifl_version_reader_get(reader, v, &w, &err) == IFL_OK)
            FUZZ_CHECK(w->version == v && v < n_files);
    for (int64_t v = 0; v <= n_files; v++)
        (void)ifl_version_reader_get(reader, v, &w, &err);
    ifl_version_reader_close(reader);
    fuzz_files_clear();
    return 0;
}

/* What the fuzz targets share. A target is one file with LLVMFuzzerTestOneInput: linked with
 * libFuzzer by deploy/fuzz, and with replay.c as a test that runs the committed corpus.
 *
 * A checksum would stop nearly every input at the door, so targets compute checksums anew before
 * they hand an input over, unless its first byte says not to. */
#ifndef IFL_TESTS_FUZZ_H
#define IFL_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/status.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property of the parser does not hold: a finding like any other. */
#define FUZZ_CHECK(cond) IFL_ASSERT(cond)

/* An input taken apart from the front. What is missing reads as zero or empty. */
typedef struct fuzz_input {
    const uint8_t *at, *end;
} fuzz_input;

static inline fuzz_input fuzz_input_of(const uint8_t *data, size_t size) {
    return (fuzz_input){data, data ? data + size : data};
}

static inline size_t fuzz_left(const fuzz_input *in) {
    return (size_t)(in->end - in->at);
}

static inline uint64_t fuzz_take(fuzz_input *in, int n_bytes) {
    uint64_t v = 0;
    for (int i = 0; i < n_bytes && in->at < in->end; i++)
        v |= (uint64_t)*in->at++ << (8 * i);
    return v;
}

/* At most n bytes. */
static inline fuzz_input fuzz_take_part(fuzz_input *in, size_t n) {
    if (n > fuzz_left(in)) n = fuzz_left(in);
    fuzz_input part = {in->at, in->at + n};
    if (n) in->at += n;
    return part;
}

/* Up to the next `separator` or the end. For texts the separator is 0xff, which no text of UTF-8
 * holds. */
static inline fuzz_input fuzz_take_until(fuzz_input *in, uint8_t separator) {
    size_t n = fuzz_left(in);
    const uint8_t *found = n ? memchr(in->at, separator, n) : NULL;
    fuzz_input part = fuzz_take_part(in, found ? (size_t)(found - in->at) : n);
    if (found) in->at++;
    return part;
}

/* A copy with nothing behind it (free()), so that reading on is seen; never NULL. */
static inline uint8_t *fuzz_copy(fuzz_input part) {
    size_t n = fuzz_left(&part);
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy) abort();
    if (n) memcpy(copy, part.at, n);
    return copy;
}

/* The same with a NUL behind it. */
static inline char *fuzz_text(fuzz_input part) {
    size_t n = fuzz_left(&part);
    char *copy = malloc(n + 1);
    if (!copy) abort();
    if (n) memcpy(copy, part.at, n);
    copy[n] = 0;
    return copy;
}

/* Puts the hash where a file or message has it: little-endian low, high. */
static inline void fuzz_put_hash(uint8_t *to, ifl_hash hash) {
    for (int i = 0; i < 8; i++) {
        to[i] = (uint8_t)(hash.low >> (8 * i));
        to[8 + i] = (uint8_t)(hash.high >> (8 * i));
    }
}

/* Where the 16 bytes under a key (below 128) of a msgpack map begin; NULL when there are none. */
static inline uint8_t *fuzz_meta_hash(uint8_t *meta, size_t n_meta, uint8_t key) {
    const uint8_t head[3] = {key, 0xc4, 16};
    uint8_t *at = n_meta >= 19 ? memmem(meta, n_meta - 16, head, sizeof head) : NULL;
    return at ? at + sizeof head : NULL;
}

/* Sets the payload's hash in the meta of an encoded trajectory, if it has one. */
static inline void fuzz_trajectory_seal(uint8_t *meta, size_t n_meta, const uint8_t *payload,
                                        size_t n_payload) {
    uint8_t *at = fuzz_meta_hash(meta, n_meta, 28);
    if (at) fuzz_put_hash(at, ifl_hash_bytes(payload, n_payload));
}

/* Bytes that were in use at once, most, beyond those at the begin; 0 where malloc can't be watched
 * (without AddressSanitizer). memory.c. */
void fuzz_memory_begin(void);
int64_t fuzz_memory_peak(void);

/* --- Files ------------------------------------------------------------------------- */

/* files.c takes the place of common/file_map.c in targets that use it: parsers that map or read
 * whole files find these, each in a block of exactly its size. */
void fuzz_file_put(const char *path, fuzz_input content);
void fuzz_files_clear(void);

/* folder.c: a real folder of this process, in memory if the system has a place for it there;
 * removed at exit. */
const char *fuzz_folder(void);
void fuzz_folder_write(const char *folder, const char *name, fuzz_input content);

#endif

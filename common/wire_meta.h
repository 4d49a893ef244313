/* Meta frames: one msgpack map with ascending integer keys. The writer builds one with bounded
 * size; the reader takes untrusted bytes: ifl_meta_scan walks them without allocating and refuses
 * everything that the protocol doesn't use, only then msgpack-c parses them. Used by
 * wire_messages.c and trajectory_codec.c. */
#ifndef IFL_COMMON_WIRE_META_H
#define IFL_COMMON_WIRE_META_H

#include <msgpack.h>

#include "common/hash.h"
#include "common/status.h"

#define IFL_META_BYTES_MAX (64 * 1024)
#define IFL_META_DEPTH_MAX 8
#define IFL_META_ELEMENTS_MAX 4096

/* Refuses: depth > 8, more than 4,096 elements, a count or length beyond the bytes left, ext, nil,
 * the unused byte 0xc1, map keys that aren't ascending non-negative integers (so none occurs
 * twice), anything before or behind the one map, more than 64 KiB. */
ifl_status ifl_meta_scan(const uint8_t *bytes, size_t n_bytes, ifl_error *err);

/* --- Writing: keys in ascending order (asserted); the first failure sticks and comes out at the
 * end. */
typedef struct ifl_meta_writer {
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    const char *what; /* for errors, e.g. "LEASE" */
    int32_t n_fields, last_key;
    int32_t n_elements;
    ifl_status status;
    ifl_error *err;
} ifl_meta_writer;

void ifl_meta_begin(ifl_meta_writer *w, const char *what, ifl_error *err);
void ifl_meta_put_i64(ifl_meta_writer *w, int32_t key, int64_t value);
void ifl_meta_put_u64(ifl_meta_writer *w, int32_t key, uint64_t value);
void ifl_meta_put_f32(ifl_meta_writer *w, int32_t key, const char *name, float value); /* finite */
void ifl_meta_put_text(ifl_meta_writer *w, int32_t key, const char *text); /* NULL = "" */
void ifl_meta_put_bytes(ifl_meta_writer *w, int32_t key, const void *bytes, size_t n_bytes);
void ifl_meta_put_hash(ifl_meta_writer *w, int32_t key,
                       ifl_hash hash); /* 16 bytes, little-endian low, high */
void ifl_meta_put_i32s(ifl_meta_writer *w, int32_t key, const int32_t *values, int32_t n);
/* An array whose n elements the caller packs with w->packer. */
void ifl_meta_put_array(ifl_meta_writer *w, int32_t key, int32_t n);
void ifl_meta_fail(ifl_meta_writer *w, ifl_status status, const char *text);
/* Gives the finished bytes (free()) or the first failure; frees the writer's memory in either case.
 */
ifl_status ifl_meta_end(ifl_meta_writer *w, uint8_t **out, size_t *n_out);

/* --- Reading: the first failure sticks; outputs of failed reads are left alone. Every field named
 * here is required; keys nobody asks for are ignored, so that a later minor version can add some.
 */
typedef struct ifl_meta_reader {
    msgpack_unpacked unpacked;
    const char *what;
    ifl_status status;
    ifl_error *err;
} ifl_meta_reader;

/* Scans, then parses. Call ifl_meta_close afterwards in any case. */
ifl_status ifl_meta_open(ifl_meta_reader *r, const char *what, const uint8_t *bytes, size_t n_bytes,
                         ifl_error *err);
bool ifl_meta_has(const ifl_meta_reader *r, int32_t key); /* for fields of later minor versions */
void ifl_meta_get_i64(ifl_meta_reader *r, int32_t key, const char *name, int64_t min, int64_t max,
                      int64_t *out);
void ifl_meta_get_i32(ifl_meta_reader *r, int32_t key, const char *name, int32_t min, int32_t max,
                      int32_t *out);
void ifl_meta_get_u64(ifl_meta_reader *r, int32_t key, const char *name, uint64_t *out);
void ifl_meta_get_f32(ifl_meta_reader *r, int32_t key, const char *name, float *out); /* finite */
/* NUL-terminates; a text of `cap` bytes or more, or with a NUL inside, is refused. */
void ifl_meta_get_text(ifl_meta_reader *r, int32_t key, const char *name, char *out, size_t cap);
void ifl_meta_get_bytes(ifl_meta_reader *r, int32_t key, const char *name, void *out,
                        size_t n_exact);
void ifl_meta_get_hash(ifl_meta_reader *r, int32_t key, const char *name, ifl_hash *out);
/* Borrowed array, at most n_max elements; NULL after a failure. */
const msgpack_object_array *ifl_meta_get_array(ifl_meta_reader *r, int32_t key, const char *name,
                                               int32_t n_max);
/* Array of integers within [min, max] into out[n_max]. */
void ifl_meta_get_i32s(ifl_meta_reader *r, int32_t key, const char *name, int32_t min, int32_t max,
                       int32_t *out, int32_t n_max, int32_t *n_out);
/* Converts one element; false when it isn't one or lies outside. */
bool ifl_meta_object_i64(const msgpack_object *object, int64_t min, int64_t max, int64_t *out);
bool ifl_meta_object_f64(const msgpack_object *object, double *out); /* finite */
bool ifl_meta_object_text(const msgpack_object *object, char *out, size_t cap);
void ifl_meta_refuse(ifl_meta_reader *r, const char *name, const char *why);
ifl_status ifl_meta_close(ifl_meta_reader *r); /* the first failure */

#endif

/* Reading and writing of safetensors: one file, or the several files of one Hugging Face folder.
 *
 * A file is: u64 little-endian header length, a JSON header, the tensors' bytes. Checked on
 * opening: header length, no duplicate names, known dtypes, dims multiplied in 64 bits, the byte
 * ranges contiguous from 0 to the end of the file without gap or overlap. */
#ifndef IFL_COMMON_SAFETENSORS_H
#define IFL_COMMON_SAFETENSORS_H

#include "common/rounding.h"
#include "common/status.h"

#define IFL_SAFETENSORS_HEADER_MAX 100000000 /* bytes; the format's own limit */
#define IFL_SAFETENSORS_TENSORS_MAX 65536    /* per file */
#define IFL_SAFETENSORS_FILES_MAX 1024
#define IFL_SAFETENSORS_DIMS_MAX 8
#define IFL_SAFETENSORS_NAME_MAX 1024 /* bytes */

/* Name in the file, bytes of an element. */
#define IFL_DTYPE_MAP(X)                                                                           \
    X(BOOL, 1)                                                                                     \
    X(U8, 1)                                                                                       \
    X(I8, 1)                                                                                       \
    X(F8_E4M3, 1)                                                                                  \
    X(F8_E5M2, 1)                                                                                  \
    X(F8_E8M0, 1)                                                                                  \
    X(I16, 2)                                                                                      \
    X(U16, 2)                                                                                      \
    X(F16, 2)                                                                                      \
    X(BF16, 2)                                                                                     \
    X(I32, 4)                                                                                      \
    X(U32, 4)                                                                                      \
    X(F32, 4)                                                                                      \
    X(F64, 8)                                                                                      \
    X(I64, 8)                                                                                      \
    X(U64, 8)

typedef enum {
#define IFL_DTYPE_ENUM(name, bytes) IFL_DTYPE_##name,
    IFL_DTYPE_MAP(IFL_DTYPE_ENUM)
#undef IFL_DTYPE_ENUM
        IFL_DTYPE_COUNT
} ifl_dtype;

const char *ifl_dtype_name(ifl_dtype dtype); /* as in the file: "BF16" */
int64_t ifl_dtype_bytes(ifl_dtype dtype);

typedef struct ifl_safetensors_entry {
    const char *name; /* borrowed from the ifl_safetensors */
    ifl_dtype dtype;
    int32_t n_dims; /* 0: a scalar */
    int64_t dims[IFL_SAFETENSORS_DIMS_MAX];
    int64_t n_elements;
    uint64_t offset; /* of its first byte in its file */
    int32_t file;
} ifl_safetensors_entry;

typedef struct ifl_safetensors ifl_safetensors;

/* `path`: a file, or a folder with model.safetensors, else model.safetensors.index.json, else any
 * *.safetensors files. Thread-safe for reads once open. */
ifl_status ifl_safetensors_open(ifl_safetensors **out, const char *path, ifl_error *err);
void ifl_safetensors_close(ifl_safetensors *st); /* NULL is fine */

int32_t ifl_safetensors_count(const ifl_safetensors *st);
const ifl_safetensors_entry *ifl_safetensors_at(const ifl_safetensors *st, int32_t i);
int32_t ifl_safetensors_find(const ifl_safetensors *st, const char *name); /* -1: none */
const char *ifl_safetensors_path(const ifl_safetensors *st, int32_t file);

/* Elements [begin, begin + n) of tensor i. BF16, F16 and F32 are read as f32 or rounded to bf16
 * (`stats` may be NULL); I32 and I64 as integers; every other dtype is IFL_UNSUPPORTED. */
ifl_status ifl_safetensors_read_f32(const ifl_safetensors *st, int32_t i, int64_t begin, int64_t n,
                                    float *out, ifl_error *err);
ifl_status ifl_safetensors_read_bf16(const ifl_safetensors *st, int32_t i, int64_t begin, int64_t n,
                                     uint16_t *out, ifl_rounding_stats *stats, ifl_error *err);
ifl_status ifl_safetensors_read_i64(const ifl_safetensors *st, int32_t i, int64_t begin, int64_t n,
                                    int64_t *out, ifl_error *err);

/* --- Writing -------------------------------------------------------------------------------------
 */

typedef struct ifl_safetensors_spec {
    const char *name;
    ifl_dtype dtype; /* BF16, F32, I32 or I64; no wider dtype after a narrower one, for alignment */
    int32_t n_dims;
    int64_t dims[IFL_SAFETENSORS_DIMS_MAX];
} ifl_safetensors_spec;

typedef struct ifl_safetensors_writer ifl_safetensors_writer;

/* The header is written at once, the bytes of the tensors follow in order, in pieces of any size;
 * the file appears at `path` in finish (temporary file, fsync, rename), or never. */
ifl_status ifl_safetensors_writer_begin(ifl_safetensors_writer **out, const char *path,
                                        const ifl_safetensors_spec *specs, int32_t n,
                                        ifl_error *err);
ifl_status ifl_safetensors_writer_write(ifl_safetensors_writer *writer, const void *bytes,
                                        size_t n_bytes, ifl_error *err);
/* Frees the writer, on failure too. IFL_MISMATCH when bytes are missing. */
ifl_status ifl_safetensors_writer_finish(ifl_safetensors_writer *writer, ifl_error *err);
void ifl_safetensors_writer_abort(ifl_safetensors_writer *writer); /* NULL is fine */

#endif

/* Reading of GGUF files, versions 2 and 3, little-endian: typed metadata and tensors dequantised to
 * f32. Everything is checked against the file's size on opening; counts in the file are never
 * trusted for an allocation. Format: the GGUF specification in ggml's documentation. */
#ifndef IFL_COMMON_GGUF_H
#define IFL_COMMON_GGUF_H

#include "common/status.h"

#define IFL_GGUF_TENSORS_MAX 65536
#define IFL_GGUF_KEYS_MAX 65536
#define IFL_GGUF_NAME_MAX 255         /* bytes of a key or a tensor name */
#define IFL_GGUF_TEXT_MAX (16 << 20)  /* bytes of a string value */
#define IFL_GGUF_ARRAY_MAX (16 << 20) /* elements of an array */
#define IFL_GGUF_DIMS_MAX 4
#define IFL_GGUF_BLOCK_MAX 256 /* elements of the largest quantisation block */

/* Tensor types that are read; the numbers are the file's. */
typedef enum {
    IFL_GGUF_F32 = 0,
    IFL_GGUF_F16 = 1,
    IFL_GGUF_Q4_0 = 2,
    IFL_GGUF_Q5_0 = 6,
    IFL_GGUF_Q8_0 = 8,
    IFL_GGUF_Q4_K = 12,
    IFL_GGUF_Q5_K = 13,
    IFL_GGUF_Q6_K = 14,
    IFL_GGUF_BF16 = 30,
} ifl_gguf_type;

typedef struct ifl_gguf_tensor {
    char *name; /* owned by the ifl_gguf */
    ifl_gguf_type type;
    int32_t n_dims;
    int64_t
        dims[IFL_GGUF_DIMS_MAX]; /* innermost first: a matrix [rows, cols] has dims {cols, rows} */
    int64_t n_elements;
    uint64_t offset, n_bytes; /* in the file */
} ifl_gguf_tensor;

typedef struct ifl_gguf ifl_gguf;

/* IFL_UNSUPPORTED for another version and for tensor types not listed above. */
ifl_status ifl_gguf_open(ifl_gguf **out, const char *path, ifl_error *err);
void ifl_gguf_close(ifl_gguf *gguf); /* NULL is fine */

int32_t ifl_gguf_count(const ifl_gguf *gguf);
const ifl_gguf_tensor *ifl_gguf_at(const ifl_gguf *gguf, int32_t i);
int32_t ifl_gguf_find(const ifl_gguf *gguf, const char *name); /* -1: none */

/* Elements [begin, begin + n) of tensor i in file order. Thread-safe. */
ifl_status ifl_gguf_read_f32(const ifl_gguf *gguf, int32_t i, int64_t begin, int64_t n, float *out,
                             ifl_error *err);

/* --- Metadata: an absent key leaves *out alone; a value of another type or range is IFL_FORMAT ---
 */

ifl_status ifl_gguf_get_int(const ifl_gguf *gguf, const char *key, int64_t min, int64_t max,
                            int64_t *out, ifl_error *err);
ifl_status ifl_gguf_get_int32(const ifl_gguf *gguf, const char *key, int32_t min, int32_t max,
                              int32_t *out, ifl_error *err);
/* Integers are taken too. */
ifl_status ifl_gguf_get_double(const ifl_gguf *gguf, const char *key, double min, double max,
                               double *out, ifl_error *err);
ifl_status ifl_gguf_get_bool(const ifl_gguf *gguf, const char *key, bool *out, ifl_error *err);

/* Bytes in the mapped file, without a NUL. */
typedef struct ifl_gguf_text {
    const char *bytes;
    size_t n_bytes;
} ifl_gguf_text;
ifl_status ifl_gguf_get_text(const ifl_gguf *gguf, const char *key, ifl_gguf_text *out,
                             ifl_error *err);
bool ifl_gguf_text_is(ifl_gguf_text text, const char *want);

bool ifl_gguf_has(const ifl_gguf *gguf, const char *key);
bool ifl_gguf_is_array(const ifl_gguf *gguf, const char *key);

/* Number of elements of an array; 0 when the key is absent. */
ifl_status ifl_gguf_array_count(const ifl_gguf *gguf, const char *key, int64_t *n, ifl_error *err);
/* Copy the whole array, whose count must be n. Booleans are integers 0 and 1 here. */
ifl_status ifl_gguf_array_int32(const ifl_gguf *gguf, const char *key, int64_t n, int32_t *out,
                                ifl_error *err);
ifl_status ifl_gguf_array_f32(const ifl_gguf *gguf, const char *key, int64_t n, float *out,
                              ifl_error *err);
ifl_status ifl_gguf_array_text(const ifl_gguf *gguf, const char *key, int64_t n, ifl_gguf_text *out,
                               ifl_error *err);

/* --- Dequantisation of whole blocks (gguf_dequant.c) --- */

const char *ifl_gguf_type_name(uint32_t type); /* "Q4_K"; "unknown" */
/* Elements and bytes of a block; false for types that are not read. */
bool ifl_gguf_type_block(uint32_t type, int32_t *n_elements, int32_t *n_bytes);
/* The value of every element is that of ggml's reference routine, bit for bit. `block` may be
 * unaligned. */
void ifl_gguf_dequant(ifl_gguf_type type, const uint8_t *blocks, int64_t n_blocks, float *out);

#endif

#include "common/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "common/file_map.h"
#include "common/memory.h"

#define ALIGNMENT_DEFAULT 32
#define ALIGNMENT_MAX (1 << 20)

/* Value types of metadata, by the file's numbers. */
enum {
    KV_U8,
    KV_I8,
    KV_U16,
    KV_I16,
    KV_U32,
    KV_I32,
    KV_F32,
    KV_BOOL,
    KV_TEXT,
    KV_ARRAY,
    KV_U64,
    KV_I64,
    KV_F64,
    KV_COUNT
};
static const char *const kv_names[KV_COUNT] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
static const uint8_t kv_sizes[KV_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

typedef struct gguf_kv {
    char *key; /* owned */
    uint32_t type;
    uint32_t element_type; /* arrays */
    uint64_t n;            /* elements of an array, bytes of a string, else 1 */
    const uint8_t *value;
} gguf_kv;

struct ifl_gguf {
    ifl_file_map map;
    gguf_kv *kvs; /* sorted by key once open */
    size_t n_kvs, kvs_cap;
    ifl_gguf_tensor *tensors; /* sorted by name once open */
    size_t n_tensors, tensors_cap;
};

/* --- Reading the header --- */

typedef struct gguf_cursor {
    const uint8_t *bytes;
    uint64_t at, end;
} gguf_cursor;

static ifl_status cursor_take(gguf_cursor *c, uint64_t n, const uint8_t **out, ifl_error *err) {
    if (n > c->end - c->at)
        return ifl_fail(err, IFL_FORMAT, "the file ends at byte %llu, wanted %llu more at %llu",
                        (unsigned long long)c->end, (unsigned long long)n,
                        (unsigned long long)c->at);
    *out = c->bytes + c->at;
    c->at += n;
    return IFL_OK;
}

static uint64_t load_le(const uint8_t *p, int n) {
    uint64_t value = 0;
    for (int i = n - 1; i >= 0; i--)
        value = value << 8 | p[i];
    return value;
}

static ifl_status cursor_u32(gguf_cursor *c, uint32_t *out, ifl_error *err) {
    const uint8_t *p = NULL;
    IFL_TRY(cursor_take(c, 4, &p, err));
    *out = (uint32_t)load_le(p, 4);
    return IFL_OK;
}

static ifl_status cursor_u64(gguf_cursor *c, uint64_t *out, ifl_error *err) {
    const uint8_t *p = NULL;
    IFL_TRY(cursor_take(c, 8, &p, err));
    *out = load_le(p, 8);
    return IFL_OK;
}

static ifl_status cursor_text(gguf_cursor *c, uint64_t n_max, const uint8_t **out, uint64_t *n,
                              ifl_error *err) {
    IFL_TRY(cursor_u64(c, n, err));
    if (*n > n_max)
        return ifl_fail(err, IFL_LIMIT, "a string of %llu bytes at %llu, limit %llu",
                        (unsigned long long)*n, (unsigned long long)c->at,
                        (unsigned long long)n_max);
    return cursor_take(c, *n, out, err);
}

/* A key or a tensor's name, as an owned text. */
static ifl_status cursor_name(gguf_cursor *c, char **out, ifl_error *err) {
    const uint8_t *bytes;
    uint64_t n;
    IFL_TRY(cursor_text(c, IFL_GGUF_NAME_MAX, &bytes, &n, err));
    if (n == 0 || memchr(bytes, 0, n))
        return ifl_fail(err, IFL_FORMAT, "a name at byte %llu is empty or holds a NUL",
                        (unsigned long long)(c->at - n));
    *out = strndup((const char *)bytes, n);
    return *out ? IFL_OK : ifl_fail(err, IFL_NOMEM, "out of memory");
}

static ifl_status cursor_array(gguf_cursor *c, gguf_kv *kv, ifl_error *err) {
    IFL_TRY(cursor_u32(c, &kv->element_type, err));
    IFL_TRY(cursor_u64(c, &kv->n, err));
    if (kv->element_type >= KV_COUNT || kv->element_type == KV_ARRAY)
        return ifl_fail(err, IFL_UNSUPPORTED, "%s: an array of elements of type %u", kv->key,
                        kv->element_type);
    if (kv->n > IFL_GGUF_ARRAY_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: an array of %llu elements, limit %d", kv->key,
                        (unsigned long long)kv->n, IFL_GGUF_ARRAY_MAX);
    if (kv->element_type != KV_TEXT)
        return cursor_take(c, kv->n * kv_sizes[kv->element_type], &kv->value, err);
    kv->value = c->bytes + c->at;
    for (uint64_t i = 0; i < kv->n; i++) {
        const uint8_t *bytes;
        uint64_t n;
        IFL_TRY(cursor_text(c, IFL_GGUF_TEXT_MAX, &bytes, &n, err));
    }
    return IFL_OK;
}

static ifl_status cursor_value(gguf_cursor *c, gguf_kv *kv, ifl_error *err) {
    IFL_TRY(cursor_u32(c, &kv->type, err));
    if (kv->type >= KV_COUNT)
        return ifl_fail(err, IFL_FORMAT, "%s: value type %u is not known", kv->key, kv->type);
    if (kv->type == KV_ARRAY) return cursor_array(c, kv, err);
    if (kv->type == KV_TEXT) return cursor_text(c, IFL_GGUF_TEXT_MAX, &kv->value, &kv->n, err);
    kv->n = 1;
    return cursor_take(c, kv_sizes[kv->type], &kv->value, err);
}

static ifl_status gguf_read_kv(ifl_gguf *g, gguf_cursor *c, ifl_error *err) {
    void *kvs = g->kvs;
    ifl_status st = ifl_grow(&kvs, &g->kvs_cap, g->n_kvs + 1, sizeof *g->kvs, err);
    g->kvs = kvs;
    IFL_TRY(st);
    gguf_kv *kv = &g->kvs[g->n_kvs];
    *kv = (gguf_kv){0};
    IFL_TRY(cursor_name(c, &kv->key, err));
    g->n_kvs++;
    return cursor_value(c, kv, err);
}

static ifl_status tensor_sizes(ifl_gguf_tensor *t, uint32_t type, ifl_error *err) {
    int32_t block, block_bytes;
    if (!ifl_gguf_type_block(type, &block, &block_bytes))
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "tensor %s has type %s (%u); F32, F16, BF16, Q8_0, Q4_0, Q5_0, "
                        "Q4_K, Q5_K and Q6_K are read",
                        t->name, ifl_gguf_type_name(type), type);
    t->type = (ifl_gguf_type)type;
    t->n_elements = 1;
    for (int32_t d = 0; d < t->n_dims; d++)
        if (__builtin_mul_overflow(t->n_elements, t->dims[d], &t->n_elements))
            return ifl_fail(err, IFL_LIMIT, "tensor %s: the product of its dimensions passes 2^63",
                            t->name);
    if (t->n_dims == 0 || t->dims[0] % block != 0)
        return ifl_fail(err, IFL_FORMAT,
                        "tensor %s: rows of %lld elements are no multiple of the %d of a %s "
                        "block",
                        t->name, t->n_dims ? (long long)t->dims[0] : 0LL, block,
                        ifl_gguf_type_name(type));
    if (__builtin_mul_overflow((uint64_t)(t->n_elements / block), (uint64_t)block_bytes,
                               &t->n_bytes))
        return ifl_fail(err, IFL_LIMIT, "tensor %s: its size passes 2^64 bytes", t->name);
    return IFL_OK;
}

static ifl_status gguf_read_tensor(ifl_gguf *g, gguf_cursor *c, ifl_error *err) {
    void *tensors = g->tensors;
    ifl_status st = ifl_grow(&tensors, &g->tensors_cap, g->n_tensors + 1, sizeof *g->tensors, err);
    g->tensors = tensors;
    IFL_TRY(st);
    ifl_gguf_tensor *t = &g->tensors[g->n_tensors];
    *t = (ifl_gguf_tensor){0};
    IFL_TRY(cursor_name(c, &t->name, err));
    g->n_tensors++;
    uint32_t n_dims, type;
    IFL_TRY(cursor_u32(c, &n_dims, err));
    if (n_dims > IFL_GGUF_DIMS_MAX)
        return ifl_fail(err, IFL_LIMIT, "tensor %s: %u dimensions, limit %d", t->name, n_dims,
                        IFL_GGUF_DIMS_MAX);
    t->n_dims = (int32_t)n_dims;
    for (uint32_t d = 0; d < n_dims; d++) {
        uint64_t dim;
        IFL_TRY(cursor_u64(c, &dim, err));
        if (dim > INT64_MAX)
            return ifl_fail(err, IFL_LIMIT, "tensor %s: dimension %u passes 2^63", t->name, d);
        t->dims[d] = (int64_t)dim;
    }
    IFL_TRY(cursor_u32(c, &type, err));
    IFL_TRY(cursor_u64(c, &t->offset, err));
    return tensor_sizes(t, type, err);
}

/* --- Checks over the whole table --- */

static int kv_by_key(const void *a, const void *b) {
    return strcmp(((const gguf_kv *)a)->key, ((const gguf_kv *)b)->key);
}

static int tensor_by_name(const void *a, const void *b) {
    return strcmp(((const ifl_gguf_tensor *)a)->name, ((const ifl_gguf_tensor *)b)->name);
}

static int tensor_by_offset(const void *a, const void *b) {
    const ifl_gguf_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->n_bytes > 0) - (y->n_bytes > 0);
}

static ifl_status gguf_sort_keys(ifl_gguf *g, ifl_error *err) {
    if (g->n_kvs > 0) qsort(g->kvs, g->n_kvs, sizeof *g->kvs, kv_by_key);
    for (size_t i = 1; i < g->n_kvs; i++)
        if (strcmp(g->kvs[i].key, g->kvs[i - 1].key) == 0)
            return ifl_fail(err, IFL_FORMAT, "the key %s is there twice", g->kvs[i].key);
    return IFL_OK;
}

/* Offsets become absolute here. Gaps are allowed, since every tensor is padded to the alignment. */
static ifl_status gguf_place_tensors(ifl_gguf *g, uint64_t header_end, ifl_error *err) {
    int64_t alignment = ALIGNMENT_DEFAULT;
    IFL_TRY(ifl_gguf_get_int(g, "general.alignment", 1, ALIGNMENT_MAX, &alignment, err));
    if (alignment & (alignment - 1))
        return ifl_fail(err, IFL_FORMAT, "general.alignment: %lld is no power of two",
                        (long long)alignment);
    uint64_t mask = (uint64_t)alignment - 1, data = (header_end + mask) & ~mask, at = data;
    if (g->n_tensors > 0) qsort(g->tensors, g->n_tensors, sizeof *g->tensors, tensor_by_offset);
    for (size_t i = 0; i < g->n_tensors; i++) {
        ifl_gguf_tensor *t = &g->tensors[i];
        if (t->offset & mask)
            return ifl_fail(err, IFL_FORMAT,
                            "tensor %s: offset %llu is no multiple of the alignment %lld", t->name,
                            (unsigned long long)t->offset, (long long)alignment);
        uint64_t end;
        if (__builtin_add_overflow(t->offset, data, &t->offset) ||
            __builtin_add_overflow(t->offset, t->n_bytes, &end) || end > g->map.n_bytes)
            return ifl_fail(err, IFL_FORMAT, "tensor %s: its %llu bytes end behind the file's %llu",
                            t->name, (unsigned long long)t->n_bytes,
                            (unsigned long long)g->map.n_bytes);
        if (t->offset < at)
            return ifl_fail(err, IFL_FORMAT, "tensor %s: overlaps the tensor before it", t->name);
        at = end;
    }
    if (g->n_tensors > 0) qsort(g->tensors, g->n_tensors, sizeof *g->tensors, tensor_by_name);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (strcmp(g->tensors[i].name, g->tensors[i - 1].name) == 0)
            return ifl_fail(err, IFL_FORMAT, "tensor %s is there twice", g->tensors[i].name);
    return IFL_OK;
}

static ifl_status gguf_read_header(ifl_gguf *g, ifl_error *err) {
    gguf_cursor c = {.end = g->map.n_bytes};
    const uint8_t *magic = NULL;
    uint32_t version;
    uint64_t n_tensors, n_kvs;
    IFL_TRY(ifl_file_map_range(&g->map, 0, g->map.n_bytes, &c.bytes, err));
    IFL_TRY(cursor_take(&c, 4, &magic, err));
    if (memcmp(magic, "GGUF", 4) != 0) return ifl_fail(err, IFL_FORMAT, "not a GGUF file");
    IFL_TRY(cursor_u32(&c, &version, err));
    if (version != 2 && version != 3)
        return ifl_fail(err, IFL_UNSUPPORTED, "GGUF version %u%s; versions 2 and 3 are read",
                        version, (version & 0xffff) == 0 ? " (a big-endian file?)" : "");
    IFL_TRY(cursor_u64(&c, &n_tensors, err));
    IFL_TRY(cursor_u64(&c, &n_kvs, err));
    if (n_tensors > IFL_GGUF_TENSORS_MAX || n_kvs > IFL_GGUF_KEYS_MAX)
        return ifl_fail(err, IFL_LIMIT, "%llu tensors and %llu keys, limits %d and %d",
                        (unsigned long long)n_tensors, (unsigned long long)n_kvs,
                        IFL_GGUF_TENSORS_MAX, IFL_GGUF_KEYS_MAX);
    for (uint64_t i = 0; i < n_kvs; i++)
        IFL_TRY(gguf_read_kv(g, &c, err));
    for (uint64_t i = 0; i < n_tensors; i++)
        IFL_TRY(gguf_read_tensor(g, &c, err));
    IFL_TRY(gguf_sort_keys(g, err));
    return gguf_place_tensors(g, c.at, err);
}

ifl_status ifl_gguf_open(ifl_gguf **out, const char *path, ifl_error *err) {
    *out = NULL;
    ifl_gguf *g = calloc(1, sizeof *g);
    if (!g) return ifl_fail(err, IFL_NOMEM, "out of memory");
    ifl_status st = ifl_file_map_open(&g->map, path, err);
    if (st == IFL_OK) {
        st = gguf_read_header(g, err);
        if (st != IFL_OK) ifl_error_wrap(err, "%s", path);
    }
    if (st == IFL_OK) {
        *out = g;
        g = NULL;
    }
    ifl_gguf_close(g);
    return st;
}

void ifl_gguf_close(ifl_gguf *g) {
    if (!g) return;
    for (size_t i = 0; i < g->n_kvs; i++)
        free(g->kvs[i].key);
    for (size_t i = 0; i < g->n_tensors; i++)
        free(g->tensors[i].name);
    free(g->kvs);
    free(g->tensors);
    ifl_file_map_close(&g->map);
    free(g);
}

/* --- Tensors --- */

int32_t ifl_gguf_count(const ifl_gguf *g) {
    return (int32_t)g->n_tensors;
}

const ifl_gguf_tensor *ifl_gguf_at(const ifl_gguf *g, int32_t i) {
    IFL_ASSERT(i >= 0 && (size_t)i < g->n_tensors);
    return &g->tensors[i];
}

int32_t ifl_gguf_find(const ifl_gguf *g, const char *name) {
    ifl_gguf_tensor key = {.name = (char *)(uintptr_t)name};
    const ifl_gguf_tensor *t =
        g->n_tensors ? bsearch(&key, g->tensors, g->n_tensors, sizeof key, tensor_by_name) : NULL;
    return t ? (int32_t)(t - g->tensors) : -1;
}

ifl_status ifl_gguf_read_f32(const ifl_gguf *g, int32_t i, int64_t begin, int64_t n, float *out,
                             ifl_error *err) {
    const ifl_gguf_tensor *t = ifl_gguf_at(g, i);
    if (begin < 0 || n < 0 || begin > t->n_elements || n > t->n_elements - begin)
        return ifl_fail(err, IFL_LIMIT, "tensor %s: wanted %lld elements at %lld, it has %lld",
                        t->name, (long long)n, (long long)begin, (long long)t->n_elements);
    if (n == 0) return IFL_OK;
    int32_t block, block_bytes;
    IFL_ASSERT(ifl_gguf_type_block(t->type, &block, &block_bytes));
    int64_t first = begin / block, last = (begin + n - 1) / block;
    const uint8_t *bytes;
    IFL_TRY(ifl_file_map_range(&g->map, t->offset + (uint64_t)first * (uint64_t)block_bytes,
                               (uint64_t)(last - first + 1) * (uint64_t)block_bytes, &bytes, err));
    float part[IFL_GGUF_BLOCK_MAX]; /* a block of which only a part is wanted */
    int64_t skip = begin % block;
    while (n > 0) {
        int64_t n_blocks = skip == 0 ? n / block : 0, m;
        if (n_blocks > 0) {
            m = n_blocks * block;
            ifl_gguf_dequant(t->type, bytes, n_blocks, out);
        } else {
            n_blocks = 1;
            m = block - skip < n ? block - skip : n;
            ifl_gguf_dequant(t->type, bytes, 1, part);
            memcpy(out, part + skip, (size_t)m * sizeof *out);
            skip = 0;
        }
        bytes += n_blocks * block_bytes;
        out += m;
        n -= m;
    }
    return IFL_OK;
}

/* --- Metadata --- */

static const gguf_kv *gguf_kv_find(const ifl_gguf *g, const char *key) {
    gguf_kv wanted = {.key = (char *)(uintptr_t)key};
    return g->n_kvs ? bsearch(&wanted, g->kvs, g->n_kvs, sizeof wanted, kv_by_key) : NULL;
}

static ifl_status kv_wrong_type(const gguf_kv *kv, const char *wanted, ifl_error *err) {
    return ifl_fail(err, IFL_FORMAT, "%s: wanted %s, got %s%s", kv->key, wanted,
                    kv->type == KV_ARRAY ? "an array of " : "",
                    kv_names[kv->type == KV_ARRAY ? kv->element_type : kv->type]);
}

static bool kv_load_int(uint32_t type, const uint8_t *p, int64_t *out) {
    switch (type) {
    case KV_U8:
    case KV_BOOL:
        *out = *p;
        return true;
    case KV_I8:
        *out = (int8_t)*p;
        return true;
    case KV_U16:
        *out = (uint16_t)load_le(p, 2);
        return true;
    case KV_I16:
        *out = (int16_t)load_le(p, 2);
        return true;
    case KV_U32:
        *out = (uint32_t)load_le(p, 4);
        return true;
    case KV_I32:
        *out = (int32_t)load_le(p, 4);
        return true;
    case KV_U64:
    case KV_I64:
        *out = (int64_t)load_le(p, 8);
        return type == KV_I64 || *out >= 0;
    default:
        return false;
    }
}

static bool kv_load_double(uint32_t type, const uint8_t *p, double *out) {
    int64_t integer;
    if (type == KV_F32) {
        float f;
        uint32_t bits = (uint32_t)load_le(p, 4);
        memcpy(&f, &bits, 4);
        *out = (double)f;
        return true;
    }
    if (type == KV_F64) {
        uint64_t bits = load_le(p, 8);
        memcpy(out, &bits, 8);
        return true;
    }
    if (type == KV_BOOL || !kv_load_int(type, p, &integer)) return false;
    *out = (double)integer;
    return true;
}

ifl_status ifl_gguf_get_int(const ifl_gguf *g, const char *key, int64_t min, int64_t max,
                            int64_t *out, ifl_error *err) {
    const gguf_kv *kv = gguf_kv_find(g, key);
    if (!kv) return IFL_OK;
    int64_t got;
    if (kv->type == KV_BOOL || !kv_load_int(kv->type, kv->value, &got))
        return kv_wrong_type(kv, "an integer", err);
    if (got < min || got > max)
        return ifl_fail(err, IFL_FORMAT, "%s: %lld is outside %lld .. %lld", key, (long long)got,
                        (long long)min, (long long)max);
    *out = got;
    return IFL_OK;
}

ifl_status ifl_gguf_get_int32(const ifl_gguf *g, const char *key, int32_t min, int32_t max,
                              int32_t *out, ifl_error *err) {
    int64_t wide = *out;
    IFL_TRY(ifl_gguf_get_int(g, key, min, max, &wide, err));
    *out = (int32_t)wide;
    return IFL_OK;
}

ifl_status ifl_gguf_get_double(const ifl_gguf *g, const char *key, double min, double max,
                               double *out, ifl_error *err) {
    const gguf_kv *kv = gguf_kv_find(g, key);
    if (!kv) return IFL_OK;
    double got;
    if (!kv_load_double(kv->type, kv->value, &got)) return kv_wrong_type(kv, "a number", err);
    if (!(got >= min && got <= max))
        return ifl_fail(err, IFL_FORMAT, "%s: %g is outside %g .. %g", key, got, min, max);
    *out = got;
    return IFL_OK;
}

ifl_status ifl_gguf_get_bool(const ifl_gguf *g, const char *key, bool *out, ifl_error *err) {
    const gguf_kv *kv = gguf_kv_find(g, key);
    if (!kv) return IFL_OK;
    if (kv->type != KV_BOOL) return kv_wrong_type(kv, "a boolean", err);
    *out = *kv->value != 0;
    return IFL_OK;
}

ifl_status ifl_gguf_get_text(const ifl_gguf *g, const char *key, ifl_gguf_text *out,
                             ifl_error *err) {
    const gguf_kv *kv = gguf_kv_find(g, key);
    if (!kv) return IFL_OK;
    if (kv->type != KV_TEXT) return kv_wrong_type(kv, "a string", err);
    *out = (ifl_gguf_text){.bytes = (const char *)kv->value, .n_bytes = (size_t)kv->n};
    return IFL_OK;
}

bool ifl_gguf_text_is(ifl_gguf_text text, const char *want) {
    return text.bytes && text.n_bytes == strlen(want) &&
           memcmp(text.bytes, want, text.n_bytes) == 0;
}

bool ifl_gguf_has(const ifl_gguf *g, const char *key) {
    return gguf_kv_find(g, key) != NULL;
}

bool ifl_gguf_is_array(const ifl_gguf *g, const char *key) {
    const gguf_kv *kv = gguf_kv_find(g, key);
    return kv && kv->type == KV_ARRAY;
}

ifl_status ifl_gguf_array_count(const ifl_gguf *g, const char *key, int64_t *n, ifl_error *err) {
    const gguf_kv *kv = gguf_kv_find(g, key);
    *n = 0;
    if (!kv) return IFL_OK;
    if (kv->type != KV_ARRAY) return kv_wrong_type(kv, "an array", err);
    *n = (int64_t)kv->n;
    return IFL_OK;
}

static ifl_status gguf_array(const ifl_gguf *g, const char *key, int64_t n, const gguf_kv **out,
                             ifl_error *err) {
    const gguf_kv *kv = gguf_kv_find(g, key);
    if (!kv) return ifl_fail(err, IFL_FORMAT, "%s: missing", key);
    if (kv->type != KV_ARRAY) return kv_wrong_type(kv, "an array", err);
    if (kv->n != (uint64_t)n)
        return ifl_fail(err, IFL_FORMAT, "%s: %llu elements, wanted %lld", key,
                        (unsigned long long)kv->n, (long long)n);
    *out = kv;
    return IFL_OK;
}

ifl_status ifl_gguf_array_int32(const ifl_gguf *g, const char *key, int64_t n, int32_t *out,
                                ifl_error *err) {
    const gguf_kv *kv;
    IFL_TRY(gguf_array(g, key, n, &kv, err));
    for (int64_t i = 0; i < n; i++) {
        int64_t value;
        if (!kv_load_int(kv->element_type, kv->value + i * kv_sizes[kv->element_type], &value))
            return kv_wrong_type(kv, "an array of integers", err);
        if (value < INT32_MIN || value > INT32_MAX)
            return ifl_fail(err, IFL_FORMAT, "%s[%lld]: %lld does not fit 32 bits", key,
                            (long long)i, (long long)value);
        out[i] = (int32_t)value;
    }
    return IFL_OK;
}

ifl_status ifl_gguf_array_f32(const ifl_gguf *g, const char *key, int64_t n, float *out,
                              ifl_error *err) {
    const gguf_kv *kv;
    IFL_TRY(gguf_array(g, key, n, &kv, err));
    for (int64_t i = 0; i < n; i++) {
        double value;
        if (!kv_load_double(kv->element_type, kv->value + i * kv_sizes[kv->element_type], &value))
            return kv_wrong_type(kv, "an array of numbers", err);
        out[i] = (float)value;
    }
    return IFL_OK;
}

ifl_status ifl_gguf_array_text(const ifl_gguf *g, const char *key, int64_t n, ifl_gguf_text *out,
                               ifl_error *err) {
    const gguf_kv *kv;
    IFL_TRY(gguf_array(g, key, n, &kv, err));
    if (kv->element_type != KV_TEXT) return kv_wrong_type(kv, "an array of strings", err);
    /* Lengths were checked on opening; the cursor checks again, since the file lies in shared
     * memory. */
    gguf_cursor c = {
        .bytes = g->map.bytes, .at = (uint64_t)(kv->value - g->map.bytes), .end = g->map.n_bytes};
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *bytes;
        uint64_t n_bytes;
        IFL_TRY(cursor_text(&c, IFL_GGUF_TEXT_MAX, &bytes, &n_bytes, err));
        out[i] = (ifl_gguf_text){.bytes = (const char *)bytes, .n_bytes = (size_t)n_bytes};
    }
    return IFL_OK;
}

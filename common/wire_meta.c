#include "common/wire_meta.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- The scan --------------------------------------------------------------------------------- */

/* An open container: values still to come, and for maps whether the next one is a key. */
typedef struct scan_level {
    uint32_t n_left;
    bool is_map, key_next;
    int64_t last_key;
} scan_level;

typedef struct scan_item {
    enum { SCAN_INT, SCAN_SCALAR, SCAN_STRING, SCAN_ARRAY, SCAN_MAP } kind;
    size_t n_head; /* type byte and what follows it up to the content */
    uint64_t n;    /* strings: bytes; arrays: elements; maps: pairs */
    int64_t value; /* SCAN_INT; keys beyond int64 count as negative, that is refused */
} scan_item;

static uint64_t scan_big_endian(const uint8_t *p, size_t n) {
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v = v << 8 | p[i];
    return v;
}

/* Reads one head; false when it is of a kind that isn't used or cut off. */
static bool scan_head(const uint8_t *p, size_t n_left, scan_item *item) {
    uint8_t b = p[0];
    size_t n_arg = 0;
    item->n = 0;
    item->value = 0;
    if (b <= 0x7f) {
        item->kind = SCAN_INT;
        item->value = b;
    } else if (b >= 0xe0) {
        item->kind = SCAN_INT;
        item->value = (int8_t)b;
    } else if (b <= 0x8f) {
        item->kind = SCAN_MAP;
        item->n = b & 15u;
    } else if (b <= 0x9f) {
        item->kind = SCAN_ARRAY;
        item->n = b & 15u;
    } else if (b <= 0xbf) {
        item->kind = SCAN_STRING;
        item->n = b & 31u;
    } else {
        switch (b) {
        case 0xc2:
        case 0xc3:
            item->kind = SCAN_SCALAR;
            break;
        case 0xc4:
        case 0xd9:
            item->kind = SCAN_STRING;
            n_arg = 1;
            break;
        case 0xc5:
        case 0xda:
            item->kind = SCAN_STRING;
            n_arg = 2;
            break;
        case 0xc6:
        case 0xdb:
            item->kind = SCAN_STRING;
            n_arg = 4;
            break;
        case 0xca:
            item->kind = SCAN_SCALAR;
            n_arg = 4;
            break;
        case 0xcb:
            item->kind = SCAN_SCALAR;
            n_arg = 8;
            break;
        case 0xcc:
        case 0xd0:
            item->kind = SCAN_INT;
            n_arg = 1;
            break;
        case 0xcd:
        case 0xd1:
            item->kind = SCAN_INT;
            n_arg = 2;
            break;
        case 0xce:
        case 0xd2:
            item->kind = SCAN_INT;
            n_arg = 4;
            break;
        case 0xcf:
        case 0xd3:
            item->kind = SCAN_INT;
            n_arg = 8;
            break;
        case 0xdc:
            item->kind = SCAN_ARRAY;
            n_arg = 2;
            break;
        case 0xdd:
            item->kind = SCAN_ARRAY;
            n_arg = 4;
            break;
        case 0xde:
            item->kind = SCAN_MAP;
            n_arg = 2;
            break;
        case 0xdf:
            item->kind = SCAN_MAP;
            n_arg = 4;
            break;
        default:
            return false; /* nil, ext, 0xc1 */
        }
        if (n_left < 1 + n_arg) return false;
        uint64_t arg = scan_big_endian(p + 1, n_arg);
        if (item->kind == SCAN_INT) {
            /* A signed kind has its sign bit extended; an unsigned one keeps its value. */
            bool negative = b >= 0xd0 && (p[1] & 0x80);
            item->value = negative ? -1 : (arg > INT64_MAX ? -1 : (int64_t)arg);
        } else if (item->kind != SCAN_SCALAR) {
            item->n = arg;
        }
    }
    item->n_head = 1 + n_arg;
    return true;
}

ifl_status ifl_meta_scan(const uint8_t *bytes, size_t n_bytes, ifl_error *err) {
    if (n_bytes > IFL_META_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "meta has %zu bytes, limit %d", n_bytes,
                        IFL_META_BYTES_MAX);
    scan_level levels[IFL_META_DEPTH_MAX];
    int depth = 0;
    int32_t n_elements = 0;
    size_t at = 0;
    do {
        if (at >= n_bytes) return ifl_fail(err, IFL_FORMAT, "meta is cut off at byte %zu", at);
        if (++n_elements > IFL_META_ELEMENTS_MAX)
            return ifl_fail(err, IFL_LIMIT, "meta has more than %d elements",
                            IFL_META_ELEMENTS_MAX);
        scan_item item;
        if (!scan_head(bytes + at, n_bytes - at, &item))
            return ifl_fail(err, IFL_FORMAT,
                            "meta byte %zu: 0x%02x is cut off or of an unused kind", at, bytes[at]);
        if (depth == 0 && item.kind != SCAN_MAP)
            return ifl_fail(err, IFL_FORMAT, "meta is not a map");
        scan_level *top = depth ? &levels[depth - 1] : NULL;
        if (top && top->is_map && top->key_next) {
            if (item.kind != SCAN_INT || item.value <= top->last_key)
                return ifl_fail(err, IFL_FORMAT,
                                "meta byte %zu: map keys must be ascending non-negative integers",
                                at);
            top->last_key = item.value;
        }
        at += item.n_head;
        if (top) {
            top->n_left--;
            top->key_next = !top->key_next;
        }
        if (item.kind == SCAN_STRING) {
            if (item.n > n_bytes - at)
                return ifl_fail(err, IFL_FORMAT, "meta byte %zu: %llu bytes announced, %zu left",
                                at, (unsigned long long)item.n, n_bytes - at);
            at += (size_t)item.n;
        } else if (item.kind == SCAN_ARRAY || item.kind == SCAN_MAP) {
            uint64_t n_values = item.kind == SCAN_MAP ? 2 * item.n : item.n;
            if (n_values > n_bytes - at)
                return ifl_fail(err, IFL_FORMAT,
                                "meta byte %zu: %llu values announced, %zu bytes left", at,
                                (unsigned long long)n_values, n_bytes - at);
            if (depth == IFL_META_DEPTH_MAX)
                return ifl_fail(err, IFL_LIMIT, "meta is nested deeper than %d",
                                IFL_META_DEPTH_MAX);
            levels[depth++] = (scan_level){.n_left = (uint32_t)n_values,
                                           .is_map = item.kind == SCAN_MAP,
                                           .key_next = true,
                                           .last_key = -1};
        }
        while (depth && levels[depth - 1].n_left == 0)
            depth--;
    } while (depth);
    if (at != n_bytes)
        return ifl_fail(err, IFL_FORMAT, "meta has %zu bytes behind its map", n_bytes - at);
    return IFL_OK;
}

/* --- Writing ---------------------------------------------------------------------------------- */

void ifl_meta_begin(ifl_meta_writer *w, const char *what, ifl_error *err) {
    memset(w, 0, sizeof *w);
    msgpack_sbuffer_init(&w->buffer);
    msgpack_packer_init(&w->packer, &w->buffer, msgpack_sbuffer_write);
    w->what = what;
    w->last_key = -1;
    w->n_elements = 1;
    w->err = err;
    static const char head[3] = {(char)0xde, 0, 0}; /* map16; its count is written at the end */
    if (msgpack_sbuffer_write(&w->buffer, head, sizeof head) != 0)
        ifl_meta_fail(w, IFL_NOMEM, "out of memory");
}

void ifl_meta_fail(ifl_meta_writer *w, ifl_status status, const char *text) {
    if (w->status == IFL_OK) w->status = ifl_fail(w->err, status, "%s: %s", w->what, text);
}

static bool meta_key(ifl_meta_writer *w, int32_t key) {
    IFL_ASSERT(key > w->last_key);
    w->last_key = key;
    if (w->status != IFL_OK) return false;
    w->n_fields++;
    w->n_elements += 2;
    if (msgpack_pack_int32(&w->packer, key) != 0) ifl_meta_fail(w, IFL_NOMEM, "out of memory");
    return w->status == IFL_OK;
}

void ifl_meta_put_i64(ifl_meta_writer *w, int32_t key, int64_t value) {
    if (meta_key(w, key) && msgpack_pack_int64(&w->packer, value) != 0)
        ifl_meta_fail(w, IFL_NOMEM, "out of memory");
}

void ifl_meta_put_u64(ifl_meta_writer *w, int32_t key, uint64_t value) {
    if (meta_key(w, key) && msgpack_pack_uint64(&w->packer, value) != 0)
        ifl_meta_fail(w, IFL_NOMEM, "out of memory");
}

void ifl_meta_put_f32(ifl_meta_writer *w, int32_t key, const char *name, float value) {
    if (!isfinite(value)) {
        if (w->status == IFL_OK)
            w->status = ifl_fail(w->err, IFL_FORMAT, "%s: %s is %f, wanted a finite number",
                                 w->what, name, (double)value);
        return;
    }
    if (meta_key(w, key) && msgpack_pack_float(&w->packer, value) != 0)
        ifl_meta_fail(w, IFL_NOMEM, "out of memory");
}

void ifl_meta_put_text(ifl_meta_writer *w, int32_t key, const char *text) {
    if (!text) text = "";
    size_t n = strlen(text);
    if (n > IFL_META_BYTES_MAX) {
        ifl_meta_fail(w, IFL_LIMIT, "a text is longer than 64 KiB");
        return;
    }
    if (meta_key(w, key) &&
        (msgpack_pack_str(&w->packer, n) != 0 || msgpack_pack_str_body(&w->packer, text, n) != 0))
        ifl_meta_fail(w, IFL_NOMEM, "out of memory");
}

void ifl_meta_put_bytes(ifl_meta_writer *w, int32_t key, const void *bytes, size_t n_bytes) {
    if (n_bytes > IFL_META_BYTES_MAX) {
        ifl_meta_fail(w, IFL_LIMIT, "a field is longer than 64 KiB");
        return;
    }
    if (meta_key(w, key) && (msgpack_pack_bin(&w->packer, n_bytes) != 0 ||
                             msgpack_pack_bin_body(&w->packer, bytes, n_bytes) != 0))
        ifl_meta_fail(w, IFL_NOMEM, "out of memory");
}

void ifl_meta_put_hash(ifl_meta_writer *w, int32_t key, ifl_hash hash) {
    uint8_t bytes[16];
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(hash.low >> (8 * i));
        bytes[8 + i] = (uint8_t)(hash.high >> (8 * i));
    }
    ifl_meta_put_bytes(w, key, bytes, sizeof bytes);
}

void ifl_meta_put_array(ifl_meta_writer *w, int32_t key, int32_t n) {
    if (!meta_key(w, key)) return;
    w->n_elements += n;
    if (w->n_elements > IFL_META_ELEMENTS_MAX)
        ifl_meta_fail(w, IFL_LIMIT, "more than 4096 elements in its meta");
    else if (msgpack_pack_array(&w->packer, (size_t)n) != 0)
        ifl_meta_fail(w, IFL_NOMEM, "out of memory");
}

void ifl_meta_put_i32s(ifl_meta_writer *w, int32_t key, const int32_t *values, int32_t n) {
    ifl_meta_put_array(w, key, n);
    for (int32_t i = 0; i < n && w->status == IFL_OK; i++)
        if (msgpack_pack_int32(&w->packer, values[i]) != 0)
            ifl_meta_fail(w, IFL_NOMEM, "out of memory");
}

ifl_status ifl_meta_end(ifl_meta_writer *w, uint8_t **out, size_t *n_out) {
    *out = NULL;
    *n_out = 0;
    if (w->status == IFL_OK && w->buffer.size > IFL_META_BYTES_MAX)
        w->status = ifl_fail(w->err, IFL_LIMIT, "%s: meta has %zu bytes, limit %d", w->what,
                             w->buffer.size, IFL_META_BYTES_MAX);
    if (w->status == IFL_OK) {
        w->buffer.data[1] = (char)(w->n_fields >> 8);
        w->buffer.data[2] = (char)(w->n_fields & 255);
        *n_out = w->buffer.size;
        *out = (uint8_t *)msgpack_sbuffer_release(&w->buffer);
    }
    msgpack_sbuffer_destroy(&w->buffer);
    return w->status;
}

/* --- Reading ---------------------------------------------------------------------------------- */

ifl_status ifl_meta_open(ifl_meta_reader *r, const char *what, const uint8_t *bytes, size_t n_bytes,
                         ifl_error *err) {
    memset(r, 0, sizeof *r);
    msgpack_unpacked_init(&r->unpacked);
    r->what = what;
    r->err = err;
    r->status = ifl_meta_scan(bytes, n_bytes, err);
    if (r->status != IFL_OK) {
        ifl_error_wrap(err, "%s", what);
        return r->status;
    }
    size_t offset = 0;
    msgpack_unpack_return got =
        msgpack_unpack_next(&r->unpacked, (const char *)bytes, n_bytes, &offset);
    if (got == MSGPACK_UNPACK_NOMEM_ERROR)
        r->status = ifl_fail(err, IFL_NOMEM, "%s: out of memory", what);
    else if (got != MSGPACK_UNPACK_SUCCESS || offset != n_bytes ||
             r->unpacked.data.type != MSGPACK_OBJECT_MAP)
        r->status = ifl_fail(err, IFL_FORMAT, "%s: meta does not parse", what);
    return r->status;
}

ifl_status ifl_meta_close(ifl_meta_reader *r) {
    msgpack_unpacked_destroy(&r->unpacked);
    return r->status;
}

void ifl_meta_refuse(ifl_meta_reader *r, const char *name, const char *why) {
    if (r->status == IFL_OK)
        r->status = ifl_fail(r->err, IFL_FORMAT, "%s: %s %s", r->what, name, why);
}

static const msgpack_object *meta_find(ifl_meta_reader *r, int32_t key, const char *name) {
    if (r->status != IFL_OK) return NULL;
    const msgpack_object_map *map = &r->unpacked.data.via.map;
    for (uint32_t i = 0; i < map->size; i++)
        if (map->ptr[i].key.type == MSGPACK_OBJECT_POSITIVE_INTEGER &&
            map->ptr[i].key.via.u64 == (uint64_t)key)
            return &map->ptr[i].val;
    r->status = ifl_fail(r->err, IFL_FORMAT, "%s: field %d (%s) is missing", r->what, key, name);
    return NULL;
}

bool ifl_meta_has(const ifl_meta_reader *r, int32_t key) {
    if (r->status != IFL_OK) return false;
    const msgpack_object_map *map = &r->unpacked.data.via.map;
    for (uint32_t i = 0; i < map->size; i++)
        if (map->ptr[i].key.via.u64 == (uint64_t)key) return true;
    return false;
}

bool ifl_meta_object_i64(const msgpack_object *object, int64_t min, int64_t max, int64_t *out) {
    int64_t value;
    if (object->type == MSGPACK_OBJECT_POSITIVE_INTEGER && object->via.u64 <= INT64_MAX)
        value = (int64_t)object->via.u64;
    else if (object->type == MSGPACK_OBJECT_NEGATIVE_INTEGER)
        value = object->via.i64;
    else
        return false;
    if (value < min || value > max) return false;
    *out = value;
    return true;
}

bool ifl_meta_object_f64(const msgpack_object *object, double *out) {
    if ((object->type != MSGPACK_OBJECT_FLOAT32 && object->type != MSGPACK_OBJECT_FLOAT64) ||
        !isfinite(object->via.f64))
        return false;
    *out = object->via.f64;
    return true;
}

bool ifl_meta_object_text(const msgpack_object *object, char *out, size_t cap) {
    if (object->type != MSGPACK_OBJECT_STR || object->via.str.size >= cap) return false;
    size_t n = object->via.str.size;
    if (n && memchr(object->via.str.ptr, 0, n)) return false;
    if (n) memcpy(out, object->via.str.ptr, n);
    out[n] = 0;
    return true;
}

void ifl_meta_get_i64(ifl_meta_reader *r, int32_t key, const char *name, int64_t min, int64_t max,
                      int64_t *out) {
    const msgpack_object *object = meta_find(r, key, name);
    int64_t value;
    if (!object) return;
    if (ifl_meta_object_i64(object, min, max, &value))
        *out = value;
    else
        r->status = ifl_fail(r->err, IFL_FORMAT, "%s: %s is not an integer in [%lld, %lld]",
                             r->what, name, (long long)min, (long long)max);
}

void ifl_meta_get_i32(ifl_meta_reader *r, int32_t key, const char *name, int32_t min, int32_t max,
                      int32_t *out) {
    int64_t value = *out;
    ifl_meta_get_i64(r, key, name, min, max, &value);
    *out = (int32_t)value;
}

void ifl_meta_get_u64(ifl_meta_reader *r, int32_t key, const char *name, uint64_t *out) {
    const msgpack_object *object = meta_find(r, key, name);
    if (!object) return;
    if (object->type == MSGPACK_OBJECT_POSITIVE_INTEGER)
        *out = object->via.u64;
    else
        ifl_meta_refuse(r, name, "is not an unsigned integer");
}

void ifl_meta_get_f32(ifl_meta_reader *r, int32_t key, const char *name, float *out) {
    const msgpack_object *object = meta_find(r, key, name);
    double value;
    if (!object) return;
    if (ifl_meta_object_f64(object, &value) && isfinite((float)value))
        *out = (float)value;
    else
        ifl_meta_refuse(r, name, "is not a finite float");
}

void ifl_meta_get_text(ifl_meta_reader *r, int32_t key, const char *name, char *out, size_t cap) {
    const msgpack_object *object = meta_find(r, key, name);
    if (object && !ifl_meta_object_text(object, out, cap))
        r->status =
            ifl_fail(r->err, IFL_FORMAT, "%s: %s is not a text of at most %zu bytes without NUL",
                     r->what, name, cap - 1);
}

void ifl_meta_get_bytes(ifl_meta_reader *r, int32_t key, const char *name, void *out,
                        size_t n_exact) {
    const msgpack_object *object = meta_find(r, key, name);
    if (!object) return;
    if (object->type == MSGPACK_OBJECT_BIN && object->via.bin.size == n_exact)
        memcpy(out, object->via.bin.ptr, n_exact);
    else
        r->status = ifl_fail(r->err, IFL_FORMAT, "%s: %s is not a string of %zu bytes", r->what,
                             name, n_exact);
}

void ifl_meta_get_hash(ifl_meta_reader *r, int32_t key, const char *name, ifl_hash *out) {
    uint8_t bytes[16];
    ifl_meta_get_bytes(r, key, name, bytes, sizeof bytes);
    if (r->status != IFL_OK) return;
    *out = (ifl_hash){0, 0};
    for (int i = 0; i < 8; i++) {
        out->low |= (uint64_t)bytes[i] << (8 * i);
        out->high |= (uint64_t)bytes[8 + i] << (8 * i);
    }
}

const msgpack_object_array *ifl_meta_get_array(ifl_meta_reader *r, int32_t key, const char *name,
                                               int32_t n_max) {
    const msgpack_object *object = meta_find(r, key, name);
    if (!object) return NULL;
    if (object->type != MSGPACK_OBJECT_ARRAY || object->via.array.size > (uint32_t)n_max) {
        r->status = ifl_fail(r->err, IFL_FORMAT, "%s: %s is not an array of at most %d elements",
                             r->what, name, n_max);
        return NULL;
    }
    return &object->via.array;
}

void ifl_meta_get_i32s(ifl_meta_reader *r, int32_t key, const char *name, int32_t min, int32_t max,
                       int32_t *out, int32_t n_max, int32_t *n_out) {
    const msgpack_object_array *array = ifl_meta_get_array(r, key, name, n_max);
    if (!array) return;
    for (uint32_t i = 0; i < array->size; i++) {
        int64_t value;
        if (!ifl_meta_object_i64(&array->ptr[i], min, max, &value)) {
            r->status = ifl_fail(r->err, IFL_FORMAT, "%s: %s[%u] is not an integer in [%d, %d]",
                                 r->what, name, i, min, max);
            return;
        }
        out[i] = (int32_t)value;
    }
    *n_out = (int32_t)array->size;
}

/* Little-endian fields in a byte buffer, with bounds: writing past the end or reading past it sets
 * `bad` and goes on harmlessly, so that a sequence of fields is checked once at its end. */
#ifndef IFL_COMMON_BYTE_IO_H
#define IFL_COMMON_BYTE_IO_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct ifl_byte_writer {
    uint8_t *at, *end;
    bool bad;
} ifl_byte_writer;

typedef struct ifl_byte_reader {
    const uint8_t *at, *end;
    bool bad;
} ifl_byte_reader;

static inline void ifl_put_bytes(ifl_byte_writer *w, const void *bytes, size_t n) {
    if (w->bad || (size_t)(w->end - w->at) < n) {
        w->bad = true;
        return;
    }
    if (n) memcpy(w->at, bytes, n);
    w->at += n;
}
static inline void ifl_put_u8(ifl_byte_writer *w, uint8_t v) {
    ifl_put_bytes(w, &v, 1);
}
static inline void ifl_put_u32(ifl_byte_writer *w, uint32_t v) {
    v = htole32(v);
    ifl_put_bytes(w, &v, sizeof v);
}
static inline void ifl_put_u64(ifl_byte_writer *w, uint64_t v) {
    v = htole64(v);
    ifl_put_bytes(w, &v, sizeof v);
}

static inline void ifl_take_bytes(ifl_byte_reader *r, void *out, size_t n) {
    if (r->bad || (size_t)(r->end - r->at) < n) {
        r->bad = true;
        memset(out, 0, n);
        return;
    }
    if (n) memcpy(out, r->at, n);
    r->at += n;
}
static inline uint8_t ifl_take_u8(ifl_byte_reader *r) {
    uint8_t v;
    ifl_take_bytes(r, &v, sizeof v);
    return v;
}
static inline uint32_t ifl_take_u32(ifl_byte_reader *r) {
    uint32_t v;
    ifl_take_bytes(r, &v, sizeof v);
    return le32toh(v);
}
static inline uint64_t ifl_take_u64(ifl_byte_reader *r) {
    uint64_t v;
    ifl_take_bytes(r, &v, sizeof v);
    return le64toh(v);
}

#endif

/* XXH3-128 for integrity between parties that trust each other (weights, chunks, profiles). */
#ifndef IFL_COMMON_HASH_H
#define IFL_COMMON_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct ifl_hash {
    uint64_t low, high;
} ifl_hash;

ifl_hash ifl_hash_bytes(const void *bytes, size_t n_bytes);
uint64_t ifl_hash64(const void *bytes, size_t n_bytes);
static inline int ifl_hash_equal(ifl_hash a, ifl_hash b) { return a.low == b.low && a.high == b.high; }

/* 32 lower-case hex digits and a NUL. */
void ifl_hash_text(ifl_hash hash, char out[33]);

/* Streaming form, for bytes that don't lie together. */
typedef struct ifl_hasher ifl_hasher;
ifl_hasher *ifl_hasher_create(void); /* owned; NULL when out of memory */
void ifl_hasher_add(ifl_hasher *hasher, const void *bytes, size_t n_bytes);
ifl_hash ifl_hasher_finish(const ifl_hasher *hasher);
void ifl_hasher_free(ifl_hasher *hasher);

#endif

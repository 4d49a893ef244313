/* The difference between two versions of a chunk of bf16 weights, exact and small.
 *
 * One optimizer step changes few weights (some 1 to 3 % at a learning rate of 1e-6 to 3e-6). A
 * patch names each changed one, and its change as a step in the ordered view of bf16, where
 * neighbouring values are neighbouring integers. Steps add up, so that two patches in a row make
 * one without anybody holding the version between them.
 *
 * AdamW moves all weights by about the same amount, so a weight's exponent says how likely it
 * changes and by how many steps: of a real model's, those below 3e-5 change nearly always and by
 * many, those above 1e-2 hardly ever and by one. Hence two codes:
 *
 * plain (needs no base): bits from the least significant up, integers little-endian
 *   u32 n           changed weights
 *   u32 n_large     of which by more than one step
 *   gaps[n]         weights between this changed one and the one before it (the chunk's begin)
 *   signs[n]        one bit each, 1 = downwards
 *   places[n_large] as gaps, among the changed ones
 *   sizes[n_large]  |step| - 2
 *
 * by class (needs the base to encode and to decode; a class is the weights whose base value has the
 * same 8 exponent bits):
 *
 *   u32 n           changed weights
 *   u32 n_classes   classes that have any
 *   per class       u8 exponent (ascending), u32 changed ones
 *   per class       1 bit: 0: gaps[] (counted among the weights of the class); 1: u32 n_kept, the
 *                   gaps[] of those before the last changed one that stay (fewer than change, then).
 *                   signs[]. 2 bits: 0: u32 n_large, places and sizes as above; 1: sizes[] of all,
 *                   |step| - 1; 2: the same sizes in a Huffman code of the class's own
 *
 * The Huffman code's symbols: a size v below 16 is symbol v. Above, with e the place of its highest
 * bit, it is symbol 16 + 8 (e - 4) + the next three bits, and its e - 3 lowest bits follow the code
 * as they are. First come 7 bits: 1 + the highest symbol used, and for each symbol up to that 4 bits,
 * the length of its code (0: unused; at most 11). Codes are canonical: by length, then by symbol;
 * their highest bit comes first.
 *
 * gaps, places and sizes are Rice codes (Rice & Plaunt 1971) in blocks of 64 numbers: 5 bits k,
 * then for each number v the unary v >> k (zeros, then a one) and k bits v mod 2^k; 24 zeros are
 * followed by all 32 bits of v instead. Each block's k fits its own density, which differs by
 * tensor and row. */
#ifndef IFL_COMMON_WEIGHT_PATCH_H
#define IFL_COMMON_WEIGHT_PATCH_H

#include "common/status.h"

/* Changes of one chunk, ascending. Zero-initialise; ifl_patch_free frees what it has grown to.
 * Every function that fills one reuses its memory. */
typedef struct ifl_patch {
    int32_t n;
    uint32_t *at;   /* [n] element of the chunk */
    int32_t *steps; /* [n] never 0; at most +-65535 */
    size_t at_cap, steps_cap;
    /* Scratch of the code by class. */
    uint32_t *ranks;
    int32_t *ranked_steps;
    size_t ranks_cap, ranked_steps_cap;
} ifl_patch;

void ifl_patch_free(ifl_patch *patch);

/* A bf16 pattern's place in the order of all 65,536 of them: -32768 .. 32767, -0 just below +0. */
static inline int32_t ifl_bf16_place(uint16_t bf16) {
    return bf16 & 0x8000u ? -1 - (int32_t)(bf16 & 0x7fffu) : (int32_t)bf16;
}
static inline uint16_t ifl_bf16_at_place(int32_t place) {
    return place < 0 ? (uint16_t)(0x8000u | (uint32_t)(-1 - place)) : (uint16_t)place;
}

/* out: what makes `now` of `base`, n_elements each (at most 2^30). IFL_NOMEM. */
ifl_status ifl_patch_diff(ifl_patch *out, const uint16_t *base, const uint16_t *now,
                          int64_t n_elements, ifl_error *err);

/* out: first, then second. May not be one of the two. IFL_NOMEM. */
ifl_status ifl_patch_merge(ifl_patch *out, const ifl_patch *first, const ifl_patch *second,
                           ifl_error *err);

/* Appends nothing to what *bytes holds: writes the code to its beginning, growing it (malloc'd,
 * capacity *cap). IFL_NOMEM. */
ifl_status ifl_patch_encode(const ifl_patch *patch, uint8_t **bytes, size_t *cap, size_t *n_bytes,
                            ifl_error *err);

/* The patch that `bytes` is the code of, for a chunk of n_elements. Takes no more memory than 64
 * times n_bytes. IFL_FORMAT: it is no such code (`out` is then undefined); IFL_NOMEM. */
ifl_status ifl_patch_decode(ifl_patch *out, const uint8_t *bytes, size_t n_bytes,
                            int64_t n_elements, ifl_error *err);

/* The same by class (memory: at most 128 times n_bytes): `base` is what the patch is against, n_elements of it. Decoding with another
 * base gives another patch, or IFL_FORMAT: whoever can't be sure compares a hash of the result. */
ifl_status ifl_patch_encode_classes(ifl_patch *patch, const uint16_t *base,
                                    int64_t n_elements, uint8_t **bytes, size_t *cap,
                                    size_t *n_bytes, ifl_error *err);
ifl_status ifl_patch_decode_classes(ifl_patch *out, const uint8_t *bytes, size_t n_bytes,
                                    const uint16_t *base, int64_t n_elements, ifl_error *err);

/* A third code, for memory alone: whole bytes, quick, needs no base. Per change the gap and the step
 * (lowest bit its sign), in groups of seven bits from the lowest up, the highest bit of a byte set
 * where another one follows. ifl_patch_unpack: IFL_FORMAT where it isn't a code for n_elements. */
ifl_status ifl_patch_pack(const ifl_patch *patch, uint8_t **bytes, size_t *cap, size_t *n_bytes,
                          ifl_error *err);
ifl_status ifl_patch_unpack(ifl_patch *out, const uint8_t *bytes, size_t n_bytes,
                            int64_t n_elements, ifl_error *err);

/* Changes canonical elements in place. IFL_FORMAT, with the elements before it changed already: a
 * step leads out of bf16's range, so this isn't the patch's base. */
ifl_status ifl_patch_apply(const ifl_patch *patch, uint16_t *elements, ifl_error *err);

#endif

/* Weights by class: those whose bf16 values have the same 8 exponent bits. A weight's rank is its
 * number among those of its class in a chunk. Patches by class (common/weight_patch.h) name changes
 * so; this finds the ranks of places, and the places of ranks. AVX2 where the host has it, with the
 * same results. */
#ifndef IFL_COMMON_CLASS_RANKS_H
#define IFL_COMMON_CLASS_RANKS_H

#include <stdint.h>

#define IFL_CLASSES 256

static inline unsigned ifl_class_of(uint16_t bf16) {
    return (bf16 >> 7) & 0xffu;
}

/* classes[i] and ranks[i]: those of element at[i] (ascending) of base[n_elements]. */
void ifl_class_ranks(const uint16_t *base, int64_t n_elements, const uint32_t *at, int32_t n,
                     uint8_t *classes, uint32_t *ranks);

/* The reverse: ranks of class x are ranks[begin[x] .. begin[x + 1]), ascending, and what belongs to
 * each is in the same place of steps. Writes to at and to_steps in ascending order of at, at most
 * begin[IFL_CLASSES] of them; returns how many: fewer where a class of `base` has no such rank. */
int32_t ifl_class_places(const uint16_t *base, int64_t n_elements,
                         const int32_t begin[IFL_CLASSES + 1], const uint32_t *ranks,
                         const int32_t *steps, uint32_t *at, int32_t *to_steps);

/* Test hook: without AVX2 from now on, or with it again where the host has it. */
void ifl_class_ranks_test_plain(int plain);

#endif

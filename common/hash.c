#include "common/hash.h"

#include <stdio.h>
#include <stdlib.h>
#ifdef IFL_HAVE_XXH_DISPATCH
#include <xxh_x86dispatch.h> /* the same names, the same hashes */
#else
#include <xxhash.h>
#endif

struct ifl_hasher {
    XXH3_state_t *state;
};

ifl_hash ifl_hash_bytes(const void *bytes, size_t n_bytes) {
    XXH128_hash_t h = XXH3_128bits(bytes, n_bytes);
    return (ifl_hash){h.low64, h.high64};
}

uint64_t ifl_hash64(const void *bytes, size_t n_bytes) {
    return XXH3_64bits(bytes, n_bytes);
}

void ifl_hash_text(ifl_hash hash, char out[33]) {
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)hash.high, (unsigned long long)hash.low);
}

ifl_hasher *ifl_hasher_create(void) {
    ifl_hasher *hasher = malloc(sizeof *hasher);
    if (!hasher) return NULL;
    hasher->state = XXH3_createState();
    if (!hasher->state) {
        free(hasher);
        return NULL;
    }
    XXH3_128bits_reset(hasher->state);
    return hasher;
}

void ifl_hasher_add(ifl_hasher *hasher, const void *bytes, size_t n_bytes) {
    XXH3_128bits_update(hasher->state, bytes, n_bytes);
}

ifl_hash ifl_hasher_finish(const ifl_hasher *hasher) {
    XXH128_hash_t h = XXH3_128bits_digest(hasher->state);
    return (ifl_hash){h.low64, h.high64};
}

void ifl_hasher_free(ifl_hasher *hasher) {
    if (!hasher) return;
    XXH3_freeState(hasher->state);
    free(hasher);
}

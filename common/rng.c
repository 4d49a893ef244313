#include "common/rng.h"

#include <math.h>

#include "common/status.h"

static void philox_round(uint32_t c[4], const uint32_t k[2]) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c[0];
    uint64_t p1 = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t c0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k[0];
    uint32_t c2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k[1];
    c[0] = c0;
    c[1] = (uint32_t)p1;
    c[2] = c2;
    c[3] = (uint32_t)p0;
}

static uint64_t rng_mix(uint64_t x) {
    /* The finaliser of SplitMix64 (Steele et al. 2014): spreads seed and stream over the key. */
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

void ifl_rng_words(const ifl_rng_key *key, uint64_t position, uint32_t index, uint32_t out[4]) {
    uint64_t k64 = rng_mix(key->seed + 0x9E3779B97F4A7C15u);
    uint32_t k[2] = {(uint32_t)k64, (uint32_t)(k64 >> 32)};
    out[0] = (uint32_t)key->stream;
    out[1] = (uint32_t)(key->stream >> 32);
    out[2] = (uint32_t)position;
    out[3] = (uint32_t)(position >> 32) ^ ((uint32_t)key->purpose << 24) ^ index;
    for (int round = 0; round < 10; round++) {
        philox_round(out, k);
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
}

uint64_t ifl_rng_u64(const ifl_rng_key *key, uint64_t position, uint32_t index) {
    uint32_t w[4];
    ifl_rng_words(key, position, index, w);
    return (uint64_t)w[1] << 32 | w[0];
}

float ifl_rng_uniform(const ifl_rng_key *key, uint64_t position, uint32_t index) {
    uint32_t w[4];
    ifl_rng_words(key, position, index, w);
    return ((float)(w[0] >> 9) + 0.5f) * 0x1p-23f;
}

uint64_t ifl_rng_below(const ifl_rng_key *key, uint64_t position, uint32_t index, uint64_t n) {
    IFL_ASSERT(n >= 1);
    return (uint64_t)(((unsigned __int128)ifl_rng_u64(key, position, index) * n) >> 64);
}

double ifl_rng_normal(const ifl_rng_key *key, uint64_t position, uint32_t index) {
    uint32_t w[4];
    ifl_rng_words(key, position, index, w);
    double u1 = ((double)w[0] + 0.5) * 0x1p-32;
    double u2 = ((double)w[1] + 0.5) * 0x1p-32;
    return sqrt(-2.0 * log(u1)) * cos(6.283185307179586 * u2);
}

uint64_t ifl_rng_permute(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i) {
    IFL_ASSERT(i < n);
    int half_bits = 1;
    while (((uint64_t)1 << (2 * half_bits)) < n)
        half_bits++;
    uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    ifl_rng_key key = {seed, epoch, IFL_RNG_ORDER};
    uint64_t x = i;
    do {
        uint64_t left = x >> half_bits, right = x & mask;
        for (uint32_t round = 0; round < 4; round++) {
            uint64_t f = ifl_rng_u64(&key, right, round) & mask;
            uint64_t next = left ^ f;
            left = right;
            right = next;
        }
        x = left << half_bits | right;
    } while (x >= n);
    return x;
}

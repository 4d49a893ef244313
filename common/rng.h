/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011). A draw is a pure function of (seed, stream, position, index); there is no state
 * that a batch, a thread or an order of calls could touch. */
#ifndef IFL_COMMON_RNG_H
#define IFL_COMMON_RNG_H

#include <stdint.h>

/* What a draw is for. Part of the counter, so that two purposes never share numbers. */
typedef enum {
    IFL_RNG_SAMPLE_BLOCK = 1, /* sampler: choice of the vocabulary block */
    IFL_RNG_SAMPLE_TOKEN = 2, /* sampler: choice inside a block; index = block */
    IFL_RNG_INIT = 3,         /* weight initialisation; stream = tensor, position = element */
    IFL_RNG_TASK = 4,         /* procedural tasks; stream = data set, position = task serial */
    IFL_RNG_ORDER = 5,        /* keyed permutations and shuffles */
    IFL_RNG_AUDIT = 6,        /* choice of audited trajectories */
    IFL_RNG_TEST = 7,
    IFL_RNG_EVAL = 8,
    IFL_RNG_LEDGER = 9,       /* choice of trajectories for the bias ledger, and of their positions */
} ifl_rng_purpose;

typedef struct ifl_rng_key {
    uint64_t seed;   /* of the run */
    uint64_t stream; /* e.g. ifl_trajectory_stream(task serial, sample) */
    ifl_rng_purpose purpose;
} ifl_rng_key;

/* Four independent 32-bit words for (key, position, index). `index` < 2^24. */
void ifl_rng_words(const ifl_rng_key *key, uint64_t position, uint32_t index, uint32_t out[4]);

uint64_t ifl_rng_u64(const ifl_rng_key *key, uint64_t position, uint32_t index);

/* Uniform in (0, 1): ((word >> 9) + 0.5) * 2^-23, never 0 or 1, exact in f32. */
float ifl_rng_uniform(const ifl_rng_key *key, uint64_t position, uint32_t index);

/* Uniform integer in [0, n) without modulo bias to speak of (64-bit multiply-shift). n >= 1. */
uint64_t ifl_rng_below(const ifl_rng_key *key, uint64_t position, uint32_t index, uint64_t n);

/* Standard normal in double by Box-Muller. For initialisation only: uses libm, not bit-portable. */
double ifl_rng_normal(const ifl_rng_key *key, uint64_t position, uint32_t index);

/* A keyed permutation of [0, n) (4-round Feistel with cycle walking): where item i goes. */
uint64_t ifl_rng_permute(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i);

#endif

/* The bf16 product instructions of this CPU, held against what they are published to compute
 * (kernels/ref/bf16_dot.h). Profile `bf16` is the same on every host only if they keep to it. */
#ifndef IFL_KERNELS_PROBE_ISA_H
#define IFL_KERNELS_PROBE_ISA_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/status.h"

typedef enum ifl_isa {
    IFL_ISA_VDPBF16PS, /* AVX512-BF16: c f32 [16]; a, b bf16 [16][2] */
    IFL_ISA_TDPBF16PS, /* AMX-BF16: c f32 [16][16]; a bf16 [16][32]; b bf16 [16 pairs of k][16][2]
                        */
    IFL_ISA_COUNT
} ifl_isa;

/* One instruction at its full size: c += a x b, in the shapes above. */
typedef void (*ifl_isa_fn)(float *c, const uint16_t *a, const uint16_t *b);

typedef struct ifl_isa_count {
    int64_t compared, differing; /* elements of c; two NaNs are equal */
    char first[768]; /* of the first that differs: kind of input, operands and both results in hex;
                        pairs that can be zero without ending the difference are left out */
} ifl_isa_count;

const char *ifl_isa_name(ifl_isa isa);

/* This host's own; else NULL, and *absent says why (a static text). */
ifl_isa_fn ifl_isa_native(ifl_isa isa, const char **absent);

/* Compares `fn` with the published text on n_rounds of each kind of input: plain, denormal
 * operands, denormal results, results at the edge of the denormals, cancelling, huge, signed zeros,
 * any bits. */
void ifl_isa_compare(ifl_isa isa, ifl_isa_fn fn, uint64_t seed, int64_t n_rounds,
                     ifl_isa_count *out);

/* The host has it and a few rounds (some ms) find no difference. */
bool ifl_isa_agrees(ifl_isa isa);

/* All of them at length (a few seconds each), one line each, after a line of the implementations
 * that can run here. IFL_PARITY when any differs; an absent one is no failure. */
ifl_status ifl_probe_isa(uint64_t seed, FILE *out, ifl_error *err);

#endif

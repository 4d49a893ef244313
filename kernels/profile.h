/* The numerics profiles by name, and the words of their orders. What the words and everything else
 * that decides a bit of a log-prob come to, under one hash, is kernels/contract.h. */
#ifndef IFL_KERNELS_PROFILE_H
#define IFL_KERNELS_PROFILE_H

#include "common/status.h"

/* Which arithmetic multiplies (kernels/ops.h has the orders). */
typedef enum ifl_profile {
    IFL_PROFILE_F32,  /* f32 activations, one ascending fma chain per output */
    IFL_PROFILE_BF16, /* activations rounded to bf16 at named points, x32 */
    IFL_PROFILE_COUNT
} ifl_profile;

const char *ifl_profile_name(ifl_profile profile);

/* "f32" or "bf16"; IFL_USAGE for anything else. */
ifl_status ifl_profile_parse(ifl_profile *out, const char *name, ifl_error *err);

/* The orders in words. A change of any kernel's order must change this text: it is one part of what
 * is hashed (kernels/contract.h), beside block sizes, tables, constants and computed values. */
const char *ifl_profile_text(ifl_profile profile);

#endif

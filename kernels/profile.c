#include "kernels/profile.h"

#include <string.h>

#define PROFILE_SHARED                                                                             \
    "row sums in lanes, then the tree 8,4,2,1; attention splits at absolute positions, exact "     \
    "split max, merge by fma in split order; log-sum-exp blocks at absolute positions, merged "    \
    "the same way; exp/log polynomials 1"

static const struct {
    const char *name, *text;
} profiles[IFL_PROFILE_COUNT] = {
    [IFL_PROFILE_F32] = {"f32",
                         "inflight f32 profile 2: bf16 weights, f32 activations; one ascending "
                         "fma chain per output; " PROFILE_SHARED "; gradual underflow"},
    [IFL_PROFILE_BF16] =
        {"bf16", "inflight bf16 profile 2: bf16 weights; products by x32, flushed: blocks of k, "
                 "even chain, odd chain, acc + (even + odd); score times scale flushed; rounded to "
                 "bf16: inputs of q, k, v, o, "
                 "gate, up, down and head, q after RoPE, K and V in the cache, p after its "
                 "sum; " PROFILE_SHARED "; gradual underflow elsewhere"},
};

const char *ifl_profile_name(ifl_profile profile) {
    return profiles[profile].name;
}

const char *ifl_profile_text(ifl_profile profile) {
    return profiles[profile].text;
}

ifl_status ifl_profile_parse(ifl_profile *out, const char *name, ifl_error *err) {
    for (int i = 0; i < IFL_PROFILE_COUNT; i++)
        if (strcmp(profiles[i].name, name) == 0) {
            *out = (ifl_profile)i;
            return IFL_OK;
        }
    return ifl_fail(err, IFL_USAGE, "numerics profile '%s', wanted f32 or bf16", name);
}

/* Profile `bf16` for AVX-512 with bf16 pair products; `f32` is avx512's. Nothing here may run
 * before ops.c has asked the CPU. */
#if defined(__x86_64__)
#define IFL_X32_DOT
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/x86/lanes_avx512.h"

#undef IFL_OPS_NAME
#define IFL_OPS_NAME "avx512bf16"
#define IFL_OPS_TABLE avx512bf16_table
#include "kernels/cpu/ops.inc.h"

const ifl_ops *ifl_ops_avx512bf16(ifl_profile profile) {
    return profile == IFL_PROFILE_BF16 ? &avx512bf16_table[profile] : ifl_ops_avx512(profile);
}
#else
typedef int ifl_ops_avx512bf16_absent; /* an empty translation unit is not C */
#endif

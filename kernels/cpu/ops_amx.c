/* Profile `bf16` on AMX: the matrix products go through tiles, all else is avx512bf16's, and `f32`
 * is avx512's. Nothing here may run before ops.c has asked the CPU and the kernel. */
#if defined(__x86_64__)
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/x86/tiles_amx.h"

#include <pthread.h>
#include <string.h>

#include "kernels/cpu/matmul_amx.inc.h"

static ifl_ops amx_table;
static pthread_once_t amx_table_once = PTHREAD_ONCE_INIT;

/* A single row is bound by reading the weights, and loading the tiles' shapes would be pure cost.
 */
static void matmul_amx(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w_panels,
                       int64_t m, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end) {
    if (m <= 1)
        ifl_ops_avx512bf16(IFL_PROFILE_BF16)
            ->matmul(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
    else
        matmul_amx_body(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
}

static void amx_table_make(void) {
    amx_table = *ifl_ops_avx512bf16(IFL_PROFILE_BF16);
    amx_table.name = "amx";
    amx_table.matmul = matmul_amx;
}

const ifl_ops *ifl_ops_amx(ifl_profile profile) {
    if (profile != IFL_PROFILE_BF16) return ifl_ops_avx512bf16(profile);
    pthread_once(&amx_table_once, amx_table_make);
    return &amx_table;
}
#else
typedef int ifl_ops_amx_absent; /* an empty translation unit is not C */
#endif

/* Which implementation runs: chosen once, at run time, by what the CPU can do. */
#include "kernels/ops.h"

#include "common/log.h"
#include "kernels/cpu/implementations.h"
#include "kernels/probe_isa.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define OPS_MAX 6

typedef const ifl_ops *(*ops_of_profile)(ifl_profile profile);

static atomic_int ops_chosen = -1; /* index among the available ones */

#if defined(__x86_64__)
/* Instructions that multiply bf16 have to do what they are published to do: where one does not, the
 * host has the next best, which keeps the bits. Asked once, in some ms. */
static bool ops_pairs_agree, ops_tiles_agree;
static pthread_once_t ops_asked = PTHREAD_ONCE_INIT;

static bool ops_ask_one(ifl_isa isa) {
    const char *absent;
    if (!ifl_isa_native(isa, &absent)) return false;
    if (ifl_isa_agrees(isa)) return true;
    ifl_warn("%s of this CPU is not what it is published to be: left out (inflight parity "
             "--probe-isa says more)",
             ifl_isa_name(isa));
    return false;
}

static void ops_ask(void) {
    ops_pairs_agree = ops_ask_one(IFL_ISA_VDPBF16PS);
    ops_tiles_agree = ops_pairs_agree && ops_ask_one(IFL_ISA_TDPBF16PS);
}
#endif

/* Slowest first. */
static int ops_available(ops_of_profile out[OPS_MAX]) {
    int n = 0;
    out[n++] = ifl_ops_ref;
    out[n++] = ifl_ops_generic;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out[n++] = ifl_ops_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        out[n++] = ifl_ops_avx512;
        pthread_once(&ops_asked, ops_ask);
        if (ops_pairs_agree) out[n++] = ifl_ops_avx512bf16;
        if (ops_tiles_agree) out[n++] = ifl_ops_amx;
    }
#endif
    return n;
}

const ifl_ops *ifl_ops_best(ifl_profile profile) {
    ops_of_profile all[OPS_MAX];
    int n = ops_available(all), chosen = atomic_load_explicit(&ops_chosen, memory_order_relaxed);
    return all[chosen >= 0 ? chosen : n - 1](profile);
}

int ifl_ops_list(ifl_profile profile, const ifl_ops **out, int max) {
    ops_of_profile all[OPS_MAX];
    int n_all = ops_available(all), n = 0;
    for (int i = 0; i < n_all && n < max; i++) {
        const ifl_ops *ops = all[i](profile);
        if (n == 0 || out[n - 1] != ops) out[n++] = ops; /* one that has nothing of its own here */
    }
    return n;
}

bool ifl_ops_force(const char *name) {
    ops_of_profile all[OPS_MAX];
    int n = ops_available(all);
    for (int i = 0; i < n; i++)
        if (strcmp(all[i](IFL_PROFILE_BF16)->name, name) == 0) {
            atomic_store_explicit(&ops_chosen, i, memory_order_relaxed);
            return true;
        }
    return false;
}

void ifl_pack_bf16(uint16_t *panels, const uint16_t *w, int64_t n, int64_t k) {
    memset(panels, 0, (size_t)ifl_panels_elements(n, k) * sizeof *panels);
    for (int64_t row = 0; row < n; row++)
        for (int64_t kk = 0; kk < k; kk++)
            panels[ifl_panel_row(row, k) + ifl_panel_k(kk)] = w[row * k + kk];
}

/* Which implementation runs: chosen once, at run time, by what the CPU can do. */
#include "kernels/ops.h"

#include "kernels/cpu/implementations.h"

#include <stdatomic.h>
#include <string.h>

#define OPS_MAX 4

static _Atomic(const ifl_ops *) ops_forced;

/* Slowest first. */
static int ops_available(const ifl_ops *out[OPS_MAX]) {
    int n = 0;
    out[n++] = ifl_ops_ref();
    out[n++] = ifl_ops_generic();
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out[n++] = ifl_ops_avx2();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        out[n++] = ifl_ops_avx512();
#endif
    return n;
}

const ifl_ops *ifl_ops_best(void) {
    const ifl_ops *chosen = atomic_load_explicit(&ops_forced, memory_order_relaxed);
    if (chosen) return chosen;
    const ifl_ops *all[OPS_MAX];
    chosen = all[ops_available(all) - 1];
    /* Several threads may come here at once: they store the same pointer. */
    atomic_store_explicit(&ops_forced, chosen, memory_order_relaxed);
    return chosen;
}

int ifl_ops_list(const ifl_ops **out, int max) {
    const ifl_ops *all[OPS_MAX];
    int n = ops_available(all);
    if (n > max) n = max;
    for (int i = 0; i < n; i++)
        out[i] = all[i];
    return n;
}

bool ifl_ops_force(const char *name) {
    const ifl_ops *all[OPS_MAX];
    int n = ops_available(all);
    for (int i = 0; i < n; i++)
        if (strcmp(all[i]->name, name) == 0) {
            atomic_store_explicit(&ops_forced, all[i], memory_order_relaxed);
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

/* May this process use AMX tiles: the CPU, the operating system's saved state, and Linux's consent,
 * which a process asks for once and which holds for all its threads. */
#if defined(__x86_64__)
#include "kernels/cpu/implementations.h"

#include <cpuid.h>
#include <stdint.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define CPUID_OSXSAVE (1u << 27)             /* leaf 1, ecx */
#define CPUID_AMX_BF16 (1u << 22)            /* leaf 7, edx */
#define CPUID_AMX_TILE (1u << 24)            /* leaf 7, edx */
#define XCR0_TILES ((1u << 17) | (1u << 18)) /* XTILECFG, XTILEDATA */
#define PERMISSION_REQUEST 0x1023            /* ARCH_REQ_XCOMP_PERM */
#define PERMISSION_TILE_DATA 18              /* XFEATURE_XTILEDATA */

static uint32_t permission_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

const char *ifl_amx_absent(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & CPUID_AMX_TILE) || !(d & CPUID_AMX_BF16))
        return "this CPU has no AMX-BF16";
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & CPUID_OSXSAVE) ||
        (permission_xcr0() & XCR0_TILES) != XCR0_TILES)
        return "the operating system does not save AMX tiles";
#if defined(__linux__)
    if (syscall(SYS_arch_prctl, PERMISSION_REQUEST, PERMISSION_TILE_DATA) != 0)
        return "the kernel refuses this process the use of AMX tiles (Linux 5.16 or later grants "
               "it)";
    return NULL;
#else
    return "permission for AMX tiles is asked for on Linux only";
#endif
}
#else
typedef int ifl_permission_amx_absent; /* an empty translation unit is not C */
#endif

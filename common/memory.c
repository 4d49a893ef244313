#include "common/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define HUGE_FROM (4 * HUGE_PAGE) /* smaller blocks would waste what alignment costs */

/* Large blocks ask for huge pages: one fault in place of 512, and weights that are read from end to
 * end at every step keep to few address translations. A kernel that has none to give ignores it. */
void *ifl_alloc(size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX - HUGE_PAGE) return NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    if (bytes == 0) bytes = 64;
    bool huge = bytes >= HUGE_FROM;
    void *p; /* not aligned_alloc: C17 wants a multiple of the alignment there */
    if (posix_memalign(&p, huge ? HUGE_PAGE : 64, bytes) != 0) return NULL;
    if (huge) madvise(p, bytes & ~(HUGE_PAGE - 1), MADV_HUGEPAGE);
    memset(p, 0, bytes);
    return p;
}

void ifl_free(void *p) {
    free(p);
}

ifl_status ifl_grow(void **p, size_t *cap, size_t n, size_t size, ifl_error *err) {
    if (n <= *cap) return IFL_OK;
    size_t want = *cap ? *cap : 16;
    while (want < n) {
        if (want > SIZE_MAX / 2) return ifl_fail(err, IFL_NOMEM, "out of memory: %zu elements", n);
        want *= 2;
    }
    size_t bytes;
    void *grown = __builtin_mul_overflow(want, size, &bytes) ? NULL : realloc(*p, bytes);
    if (!grown) return ifl_fail(err, IFL_NOMEM, "out of memory: %zu elements of %zu bytes", want, size);
    *p = grown;
    *cap = want;
    return IFL_OK;
}

static int64_t memory_status_kib(const char *key) {
    FILE *f = fopen("/proc/self/status", "r");
    if (!f) return 0;
    char line[256];
    long long kib = 0;
    size_t n = strlen(key);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, n) == 0 && sscanf(line + n, ": %lld", &kib) == 1) break;
    fclose(f);
    return kib;
}

int64_t ifl_memory_rss(void) {
    return memory_status_kib("VmRSS") * 1024;
}

int64_t ifl_memory_rss_peak(void) {
    return memory_status_kib("VmHWM") * 1024;
}

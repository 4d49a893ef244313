#include "common/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *ifl_alloc(size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX - 64) return NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    if (bytes == 0) bytes = 64;
    void *p = aligned_alloc(64, bytes);
    if (p) memset(p, 0, bytes);
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

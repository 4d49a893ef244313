#include <stdatomic.h>

#include "tests/fuzz/fuzz.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_HOOKS 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define HAVE_HOOKS 1
#endif

#ifdef HAVE_HOOKS
/* sanitizer/allocator_interface.h, which gcc doesn't bring along. */
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                              void (*on_free)(const volatile void *));
size_t __sanitizer_get_allocated_size(const volatile void *p);

static _Atomic int64_t live, peak; /* libFuzzer has a thread of its own */

static void on_malloc(const volatile void *p, size_t n) {
    (void)p;
    int64_t now = atomic_fetch_add(&live, (int64_t)n) + (int64_t)n;
    if (now > peak) peak = now;
}

static void on_free(const volatile void *p) {
    if (p) atomic_fetch_sub(&live, (int64_t)__sanitizer_get_allocated_size(p));
}

void fuzz_memory_begin(void) {
    static bool hooked;
    if (!hooked) hooked = __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) != 0;
    FUZZ_CHECK(hooked);
    live = peak = 0;
}

int64_t fuzz_memory_peak(void) {
    return peak;
}
#else
void fuzz_memory_begin(void) {}

int64_t fuzz_memory_peak(void) {
    return 0;
}
#endif

/* Checked allocation. Sizes are products that can overflow; these refuse instead. */
#ifndef IFL_COMMON_MEMORY_H
#define IFL_COMMON_MEMORY_H

#include "common/status.h"

/* n * size zeroed bytes, aligned to 64. Owned; free with ifl_free. NULL on overflow or lack of memory. */
void *ifl_alloc(size_t n, size_t size);
void ifl_free(void *p); /* NULL is fine */

/* Grows *p (from realloc/malloc, capacity *cap elements) to hold at least n elements of `size` bytes. */
ifl_status ifl_grow(void **p, size_t *cap, size_t n, size_t size, ifl_error *err);

/* The current and the peak resident set of this process, bytes; 0 if unknown. */
int64_t ifl_memory_rss(void);
int64_t ifl_memory_rss_peak(void);

#endif

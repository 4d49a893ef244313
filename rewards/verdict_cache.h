/* Verdicts that have been given, by the hash of what was asked: bounded in bytes, the one unused
 * for longest goes first. Not thread-safe. Inside rewards/ only. */
#ifndef IFL_REWARDS_VERDICT_CACHE_H
#define IFL_REWARDS_VERDICT_CACHE_H

#include "common/hash.h"
#include "common/status.h"

typedef struct ifl_verdict_cache ifl_verdict_cache;

/* Owned. Holds what fits into `bytes_max`, what it needs for an entry's bookkeeping included. */
ifl_status ifl_verdict_cache_create(ifl_verdict_cache **out, int64_t bytes_max, ifl_error *err);
void ifl_verdict_cache_free(ifl_verdict_cache *cache); /* NULL is fine */

/* What was put under this key, *n bytes of it; NULL when there is nothing. Valid until the next
 * put or clear. */
const uint8_t *ifl_verdict_cache_get(ifl_verdict_cache *cache, ifl_hash key, size_t *n);

/* Copies. Without memory, or for more than fits at all, nothing is kept. */
void ifl_verdict_cache_put(ifl_verdict_cache *cache, ifl_hash key, const uint8_t *bytes, size_t n);

void ifl_verdict_cache_clear(ifl_verdict_cache *cache);
int32_t ifl_verdict_cache_size(const ifl_verdict_cache *cache);  /* entries */
int64_t ifl_verdict_cache_bytes(const ifl_verdict_cache *cache); /* of them all */

#endif

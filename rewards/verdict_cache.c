#include "rewards/verdict_cache.h"

#include <stdlib.h>
#include <string.h>

#define BUCKET_BYTES 512 /* of bytes_max per bucket: about one entry each */
#define BUCKETS_MAX (1u << 20)

typedef struct entry {
    struct entry *next;          /* of its bucket */
    struct entry *newer, *older; /* by last use */
    ifl_hash key;
    size_t n;
    uint8_t bytes[];
} entry;

struct ifl_verdict_cache {
    entry **buckets; /* [n_buckets], a power of two */
    uint64_t n_buckets;
    entry *newest, *oldest;
    int32_t n_entries;
    int64_t n_bytes, bytes_max;
};

ifl_status ifl_verdict_cache_create(ifl_verdict_cache **out, int64_t bytes_max, ifl_error *err) {
    *out = NULL;
    ifl_verdict_cache *cache = calloc(1, sizeof *cache);
    if (!cache) return ifl_fail(err, IFL_NOMEM, "no memory for kept verdicts");
    cache->bytes_max = bytes_max;
    cache->n_buckets = 64;
    while (cache->n_buckets < BUCKETS_MAX && (int64_t)cache->n_buckets * BUCKET_BYTES < bytes_max)
        cache->n_buckets *= 2;
    cache->buckets = calloc(cache->n_buckets, sizeof *cache->buckets);
    if (!cache->buckets) {
        free(cache);
        return ifl_fail(err, IFL_NOMEM, "no memory for kept verdicts");
    }
    *out = cache;
    return IFL_OK;
}

static int64_t entry_bytes(const entry *e) {
    return (int64_t)(sizeof *e + e->n);
}

static entry **bucket_of(const ifl_verdict_cache *cache, ifl_hash key) {
    return &cache->buckets[key.low & (cache->n_buckets - 1)];
}

static void use_unlink(ifl_verdict_cache *cache, entry *e) {
    *(e->newer ? &e->newer->older : &cache->newest) = e->older;
    *(e->older ? &e->older->newer : &cache->oldest) = e->newer;
    e->newer = e->older = NULL;
}

static void use_push(ifl_verdict_cache *cache, entry *e) {
    e->older = cache->newest;
    *(e->older ? &e->older->newer : &cache->oldest) = e;
    cache->newest = e;
}

static void entry_drop(ifl_verdict_cache *cache, entry *e) {
    entry **at = bucket_of(cache, e->key);
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    use_unlink(cache, e);
    cache->n_entries--;
    cache->n_bytes -= entry_bytes(e);
    free(e);
}

static entry *entry_find(const ifl_verdict_cache *cache, ifl_hash key) {
    entry *e = *bucket_of(cache, key);
    while (e && !ifl_hash_equal(e->key, key))
        e = e->next;
    return e;
}

const uint8_t *ifl_verdict_cache_get(ifl_verdict_cache *cache, ifl_hash key, size_t *n) {
    entry *e = entry_find(cache, key);
    if (!e) return NULL;
    use_unlink(cache, e);
    use_push(cache, e);
    *n = e->n;
    return e->bytes;
}

void ifl_verdict_cache_put(ifl_verdict_cache *cache, ifl_hash key, const uint8_t *bytes, size_t n) {
    entry *e = entry_find(cache, key);
    if (e) entry_drop(cache, e);
    int64_t n_more = (int64_t)(sizeof *e + n);
    if (n_more > cache->bytes_max || !(e = malloc(sizeof *e + n))) return;
    while (cache->n_bytes + n_more > cache->bytes_max)
        entry_drop(cache, cache->oldest);
    entry **bucket = bucket_of(cache, key);
    *e = (entry){.next = *bucket, .key = key, .n = n};
    memcpy(e->bytes, bytes, n);
    *bucket = e;
    use_push(cache, e);
    cache->n_entries++;
    cache->n_bytes += n_more;
}

void ifl_verdict_cache_clear(ifl_verdict_cache *cache) {
    while (cache->oldest)
        entry_drop(cache, cache->oldest);
}

void ifl_verdict_cache_free(ifl_verdict_cache *cache) {
    if (!cache) return;
    ifl_verdict_cache_clear(cache);
    free(cache->buckets);
    free(cache);
}

int32_t ifl_verdict_cache_size(const ifl_verdict_cache *cache) {
    return cache->n_entries;
}

int64_t ifl_verdict_cache_bytes(const ifl_verdict_cache *cache) {
    return cache->n_bytes;
}

#include "actor/kv_cache.h"

#include "common/memory.h"

ifl_status ifl_kv_cache_create(ifl_kv_cache **out, int32_t n_pages, int32_t page_tokens,
                               ifl_error *err) {
    *out = NULL;
    if (n_pages < 1 || page_tokens < 1 || page_tokens > 1024 ||
        (page_tokens & (page_tokens - 1)) != 0)
        return ifl_fail(
            err, IFL_USAGE,
            "KV cache: %d pages of %d tokens, wanted at least one page of a power of two up "
            "to 1024",
            n_pages, page_tokens);
    ifl_kv_cache *cache = ifl_alloc(1, sizeof *cache);
    if (!cache) return ifl_fail(err, IFL_NOMEM, "KV cache: out of memory");
    cache->n_pages = cache->n_free = n_pages;
    cache->page_tokens = page_tokens;
    cache->free_pages = ifl_alloc((size_t)n_pages, sizeof *cache->free_pages);
    cache->refs = ifl_alloc((size_t)n_pages, sizeof *cache->refs);
    if (!cache->free_pages || !cache->refs) {
        ifl_kv_cache_free(cache);
        return ifl_fail(err, IFL_NOMEM, "KV cache: out of memory for %d pages", n_pages);
    }
    for (int32_t i = 0; i < n_pages; i++)
        cache->free_pages[i] = n_pages - 1 - i;
    *out = cache;
    return IFL_OK;
}

void ifl_kv_cache_free(ifl_kv_cache *cache) {
    if (!cache) return;
    ifl_free(cache->refs);
    ifl_free(cache->free_pages);
    ifl_free(cache);
}

int32_t ifl_kv_cache_take(ifl_kv_cache *cache) {
    if (cache->n_free == 0) return -1;
    int32_t page = cache->free_pages[--cache->n_free];
    IFL_ASSERT(cache->refs[page] == 0);
    cache->refs[page] = 1;
    return page;
}

void ifl_kv_cache_share(ifl_kv_cache *cache, int32_t page) {
    IFL_ASSERT(page >= 0 && page < cache->n_pages && cache->refs[page] > 0);
    cache->refs[page]++;
}

void ifl_kv_cache_release(ifl_kv_cache *cache, int32_t page) {
    IFL_ASSERT(page >= 0 && page < cache->n_pages && cache->refs[page] > 0);
    if (--cache->refs[page] == 0) cache->free_pages[cache->n_free++] = page;
}

int32_t ifl_kv_cache_pages(const ifl_kv_cache *cache, int32_t n_tokens) {
    return (int32_t)(((int64_t)n_tokens + cache->page_tokens - 1) / cache->page_tokens);
}

ifl_status ifl_page_table_create(ifl_page_table *table, int32_t n_pages_max, ifl_error *err) {
    *table = (ifl_page_table){.n_pages_max = n_pages_max};
    table->pages = ifl_alloc((size_t)n_pages_max, sizeof *table->pages);
    if (!table->pages)
        return ifl_fail(err, IFL_NOMEM, "page table: out of memory for %d pages", n_pages_max);
    return IFL_OK;
}

void ifl_page_table_free(ifl_page_table *table) {
    ifl_free(table->pages);
    *table = (ifl_page_table){0};
}

void ifl_page_table_push(ifl_page_table *table, int32_t page) {
    IFL_ASSERT(table->n_pages < table->n_pages_max);
    table->pages[table->n_pages++] = page;
}

void ifl_page_table_clear(ifl_page_table *table, ifl_kv_cache *cache) {
    /* Backwards, so that the next taker gets the pages in the order in which they were. */
    while (table->n_pages > 0)
        ifl_kv_cache_release(cache, table->pages[--table->n_pages]);
}

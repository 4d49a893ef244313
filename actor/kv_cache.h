/* Who owns which page of the KV store: a free list and reference counts. Pages are shared by the samples
 * of a group (their prompt's full pages) and never written while shared. */
#ifndef IFL_ACTOR_KV_CACHE_H
#define IFL_ACTOR_KV_CACHE_H

#include "common/status.h"

typedef struct ifl_kv_cache {
    int32_t n_pages, page_tokens;
    int32_t n_free;
    int32_t *free_pages; /* [n_pages] stack; the lowest page is handed out first */
    int32_t *refs;       /* [n_pages] 0 = free */
} ifl_kv_cache;

/* Pages of one sequence's positions, in order. Capacity is fixed when it is made. */
typedef struct ifl_page_table {
    int32_t *pages;
    int32_t n_pages, n_pages_max;
} ifl_page_table;

ifl_status ifl_kv_cache_create(ifl_kv_cache **out, int32_t n_pages, int32_t page_tokens, ifl_error *err);
void ifl_kv_cache_free(ifl_kv_cache *cache); /* NULL is fine */

/* A page with one reference, or -1 when none is free. */
int32_t ifl_kv_cache_take(ifl_kv_cache *cache);
void ifl_kv_cache_share(ifl_kv_cache *cache, int32_t page);   /* one more reference */
void ifl_kv_cache_release(ifl_kv_cache *cache, int32_t page); /* one less; free at 0 */

/* Pages that hold n_tokens positions. */
int32_t ifl_kv_cache_pages(const ifl_kv_cache *cache, int32_t n_tokens);

ifl_status ifl_page_table_create(ifl_page_table *table, int32_t n_pages_max, ifl_error *err);
void ifl_page_table_free(ifl_page_table *table);

/* Takes over one reference of `page`. */
void ifl_page_table_push(ifl_page_table *table, int32_t page);
/* Gives all references back. */
void ifl_page_table_clear(ifl_page_table *table, ifl_kv_cache *cache);

#endif

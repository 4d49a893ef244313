/* A small pool of pthreads for data-parallel loops. Workers spin 20 us at most, then wait on a futex,
 * so more threads than cores costs little. Which thread runs which range never decides a bit. */
#ifndef IFL_COMMON_THREAD_POOL_H
#define IFL_COMMON_THREAD_POOL_H

#include "common/status.h"

typedef struct ifl_thread_pool ifl_thread_pool;

#define IFL_THREADS_MAX 256

/* Called with disjoint ranges that cover [0, n); `thread` in [0, size) names a scratch slot that no
 * two concurrent calls share. */
typedef void (*ifl_range_fn)(void *context, int64_t begin, int64_t end, int thread);

/* Returns owned in *out. n_threads counts the caller: 1 means no extra threads; 0 means one per online
 * CPU of this process's affinity mask. */
ifl_status ifl_thread_pool_create(ifl_thread_pool **out, int n_threads, ifl_error *err);
void ifl_thread_pool_free(ifl_thread_pool *pool); /* NULL is fine */
int ifl_thread_pool_size(const ifl_thread_pool *pool); /* NULL counts as 1 */

/* Runs fn over [0, n) in ranges of `grain` (the last may be shorter), the caller included; returns
 * when all are done. One caller at a time per pool; not re-entrant. pool == NULL runs in the caller. */
void ifl_parallel_for(ifl_thread_pool *pool, int64_t n, int64_t grain, ifl_range_fn fn, void *context);

#endif

#include "common/thread_pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 20000

struct ifl_thread_pool {
    int n_threads;
    pthread_t threads[IFL_THREADS_MAX];
    /* The loop under way. Written by the caller before `generation` is published. */
    ifl_range_fn fn;
    void *context;
    int64_t n, grain;
    _Atomic int64_t next;        /* first index not yet claimed */
    _Atomic uint32_t generation; /* futex: counts the loops published */
    _Atomic uint32_t gate;       /* futex: GATE_OPEN | workers inside the loop under way */
    _Atomic uint32_t sleepers;   /* workers that wait in the kernel */
    _Atomic uint32_t caller_sleeps;
    _Atomic bool stop;
};

#define GATE_OPEN 0x80000000u

typedef struct worker_start {
    ifl_thread_pool *pool;
    int thread;
} worker_start;

static int64_t pool_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pool_futex_wait(_Atomic uint32_t *word, uint32_t expected) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

/* Call after the word has changed. Who counts himself in `sleepers` before he asks the kernel to
 * compare the word is either seen here or finds it changed. */
static void pool_futex_wake(_Atomic uint32_t *word, _Atomic uint32_t *sleepers) {
    if (atomic_load(sleepers) > 0)
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void pool_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Waits until *word != value, spinning at first. */
static void pool_wait_change(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *sleepers) {
    int64_t deadline = 0;
    for (int i = 0; atomic_load_explicit(word, memory_order_acquire) == value; i++) {
        if ((i & 63) != 63) {
            pool_pause();
            continue;
        }
        int64_t now = pool_now_ns();
        if (deadline == 0) deadline = now + SPIN_NS;
        if (now < deadline) continue;
        atomic_fetch_add(sleepers, 1);
        pool_futex_wait(word, value);
        atomic_fetch_sub(sleepers, 1);
    }
}

static void pool_run(ifl_thread_pool *pool, int thread) {
    for (;;) {
        int64_t begin = atomic_fetch_add_explicit(&pool->next, pool->grain, memory_order_relaxed);
        if (begin >= pool->n) return;
        int64_t end = begin + pool->grain < pool->n ? begin + pool->grain : pool->n;
        pool->fn(pool->context, begin, end, thread);
    }
}

/* True when the caller still takes workers in. Which loop it is does not matter: its fields are
 * read only after this, and stay as they are until every worker inside has left. */
static bool pool_enter(ifl_thread_pool *pool) {
    uint32_t gate = atomic_load_explicit(&pool->gate, memory_order_relaxed);
    while (gate & GATE_OPEN)
        if (atomic_compare_exchange_weak_explicit(&pool->gate, &gate, gate + 1,
                                                  memory_order_acq_rel, memory_order_relaxed))
            return true;
    return false;
}

static void *pool_worker(void *arg) {
    worker_start start = *(worker_start *)arg;
    free(arg);
    ifl_thread_pool *pool = start.pool;
    uint32_t seen = 0;
    for (;;) {
        pool_wait_change(&pool->generation, seen, &pool->sleepers);
        seen = atomic_load_explicit(&pool->generation, memory_order_acquire);
        if (atomic_load(&pool->stop)) return NULL;
        if (!pool_enter(pool)) continue;
        pool_run(pool, start.thread);
        if (atomic_fetch_sub(&pool->gate, 1) == 1)
            pool_futex_wake(&pool->gate, &pool->caller_sleeps);
    }
}

ifl_status ifl_thread_pool_create(ifl_thread_pool **out, int n_threads, ifl_error *err) {
    *out = NULL;
    if (n_threads == 0) {
        cpu_set_t set;
        n_threads = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
        if (n_threads > IFL_THREADS_MAX) n_threads = IFL_THREADS_MAX;
    }
    if (n_threads < 1 || n_threads > IFL_THREADS_MAX)
        return ifl_fail(err, IFL_USAGE, "thread pool: %d threads, wanted 1 to %d", n_threads,
                        IFL_THREADS_MAX);
    ifl_thread_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return ifl_fail(err, IFL_NOMEM, "thread pool: out of memory");
    pool->n_threads = 1;
    for (int i = 1; i < n_threads; i++) {
        worker_start *start = malloc(sizeof *start);
        int rc = start ? 0 : ENOMEM;
        if (start) {
            *start = (worker_start){pool, i};
            rc = pthread_create(&pool->threads[i], NULL, pool_worker, start);
            if (rc != 0) free(start);
        }
        if (rc != 0) {
            ifl_thread_pool_free(pool);
            return ifl_fail(err, IFL_NOMEM, "thread pool: cannot start thread %d of %d: %s", i + 1,
                            n_threads, strerror(rc));
        }
        pool->n_threads++;
    }
    *out = pool;
    return IFL_OK;
}

void ifl_thread_pool_free(ifl_thread_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->generation, 1);
    pool_futex_wake(&pool->generation, &pool->sleepers);
    for (int i = 1; i < pool->n_threads; i++)
        pthread_join(pool->threads[i], NULL);
    free(pool);
}

int ifl_thread_pool_size(const ifl_thread_pool *pool) {
    return pool ? pool->n_threads : 1;
}

void ifl_parallel_for(ifl_thread_pool *pool, int64_t n, int64_t grain, ifl_range_fn fn,
                      void *context) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    if (!pool || pool->n_threads == 1 || n <= grain) {
        fn(context, 0, n, 0);
        return;
    }
    pool->fn = fn;
    pool->context = context;
    pool->n = n;
    pool->grain = grain;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->gate, GATE_OPEN, memory_order_release);
    atomic_fetch_add(&pool->generation, 1);
    pool_futex_wake(&pool->generation, &pool->sleepers);
    pool_run(pool, 0);
    /* Workers inside must leave before the fields above may change again; one that the kernel has
     * not yet run is not waited for, it finds the gate closed. */
    uint32_t inside = atomic_fetch_and(&pool->gate, ~GATE_OPEN) & ~GATE_OPEN;
    while (inside > 0) {
        pool_wait_change(&pool->gate, inside, &pool->caller_sleeps);
        inside = atomic_load_explicit(&pool->gate, memory_order_acquire);
    }
}

#include "kernels/bench_peaks.h"

#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/memory.h"
#include "kernels/bench_figures.h"
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/peak_x86.h"

enum {
    TASKS_A_THREAD = 8,
    SLICES_MIN = 5,
    SLICES_MAX = 512,
    READ_FLOATS = 1 << 20, /* of one task: 4 MiB, so 32 MiB a thread and slice */
};
#define MEMORY_BYTES_UNKNOWN ((int64_t)512 << 20)
#define MEMORY_BYTES_MAX ((int64_t)4 << 30)
#define PRODUCT_SLICE_S 4e-3

typedef struct peaks {
    const char *instruction;
    int64_t (*product)(int64_t iterations, float *out);
    int64_t (*fma)(int64_t iterations, float *out);
    float (*read)(const float *x, int64_t n);
} peaks;

struct ifl_yardstick {
    peaks peaks;
    ifl_thread_pool *pool;
    int n_threads;
    float *memory; /* [n_tasks of the whole memory][READ_FLOATS] */
    int64_t n_read_tasks, next_read_task, first_read_task;
    int64_t product_iterations, fma_iterations;      /* of one task */
    int64_t (*loop)(int64_t iterations, float *out); /* the one that runs now */
    int64_t iterations;
    float sinks[IFL_THREADS_MAX *
                IFL_LANES]; /* a cache line a thread: keeps the work from being removed */
};

static peaks peaks_of(const ifl_ops *ops) {
#if defined(__x86_64__)
    bool bf16 = ops->profile == IFL_PROFILE_BF16;
    /* Tables are told apart by name: what is not there on a host has no table either. */
    if (strncmp(ops->name, "avx512", 6) == 0 || strstr(ops->name, "amx")) {
        peaks p = {"fma", ifl_peak_fma_avx512, ifl_peak_fma_avx512, ifl_peak_read_avx512};
        if (bf16 && strstr(ops->name, "amx")) {
            p.instruction = "bf16 tiles";
            p.product = ifl_peak_amx;
        } else if (bf16 && strcmp(ops->name, "avx512bf16") == 0) {
            p.instruction = "bf16 pairs";
            p.product = ifl_peak_avx512bf16;
        }
        return p;
    }
    if (strcmp(ops->name, "avx2") == 0)
        return (peaks){"fma", ifl_peak_fma_avx2, ifl_peak_fma_avx2, ifl_peak_read_avx2};
#endif
    return (peaks){"fma", ifl_peak_fma_generic, ifl_peak_fma_generic, ifl_peak_read_generic};
}

/* --- Slices
 * --------------------------------------------------------------------------------------- */

static void product_range(void *context, int64_t begin, int64_t end, int thread) {
    ifl_yardstick *y = context;
    for (int64_t i = begin; i < end; i++)
        y->loop(y->iterations, &y->sinks[thread * IFL_LANES]);
}

static double product_slice(ifl_yardstick *y, int64_t (*loop)(int64_t, float *),
                            int64_t iterations) {
    float scratch = 0;
    int64_t tasks = (int64_t)y->n_threads * TASKS_A_THREAD;
    double flop = (double)loop(1, &scratch) * (double)iterations * (double)tasks;
    y->loop = loop;
    y->iterations = iterations;
    double start = ifl_clock_s();
    ifl_parallel_for(y->pool, tasks, 1, product_range, y);
    return flop / (ifl_clock_s() - start);
}

double ifl_yardstick_product(ifl_yardstick *y) {
    return product_slice(y, y->peaks.product, y->product_iterations);
}

double ifl_yardstick_fma(ifl_yardstick *y) {
    return product_slice(y, y->peaks.fma, y->fma_iterations);
}

static void read_range(void *context, int64_t begin, int64_t end, int thread) {
    ifl_yardstick *y = context;
    for (int64_t i = begin; i < end; i++) {
        int64_t task = (y->first_read_task + i) % y->n_read_tasks;
        y->sinks[thread * IFL_LANES] += y->peaks.read(y->memory + task * READ_FLOATS, READ_FLOATS);
    }
}

/* Goes on where the last slice ended: nothing is read again before all else has been. */
double ifl_yardstick_read(ifl_yardstick *y) {
    int64_t tasks = (int64_t)y->n_threads * TASKS_A_THREAD;
    y->first_read_task = y->next_read_task;
    y->next_read_task = (y->next_read_task + tasks) % y->n_read_tasks;
    double start = ifl_clock_s();
    ifl_parallel_for(y->pool, tasks, 1, read_range, y);
    return 4.0 * READ_FLOATS * (double)tasks / (ifl_clock_s() - start);
}

/* --- The object
 * ----------------------------------------------------------------------------------- */

static void fill_range(void *context, int64_t begin, int64_t end, int thread) {
    ifl_yardstick *y = context;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        uint16_t *at = (uint16_t *)(y->memory + i * READ_FLOATS);
        for (int64_t j = 0; j < 2 * READ_FLOATS; j++)
            at[j] = (uint16_t)(0x3f00 + j % 127);
    }
}

/* Iterations after which one task takes its share of a slice: by the fastest of some tries, since
 * one that is interrupted would make all slices too short to be told from the start of the threads.
 */
static int64_t iterations_of(int64_t (*loop)(int64_t, float *)) {
    float scratch = 0;
    for (int64_t n = 64;; n *= 4) {
        double best = 1e9, want = PRODUCT_SLICE_S / TASKS_A_THREAD;
        for (int i = 0; i < 5; i++) {
            double start = ifl_clock_s();
            loop(n, &scratch);
            double s = ifl_clock_s() - start;
            if (s < best) best = s;
        }
        if (best * 4 < want && n < (int64_t)1 << 30) continue;
        int64_t scaled = (int64_t)((double)n * want / (best > 1e-9 ? best : 1e-9));
        return scaled < 1 ? 1 : scaled;
    }
}

/* Tasks of reading that make a memory no cache holds. */
static int64_t read_tasks_of(int n_threads, int64_t bytes_min) {
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    int64_t bytes = cache > 0 ? 4 * (int64_t)cache : MEMORY_BYTES_UNKNOWN;
    if (bytes > MEMORY_BYTES_MAX) bytes = MEMORY_BYTES_MAX;
    if (bytes < bytes_min) bytes = bytes_min;
    int64_t n = (bytes + 4 * READ_FLOATS - 1) / (4 * READ_FLOATS),
            least = (int64_t)n_threads * TASKS_A_THREAD;
    return n > least ? n : least;
}

ifl_status ifl_yardstick_create(ifl_yardstick **out, const ifl_ops *ops, ifl_thread_pool *pool,
                                int64_t bytes_min, ifl_error *err) {
    *out = NULL;
    ifl_yardstick *y = ifl_alloc(1, sizeof *y);
    if (!y) return ifl_fail(err, IFL_NOMEM, "bench: out of memory");
    y->peaks = peaks_of(ops);
    float scratch = 0;
    if (y->peaks.product(1, &scratch) == 0) { /* the kernel gives out no tile registers */
        y->peaks.product = y->peaks.fma;
        y->peaks.instruction = "fma";
    }
    y->pool = pool;
    y->n_threads = ifl_thread_pool_size(pool);
    y->n_read_tasks = read_tasks_of(y->n_threads, bytes_min);
    y->memory = ifl_alloc((size_t)(y->n_read_tasks * READ_FLOATS), sizeof(float));
    if (!y->memory) {
        ifl_free(y);
        return ifl_fail(err, IFL_NOMEM,
                        "bench: out of memory for %lld MiB to measure bandwidth with",
                        (long long)(y->n_read_tasks * READ_FLOATS * 4 >> 20));
    }
    y->product_iterations = iterations_of(y->peaks.product);
    y->fma_iterations = iterations_of(y->peaks.fma);
    *out = y;
    return IFL_OK;
}

void ifl_yardstick_free(ifl_yardstick *yardstick) {
    if (!yardstick) return;
    ifl_free(yardstick->memory);
    ifl_free(yardstick);
}

int64_t ifl_yardstick_bytes(const ifl_yardstick *yardstick) {
    return yardstick->n_read_tasks * READ_FLOATS * 4;
}

const void *ifl_yardstick_memory(ifl_yardstick *yardstick, int64_t *n_bytes) {
    ifl_parallel_for(yardstick->pool, yardstick->n_read_tasks, 1, fill_range, yardstick);
    *n_bytes = ifl_yardstick_bytes(yardstick);
    return yardstick->memory;
}

int64_t ifl_yardstick_cold_bytes(const ifl_yardstick *yardstick) {
    int64_t n = yardstick->n_read_tasks;
    return (yardstick->next_read_task + n / 2) % n * READ_FLOATS * 4;
}

const char *ifl_yardstick_instruction(const ifl_yardstick *yardstick) {
    return yardstick->peaks.instruction;
}

void ifl_yardstick_measure(ifl_yardstick *y, double seconds, ifl_roofline *out) {
    double product[SLICES_MAX], fma[SLICES_MAX], read[SLICES_MAX];
    bool same = y->peaks.product == y->peaks.fma;
    double start = ifl_clock_s();
    int64_t n = 0;
    while (n < SLICES_MIN || (n < SLICES_MAX && ifl_clock_s() - start < seconds)) {
        product[n] = ifl_yardstick_product(y);
        fma[n] = same ? product[n] : ifl_yardstick_fma(y);
        read[n] = ifl_yardstick_read(y);
        n++;
    }
    *out = (ifl_roofline){.instruction = y->peaks.instruction,
                          .product_flop_per_s = ifl_figures_of(product, n).upper_quartile,
                          .fma_flop_per_s = ifl_figures_of(fma, n).upper_quartile,
                          .read_bytes_per_s = ifl_figures_of(read, n).upper_quartile};
}

ifl_roofline ifl_roofline_mean(const ifl_roofline *a, const ifl_roofline *b) {
    return (ifl_roofline){.instruction = a->instruction,
                          .product_flop_per_s = (a->product_flop_per_s + b->product_flop_per_s) / 2,
                          .fma_flop_per_s = (a->fma_flop_per_s + b->fma_flop_per_s) / 2,
                          .read_bytes_per_s = (a->read_bytes_per_s + b->read_bytes_per_s) / 2};
}

/* Times the ops that decide the speed of actors and learner. The shapes are those of the default
 * small policy and of Gemma-3-270M. */
#include "kernels/bench_ops.h"

#include "common/clock.h"
#include "common/memory.h"
#include "common/thread_pool.h"
#include "kernels/cpu/implementations.h"

#include <stdlib.h>
#include <string.h>

enum {
    BENCH_RUNS_MIN = 3,
    BENCH_RUNS_MAX = 400,
    BENCH_READ_FLOATS = 1 << 23, /* per thread: 32 MiB, larger than its share of any cache */
};

typedef enum { BENCH_MATMUL, BENCH_DX, BENCH_DW, BENCH_ATTENTION } bench_kind;

/* MATMUL: y[m, n] = x[m, k] w[n, k]. DX: dX[m, n] = dY[m, k] W. DW: dW[m, n] += dY^T[m, k] X[k, n].
 * ATTENTION: m sequences, n rows each (of the last positions), k keys, head_dim, page_tokens. */
typedef struct bench_case {
    bench_kind kind;
    int64_t m, n, k;
    int64_t head_dim;
    int32_t page_tokens;
} bench_case;

static const bench_case bench_cases[] = {
    {BENCH_MATMUL, 1, 384, 128, 0, 0},      {BENCH_MATMUL, 8, 384, 128, 0, 0},
    {BENCH_MATMUL, 32, 384, 128, 0, 0},     {BENCH_MATMUL, 256, 384, 128, 0, 0},
    {BENCH_MATMUL, 32, 16, 128, 0, 0},      {BENCH_MATMUL, 1, 2048, 640, 0, 0},
    {BENCH_MATMUL, 4, 2048, 640, 0, 0},     {BENCH_MATMUL, 8, 2048, 640, 0, 0},
    {BENCH_MATMUL, 16, 2048, 640, 0, 0},    {BENCH_MATMUL, 32, 2048, 640, 0, 0},
    {BENCH_MATMUL, 64, 2048, 640, 0, 0},    {BENCH_MATMUL, 128, 2048, 640, 0, 0},
    {BENCH_MATMUL, 512, 2048, 640, 0, 0},   {BENCH_MATMUL, 1, 640, 2048, 0, 0},
    {BENCH_MATMUL, 8, 640, 2048, 0, 0},     {BENCH_MATMUL, 128, 640, 2048, 0, 0},
    {BENCH_MATMUL, 512, 640, 2048, 0, 0},   {BENCH_MATMUL, 1, 262144, 640, 0, 0},
    {BENCH_MATMUL, 8, 262144, 640, 0, 0},   {BENCH_MATMUL, 32, 262144, 640, 0, 0},
    {BENCH_DX, 256, 128, 384, 0, 0},        {BENCH_DX, 512, 640, 2048, 0, 0},
    {BENCH_DX, 512, 2048, 640, 0, 0},       {BENCH_DW, 384, 128, 256, 0, 0},
    {BENCH_DW, 2048, 640, 512, 0, 0},       {BENCH_DW, 640, 2048, 512, 0, 0},
    {BENCH_ATTENTION, 16, 1, 256, 32, 16},  {BENCH_ATTENTION, 16, 4, 512, 256, 16},
    {BENCH_ATTENTION, 1, 64, 512, 256, 16}, {BENCH_ATTENTION, 1, 64, 512, 256, 1},
    {BENCH_ATTENTION, 1, 64, 256, 32, 1},   {BENCH_ATTENTION, 4, 4, 8192, 256, 16},
};
enum { BENCH_CASES = sizeof bench_cases / sizeof *bench_cases };

typedef struct bench_run {
    const ifl_ops *ops;
    ifl_thread_pool *pool;
    const bench_case *now;
    int n_threads;
    float *a, *y; /* inputs and outputs of the products; queries and outputs of attention */
    uint16_t *w;  /* bf16 panels */
    float *b;     /* f32 panels, or the KV store, or the memory to read */
    int32_t *pages, *pos;
    int64_t peak_iterations;
    float sinks[IFL_THREADS_MAX * IFL_LANES]; /* a cache line per thread */
} bench_run;

/* --- What one repetition does ---------------------------------------------------------------- */

typedef struct bench_peaks {
    int64_t (*fma)(int64_t iterations, float *out);
    float (*read)(const float *x, int64_t n);
} bench_peaks;

static bench_peaks bench_peaks_of(const ifl_ops *ops) {
#if defined(__x86_64__)
    if (ops == ifl_ops_avx512(ops->profile) || ops == ifl_ops_avx512bf16(ops->profile))
        return (bench_peaks){ifl_peak_fma_avx512, ifl_peak_read_avx512};
    if (ops == ifl_ops_avx2(ops->profile))
        return (bench_peaks){ifl_peak_fma_avx2, ifl_peak_read_avx2};
#endif
    (void)ops;
    return (bench_peaks){ifl_peak_fma_generic, ifl_peak_read_generic};
}

static void bench_peak_range(void *context, int64_t begin, int64_t end, int thread) {
    bench_run *run = context;
    for (int64_t i = begin; i < end; i++)
        bench_peaks_of(run->ops).fma(run->peak_iterations, &run->sinks[thread * IFL_LANES]);
}

static void bench_read_range(void *context, int64_t begin, int64_t end, int thread) {
    bench_run *run = context;
    for (int64_t i = begin; i < end; i++)
        run->sinks[thread * IFL_LANES] +=
            bench_peaks_of(run->ops).read(run->b + i * BENCH_READ_FLOATS, BENCH_READ_FLOATS);
}

static void bench_product_range(void *context, int64_t begin, int64_t end, int thread) {
    bench_run *run = context;
    const bench_case *c = run->now;
    (void)thread;
    if (c->kind == BENCH_MATMUL)
        run->ops->matmul(run->y, c->n, run->a, c->k, run->w, c->m, c->n, c->k, begin, end);
    else if (c->kind == BENCH_DX)
        run->ops->matmul_f32(run->y, c->n, run->a, c->k, 1, run->b, c->m, c->n, c->k, begin, end,
                             false);
    else
        run->ops->matmul_f32(run->y, c->n, run->a, 1, c->m, run->b, c->m, c->n, c->k, begin, end,
                             true);
}

static void bench_attention_range(void *context, int64_t begin, int64_t end, int thread) {
    bench_run *run = context;
    const bench_case *c = run->now;
    (void)thread;
    int64_t n_pages = c->k / c->page_tokens, half = c->page_tokens * c->head_dim;
    for (int64_t s = begin; s < end; s++) {
        ifl_kv_view view = {run->b, run->b + half, 2 * half, run->pages + s * n_pages,
                            c->page_tokens};
        const float *q[IFL_ATTENTION_ROWS_MAX];
        float *o[IFL_ATTENTION_ROWS_MAX];
        for (int64_t r = 0; r < c->n; r++) {
            q[r] = run->a + (s * c->n + r) * c->head_dim;
            o[r] = run->y + (s * c->n + r) * c->head_dim;
        }
        run->ops->attention(o, q, run->pos, c->n, &view, c->head_dim, 0.0625f, 0, NULL);
    }
}

static void bench_repeat(bench_run *run) {
    const bench_case *c = run->now;
    if (c->kind == BENCH_ATTENTION) {
        ifl_parallel_for(run->pool, c->m, 1, bench_attention_range, run);
        return;
    }
    int64_t panels = ifl_panels(c->n), grain = (panels + run->n_threads - 1) / run->n_threads;
    ifl_parallel_for(run->pool, panels, grain, bench_product_range, run);
}

/* --- Timing and printing --------------------------------------------------------------------- */

typedef struct bench_result {
    double min, median, max; /* seconds per repetition */
    int n_runs;
} bench_result;

static int bench_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bench_result bench_time(bench_run *run, void (*repeat)(bench_run *), double seconds) {
    double times[BENCH_RUNS_MAX];
    double start = ifl_clock_s();
    repeat(run); /* warms caches and pages */
    double first = ifl_clock_s() - start;
    int inner =
        first > 2e-4 ? 1 : (int)(2e-4 / (first > 1e-8 ? first : 1e-8)) + 1; /* clock's grain */
    int n = 0;
    start = ifl_clock_s();
    while (n < BENCH_RUNS_MIN || (n < BENCH_RUNS_MAX && ifl_clock_s() - start < seconds)) {
        double t = ifl_clock_s();
        for (int i = 0; i < inner; i++)
            repeat(run);
        times[n++] = (ifl_clock_s() - t) / inner;
    }
    qsort(times, (size_t)n, sizeof *times, bench_compare);
    return (bench_result){times[0], times[n / 2], times[n - 1], n};
}

static void bench_repeat_peak(bench_run *run) {
    ifl_parallel_for(run->pool, run->n_threads, 1, bench_peak_range, run);
}
static void bench_repeat_read(bench_run *run) {
    ifl_parallel_for(run->pool, run->n_threads, 1, bench_read_range, run);
}

static double bench_flops(const bench_case *c) {
    double products = (double)c->m * (double)c->n * (double)c->k;
    return c->kind == BENCH_ATTENTION ? 4.0 * products * (double)c->head_dim : 2.0 * products;
}

/* Bytes that must come from memory or cache once. */
static double bench_bytes(const bench_case *c) {
    double m = (double)c->m, n = (double)c->n, k = (double)c->k;
    if (c->kind == BENCH_MATMUL) return 2.0 * n * k + 4.0 * m * (n + k);
    if (c->kind == BENCH_ATTENTION) return m * (double)c->head_dim * (8.0 * k + 8.0 * n);
    return 4.0 * (n * k + m * k + (c->kind == BENCH_DW ? 2.0 : 1.0) * m * n);
}

typedef struct bench_printer {
    FILE *out;
    bool json;
    const char *ops;
    int n_threads;
    double peak_flops, peak_bytes; /* per second, all threads */
} bench_printer;

static void bench_print(const bench_printer *p, const char *name, double flops, double bytes,
                        const bench_result *t) {
    double gflops = flops / t->median * 1e-9, gbytes = bytes / t->median * 1e-9;
    double of_flops = p->peak_flops > 0 ? flops / t->median / p->peak_flops : 0;
    double of_bytes = p->peak_bytes > 0 ? bytes / t->median / p->peak_bytes : 0;
    if (p->json)
        fprintf(p->out,
                "{\"case\":\"%s\",\"ops\":\"%s\",\"threads\":%d,\"runs\":%d,\"flops\":%.0f,"
                "\"bytes\":%.0f,\"seconds_min\":%.9g,\"seconds_median\":%.9g,\"seconds_max\":%.9g,"
                "\"gflops_median\":%.6g,\"gbytes_median\":%.6g,\"share_of_fma_peak\":%.4g,"
                "\"share_of_read_peak\":%.4g}\n",
                name, p->ops, p->n_threads, t->n_runs, flops, bytes, t->min, t->median, t->max,
                gflops, gbytes, of_flops, of_bytes);
    else
        fprintf(p->out, "%-44s %9.1f %9.1f %9.1f %6.0f%% %8.1f %6.0f%%\n", name,
                flops / t->max * 1e-9, gflops, flops / t->min * 1e-9, of_flops * 100, gbytes,
                of_bytes * 100);
    fflush(p->out);
}

static void bench_name(char *name, size_t size, const bench_case *c) {
    static const char *const kinds[] = {"matmul", "matmul_f32 dX", "matmul_f32 dW", "attention"};
    if (c->kind == BENCH_ATTENTION)
        snprintf(name, size, "%s %lldx%lld rows, %lld keys, D %lld, page %d", kinds[c->kind],
                 (long long)c->m, (long long)c->n, (long long)c->k, (long long)c->head_dim,
                 (int)c->page_tokens);
    else
        snprintf(name, size, "%s M %lld N %lld K %lld", kinds[c->kind], (long long)c->m,
                 (long long)c->n, (long long)c->k);
}

/* Gives the case its operands: values of order 1, no NaN, no subnormals. */
static ifl_status bench_allocate(bench_run *run, const bench_case *c, ifl_error *err) {
    int64_t a = c->m * c->k, b = 0, w = 0, y = c->m * c->n;
    if (c->kind == BENCH_ATTENTION) {
        a = y = c->m * c->n * c->head_dim;
        b = 2 * c->m * c->k * c->head_dim;
        int64_t n_pages = c->m * c->k / c->page_tokens;
        run->pages = ifl_alloc((size_t)n_pages, sizeof *run->pages);
        run->pos = ifl_alloc((size_t)c->n, sizeof *run->pos);
        if (!run->pages || !run->pos) return ifl_fail(err, IFL_NOMEM, "bench: page table");
        /* Neighbouring pages of a sequence lie apart, as they do in a running cache. */
        for (int64_t i = 0; i < n_pages; i++)
            run->pages[i] = (int32_t)(i * 7919 % n_pages);
        for (int64_t r = 0; r < c->n; r++)
            run->pos[r] = (int32_t)(c->k - 1);
    } else if (c->kind == BENCH_MATMUL) {
        w = ifl_panels_elements(c->n, c->k);
    } else {
        b = ifl_panels(c->n) * c->k * IFL_PANEL;
    }
    run->a = ifl_alloc((size_t)a, sizeof *run->a);
    run->y = ifl_alloc((size_t)y, sizeof *run->y);
    run->b = ifl_alloc((size_t)(b > 0 ? b : 1), sizeof *run->b);
    run->w = ifl_alloc((size_t)(w > 0 ? w : 1), sizeof *run->w);
    if (!run->a || !run->y || !run->b || !run->w)
        return ifl_fail(err, IFL_NOMEM, "bench: %lld + %lld + %lld floats and %lld weights",
                        (long long)a, (long long)y, (long long)b, (long long)w);
    for (int64_t i = 0; i < a; i++)
        run->a[i] = (float)(i % 251 - 125) * 0x1p-8f;
    for (int64_t i = 0; i < b; i++)
        run->b[i] = (float)(i % 241 - 120) * 0x1p-8f;
    for (int64_t i = 0; i < w; i++)
        run->w[i] = (uint16_t)(0x3f00 + i % 127);
    return IFL_OK;
}

static void bench_release(bench_run *run) {
    ifl_free(run->a);
    ifl_free(run->y);
    ifl_free(run->b);
    ifl_free(run->w);
    ifl_free(run->pages);
    ifl_free(run->pos);
    run->a = run->y = run->b = NULL;
    run->w = NULL;
    run->pages = run->pos = NULL;
}

static ifl_status bench_peaks_measure(bench_run *run, bench_printer *printer, double seconds,
                                      ifl_error *err) {
    run->peak_iterations = strcmp(run->ops->name, "generic") == 0 ? 20000 : 400000;
    bench_result t = bench_time(run, bench_repeat_peak, seconds);
    float scratch = 0.0f;
    double flops = (double)bench_peaks_of(run->ops).fma(1, &scratch) *
                   (double)run->peak_iterations * run->n_threads;
    printer->peak_flops = flops / t.median;
    bench_print(printer, "peak: independent fma chains", flops, 0, &t);

    int64_t n = (int64_t)BENCH_READ_FLOATS * run->n_threads;
    run->b = ifl_alloc((size_t)n, sizeof *run->b);
    if (!run->b) return ifl_fail(err, IFL_NOMEM, "bench: %lld floats to read", (long long)n);
    memset(run->b, 1, (size_t)n * sizeof *run->b); /* real pages, not the shared zero page */
    t = bench_time(run, bench_repeat_read, seconds);
    printer->peak_bytes = 4.0 * (double)n / t.median;
    bench_print(printer, "peak: reading memory", 0, 4.0 * (double)n, &t);
    bench_release(run);
    return IFL_OK;
}

ifl_status ifl_bench_ops(FILE *out, bool json, ifl_profile profile, int n_threads,
                         double seconds_per_case, ifl_error *err) {
    ifl_status st = IFL_OK;
    bench_run *run = ifl_alloc(1, sizeof *run);
    if (!run) return ifl_fail(err, IFL_NOMEM, "bench: its state");
    if (!(seconds_per_case > 0 && seconds_per_case <= 60)) {
        st = ifl_fail(err, IFL_USAGE, "bench: seconds per case must lie in (0, 60], got %g",
                      seconds_per_case);
        goto done;
    }
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&run->pool, n_threads, err), done);
    run->n_threads = ifl_thread_pool_size(run->pool);
    run->ops = ifl_ops_best(profile);
    bench_printer printer = {
        .out = out, .json = json, .ops = run->ops->name, .n_threads = run->n_threads};
    if (!json)
        fprintf(out,
                "ops %s, profile %s, %d threads; GFLOP/s min, median, max, share of peak; GB/s, "
                "share\n",
                run->ops->name, ifl_profile_name(profile), run->n_threads);
    IFL_TRY_GOTO(st, bench_peaks_measure(run, &printer, seconds_per_case, err), done);
    for (int i = 0; i < BENCH_CASES; i++) {
        char name[96];
        run->now = &bench_cases[i];
        IFL_TRY_GOTO(st, bench_allocate(run, run->now, err), done);
        bench_result t = bench_time(run, bench_repeat, seconds_per_case);
        bench_name(name, sizeof name, run->now);
        bench_print(&printer, name, bench_flops(run->now), bench_bytes(run->now), &t);
        bench_release(run);
    }
done:
    bench_release(run);
    ifl_thread_pool_free(run->pool);
    ifl_free(run);
    return st;
}

#include "kernels/bench_ops.h"

#include <string.h>

#include "common/clock.h"
#include "common/memory.h"
#include "kernels/bench_cases.h"
#include "kernels/bench_figures.h"
#include "kernels/bench_peaks.h"

enum { RUNS_MIN = 5, RUNS_MAX = 400, NAME_MAX_BYTES = 96 };
#define MEMORY_BYTES ((int64_t)512 << 20) /* a head's weights, and many copies of a layer's */
#define CLOCK_GRAIN_S                                                                              \
    2e-4 /* short ops are repeated inside one measurement until it lasts as long */

typedef struct ops_bench {
    const ifl_bench_ops_options *options;
    FILE *out;
    const ifl_ops *ops;
    ifl_thread_pool *pool;
    ifl_yardstick *yardstick;
} ops_bench;

typedef struct case_result {
    ifl_figures seconds; /* of one repetition */
    double product_flop_per_s, fma_flop_per_s, read_bytes_per_s;
    int64_t n_runs;
} case_result;

/* --- Timing
 * --------------------------------------------------------------------------------------- */

/* Each measurement follows a repetition that is not counted, since the slices of the yardsticks
 * have emptied the caches of what a model would have there. */
static void case_time(const ops_bench *b, ifl_bench_run *run, case_result *result) {
    double seconds[RUNS_MAX], product[RUNS_MAX], fma[RUNS_MAX], read[RUNS_MAX];
    double begin = ifl_clock_s();
    ifl_bench_run_once(run); /* first touch of the outputs */
    double once = ifl_clock_s();
    ifl_bench_run_once(run);
    once = ifl_clock_s() - once;
    int inner = once > CLOCK_GRAIN_S ? 1 : (int)(CLOCK_GRAIN_S / (once > 1e-8 ? once : 1e-8)) + 1;
    int64_t n = 0;
    while (n < RUNS_MIN || (n < RUNS_MAX && ifl_clock_s() - begin < b->options->seconds_per_case)) {
        product[n] = ifl_yardstick_product(b->yardstick);
        fma[n] = ifl_yardstick_fma(b->yardstick);
        read[n] = ifl_yardstick_read(b->yardstick);
        ifl_bench_run_seek(run, ifl_yardstick_cold_bytes(b->yardstick));
        ifl_bench_run_once(run);
        double start = ifl_clock_s();
        for (int i = 0; i < inner; i++)
            ifl_bench_run_once(run);
        seconds[n++] = (ifl_clock_s() - start) / inner;
    }
    *result = (case_result){.seconds = ifl_figures_of(seconds, n),
                            .product_flop_per_s = ifl_figures_of(product, n).upper_quartile,
                            .fma_flop_per_s = ifl_figures_of(fma, n).upper_quartile,
                            .read_bytes_per_s = ifl_figures_of(read, n).upper_quartile,
                            .n_runs = n};
}

/* --- Printing
 * ------------------------------------------------------------------------------------- */

/* The backward products are made of f32 fused multiply-adds in both profiles. */
static double case_peak(const ifl_bench_case *c, const case_result *r) {
    bool f32 = c->kind == IFL_BENCH_DX || c->kind == IFL_BENCH_DW;
    return f32 ? r->fma_flop_per_s : r->product_flop_per_s;
}

static void case_print_json(const ops_bench *b, const ifl_bench_case *c, const char *name,
                            const case_result *r, double roof_s) {
    double flop = ifl_bench_case_flop(c), bytes = ifl_bench_case_bytes(c, b->ops->profile);
    const ifl_figures *s = &r->seconds;
    fprintf(
        b->out,
        "{\"bench\":\"op\",\"case\":\"%s\",\"ops\":\"%s\",\"numerics\":\"%s\",\"threads\":%d,"
        "\"runs\":%lld,"
        "\"elements\":%lld,\"flop\":%.0f,\"bytes\":%.0f,\"from_memory\":%s,\"seconds_min\":%.6g,"
        "\"seconds_median\":%.6g,\"seconds_max\":%.6g,\"ns_per_element\":%.5g",
        name, b->ops->name, ifl_profile_name(b->ops->profile),
        c->kind == IFL_BENCH_ELEMENTWISE ? 1 : ifl_thread_pool_size(b->pool), (long long)r->n_runs,
        (long long)ifl_bench_case_elements(c), flop, bytes, c->streamed ? "true" : "false", s->min,
        s->median, s->max, s->median * 1e9 / (double)ifl_bench_case_elements(c));
    if (c->kind != IFL_BENCH_ELEMENTWISE)
        fprintf(b->out,
                ",\"gflop_per_s_min\":%.5g,\"gflop_per_s_median\":%.5g,\"gflop_per_s_max\":%.5g,"
                "\"gbyte_per_s_median\":%.5g,\"peak_gflop_per_s\":%.5g,\"read_gbyte_per_s\":%.5g,"
                "\"roofline_seconds\":%.6g,\"share_of_roofline\":%.4g",
                flop / s->max * 1e-9, flop / s->median * 1e-9, flop / s->min * 1e-9,
                bytes / s->median * 1e-9, case_peak(c, r) * 1e-9, r->read_bytes_per_s * 1e-9,
                roof_s, roof_s / s->median);
    fprintf(b->out, "}\n");
}

static void case_print(const ops_bench *b, const ifl_bench_case *c, const case_result *r) {
    char name[NAME_MAX_BYTES];
    double flop = ifl_bench_case_flop(c), bytes = ifl_bench_case_bytes(c, b->ops->profile);
    const ifl_figures *s = &r->seconds;
    double flop_s = flop / case_peak(c, r), bytes_s = c->streamed ? bytes / r->read_bytes_per_s : 0;
    double roof_s = flop_s > bytes_s ? flop_s : bytes_s;
    ifl_bench_case_name(name, sizeof name, c);
    if (b->options->json) {
        case_print_json(b, c, name, r, roof_s);
    } else if (c->kind == IFL_BENCH_ELEMENTWISE) {
        double per = 1e9 / (double)ifl_bench_case_elements(c);
        fprintf(b->out, "%-44s %9.3f %9.3f %9.3f ns per element, one thread\n", name, s->min * per,
                s->median * per, s->max * per);
    } else {
        fprintf(b->out, "%-44s %9.1f %9.1f %9.1f %9.1f", name, flop / s->max * 1e-9,
                flop / s->median * 1e-9, flop / s->min * 1e-9, case_peak(c, r) * 1e-9);
        if (c->streamed)
            fprintf(b->out, " %8.1f %8.1f", bytes / s->median * 1e-9, r->read_bytes_per_s * 1e-9);
        else
            fprintf(b->out, " %8s %8s", "cached", "-");
        fprintf(b->out, " %6.0f%%\n", roof_s / s->median * 100);
    }
    fflush(b->out);
}

static void head_print(const ops_bench *b) {
    if (b->options->json) return;
    fprintf(b->out,
            "ops %s, profile %s (%s), %d threads; peak and reading: upper quartiles of slices "
            "between the repetitions "
            "of each case; share = max(FLOP / peak, bytes / reading) / median time\n",
            b->ops->name, ifl_profile_name(b->ops->profile),
            ifl_yardstick_instruction(b->yardstick), ifl_thread_pool_size(b->pool));
    fprintf(b->out, "%-44s %9s %9s %9s %9s %8s %8s %7s\n", "", "GFLOP/s", "median", "max", "peak",
            "GB/s", "reading", "share");
}

static void roofline_print(const ops_bench *b, const char *when) {
    ifl_roofline r;
    ifl_yardstick_measure(b->yardstick, b->options->seconds_per_case, &r);
    if (b->options->json)
        fprintf(b->out,
                "{\"bench\":\"roofline\",\"when\":\"%s\",\"ops\":\"%s\",\"numerics\":\"%s\","
                "\"threads\":%d,"
                "\"instruction\":\"%s\",\"peak_gflop_per_s\":%.5g,\"fma_gflop_per_s\":%.5g,"
                "\"read_gbyte_per_s\":%.5g}\n",
                when, b->ops->name, ifl_profile_name(b->ops->profile),
                ifl_thread_pool_size(b->pool), r.instruction, r.product_flop_per_s * 1e-9,
                r.fma_flop_per_s * 1e-9, r.read_bytes_per_s * 1e-9);
    else
        fprintf(b->out,
                "peaks %s the cases: %.1f GFLOP/s of %s, %.1f of f32 fma, %.1f GB/s reading\n",
                when, r.product_flop_per_s * 1e-9, r.instruction, r.fma_flop_per_s * 1e-9,
                r.read_bytes_per_s * 1e-9);
    fflush(b->out);
}

/* --- The table
 * ------------------------------------------------------------------------------------ */

static bool case_wanted(const ifl_bench_case *c, const char *only) {
    char name[NAME_MAX_BYTES];
    ifl_bench_case_name(name, sizeof name, c);
    return !only || strstr(name, only) != NULL;
}

static ifl_status ops_bench_cases(const ops_bench *b, ifl_error *err) {
    int32_t n_cases;
    const ifl_bench_case *cases = ifl_bench_cases(&n_cases);
    int64_t n_bytes;
    const void *memory = ifl_yardstick_memory(b->yardstick, &n_bytes);
    for (int32_t i = 0; i < n_cases; i++) {
        ifl_bench_run *run = NULL;
        case_result result;
        if (!case_wanted(&cases[i], b->options->only)) continue;
        IFL_TRY(ifl_bench_run_create(&run, &cases[i], b->ops, b->pool, memory, n_bytes, err));
        case_time(b, run, &result);
        ifl_bench_run_free(run);
        case_print(b, &cases[i], &result);
    }
    return IFL_OK;
}

ifl_status ifl_bench_ops(FILE *out, const ifl_bench_ops_options *options, ifl_error *err) {
    int32_t n_cases, n_wanted = 0;
    const ifl_bench_case *cases = ifl_bench_cases(&n_cases);
    if (!(options->seconds_per_case > 0 && options->seconds_per_case <= 60))
        return ifl_fail(err, IFL_USAGE, "bench: seconds per case must lie in (0, 60], got %g",
                        options->seconds_per_case);
    for (int32_t i = 0; i < n_cases; i++)
        n_wanted += case_wanted(&cases[i], options->only);
    if (n_wanted == 0)
        return ifl_fail(err, IFL_NOTFOUND, "bench: no op case is called like \"%.60s\"",
                        options->only);
    ops_bench b = {.options = options, .out = out, .ops = ifl_ops_best(options->profile)};
    ifl_status st;
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&b.pool, options->n_threads, err), done);
    IFL_TRY_GOTO(st, ifl_yardstick_create(&b.yardstick, b.ops, b.pool, MEMORY_BYTES, err), done);
    roofline_print(&b, "before");
    head_print(&b);
    IFL_TRY_GOTO(st, ops_bench_cases(&b, err), done);
    roofline_print(&b, "after");
done:
    ifl_yardstick_free(b.yardstick);
    ifl_thread_pool_free(b.pool);
    return st;
}

/* --- For counters of instructions
 * ----------------------------------------------------------------- */

int32_t ifl_bench_ops_count(void) {
    int32_t n;
    ifl_bench_cases(&n);
    return n;
}

static ifl_bench_case case_to_repeat(int32_t i) {
    int32_t n;
    ifl_bench_case c = ifl_bench_cases(&n)[i];
    if (c.kind == IFL_BENCH_HEAD) c.n = IFL_VOCAB_BLOCK;
    return c;
}

void ifl_bench_ops_repeated(int32_t i, double *flop, int64_t *n_elements, char *name, size_t size) {
    ifl_bench_case c = case_to_repeat(i);
    *flop = ifl_bench_case_flop(&c);
    *n_elements = ifl_bench_case_elements(&c);
    ifl_bench_case_name(name, size, &c);
}

ifl_status ifl_bench_ops_repeat(int32_t i, ifl_profile profile, int64_t n_runs, ifl_error *err) {
    if (i < 0 || i >= ifl_bench_ops_count() || n_runs < 1)
        return ifl_fail(err, IFL_USAGE, "bench: case %d of %d, %lld times", i,
                        ifl_bench_ops_count(), (long long)n_runs);
    ifl_bench_case c = case_to_repeat(i);
    ifl_bench_run *run = NULL;
    IFL_TRY(ifl_bench_run_create(&run, &c, ifl_ops_best(profile), NULL, NULL, 0, err));
    for (int64_t n = 0; n < n_runs; n++)
        ifl_bench_run_once(run);
    ifl_bench_run_free(run);
    return IFL_OK;
}

/* The table of whole-model cases, each between two measurements of what the host can do. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/memory.h"
#include "deploy/cli/bench.h"
#include "deploy/cli/config_model.h"

/* --- Cases
 * ---------------------------------------------------------------------------------------- */

static const char *const kind_names[] = {"decode", "prefill", "train"};

const char *ifl_bench_model_kind_name(ifl_bench_model_kind kind) {
    return kind_names[kind];
}

void ifl_bench_model_case_name(char *out, size_t size, const ifl_bench_model_case *c) {
    if (c->kind != IFL_BENCH_TRAIN)
        snprintf(out, size, "%s", kind_names[c->kind]);
    else if (c->trained_tokens >= c->prompt_tokens - 1)
        snprintf(out, size, "train, all");
    else
        snprintf(out, size, "train, last %d", c->trained_tokens);
}

static ifl_bench_model_case train_case(const ifl_bench_args *a, int64_t trained) {
    int64_t all = a->sequence_tokens - 1; /* the first token has nothing to be predicted from */
    if (trained == 0 || trained > all) trained = all;
    return (ifl_bench_model_case){IFL_BENCH_TRAIN, (int32_t)a->sequences,
                                  (int32_t)a->sequence_tokens, 0, (int32_t)trained};
}

int32_t ifl_bench_model_cases(const ifl_bench_args *a, const char *what,
                              ifl_bench_model_case out[IFL_BENCH_CASES_MAX]) {
    static const int32_t decode_batches[] = {1, 8, 32, 64};
    bool all = strcmp(what, "model") == 0;
    int32_t n = 0, n_batches = a->n_batches ? a->n_batches : 4;
    const int32_t *batches = a->n_batches ? a->batches : decode_batches;
    if (all || strcmp(what, "decode") == 0)
        for (int32_t i = 0; i < n_batches; i++)
            out[n++] = (ifl_bench_model_case){IFL_BENCH_DECODE, batches[i],
                                              (int32_t)(a->prompt_tokens ? a->prompt_tokens : 32),
                                              (int32_t)(a->new_tokens ? a->new_tokens : 32), 0};
    if (all || strcmp(what, "prefill") == 0) {
        /* With more than one sequence the early ones decode beside the prefill of the others. */
        int32_t tokens = all || !a->prompt_tokens ? 512 : (int32_t)a->prompt_tokens;
        if (all || !a->n_batches) n_batches = 1;
        for (int32_t i = 0; i < n_batches; i++)
            out[n++] = (ifl_bench_model_case){IFL_BENCH_PREFILL,
                                              all || !a->n_batches ? 1 : batches[i], tokens, 0, 0};
    }
    if (strcmp(what, "train") == 0) out[n++] = train_case(a, a->trained_last);
    if (all) {
        out[n++] = train_case(a, 0);
        out[n++] = train_case(a, a->trained_last ? a->trained_last : (a->sequence_tokens + 3) / 4);
    }
    IFL_ASSERT(n <= IFL_BENCH_CASES_MAX);
    return n;
}

int64_t ifl_bench_model_case_positions(const ifl_bench_args *a, const ifl_bench_model_case *c) {
    if (c->kind == IFL_BENCH_TRAIN) return c->prompt_tokens;
    /* The first sequences decode while the last prompts are built: they need the room. */
    return c->prompt_tokens + c->new_tokens + 8 +
           (int64_t)c->batch * (2 + c->prompt_tokens / a->config->actor.prefill_chunk_tokens);
}

/* --- Printing
 * ------------------------------------------------------------------------------------- */

void ifl_bench_json_figures(json_t *object, const char *name, const ifl_figures *f) {
    char key[96];
    snprintf(key, sizeof key, "%s_min", name);
    json_object_set_new(object, key, json_real(f->min));
    snprintf(key, sizeof key, "%s_median", name);
    json_object_set_new(object, key, json_real(f->median));
    snprintf(key, sizeof key, "%s_max", name);
    json_object_set_new(object, key, json_real(f->max));
}

ifl_status ifl_bench_json_print(json_t *object, ifl_error *err) {
    char *text = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(7)) : NULL;
    json_decref(object);
    if (!text) return ifl_fail(err, IFL_NOMEM, "bench: out of memory for a line of output");
    puts(text);
    fflush(stdout);
    free(text);
    return IFL_OK;
}

typedef struct case_report {
    const ifl_bench_args *a;
    const ifl_bench_model_case *c;
    ifl_bench_cost cost;
    ifl_figures seconds; /* of one measurement */
    ifl_roofline before, after;
    int64_t peak_memory_bytes;
    const ifl_ops *ops;
} case_report;

/* Which of the two bounds it is in *by_bytes. */
static double roofline_seconds(const case_report *r, bool *by_bytes) {
    ifl_roofline mean = ifl_roofline_mean(&r->before, &r->after);
    double flop_s = r->cost.flop / mean.product_flop_per_s;
    double bytes_s = r->cost.from_memory ? r->cost.bytes / mean.read_bytes_per_s : 0;
    *by_bytes = bytes_s > flop_s;
    return *by_bytes ? bytes_s : flop_s;
}

static ifl_figures report_rates(const case_report *r) {
    double n = (double)r->cost.n_tokens;
    return (ifl_figures){
        .min = n / r->seconds.max, .median = n / r->seconds.median, .max = n / r->seconds.min};
}

static ifl_status report_print_json(const case_report *r, ifl_error *err) {
    const ifl_bench_model_case *c = r->c;
    ifl_figures rates = report_rates(r);
    bool by_bytes;
    double roof = roofline_seconds(r, &by_bytes);
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:I}", "bench",
                  kind_names[c->kind], "model", r->a->model, "ops", r->ops->name, "numerics",
                  ifl_profile_name(r->a->numerics), "threads", r->a->n_threads, "batch",
                  (int)c->batch, c->kind == IFL_BENCH_TRAIN ? "sequence_tokens" : "prompt_tokens",
                  (int)c->prompt_tokens, "new_tokens", (int)c->new_tokens, "trained_tokens",
                  (int)c->trained_tokens, "runs", (json_int_t)r->a->repeat);
    if (!o)
        return ifl_fail(err, IFL_FORMAT, "bench: the model's name is not UTF-8 or memory ran out");
    ifl_bench_json_figures(o, "tokens_per_s", &rates);
    ifl_bench_json_figures(o, "seconds", &r->seconds);
    json_object_set_new(o, "flop", json_real(r->cost.flop));
    json_object_set_new(o, "bytes", json_real(r->cost.bytes));
    json_object_set_new(o, "from_memory", json_boolean(r->cost.from_memory));
    json_object_set_new(o, "peak_instruction", json_string(r->before.instruction));
    json_object_set_new(o, "peak_gflop_per_s_before",
                        json_real(r->before.product_flop_per_s * 1e-9));
    json_object_set_new(o, "peak_gflop_per_s_after", json_real(r->after.product_flop_per_s * 1e-9));
    json_object_set_new(o, "read_gbyte_per_s_before", json_real(r->before.read_bytes_per_s * 1e-9));
    json_object_set_new(o, "read_gbyte_per_s_after", json_real(r->after.read_bytes_per_s * 1e-9));
    json_object_set_new(o, "roofline_seconds", json_real(roof));
    json_object_set_new(o, "bound", json_string(by_bytes ? "memory" : "flop"));
    json_object_set_new(o, "share_of_roofline", json_real(roof / r->seconds.median));
    json_object_set_new(o, "peak_memory_bytes", json_integer(r->peak_memory_bytes));
    return ifl_bench_json_print(o, err);
}

static ifl_status report_print(const case_report *r, ifl_error *err) {
    char name[48];
    const ifl_bench_model_case *c = r->c;
    if (r->a->json) return report_print_json(r, err);
    ifl_figures rates = report_rates(r);
    double s = r->seconds.median;
    bool by_bytes;
    double roof = roofline_seconds(r, &by_bytes);
    ifl_bench_model_case_name(name, sizeof name, c);
    printf("%-16s %5d %6d %9.1f %9.1f %9.1f %8.1f %6.0f/%-6.0f %6.1f %6.1f/%-6.1f %5.0f%% %-6s "
           "%6.2f\n",
           name, c->batch, c->kind == IFL_BENCH_DECODE ? c->new_tokens : c->prompt_tokens,
           rates.min, rates.median, rates.max, r->cost.flop / s * 1e-9,
           r->before.product_flop_per_s * 1e-9, r->after.product_flop_per_s * 1e-9,
           r->cost.bytes / s * 1e-9, r->before.read_bytes_per_s * 1e-9,
           r->after.read_bytes_per_s * 1e-9, roof / s * 100, by_bytes ? "memory" : "FLOP",
           (double)r->peak_memory_bytes / 1073741824.0);
    fflush(stdout);
    return IFL_OK;
}

static void head_print(const ifl_bench_args *a, const ifl_ops *ops) {
    if (a->json) return;
    printf(
        "%s, kernels %s, numerics %s, %d threads, %lld measurements after one that does not count\n"
        "peak and reading: measured before/after the case; share: of the time that its FLOP at "
        "peak or its bytes "
        "at reading speed take, whichever bounds it\n",
        a->model, ops->name, ifl_profile_name(a->numerics), a->n_threads, (long long)a->repeat);
    printf("%-16s %5s %6s %9s %9s %9s %8s %13s %6s %13s %6s %-6s %6s\n", "", "batch", "tokens",
           "tokens/s", "median", "max", "GFLOP/s", "peak", "GB/s", "reading", "share", "bound",
           "GiB");
}

/* --- The table
 * ------------------------------------------------------------------------------------ */

/* The kernel's high-water mark of this process starts again: a case is not charged with what came
 * before it. Where it cannot be set back, the mark is an upper bound. */
static void memory_peak_reset(void) {
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t ignored = write(fd, "5", 1);
    (void)ignored;
    close(fd);
}

static ifl_status model_cases(const ifl_bench_args *a, const ifl_bench_model_case *cases, int32_t n,
                              const ifl_loaded_model *m, ifl_thread_pool *pool,
                              ifl_yardstick *yardstick, ifl_error *err) {
    double seconds[IFL_BENCH_REPEATS_MAX];
    case_report r = {.a = a, .ops = ifl_ops_best(a->numerics)};
    ifl_yardstick_measure(yardstick, a->seconds, &r.after);
    head_print(a, r.ops);
    for (int32_t i = 0; i < n; i++) {
        const ifl_bench_model_case *c = &cases[i];
        r.c = c;
        r.before = r.after;
        memory_peak_reset();
        IFL_TRY((c->kind == IFL_BENCH_TRAIN ? ifl_bench_train_time
                                            : ifl_bench_engine_time)(a, c, m, pool, seconds, err));
        /* What the yardstick reads is resident all the time, and none of the case's. */
        r.peak_memory_bytes = ifl_memory_rss_peak() - ifl_yardstick_bytes(yardstick);
        ifl_yardstick_measure(yardstick, a->seconds, &r.after);
        r.seconds = ifl_figures_of(seconds, a->repeat);
        r.cost = ifl_bench_cost_of(m->model, c);
        IFL_TRY(report_print(&r, err));
    }
    return IFL_OK;
}

ifl_status ifl_bench_model(const ifl_bench_args *a, const ifl_bench_model_case *cases, int32_t n,
                           ifl_error *err) {
    ifl_loaded_model m = {0};
    ifl_thread_pool *pool = NULL;
    ifl_yardstick *yardstick = NULL;
    ifl_status st;
    int64_t positions = 0;
    for (int32_t i = 0; i < n; i++) {
        int64_t p = ifl_bench_model_case_positions(a, &cases[i]);
        positions = p > positions ? p : positions;
    }
    IFL_TRY_GOTO(st,
                 ifl_config_model_bare(&m, a->config,
                                       positions < (1 << 24) ? (int32_t)positions : 0, stderr, err),
                 done);
    if (m.model->config.max_positions < positions) {
        st = ifl_fail(err, IFL_LIMIT, "bench: needs %lld positions, the model has %d",
                      (long long)positions, m.model->config.max_positions);
        goto done;
    }
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&pool, a->n_threads, err), done);
    IFL_TRY_GOTO(st, ifl_yardstick_create(&yardstick, ifl_ops_best(a->numerics), pool, 0, err),
                 done);
    st = model_cases(a, cases, n, &m, pool, yardstick, err);
done:
    ifl_yardstick_free(yardstick);
    ifl_thread_pool_free(pool);
    ifl_loaded_model_clear(&m);
    return st;
}

/* inflight bench: tokens per second of decode, prefill and training, and the speed of single ops.
 */
#include <stdlib.h>
#include <string.h>

#include "actor/engine.h"
#include "common/clock.h"
#include "common/memory.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/options.h"
#include "kernels/bench_ops.h"
#include "learner/optimizer.h"

enum { BATCHES_MAX = 16, REPEATS_MAX = 100 };

typedef struct bench_args {
    const ifl_config *config;
    const char *model, *isa; /* model: what it is called in the output */
    int32_t n_batches, batches[BATCHES_MAX];
    int64_t prompt_tokens, new_tokens, repeat, sequences, sequence_tokens;
    double trained_share, seconds;
    bool json;
} bench_args;

enum {
    KEY_MODEL = 'm',
    KEY_THREADS = 't',
    KEY_BATCH = 'b',
    KEY_PROMPT = 'p',
    KEY_NEW = 'n',
    KEY_REPEAT = 'r',
    KEY_CHUNK = 1,
    KEY_JSON,
    KEY_ISA,
    KEY_SEQUENCES,
    KEY_LENGTH,
    KEY_PACK,
    KEY_SHARE,
    KEY_MEMORY,
    KEY_SECONDS
};

static const struct argp_option bench_options[] = {
    {"model", KEY_MODEL, "PATH", 0,
     "model.path: Hugging Face folder, GGUF file, or a shape for random weights: gemma-3-270m "
     "(default), tiny-llama, ...",
     0},
    {"batch", KEY_BATCH, "N,N,...", 0, "decode: sequences at once (default 1,8,32); prefill: 1", 0},
    {"prompt-tokens", KEY_PROMPT, "N", 0, "decode: 32, prefill: 512", 0},
    {"new-tokens", KEY_NEW, "N", 0, "decode: tokens of each sequence that are timed (default 32)",
     0},
    {"chunk-tokens", KEY_CHUNK, "N", 0,
     "actor.prefill_chunk_tokens: rows of one forward of prefill (default 256)", 0},
    {"sequences", KEY_SEQUENCES, "N", 0, "train: sequences of one optimizer step (default 8)", 0},
    {"sequence-tokens", KEY_LENGTH, "N", 0, "train: tokens of each (default 256)", 0},
    {"pack-tokens", KEY_PACK, "N", 0,
     "learner.pack_tokens: most rows of one forward and backward of train (default 1024)", 0},
    {"trained-share", KEY_SHARE, "X", 0,
     "train: share of positions whose log-prob trains (default 1)", 0},
    {"repeat", KEY_REPEAT, "N", 0, "measurements, after one that does not count (default 3)", 0},
    {"threads", KEY_THREADS, "N", 0,
     "actor.threads and, for train, learner.threads (default 0: one per CPU)", 0},
    {"isa", KEY_ISA, "NAME", 0, "ref, generic, avx2 or avx512 (default: the best)", 0},
    {"memory-gib", KEY_MEMORY, "X", 0,
     "memory.limit_gib: refuse to hold more than X GiB (default 0: no limit)", 0},
    {"seconds", KEY_SECONDS, "X", 0, "ops: time of each case (default 0.3)", 0},
    {"json", KEY_JSON, NULL, 0, "one JSON object a line", 0},
    {0}};

static const ifl_option_key bench_keys[] = {{KEY_MODEL, "model.path", NULL},
                                            {KEY_CHUNK, "actor.prefill_chunk_tokens", NULL},
                                            {KEY_PACK, "learner.pack_tokens", NULL},
                                            {KEY_THREADS, "actor.threads", NULL},
                                            {KEY_THREADS, "learner.threads", NULL},
                                            {KEY_MEMORY, "memory.limit_gib", NULL},
                                            {0}};

static ifl_status batches_parse(bench_args *a, const char *arg, ifl_error *err) {
    a->n_batches = 0;
    for (const char *c = arg;; c++) {
        char *end;
        long n = strtol(c, &end, 10);
        if (end == c || n < 1 || n > 1024 || a->n_batches == BATCHES_MAX || (*end && *end != ','))
            return ifl_fail(err, IFL_USAGE,
                            "--batch: got \"%.40s\", wanted up to %d of 1..1024 like 1,8,32", arg,
                            BATCHES_MAX);
        a->batches[a->n_batches++] = (int32_t)n;
        if (!*end) return IFL_OK;
        c = end;
    }
}

static ifl_status bench_option(int key, const char *arg, void *user, ifl_error *err) {
    bench_args *a = user;
    switch (key) {
    case KEY_BATCH:
        return batches_parse(a, arg, err);
    case KEY_PROMPT:
        return ifl_options_int("prompt-tokens", arg, 1, 1 << 20, &a->prompt_tokens, err);
    case KEY_NEW:
        return ifl_options_int("new-tokens", arg, 1, 1 << 16, &a->new_tokens, err);
    case KEY_SEQUENCES:
        return ifl_options_int("sequences", arg, 1, 4096, &a->sequences, err);
    case KEY_LENGTH:
        return ifl_options_int("sequence-tokens", arg, 2, 1 << 16, &a->sequence_tokens, err);
    case KEY_SHARE:
        return ifl_options_double("trained-share", arg, 0.001, 1, &a->trained_share, err);
    case KEY_REPEAT:
        return ifl_options_int("repeat", arg, 1, REPEATS_MAX, &a->repeat, err);
    case KEY_ISA:
        a->isa = arg;
        return IFL_OK;
    case KEY_SECONDS:
        return ifl_options_double("seconds", arg, 0.01, 60, &a->seconds, err);
    case KEY_JSON:
        a->json = true;
        return IFL_OK;
    default:
        return ifl_fail(err, IFL_USAGE, "unknown option");
    }
}

/* --- Figures
 * -------------------------------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_figures(const bench_args *a, const char *what, const char *model, int32_t batch,
                          int32_t tokens_each, int n_threads, double *rates, int64_t n) {
    qsort(rates, (size_t)n, sizeof *rates, compare_doubles);
    double median = n % 2 ? rates[n / 2] : (rates[n / 2 - 1] + rates[n / 2]) / 2;
    if (a->json)
        printf("{\"bench\":\"%s\",\"model\":\"%s\",\"kernels\":\"%s\",\"numerics\":\"%s\","
               "\"threads\":%d,\"batch\":%d,"
               "\"tokens_each\":%d,\"repeat\":%lld,\"tokens_per_s\":{\"min\":%.2f,\"median\":%.2f,"
               "\"max\":%.2f}}\n",
               what, model, ifl_ops_best(IFL_PROFILE_F32)->name, a->config->model.numerics,
               n_threads, batch, tokens_each, (long long)n, rates[0], median, rates[n - 1]);
    else
        printf("%-8s %6d %12d %12.1f %12.1f %12.1f\n", what, batch, tokens_each, rates[0], median,
               rates[n - 1]);
    fflush(stdout);
}

static void print_head(const bench_args *a, const char *model, int n_threads) {
    if (a->json) return;
    printf("%s, kernels %s, numerics %s, %d threads, %lld measurements, tokens/s\n", model,
           ifl_ops_best(IFL_PROFILE_F32)->name, a->config->model.numerics, n_threads,
           (long long)a->repeat);
    printf("%-8s %6s %12s %12s %12s %12s\n", "", "batch", "tokens each", "min", "median", "max");
}

/* --- Decode and prefill
 * --------------------------------------------------------------------------------- */

static ifl_status submit_random(ifl_engine *engine, const ifl_model *model, uint64_t serial,
                                int32_t n_prompt, int32_t n_new, int32_t *prompt, ifl_error *err) {
    ifl_rng_key key = {serial, 0, IFL_RNG_TEST};
    for (int32_t i = 0; i < n_prompt; i++)
        prompt[i] =
            (int32_t)ifl_rng_below(&key, (uint64_t)i, 0, (uint64_t)model->config.vocab_size);
    ifl_engine_request request = {
        .task_serial = serial,
        .task_id = "bench",
        .prompt = prompt,
        .n_prompt = n_prompt,
        .n_samples = 1,
        .sampling = {1, 0, 1},
        .max_new_tokens = n_new,
        .ignore_eos = true,
    };
    return ifl_engine_submit(engine, &request, err);
}

/* One measurement: all sequences prefilled, then `n_steps` steps in which every one decodes. */
static ifl_status measure_engine(ifl_engine *engine, const ifl_model *model, int32_t batch,
                                 int32_t n_prompt, int32_t n_steps, uint64_t *serial,
                                 int32_t *prompt, double *prefill_s, double *decode_s,
                                 ifl_error *err) {
    int32_t n_decoded = 0;
    /* The first ones decode while the last prompts are built, a step for each chunk. */
    for (int32_t i = 0; i < batch; i++)
        IFL_TRY(submit_random(engine, model, (*serial)++, n_prompt,
                              model->config.max_positions - n_prompt, prompt, err));
    double start = ifl_clock_s();
    while (n_decoded < batch)
        IFL_TRY(ifl_engine_step(engine, &n_decoded, err));
    double built = ifl_clock_s();
    for (int32_t i = 0; i < n_steps; i++) {
        IFL_TRY(ifl_engine_step(engine, &n_decoded, err));
        IFL_ASSERT(n_decoded == batch);
    }
    *prefill_s = built - start;
    *decode_s = ifl_clock_s() - built;
    ifl_engine_cancel(engine, 0);
    return IFL_OK;
}

static ifl_status bench_engine(const bench_args *a, const ifl_loaded_model *m, bool decode,
                               int32_t n_prompt, int32_t batch, ifl_thread_pool *pool,
                               ifl_error *err) {
    double rates[REPEATS_MAX];
    ifl_engine *engine = NULL;
    ifl_status st;
    uint64_t serial = 0;
    int32_t positions = m->model->config.max_positions,
            n_steps = decode ? (int32_t)a->new_tokens : 0;
    int32_t *prompt = ifl_alloc((size_t)n_prompt, sizeof *prompt);
    if (!prompt) return ifl_fail(err, IFL_NOMEM, "bench: out of memory");
    ifl_engine_options eo = {.sequences_max = batch,
                             .kv_tokens =
                                 (batch + 1) * (positions + 2 * a->config->actor.page_tokens),
                             .page_tokens = a->config->actor.page_tokens,
                             .prefill_chunk_tokens = a->config->actor.prefill_chunk_tokens};
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights", ifl_weights_bytes(m->model));
    ifl_memory_plan_add(&plan, "engine with KV cache",
                        ifl_engine_bytes(m->model, &eo, ifl_thread_pool_size(pool)));
    IFL_TRY_GOTO(st, ifl_memory_plan_check(&plan, a->config->memory.limit_gib, stderr, err), done);
    IFL_TRY_GOTO(st, ifl_engine_create(&engine, m->model, NULL, &eo, pool, NULL, err), done);
    IFL_TRY_GOTO(st, ifl_engine_swap(engine, m->weights, err), done);
    for (int64_t i = -1; i < a->repeat; i++) { /* the first warms up */
        double prefill_s, decode_s;
        IFL_TRY_GOTO(st,
                     measure_engine(engine, m->model, batch, n_prompt, n_steps, &serial, prompt,
                                    &prefill_s, &decode_s, err),
                     done);
        if (i < 0) continue;
        rates[i] =
            decode ? (double)batch * n_steps / decode_s : (double)batch * n_prompt / prefill_s;
    }
    print_figures(a, decode ? "decode" : "prefill", a->model, batch, decode ? n_steps : n_prompt,
                  ifl_thread_pool_size(pool), rates, a->repeat);
done:
    ifl_engine_free(engine);
    ifl_free(prompt);
    return st;
}

/* --- Training
 * ------------------------------------------------------------------------------------------- */

typedef struct train_bench {
    const bench_args *a;
    ifl_trainer *trainer;
    ifl_optimizer *optimizer;
    ifl_weights *weights;
    int32_t n_rows_max, seqs_each; /* of one pack */
    int32_t *tokens, *rows, *targets, *pages;
    ifl_batch_seq *seqs;
    float *temperatures, *coefficients;
    ifl_logprob *logprobs;
} train_bench;

static void train_bench_clear(train_bench *t) {
    ifl_free(t->logprobs);
    ifl_free(t->coefficients);
    ifl_free(t->temperatures);
    ifl_free(t->seqs);
    ifl_free(t->pages);
    ifl_free(t->targets);
    ifl_free(t->rows);
    ifl_free(t->tokens);
    ifl_optimizer_free(t->optimizer);
    ifl_trainer_free(t->trainer);
}

static ifl_status train_bench_open(train_bench *t, const bench_args *a, const ifl_loaded_model *m,
                                   ifl_thread_pool *pool, ifl_error *err) {
    *t = (train_bench){.a = a, .weights = m->weights};
    t->seqs_each = (int32_t)(a->config->learner.pack_tokens / a->sequence_tokens);
    if (t->seqs_each < 1) t->seqs_each = 1;
    if (t->seqs_each > a->sequences) t->seqs_each = (int32_t)a->sequences;
    t->n_rows_max = t->seqs_each * (int32_t)a->sequence_tokens;
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights", ifl_weights_bytes(m->model));
    ifl_memory_plan_add(&plan, "trainer",
                        ifl_trainer_bytes(m->model, t->n_rows_max,
                                          ifl_config_activation_bytes(a->config),
                                          ifl_thread_pool_size(pool)));
    ifl_memory_plan_add(&plan, "optimizer", ifl_optimizer_bytes(m->model));
    IFL_TRY(ifl_memory_plan_check(&plan, a->config->memory.limit_gib, stderr, err));
    IFL_TRY(ifl_trainer_create(&t->trainer, m->model, t->n_rows_max,
                               ifl_config_activation_bytes(a->config), pool, NULL, err));
    ifl_optimizer_options oo = {
        .learning_rate = 1e-6, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_clip = 1};
    IFL_TRY(ifl_optimizer_create(&t->optimizer, m->model, &oo, pool,
                                 ifl_ops_best(m->model->numerics), err));
    ifl_optimizer_start(t->optimizer, m->weights);
    size_t n = (size_t)t->n_rows_max + 1;
    t->tokens = ifl_alloc(n, sizeof *t->tokens);
    t->rows = ifl_alloc(n, sizeof *t->rows);
    t->targets = ifl_alloc(n, sizeof *t->targets);
    t->pages = ifl_alloc(n, sizeof *t->pages);
    t->seqs = ifl_alloc((size_t)t->seqs_each, sizeof *t->seqs);
    t->temperatures = ifl_alloc(n, sizeof *t->temperatures);
    t->coefficients = ifl_alloc(n, sizeof *t->coefficients);
    t->logprobs = ifl_alloc(n, sizeof *t->logprobs);
    if (!t->tokens || !t->rows || !t->targets || !t->pages || !t->seqs || !t->temperatures ||
        !t->coefficients || !t->logprobs)
        return ifl_fail(err, IFL_NOMEM, "bench: out of memory for %d rows", t->n_rows_max);
    return IFL_OK;
}

/* Forward and backward of n_seqs random sequences; targets are the last positions of each. */
static ifl_status train_bench_pack(train_bench *t, int32_t n_seqs, uint64_t serial,
                                   ifl_error *err) {
    int32_t length = (int32_t)t->a->sequence_tokens, n_rows = n_seqs * length, n_targets = 0;
    int32_t first = length - 1 - (int32_t)(t->a->trained_share * (length - 1) + 0.5);
    uint64_t vocab = (uint64_t)t->weights->model->config.vocab_size;
    ifl_rng_key key = {serial, 1, IFL_RNG_TEST};
    for (int32_t i = 0; i < n_rows; i++) {
        t->tokens[i] = (int32_t)ifl_rng_below(&key, (uint64_t)i, 0, vocab);
        t->pages[i] = i;
    }
    for (int32_t s = 0; s < n_seqs; s++) {
        t->seqs[s] = (ifl_batch_seq){s * length, length, 0, t->pages + s * length};
        for (int32_t p = first; p < length - 1; p++, n_targets++) {
            t->rows[n_targets] = s * length + p;
            t->targets[n_targets] = t->tokens[s * length + p + 1];
            t->temperatures[n_targets] = 1;
            t->coefficients[n_targets] = -1.0f / (float)n_rows;
        }
    }
    ifl_pack pack = {n_rows,  n_seqs,  n_targets,  t->tokens,
                     t->seqs, t->rows, t->targets, t->temperatures};
    IFL_TRY(ifl_trainer_forward(t->trainer, t->weights, &pack, t->logprobs, err));
    return ifl_trainer_backward(t->trainer, t->weights, &pack, t->coefficients, err);
}

/* One whole optimizer step, up to the bf16 weights of the next version. */
static ifl_status train_bench_step(train_bench *t, uint64_t serial, ifl_error *err) {
    ifl_trainer_zero_gradients(t->trainer);
    int32_t left = (int32_t)t->a->sequences;
    for (int32_t n; left > 0; left -= n) {
        n = left < t->seqs_each ? left : t->seqs_each;
        IFL_TRY(train_bench_pack(t, n, serial * 1000 + (uint64_t)left, err));
    }
    IFL_TRY(ifl_optimizer_step(t->optimizer, ifl_trainer_gradients(t->trainer), NULL, err));
    ifl_optimizer_publish(t->optimizer, t->weights, t->weights->version + 1);
    return IFL_OK;
}

static ifl_status bench_train(const bench_args *a, const ifl_loaded_model *m, ifl_thread_pool *pool,
                              ifl_error *err) {
    double rates[REPEATS_MAX];
    train_bench t;
    ifl_status st;
    IFL_TRY_GOTO(st, train_bench_open(&t, a, m, pool, err), done);
    print_head(a, a->model, ifl_thread_pool_size(pool));
    for (int64_t i = -1; i < a->repeat; i++) { /* the first warms up */
        double start = ifl_clock_s();
        IFL_TRY_GOTO(st, train_bench_step(&t, (uint64_t)(i + 1), err), done);
        if (i < 0) continue;
        rates[i] = (double)(a->sequences * a->sequence_tokens) / (ifl_clock_s() - start);
    }
    print_figures(a, "train", a->model, (int32_t)a->sequences, (int32_t)a->sequence_tokens,
                  ifl_thread_pool_size(pool), rates, a->repeat);
    fprintf(stderr, "peak memory: %.2f GiB\n", (double)ifl_memory_rss_peak() / 1073741824.0);
done:
    train_bench_clear(&t);
    return st;
}

/* --- Command
 * -------------------------------------------------------------------------------------------- */

static ifl_status bench_model(const bench_args *a, const char *what, ifl_error *err) {
    bool decode = strcmp(what, "decode") == 0, train = strcmp(what, "train") == 0;
    int32_t n_prompt = (int32_t)(a->prompt_tokens ? a->prompt_tokens : decode ? 32 : 512);
    /* The last prompts are built while the first sequences decode already: they need the room. */
    int64_t largest = 1;
    for (int32_t i = 0; i < a->n_batches; i++)
        largest = a->batches[i] > largest ? a->batches[i] : largest;
    int64_t positions = n_prompt + a->new_tokens + 8 +
                        largest * (2 + n_prompt / a->config->actor.prefill_chunk_tokens);
    if (train) positions = a->sequence_tokens;
    ifl_loaded_model m = {0};
    ifl_thread_pool *pool = NULL;
    const ifl_config *c = a->config;
    ifl_status st;
    IFL_TRY_GOTO(
        st,
        ifl_config_model_bare(&m, c, positions < (1 << 24) ? (int32_t)positions : 0, stderr, err),
        done);
    if (m.model->config.max_positions < positions) {
        st = ifl_fail(err, IFL_LIMIT, "bench: needs %lld positions, the model has %d",
                      (long long)positions, m.model->config.max_positions);
        goto done;
    }
    IFL_TRY_GOTO(st,
                 ifl_thread_pool_create(&pool, train ? c->learner.threads : c->actor.threads, err),
                 done);
    if (train) {
        st = bench_train(a, &m, pool, err);
        goto done;
    }
    print_head(a, a->model, ifl_thread_pool_size(pool));
    for (int32_t i = 0; i < a->n_batches; i++)
        IFL_TRY_GOTO(st, bench_engine(a, &m, decode, n_prompt, a->batches[i], pool, err), done);
done:
    ifl_thread_pool_free(pool);
    ifl_loaded_model_clear(&m);
    return st;
}

static ifl_status bench_work(const ifl_options *options, void *user, ifl_error *err) {
    bench_args *a = user;
    const char *what = options->args[0];
    static const int32_t defaults[] = {1, 8, 32};
    a->config = options->config;
    a->model = ifl_config_model_name(options->config);
    if (a->n_batches == 0) {
        /* Prefill alone: with more than one sequence the early ones decode beside it. */
        a->n_batches = strcmp(what, "prefill") == 0 ? 1 : 3;
        memcpy(a->batches, defaults, sizeof defaults);
    }
    if (a->isa && !ifl_ops_force(a->isa))
        return ifl_fail(err, IFL_USAGE, "--isa %s: this host cannot run it", a->isa);
    ifl_profile numerics;
    IFL_TRY(ifl_profile_parse(&numerics, a->config->model.numerics, err));
    if (strcmp(what, "ops") == 0)
        return ifl_bench_ops(stdout, a->json, numerics, a->config->actor.threads, a->seconds, err);
    if (strcmp(what, "decode") != 0 && strcmp(what, "prefill") != 0 && strcmp(what, "train") != 0)
        return ifl_fail(err, IFL_USAGE,
                        "bench: got \"%.40s\", wanted decode, prefill, train or ops", what);
    return bench_model(a, what, err);
}

int ifl_cmd_bench(int argc, char **argv) {
    static const char *const presets[] = {"model.path=gemma-3-270m", "actor.threads=0",
                                          "learner.threads=0", "learner.pack_tokens=1024", NULL};
    bench_args a = {.new_tokens = 32,
                    .repeat = 3,
                    .sequences = 8,
                    .sequence_tokens = 256,
                    .trained_share = 1,
                    .seconds = 0.3};
    const ifl_options_spec spec = {
        .doc =
            "Measures tokens per second: decode and prefill through the engine, train as forward, "
            "backward, AdamW and the packing of the next weights; ops times single kernels against "
            "this "
            "host's peaks.",
        .args_doc = "decode|prefill|train|ops",
        .extra = bench_options,
        .keys = bench_keys,
        .presets = presets,
        .on_option = bench_option,
        .user = &a,
        .n_args_min = 1,
        .n_args_max = 1,
        .work = bench_work,
    };
    return ifl_options_run(argc, argv, &spec);
}

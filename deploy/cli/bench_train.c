/* One whole optimizer step, timed: forward, backward, AdamW on f32 masters, and the packing of the
 * next weights. */
#include "common/clock.h"
#include "common/memory.h"
#include "deploy/cli/bench.h"
#include "learner/optimizer.h"

typedef struct train_bench {
    const ifl_bench_model_case *c;
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

static ifl_status train_bench_open(train_bench *t, const ifl_bench_args *a,
                                   const ifl_bench_model_case *c, const ifl_loaded_model *m,
                                   ifl_thread_pool *pool, ifl_error *err) {
    *t = (train_bench){.c = c, .weights = m->weights};
    t->seqs_each = (int32_t)(a->config->learner.pack_tokens / c->prompt_tokens);
    if (t->seqs_each < 1) t->seqs_each = 1;
    if (t->seqs_each > c->batch) t->seqs_each = c->batch;
    if ((int64_t)t->seqs_each * c->prompt_tokens > INT32_MAX / 2)
        return ifl_fail(err, IFL_LIMIT, "bench: packs of %d sequences of %d tokens are too large",
                        t->seqs_each, c->prompt_tokens);
    t->n_rows_max = t->seqs_each * c->prompt_tokens;
    int64_t activation_bytes = ifl_config_activation_bytes(a->config);
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights", ifl_weights_bytes(m->model));
    ifl_memory_plan_add(
        &plan, "trainer",
        ifl_trainer_bytes(m->model, t->n_rows_max, activation_bytes, ifl_thread_pool_size(pool)));
    ifl_memory_plan_add(&plan, "optimizer", ifl_optimizer_bytes(m->model));
    IFL_TRY(ifl_memory_plan_check(&plan, a->config->memory.limit_gib, stderr, err));
    IFL_TRY(ifl_trainer_create(&t->trainer, m->model, t->n_rows_max, activation_bytes, pool, NULL,
                               err));
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

/* Forward and backward of n_seqs random sequences; targets are the last trained_tokens of each,
 * every one predicted from the position before it. */
static ifl_status train_bench_pack(train_bench *t, int32_t n_seqs, uint64_t serial,
                                   ifl_error *err) {
    int32_t length = t->c->prompt_tokens, n_rows = n_seqs * length, n_targets = 0;
    int32_t first = length - 1 - t->c->trained_tokens;
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
    ifl_pack pack = {.n_rows = n_rows,
                     .n_seqs = n_seqs,
                     .n_targets = n_targets,
                     .tokens = t->tokens,
                     .seqs = t->seqs,
                     .target_rows = t->rows,
                     .target_tokens = t->targets,
                     .temperatures = t->temperatures};
    IFL_TRY(ifl_trainer_forward(t->trainer, t->weights, &pack, t->logprobs, err));
    return ifl_trainer_backward(t->trainer, t->weights, &pack, t->coefficients, err);
}

/* Up to the bf16 weights of the next version. */
static ifl_status train_bench_step(train_bench *t, uint64_t serial, ifl_error *err) {
    ifl_trainer_zero_gradients(t->trainer);
    int32_t left = t->c->batch;
    for (int32_t n; left > 0; left -= n) {
        n = left < t->seqs_each ? left : t->seqs_each;
        IFL_TRY(train_bench_pack(t, n, serial * 1000000 + (uint64_t)left, err));
    }
    IFL_TRY(ifl_optimizer_step(t->optimizer, ifl_trainer_gradients(t->trainer), NULL, err));
    ifl_optimizer_publish(t->optimizer, t->weights, t->weights->version + 1);
    return IFL_OK;
}

ifl_status ifl_bench_train_time(const ifl_bench_args *a, const ifl_bench_model_case *c,
                                const ifl_loaded_model *m, ifl_thread_pool *pool, double *seconds,
                                ifl_error *err) {
    train_bench t;
    ifl_status st;
    IFL_TRY_GOTO(st, train_bench_open(&t, a, c, m, pool, err), done);
    for (int64_t i = -1; i < a->repeat; i++) { /* the first warms up */
        double start = ifl_clock_s();
        IFL_TRY_GOTO(st, train_bench_step(&t, (uint64_t)(i + 1), err), done);
        if (i >= 0) seconds[i] = ifl_clock_s() - start;
    }
done:
    train_bench_clear(&t);
    return st;
}

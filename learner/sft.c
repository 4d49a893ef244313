#include "learner/sft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/memory.h"
#include "common/rng.h"

/* --- A new policy
 * ----------------------------------------------------------------------------------- */

#define GEMMA_WINDOW 512 /* sliding layers of a new Gemma 3; every sixth layer is full */
#define GEMMA_FULL_EVERY 6
#define GEMMA_LOCAL_THETA 1e4

static void init_family(ifl_model_config *c) {
    switch (c->family) {
    case IFL_FAMILY_LLAMA:
        break;
    case IFL_FAMILY_QWEN2:
        c->qkv_bias = true;
        break;
    case IFL_FAMILY_QWEN3:
        c->qk_norm = true;
        break;
    case IFL_FAMILY_GEMMA3:
        c->qk_norm = c->norm_plus_one = c->sandwich_norms = true;
        c->activation = IFL_ACT_GELU_TANH;
        c->embed_scale = sqrtf((float)c->d_model);
        c->sliding_window = GEMMA_WINDOW;
        c->rope_local.theta = GEMMA_LOCAL_THETA;
        for (int32_t l = 0; l < c->n_layers; l++)
            c->layer_is_sliding[l] = (l + 1) % GEMMA_FULL_EVERY != 0;
        break;
    }
}

ifl_status ifl_init_model_config(ifl_model_config *out, const ifl_config *config,
                                 int32_t vocab_size, int32_t bos_id, int32_t eos_id,
                                 ifl_error *err) {
    static const ifl_family families[] = {IFL_FAMILY_LLAMA, IFL_FAMILY_QWEN2, IFL_FAMILY_QWEN3,
                                          IFL_FAMILY_GEMMA3};
    const ifl_family *family = NULL;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(config->model.family, ifl_family_name(families[i])) == 0) family = &families[i];
    if (!family)
        return ifl_fail(err, IFL_USAGE,
                        "model.family: got \"%s\", wanted llama, qwen2, qwen3 or gemma3",
                        config->model.family);
    if (config->model.n_layers > IFL_LAYERS_MAX)
        return ifl_fail(err, IFL_LIMIT, "model.n_layers: got %d, limit %d", config->model.n_layers,
                        IFL_LAYERS_MAX);
    ifl_rope rope = {.kind = IFL_ROPE_DEFAULT,
                     .theta = config->model.rope_theta,
                     .factor = 1.0,
                     .attention_factor = 1.0};
    *out = (ifl_model_config){
        .family = *family,
        .vocab_size = vocab_size,
        .d_model = config->model.d_model,
        .n_layers = config->model.n_layers,
        .n_heads = config->model.n_heads,
        .n_kv_heads = config->model.n_kv_heads,
        .head_dim = config->model.head_dim,
        .d_ff = config->model.d_ff,
        .max_positions = config->model.max_positions,
        .norm_eps = 1e-6f,
        .activation = IFL_ACT_SILU,
        .rope = rope,
        .rope_local = rope,
        .tied_head = config->model.tied_head,
        .embed_scale = 1.0f,
        .attention_scale = 1.0f / sqrtf((float)config->model.head_dim),
        .bos_id = bos_id,
        .n_eos = eos_id >= 0,
    };
    if (eos_id >= 0) out->eos_ids[0] = eos_id;
    init_family(out);
    return ifl_model_config_check(out, err);
}

static bool name_has(const char *name, const char *part) {
    return strstr(name, part) != NULL;
}

void ifl_init_masters(const ifl_model *model, uint64_t seed, float *masters) {
    for (int32_t p = 0; p < model->n_params; p++) {
        const ifl_param *param = &model->params[p];
        const char *name = param->spec.name;
        int64_t n = param->spec.rows * param->spec.cols;
        float *w = masters + param->offset;
        if (!param->spec.is_matrix) {
            bool is_gain = name_has(name, "norm") && !model->config.norm_plus_one;
            for (int64_t i = 0; i < n; i++)
                w[i] = is_gain ? 1.0f : 0.0f;
            continue;
        }
        double deviation = 1.0 / sqrt((double)param->spec.cols);
        if (name_has(name, "embed_tokens"))
            deviation = model->config.tied_head ? 0.02 : 0.5;
        else if (name_has(name, "lm_head"))
            deviation = 0.02;
        else if (name_has(name, "o_proj") || name_has(name, "down_proj"))
            deviation *= 0.5;
        ifl_rng_key key = {seed, (uint64_t)p, IFL_RNG_INIT};
        for (int64_t i = 0; i < n; i++)
            w[i] = (float)(deviation * ifl_rng_normal(&key, (uint64_t)i, 0));
    }
}

/* --- Examples and batches
 * --------------------------------------------------------------------------- */

typedef struct pool_entry {
    ifl_sft_example example;
    uint64_t serial;
} pool_entry;

struct ifl_sft_batches {
    int32_t batch_tokens;
    uint64_t seed;
    ifl_sft_example_fn example;
    void *context;
    uint64_t n_pools; /* filled so far */
    pool_entry pool[IFL_SFT_POOL];
    int32_t cuts[IFL_SFT_POOL + 1]; /* batch b holds pool[cuts[b] .. cuts[b + 1]) */
    int32_t n_batches, n_taken;
    /* Columns of the batch last given out: [batch_tokens] each. */
    int32_t *tokens, *pages, *target_rows, *target_tokens;
    float *temperatures;
    ifl_batch_seq *seqs;
};

ifl_status ifl_sft_batches_create(ifl_sft_batches **out, int32_t batch_tokens, uint64_t seed,
                                  ifl_sft_example_fn example, void *context, ifl_error *err) {
    *out = NULL;
    if (batch_tokens < 2 || batch_tokens > IFL_SFT_POOL * (1 << 20))
        return ifl_fail(err, IFL_USAGE, "sft.batch_tokens: got %d, wanted 2 to %d", batch_tokens,
                        IFL_SFT_POOL * (1 << 20));
    ifl_sft_batches *b = ifl_alloc(1, sizeof *b);
    if (!b) return ifl_fail(err, IFL_NOMEM, "sft: out of memory");
    size_t n = (size_t)batch_tokens;
    b->batch_tokens = batch_tokens;
    b->seed = seed;
    b->example = example;
    b->context = context;
    b->tokens = ifl_alloc(n, sizeof *b->tokens);
    b->pages = ifl_alloc(n, sizeof *b->pages);
    b->target_rows = ifl_alloc(n, sizeof *b->target_rows);
    b->target_tokens = ifl_alloc(n, sizeof *b->target_tokens);
    b->temperatures = ifl_alloc(n, sizeof *b->temperatures);
    b->seqs = ifl_alloc(n, sizeof *b->seqs);
    if (!b->tokens || !b->pages || !b->target_rows || !b->target_tokens || !b->temperatures ||
        !b->seqs) {
        ifl_sft_batches_free(b);
        return ifl_fail(err, IFL_NOMEM, "sft: out of memory for batches of %d tokens",
                        batch_tokens);
    }
    for (size_t i = 0; i < n; i++)
        b->temperatures[i] = 1.0f;
    *out = b;
    return IFL_OK;
}

static void batches_clear_pool(ifl_sft_batches *b) {
    for (int32_t i = 0; i < IFL_SFT_POOL; i++) {
        ifl_free(b->pool[i].example.tokens);
        b->pool[i].example = (ifl_sft_example){0};
    }
}

void ifl_sft_batches_free(ifl_sft_batches *b) {
    if (!b) return;
    batches_clear_pool(b);
    ifl_free(b->tokens);
    ifl_free(b->pages);
    ifl_free(b->target_rows);
    ifl_free(b->target_tokens);
    ifl_free(b->temperatures);
    ifl_free(b->seqs);
    ifl_free(b);
}

static int entry_compare(const void *a, const void *b) {
    const pool_entry *x = a, *y = b;
    if (x->example.n_tokens != y->example.n_tokens)
        return x->example.n_tokens < y->example.n_tokens ? -1 : 1;
    return (x->serial > y->serial) - (x->serial < y->serial);
}

static ifl_status batches_fill_pool(ifl_sft_batches *b, ifl_error *err) {
    batches_clear_pool(b);
    for (int32_t i = 0; i < IFL_SFT_POOL; i++) {
        pool_entry *entry = &b->pool[i];
        entry->serial = b->n_pools * IFL_SFT_POOL + (uint64_t)i;
        IFL_TRY(b->example(b->context, entry->serial, &entry->example, err));
        const ifl_sft_example *e = &entry->example;
        if (e->n_prompt < 1 || e->n_prompt >= e->n_tokens)
            return ifl_fail(
                err, IFL_FORMAT,
                "sft example %llu: %d prompt tokens of %d; wanted at least one of each, "
                "prompt and completion",
                (unsigned long long)entry->serial, e->n_prompt, e->n_tokens);
        if (e->n_tokens > b->batch_tokens)
            return ifl_fail(err, IFL_LIMIT,
                            "sft example %llu has %d tokens, a batch %d: raise sft.batch_tokens",
                            (unsigned long long)entry->serial, e->n_tokens, b->batch_tokens);
    }
    qsort(b->pool, IFL_SFT_POOL, sizeof *b->pool, entry_compare);
    b->n_batches = 0;
    b->cuts[0] = 0;
    for (int32_t i = 1; i <= IFL_SFT_POOL; i++) {
        int32_t begin = b->cuts[b->n_batches];
        bool full = i == IFL_SFT_POOL ||
                    (int64_t)(i - begin + 1) * b->pool[i].example.n_tokens > b->batch_tokens;
        if (full) b->cuts[++b->n_batches] = i;
    }
    b->n_taken = 0;
    b->n_pools++;
    return IFL_OK;
}

ifl_status ifl_sft_batches_next(ifl_sft_batches *b, ifl_pack *out, ifl_error *err) {
    if (b->n_taken == b->n_batches) IFL_TRY(batches_fill_pool(b, err));
    uint64_t batch =
        ifl_rng_permute(b->seed, b->n_pools, (uint64_t)b->n_batches, (uint64_t)b->n_taken++);
    *out = (ifl_pack){.tokens = b->tokens,
                      .seqs = b->seqs,
                      .target_rows = b->target_rows,
                      .target_tokens = b->target_tokens,
                      .temperatures = b->temperatures};
    for (int32_t i = b->cuts[batch]; i < b->cuts[batch + 1]; i++) {
        const ifl_sft_example *e = &b->pool[i].example;
        int32_t n_rows = e->n_tokens - 1; /* nothing is predicted from the last token */
        b->seqs[out->n_seqs++] = (ifl_batch_seq){
            .row_begin = out->n_rows, .n_rows = n_rows, .pages = b->pages + out->n_rows};
        for (int32_t t = 0; t < n_rows; t++) {
            int32_t row = out->n_rows + t;
            b->tokens[row] = e->tokens[t];
            b->pages[row] = row;
            if (t + 1 < e->n_prompt) continue;
            b->target_rows[out->n_targets] = row;
            b->target_tokens[out->n_targets++] = e->tokens[t + 1];
        }
        out->n_rows += n_rows;
    }
    return IFL_OK;
}

/* --- The loop
 * --------------------------------------------------------------------------------------- */

typedef struct sft_loop {
    ifl_sft_batches *batches;
    ifl_trainer *trainer;
    ifl_logprob *logprobs; /* [batch_tokens], as coefficients */
    float *coefficients;
    double started;
    int64_t tokens_total;
} sft_loop;

static ifl_status sft_step(sft_loop *loop, ifl_optimizer *optimizer, ifl_weights *weights,
                           int64_t step, ifl_sft_progress *progress, ifl_error *err) {
    ifl_pack pack;
    ifl_optimizer_report report;
    IFL_TRY(ifl_sft_batches_next(loop->batches, &pack, err));
    IFL_TRY(ifl_trainer_forward(loop->trainer, weights, &pack, loop->logprobs, err));
    /* L = -(1/n) sum log p, so dL/d(log p) = -1/n for every target. */
    double sum = 0.0;
    float coefficient = (float)(-1.0 / pack.n_targets);
    for (int32_t i = 0; i < pack.n_targets; i++) {
        sum += (double)loop->logprobs[i].logprob;
        loop->coefficients[i] = coefficient;
    }
    ifl_trainer_zero_gradients(loop->trainer);
    IFL_TRY(ifl_trainer_backward(loop->trainer, weights, &pack, loop->coefficients, err));
    IFL_TRY(ifl_optimizer_step(optimizer, ifl_trainer_gradients(loop->trainer), &report, err));
    ifl_optimizer_publish(optimizer, weights, step);

    loop->tokens_total += pack.n_rows;
    double seconds = ifl_clock_s() - loop->started;
    progress->step = step;
    progress->loss = -sum / pack.n_targets;
    progress->grad_norm = report.grad_norm;
    progress->learning_rate = report.learning_rate;
    progress->n_rows = pack.n_rows;
    progress->n_targets = pack.n_targets;
    progress->tokens_total = loop->tokens_total;
    progress->seconds = seconds;
    progress->tokens_per_s = seconds > 0.0 ? (double)loop->tokens_total / seconds : 0.0;
    progress->eta_s = seconds / (double)step * (double)(progress->n_steps - step);
    return IFL_OK;
}

ifl_status ifl_sft_run(const ifl_model *model, ifl_optimizer *optimizer, ifl_weights *weights,
                       const ifl_sft_options *options, ifl_sft_example_fn example,
                       void *example_context, ifl_sft_progress_fn progress, void *progress_context,
                       ifl_thread_pool *pool, const ifl_ops *ops, ifl_error *err) {
    sft_loop loop = {0};
    ifl_status st = IFL_OK;
    if (options->n_steps < 1)
        return ifl_fail(err, IFL_USAGE, "sft.steps: got %lld, wanted 1 or more",
                        (long long)options->n_steps);
    IFL_TRY_GOTO(st,
                 ifl_sft_batches_create(&loop.batches, options->batch_tokens, options->seed,
                                        example, example_context, err),
                 done);
    IFL_TRY_GOTO(st,
                 ifl_trainer_create(&loop.trainer, model, options->batch_tokens,
                                    options->activation_bytes, pool, ops, err),
                 done);
    loop.logprobs = ifl_alloc((size_t)options->batch_tokens, sizeof *loop.logprobs);
    loop.coefficients = ifl_alloc((size_t)options->batch_tokens, sizeof *loop.coefficients);
    if (!loop.logprobs || !loop.coefficients)
        IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "sft: out of memory"), done);
    ifl_optimizer_refresh(optimizer, ifl_optimizer_updates(optimizer));
    ifl_optimizer_publish(optimizer, weights, 0);
    loop.started = ifl_clock_s();
    ifl_sft_progress now = {.n_steps = options->n_steps};
    for (int64_t step = 1; step <= options->n_steps; step++) {
        st = sft_step(&loop, optimizer, weights, step, &now, err);
        if (st != IFL_OK) {
            ifl_error_wrap(err, "sft step %lld", (long long)step);
            goto done;
        }
        if (progress) IFL_TRY_GOTO(st, progress(progress_context, &now, err), done);
    }
done:
    ifl_free(loop.coefficients);
    ifl_free(loop.logprobs);
    ifl_trainer_free(loop.trainer);
    ifl_sft_batches_free(loop.batches);
    return st;
}

/* Decode and prefill, timed through the engine that actors use: every step computes the full
 * vocabulary's logits for each running sequence and samples from their softmax at temperature 1. */
#include "actor/engine.h"
#include "common/clock.h"
#include "common/memory.h"
#include "deploy/cli/bench.h"

typedef struct engine_bench {
    const ifl_bench_model_case *c;
    const ifl_model *model;
    ifl_engine *engine;
    int32_t positions; /* of one sequence at most */
    int32_t *prompt;
    uint64_t serial;
} engine_bench;

static ifl_status engine_bench_submit(engine_bench *b, ifl_error *err) {
    ifl_rng_key key = {b->serial, 0, IFL_RNG_TEST};
    for (int32_t i = 0; i < b->c->prompt_tokens; i++)
        b->prompt[i] =
            (int32_t)ifl_rng_below(&key, (uint64_t)i, 0, (uint64_t)b->model->config.vocab_size);
    ifl_engine_request request = {
        .task_serial = b->serial++,
        .task_id = "bench",
        .prompt = b->prompt,
        .n_prompt = b->c->prompt_tokens,
        .n_samples = 1,
        .sampling = {1, 0, 1},
        .max_new_tokens = b->positions - b->c->prompt_tokens,
        .ignore_eos = true,
    };
    return ifl_engine_submit(b->engine, &request, err);
}

/* One measurement: all sequences prefilled, then new_tokens steps in which every one decodes. */
static ifl_status engine_bench_once(engine_bench *b, double *seconds, ifl_error *err) {
    int32_t n_decoded = 0, batch = b->c->batch;
    /* The first ones decode while the last prompts are built, a step for each chunk. */
    for (int32_t i = 0; i < batch; i++)
        IFL_TRY(engine_bench_submit(b, err));
    double start = ifl_clock_s();
    while (n_decoded < batch)
        IFL_TRY(ifl_engine_step(b->engine, &n_decoded, err));
    double built = ifl_clock_s();
    for (int32_t i = 0; i < b->c->new_tokens; i++) {
        IFL_TRY(ifl_engine_step(b->engine, &n_decoded, err));
        IFL_ASSERT(n_decoded == batch);
    }
    *seconds = b->c->kind == IFL_BENCH_PREFILL ? built - start : ifl_clock_s() - built;
    ifl_engine_cancel(b->engine, 0);
    return IFL_OK;
}

ifl_status ifl_bench_engine_time(const ifl_bench_args *a, const ifl_bench_model_case *c,
                                 const ifl_loaded_model *m, ifl_thread_pool *pool, double *seconds,
                                 ifl_error *err) {
    engine_bench b = {
        .c = c, .model = m->model, .positions = (int32_t)ifl_bench_model_case_positions(a, c)};
    ifl_status st;
    b.prompt = ifl_alloc((size_t)c->prompt_tokens, sizeof *b.prompt);
    if (!b.prompt) return ifl_fail(err, IFL_NOMEM, "bench: out of memory");
    int64_t kv_tokens = (int64_t)(c->batch + 1) * (b.positions + 2 * a->config->actor.page_tokens);
    ifl_engine_options eo = {.sequences_max = c->batch,
                             .kv_tokens = kv_tokens < INT32_MAX ? (int32_t)kv_tokens : INT32_MAX,
                             .page_tokens = a->config->actor.page_tokens,
                             .prefill_chunk_tokens = a->config->actor.prefill_chunk_tokens};
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights", ifl_weights_bytes(m->model));
    ifl_memory_plan_add(&plan, "engine with KV cache",
                        ifl_engine_bytes(m->model, &eo, ifl_thread_pool_size(pool)));
    IFL_TRY_GOTO(st, ifl_memory_plan_check(&plan, a->config->memory.limit_gib, stderr, err), done);
    IFL_TRY_GOTO(st, ifl_engine_create(&b.engine, m->model, NULL, &eo, pool, NULL, err), done);
    IFL_TRY_GOTO(st, ifl_engine_swap(b.engine, m->weights, err), done);
    for (int64_t i = -1; i < a->repeat; i++) { /* the first warms up */
        double s;
        IFL_TRY_GOTO(st, engine_bench_once(&b, &s, err), done);
        if (i >= 0) seconds[i] = s;
    }
done:
    ifl_engine_free(b.engine);
    ifl_free(b.prompt);
    return st;
}

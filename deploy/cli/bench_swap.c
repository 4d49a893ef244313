/* inflight bench swap: what new weights in the middle of a generation cost. One process holds both
 * ends of the weight plane, over a socket file: a publisher that announces a version every so
 * often, and an engine that decodes without a pause, takes versions in between two steps as an
 * actor does, and refills its batch. Stretches with and without publications alternate. Versions
 * are the model's weights with CHANGED of them moved by a step of bf16, about what an optimizer
 * step of a small learning rate changes. Decoding has --threads threads (default: one CPU is left
 * to the rest). */
#include <stdlib.h>
#include <string.h>

#include "actor/engine.h"
#include "actor/weight_receiver.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/weight_patch.h"
#include "deploy/cli/bench.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/local_endpoint.h"
#include "learner/publisher.h"

#define CHANGED 0.025
#define NEW_TOKENS 512    /* by default: more than the steps of a stretch */
#define REBUILD_TOKENS 16 /* new ones of a sequence whose swap is measured alone */
#define STRETCH_SWAPS 4   /* publications of one stretch */
#define SWAPS_MAX 4096
#define STEPS_MAX (1 << 20) /* decode steps whose time is kept */
#define SETTLE_S 120.0

typedef struct swap_bench {
    const ifl_bench_args *args;
    const ifl_model *model;
    ifl_thread_pool *pool;
    ifl_engine *engine;
    ifl_local_endpoint endpoint;
    ifl_server *server;
    ifl_publisher *publisher;
    ifl_client *client;
    ifl_weight_receiver *receiver;
    ifl_weights *source[2], *buffer[2]; /* what is published in turns; what the engine has */
    ifl_weights *current, *retiring, *staged;
    int64_t version; /* newest published */
    double published_s;
    int32_t batch, n_prompt, n_new;
    int32_t *prompt;
    uint64_t serial;
    double *stalls, *delays; /* [SWAPS_MAX] ms between two steps; s from publication to use */
    int32_t n_swaps;
    double *steps; /* [STEPS_MAX] ms, those of stretches without publications */
    int64_t n_steps;
    double step_end_s;
    ifl_bench_coding_result coding;
} swap_bench;

/* --- Versions --------------------------------------------------------------------------------- */

static ifl_status make_versions(swap_bench *b, ifl_error *err) {
    enum { CHUNK = 1 << 16 };
    uint16_t *chunk = ifl_alloc(CHUNK, sizeof *chunk);
    if (!chunk) return ifl_fail(err, IFL_NOMEM, "bench: out of memory");
    ifl_rng_key key = {1, 0, IFL_RNG_TEST};
    for (int64_t at = 0; at < b->model->n_elements; at += CHUNK) {
        int64_t n = b->model->n_elements - at < CHUNK ? b->model->n_elements - at : CHUNK;
        ifl_weights_get(b->source[0], at, n, chunk);
        for (int64_t i = 0; i < n; i++) {
            uint64_t draw = ifl_rng_below(&key, (uint64_t)(at + i), 0, 1000000);
            if (draw >= (uint64_t)(CHANGED * 1e6)) continue;
            int32_t place = ifl_bf16_place(chunk[i]) + (draw & 1 ? 1 : -1);
            chunk[i] = ifl_bf16_at_place(place);
        }
        ifl_weights_put(b->source[1], at, n, chunk);
    }
    ifl_free(chunk);
    return IFL_OK;
}

static void released(const ifl_weights *weights, void *user) {
    (void)weights, (void)user; /* they stay as they are */
}

static ifl_status publish(swap_bench *b, ifl_error *err) {
    int64_t version = b->version + 1;
    b->published_s = ifl_clock_s();
    IFL_TRY(ifl_publisher_publish(b->publisher, version, version - 1, b->source[version % 2],
                                  released, NULL, err));
    b->version = version;
    return IFL_OK;
}

/* --- The decode loop, as in actor/actor.c ------------------------------------------------------
 */

static ifl_status link_events(swap_bench *b, ifl_error *err) {
    for (;;) {
        ifl_client_event event;
        ifl_status st = ifl_client_poll(b->client, 0, &event, err);
        if (st == IFL_AGAIN) return IFL_OK;
        IFL_TRY(st);
        if (event.kind == IFL_CLIENT_CONNECTED)
            ifl_weight_receiver_follow(b->receiver, &event.message.welcome);
        else if (event.kind != IFL_CLIENT_MESSAGE)
            st = ifl_fail(err, IFL_PEER, "bench: the link broke: %s", event.text);
        ifl_client_event_clear(&event);
        IFL_TRY(st);
    }
}

static ifl_status take_weights(swap_bench *b, bool *swapped, ifl_error *err) {
    *swapped = false;
    if (!b->staged) {
        ifl_status st = ifl_weight_receiver_take(b->receiver, &b->staged, err);
        if (st != IFL_OK && st != IFL_AGAIN) return st;
    }
    if (b->retiring && ifl_engine_oldest_version(b->engine) != b->retiring->version) {
        IFL_TRY(ifl_weight_receiver_offer_buffer(b->receiver, b->retiring, b->current, err));
        b->retiring = NULL;
    }
    if (!b->staged || b->retiring) return IFL_OK;
    ifl_status st = ifl_engine_swap(b->engine, b->staged, err);
    if (st == IFL_AGAIN) return IFL_OK;
    IFL_TRY(st);
    b->retiring = b->current;
    b->current = b->staged;
    b->staged = NULL;
    *swapped = true;
    return IFL_OK;
}

static ifl_status submit(swap_bench *b, int32_t n_new, ifl_error *err) {
    ifl_rng_key key = {b->serial, 0, IFL_RNG_TEST};
    for (int32_t i = 0; i < b->n_prompt; i++)
        b->prompt[i] =
            (int32_t)ifl_rng_below(&key, (uint64_t)i, 0, (uint64_t)b->model->config.vocab_size);
    ifl_engine_request request = {
        .task_serial = b->serial++,
        .task_id = "bench",
        .prompt = b->prompt,
        .n_prompt = b->n_prompt,
        .n_samples = 1,
        .sampling = {1, 0, 1},
        .max_new_tokens = n_new,
        .ignore_eos = true,
    };
    return ifl_engine_submit(b->engine, &request, err);
}

static void cancel_all(swap_bench *b) {
    ifl_trajectory *t;
    while ((t = ifl_engine_take_live(b->engine, NULL)) != NULL)
        ifl_trajectory_free(t);
    while ((t = ifl_engine_take_finished(b->engine, NULL)) != NULL)
        ifl_trajectory_free(t);
}

/* A full batch, prefilled, that ends together: each stretch begins with the same one, and by
 * default none of it ends within a stretch. Prefilling many prompts at once is cheaper than one in
 * each step; what finished and began in between would give a stretch a speed of its own. */
static ifl_status fill(swap_bench *b, ifl_error *err) {
    cancel_all(b);
    b->serial = 0;
    for (int32_t i = 0; i < b->batch; i++)
        IFL_TRY(submit(b, b->n_new, err));
    for (int32_t n = 0; n < b->batch;)
        IFL_TRY(ifl_engine_step(b->engine, &n, err));
    return IFL_OK;
}

/* One turn: what is finished is replaced, new weights are taken, one step is made. */
static ifl_status turn(swap_bench *b, bool timed, int32_t *n_decoded, ifl_error *err) {
    bool swapped;
    ifl_trajectory *done;
    while ((done = ifl_engine_take_finished(b->engine, NULL)) != NULL) {
        ifl_trajectory_free(done);
        IFL_TRY(submit(b, b->n_new, err));
    }
    IFL_TRY(link_events(b, err));
    IFL_TRY(take_weights(b, &swapped, err));
    double begin = ifl_clock_s();
    if (swapped) {
        if (timed && b->n_swaps < SWAPS_MAX) {
            b->delays[b->n_swaps] = begin - b->published_s;
            b->stalls[b->n_swaps++] = (begin - b->step_end_s) * 1e3;
        }
        IFL_TRY(ifl_weight_receiver_applied(b->receiver, b->current->version, 0, err));
    }
    IFL_TRY(ifl_engine_step(b->engine, n_decoded, err));
    b->step_end_s = ifl_clock_s();
    if (timed && b->n_steps < STEPS_MAX) b->steps[b->n_steps++] = (b->step_end_s - begin) * 1e3;
    return IFL_OK;
}

/* Until nothing of the last version is under way. */
static ifl_status settle(swap_bench *b, ifl_error *err) {
    double end = ifl_clock_s() + SETTLE_S;
    while (b->current->version != b->version || b->retiring) {
        int32_t n;
        if (ifl_clock_s() > end)
            return ifl_fail(err, IFL_TIMEOUT, "bench: version %lld has not come within %.0f s",
                            (long long)b->version, SETTLE_S);
        IFL_TRY(turn(b, false, &n, err));
    }
    return IFL_OK;
}

static ifl_status stretch(swap_bench *b, bool publishing, double *tokens_per_s, ifl_error *err) {
    IFL_TRY(fill(b, err));
    double every = b->args->every_s, begin = ifl_clock_s(), now = begin;
    double end = begin + STRETCH_SWAPS * every, next = begin;
    int64_t n_tokens = 0;
    while (now < end) {
        if (publishing && now >= next) {
            IFL_TRY(publish(b, err));
            next += every;
        }
        int32_t n;
        IFL_TRY(turn(b, true, &n, err));
        n_tokens += n;
        now = ifl_clock_s();
    }
    *tokens_per_s = (double)n_tokens / (now - begin);
    return settle(b, err);
}

/* --- recompute: what rebuilding costs beside a prefill of as many tokens -----------------------
 */

static int compare_doubles(const void *x, const void *y) {
    double a = *(const double *)x, c = *(const double *)y;
    return a < c ? -1 : a > c;
}

static double quantile(double *values, int64_t n, double q) {
    if (n == 0) return 0.0;
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return values[(int64_t)(q * (double)(n - 1) + 0.5)];
}

/* A group of samples with half of their tokens is swapped; the time of the steps until the last one
 * has flipped, less what as many plain steps take, against prefilling as many tokens of fresh
 * prompts, both by the token. */
static ifl_status rebuild(swap_bench *b, double *ratio, int64_t *n_rebuilt, ifl_error *err) {
    ifl_engine_stats before, after;
    int32_t n = 0, n_half = b->n_new / 2 < REBUILD_TOKENS ? b->n_new / 2 : REBUILD_TOKENS;
    cancel_all(b);
    ifl_engine_request request = {.task_serial = b->serial++,
                                  .task_id = "bench",
                                  .prompt = b->prompt,
                                  .n_prompt = b->n_prompt,
                                  .n_samples = b->batch,
                                  .sampling = {1, 0, 1},
                                  .max_new_tokens = b->n_new,
                                  .ignore_eos = true};
    IFL_TRY(ifl_engine_submit(b->engine, &request, err));
    double plain[64];
    int64_t n_plain = 0;
    for (int32_t i = 0; i < n_half; i++) {
        double begin = ifl_clock_s();
        IFL_TRY(ifl_engine_step(b->engine, &n, err));
        if (n == b->batch && n_plain < 64) plain[n_plain++] = ifl_clock_s() - begin;
    }
    double step_s = quantile(plain, n_plain, 0.5);
    ifl_engine_stats_get(b->engine, &before);
    /* Whatever the numbers of the published versions: this one is newer. */
    ifl_weights *next = b->current == b->buffer[0] ? b->buffer[1] : b->buffer[0];
    ifl_weights_copy(next, b->current);
    next->version = b->current->version + 1;
    IFL_TRY(ifl_engine_swap(b->engine, next, err));
    double begin = ifl_clock_s(), decoded = 0.0;
    while (ifl_engine_oldest_version(b->engine) != next->version) {
        IFL_TRY(ifl_engine_step(b->engine, &n, err));
        decoded += (double)n / b->batch; /* a sequence that rebuilds in place does not decode */
    }
    double rebuild_s = ifl_clock_s() - begin - decoded * step_s;
    b->current = next;
    ifl_engine_stats_get(b->engine, &after);
    *n_rebuilt = after.tokens_rebuilt - before.tokens_rebuilt;

    cancel_all(b);
    int32_t n_prompt = b->n_prompt, length = b->n_prompt + n_half;
    int64_t n_tokens = 0;
    ifl_engine_stats_get(b->engine, &before);
    b->n_prompt = length;
    begin = ifl_clock_s();
    while (n_tokens < *n_rebuilt) {
        IFL_TRY(submit(b, 1, err));
        n_tokens += length;
    }
    while (!ifl_engine_idle(b->engine))
        IFL_TRY(ifl_engine_step(b->engine, &n, err));
    double prefill_s = ifl_clock_s() - begin;
    b->n_prompt = n_prompt;
    cancel_all(b);
    *ratio = (rebuild_s / (double)*n_rebuilt) / (prefill_s / (double)n_tokens);
    return IFL_OK;
}

/* --- Setup and printing ----------------------------------------------------------------------- */

static ifl_status swap_open(swap_bench *b, const ifl_loaded_model *m, ifl_error *err) {
    const ifl_bench_args *a = b->args;
    int32_t positions = b->n_prompt + b->n_new;
    int64_t per_sequence = 2 * (positions + 2 * a->config->actor.page_tokens);
    ifl_engine_options eo = {.sequences_max = b->batch,
                             .kv_tokens = (int32_t)((b->batch + 1) * per_sequence),
                             .page_tokens = a->config->actor.page_tokens,
                             .prefill_chunk_tokens = a->config->actor.prefill_chunk_tokens,
                             .kv_mode = a->config->actor.kv};
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights", 4 * ifl_weights_bytes(m->model));
    ifl_memory_plan_add(&plan, "publisher",
                        ifl_publisher_bytes(m->model, a->config->transport.patch_versions,
                                            a->config->transport.patch_percent));
    ifl_memory_plan_add(&plan, "engine with KV cache",
                        ifl_engine_bytes(m->model, &eo, ifl_thread_pool_size(b->pool)));
    IFL_TRY(ifl_memory_plan_check(&plan, a->config->memory.limit_gib, stderr, err));
    b->source[0] = m->weights;
    IFL_TRY(ifl_weights_create(&b->source[1], m->model, err));
    for (int i = 0; i < 2; i++)
        IFL_TRY(ifl_weights_create(&b->buffer[i], m->model, err));
    IFL_TRY(make_versions(b, err));
    b->prompt = ifl_alloc((size_t)positions, sizeof *b->prompt);
    b->stalls = ifl_alloc(SWAPS_MAX, sizeof *b->stalls);
    b->delays = ifl_alloc(SWAPS_MAX, sizeof *b->delays);
    b->steps = ifl_alloc(STEPS_MAX, sizeof *b->steps);
    if (!b->prompt || !b->stalls || !b->delays || !b->steps)
        return ifl_fail(err, IFL_NOMEM, "bench: out of memory");
    IFL_TRY(ifl_engine_create(&b->engine, m->model, NULL, &eo, b->pool, NULL, err));
    IFL_TRY(ifl_local_endpoint_create(&b->endpoint, err));
    ifl_server_options so = {.bind = b->endpoint.text,
                             .vocab_size = m->model->config.vocab_size,
                             .fingerprint = m->model->fingerprint,
                             .profile = m->model->profile};
    memset(so.run_uuid, '0', sizeof so.run_uuid - 1);
    IFL_TRY(ifl_server_create(&b->server, &so, err));
    IFL_TRY(ifl_publisher_create(
        &b->publisher, m->model, b->server, (int64_t)a->config->transport.chunk_kib * 1024,
        a->config->transport.patch_versions, a->config->transport.patch_percent, err));
    ifl_client_options co = {.connect = b->endpoint.text,
                             .name = "bench",
                             .build = "inflight",
                             .fingerprint = m->model->fingerprint,
                             .profile = m->model->profile,
                             .held_version = -1};
    IFL_TRY(ifl_client_create(&b->client, &co, err));
    IFL_TRY(ifl_weight_receiver_create(&b->receiver, m->model, b->client, NULL, err));
    /* The first version comes dense and does not count. */
    IFL_TRY(publish(b, err));
    IFL_TRY(ifl_weight_receiver_offer_buffer(b->receiver, b->buffer[0], NULL, err));
    IFL_TRY(ifl_weight_receiver_wait(b->receiver, (int64_t)(SETTLE_S * 1e3), &b->current, err));
    IFL_TRY(link_events(b, err));
    IFL_TRY(ifl_bench_coding(a, b->publisher, b->receiver,
                             (const ifl_weights *const[]){b->source[0], b->source[1]}, b->buffer,
                             &b->version, &b->current, &b->coding, err));
    IFL_TRY(ifl_engine_swap(b->engine, b->current, err));
    IFL_TRY(ifl_weight_receiver_offer_buffer(
        b->receiver, b->current == b->buffer[0] ? b->buffer[1] : b->buffer[0], b->current, err));
    return fill(b, err);
}

static void swap_close(swap_bench *b) {
    ifl_engine_free(b->engine);
    ifl_weight_receiver_free(b->receiver);
    ifl_client_free(b->client);
    ifl_publisher_free(b->publisher);
    ifl_server_free(b->server);
    ifl_local_endpoint_remove(&b->endpoint);
    ifl_weights_free(b->source[1]);
    ifl_weights_free(b->buffer[0]);
    ifl_weights_free(b->buffer[1]);
    ifl_free(b->prompt);
    ifl_free(b->stalls);
    ifl_free(b->delays);
    ifl_free(b->steps);
}

static ifl_status swap_print(swap_bench *b, double *without, double *with, double *ratios,
                             double *rebuilds, int64_t n_rebuilt, ifl_error *err) {
    const ifl_bench_args *a = b->args;
    bool recompute = a->config->actor.kv == IFL_KV_MODE_RECOMPUTE;
    ifl_figures f_without = ifl_figures_of(without, a->repeat),
                f_with = ifl_figures_of(with, a->repeat),
                f_ratio = ifl_figures_of(ratios, a->repeat);
    double mean_without = 0.0, mean_with = 0.0;
    for (int64_t i = 0; i < a->repeat; i++) {
        mean_without += without[i] / (double)a->repeat;
        mean_with += with[i] / (double)a->repeat;
    }
    ifl_publisher_stats ps;
    ifl_publisher_stats_get(b->publisher, &ps);
    double share = 100.0 * (double)ps.patch_bytes / (2.0 * (double)b->model->n_elements);
    double step = quantile(b->steps, b->n_steps, 0.5), p50 = quantile(b->stalls, b->n_swaps, 0.5),
           p99 = quantile(b->stalls, b->n_swaps, 0.99),
           delay = quantile(b->delays, b->n_swaps, 0.5);
    ifl_figures f_rebuild = {0};
    if (recompute) f_rebuild = ifl_figures_of(rebuilds, a->repeat);
    if (a->json) {
        json_t *o = json_pack(
            "{s:s, s:s, s:s, s:i, s:i, s:f, s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "bench", "swap",
            "model", a->model, "kv", recompute ? "recompute" : "keep", "threads", a->n_threads,
            "batch", b->batch, "every_s", a->every_s, "swaps", b->n_swaps, "step_ms_p50", step,
            "stall_ms_p50", p50, "stall_ms_p99", p99, "delay_s_median", delay,
            "patch_percent_of_dense", share, "ratio_of_means", mean_with / mean_without);
        if (!o) return ifl_fail(err, IFL_NOMEM, "bench: out of memory");
        ifl_bench_json_figures(o, "tokens_per_s_without", &f_without);
        ifl_bench_json_figures(o, "tokens_per_s_with", &f_with);
        ifl_bench_json_figures(o, "ratio", &f_ratio);
        ifl_bench_json_figures(o, "encode_core_ms", &b->coding.encode_ms);
        ifl_bench_json_figures(o, "apply_core_ms", &b->coding.apply_ms);
        ifl_bench_json_figures(o, "coded_percent_of_dense", &b->coding.percent);
        if (recompute) {
            json_object_set_new(o, "tokens_rebuilt", json_integer(n_rebuilt));
            ifl_bench_json_figures(o, "rebuild_to_prefill", &f_rebuild);
        }
        return ifl_bench_json_print(o, err);
    }
    printf("%s, kv %s, %d sequences, %d threads, a version every %.3g s (patches of %.2f %% of "
           "dense), %lld rounds\n",
           a->model, recompute ? "recompute" : "keep", b->batch, a->n_threads, a->every_s, share,
           (long long)a->repeat);
    printf("coding of %d versions%s%s (patches of %.2f %% of dense): encode %.0f core-ms a version "
           "(min "
           "%.0f, max %.0f), apply %.0f (min %.0f, max %.0f)\n",
           b->coding.n_versions, a->versions ? " of " : "", a->versions ? a->versions : "",
           b->coding.percent.median, b->coding.encode_ms.median, b->coding.encode_ms.min,
           b->coding.encode_ms.max, b->coding.apply_ms.median, b->coding.apply_ms.min,
           b->coding.apply_ms.max);
    printf("tokens/s without %.1f, with %.1f (means), ratio %.3f; of single rounds min %.3f median "
           "%.3f max %.3f\n",
           mean_without, mean_with, mean_with / mean_without, f_ratio.min, f_ratio.median,
           f_ratio.max);
    printf("%d swaps: stall between two decode steps p50 %.2f ms, p99 %.2f ms; a decode step takes "
           "%.1f ms; from publication to use %.2f s\n",
           b->n_swaps, p50, p99, step, delay);
    if (recompute)
        printf("rebuilding %lld tokens of one group took %.2f times their prefill (min %.2f, max "
               "%.2f)\n",
               (long long)n_rebuilt, f_rebuild.median, f_rebuild.min, f_rebuild.max);
    return IFL_OK;
}

ifl_status ifl_bench_swap(const ifl_bench_args *a, ifl_error *err) {
    swap_bench b = {.args = a, .version = -1};
    double without[IFL_BENCH_REPEATS_MAX], with[IFL_BENCH_REPEATS_MAX],
        ratios[IFL_BENCH_REPEATS_MAX], rebuilds[IFL_BENCH_REPEATS_MAX];
    int64_t n_rebuilt = 0;
    ifl_loaded_model m = {0};
    ifl_status st;
    b.batch = a->n_batches ? a->batches[0] : 32;
    b.n_prompt = (int32_t)(a->prompt_tokens ? a->prompt_tokens : 32);
    b.n_new = (int32_t)(a->new_tokens ? a->new_tokens : NEW_TOKENS);
    IFL_TRY_GOTO(st, ifl_config_model_bare(&m, a->config, b.n_prompt + b.n_new, stderr, err), done);
    b.model = m.model;
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&b.pool, a->n_threads, err), done);
    IFL_TRY_GOTO(st, swap_open(&b, &m, err), done);
    if (a->versions) { /* from the archive's last one it is a large step */
        IFL_TRY_GOTO(st, publish(&b, err), done);
        IFL_TRY_GOTO(st, settle(&b, err), done);
    }
    for (int64_t i = 0; i < a->repeat; i++) {
        /* In this order, so that the buffer that stands still is another one in each round. */
        IFL_TRY_GOTO(st, stretch(&b, false, &without[i], err), done);
        IFL_TRY_GOTO(st, stretch(&b, true, &with[i], err), done);
        ratios[i] = with[i] / without[i];
        if (!a->json)
            fprintf(stderr, "bench: round %lld of %lld: %.1f tokens/s without, %.1f with\n",
                    (long long)(i + 1), (long long)a->repeat, without[i], with[i]);
    }
    if (a->config->actor.kv == IFL_KV_MODE_RECOMPUTE) {
        ifl_weight_receiver_free(b.receiver); /* both buffers are the engine's from here on */
        b.receiver = NULL;
        for (int64_t i = 0; i < a->repeat; i++)
            IFL_TRY_GOTO(st, rebuild(&b, &rebuilds[i], &n_rebuilt, err), done);
    }
    st = swap_print(&b, without, with, ratios, rebuilds, n_rebuilt, err);
done:
    swap_close(&b);
    ifl_thread_pool_free(b.pool);
    ifl_loaded_model_clear(&m);
    return st;
}

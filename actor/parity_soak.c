#include "actor/parity_soak.h"

#include <stdlib.h>
#include <string.h>

#include "actor/engine.h"
#include "actor/parity_check.h"
#include "common/clock.h"
#include "common/memory.h"
#include "kernels/random_model.h"
#include "kernels/replay.h"

enum {
    SOAK_MADE_MAX = 5,  /* different weights; versions beyond take them in turn */
    SOAK_VERSIONS = 64, /* of one round */
    SOAK_GROUPS_MAX = 48,
    SOAK_PROMPT_MAX = 600, /* beyond two KV splits */
};
#define SOAK_LARGE                                                                                 \
    20000000 /* parameters from which rounds are small and slow kernels are left out */
#define SOAK_PROGRESS_S 5.0

typedef struct soak {
    const ifl_model *model;
    const ifl_soak_options *options;
    ifl_soak_result *result;
    bool large;
    ifl_weights *made[SOAK_MADE_MAX];
    const ifl_weights *distinct[SOAK_MADE_MAX]; /* [0] is the model's own */
    int32_t n_distinct;
    ifl_weights
        versions[SOAK_VERSIONS]; /* headers only: version v has the weights v mod n_distinct */
    const ifl_ops *ops[8];
    int32_t n_ops, threads_max;
    ifl_rng_key key;
    uint64_t n_drawn;
    double begin_s, shown_s;
} soak;

/* The round under way. */
typedef struct soak_round {
    ifl_thread_pool *pool, *replay_pool;
    ifl_engine *engine;
    ifl_workspace *replay;
    ifl_engine_options options;
    const ifl_ops *ops;
    int32_t n_groups, n_submitted, n_swaps, n_new;
    int32_t arrivals; /* of 100 steps, those in which a group comes */
    bool truncated;
    char text[192];
} soak_round;

/* A number in [low, high]. */
static int32_t soak_draw(soak *s, int32_t low, int32_t high) {
    return low + (int32_t)ifl_rng_below(&s->key, s->n_drawn++, 0, (uint64_t)(high - low + 1));
}

static const ifl_weights *soak_version(void *context, int64_t version) {
    soak *s = context;
    return version >= 0 && version < SOAK_VERSIONS ? &s->versions[version] : NULL;
}

/* --- What differs, and where it begins -----------------------------------------------------------
 */

enum { SOAK_COPIES = 16 };

/* Hashes of the residual stream of the last of n tokens, layer by layer, in chunks of `chunk` rows
 * of each of `copies` sequences that hold the same tokens. */
static ifl_status soak_trace(const soak *s, const ifl_ops *ops, const ifl_weights *weights,
                             const int32_t *tokens, int32_t n, int32_t chunk, int32_t copies,
                             uint64_t *hashes, ifl_error *err) {
    ifl_workspace *ws = NULL;
    ifl_kv_store *kv = NULL;
    ifl_thread_pool *pool = NULL;
    const float *hidden;
    ifl_batch_seq seqs[SOAK_COPIES];
    int32_t *pages = ifl_alloc((size_t)(n * copies), sizeof *pages),
            *batch_tokens = ifl_alloc((size_t)(chunk * copies), sizeof *batch_tokens);
    ifl_status st =
        pages && batch_tokens ? IFL_OK : ifl_fail(err, IFL_NOMEM, "soak: out of memory");
    if (st == IFL_OK) st = ifl_thread_pool_create(&pool, 1, err);
    if (st == IFL_OK) st = ifl_workspace_create(&ws, s->model, chunk * copies, pool, ops, err);
    if (st == IFL_OK) st = ifl_kv_store_create(&kv, s->model, n * copies, 1, err);
    for (int32_t i = 0; i < n * copies && st == IFL_OK; i++)
        pages[i] = i;
    if (st == IFL_OK) ifl_workspace_trace(ws, hashes);
    for (int32_t at = 0; at < n && st == IFL_OK; at += chunk) {
        int32_t rows = n - at < chunk ? n - at : chunk;
        for (int32_t c = 0; c < copies; c++) {
            seqs[c] = (ifl_batch_seq){c * rows, rows, at, pages + c * n};
            memcpy(batch_tokens + c * rows, tokens + at, (size_t)rows * sizeof *tokens);
        }
        ifl_batch batch = {rows * copies, copies, 0, batch_tokens, seqs, NULL};
        st = ifl_forward(ws, weights, kv, &batch, &hidden, err);
    }
    ifl_kv_store_free(kv);
    ifl_workspace_free(ws);
    ifl_thread_pool_free(pool);
    ifl_free(pages);
    ifl_free(batch_tokens);
    return st;
}

/* Says in which layer a forward of the trajectory's prefix depends on what is computed beside it.
 */
static ifl_status soak_name_layer(soak *s, const soak_round *round, const ifl_trajectory *t,
                                  int32_t position, char *out, size_t size, ifl_error *err) {
    const struct {
        const char *name;
        int32_t chunk, copies;
    } ways[] = {{"all rows at once", position, 1}, {"16 sequences side by side", 1, SOAK_COPIES}};
    size_t n_layers = (size_t)s->model->config.n_layers, layer = 0;
    uint64_t *one = ifl_alloc(n_layers + 1, sizeof *one),
             *other = ifl_alloc(n_layers + 1, sizeof *other);
    const ifl_weights *weights = soak_version(s, ifl_trajectory_version_at(t, position));
    ifl_status st =
        one && other && weights ? IFL_OK : ifl_fail(err, IFL_NOMEM, "soak: out of memory");
    if (st == IFL_OK) st = soak_trace(s, round->ops, weights, t->tokens, position, 1, 1, one, err);
    snprintf(out, size,
             "a plain forward of its prefix has the same bits in every layer, alone and beside "
             "others: look at the "
             "head, paging, swaps and threads");
    for (size_t w = 0; w < sizeof ways / sizeof *ways && st == IFL_OK; w++) {
        st = soak_trace(s, round->ops, weights, t->tokens, position, ways[w].chunk, ways[w].copies,
                        other, err);
        if (st != IFL_OK) break;
        for (layer = 0; layer <= n_layers && one[layer] == other[layer];)
            layer++;
        if (layer > n_layers) continue;
        if (layer == 0)
            snprintf(out, size, "the first difference lies in the embedding");
        else
            snprintf(out, size,
                     "the first difference between row by row and %s lies in layer %zu of %zu",
                     ways[w].name, layer - 1, n_layers);
        break;
    }
    ifl_free(one);
    ifl_free(other);
    return st;
}

static ifl_status soak_note(soak *s, const soak_round *round, const ifl_trajectory *t,
                            const ifl_replay_result *r, const char *path, ifl_error *err) {
    ifl_soak_result *result = s->result;
    result->tokens += r->n_checked;
    result->tokens_after_swap += r->n_after_swap;
    result->differing += r->n_differing;
    if (r->n_differing == 0 || result->first[0]) return IFL_OK;
    char layer[192];
    IFL_TRY(soak_name_layer(s, round, t, r->first_differing, layer, sizeof layer, err));
    snprintf(
        result->first, sizeof result->first,
        "round %lld (%s): task %llu, sample %d, token %d, %s: recorded %.9g, computed %.9g; %s",
        (long long)result->rounds, round->text, (unsigned long long)t->task_serial, t->sample,
        r->first_differing, path, (double)r->first_recorded, (double)r->first_replayed, layer);
    return IFL_OK;
}

/* --- One round ---------------------------------------------------------------------------------
 */

static ifl_status soak_take_finished(soak *s, soak_round *round, ifl_error *err) {
    ifl_trajectory *t;
    while ((t = ifl_engine_take_finished(round->engine, NULL))) {
        ifl_replay_result r;
        s->result->trajectories++;
        ifl_status st = ifl_trajectory_check(t, s->model->config.vocab_size, err);
        if (st == IFL_OK) st = ifl_replay(round->replay, soak_version, s, t, NULL, &r, err);
        if (st == IFL_OK) st = soak_note(s, round, t, &r, "replay of the KV record", err);
        if (st == IFL_OK && round->options.kv_mode == IFL_KV_MODE_RECOMPUTE &&
            soak_draw(s, 0, 3) == 0) {
            st = ifl_replay_recompute(round->replay, soak_version, s, t, NULL, &r, err);
            if (st == IFL_OK) st = soak_note(s, round, t, &r, "forward over the whole prefix", err);
        }
        ifl_trajectory_free(t);
        IFL_TRY(st);
    }
    return IFL_OK;
}

static ifl_status soak_submit(soak *s, soak_round *round, int32_t prompt_max, ifl_error *err) {
    int32_t prompt[SOAK_PROMPT_MAX];
    int32_t n_prompt = soak_draw(s, 1, prompt_max);
    for (int32_t i = 0; i < n_prompt; i++)
        prompt[i] = soak_draw(s, 0, s->model->config.vocab_size - 1);
    static const ifl_sampling plain[] = {{1, 0, 1}, {0.7f, 0, 1}, {0, 0, 1}},
                              truncated[] = {{0.8f, 20, 0.9f}, {1, 5, 1}, {1, 0, 0.7f}};
    ifl_engine_request request = {
        .task_serial = (uint64_t)round->n_submitted++,
        .task_id = "soak",
        .prompt = prompt,
        .n_prompt = n_prompt,
        .n_samples = soak_draw(s, 1, 8),
        .sampling = (round->truncated ? truncated : plain)[soak_draw(s, 0, 2)],
        .max_new_tokens = soak_draw(s, 1, round->n_new),
        .ignore_eos = true,
    };
    return ifl_engine_submit(round->engine, &request, err);
}

static int32_t soak_min(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static bool soak_stopped(const soak *s) {
    return s->options->stop && atomic_load(s->options->stop);
}

static bool soak_over(const soak *s) {
    return soak_stopped(s) || ifl_clock_s() - s->begin_s >= s->options->seconds;
}

static ifl_status soak_round_open(soak *s, soak_round *round, int32_t *prompt_max, ifl_error *err) {
    /* One round in four has sequences that cross KV splits; it is given fewer. */
    bool deep = !s->large && soak_draw(s, 0, 3) == 0;
    int32_t positions = s->model->config.max_positions;
    *prompt_max = s->large ? 24 : deep ? soak_draw(s, 200, SOAK_PROMPT_MAX) : soak_draw(s, 4, 160);
    *prompt_max = soak_min(*prompt_max, positions / 2);
    round->n_new = soak_min(s->large ? 12 : soak_draw(s, 2, 60), positions - *prompt_max);
    round->n_groups = s->large ? 4 : deep ? soak_draw(s, 3, 6) : soak_draw(s, 4, SOAK_GROUPS_MAX);
    round->arrivals = soak_draw(s, 5, 100);
    round->truncated = soak_draw(s, 0, 3) == 0;
    int32_t page_tokens = 1 << soak_draw(s, 0, 7), longest = *prompt_max + round->n_new;
    int32_t sequences = soak_draw(s, 1, 64);
    round->options = (ifl_engine_options){
        .sequences_max = sequences,
        /* From barely one sequence and its rebuild, so that others are preempted, to room for many.
         */
        .kv_tokens = (3 + soak_draw(s, 0, sequences / 3)) *
                     ((longest + page_tokens - 1) / page_tokens + 1) * page_tokens,
        .page_tokens = page_tokens,
        .prefill_chunk_tokens = soak_draw(s, 1, 64),
        .kv_mode = soak_draw(s, 0, 1) ? IFL_KV_MODE_RECOMPUTE : IFL_KV_MODE_KEEP,
        .seed = s->options->seed + (uint64_t)s->result->rounds,
    };
    round->ops = s->ops[soak_draw(s, 0, s->n_ops - 1)];
    const ifl_ops *replay_ops = s->ops[soak_draw(s, 0, s->n_ops - 1)];
    int32_t threads = soak_draw(s, 1, s->threads_max),
            replay_threads = soak_draw(s, 1, s->threads_max);
    snprintf(round->text, sizeof round->text,
             "%s, %d threads, pages of %d, chunks of %d, at most %d sequences, kv %s; replayed by "
             "%s, %d threads",
             round->ops->name, threads, page_tokens, round->options.prefill_chunk_tokens,
             round->options.sequences_max,
             round->options.kv_mode == IFL_KV_MODE_RECOMPUTE ? "recompute" : "keep",
             replay_ops->name, replay_threads);
    if (s->options->mutate) round->ops = ifl_parity_mutant(round->ops);
    IFL_TRY(ifl_thread_pool_create(&round->pool, threads, err));
    IFL_TRY(ifl_thread_pool_create(&round->replay_pool, replay_threads, err));
    IFL_TRY(ifl_workspace_create(&round->replay, s->model, soak_draw(s, 1, 64), round->replay_pool,
                                 replay_ops, err));
    IFL_TRY(ifl_engine_create(&round->engine, s->model, NULL, &round->options, round->pool,
                              round->ops, err));
    return ifl_engine_swap(round->engine, &s->versions[0], err);
}

/* Parks a running sequence, as a lack of pages would. */
static void soak_park(soak *s, const soak_round *round) {
    for (int tries = 0; tries < 16; tries++) {
        uint64_t task = (uint64_t)soak_draw(s, 0, round->n_submitted);
        int32_t sample = soak_draw(s, 0, 7);
        if (!ifl_engine_peek(round->engine, task, sample)) continue;
        ifl_engine_park(round->engine, task, sample,
                        NULL); /* one that waits already: no error here */
        return;
    }
}

static ifl_status soak_round_work(soak *s, soak_round *round, int32_t prompt_max, ifl_error *err) {
    while (round->n_submitted < round->n_groups || !ifl_engine_idle(round->engine)) {
        int32_t n_decoded;
        if (soak_stopped(s)) break;
        if (round->n_submitted > 0 && soak_over(s)) round->n_groups = round->n_submitted;
        if (round->n_submitted < round->n_groups &&
            (ifl_engine_idle(round->engine) || soak_draw(s, 1, 100) <= round->arrivals))
            IFL_TRY(soak_submit(s, round, prompt_max, err));
        IFL_TRY(ifl_engine_step(round->engine, &n_decoded, err));
        if (soak_draw(s, 0, 9) == 0 && round->n_swaps + 1 < SOAK_VERSIONS) {
            ifl_status swapped =
                ifl_engine_swap(round->engine, &s->versions[round->n_swaps + 1], err);
            if (swapped == IFL_OK)
                round->n_swaps++;
            else if (swapped != IFL_AGAIN)
                return swapped;
        }
        if (soak_draw(s, 0, 19) == 0) soak_park(s, round);
        IFL_TRY(soak_take_finished(s, round, err));
    }
    return soak_take_finished(s, round, err);
}

static ifl_status soak_round_run(soak *s, ifl_error *err) {
    soak_round round = {0};
    int32_t prompt_max;
    ifl_status st = soak_round_open(s, &round, &prompt_max, err);
    if (st == IFL_OK) st = soak_round_work(s, &round, prompt_max, err);
    if (st == IFL_OK) {
        ifl_engine_stats stats;
        ifl_engine_stats_get(round.engine, &stats);
        s->result->swaps += round.n_swaps;
        s->result->preemptions += stats.preemptions;
        s->result->tokens_rebuilt += stats.tokens_rebuilt;
        s->result->tokens_shared += stats.tokens_shared;
        s->result->rounds++;
    }
    ifl_engine_free(round.engine);
    ifl_workspace_free(round.replay);
    ifl_thread_pool_free(round.replay_pool);
    ifl_thread_pool_free(round.pool);
    return st;
}

/* --- The soak ----------------------------------------------------------------------------------
 */

static ifl_status soak_open(soak *s, const ifl_weights *weights, ifl_error *err) {
    s->large = s->model->n_elements > SOAK_LARGE;
    s->n_distinct = s->large ? 2 : SOAK_MADE_MAX;
    s->distinct[0] = weights;
    for (int32_t i = 1; i < s->n_distinct; i++) {
        IFL_TRY(ifl_weights_create(&s->made[i], s->model, err));
        IFL_TRY(ifl_random_step(s->made[i], s->distinct[i - 1], s->options->seed + (uint64_t)i,
                                0.05, err));
        s->distinct[i] = s->made[i];
    }
    for (int32_t v = 0; v < SOAK_VERSIONS; v++) {
        s->versions[v] = *s->distinct[v % s->n_distinct];
        s->versions[v].version = v;
    }
    const ifl_ops *all[8];
    int n = ifl_ops_list(s->model->numerics, all, 8);
    for (int i = 0; i < n; i++) {
        bool slow =
            strcmp(all[i]->name, "ref") == 0 || (s->large && strcmp(all[i]->name, "generic") == 0);
        bool wanted = s->options->ops ? all[i] == s->options->ops : !slow || i == n - 1;
        if (wanted) s->ops[s->n_ops++] = all[i];
    }
    ifl_thread_pool *pool;
    IFL_TRY(ifl_thread_pool_create(&pool, s->options->threads_max, err));
    s->threads_max = ifl_thread_pool_size(pool);
    ifl_thread_pool_free(pool);
    return IFL_OK;
}

static void soak_show(soak *s, bool always) {
    double now = ifl_clock_s();
    if (!s->options->progress || (!always && now - s->shown_s < SOAK_PROGRESS_S)) return;
    s->shown_s = now;
    const ifl_soak_result *r = s->result;
    fprintf(s->options->progress,
            "%6.0f s: %lld rounds, %lld trajectories, %lld tokens compared, %lld differing; %lld "
            "after a swap, %lld "
            "swaps, %lld preemptions\n",
            now - s->begin_s, (long long)r->rounds, (long long)r->trajectories,
            (long long)r->tokens, (long long)r->differing, (long long)r->tokens_after_swap,
            (long long)r->swaps, (long long)r->preemptions);
    fflush(s->options->progress);
}

ifl_status ifl_parity_soak(const ifl_model *model, const ifl_weights *weights,
                           const ifl_soak_options *options, ifl_soak_result *result,
                           ifl_error *err) {
    memset(result, 0, sizeof *result);
    soak *s = ifl_alloc(1, sizeof *s);
    if (!s) return ifl_fail(err, IFL_NOMEM, "soak: out of memory");
    s->model = model;
    s->options = options;
    s->result = result;
    s->key = (ifl_rng_key){options->seed ^ model->profile.low, 0, IFL_RNG_TEST};
    s->begin_s = s->shown_s = ifl_clock_s();
    ifl_status st = soak_open(s, weights, err);
    while (st == IFL_OK) {
        st = soak_round_run(s, err);
        soak_show(s, false);
        if (soak_over(s)) break;
    }
    result->seconds = ifl_clock_s() - s->begin_s;
    if (st == IFL_OK) soak_show(s, true);
    for (int32_t i = 1; i < SOAK_MADE_MAX; i++)
        ifl_weights_free(s->made[i]);
    ifl_free(s);
    return st;
}

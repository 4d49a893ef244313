#include <string.h>

#include "actor/engine.h"
#include "actor/parity_internal.h"
#include "common/memory.h"
#include "kernels/random_model.h"
#include "kernels/replay.h"

enum { VERSIONS = 4 };

typedef struct engine_parity {
    parity *p;
    const ifl_weights *versions[VERSIONS]; /* [0] is the model's own */
    ifl_weights *made[VERSIONS];
    ifl_workspace *workspace; /* of the replay: another chunk size than the engine's */
    bool recompute, truncated;
} engine_parity;

static const ifl_weights *engine_parity_get(void *context, int64_t version) {
    const engine_parity *ep = context;
    return version >= 0 && version < VERSIONS ? ep->versions[version] : NULL;
}

static void note(engine_parity *ep, const char *path, const ifl_trajectory *t,
                 const ifl_replay_result *r) {
    ifl_parity_count(ep->p, r->n_checked, r->n_differing);
    char *first = r->n_differing ? ifl_parity_first(ep->p) : NULL;
    if (first)
        snprintf(first, sizeof ep->p->report->rows[0].first,
                 "%s: task %llu, sample %d, token %d: recorded %.9g, computed %.9g", path,
                 (unsigned long long)t->task_serial, t->sample, r->first_differing,
                 (double)r->first_recorded, (double)r->first_replayed);
}

/* A record that no learner would take: no probability is above 1. */
static void note_refused(engine_parity *ep, const ifl_error *refused) {
    ifl_parity_count(ep->p, 1, 1);
    char *first = ifl_parity_first(ep->p);
    if (first) snprintf(first, sizeof ep->p->report->rows[0].first, "%.150s", refused->text);
}

/* What the learner computes: the softmax over the recorded sets, and over the full vocabulary. */
static ifl_status score_sets(engine_parity *ep, const ifl_trajectory *t, ifl_replay_result *r,
                             ifl_error *err) {
    size_t n = (size_t)t->n_tokens;
    float *kept = ifl_alloc(n, sizeof *kept), *full = ifl_alloc(n, sizeof *full);
    ifl_replay_scores scores = {.logprobs = kept, .full_logprobs = full};
    ifl_status st = kept && full ? IFL_OK : ifl_fail(err, IFL_NOMEM, "parity: out of memory");
    *r = (ifl_replay_result){.first_differing = -1};
    if (st == IFL_OK)
        st = ifl_replay_score(ep->workspace, engine_parity_get, ep, t, IFL_HISTORY_RECORDED, -1,
                              &scores, err);
    for (int32_t p = 0; p < t->n_tokens && st == IFL_OK; p++) {
        if (ifl_trajectory_version_at(t, p) < 0) continue;
        r->n_checked++;
        if (memcmp(&kept[p], &t->logprobs[p], sizeof *kept) == 0 &&
            memcmp(&full[p], &t->full_logprobs[p], sizeof *full) == 0)
            continue;
        if (r->n_differing++ > 0) continue;
        r->first_differing = p;
        r->first_recorded = t->logprobs[p];
        r->first_replayed = kept[p];
    }
    ifl_free(kept);
    ifl_free(full);
    return st;
}

static ifl_status replay_all(engine_parity *ep, ifl_engine *engine, int64_t *n_spanning,
                             ifl_error *err) {
    ifl_trajectory *t;
    while ((t = ifl_engine_take_finished(engine, NULL))) {
        ifl_replay_result r;
        ifl_error refused = {0};
        *n_spanning += t->n_runs > 1;
        if (ifl_trajectory_check(t, ep->p->model->config.vocab_size, &refused) != IFL_OK) {
            note_refused(ep, &refused);
            ifl_trajectory_free(t);
            continue;
        }
        ifl_status st = IFL_OK;
        if (st == IFL_OK) st = ifl_replay(ep->workspace, engine_parity_get, ep, t, NULL, &r, err);
        if (st == IFL_OK) note(ep, "replay of the KV record", t, &r);
        if (st == IFL_OK && ep->recompute) {
            st = ifl_replay_recompute(ep->workspace, engine_parity_get, ep, t, NULL, &r, err);
            if (st == IFL_OK) note(ep, "each version's forward over the whole prefix", t, &r);
        }
        if (st == IFL_OK && ep->truncated) {
            st = score_sets(ep, t, &r, err);
            if (st == IFL_OK) note(ep, "softmax over the recorded sets", t, &r);
        }
        ifl_trajectory_free(t);
        IFL_TRY(st);
    }
    return IFL_OK;
}

static ifl_status submit(engine_parity *ep, ifl_engine *engine, uint64_t task, int32_t n_prompt,
                         int32_t n_new, int32_t n_samples, ifl_error *err) {
    ifl_engine_request request = {
        .task_serial = task,
        .task_id = "parity",
        .prompt = ep->p->tokens + task % 5,
        .n_prompt = n_prompt,
        .n_samples = n_samples,
        .sampling = ep->truncated ? (ifl_sampling){0.8f, 20, 0.9f} : (ifl_sampling){1, 0, 1},
        .max_new_tokens = n_new,
        .ignore_eos = true,
    };
    return ifl_engine_submit(engine, &request, err);
}

/* Groups of several lengths in a cache too small for all, swaps and a parked sequence in the
 * middle. */
static ifl_status engine_scenario(engine_parity *ep, int32_t page_tokens, ifl_error *err) {
    parity *p = ep->p;
    bool large = p->model->n_elements > 20000000;
    bool quick = p->options->quick;
    int32_t n_new = large ? 10 : quick ? 20 : 40, n_groups = large ? 2 : quick ? 4 : 5;
    int32_t longest = p->n_tokens / 2;
    ifl_engine_options options = {
        .sequences_max = 9,
        .kv_tokens = 4 * (longest + n_new + page_tokens),
        .page_tokens = page_tokens,
        .prefill_chunk_tokens = 7,
        .kv_mode = ep->recompute ? IFL_KV_MODE_RECOMPUTE : IFL_KV_MODE_KEEP,
        .seed = p->options->seed,
    };
    ifl_engine *engine;
    ifl_status st;
    int64_t n_spanning = 0;
    int32_t n_decoded, n_swaps = 0;
    IFL_TRY(ifl_engine_create(&engine, p->model, NULL, &options, p->pool, p->engine_ops, err));
    IFL_TRY_GOTO(st, ifl_engine_swap(engine, ep->versions[0], err), done);
    for (int32_t g = 0; g < n_groups; g++)
        IFL_TRY_GOTO(
            st, submit(ep, engine, (uint64_t)g, 1 + g * (longest - 1) / n_groups, n_new, 3, err),
            done);
    for (int32_t step = 1; !ifl_engine_idle(engine); step++) {
        IFL_TRY_GOTO(st, ifl_engine_step(engine, &n_decoded, err), done);
        if (step % (n_new / 5) == 0 && n_swaps < VERSIONS - 1) {
            ifl_status swapped = ifl_engine_swap(engine, ep->versions[n_swaps + 1], err);
            if (swapped == IFL_OK)
                n_swaps++;
            else if (swapped != IFL_AGAIN) {
                st = swapped;
                goto done;
            }
        }
        /* Which sequences live by then depends on the steps alone, so NOTFOUND is fine. */
        if (step % 9 == 0) ifl_engine_park(engine, (uint64_t)(step / 9) % 5, 1, NULL);
    }
    IFL_TRY_GOTO(st, replay_all(ep, engine, &n_spanning, err), done);
    if (n_spanning == 0)
        st = ifl_fail(err, IFL_PARITY, "parity: no trajectory spans a swap; nothing was shown");
done:
    ifl_engine_free(engine);
    return st;
}

ifl_status ifl_parity_check_engine(parity *p, ifl_error *err) {
    engine_parity ep = {.p = p};
    ifl_status st = IFL_OK;
    ifl_weights own = *p->weights; /* the versions here count from 0 */
    own.version = 0;
    ep.versions[0] = &own;
    for (int v = 1; v < VERSIONS; v++) {
        IFL_TRY_GOTO(st, ifl_weights_create(&ep.made[v], p->model, err), done);
        IFL_TRY_GOTO(st, ifl_random_step(ep.made[v], ep.versions[v - 1], (uint64_t)v, 0.05, err),
                     done);
        ep.made[v]->version = v;
        ep.versions[v] = ep.made[v];
    }
    IFL_TRY_GOTO(st, ifl_workspace_create(&ep.workspace, p->model, 33, p->pool, p->ops, err), done);
    static const struct {
        const char *name;
        bool recompute, truncated;
        int32_t page_tokens;
    } scenarios[] = {
        {"engine, swaps with kv: keep, replayed", false, false, 16},
        {"engine, swaps with kv: recompute, replayed", true, false, 16},
        {"engine, recompute, pages of 1", true, false, 1},
        {"engine, keep, top-k and top-p", false, true, 4},
    };
    for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++) {
        ifl_parity_begin(p, scenarios[i].name);
        ep.recompute = scenarios[i].recompute;
        ep.truncated = scenarios[i].truncated;
        IFL_TRY_GOTO(st, engine_scenario(&ep, scenarios[i].page_tokens, err), done);
    }
done:
    ifl_workspace_free(ep.workspace);
    for (int v = 1; v < VERSIONS; v++)
        ifl_weights_free(ep.made[v]);
    return st;
}

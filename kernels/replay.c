#include "kernels/replay.h"

#include <string.h>

#include "common/memory.h"
#include "kernels/teacher.h"

/* Rows that one replay may run, all events together: bounds the work that a record can ask for. */
#define REPLAY_ROWS_MAX ((int64_t)1 << 24)

typedef struct replay {
    const ifl_trajectory *traj;
    ifl_workspace *workspace;
    ifl_teacher *teacher; /* made with the first version's model */
    uint8_t *read;        /* [n_tokens] this token's log-prob was computed */
    int32_t *targets;     /* [rows_max] */
    float *temperatures;
    ifl_logprob *logprobs;
    ifl_sampling *samplings;
    ifl_rng_key *keys;
    int64_t *positions;
    ifl_sample *samples;
    ifl_kept_set *kept;              /* scoring, as the next */
    const ifl_replay_scores *scores; /* NULL: a replay */
    bool any_version;                /* scored under other versions than sampled */
    bool moved;           /* IFL_HISTORY_MOVED: only tokens of version `own` are read, ... */
    int64_t own, version; /* ... under `version` */
    float *out;           /* [n_tokens] or NULL */
    ifl_replay_result *result;
    int64_t version_first; /* of the first policy token */
    bool draws;            /* tokens are drawn again */
    int64_t n_rows;
} replay;

static void replay_clear(replay *r) {
    ifl_free(r->kept);
    ifl_free(r->samples);
    ifl_free(r->positions);
    ifl_free(r->keys);
    ifl_free(r->samplings);
    ifl_free(r->logprobs);
    ifl_free(r->temperatures);
    ifl_free(r->targets);
    ifl_free(r->read);
    ifl_teacher_free(r->teacher);
}

/* Greedy and truncated sampling are repeated draw by draw: the kept set has to come out again. */
static bool replay_draws(const ifl_trajectory *traj) {
    return traj->temperature <= 0 || traj->top_k > 0 || traj->top_p < 1;
}

static ifl_status replay_open(replay *r, const ifl_trajectory *traj, ifl_workspace *workspace,
                              float *out, ifl_replay_result *result, ifl_error *err) {
    *result = (ifl_replay_result){.first_differing = -1};
    *r = (replay){.traj = traj, .workspace = workspace, .out = out, .result = result};
    if (traj->n_tokens < 1 || traj->n_tokens > IFL_TOKENS_MAX)
        return ifl_fail(err, IFL_FORMAT, "replay: trajectory of %d tokens, wanted 1 to %d",
                        traj->n_tokens, IFL_TOKENS_MAX);
    if (!(traj->temperature >= 0) || !(traj->top_p > 0) || traj->top_k < 0)
        return ifl_fail(err, IFL_FORMAT, "replay: sampling of temperature %g, top_k %d, top_p %g",
                        (double)traj->temperature, traj->top_k, (double)traj->top_p);
    if (out) memset(out, 0, (size_t)traj->n_tokens * sizeof *out);
    size_t n = (size_t)ifl_workspace_rows_max(workspace);
    r->read = ifl_alloc((size_t)traj->n_tokens, 1);
    r->targets = ifl_alloc(n, sizeof *r->targets);
    r->temperatures = ifl_alloc(n, sizeof *r->temperatures);
    r->logprobs = ifl_alloc(n, sizeof *r->logprobs);
    r->samplings = ifl_alloc(n, sizeof *r->samplings);
    r->keys = ifl_alloc(n, sizeof *r->keys);
    r->positions = ifl_alloc(n, sizeof *r->positions);
    r->samples = ifl_alloc(n, sizeof *r->samples);
    r->kept = ifl_alloc(n, sizeof *r->kept);
    if (!r->read || !r->targets || !r->temperatures || !r->logprobs || !r->samplings || !r->keys ||
        !r->positions || !r->samples || !r->kept)
        return ifl_fail(err, IFL_NOMEM, "replay: out of memory for %d tokens", traj->n_tokens);
    ifl_rng_key key = {traj->seed,
                       ifl_trajectory_stream(traj->task_serial, traj->sample, traj->purpose),
                       IFL_RNG_SAMPLE_TOKEN};
    for (size_t i = 0; i < n; i++) {
        r->temperatures[i] = traj->temperature > 0 ? traj->temperature : 1;
        r->samplings[i] = (ifl_sampling){traj->temperature, traj->top_k, traj->top_p};
        r->keys[i] = key;
    }
    r->version_first = traj->n_runs > 0 ? traj->runs[0].version : -1;
    r->draws = replay_draws(traj);
    return IFL_OK;
}

static void replay_compare(replay *r, int32_t t, float logprob, bool same_draw) {
    const ifl_trajectory *traj = r->traj;
    ifl_replay_result *result = r->result;
    r->read[t] = 1;
    if (r->out) r->out[t] = logprob;
    result->n_checked++;
    if (ifl_trajectory_version_at(traj, t) != r->version_first) result->n_after_swap++;
    if (same_draw && memcmp(&logprob, &traj->logprobs[t], sizeof logprob) == 0) return;
    result->n_differing++;
    if (result->first_differing < 0 || t < result->first_differing) {
        result->first_differing = t;
        result->first_recorded = traj->logprobs[t];
        result->first_replayed = logprob;
    }
}

/* Whether a draw is the recorded one: the token, and of a truncated one what could have been drawn,
 * and the log-prob over the full vocabulary. (Records of format 1 hold no sets.) */
static bool replay_same_draw(const ifl_trajectory *traj, int32_t t, const ifl_sample *sample) {
    if (sample->token != traj->tokens[t]) return false;
    if (!traj->kept_ends) return true;
    ifl_kept_set set = ifl_trajectory_kept(traj, t);
    return set.n == sample->n_kept &&
           (set.n == 0 || memcmp(set.ids, sample->kept, (size_t)set.n * sizeof *set.ids) == 0) &&
           memcmp(&traj->full_logprobs[t], &sample->full_logprob, sizeof(float)) == 0;
}

/* The same rows for scoring: log-probs over the recorded sets and over everything, logits where
 * they are wanted. */
static ifl_status replay_read_scores(replay *r, const ifl_weights *weights, const float *hidden,
                                     int32_t out_begin, int32_t end, ifl_error *err) {
    const ifl_trajectory *traj = r->traj;
    const ifl_replay_scores *s = r->scores;
    int32_t n = end - out_begin, vocab = weights->model->config.vocab_size;
    for (int32_t i = 0; i < n; i++) {
        r->targets[i] = traj->tokens[out_begin + 1 + i];
        r->kept[i] = ifl_trajectory_kept(traj, out_begin + 1 + i);
    }
    IFL_TRY(ifl_head_logprobs_kept(r->workspace, weights, hidden, n, r->targets, r->temperatures,
                                   r->kept, r->logprobs, err));
    for (int32_t i = 0; i < n; i++) {
        int32_t t = out_begin + 1 + i;
        int64_t version = ifl_trajectory_version_at(traj, t);
        if (version < 0 || (r->moved && version != r->own)) continue;
        if ((r->moved ? r->version : version) != weights->version && !r->any_version)
            return ifl_fail(err, IFL_FORMAT,
                            "replay: token %d is stamped version %lld, its KV record says %lld", t,
                            (long long)version, (long long)weights->version);
        if (r->read[t])
            return ifl_fail(err, IFL_FORMAT, "replay: the KV record samples token %d twice", t);
        r->read[t] = 1;
        s->logprobs[t] = r->logprobs[i].logprob;
        s->full_logprobs[t] = r->logprobs[i].full_logprob;
    }
    for (int32_t k = 0; k < s->n_positions; k++) {
        int32_t t = s->positions[k];
        if (t <= out_begin || t > end || ifl_trajectory_version_at(traj, t) < 0) continue;
        if (r->moved && ifl_trajectory_version_at(traj, t) != r->own) continue;
        IFL_TRY(
            ifl_head_logits(r->workspace, weights,
                            hidden + (int64_t)(t - 1 - out_begin) * weights->model->config.d_model,
                            1, s->logits + (int64_t)k * vocab, err));
    }
    return IFL_OK;
}

/* Reads the log-probs of tokens (out_begin, end] off the hidden rows of positions [out_begin, end).
 */
static ifl_status replay_read(replay *r, const ifl_weights *weights, const float *hidden,
                              int32_t out_begin, int32_t end, ifl_error *err) {
    if (r->scores) return replay_read_scores(r, weights, hidden, out_begin, end, err);
    const ifl_trajectory *traj = r->traj;
    int32_t n = end - out_begin;
    bool draws = r->draws;
    for (int32_t i = 0; i < n; i++) {
        r->targets[i] = traj->tokens[out_begin + 1 + i];
        r->positions[i] = out_begin + 1 + i;
    }
    if (draws)
        IFL_TRY(ifl_head_sample(r->workspace, weights, hidden, n, r->samplings, r->keys,
                                r->positions, r->samples, err));
    else
        IFL_TRY(ifl_head_logprobs(r->workspace, weights, hidden, n, r->targets, r->temperatures,
                                  r->logprobs, err));
    for (int32_t i = 0; i < n; i++) {
        int32_t t = out_begin + 1 + i;
        int64_t version = ifl_trajectory_version_at(traj, t);
        if (version < 0) continue; /* an environment token: nobody sampled it */
        if (version != weights->version)
            return ifl_fail(err, IFL_FORMAT,
                            "replay: token %d is stamped version %lld, its KV record says %lld", t,
                            (long long)version, (long long)weights->version);
        if (r->read[t])
            return ifl_fail(err, IFL_FORMAT, "replay: the KV record samples token %d twice", t);
        replay_compare(r, t, draws ? r->samples[i].logprob : r->logprobs[i].logprob,
                       !draws || replay_same_draw(traj, t, &r->samples[i]));
    }
    return IFL_OK;
}

/* Rows [from, to) under `weights`, reading the tokens at positions >= at that they predict. */
static ifl_status replay_rows(replay *r, const ifl_weights *weights, int32_t from, int32_t to,
                              int32_t at, ifl_error *err) {
    const ifl_trajectory *traj = r->traj;
    r->n_rows += to - from;
    if (r->n_rows > REPLAY_ROWS_MAX)
        return ifl_fail(err, IFL_LIMIT, "replay: the KV record asks for more than %lld rows",
                        (long long)REPLAY_ROWS_MAX);
    if (!r->teacher)
        IFL_TRY(
            ifl_teacher_create(&r->teacher, r->workspace, weights->model, traj->n_tokens - 1, err));
    for (int32_t begin = from, end; begin < to; begin = end) {
        end = to - begin > r->teacher->rows_max ? begin + r->teacher->rows_max : to;
        int32_t out_begin = at - 1 > begin ? at - 1 : begin;
        if (out_begin > end) out_begin = end;
        const float *hidden;
        IFL_TRY(ifl_teacher_rows(r->teacher, weights, traj->tokens, begin, end, out_begin, &hidden,
                                 err));
        if (out_begin < end) IFL_TRY(replay_read(r, weights, hidden, out_begin, end, err));
    }
    return IFL_OK;
}

static ifl_status replay_get(ifl_weights_get_fn get, void *context, int64_t version,
                             const ifl_weights **weights, ifl_error *err) {
    *weights = get(context, version);
    if (!*weights)
        return ifl_fail(err, IFL_NOTFOUND, "replay: the weights of version %lld are gone",
                        (long long)version);
    if ((*weights)->version != version)
        return ifl_fail(err, IFL_MISMATCH, "replay: asked for version %lld, got %lld",
                        (long long)version, (long long)(*weights)->version);
    return IFL_OK;
}

static ifl_status replay_all_read(const replay *r, ifl_error *err) {
    for (int32_t t = 0; t < r->traj->n_tokens; t++)
        if (!r->read[t] && ifl_trajectory_version_at(r->traj, t) >= 0)
            return ifl_fail(err, IFL_FORMAT,
                            "replay: the record never computes the log-prob of token %d", t);
    return IFL_OK;
}

/* Follows the KV record of an opened replay. */
static ifl_status replay_follow(replay *r, ifl_weights_get_fn get, void *context, ifl_error *err) {
    const ifl_trajectory *traj = r->traj;
    int32_t n_built = 0; /* positions [0, n_built) hold KV */
    for (int32_t i = 0; i < traj->n_kv_events; i++) {
        const ifl_kv_event *e = &traj->kv_events[i];
        if (e->from < 0 || e->from > n_built || e->to < e->from || e->to >= traj->n_tokens ||
            e->at < 0 || (e->kind == IFL_KV_KEPT && e->to > n_built))
            return ifl_fail(
                err, IFL_FORMAT,
                "replay: KV event %d covers [%d, %d) at token %d; %d positions of %d tokens "
                "hold KV then",
                i, e->from, e->to, e->at, n_built, traj->n_tokens);
        if (e->kind == IFL_KV_KEPT || e->from == e->to) continue;
        const ifl_weights *weights;
        int64_t version = r->moved ? ifl_replay_moved(e->version, r->own, r->version) : e->version;
        IFL_TRY(replay_get(get, context, version, &weights, err));
        IFL_TRY(replay_rows(r, weights, e->from, e->to, e->at, err));
        n_built = e->to;
    }
    return IFL_OK;
}

/* The KV record once for each version that sampled tokens. */
static ifl_status replay_moved(replay *r, ifl_weights_get_fn get, void *context, int64_t version,
                               ifl_error *err) {
    const ifl_trajectory *traj = r->traj;
    r->moved = true;
    r->version = version;
    for (int32_t i = 0; i < traj->n_runs; i++) {
        const ifl_version_run *run = &traj->runs[i];
        if (run->begin < 1 || run->n_tokens < 1 || run->begin > traj->n_tokens - run->n_tokens)
            return ifl_fail(err, IFL_FORMAT, "replay: version run %d covers [%d, +%d) of %d tokens",
                            i, run->begin, run->n_tokens, traj->n_tokens);
        if (r->read[run->begin]) continue;
        r->own = run->version;
        IFL_TRY(replay_follow(r, get, context, err));
    }
    return IFL_OK;
}

/* Each version over the whole prefix, read at its own tokens. */
static ifl_status replay_runs(replay *r, ifl_weights_get_fn get, void *context, ifl_error *err) {
    const ifl_trajectory *traj = r->traj;
    for (int32_t i = 0; i < traj->n_runs; i++) {
        const ifl_version_run *run = &traj->runs[i];
        if (run->begin < 1 || run->n_tokens < 1 || run->begin > traj->n_tokens - run->n_tokens)
            return ifl_fail(err, IFL_FORMAT, "replay: version run %d covers [%d, +%d) of %d tokens",
                            i, run->begin, run->n_tokens, traj->n_tokens);
        const ifl_weights *weights;
        IFL_TRY(replay_get(get, context, run->version, &weights, err));
        IFL_TRY(replay_rows(r, weights, 0, run->begin + run->n_tokens - 1, run->begin, err));
    }
    return IFL_OK;
}

static ifl_status replay_events(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                                const ifl_trajectory *traj, bool draw_all, float *logprobs_out,
                                ifl_replay_result *result, ifl_error *err) {
    replay r;
    ifl_status st = replay_open(&r, traj, workspace, logprobs_out, result, err);
    r.draws = r.draws || draw_all;
    if (st == IFL_OK) st = replay_follow(&r, get, context, err);
    if (st == IFL_OK) st = replay_all_read(&r, err);
    replay_clear(&r);
    return st;
}

ifl_status ifl_replay(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                      const ifl_trajectory *traj, float *logprobs_out, ifl_replay_result *result,
                      ifl_error *err) {
    return replay_events(workspace, get, context, traj, false, logprobs_out, result, err);
}

ifl_status ifl_replay_generate(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                               const ifl_trajectory *traj, ifl_replay_result *result,
                               ifl_error *err) {
    return replay_events(workspace, get, context, traj, true, NULL, result, err);
}

ifl_status ifl_replay_recompute(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                                const ifl_trajectory *traj, float *logprobs_out,
                                ifl_replay_result *result, ifl_error *err) {
    replay r;
    ifl_status st = replay_open(&r, traj, workspace, logprobs_out, result, err);
    if (st == IFL_OK) st = replay_runs(&r, get, context, err);
    if (st == IFL_OK) st = replay_all_read(&r, err);
    replay_clear(&r);
    return st;
}

ifl_status ifl_replay_score(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                            const ifl_trajectory *traj, ifl_replay_history history, int64_t version,
                            const ifl_replay_scores *scores, ifl_error *err) {
    replay r;
    ifl_replay_result result;
    ifl_status st = replay_open(&r, traj, workspace, NULL, &result, err);
    if (st != IFL_OK) goto done;
    r.scores = scores;
    r.any_version = history == IFL_HISTORY_ONE;
    memset(scores->logprobs, 0, (size_t)traj->n_tokens * sizeof *scores->logprobs);
    memset(scores->full_logprobs, 0, (size_t)traj->n_tokens * sizeof *scores->full_logprobs);
    if (history == IFL_HISTORY_RECORDED) {
        st = replay_follow(&r, get, context, err);
    } else if (history == IFL_HISTORY_OWN) {
        st = replay_runs(&r, get, context, err);
    } else if (history == IFL_HISTORY_MOVED) {
        st = replay_moved(&r, get, context, version, err);
    } else if (traj->n_runs > 0) {
        const ifl_version_run *last = &traj->runs[traj->n_runs - 1];
        const ifl_weights *weights;
        if (traj->runs[0].begin < 1 || last->n_tokens > traj->n_tokens - last->begin)
            IFL_TRY_GOTO(st, ifl_fail(err, IFL_FORMAT, "replay: version runs leave the tokens"),
                         done);
        IFL_TRY_GOTO(st, replay_get(get, context, version, &weights, err), done);
        st =
            replay_rows(&r, weights, 0, last->begin + last->n_tokens - 1, traj->runs[0].begin, err);
    }
    if (st == IFL_OK) st = replay_all_read(&r, err);
done:
    replay_clear(&r);
    return st;
}

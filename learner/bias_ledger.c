#include "learner/bias_ledger.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/memory.h"
#include "common/rng.h"

#define CHUNK_ROWS 256 /* decides speed, never a bit */

const char *ifl_bias_entry_name(ifl_bias_entry entry) {
    static const char *const names[IFL_BIAS_COUNT] = {"numerics", "truncation", "stale_kv", "lag",
                                                      "total"};
    return names[entry];
}

/* --- Arithmetic
 * ------------------------------------------------------------------------------------- */

static double ratio_of(double log_r) {
    return exp(fmin(fmax(log_r, -IFL_LOSS_LOG_RATIO_MAX), IFL_LOSS_LOG_RATIO_MAX));
}

static void sums_add(ifl_bias_sums *s, double log_r, double advantage) {
    double r = ratio_of(log_r), gain = -(r - 1.0) * advantage;
    s->n++;
    s->n_moved += log_r != 0.0;
    s->n_above_2 += fabs(log_r) > log(2.0);
    s->log_r += log_r;
    s->k3 += r - 1.0 - log_r;
    s->w += r;
    s->w2 += r * r;
    s->max_abs = fmax(s->max_abs, fabs(log_r));
    if (advantage > 0.0) s->gain_positive += gain;
    if (advantage < 0.0) s->gain_negative += gain;
}

static ifl_bias_sums *lag_sums(ifl_bias_record *record, int64_t lag) {
    return &record->lags[lag < 0 ? 0 : lag < IFL_BIAS_LAGS ? lag : IFL_BIAS_LAGS - 1];
}

/* p/mu over the kept sets, beside what the loss weighs the token with. */
static void correction_add(ifl_bias_record *record, double p, double mu, double weight,
                           double advantage) {
    double w = ratio_of(p - mu);
    record->correction.n++;
    record->correction.mass += fabs(advantage);
    if (!isfinite(weight) || weight == w) return;
    record->correction.n_changed++;
    record->correction.mass_changed += fabs(advantage);
    record->correction.bias += w - weight;
    record->correction.abs_bias += fabs(w - weight);
    if (weight != 0.0) return;
    record->correction.n_dropped++;
    record->correction.mass_dropped += fabs(advantage);
}

ifl_status ifl_bias_add(ifl_bias_record *record, const ifl_bias_tokens *t,
                        const ifl_loss_options *loss, ifl_error *err) {
    size_t n = (size_t)t->n;
    ifl_logprob *logprobs = ifl_alloc(n, sizeof *logprobs);
    float *advantages = ifl_alloc(n, sizeof *advantages);
    int32_t *lengths = ifl_alloc(n, sizeof *lengths), *owners = ifl_alloc(n, sizeof *owners);
    uint8_t *foreign = ifl_alloc(n, 1);
    double *weights = ifl_alloc(n, sizeof *weights), sequence = 0.0;
    ifl_status st = IFL_OK;
    if (!logprobs || !advantages || !lengths || !owners || !foreign || !weights) {
        st = ifl_fail(err, IFL_NOMEM, "bias ledger: out of memory for %d tokens", t->n);
        goto done;
    }
    for (int32_t i = 0; i < t->n; i++) {
        logprobs[i].logprob = t->now_kept[i];
        advantages[i] = (float)t->advantage;
        lengths[i] = t->n;
        foreign[i] = t->foreign;
    }
    ifl_loss_weights(loss,
                     &(ifl_loss_tokens){.n = t->n,
                                        .logprobs = logprobs,
                                        .behaviour_logprobs = t->chain[0],
                                        .advantages = advantages,
                                        .loss_weights = t->loss_weights,
                                        .trajectory_tokens = lengths,
                                        .trajectories = owners,
                                        .foreign = foreign},
                     weights);
    for (int32_t i = 0; i < t->n; i++) {
        double total = (double)t->chain[IFL_BIAS_CHAIN - 1][i] - (double)t->chain[0][i], sum = 0.0;
        for (int e = 0; e < IFL_BIAS_TOTAL; e++) {
            double delta = (double)t->chain[e + 1][i] - (double)t->chain[e][i];
            sum += delta;
            sums_add(&record->entries[e], delta, t->advantage);
            if (e == IFL_BIAS_NUMERICS && delta != 0.0 && !t->foreign) record->n_differing++;
            if (e == IFL_BIAS_LAG) sums_add(lag_sums(record, t->lags[i]), delta, t->advantage);
        }
        sums_add(&record->entries[IFL_BIAS_TOTAL], total, t->advantage);
        const double lag = (double)t->moved[i] - (double)t->chain[1][i],
                     stale = (double)t->now_kept[i] - (double)t->moved[i],
                     truncation = (double)t->chain[IFL_BIAS_CHAIN - 1][i] - (double)t->now_kept[i];
        sums_add(&record->reversed[IFL_BIAS_LAG], lag, t->advantage);
        sums_add(&record->reversed[IFL_BIAS_STALE_KV], stale, t->advantage);
        sums_add(&record->reversed[IFL_BIAS_TRUNCATION], truncation, t->advantage);
        double reversed =
            (double)t->chain[1][i] - (double)t->chain[0][i] + lag + stale + truncation;
        record->n_untelescoped += sum != total || reversed != total;
        correction_add(record, (double)t->now_kept[i], (double)t->chain[0][i], weights[i],
                       t->advantage);
        sequence += total;
    }
    double r = ratio_of(sequence);
    record->sequence.n++;
    record->sequence.w += r;
    record->sequence.w2 += r * r;
    record->sequence.log_r += sequence;
    record->n_trajectories++;
    record->n_tokens += t->n;
    if (t->foreign) record->n_foreign += t->n;
done:
    ifl_free(logprobs);
    ifl_free(advantages);
    ifl_free(lengths);
    ifl_free(owners);
    ifl_free(foreign);
    ifl_free(weights);
    return st;
}

/* --- Exact KL
 * --------------------------------------------------------------------------------------- */

/* log-sum-exp of logits / temperature. */
static double logits_lse(const float *x, int64_t n, double temperature) {
    double max = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        max = fmax(max, (double)x[i] / temperature);
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)x[i] / temperature - max);
    return max + log(sum);
}

static void kl_add(ifl_bias_sums *s, double kl) {
    s->kl += kl;
    s->n_kl++;
}

typedef struct kl_position {
    const float *recorded, *own, *now, *moved; /* logits [V] */
    int64_t vocab;
    double temperature;
    ifl_kept_set kept;
    double log_z;     /* of the kept set: c2 - c1 */
    double log_z_now; /* c4 - r2 */
    bool exact;       /* numerics moved nothing, so that c0's distribution is c1's */
    int64_t lag;
} kl_position;

/* log-sum-exp over a kept set. */
static double kept_lse(const float *x, ifl_kept_set kept, double temperature) {
    double max = -INFINITY, sum = 0.0;
    for (int32_t i = 0; i < kept.n; i++)
        max = fmax(max, (double)x[kept.ids[i]] / temperature);
    for (int32_t i = 0; i < kept.n; i++)
        sum += exp((double)x[kept.ids[i]] / temperature - max);
    return max + log(sum);
}

/* The links in the other order: over the kept set, where there is one. */
static void kl_position_add_reversed(ifl_bias_record *record, const kl_position *p, double recorded,
                                     double now) {
    ifl_kept_set kept = p->kept;
    bool all = kept.n == 0;
    int64_t n = all ? p->vocab : kept.n;
    double a = all ? recorded : kept_lse(p->recorded, kept, p->temperature),
           b = all ? logits_lse(p->moved, p->vocab, p->temperature)
                   : kept_lse(p->moved, kept, p->temperature),
           c = all ? now : kept_lse(p->now, kept, p->temperature);
    double lag = 0.0, stale = 0.0;
    for (int64_t i = 0; i < n; i++) {
        int64_t v = all ? i : kept.ids[i];
        double x = (double)p->recorded[v] / p->temperature - a;
        double y = (double)p->moved[v] / p->temperature - b;
        double z = (double)p->now[v] / p->temperature - c;
        lag += exp(x) * (x - y);
        stale += exp(y) * (y - z);
    }
    kl_add(&record->reversed[IFL_BIAS_LAG], lag);
    kl_add(&record->reversed[IFL_BIAS_STALE_KV], stale);
    kl_add(&record->reversed[IFL_BIAS_TRUNCATION], all ? 0.0 : -p->log_z_now);
}

/* Over the full vocabulary, each link under its left policy. */
static void kl_position_add(ifl_bias_record *record, const kl_position *p) {
    double a = logits_lse(p->recorded, p->vocab, p->temperature),
           b = logits_lse(p->own, p->vocab, p->temperature),
           c = logits_lse(p->now, p->vocab, p->temperature);
    double stale = 0.0, lag = 0.0, total = 0.0;
    for (int64_t v = 0; v < p->vocab; v++) {
        double x = (double)p->recorded[v] / p->temperature - a;
        double y = (double)p->own[v] / p->temperature - b;
        double z = (double)p->now[v] / p->temperature - c;
        stale += exp(x) * (x - y);
        lag += exp(y) * (y - z);
        if (p->kept.n == 0) total += exp(x) * (x - z);
    }
    for (int32_t i = 0; i < p->kept.n; i++) {
        int32_t v = p->kept.ids[i];
        double x = (double)p->recorded[v] / p->temperature - a - p->log_z;
        total += exp(x) * (x - ((double)p->now[v] / p->temperature - c));
    }
    if (p->exact) {
        kl_add(&record->entries[IFL_BIAS_NUMERICS], 0.0);
        kl_add(&record->entries[IFL_BIAS_TOTAL], total);
    }
    kl_add(&record->entries[IFL_BIAS_TRUNCATION], p->kept.n > 0 ? -p->log_z : 0.0);
    kl_add(&record->entries[IFL_BIAS_STALE_KV], stale);
    kl_add(&record->entries[IFL_BIAS_LAG], lag);
    kl_add(lag_sums(record, p->lag), lag);
    kl_position_add_reversed(record, p, a, c);
}

/* --- Scoring
 * ---------------------------------------------------------------------------------------- */

enum { HISTORIES = 4 }; /* recorded, own, now, moved */

struct ifl_bias_ledger {
    const ifl_model *model;
    ifl_bias_options options;
    ifl_workspace *workspace;
    float *logits; /* [HISTORIES][positions][V] */
    int32_t positions[IFL_BIAS_POSITIONS_MAX], n_positions;
    /* Columns of the trajectory under way: of all its tokens ... */
    float *scored[HISTORIES][2]; /* over the kept set, over everything */
    /* ... and of its loss tokens. */
    float *chain[IFL_BIAS_CHAIN], *moved, *now_kept, *loss_weights;
    int64_t *lags;
    int32_t *at; /* their positions */
    int32_t n_cap;
    ifl_bias_tokens last;
};

int64_t ifl_bias_ledger_bytes(const ifl_model *model, int32_t positions, int n_threads) {
    return ifl_workspace_bytes(model, CHUNK_ROWS, n_threads) +
           ifl_kv_store_bytes(model, model->config.max_positions, 1) +
           (int64_t)HISTORIES * positions * model->config.vocab_size * 4;
}

ifl_status ifl_bias_ledger_create(ifl_bias_ledger **out, const ifl_model *model,
                                  const ifl_bias_options *options, ifl_thread_pool *pool,
                                  const ifl_ops *ops, ifl_error *err) {
    *out = NULL;
    if (!(options->share >= 0.0 && options->share <= 1.0) || options->positions < 0 ||
        options->positions > IFL_BIAS_POSITIONS_MAX)
        return ifl_fail(err, IFL_USAGE,
                        "bias ledger: share %g and %d positions, wanted 0 to 1 and 0 to %d",
                        options->share, options->positions, IFL_BIAS_POSITIONS_MAX);
    ifl_bias_ledger *l = ifl_alloc(1, sizeof *l);
    if (!l) return ifl_fail(err, IFL_NOMEM, "bias ledger: out of memory");
    l->model = model;
    l->options = *options;
    size_t n = (size_t)HISTORIES * (size_t)options->positions * (size_t)model->config.vocab_size;
    ifl_status st = IFL_OK;
    if (n > 0) l->logits = ifl_alloc(n, sizeof *l->logits);
    if (n > 0 && !l->logits)
        st = ifl_fail(err, IFL_NOMEM, "bias ledger: out of memory for %d positions",
                      options->positions);
    if (st == IFL_OK) st = ifl_workspace_create(&l->workspace, model, CHUNK_ROWS, pool, ops, err);
    if (st != IFL_OK) {
        ifl_bias_ledger_free(l);
        return st;
    }
    *out = l;
    return IFL_OK;
}

static void columns_free(ifl_bias_ledger *l) {
    for (int h = 0; h < HISTORIES; h++)
        for (int k = 0; k < 2; k++) {
            ifl_free(l->scored[h][k]);
            l->scored[h][k] = NULL;
        }
    for (int c = 0; c < IFL_BIAS_CHAIN; c++) {
        ifl_free(l->chain[c]);
        l->chain[c] = NULL;
    }
    ifl_free(l->moved);
    ifl_free(l->now_kept);
    ifl_free(l->loss_weights);
    ifl_free(l->lags);
    ifl_free(l->at);
    l->moved = l->now_kept = l->loss_weights = NULL;
    l->lags = NULL;
    l->at = NULL;
    l->n_cap = 0;
}

static ifl_status columns_reserve(ifl_bias_ledger *l, int32_t n, ifl_error *err) {
    if (n <= l->n_cap) return IFL_OK;
    columns_free(l);
    bool good = true;
    for (int h = 0; h < HISTORIES; h++)
        for (int k = 0; k < 2; k++)
            good = (l->scored[h][k] = ifl_alloc((size_t)n, sizeof(float))) && good;
    for (int c = 0; c < IFL_BIAS_CHAIN; c++)
        good = (l->chain[c] = ifl_alloc((size_t)n, sizeof(float))) && good;
    l->moved = ifl_alloc((size_t)n, sizeof *l->moved);
    l->now_kept = ifl_alloc((size_t)n, sizeof *l->now_kept);
    l->loss_weights = ifl_alloc((size_t)n, sizeof *l->loss_weights);
    l->lags = ifl_alloc((size_t)n, sizeof *l->lags);
    l->at = ifl_alloc((size_t)n, sizeof *l->at);
    if (!good || !l->moved || !l->now_kept || !l->loss_weights || !l->lags || !l->at) {
        columns_free(l);
        return ifl_fail(err, IFL_NOMEM, "bias ledger: out of memory for %d tokens", n);
    }
    l->n_cap = n;
    return IFL_OK;
}

void ifl_bias_ledger_free(ifl_bias_ledger *l) {
    if (!l) return;
    columns_free(l);
    ifl_workspace_free(l->workspace);
    ifl_free(l->logits);
    ifl_free(l);
}

bool ifl_bias_selects(const ifl_bias_options *options, const ifl_trajectory *traj) {
    ifl_rng_key key = {options->seed, traj->task_serial, IFL_RNG_LEDGER};
    return (double)ifl_rng_uniform(&key, (uint64_t)traj->sample, 0) < options->share;
}

static int compare_positions(const void *a, const void *b) {
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* Where the exact KL is taken: among the loss tokens, keyed, each once. */
static void positions_choose(ifl_bias_ledger *l, const ifl_trajectory *traj, int32_t n) {
    ifl_rng_key key = {l->options.seed,
                       ifl_trajectory_stream(traj->task_serial, traj->sample, traj->purpose),
                       IFL_RNG_LEDGER};
    int32_t wanted = l->options.positions < n ? l->options.positions : n, held = 0;
    for (int32_t i = 0; i < wanted; i++)
        l->positions[i] =
            l->at[wanted == n ? i : (int32_t)ifl_rng_below(&key, (uint64_t)i, 1, (uint64_t)n)];
    qsort(l->positions, (size_t)wanted, sizeof *l->positions, compare_positions);
    for (int32_t i = 0; i < wanted; i++)
        if (held == 0 || l->positions[held - 1] != l->positions[i])
            l->positions[held++] = l->positions[i];
    l->n_positions = held;
}

/* Where the loss tokens are; how old each is. */
static int32_t tokens_find(ifl_bias_ledger *l, const ifl_trajectory *traj, int64_t step) {
    int32_t n = 0;
    for (int32_t t = 0; t < traj->n_tokens; t++) {
        if (traj->loss_weights[t] == 0.0f) continue;
        l->at[n] = t;
        l->loss_weights[n] = traj->loss_weights[t];
        l->lags[n++] = step - 1 - ifl_trajectory_version_at(traj, t);
    }
    return n;
}

/* Whether one version has sampled all of it, over KV that it has built itself. */
static bool has_one_version(const ifl_trajectory *traj) {
    bool one = traj->n_runs == 1;
    for (int32_t i = 0; one && i < traj->n_kv_events; i++)
        one = traj->kv_events[i].version == traj->runs[0].version;
    return one;
}

static void history_copy(ifl_bias_ledger *l, int32_t n_tokens, int from, int to) {
    int64_t stride = (int64_t)l->options.positions * l->model->config.vocab_size;
    for (int k = 0; k < 2; k++)
        memcpy(l->scored[to][k], l->scored[from][k], (size_t)n_tokens * sizeof(float));
    if (l->logits)
        memcpy(l->logits + to * stride, l->logits + from * stride,
               (size_t)l->n_positions * (size_t)l->model->config.vocab_size * sizeof(float));
}

/* Most trajectories have met one version alone: two of their histories are then the same forward
 * passes as the other two, and all four where that version is the newest. */
static ifl_status score_histories(ifl_bias_ledger *l, ifl_weights_get_fn get, void *context,
                                  const ifl_trajectory *traj, int64_t version, ifl_error *err) {
    static const ifl_replay_history histories[HISTORIES] = {IFL_HISTORY_RECORDED, IFL_HISTORY_OWN,
                                                            IFL_HISTORY_ONE, IFL_HISTORY_MOVED};
    int64_t stride = (int64_t)l->options.positions * l->model->config.vocab_size;
    bool one = has_one_version(traj), newest = one && traj->runs[0].version == version;
    const int same_as[HISTORIES] = {0, one ? 0 : 1, newest ? 0 : 2, one ? 2 : 3};
    for (int h = 0; h < HISTORIES; h++) {
        if (same_as[h] != h) {
            history_copy(l, traj->n_tokens, same_as[h], h);
            continue;
        }
        ifl_replay_scores scores = {l->scored[h][0], l->scored[h][1], l->n_positions, l->positions,
                                    l->logits ? l->logits + h * stride : NULL};
        IFL_TRY(ifl_replay_score(l->workspace, get, context, traj, histories[h], version, &scores,
                                 err));
    }
    return IFL_OK;
}

static void score_kl(const ifl_bias_ledger *l, const ifl_trajectory *traj, int64_t step,
                     ifl_bias_record *record) {
    int64_t vocab = l->model->config.vocab_size, stride = (int64_t)l->options.positions * vocab;
    for (int32_t k = 0; k < l->n_positions; k++) {
        int32_t t = l->positions[k];
        const float *logits = l->logits + k * vocab;
        kl_position p = {.recorded = logits,
                         .own = logits + stride,
                         .now = logits + 2 * stride,
                         .moved = logits + 3 * stride,
                         .vocab = vocab,
                         .temperature = traj->temperature > 0.0f ? (double)traj->temperature : 1.0,
                         .kept = ifl_trajectory_kept(traj, t),
                         .log_z = (double)l->scored[0][1][t] - (double)l->scored[0][0][t],
                         .log_z_now = (double)l->scored[2][1][t] - (double)l->scored[2][0][t],
                         .exact =
                             memcmp(&l->scored[0][0][t], &traj->logprobs[t], sizeof(float)) == 0,
                         .lag = step - 1 - ifl_trajectory_version_at(traj, t)};
        kl_position_add(record, &p);
    }
}

ifl_bias_tokens ifl_bias_scored(const ifl_bias_ledger *l, const int32_t **positions) {
    *positions = l->at;
    return l->last;
}

ifl_status ifl_bias_score(ifl_bias_ledger *l, ifl_weights_get_fn get, void *context,
                          const ifl_trajectory *traj, float advantage, int64_t step,
                          ifl_bias_record *record, ifl_error *err) {
    double begin = ifl_clock_s();
    IFL_TRY(columns_reserve(l, traj->n_tokens, err));
    int32_t n = tokens_find(l, traj, step);
    if (n == 0) return IFL_OK;
    positions_choose(l, traj, n);
    ifl_error why = {0};
    ifl_status st = score_histories(l, get, context, traj, step - 1, &why);
    if (st == IFL_NOTFOUND) {
        record->n_not_scored++;
        return IFL_OK;
    }
    if (st != IFL_OK) {
        if (err) *err = why;
        ifl_error_wrap(err, "bias ledger: task serial %llu, sample %d",
                       (unsigned long long)traj->task_serial, traj->sample);
        return st;
    }
    for (int32_t i = 0; i < n; i++) {
        int32_t t = l->at[i];
        l->chain[0][i] = traj->logprobs[t];
        l->chain[1][i] = l->scored[0][0][t];
        l->chain[2][i] = l->scored[0][1][t];
        l->chain[3][i] = l->scored[1][1][t];
        l->chain[4][i] = l->scored[2][1][t];
        l->moved[i] = l->scored[3][0][t];
        l->now_kept[i] = l->scored[2][0][t];
    }
    ifl_bias_tokens tokens = {.n = n,
                              .moved = l->moved,
                              .now_kept = l->now_kept,
                              .loss_weights = l->loss_weights,
                              .lags = l->lags,
                              .advantage = (double)advantage,
                              .foreign = !ifl_hash_equal(traj->profile, l->model->profile)};
    for (int c = 0; c < IFL_BIAS_CHAIN; c++)
        tokens.chain[c] = l->chain[c];
    l->last = tokens;
    IFL_TRY(ifl_bias_add(record, &tokens, &l->options.loss, err));
    score_kl(l, traj, step, record);
    record->seconds += ifl_clock_s() - begin;
    return IFL_OK;
}

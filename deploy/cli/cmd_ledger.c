/* `inflight ledger RUN ...`: the bias ledger of runs (learner/bias_ledger.h), as tables; with
 * --check it is computed again from the rollout log and the archived versions, and every figure
 * compared. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file_map.h"
#include "common/memory.h"
#include "common/rollout_log.h"
#include "deploy/cli/affinity.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/options.h"
#include "deploy/cli/run_archive.h"
#include "deploy/cli/run_argument.h"
#include "kernels/score.h"
#include "learner/bias_interval.h"

#define SUMMARY_BYTES_MAX ((size_t)16 << 20)
#define SCORED_MAX ((size_t)1 << 20)

typedef struct ledger_options {
    bool check, json;
} ledger_options;

/* --- Tables ----------------------------------------------------------------------------------- */

static json_t *summary_of(const ifl_run_dir *run) {
    char *text = NULL;
    size_t n = 0;
    if (ifl_file_read_text(run->summary, SUMMARY_BYTES_MAX, &text, &n, NULL) != IFL_OK) return NULL;
    json_t *root = json_loadb(text, n, 0, NULL);
    free(text);
    return root;
}

static double summary_number(const json_t *summary, const char *key) {
    const json_t *value = summary ? json_object_get(summary, key) : NULL;
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

/* What was asked of a run, in a few words: the multipliers of its speed. */
static void setting_print(const ifl_run_dir *run, char *out, size_t cap) {
    ifl_config *c = malloc(sizeof *c);
    snprintf(out, cap, "?");
    if (c && ifl_config_load(c, run->config, NULL, 0, NULL) == IFL_OK) {
        char mode[32];
        if (c->run.mode == IFL_MODE_ASYNC)
            snprintf(mode, sizeof mode, "async:%d", c->run.async_k);
        else
            snprintf(mode, sizeof mode, "%s", c->run.mode == IFL_MODE_SYNC ? "sync" : "pipeline");
        int n = snprintf(out, cap, "%s, kv %s", mode,
                         c->actor.kv == IFL_KV_MODE_KEEP ? "keep" : "recompute");
        if (c->rollout.top_p < 1 && n > 0 && (size_t)n < cap)
            n += snprintf(out + n, cap - (size_t)n, ", top_p %g", c->rollout.top_p);
        if (c->rollout.top_k > 0 && n > 0 && (size_t)n < cap)
            snprintf(out + n, cap - (size_t)n, ", top_k %d", c->rollout.top_k);
    }
    free(c);
}

typedef struct run_row {
    ifl_run_dir run;
    ifl_bias_record total;
    int64_t n_steps;
    double tokens_per_s;
} run_row;

static ifl_status run_load(run_row *row, const char *dir, const char *name, ifl_error *err) {
    IFL_TRY(ifl_run_dir_open(&row->run, dir, name, err));
    ifl_status st = ifl_bias_read(&row->total, &row->n_steps, row->run.ledger, err);
    if (st == IFL_NOTFOUND || (st == IFL_OK && row->n_steps == 0))
        return ifl_fail(err, IFL_NOTFOUND,
                        "%s: the run kept no bias ledger (ledger.sample was 0, or too small for "
                        "what it trained)",
                        row->run.ledger);
    IFL_TRY(st);
    json_t *summary = summary_of(&row->run);
    row->tokens_per_s = summary_number(summary, "tokens_trained_per_s");
    json_decref(summary);
    return IFL_OK;
}

static void field_json(void *object, const char *name, int64_t *integer, double *real) {
    json_object_set_new(object, name,
                        integer ? json_integer((json_int_t)*integer) : json_real(*real));
}

static void run_print(const run_row *row, bool json) {
    if (json) {
        ifl_bias_record copy = row->total;
        json_t *root = json_object();
        json_object_set_new(root, "run", json_string(row->run.path));
        json_object_set_new(root, "steps", json_integer((json_int_t)row->n_steps));
        ifl_bias_fields(&copy, false, field_json, root);
        char *text = json_dumps(root, JSON_COMPACT);
        json_decref(root);
        if (text) puts(text);
        free(text);
        return;
    }
    char setting[96];
    setting_print(&row->run, setting, sizeof setting);
    printf("%s: %s; %lld steps with scored answers\n", row->run.path, setting,
           (long long)row->n_steps);
    ifl_bias_print(stdout, &row->total);
}

/* What speed costs: each run beside the first. */
static void runs_compare(const run_row *rows, int n) {
    printf("\n%-24s %-32s %10s %7s %11s %11s %11s %11s %9s\n", "run", "setting", "tokens/s",
           "speed", "truncation", "stale KV", "lag", "total", "ESS/n");
    for (int i = 0; i < n; i++) {
        const run_row *r = &rows[i];
        char setting[96];
        const char *slash = strrchr(r->run.path, '/');
        setting_print(&r->run, setting, sizeof setting);
        const ifl_bias_record *b = &r->total;
        printf("%-24s %-32s %10.1f %6.2fx %11.3e %11.3e %11.3e %11.3e %9.6f\n",
               slash ? slash + 1 : r->run.path, setting, r->tokens_per_s,
               r->tokens_per_s / rows[0].tokens_per_s, ifl_bias_nats(b, IFL_BIAS_TRUNCATION),
               ifl_bias_nats(b, IFL_BIAS_STALE_KV), ifl_bias_nats(b, IFL_BIAS_LAG),
               ifl_bias_nats(b, IFL_BIAS_TOTAL),
               ifl_bias_figures_of(&b->entries[IFL_BIAS_TOTAL]).ess);
    }
    printf("tokens/s: trained, over the whole run; entries: KL in nats per token\n");
}

/* --- Check ------------------------------------------------------------------------------------ */

typedef struct scored {
    uint64_t serial;
    int32_t sample;
    float advantage;
    int64_t step;
    ifl_bias_part part;   /* as its row has it */
    ifl_trajectory *traj; /* owned; the last that the log has */
    int32_t process;      /* of the run: whose versions it was sampled by */
} scored;

typedef struct checker {
    const ifl_run_dir *run;
    ifl_config *config;
    scored *scored; /* in file order, steps ascending */
    size_t n_scored, scored_cap;
    size_t n_closed; /* of them, those whose step has its row */
    ifl_bias_record *records;
    size_t n_records, records_cap;
    ifl_run_archive archive;
    ifl_bias_ledger *ledger;
    const ifl_model *ledger_model;
    ifl_bias_bootstrap *step, *whole; /* intervals of a step, of the run */
    ifl_error *err;
    /* What came out. */
    int64_t n_steps, n_gone, n_figures, n_figures_differing, n_tokens, n_other, n_other_differing;
} checker;

static ifl_status check_row(const json_t *row, void *user) {
    checker *c = user;
    ifl_bias_record record;
    const char *kind = json_string_value(json_object_get(row, "kind"));
    int64_t step = (int64_t)json_integer_value(json_object_get(row, "step"));
    if (kind && strcmp(kind, "trajectory") == 0) {
        if (c->n_scored == SCORED_MAX)
            return ifl_fail(c->err, IFL_LIMIT, "%s: more than %zu trajectories", c->run->ledger,
                            SCORED_MAX);
        void *grown = c->scored;
        ifl_status st =
            ifl_grow(&grown, &c->scored_cap, c->n_scored + 1, sizeof *c->scored, c->err);
        c->scored = grown;
        if (st != IFL_OK) return st;
        c->scored[c->n_scored++] =
            (scored){.serial = (uint64_t)json_integer_value(json_object_get(row, "serial")),
                     .sample = (int32_t)json_integer_value(json_object_get(row, "sample")),
                     .advantage = (float)json_number_value(json_object_get(row, "advantage")),
                     .step = step};
        ifl_bias_part_of_row(&c->scored[c->n_scored - 1].part, row);
        return IFL_OK;
    }
    if (!ifl_bias_of_row(&record, row)) return IFL_OK;
    /* A resumed run makes steps again: what came later stands. Of the trajectories in front of this
     * row, as many as it counts are its own; others belong to a step that was never finished. */
    while (c->n_records && c->records[c->n_records - 1].step >= record.step)
        c->n_records--;
    size_t own = (size_t)record.n_trajectories, n_new = c->n_scored - c->n_closed;
    if (own > n_new)
        return ifl_fail(c->err, IFL_FORMAT, "%s: step %lld counts %zu trajectories and lists %zu",
                        c->run->ledger, (long long)record.step, own, n_new);
    while (c->n_closed && c->scored[c->n_closed - 1].step >= record.step)
        c->n_closed--;
    memmove(c->scored + c->n_closed, c->scored + c->n_scored - own, own * sizeof *c->scored);
    c->n_scored = c->n_closed += own;
    void *grown = c->records;
    ifl_status st = ifl_grow(&grown, &c->records_cap, c->n_records + 1, sizeof *c->records, c->err);
    c->records = grown;
    if (st == IFL_OK) c->records[c->n_records++] = record;
    return st;
}

static int compare_keys(const void *a, const void *b) {
    const scored *x = *(scored *const *)a, *y = *(scored *const *)b;
    if (x->serial != y->serial) return x->serial < y->serial ? -1 : 1;
    return x->sample - y->sample;
}

/* Takes the wanted trajectories out of the log; of one that a resumed run made again, the last. */
static ifl_status check_trajectories(checker *c, ifl_error *err) {
    scored **order = ifl_alloc(c->n_scored + 1, sizeof *order);
    if (!order) return ifl_fail(err, IFL_NOMEM, "ledger: out of memory");
    for (size_t i = 0; i < c->n_scored; i++)
        order[i] = &c->scored[i];
    qsort(order, c->n_scored, sizeof *order, compare_keys);
    ifl_rollout_reader *reader = NULL;
    ifl_record record;
    ifl_status st = ifl_rollout_reader_open(&reader, c->run->rollouts, err);
    if (st != IFL_OK) {
        ifl_free(order);
        return st;
    }
    while ((st = ifl_rollout_reader_next(reader, &record, err)) == IFL_OK) {
        if ((st = ifl_run_archive_record(&c->archive, &record, err)) != IFL_OK) break;
        if (record.type != IFL_RECORD_TRAJECTORY) continue;
        ifl_trajectory *traj;
        st = ifl_trajectory_decode(&traj, record.meta, record.n_meta, record.payload,
                                   record.n_payload, err);
        if (st != IFL_OK) break;
        scored key = {.serial = traj->task_serial, .sample = traj->sample}, *wanted = &key;
        scored **found = traj->purpose == IFL_PURPOSE_TRAIN
                             ? bsearch(&wanted, order, c->n_scored, sizeof *order, compare_keys)
                             : NULL;
        if (!found) {
            ifl_trajectory_free(traj);
            continue;
        }
        ifl_trajectory_free((*found)->traj);
        (*found)->traj = traj;
        (*found)->process = c->archive.n_processes - 1;
    }
    ifl_rollout_reader_close(reader);
    ifl_free(order);
    return st == IFL_NOTFOUND ? IFL_OK : st;
}

typedef struct figures {
    checker *checker;
    const json_t *want;
    int64_t step;
    bool earlier; /* the row is of a build without the other order and intervals */
} figures;

static bool is_later_field(const char *name) {
    size_t n = strlen(name);
    return strncmp(name, "reversed_", 9) == 0 || strcmp(name, "resampled") == 0 ||
           (n > 4 && strcmp(name + n - 4, "_low") == 0) ||
           (n > 5 && strcmp(name + n - 5, "_high") == 0);
}

/* As the file has them: nine digits. */
static void check_field(void *context, const char *name, int64_t *integer, double *real) {
    figures *f = context;
    if (strcmp(name, "seconds") == 0 || strcmp(name, "not_scored") == 0) return;
    char got[48], want[48];
    const json_t *value = json_object_get(f->want, name);
    if (f->earlier && is_later_field(name)) return;
    if (real && !isfinite(*real) && !json_is_number(value)) return; /* no interval of one answer */
    snprintf(got, sizeof got, integer ? "%.0f" : "%.9g", integer ? (double)*integer : *real);
    snprintf(want, sizeof want, integer ? "%.0f" : "%.9g", json_number_value(value));
    f->checker->n_figures++;
    if (strcmp(got, want) == 0) return;
    if (f->checker->n_figures_differing++ < 8)
        printf("step %lld, %s: the file says %s, scored again it is %s\n", (long long)f->step, name,
               want, got);
}

/* The record as it would be had `version` sampled the tokens of version `own`, and all else at the
 * same distance. */
static ifl_status moved_record(ifl_trajectory **out, const ifl_trajectory *traj, int64_t own,
                               int64_t version, ifl_error *err) {
    uint8_t *meta = NULL, *payload = NULL;
    size_t n_meta = 0, n_payload = 0;
    IFL_TRY(ifl_trajectory_encode(traj, &meta, &n_meta, &payload, &n_payload, err));
    ifl_status st = ifl_trajectory_decode(out, meta, n_meta, payload, n_payload, err);
    free(meta);
    free(payload);
    IFL_TRY(st);
    for (int32_t i = 0; i < traj->n_runs; i++)
        (*out)->runs[i].version = ifl_replay_moved(traj->runs[i].version, own, version);
    for (int32_t i = 0; i < traj->n_kv_events; i++)
        (*out)->kv_events[i].version = ifl_replay_moved(traj->kv_events[i].version, own, version);
    return IFL_OK;
}

/* r1 by replaying such records; not where sampling was truncated, whose sets a replay draws anew.
 */
static ifl_status check_moved(checker *c, const scored *s, const ifl_bias_tokens *t,
                              const int32_t *at, float *replayed, ifl_error *err) {
    const ifl_trajectory *traj = s->traj;
    if (traj->top_k > 0 || traj->top_p < 1.0f || traj->temperature <= 0.0f) return IFL_OK;
    int64_t done = -1; /* versions ascend within a trajectory */
    for (int32_t r = 0; r < traj->n_runs; r++) {
        int64_t own = traj->runs[r].version;
        ifl_trajectory *moved = NULL;
        ifl_replay_result result;
        if (own <= done) continue;
        done = own;
        IFL_TRY(moved_record(&moved, traj, own, s->step - 1, err));
        ifl_status st = ifl_replay(ifl_run_archive_workspace(&c->archive), ifl_run_archive_get,
                                   &c->archive, moved, replayed, &result, err);
        ifl_trajectory_free(moved);
        IFL_TRY(st);
        for (int32_t i = 0; i < t->n; i++) {
            if (ifl_trajectory_version_at(traj, at[i]) != own) continue;
            c->n_other++;
            c->n_other_differing += memcmp(&replayed[at[i]], &t->moved[i], sizeof *replayed) != 0;
        }
    }
    return IFL_OK;
}

/* Another route to the same log-probs: replay draw by draw for what was recorded, ifl_score for
 * fresh KV. */
static ifl_status check_other(checker *c, const scored *s, ifl_error *err) {
    const int32_t *at;
    ifl_bias_tokens t = ifl_bias_scored(c->ledger, &at);
    const ifl_trajectory *traj = s->traj;
    ifl_workspace *workspace = ifl_run_archive_workspace(&c->archive);
    float *replayed = ifl_alloc((size_t)traj->n_tokens, sizeof *replayed);
    ifl_logprob *own = ifl_alloc((size_t)traj->n_tokens, sizeof *own),
                *now = ifl_alloc((size_t)traj->n_tokens, sizeof *now);
    ifl_replay_result result;
    ifl_status st =
        replayed && own && now ? IFL_OK : ifl_fail(err, IFL_NOMEM, "ledger: out of memory");
    float temperature = traj->temperature > 0.0f ? traj->temperature : 1.0f;
    if (st == IFL_OK)
        st = ifl_replay(workspace, ifl_run_archive_get, &c->archive, traj, replayed, &result, err);
    for (int32_t i = 0; i < traj->n_runs && st == IFL_OK; i++) {
        const ifl_version_run *run = &traj->runs[i];
        const ifl_weights *w = ifl_run_archive_get(&c->archive, run->version);
        st = w ? ifl_score(workspace, w, traj->tokens, run->begin + run->n_tokens, run->begin,
                           temperature, own + run->begin, err)
               : IFL_NOTFOUND;
    }
    const ifl_weights *w = ifl_run_archive_get(&c->archive, s->step - 1);
    if (st == IFL_OK)
        st = w ? ifl_score(workspace, w, traj->tokens, traj->n_tokens, 1, temperature, now + 1, err)
               : IFL_NOTFOUND;
    for (int32_t i = 0; i < t.n && st == IFL_OK; i++) {
        int32_t p = at[i];
        /* The replay has compared the full log-probs, bit for bit. */
        float full = traj->full_logprobs ? traj->full_logprobs[p] : replayed[p];
        const float other[IFL_BIAS_CHAIN] = {traj->logprobs[p], replayed[p], full, own[p].logprob,
                                             now[p].logprob};
        for (int k = 0; k < IFL_BIAS_CHAIN; k++) {
            c->n_other++;
            c->n_other_differing += memcmp(&other[k], &t.chain[k][i], sizeof *other) != 0;
        }
    }
    if (st == IFL_OK && result.n_differing > 0 &&
        ifl_hash_equal(traj->profile, ifl_run_archive_model(&c->archive)->profile))
        c->n_other_differing += result.n_differing;
    if (st == IFL_OK) st = check_moved(c, s, &t, at, replayed, err);
    ifl_free(replayed);
    ifl_free(own);
    ifl_free(now);
    return st;
}

static ifl_status check_ledger_open(checker *c, ifl_error *err) {
    const ifl_model *model = ifl_run_archive_model(&c->archive);
    if (c->ledger && c->ledger_model == model) return IFL_OK;
    ifl_bias_ledger_free(c->ledger);
    c->ledger = NULL;
    c->ledger_model = model;
    ifl_bias_options options = {c->config->ledger.sample, c->config->ledger.positions,
                                (uint64_t)c->config->run.seed, ifl_loss_options_of(c->config)};
    return ifl_bias_ledger_create(&c->ledger, model, &options, c->archive.pool, NULL, err);
}

/* What one answer adds to the means, as its row has it; and to the intervals. */
static ifl_status check_part(checker *c, const scored *s, const ifl_bias_record *one, bool earlier,
                             ifl_error *err) {
    if (earlier) return IFL_OK;
    json_t *row = json_object();
    if (!row) return ifl_fail(err, IFL_NOMEM, "ledger: out of memory");
    ifl_bias_part want = s->part, got = ifl_bias_part_of(one, s->serial, s->sample);
    ifl_bias_part_fields(&want, field_json, row);
    figures f = {c, row, s->step, false};
    ifl_bias_part_fields(&got, check_field, &f);
    json_decref(row);
    ifl_bias_bootstrap_add(c->step, &got);
    ifl_bias_bootstrap_add(c->whole, &got);
    return IFL_OK;
}

static void check_end(checker *c, const char *name, const char *end, double want, double got) {
    c->n_figures++;
    if (isnan(want) && isnan(got)) return;
    if (fabs(got - want) <= 1e-6 * fabs(got) + 1e-15) return; /* made of nine digits there */
    if (c->n_figures_differing++ < 8)
        printf("the run, %s/%s: from the file %.9g, scored again %.9g\n", name, end, want, got);
}

/* The run's intervals, from what was scored again. Only when that is all of it. */
static ifl_status check_whole(checker *c, ifl_error *err) {
    ifl_bias_record want, got = {0};
    int64_t n_steps;
    IFL_TRY(ifl_bias_read(&want, &n_steps, c->run->ledger, err));
    ifl_bias_bootstrap_get(c->whole, &got);
    if (c->n_gone > 0 || want.n_resampled == 0) return IFL_OK;
    for (int m = 0; m < IFL_BIAS_MEANS; m++) {
        const ifl_bias_interval *a = &want.intervals[m], *b = &got.intervals[m];
        char name[32];
        ifl_bias_mean_name(m, name);
        check_end(c, name, "nats_low", a->nats_low, b->nats_low);
        check_end(c, name, "nats_high", a->nats_high, b->nats_high);
        check_end(c, name, "k1_low", a->k1_low, b->k1_low);
        check_end(c, name, "k1_high", a->k1_high, b->k1_high);
    }
    return IFL_OK;
}

/* One step; *gone when a version has left the archive, or the log an answer. */
static ifl_status check_step(checker *c, const ifl_bias_record *want, const scored *first, size_t n,
                             bool *gone, ifl_error *err) {
    ifl_bias_record got = {.step = want->step, .version = want->version};
    bool earlier = want->n_tokens > 0 && want->reversed[IFL_BIAS_LAG].n == 0;
    *gone = false;
    ifl_bias_bootstrap_reset(c->step);
    for (size_t i = 0; i < n && !*gone; i++) {
        const scored *s = &first[i];
        ifl_error why = {0};
        ifl_status st = s->traj
                            ? ifl_run_archive_open(&c->archive, s->process, s->traj->profile, &why)
                            : IFL_NOTFOUND;
        if (st == IFL_OK) st = check_ledger_open(c, &why);
        ifl_bias_record one = {.step = want->step, .version = want->version};
        if (st == IFL_OK)
            st = ifl_bias_score(c->ledger, ifl_run_archive_get, &c->archive, s->traj, s->advantage,
                                s->step, &one, &why);
        if (st == IFL_OK) ifl_bias_merge(&got, &one);
        if (st == IFL_OK && got.n_not_scored == 0) st = check_part(c, s, &one, earlier, &why);
        if (st == IFL_OK && got.n_not_scored == 0) st = check_other(c, s, &why);
        if (st != IFL_OK && st != IFL_NOTFOUND && st != IFL_MISMATCH) {
            *err = why;
            return st;
        }
        *gone = st != IFL_OK || got.n_not_scored > 0;
    }
    if (*gone) return IFL_OK;
    json_t *row = json_object();
    if (!row) return ifl_fail(err, IFL_NOMEM, "ledger: out of memory");
    ifl_bias_record copy = *want;
    ifl_bias_fields(&copy, true, field_json, row);
    ifl_bias_bootstrap_get(c->step, &got);
    figures f = {c, row, want->step, earlier};
    ifl_bias_fields(&got, true, check_field, &f);
    json_decref(row);
    c->n_tokens += got.n_tokens;
    c->n_steps++;
    return IFL_OK;
}

static void checker_close(checker *c) {
    ifl_bias_ledger_free(c->ledger);
    ifl_bias_bootstrap_free(c->step);
    ifl_bias_bootstrap_free(c->whole);
    ifl_run_archive_close(&c->archive);
    for (size_t i = 0; i < c->n_scored; i++)
        ifl_trajectory_free(c->scored[i].traj);
    free(c->scored);
    free(c->records);
    free(c->config);
}

static ifl_status run_check(const ifl_run_dir *run, const ifl_options *options, ifl_error *err) {
    checker c = {.run = run, .err = err};
    ifl_thread_pool *pool = NULL;
    int64_t n_skipped;
    ifl_status st = ifl_thread_pool_create(&pool, options->config->actor.threads, err);
    ifl_run_archive_init(&c.archive, run, pool);
    if (st != IFL_OK) goto done;
    IFL_TRY_GOTO(st, ifl_bias_bootstrap_create(&c.step, err), done);
    IFL_TRY_GOTO(st, ifl_bias_bootstrap_create(&c.whole, err), done);
    c.config = malloc(sizeof *c.config);
    if (!c.config) IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "ledger: out of memory"), done);
    IFL_TRY_GOTO(st, ifl_config_load(c.config, run->config, NULL, 0, err), done);
    IFL_TRY_GOTO(st, ifl_metrics_read(run->ledger, check_row, &c, &n_skipped, err), done);
    c.n_scored = c.n_closed;
    IFL_TRY_GOTO(st, check_trajectories(&c, err), done);
    size_t at = 0;
    for (size_t i = 0; i < c.n_records; i++) {
        while (at < c.n_scored && c.scored[at].step < c.records[i].step)
            at++;
        size_t begin = at;
        while (at < c.n_scored && c.scored[at].step == c.records[i].step)
            at++;
        bool gone;
        IFL_TRY_GOTO(st, check_step(&c, &c.records[i], c.scored + begin, at - begin, &gone, err),
                     done);
        c.n_gone += gone;
    }
    IFL_TRY_GOTO(st, check_whole(&c, err), done);
    printf("%s: %lld steps with %lld tokens scored again: %lld of %lld figures differ; by another "
           "route %lld of %lld log-probs differ; %lld steps not checkable (a version is gone)\n",
           run->path, (long long)c.n_steps, (long long)c.n_tokens, (long long)c.n_figures_differing,
           (long long)c.n_figures, (long long)c.n_other_differing, (long long)c.n_other,
           (long long)c.n_gone);
    if (c.n_figures_differing + c.n_other_differing > 0)
        st = ifl_fail(err, IFL_PARITY, "%s: the ledger does not repeat", run->path);
    else if (c.n_steps == 0)
        st = ifl_fail(err, IFL_NOTFOUND, "%s: nothing could be checked%s%s", run->path,
                      c.archive.gone.status != IFL_OK ? ": " : "", c.archive.gone.text);
done:
    checker_close(&c);
    ifl_thread_pool_free(pool);
    return st;
}

/* --- The command ------------------------------------------------------------------------------ */

enum { KEY_CHECK = 1, KEY_JSON, KEY_DIR, KEY_THREADS };

static ifl_status on_option(int key, const char *arg, void *user, ifl_error *err) {
    ledger_options *o = user;
    (void)arg;
    (void)err;
    if (key == KEY_CHECK) o->check = true;
    if (key == KEY_JSON) o->json = true;
    return IFL_OK;
}

static ifl_status ledger_work(const ifl_options *options, void *user, ifl_error *err) {
    const ledger_options *mine = user;
    run_row *rows = calloc(IFL_ARGS_MAX, sizeof *rows);
    if (!rows) return ifl_fail(err, IFL_NOMEM, "ledger: out of memory");
    ifl_status st = IFL_OK;
    int n = options->n_args > 0 ? options->n_args : 1;
    for (int i = 0; i < n && st == IFL_OK; i++) {
        ifl_run_dir named;
        const char *name = options->n_args > 0 ? options->args[i] : NULL;
        if (!name) {
            st = ifl_run_argument(&named, options, err);
            name = named.path;
        }
        if (st == IFL_OK) st = run_load(&rows[i], options->config->run.dir, name, err);
        if (st != IFL_OK) break;
        if (i > 0 && !mine->json) putchar('\n');
        run_print(&rows[i], mine->json);
        fflush(stdout);
        if (mine->check) st = run_check(&rows[i].run, options, err);
    }
    if (st == IFL_OK && n > 1 && !mine->json) runs_compare(rows, n);
    free(rows);
    return st;
}

static ifl_status ledger_dry_run(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    ifl_run_dir run;
    ifl_options_print(options, stdout);
    IFL_TRY(ifl_run_argument(&run, options, err));
    printf("# reads   %s, %s\n# with --check also %s/, %s/\n# writes  standard output\n",
           run.ledger, run.summary, run.rollouts, run.versions);
    return IFL_OK;
}

int ifl_cmd_ledger(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"check", KEY_CHECK, NULL, 0,
         "score again what the ledger is made of, from the rollout log and the archived versions; "
         "status 65 when a figure or a bit differs",
         0},
        {"json", KEY_JSON, NULL, 0, "one JSON object per run, the sums of ledger.jsonl", 0},
        {"threads", KEY_THREADS, "N", 0, "actor.threads (default 0: one per CPU)", 0},
        {"dir", KEY_DIR, "DIR", 0, "run.dir: folder of all runs (default runs)", 0},
        {0},
    };
    static const ifl_option_key keys[] = {
        {KEY_DIR, "run.dir", NULL}, {KEY_THREADS, "actor.threads", NULL}, {0}};
    static const char *const presets[] = {"actor.threads=0", NULL};
    ledger_options mine = {0};
    const ifl_options_spec spec = {
        .doc =
            "The bias ledger: between the policy that sampled a token and the one that trains on "
            "it lie a kept set, KV of other versions, and the weights' age; each one's share of "
            "log r, in nats. Further RUNs are compared with the first: what speed costs.",
        .args_doc = "RUN [RUN ...]",
        .extra = extra,
        .keys = keys,
        .presets = presets,
        .on_option = on_option,
        .user = &mine,
        .n_args_max = IFL_ARGS_MAX,
        .work = ledger_work,
        .dry_run = ledger_dry_run};
    return ifl_options_run(argc, argv, &spec);
}

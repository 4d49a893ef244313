/* ledger.jsonl, and the ledger's figures for people. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "learner/bias_interval.h"
#include "learner/bias_ledger.h"

/* --- Fields
 * ----------------------------------------------------------------------------------------- */

static void sums_fields(ifl_bias_sums *s, const char *prefix, ifl_bias_field_fn field,
                        void *context) {
    const struct {
        const char *name;
        int64_t *integer;
        double *real;
    } fields[] = {
        {"n", &s->n, NULL},
        {"moved", &s->n_moved, NULL},
        {"above_2", &s->n_above_2, NULL},
        {"kl_n", &s->n_kl, NULL},
        {"log_r", NULL, &s->log_r},
        {"k3", NULL, &s->k3},
        {"w", NULL, &s->w},
        {"w2", NULL, &s->w2},
        {"max", NULL, &s->max_abs},
        {"kl", NULL, &s->kl},
        {"gain_positive", NULL, &s->gain_positive},
        {"gain_negative", NULL, &s->gain_negative},
    };
    char name[64];
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        snprintf(name, sizeof name, "%s/%s", prefix, fields[i].name);
        field(context, name, fields[i].integer, fields[i].real);
    }
}

void ifl_bias_fields(ifl_bias_record *r, bool all_lags, ifl_bias_field_fn field, void *context) {
    field(context, "version", &r->version, NULL);
    field(context, "trajectories", &r->n_trajectories, NULL);
    field(context, "tokens", &r->n_tokens, NULL);
    field(context, "not_scored", &r->n_not_scored, NULL);
    field(context, "foreign_tokens", &r->n_foreign, NULL);
    field(context, "differing", &r->n_differing, NULL);
    field(context, "untelescoped", &r->n_untelescoped, NULL);
    for (int e = 0; e < IFL_BIAS_COUNT; e++)
        sums_fields(&r->entries[e], ifl_bias_entry_name((ifl_bias_entry)e), field, context);
    for (int m = IFL_BIAS_COUNT; m < IFL_BIAS_MEANS; m++) {
        char prefix[32];
        ifl_bias_mean_name(m, prefix);
        sums_fields(&r->reversed[m - IFL_BIAS_COUNT + 1], prefix, field, context);
    }
    for (int k = 0; k < IFL_BIAS_LAGS; k++) {
        char prefix[16];
        if (r->lags[k].n == 0 && !all_lags) continue;
        snprintf(prefix, sizeof prefix, "lag_%d", k);
        sums_fields(&r->lags[k], prefix, field, context);
    }
    field(context, "correction/n", &r->correction.n, NULL);
    field(context, "correction/changed", &r->correction.n_changed, NULL);
    field(context, "correction/dropped", &r->correction.n_dropped, NULL);
    field(context, "correction/bias", NULL, &r->correction.bias);
    field(context, "correction/abs_bias", NULL, &r->correction.abs_bias);
    field(context, "correction/mass", NULL, &r->correction.mass);
    field(context, "correction/mass_dropped", NULL, &r->correction.mass_dropped);
    field(context, "correction/mass_changed", NULL, &r->correction.mass_changed);
    field(context, "sequence/n", &r->sequence.n, NULL);
    field(context, "sequence/w", NULL, &r->sequence.w);
    field(context, "sequence/w2", NULL, &r->sequence.w2);
    field(context, "sequence/log_r", NULL, &r->sequence.log_r);
    field(context, "seconds", NULL, &r->seconds);
    field(context, "resampled", &r->n_resampled, NULL);
    for (int m = 0; m < IFL_BIAS_MEANS; m++) {
        ifl_bias_interval *i = &r->intervals[m];
        double *const ends[4] = {&i->nats_low, &i->nats_high, &i->k1_low, &i->k1_high};
        static const char *const names[4] = {"nats_low", "nats_high", "k1_low", "k1_high"};
        char prefix[32], name[64];
        ifl_bias_mean_name(m, prefix);
        for (int k = 0; k < 4; k++) {
            snprintf(name, sizeof name, "%s/%s", prefix, names[k]);
            field(context, name, NULL, ends[k]);
        }
    }
}

const ifl_bias_sums *ifl_bias_mean_sums(const ifl_bias_record *record, int m) {
    return m < IFL_BIAS_COUNT ? &record->entries[m] : &record->reversed[m - IFL_BIAS_COUNT + 1];
}

void ifl_bias_mean_name(int m, char out[32]) {
    bool reversed = m >= IFL_BIAS_COUNT;
    snprintf(out, 32, "%s%s", reversed ? "reversed_" : "",
             ifl_bias_entry_name((ifl_bias_entry)(reversed ? m - IFL_BIAS_COUNT + 1 : m)));
}

/* --- Writing and reading
 * ---------------------------------------------------------------------------- */

static void field_write(void *file, const char *name, int64_t *integer, double *real) {
    if (integer)
        ifl_metrics_add_int(file, name, *integer);
    else
        ifl_metrics_add(file, name, *real);
}

ifl_status ifl_bias_write(ifl_metrics *file, ifl_bias_record *record, ifl_error *err) {
    ifl_metrics_begin(file, "ledger", record->step);
    ifl_bias_fields(record, false, field_write, file);
    return ifl_metrics_end(file, err);
}

ifl_status ifl_bias_write_trajectory(ifl_metrics *file, int64_t step, const ifl_trajectory *traj,
                                     float advantage, const ifl_bias_record *one, ifl_error *err) {
    ifl_bias_part part = ifl_bias_part_of(one, traj->task_serial, traj->sample);
    ifl_metrics_begin(file, "trajectory", step);
    ifl_metrics_add_int(file, "serial", (int64_t)traj->task_serial);
    ifl_metrics_add_int(file, "sample", traj->sample);
    ifl_metrics_add(file, "advantage", (double)advantage);
    ifl_bias_part_fields(&part, field_write, file);
    return ifl_metrics_end(file, err);
}

static void field_read(void *row, const char *name, int64_t *integer, double *real) {
    const json_t *value = json_object_get(row, name);
    if (integer)
        *integer = json_is_integer(value) ? (int64_t)json_integer_value(value) : 0;
    else
        *real = json_is_null(value)     ? (double)NAN
                : json_is_number(value) ? json_number_value(value)
                                        : 0.0;
}

bool ifl_bias_of_row(ifl_bias_record *out, const json_t *row) {
    const char *kind = json_string_value(json_object_get(row, "kind"));
    const json_t *step = json_object_get(row, "step");
    if (!kind || strcmp(kind, "ledger") != 0 || !json_is_integer(step)) return false;
    *out = (ifl_bias_record){.step = (int64_t)json_integer_value(step)};
    json_t *borrowed = (json_t *)(uintptr_t)row; /* jansson's getters take it so */
    ifl_bias_fields(out, true, field_read, borrowed);
    return true;
}

static void sums_merge(ifl_bias_sums *to, const ifl_bias_sums *from) {
    to->n += from->n;
    to->n_moved += from->n_moved;
    to->n_above_2 += from->n_above_2;
    to->n_kl += from->n_kl;
    to->log_r += from->log_r;
    to->k3 += from->k3;
    to->w += from->w;
    to->w2 += from->w2;
    to->max_abs = fmax(to->max_abs, from->max_abs);
    to->kl += from->kl;
    to->gain_positive += from->gain_positive;
    to->gain_negative += from->gain_negative;
}

void ifl_bias_merge(ifl_bias_record *to, const ifl_bias_record *from) {
    to->step = from->step;
    to->version = from->version;
    to->n_trajectories += from->n_trajectories;
    to->n_tokens += from->n_tokens;
    to->n_not_scored += from->n_not_scored;
    to->n_foreign += from->n_foreign;
    to->n_differing += from->n_differing;
    to->n_untelescoped += from->n_untelescoped;
    for (int e = 0; e < IFL_BIAS_COUNT; e++)
        sums_merge(&to->entries[e], &from->entries[e]);
    for (int e = 0; e < IFL_BIAS_TOTAL; e++)
        sums_merge(&to->reversed[e], &from->reversed[e]);
    for (int k = 0; k < IFL_BIAS_LAGS; k++)
        sums_merge(&to->lags[k], &from->lags[k]);
    to->correction.n += from->correction.n;
    to->correction.n_changed += from->correction.n_changed;
    to->correction.n_dropped += from->correction.n_dropped;
    to->correction.bias += from->correction.bias;
    to->correction.abs_bias += from->correction.abs_bias;
    to->correction.mass += from->correction.mass;
    to->correction.mass_dropped += from->correction.mass_dropped;
    to->correction.mass_changed += from->correction.mass_changed;
    to->sequence.n += from->sequence.n;
    to->sequence.w += from->sequence.w;
    to->sequence.w2 += from->sequence.w2;
    to->sequence.log_r += from->sequence.log_r;
    to->seconds += from->seconds;
}

/* A resumed run writes steps again: the newest records are kept apart, as long as one might be, and
 * what their answers add to the means. */
#define RECENT_MAX 4096
#define PARTS_MAX ((size_t)1 << 18)

typedef struct recent_step {
    ifl_bias_record record;
    size_t n_parts;
} recent_step;

typedef struct reading {
    ifl_bias_record *total;
    recent_step *recent;
    ifl_bias_part *parts; /* of the recent steps, then of those whose step has no row yet */
    ifl_bias_bootstrap *bootstrap;
    int64_t n_steps;
    size_t n_recent, recent_cap, n_parts, parts_cap, n_closed;
    ifl_error *err;
} reading;

/* The oldest n steps are as they are. */
static void reading_settle(reading *r, size_t n) {
    size_t n_parts = 0;
    for (size_t i = 0; i < n; i++) {
        ifl_bias_merge(r->total, &r->recent[i].record);
        n_parts += r->recent[i].n_parts;
    }
    for (size_t i = 0; i < n_parts; i++)
        ifl_bias_bootstrap_add(r->bootstrap, &r->parts[i]);
    r->n_steps += (int64_t)n;
    r->n_recent -= n;
    r->n_closed -= n_parts;
    r->n_parts -= n_parts;
    if (r->n_recent) memmove(r->recent, r->recent + n, r->n_recent * sizeof *r->recent);
    if (r->n_parts) memmove(r->parts, r->parts + n_parts, r->n_parts * sizeof *r->parts);
}

static ifl_status reading_row(const json_t *row, void *user) {
    reading *r = user;
    recent_step step = {0};
    ifl_bias_part part;
    if (ifl_bias_part_of_row(&part, row)) {
        if (r->n_parts == PARTS_MAX) reading_settle(r, (r->n_recent + 1) / 2);
        if (r->n_parts == PARTS_MAX)
            return ifl_fail(r->err, IFL_LIMIT,
                            "bias ledger: more than %zu trajectories in one step", PARTS_MAX);
        void *parts = r->parts;
        ifl_status st = ifl_grow(&parts, &r->parts_cap, r->n_parts + 1, sizeof part, r->err);
        r->parts = parts;
        if (st == IFL_OK) r->parts[r->n_parts++] = part;
        return st;
    }
    if (!ifl_bias_of_row(&step.record, row)) return IFL_OK;
    while (r->n_recent && r->recent[r->n_recent - 1].record.step >= step.record.step)
        r->n_closed -= r->recent[--r->n_recent].n_parts;
    /* Of the trajectories in front of this row, as many as it counts are its own. */
    size_t n_new = r->n_parts, own = (size_t)step.record.n_trajectories;
    for (size_t i = 0; i < r->n_recent; i++)
        n_new -= r->recent[i].n_parts;
    step.n_parts = own < n_new ? own : n_new;
    if (step.n_parts)
        memmove(r->parts + r->n_closed, r->parts + r->n_parts - step.n_parts,
                step.n_parts * sizeof *r->parts);
    r->n_parts = r->n_closed += step.n_parts;
    if (r->n_recent == RECENT_MAX) reading_settle(r, RECENT_MAX / 2);
    void *grown = r->recent;
    ifl_status st = ifl_grow(&grown, &r->recent_cap, r->n_recent + 1, sizeof *r->recent, r->err);
    r->recent = grown;
    if (st == IFL_OK) r->recent[r->n_recent++] = step;
    return st;
}

ifl_status ifl_bias_read(ifl_bias_record *total, int64_t *n_steps, const char *path,
                         ifl_error *err) {
    *total = (ifl_bias_record){0};
    reading r = {.total = total, .err = err};
    int64_t n_skipped;
    *n_steps = 0;
    IFL_TRY(ifl_bias_bootstrap_create(&r.bootstrap, err));
    ifl_status st = ifl_metrics_read(path, reading_row, &r, &n_skipped, err);
    reading_settle(&r, r.n_recent);
    ifl_bias_bootstrap_get(r.bootstrap, total);
    *n_steps = r.n_steps;
    ifl_bias_bootstrap_free(r.bootstrap);
    free(r.recent);
    free(r.parts);
    return st;
}

/* --- For people
 * ------------------------------------------------------------------------------------- */

ifl_bias_figures ifl_bias_figures_of(const ifl_bias_sums *s) {
    double nan = (double)NAN, n = (double)s->n;
    if (s->n == 0) return (ifl_bias_figures){nan, nan, nan, nan, nan, nan, nan, nan};
    return (ifl_bias_figures){.k1 = 0.0 - s->log_r / n, /* no -0 */
                              .k3 = s->k3 / n,
                              .kl = s->n_kl > 0 ? s->kl / (double)s->n_kl : nan,
                              .ess = s->w * s->w / (n * s->w2),
                              .max_abs = s->max_abs,
                              .above_2 = (double)s->n_above_2 / n,
                              .gain_positive = s->gain_positive / n,
                              .gain_negative = s->gain_negative / n};
}

ifl_bias_estimate ifl_bias_estimate_of(int m, int64_t n_kl) {
    int entry = m < IFL_BIAS_COUNT ? m : m - IFL_BIAS_COUNT + 1;
    if (entry != IFL_BIAS_NUMERICS && n_kl > 0) return IFL_BIAS_BY_KL;
    return entry == IFL_BIAS_TRUNCATION ? IFL_BIAS_BY_K1 : IFL_BIAS_BY_K3;
}

static double mean_nats(const ifl_bias_record *record, int m) {
    const ifl_bias_sums *s = ifl_bias_mean_sums(record, m);
    ifl_bias_figures f = ifl_bias_figures_of(s);
    ifl_bias_estimate by = ifl_bias_estimate_of(m, s->n_kl);
    return by == IFL_BIAS_BY_KL ? f.kl : by == IFL_BIAS_BY_K1 ? f.k1 : f.k3;
}

double ifl_bias_nats(const ifl_bias_record *record, ifl_bias_entry entry) {
    return mean_nats(record, entry);
}

static void print_row(FILE *f, const char *name, const ifl_bias_sums *s) {
    ifl_bias_figures g = ifl_bias_figures_of(s);
    fprintf(f, "%-14s %9lld %9lld %11.3e %11.3e ", name, (long long)s->n, (long long)s->n_moved,
            g.k1, g.k3);
    if (s->n_kl > 0)
        fprintf(f, "%11.3e", g.kl);
    else
        fprintf(f, "%11s", "-");
    fprintf(f, " %9.6f %9.3e %9.3e %11.3e %11.3e\n", g.ess, g.max_abs, g.above_2, g.gain_positive,
            g.gain_negative);
}

void ifl_bias_print(FILE *f, const ifl_bias_record *r) {
    fprintf(f, "%-14s %9s %9s %11s %11s %11s %9s %9s %9s %11s %11s\n", "entry", "tokens", "moved",
            "k1", "k3", "exact KL", "ESS/n", "max|log r|", "r above 2", "A > 0", "A < 0");
    for (int e = 0; e < IFL_BIAS_COUNT; e++) {
        print_row(f, ifl_bias_entry_name((ifl_bias_entry)e), &r->entries[e]);
        for (int k = 1; e == IFL_BIAS_LAG && k < IFL_BIAS_LAGS; k++) {
            char name[24];
            if (r->lags[k].n == 0) continue;
            snprintf(name, sizeof name, "  lag %d%s", k, k == IFL_BIAS_LAGS - 1 ? "+" : "");
            print_row(f, name, &r->lags[k]);
        }
    }
    if (r->reversed[IFL_BIAS_LAG].n > 0) {
        fprintf(f, "reversed: lag, stale KV, truncation; what differs from above is interaction\n");
        for (int e = IFL_BIAS_LAG; e > IFL_BIAS_NUMERICS; e--)
            print_row(f, ifl_bias_entry_name((ifl_bias_entry)e), &r->reversed[e]);
    }
    if (r->n_resampled >= 2) {
        fprintf(f, "95 %% of the means over whole answers (%lld, %d resamples), nats per token:\n",
                (long long)r->n_resampled, IFL_BIAS_RESAMPLES);
        for (int m = 0; m < IFL_BIAS_MEANS; m++) {
            const ifl_bias_interval *i = &r->intervals[m];
            char name[32];
            ifl_bias_mean_name(m, name);
            fprintf(f, "%-20s nats %10.3e: %10.3e to %10.3e    k1: %10.3e to %10.3e\n", name,
                    mean_nats(r, m), i->nats_low, i->nats_high, i->k1_low, i->k1_high);
        }
    }
    double n = r->correction.n > 0 ? (double)r->correction.n : 1.0,
           mass = r->correction.mass > 0.0 ? r->correction.mass : 1.0;
    fprintf(f,
            "correction: weight other than p/mu on %.4f of tokens, %.4f of |A|; dropped %.4f of "
            "tokens, %.4f of |A|; bias bought %.3e, in size %.3e\n",
            (double)r->correction.n_changed / n, r->correction.mass_changed / mass,
            (double)r->correction.n_dropped / n, r->correction.mass_dropped / mass,
            r->correction.bias / n, r->correction.abs_bias / n);
    if (r->sequence.n > 0)
        fprintf(f, "whole answers: %lld, mean log r %.3e, ESS/n %.6f\n", (long long)r->sequence.n,
                r->sequence.log_r / (double)r->sequence.n,
                r->sequence.w * r->sequence.w / ((double)r->sequence.n * r->sequence.w2));
    fprintf(f,
            "%lld tokens of %lld trajectories scored; %lld trajectories not (a version was gone); "
            "%lld log-probs with other bits than recorded, %lld sums that do not close\n",
            (long long)r->n_tokens, (long long)r->n_trajectories, (long long)r->n_not_scored,
            (long long)r->n_differing, (long long)r->n_untelescoped);
}

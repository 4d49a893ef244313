#include "learner/eval_figures.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"

/* --- One
 * -------------------------------------------------------------------------------------------- */

ifl_status ifl_eval_figures_make(ifl_eval_figures *out, const ifl_eval_results *r, int32_t source,
                                 ifl_error *err) {
    int32_t *right = ifl_alloc(r->n_rows + 1, sizeof *right);
    int32_t *judged = ifl_alloc(r->n_rows + 1, sizeof *judged);
    int64_t n = 0;
    *out = (ifl_eval_figures){.k = r->k};
    if (!right || !judged) {
        ifl_free(right);
        ifl_free(judged);
        return ifl_fail(err, IFL_NOMEM, "evaluation: out of memory for %zu tasks", r->n_rows);
    }
    for (size_t i = 0; i < r->n_rows; i++) {
        const ifl_eval_row *row = &r->rows[i];
        if (source >= 0 && row->source != source) continue;
        bool was_judged = ifl_eval_judged(row->status, row->reward);
        out->n += was_judged;
        out->n_unscored += !was_judged;
        out->n_right += ifl_eval_right(row->status, row->reward);
        out->n_samples_unscored += r->k > row->n_judged ? r->k - row->n_judged : 0;
        right[n] = row->n_right;
        judged[n++] = row->n_judged;
    }
    out->accuracy = out->n > 0 ? (double)out->n_right / (double)out->n : (double)NAN;
    out->interval = ifl_wilson95(out->n_right, out->n);
    if (r->k > 0) {
        out->avg = ifl_avg_at_k(right, judged, n);
        out->pass = ifl_pass_at_k_mean(right, judged, n, r->k);
    }
    ifl_free(right);
    ifl_free(judged);
    return IFL_OK;
}

static void put_real(json_t *object, const char *key, double value) {
    json_object_set_new(object, key, isfinite(value) ? json_real(value) : json_null());
}
static void put_int(json_t *object, const char *key, int64_t value) {
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

json_t *ifl_eval_figures_json(const ifl_eval_figures *f, const char *source) {
    json_t *o = json_object();
    if (!o) return NULL;
    if (source) json_object_set_new(o, "name", json_string(source));
    put_int(o, "n", f->n);
    put_real(o, "accuracy", f->accuracy);
    put_real(o, "low", f->interval.low);
    put_real(o, "high", f->interval.high);
    put_int(o, "unscored", f->n_unscored);
    if (f->k > 0) {
        put_int(o, "k", f->k);
        put_real(o, "avg@k", f->avg.mean);
        put_real(o, "pass@k", f->pass.mean);
        put_int(o, "pass@k_left_out", f->pass.n_left_out);
        put_int(o, "samples_unscored", f->n_samples_unscored);
    }
    return o;
}

/* --- Two
 * -------------------------------------------------------------------------------------------- */

/* A row with its source's name, so that two evaluations may number their sources differently. */
typedef struct keyed_row {
    const char *source;
    const ifl_eval_row *row;
    size_t place;
} keyed_row;

static int key_compare(const keyed_row *a, const keyed_row *b) {
    int c = strcmp(a->source, b->source);
    if (c == 0) c = strcmp(a->row->id, b->row->id);
    if (c == 0) c = (a->row->task > b->row->task) - (a->row->task < b->row->task);
    return c;
}

static int keyed_compare(const void *x, const void *y) {
    const keyed_row *a = x, *b = y;
    int c = key_compare(a, b);
    return c ? c : (a->place > b->place) - (a->place < b->place);
}

static keyed_row *keyed_make(const ifl_eval_results *r, const char *source, size_t *n) {
    keyed_row *rows = ifl_alloc(r->n_rows + 1, sizeof *rows);
    *n = 0;
    for (size_t i = 0; rows && i < r->n_rows; i++) {
        const char *name = r->sources[r->rows[i].source];
        if (!source || strcmp(source, name) == 0) rows[(*n)++] = (keyed_row){name, &r->rows[i], i};
    }
    if (rows) qsort(rows, *n, sizeof *rows, keyed_compare);
    return rows;
}

ifl_status ifl_eval_compare(ifl_eval_gain *out, const ifl_eval_results *before,
                            const ifl_eval_results *after, const char *source, ifl_error *err) {
    size_t n_a, n_b;
    keyed_row *a = keyed_make(before, source, &n_a), *b = keyed_make(after, source, &n_b);
    double *was = ifl_alloc(before->n_rows + 1, sizeof *was);
    double *is = ifl_alloc(before->n_rows + 1, sizeof *is);
    ifl_status st = a && b && was && is
                        ? IFL_OK
                        : ifl_fail(err, IFL_NOMEM, "comparison: out of memory for %zu tasks",
                                   before->n_rows + after->n_rows);
    *out = (ifl_eval_gain){.before = (double)NAN, .after = (double)NAN};
    int64_t n = 0;
    double sum_was = 0.0, sum_is = 0.0;
    for (size_t i = 0, j = 0; st == IFL_OK && (i < n_a || j < n_b);) {
        int c = i == n_a ? 1 : j == n_b ? -1 : key_compare(&a[i], &b[j]);
        if (c != 0) {
            out->n_only_before += c < 0;
            out->n_only_after += c > 0;
            i += c < 0;
            j += c > 0;
            continue;
        }
        const ifl_eval_row *x = a[i++].row, *y = b[j++].row;
        if (!ifl_eval_judged(x->status, x->reward) || !ifl_eval_judged(y->status, y->reward)) {
            out->n_unscored++;
            continue;
        }
        was[n] = ifl_eval_right(x->status, x->reward);
        is[n] = ifl_eval_right(y->status, y->reward);
        sum_was += was[n];
        sum_is += is[n++];
    }
    if (st == IFL_OK && n > 0) {
        out->before = sum_was / (double)n;
        out->after = sum_is / (double)n;
    }
    if (st == IFL_OK)
        st = ifl_paired_bootstrap(was, is, n, IFL_EVAL_RESAMPLES, IFL_EVAL_BOOTSTRAP_SEED,
                                  &out->paired, err);
    ifl_free(a);
    ifl_free(b);
    ifl_free(was);
    ifl_free(is);
    return st;
}

json_t *ifl_eval_gain_json(const ifl_eval_gain *g, const char *source) {
    json_t *o = json_object();
    if (!o) return NULL;
    if (source) json_object_set_new(o, "name", json_string(source));
    bool any = g->paired.n_tasks > 0;
    put_int(o, "n", g->paired.n_tasks);
    put_real(o, "gain", any ? g->paired.difference : (double)NAN);
    put_real(o, "low", any ? g->paired.interval.low : (double)NAN);
    put_real(o, "high", any ? g->paired.interval.high : (double)NAN);
    put_real(o, "before", g->before);
    put_real(o, "after", g->after);
    put_int(o, "unscored", g->n_unscored);
    put_int(o, "only_before", g->n_only_before);
    put_int(o, "only_after", g->n_only_after);
    return o;
}

void ifl_eval_gain_text(const ifl_eval_gain *g, char *out, size_t n_out) {
    int n;
    if (g->paired.n_tasks == 0)
        n = snprintf(out, n_out, "no task was judged on both sides");
    else
        n = snprintf(out, n_out, "%+.1f points (95 %%: %+.1f to %+.1f), %.4f to %.4f on %lld tasks",
                     100.0 * g->paired.difference, 100.0 * g->paired.interval.low,
                     100.0 * g->paired.interval.high, g->before, g->after,
                     (long long)g->paired.n_tasks);
    int64_t one = g->n_only_before + g->n_only_after;
    if (n > 0 && (size_t)n < n_out && g->n_unscored + one > 0)
        snprintf(out + n, n_out - (size_t)n, "; left out: %lld not judged, %lld on one side only",
                 (long long)g->n_unscored, (long long)one);
}

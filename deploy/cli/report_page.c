#include "deploy/cli/report.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/cli/report_svg.h"

#define PROMPT_BYTES_SHOWN 500

static const char style[] =
    ":root{color-scheme:light dark;--bg:#f4f3f0;--card:#fcfcfb;--ink:#0b0b0b;--ink2:#52514e;"
    "--ink3:#7a7873;--grid:#e5e4de;--base:#b9b8b0;--edge:#e5e4de;--s1:#2a78d6;--s2:#c9510f;"
    "--s3:#14855c;--good:#0a7d38;--bad:#c22f2f;--v0:#2a78d61f;--v1:#14855c24}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#0f0f0e;--card:#1a1a19;--ink:#fff;--ink2:#c3c2b7;"
    "--ink3:#96948c;--grid:#2e2e2b;--base:#55544f;--edge:#2e2e2b;--s1:#4a94ee;--s2:#ee7a3c;"
    "--s3:#2fb882;--good:#3ecb74;--bad:#f07a7a;--v0:#4a94ee3d;--v1:#2fb88238}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);"
    "font:15px/1.5 system-ui,-apple-system,Segoe UI,sans-serif}\n"
    "main{max-width:1080px;margin:0 auto;padding:24px 16px 48px}h1{font-size:24px;margin:0 0 2px;"
    "overflow-wrap:anywhere}h2{font-size:17px;margin:34px 0 12px}.sub{color:var(--ink2);margin:0 0 "
    "20px}\n"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}@media("
    "min-width:860px){.tiles{grid-template-columns:repeat(4,1fr)}}\n"
    ".card{background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:12px 14px;"
    "margin:0;min-width:0}\n"
    ".tile b{display:block;font-size:24px;font-weight:600;line-height:1.25}.tile "
    "span{color:var(--ink2);"
    "font-size:13px}.tile small{display:block;color:var(--ink3);font-size:12px}\n"
    ".grid{display:grid;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,"
    "400px),1fr));gap:"
    "12px}\n"
    "figcaption{display:flex;gap:8px;align-items:baseline;font-size:14px}figcaption "
    "span{color:var(--ink3);"
    "font-size:12px}figcaption "
    ".now{margin-left:auto;color:var(--ink);font-size:14px;font-weight:600}\n"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:12px;color:var(--ink2)}"
    ".legend i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:5px;"
    "vertical-align:middle}.k1{background:var(--s1)}.k2{background:var(--s2)}.k3{background:var(--"
    "s3)}\n"
    "svg{display:block;width:100%;height:auto;margin-top:6px}svg "
    "text{font-size:11.5px;fill:var(--ink3);"
    "font-family:inherit}svg text.strong{fill:var(--ink2)}.grid line.grid,svg "
    ".grid{stroke:var(--grid)}"
    "svg .base{stroke:var(--base)}\n"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.band{stroke-width:"
    "2;"
    "opacity:.7}.line.s1,.band.s1{stroke:var(--s1)}.line.s2,.band.s2{stroke:var(--s2)}"
    ".line.s3,.band.s3{stroke:var(--s3)}.hit{fill:transparent}.hit.s1:hover,.mark.s1{fill:var(--s1)"
    "}"
    ".hit.s2:hover,.mark.s2{fill:var(--s2)}.hit.s3:hover,.mark.s3{fill:var(--s3)}"
    ".mark{stroke:var(--card);stroke-width:2}.b1{fill:var(--ink3)}.b2{fill:var(--s1)}\n"
    ".none{color:var(--ink3);padding:30px 0;text-align:center}\n"
    ".wide{grid-column:1/-1}th{padding:5px 8px 5px "
    "0;text-align:left;color:var(--ink2);font-weight:500;"
    "font-size:12.5px}th:last-child{text-align:right}td small{color:var(--ink3)}\n"
    "table{border-collapse:collapse;width:100%;font-size:13.5px}td{padding:5px 8px 5px 0;"
    "border-bottom:1px solid var(--edge);overflow-wrap:anywhere}td:last-child{text-align:right;"
    "font-variant-numeric:tabular-nums}tr:last-child "
    "td{border:0}.good{color:var(--good)}.bad{color:var(--bad)}\n"
    ".pair{display:grid;grid-template-columns:1fr 1fr;gap:12px}@media(max-width:640px){.pair{"
    "grid-template-columns:1fr}}.pair h3{font-size:14px;margin:0 0 8px;color:var(--ink2)}\n"
    ".roll{margin-bottom:12px}.roll "
    ".meta{font-size:12px;color:var(--ink2);display:flex;flex-wrap:wrap;"
    "gap:2px 12px}.roll pre{margin:6px 0 "
    "0;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.55 "
    "ui-monospace,SFMono-Regular,Menlo,monospace}.roll "
    ".p{color:var(--ink3)}.v0{background:var(--v0)}"
    ".v1{background:var(--v1)}.v0,.v1{border-radius:3px}\n"
    "footer{margin-top:36px;color:var(--ink3);font-size:12.5px}\n";

/* --- Head: the figures that matter most ----------------------------------------------------------
 */

static void tile(FILE *f, const char *label, const char *value, const char *note,
                 const char *class) {
    fprintf(
        f,
        "<div class=\"card tile\"><span>%s</span><b class=\"%s\">%s</b><small>%s</small></div>\n",
        label, class, value, note);
}

static void duration_text(double s, char out[32]) {
    if (!isfinite(s))
        snprintf(out, 32, "–");
    else if (s < 60)
        snprintf(out, 32, "%.1f s", s);
    else if (s < 3600)
        snprintf(out, 32, "%d min %02d s", (int)(s / 60), (int)s % 60);
    else
        snprintf(out, 32, "%d h %02d min", (int)(s / 3600), (int)(s / 60) % 60);
}

/* The first and the last evaluation that knows a source's accuracy (-1: all); false when none. */
static bool accuracy_ends(const ifl_report_data *d, int32_t source,
                          const ifl_report_accuracy **first, const ifl_report_accuracy **last,
                          const ifl_report_eval **last_eval) {
    *first = NULL;
    for (size_t i = 0; i < d->n_evals; i++) {
        const ifl_report_eval *e = &d->evals[i];
        const ifl_report_accuracy *a = source < 0 ? &e->all : &e->sources[source];
        if (!isfinite(a->accuracy)) continue;
        if (!*first) *first = a;
        *last = a;
        *last_eval = e;
    }
    return *first != NULL;
}

static void accuracy_tile(FILE *f, const ifl_report_data *d) {
    const ifl_report_accuracy *first, *last;
    const ifl_report_eval *eval;
    char value[64] = "–", note[128] = "not evaluated";
    double gain = ifl_report_summary(d, "accuracy_gain", (double)NAN);
    bool any = accuracy_ends(d, -1, &first, &last, &eval);
    if (any && last != first) {
        snprintf(value, sizeof value, "%.3f → %.3f", first->accuracy, last->accuracy);
        if (isfinite(gain))
            snprintf(note, sizeof note, "%+.1f points, paired 95 %%: %+.1f to %+.1f; n %.0f",
                     100 * gain, 100 * ifl_report_summary(d, "accuracy_gain_low", (double)NAN),
                     100 * ifl_report_summary(d, "accuracy_gain_high", (double)NAN),
                     ifl_report_summary(d, "accuracy_gain_tasks", 0));
        else
            snprintf(note, sizeof note, "%+.1f points; n %lld, 95 %%: %.3f to %.3f",
                     (last->accuracy - first->accuracy) * 100, (long long)last->n, last->low,
                     last->high);
    } else if (any) {
        snprintf(value, sizeof value, "%.3f", first->accuracy);
        snprintf(note, sizeof note, "n %lld, version %lld", (long long)first->n,
                 (long long)eval->version);
    }
    tile(f, "held-out greedy accuracy", value, note, "");
}

static void parity_tile(FILE *f, const ifl_report_data *d) {
    double checked = ifl_report_summary(d, "parity_tokens_checked", (double)NAN);
    double differing = ifl_report_summary(d, "parity_tokens_differing", (double)NAN);
    if (!isfinite(checked) && d->n_steps) {
        checked = d->steps[d->n_steps - 1].values[IFL_REPORT_PARITY_CHECKED];
        differing = d->steps[d->n_steps - 1].values[IFL_REPORT_PARITY_DIFFERING];
    }
    char value[64] = "–", note[128] = "no audit";
    if (isfinite(checked) && isfinite(differing)) {
        snprintf(value, sizeof value, "%.0f differing", differing);
        double after_swap = ifl_report_summary(d, "parity_tokens_after_swap", (double)NAN);
        int n =
            snprintf(note, sizeof note, "of %.0f log-probs scored again, 32 bits each", checked);
        if (isfinite(after_swap))
            snprintf(note + n, sizeof note - (size_t)n, "; %.0f after a swap", after_swap);
    }
    bool known = isfinite(differing) && checked > 0;
    tile(f, "parity audit", value, note, !known ? "" : differing > 0 ? "bad" : "good");
    double lag0 = ifl_report_summary(d, "parity_lag0_tokens_checked", (double)NAN);
    differing = ifl_report_summary(d, "parity_lag0_tokens_differing", (double)NAN);
    if (isfinite(lag0) && isfinite(differing)) {
        snprintf(value, sizeof value, "%.0f differing", differing);
        snprintf(note, sizeof note, "of %.0f trained at lag 0, actor against learner's own forward",
                 lag0);
        tile(f, "train guard", value, note, lag0 == 0 ? "" : differing > 0 ? "bad" : "good");
    }
    double foreign = ifl_report_summary(d, "foreign_tokens", 0.0);
    if (foreign > 0) {
        snprintf(value, sizeof value, "%.0f tokens", foreign);
        snprintf(note, sizeof note,
                 "of another numerics profile: mean weight %.4f, ESS %.4f, k3 %.2e",
                 ifl_report_summary(d, "foreign_weight_mean", (double)NAN),
                 ifl_report_summary(d, "foreign_ess", (double)NAN),
                 ifl_report_summary(d, "foreign_k3", (double)NAN));
        tile(f, "foreign answers", value, note, "");
    }
}

static void tiles_write(FILE *f, const ifl_report_data *d) {
    char value[64], note[128], a[32], b[32];
    fputs("<div class=\"tiles\">\n", f);
    accuracy_tile(f, d);
    parity_tile(f, d);
    double mean = ifl_report_summary(d, "lag_mean", (double)NAN);
    double max = ifl_report_summary(d, "lag_max", (double)NAN);
    ifl_number_short(mean, a);
    ifl_number_short(max, b);
    snprintf(value, sizeof value, "%s", a);
    snprintf(note, sizeof note, "versions, mean over trained tokens; max %s", b);
    tile(f, "lag", value, note, "");
    ifl_number_short(ifl_report_summary(d, "ess_mean", (double)NAN), value);
    tile(f, "effective sample size", value, "mean share, before the clamp", "");
    ifl_number_short(ifl_report_summary(d, "swap_stall_ms_p50", (double)NAN), a);
    ifl_number_short(ifl_report_summary(d, "swap_stall_ms_p99", (double)NAN), b);
    snprintf(value, sizeof value, "%s ms", a);
    ifl_number_short(ifl_report_summary(d, "swaps_mid_trajectory", (double)NAN), a);
    snprintf(note, sizeof note, "p99 %s ms; %s trajectories swapped midway", b, a);
    tile(f, "swap stall", value, note, "");
    if (d->has_rollouts) {
        snprintf(value, sizeof value, "%lld lost", (long long)d->balance.lost);
        snprintf(note, sizeof note, "of %lld leased; %lld span two or more versions",
                 (long long)d->balance.leased, (long long)d->n_multi_version);
        tile(f, "trajectories", value, note,
             ifl_rollout_balance_holds(&d->balance) ? "good" : "bad");
    }
    duration_text(ifl_report_summary(d, "wall_s", (double)NAN), value);
    ifl_number_short(ifl_report_summary(d, "tokens_generated", (double)NAN), a);
    ifl_number_short(ifl_report_summary(d, "tokens_trained", (double)NAN), b);
    snprintf(note, sizeof note, "%s tokens generated, %s trained", a, b);
    tile(f, "wall time", value, note, "");
    fputs("</div>\n", f);
}

/* --- Curves
 * ----------------------------------------------------------------------------------------- */

typedef struct curve {
    const char *title, *unit;
    int n_series;
    struct {
        const char *name;
        ifl_report_metric metric;
    } series[IFL_CHART_SERIES_MAX];
    bool from_zero;
    double y_max_at_least, y_min_at_most; /* 0 = from the data */
    int decimals;
} curve;

static const curve curves[] = {
    {"Lag", "versions", 2, {{"mean", IFL_REPORT_LAG}, {"max", IFL_REPORT_LAG_MAX}}, true, 1, 0, 2},
    {"Answer length",
     "tokens",
     3,
     {{"mean", IFL_REPORT_LENGTH}, {"95 %", IFL_REPORT_LENGTH_P95}, {"max", IFL_REPORT_LENGTH_MAX}},
     true,
     1,
     0,
     1},
    {"Effective sample size", "share", 1, {{"", IFL_REPORT_ESS}}, false, 1, 0.9, 3},
    {"Entropy", "nats", 1, {{"", IFL_REPORT_ENTROPY}}, true, 0.01, 0, 3},
    {"Throughput",
     "tokens/s",
     2,
     {{"actors, sampled", IFL_REPORT_ACTOR_TOKENS},
      {"learner, trained", IFL_REPORT_LEARNER_TOKENS}},
     true,
     1,
     0,
     0},
    {"Swap stall",
     "ms between two decode steps",
     2,
     {{"median", IFL_REPORT_STALL_P50}, {"99 %", IFL_REPORT_STALL_P99}},
     true,
     0.01,
     0,
     3},
    {"Groups and answers without signal",
     "share",
     2,
     {{"groups of equal rewards", IFL_REPORT_ZERO_VARIANCE},
      {"answers cut by the limit", IFL_REPORT_TRUNCATED}},
     true,
     0.1,
     0,
     3},
};

static void metric_points(const ifl_report_data *d, ifl_report_metric metric,
                          ifl_chart_point *points) {
    for (size_t i = 0; i < d->n_steps; i++)
        points[i] = (ifl_chart_point){(double)d->steps[i].step, d->steps[i].values[metric],
                                      (double)NAN, (double)NAN};
}

static void accuracy_points(const ifl_report_data *d, int32_t source, ifl_chart_point *points) {
    for (size_t i = 0; i < d->n_evals; i++) {
        const ifl_report_eval *e = &d->evals[i];
        const ifl_report_accuracy *a = source < 0 ? &e->all : &e->sources[source];
        points[i] = (ifl_chart_point){(double)e->step, a->accuracy, a->low, a->high};
    }
}

static void accuracy_chart(FILE *f, const ifl_report_data *d, ifl_chart_point **points) {
    ifl_chart chart = {.title = "Held-out accuracy",
                       .unit = "greedy, with 95 % interval",
                       .series = {{"", points[0], d->n_evals, true}},
                       .n_series = 1,
                       .from_zero = true,
                       .y_max_at_least = 1,
                       .decimals = 3};
    accuracy_points(d, -1, points[0]);
    ifl_chart_write(f, &chart);
    /* With more sources than there are colours the table has to do. */
    if (d->n_sources < 2 || d->n_sources > IFL_CHART_SERIES_MAX) return;
    chart.title = "Held-out accuracy by source";
    chart.n_series = d->n_sources;
    for (int32_t i = 0; i < d->n_sources; i++) {
        accuracy_points(d, i, points[i]);
        chart.series[i] = (ifl_chart_series){d->sources[i], points[i], d->n_evals, true};
    }
    ifl_chart_write(f, &chart);
}

static void curves_write(FILE *f, const ifl_report_data *d) {
    size_t n = d->n_steps > d->n_evals ? d->n_steps : d->n_evals;
    ifl_chart_point *points[IFL_CHART_SERIES_MAX];
    bool good = true;
    for (int i = 0; i < IFL_CHART_SERIES_MAX; i++)
        good = (points[i] = malloc((n + 1) * sizeof **points)) && good;
    fputs("<h2>Curves</h2>\n<div class=\"grid\">\n", f);
    if (good) {
        metric_points(d, IFL_REPORT_REWARD, points[0]);
        const ifl_chart reward = {.title = "Reward",
                                  .unit = "mean of the step",
                                  .series = {{"", points[0], d->n_steps, false}},
                                  .n_series = 1,
                                  .from_zero = true,
                                  .y_max_at_least = 1,
                                  .decimals = 3};
        ifl_chart_write(f, &reward);
        accuracy_chart(f, d, points);
    }
    for (size_t c = 0; good && c < sizeof curves / sizeof *curves; c++) {
        ifl_chart chart = {.title = curves[c].title,
                           .unit = curves[c].unit,
                           .n_series = curves[c].n_series,
                           .from_zero = curves[c].from_zero,
                           .y_max_at_least = curves[c].y_max_at_least,
                           .y_min_at_most = curves[c].y_min_at_most,
                           .decimals = curves[c].decimals};
        for (int s = 0; s < curves[c].n_series; s++) {
            metric_points(d, curves[c].series[s].metric, points[s]);
            chart.series[s] =
                (ifl_chart_series){curves[c].series[s].name, points[s], d->n_steps, false};
        }
        ifl_chart_write(f, &chart);
    }
    if (d->has_rollouts && (d->first_lengths.n || d->last_lengths.n)) {
        char first[64], last[64];
        snprintf(first, sizeof first, "steps %lld to %lld", (long long)d->first_lengths.step_from,
                 (long long)d->first_lengths.step_to);
        snprintf(last, sizeof last, "steps %lld to %lld", (long long)d->last_lengths.step_from,
                 (long long)d->last_lengths.step_to);
        const ifl_histogram h = {{first, last},
                                 {d->first_lengths.tokens, d->last_lengths.tokens},
                                 {d->first_lengths.n, d->last_lengths.n}};
        ifl_histogram_write(f, "Answer lengths, start and end", "tokens", &h);
    }
    fputs("</div>\n", f);
    for (int i = 0; i < IFL_CHART_SERIES_MAX; i++)
        free(points[i]);
}

/* --- Tables
 * ----------------------------------------------------------------------------------------- */

static void value_write(FILE *f, const json_t *value) {
    if (json_is_integer(value))
        fprintf(f, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        fprintf(f, "%.6g", json_real_value(value));
    else if (json_is_string(value))
        ifl_html_text(f, json_string_value(value));
    else
        fputs(json_is_true(value) ? "yes" : json_is_false(value) ? "no" : "–", f);
}

static void rows_write(FILE *f, const json_t *object) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (json_is_object(value) || json_is_array(value)) continue;
        fputs("<tr><td>", f);
        ifl_html_text(f, key);
        fputs("</td><td>", f);
        value_write(f, value);
        fputs("</td></tr>\n", f);
    }
}

static void books_row(FILE *f, const char *name, int64_t n, const char *class) {
    fputs("<tr><td>", f);
    ifl_html_text(f, name);
    fprintf(f, "</td><td class=\"%s\">%lld</td></tr>\n", class, (long long)n);
}

static void books_write(FILE *f, const ifl_report_data *d) {
    const ifl_rollout_balance *b = &d->balance;
    char name[96];
    fputs("<div class=\"card\"><figcaption><b>Books</b> <span>recomputed from the rollout log"
          "</span></figcaption><table>\n",
          f);
    books_row(f, "trajectories leased", b->leased, "");
    books_row(f, "= trained", b->trained, "");
    books_row(f, "+ masked by their reward status", b->masked, "");
    for (int32_t i = 0; i < b->n_reasons; i++) {
        if (!b->reasons[i].n_dropped) continue;
        snprintf(name, sizeof name, "+ dropped: %s", b->reasons[i].reason);
        books_row(f, name, b->reasons[i].n_dropped, "");
    }
    books_row(f, b->ended ? "+ in flight at the end" : "+ in flight (the run has not ended)",
              b->in_flight, "");
    books_row(f, "+ lost", b->lost, b->lost ? "bad" : "good");
    books_row(f, "trained twice, two fates, never leased, not stored",
              b->trained_twice + b->conflicting + b->unleased + b->trained_unstored,
              ifl_rollout_balance_holds(b) ? "" : "bad");
    fputs("</table></div>\n", f);
}

/* summary.json's paired difference of a source, or NULL. */
static const json_t *gain_find(const ifl_report_data *d, const char *source) {
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(d->summary, "accuracy_gain_sources"), i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name && strcmp(name, source) == 0) return entry;
    }
    return NULL;
}

static double json_number_or_nan(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

static void accuracy_cell(FILE *f, const ifl_report_accuracy *a) {
    fprintf(f, "<td>%.3f <small>(%.3f to %.3f)</small></td>", a->accuracy, a->low, a->high);
}

static void accuracy_row(FILE *f, const ifl_report_data *d, int32_t source) {
    const ifl_report_accuracy *first, *last;
    const ifl_report_eval *eval;
    if (!accuracy_ends(d, source, &first, &last, &eval)) return;
    fputs("<tr><td>", f);
    ifl_html_text(f, source < 0 ? "all" : d->sources[source]);
    fprintf(f, "</td><td>%lld</td>", (long long)last->n);
    accuracy_cell(f, first);
    accuracy_cell(f, last);
    const json_t *entry = source < 0 ? d->summary : gain_find(d, d->sources[source]);
    double gain = json_number_or_nan(entry, source < 0 ? "accuracy_gain" : "gain");
    double low = json_number_or_nan(entry, source < 0 ? "accuracy_gain_low" : "low");
    double high = json_number_or_nan(entry, source < 0 ? "accuracy_gain_high" : "high");
    if (isfinite(gain) && isfinite(low) && isfinite(high))
        fprintf(f, "<td>%+.1f <small>(%+.1f to %+.1f)</small></td></tr>\n", 100 * gain, 100 * low,
                100 * high);
    else
        fputs("<td>–</td></tr>\n", f);
}

static void accuracy_write(FILE *f, const ifl_report_data *d) {
    if (d->n_sources < 2) return;
    fputs("<div class=\"card wide\"><figcaption><b>Held-out accuracy by source</b> <span>greedy, "
          "with Wilson 95 % intervals; the gain is paired, with a bootstrap 95 % interval"
          "</span></figcaption><table>\n<tr><th>source</th><th>tasks</th><th>first</th><th>last"
          "</th><th>gain, points</th></tr>\n",
          f);
    for (int32_t i = -1; i < d->n_sources; i++)
        accuracy_row(f, d, i);
    fputs("</table></div>\n", f);
}

static void bias_cell(FILE *f, double value) {
    if (isnan(value))
        fputs("<td>–</td>", f);
    else
        fprintf(f, "<td>%.3g</td>", value);
}

/* `interval` NULL: none. */
static void bias_row(FILE *f, const char *name, const char *class, const ifl_bias_sums *s,
                     const ifl_bias_interval *interval) {
    ifl_bias_figures g = ifl_bias_figures_of(s);
    fprintf(f, "<tr><td>%s</td><td>%lld</td><td class=\"%s\">%lld</td>", name, (long long)s->n,
            class, (long long)s->n_moved);
    const double values[] = {
        g.kl, g.k1, g.k3, g.ess, g.max_abs, g.above_2, g.gain_positive, g.gain_negative};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        bias_cell(f, values[i]);
    if (interval && isfinite(interval->nats_low))
        fprintf(f, "<td>%.3g to %.3g</td></tr>\n", interval->nats_low, interval->nats_high);
    else
        fputs("<td>–</td></tr>\n", f);
}

/* Where log r comes from, and what it was paid for. */
static void bias_write(FILE *f, const ifl_report_data *d) {
    const ifl_bias_record *b = &d->bias;
    if (d->n_bias_steps == 0 || b->n_tokens == 0) return;
    static const char *const names[IFL_BIAS_COUNT] = {
        "numerics: recorded against replayed", "truncation: kept set against the vocabulary",
        "stale KV: other versions' keys and values", "lag: the weights' age", "total"};
    fprintf(
        f,
        "<div class=\"card wide\"><figcaption><b>Bias ledger</b> <span>log p(now) − log p("
        "recorded) by cause, nats per token, over %lld tokens of %lld trained answers</span>"
        "</figcaption><table>\n<tr><th>cause</th><th>tokens</th><th>moved</th><th>KL, exact"
        "</th><th>k1</th><th>k3</th><th>ESS/n</th><th>max |log r|</th><th>r above 2</th>"
        "<th>−(r−1)A, A &gt; 0</th><th>A &lt; 0</th><th>95 %% of nats, over answers</th></tr>\n",
        (long long)b->n_tokens, (long long)b->n_trajectories);
    for (int e = 0; e < IFL_BIAS_COUNT; e++) {
        const char *class = e != IFL_BIAS_NUMERICS ? "" : b->n_differing ? "bad" : "good";
        bias_row(f, names[e], class, &b->entries[e], b->n_resampled ? &b->intervals[e] : NULL);
        for (int k = 1; e == IFL_BIAS_LAG && k < IFL_BIAS_LAGS; k++) {
            char name[32];
            if (b->lags[k].n == 0) continue;
            snprintf(name, sizeof name, "&nbsp; of lag %d%s", k,
                     k == IFL_BIAS_LAGS - 1 ? " and more" : "");
            bias_row(f, name, "", &b->lags[k], NULL);
        }
    }
    for (int e = IFL_BIAS_LAG; e > IFL_BIAS_NUMERICS && b->reversed[e].n > 0; e--) {
        char name[64];
        snprintf(name, sizeof name, "%s, in the other order",
                 e == IFL_BIAS_STALE_KV ? "stale KV" : ifl_bias_entry_name((ifl_bias_entry)e));
        bias_row(f, name, "", &b->reversed[e],
                 b->n_resampled ? &b->intervals[IFL_BIAS_COUNT + e - 1] : NULL);
    }
    double n = b->correction.n > 0 ? (double)b->correction.n : 1.0,
           mass = b->correction.mass > 0.0 ? b->correction.mass : 1.0;
    fprintf(f,
            "</table>\n<p class=\"sub\">Correction: the loss weighs %.3g %% of the tokens (%.3g %% "
            "of |A|) by other than p/μ and drops %.3g %% (%.3g %%); bias bought %.3g per token. "
            "Whole answers: ESS/n %.3g. Sums that do not close: %lld.",
            100.0 * (double)b->correction.n_changed / n, 100.0 * b->correction.mass_changed / mass,
            100.0 * (double)b->correction.n_dropped / n, 100.0 * b->correction.mass_dropped / mass,
            b->correction.bias / n,
            b->sequence.w * b->sequence.w / ((double)b->sequence.n * b->sequence.w2),
            (long long)b->n_untelescoped);
    double speed = ifl_report_summary(d, "tokens_trained_per_s", (double)NAN);
    if (isfinite(speed))
        fprintf(f,
                " These nats were the price of %.0f trained tokens/s; <code>inflight ledger</code> "
                "puts runs side by side.",
                speed);
    fputs("</p></div>\n", f);
}

static void tables_write(FILE *f, const ifl_report_data *d) {
    fputs("<h2>Figures</h2>\n<div class=\"grid\">\n", f);
    accuracy_write(f, d);
    bias_write(f, d);
    if (d->summary) {
        fputs(
            "<div class=\"card\"><figcaption><b>Summary</b> <span>summary.json</span></figcaption>"
            "<table>\n",
            f);
        rows_write(f, d->summary);
        fputs("</table></div>\n", f);
    }
    if (d->has_rollouts) books_write(f, d);
    fputs("</div>\n", f);
}

/* --- Rollouts
 * --------------------------------------------------------------------------------------- */

/* The end of a long prompt: its beginning are few-shots, the same everywhere. */
static const char *prompt_shown(const char *prompt, bool *cut) {
    size_t n = strlen(prompt);
    *cut = n > PROMPT_BYTES_SHOWN;
    const char *p = *cut ? prompt + n - PROMPT_BYTES_SHOWN : prompt;
    while (*cut && ((unsigned char)*p & 0xc0) == 0x80)
        p++; /* not into the middle of a character */
    return p;
}

static void sample_write(FILE *f, const ifl_report_sample *s) {
    bool cut;
    const char *prompt = prompt_shown(s->prompt, &cut);
    fputs("<div class=\"card roll\"><div class=\"meta\">", f);
    if (s->scored)
        fprintf(f, "<span class=\"%s\">reward %g</span>", s->reward > 0 ? "good" : "bad",
                s->reward);
    else
        fputs("<span>no reward</span>", f);
    fprintf(f, "<span>%d tokens, %s</span>", s->n_answer, s->finish);
    if (s->has_lag) fprintf(f, "<span>lag %.0f</span>", s->lag_max);
    fputs("<span>", f);
    ifl_html_text(f, s->task_id);
    fputs("</span></div><pre><span class=\"p\">", f);
    if (cut) fputs("… ", f);
    ifl_html_text(f, prompt);
    fputs("</span>", f);
    for (int32_t i = 0; i < s->n_segments; i++) {
        fprintf(f, "<span class=\"v%d\" title=\"policy version %lld\">", i & 1,
                (long long)s->segments[i].version);
        ifl_html_text(f, s->segments[i].text);
        fputs("</span>", f);
    }
    fprintf(f, "%s</pre>", s->cut ? " …" : "");
    if (s->n_segments > 1)
        fprintf(f, "<div class=\"meta\"><span>policy versions %lld to %lld</span></div>",
                (long long)s->segments[0].version,
                (long long)s->segments[s->n_segments - 1].version);
    fputs("</div>\n", f);
}

static void samples_write(FILE *f, const ifl_report_data *d) {
    if (!d->n_first && !d->n_last) return;
    fputs("<h2>Rollouts</h2>\n<p class=\"sub\">The prompt is grey; where the shade of an answer "
          "changes, new weights came in.</p>\n<div class=\"pair\"><div>",
          f);
    fputs("<h3>Step 1</h3>\n", f);
    for (int32_t i = 0; i < d->n_first; i++)
        sample_write(f, &d->first[i]);
    fprintf(f, "</div><div><h3>Step %lld</h3>\n", (long long)d->balance.steps);
    for (int32_t i = 0; i < d->n_last; i++)
        sample_write(f, &d->last[i]);
    fputs("</div></div>\n", f);
}

static void heading_write(FILE *f, const ifl_report_data *d) {
    static const char *const modes[] = {"pipeline", "sync", "async"};
    fputs("<h1>", f);
    ifl_html_text(f, d->name);
    fputs("</h1>\n<p class=\"sub\">", f);
    int64_t done = d->n_steps ? d->steps[d->n_steps - 1].step : 0;
    fprintf(f, "%lld optimizer steps", (long long)done);
    if (d->config) {
        const ifl_config *c = d->config;
        fprintf(f, " of %lld · %d prompts × %d · mode %s", (long long)c->run.steps,
                c->rollout.prompts_per_step, c->rollout.group_size, modes[c->run.mode]);
        if (c->run.mode == IFL_MODE_ASYNC) fprintf(f, ":%d", c->run.async_k);
        fprintf(f, " · KV %s · seed %lld", c->actor.kv == IFL_KV_MODE_KEEP ? "kept" : "recomputed",
                (long long)c->run.seed);
        if (strcmp(c->learner.control, "none") != 0) {
            fputs(" · <b class=\"bad\">control run: ", f);
            ifl_html_text(f, c->learner.control);
            fputs("</b>", f);
        }
    }
    fputs("</p>\n", f);
}

void ifl_report_page(FILE *f, const ifl_report_data *d) {
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>",
          f);
    ifl_html_text(f, d->name);
    fprintf(f, "</title>\n<style>\n%s</style></head>\n<body><main>\n", style);
    heading_write(f, d);
    tiles_write(f, d);
    curves_write(f, d);
    tables_write(f, d);
    samples_write(f, d);
    fputs("<footer>Written by <code>inflight report</code> from metrics.jsonl, summary.json and "
          "rollouts/.",
          f);
    if (d->n_lines_skipped)
        fprintf(f, " %lld unreadable lines of metrics.jsonl were left out.",
                (long long)d->n_lines_skipped);
    fputs("</footer>\n</main></body></html>\n", f);
}

ifl_status ifl_report_write(const ifl_run_dir *run, ifl_error *err) {
    ifl_report_data *data = NULL;
    char *text = NULL;
    size_t n = 0;
    IFL_TRY(ifl_report_data_load(&data, run, err));
    FILE *f = open_memstream(&text, &n);
    if (!f) {
        ifl_report_data_free(data);
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory", run->report);
    }
    ifl_report_page(f, data);
    ifl_report_data_free(data);
    bool failed = ferror(f);
    if (fclose(f) || failed) {
        free(text);
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory", run->report);
    }
    ifl_status st = ifl_file_write_atomic(run->report, text, n, err);
    free(text);
    return st;
}

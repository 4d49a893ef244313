#include "deploy/cli/report_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/file_map.h"
#include "common/memory.h"
#include "common/metrics.h"

#define SUMMARY_BYTES_MAX ((size_t)16 << 20)
#define SAMPLE_TOKENS_MAX 400 /* of an answer, in a report */
#define LENGTHS_MAX ((size_t)1 << 20)

static const char *const metric_names[IFL_REPORT_N_METRICS] = {
#define METRIC_NAME(id, name) [IFL_REPORT_##id] = name,
    IFL_REPORT_METRICS(METRIC_NAME)
#undef METRIC_NAME
};

typedef struct loader {
    ifl_report_data *data;
    ifl_rollout_view *view;
    ifl_error *err;
} loader;

/* --- metrics.jsonl
 * -------------------------------------------------------------------------------- */

static double number_at(const json_t *row, const char *key) {
    const json_t *value = json_object_get(row, key);
    double v = json_is_number(value) ? json_number_value(value) : (double)NAN;
    return isfinite(v) ? v : (double)NAN;
}

/* A resumed run writes its steps again: what came later stands. */
static ifl_status step_row(loader *l, const json_t *row, int64_t step) {
    ifl_report_data *d = l->data;
    while (d->n_steps && d->steps[d->n_steps - 1].step >= step)
        d->n_steps--;
    if (d->n_steps >= IFL_REPORT_STEPS_MAX)
        return ifl_fail(l->err, IFL_LIMIT, "more than %d steps in metrics.jsonl",
                        IFL_REPORT_STEPS_MAX);
    IFL_TRY(ifl_grow((void **)&d->steps, &d->steps_cap, d->n_steps + 1, sizeof *d->steps, l->err));
    ifl_report_step *s = &d->steps[d->n_steps++];
    s->step = step;
    for (int i = 0; i < IFL_REPORT_N_METRICS; i++)
        s->values[i] = number_at(row, metric_names[i]);
    return IFL_OK;
}

/* "eval/<source>/<what>", or "eval/<what>" of all. */
static ifl_report_accuracy accuracy_at(const json_t *row, const char *source) {
    char key[IFL_NAME_MAX + 32];
    double values[4];
    static const char *const what[4] = {"accuracy", "accuracy_low", "accuracy_high", "n"};
    for (int i = 0; i < 4; i++) {
        snprintf(key, sizeof key, "eval/%s%s%s", source, *source ? "/" : "", what[i]);
        values[i] = number_at(row, key);
    }
    int64_t n = values[3] >= 0 && values[3] < 1e15 ? (int64_t)values[3] : 0;
    return (ifl_report_accuracy){n, values[0], values[1], values[2]};
}

/* Sources by their keys: whoever reads the page need not have the configuration. */
static void sources_find(ifl_report_data *d, const json_t *row) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)row, key, value) {
        size_t n = strlen(key), head = strlen("eval/"), tail = strlen("/accuracy");
        char name[IFL_NAME_MAX];
        if (n <= head + tail || n - head - tail >= sizeof name) continue;
        if (strncmp(key, "eval/", head) || strcmp(key + n - tail, "/accuracy")) continue;
        snprintf(name, sizeof name, "%.*s", (int)(n - head - tail), key + head);
        int32_t i = 0;
        while (i < d->n_sources && strcmp(d->sources[i], name))
            i++;
        if (i == d->n_sources && i < IFL_SOURCES_MAX)
            snprintf(d->sources[d->n_sources++], sizeof *d->sources, "%s", name);
    }
}

static ifl_status eval_row(loader *l, const json_t *row, int64_t step) {
    ifl_report_data *d = l->data;
    while (d->n_evals && d->evals[d->n_evals - 1].step >= step)
        d->n_evals--;
    if (d->n_evals >= IFL_REPORT_STEPS_MAX)
        return ifl_fail(l->err, IFL_LIMIT, "more than %d evaluations in metrics.jsonl",
                        IFL_REPORT_STEPS_MAX);
    IFL_TRY(ifl_grow((void **)&d->evals, &d->evals_cap, d->n_evals + 1, sizeof *d->evals, l->err));
    ifl_report_eval *e = &d->evals[d->n_evals++];
    e->step = step;
    e->version = json_integer_value(json_object_get(row, "eval/version"));
    e->all = accuracy_at(row, "");
    sources_find(d, row);
    for (int32_t i = 0; i < IFL_SOURCES_MAX; i++)
        e->sources[i] = i < d->n_sources
                            ? accuracy_at(row, d->sources[i])
                            : (ifl_report_accuracy){0, (double)NAN, (double)NAN, (double)NAN};
    e->avg_at_k = number_at(row, "eval/avg@k");
    e->pass_at_k = number_at(row, "eval/pass@k");
    return IFL_OK;
}

static ifl_status metrics_row(const json_t *row, void *user) {
    const char *kind = json_string_value(json_object_get(row, "kind"));
    const json_t *step = json_object_get(row, "step");
    if (!kind || !json_is_integer(step)) return IFL_OK;
    if (!strcmp(kind, "step")) return step_row(user, row, json_integer_value(step));
    if (!strcmp(kind, "eval")) return eval_row(user, row, json_integer_value(step));
    return IFL_OK;
}

/* --- rollouts/
 * -------------------------------------------------------------------------------------- */

/* The answer's tokens up to a limit, one segment per policy version. */
static ifl_status sample_segments(const loader *l, ifl_report_sample *s,
                                  const ifl_rollout_row *row) {
    const ifl_trajectory *t = row->traj;
    int32_t begin = row->n_prompt, end = t->n_tokens;
    if (end - begin > SAMPLE_TOKENS_MAX) {
        end = begin + SAMPLE_TOKENS_MAX;
        s->cut = true;
    }
    while (begin < end) {
        int64_t version = ifl_trajectory_version_at(t, begin);
        int32_t stop = begin + 1;
        bool last = s->n_segments == IFL_REPORT_SEGMENTS_MAX - 1;
        while (stop < end && (last || ifl_trajectory_version_at(t, stop) == version))
            stop++;
        char *text = ifl_rollout_text(l->view, t->tokens + begin, stop - begin);
        if (!text) return ifl_fail(l->err, IFL_NOMEM, "out of memory for a sample");
        s->segments[s->n_segments].text = text;
        s->segments[s->n_segments++].version = version;
        begin = stop;
    }
    return IFL_OK;
}

static ifl_status sample_take(const loader *l, ifl_report_sample *s, const ifl_rollout_row *row) {
    const ifl_trajectory *t = row->traj;
    s->step = row->fate.step;
    snprintf(s->task_id, sizeof s->task_id, "%s", t->task_id);
    s->task_serial = t->task_serial;
    s->n_answer = row->n_answer;
    s->scored = ifl_reward_is_verdict(t->reward.status);
    s->reward = (double)t->reward.reward;
    s->finish = ifl_finish_name(t->finish);
    s->has_lag = row->has_lag;
    s->lag_max = row->lag_max;
    s->prompt = ifl_rollout_text(l->view, t->tokens, row->n_prompt);
    if (!s->prompt) return ifl_fail(l->err, IFL_NOMEM, "out of memory for a sample");
    return sample_segments(l, s, row);
}

/* One sample per task, so that four samples show four tasks. */
static bool sample_wanted(const ifl_report_sample *samples, int32_t n, uint64_t serial) {
    for (int32_t i = 0; i < n; i++)
        if (samples[i].task_serial == serial) return false;
    return n < IFL_REPORT_SAMPLES;
}

static ifl_status length_add(const loader *l, ifl_report_lengths *lengths, int64_t step,
                             int32_t tokens) {
    if (step < lengths->step_from || step > lengths->step_to || lengths->n >= LENGTHS_MAX)
        return IFL_OK;
    IFL_TRY(ifl_grow((void **)&lengths->tokens, &lengths->cap, lengths->n + 1,
                     sizeof *lengths->tokens, l->err));
    lengths->tokens[lengths->n++] = tokens;
    return IFL_OK;
}

static ifl_status rollout_row(const ifl_rollout_row *row, void *user) {
    const loader *l = user;
    ifl_report_data *d = l->data;
    if (row->traj->purpose != IFL_PURPOSE_TRAIN || row->fate.fate != IFL_FATE_TRAINED)
        return IFL_OK;
    d->n_multi_version += row->n_versions > 1;
    IFL_TRY(length_add(l, &d->first_lengths, row->fate.step, row->n_answer));
    IFL_TRY(length_add(l, &d->last_lengths, row->fate.step, row->n_answer));
    uint64_t serial = row->traj->task_serial;
    if (row->fate.step == 1 && sample_wanted(d->first, d->n_first, serial))
        return sample_take(l, &d->first[d->n_first++], row);
    if (row->fate.step == d->balance.steps && d->balance.steps > 1 &&
        sample_wanted(d->last, d->n_last, serial))
        return sample_take(l, &d->last[d->n_last++], row);
    return IFL_OK;
}

static ifl_status rollouts_load(loader *l, const ifl_run_dir *run) {
    ifl_report_data *d = l->data;
    ifl_status st = ifl_rollout_view_open(&l->view, run, l->err);
    if (st == IFL_NOTFOUND) return IFL_OK; /* no rollouts/ folder */
    IFL_TRY(st);
    d->has_rollouts = true;
    ifl_rollout_ledger_balance(ifl_rollout_view_ledger(l->view), &d->balance);
    /* A tenth of the run at each end, never overlapping. */
    int64_t steps = d->balance.steps, window = steps / 10 > 1 ? steps / 10 : 1;
    d->first_lengths.step_from = 1;
    d->first_lengths.step_to = window;
    d->last_lengths.step_from = steps - window + 1 > window ? steps - window + 1 : window + 1;
    d->last_lengths.step_to = steps;
    st = ifl_rollout_view_walk(l->view, rollout_row, l, l->err);
    ifl_rollout_view_close(l->view);
    l->view = NULL;
    return st;
}

/* --- All of it
 * ---------------------------------------------------------------------------------------- */

static ifl_status summary_load(ifl_report_data *d, const ifl_run_dir *run, ifl_error *err) {
    char *text = NULL;
    size_t n = 0;
    ifl_status st = ifl_file_read_text(run->summary, SUMMARY_BYTES_MAX, &text, &n, err);
    if (st == IFL_NOTFOUND) return IFL_OK;
    IFL_TRY(st);
    json_error_t error;
    d->summary = json_loadb(text, n, 0, &error);
    free(text);
    if (!json_is_object(d->summary))
        return ifl_fail(err, IFL_FORMAT, "%s:%d: not a JSON object: %s", run->summary, error.line,
                        d->summary ? "something else" : error.text);
    return IFL_OK;
}

ifl_status ifl_report_data_load(ifl_report_data **out, const ifl_run_dir *run, ifl_error *err) {
    *out = NULL;
    ifl_report_data *d = calloc(1, sizeof *d);
    if (!d) return ifl_fail(err, IFL_NOMEM, "report: out of memory");
    loader l = {d, NULL, err};
    ifl_status st;
    const char *slash = strrchr(run->path, '/');
    snprintf(d->name, sizeof d->name, "%s", slash ? slash + 1 : run->path);
    d->config = malloc(sizeof *d->config);
    if (d->config && ifl_config_load(d->config, run->config, NULL, 0, NULL) != IFL_OK) {
        free(d->config); /* of another version, say; the rest of the report stands without it */
        d->config = NULL;
    }
    st = ifl_metrics_read(run->metrics, metrics_row, &l, &d->n_lines_skipped, err);
    if (st == IFL_NOTFOUND) st = IFL_OK;
    if (st == IFL_OK) st = ifl_bias_read(&d->bias, &d->n_bias_steps, run->ledger, err);
    if (st == IFL_NOTFOUND) st = IFL_OK;
    if (st == IFL_OK) st = summary_load(d, run, err);
    if (st == IFL_OK) st = rollouts_load(&l, run);
    if (st != IFL_OK) {
        ifl_report_data_free(d);
        return st;
    }
    *out = d;
    return IFL_OK;
}

static void samples_clear(ifl_report_sample *samples, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        free(samples[i].prompt);
        for (int32_t k = 0; k < samples[i].n_segments; k++)
            free(samples[i].segments[k].text);
    }
}

void ifl_report_data_free(ifl_report_data *d) {
    if (!d) return;
    free(d->config);
    json_decref(d->summary);
    free(d->steps);
    free(d->evals);
    free(d->first_lengths.tokens);
    free(d->last_lengths.tokens);
    samples_clear(d->first, d->n_first);
    samples_clear(d->last, d->n_last);
    free(d);
}

double ifl_report_summary(const ifl_report_data *data, const char *key, double otherwise) {
    const json_t *value = data->summary ? json_object_get(data->summary, key) : NULL;
    return json_is_number(value) ? json_number_value(value) : otherwise;
}

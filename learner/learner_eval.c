#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "learner/learner_internal.h"

typedef struct eval_taker {
    learner *learner;
    ifl_eval_results *results;
} eval_taker;

static ifl_status eval_take(void *user, int32_t number, const ifl_task *task, bool greedy,
                            const ifl_group *answers, ifl_error *err) {
    learner *l = ((eval_taker *)user)->learner;
    ifl_eval_results *results = ((eval_taker *)user)->results;
    if (greedy)
        IFL_TRY(ifl_eval_results_add(results, ifl_task_set_source_name(l->eval_set, task->source),
                                     task->id, task->line, err));
    ifl_eval_row *row = &results->rows[number];
    for (int32_t i = 0; i < answers->n_members; i++) {
        const ifl_member *m = &answers->members[i];
        if (m->state != IFL_MEMBER_STORED) continue; /* given up: not judged */
        const ifl_reward *reward = &m->traj->reward;
        if (greedy) {
            row->status = reward->status;
            row->reward = reward->reward;
            IFL_TRY(
                ifl_eval_answer_text(&row->answer, l->options->tokenizer, l->config, m->traj, err));
        } else {
            row->n_judged += ifl_eval_judged(reward->status, reward->reward);
            row->n_right += ifl_eval_right(reward->status, reward->reward);
        }
    }
    return IFL_OK;
}

static void eval_add_metrics(learner *l, const char *source, const ifl_eval_figures *f) {
    char name[IFL_NAME_MAX + 32];
    const char *slash = *source ? "/" : "";
#define ADD(what, value)                                                                           \
    (snprintf(name, sizeof name, "eval/%s%s" what, source, slash),                                 \
     ifl_metrics_add(l->metrics, name, value))
#define ADD_INT(what, value)                                                                       \
    (snprintf(name, sizeof name, "eval/%s%s" what, source, slash),                                 \
     ifl_metrics_add_int(l->metrics, name, value))
    ADD("accuracy", f->accuracy);
    ADD("accuracy_low", f->interval.low);
    ADD("accuracy_high", f->interval.high);
    ADD_INT("n", f->n);
    ADD_INT("unscored", f->n_unscored);
    if (f->k > 0) {
        ADD("avg@k", f->avg.mean);
        ADD("pass@k", f->pass.mean);
        ADD_INT("pass@k_left_out", f->pass.n_left_out);
    }
#undef ADD
#undef ADD_INT
}

/* Figures of the whole and of each source: into metrics.jsonl, for summary.json, and as lines. */
static ifl_status eval_record(learner *l, const ifl_eval_results *results, const char *when,
                              double seconds, double *accuracy, ifl_error *err) {
    ifl_eval_figures all, one;
    IFL_TRY(ifl_eval_figures_make(&all, results, -1, err));
    json_t *row = ifl_eval_figures_json(&all, NULL), *sources = json_array();
    *accuracy = all.accuracy;
    ifl_metrics_begin(l->metrics, "eval", l->step);
    eval_add_metrics(l, "", &all);
    ifl_metrics_add_int(l->metrics, "eval/version", l->step);
    ifl_metrics_add(l->metrics, "eval/train_s", l->totals.train_s);
    if (all.n_unscored > 0)
        ifl_warn("evaluation: %lld of %zu answers could not be scored", (long long)all.n_unscored,
                 results->n_rows);
    ifl_status_line_note(l->line,
                         "%s: greedy accuracy %.3f on %lld held-out tasks (95 %%: %.3f to %.3f), "
                         "version %lld, %.1f s",
                         when, all.accuracy, (long long)all.n, all.interval.low, all.interval.high,
                         (long long)l->step, seconds);
    ifl_status st = IFL_OK;
    for (int32_t i = 0; i < results->n_sources && st == IFL_OK; i++) {
        st = ifl_eval_figures_make(&one, results, i, err);
        if (st != IFL_OK) break;
        if (one.n + one.n_unscored == 0) continue; /* none among the first so many tasks */
        eval_add_metrics(l, results->sources[i], &one);
        json_array_append_new(sources, ifl_eval_figures_json(&one, results->sources[i]));
        if (results->n_sources > 1)
            ifl_status_line_note(l->line, "  %s: %.3f on %lld (95 %%: %.3f to %.3f)",
                                 results->sources[i], one.accuracy, (long long)one.n,
                                 one.interval.low, one.interval.high);
    }
    json_object_set_new(row, "when", json_string(when));
    json_object_set_new(row, "step", json_integer((json_int_t)l->step));
    json_object_set_new(row, "version", json_integer((json_int_t)l->step));
    json_object_set_new(row, "train_s", json_real(l->totals.train_s));
    json_object_set_new(row, "sources", sources);
    json_array_append_new(l->evals, row);
    ifl_status ended = ifl_metrics_end(l->metrics, st == IFL_OK ? err : NULL);
    l->view.accuracy = all.accuracy;
    l->view.accuracy_step = l->step;
    return st != IFL_OK ? st : ended;
}

ifl_status learner_evaluate(learner *l, int32_t n_tasks, const char *when,
                            ifl_eval_results *results, double *accuracy, ifl_error *err) {
    int64_t size = ifl_task_set_size(l->eval_set);
    if (size > 0 && size < n_tasks) n_tasks = (int32_t)size;
    snprintf(results->model, sizeof results->model, "%s, step %lld", l->options->run->path,
             (long long)l->step);
    memcpy(results->run_uuid, l->run_uuid, sizeof results->run_uuid);
    results->version = l->step;
    results->k = l->config->eval.samples;
    for (int32_t i = 0; i < l->config->data.n_eval; i++)
        IFL_TRY(
            ifl_eval_results_add_source(results, ifl_task_set_source_name(l->eval_set, i), err));
    eval_taker taker = {l, results};
    double begin = ifl_clock_s();
    l->view.phase = "evaluating";
    ifl_status_line_update(l->line, &l->view);
    ifl_status st = ifl_dispatch_eval(l->dispatch, n_tasks, results->k, l->step, IDLE_S, eval_take,
                                      &taker, err);
    l->view.phase = NULL;
    IFL_TRY(st);
    return eval_record(l, results, when, ifl_clock_s() - begin, accuracy, err);
}

static void eval_path(const learner *l, const char *when, char out[IFL_PATH_MAX]) {
    snprintf(out, IFL_PATH_MAX, "%s/evals/%s.jsonl", l->options->run->path, when);
}

/* Keeps an evaluation task by task in the run's folder, where a resumed run finds it. */
static ifl_status eval_keep(const learner *l, const char *when, const ifl_eval_results *results,
                            ifl_error *err) {
    char path[IFL_PATH_MAX];
    snprintf(path, sizeof path, "%s/evals", l->options->run->path);
    IFL_TRY(ifl_dir_create(path, err));
    eval_path(l, when, path);
    return ifl_eval_results_write(results, path, err);
}

/* The paired difference between the evaluations before and after: only if both were made in this
 * run and on the same tasks; else the run has no such figure, and says why. */
static ifl_status learner_gain(learner *l, const ifl_eval_results *after, ifl_error *err) {
    char path[IFL_PATH_MAX], text[256];
    ifl_eval_results before;
    ifl_error why = {0};
    eval_path(l, "before", path);
    ifl_status st = ifl_eval_results_read(&before, path, &why);
    if (st == IFL_NOMEM) return ifl_fail(err, st, "%s", why.text);
    if (st != IFL_OK) {
        if (isfinite(l->totals.accuracy_before) || st != IFL_NOTFOUND)
            ifl_warn("no paired gain: %s", why.text);
        return IFL_OK;
    }
    if (strcmp(before.run_uuid, l->run_uuid) != 0) {
        ifl_warn("no paired gain: %s is of another run", path);
        goto done;
    }
    IFL_TRY_GOTO(st, ifl_eval_compare(&l->gain, &before, after, NULL, err), done);
    if (l->gain.n_only_before + l->gain.n_only_after > 0 || l->gain.paired.n_tasks == 0) {
        ifl_eval_gain_text(&l->gain, text, sizeof text);
        ifl_warn("no paired gain: the evaluations before and after are not of the same tasks: %s",
                 text);
        goto done;
    }
    ifl_eval_gain_text(&l->gain, text, sizeof text);
    ifl_status_line_note(l->line, "gain: %s", text);
    l->gain_sources = json_array();
    for (int32_t i = 0; i < after->n_sources; i++) {
        ifl_eval_gain gain;
        IFL_TRY_GOTO(st, ifl_eval_compare(&gain, &before, after, after->sources[i], err), done);
        json_array_append_new(l->gain_sources, ifl_eval_gain_json(&gain, after->sources[i]));
        ifl_eval_gain_text(&gain, text, sizeof text);
        if (after->n_sources > 1)
            ifl_status_line_note(l->line, "  %s: %s", after->sources[i], text);
    }
    l->has_gain = true;
done:
    ifl_eval_results_clear(&before);
    return st;
}

ifl_status learner_evaluate_end(learner *l, const char *when, double *accuracy, ifl_error *err) {
    ifl_eval_results results = {0};
    ifl_status st = learner_evaluate(l, l->config->eval.tasks, when, &results, accuracy, err);
    if (st == IFL_OK) st = eval_keep(l, when, &results, err);
    if (st == IFL_OK && strcmp(when, "after") == 0) st = learner_gain(l, &results, err);
    ifl_eval_results_clear(&results);
    return st;
}

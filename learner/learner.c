#include "learner/learner.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/metrics.h"
#include "common/rollout_ledger.h"
#include "common/status_line.h"
#include "learner/audit.h"
#include "learner/checkpoint.h"
#include "learner/dispatch.h"
#include "learner/eval_figures.h"
#include "learner/eval_results.h"
#include "learner/publisher.h"
#include "learner/step.h"

#define IDLE_S 120.0 /* nothing from any actor for so long ends the run with an error */
#define OPEN_SERIALS_MAX 65536

/* What adds up over a run; kept in checkpoints. */
typedef struct run_totals {
    int64_t tokens_trained, tokens_backward, trajectories, n_multi_version, steps_refused;
    double ess_sum, lag_token_sum, reward_sum;
    int64_t ess_n, lag_max, n_steps;
    double accuracy_before, accuracy_after; /* NAN = not measured */
    double train_s;                         /* wall time of the training loop alone */
    double wall_s;                          /* of earlier processes of this run */
} run_totals;

typedef struct learner {
    const ifl_learner_options *options;
    const ifl_config *config;
    const ifl_model *model;
    ifl_thread_pool *pool;
    ifl_optimizer *optimizer;
    ifl_version_store *store;
    ifl_stepper *stepper;
    ifl_audit *audit;
    ifl_server *server;
    ifl_publisher *publisher;
    ifl_task_set *train_set, *eval_set;
    ifl_rollout_log *log;
    ifl_dispatch *dispatch;
    ifl_metrics *metrics;
    ifl_status_line *line;
    ifl_status_view view;
    run_totals totals;
    ifl_audit_counts audit_before; /* of earlier processes of this run, as the next */
    ifl_dispatch_stats desk_before;
    char run_uuid[33];
    uint64_t run_epoch; /* of this process; with run_uuid the name of its history of versions */
    int64_t step;       /* finished */
    int32_t async_k;    /* lock-step modes: versions behind; -1 = pipeline */
    double started_s;
    json_t *evals;        /* array for summary.json */
    bool has_gain;        /* of this run's evaluations before and after, on the same tasks */
    ifl_eval_gain gain;   /* with has_gain */
    json_t *gain_sources; /* array for summary.json; NULL without has_gain */
    /* From a checkpoint. */
    uint64_t next_serial;
    uint64_t *open_serials;
    int32_t n_open_serials;
    ifl_groups_counts counts;
    bool resumed;
} learner;

/* Counts of the whole run: those of earlier processes and of this one. */
static ifl_audit_counts learner_audit_counts(const learner *l) {
    ifl_audit_counts c = ifl_audit_counts_get(l->audit);
    c.n_trajectories += l->audit_before.n_trajectories;
    c.tokens_checked += l->audit_before.tokens_checked;
    c.tokens_differing += l->audit_before.tokens_differing;
    c.tokens_after_swap += l->audit_before.tokens_after_swap;
    c.tokens_not_checkable += l->audit_before.tokens_not_checkable;
    return c;
}

static ifl_dispatch_stats learner_desk_stats(const learner *l) {
    ifl_dispatch_stats s;
    ifl_dispatch_stats_get(l->dispatch, &s);
    s.tokens_generated += l->desk_before.tokens_generated;
    s.tokens_eval += l->desk_before.tokens_eval;
    s.late += l->desk_before.late;
    s.swaps += l->desk_before.swaps;
    s.sequences_swapped += l->desk_before.sequences_swapped;
    return s;
}

/* --- Checkpoint state
 * --------------------------------------------------------------------------------- */

static json_t *state_counts(const ifl_groups_counts *c) {
    json_t *dropped = json_object();
    for (int i = 0; i < IFL_DROP_COUNT; i++)
        json_object_set_new(dropped, ifl_drop_reason_name((ifl_drop_reason)i),
                            json_integer(c->dropped[i]));
    return json_pack("{s:I,s:I,s:I,s:o,s:I,s:I,s:I,s:I,s:I}", "opened",
                     (json_int_t)(c->opened - ifl_groups_in_flight(c)), "trained",
                     (json_int_t)c->trained, "masked", (json_int_t)c->masked, "dropped", dropped,
                     "requeued", (json_int_t)c->requeued, "duplicates", (json_int_t)c->duplicates,
                     "groups_opened", (json_int_t)c->groups_closed, "groups_closed",
                     (json_int_t)c->groups_closed, "groups_skipped", (json_int_t)c->groups_skipped);
}

static char *learner_state(learner *l) {
    uint64_t next = 0;
    uint64_t *serials = malloc(sizeof *serials * OPEN_SERIALS_MAX);
    if (!serials) return NULL;
    int32_t n = ifl_dispatch_cursor(l->dispatch, &next, serials, OPEN_SERIALS_MAX);
    json_t *open = json_array();
    for (int32_t i = 0; i < n && i < OPEN_SERIALS_MAX; i++)
        json_array_append_new(open, json_integer((json_int_t)serials[i]));
    free(serials);
    ifl_groups_counts counts = ifl_dispatch_counts(l->dispatch);
    ifl_audit_counts audit = learner_audit_counts(l);
    ifl_dispatch_stats desk = learner_desk_stats(l);
    const run_totals *t = &l->totals;
    char epoch[17]; /* text: JSON has no unsigned 64-bit numbers */
    snprintf(epoch, sizeof epoch, "%016llx", (unsigned long long)l->run_epoch);
    json_t *root = json_pack(
        "{s:s,s:s,s:I,s:o,s:o,s:{s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:I,s:I,s:I,s:f,s:f},s:{s:I,s:I,s:"
        "I,s:I,s:I},s:{s:I,s:I,s:I,s:I,s:I},s:O}",
        "run_uuid", l->run_uuid, "run_epoch", epoch, "next_serial", (json_int_t)next, "open", open,
        "counts", state_counts(&counts), "totals", "tokens_trained", (json_int_t)t->tokens_trained,
        "tokens_backward", (json_int_t)t->tokens_backward, "trajectories",
        (json_int_t)t->trajectories, "multi_version", (json_int_t)t->n_multi_version, "refused",
        (json_int_t)t->steps_refused, "ess_sum", t->ess_sum, "lag_token_sum", t->lag_token_sum,
        "reward_sum", t->reward_sum, "ess_n", (json_int_t)t->ess_n, "lag_max",
        (json_int_t)t->lag_max, "n_steps", (json_int_t)t->n_steps, "train_s", t->train_s, "wall_s",
        t->wall_s + (ifl_clock_s() - l->started_s), "parity", "trajectories",
        (json_int_t)audit.n_trajectories, "checked", (json_int_t)audit.tokens_checked, "differing",
        (json_int_t)audit.tokens_differing, "after_swap", (json_int_t)audit.tokens_after_swap,
        "not_checkable", (json_int_t)audit.tokens_not_checkable, "actors", "tokens",
        (json_int_t)desk.tokens_generated, "tokens_eval", (json_int_t)desk.tokens_eval,
        "late_answers", (json_int_t)desk.late, "swaps", (json_int_t)desk.swaps, "sequences_swapped",
        (json_int_t)desk.sequences_swapped, "evals", l->evals);
    if (!root) return NULL;
    if (isfinite(t->accuracy_before))
        json_object_set_new(root, "accuracy_before", json_real(t->accuracy_before));
    char *text = json_dumps(root, JSON_INDENT(1));
    json_decref(root);
    return text;
}

static int64_t state_int(const json_t *object, const char *key) {
    return (int64_t)json_integer_value(json_object_get(object, key));
}

static ifl_status learner_restore(learner *l, const char *text, ifl_error *err) {
    json_error_t problem;
    json_t *root = json_loads(text, 0, &problem);
    json_t *open = json_object_get(root, "open"), *counts = json_object_get(root, "counts");
    json_t *totals = json_object_get(root, "totals"), *parity = json_object_get(root, "parity");
    json_t *actors = json_object_get(root, "actors");
    const char *uuid = json_string_value(json_object_get(root, "run_uuid"));
    if (!root || !json_is_array(open) || !json_is_object(counts) || !json_is_object(totals) ||
        !uuid || strlen(uuid) != 32) {
        json_decref(root);
        return ifl_fail(err, IFL_FORMAT, "checkpoint: state.json is not one of a training run (%s)",
                        problem.text);
    }
    memcpy(l->run_uuid, uuid, 33);
    l->next_serial = (uint64_t)state_int(root, "next_serial");
    size_t n = json_array_size(open);
    l->open_serials = malloc(sizeof *l->open_serials * (n + 1));
    if (!l->open_serials) {
        json_decref(root);
        return ifl_fail(err, IFL_NOMEM, "checkpoint: out of memory");
    }
    for (size_t i = 0; i < n; i++)
        l->open_serials[l->n_open_serials++] =
            (uint64_t)json_integer_value(json_array_get(open, i));
    ifl_groups_counts *c = &l->counts;
    c->opened = state_int(counts, "opened");
    c->trained = state_int(counts, "trained");
    c->masked = state_int(counts, "masked");
    for (int i = 0; i < IFL_DROP_COUNT; i++)
        c->dropped[i] =
            state_int(json_object_get(counts, "dropped"), ifl_drop_reason_name((ifl_drop_reason)i));
    c->requeued = state_int(counts, "requeued");
    c->duplicates = state_int(counts, "duplicates");
    c->groups_opened = state_int(counts, "groups_opened");
    c->groups_closed = state_int(counts, "groups_closed");
    c->groups_skipped = state_int(counts, "groups_skipped");
    run_totals *t = &l->totals;
    t->tokens_trained = state_int(totals, "tokens_trained");
    t->tokens_backward = state_int(totals, "tokens_backward");
    t->trajectories = state_int(totals, "trajectories");
    t->n_multi_version = state_int(totals, "multi_version");
    t->steps_refused = state_int(totals, "refused");
    t->ess_sum = json_number_value(json_object_get(totals, "ess_sum"));
    t->lag_token_sum = json_number_value(json_object_get(totals, "lag_token_sum"));
    t->reward_sum = json_number_value(json_object_get(totals, "reward_sum"));
    t->ess_n = state_int(totals, "ess_n");
    t->lag_max = state_int(totals, "lag_max");
    t->n_steps = state_int(totals, "n_steps");
    t->train_s = json_number_value(json_object_get(totals, "train_s"));
    t->wall_s = json_number_value(json_object_get(totals, "wall_s"));
    json_t *before = json_object_get(root, "accuracy_before");
    if (before) t->accuracy_before = json_number_value(before);
    l->audit_before.n_trajectories = state_int(parity, "trajectories");
    l->audit_before.tokens_checked = state_int(parity, "checked");
    l->audit_before.tokens_differing = state_int(parity, "differing");
    l->audit_before.tokens_after_swap = state_int(parity, "after_swap");
    l->audit_before.tokens_not_checkable = state_int(parity, "not_checkable");
    l->desk_before.tokens_generated = state_int(actors, "tokens");
    l->desk_before.tokens_eval = state_int(actors, "tokens_eval");
    l->desk_before.late = state_int(actors, "late_answers");
    l->desk_before.swaps = state_int(actors, "swaps");
    l->desk_before.sequences_swapped = state_int(actors, "sequences_swapped");
    json_t *evals = json_object_get(root, "evals");
    if (json_is_array(evals)) {
        json_decref(l->evals);
        l->evals = json_incref(evals);
    }
    json_decref(root);
    return IFL_OK;
}

static ifl_status learner_checkpoint(learner *l, ifl_error *err) {
    double begin = ifl_clock_s();
    char *state = learner_state(l);
    if (!state) return ifl_fail(err, IFL_NOMEM, "checkpoint: out of memory");
    ifl_status st = ifl_checkpoint_save(l->options->run->checkpoints, l->step, l->model,
                                        l->optimizer, state, l->config->checkpoint.keep, err);
    free(state);
    IFL_TRY(st);
    IFL_TRY(ifl_dispatch_log_checkpoint(l->dispatch, l->step, err));
    ifl_debug("checkpoint of step %lld in %.2f s", (long long)l->step, ifl_clock_s() - begin);
    return IFL_OK;
}

/* --- Publication
 * -------------------------------------------------------------------------------------- */

static void learner_release(const ifl_weights *weights, void *user) {
    ifl_version_store_release(user, weights);
}

/* Rounds the masters into version `version`, keeps it, announces it. */
static ifl_status learner_publish(learner *l, int64_t version, ifl_error *err) {
    ifl_weights *fresh;
    IFL_TRY(ifl_version_store_spare(l->store, &fresh, err));
    ifl_optimizer_publish(l->optimizer, fresh, version);
    ifl_status st = ifl_version_store_put(l->store, fresh, err);
    if (st != IFL_OK) {
        ifl_weights_free(fresh);
        return st;
    }
    ifl_dispatch_set_version(l->dispatch, version);
    return ifl_publisher_publish(l->publisher, version, version - 1,
                                 ifl_version_store_get(l->store, version), learner_release,
                                 l->store, err);
}

/* --- Evaluation
 * ---------------------------------------------------------------------------------------- */

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

/* Fills `results`, zeroed, to be cleared in any case. */
static ifl_status learner_evaluate(learner *l, int32_t n_tasks, const char *when,
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

/* --- One step
 * ------------------------------------------------------------------------------------------ */

static void learner_update_view(learner *l, const ifl_step_report *r, double step_s) {
    ifl_dispatch_stats desk = learner_desk_stats(l);
    ifl_groups_counts counts = ifl_dispatch_counts(l->dispatch);
    ifl_status_view *v = &l->view;
    v->step = l->step;
    v->steps = l->config->run.steps;
    v->reward = r->reward_mean;
    v->actor_tokens_per_s = desk.actor_tokens_per_s;
    v->learner_tokens_per_s = step_s > 0.0 ? (double)r->n_tokens / step_s : 0.0;
    v->lag_mean = r->lag_mean;
    v->lag_max = (double)r->lag_max;
    v->ess = r->loss.ess;
    v->swap_stall_ms = ifl_dispatch_stall_ms(l->dispatch, 0.5);
    v->mean_length = r->length_mean;
    v->actors = desk.n_actors;
    v->in_flight = (int32_t)(counts.pending + counts.leased);
    v->elapsed_s = ifl_clock_s() - l->started_s;
    double done = (double)l->totals.n_steps;
    v->eta_s = done > 0 ? l->totals.train_s / done * (double)(l->config->run.steps - l->step)
                        : (double)NAN;
    ifl_status_line_update(l->line, v);
}

static ifl_status learner_metrics(learner *l, const ifl_step_report *r, double step_s,
                                  double wait_s, double publish_s, ifl_error *err) {
    ifl_metrics *m = l->metrics;
    ifl_dispatch_stats desk = learner_desk_stats(l);
    ifl_audit_counts audit = learner_audit_counts(l);
    ifl_groups_counts counts = ifl_dispatch_counts(l->dispatch);
    double b = r->n_trajectories > 0 ? (double)r->n_trajectories : 1.0;
    ifl_metrics_begin(m, "step", r->step);
    ifl_metrics_add(m, "rl/reward", r->reward_mean);
    ifl_metrics_add(m, "rl/reward_std", r->reward_std);
    ifl_metrics_add(m, "rl/loss", r->loss.loss);
    ifl_metrics_add(m, "rl/ess", r->loss.ess);
    ifl_metrics_add(m, "rl/entropy", r->loss.entropy);
    ifl_metrics_add(m, "rl/kl_new_old", r->loss.k3);
    ifl_metrics_add(m, "rl/mean_abs_log_ratio_new_old", r->loss.abs_log_ratio_mean);
    ifl_metrics_add(m, "rl/ratio_new_old_max", r->loss.ratio_max);
    ifl_metrics_add(m, "rl/clamp_share", r->loss.clip_low + r->loss.clip_high);
    ifl_metrics_add(m, "rl/advantage", r->advantage_mean);
    ifl_metrics_add(m, "rl/zero_variance_share",
                    (double)r->n_groups_zero_variance /
                        (double)(r->n_groups > 0 ? r->n_groups : 1));
    ifl_metrics_add(m, "rl/reward_correct_length", r->length_correct);
    ifl_metrics_add(m, "rl/reward_wrong_length", r->length_wrong);
    ifl_metrics_add(m, "stats/lag", r->lag_mean);
    ifl_metrics_add_int(m, "stats/max_lag", r->lag_max);
    ifl_metrics_add(m, "stats/multi_version_share", r->n_multi_version / b);
    ifl_metrics_add_int(m, "stats/samples", l->totals.trajectories);
    ifl_metrics_add_int(m, "stats/tokens", l->totals.tokens_trained);
    ifl_metrics_add(m, "stats/time_waiting_for_data", wait_s);
    ifl_metrics_add_int(m, "stats/queue/batches", counts.stored / l->config->rollout.group_size);
    ifl_metrics_add_int(m, "stats/masked", r->n_masked);
    ifl_metrics_add_int(m, "stats/groups_skipped", r->n_groups_skipped);
    ifl_metrics_add_int(m, "stats/late_answers", desk.late);
    ifl_metrics_add(m, "completions/mean_length", r->length_mean);
    ifl_metrics_add(m, "completions/p95_length", r->length_p95);
    ifl_metrics_add(m, "completions/max_length", r->length_max);
    ifl_metrics_add(m, "completions/truncated_share", r->n_truncated / b);
    ifl_metrics_add(m, "throughput/actor_tokens_per_s", desk.actor_tokens_per_s);
    ifl_metrics_add(m, "throughput/learner_tokens_per_s",
                    step_s > 0 ? (double)r->n_tokens / step_s : 0);
    ifl_metrics_add(m, "throughput/sec_per_step", step_s);
    ifl_metrics_add(m, "optim/grad_norm", r->optimizer.grad_norm);
    ifl_metrics_add(m, "optim/lr", r->optimizer.learning_rate);
    ifl_metrics_add(m, "swap/stall_ms_p50", ifl_dispatch_stall_ms(l->dispatch, 0.5));
    ifl_metrics_add(m, "swap/stall_ms_p99", ifl_dispatch_stall_ms(l->dispatch, 0.99));
    ifl_metrics_add_int(m, "swap/count", desk.swaps);
    ifl_metrics_add(m, "actor/decode_step_ms_p50", desk.decode_step_ms_p50);
    ifl_metrics_add_int(m, "actor/sequences", counts.leased);
    ifl_metrics_add_int(m, "parity/tokens_checked", audit.tokens_checked);
    ifl_metrics_add_int(m, "parity/tokens_differing", audit.tokens_differing);
    ifl_metrics_add(m, "time/step", step_s);
    ifl_metrics_add(m, "time/wait_for_batch", wait_s);
    ifl_metrics_add(m, "time/forward_backward", r->forward_backward_s);
    ifl_metrics_add(m, "time/optimizer", r->optimizer_s);
    ifl_metrics_add(m, "time/broadcast_weights", publish_s);
    ifl_metrics_add(m, "memory/rss_gib", (double)ifl_memory_rss() / 1073741824.0);
    return ifl_metrics_end(m, err);
}

/* One line per group: what share of its answers was right, and how long they were. */
static ifl_status learner_group_metrics(learner *l, ifl_group **groups, int32_t n, ifl_error *err) {
    for (int32_t g = 0; g < n; g++) {
        int32_t scored = 0, right = 0;
        int64_t tokens = 0;
        for (int32_t i = 0; i < groups[g]->n_members; i++) {
            const ifl_member *m = &groups[g]->members[i];
            if (m->state != IFL_MEMBER_STORED) continue;
            tokens += ifl_trajectory_n_policy(m->traj);
            if (m->traj->reward.status != IFL_REWARD_OK) continue;
            scored++;
            right += m->traj->reward.reward > 0.0f;
        }
        double rate = scored > 0 ? (double)right / scored : (double)NAN;
        if (scored > 0) ifl_dispatch_report(l->dispatch, groups[g]->task_id, rate);
        ifl_metrics_begin(l->metrics, "group", l->step + 1);
        ifl_metrics_add_text(l->metrics, "task/id", groups[g]->task_id);
        ifl_metrics_add(l->metrics, "task/pass_rate", rate);
        ifl_metrics_add(l->metrics, "task/mean_length", (double)tokens / groups[g]->n_members);
        IFL_TRY(ifl_metrics_end(l->metrics, err));
    }
    return IFL_OK;
}

static ifl_status learner_audit(learner *l, ifl_group **groups, int32_t n, ifl_error *err) {
    for (int32_t g = 0; g < n; g++)
        for (int32_t i = 0; i < groups[g]->n_members; i++) {
            const ifl_member *m = &groups[g]->members[i];
            if (m->state == IFL_MEMBER_STORED && ifl_audit_selects(l->audit, m->traj))
                IFL_TRY(ifl_audit_check(l->audit, m->traj, err));
        }
    ifl_audit_counts c = ifl_audit_counts_get(l->audit);
    /* The flipped bit is put there by a test and must be counted, not end the run. */
    if (c.tokens_differing > 0 && !l->config->parity.flip_bit)
        return ifl_fail(
            err, IFL_PARITY,
            "parity: the log-prob of token %d of trajectory %llu/%d (version %lld) was recorded "
            "as %a and scores %a; actor and learner no longer compute the same bits",
            c.first_position, (unsigned long long)c.first_task_serial, c.first_sample,
            (long long)c.first_version, (double)c.first_recorded, (double)c.first_replayed);
    return IFL_OK;
}

static void learner_total(learner *l, const ifl_step_report *r) {
    run_totals *t = &l->totals;
    t->tokens_trained += r->n_tokens;
    t->tokens_backward += r->n_tokens_backward;
    t->trajectories += r->n_trajectories;
    t->n_multi_version += r->n_multi_version;
    t->steps_refused += r->refused;
    if (r->n_tokens_backward > 0) {
        t->ess_sum += r->loss.ess;
        t->ess_n++;
    }
    t->lag_token_sum += r->lag_mean * (double)r->n_tokens;
    if (r->lag_max > t->lag_max) t->lag_max = r->lag_max;
    t->reward_sum += r->reward_mean;
    t->n_steps++;
}

/* Groups taken at a time. Lock-step modes and the permuting control need the whole batch. */
static int32_t learner_take_size(const learner *l) {
    int32_t n = l->config->rollout.prompts_per_step;
    if (l->async_k >= 0 || strcmp(l->config->learner.control, "shuffled") == 0) return n;
    return n > 16 ? n / 16 : 1;
}

static ifl_status learner_train(learner *l, int64_t step, const ifl_weights *weights,
                                ifl_group **groups, ifl_member_outcome **outcomes, bool *skipped,
                                double *wait_s, ifl_step_report *report, ifl_error *err) {
    int32_t n = l->config->rollout.prompts_per_step, take = learner_take_size(l);
    ifl_take_order order = l->async_k < 0 ? IFL_TAKE_ARRIVAL : IFL_TAKE_SERIAL;
    ifl_stepper_begin(l->stepper, step);
    for (int32_t at = 0; at < n; at += take) {
        int32_t now = n - at < take ? n - at : take;
        double begin = ifl_clock_s();
        IFL_TRY(ifl_dispatch_take(l->dispatch, now, order, IDLE_S, groups + at, err));
        *wait_s += ifl_clock_s() - begin;
        IFL_TRY(ifl_stepper_add(l->stepper, weights, groups + at, now, outcomes + at, skipped + at,
                                err));
    }
    return ifl_stepper_end(l->stepper, weights, report, err);
}

static ifl_status learner_step(learner *l, ifl_group **groups, ifl_member_outcome **outcomes,
                               bool *skipped, ifl_error *err) {
    int32_t n = l->config->rollout.prompts_per_step;
    int64_t step = l->step + 1;
    double begin = ifl_clock_s(), wait_s = 0.0;
    const ifl_weights *newest = ifl_version_store_newest(l->store);
    ifl_step_report report;
    ifl_status st =
        learner_train(l, step, newest, groups, outcomes, skipped, &wait_s, &report, err);
    ifl_version_store_release(l->store, newest);
    IFL_TRY(st);
    if (report.n_trajectories == 0 && report.n_masked > 0)
        return ifl_fail(
            err, IFL_PEER,
            "step %lld: none of its %d answers could be judged (checkers failed, or the tasks are "
            "bad); the actors' logs say why",
            (long long)step, report.n_masked);
    double publish_begin = ifl_clock_s();
    if (l->async_k > 0) /* an actor must not skip a version that a later batch is pinned to */
        IFL_TRY(ifl_dispatch_wait_applied(l->dispatch, l->step, IDLE_S, err));
    IFL_TRY(learner_publish(l, step, err));
    if (l->async_k >= 0 && step + 1 + l->async_k <= l->config->run.steps)
        IFL_TRY(ifl_dispatch_open_batch(l->dispatch, n, step, err));
    double publish_s = ifl_clock_s() - publish_begin;
    IFL_TRY(learner_group_metrics(l, groups, n, err));
    IFL_TRY(learner_audit(l, groups, n, err));
    IFL_TRY(ifl_dispatch_close(l->dispatch, step, groups, n, outcomes, skipped, err));
    l->step = step;
    learner_total(l, &report);
    double step_s = ifl_clock_s() - begin;
    l->totals.train_s += step_s;
    learner_update_view(l, &report, step_s);
    return learner_metrics(l, &report, step_s, wait_s, publish_s, err);
}

static ifl_status learner_loop(learner *l, ifl_error *err) {
    const ifl_config *c = l->config;
    int32_t n = c->rollout.prompts_per_step;
    ifl_group **groups = calloc((size_t)n, sizeof *groups);
    ifl_member_outcome **outcomes = calloc((size_t)n, sizeof *outcomes);
    bool *skipped = calloc((size_t)n, sizeof *skipped);
    ifl_member_outcome *storage =
        calloc((size_t)n * (size_t)c->rollout.group_size, sizeof *storage);
    ifl_status st = groups && outcomes && skipped && storage
                        ? IFL_OK
                        : ifl_fail(err, IFL_NOMEM, "learner: out of memory");
    for (int32_t i = 0; i < n && st == IFL_OK; i++)
        outcomes[i] = storage + (int64_t)i * c->rollout.group_size;
    if (st == IFL_OK && l->async_k >= 0) {
        /* The batches of the next k + 1 steps; those that a checkpoint had open already are open
         * again. */
        int64_t ahead = l->step + 1 + l->async_k;
        if (ahead > c->run.steps) ahead = c->run.steps;
        int32_t want = (int32_t)(ahead - l->step) * n - l->n_open_serials;
        if (want > 0) st = ifl_dispatch_open_batch(l->dispatch, want, l->step, err);
    } else if (st == IFL_OK) {
        ifl_dispatch_set_in_flight(
            l->dispatch, c->learner.groups_in_flight > 0 ? c->learner.groups_in_flight : n);
    }
    while (st == IFL_OK && l->step < c->run.steps) {
        if (atomic_load(l->options->stop)) {
            st = ifl_fail(err, IFL_STOPPED, "stopped on request after step %lld",
                          (long long)l->step);
            break;
        }
        st = learner_step(l, groups, outcomes, skipped, err);
        if (st != IFL_OK) break;
        bool last = l->step == c->run.steps;
        if (!last && c->checkpoint.every_steps > 0 && l->step % c->checkpoint.every_steps == 0)
            st = learner_checkpoint(l, err);
        if (st == IFL_OK && !last && c->eval.every_steps > 0 && l->eval_set &&
            l->step % c->eval.every_steps == 0) {
            ifl_eval_results results = {0};
            double accuracy;
            st = learner_evaluate(l, c->eval.tasks_mid, "in between", &results, &accuracy, err);
            ifl_eval_results_clear(&results);
        }
    }
    if (st == IFL_OK && l->async_k < 0) ifl_dispatch_set_in_flight(l->dispatch, 0);
    free(groups);
    free(outcomes);
    free(skipped);
    free(storage);
    return st;
}

/* --- Summary
 * -------------------------------------------------------------------------------------------- */

static ifl_status learner_summary(learner *l, const char *end, ifl_error *err) {
    const run_totals *t = &l->totals;
    ifl_dispatch_stats desk = learner_desk_stats(l);
    ifl_audit_counts audit = learner_audit_counts(l);
    /* The books come from the log alone, not from the learner's own counters. */
    ifl_rollout_ledger *ledger;
    ifl_rollout_balance balance;
    IFL_TRY(ifl_rollout_log_flush(l->log, err));
    IFL_TRY(ifl_rollout_ledger_read(&ledger, l->options->run->rollouts, err));
    ifl_rollout_ledger_balance(ledger, &balance);
    json_t *books = ifl_rollout_balance_json(&balance);
    ifl_rollout_ledger_free(ledger);
    double wall_s = t->wall_s + ifl_clock_s() - l->started_s;
    json_t *root = json_object();
    if (!root || !books) {
        json_decref(root);
        json_decref(books);
        return ifl_fail(err, IFL_NOMEM, "summary: out of memory");
    }
#define PUT_INT(name, value) json_object_set_new(root, name, json_integer((json_int_t)(value)))
#define PUT_REAL(name, value)                                                                      \
    json_object_set_new(root, name, isfinite(value) ? json_real(value) : json_null())
    json_object_set_new(root, "run", json_string(l->config->run.name));
    json_object_set_new(root, "run_uuid", json_string(l->run_uuid));
    json_object_set_new(root, "end", json_string(end));
    json_object_set_new(root, "control", json_string(l->config->learner.control));
    PUT_INT("seed", l->config->run.seed);
    PUT_INT("steps", l->step);
    PUT_REAL("wall_s", wall_s);
    PUT_REAL("train_s", t->train_s);
    PUT_REAL("accuracy_before", t->accuracy_before);
    PUT_REAL("accuracy_after", t->accuracy_after);
    PUT_REAL("accuracy_gain", l->has_gain ? l->gain.paired.difference : (double)NAN);
    PUT_REAL("accuracy_gain_low", l->has_gain ? l->gain.paired.interval.low : (double)NAN);
    PUT_REAL("accuracy_gain_high", l->has_gain ? l->gain.paired.interval.high : (double)NAN);
    PUT_INT("accuracy_gain_tasks", l->has_gain ? l->gain.paired.n_tasks : 0);
    PUT_INT("accuracy_gain_unscored", l->has_gain ? l->gain.n_unscored : 0);
    PUT_INT("tokens_generated", desk.tokens_generated);
    PUT_INT("tokens_generated_eval", desk.tokens_eval);
    PUT_INT("tokens_trained", t->tokens_trained);
    PUT_INT("tokens_backward", t->tokens_backward);
    PUT_REAL("tokens_trained_per_s", t->train_s > 0 ? (double)t->tokens_trained / t->train_s : 0.0);
    PUT_INT("swaps", desk.swaps);
    PUT_INT("swaps_mid_trajectory", desk.sequences_swapped);
    PUT_INT("trajectories_multi_version", t->n_multi_version);
    PUT_REAL("swap_stall_ms_p50", ifl_dispatch_stall_ms(l->dispatch, 0.5));
    PUT_REAL("swap_stall_ms_p99", ifl_dispatch_stall_ms(l->dispatch, 0.99));
    PUT_REAL("decode_step_ms_p50", desk.decode_step_ms_p50);
    PUT_REAL("lag_mean",
             t->tokens_trained > 0 ? t->lag_token_sum / (double)t->tokens_trained : 0.0);
    PUT_INT("lag_max", t->lag_max);
    PUT_REAL("ess_mean", t->ess_n > 0 ? t->ess_sum / (double)t->ess_n : 1.0);
    PUT_REAL("reward_mean", t->n_steps > 0 ? t->reward_sum / (double)t->n_steps : 0.0);
    PUT_INT("parity_trajectories", audit.n_trajectories);
    PUT_INT("parity_tokens_checked", audit.tokens_checked);
    PUT_INT("parity_tokens_differing", audit.tokens_differing);
    PUT_INT("parity_tokens_after_swap", audit.tokens_after_swap);
    PUT_INT("parity_tokens_not_checkable", audit.tokens_not_checkable);
    PUT_INT("steps_refused", t->steps_refused);
    PUT_INT("trajectories_leased", balance.leased);
    PUT_INT("trajectories_trained", balance.trained);
    PUT_INT("trajectories_masked", balance.masked);
    PUT_INT("trajectories_dropped", balance.dropped);
    PUT_INT("trajectories_in_flight", balance.in_flight);
    PUT_INT("trajectories_lost", balance.lost);
    PUT_INT("memory_rss_peak_bytes", ifl_memory_rss_peak());
    json_object_set_new(root, "books", books);
    json_object_set(root, "evals", l->evals);
    if (l->has_gain) json_object_set(root, "accuracy_gain_sources", l->gain_sources);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!text) return ifl_fail(err, IFL_NOMEM, "summary: out of memory");
    ifl_status st = ifl_file_write_atomic(l->options->run->summary, text, strlen(text), err);
    free(text);
    return st;
}

/* --- Setup
 * ---------------------------------------------------------------------------------------------- */

static ifl_status learner_open_books(learner *l, ifl_error *err) {
    const ifl_config *c = l->config;
    const ifl_run_dir *run = l->options->run;
    /* Known now, not after an hour. The oldest goes when the newest is there; a run that goes on
     * has its earlier ones already. */
    int64_t every = c->checkpoint.every_steps,
            n_checkpoints = 1 + (every > 0 ? c->run.steps / every : 0);
    if (n_checkpoints > c->checkpoint.keep + 1) n_checkpoints = c->checkpoint.keep + 1;
    if (l->resumed) n_checkpoints = 1;
    IFL_TRY(ifl_disk_headroom(run->path, n_checkpoints * 12 * l->model->n_elements,
                              "checkpoints (checkpoint.keep and one more)", err));
    IFL_TRY(ifl_task_set_open(&l->train_set, c, "train", l->options->tokenizer, err));
    if (c->data.n_eval > 0)
        IFL_TRY(ifl_task_set_open(&l->eval_set, c, "eval", l->options->tokenizer, err));
    IFL_TRY(ifl_metrics_open(&l->metrics, run->metrics, 0, err));
    ifl_rollout_log_options log = {0, false};
    IFL_TRY(ifl_rollout_log_open(&l->log, run->rollouts, &log, err));
    IFL_TRY(ifl_rollout_log_run_started(l->log, c->run.seed, l->resumed ? l->step : 0,
                                        l->next_serial, err));
    char *tokenizer;
    size_t n;
    IFL_TRY(ifl_tokenizer_to_json(l->options->tokenizer, &tokenizer, &n, err));
    ifl_status st = ifl_file_write_atomic(run->tokenizer, tokenizer, n, err);
    free(tokenizer);
    return st;
}

static ifl_status learner_open_weights(learner *l, ifl_error *err) {
    const ifl_config *c = l->config;
    bool frozen = strcmp(c->learner.control, "frozen") == 0;
    ifl_optimizer_options optimizer = {
        .learning_rate = frozen ? 0.0 : c->learner.learning_rate,
        .beta1 = c->learner.beta1,
        .beta2 = c->learner.beta2,
        .eps = c->learner.adam_eps,
        .weight_decay = c->learner.weight_decay,
        .grad_clip = c->learner.grad_clip,
        .warmup_steps = c->learner.warmup_steps,
        .schedule = IFL_SCHEDULE_CONSTANT,
    };
    IFL_TRY(ifl_thread_pool_create(&l->pool, c->learner.threads, err));
    IFL_TRY(
        ifl_optimizer_create(&l->optimizer, l->model, &optimizer, l->pool, ifl_ops_best(), err));
    if (c->run.resume) {
        char *state = NULL;
        ifl_status st = ifl_checkpoint_load(l->options->run->checkpoints, -1, l->model,
                                            l->optimizer, &l->step, &state, err);
        if (st == IFL_OK) {
            st = learner_restore(l, state, err);
            l->resumed = true;
            if (st == IFL_OK) ifl_info("resumed from step %lld", (long long)l->step);
        } else if (st == IFL_NOTFOUND) {
            ifl_info("no checkpoint yet: starting from the beginning");
            ifl_optimizer_start(l->optimizer, *l->options->start);
            l->step = 0;
            st = IFL_OK;
        }
        free(state);
        IFL_TRY(st);
    } else {
        ifl_optimizer_start(l->optimizer, *l->options->start);
    }
    /* The masters hold them now; a large model's memory is wanted elsewhere. */
    ifl_weights_free(*l->options->start);
    *l->options->start = NULL;
    int64_t bytes = (int64_t)(c->parity.versions_gib * 1073741824.0);
    IFL_TRY(ifl_version_store_create(&l->store, l->model, c->parity.versions_kept, bytes, err));
    ifl_audit_options audit = {c->parity.audit, (uint64_t)c->run.seed, c->parity.flip_bit};
    IFL_TRY(ifl_audit_create(&l->audit, l->model, l->store, &audit, l->pool, ifl_ops_best(), err));
    return ifl_stepper_create(&l->stepper, c, l->model, l->optimizer, l->pool, ifl_ops_best(), err);
}

static ifl_status learner_open_network(learner *l, ifl_error *err) {
    const ifl_config *c = l->config;
    ifl_server_options server = {
        .bind = l->options->bind,
        .heartbeat_ms = c->transport.heartbeat_ms,
        .heartbeat_misses = c->transport.heartbeat_misses,
        .lease_s = c->transport.lease_s,
        .linger_ms =
            3000, /* for the BYE: an actor that misses it waits long for a learner that is gone */
        .fingerprint = l->model->fingerprint,
        .profile = l->model->profile,
        .tokenizer = ifl_tokenizer_hash(l->options->tokenizer),
        .run_epoch = l->run_epoch,
        .directed = l->async_k >= 0,
        .vocab_size = l->model->config.vocab_size,
    };
    memcpy(server.run_uuid, l->run_uuid, sizeof server.run_uuid);
    IFL_TRY(ifl_server_create(&l->server, &server, err));
    ifl_info("listening on %s", ifl_server_endpoint(l->server));
    IFL_TRY(ifl_publisher_create(&l->publisher, l->model, l->server,
                                 (int64_t)c->transport.chunk_kib * 1024, err));
    ifl_dispatch_options dispatch = {
        .config = c,
        .server = l->server,
        .train = l->train_set,
        .eval = l->eval_set,
        .log = l->log,
        .stop = l->options->stop,
        .hopeless = l->options->hopeless,
        .next_serial = l->next_serial,
        .first_lease = l->run_epoch >> 2,
        .reopen = l->open_serials,
        .n_reopen = l->n_open_serials,
        .reopen_version = l->async_k >= 0 ? l->step : -1,
        .counts = l->resumed ? &l->counts : NULL,
    };
    IFL_TRY(ifl_dispatch_create(&l->dispatch, &dispatch, err));
    return learner_publish(l, l->step, err);
}

static void learner_close(learner *l) {
    /* The desk polls the server and the publisher feeds it, so they go first. */
    ifl_dispatch_free(l->dispatch);
    ifl_publisher_free(l->publisher);
    ifl_server_free(l->server);
    ifl_stepper_free(l->stepper);
    ifl_audit_free(l->audit);
    ifl_version_store_free(l->store);
    ifl_optimizer_free(l->optimizer);
    ifl_thread_pool_free(l->pool);
    ifl_rollout_log_close(l->log);
    ifl_metrics_close(l->metrics);
    ifl_task_set_close(l->eval_set);
    ifl_task_set_close(l->train_set);
    ifl_status_line_free(l->line);
    free(l->open_serials);
    json_decref(l->evals);
    json_decref(l->gain_sources);
}

static void random_bytes(void *out, size_t n) {
    if (getrandom(out, n, 0) == (ssize_t)n) return;
    int64_t now = ifl_clock_ns(); /* a kernel without it: what names a process need only differ */
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)out)[i] = ((const uint8_t *)&now)[i % sizeof now];
}

static void make_uuid(char out[33]) {
    uint8_t bytes[16];
    random_bytes(bytes, sizeof bytes);
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

/* The evaluations at both ends of a run are kept, and the later one is compared. */
static ifl_status learner_evaluate_end(learner *l, const char *when, double *accuracy,
                                       ifl_error *err) {
    ifl_eval_results results = {0};
    ifl_status st = learner_evaluate(l, l->config->eval.tasks, when, &results, accuracy, err);
    if (st == IFL_OK) st = eval_keep(l, when, &results, err);
    if (st == IFL_OK && strcmp(when, "after") == 0) st = learner_gain(l, &results, err);
    ifl_eval_results_clear(&results);
    return st;
}

static ifl_status learner_work(learner *l, ifl_error *err) {
    const ifl_config *c = l->config;
    ifl_status_line_update(l->line, &l->view);
    if (c->eval.before && l->eval_set && l->step == 0)
        IFL_TRY(learner_evaluate_end(l, "before", &l->totals.accuracy_before, err));
    l->view.accuracy_first = l->totals.accuracy_before; /* after a resume from the checkpoint */
    IFL_TRY(learner_loop(l, err));
    if (c->eval.after && l->eval_set)
        IFL_TRY(learner_evaluate_end(l, "after", &l->totals.accuracy_after, err));
    return IFL_OK;
}

ifl_status ifl_learner_run(const ifl_learner_options *options, ifl_error *err) {
    learner l = {.options = options, .config = options->config, .model = options->model};
    const ifl_config *c = options->config;
    ifl_status st;
    l.started_s = ifl_clock_s();
    l.totals.accuracy_before = l.totals.accuracy_after = (double)NAN;
    l.async_k = c->run.mode == IFL_MODE_PIPELINE ? -1
                : c->run.mode == IFL_MODE_SYNC   ? 0
                                                 : c->run.async_k;
    random_bytes(&l.run_epoch, sizeof l.run_epoch);
    make_uuid(l.run_uuid);
    l.evals = json_array();
    if (options->status) l.line = ifl_status_line_create(options->status);
    ifl_status_view_clear(&l.view);
    l.view.steps = c->run.steps;
    IFL_TRY_GOTO(st, learner_open_weights(&l, err), done);
    IFL_TRY_GOTO(st, learner_open_books(&l, err), done);
    IFL_TRY_GOTO(st, learner_open_network(&l, err), done);
    l.view.step = l.step;
    st = learner_work(&l, err);
    if (st == IFL_OK || st == IFL_STOPPED) {
        bool stopped = st == IFL_STOPPED;
        const char *end = stopped ? "stopped" : "finished";
        st = learner_checkpoint(&l, err);
        if (st == IFL_OK) st = ifl_dispatch_end(l.dispatch, l.step, end, err);
        if (st == IFL_OK) st = learner_summary(&l, end, err);
        if (st == IFL_OK && stopped)
            st = ifl_fail(err, IFL_STOPPED, "stopped on request after step %lld of %lld",
                          (long long)l.step, (long long)c->run.steps);
    } else {
        /* What went wrong is the caller's to print; the books are closed as far as they go. */
        ifl_dispatch_end(l.dispatch, l.step, "failed", NULL);
        learner_summary(&l, "failed", NULL);
    }
done:
    learner_close(&l);
    return st;
}

ifl_learner_plan ifl_learner_memory(const ifl_config *config, const ifl_model *model,
                                    int n_threads) {
    int64_t version = ifl_version_bytes(model), ring = version * config->parity.versions_kept;
    int64_t bound = (int64_t)(config->parity.versions_gib * 1073741824.0);
    if (ring > bound) ring = bound > version ? bound : version;
    return (ifl_learner_plan){
        .optimizer = ifl_optimizer_bytes(model),
        .trainer = ifl_stepper_bytes(config, model, n_threads),
        .versions = ring > version ? ring : 2 * version, /* the newest stays while one is made */
        .publisher = ifl_publisher_bytes(model),
        .audit = config->parity.audit > 0
                     ? ifl_workspace_bytes(model, 256, n_threads) +
                           ifl_kv_store_bytes(model, model->config.max_positions, 1)
                     : 0,
    };
}

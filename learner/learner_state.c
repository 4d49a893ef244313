#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "learner/learner_internal.h"

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

static json_t *state_sampling(const run_totals *t) {
    const ifl_sampling_counts *c = &t->sampling;
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:I,s:I}", "drawn",
                     (json_int_t)c->n_drawn, "kept", (json_int_t)c->n_kept, "right",
                     (json_int_t)c->n_right, "wrong", (json_int_t)c->n_wrong, "unjudged",
                     (json_int_t)c->n_unjudged, "answers", (json_int_t)c->n_answers,
                     "answers_passed", (json_int_t)c->n_answers_passed, "reward", c->reward,
                     "length", c->length, "length_passed", c->length_passed, "masked_passed",
                     (json_int_t)c->n_masked_passed, "steps_short", (json_int_t)t->steps_short);
}

char *learner_state(learner *l) {
    uint64_t next = 0;
    uint64_t *serials = malloc(sizeof *serials * OPEN_SERIALS_MAX);
    ifl_task_pick *picks = malloc(sizeof *picks * OPEN_SERIALS_MAX);
    if (!serials || !picks) {
        free(serials);
        free(picks);
        return NULL;
    }
    int32_t n = ifl_dispatch_cursor(l->dispatch, &next, serials, picks, OPEN_SERIALS_MAX);
    json_t *open = json_array(), *open_tasks = json_array();
    for (int32_t i = 0; i < n && i < OPEN_SERIALS_MAX; i++) {
        json_array_append_new(open, json_integer((json_int_t)serials[i]));
        json_array_append_new(open_tasks,
                              json_pack("[i,I]", (int)picks[i].source, (json_int_t)picks[i].item));
    }
    free(serials);
    free(picks);
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
    if (root && ifl_task_set_is_adaptive(l->train_set)) {
        /* Only this thread reports, so that nobody writes them now. */
        char *rates = ifl_task_set_rates(l->train_set);
        json_object_set(root, "open_tasks", open_tasks);
        json_object_set_new(root, "pass_rates", json_string(rates));
        if (!rates) {
            json_decref(root);
            root = NULL;
        }
        free(rates);
    }
    json_decref(open_tasks);
    if (!root) return NULL;
    json_t *foreign =
        json_pack("{s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:I,s:I,s:I}", "trajectories",
                  (json_int_t)t->n_foreign, "tokens", (json_int_t)t->tokens_foreign, "weighted",
                  (json_int_t)t->foreign.foreign.n_tokens, "w", t->foreign.foreign.w, "w2",
                  t->foreign.foreign.w2, "k3", t->foreign.foreign.k3, "weight",
                  t->foreign.foreign.weight, "audit", (json_int_t)audit.n_foreign, "audit_tokens",
                  (json_int_t)audit.tokens_foreign, "stored", (json_int_t)desk.foreign);
    json_t *guard = json_pack("{s:I,s:I}", "checked", (json_int_t)t->guard_checked, "differing",
                              (json_int_t)t->guard_differing);
    json_object_set_new(root, "foreign", foreign);
    json_object_set_new(root, "guard", guard);
    json_object_set_new(root, "sampling", state_sampling(t));
    json_object_set_new(root, "bias_alarms", json_integer((json_int_t)l->bias_alarms));
    if (isfinite(t->accuracy_before))
        json_object_set_new(root, "accuracy_before", json_real(t->accuracy_before));
    char *text = json_dumps(root, JSON_INDENT(1));
    json_decref(root);
    return text;
}

/* The tasks of the groups that were open, and what the sampler knew; absent where serials decide.
 */
static ifl_status restore_tasks(learner *l, const json_t *root, ifl_error *err) {
    const char *rates = json_string_value(json_object_get(root, "pass_rates"));
    const json_t *tasks = json_object_get(root, "open_tasks");
    if (!rates || json_array_size(tasks) != (size_t)l->n_open_serials) return IFL_OK;
    l->pass_rates = strdup(rates);
    l->open_picks = malloc(sizeof *l->open_picks * ((size_t)l->n_open_serials + 1));
    if (!l->pass_rates || !l->open_picks)
        return ifl_fail(err, IFL_NOMEM, "checkpoint: out of memory");
    for (int32_t i = 0; i < l->n_open_serials; i++) {
        const json_t *pick = json_array_get(tasks, (size_t)i);
        l->open_picks[i] = (ifl_task_pick){(int32_t)json_integer_value(json_array_get(pick, 0)),
                                           (uint64_t)json_integer_value(json_array_get(pick, 1))};
    }
    return IFL_OK;
}

static int64_t state_int(const json_t *object, const char *key) {
    return (int64_t)json_integer_value(json_object_get(object, key));
}

static void restore_sampling(run_totals *t, const json_t *from) {
    t->sampling = (ifl_sampling_counts){
        .n_drawn = state_int(from, "drawn"),
        .n_kept = state_int(from, "kept"),
        .n_right = state_int(from, "right"),
        .n_wrong = state_int(from, "wrong"),
        .n_unjudged = state_int(from, "unjudged"),
        .n_answers = state_int(from, "answers"),
        .n_answers_passed = state_int(from, "answers_passed"),
        .reward = json_number_value(json_object_get(from, "reward")),
        .length = json_number_value(json_object_get(from, "length")),
        .length_passed = json_number_value(json_object_get(from, "length_passed")),
        .n_masked_passed = state_int(from, "masked_passed"),
    };
    t->steps_short = state_int(from, "steps_short");
}

ifl_status learner_restore(learner *l, const char *text, ifl_error *err) {
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
    ifl_status st = restore_tasks(l, root, err);
    if (st != IFL_OK) {
        json_decref(root);
        return st;
    }
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
    /* Absent in the checkpoints of earlier builds: 0. */
    const json_t *foreign = json_object_get(root, "foreign"),
                 *guard = json_object_get(root, "guard");
    restore_sampling(t, json_object_get(root, "sampling"));
    t->n_foreign = state_int(foreign, "trajectories");
    t->tokens_foreign = state_int(foreign, "tokens");
    t->foreign.foreign.n_tokens = state_int(foreign, "weighted");
    t->foreign.foreign.w = json_number_value(json_object_get(foreign, "w"));
    t->foreign.foreign.w2 = json_number_value(json_object_get(foreign, "w2"));
    t->foreign.foreign.k3 = json_number_value(json_object_get(foreign, "k3"));
    t->foreign.foreign.weight = json_number_value(json_object_get(foreign, "weight"));
    t->guard_checked = state_int(guard, "checked");
    t->guard_differing = state_int(guard, "differing");
    l->bias_alarms = state_int(root, "bias_alarms");
    l->audit_before.n_foreign = state_int(foreign, "audit");
    l->audit_before.tokens_foreign = state_int(foreign, "audit_tokens");
    l->desk_before.foreign = state_int(foreign, "stored");
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

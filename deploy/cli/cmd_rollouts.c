/* `inflight rollouts RUN`: what the actors generated and what became of it; --check balances the
 * books. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/cli/commands.h"
#include "deploy/cli/options.h"
#include "deploy/cli/report_rollouts.h"
#include "deploy/cli/run_argument.h"

typedef struct rollouts_options {
    const char *task;
    int64_t step, min_lag, tail; /* -1 = not given */
    bool json, check, eval;
} rollouts_options;

typedef struct printer {
    const rollouts_options *options;
    const ifl_rollout_view *view;
    int64_t n_matching, n_skip;
    bool counting;
    ifl_error *err;
} printer;

static const char *fate_text(const ifl_rollout_row *row, char out[96]) {
    switch (row->fate.fate) {
    case IFL_FATE_TRAINED:
        snprintf(out, 96, "trained in step %lld", (long long)row->fate.step);
        break;
    case IFL_FATE_MASKED:
        snprintf(out, 96, "masked: %s", row->fate.reason);
        break;
    case IFL_FATE_DROPPED:
        snprintf(out, 96, "dropped: %s", row->fate.reason);
        break;
    case IFL_FATE_NONE:
        snprintf(out, 96, "not trained");
        break;
    }
    if (row->traj->purpose == IFL_PURPOSE_EVAL) snprintf(out, 96, "evaluation");
    return out;
}

static bool row_matches(const ifl_rollout_row *row, const rollouts_options *o) {
    if ((row->traj->purpose == IFL_PURPOSE_EVAL) != o->eval) return false;
    if (o->step >= 0 && (row->fate.fate != IFL_FATE_TRAINED || row->fate.step != o->step))
        return false;
    if (o->task && strcmp(o->task, row->traj->task_id) != 0) return false;
    return o->min_lag < 0 || (row->has_lag && row->lag_max >= (double)o->min_lag);
}

static void row_print_text(const ifl_rollout_row *row, const char *prompt, const char *answer) {
    const ifl_trajectory *t = row->traj;
    char fate[96];
    printf("task %s  serial %llu  sample %d of %d  %s\n", t->task_id,
           (unsigned long long)t->task_serial, t->sample, t->group_size, fate_text(row, fate));
    if (ifl_reward_is_verdict(t->reward.status))
        printf("  reward    %g", (double)t->reward.reward);
    else
        printf("  reward    none (%s%s%s)", ifl_reward_status_name(t->reward.status),
               t->reward.reason[0] ? ": " : "", t->reward.reason);
    printf("  by %s; %d tokens, %s; actor %s\n", *t->reward.checker ? t->reward.checker : "-",
           row->n_answer, ifl_finish_name(t->finish), *t->actor ? t->actor : "-");
    if (row->has_lag) printf("  lag       mean %.2f, max %.0f\n", row->lag_mean, row->lag_max);
    printf("  versions ");
    for (int32_t i = 0; i < t->n_runs; i++)
        printf(" v%lld: tokens %d..%d%s", (long long)t->runs[i].version, t->runs[i].begin,
               t->runs[i].begin + t->runs[i].n_tokens - 1, i + 1 < t->n_runs ? "," : "");
    printf("%s\n  prompt    ", t->n_runs ? "" : " none");
    ifl_text_print(stdout, prompt, "            ");
    printf("\n  answer    ");
    ifl_text_print(stdout, answer, "            ");
    printf("\n\n");
}

static ifl_status row_print_json(const ifl_rollout_row *row, const char *prompt, const char *answer,
                                 ifl_error *err) {
    static const char *const fates[] = {"none", "trained", "masked", "dropped"};
    const ifl_trajectory *t = row->traj;
    json_t *versions = json_array();
    for (int32_t i = 0; versions && i < t->n_runs; i++)
        json_array_append_new(versions, json_pack("{s:i,s:i,s:I}", "begin", (int)t->runs[i].begin,
                                                  "n_tokens", (int)t->runs[i].n_tokens, "version",
                                                  (json_int_t)t->runs[i].version));
    json_t *object = json_pack(
        "{s:s, s:I, s:i, s:i, s:s, s:s, s:s, s:o?, s:s, s:s, s:i, s:i, s:s, s:o?, s:o?, s:s, s:s, "
        "s:s}",
        "task", t->task_id, "serial", (json_int_t)t->task_serial, "sample", (int)t->sample,
        "group_size", (int)t->group_size, "purpose",
        t->purpose == IFL_PURPOSE_EVAL ? "eval" : "train", "fate", fates[row->fate.fate], "reason",
        row->fate.reason, "step",
        row->fate.fate == IFL_FATE_TRAINED ? json_integer(row->fate.step) : json_null(),
        "reward_status", ifl_reward_status_name(t->reward.status), "checker", t->reward.checker,
        "prompt_tokens", (int)row->n_prompt, "answer_tokens", (int)row->n_answer, "finish",
        ifl_finish_name(t->finish), "reward",
        ifl_reward_is_verdict(t->reward.status) ? json_real((double)t->reward.reward) : json_null(),
        "versions", versions, "actor", t->actor, "prompt", prompt, "answer", answer);
    if (object && row->has_lag) {
        json_object_set_new(object, "lag_mean", json_real(row->lag_mean));
        json_object_set_new(object, "lag_max", json_integer((json_int_t)row->lag_max));
    }
    if (object && t->reward.n_components > 0) {
        json_t *components = json_object();
        for (int32_t i = 0; i < t->reward.n_components; i++)
            json_object_set_new(components, t->reward.components[i].name,
                                json_real((double)t->reward.components[i].value));
        json_object_set_new(object, "components", components);
    }
    if (object && t->reward.reason[0])
        json_object_set_new(object, "reward_reason", json_string(t->reward.reason));
    char *line = object ? json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
    if (line) puts(line);
    free(line);
    json_decref(object);
    return line ? IFL_OK
                : ifl_fail(err, IFL_FORMAT, "task %s: cannot be written as JSON", t->task_id);
}

static ifl_status row_visit(const ifl_rollout_row *row, void *user) {
    printer *p = user;
    if (!row_matches(row, p->options)) return IFL_OK;
    if (p->counting) {
        p->n_matching++;
        return IFL_OK;
    }
    if (p->n_skip-- > 0) return IFL_OK;
    const ifl_trajectory *t = row->traj;
    char *prompt = ifl_rollout_text(p->view, t->tokens, row->n_prompt);
    char *answer =
        ifl_rollout_text(p->view, t->tokens + row->n_prompt, t->n_tokens - row->n_prompt);
    ifl_status st = prompt && answer ? IFL_OK : IFL_NOMEM;
    if (st == IFL_OK && p->options->json)
        st = row_print_json(row, prompt, answer, p->err);
    else if (st == IFL_OK)
        row_print_text(row, prompt, answer);
    free(prompt);
    free(answer);
    /* A reader such as `head` that has gone away ends the walk. */
    return st == IFL_OK && ferror(stdout) ? IFL_STOPPED : st;
}

static ifl_status rollouts_print(const rollouts_options *options, const ifl_run_dir *run,
                                 ifl_error *err) {
    ifl_rollout_view *view = NULL;
    IFL_TRY(ifl_rollout_view_open(&view, run, err));
    printer p = {.options = options, .view = view, .err = err};
    ifl_status st = IFL_OK;
    if (options->tail >= 0) {
        p.counting = true;
        IFL_TRY_GOTO(st, ifl_rollout_view_walk(view, row_visit, &p, err), done);
        p.counting = false;
        p.n_skip = p.n_matching - options->tail;
    }
    st = ifl_rollout_view_walk(view, row_visit, &p, err);
done:
    ifl_rollout_view_close(view);
    return st;
}

static ifl_status books_check(const ifl_run_dir *run, ifl_error *err) {
    ifl_rollout_ledger *ledger = NULL;
    ifl_rollout_balance balance;
    IFL_TRY(ifl_rollout_ledger_read(&ledger, run->rollouts, err));
    ifl_rollout_ledger_balance(ledger, &balance);
    ifl_rollout_ledger_free(ledger);
    json_t *object = ifl_rollout_balance_json(&balance);
    char *text = object ? json_dumps(object, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    if (text) puts(text);
    free(text);
    json_decref(object);
    if (!text) return ifl_fail(err, IFL_NOMEM, "out of memory for the balance");
    if (ifl_rollout_balance_holds(&balance)) return IFL_OK;
    return ifl_fail(err, IFL_MISMATCH,
                    "%s: the books do not balance: %lld lost, %lld trained twice, %lld with two "
                    "fates, %lld never leased, %lld trained but not stored",
                    run->path, (long long)balance.lost, (long long)balance.trained_twice,
                    (long long)balance.conflicting, (long long)balance.unleased,
                    (long long)balance.trained_unstored);
}

enum { KEY_STEP = 1, KEY_TASK, KEY_MIN_LAG, KEY_JSON, KEY_TAIL, KEY_CHECK, KEY_EVAL, KEY_DIR };

static ifl_status on_option(int key, const char *arg, void *user, ifl_error *err) {
    rollouts_options *o = user;
    switch (key) {
    case KEY_STEP:
        return ifl_options_int("step", arg, 0, INT64_MAX, &o->step, err);
    case KEY_MIN_LAG:
        return ifl_options_int("min-lag", arg, 0, INT64_MAX, &o->min_lag, err);
    case KEY_TAIL:
        return ifl_options_int("tail", arg, 0, INT64_MAX, &o->tail, err);
    case KEY_TASK:
        o->task = arg;
        break;
    case KEY_JSON:
        o->json = true;
        break;
    case KEY_CHECK:
        o->check = true;
        break;
    case KEY_EVAL:
        o->eval = true;
        break;
    }
    return IFL_OK;
}

static ifl_status rollouts_work(const ifl_options *options, void *user, ifl_error *err) {
    const rollouts_options *mine = user;
    ifl_run_dir run;
    IFL_TRY(ifl_run_argument(&run, options, err));
    return mine->check ? books_check(&run, err) : rollouts_print(mine, &run, err);
}

static ifl_status rollouts_dry_run(const ifl_options *options, void *user, ifl_error *err) {
    const rollouts_options *mine = user;
    ifl_run_dir run;
    ifl_options_print(options, stdout);
    IFL_TRY(ifl_run_argument(&run, options, err));
    printf("# reads   %s/\n", run.rollouts);
    if (!mine->check) printf("# reads   %s\n", run.tokenizer);
    printf("# writes  standard output\n");
    return IFL_OK;
}

int ifl_cmd_rollouts(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"step", KEY_STEP, "N", 0, "only what step N trained", 0},
        {"task", KEY_TASK, "ID", 0, "only answers to this task", 0},
        {"min-lag", KEY_MIN_LAG, "N", 0, "only trajectories with a token of this lag or more", 0},
        {"eval", KEY_EVAL, NULL, 0, "evaluation's trajectories instead of training's", 0},
        {"tail", KEY_TAIL, "N", 0, "only the last N", 0},
        {"json", KEY_JSON, NULL, 0, "one JSON object per line", 0},
        {"check", KEY_CHECK, NULL, 0,
         "balance the books: leased = trained + masked + dropped + in flight + lost, from the "
         "records alone; status 65 when they don't",
         0},
        {"dir", KEY_DIR, "DIR", 0, "run.dir: folder of all runs (default runs)", 0},
        {0},
    };
    static const ifl_option_key keys[] = {{KEY_DIR, "run.dir", NULL}, {0}};
    rollouts_options mine = {.step = -1, .min_lag = -1, .tail = -1};
    const ifl_options_spec spec = {.doc =
                                       "Prints a run's trajectories: prompt, answer, reward, the "
                                       "policy versions of its tokens, lag, fate.",
                                   .args_doc = "RUN",
                                   .extra = extra,
                                   .keys = keys,
                                   .on_option = on_option,
                                   .user = &mine,
                                   .n_args_max = 1,
                                   .work = rollouts_work,
                                   .dry_run = rollouts_dry_run};
    return ifl_options_run(argc, argv, &spec);
}

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/memory.h"
#include "learner/learner_internal.h"

ifl_audit_counts learner_audit_counts(const learner *l) {
    ifl_audit_counts c = ifl_audit_counts_get(l->audit);
    c.n_trajectories += l->audit_before.n_trajectories;
    c.tokens_checked += l->audit_before.tokens_checked;
    c.tokens_differing += l->audit_before.tokens_differing;
    c.tokens_after_swap += l->audit_before.tokens_after_swap;
    c.tokens_not_checkable += l->audit_before.tokens_not_checkable;
    c.n_foreign += l->audit_before.n_foreign;
    c.tokens_foreign += l->audit_before.tokens_foreign;
    return c;
}

ifl_dispatch_stats learner_desk_stats(const learner *l) {
    ifl_dispatch_stats s;
    ifl_dispatch_stats_get(l->dispatch, &s);
    s.tokens_generated += l->desk_before.tokens_generated;
    s.tokens_eval += l->desk_before.tokens_eval;
    s.late += l->desk_before.late;
    s.foreign += l->desk_before.foreign;
    s.swaps += l->desk_before.swaps;
    s.sequences_swapped += l->desk_before.sequences_swapped;
    return s;
}

void learner_update_view(learner *l, const ifl_step_report *r, double step_s) {
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

ifl_status learner_metrics(learner *l, const ifl_step_report *r, double step_s, double wait_s,
                           double publish_s, ifl_error *err) {
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
    if (l->config->learner.correction != IFL_CORRECTION_NONE || r->loss.masked > 0.0) {
        ifl_metrics_add(m, "rl/masked_share", r->loss.masked);
        ifl_metrics_add(m, "rl/correction_mean", r->loss.correction_mean);
    }
    if (l->config->staleness.max_versions > 0) {
        ifl_metrics_add_int(m, "staleness/dropped", r->n_stale);
        ifl_metrics_add_int(m, "staleness/tokens_masked", r->n_tokens_stale);
        ifl_metrics_add(m, "staleness/drawn_length", r->drawn_length);
    }
    if (l->config->kl.coef > 0.0)
        ifl_metrics_add(m, l->config->kl.in == IFL_KL_IN_LOSS ? "rl/kl" : "rl/kl_reward",
                        l->config->kl.in == IFL_KL_IN_LOSS ? r->loss.kl : r->kl_reward);
    ifl_metrics_add(m, "rl/zero_variance_share",
                    (double)r->n_groups_zero_variance /
                        (double)(r->n_groups > 0 ? r->n_groups : 1));
    ifl_metrics_add(m, "rl/reward_correct_length", r->length_correct);
    ifl_metrics_add(m, "rl/reward_wrong_length", r->length_wrong);
    const ifl_sampling_counts *drawn = &l->sampling;
    if (drawn->n_drawn > 0) { /* means over all answers drawn, beside those over the trained */
        double n = drawn->n_answers > 0 ? (double)drawn->n_answers : (double)NAN;
        ifl_metrics_add_int(m, "sampling/groups_drawn", drawn->n_drawn);
        ifl_metrics_add_int(m, "sampling/groups_trained", drawn->n_kept);
        ifl_metrics_add(m, "sampling/skipped_share",
                        1.0 - (double)drawn->n_kept / (double)drawn->n_drawn);
        ifl_metrics_add(m, "sampling/drawn_per_trained",
                        drawn->n_kept > 0 ? (double)drawn->n_drawn / (double)drawn->n_kept
                                          : (double)NAN);
        ifl_metrics_add_int(m, "sampling/skipped_right", drawn->n_right);
        ifl_metrics_add_int(m, "sampling/skipped_wrong", drawn->n_wrong);
        ifl_metrics_add_int(m, "sampling/skipped_unjudged", drawn->n_unjudged);
        ifl_metrics_add(m, "sampling/drawn_reward", drawn->reward / n);
        ifl_metrics_add(m, "sampling/drawn_length", drawn->length / n);
    }
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
    ifl_metrics_add_int(m, "stats/rewards_cached", desk.rewards_cached);
    ifl_server_stats server;
    ifl_server_stats_get(l->server, &server);
    ifl_metrics_add_int(m, "stats/actors", desk.n_actors);
    ifl_metrics_add_int(m, "stats/namesakes", desk.n_namesakes);
    ifl_metrics_add_int(m, "transport/rejected", server.rejected);
    ifl_metrics_add_int(m, "transport/malformed", server.malformed);
    ifl_metrics_add_int(m, "transport/fenced", server.fenced);
    ifl_metrics_add_int(m, "transport/out_of_sequence", server.out_of_sequence);
    ifl_metrics_add_int(m, "transport/refused", server.trajectories_refused + desk.rejected);
    ifl_metrics_add_int(m, "transport/keys_refused", server.keys_refused);
    ifl_metrics_add_int(m, "transport/links_refused", server.links_refused);
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
    ifl_server_stats links;
    ifl_server_stats_get(l->server, &links);
    ifl_metrics_add_int(m, "swap/bytes_sent", links.chunk_bytes_sent); /* of this process */
    ifl_metrics_add_int(m, "stats/bytes_unanswered", links.unanswered_bytes);
    ifl_metrics_add_int(m, "stats/bytes_unacked", links.unacked_bytes);
    ifl_publisher_stats published;
    ifl_publisher_stats_get(l->publisher, &published);
    if (published.patch_version >= 0) {
        double elements = (double)l->model->n_elements;
        ifl_metrics_add_int(m, "swap/patch_version", published.patch_version);
        ifl_metrics_add_int(m, "swap/patch_bytes", published.patch_bytes);
        ifl_metrics_add(m, "swap/patch_share", (double)published.patch_bytes / (2.0 * elements));
        ifl_metrics_add(m, "swap/changed_share", (double)published.patch_changed / elements);
        ifl_metrics_add(m, "swap/patch_ms", published.patch_s * 1e3);
    }
    ifl_metrics_add(m, "actor/decode_step_ms_p50", desk.decode_step_ms_p50);
    ifl_metrics_add_int(m, "actor/sequences", counts.leased);
    ifl_metrics_add_int(m, "parity/tokens_checked", audit.tokens_checked);
    ifl_metrics_add_int(m, "parity/tokens_differing", audit.tokens_differing);
    ifl_metrics_add_int(m, "parity/lag0_tokens_checked", l->totals.guard_checked);
    ifl_metrics_add_int(m, "parity/lag0_tokens_differing", l->totals.guard_differing);
    ifl_metrics_add_int(m, "foreign/trajectories", r->n_foreign);
    ifl_metrics_add_int(m, "foreign/tokens", r->n_tokens_foreign);
    if (r->loss.foreign.n_tokens > 0) {
        ifl_metrics_add(m, "foreign/weight_mean", r->loss.foreign.weight_mean);
        ifl_metrics_add(m, "foreign/ess", r->loss.foreign.ess);
        ifl_metrics_add(m, "foreign/k3", r->loss.foreign.k3);
    }
    const ifl_bias_record *bias = &l->bias_step;
    if (bias->n_tokens > 0) {
        char name[48];
        ifl_metrics_add_int(m, "bias/tokens", bias->n_tokens);
        for (int e = 0; e < IFL_BIAS_COUNT; e++) {
            snprintf(name, sizeof name, "bias/%s_nats", ifl_bias_entry_name((ifl_bias_entry)e));
            ifl_metrics_add(m, name, ifl_bias_nats(bias, (ifl_bias_entry)e));
        }
        ifl_bias_figures total = ifl_bias_figures_of(&bias->entries[IFL_BIAS_TOTAL]);
        ifl_metrics_add(m, "bias/total_ess", total.ess);
        ifl_metrics_add(m, "bias/correction", bias->correction.bias / (double)bias->correction.n);
        ifl_metrics_add(m, "time/ledger", bias->seconds);
    }
    if (l->bias) ifl_metrics_add_int(m, "bias/alarms", l->bias_alarms);
    ifl_metrics_add(m, "time/step", step_s);
    ifl_metrics_add(m, "time/wait_for_batch", wait_s);
    ifl_metrics_add(m, "time/forward_backward", r->forward_backward_s);
    ifl_metrics_add(m, "time/optimizer", r->optimizer_s);
    ifl_metrics_add(m, "time/broadcast_weights", publish_s);
    ifl_metrics_add(m, "memory/rss_gib", (double)ifl_memory_rss() / 1073741824.0);
    return ifl_metrics_end(m, err);
}

ifl_status learner_group_metrics(learner *l, ifl_group **groups, int32_t n, ifl_error *err) {
    for (int32_t g = 0; g < n; g++) {
        int32_t scored = 0, right = 0;
        int64_t tokens = 0;
        for (int32_t i = 0; i < groups[g]->n_members; i++) {
            const ifl_member *m = &groups[g]->members[i];
            if (m->state != IFL_MEMBER_STORED) continue;
            tokens += ifl_trajectory_n_policy(m->traj);
            if (!ifl_reward_is_verdict(m->traj->reward.status)) continue;
            scored++;
            right += m->traj->reward.reward > 0.0f;
        }
        double rate = scored > 0 ? (double)right / scored : (double)NAN;
        if (scored > 0) ifl_dispatch_report(l->dispatch, groups[g]->task_id, rate);
        ifl_metrics_begin(l->metrics, "group", l->step + 1);
        ifl_metrics_add_text(l->metrics, "task/id", groups[g]->task_id);
        ifl_metrics_add(l->metrics, "task/pass_rate", rate);
        ifl_metrics_add(l->metrics, "task/mean_length", (double)tokens / groups[g]->n_members);
        if (l->config->rollout.dynamic_sampling)
            ifl_metrics_add_int(l->metrics, "task/trained",
                                ifl_group_signal_of(l->config, groups[g]) == IFL_SIGNAL_SOME);
        IFL_TRY(ifl_metrics_end(l->metrics, err));
    }
    return IFL_OK;
}

/* The books come from the log alone, not from the learner's own counters. A log that is damaged
 * costs its books, and not the run: *damaged, and `books` says where. */
static ifl_status learner_books(learner *l, ifl_rollout_balance *balance, json_t **books,
                                bool *damaged, ifl_error *err) {
    ifl_rollout_ledger *ledger = NULL;
    ifl_error why = {0};
    IFL_TRY(ifl_rollout_log_flush(l->log, err));
    ifl_status st = ifl_rollout_ledger_read(&ledger, l->options->run->rollouts, &why);
    *damaged = st == IFL_FORMAT;
    if (*damaged) {
        ifl_warn("the run's books cannot be balanced: %s", why.text);
        *books = json_pack("{s:n,s:s}", "holds", "damaged", why.text);
    } else if (st != IFL_OK) {
        *err = why;
        return st;
    } else {
        ifl_rollout_ledger_balance(ledger, balance);
        *books = ifl_rollout_balance_json(balance);
        ifl_rollout_ledger_free(ledger);
    }
    return *books ? IFL_OK : ifl_fail(err, IFL_NOMEM, "summary: out of memory");
}

ifl_status learner_summary(learner *l, const char *end, ifl_error *err) {
    const run_totals *t = &l->totals;
    ifl_dispatch_stats desk = learner_desk_stats(l);
    ifl_audit_counts audit = learner_audit_counts(l);
    ifl_rollout_balance balance = {0};
    json_t *books;
    bool damaged;
    IFL_TRY(learner_books(l, &balance, &books, &damaged, err));
    ifl_bias_record bias = {0};
    int64_t bias_steps;
    ifl_status read = ifl_bias_read(&bias, &bias_steps, l->options->run->ledger, err);
    if (read != IFL_OK && read != IFL_NOTFOUND) {
        json_decref(books);
        return read;
    }
    double wall_s = t->wall_s + ifl_clock_s() - l->started_s;
    json_t *root = json_object();
    if (!root) {
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
    PUT_INT("parity_lag0_tokens_checked", t->guard_checked);
    PUT_INT("parity_lag0_tokens_differing", t->guard_differing);
    ifl_loss_foreign foreign = ifl_loss_foreign_get(&t->foreign);
    PUT_INT("foreign_trajectories", t->n_foreign);
    PUT_INT("foreign_tokens", t->tokens_foreign);
    PUT_INT("foreign_tokens_not_audited", audit.tokens_foreign);
    PUT_INT("foreign_answers_stored", desk.foreign); /* those of evaluations among them */
    PUT_REAL("foreign_weight_mean", foreign.n_tokens > 0 ? foreign.weight_mean : (double)NAN);
    PUT_REAL("foreign_ess", foreign.n_tokens > 0 ? foreign.ess : (double)NAN);
    PUT_REAL("foreign_k3", foreign.n_tokens > 0 ? foreign.k3 : (double)NAN);
    PUT_INT("steps_refused", t->steps_refused);
    if (l->config->rollout.dynamic_sampling) {
        PUT_INT("groups_drawn", t->sampling.n_drawn);
        PUT_INT("groups_trained", t->sampling.n_kept);
        PUT_INT("groups_skipped", ifl_dispatch_counts(l->dispatch).groups_skipped);
        PUT_INT("groups_skipped_right", t->sampling.n_right);
        PUT_INT("groups_skipped_wrong", t->sampling.n_wrong);
        PUT_INT("steps_short", t->steps_short);
        double n = t->sampling.n_answers > 0 ? (double)t->sampling.n_answers : (double)NAN;
        PUT_REAL("drawn_reward", t->sampling.reward / n);
        PUT_REAL("drawn_length", t->sampling.length / n);
    }
    if (bias.n_tokens > 0) {
        char key[48];
        PUT_INT("bias_tokens", bias.n_tokens);
        PUT_INT("bias_alarms", l->bias_alarms);
        for (int e = 0; e < IFL_BIAS_COUNT; e++) {
            snprintf(key, sizeof key, "bias_%s_nats", ifl_bias_entry_name((ifl_bias_entry)e));
            PUT_REAL(key, ifl_bias_nats(&bias, (ifl_bias_entry)e));
        }
        PUT_REAL("bias_total_ess", ifl_bias_figures_of(&bias.entries[IFL_BIAS_TOTAL]).ess);
        PUT_INT("bias_not_scored", bias.n_not_scored);
        PUT_REAL("bias_ledger_s", bias.seconds);
    }
#define PUT_BOOK(name, value)                                                                      \
    json_object_set_new(root, name, damaged ? json_null() : json_integer((json_int_t)(value)))
    PUT_BOOK("trajectories_leased", balance.leased);
    PUT_BOOK("trajectories_trained", balance.trained);
    PUT_BOOK("trajectories_masked", balance.masked);
    PUT_BOOK("trajectories_dropped", balance.dropped);
    PUT_BOOK("trajectories_in_flight", balance.in_flight);
    PUT_BOOK("trajectories_lost", balance.lost);
#undef PUT_BOOK
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

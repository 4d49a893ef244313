#include "learner/learner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "kernels/contract.h"
#include "learner/checkpoint.h"
#include "learner/learner_internal.h"

/* --- Checkpoint and publication
 * ---------------------------------------------------------------------------- */

static ifl_status learner_checkpoint(learner *l, ifl_error *err) {
    double begin = ifl_clock_s();
    char *state = learner_state(l);
    if (!state) return ifl_fail(err, IFL_NOMEM, "checkpoint: out of memory");
    ifl_status st = ifl_checkpoint_save(l->options->run->checkpoints, l->step, l->model,
                                        l->optimizer, state, l->config->checkpoint.keep, err);
    free(state);
    IFL_TRY(st);
    IFL_TRY(ifl_dispatch_log_checkpoint(l->dispatch, l->step, err));
    l->checkpoint = l->step;
    ifl_debug("checkpoint of step %lld in %.2f s", (long long)l->step, ifl_clock_s() - begin);
    return IFL_OK;
}

/* In the middle of a run a checkpoint that finds no room on the disk is put off to the next step.
 */
static ifl_status learner_checkpoint_between(learner *l, ifl_error *err) {
    ifl_status st = learner_checkpoint(l, err);
    if (st == IFL_FULL && !l->checkpoint_due)
        ifl_warn("no checkpoint of step %lld: %s; it is tried again after each step",
                 (long long)l->step, err->text);
    l->checkpoint_due = st == IFL_FULL;
    return st == IFL_FULL ? IFL_OK : st;
}

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
    IFL_TRY(ifl_publisher_publish(l->publisher, version, version - 1,
                                  ifl_version_store_get(l->store, version), learner_release,
                                  l->store, err));
    /* Steps that are done again go faster than publications, and every version is wanted. */
    if (!ifl_dispatch_redoing(l->dispatch)) return IFL_OK;
    ifl_error why = {0};
    st = ifl_publisher_wait(l->publisher, version, (int64_t)(IDLE_S * 1000.0), &why);
    return st == IFL_OK ? IFL_OK : ifl_dispatch_stop_redoing(l->dispatch, why.text, err);
}

static void learner_told(void *user, int64_t version, ifl_hash content) {
    ifl_dispatch_published(user, version, content);
}

/* --- One step
 * ------------------------------------------------------------------------------------------ */

static ifl_status learner_audit(learner *l, ifl_group **groups, int32_t n, ifl_error *err) {
    for (int32_t g = 0; g < n; g++)
        for (int32_t i = 0; i < groups[g]->n_members; i++) {
            const ifl_member *m = &groups[g]->members[i];
            if (m->state == IFL_MEMBER_STORED && ifl_audit_selects(l->audit, m->traj))
                IFL_TRY(ifl_audit_check(l->audit, m->traj, err));
        }
    ifl_audit_counts c = ifl_audit_counts_get(l->audit);
    if (c.tokens_differing == 0) return IFL_OK;
    return ifl_difference_fail(&c.first, "the audit's replay of its record", l->options->run->path,
                               l->checkpoint, err);
}

static void learner_log_parity(const learner *l) {
    ifl_audit_counts c = learner_audit_counts(l);
    const run_totals *t = &l->totals;
    ifl_info("parity: %lld log-probs replayed, %lld with other bits, %lld not checkable; %lld "
             "compared at lag 0, %lld with other bits; %lld of another numerics profile",
             (long long)c.tokens_checked, (long long)c.tokens_differing,
             (long long)c.tokens_not_checkable, (long long)t->guard_checked,
             (long long)t->guard_differing, (long long)t->tokens_foreign);
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
    t->n_foreign += r->n_foreign;
    t->tokens_foreign += r->n_tokens_foreign;
    ifl_loss_foreign_add(&t->foreign, &r->foreign);
    t->guard_checked += r->guard.tokens_checked;
    ifl_sampling_counts_add(&t->sampling, &l->sampling);
    t->steps_short +=
        l->sampling.n_drawn > 0 && l->sampling.n_kept < l->config->rollout.prompts_per_step;
    t->lag_token_sum += r->lag_mean * (double)r->n_tokens;
    if (r->lag_max > t->lag_max) t->lag_max = r->lag_max;
    t->reward_sum += r->reward_mean;
    t->n_steps++;
}

/* A step that ended in the forward: no weight has moved, and its counts are in no report. */
static ifl_status learner_guard_failed(learner *l, int64_t step, ifl_error *err) {
    ifl_guard_counts c = ifl_stepper_guard(l->stepper);
    char by[96];
    l->totals.guard_checked += c.tokens_checked;
    l->totals.guard_differing += c.tokens_differing;
    snprintf(by, sizeof by, "step %lld's own forward under version %lld", (long long)step,
             (long long)step - 1);
    return ifl_difference_fail(&c.first, by, l->options->run->path, l->checkpoint, err);
}

/* A step without a single verdict: ends the run, with the first reason that its answers have. */
static ifl_status step_unjudged(int64_t step, ifl_group **groups, int32_t n_groups,
                                int32_t n_masked, ifl_error *err) {
    const ifl_reward *first = NULL;
    for (int32_t g = 0; g < n_groups && !first; g++)
        for (int32_t i = 0; i < groups[g]->n_members && !first; i++) {
            const ifl_member *m = &groups[g]->members[i];
            if (m->state == IFL_MEMBER_STORED && !ifl_reward_is_verdict(m->traj->reward.status))
                first = &m->traj->reward;
        }
    return ifl_fail(
        err, IFL_PEER,
        "step %lld: none of its %d answers could be judged (checkers failed, or the tasks are "
        "bad); the first: checker %s: %s: %s",
        (long long)step, n_masked, first ? first->checker : "?",
        first ? ifl_reward_status_name(first->status) : "?",
        first && first->reason[0] ? first->reason : "the actors' logs say why");
}

/* Lock-step modes: the groups of the next k + 1 steps are open; one batch more, unless a run that
 * was resumed with smaller batches or a smaller k has too many already. What is done again opens
 * what was opened then. */
static ifl_status learner_open_next(learner *l, int64_t step, ifl_error *err) {
    int32_t n = l->config->rollout.prompts_per_step;
    int64_t ahead = step + 1 + l->async_k;
    if (ifl_dispatch_redoing(l->dispatch))
        return ahead <= l->config->run.steps ? ifl_dispatch_open_batch(l->dispatch, n, step, err)
                                             : IFL_OK;
    if (ahead > l->config->run.steps) ahead = l->config->run.steps;
    return ifl_dispatch_open_up_to(l->dispatch, (int32_t)(ahead - step) * n, step, err);
}

static ifl_status learner_step(learner *l, learner_batch *batch, ifl_error *err) {
    int64_t step = l->step + 1;
    double begin = ifl_clock_s(), wait_s = 0.0;
    ifl_fail_point(IFL_FAIL_STEP_BEGIN);
    const ifl_weights *newest = ifl_version_store_newest(l->store);
    ifl_step_report report;
    ifl_status st = learner_train(l, step, newest, batch, &wait_s, &report, err);
    if (st == IFL_OK && l->bias) ifl_held_versions_add(&l->bias_versions, newest->version);
    ifl_version_store_release(l->store, newest);
    if (st == IFL_PARITY) st = learner_guard_failed(l, step, err);
    IFL_TRY(st);
    if (report.n_drawn == 0 && report.n_masked > 0)
        return step_unjudged(step, batch->groups, batch->n, report.n_masked, err);
    /* Before the next batch is opened, whose tasks may depend on what is reported here: a run that
     * is made longer after its end opens it then. */
    IFL_TRY(learner_group_metrics(l, batch->groups, batch->n, err));
    double publish_begin = ifl_clock_s();
    if (l->async_k > 0) /* an actor must not skip a version that a later batch is pinned to */
        IFL_TRY(ifl_dispatch_wait_applied(l->dispatch, l->step, IDLE_S, err));
    IFL_TRY(learner_publish(l, step, err));
    if (l->async_k >= 0) IFL_TRY(learner_open_next(l, step, err));
    double publish_s = ifl_clock_s() - publish_begin;
    IFL_TRY(learner_audit(l, batch->groups, batch->n, err));
    IFL_TRY(learner_bias(l, step, err));
    ifl_fail_point(IFL_FAIL_STEP_CLOSE);
    IFL_TRY(ifl_dispatch_close(l->dispatch, step, batch->groups, batch->n, batch->outcomes,
                               batch->skipped, err));
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
    learner_batch batch;
    ifl_status st = learner_batch_create(&batch, c, err);
    if (st == IFL_OK && l->async_k >= 0) {
        /* The batches of the next k + 1 steps; those that a checkpoint had open already are open
         * again. */
        int64_t ahead = l->step + 1 + l->async_k;
        if (ahead > c->run.steps) ahead = c->run.steps;
        int32_t want = (int32_t)(ahead - l->step) * n - l->n_open_serials;
        st = ifl_dispatch_open_batch(l->dispatch, want > 0 ? want : 0, l->step, err);
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
        st = learner_step(l, &batch, err);
        if (st != IFL_OK) break;
        bool last = l->step == c->run.steps;
        int64_t every = c->checkpoint.every_steps;
        if (!last && every > 0 && (l->step % every == 0 || l->checkpoint_due))
            st = learner_checkpoint_between(l, err);
        if (st == IFL_OK && !last && c->eval.every_steps > 0 && l->eval_set &&
            l->step % c->eval.every_steps == 0) {
            ifl_eval_results results = {0};
            double accuracy;
            st = learner_evaluate(l, c->eval.tasks_mid, "in between", &results, &accuracy, err);
            ifl_eval_results_clear(&results);
        }
    }
    if (st == IFL_OK && l->async_k < 0) ifl_dispatch_set_in_flight(l->dispatch, 0);
    learner_batch_clear(&batch);
    return st;
}

/* --- Setup
 * ---------------------------------------------------------------------------------------------- */

/* What decides the bits of this run's log-probs, to be held against another host's or build's. */
static ifl_status learner_write_contract(learner *l, ifl_error *err) {
    char path[IFL_PATH_MAX + 16], hash[33], *text = NULL;
    size_t n = 0;
    snprintf(path, sizeof path, "%s/numerics.txt", l->options->run->path);
    ifl_hash_text(l->model->profile, hash);
    ifl_info("numerics profile %s, %s", ifl_profile_name(l->model->numerics), hash);
    FILE *f = open_memstream(&text, &n);
    if (!f) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    ifl_contract_print(l->model, f);
    ifl_status st = fclose(f) == 0 ? ifl_file_write_atomic(path, text, n, err)
                                   : ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    free(text);
    return st;
}

/* A log that cannot be read costs what came after the checkpoint, and not the run. */
static ifl_status learner_read_redo(learner *l, ifl_error *err) {
    const ifl_config *c = l->config;
    if (!c->run.resume) return IFL_OK;
    ifl_error why = {0};
    ifl_status st = ifl_redo_read(&l->redo, l->options->run->rollouts, l->step, l->open_serials,
                                  l->n_open_serials, l->next_serial, &why);
    if (st == IFL_NOMEM) {
        *err = why;
        return st;
    }
    if (st != IFL_OK)
        ifl_warn("what the run did after step %lld is done anew: %s", (long long)l->step, why.text);
    else if (*l->redo->damage)
        ifl_warn("of what the run did after step %lld some is done anew: %s", (long long)l->step,
                 l->redo->damage);
    return IFL_OK;
}

/* What the answers from the log were sampled by and the checkpoint has left behind, for the audit:
 * from the archive, as far as it reaches. */
static void learner_load_versions(learner *l) {
    int64_t oldest = l->step;
    for (int64_t i = 0; i < l->redo->n_answers; i++) {
        const ifl_redo_answer *a = &l->redo->answers[i];
        if (!a->dropped && a->version_oldest < oldest) oldest = a->version_oldest;
    }
    if (oldest < l->step - l->config->parity.versions_kept)
        oldest = l->step - l->config->parity.versions_kept;
    ifl_version_history *history = NULL;
    ifl_error why = {0};
    ifl_status st =
        ifl_version_history_open(&history, l->options->run->versions, l->redo->processes,
                                 l->redo->n_processes, l->model, 1, &why);
    for (int64_t version = oldest < 0 ? 0 : oldest; version < l->step && st == IFL_OK; version++) {
        const ifl_weights *archived;
        ifl_weights *copy;
        /* One that was never published has no file, and no token. */
        if (ifl_version_history_get(history, l->redo->n_processes, version, &archived, &why) !=
            IFL_OK)
            continue;
        st = ifl_version_store_spare(l->store, &copy, &why);
        if (st != IFL_OK) break;
        ifl_weights_copy(copy, archived);
        st = ifl_version_store_put(l->store, copy, &why);
        if (st != IFL_OK) ifl_weights_free(copy);
    }
    ifl_version_history_close(history);
    if (why.status != IFL_OK && why.status != IFL_NOTFOUND)
        ifl_warn("not all answers from the log can be audited: %s", why.text);
}

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
    if (l->pass_rates) IFL_TRY(ifl_task_set_rates_restore(l->train_set, l->pass_rates, err));
    if (c->data.n_eval > 0)
        IFL_TRY(ifl_task_set_open(&l->eval_set, c, "eval", l->options->tokenizer, err));
    IFL_TRY(ifl_metrics_open(&l->metrics, run->metrics, 0, err));
    IFL_TRY(learner_read_redo(l, err));
    ifl_rollout_log_options log = {0, true};
    IFL_TRY(ifl_rollout_log_open(&l->log, run->rollouts, &log, err));
    IFL_TRY(ifl_rollout_log_run_started(l->log, c->run.seed, l->resumed ? l->step : 0,
                                        l->next_serial, err));
    if (l->redo && l->resumed) learner_load_versions(l);
    if (c->run.resume && !l->redo) IFL_TRY(ifl_rollout_log_caught_up(l->log, l->step, err));
    IFL_TRY(learner_write_contract(l, err));
    if (c->archive.versions_gib > 0.0) {
        char folder[IFL_PATH_MAX + 16];
        snprintf(folder, sizeof folder, "%s/%06d", run->versions, ifl_rollout_log_segment(l->log));
        IFL_TRY(ifl_version_archive_open(&l->archive, folder, l->model,
                                         (int64_t)(c->archive.versions_gib * 1073741824.0), err));
    }
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
        .schedule = c->learner.final_ratio < 1 ? IFL_SCHEDULE_LINEAR : IFL_SCHEDULE_CONSTANT,
        .total_steps = c->run.steps,
        .final_ratio = c->learner.final_ratio,
    };
    IFL_TRY(ifl_thread_pool_create(&l->pool, c->learner.threads, err));
    IFL_TRY(ifl_optimizer_create(&l->optimizer, l->model, &optimizer, l->pool,
                                 ifl_ops_best(l->model->numerics), err));
    if (c->run.resume) {
        char *state = NULL;
        ifl_status st = ifl_checkpoint_load(l->options->run->checkpoints, -1, l->model,
                                            l->optimizer, &l->step, &state, err);
        if (st == IFL_OK) {
            st = learner_restore(l, state, err);
            l->resumed = true;
            l->checkpoint = l->step;
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
    /* The masters hold them now; a large model's memory is wanted elsewhere, unless they are the
     * reference. */
    if (c->kl.coef <= 0.0 || *c->kl.reference) {
        ifl_weights_free(*l->options->start);
        *l->options->start = NULL;
    }
    int64_t bytes = (int64_t)(c->parity.versions_gib * 1073741824.0);
    IFL_TRY(ifl_version_store_create(&l->store, l->model, c->parity.versions_kept, bytes, err));
    ifl_audit_options audit = {c->parity.audit, c->parity.audit_swapped, (uint64_t)c->run.seed,
                               strcmp(c->parity.flip_bit, "audit") == 0};
    IFL_TRY(ifl_audit_create(&l->audit, l->model, l->store, &audit, l->pool,
                             ifl_ops_best(l->model->numerics), err));
    IFL_TRY(learner_bias_open(l, err));
    IFL_TRY(ifl_stepper_create(&l->stepper, c, l->model, l->optimizer, l->pool,
                               ifl_ops_best(l->model->numerics), err));
    if (c->kl.coef > 0.0)
        ifl_stepper_set_reference(l->stepper,
                                  *c->kl.reference ? l->options->reference : *l->options->start);
    return IFL_OK;
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
        .parts = l->model->parts,
        .admit_foreign = strcmp(c->parity.mismatch, "admit") == 0,
        .tokenizer = ifl_tokenizer_hash(l->options->tokenizer),
        .run_epoch = l->run_epoch,
        .directed = l->async_k >= 0,
        .vocab_size = l->model->config.vocab_size,
        .trajectory_bytes_max = (int64_t)c->transport.trajectory_mib << 20,
        .keys = l->options->keys,
        .local_key = l->options->local_key,
        .keys_reread = l->options->keys_reread,
        .insecure = c->transport.insecure,
    };
    memcpy(server.run_uuid, l->run_uuid, sizeof server.run_uuid);
    IFL_TRY(ifl_server_create(&l->server, &server, err));
    ifl_info("listening on %s", ifl_server_endpoint(l->server));
    IFL_TRY(ifl_publisher_create(&l->publisher, l->model, l->server,
                                 (int64_t)c->transport.chunk_kib * 1024,
                                 c->transport.patch_versions, c->transport.patch_percent, err));
    if (l->archive) ifl_publisher_set_archive(l->publisher, l->archive);
    ifl_dispatch_options dispatch = {
        .config = c,
        .server = l->server,
        .train = l->train_set,
        .eval = l->eval_set,
        .log = l->log,
        .profile = l->model->profile,
        .stop = l->options->stop,
        .hopeless = l->options->hopeless,
        .next_serial = l->next_serial,
        .first_lease = l->run_epoch >> 2,
        .reopen = l->open_serials,
        .reopen_picks = l->open_picks,
        .n_reopen = l->n_open_serials,
        .reopen_version = l->async_k >= 0 ? l->step : -1,
        .counts = l->resumed ? &l->counts : NULL,
        .redo = l->redo,
        .rollouts = l->options->run->rollouts,
        .vocab_size = l->model->config.vocab_size,
    };
    IFL_TRY(ifl_dispatch_create(&l->dispatch, &dispatch, err));
    ifl_publisher_set_told(l->publisher, learner_told, l->dispatch);
    return learner_publish(l, l->step, err);
}

static void learner_close(learner *l) {
    /* The desk polls the server and the publisher feeds both, so they go first. */
    ifl_publisher_free(l->publisher);
    ifl_dispatch_free(l->dispatch);
    ifl_version_archive_close(l->archive);
    ifl_server_free(l->server);
    ifl_stepper_free(l->stepper);
    ifl_audit_free(l->audit);
    learner_bias_close(l);
    ifl_version_store_free(l->store);
    ifl_optimizer_free(l->optimizer);
    ifl_thread_pool_free(l->pool);
    ifl_rollout_log_close(l->log);
    ifl_metrics_close(l->metrics);
    ifl_task_set_close(l->eval_set);
    ifl_task_set_close(l->train_set);
    ifl_status_line_free(l->line);
    free(l->open_serials);
    free(l->open_picks);
    free(l->pass_rates);
    ifl_redo_free(l->redo);
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
    l.checkpoint = -1;
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
        if (st == IFL_OK) learner_log_parity(&l);
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
    int64_t groups = config->rollout.prompts_per_step;
    if (config->learner.groups_in_flight > groups) groups = config->learner.groups_in_flight;
    if (config->rollout.dynamic_sampling) /* held until the step ends */
        groups +=
            (int64_t)config->rollout.prompts_per_step * (config->rollout.dynamic_sampling_max - 1);
    return (ifl_learner_plan){
        .optimizer = ifl_optimizer_bytes(model),
        .trainer = ifl_stepper_bytes(config, model, n_threads),
        .versions = ring > version ? ring : 2 * version, /* the newest stays while one is made */
        .publisher = ifl_publisher_bytes(model, config->transport.patch_versions,
                                         config->transport.patch_percent),
        .audit = config->parity.audit > 0 || config->parity.audit_swapped > 0
                     ? ifl_workspace_bytes(model, 256, n_threads) +
                           ifl_kv_store_bytes(model, model->config.max_positions, 1)
                     : 0,
        .reference = config->kl.coef > 0.0 ? version : 0,
        .ledger = config->ledger.sample > 0
                      ? ifl_bias_ledger_bytes(model, config->ledger.positions, n_threads)
                      : 0,
        .kept = groups * config->rollout.group_size * 4 *
                ifl_kept_ids_bound(config->rollout.max_new_tokens, config->rollout.top_k,
                                   config->rollout.top_p, model->config.vocab_size),
    };
}

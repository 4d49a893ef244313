#include "learner/dispatch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "common/memory.h"
#include "learner/dispatch_internal.h"
#include "learner/staleness.h"

#define ATTEMPTS_MAX 8

/* Groups that can be open at one time: what is in flight or ahead, what a step has taken, and what
 * a checkpoint brings. Members are allocated for each, so the table is no larger than that. */
static ifl_status desk_tables(ifl_dispatch *d, const ifl_dispatch_options *o, ifl_error *err) {
    const ifl_config *c = o->config;
    int64_t per_step = c->rollout.prompts_per_step;
    int64_t open = c->run.mode == IFL_MODE_PIPELINE ? per_step + c->learner.groups_in_flight
                                                    : per_step * (1 + c->run.async_k);
    int64_t n_taken =
        per_step * (c->rollout.dynamic_sampling ? c->rollout.dynamic_sampling_max : 1);
    int64_t n_train = open + n_taken + o->n_reopen;
    if (o->redo && o->redo->next_serial > o->next_serial) /* all of them open at once */
        n_train += (int64_t)(o->redo->next_serial - o->next_serial);
    int64_t n_tasks = o->eval ? c->eval.tasks : 1,
            n_held = o->eval ? ifl_task_set_size(o->eval) : 0;
    if (n_held > 0 && n_held < n_tasks) n_tasks = n_held;
    int64_t n_eval = n_tasks * (c->eval.samples > 0 ? 2 : 1);
    if (n_train > IFL_GROUPS_MAX)
        return ifl_fail(err, IFL_LIMIT,
                        "rollout.prompts_per_step, rollout.dynamic_sampling_max, "
                        "learner.groups_in_flight, run.mode: up to %lld "
                        "groups would be open at a time, limit %d",
                        (long long)n_train, IFL_GROUPS_MAX);
    if (n_eval > IFL_GROUPS_MAX)
        return ifl_fail(err, IFL_LIMIT, "eval.tasks: %lld groups would be open at a time, limit %d",
                        (long long)n_eval, IFL_GROUPS_MAX);
    IFL_TRY(
        ifl_groups_create(&d->train, (int32_t)n_train, c->rollout.group_size, ATTEMPTS_MAX, err));
    return ifl_groups_create(&d->eval, (int32_t)n_eval, c->eval.samples > 1 ? c->eval.samples : 1,
                             ATTEMPTS_MAX, err);
}

/* --- Life
 * ------------------------------------------------------------------------------------------- */

ifl_status ifl_dispatch_create(ifl_dispatch **out, const ifl_dispatch_options *o, ifl_error *err) {
    *out = NULL;
    ifl_dispatch *d = ifl_alloc(1, sizeof *d);
    if (!d) return ifl_fail(err, IFL_NOMEM, "learner: out of memory");
    ifl_status st;
    d->config = o->config;
    d->server = o->server;
    d->train_set = o->train;
    d->eval_set = o->eval;
    d->log = o->log;
    d->profile = o->profile;
    d->admit_foreign = strcmp(o->config->parity.mismatch, "admit") == 0;
    d->stop = o->stop;
    d->hopeless = o->hopeless;
    d->next_serial = o->next_serial;
    d->first_lease = d->next_lease = o->first_lease > 0 ? o->first_lease : 1;
    d->directed = o->config->run.mode != IFL_MODE_PIPELINE;
    d->version = d->first_version = -1;
    d->last_arrival_s = ifl_clock_s();
    pthread_mutex_init(&d->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&d->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    int32_t group_max = o->config->rollout.group_size;
    if (o->config->eval.samples > group_max) group_max = o->config->eval.samples;
    d->stalls = ifl_alloc(STALLS_MAX, sizeof *d->stalls);
    d->infos = ifl_alloc(IFL_PEERS_MAX, sizeof *d->infos);
    d->samples = ifl_alloc((size_t)group_max, sizeof *d->samples);
    if (!d->stalls || !d->samples || !d->infos) {
        st = ifl_fail(err, IFL_NOMEM, "learner: out of memory");
        goto done;
    }
    IFL_TRY_GOTO(st, ifl_error_share_create(&d->errors, o->config, err), done);
    IFL_TRY_GOTO(st, desk_tables(d, o, err), done);
    if (o->counts) IFL_TRY_GOTO(st, ifl_groups_counts_restore(d->train, o->counts, err), done);
    for (int32_t i = 0; i < o->n_reopen; i++)
        IFL_TRY_GOTO(st,
                     desk_open_train(d, o->reopen[i], o->reopen_picks ? &o->reopen_picks[i] : NULL,
                                     o->reopen_version, err),
                     done);
    int32_t ahead = desk_pin_ahead(d, o->reopen_version, NULL);
    if (ahead > 0)
        ifl_warn(
            "%d groups were open at the checkpoint; run.mode and rollout.prompts_per_step (%d) "
            "now have room for %d ahead: %d wait for later versions, and no new ones are "
            "opened until their turn has come",
            o->n_reopen, o->config->rollout.prompts_per_step, o->n_reopen - ahead, ahead);
    d->vocab_size = o->vocab_size;
    if (o->redo) IFL_TRY_GOTO(st, desk_redo_begin(d, o->redo, o->rollouts, err), done);
    if (pthread_create(&d->thread, NULL, desk_thread, d) != 0) {
        st = ifl_fail(err, IFL_NOMEM, "learner: cannot start a thread");
        goto done;
    }
    d->thread_started = true;
    *out = d;
    d = NULL; /* the caller owns it now */
done:
    ifl_dispatch_free(d);
    return st;
}

static void desk_free_groups(ifl_groups *groups) {
    if (!groups) return;
    int32_t n = ifl_groups_n_open(groups);
    uint64_t *serials = malloc(sizeof *serials * (size_t)(n + 1));
    if (serials) {
        ifl_groups_serials(groups, serials, n);
        for (int32_t i = 0; i < n; i++)
            desk_work_free(ifl_groups_find(groups, serials[i])->user);
    }
    free(serials);
    ifl_groups_free(groups);
}

void ifl_dispatch_free(ifl_dispatch *d) {
    if (!d) return;
    atomic_store(&d->quit, true);
    if (d->thread_started) pthread_join(d->thread, NULL);
    desk_free_groups(d->train);
    desk_free_groups(d->eval);
    ifl_rollout_reader_close(d->redo_reader);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->lock);
    ifl_free(d->stalls);
    ifl_error_share_clear(&d->errors);
    ifl_free(d->samples);
    ifl_free(d->infos);
    ifl_free(d);
}

void ifl_dispatch_set_in_flight(ifl_dispatch *d, int32_t in_flight) {
    pthread_mutex_lock(&d->lock);
    d->in_flight = in_flight;
    d->leasing = true;
    pthread_mutex_unlock(&d->lock);
}

/* With the lock held. */
static ifl_status desk_open_more(ifl_dispatch *d, int32_t n, int64_t version, ifl_error *err) {
    ifl_status st = IFL_OK;
    for (int32_t i = 0; i < n && st == IFL_OK; i++)
        st = desk_open_train(d, d->next_serial++, NULL, version, err);
    if (version >= 0) desk_pin_ahead(d, version, NULL);
    if (st == IFL_OK) st = desk_redo_attach(d, err);
    d->leasing = true;
    return st;
}

ifl_status ifl_dispatch_open_batch(ifl_dispatch *d, int32_t n, int64_t version, ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    ifl_status st = desk_open_more(d, n, version, err);
    pthread_mutex_unlock(&d->lock);
    return st;
}

ifl_status ifl_dispatch_open_up_to(ifl_dispatch *d, int32_t n, int64_t version, ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    ifl_status st = desk_open_more(d, n - desk_not_taken(d), version, err);
    pthread_mutex_unlock(&d->lock);
    return st;
}

void ifl_dispatch_report(ifl_dispatch *d, const char *task_id, double pass_rate) {
    pthread_mutex_lock(&d->lock); /* the desk's thread draws tasks from the set */
    ifl_task_set_report(d->train_set, task_id, pass_rate);
    pthread_mutex_unlock(&d->lock);
}

void desk_fail(ifl_dispatch *d, const ifl_error *err) {
    if (d->failed != IFL_OK) return;
    d->failed = err->status;
    d->failure = *err;
    pthread_cond_broadcast(&d->changed);
}

void ifl_dispatch_published(ifl_dispatch *d, int64_t version, ifl_hash content) {
    ifl_error err = {0};
    pthread_mutex_lock(&d->lock);
    ifl_status st = ifl_rollout_log_published(d->log, version, content, &err);
    if (st == IFL_OK) st = desk_redo_published(d, version, content, &err);
    if (st != IFL_OK) desk_fail(d, &err);
    pthread_mutex_unlock(&d->lock);
}

bool ifl_dispatch_redoing(ifl_dispatch *d) {
    pthread_mutex_lock(&d->lock);
    bool redoing = d->redo != NULL;
    pthread_mutex_unlock(&d->lock);
    return redoing;
}

ifl_status ifl_dispatch_stop_redoing(ifl_dispatch *d, const char *why, ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    ifl_status st = d->redo ? desk_redo_give_up(d, why, err) : IFL_OK;
    pthread_mutex_unlock(&d->lock);
    return st;
}

void ifl_dispatch_set_version(ifl_dispatch *d, int64_t version) {
    pthread_mutex_lock(&d->lock);
    d->version = version;
    if (d->first_version < 0) d->first_version = version;
    /* At once if nothing older is to be done: the word travels ahead of the bytes. */
    desk_direct(d);
    pthread_mutex_unlock(&d->lock);
}

/* --- Waiting
 * ---------------------------------------------------------------------------------------- */

/* Called with the lock held: waits for a change, a quarter of a second at most. */
static ifl_status desk_wait(ifl_dispatch *d, double idle_s, const char *what, ifl_error *err) {
    ifl_fail_point(IFL_FAIL_DESK_WAIT);
    if (d->failed != IFL_OK) {
        if (err) *err = d->failure;
        return d->failed;
    }
    if (d->hopeless && atomic_load(d->hopeless) && d->n_peers == 0)
        return ifl_fail(
            err, IFL_PEER,
            "learner: all actors have ended while it waited for %s; see logs/ in the run folder",
            what);
    if (idle_s > 0.0 && ifl_clock_s() - d->last_arrival_s > idle_s)
        return ifl_fail(
            err, IFL_TIMEOUT,
            "learner: nothing came in for %.0f s while waiting for %s; %d actors are connected. "
            "See the actors' logs in the run folder",
            idle_s, what, d->n_peers);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 250000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&d->changed, &d->lock, &until);
    return IFL_OK;
}

/* The same for a wait that a request to stop ends. Not for one in the middle of a step: the
 * optimizer has moved on there, and what a checkpoint says must be a whole step. */
static ifl_status desk_wait_stoppable(ifl_dispatch *d, double idle_s, const char *what,
                                      ifl_error *err) {
    if (d->failed == IFL_OK && d->stop && atomic_load(d->stop))
        return ifl_fail(err, IFL_STOPPED, "stopped on request");
    return desk_wait(d, idle_s, what, err);
}

/* Members that were given up after too many attempts get their fate in the log when their group is
 * taken, or the run ends: until then a checkpoint still opens them again. */
static ifl_status desk_log_given_up(ifl_dispatch *d, const ifl_group *group, ifl_error *err) {
    for (int32_t i = 0; i < group->n_members; i++) {
        const ifl_member *m = &group->members[i];
        if (m->state != IFL_MEMBER_DROPPED || m->drop_reason != IFL_DROP_ATTEMPTS) continue;
        IFL_TRY(ifl_rollout_log_dropped(d->log,
                                        (ifl_rollout_key){group->task_serial, i, IFL_PURPOSE_TRAIN},
                                        ifl_drop_reason_name(IFL_DROP_ATTEMPTS), err));
    }
    return IFL_OK;
}

/* Caller holds the lock. */
typedef bool (*desk_taker)(ifl_dispatch *d, void *how, ifl_group **out, ifl_error *err,
                           ifl_status *st);

static ifl_status desk_take(ifl_dispatch *d, int64_t step, int32_t n, desk_taker taker, void *how,
                            double idle_s, const char *what, ifl_group **out, ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    d->last_arrival_s = ifl_clock_s();
    ifl_status st = IFL_OK;
    for (bool taken = false; st == IFL_OK && !taken;) {
        bool wait;
        st = desk_redo_take(d, step, n, out, &taken, &wait, err);
        if (st == IFL_OK && !taken && !wait) taken = taker(d, how, out, err, &st);
        if (st == IFL_OK && !taken) st = desk_wait_stoppable(d, idle_s, what, err);
    }
    if (st == IFL_OK) {
        uint64_t *serials = malloc(sizeof *serials * (size_t)n);
        for (int32_t i = 0; i < n && serials; i++)
            serials[i] = out[i]->task_serial;
        for (int32_t i = 0; i < n && st == IFL_OK; i++)
            st = desk_log_given_up(d, out[i], err);
        if (st == IFL_OK)
            st = serials ? ifl_rollout_log_taken(d->log, step, serials, n, err)
                         : ifl_fail(err, IFL_NOMEM, "learner: out of memory");
        free(serials);
    }
    pthread_mutex_unlock(&d->lock);
    return st;
}

typedef struct take_in_order {
    int32_t n;
    ifl_take_order order;
} take_in_order;

static bool desk_take_in_order(ifl_dispatch *d, void *how, ifl_group **out, ifl_error *err,
                               ifl_status *st) {
    (void)err, (void)st;
    const take_in_order *o = how;
    /* With dynamic sampling a step takes more than was expected. */
    if (!d->redo) desk_pin_now(d, o->n);
    return ifl_groups_take(d->train, o->n, o->order, out);
}

ifl_status ifl_dispatch_take(ifl_dispatch *d, int64_t step, int32_t n, ifl_take_order order,
                             double idle_s, ifl_group **out, ifl_error *err) {
    take_in_order how = {n, order};
    return desk_take(d, step, n, desk_take_in_order, &how, idle_s, "groups", out, err);
}

typedef struct take_fresh {
    int64_t step;
    int32_t left, n;
} take_fresh;

static bool desk_take_fresh(ifl_dispatch *d, void *how, ifl_group **out, ifl_error *err,
                            ifl_status *st) {
    const take_fresh *o = how;
    int32_t left = o->left, n = o->n;
    int64_t step = o->step;
    int32_t open = ifl_groups_n_open(d->train);
    ifl_stale_group *ages = malloc(sizeof *ages * (size_t)(open + 1));
    ifl_group **groups = malloc(sizeof *groups * (size_t)(open + 1));
    int32_t *chosen = malloc(sizeof *chosen * (size_t)n);
    bool taken = false;
    if (!ages || !groups || !chosen) {
        *st = ifl_fail(err, IFL_NOMEM, "learner: out of memory");
    } else {
        int32_t n_ages = desk_ages(d, ages, groups);
        taken =
            ifl_staleness_choose(ages, n_ages, step, left, n, d->config->rollout.prompts_per_step,
                                 d->config->staleness.max_versions, chosen);
        for (int32_t i = 0; taken && i < n; i++)
            out[i] = groups[chosen[i]];
        if (taken) ifl_groups_take_these(out, n);
    }
    free(ages);
    free(groups);
    free(chosen);
    return taken;
}

ifl_status ifl_dispatch_take_fresh(ifl_dispatch *d, int64_t step, int32_t left, int32_t n,
                                   double idle_s, ifl_group **out, ifl_error *err) {
    take_fresh how = {step, left, n};
    return desk_take(d, step, n, desk_take_fresh, &how, idle_s, "the oldest groups", out, err);
}

ifl_status ifl_dispatch_wait_applied(ifl_dispatch *d, int64_t version, double idle_s,
                                     ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    d->last_arrival_s = ifl_clock_s();
    ifl_status st = IFL_OK;
    for (;;) {
        bool all = true;
        /* Who has said that it can take work. One that hasn't has no weights yet, or is no actor at
         * all, and nobody waits for it. */
        int32_t n_able = 0;
        for (int32_t i = 0; i < d->n_peers; i++) {
            n_able += d->peers[i].capacity > 0;
            all &= d->peers[i].capacity <= 0 || d->peers[i].version_done >= version;
        }
        if (all && n_able > 0) break;
        /* Asked to stop, like the actors: with none left none can skip a version, and the step is
         * worth a checkpoint. */
        if (d->n_peers == 0 && d->stop && atomic_load(d->stop)) break;
        st = desk_wait(d, idle_s, "actors to take new weights into use", err);
        if (st != IFL_OK) break;
    }
    pthread_mutex_unlock(&d->lock);
    return st;
}

/* With the lock held, which is let go while there is no room on the disk. A request to stop ends
 * the wait: what the log has not taken was never acknowledged. */
static ifl_status desk_flush_waiting(ifl_dispatch *d, ifl_error *err) {
    ifl_status st;
    while ((st = desk_flush(d, err)) == IFL_FULL) {
        if (d->stop && atomic_load(d->stop))
            return ifl_error_wrap(err, "asked to stop while the disk was full");
        IFL_TRY(desk_wait(d, 0.0, "room on the disk", err));
    }
    return st;
}

ifl_status ifl_dispatch_close(ifl_dispatch *d, int64_t step, ifl_group **groups, int32_t n,
                              ifl_member_outcome *const *outcomes, const bool *skipped,
                              ifl_error *err) {
    int64_t total = 0;
    for (int32_t g = 0; g < n; g++)
        total += groups[g]->n_members;
    ifl_rollout_key *trained = malloc(sizeof *trained * (size_t)(total + 1));
    ifl_group_member *members = malloc(sizeof *members * (size_t)(total + 1));
    ifl_status st =
        trained && members ? IFL_OK : ifl_fail(err, IFL_NOMEM, "learner: out of memory");
    int32_t n_trained = 0;
    pthread_mutex_lock(&d->lock);
    for (int32_t g = 0; g < n && st == IFL_OK; g++) {
        ifl_group *group = groups[g];
        int32_t n_members = 0;
        for (int32_t i = 0; i < group->n_members && st == IFL_OK; i++) {
            const ifl_member *m = &group->members[i];
            if (m->state != IFL_MEMBER_STORED) continue;
            ifl_rollout_key key = {group->task_serial, i, IFL_PURPOSE_TRAIN};
            members[n_members++] =
                (ifl_group_member){i, (uint8_t)m->traj->reward.status, m->traj->reward.reward};
            switch (outcomes[g][i].end) {
            case IFL_END_TRAINED:
                trained[n_trained++] = key;
                break;
            case IFL_END_MASKED:
                st = ifl_rollout_log_masked(d->log, key,
                                            outcomes[g][i].reason == IFL_DROP_STALE
                                                ? ifl_drop_reason_name(IFL_DROP_STALE)
                                            : !ifl_reward_is_verdict(m->traj->reward.status)
                                                ? ifl_reward_status_name(m->traj->reward.status)
                                                : "truncated",
                                            err);
                break;
            case IFL_END_DROPPED:
                st = ifl_rollout_log_dropped(d->log, key,
                                             ifl_drop_reason_name(outcomes[g][i].reason), err);
                break;
            }
        }
        if (st == IFL_OK)
            st = ifl_rollout_log_group_closed(d->log, group->task_serial, IFL_PURPOSE_TRAIN,
                                              members, n_members, err);
    }
    if (st == IFL_OK) st = ifl_rollout_log_trained(d->log, step, trained, n_trained, err);
    if (st == IFL_OK) st = desk_flush_waiting(d, err);
    for (int32_t g = 0; g < n && st == IFL_OK; g++) {
        desk_work_free(groups[g]->user);
        groups[g]->user = NULL;
        ifl_groups_close(d->train, groups[g], outcomes[g], skipped[g]);
    }
    pthread_mutex_unlock(&d->lock);
    free(trained);
    free(members);
    return st;
}

/* --- Evaluation
 * ------------------------------------------------------------------------------------- */

ifl_status ifl_dispatch_eval(ifl_dispatch *d, int32_t n_tasks, int32_t n_samples, int64_t version,
                             double idle_s, ifl_dispatch_eval_take take, void *user,
                             ifl_error *err) {
    if (!d->eval_set)
        return ifl_fail(err, IFL_USAGE, "evaluation: no eval tasks are configured (data.eval)");
    int32_t rounds = n_samples > 0 ? 2 : 1;
    pthread_mutex_lock(&d->lock);
    /* Named by the version, so that a resumed run does not give the numbers of one evaluation to
     * the answers of another: the log would hold two trajectories of one key. */
    uint64_t base = (uint64_t)version * IFL_GROUPS_MAX, serial = base;
    ifl_status st = IFL_OK;
    for (int32_t round = 0; round < rounds && st == IFL_OK; round++)
        for (int32_t i = 0; i < n_tasks && st == IFL_OK; i++)
            st = desk_open(d->eval, d->eval_set, serial++,
                           ifl_task_set_draw(d->eval_set, (uint64_t)i), round == 0 ? 1 : n_samples,
                           version, desk_sampling(d, round == 0), err);
    d->leasing = true;
    d->last_arrival_s = ifl_clock_s();
    int32_t n = rounds * n_tasks;
    ifl_group **groups = malloc(sizeof *groups * (size_t)n);
    if (!groups && st == IFL_OK) st = ifl_fail(err, IFL_NOMEM, "evaluation: out of memory");
    while (st == IFL_OK && !ifl_groups_take(d->eval, n, IFL_TAKE_SERIAL, groups))
        st = desk_wait_stoppable(d, idle_s, "evaluation answers", err);
    for (int32_t i = 0; i < n && st == IFL_OK; i++) {
        ifl_group *group = groups[i];
        int32_t at = (int32_t)(group->task_serial - base);
        const desk_work *work = group->user;
        ifl_member_outcome *outcomes = calloc((size_t)group->n_members, sizeof *outcomes);
        if (!outcomes) {
            st = ifl_fail(err, IFL_NOMEM, "evaluation: out of memory");
            break;
        }
        for (int32_t m = 0; m < group->n_members; m++)
            outcomes[m].end = IFL_END_TRAINED; /* of the eval table: used up */
        st = take(user, at % n_tasks, &work->task, at < n_tasks, group, err);
        desk_work_free(group->user);
        group->user = NULL;
        ifl_groups_close(d->eval, group, outcomes, false);
        free(outcomes);
    }
    free(groups);
    pthread_mutex_unlock(&d->lock);
    return st;
}

/* --- Books
 * ------------------------------------------------------------------------------------------ */

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int32_t desk_namesakes(const ifl_dispatch *d) {
    const char **names = malloc(sizeof *names * (size_t)(d->n_peers + 1));
    int32_t n = 0;
    if (!names) return 0;
    for (int32_t i = 0; i < d->n_peers; i++)
        names[i] = d->peers[i].name;
    qsort(names, (size_t)d->n_peers, sizeof *names, compare_names);
    for (int32_t i = 0; i < d->n_peers; i++)
        n += (i > 0 && strcmp(names[i], names[i - 1]) == 0) ||
             (i + 1 < d->n_peers && strcmp(names[i], names[i + 1]) == 0);
    free(names);
    return n;
}

void ifl_dispatch_stats_get(ifl_dispatch *d, ifl_dispatch_stats *out) {
    pthread_mutex_lock(&d->lock);
    *out = d->totals;
    out->n_actors = d->n_peers;
    out->n_namesakes = desk_namesakes(d);
    int32_t n_steps = 0;
    for (int32_t i = 0; i < d->n_peers; i++) {
        const desk_peer *p = &d->peers[i];
        out->swaps += p->swaps;
        out->sequences_swapped += p->sequences_swapped;
        out->tokens_rebuilt += p->tokens_rebuilt;
        out->preemptions += p->preemptions;
        out->rewards_cached += p->rewards_cached;
        out->actor_tokens_per_s += p->tokens_per_s;
        out->kv_pages_used += p->pages_used / d->n_peers;
        if (p->step_ms_p50 > 0.0) {
            out->decode_step_ms_p50 += p->step_ms_p50;
            n_steps++;
        }
    }
    if (n_steps > 0) out->decode_step_ms_p50 /= n_steps;
    pthread_mutex_unlock(&d->lock);
}

ifl_groups_counts ifl_dispatch_counts(ifl_dispatch *d) {
    pthread_mutex_lock(&d->lock);
    ifl_groups_counts counts = ifl_groups_counts_get(d->train);
    pthread_mutex_unlock(&d->lock);
    return counts;
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

double ifl_dispatch_stall_ms(ifl_dispatch *d, double p) {
    pthread_mutex_lock(&d->lock);
    double result = 0.0;
    if (d->n_stalls > 0) {
        qsort(d->stalls, (size_t)d->n_stalls, sizeof *d->stalls, compare_floats);
        int32_t at = (int32_t)(p * (d->n_stalls - 1) + 0.5);
        result = (double)d->stalls[at];
    }
    pthread_mutex_unlock(&d->lock);
    return result;
}

int32_t ifl_dispatch_cursor(ifl_dispatch *d, uint64_t *next_serial, uint64_t *serials,
                            ifl_task_pick *picks, int32_t max) {
    pthread_mutex_lock(&d->lock);
    *next_serial = d->next_serial;
    int32_t open = ifl_groups_n_open(d->train), n = 0;
    uint64_t *all = malloc(sizeof *all * (size_t)(open + 1));
    if (all) {
        ifl_groups_serials(d->train, all, open);
        for (int32_t i = 0; i < open; i++, n++) {
            if (n >= max) continue;
            serials[n] = all[i];
            if (picks)
                picks[n] = ((const desk_work *)ifl_groups_find(d->train, all[i])->user)->pick;
        }
    }
    free(all);
    pthread_mutex_unlock(&d->lock);
    return n;
}

ifl_status ifl_dispatch_log_checkpoint(ifl_dispatch *d, int64_t step, ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    ifl_status st = ifl_rollout_log_checkpoint(d->log, step, err);
    pthread_mutex_unlock(&d->lock);
    return st;
}

ifl_status ifl_dispatch_end(ifl_dispatch *d, int64_t step, const char *reason, ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    d->leasing = false;
    d->in_flight = 0;
    int32_t open = ifl_groups_n_open(d->train), n = 0;
    uint64_t *serials = malloc(sizeof *serials * (size_t)(open + 1));
    ifl_groups_counts counts = ifl_groups_counts_get(d->train);
    ifl_rollout_key *keys = malloc(sizeof *keys * (size_t)(ifl_groups_in_flight(&counts) + 1));
    ifl_status st = serials && keys ? IFL_OK : ifl_fail(err, IFL_NOMEM, "learner: out of memory");
    if (st == IFL_OK) {
        ifl_groups_serials(d->train, serials, open);
        for (int32_t i = 0; i < open && st == IFL_OK; i++) {
            const ifl_group *group = ifl_groups_find(d->train, serials[i]);
            if (!group->taken) st = desk_log_given_up(d, group, err);
            for (int32_t m = 0; m < group->n_members; m++)
                if (group->members[m].state != IFL_MEMBER_DROPPED)
                    keys[n++] = (ifl_rollout_key){group->task_serial, m, IFL_PURPOSE_TRAIN};
        }
        if (st == IFL_OK) st = ifl_rollout_log_run_ended(d->log, step, reason, keys, n, err);
    }
    if (st == IFL_OK) st = desk_flush_waiting(d, err);
    free(serials);
    free(keys);
    pthread_mutex_unlock(&d->lock);
    return st;
}

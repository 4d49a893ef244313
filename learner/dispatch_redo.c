/* The desk after a restart: does again what the log says (learner/redo.h). Answers come back to
 * their groups as soon as the versions that they name are published, and proven to be the same
 * weights as then; steps take the groups that they took. In pipeline mode nothing is leased for
 * training before all of that is done; in the lock-step modes a group is as soon as the log owes it
 * nothing more, since the next version waits for it. Where it cannot be done again (other weights,
 * another configuration, a log that has been damaged), a warning says why, and what is left is
 * generated again. */
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "learner/dispatch_internal.h"

static ifl_status redo_end(ifl_dispatch *d, ifl_error *err) {
    int64_t k = d->config->run.mode == IFL_MODE_SYNC ? 0 : d->config->run.async_k, lag;
    desk_pin_ahead(d, d->version > d->redo_verified ? d->version : d->redo_verified, &lag);
    if (d->directed && lag > k)
        ifl_warn(
            "of the answers that were stored before, some are trained at a lag of up to %lld "
            "versions, above the %lld of run.mode: it, or rollout.prompts_per_step, was larger "
            "when they were made",
            (long long)lag, (long long)k);
    ifl_rollout_reader_close(d->redo_reader);
    d->redo_reader = NULL;
    d->redo = NULL;
    return ifl_rollout_log_caught_up(d->log, d->redo_step, err);
}

ifl_status desk_redo_give_up(ifl_dispatch *d, const char *why, ifl_error *err) {
    int64_t left = 0;
    for (int64_t i = 0; i < d->redo->n_answers; i++)
        left += !d->redo->answers[i].done && !d->redo->answers[i].dropped;
    ifl_warn("what the run did after step %lld cannot be done again: %s; %lld stored answers are "
             "generated again",
             (long long)d->redo->step, why, (long long)left);
    uint64_t serial = 0;
    for (ifl_group *g; d->directed && (g = ifl_groups_next(d->train, serial)) != NULL;) {
        serial = g->task_serial + 1;
        desk_work *work = g->user;
        if (work->required_version > d->version) work->required_version = d->version;
    }
    return redo_end(d, err);
}

ifl_status desk_redo_begin(ifl_dispatch *d, const ifl_redo *redo, const char *rollouts,
                           ifl_error *err) {
    d->redo = redo;
    d->redo_step = redo->step;
    d->redo_verified = redo->step - 1;
    IFL_TRY(ifl_rollout_reader_open(&d->redo_reader, rollouts, err));
    if (d->directed) return IFL_OK; /* the training thread opens them, each with its version */
    /* All of these were open at one time, so there is room. */
    for (; d->next_serial < redo->next_serial; d->next_serial++)
        IFL_TRY(desk_open_train(d, d->next_serial, NULL, -1, err));
    return IFL_OK;
}

static ifl_status redo_read_answer(ifl_dispatch *d, const ifl_redo_answer *answer,
                                   ifl_record *record, ifl_trajectory **traj, ifl_error *err) {
    IFL_TRY(ifl_rollout_reader_seek(d->redo_reader, answer->segment, answer->offset, err));
    ifl_status st = ifl_rollout_reader_next(d->redo_reader, record, err);
    if (st == IFL_OK && record->type != IFL_RECORD_TRAJECTORY) st = IFL_NOTFOUND;
    if (st == IFL_OK)
        st = ifl_trajectory_decode(traj, record->meta, record->n_meta, record->payload,
                                   record->n_payload, err);
    if (st == IFL_OK &&
        ((*traj)->task_serial != answer->task_serial || (*traj)->sample != answer->sample))
        st = IFL_NOTFOUND;
    if (st == IFL_NOTFOUND)
        return ifl_fail(err, IFL_FORMAT, "rollouts/%06d.ifl: offset %lld: not trajectory %llu/%d",
                        answer->segment, (long long)answer->offset,
                        (unsigned long long)answer->task_serial, answer->sample);
    IFL_TRY(st);
    return ifl_trajectory_check(*traj, d->vocab_size, err);
}

/* Puts one answer back. A failure in *why gives the redo up; one in *err ends the run. */
static ifl_status redo_attach(ifl_dispatch *d, ifl_group *group, const ifl_redo_answer *answer,
                              ifl_error *why, ifl_error *err) {
    desk_work *work = group->user;
    ifl_record record;
    ifl_trajectory *traj = NULL;
    bool leased = work->attempt > 0;
    if (!answer->dropped && redo_read_answer(d, answer, &record, &traj, why) != IFL_OK) {
        ifl_trajectory_free(traj);
        return IFL_OK;
    }
    /* It may be of another version than what the group still lacks is asked for: of one that no
     * actor can get any more. */
    if (traj && desk_check_task(d, group, traj, why) != IFL_OK) {
        ifl_trajectory_free(traj);
        return IFL_OK;
    }
    ifl_status st = IFL_OK;
    if (!leased)
        st = ifl_rollout_log_leased(d->log, group->task_serial, IFL_PURPOSE_TRAIN, group->n_members,
                                    d->next_lease++, work->attempt++, err);
    if (answer->dropped) {
        ifl_drop_reason reason = (ifl_drop_reason)answer->drop_reason;
        bool gone = ifl_groups_drop(d->train, group->task_serial, answer->sample, reason);
        if (st == IFL_OK && gone && reason == IFL_DROP_INVALID)
            st = ifl_rollout_log_dropped(
                d->log, (ifl_rollout_key){group->task_serial, answer->sample, IFL_PURPOSE_TRAIN},
                ifl_drop_reason_name(reason), err);
        return st;
    }
    if (st == IFL_OK)
        st = ifl_rollout_log_trajectory_raw(d->log, record.meta, record.n_meta, record.payload,
                                            record.n_payload, err);
    int64_t n_policy = ifl_trajectory_n_policy(traj);
    bool foreign = !ifl_hash_equal(traj->profile, d->profile);
    if (st != IFL_OK || ifl_groups_store(d->train, traj) != IFL_STORE_STORED) {
        ifl_trajectory_free(traj);
        return st;
    }
    d->totals.trajectories_stored++;
    d->totals.foreign += foreign;
    d->totals.tokens_generated += n_policy;
    d->n_restored++;
    return IFL_OK;
}

bool desk_redo_owes(const ifl_dispatch *d, uint64_t serial) {
    if (!d->redo) return false;
    int64_t low = 0, high = d->redo->n_answers;
    while (low < high) { /* ascending by serial */
        int64_t at = low + (high - low) / 2;
        if (d->redo->answers[at].task_serial < serial)
            low = at + 1;
        else
            high = at;
    }
    for (; low < d->redo->n_answers && d->redo->answers[low].task_serial == serial; low++)
        if (!d->redo->answers[low].done) return true;
    return false;
}

/* Done when every step has its groups again and no answer is left over. */
static ifl_status redo_end_if_done(ifl_dispatch *d, ifl_error *err) {
    if (d->redo_take < d->redo->n_takes || d->redo_verified < d->redo->last_version) return IFL_OK;
    for (int64_t i = 0; i < d->redo->n_answers; i++)
        if (!d->redo->answers[i].done) return IFL_OK;
    if (d->n_restored > 0)
        ifl_info("%lld stored answers are back from the log, %lld steps after step %lld done again",
                 (long long)d->n_restored, (long long)(d->redo->last_version - d->redo->step),
                 (long long)d->redo->step);
    return redo_end(d, err);
}

ifl_status desk_redo_attach(ifl_dispatch *d, ifl_error *err) {
    if (!d->redo) return IFL_OK;
    for (int64_t i = 0; i < d->redo->n_answers; i++) {
        ifl_redo_answer *answer = &d->redo->answers[i];
        if (answer->done) continue;
        ifl_group *group = ifl_groups_find(d->train, answer->task_serial);
        if (!group) continue; /* not open yet */
        /* It had been pinned anew then (desk_repin): no actor may wait for it under the version
         * that it was opened with. */
        desk_work *work = group->user;
        if (d->directed && answer->version_newest > work->required_version)
            work->required_version = answer->version_newest;
        if (answer->version_newest > d->redo_verified) continue;
        ifl_error why = {0};
        IFL_TRY(redo_attach(d, group, answer, &why, err));
        if (why.status != IFL_OK) return desk_redo_give_up(d, why.text, err);
        answer->done = true;
    }
    pthread_cond_broadcast(&d->changed);
    return redo_end_if_done(d, err);
}

ifl_status desk_redo_published(ifl_dispatch *d, int64_t version, ifl_hash content, ifl_error *err) {
    if (!d->redo) return IFL_OK;
    const ifl_hash *then = ifl_redo_version_content(d->redo, version);
    if (then && !ifl_hash_equal(*then, content)) {
        char why[96];
        snprintf(why, sizeof why, "version %lld has other weights than then", (long long)version);
        return desk_redo_give_up(d, why, err);
    }
    d->redo_verified = version;
    return desk_redo_attach(d, err);
}

ifl_status desk_redo_take(ifl_dispatch *d, int64_t step, int32_t n, ifl_group **out, bool *taken,
                          bool *wait, ifl_error *err) {
    *taken = *wait = false;
    if (!d->redo) return IFL_OK;
    if (d->redo_verified < step - 1) { /* its publication is under way */
        *wait = true;
        return IFL_OK;
    }
    if (d->redo_take == d->redo->n_takes) {
        IFL_TRY(redo_end_if_done(d, err));
        return d->redo ? desk_redo_give_up(d, "some of them belong to no group any more", err)
                       : IFL_OK;
    }
    const ifl_redo_take *take = &d->redo->takes[d->redo_take];
    if (take->step != step || take->n != n)
        return desk_redo_give_up(d, "its steps took other numbers of groups", err);
    for (int32_t i = 0; i < n; i++) {
        out[i] = ifl_groups_find(d->train, take->serials[i]);
        bool whole = out[i] && !out[i]->taken && out[i]->n_pending + out[i]->n_leased == 0;
        if (!whole && out[i] && !out[i]->taken && d->directed) {
            desk_work *work = out[i]->user;
            if (work->required_version > d->version) work->required_version = d->version;
            *wait = true; /* for what has been leased meanwhile */
            return IFL_OK;
        }
        if (!whole) return desk_redo_give_up(d, "the log lacks some of a step's answers", err);
    }
    ifl_groups_take_these(out, n);
    d->redo_take++;
    *taken = true;
    return redo_end_if_done(d, err);
}

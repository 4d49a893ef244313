#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/recorder.h"
#include "learner/dispatch_internal.h"

#define POLL_MS 20
#define LATE_INTERVAL_S 5.0
#define FULL_RETRY_MS 100
#define BEGUN_REST_BYTES 16384     /* of one beginning beside its tokens, at most */
#define LEASE_BYTES (4 << 20)      /* of one lease, at most */
#define BEGUN_BYTES_MAX (48 << 20) /* of one lease; below what a link holds at a time */
#define REFUSED_MAX 3              /* answers of one session that break the rules, until it ends */

/* --- Groups
 * ----------------------------------------------------------------------------------------- */

void desk_work_free(desk_work *work) {
    if (!work) return;
    ifl_task_clear(&work->task);
    free(work);
}

ifl_status desk_open(ifl_groups *groups, ifl_task_set *set, uint64_t serial, ifl_task_pick pick,
                     int32_t n_members, int64_t version, ifl_sampling sampling, ifl_error *err) {
    desk_work *work = calloc(1, sizeof *work);
    if (!work) return ifl_fail(err, IFL_NOMEM, "learner: out of memory for a task");
    work->pick = pick;
    work->required_version = version;
    work->version_leased = -1;
    work->sampling = sampling;
    ifl_status st = ifl_task_set_get_picked(set, pick, &work->task, err);
    if (st == IFL_OK) st = ifl_groups_open(groups, serial, work->task.id, n_members, work, err);
    if (st != IFL_OK) desk_work_free(work);
    return st;
}

ifl_sampling desk_sampling(const ifl_dispatch *d, bool greedy) {
    const ifl_config *c = d->config;
    if (greedy) return (ifl_sampling){.temperature = 0.0f, .top_k = 0, .top_p = 1.0f};
    return (ifl_sampling){.temperature = (float)c->rollout.temperature,
                          .top_k = c->rollout.top_k,
                          .top_p = (float)c->rollout.top_p};
}

ifl_status desk_open_train(ifl_dispatch *d, uint64_t serial, const ifl_task_pick *pick,
                           int64_t version, ifl_error *err) {
    bool adaptive = ifl_task_set_is_adaptive(d->train_set);
    int32_t n_members = d->config->rollout.group_size;
    ifl_sampling sampling = desk_sampling(d, d->config->rollout.temperature <= 0.0);
    ifl_error gone = {0};
    ifl_status st = IFL_NOTFOUND;
    if (!pick && adaptive && d->redo) pick = ifl_redo_pick(d->redo, serial);
    if (pick)
        st = desk_open(d->train, d->train_set, serial, *pick, n_members, version, sampling, &gone);
    if (pick && st == IFL_NOTFOUND)
        ifl_warn("task serial %llu is another task than it was: %s", (unsigned long long)serial,
                 gone.text);
    if (st != IFL_OK && st != IFL_NOTFOUND) {
        if (err) *err = gone;
        return st;
    }
    ifl_task_pick drawn = pick ? *pick : (ifl_task_pick){0, 0};
    if (st == IFL_NOTFOUND) {
        drawn = ifl_task_set_draw(d->train_set, serial);
        IFL_TRY(
            desk_open(d->train, d->train_set, serial, drawn, n_members, version, sampling, err));
    }
    return adaptive ? ifl_rollout_log_drawn(d->log, serial, drawn.source, drawn.item, err) : IFL_OK;
}

/* The next group that no step has taken, with the lowest serial from *serial on; *serial moves on.
 */
static ifl_group *desk_next_waiting(ifl_dispatch *d, uint64_t *serial) {
    ifl_group *group;
    while ((group = ifl_groups_next(d->train, *serial)) != NULL) {
        *serial = group->task_serial + 1;
        if (!group->taken) return group;
    }
    return NULL;
}

static int64_t group_oldest_stored(const ifl_group *group) {
    int64_t oldest = INT64_MAX;
    for (int32_t i = 0; i < group->n_members; i++) {
        const ifl_member *m = &group->members[i];
        if (m->state != IFL_MEMBER_STORED) continue;
        int64_t version = ifl_trajectory_version_oldest(m->traj);
        if (version < oldest) oldest = version;
    }
    return oldest;
}

int32_t desk_pin_ahead(ifl_dispatch *d, int64_t version, int64_t *lag) {
    const ifl_config *c = d->config;
    int64_t n = c->rollout.prompts_per_step, place = 0;
    int64_t k = c->run.mode == IFL_MODE_SYNC ? 0 : c->run.async_k;
    int32_t over = 0;
    uint64_t serial = 0;
    if (lag) *lag = 0;
    if (!d->directed) return 0;
    for (ifl_group *g; (g = desk_next_waiting(d, &serial)) != NULL; place++) {
        desk_work *work = g->user;
        int64_t newest = version + place / n; /* when the step begins that takes it */
        int64_t oldest = group_oldest_stored(g);
        if (lag && oldest <= newest && newest - oldest > *lag) *lag = newest - oldest;
        if (newest - k <= version) continue;
        over++;
        /* Not what an actor is about to answer: it would contradict its lease. */
        if (newest - k <= work->required_version || g->n_leased > 0) continue;
        work->required_version = newest - k;
        ifl_groups_forget_begun(g);
    }
    return over;
}

void desk_pin_now(ifl_dispatch *d, int32_t n) {
    uint64_t serial = 0;
    for (ifl_group *g; d->directed && n > 0 && (g = desk_next_waiting(d, &serial)) != NULL; n--) {
        desk_work *work = g->user;
        if (work->required_version > d->version) work->required_version = d->version;
    }
}

int32_t desk_not_taken(ifl_dispatch *d) {
    /* Taken groups are being trained; they no longer wait for anything here. */
    int32_t n = 0, open = ifl_groups_n_open(d->train);
    uint64_t *serials = malloc(sizeof *serials * (size_t)(open + 1));
    if (!serials) return open;
    ifl_groups_serials(d->train, serials, open);
    for (int32_t i = 0; i < open; i++)
        n += !ifl_groups_find(d->train, serials[i])->taken;
    free(serials);
    return n;
}

/* --- Ages
 * ------------------------------------------------------------------------------------------- */

/* Some of it is leased or here, or an actor has handed back the beginning of some. */
static bool desk_is_begun(const ifl_group *group) {
    if (group->n_pending < group->n_members) return true;
    for (int32_t i = 0; i < group->n_members; i++)
        if (group->members[i].begun) return true;
    return false;
}

static int64_t desk_oldest(const ifl_dispatch *d, const ifl_group *group) {
    const desk_work *work = group->user;
    int64_t oldest = INT64_MAX;
    if (group->n_leased > 0) oldest = work->version_leased;
    for (int32_t i = 0; i < group->n_members; i++) {
        const ifl_member *m = &group->members[i];
        const ifl_trajectory *traj = m->state == IFL_MEMBER_STORED ? m->traj : m->begun;
        int64_t version = traj ? ifl_trajectory_version_oldest(traj) : -1;
        if (version >= 0 && version < oldest) oldest = version;
    }
    return oldest == INT64_MAX ? d->version : oldest;
}

int32_t desk_ages(ifl_dispatch *d, ifl_stale_group *ages, ifl_group **groups) {
    uint64_t serial = 0;
    int32_t n = 0;
    for (ifl_group *g; (g = ifl_groups_next(d->train, serial)) != NULL;) {
        serial = g->task_serial + 1;
        if (g->taken || !desk_is_begun(g)) continue;
        groups[n] = g;
        ages[n++] = (ifl_stale_group){desk_oldest(d, g), g->completed};
    }
    return n;
}

/* staleness.policy = wait: the oldest version under which the group may be begun now; INT64_MIN =
 * any, INT64_MAX = none. */
static int64_t desk_admits_from(ifl_dispatch *d, const ifl_group *group) {
    const ifl_config *c = d->config;
    int32_t max = c->staleness.max_versions;
    if (max == 0 || strcmp(c->staleness.policy, "wait") != 0) return INT64_MIN;
    if (desk_is_begun(group)) return INT64_MIN; /* others wait for it */
    int32_t open = ifl_groups_n_open(d->train), left = c->rollout.prompts_per_step;
    ifl_stale_group *ages = malloc(sizeof *ages * (size_t)(open + 1));
    ifl_group **groups = malloc(sizeof *groups * (size_t)(open + 1));
    int64_t from = INT64_MAX;
    if (ages && groups) {
        int32_t n = desk_ages(d, ages, groups);
        uint64_t serial = 0;
        for (const ifl_group *g; (g = ifl_groups_next(d->train, serial)) != NULL;) {
            serial = g->task_serial + 1;
            left -= g->taken;
        }
        /* A newer version has a later deadline, so that once one is refused all older ones are. */
        for (int64_t version = d->version;
             version >= d->version - max &&
             ifl_staleness_admits(ages, n, d->version + 1, left > 0 ? left : 0,
                                  c->rollout.prompts_per_step, max, version);
             version--)
            from = version;
    }
    free(ages);
    free(groups);
    return from;
}

/* --- Leasing
 * ---------------------------------------------------------------------------------------- */

static desk_peer *desk_find_peer(ifl_dispatch *d, uint64_t peer) {
    for (int32_t i = 0; i < d->n_peers; i++)
        if (d->peers[i].peer == peer) return &d->peers[i];
    return NULL;
}

/* What a peer samples with, or something newer. */
static int64_t desk_in_use(const ifl_dispatch *d, const desk_peer *p) {
    return p->version_done >= 0 ? p->version_done : d->first_version;
}

/* The one with most room; of several the one that has waited longest, or where work is short the
 * last one would never get any. `version`: that it must have in use, -1 = any; version_min: or at
 * least that. */
static desk_peer *desk_freest_peer(ifl_dispatch *d, int32_t need, int64_t version,
                                   int64_t version_min) {
    desk_peer *best = NULL;
    for (int32_t i = 0; i < d->n_peers; i++) {
        desk_peer *p = &d->peers[i];
        if (p->full_at == d->turn) continue;
        if (p->capacity <= 0 || (version >= 0 && p->version_done != version) ||
            desk_in_use(d, p) < version_min)
            continue;
        if (p->outstanding > 0 && p->outstanding + need > p->capacity) continue;
        int32_t more =
            best ? (p->capacity - p->outstanding) - (best->capacity - best->outstanding) : 1;
        if (more > 0 || (more == 0 && p->last_lease < best->last_lease)) best = p;
    }
    return best;
}

/* Groups that may be begun beside those that are. A bound only after a resume that could not do
 * everything again: then more are open than learner.groups_in_flight, and begun all at once they
 * would be old before they are trained. */
static int32_t desk_room(ifl_dispatch *d) {
    if (d->in_flight <= 0 || ifl_groups_n_open(d->train) <= d->in_flight) return INT32_MAX;
    int32_t n = 0;
    uint64_t serial = 0;
    for (const ifl_group *g; (g = ifl_groups_next(d->train, serial)) != NULL;) {
        serial = g->task_serial + 1;
        n += !g->taken && desk_is_begun(g);
    }
    return d->in_flight - n;
}

/* The first version that it has tokens of and that its lease does not ask for; -1 = none. */
static int64_t desk_other_version(const desk_work *work, const ifl_trajectory *traj) {
    for (int32_t i = 0; i < traj->n_runs && work->required_version >= 0; i++)
        if (traj->runs[i].version != work->required_version) return traj->runs[i].version;
    return -1;
}

/* What another actor has begun of a lease goes ahead of it: all of it or, where the link has no
 * room for it and the lease, nothing yet. */
static ifl_status desk_send_begun(ifl_dispatch *d, const desk_peer *peer, ifl_group *group,
                                  int32_t n, ifl_error *err) {
    int64_t bytes = 0;
    if (peer->minor < 3) return IFL_OK; /* it begins anew */
    for (int32_t i = 0; i < n; i++) {
        ifl_member *m = &group->members[d->samples[i]];
        if (!m->begun) continue;
        /* ids, log-probs, loss weights and kept sets; runs and events are few */
        int64_t more =
            BEGUN_REST_BYTES + (int64_t)m->begun->n_tokens * 20 + (int64_t)m->begun->n_kept_ids * 4;
        if (desk_other_version(group->user, m->begun) < 0 && bytes + more <= BEGUN_BYTES_MAX) {
            bytes += more;
        } else {
            ifl_trajectory_free(m->begun); /* it begins anew */
            m->begun = NULL;
        }
    }
    if (bytes > 0 && bytes + LEASE_BYTES > ifl_server_room(d->server, peer->peer))
        return ifl_fail(err, IFL_FULL, "no room for %lld bytes of beginnings", (long long)bytes);
    for (int32_t i = 0; i < n; i++) {
        const ifl_member *m = &group->members[d->samples[i]];
        if (!m->begun) continue;
        ifl_message message = ifl_message_make(IFL_WIRE_TRAJ);
        message.traj.trajectory = m->begun;
        IFL_TRY(ifl_server_send(d->server, peer->peer, &message, err));
    }
    return IFL_OK;
}

/* Leases pending work of one table until there is none or no actor has room for it. */
static ifl_status desk_lease_table(ifl_dispatch *d, ifl_groups *groups, uint8_t purpose,
                                   int32_t need, ifl_error *err) {
    const ifl_config *c = d->config;
    uint64_t from_serial = 0;
    int32_t room = purpose == IFL_PURPOSE_TRAIN ? desk_room(d) : INT32_MAX;
    for (;;) {
        ifl_group *group = ifl_groups_pending(groups, from_serial);
        if (!group) return IFL_OK;
        if (purpose == IFL_PURPOSE_TRAIN &&
            (desk_redo_owes(d, group->task_serial) || (room <= 0 && !desk_is_begun(group)))) {
            from_serial = group->task_serial + 1;
            continue;
        }
        desk_work *work = group->user;
        int64_t least = purpose == IFL_PURPOSE_TRAIN ? desk_admits_from(d, group) : INT64_MIN;
        desk_peer *peer =
            desk_freest_peer(d, need, d->directed ? work->required_version : -1, least);
        if (!peer && !d->directed && least == INT64_MIN) return IFL_OK;
        if (!peer) { /* others may want a version that somebody has */
            from_serial = group->task_serial + 1;
            continue;
        }
        int64_t in_use = desk_in_use(d, peer);
        bool begins = !desk_is_begun(group);
        int32_t n;
        uint64_t lease_id = d->next_lease++;
        ifl_groups_assign_group(groups, group, peer->peer, lease_id, d->samples, &n);
        ifl_message message = ifl_message_make(IFL_WIRE_LEASE);
        ifl_wire_lease *lease = &message.lease;
        lease->lease_id = lease_id;
        lease->attempt = work->attempt;
        lease->purpose = purpose;
        lease->task_serial = group->task_serial;
        snprintf(lease->task_id, sizeof lease->task_id, "%s", group->task_id);
        lease->group_size = group->n_members;
        lease->n_samples = n;
        lease->samples = d->samples;
        lease->n_prompt = work->task.n_prompt;
        lease->prompt = work->task.prompt;
        ifl_config_checker(c, work->task.checker, work->task.data_source, lease->checker);
        lease->answer = work->task.answer;
        lease->meta = work->task.meta;
        lease->text = work->task.text;
        lease->temperature = work->sampling.temperature;
        lease->top_k = work->sampling.top_k;
        lease->top_p = work->sampling.top_p;
        lease->max_new_tokens =
            work->task.max_new_tokens > 0 ? work->task.max_new_tokens : c->rollout.max_new_tokens;
        lease->n_stops = c->rollout.n_stops;
        for (int32_t i = 0; i < c->rollout.n_stops; i++)
            snprintf(lease->stops[i], sizeof lease->stops[i], "%s", c->rollout.stops[i]);
        lease->seed = (uint64_t)c->run.seed;
        lease->required_version = work->required_version;
        ifl_error send_error = {0};
        ifl_status st = desk_send_begun(d, peer, group, n, &send_error);
        if (st == IFL_OK) st = ifl_server_send(d->server, peer->peer, &message, &send_error);
        if (st == IFL_PEER || st == IFL_FULL) {
            /* Its LOST event is on the way, or its queue will empty: the work goes back, for
             * others in this turn. Not as a failed attempt, or a link that is full for a moment
             * would use all of them up. */
            ifl_groups_unassign(groups, lease_id);
            peer->full_at = d->turn;
            continue;
        }
        if (st != IFL_OK) {
            *err = send_error;
            return st;
        }
        IFL_TRY(ifl_rollout_log_leased(d->log, group->task_serial, purpose, group->n_members,
                                       lease_id, work->attempt, err));
        for (int32_t i = 0; i < n; i++)
            ifl_record_event("leased", purpose, group->task_serial, d->samples[i], lease_id, 0);
        work->attempt++;
        room -= begins;
        peer->outstanding += n;
        peer->last_lease = lease_id;
        /* It samples with what it has in use now, or with something newer. */
        if (work->version_leased < 0 || in_use < work->version_leased)
            work->version_leased = in_use;
    }
}

/* Work of one table that is not here yet, with the lowest serial from *serial on; *serial moves on.
 */
static const ifl_group *desk_next_unfinished(ifl_groups *groups, uint64_t *serial) {
    const ifl_group *group;
    while ((group = ifl_groups_next(groups, *serial)) != NULL) {
        *serial = group->task_serial + 1;
        if (group->n_pending + group->n_leased > 0) return group;
    }
    return NULL;
}

/* The oldest version that unfinished work of a table is pinned to; INT64_MAX when there is none. */
static int64_t desk_oldest_pinned(ifl_groups *groups) {
    int64_t oldest = INT64_MAX;
    uint64_t serial = 0;
    for (const ifl_group *group; (group = desk_next_unfinished(groups, &serial)) != NULL;) {
        const desk_work *work = group->user;
        if (work->required_version >= 0 && work->required_version < oldest)
            oldest = work->required_version;
    }
    return oldest;
}

/* Whether a peer that has not said what it has in use may do so yet: an actor that comes back says
 * it at once, one that has said nothing for lease_s and takes no work never had anything. */
static bool desk_may_say(const ifl_dispatch *d, int32_t i) {
    const desk_peer *p = &d->peers[i];
    return p->version_done < 0 &&
           (p->capacity > 0 || ifl_clock_s() - p->joined_s < d->config->transport.lease_s);
}

/* Work for a version that no actor has any more, and none can get (only the newest is served): its
 * actors were lost. Better the newest version, visible as lag, than a group that never ends. */
static void desk_repin(ifl_dispatch *d, ifl_groups *groups) {
    uint64_t serial = 0;
    for (ifl_group *group; (group = ifl_groups_pending(groups, serial)) != NULL;) {
        serial = group->task_serial + 1;
        desk_work *work = group->user;
        bool possible = work->required_version < 0 || work->required_version >= d->version;
        for (int32_t i = 0; i < d->n_peers && !possible; i++)
            possible = !d->peers[i].too_small &&
                       (d->peers[i].version_done == work->required_version || desk_may_say(d, i));
        if (possible) continue;
        ifl_warn("no actor has version %lld any more: %d answers of task serial %llu are made "
                 "under version %lld",
                 (long long)work->required_version, group->n_pending,
                 (unsigned long long)group->task_serial, (long long)d->version);
        work->required_version = d->version;
        ifl_groups_forget_begun(group); /* of the version that is gone */
    }
}

/* Lock-step modes: sends the actors on to the newest version once all work of older ones is here.
 * Not earlier, even those that have nothing to do: if an actor is lost, another one must be able to
 * do its work under the same version. */
void desk_direct(ifl_dispatch *d) {
    bool any = false;
    for (int32_t i = 0; i < d->n_peers; i++)
        any |= d->peers[i].version_told < d->version;
    if (!d->directed || !any) return;
    desk_repin(d, d->train);
    desk_repin(d, d->eval);
    if (desk_oldest_pinned(d->train) < d->version || desk_oldest_pinned(d->eval) < d->version)
        return;
    for (int32_t i = 0; i < d->n_peers; i++) {
        desk_peer *p = &d->peers[i];
        if (p->version_told >= d->version) continue;
        ifl_message message = ifl_message_make(IFL_WIRE_WSET);
        message.policy = message.wset.version = d->version;
        /* A queue that is full for a moment: tried again at the next turn. */
        if (ifl_server_send(d->server, p->peer, &message, NULL) == IFL_OK)
            p->version_told = d->version;
    }
}

static ifl_status desk_lease(ifl_dispatch *d, ifl_error *err) {
    if (!d->leasing) return IFL_OK;
    d->turn++;
    if (d->in_flight > 0 && !d->redo) {
        /* With a bound on age: what is under way in all fits into as many steps (the capacity rule
         * of AReaL, arXiv 2505.24298). */
        int64_t most =
            (int64_t)(d->config->staleness.max_versions + 1) * d->config->rollout.prompts_per_step;
        int32_t open = desk_not_taken(d), taken = ifl_groups_n_open(d->train) - open;
        /* With dynamic sampling a step takes more than it trains on. */
        if (taken > d->config->rollout.prompts_per_step)
            taken = d->config->rollout.prompts_per_step;
        for (;
             open < d->in_flight && (d->config->staleness.max_versions == 0 || open + taken < most);
             open++)
            IFL_TRY(desk_open_train(d, d->next_serial++, NULL, -1, err));
    }
    /* async:k: an actor that swaps for an evaluation could not do the older batches any more, and
     * their lag would not be k. */
    if (ifl_groups_counts_get(d->eval).pending > 0 && desk_oldest_pinned(d->train) >= d->version)
        IFL_TRY(desk_lease_table(d, d->eval, IFL_PURPOSE_EVAL, 1, err));
    if (d->redo && !d->directed) return IFL_OK; /* what is missing may come back yet */
    return desk_lease_table(d, d->train, IFL_PURPOSE_TRAIN, d->config->rollout.group_size, err);
}

/* --- Events
 * ----------------------------------------------------------------------------------------- */

static void desk_peer_gone(ifl_dispatch *d, uint64_t id, const char *why) {
    desk_peer *p = desk_find_peer(d, id);
    int32_t requeued = ifl_groups_lose_actor(d->train, id) + ifl_groups_lose_actor(d->eval, id);
    if (!p) return;
    if (d->leasing)
        ifl_warn("%s is gone (%s); %d of its trajectories are leased again", p->name, why,
                 requeued + p->n_handed_back);
    if (p->n_begun > 0)
        ifl_info("%s had begun %d of them: others go on from its %lld tokens", p->name, p->n_begun,
                 (long long)p->tokens_begun);
    d->totals.swaps += p->swaps;
    d->totals.sequences_swapped += p->sequences_swapped;
    d->totals.tokens_rebuilt += p->tokens_rebuilt;
    d->totals.preemptions += p->preemptions;
    d->totals.rewards_cached += p->rewards_cached;
    *p = d->peers[--d->n_peers];
    pthread_cond_broadcast(&d->changed);
}

static void desk_stats(desk_peer *p, const ifl_wire_stats *stats) {
    for (int32_t i = 0; i < stats->n; i++) {
        const char *name = stats->entries[i].name;
        double value = stats->entries[i].value;
        if (strcmp(name, "tokens_per_s") == 0) p->tokens_per_s = value;
        if (strcmp(name, "step_ms_p50") == 0) p->step_ms_p50 = value;
        if (strcmp(name, "pages_used") == 0) p->pages_used = value;
        if (strcmp(name, "swaps") == 0) p->swaps = (int64_t)value;
        if (strcmp(name, "sequences_swapped") == 0) p->sequences_swapped = (int64_t)value;
        if (strcmp(name, "tokens_rebuilt") == 0) p->tokens_rebuilt = (int64_t)value;
        if (strcmp(name, "preemptions") == 0) p->preemptions = (int64_t)value;
        if (strcmp(name, "rewards_cached") == 0) p->rewards_cached = (int64_t)value;
    }
}

/* Of this process's history are only the versions that it has made itself. */
static ifl_status desk_check_version(const ifl_dispatch *d, const ifl_trajectory *traj,
                                     int64_t version, ifl_error *err) {
    if (version >= d->first_version && version <= d->version) return IFL_OK;
    return ifl_fail(err, IFL_STALE,
                    "trajectory %llu/%d names version %lld, this learner has made %lld to %lld",
                    (unsigned long long)traj->task_serial, traj->sample, (long long)version,
                    (long long)d->first_version, (long long)d->version);
}

static bool desk_gave_lease(const ifl_dispatch *d, uint64_t lease_id) {
    return lease_id >= d->first_lease && lease_id < d->next_lease;
}

/* Given to this very session: earlier ones' leases have been taken back. */
static bool desk_is_lease_of(const ifl_dispatch *d, const desk_peer *peer, uint64_t lease_id) {
    return desk_gave_lease(d, lease_id) && lease_id >= peer->first_lease;
}

static bool same_bits(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

/* What decides the bits of its log-probs beside the weights: the arithmetic, and the distribution
 * that its lease asked for. The learner scores with the trajectory's own temperature. */
static ifl_status desk_check_numerics(const ifl_dispatch *d, const desk_work *work,
                                      const ifl_trajectory *traj, ifl_error *err) {
    if (!d->admit_foreign && !ifl_hash_equal(traj->profile, d->profile)) {
        char theirs[33], ours[33];
        ifl_hash_text(traj->profile, theirs);
        ifl_hash_text(d->profile, ours);
        return ifl_fail(
            err, IFL_MISMATCH,
            "trajectory %llu/%d was computed under numerics profile %s, the learner has "
            "%s (parity.mismatch=admit would take it)",
            (unsigned long long)traj->task_serial, traj->sample, theirs, ours);
    }
    const ifl_sampling *asked = &work->sampling;
    if (same_bits(traj->temperature, asked->temperature) && traj->top_k == asked->top_k &&
        same_bits(traj->top_p, asked->top_p))
        return IFL_OK;
    return ifl_fail(err, IFL_MISMATCH,
                    "trajectory %llu/%d was sampled at temperature %.9g, top_k %d, top_p %.9g; its "
                    "lease says temperature %.9g, top_k %d, top_p %.9g",
                    (unsigned long long)traj->task_serial, traj->sample, (double)traj->temperature,
                    traj->top_k, (double)traj->top_p, (double)asked->temperature, asked->top_k,
                    (double)asked->top_p);
}

ifl_status desk_check_task(const ifl_dispatch *d, const ifl_group *group,
                           const ifl_trajectory *traj, ifl_error *err) {
    const desk_work *work = group->user;
    int32_t n_prompt = ifl_trajectory_n_prompt(traj);
    if (n_prompt != work->task.n_prompt ||
        memcmp(traj->tokens, work->task.prompt, (size_t)n_prompt * sizeof *traj->tokens) != 0)
        return ifl_fail(err, IFL_MISMATCH, "trajectory %llu/%d has another prompt than its task",
                        (unsigned long long)traj->task_serial, traj->sample);
    if (traj->group_size != group->n_members)
        return ifl_fail(err, IFL_MISMATCH, "trajectory %llu/%d is of a group of %d, leased were %d",
                        (unsigned long long)traj->task_serial, traj->sample, traj->group_size,
                        group->n_members);
    if (traj->seed != (uint64_t)d->config->run.seed)
        return ifl_fail(err, IFL_MISMATCH,
                        "trajectory %llu/%d was sampled with seed %llu, the run has %lld",
                        (unsigned long long)traj->task_serial, traj->sample,
                        (unsigned long long)traj->seed, (long long)d->config->run.seed);
    return desk_check_numerics(d, work, traj, err);
}

static ifl_status desk_check(const ifl_dispatch *d, const ifl_group *group,
                             const ifl_trajectory *traj, ifl_error *err) {
    if (!desk_gave_lease(d, traj->lease_id))
        return ifl_fail(err, IFL_STALE,
                        "trajectory %llu/%d answers a lease of an earlier learner process",
                        (unsigned long long)traj->task_serial, traj->sample);
    if (!group) return IFL_OK; /* closed long ago, or never leased: the table says so */
    IFL_TRY(desk_check_task(d, group, traj, err));
    const desk_work *work = group->user;
    int64_t other = desk_other_version(work, traj);
    if (other >= 0)
        return ifl_fail(err, IFL_MISMATCH,
                        "trajectory %llu/%d has tokens of version %lld, required are those of %lld",
                        (unsigned long long)traj->task_serial, traj->sample, (long long)other,
                        (long long)work->required_version);
    for (int32_t i = 0; i < traj->n_kv_events; i++)
        IFL_TRY(desk_check_version(d, traj, traj->kv_events[i].version, err));
    for (int32_t i = 0; i < traj->n_runs; i++)
        IFL_TRY(desk_check_version(d, traj, traj->runs[i].version, err));
    return IFL_OK;
}

/* An answer to a lease that was withdrawn: nobody's fault, and after a restart there may be many.
 * They are counted, and told about in one line per interval. */
static void desk_note_late(ifl_dispatch *d, const char *why) {
    d->totals.late++;
    if (d->n_late++ == 0) d->late_since_s = ifl_clock_s();
    ifl_debug("late: %s", why);
}

static void desk_report_late(ifl_dispatch *d) {
    if (d->n_late == 0 || ifl_clock_s() - d->late_since_s < LATE_INTERVAL_S) return;
    ifl_warn("%lld answers came late: their leases had been withdrawn", (long long)d->n_late);
    d->n_late = 0;
}

/* How far an actor has come that hands its work back: kept in memory, since whoever loses it can
 * generate it again. */
static void desk_begun(ifl_dispatch *d, uint64_t from, ifl_message *message) {
    ifl_trajectory *traj = message->traj.trajectory;
    ifl_trajectory_key key = ifl_trajectory_key_of(traj);
    uint64_t lease_id = traj->lease_id;
    int32_t n_policy = ifl_trajectory_n_policy(traj);
    ifl_groups *groups = traj->purpose == IFL_PURPOSE_TRAIN ? d->train : d->eval;
    ifl_group *group = ifl_groups_find(groups, traj->task_serial);
    ifl_error refused = {0};
    ifl_status st = desk_check(d, group, traj, &refused);
    ifl_message answer;
    if (st == IFL_OK && group && ifl_groups_keep_begun(groups, from, traj)) {
        message->traj.trajectory = NULL; /* the table owns it now */
        desk_peer *peer = desk_find_peer(d, from);
        if (peer) {
            peer->n_begun++;
            peer->tokens_begun += n_policy;
        }
        answer = ifl_message_make(IFL_WIRE_TRAJ_ACK);
        answer.traj_ack = (ifl_wire_traj_ack){key, lease_id, IFL_ACK_BEGUN};
    } else {
        answer = ifl_message_make(IFL_WIRE_NACK);
        answer.nack = (ifl_wire_nack){.key = key, .lease_id = lease_id, .code = IFL_NACK_STALE};
        snprintf(answer.nack.text, sizeof answer.nack.text, "%.500s",
                 st != IFL_OK ? refused.text : "its lease is not this actor's any more");
        desk_note_late(d, answer.nack.text);
    }
    d->answers[d->n_answers++] = (desk_answer){from, answer};
}

static ifl_status desk_trajectory(ifl_dispatch *d, uint64_t from, ifl_message *message,
                                  ifl_error *err) {
    if (message->traj.trajectory->finish == IFL_FINISH_ABORTED) {
        desk_begun(d, from, message);
        return IFL_OK;
    }
    ifl_trajectory *traj = message->traj.trajectory;
    ifl_trajectory_key key = ifl_trajectory_key_of(traj);
    uint64_t lease_id = traj->lease_id;
    ifl_groups *groups = traj->purpose == IFL_PURPOSE_TRAIN ? d->train : d->eval;
    desk_peer *peer = desk_find_peer(d, from);
    if (peer && peer->outstanding > 0 && desk_is_lease_of(d, peer, lease_id)) peer->outstanding--;
    d->last_arrival_s = ifl_clock_s();

    ifl_group *group = ifl_groups_find(groups, traj->task_serial);
    ifl_error refused = {0};
    ifl_status valid = desk_check(d, group, traj, &refused);
    ifl_message answer;
    if (valid != IFL_OK) {
        d->totals.rejected++;
        /* Only who has the lease can give the member up: a late answer to an earlier lease, or one
         * to another's, must not. */
        const ifl_member *m =
            group && traj->sample < group->n_members ? &group->members[traj->sample] : NULL;
        bool lessee =
            m && m->state == IFL_MEMBER_LEASED && m->actor == from && m->lease_id == lease_id;
        bool invalid = valid != IFL_STALE;
        if (lessee)
            ifl_warn("refused: %s", refused.text);
        else
            desk_note_late(d, refused.text);
        /* It had the lease, and the versions and the prompt with it: no honest actor says this. The
         * transport counts those that it refuses by itself. */
        if (lessee && peer && ++peer->n_refused >= REFUSED_MAX) d->quarantine = from;
        /* A stale one is generated again, under this run's versions. */
        if (!invalid && lessee) ifl_groups_return_lease(groups, m->lease_id);
        if (invalid && lessee &&
            ifl_groups_drop(groups, traj->task_serial, traj->sample, IFL_DROP_INVALID) &&
            traj->purpose == IFL_PURPOSE_TRAIN)
            IFL_TRY(ifl_rollout_log_dropped(
                d->log, (ifl_rollout_key){key.task_serial, key.sample, key.purpose},
                ifl_drop_reason_name(IFL_DROP_INVALID), err));
        answer = ifl_message_make(IFL_WIRE_NACK);
        answer.nack = (ifl_wire_nack){
            .key = key, .lease_id = lease_id, .code = invalid ? IFL_NACK_INVALID : IFL_NACK_STALE};
        snprintf(answer.nack.text, sizeof answer.nack.text, "%.500s", refused.text);
    } else {
        if (traj->purpose == IFL_PURPOSE_TRAIN && !ifl_reward_is_verdict(traj->reward.status) &&
            strcmp(d->config->reward.on_error, "fail") == 0)
            return ifl_fail(err, IFL_PEER,
                            "checker %s could not judge %s (%s: %s) and reward.on_error is fail",
                            traj->reward.checker, traj->task_id,
                            ifl_reward_status_name(traj->reward.status), traj->reward.reason);
        int64_t n_policy = ifl_trajectory_n_policy(traj);
        uint8_t purpose = traj->purpose;
        bool foreign = !ifl_hash_equal(traj->profile, d->profile);
        /* A duplicate is not written twice. */
        bool open = group && traj->sample < group->n_members &&
                    (group->members[traj->sample].state == IFL_MEMBER_PENDING ||
                     group->members[traj->sample].state == IFL_MEMBER_LEASED);
        if (open) {
            IFL_TRY(ifl_error_share_add(&d->errors, &traj->reward, traj->task_id, err));
            IFL_TRY(ifl_rollout_log_trajectory(d->log, traj, err));
            d->unflushed = true;
        }
        ifl_store_result result = ifl_groups_store(groups, traj);
        if (result == IFL_STORE_UNKNOWN) {
            answer = ifl_message_make(IFL_WIRE_NACK);
            answer.nack =
                (ifl_wire_nack){.key = key, .lease_id = lease_id, .code = IFL_NACK_UNKNOWN};
            snprintf(answer.nack.text, sizeof answer.nack.text, "no open group of that serial");
            desk_note_late(d, answer.nack.text);
        } else {
            answer = ifl_message_make(IFL_WIRE_TRAJ_ACK);
            answer.traj_ack = (ifl_wire_traj_ack){
                key, lease_id, result == IFL_STORE_STORED ? IFL_ACK_STORED : IFL_ACK_DUPLICATE};
        }
        if (result == IFL_STORE_STORED) {
            message->traj.trajectory = NULL; /* the table owns it now */
            d->totals.trajectories_stored++;
            d->totals.foreign += foreign;
            if (purpose == IFL_PURPOSE_TRAIN)
                d->totals.tokens_generated += n_policy;
            else
                d->totals.tokens_eval += n_policy;
        }
    }
    pthread_cond_broadcast(&d->changed);
    d->answers[d->n_answers++] = (desk_answer){from, answer};
    return IFL_OK;
}

ifl_status desk_flush(ifl_dispatch *d, ifl_error *err) {
    ifl_status st = ifl_rollout_log_flush(d->log, err);
    double now = ifl_clock_s();
    if (st == IFL_FULL) {
        if (d->full_since_s == 0.0)
            ifl_warn("%s; until there is room nothing is acknowledged and nothing is leased",
                     err ? err->text : "the log's disk is full");
        if (d->full_since_s == 0.0) d->full_since_s = now;
        d->last_arrival_s = now; /* whoever waits does not wait for actors */
    } else if (st == IFL_OK && d->full_since_s > 0.0) {
        ifl_info("there is room for the log again, after %.1f s", now - d->full_since_s);
        d->full_since_s = 0.0;
    }
    return st;
}

/* What has come is on the disk before anybody is told that it has been stored: one fdatasync for
 * all that came together. When that fails nobody is told, and the run ends: what a disk has once
 * failed to write must not be asked of it again. */
static ifl_status desk_answer_all(ifl_dispatch *d, ifl_error *err) {
    ifl_status st = d->unflushed && !d->log_failed ? desk_flush(d, err) : IFL_OK;
    if (st == IFL_FULL) return IFL_OK; /* answered when there is room */
    d->log_failed = d->log_failed || st != IFL_OK;
    d->unflushed = false;
    for (int32_t i = 0; i < d->n_answers && !d->log_failed; i++) {
        const ifl_message *m = &d->answers[i].message;
        if (m->type == IFL_WIRE_TRAJ_ACK)
            ifl_record_event("stored", m->traj_ack.key.purpose, m->traj_ack.key.task_serial,
                             m->traj_ack.key.sample, m->traj_ack.lease_id, m->traj_ack.status);
        ifl_server_send(d->server, d->answers[i].peer, m, NULL); /* a lost one is asked for again */
    }
    d->n_answers = 0;
    if (d->quarantine) /* behind the refusals themselves */
        ifl_server_close_peer(d->server, d->quarantine, IFL_WIRE_E_QUARANTINE,
                              "too many answers broke the rules");
    d->quarantine = 0;
    return st;
}

static ifl_status desk_returned(ifl_dispatch *d, uint64_t from, const ifl_wire_return *r,
                                ifl_error *err) {
    desk_peer *peer = desk_find_peer(d, from);
    if (!peer || !desk_is_lease_of(d, peer, r->lease_id)) return IFL_OK; /* leased again already */
    peer->outstanding -= r->n_samples < peer->outstanding ? r->n_samples : peer->outstanding;
    if (r->reason == IFL_RETURN_DRAIN) {
        peer->n_handed_back += ifl_groups_hand_back(d->train, r->lease_id) +
                               ifl_groups_hand_back(d->eval, r->lease_id);
        return IFL_OK;
    }
    ifl_groups_return_lease(d->train, r->lease_id);
    ifl_groups_return_lease(d->eval, r->lease_id);
    if (r->reason != IFL_RETURN_CAPACITY) return IFL_OK;
    /* This actor is too small for the run's tasks. Others may do, as long as there are any. */
    ifl_warn("%s gets no more work: %s", peer->name, r->text);
    peer->capacity = 0;
    peer->too_small = true;
    for (int32_t i = 0; i < d->n_peers; i++)
        if (!d->peers[i].too_small) return IFL_OK;
    return ifl_fail(err, IFL_LIMIT, "no actor can run the tasks: %s: %s", peer->name, r->text);
}

/* A transport thread that answers pings proves no live engine: an actor whose loop has stood still
 * for lease_s while it has work is given up. */
static void desk_find_stalled(ifl_dispatch *d) {
    double now = ifl_clock_s();
    if (now - d->stall_check_s < 1.0) return;
    d->stall_check_s = now;
    int32_t n = ifl_server_peers(d->server, d->infos, IFL_PEERS_MAX);
    for (int32_t i = 0; i < n && i < IFL_PEERS_MAX; i++) {
        const desk_peer *p = desk_find_peer(d, d->infos[i].peer);
        if (!p || p->outstanding == 0 || d->infos[i].progress_age_s < d->config->transport.lease_s)
            continue;
        char text[128];
        snprintf(text, sizeof text, "its engine has not moved for %.0f s (transport.lease_s)",
                 d->infos[i].progress_age_s);
        ifl_server_close_peer(d->server, p->peer, IFL_WIRE_E_FENCED, text);
    }
}

static ifl_status desk_event(ifl_dispatch *d, ifl_server_event *event, ifl_error *err) {
    switch (event->kind) {
    case IFL_SERVER_JOINED:
        if (d->n_peers == IFL_PEERS_MAX)
            return IFL_OK; /* it gets no work; the transport bounds sessions */
        /* What it says to hold may be of another learner process; it says in a WDONE what it has of
         * this one. */
        d->peers[d->n_peers++] = (desk_peer){.peer = event->peer,
                                             .version_done = -1,
                                             .version_told = -1,
                                             .minor = event->message.hello.minor_max,
                                             .joined_s = ifl_clock_s(),
                                             .first_lease = d->next_lease};
        snprintf(d->peers[d->n_peers - 1].name, IFL_WIRE_NAME_MAX, "%s", event->name);
        ifl_info("%s joined", event->name);
        d->last_arrival_s = ifl_clock_s();
        return IFL_OK;
    case IFL_SERVER_LOST:
        desk_peer_gone(d, event->peer, event->text);
        return IFL_OK;
    default:
        break;
    }
    desk_peer *peer = desk_find_peer(d, event->peer);
    switch (event->message.type) {
    case IFL_WIRE_TRAJ:
        return desk_trajectory(d, event->peer, &event->message, err);
    case IFL_WIRE_RETURN:
        return desk_returned(d, event->peer, &event->message.returned, err);
    case IFL_WIRE_CREDIT:
        ifl_record_event("credited", -1, event->peer, event->message.credit.n_sequences,
                         peer ? (uint64_t)peer->outstanding : UINT64_MAX, 0);
        if (peer && !peer->too_small) peer->capacity = event->message.credit.n_sequences;
        return IFL_OK;
    case IFL_WIRE_STATS:
        if (peer) desk_stats(peer, &event->message.stats);
        /* Long answers take their time: whoever samples tokens is not idle. */
        if (peer && peer->tokens_per_s > 0.0) d->last_arrival_s = ifl_clock_s();
        return IFL_OK;
    case IFL_WIRE_WDONE:
        if (peer) {
            bool first = peer->version_done < 0;
            peer->version_done = event->message.wdone.version;
            d->last_arrival_s = ifl_clock_s();
            if (!first && d->n_stalls < STALLS_MAX)
                d->stalls[d->n_stalls++] = (float)event->message.wdone.stall_us * 1e-3f;
            pthread_cond_broadcast(&d->changed);
        }
        return IFL_OK;
    default:
        return IFL_OK;
    }
}

void *desk_thread(void *arg) {
    ifl_dispatch *d = arg;
    while (!atomic_load(&d->quit)) {
        ifl_server_event event;
        ifl_error err = {0};
        pthread_mutex_lock(&d->lock);
        bool full = d->full_since_s > 0.0;
        pthread_mutex_unlock(&d->lock);
        /* What comes meanwhile waits in the server's queue, which has its bounds. */
        if (full) ifl_sleep_ms(FULL_RETRY_MS);
        ifl_status st = full ? IFL_AGAIN : ifl_server_poll(d->server, POLL_MS, &event, &err);
        pthread_mutex_lock(&d->lock);
        d->unflushed |= full;
        bool got = st == IFL_OK;
        for (int32_t n = 1; st == IFL_OK; n++) {
            st = desk_event(d, &event, &err);
            ifl_server_event_clear(&event);
            if (st == IFL_OK)
                st = n < DESK_BURST ? ifl_server_poll(d->server, 0, &event, &err) : IFL_AGAIN;
        }
        if (st == IFL_AGAIN) st = IFL_OK;
        ifl_error log_err = {0};
        ifl_status logged = desk_answer_all(d, &log_err);
        if (st == IFL_OK && logged != IFL_OK) {
            st = logged;
            err = log_err;
        }
        desk_direct(d);
        if (st == IFL_OK && d->full_since_s == 0.0) st = desk_lease(d, &err);
        desk_find_stalled(d);
        desk_report_late(d);
        if (st != IFL_OK) desk_fail(d, &err);
        pthread_mutex_unlock(&d->lock);
        /* After a fatal error peers are still answered, but nothing is leased. */
        if (st != IFL_OK) {
            pthread_mutex_lock(&d->lock);
            d->leasing = false;
            pthread_mutex_unlock(&d->lock);
            if (!got) ifl_sleep_ms(POLL_MS);
        }
    }
    return NULL;
}

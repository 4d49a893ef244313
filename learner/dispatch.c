#include "learner/dispatch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/memory.h"

#define ATTEMPTS_MAX 8
#define POLL_MS 20
#define STALLS_MAX 65536
#define LATE_INTERVAL_S 5.0

typedef struct desk_peer {
    uint64_t peer;
    char name[IFL_WIRE_NAME_MAX];
    int32_t capacity, outstanding; /* sequences */
    int64_t version_done;          /* in use there; -1 = not known yet */
    int64_t version_told;          /* that it may go on to (lock-step modes) */
    uint64_t first_lease;          /* of this session: earlier ones are not its own any more */
    bool too_small;                /* it has handed back work that can never fit there */
    double tokens_per_s, step_ms_p50, pages_used;
    int64_t swaps, sequences_swapped, tokens_rebuilt, preemptions;
} desk_peer;

/* What a group carries beside its members. */
typedef struct desk_work {
    ifl_task task;
    int64_t required_version; /* -1 = any */
    float temperature;
    int32_t attempt;
} desk_work;

struct ifl_dispatch {
    const ifl_config *config;
    ifl_server *server;
    ifl_task_set *train_set, *eval_set;
    ifl_rollout_log *log;
    pthread_t thread;
    bool thread_started;
    atomic_bool quit;
    const atomic_bool *stop, *hopeless;

    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t changed;
    ifl_status failed; /* first fatal error of the desk's thread */
    ifl_error failure;
    bool leasing;
    ifl_groups *train, *eval;
    uint64_t next_serial, first_lease, next_lease;
    bool directed; /* lock-step modes: the desk says when a version is taken into use */
    int32_t in_flight;
    int64_t version, first_version; /* newest, and the first one that this process made */
    desk_peer peers[IFL_PEERS_MAX];
    int32_t n_peers;
    double last_arrival_s;
    double stall_check_s;
    int64_t n_late; /* since the last line about them */
    double late_since_s;
    ifl_peer_info *infos;      /* [IFL_PEERS_MAX] scratch */
    ifl_dispatch_stats totals; /* of peers that have gone, and what the desk counts itself */
    float *stalls;
    int32_t n_stalls;
    int32_t *samples; /* scratch for one lease */
};

/* --- Groups
 * ----------------------------------------------------------------------------------------- */

static void work_free(desk_work *work) {
    if (!work) return;
    ifl_task_clear(&work->task);
    free(work);
}

static ifl_status desk_open(ifl_groups *groups, ifl_task_set *set, uint64_t serial,
                            uint64_t task_number, int32_t n_members, int64_t version,
                            float temperature, ifl_error *err) {
    desk_work *work = calloc(1, sizeof *work);
    if (!work) return ifl_fail(err, IFL_NOMEM, "learner: out of memory for a task");
    work->required_version = version;
    work->temperature = temperature;
    ifl_status st = ifl_task_set_get(set, task_number, &work->task, err);
    if (st == IFL_OK) st = ifl_groups_open(groups, serial, work->task.id, n_members, work, err);
    if (st != IFL_OK) work_free(work);
    return st;
}

static ifl_status desk_open_train(ifl_dispatch *d, uint64_t serial, int64_t version,
                                  ifl_error *err) {
    return desk_open(d->train, d->train_set, serial, serial, d->config->rollout.group_size, version,
                     (float)d->config->rollout.temperature, err);
}

static int32_t desk_not_taken(ifl_dispatch *d) {
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

static void desk_fail(ifl_dispatch *d, const ifl_error *err) {
    if (d->failed != IFL_OK) return;
    d->failed = err->status;
    d->failure = *err;
    pthread_cond_broadcast(&d->changed);
}

/* --- Leasing
 * ---------------------------------------------------------------------------------------- */

static desk_peer *desk_find_peer(ifl_dispatch *d, uint64_t peer) {
    for (int32_t i = 0; i < d->n_peers; i++)
        if (d->peers[i].peer == peer) return &d->peers[i];
    return NULL;
}

/* `version`: that it must have in use; -1 = any. */
static desk_peer *desk_freest_peer(ifl_dispatch *d, int32_t need, int64_t version) {
    desk_peer *best = NULL;
    for (int32_t i = 0; i < d->n_peers; i++) {
        desk_peer *p = &d->peers[i];
        if (p->capacity <= 0 || (version >= 0 && p->version_done != version)) continue;
        if (p->outstanding > 0 && p->outstanding + need > p->capacity) continue;
        if (!best || p->capacity - p->outstanding > best->capacity - best->outstanding) best = p;
    }
    return best;
}

/* Leases pending work of one table until there is none or no actor has room for it. */
static ifl_status desk_lease_table(ifl_dispatch *d, ifl_groups *groups, uint8_t purpose,
                                   int32_t need, ifl_error *err) {
    const ifl_config *c = d->config;
    uint64_t from_serial = 0;
    for (;;) {
        ifl_group *group = ifl_groups_pending(groups, from_serial);
        if (!group) return IFL_OK;
        desk_work *work = group->user;
        desk_peer *peer = desk_freest_peer(d, need, d->directed ? work->required_version : -1);
        if (!peer && !d->directed) return IFL_OK;
        if (!peer) { /* others may want a version that somebody has */
            from_serial = group->task_serial + 1;
            continue;
        }
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
        snprintf(lease->checker, sizeof lease->checker, "%s",
                 work->task.checker && work->task.checker[0] ? work->task.checker
                                                             : c->reward.checker);
        lease->answer = work->task.answer;
        lease->meta = work->task.meta;
        lease->text = work->task.text;
        lease->temperature = work->temperature;
        bool tempered = work->temperature > 0.0f;
        lease->top_k = tempered ? c->rollout.top_k : 0;
        lease->top_p = tempered ? (float)c->rollout.top_p : 1.0f;
        lease->max_new_tokens =
            work->task.max_new_tokens > 0 ? work->task.max_new_tokens : c->rollout.max_new_tokens;
        lease->n_stops = c->rollout.n_stops;
        for (int32_t i = 0; i < c->rollout.n_stops; i++)
            snprintf(lease->stops[i], sizeof lease->stops[i], "%s", c->rollout.stops[i]);
        lease->seed = (uint64_t)c->run.seed;
        lease->required_version = work->required_version;
        ifl_error send_error = {0};
        ifl_status st = ifl_server_send(d->server, peer->peer, &message, &send_error);
        if (st == IFL_PEER || st == IFL_FULL) {
            /* Its LOST event is on the way, or its queue will empty: the work goes back. Not as
             * a failed attempt, or a link that is full for a moment would use all of them up. */
            ifl_groups_unassign(groups, lease_id);
            return IFL_OK;
        }
        if (st != IFL_OK) {
            *err = send_error;
            return st;
        }
        IFL_TRY(ifl_rollout_log_leased(d->log, group->task_serial, purpose, group->n_members,
                                       lease_id, work->attempt, err));
        work->attempt++;
        peer->outstanding += n;
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

/* Work for a version that no actor has any more, and none can get (only the newest is served): its
 * actors were lost. Better the newest version, visible as lag, than a group that never ends. */
static void desk_repin(ifl_dispatch *d, ifl_groups *groups) {
    uint64_t serial = 0;
    for (ifl_group *group; (group = ifl_groups_pending(groups, serial)) != NULL;) {
        serial = group->task_serial + 1;
        desk_work *work = group->user;
        bool possible = work->required_version < 0 || work->required_version >= d->version;
        for (int32_t i = 0; i < d->n_peers && !possible; i++)
            possible =
                !d->peers[i].too_small && (d->peers[i].version_done == work->required_version ||
                                           d->peers[i].version_done < 0); /* it may say so yet */
        if (possible) continue;
        ifl_warn("no actor has version %lld any more: %d answers of task serial %llu are made "
                 "under version %lld",
                 (long long)work->required_version, group->n_pending,
                 (unsigned long long)group->task_serial, (long long)d->version);
        work->required_version = d->version;
    }
}

/* Lock-step modes: sends the actors on to the newest version once all work of older ones is here.
 * Not earlier, even those that have nothing to do: if an actor is lost, another one must be able to
 * do its work under the same version. */
static void desk_direct(ifl_dispatch *d) {
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
    if (d->in_flight > 0) {
        for (int32_t open = desk_not_taken(d); open < d->in_flight; open++)
            IFL_TRY(desk_open_train(d, d->next_serial++, -1, err));
    }
    /* async:k: an actor that swaps for an evaluation could not do the older batches any more, and
     * their lag would not be k. */
    if (ifl_groups_counts_get(d->eval).pending > 0 && desk_oldest_pinned(d->train) >= d->version)
        IFL_TRY(desk_lease_table(d, d->eval, IFL_PURPOSE_EVAL, 1, err));
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
                 requeued);
    d->totals.swaps += p->swaps;
    d->totals.sequences_swapped += p->sequences_swapped;
    d->totals.tokens_rebuilt += p->tokens_rebuilt;
    d->totals.preemptions += p->preemptions;
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

/* What ifl_trajectory_check cannot know: that this answer belongs to the task it names. */
static ifl_status desk_check(ifl_dispatch *d, const ifl_group *group, const ifl_trajectory *traj,
                             ifl_error *err) {
    if (!desk_gave_lease(d, traj->lease_id))
        return ifl_fail(err, IFL_STALE,
                        "trajectory %llu/%d answers a lease of an earlier learner process",
                        (unsigned long long)traj->task_serial, traj->sample);
    if (!group) return IFL_OK; /* closed long ago, or never leased: the table says so */
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
    for (int32_t i = 0; i < traj->n_kv_events; i++)
        IFL_TRY(desk_check_version(d, traj, traj->kv_events[i].version, err));
    for (int32_t i = 0; i < traj->n_runs; i++) {
        int64_t version = traj->runs[i].version;
        IFL_TRY(desk_check_version(d, traj, version, err));
        if (work->required_version >= 0 && version != work->required_version)
            return ifl_fail(
                err, IFL_MISMATCH,
                "trajectory %llu/%d has tokens of version %lld, required are those of %lld",
                (unsigned long long)traj->task_serial, traj->sample, (long long)version,
                (long long)work->required_version);
    }
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

static ifl_status desk_trajectory(ifl_dispatch *d, uint64_t from, ifl_message *message,
                                  ifl_error *err) {
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
        if (traj->purpose == IFL_PURPOSE_TRAIN && traj->reward.status != IFL_REWARD_OK &&
            strcmp(d->config->reward.on_error, "fail") == 0)
            return ifl_fail(
                err, IFL_PEER, "checker %s could not judge %s (%s) and reward.on_error is fail",
                traj->reward.checker, traj->task_id, ifl_reward_status_name(traj->reward.status));
        int64_t n_policy = ifl_trajectory_n_policy(traj);
        uint8_t purpose = traj->purpose;
        /* Written before it is acknowledged; a duplicate is not written twice. */
        bool open = group && traj->sample < group->n_members &&
                    (group->members[traj->sample].state == IFL_MEMBER_PENDING ||
                     group->members[traj->sample].state == IFL_MEMBER_LEASED);
        if (open) {
            IFL_TRY(ifl_rollout_log_trajectory(d->log, traj, err));
            IFL_TRY(ifl_rollout_log_flush(d->log, err));
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
            if (purpose == IFL_PURPOSE_TRAIN)
                d->totals.tokens_generated += n_policy;
            else
                d->totals.tokens_eval += n_policy;
        }
    }
    pthread_cond_broadcast(&d->changed);
    ifl_server_send(d->server, from, &answer, NULL); /* a lost answer is asked for again */
    return IFL_OK;
}

static ifl_status desk_returned(ifl_dispatch *d, uint64_t from, const ifl_wire_return *r,
                                ifl_error *err) {
    desk_peer *peer = desk_find_peer(d, from);
    if (!peer || !desk_is_lease_of(d, peer, r->lease_id)) return IFL_OK; /* leased again already */
    peer->outstanding -= r->n_samples < peer->outstanding ? r->n_samples : peer->outstanding;
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

static void *desk_thread(void *arg) {
    ifl_dispatch *d = arg;
    while (!atomic_load(&d->quit)) {
        ifl_server_event event;
        ifl_error err = {0};
        ifl_status st = ifl_server_poll(d->server, POLL_MS, &event, &err);
        pthread_mutex_lock(&d->lock);
        bool got = st == IFL_OK;
        if (got)
            st = desk_event(d, &event, &err);
        else if (st == IFL_AGAIN)
            st = IFL_OK;
        desk_direct(d);
        if (st == IFL_OK) st = desk_lease(d, &err);
        desk_find_stalled(d);
        desk_report_late(d);
        if (st != IFL_OK) desk_fail(d, &err);
        pthread_mutex_unlock(&d->lock);
        if (got) ifl_server_event_clear(&event);
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

/* Groups that can be open at one time: what is in flight or ahead, what a step has taken, and what
 * a checkpoint brings. Members are allocated for each, so the table is no larger than that. */
static ifl_status desk_tables(ifl_dispatch *d, const ifl_dispatch_options *o, ifl_error *err) {
    const ifl_config *c = o->config;
    int64_t per_step = c->rollout.prompts_per_step;
    int64_t open = c->run.mode == IFL_MODE_PIPELINE ? per_step + c->learner.groups_in_flight
                                                    : per_step * (1 + c->run.async_k);
    int64_t n_train = open + per_step + o->n_reopen;
    int64_t n_tasks = o->eval ? c->eval.tasks : 1,
            n_held = o->eval ? ifl_task_set_size(o->eval) : 0;
    if (n_held > 0 && n_held < n_tasks) n_tasks = n_held;
    int64_t n_eval = n_tasks * (c->eval.samples > 0 ? 2 : 1);
    if (n_train > IFL_GROUPS_MAX)
        return ifl_fail(err, IFL_LIMIT,
                        "rollout.prompts_per_step, learner.groups_in_flight, run.mode: up to %lld "
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
    IFL_TRY_GOTO(st, desk_tables(d, o, err), done);
    if (o->counts) IFL_TRY_GOTO(st, ifl_groups_counts_restore(d->train, o->counts, err), done);
    for (int32_t i = 0; i < o->n_reopen; i++)
        IFL_TRY_GOTO(st, desk_open_train(d, o->reopen[i], o->reopen_version, err), done);
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
            work_free(ifl_groups_find(groups, serials[i])->user);
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
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->lock);
    ifl_free(d->stalls);
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

ifl_status ifl_dispatch_open_batch(ifl_dispatch *d, int32_t n, int64_t version, ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    ifl_status st = IFL_OK;
    for (int32_t i = 0; i < n && st == IFL_OK; i++)
        st = desk_open_train(d, d->next_serial++, version, err);
    d->leasing = true;
    pthread_mutex_unlock(&d->lock);
    return st;
}

void ifl_dispatch_report(ifl_dispatch *d, const char *task_id, double pass_rate) {
    pthread_mutex_lock(&d->lock); /* the desk's thread draws tasks from the set */
    ifl_task_set_report(d->train_set, task_id, pass_rate);
    pthread_mutex_unlock(&d->lock);
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

ifl_status ifl_dispatch_take(ifl_dispatch *d, int32_t n, ifl_take_order order, double idle_s,
                             ifl_group **out, ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    d->last_arrival_s = ifl_clock_s();
    ifl_status st = IFL_OK;
    while (st == IFL_OK && !ifl_groups_take(d->train, n, order, out))
        st = desk_wait_stoppable(d, idle_s, "groups", err);
    pthread_mutex_unlock(&d->lock);
    return st;
}

ifl_status ifl_dispatch_wait_applied(ifl_dispatch *d, int64_t version, double idle_s,
                                     ifl_error *err) {
    pthread_mutex_lock(&d->lock);
    d->last_arrival_s = ifl_clock_s();
    ifl_status st = IFL_OK;
    for (;;) {
        bool all = true;
        for (int32_t i = 0; i < d->n_peers; i++)
            all &= d->peers[i].version_done >= version;
        if (all && d->n_peers > 0) break;
        /* Asked to stop, like the actors: with none left none can skip a version, and the step is
         * worth a checkpoint. */
        if (d->n_peers == 0 && d->stop && atomic_load(d->stop)) break;
        st = desk_wait(d, idle_s, "actors to take new weights into use", err);
        if (st != IFL_OK) break;
    }
    pthread_mutex_unlock(&d->lock);
    return st;
}

/* Members that were given up after too many attempts get their fate in the log when their group
 * ends: until then a checkpoint still opens them again. */
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
                                            ifl_reward_status_name(m->traj->reward.status), err);
                break;
            case IFL_END_DROPPED:
                st = ifl_rollout_log_dropped(d->log, key,
                                             ifl_drop_reason_name(outcomes[g][i].reason), err);
                break;
            }
        }
        if (st == IFL_OK) st = desk_log_given_up(d, group, err);
        if (st == IFL_OK)
            st = ifl_rollout_log_group_closed(d->log, group->task_serial, IFL_PURPOSE_TRAIN,
                                              members, n_members, err);
    }
    if (st == IFL_OK) st = ifl_rollout_log_trained(d->log, step, trained, n_trained, err);
    if (st == IFL_OK) st = ifl_rollout_log_flush(d->log, err);
    for (int32_t g = 0; g < n && st == IFL_OK; g++) {
        work_free(groups[g]->user);
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
            st = desk_open(d->eval, d->eval_set, serial++, (uint64_t)i, round == 0 ? 1 : n_samples,
                           version, round == 0 ? 0.0f : (float)d->config->rollout.temperature, err);
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
        work_free(group->user);
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

void ifl_dispatch_stats_get(ifl_dispatch *d, ifl_dispatch_stats *out) {
    pthread_mutex_lock(&d->lock);
    *out = d->totals;
    out->n_actors = d->n_peers;
    int32_t n_steps = 0;
    for (int32_t i = 0; i < d->n_peers; i++) {
        const desk_peer *p = &d->peers[i];
        out->swaps += p->swaps;
        out->sequences_swapped += p->sequences_swapped;
        out->tokens_rebuilt += p->tokens_rebuilt;
        out->preemptions += p->preemptions;
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
                            int32_t max) {
    pthread_mutex_lock(&d->lock);
    *next_serial = d->next_serial;
    int32_t open = ifl_groups_n_open(d->train), n = 0;
    uint64_t *all = malloc(sizeof *all * (size_t)(open + 1));
    if (all) {
        ifl_groups_serials(d->train, all, open);
        for (int32_t i = 0; i < open; i++, n++)
            if (n < max) serials[n] = all[i];
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
            st = desk_log_given_up(d, group, err);
            for (int32_t m = 0; m < group->n_members; m++)
                if (group->members[m].state != IFL_MEMBER_DROPPED)
                    keys[n++] = (ifl_rollout_key){group->task_serial, m, IFL_PURPOSE_TRAIN};
        }
        if (st == IFL_OK) st = ifl_rollout_log_run_ended(d->log, step, reason, keys, n, err);
    }
    if (st == IFL_OK) st = ifl_rollout_log_flush(d->log, err);
    free(serials);
    free(keys);
    pthread_mutex_unlock(&d->lock);
    return st;
}

#include "learner/groups.h"

#include <stdlib.h>
#include <string.h>

#include "common/memory.h"

struct ifl_groups {
    int32_t groups_max, group_size_max, attempts_max;
    int32_t n_open;
    ifl_group **open;      /* [n_open] of slots, ascending by serial */
    ifl_group **free_list; /* [groups_max - n_open] */
    ifl_group *slots;      /* [groups_max] */
    ifl_member *members;   /* [groups_max, group_size_max] */
    uint64_t n_completions;
    ifl_groups_counts counts;
};

static const char *const drop_names[IFL_DROP_COUNT] = {
#define DROP_NAME(name, text) [IFL_DROP_##name] = text,
    IFL_DROP_MAP(DROP_NAME)
#undef DROP_NAME
};

const char *ifl_drop_reason_name(ifl_drop_reason reason) {
    return (unsigned)reason < IFL_DROP_COUNT ? drop_names[reason] : "unknown";
}

ifl_status ifl_groups_create(ifl_groups **out, int32_t groups_max, int32_t group_size_max,
                             int32_t attempts_max, ifl_error *err) {
    *out = NULL;
    if (groups_max < 1 || groups_max > IFL_GROUPS_MAX)
        return ifl_fail(err, IFL_USAGE, "group table: %d groups, wanted 1 to %d", groups_max,
                        IFL_GROUPS_MAX);
    if (group_size_max < 1 || group_size_max > IFL_GROUP_SIZE_MAX)
        return ifl_fail(err, IFL_USAGE, "rollout.group_size: got %d, wanted 1 to %d",
                        group_size_max, IFL_GROUP_SIZE_MAX);
    ifl_groups *groups = ifl_alloc(1, sizeof *groups);
    if (!groups) return ifl_fail(err, IFL_NOMEM, "group table: out of memory");
    size_t n = (size_t)groups_max;
    groups->groups_max = groups_max;
    groups->group_size_max = group_size_max;
    groups->attempts_max = attempts_max;
    groups->open = ifl_alloc(n, sizeof *groups->open);
    groups->free_list = ifl_alloc(n, sizeof *groups->free_list);
    groups->slots = ifl_alloc(n, sizeof *groups->slots);
    groups->members = ifl_alloc(n * (size_t)group_size_max, sizeof *groups->members);
    if (!groups->open || !groups->free_list || !groups->slots || !groups->members) {
        ifl_groups_free(groups);
        return ifl_fail(err, IFL_NOMEM, "group table: out of memory for %d groups of %d members",
                        groups_max, group_size_max);
    }
    for (int32_t i = 0; i < groups_max; i++) {
        groups->slots[i].members = groups->members + (size_t)i * (size_t)group_size_max;
        groups->free_list[groups_max - 1 - i] = &groups->slots[i];
    }
    *out = groups;
    return IFL_OK;
}

static void group_free_trajectories(ifl_group *group) {
    for (int32_t i = 0; i < group->n_members; i++) {
        ifl_trajectory_free(group->members[i].traj);
        ifl_trajectory_free(group->members[i].begun);
        group->members[i].traj = group->members[i].begun = NULL;
    }
}

void ifl_groups_free(ifl_groups *groups) {
    if (!groups) return;
    for (int32_t i = 0; i < groups->n_open; i++)
        group_free_trajectories(groups->open[i]);
    ifl_free(groups->open);
    ifl_free(groups->free_list);
    ifl_free(groups->slots);
    ifl_free(groups->members);
    ifl_free(groups);
}

/* Index of the first open group whose serial is not below `serial`. */
static int32_t groups_lower_bound(const ifl_groups *groups, uint64_t serial) {
    int32_t low = 0, high = groups->n_open;
    while (low < high) {
        int32_t mid = low + (high - low) / 2;
        if (groups->open[mid]->task_serial < serial)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

ifl_group *ifl_groups_find(ifl_groups *groups, uint64_t task_serial) {
    int32_t i = groups_lower_bound(groups, task_serial);
    return i < groups->n_open && groups->open[i]->task_serial == task_serial ? groups->open[i]
                                                                             : NULL;
}

ifl_status ifl_groups_open(ifl_groups *groups, uint64_t task_serial, const char *task_id,
                           int32_t n_members, void *user, ifl_error *err) {
    if (n_members < 1 || n_members > groups->group_size_max)
        return ifl_fail(err, IFL_USAGE, "group %llu: %d members, wanted 1 to %d",
                        (unsigned long long)task_serial, n_members, groups->group_size_max);
    if (groups->n_open == groups->groups_max)
        return ifl_fail(err, IFL_FULL,
                        "group table: %d groups are open, no room for task serial %llu",
                        groups->n_open, (unsigned long long)task_serial);
    int32_t place = groups_lower_bound(groups, task_serial);
    if (place < groups->n_open && groups->open[place]->task_serial == task_serial)
        return ifl_fail(err, IFL_USAGE, "group %llu is open already",
                        (unsigned long long)task_serial);

    ifl_group *group = groups->free_list[groups->groups_max - groups->n_open - 1];
    memmove(groups->open + place + 1, groups->open + place,
            (size_t)(groups->n_open - place) * sizeof *groups->open);
    groups->open[place] = group;
    groups->n_open++;

    ifl_member *members = group->members;
    *group = (ifl_group){.task_serial = task_serial,
                         .n_members = n_members,
                         .n_pending = n_members,
                         .user = user,
                         .members = members};
    size_t n_id = task_id ? strnlen(task_id, IFL_TASK_ID_MAX - 1) : 0;
    if (n_id) memcpy(group->task_id, task_id, n_id);
    memset(members, 0, (size_t)n_members * sizeof *members);
    groups->counts.opened += n_members;
    groups->counts.pending += n_members;
    groups->counts.groups_opened++;
    return IFL_OK;
}

/* The two sets of counters that follow a member's state: its group's and the table's. */
static void member_count(ifl_groups *groups, ifl_group *group, const ifl_member *member,
                         int delta) {
    switch ((ifl_member_state)member->state) {
    case IFL_MEMBER_PENDING:
        group->n_pending += delta;
        groups->counts.pending += delta;
        break;
    case IFL_MEMBER_LEASED:
        group->n_leased += delta;
        groups->counts.leased += delta;
        break;
    case IFL_MEMBER_STORED:
        group->n_stored += delta;
        groups->counts.stored += delta;
        break;
    case IFL_MEMBER_DROPPED:
        group->n_dropped += delta;
        groups->counts.dropped[member->drop_reason] += delta;
        break;
    }
}

static void member_move(ifl_groups *groups, ifl_group *group, ifl_member *member,
                        ifl_member_state to) {
    member_count(groups, group, member, -1);
    member->state = (uint8_t)to;
    member_count(groups, group, member, 1);
    if (group->n_pending == 0 && group->n_leased == 0 && group->completed == 0)
        group->completed = ++groups->n_completions;
}

static void member_drop(ifl_groups *groups, ifl_group *group, ifl_member *member,
                        ifl_drop_reason reason) {
    ifl_trajectory_free(member->traj);
    ifl_trajectory_free(member->begun);
    member->traj = member->begun = NULL;
    member->drop_reason = (uint8_t)reason; /* before the move, which counts by it */
    member_move(groups, group, member, IFL_MEMBER_DROPPED);
}

ifl_group *ifl_groups_next(ifl_groups *groups, uint64_t from_serial) {
    int32_t i = groups_lower_bound(groups, from_serial);
    return i < groups->n_open ? groups->open[i] : NULL;
}

ifl_group *ifl_groups_pending(ifl_groups *groups, uint64_t from_serial) {
    if (groups->counts.pending == 0) return NULL;
    for (int32_t g = groups_lower_bound(groups, from_serial); g < groups->n_open; g++)
        if (groups->open[g]->n_pending > 0) return groups->open[g];
    return NULL;
}

void ifl_groups_assign_group(ifl_groups *groups, ifl_group *group, uint64_t actor,
                             uint64_t lease_id, int32_t *samples, int32_t *n) {
    *n = 0;
    for (int32_t i = 0; i < group->n_members; i++) {
        ifl_member *member = &group->members[i];
        if (member->state != IFL_MEMBER_PENDING) continue;
        member->actor = actor;
        member->lease_id = lease_id;
        member->n_attempts++;
        member_move(groups, group, member, IFL_MEMBER_LEASED);
        samples[(*n)++] = i;
    }
}

ifl_group *ifl_groups_assign(ifl_groups *groups, uint64_t actor, uint64_t lease_id,
                             int32_t *samples, int32_t *n) {
    *n = 0;
    ifl_group *group = ifl_groups_pending(groups, 0);
    if (group) ifl_groups_assign_group(groups, group, actor, lease_id, samples, n);
    return group;
}

static int32_t groups_requeue(ifl_groups *groups, bool by_actor, uint64_t id, bool in_order) {
    int32_t n = 0;
    for (int32_t g = 0; g < groups->n_open; g++) {
        ifl_group *group = groups->open[g];
        for (int32_t i = 0; group->n_leased > 0 && i < group->n_members; i++) {
            ifl_member *member = &group->members[i];
            if (member->state != IFL_MEMBER_LEASED) continue;
            if ((by_actor ? member->actor : member->lease_id) != id) continue;
            n++;
            if (in_order) member->n_attempts--;
            if (!in_order && groups->attempts_max > 0 &&
                member->n_attempts >= groups->attempts_max) {
                member_drop(groups, group, member, IFL_DROP_ATTEMPTS);
                continue;
            }
            member_move(groups, group, member, IFL_MEMBER_PENDING);
            groups->counts.requeued++;
        }
    }
    return n;
}

int32_t ifl_groups_lose_actor(ifl_groups *groups, uint64_t actor) {
    return groups_requeue(groups, true, actor, false);
}

int32_t ifl_groups_return_lease(ifl_groups *groups, uint64_t lease_id) {
    return groups_requeue(groups, false, lease_id, false);
}

int32_t ifl_groups_hand_back(ifl_groups *groups, uint64_t lease_id) {
    return groups_requeue(groups, false, lease_id, true);
}

bool ifl_groups_keep_begun(ifl_groups *groups, uint64_t actor, ifl_trajectory *traj) {
    ifl_group *group = ifl_groups_find(groups, traj->task_serial);
    if (!group || traj->sample < 0 || traj->sample >= group->n_members) return false;
    ifl_member *member = &group->members[traj->sample];
    if (member->state != IFL_MEMBER_LEASED || member->actor != actor ||
        member->lease_id != traj->lease_id)
        return false;
    ifl_trajectory_free(member->begun);
    member->begun = traj;
    return true;
}

void ifl_groups_forget_begun(ifl_group *group) {
    for (int32_t i = 0; i < group->n_members; i++) {
        ifl_trajectory_free(group->members[i].begun);
        group->members[i].begun = NULL;
    }
}

void ifl_groups_unassign(ifl_groups *groups, uint64_t lease_id) {
    for (int32_t g = 0; g < groups->n_open; g++) {
        ifl_group *group = groups->open[g];
        for (int32_t i = 0; group->n_leased > 0 && i < group->n_members; i++) {
            ifl_member *member = &group->members[i];
            if (member->state != IFL_MEMBER_LEASED || member->lease_id != lease_id) continue;
            member->n_attempts--;
            member_move(groups, group, member, IFL_MEMBER_PENDING);
        }
    }
}

ifl_store_result ifl_groups_store(ifl_groups *groups, ifl_trajectory *traj) {
    ifl_group *group = ifl_groups_find(groups, traj->task_serial);
    if (!group || traj->sample < 0 || traj->sample >= group->n_members ||
        traj->group_size != group->n_members)
        return IFL_STORE_UNKNOWN;
    ifl_member *member = &group->members[traj->sample];
    if (member->state == IFL_MEMBER_STORED || member->state == IFL_MEMBER_DROPPED) {
        groups->counts.duplicates++;
        return IFL_STORE_DUPLICATE;
    }
    ifl_trajectory_free(member->begun);
    member->begun = NULL;
    member->traj = traj;
    member_move(groups, group, member, IFL_MEMBER_STORED);
    return IFL_STORE_STORED;
}

bool ifl_groups_drop(ifl_groups *groups, uint64_t task_serial, int32_t sample,
                     ifl_drop_reason reason) {
    IFL_ASSERT((unsigned)reason < IFL_DROP_COUNT);
    ifl_group *group = ifl_groups_find(groups, task_serial);
    if (!group || group->taken || sample < 0 || sample >= group->n_members) return false;
    ifl_member *member = &group->members[sample];
    if (member->state == IFL_MEMBER_DROPPED) return false;
    member_drop(groups, group, member, reason);
    return true;
}

static int compare_completed(const void *a, const void *b) {
    uint64_t x = (*(ifl_group *const *)a)->completed, y = (*(ifl_group *const *)b)->completed;
    return (x > y) - (x < y);
}

static int compare_serial(const void *a, const void *b) {
    uint64_t x = (*(ifl_group *const *)a)->task_serial, y = (*(ifl_group *const *)b)->task_serial;
    return (x > y) - (x < y);
}

static bool group_ready(const ifl_group *group) {
    return group->completed != 0 && !group->taken;
}

bool ifl_groups_take(ifl_groups *groups, int32_t n, ifl_take_order order, ifl_group **out) {
    if (n < 1 || n > groups->n_open) return false;
    int32_t n_found = 0;
    if (order == IFL_TAKE_SERIAL) {
        for (int32_t g = 0; g < groups->n_open && n_found < n; g++) {
            if (groups->open[g]->taken) continue;
            if (!group_ready(groups->open[g])) return false;
            out[n_found++] = groups->open[g];
        }
    } else {
        /* A scan for the next-lowest completion number each time: n and the table are small beside
         * what a step costs, and no second order has to be kept. */
        uint64_t after = 0;
        while (n_found < n) {
            ifl_group *first = NULL;
            for (int32_t g = 0; g < groups->n_open; g++) {
                ifl_group *group = groups->open[g];
                if (group_ready(group) && group->completed > after &&
                    (!first || compare_completed(&group, &first) < 0))
                    first = group;
            }
            if (!first) return false;
            after = first->completed;
            out[n_found++] = first;
        }
        qsort(out, (size_t)n, sizeof *out, compare_serial);
    }
    if (n_found < n) return false;
    for (int32_t i = 0; i < n; i++)
        out[i]->taken = true;
    return true;
}

void ifl_groups_take_these(ifl_group **chosen, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        IFL_ASSERT(group_ready(chosen[i]));
        chosen[i]->taken = true;
    }
    qsort(chosen, (size_t)n, sizeof *chosen, compare_serial);
}

int32_t ifl_groups_n_complete(const ifl_groups *groups) {
    int32_t n = 0;
    for (int32_t g = 0; g < groups->n_open; g++)
        n += group_ready(groups->open[g]);
    return n;
}

int32_t ifl_groups_n_open(const ifl_groups *groups) {
    return groups->n_open;
}

static void groups_release_slot(ifl_groups *groups, ifl_group *group) {
    int32_t place = groups_lower_bound(groups, group->task_serial);
    IFL_ASSERT(place < groups->n_open && groups->open[place] == group);
    groups->n_open--;
    memmove(groups->open + place, groups->open + place + 1,
            (size_t)(groups->n_open - place) * sizeof *groups->open);
    groups->free_list[groups->groups_max - groups->n_open - 1] = group;
    groups->counts.groups_closed++;
}

void ifl_groups_close(ifl_groups *groups, ifl_group *group, const ifl_member_outcome *outcomes,
                      bool skipped) {
    IFL_ASSERT(group->taken);
    for (int32_t i = 0; i < group->n_members; i++) {
        ifl_member *member = &group->members[i];
        if (member->state != IFL_MEMBER_STORED) continue;
        groups->counts.stored--;
        switch (outcomes[i].end) {
        case IFL_END_TRAINED:
            groups->counts.trained++;
            break;
        case IFL_END_MASKED:
            groups->counts.masked++;
            break;
        case IFL_END_DROPPED:
            IFL_ASSERT((unsigned)outcomes[i].reason < IFL_DROP_COUNT);
            groups->counts.dropped[outcomes[i].reason]++;
            break;
        }
    }
    groups->counts.groups_skipped += skipped;
    group_free_trajectories(group);
    groups_release_slot(groups, group);
}

int32_t ifl_groups_serials(const ifl_groups *groups, uint64_t *serials, int32_t max) {
    for (int32_t g = 0; g < groups->n_open && g < max; g++)
        serials[g] = groups->open[g]->task_serial;
    return groups->n_open;
}

ifl_groups_counts ifl_groups_counts_get(const ifl_groups *groups) {
    return groups->counts;
}

int64_t ifl_groups_in_flight(const ifl_groups_counts *counts) {
    return counts->pending + counts->leased + counts->stored;
}

int64_t ifl_groups_dropped(const ifl_groups_counts *counts) {
    int64_t n = 0;
    for (int r = 0; r < IFL_DROP_COUNT; r++)
        n += counts->dropped[r];
    return n;
}

static ifl_status counts_check(const ifl_groups_counts *counts, ifl_error *err) {
    int64_t ended = counts->trained + counts->masked + ifl_groups_dropped(counts);
    int64_t in_flight = ifl_groups_in_flight(counts);
    if (counts->trained < 0 || counts->masked < 0 || counts->opened != ended + in_flight)
        return ifl_fail(
            err, IFL_MISMATCH,
            "group table: %lld members opened, but trained %lld + masked %lld + dropped "
            "%lld + in flight %lld",
            (long long)counts->opened, (long long)counts->trained, (long long)counts->masked,
            (long long)ifl_groups_dropped(counts), (long long)in_flight);
    return IFL_OK;
}

ifl_status ifl_groups_counts_restore(ifl_groups *groups, const ifl_groups_counts *counts,
                                     ifl_error *err) {
    if (groups->n_open > 0)
        return ifl_fail(err, IFL_USAGE,
                        "group table: %d groups are open, counts can only be restored "
                        "before the first",
                        groups->n_open);
    ifl_groups_counts restored = *counts;
    for (int r = 0; r < IFL_DROP_COUNT; r++)
        if (restored.dropped[r] < 0)
            return ifl_fail(err, IFL_FORMAT, "group table: stored count dropped.%s is %lld",
                            drop_names[r], (long long)restored.dropped[r]);
    restored.opened -= ifl_groups_in_flight(counts);
    restored.pending = restored.leased = restored.stored = 0;
    restored.groups_opened = restored.groups_closed;
    IFL_TRY(counts_check(&restored, err));
    groups->counts = restored;
    return IFL_OK;
}

ifl_status ifl_groups_check(const ifl_groups *groups, ifl_error *err) {
    int64_t pending = 0, leased = 0, stored = 0;
    for (int32_t g = 0; g < groups->n_open; g++) {
        const ifl_group *group = groups->open[g];
        int32_t n[4] = {0};
        for (int32_t i = 0; i < group->n_members; i++) {
            const ifl_member *member = &group->members[i];
            n[member->state]++;
            if ((member->state == IFL_MEMBER_STORED) != (member->traj != NULL))
                return ifl_fail(err, IFL_MISMATCH,
                                "group %llu, sample %d: state %d does not fit its trajectory",
                                (unsigned long long)group->task_serial, i, member->state);
        }
        if (n[IFL_MEMBER_PENDING] != group->n_pending || n[IFL_MEMBER_LEASED] != group->n_leased ||
            n[IFL_MEMBER_STORED] != group->n_stored || n[IFL_MEMBER_DROPPED] != group->n_dropped)
            return ifl_fail(err, IFL_MISMATCH, "group %llu: counts are off",
                            (unsigned long long)group->task_serial);
        if ((group->n_pending + group->n_leased == 0) != (group->completed != 0))
            return ifl_fail(err, IFL_MISMATCH, "group %llu: completeness is off",
                            (unsigned long long)group->task_serial);
        if (g > 0 && groups->open[g - 1]->task_serial >= group->task_serial)
            return ifl_fail(err, IFL_MISMATCH, "group %llu: out of order",
                            (unsigned long long)group->task_serial);
        pending += group->n_pending;
        leased += group->n_leased;
        stored += group->n_stored;
    }
    const ifl_groups_counts *counts = &groups->counts;
    if (pending != counts->pending || leased != counts->leased || stored != counts->stored)
        return ifl_fail(err, IFL_MISMATCH,
                        "group table: pending %lld, leased %lld, stored %lld by count, %lld, %lld, "
                        "%lld by members",
                        (long long)counts->pending, (long long)counts->leased,
                        (long long)counts->stored, (long long)pending, (long long)leased,
                        (long long)stored);
    if (counts->groups_opened - counts->groups_closed != groups->n_open)
        return ifl_fail(err, IFL_MISMATCH, "group table: %lld groups opened, %lld closed, %d open",
                        (long long)counts->groups_opened, (long long)counts->groups_closed,
                        groups->n_open);
    return counts_check(counts, err);
}

#include "learner/staleness.h"

#include <string.h>

/* The last step that a group is in time for, as a distance from `step`; 0 when that is over. */
static int32_t group_deadline(const ifl_stale_group *group, int64_t step, int32_t max_versions) {
    int64_t distance = group->oldest + 1 + max_versions - step;
    return distance < 0 ? 0 : distance > max_versions ? max_versions : (int32_t)distance;
}

/* slack[t]: places up to and including step + t, less the groups that must have one of them. */
static void staleness_slack(int64_t *slack, const ifl_stale_group *groups, int32_t n, int64_t step,
                            int32_t left, int32_t per_step, int32_t max_versions) {
    for (int32_t t = 0; t <= max_versions; t++)
        slack[t] = left + (int64_t)per_step * t;
    for (int32_t g = 0; g < n; g++)
        for (int32_t t = group_deadline(&groups[g], step, max_versions); t <= max_versions; t++)
            slack[t]--;
}

bool ifl_staleness_choose(const ifl_stale_group *groups, int32_t n, int64_t step, int32_t left,
                          int32_t now, int32_t per_step, int32_t max_versions, int32_t *chosen) {
    IFL_ASSERT(max_versions >= 0 && max_versions <= IFL_STALENESS_MAX && now >= 1 && now <= left);
    int64_t slack[IFL_STALENESS_MAX + 1];
    staleness_slack(slack, groups, n, step, left, per_step, max_versions);
    int32_t n_chosen = 0;
    while (n_chosen < now) {
        int32_t best = -1, best_deadline = 0;
        for (int32_t g = 0; g < n; g++) {
            if (groups[g].completed == 0) continue;
            bool had = false;
            for (int32_t i = 0; i < n_chosen && !had; i++)
                had = chosen[i] == g;
            int32_t deadline = group_deadline(&groups[g], step, max_versions);
            if (had || (best >= 0 && (deadline > best_deadline ||
                                      (deadline == best_deadline &&
                                       groups[g].completed > groups[best].completed))))
                continue;
            best = g;
            best_deadline = deadline;
        }
        if (best < 0) return false;
        for (int32_t t = 0; t < best_deadline; t++)
            if (slack[t]-- < 1) return false; /* every later deadline fails here as well */
        chosen[n_chosen++] = best;
    }
    return true;
}

bool ifl_staleness_admits(const ifl_stale_group *groups, int32_t n, int64_t step, int32_t left,
                          int32_t per_step, int32_t max_versions, int64_t oldest) {
    IFL_ASSERT(max_versions >= 0 && max_versions <= IFL_STALENESS_MAX);
    if (oldest + 1 + max_versions < step) return false;
    int64_t slack[IFL_STALENESS_MAX + 1];
    staleness_slack(slack, groups, n, step, left, per_step, max_versions);
    const ifl_stale_group added = {oldest, 0};
    for (int32_t t = group_deadline(&added, step, max_versions); t <= max_versions; t++)
        if (slack[t] < 1) return false;
    return true;
}

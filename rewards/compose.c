#include "rewards/compose.h"

#include <stdio.h>
#include <string.h>

#include "rewards/message.h"

/* How bad a status is that is no verdict; 0 for verdicts. */
static int severity(ifl_reward_status status) {
    switch (status) {
    case IFL_REWARD_UNDECIDED:
        return 1;
    case IFL_REWARD_BAD_TASK:
        return 2;
    case IFL_REWARD_UNAVAILABLE:
        return 3;
    case IFL_REWARD_CHECKER_ERROR:
    case IFL_REWARD_NONE:
        return 4;
    default:
        return 0;
    }
}

static void component_add(ifl_reward *out, const char *name, float value) {
    if (out->n_components >= IFL_COMPONENTS_MAX) return;
    snprintf(out->components[out->n_components].name, sizeof out->components[0].name, "%s", name);
    out->components[out->n_components++].value = value;
}

/* The parts' own components; they come after those of all parts. */
static void components_nested(ifl_reward *out, const ifl_spec_part *part, const ifl_reward *r) {
    for (int32_t i = 0; i < r->n_components; i++) {
        char name[sizeof part->name + sizeof r->components[0].name];
        int n = snprintf(name, sizeof name, "%s/%s", part->name, r->components[i].name);
        if (n < (int)sizeof out->components[0].name)
            component_add(out, name, r->components[i].value);
    }
}

static void tests_add(ifl_reward *out, const ifl_reward *r) {
    out->tests_passed += r->tests_passed;
    out->tests_total += r->tests_total;
    if (r->tier && (!out->tier || r->tier < out->tier)) out->tier = r->tier;
}

/* Whether a part's result ends the composition, seen from that part alone. */
static bool part_ends(const ifl_spec_entry *e, const ifl_reward *r) {
    if (e->kind == IFL_SPEC_SUM) return false;
    if (e->kind == IFL_SPEC_PRODUCT) return !ifl_reward_is_verdict(r->status) || r->reward <= 0.0f;
    if (r->status == IFL_REWARD_UNDECIDED) return !(e->passes & IFL_SPEC_PASS_UNDECIDED);
    if (r->status == IFL_REWARD_NO_ANSWER) return !(e->passes & IFL_SPEC_PASS_NO_ANSWER);
    return true;
}

/* The status by the rules of the header; the index of the part that gives it. */
static int32_t status_of(const ifl_spec_entry *e, const ifl_reward *results, int32_t n) {
    int32_t worst = 0, taken = -1;
    if (e->kind == IFL_SPEC_FIRST && part_ends(e, &results[n - 1])) return n - 1;
    for (int32_t i = 1; i < n; i++)
        if (severity(results[i].status) > severity(results[worst].status)) worst = i;
    if (severity(results[worst].status) > 0) return worst;
    for (int32_t i = 0; i < n && taken < 0; i++)
        if (results[i].status != IFL_REWARD_OK) taken = i;
    return taken < 0 ? 0 : taken;
}

static double reward_of(const ifl_spec_entry *e, const ifl_reward *results, int32_t n) {
    double sum = 0.0, product = 1.0;
    if (e->kind == IFL_SPEC_FIRST) return (double)results[n - 1].reward;
    for (int32_t i = 0; i < n; i++) {
        double r = (double)results[i].reward;
        sum += e->parts[i].weight * r;
        product *= r > 0.0 ? r : 0.0;
    }
    double whole = e->kind == IFL_SPEC_SUM ? sum : product;
    if (whole < e->clip[0]) whole = e->clip[0];
    if (whole > e->clip[1]) whole = e->clip[1];
    return whole;
}

void ifl_compose(const ifl_spec_entry *entry, ifl_part_run run, void *user, ifl_reward *out,
                 char *reason) {
    ifl_reward results[IFL_SPEC_PARTS_MAX];
    char reasons[IFL_SPEC_PARTS_MAX][IFL_REWARD_REASON_MAX];
    int32_t n = 0;
    out->n_components = out->tests_passed = out->tests_total = 0;
    out->tier = IFL_TIER_NONE;
    for (bool ended = false; !ended && n < entry->n_parts; n++) {
        memset(&results[n], 0, sizeof results[n]);
        reasons[n][0] = '\0';
        run(user, &entry->parts[n], &results[n], reasons[n]);
        component_add(out, entry->parts[n].name, results[n].reward);
        tests_add(out, &results[n]);
        ended = part_ends(entry, &results[n]);
    }
    for (int32_t i = 0; i < n; i++)
        components_nested(out, &entry->parts[i], &results[i]);
    int32_t at = status_of(entry, results, n);
    out->status = results[at].status;
    out->reward = ifl_reward_is_verdict(out->status) ? (float)reward_of(entry, results, n) : 0.0f;
    reason[0] = '\0';
    if (reasons[at][0])
        snprintf(reason, IFL_REWARD_REASON_MAX, "part %s: %.900s", entry->parts[at].name,
                 reasons[at]);
}

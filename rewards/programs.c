#include "rewards/programs.h"

#include <stdio.h>
#include <string.h>

#include "rewards/sandbox/sandbox.h"

static bool entry_runs(const ifl_spec *spec, int32_t index, int depth) {
    const ifl_spec_entry *e = &spec->entries[index];
    if (e->builtin && (e->builtin->flags & IFL_CHECKER_RUNS_PROGRAMS)) return true;
    for (int32_t i = 0; i < e->n_parts && depth < IFL_SPEC_DEPTH_MAX; i++) {
        const ifl_spec_part *part = &e->parts[i];
        if (part->entry >= 0 ? entry_runs(spec, part->entry, depth + 1)
                             : (part->builtin->flags & IFL_CHECKER_RUNS_PROGRAMS) != 0)
            return true;
    }
    return false;
}

bool ifl_checker_runs_programs(const ifl_spec *spec, const char *name) {
    int32_t index = ifl_spec_find(spec, name);
    if (index >= 0) return entry_runs(spec, index, 0);
    const ifl_checker *builtin = ifl_checker_find(name);
    return builtin && (builtin->flags & IFL_CHECKER_RUNS_PROGRAMS);
}

ifl_status ifl_config_runs_programs(const ifl_config *config, bool *out, ifl_error *err) {
    ifl_spec *spec;
    const char *source;
    json_t *checker;
    *out = false;
    IFL_TRY(ifl_spec_parse(&spec, config->reward.checkers, err));
    json_t *route = json_loads(config->reward.route, 0, NULL);
    *out = ifl_checker_runs_programs(spec, config->reward.checker);
    json_object_foreach(route, source, checker) {
        const char *name = json_string_value(checker);
        *out = *out || (name && ifl_checker_runs_programs(spec, name));
    }
    for (int i = 0; i < config->data.n_train; i++)
        *out = *out || ifl_checker_runs_programs(spec, config->data.train[i].checker);
    for (int i = 0; i < config->data.n_eval; i++)
        *out = *out || ifl_checker_runs_programs(spec, config->data.eval[i].checker);
    json_decref(route);
    ifl_spec_free(spec);
    return IFL_OK;
}

ifl_status ifl_programs_start(const ifl_config *config, const char *program, ifl_error *err) {
    ifl_sandbox *sandbox;
    IFL_TRY(ifl_sandbox_create(
        &sandbox,
        &(ifl_sandbox_options){.program = program,
                               .require = ifl_sandbox_tier_parse(config->reward.sandbox_require)},
        err));
    const char *why = ifl_sandbox_above(sandbox);
    fprintf(stderr, "rewards: sandbox tier %s (%d canaries passed)%s%s\n",
            ifl_sandbox_tier_name(ifl_sandbox_measured(sandbox)), ifl_sandbox_canaries(sandbox),
            *why ? "; not cgroup: " : "", why);
    ifl_sandbox_free(sandbox);
    return IFL_OK;
}

ifl_status ifl_programs_start_config(const ifl_config *config, ifl_error *err) {
    bool runs;
    IFL_TRY(ifl_config_runs_programs(config, &runs, err));
    return runs ? ifl_programs_start(config, NULL, err) : IFL_OK;
}

#include "deploy/cli/run_archive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file_map.h"
#include "common/memory.h"

#define CHUNK_ROWS 256
#define VERSIONS_CACHED 12
#define MODEL_JSON_BYTES_MAX (1 << 20)

void ifl_run_archive_init(ifl_run_archive *a, const ifl_run_dir *run, ifl_thread_pool *pool) {
    *a = (ifl_run_archive){.run = run, .pool = pool, .process = -1};
}

static void archive_clear(ifl_run_archive *a) {
    ifl_version_history_close(a->history);
    a->history = NULL;
    for (int i = 0; i < IFL_PROFILE_COUNT; i++) {
        ifl_workspace_free(a->workspaces[i]);
        ifl_model_free(a->models[i]);
        a->workspaces[i] = NULL;
        a->models[i] = NULL;
    }
    a->process = -1;
}

void ifl_run_archive_close(ifl_run_archive *a) {
    archive_clear(a);
    free(a->processes);
    ifl_run_archive_init(a, a->run, a->pool);
}

ifl_status ifl_run_archive_record(ifl_run_archive *a, const ifl_record *record, ifl_error *err) {
    if (record->type != IFL_RECORD_RUN_STARTED && a->n_processes > 0) return IFL_OK;
    void *grown = a->processes;
    ifl_status st =
        ifl_grow(&grown, &a->processes_cap, (size_t)a->n_processes + 1, sizeof *a->processes, err);
    a->processes = grown;
    if (st == IFL_OK)
        a->processes[a->n_processes++] =
            (ifl_version_process){ifl_rollout_segment_number(record->file), record->step};
    return st;
}

static ifl_status models_read(ifl_run_archive *a, const char *folder, ifl_error *err) {
    char path[IFL_PATH_MAX + 32], *json = NULL;
    size_t n;
    snprintf(path, sizeof path, "%s/model.json", folder);
    ifl_status st = ifl_file_read_text(path, MODEL_JSON_BYTES_MAX, &json, &n, err);
    if (st == IFL_NOTFOUND)
        return ifl_fail(err, IFL_NOTFOUND,
                        "%s: no such folder: the run kept no versions (archive.versions_gib)",
                        folder);
    IFL_TRY(st);
    ifl_model_config config;
    st = ifl_model_config_from_json(&config, json, n, err);
    free(json);
    for (int i = 0; i < IFL_PROFILE_COUNT && st == IFL_OK; i++)
        st = ifl_model_create(&a->models[i], &config, 0, (ifl_profile)i, err);
    return st;
}

ifl_status ifl_run_archive_open(ifl_run_archive *a, int32_t process, ifl_hash profile,
                                ifl_error *err) {
    a->gone = (ifl_error){0};
    if (a->process != process) archive_clear(a);
    a->process = process;
    char folder[IFL_PATH_MAX + 16];
    snprintf(folder, sizeof folder, "%s/%06d", a->run->versions, a->processes[process].segment);
    if (!a->models[0]) IFL_TRY(models_read(a, folder, err));
    for (int i = 0; i < IFL_PROFILE_COUNT; i++) {
        if (!ifl_hash_equal(a->models[i]->profile, profile)) continue;
        if (!a->workspaces[i])
            IFL_TRY(ifl_workspace_create(&a->workspaces[i], a->models[i], CHUNK_ROWS, a->pool,
                                         ifl_ops_best((ifl_profile)i), err));
        if (a->history && a->profile == (ifl_profile)i) return IFL_OK;
        ifl_version_history_close(a->history);
        a->profile = (ifl_profile)i;
        return ifl_version_history_open(&a->history, a->run->versions, a->processes, a->n_processes,
                                        a->models[i], VERSIONS_CACHED, err);
    }
    char theirs[33], ours[33];
    ifl_hash_text(profile, theirs);
    ifl_hash_text(a->models[0]->profile, ours);
    return ifl_fail(
        err, IFL_MISMATCH,
        "computed under numerics profile %s, which this program hasn't (f32 is %s here)", theirs,
        ours);
}

const ifl_model *ifl_run_archive_model(const ifl_run_archive *a) {
    return a->models[a->profile];
}

ifl_workspace *ifl_run_archive_workspace(const ifl_run_archive *a) {
    return a->workspaces[a->profile];
}

const ifl_weights *ifl_run_archive_get(void *context, int64_t version) {
    ifl_run_archive *a = context;
    const ifl_weights *weights;
    return ifl_version_history_get(a->history, a->process, version, &weights, &a->gone) == IFL_OK
               ? weights
               : NULL;
}

/* The archived versions of a run (runs/<name>/versions), for commands that score its trajectories
 * again: as one of its processes knew them, in the numerics profile that a trajectory names. */
#ifndef IFL_DEPLOY_CLI_RUN_ARCHIVE_H
#define IFL_DEPLOY_CLI_RUN_ARCHIVE_H

#include "common/rollout_log.h"
#include "common/run_dir.h"
#include "kernels/replay.h"
#include "learner/version_history.h"

typedef struct ifl_run_archive {
    const ifl_run_dir *run; /* borrowed, as the pool */
    ifl_thread_pool *pool;
    ifl_version_process
        *processes; /* [n_processes] of the run, as far as its log was read; owned */
    int32_t n_processes;
    size_t processes_cap;
    int32_t process;                      /* that is open; -1 = none */
    ifl_model *models[IFL_PROFILE_COUNT]; /* NULL: not wanted yet */
    ifl_workspace *workspaces[IFL_PROFILE_COUNT];
    ifl_version_history *history;
    ifl_profile profile; /* of the history */
    ifl_error gone;      /* why a version could not be had */
} ifl_run_archive;

/* Zeroed is closed. */
void ifl_run_archive_init(ifl_run_archive *archive, const ifl_run_dir *run, ifl_thread_pool *pool);
void ifl_run_archive_close(ifl_run_archive *archive);

/* To be given every record of the log, in order: notes the learner processes. The process that
 * wrote the record is then number n_processes - 1. */
ifl_status ifl_run_archive_record(ifl_run_archive *archive, const ifl_record *record,
                                  ifl_error *err);

/* The versions that process number `process` knew, for a trajectory's profile. IFL_NOTFOUND: it
 * kept none; IFL_MISMATCH: a profile that this program hasn't. */
ifl_status ifl_run_archive_open(ifl_run_archive *archive, int32_t process, ifl_hash profile,
                                ifl_error *err);

/* Of what is open. */
const ifl_model *ifl_run_archive_model(const ifl_run_archive *archive);
ifl_workspace *ifl_run_archive_workspace(const ifl_run_archive *archive);

/* An ifl_weights_get_fn; .gone says why there is nothing. */
const ifl_weights *ifl_run_archive_get(void *archive, int64_t version);

#endif

/* The versions of a whole run, through all its learner processes: what learner/version_archive.h
 * keeps for each. A resumed process goes on from a checkpoint, and versions before that are of its
 * forerunners. */
#ifndef IFL_LEARNER_VERSION_HISTORY_H
#define IFL_LEARNER_VERSION_HISTORY_H

#include "learner/version_archive.h"

/* A learner process of a run, as its first log record tells (IFL_RECORD_RUN_STARTED). */
typedef struct ifl_version_process {
    int32_t segment; /* of the log: its first; names the folder of its versions */
    int64_t begin;   /* the first version that it publishes */
} ifl_version_process;

typedef struct ifl_version_history ifl_version_history;

/* `folder`: runs/<name>/versions. Copies processes[n], in the order of the log; borrows model.
 * n_cached versions of each process stay in memory. Opens no file yet. */
ifl_status ifl_version_history_open(ifl_version_history **out, const char *folder,
                                    const ifl_version_process *processes, int32_t n,
                                    const ifl_model *model, int32_t n_cached, ifl_error *err);
void ifl_version_history_close(ifl_version_history *history); /* NULL is fine */

/* The weights of `version` as process number `process` knows it (n: one that begins now); valid
 * until n_cached others of the process that made it were asked for. Failures as in
 * ifl_version_reader_get. */
ifl_status ifl_version_history_get(ifl_version_history *history, int32_t process, int64_t version,
                                   const ifl_weights **out, ifl_error *err);

#endif

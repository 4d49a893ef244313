/* runs/<name>/: the folder of one run. What lies in it:
 *   config.yaml      the resolved configuration        summary.json  the run in figures, at the end
 *   metrics.jsonl    one line per step                 report.html   `inflight report`
 *   ledger.jsonl     off-policyness by cause (learner/bias_ledger.h)
 *   rollouts/        every trajectory and its fate     checkpoints/  resume points
 *   versions/        every policy version, as patches (learner/version_archive.h)
 *   numerics.txt     the numerics contract, part by part (kernels/contract.h)
 *   tokenizer.json   for people and tools              lock          held by the learner while it
 * lives
 *   evals/           before.jsonl and after.jsonl: held-out answers (learner/eval_results.h) */
#ifndef IFL_COMMON_RUN_DIR_H
#define IFL_COMMON_RUN_DIR_H

#include "common/config.h"

typedef struct ifl_run_dir {
    char path[IFL_PATH_MAX];        /* <run.dir>/<run.name> */
    char config[IFL_PATH_MAX];      /* .../config.yaml */
    char metrics[IFL_PATH_MAX];     /* .../metrics.jsonl */
    char ledger[IFL_PATH_MAX];      /* .../ledger.jsonl */
    char rollouts[IFL_PATH_MAX];    /* .../rollouts */
    char checkpoints[IFL_PATH_MAX]; /* .../checkpoints */
    char versions[IFL_PATH_MAX];    /* .../versions */
    char summary[IFL_PATH_MAX];     /* .../summary.json */
    char report[IFL_PATH_MAX];      /* .../report.html */
    char tokenizer[IFL_PATH_MAX];   /* .../tokenizer.json */
    int lock_fd;                    /* -1: not held */
} ifl_run_dir;

/* Creates and locks the folder of a run, and writes config.yaml. When it exists already: with
 * run.resume it is used again (and need not exist: IFL_NOTFOUND if it doesn't); with run.overwrite
 * it is moved aside to <name>.1, .2, ...; else IFL_USAGE with a text that names both ways. A folder
 * whose lock another process holds is IFL_USAGE in every case. The folder appears complete or not
 * at all. */
ifl_status ifl_run_dir_create(ifl_run_dir *out, const ifl_config *config, ifl_error *err);

/* Fills in the paths of an existing run, without lock: `run` is a folder, or a name below `dir`. */
ifl_status ifl_run_dir_open(ifl_run_dir *out, const char *dir, const char *run, ifl_error *err);

/* Gives the lock back. Fine on one that was only opened. */
void ifl_run_dir_close(ifl_run_dir *run);

/* Writes a file so that after a crash either the old or the new bytes are there: temporary file
 * beside it, fsync, rename, fsync of the folder. */
ifl_status ifl_file_write_atomic(const char *path, const void *bytes, size_t n_bytes,
                                 ifl_error *err);

/* mkdir -p. */
ifl_status ifl_dir_create(const char *path, ifl_error *err);
ifl_status ifl_dir_sync(const char *path, ifl_error *err);

/* IFL_LIMIT when the file system of `path` has less than n_bytes + 64 MiB free. `what` names the
 * write. */
ifl_status ifl_disk_headroom(const char *path, int64_t n_bytes, const char *what, ifl_error *err);

#endif

/* A run's trajectories as people see them: with their fate, their lag and their text. Shared by
 * `inflight rollouts` and `inflight report`. */
#ifndef IFL_DEPLOY_CLI_REPORT_ROLLOUTS_H
#define IFL_DEPLOY_CLI_REPORT_ROLLOUTS_H

#include "common/rollout_ledger.h"
#include "common/run_dir.h"
#include "common/tokenizer.h"

typedef struct ifl_rollout_row {
    const ifl_trajectory *traj; /* borrowed, for the call */
    ifl_rollout_fate fate;
    int32_t n_prompt, n_answer; /* tokens */
    bool has_lag;               /* trained, and has loss tokens */
    double lag_mean, lag_max;   /* versions, over loss tokens */
    int64_t version_oldest, version_newest;
    int32_t n_versions;
    int64_t wall_ms;
} ifl_rollout_row;

typedef struct ifl_rollout_view ifl_rollout_view;

/* Reads the ledger and, if the run has one, the tokenizer. Returns owned. */
ifl_status ifl_rollout_view_open(ifl_rollout_view **out, const ifl_run_dir *run, ifl_error *err);
void ifl_rollout_view_close(ifl_rollout_view *view); /* NULL is fine */
const ifl_rollout_ledger *ifl_rollout_view_ledger(const ifl_rollout_view *view);

/* Calls `row` for every stored trajectory in the order of the log. Anything but IFL_OK from it ends
 * the walk; IFL_STOPPED is then turned into IFL_OK. */
ifl_status ifl_rollout_view_walk(ifl_rollout_view *view,
                                 ifl_status (*row)(const ifl_rollout_row *row, void *user),
                                 void *user, ifl_error *err);

/* Text of tokens [begin, begin + n): by the tokenizer, or "[1 2 3]" without one. Owned, free();
 * NULL when out of memory. Valid UTF-8; may hold any character, control characters too. */
char *ifl_rollout_text(const ifl_rollout_view *view, const int32_t *tokens, int32_t n);

/* Writes `text` for a terminal: control characters escaped, each further line begins with `indent`.
 */
void ifl_text_print(FILE *f, const char *text, const char *indent);

#endif

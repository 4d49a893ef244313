/* Nothing that is measured on may be trained on. */
#ifndef IFL_COMMON_TASK_DISJOINT_H
#define IFL_COMMON_TASK_DISJOINT_H

#include "common/task_source.h"

/* Compares the evaluation sources with config's training sources by hash of (prompt, answer),
 * prompts as they stand in the source, without template and few-shots. A shared task is
 * IFL_MISMATCH and both places are named. A training file that isn't there is a warning: whoever
 * only evaluates may not have it. */
ifl_status ifl_task_disjoint_check(const ifl_task_source *eval, int32_t n_eval,
                                   const ifl_config *config, ifl_error *err);

#endif

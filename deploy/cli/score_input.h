/* What `inflight score` reads: tasks, and completions to put beside them. */
#ifndef IFL_DEPLOY_CLI_SCORE_INPUT_H
#define IFL_DEPLOY_CLI_SCORE_INPUT_H

#include "common/file_map.h"
#include "common/task_file.h"
#include "common/trajectory.h"

#define IFL_COMPLETION_LINE_BYTES_MAX ((size_t)8 << 20)

typedef struct ifl_score_input {
    ifl_task_file *tasks;
    ifl_file_map completions;
    const char *path; /* of the completions; borrowed */
    int64_t *order;   /* [n_tasks] task indices sorted by the hash of their ids */
    uint64_t offset;  /* of the next line */
    int64_t line;     /* of the last line read */
    int64_t n_read;
    int by_id; /* -1 = not known yet: the first line decides for all */
} ifl_score_input;

/* One line of the completions, beside its task. */
typedef struct ifl_scored_line {
    json_t *root;
    ifl_task_line task;
    const char *completion; /* may hold NUL bytes */
    size_t n_completion;
    ifl_finish finish;
} ifl_scored_line;

ifl_status ifl_score_input_open(ifl_score_input *input, const char *tasks_path,
                                const char *completions_path, ifl_error *err);
void ifl_score_input_close(ifl_score_input *input); /* a zeroed one is fine */

/* IFL_NOTFOUND at the end. A line is {completion, id?, finish?}: lines with ids are matched by id,
 * several with one id are several answers to it; without ids the n-th line answers the n-th task.
 */
ifl_status ifl_score_input_next(ifl_score_input *input, ifl_scored_line *out, ifl_error *err);
void ifl_scored_line_clear(ifl_scored_line *line);

#endif

/* Task lines in JSONL files. Every line is validated at open; reading one again costs one parse.
 *
 * A line is {prompt, id?, data_source?, checker?, answer?, meta?, completion?, max_new_tokens?,
 * weight?, eval_only?}: prompt is a text, a list of {role, content}, or a list of token ids; answer
 * a text or an integer; meta an object; completion (supervised examples) a text; eval_only (true:
 * of a benchmark, never to be trained on) a boolean. Unknown keys are kept in `line`. Without an id
 * the task is called "<name>:<line number>". */
#ifndef IFL_COMMON_TASK_FILE_H
#define IFL_COMMON_TASK_FILE_H

#include <jansson.h>

#include "common/hash.h"
#include "common/task.h"

#define IFL_TASK_LINE_BYTES_MAX ((size_t)4 << 20)
#define IFL_TASK_LINES_MAX ((int64_t)1 << 24)
#define IFL_TASK_MESSAGES_MAX 256

typedef struct ifl_task_file ifl_task_file;

/* One parsed line. `task` has everything but its prompt: that is exactly one of text, messages and
 * ids, which live as long as `root`. */
typedef struct ifl_task_line {
    json_t *root;
    ifl_task task;
    const char *text;
    const json_t *messages; /* a list of {role, content}, both texts */
    const json_t *ids;      /* a list of integers in 0 .. 2^31 - 1 */
    const char *completion; /* NULL when there is none */
    bool eval_only;
} ifl_task_line;

/* Opens and validates. `name` is the data_source of lines that name none (borrowed for the call);
 * `count` limits the number of tasks (0 = all). Blank lines are skipped. Errors name path:line. Two
 * lines with one id are an error, and so is a file without a task. */
ifl_status ifl_task_file_open(ifl_task_file **out, const char *path, const char *name,
                              int64_t count, ifl_error *err);
void ifl_task_file_close(ifl_task_file *file); /* NULL is fine */

int64_t ifl_task_file_size(const ifl_task_file *file);
/* The line number of the first task that says eval_only; 0 when there is none. */
int64_t ifl_task_file_eval_only_line(const ifl_task_file *file);

/* Reads task `index` again. IFL_MISMATCH when the file has changed since it was opened. */
ifl_status ifl_task_file_read(const ifl_task_file *file, int64_t index, ifl_task_line *out,
                              ifl_error *err);
void ifl_task_line_clear(ifl_task_line *line);

/* The line number of a task in its file, from 1. */
int64_t ifl_task_file_line(const ifl_task_file *file, int64_t index);
/* Hash of (prompt, answer), by which data sets are held apart; and of the id. */
ifl_hash ifl_task_file_key(const ifl_task_file *file, int64_t index);
ifl_hash ifl_task_file_id(const ifl_task_file *file, int64_t index);

/* The key of a text prompt and its answer. */
ifl_hash ifl_task_key(const char *prompt, const char *answer);

#endif

/* One source of a task set: a JSONL file or a generator, with its prompt format. */
#ifndef IFL_COMMON_TASK_SOURCE_H
#define IFL_COMMON_TASK_SOURCE_H

#include "common/chat_format.h"
#include "common/task_file.h"
#include "common/task_generator.h"

typedef struct ifl_task_source {
    ifl_source_config config;
    char where[32];          /* e.g. "data.train.0", for errors */
    char name[IFL_NAME_MAX]; /* data_source of its tasks */
    ifl_chat_format chat_format;
    const ifl_tokenizer *tokenizer; /* borrowed; NULL: texts only, tasks get no token ids */
    int32_t prompt_tokens_max;
    ifl_task_file *file; /* NULL = a generator */
    ifl_generator tasks,
        examples;  /* other draws for other uses; the same tasks if the set is finite */
    int64_t *kept; /* file: [n] its tasks whose prompts aren't too long */
    int64_t n;     /* 0 = endless */
    uint64_t seed;
} ifl_task_source;

/* `index` makes `where` and the streams of random numbers. With a tokenizer every prompt of a file
 * is encoded once: those over prompt_tokens_max are left out and counted in a warning. */
ifl_status ifl_task_source_open(ifl_task_source *source, const ifl_config *config,
                                const char *purpose, int32_t index, const ifl_tokenizer *tokenizer,
                                uint64_t seed, ifl_error *err);
void ifl_task_source_close(ifl_task_source *source); /* a zeroed one is fine */

/* Task `item` (endless sources: draw `item`). With `completion` (owned by the caller, free()) the
 * supervised example: of a generator worked with probability worked_share, of a file its
 * completion, or else its answer. */
ifl_status ifl_task_source_get(const ifl_task_source *source, uint64_t item, ifl_task *out,
                               ifl_error *err);
ifl_status ifl_task_source_example(const ifl_task_source *source, uint64_t item,
                                   double worked_share, ifl_task *out, char **completion,
                                   ifl_error *err);

/* Hash of the task's id without making the task. */
uint64_t ifl_task_source_id(const ifl_task_source *source, uint64_t item);

/* Keys (hash of prompt and answer) of everything the source can ever give, and a name for one of
 * them that a user can find: "data.eval.0 (data/x.jsonl:12)". Owned by the caller (free()). */
ifl_status ifl_task_source_keys(const ifl_task_source *source, ifl_hash **keys, int64_t *n,
                                ifl_error *err);
void ifl_task_source_describe(const ifl_task_source *source, int64_t key_index,
                              char out[IFL_PATH_MAX + 128]);

#endif

/* Tasks: prompts with what their checker needs, from JSONL files and procedural generators. The
 * order is a keyed permutation, so that a source's whole state is one integer. */
#ifndef IFL_COMMON_TASK_H
#define IFL_COMMON_TASK_H

#include "common/config.h"
#include "common/tokenizer.h"

/* A JSONL line: {id, data_source, prompt: text | messages | token ids, checker, answer, meta,
 * max_new_tokens?, weight?, eval_only?}; unknown keys are kept in `line`. Strings are owned. */
typedef struct ifl_task {
    char *id;
    char *data_source;
    int32_t source; /* its entry in the set's list: ifl_task_set_source_name */
    char *checker;  /* "" = the run's default */
    char *answer;
    char *meta;      /* JSON text; "" = none */
    char *text;      /* rendered prompt text, for people; NULL for token-id prompts */
    int32_t *prompt; /* token ids */
    int32_t n_prompt;
    int32_t max_new_tokens; /* 0 = the run's */
    double weight;
    char *line; /* the JSON object as read or generated */
} ifl_task;

void ifl_task_clear(ifl_task *task);
ifl_status ifl_task_copy(ifl_task *to, const ifl_task *from, ifl_error *err);

/* Several sources mixed. Not thread-safe. */
typedef struct ifl_task_set ifl_task_set;

/* Opens the sources of config.data.train or .eval (`purpose` "train" or "eval"). Files are indexed,
 * not loaded whole; every line is validated at open, with path:line in errors; prompts longer than
 * data.prompt_tokens_max are left out with a warning. An eval set must be disjoint from the
 * training sources by hash of (prompt, answer): a shared task is IFL_MISMATCH and names both
 * places. A file with an eval_only task is IFL_MISMATCH as a training source. Held-out tasks and
 * their order don't depend on run.seed, so that runs with several seeds measure on the same.
 * `tokenizer` is borrowed; NULL gives tasks without token ids. A prompt is few_shot, then the
 * template around the task's text (`sums` brings four equations as its few_shot unless another is
 * given); data.chat_format other than none makes that the user's turn. Messages and token ids take
 * neither template nor few_shot.
 *
 * data.sampler, for training: `ratio` (the default) spreads the sources evenly by their ratios;
 * `uniform` goes through all tasks of all sources in one keyed permutation; `pass_rate` is `ratio`,
 * but a task whose last reported pass rate lies outside [pass_rate_min, pass_rate_max] is replaced
 * by another one of its source (the one nearest to the band if 16 candidates all lie outside),
 * except for every 8th serial, which measures old rates again. Eval sets are `uniform` if all
 * sources are finite, else `ratio`. */
ifl_status ifl_task_set_open(ifl_task_set **out, const ifl_config *config, const char *purpose,
                             const ifl_tokenizer *tokenizer, ifl_error *err);
void ifl_task_set_close(ifl_task_set *set);

/* Number of distinct tasks; 0 = endless. */
int64_t ifl_task_set_size(const ifl_task_set *set);

/* Name of one of the set's entries; lives as long as the set. A line of a file may bear another
 * data_source; this is the configuration's. */
const char *ifl_task_set_source_name(const ifl_task_set *set, int32_t source);

/* The task with running number `serial` (0, 1, ...): source by the sampler, then a keyed
 * permutation inside a finite source, epoch after epoch. A pure function of (seed, serial), except
 * for the pass_rate sampler, where it depends on what was reported. */
ifl_status ifl_task_set_get(ifl_task_set *set, uint64_t serial, ifl_task *out, ifl_error *err);

/* The same in two: which one, and that one. A pick means the same task as long as the configuration
 * and the files are the same; one that the sources can't give (any more) is IFL_NOTFOUND. */
typedef struct ifl_task_pick {
    int32_t source;
    uint64_t item;
} ifl_task_pick;
ifl_task_pick ifl_task_set_draw(const ifl_task_set *set, uint64_t serial);
ifl_status ifl_task_set_get_picked(const ifl_task_set *set, ifl_task_pick pick, ifl_task *out,
                                   ifl_error *err);

/* Whether draws depend on reports: whoever wants to repeat them has to record them. */
bool ifl_task_set_is_adaptive(const ifl_task_set *set);

/* For the pass_rate sampler: what share of a group's answers was right. */
void ifl_task_set_report(ifl_task_set *set, const char *task_id, double pass_rate);

/* All that was reported, as text: 24 hexadecimal digits a task, ascending. Owned by the caller
 * (free()); NULL = out of memory. Restoring it into a set just opened makes its draws those of the
 * other one; IFL_FORMAT for another text. */
char *ifl_task_set_rates(const ifl_task_set *set);
ifl_status ifl_task_set_rates_restore(ifl_task_set *set, const char *text, ifl_error *err);

/* Supervised examples: a task and the completion to learn, owned by the caller (free()), with the
 * newline that ends it. Generators draw other tasks here than ifl_task_set_get does; of `ladder`
 * the share worked_share is worked, by keyed draws. Files give a line's "completion", or else its
 * answer as it is. */
ifl_status ifl_task_set_example(ifl_task_set *set, uint64_t serial, double worked_share,
                                ifl_task *task, char **completion, ifl_error *err);

#endif

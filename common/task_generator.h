/* Procedural tasks. A generator's task space is a finite set of items; a fixed hash class of it is
 * held out, so that the train and the heldout split are disjoint by construction, for every seed
 * and count.
 *
 * ladder: x + d*k in three digits, x 0..699, d 2..9, k 1..steps_max with P(k) proportional to
 * k^-0.8. prompt "417+7*12=", bare answer "#501\n", worked answer
 * "424+7*11=431+7*10=...501+7*00=#501\n": every line rewrites the one before it. Checked by `exact`
 * after the last '#', ended answers only. sums: a + b or a - b >= 0 of 1 or 2 digits, prompt "7 + 5
 * =", answer "12", completion " 12\n". The four equations of its few-shot text are in neither
 * split. */
#ifndef IFL_COMMON_TASK_GENERATOR_H
#define IFL_COMMON_TASK_GENERATOR_H

#include "common/config.h"

#define IFL_GENERATOR_TEXT_MAX 512     /* any text below, NUL included */
#define IFL_GENERATOR_COUNT_MAX 100000 /* tasks of a finite set */
#define IFL_LADDER_STEPS_MAX 33        /* 699 + 9 * 33 still has three digits */

typedef enum { IFL_GENERATOR_LADDER, IFL_GENERATOR_SUMS } ifl_generator_kind;

typedef struct ifl_generator {
    ifl_generator_kind kind;
    bool heldout;
    int32_t steps_max; /* ladder */
    int32_t digits;    /* sums */
    uint32_t n_space;  /* items are 0 .. n_space - 1; not all of them are tasks */
    uint64_t seed, stream;
    uint64_t k_weights[IFL_LADDER_STEPS_MAX]; /* running sums of k^-0.8 in millionths */
    uint32_t *items; /* [n_items] of a finite set: distinct, in the order they were drawn */
    int64_t n_items; /* 0 = endless */
} ifl_generator;

/* `source` names generator, split, count and the generator's own keys; `where` names it in errors,
 * e.g. "data.train.0". Draws depend on (seed, stream) alone. A count beyond the split's distinct
 * tasks is IFL_LIMIT. */
ifl_status ifl_generator_init(ifl_generator *generator, const ifl_source_config *source,
                              uint64_t seed, uint64_t stream, const char *where, ifl_error *err);
void ifl_generator_clear(ifl_generator *generator);

/* The item of draw `index` (finite sets: index < n_items). */
uint32_t ifl_generator_draw(const ifl_generator *generator, uint64_t index);

/* Whether `item` is a task of this split: walk 0 .. n_space - 1 for all of them. */
bool ifl_generator_has(const ifl_generator *generator, uint32_t item);

/* Texts of an item, NUL-terminated: of the prompt without few-shots, of the task's answer, and of a
 * supervised completion (worked or bare; sums have only the bare one). */
void ifl_generator_prompt(const ifl_generator *generator, uint32_t item,
                          char out[IFL_GENERATOR_TEXT_MAX]);
void ifl_generator_answer(const ifl_generator *generator, uint32_t item,
                          char out[IFL_GENERATOR_TEXT_MAX]);
void ifl_generator_completion(const ifl_generator *generator, uint32_t item, bool worked,
                              char out[IFL_GENERATOR_TEXT_MAX]);

const char *ifl_generator_name(const ifl_generator *generator);
const char *ifl_generator_few_shot(const ifl_generator *generator); /* "" = none; static */
const char *ifl_generator_checker(const ifl_generator *generator);  /* static */
const char *ifl_generator_meta(const ifl_generator *generator);     /* JSON text; static */

#endif

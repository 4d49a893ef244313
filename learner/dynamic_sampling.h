/* Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): a group whose rewards are all equal has
 * no advantage and teaches nothing; with rollout.dynamic_sampling such groups do not count towards
 * a step, and further ones are drawn until it has prompts_per_step that do, or has drawn
 * dynamic_sampling_max times as many. What is passed over is dropped as "zero_variance" (or
 * "group_skipped", when fewer than two of its answers could be judged).
 *
 * It is a selection: whether an answer is trained depends on its own reward and on its group's. All
 * that is drawn is counted beside what is kept, so that the difference can be read.
 *
 * The rewards are those that advantages come from, overlong shaping included, but before kl.in =
 * reward, which would make all of them differ. Pure. */
#ifndef IFL_LEARNER_DYNAMIC_SAMPLING_H
#define IFL_LEARNER_DYNAMIC_SAMPLING_H

#include "common/config.h"
#include "learner/groups.h"

typedef enum {
    IFL_SIGNAL_SOME,  /* rewards differ */
    IFL_SIGNAL_RIGHT, /* all the same, and above 0 */
    IFL_SIGNAL_WRONG, /* all the same, and not above 0 */
    IFL_SIGNAL_NONE,  /* fewer than two answers that could be judged */
} ifl_group_signal;

/* Of a complete group. */
ifl_group_signal ifl_group_signal_of(const ifl_config *config, const ifl_group *group);

/* Over the groups of a step, or of many. */
typedef struct ifl_sampling_counts {
    int64_t n_drawn, n_kept; /* groups; the others: */
    int64_t n_right, n_wrong, n_unjudged;
    int64_t n_answers,
        n_answers_passed;    /* judged, of all groups and of those passed over; sums over */
    double reward, length;   /* ... the first, length in tokens */
    double length_passed;    /* ... and the second */
    int64_t n_masked_passed; /* not judged, in groups passed over */
} ifl_sampling_counts;

void ifl_sampling_counts_add(ifl_sampling_counts *to, const ifl_sampling_counts *from);

/* How many groups to take next, at most `take` at a time; 0: the step has what it gets. */
int32_t ifl_dynamic_sampling_next(const ifl_config *config, const ifl_sampling_counts *counts,
                                  int32_t take);

/* Counts these groups and brings those that are kept to the front, both parts in their order;
 * returns how many these are. The outcomes of the others are filled in, and their `skipped` is
 * true. spare: [n]. */
int32_t ifl_dynamic_sampling_choose(const ifl_config *config, ifl_group **groups, int32_t n,
                                    ifl_member_outcome *const *outcomes, bool *skipped,
                                    ifl_group **spare, ifl_sampling_counts *counts);

#endif

/* Compositions of checkers. Inside rewards/ only.
 *
 *   sum      weight . reward over all parts, clipped. All parts run.
 *   product  of the parts' rewards, in the order written; one that pays 0 or less makes it 0 and
 *            ends it: the parts behind it don't run (cheap gates stand in front of dear checkers).
 *   first    the parts in the order written until one has found something: an undecided one passes
 * on to the next, and one that saw no answer if the entry says so. It doesn't by itself: a strict
 * checker in front would be for nothing if a lax one behind it took what it refuses.
 *
 * Status. A part that is no verdict makes the whole none: nobody knows what it would have paid, and
 * a zero in its place would be a lie. Of several the worst names it: checker_error, unavailable,
 * bad_task, undecided, in this order. Else the first part, in the order written, that isn't ok
 * gives its verdict to the whole; all ok is ok. For `first` both rules speak of the part taken; if
 * all passed on it is undecided if any part was, else no_answer.
 *
 * Components. One for each part that ran, with its own reward; behind these the parts' own
 * components as part/name, as long as there is room for them (IFL_COMPONENTS_MAX, 31 bytes). */
#ifndef IFL_REWARDS_COMPOSE_H
#define IFL_REWARDS_COMPOSE_H

#include "rewards/spec.h"

/* Judges one part. `reason` holds IFL_REWARD_REASON_MAX bytes, "" when there is none. */
typedef void (*ifl_part_run)(void *user, const ifl_spec_part *part, ifl_reward *out, char *reason);

/* Sets status, reward, components, tests (of all parts that ran together) and tier (the weakest) of
 * `out`, and `reason`; leaves the rest alone. */
void ifl_compose(const ifl_spec_entry *entry, ifl_part_run run, void *user, ifl_reward *out,
                 char *reason);

#endif

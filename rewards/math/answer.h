/* Where a completion states its answer. Inside rewards/math only. */
#ifndef IFL_REWARDS_MATH_ANSWER_H
#define IFL_REWARDS_MATH_ANSWER_H

#include "rewards/math/math.h"

#define IFL_MATH_STATED_MAX 16 /* boxes that are looked at together */

typedef struct ifl_math_stated {
    ifl_slice at[IFL_MATH_STATED_MAX];
    int n;    /* 0: none. More than one: near boxes, which must agree or be a list */
    bool any; /* of those the first that can be read counts */
    bool prose[IFL_MATH_STATED_MAX]; /* then only where it is right as it stands */
    bool bare;                       /* the whole completion: an answer only if it is right */
    const char *reason;              /* why none, static text */
} ifl_math_stated;

/* The thinking up to its end doesn't count, and a thinking without end is all there is. A box that
 * isn't closed was cut, so that nothing is stated. */
void ifl_math_find(ifl_slice completion, const ifl_math_options *options, ifl_math_stated *out);

/* What follows the last "####", "Answer:" or "answer is", up to the sentence's end. */
bool ifl_math_find_anchor(ifl_slice text, ifl_slice *out);

#endif

/* Math answers: whether an answer found in a completion says what the task's answer says.
 *
 * Everything is bounded by counts, never by a clock, so that a verdict is the same on every
 * machine: bytes, depth, digits, parts of an expression, rows, and steps of work, which are sized
 * so that no pair takes 50 ms. A limit that is met is named in the reason. Thread-safe: no state
 * but FLINT's own per-thread caches. */
#ifndef IFL_REWARDS_MATH_MATH_H
#define IFL_REWARDS_MATH_MATH_H

#include "rewards/checkers.h"

#define IFL_MATH_BYTES_MAX 65536  /* of one answer */
#define IFL_MATH_DEPTH_MAX 200    /* of brackets and of trees */
#define IFL_MATH_DIGITS_MAX 10000 /* of an integer, written or computed */
#define IFL_MATH_NODES_MAX 20000  /* numbers, symbols and operators of both answers */
#define IFL_MATH_CELLS_MAX 4096   /* of a matrix */
#define IFL_MATH_SYMBOLS_MAX 32   /* different ones of a pair */
#define IFL_MATH_STEPS_MAX 200000 /* of work on a pair; one takes 20 to 100 ns */
#define IFL_MATH_REASON_MAX 256

typedef enum {
    IFL_MATH_EQUAL,
    IFL_MATH_DIFFERENT,
    IFL_MATH_NO_ANSWER, /* the completion states none */
    IFL_MATH_AMBIGUOUS, /* it states several */
    IFL_MATH_UNDECIDED, /* both can be read, and neither equality nor difference could be shown */
    IFL_MATH_BAD_TASK,  /* the task's own answer is empty, undefined or past a limit */
} ifl_math_verdict;

typedef enum { IFL_MATH_BOX_LAST, IFL_MATH_BOX_STRICT, IFL_MATH_BOX_FIRST } ifl_math_boxes;

typedef enum {
    IFL_MATH_REQUIRE_ANCHOR, /* a box, else what follows "####", "Answer:" or "final answer is",
                                else one line that is nothing but the right answer */
    IFL_MATH_REQUIRE_BOX,
    IFL_MATH_REQUIRE_NONE, /* also behind "answer is", the last line, what follows its "is", the
                              last formula or number: the first of them that can be read */
} ifl_math_require;

typedef enum {
    IFL_MATH_TYPE_AUTO, /* as the task's answer is written */
    IFL_MATH_TYPE_SET,
    IFL_MATH_TYPE_TUPLE,
    IFL_MATH_TYPE_INTERVAL,
    IFL_MATH_TYPE_TEXT,
    IFL_MATH_TYPE_CHOICE,
} ifl_math_type;

typedef enum {
    IFL_MATH_UNITS_OPTIONAL, /* a missing unit is accepted, a different one is not */
    IFL_MATH_UNITS_REQUIRED, /* a missing one isn't, when the task's answer has one */
    IFL_MATH_UNITS_IGNORED,
} ifl_math_units;

typedef enum {
    IFL_MATH_PERCENT_EITHER, /* 10 % is 10 and 0.1, where one of the two bears the sign */
    IFL_MATH_PERCENT_VALUE,  /* 10 % is 0.1 alone */
} ifl_math_percent;

typedef struct ifl_math_options {
    ifl_math_boxes boxes;
    ifl_math_require require;
    ifl_math_type answer_type;
    ifl_math_units units;
    ifl_math_percent percent;
    double tol; /* relative; 0: exact, but 1e-9 where a decimal is involved */
} ifl_math_options;

typedef struct ifl_math_result {
    ifl_math_verdict verdict;
    bool gold_unread;                 /* the task's answer is no expression: text */
    bool unread;                      /* the answer is no expression, or holds words */
    int64_t n_steps;                  /* of work; at most about IFL_MATH_STEPS_MAX */
    char reason[IFL_MATH_REASON_MAX]; /* "" when EQUAL */
} ifl_math_result;

/* Finds the answer in `completion` and compares it. Borrows all. */
void ifl_math_check(ifl_slice gold, ifl_slice completion, const ifl_math_options *options,
                    ifl_math_result *out);

/* Compares two answers as they stand, without looking for boxes. */
void ifl_math_compare(ifl_slice gold, ifl_slice answer, const ifl_math_options *options,
                      ifl_math_result *out);

/* Frees what FLINT keeps for the calling thread. A thread that has compared and ends calls it. */
void ifl_math_thread_end(void);

#endif

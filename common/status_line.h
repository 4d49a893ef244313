/* The live status of a run: on a terminal a block that is drawn again in place, elsewhere one plain
 * line per step and a sign of life in between. NO_COLOR and TERM=dumb are respected; lines never
 * exceed the terminal's width, and a pipe gets no control bytes. One thread. */
#ifndef IFL_COMMON_STATUS_LINE_H
#define IFL_COMMON_STATUS_LINE_H

#include <stdio.h>

#include "common/status.h"

/* What is shown. NAN = not known yet. */
typedef struct ifl_status_view {
    int64_t step, steps;       /* done, of */
    const char *phase;         /* e.g. "training", "evaluating"; NULL = training */
    double reward;             /* of the last step */
    double accuracy;           /* held-out, latest */
    double accuracy_first;     /* held-out, before */
    int64_t accuracy_step;     /* of which step; -1 = none */
    double actor_tokens_per_s; /* all actors */
    double learner_tokens_per_s;
    double lag_mean, lag_max;  /* versions */
    double ess;                /* share */
    double swap_stall_ms;      /* median */
    double mean_length;        /* tokens */
    int32_t actors, in_flight; /* actors alive, trajectories being generated */
    double elapsed_s, eta_s;
} ifl_status_view;

void ifl_status_view_clear(ifl_status_view *view); /* all unknown */

#define IFL_STATUS_LINES_MAX 4
#define IFL_STATUS_WIDTH_MAX 200

/* Pure: the block as `*n_lines` lines of at most `width` columns, NUL-terminated, without newlines.
 */
void ifl_status_block(const ifl_status_view *view, int width, bool color,
                      char lines[IFL_STATUS_LINES_MAX][512], int *n_lines);
/* Pure: the same as one plain line of any width. */
void ifl_status_plain(const ifl_status_view *view, char *out, size_t n_out);

typedef struct ifl_status_line ifl_status_line;

/* Borrows `out`, usually stdout. NULL when out of memory: every call below takes NULL and does
 * nothing. */
ifl_status_line *ifl_status_line_create(FILE *out);
void ifl_status_line_free(ifl_status_line *line); /* leaves the last block standing */

/* Cheap to call often: draws at most 5 times a second on a terminal; elsewhere when the step or the
 * phase has changed, or after 30 s. */
void ifl_status_line_update(ifl_status_line *line, const ifl_status_view *view);

/* A line for good, above the block. */
void ifl_status_line_note(ifl_status_line *line, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif

/* Teacher forcing of one token sequence through its own KV cache; the shared core of score and replay. */
#ifndef IFL_KERNELS_TEACHER_H
#define IFL_KERNELS_TEACHER_H

#include "kernels/model.h"

typedef struct ifl_teacher {
    ifl_workspace *workspace; /* borrowed */
    ifl_kv_store *kv;         /* owned */
    int32_t *pages;           /* the identity */
    int32_t *out_rows;        /* [rows_max] */
    int32_t n_positions, rows_max;
} ifl_teacher;

/* Room for rows of positions [0, n_positions), at most rows_max (the workspace's) per call. */
ifl_status ifl_teacher_create(ifl_teacher **out, ifl_workspace *workspace, const ifl_model *model,
                              int32_t n_positions, ifl_error *err);
void ifl_teacher_free(ifl_teacher *teacher); /* NULL is fine */

/* Runs positions [begin, end) of `tokens`; earlier positions' KV must be there. hidden receives the rows
 * of positions [out_begin, end), valid until the next call; NULL when out_begin == end. */
ifl_status ifl_teacher_rows(ifl_teacher *teacher, const ifl_weights *weights, const int32_t *tokens,
                            int32_t begin, int32_t end, int32_t out_begin, const float **hidden,
                            ifl_error *err);

#endif

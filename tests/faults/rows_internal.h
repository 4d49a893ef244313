/* The rows themselves, and what several of them do. Private to tests/faults/rows*.c. */
#ifndef IFL_TESTS_FAULTS_ROWS_INTERNAL_H
#define IFL_TESTS_FAULTS_ROWS_INTERNAL_H

#include <string.h>

#include "tests/faults/rows.h"
#include "tests/faults/witness.h"

/* The process dies of a fail point; others may see its links end. */
bool dies_at(job *j, job_process *p, const char *point, const char *act, int64_t range);

/* rows_actors.c */
bool row_1(job *j), row_2(job *j), row_3(job *j), row_4(job *j), row_5(job *j), row_6(job *j);
bool row_7(job *j), row_8(job *j), row_9(job *j), row_10(job *j), row_11(job *j), row_33(job *j);
/* rows_learner.c */
bool row_12(job *j), row_13(job *j), row_14(job *j), row_15(job *j), row_16(job *j);
bool row_17(job *j), row_19(job *j), row_34(job *j), row_35(job *j), row_36(job *j);
bool row_37(job *j), row_38(job *j);
/* rows_links.c */
bool row_20(job *j), row_21(job *j), row_22(job *j), row_23(job *j), row_25(job *j);
bool row_26(job *j), row_27(job *j), row_29(job *j), row_30(job *j), row_31(job *j);
/* rows_relays.c */
bool row_32(job *j);

/* A comer that has taken a second version into use. */
bool has_swapped_twice(job *j, void *actor);
/* An actor that comes (`point` armed), has answers acknowledged, and goes in order. *pid: its. */
bool visitor(job *j, const char *point, pid_t *pid);

#endif

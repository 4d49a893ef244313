/* The rows of the fault table that are played here, each with its own requirement. */
#ifndef IFL_TESTS_FAULTS_ROWS_H
#define IFL_TESTS_FAULTS_ROWS_H

#include "tests/faults/job.h"

typedef struct fault_row {
    int row; /* of the table */
    const char *fault;
    bool stands; /* no step can be trained while it lasts: the time without one says nothing */
    /* Injects it into a job that runs well, and checks what must follow before it is lifted. False:
     * not as required, j->why says what. j->variant: which of its kinds it was. */
    bool (*play)(job *j);
} fault_row;

extern const fault_row fault_rows[];
extern const int n_fault_rows;

#endif

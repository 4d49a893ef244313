/* The op table for any architecture. */
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/lanes_generic.h"

#define IFL_OPS_TABLE generic_table
#include "kernels/cpu/ops.inc.h"

const ifl_ops *ifl_ops_generic(void) {
    return &generic_table;
}

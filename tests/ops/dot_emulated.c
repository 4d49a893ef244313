/* The text of kernels/cpu/x32_dot.inc.h around an emulated instruction, so that every host tests
 * it. */
#define IFL_X32_DOT
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/lanes_generic.h"

#undef IFL_OPS_NAME
#define IFL_OPS_NAME "dot-emulated"
#define IFL_OPS_TABLE emulated_table
#include "kernels/cpu/ops.inc.h"

const ifl_ops *testing_ops_dot_emulated(void);
const ifl_ops *testing_ops_dot_emulated(void) {
    return &emulated_table[IFL_PROFILE_BF16];
}

/* The tables behind kernels/ops.h. A build for another architecture has no x86 ones. */
#ifndef IFL_KERNELS_CPU_IMPLEMENTATIONS_H
#define IFL_KERNELS_CPU_IMPLEMENTATIONS_H

#include "kernels/ops.h"

const ifl_ops *ifl_ops_generic(void);
#if defined(__x86_64__)
const ifl_ops *ifl_ops_avx2(void);
const ifl_ops *ifl_ops_avx512(void);
#endif

#endif

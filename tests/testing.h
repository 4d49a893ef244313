/* What the suites over ops and over models share: how much to sweep, and which implementations. */
#ifndef IFL_TESTS_TESTING_H
#define IFL_TESTS_TESTING_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"

/* Sweeps whole, where a sample is the default. */
static inline bool testing_full(void) {
    const char *flag = getenv("IFL_TEST_FULL");
    return flag && strcmp(flag, "1") == 0;
}

/* All implementations of this host, in both profiles. */
static inline int testing_list_both(const ifl_ops *out[16]) {
    int n = ifl_ops_list(IFL_PROFILE_F32, out, 8);
    return n + ifl_ops_list(IFL_PROFILE_BF16, out + n, 8);
}

/* Scalar code, or wide code without the instructions for it. */
static inline bool testing_is_slow(const ifl_ops *ops) {
    return strcmp(ops->name, "ref") == 0 || strcmp(ops->name, "generic") == 0;
}

#endif

/* A numerics profile's parts as they travel: names and hashes, so that a refusal can say which part
 * differs. The hash over all of it is what is compared (kernels/contract.h makes both). */
#ifndef IFL_COMMON_PROFILE_PARTS_H
#define IFL_COMMON_PROFILE_PARTS_H

#include <stddef.h>
#include <stdint.h>

#define IFL_PROFILE_PARTS_MAX 16
#define IFL_PROFILE_PART_NAME_MAX 32 /* with NUL */

typedef struct ifl_profile_part {
    char name[IFL_PROFILE_PART_NAME_MAX];
    uint64_t hash;
} ifl_profile_part;

typedef struct ifl_profile_parts {
    int32_t n; /* 0: the sender is of wire 1.0 and names none */
    ifl_profile_part part[IFL_PROFILE_PARTS_MAX];
} ifl_profile_parts;

/* Writes which parts differ, "rope table, dtypes", for a refusal. `theirs` may come from the wire:
 * only names of `ours` are written. "" when both are equal, and a word about it when `theirs` names
 * none. */
void ifl_profile_parts_differing(const ifl_profile_parts *ours, const ifl_profile_parts *theirs,
                                 char *out, size_t cap);

#endif

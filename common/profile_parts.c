#include "common/profile_parts.h"

#include <stdio.h>
#include <string.h>

static const ifl_profile_part *parts_find(const ifl_profile_parts *parts, const char *name) {
    for (int32_t i = 0; i < parts->n; i++)
        if (strcmp(parts->part[i].name, name) == 0) return &parts->part[i];
    return NULL;
}

static void list_add(char *out, size_t cap, const char *text) {
    size_t n = strlen(out);
    snprintf(out + n, cap - n, "%s%s", n > 0 ? ", " : "", text);
}

void ifl_profile_parts_differing(const ifl_profile_parts *ours, const ifl_profile_parts *theirs,
                                 char *out, size_t cap) {
    out[0] = '\0';
    if (theirs->n == 0 && ours->n > 0) {
        snprintf(out, cap, "parts unknown");
        return;
    }
    for (int32_t i = 0; i < ours->n; i++) {
        const ifl_profile_part *part = parts_find(theirs, ours->part[i].name);
        if (!part || part->hash != ours->part[i].hash) list_add(out, cap, ours->part[i].name);
    }
    int32_t n_unknown = 0;
    for (int32_t i = 0; i < theirs->n; i++)
        n_unknown += parts_find(ours, theirs->part[i].name) == NULL;
    if (n_unknown > 0) {
        char text[64];
        snprintf(text, sizeof text, "%d parts of another build", n_unknown);
        list_add(out, cap, text);
    }
}

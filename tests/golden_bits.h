/* Hashes of computed bits, kept in tests/golden/bits.txt: a host of one kind checks what hosts of
 * other kinds computed. One line each: "<key> <hash>". A deliberate change of an order changes the
 * profile's text and this file with it: IFL_WRITE_BITS=1 build/tests/test_ops and ...
 * test_model_golden print the new lines. */
#ifndef IFL_TESTS_GOLDEN_BITS_H
#define IFL_TESTS_GOLDEN_BITS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"

/* 0 when the kept hash of `key` is `hash` (or when lines are only to be printed), else 1 with a
 * message. */
static inline int golden_bits_differ(const char *key, ifl_hash hash) {
    char text[33], line[256], want[33] = "";
    ifl_hash_text(hash, text);
    if (getenv("IFL_WRITE_BITS")) {
        printf("%s %s\n", key, text);
        return 0;
    }
    FILE *f = fopen(IFL_GOLDEN_DIR "/bits.txt", "r");
    size_t n = strlen(key);
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, n) == 0 && line[n] == ' ')
            snprintf(want, sizeof want, "%.32s", line + n + 1);
    if (f) fclose(f);
    if (strcmp(want, text) == 0) return 0;
    fprintf(stderr, "%s: bits hash to %s, other hosts had %s\n", key, text,
            want[0] ? want : "none");
    return 1;
}

#endif

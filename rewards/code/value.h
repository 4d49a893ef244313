/* Plain values as candidates' processes send them: None, bool, int, float, complex, str, bytes,
 * list, tuple, set, frozenset, dict, and nothing else. The text form:
 *
 *   N T F                     None, True, False
 *   i HEX ;                   an integer, "-" first if negative
 *   f C99 hexadecimal float ; (inf, -inf and nan as such)
 *   c FLOAT , FLOAT ;         complex
 *   s COUNT : BYTES           str in UTF-8 (lone surrogates as they come); b: bytes
 *   l COUNT : VALUES          list; t tuple, S set or frozenset
 *   d COUNT : KEY VALUE ...   dict
 *
 * Inside rewards/ only. */
#ifndef IFL_REWARDS_CODE_VALUE_H
#define IFL_REWARDS_CODE_VALUE_H

#include "rewards/checkers.h"

#define IFL_VALUE_DEPTH_MAX 64
#define IFL_VALUE_BYTES_MAX (1u << 20)

typedef struct code_value {
    uint8_t *bytes; /* owned: free() */
    size_t n;
    bool has_nan;
} code_value;

/* Reads exactly one value and brings it into a canonical form: two values are equal as Python's ==
 * has it (1 == 1.0 == True, sets and dicts without order, list unequal tuple) if their bytes are
 * and neither holds a NaN. IFL_FORMAT for anything malformed, IFL_LIMIT past depth or size. */
ifl_status code_value_read(ifl_slice text, code_value *out, ifl_error *err);

bool code_value_equal(const code_value *a, const code_value *b);

#endif

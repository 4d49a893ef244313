/* JSON out of completions: bounded before anything is built. Inside rewards/ only. */
#ifndef IFL_REWARDS_JSON_VALUE_H
#define IFL_REWARDS_JSON_VALUE_H

#include "rewards/text.h"

#define IFL_JSON_DEPTH_MAX 64

/* Parses one value of any kind. IFL_FORMAT with a reason: no JSON, duplicate keys, NULs, nested
 * deeper than IFL_JSON_DEPTH_MAX, numbers beyond 64 bits or doubles, too many values. Whole reals
 * become integers: 1.0 is 1, as JSON Schema has it. *out is owned. */
ifl_status ifl_json_value_parse(json_t **out, ifl_slice s, ifl_error *err);

/* The same for a value that somebody else parsed. */
ifl_status ifl_json_value_normalise(json_t *value, ifl_error *err);

/* The content of the last fenced block that begins with ```json; false: there is none, or it has no
 * end. */
bool ifl_json_last_fence(ifl_slice s, ifl_slice *out);

#endif

/* Small helpers over jansson for files that come from outside: every getter checks type and range
 * and names the key. An absent key or a null leaves the caller's default alone. */
#ifndef IFL_COMMON_JSON_UTIL_H
#define IFL_COMMON_JSON_UTIL_H

#include <jansson.h>

#include "common/status.h"

/* A parsed value costs up to a hundred times its text: two bytes can be an empty list. */
#define IFL_JSON_VALUES_MAX 4000000

/* IFL_LIMIT when the text may hold more than IFL_JSON_VALUES_MAX values. For whoever parses by
 * other means. */
ifl_status ifl_json_check_values(const char *text, size_t n_bytes, const char *what,
                                 ifl_error *err);

/* Parses one JSON object; duplicate keys, embedded NUL, texts over n_bytes_max and more than
 * IFL_JSON_VALUES_MAX values (counted before anything is allocated) are refused.
 * `what` names the text in errors. Returns an owned reference (json_decref). */
ifl_status ifl_json_parse_object(json_t **out, const char *text, size_t n_bytes, size_t n_bytes_max,
                                 const char *what, ifl_error *err);

/* Integers may be written as 4096.0; numbers where a double is wanted may be integers. */
ifl_status ifl_json_int(const json_t *object, const char *key, int64_t min, int64_t max,
                        int64_t *out, ifl_error *err);
ifl_status ifl_json_int32(const json_t *object, const char *key, int32_t min, int32_t max,
                          int32_t *out, ifl_error *err);
ifl_status ifl_json_double(const json_t *object, const char *key, double min, double max,
                           double *out, ifl_error *err);
ifl_status ifl_json_bool(const json_t *object, const char *key, bool *out, ifl_error *err);

/* *out borrows from `object`. */
ifl_status ifl_json_text(const json_t *object, const char *key, const char **out, ifl_error *err);

/* *out is NULL when the key is absent or null; borrows. */
ifl_status ifl_json_child(const json_t *object, const char *key, const json_t **out,
                          ifl_error *err);

/* One id or a list of ids, each in [0, id_end); adds those not yet among ids[0 .. *n). */
ifl_status ifl_json_ids(const json_t *object, const char *key, int32_t id_end, int32_t n_max,
                        int32_t *ids, int32_t *n, ifl_error *err);

#endif

/* The built-in checkers and what they share. Inside rewards/ only. */
#ifndef IFL_REWARDS_CHECKERS_H
#define IFL_REWARDS_CHECKERS_H

#include <jansson.h>

#include "rewards/reward.h"

#define IFL_META_BYTES_MAX 65536
#define IFL_REGEX_BYTES_MAX 4096

extern const ifl_checker ifl_checker_exact;
extern const ifl_checker ifl_checker_numeric;
extern const ifl_checker ifl_checker_format;
extern const ifl_checker ifl_checker_math;
extern const ifl_checker ifl_checker_gsm8k;
extern const ifl_checker ifl_checker_regex;
extern const ifl_checker ifl_checker_choice;
extern const ifl_checker ifl_checker_json_schema;
extern const ifl_checker ifl_checker_patch;
extern const ifl_checker ifl_checker_overlong;
extern const ifl_checker ifl_checker_length;
extern const ifl_checker ifl_checker_repetition;
extern const ifl_checker ifl_checker_test_fault; /* worker.c: needs the result descriptor */

/* A piece of somebody's text: not NUL-terminated, may hold NUL bytes. */
typedef struct ifl_slice {
    const char *text;
    size_t n;
} ifl_slice;

/* Without ASCII white space at both ends. */
ifl_slice ifl_slice_trim(ifl_slice s);

/* What lies behind the last `marker`; false when there is none. */
bool ifl_slice_after_last(ifl_slice s, const char *marker, ifl_slice *out);

/* The verdict helpers: OK with 0 or 1; BAD_TASK with its reason in err. Both return IFL_OK: the
 * check itself worked. */
ifl_status ifl_verdict(ifl_reward *out, bool right);
ifl_status ifl_verdict_bad_task(ifl_reward *out, ifl_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The request's meta as an object (owned; NULL for ""). A malformed one sets out->status to
 * BAD_TASK. */
ifl_status ifl_checker_meta(const ifl_reward_request *request, json_t **meta, ifl_reward *out,
                            ifl_error *err);

#endif

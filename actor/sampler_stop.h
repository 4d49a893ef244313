/* When a sequence ends: stop strings on the detokenised stream. A stop may begin in one token and end in
 * another; the token that completes it is the last one kept. */
#ifndef IFL_ACTOR_SAMPLER_STOP_H
#define IFL_ACTOR_SAMPLER_STOP_H

#include "common/tokenizer.h"

#define IFL_STOP_BYTES_MAX 256

typedef struct ifl_stop_matcher ifl_stop_matcher;

/* Copies the stops: 1 .. IFL_STOPS_MAX of 1 .. IFL_STOP_BYTES_MAX bytes. Borrows the tokenizer. The match
 * begins with the first token given: a stop string in the prompt ends nothing. */
ifl_status ifl_stop_matcher_create(ifl_stop_matcher **out, const ifl_tokenizer *tokenizer,
                                   const char *const *stops, int32_t n_stops, ifl_error *err);
void ifl_stop_matcher_free(ifl_stop_matcher *matcher); /* NULL is fine */

/* *stopped: a stop string is complete with this token. */
ifl_status ifl_stop_matcher_add(ifl_stop_matcher *matcher, int32_t token, bool *stopped, ifl_error *err);

#endif

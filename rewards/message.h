/* What the pool and its workers say to each other: frames of a 32-bit little-endian length and a
 * body. Both ends check every length against the bytes that are there. Inside rewards/ only. */
#ifndef IFL_REWARDS_MESSAGE_H
#define IFL_REWARDS_MESSAGE_H

#include "rewards/reward.h"

#define IFL_REWARD_FRAME_MAX (5u << 20) /* four texts of at most 1 MiB, and change */
#define IFL_REWARD_REPLY_MAX 4096u
#define IFL_REWARD_REASON_MAX 1024 /* NUL included */
#define IFL_REWARD_HELLO "inflight reward worker 4"
#define IFL_REWARD_REQUEST_ASKED 16u /* where a frame goes on behind length, id and time */

/* What a reply says about its worker. */
#define IFL_REPLY_LAST 1u    /* it is not fit for another request: end it with its whole group */
#define IFL_REPLY_NOT_RUN 2u /* and has not begun this one, which another worker may have */
#define IFL_REPLY_PURE 4u    /* all that the verdict depends on is in the request: it may be kept */

/* What a worker is told after its hello: its time limit, the least sandbox (NONE: the default) and
 * the checkers' specification. It replies as to a request with id 0: OK, or any other status and
 * the reason why it cannot work. Owned. */
ifl_status ifl_reward_setup_encode(int32_t timeout_ms, ifl_sandbox_tier require,
                                   const char *checkers, uint8_t **frame, size_t *n_frame,
                                   ifl_error *err);
/* `checkers` points into `body`. */
ifl_status ifl_reward_setup_decode(const uint8_t *body, size_t n_body, int32_t *timeout_ms,
                                   ifl_sandbox_tier *require, const char **checkers,
                                   ifl_error *err);

/* A request as a frame, length included. Owned (free()). Returns IFL_LIMIT for a text over
 * IFL_ANSWER_BYTES_MAX. */
ifl_status ifl_reward_request_encode(const ifl_reward_request *request, uint8_t **frame,
                                     size_t *n_frame, ifl_error *err);

/* The strings point into `body`, which must outlive them. */
ifl_status ifl_reward_request_decode(const uint8_t *body, size_t n_body, ifl_reward_request *out,
                                     ifl_error *err);

/* A reply as a frame; `frame` holds IFL_REWARD_REPLY_MAX bytes. Returns its length. */
size_t ifl_reward_reply_encode(uint64_t id, const ifl_reward *reward, const char *reason,
                               uint32_t flags, uint8_t *frame);

/* Refuses unknown statuses, rewards that are no number in [-1, 1], and anything left over. `reason`
 * holds IFL_REWARD_REASON_MAX bytes. */
ifl_status ifl_reward_reply_decode(const uint8_t *body, size_t n_body, uint64_t *id,
                                   ifl_reward *out, char *reason, uint32_t *flags, ifl_error *err);

/* The little-endian length at the front of a frame. */
uint32_t ifl_reward_frame_length(const uint8_t head[4]);

#endif

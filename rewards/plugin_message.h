/* The message that every plug-in outside of this process gets, and the answer it gives
 * (rewards/PLUGINS.md). Inside rewards/ only. */
#ifndef IFL_REWARDS_PLUGIN_MESSAGE_H
#define IFL_REWARDS_PLUGIN_MESSAGE_H

#include "rewards/host.h"

#define IFL_PLUGIN_PROTOCOL 1
#define IFL_PLUGIN_LINE_MAX 65536 /* of what a plug-in says, line feed included */

/* {id, prompt, completion, gold, meta, finish, deadline_ms}. Bytes that are no UTF-8 become U+FFFD.
 * Owned. A meta that is no object sets out->status to BAD_TASK, with IFL_OK and no *json. */
ifl_status ifl_plugin_request_json(json_t **json, const ifl_plugin_call *call, uint64_t id,
                                   ifl_reward *out, ifl_error *err);

/* {protocol, name, version?, pure?, error?}: "name/version" into `checker` (64 bytes), `pure` (may
 * be NULL) into *pure. An `error`, the plug-in's reason why it cannot work, is IFL_PEER. */
ifl_status ifl_plugin_hello_read(const char *text, size_t n, char checker[64], bool *pure,
                                 ifl_error *err);

/* {id, status, reward?, components?, tests_passed?, tests_total?, info?}; `info` becomes the reason
 * in `err` of a status that is no verdict. IFL_FORMAT for whatever is none: another id, no JSON,
 * NaN and what lies outside -1 .. 1, unknown statuses. Leaves out->checker alone. */
ifl_status ifl_plugin_answer_read(const char *text, size_t n, uint64_t id, ifl_reward *out,
                                  ifl_error *err);

/* The same of an object that is parsed already. */
ifl_status ifl_plugin_answer_take(const json_t *answer, uint64_t id, ifl_reward *out,
                                  ifl_error *err);

/* Milliseconds until the call's deadline, at least 0. */
int64_t ifl_plugin_ms_left(const ifl_plugin_call *call);

#endif

/* What lies inside a worker: the checkers of a specification made ready, and one request at a time
 * judged by them. Inside rewards/ only. */
#ifndef IFL_REWARDS_HOST_H
#define IFL_REWARDS_HOST_H

#include "rewards/message.h"
#include "rewards/spec.h"

/* One request on its way to a plug-in. */
typedef struct ifl_plugin_call {
    const ifl_reward_request *request; /* meta has the options in it */
    int64_t deadline_ns;               /* ifl_clock_ns; some time before the pool's */
    uint32_t *flags;                   /* of IFL_REPLY_..., to set */
} ifl_plugin_call;

/* One way to reach a plug-in. `create` makes it ready: IFL_USAGE, IFL_FORMAT and IFL_NOTFOUND are
 * the configuration's fault, all else the plug-in's. `check` is as an ifl_checker's, sets
 * out->checker to "name/version", and has returned by the deadline. */
typedef struct ifl_plugin_kind {
    ifl_status (*create)(void **state, const ifl_spec_entry *entry, ifl_error *err);
    ifl_status (*check)(void *state, const ifl_plugin_call *call, ifl_reward *out, ifl_error *err);
    void (*destroy)(void *state); /* NULL is fine */
    /* Whether the plug-in has said that the same request has the same verdict; NULL: never. */
    bool (*is_pure)(const void *state);
} ifl_plugin_kind;

extern const ifl_plugin_kind ifl_plugin_process;
extern const ifl_plugin_kind ifl_plugin_library;
extern const ifl_plugin_kind ifl_plugin_http;
extern const ifl_plugin_kind ifl_plugin_zeromq;

typedef struct ifl_reward_host ifl_reward_host;

/* Owned. Plug-ins are started and have said hello when it returns. The status is that of the first
 * checker that could not be made ready. */
ifl_status ifl_reward_host_create(ifl_reward_host **out, const char *checkers, int32_t timeout_ms,
                                  ifl_error *err);
void ifl_reward_host_free(ifl_reward_host *host); /* NULL is fine */

/* Never fails: what goes wrong is a status that is no verdict, with its reason in `reason`
 * (IFL_REWARD_REASON_MAX bytes, "" when a verdict has none). `flags`: IFL_REPLY_... */
void ifl_reward_host_check(ifl_reward_host *host, const ifl_reward_request *request,
                           ifl_reward *out, char *reason, uint32_t *flags);

#endif

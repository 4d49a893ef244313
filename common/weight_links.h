/* Where weights come from: the learner's weight plane and, before it, relays (common/relay.h) in
 * order of preference. What is fetched is always the learner's: it announces versions over its own
 * link, and a relay is asked only for a version that it announces under the same root. So a relay
 * can be late, dead or wrong, and never more than that: its chunks are held against hashes that
 * came from the learner, by whoever fetches.
 *
 * A relay that is dead (silent for three of its heartbeats), late (no chunk for as long) or wrong
 * is passed over, for the next one in the list and at last for the learner. What was asked of it
 * has to be asked again.
 *
 * Not thread-safe: the thread that fetches owns it. */
#ifndef IFL_COMMON_WEIGHT_LINKS_H
#define IFL_COMMON_WEIGHT_LINKS_H

#include "common/transport.h"

#define IFL_RELAYS_MAX 8
#define IFL_WEIGHT_LINKS_MAX (IFL_RELAYS_MAX + 1) /* the learner is the last */

typedef struct ifl_weight_links ifl_weight_links;

typedef struct ifl_weight_links_options {
    const char *relays; /* transport.relays: "[NAME=]ENDPOINT,..."; NULL or "" = none */
    const char *name;   /* told to them */
    const char *keys;   /* folder with this side's secret and NAME.public of each relay; or NULL */
    const char *key;    /* as ifl_client_options.key */
    bool insecure;
} ifl_weight_links_options;

/* IFL_USAGE, IFL_LIMIT: names what is wrong with the list, or with an endpoint, or the key of one.
 */
ifl_status ifl_weight_links_check(const ifl_weight_links_options *options, ifl_error *err);

/* Borrows `learner`, and from now on is the only caller of its poll_weights. Copies the options. */
ifl_status ifl_weight_links_create(ifl_weight_links **out, ifl_client *learner,
                                   const ifl_weight_links_options *options, ifl_error *err);
void ifl_weight_links_free(ifl_weight_links *links); /* NULL is fine */

int32_t
ifl_weight_links_learner(const ifl_weight_links *links); /* its number: that of the relays */
const char *ifl_weight_links_name(const ifl_weight_links *links, int32_t link);

typedef struct ifl_weight_links_event {
    int32_t link;
    bool lost;              /* a relay: what was asked of it and has not come must be asked again */
    ifl_client_event event; /* the learner's: all; a relay's: WCHUNK. Owned, also when lost */
} ifl_weight_links_event;

/* As ifl_client_poll_weights. IFL_AGAIN may come early: relays may have become of use. */
ifl_status ifl_weight_links_poll(ifl_weight_links *links, int64_t wait_ms,
                                 ifl_weight_links_event *event);

/* Whom to ask now for chunks of a version that the learner has announced; -1: in a moment (a relay
 * that is preferred is about to have it). */
int32_t ifl_weight_links_choose(ifl_weight_links *links, const ifl_manifest *manifest);
/* WGET. Statuses of ifl_client_send_weights. */
ifl_status ifl_weight_links_ask(ifl_weight_links *links, int32_t link, const ifl_message *message,
                                ifl_error *err);
/* Most chunks outstanding there; and how long one may take. */
int32_t ifl_weight_links_window(const ifl_weight_links *links, int32_t link);
int64_t ifl_weight_links_answer_ns(const ifl_weight_links *links);

/* A relay's chunk doesn't have the hash that it must have: the relay is named in a warning, and not
 * asked for a minute. */
void ifl_weight_links_wrong(ifl_weight_links *links, int32_t link, int64_t version, int32_t chunk);
/* Nothing has come from a relay for answer_ns: it is not asked for a while. */
void ifl_weight_links_late(ifl_weight_links *links, int32_t link);
/* WREADY, to all relays that are there: they keep what is still being fetched. */
void ifl_weight_links_ready(ifl_weight_links *links, const ifl_message *message);

typedef struct ifl_weight_links_stats {
    int64_t bans, late, losses; /* of relays */
} ifl_weight_links_stats;
void ifl_weight_links_stats_get(const ifl_weight_links *links, ifl_weight_links_stats *out);

#endif

#include "common/weight_links.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/keys.h"
#include "common/log.h"

#define BAN_NS 60000000000        /* after a wrong chunk */
#define REST_LIMITS 5             /* after a late one: so many times what it may take */
#define HEARTBEATS_HOPED 3        /* for a first word of a relay that has just been named */
#define OPEN_AGAIN_NS 30000000000 /* a relay that has refused is asked again after so long */
#define HEARTBEAT_NS 1000000000   /* until the learner has said how long it is */
#define ROOTS 4                   /* versions that a relay has announced last */
#define ANSWER_LEAST_NS 1000000000
#define ANSWER_NS 10000000000 /* chunks asked for and not come within this are asked again */
#define WINDOW 8              /* until the learner has said otherwise */

typedef struct weight_relay {
    char name[IFL_ENDPOINT_MAX]; /* without one it goes by its address */
    bool keyed;                  /* the name is that of its key */
    char endpoint[IFL_ENDPOINT_MAX];
    ifl_client *client; /* NULL: it has refused, and is tried again later */
    bool connected;
    int32_t window;
    char run_uuid[33]; /* whose weights it has */
    bool strange_said;
    ifl_hash roots[ROOTS];
    int32_t n_roots; /* ever: the ring's next place is n_roots % ROOTS */
    int64_t hoped_until_ns, shunned_until_ns, open_at_ns;
    char refusal[160]; /* said already */
} weight_relay;

struct ifl_weight_links {
    ifl_client *learner;
    char name[IFL_WIRE_NAME_MAX], keys[512], key[IFL_KEY_NAME_MAX];
    bool insecure;
    int32_t n;
    weight_relay relays[IFL_RELAYS_MAX];
    int64_t heartbeat_ns, answer_ns; /* as the learner says */
    char run_uuid[33];
    int32_t window;
    struct { /* versions that were asked about last, and since when */
        ifl_hash root;
        int64_t since_ns;
    } chosen[ROOTS];
    int32_t n_chosen;
    ifl_weight_links_stats stats;
};

/* --- The list --------------------------------------------------------------------------------- */

/* One "[NAME=]ENDPOINT" of n bytes. */
static ifl_status relay_parse(weight_relay *r, const char *text, size_t n, ifl_error *err) {
    const char *sign = memchr(text, '=', n);
    size_t n_name = sign ? (size_t)(sign - text) : 0;
    const char *endpoint = sign ? sign + 1 : text;
    size_t n_endpoint = n - (size_t)(endpoint - text);
    if (n_endpoint < 1 || n_endpoint >= sizeof r->endpoint || n_name >= IFL_KEY_NAME_MAX)
        return ifl_fail(err, IFL_USAGE,
                        "transport.relays: \"%.*s\": wanted [NAME=]ENDPOINT, e.g. "
                        "rack1=tcp://rack1:5560, with a name of at most %d characters",
                        (int)(n < 200 ? n : 200), text, IFL_KEY_NAME_MAX - 1);
    memcpy(r->endpoint, endpoint, n_endpoint);
    memcpy(r->name, text, n_name);
    r->keyed = n_name > 0;
    if (n_name > 0) return ifl_key_name_check(r->name, err);
    memcpy(r->name, r->endpoint, sizeof r->name);
    return IFL_OK;
}

static ifl_status links_parse(weight_relay relays[IFL_RELAYS_MAX], int32_t *n,
                              const ifl_weight_links_options *o, ifl_error *err) {
    const char *at = o->relays ? o->relays : "";
    bool guarded = o->keys && *o->keys;
    *n = 0;
    while (*at) {
        size_t length = strcspn(at, ",");
        while (length > 0 && *at == ' ')
            at++, length--;
        if (*n == IFL_RELAYS_MAX)
            return ifl_fail(err, IFL_LIMIT, "transport.relays: more than %d", IFL_RELAYS_MAX);
        weight_relay *r = &relays[(*n)++];
        memset(r, 0, sizeof *r);
        IFL_TRY(relay_parse(r, at, length, err));
        IFL_TRY(ifl_endpoint_check(r->endpoint, guarded || o->insecure, err));
        if (guarded && !r->keyed)
            return ifl_fail(err, IFL_USAGE,
                            "transport.relays: %s: with keys wanted NAME=%s, and its public key as "
                            "%s/NAME.public",
                            r->endpoint, r->endpoint, o->keys);
        char key[IFL_KEY_TEXT_MAX];
        if (guarded) IFL_TRY(ifl_key_peer_read(key, o->keys, r->name, err));
        at += length + (at[length] == ',');
    }
    return IFL_OK;
}

ifl_status ifl_weight_links_check(const ifl_weight_links_options *options, ifl_error *err) {
    weight_relay relays[IFL_RELAYS_MAX];
    int32_t n;
    return links_parse(relays, &n, options, err);
}

/* --- Relays ----------------------------------------------------------------------------------- */

static void links_told(void *user) {
    ifl_client_wake_weights(user);
}

static ifl_status relay_open(ifl_weight_links *l, weight_relay *r, ifl_error *err) {
    ifl_client_options options = {.connect = r->endpoint,
                                  .name = l->name,
                                  .build = "inflight",
                                  .held_version = -1,
                                  .connect_deadline_ms = IFL_CLIENT_FOREVER_MS,
                                  .keys = l->keys,
                                  .key = l->key,
                                  .insecure = l->insecure,
                                  .learner_key = r->keyed ? r->name : NULL,
                                  .weights_only = true,
                                  .weights_told = links_told,
                                  .weights_user = l->learner};
    r->connected = false;
    r->n_roots = 0;
    r->hoped_until_ns = ifl_clock_ns() + HEARTBEATS_HOPED * l->heartbeat_ns;
    return ifl_client_create(&r->client, &options, err);
}

/* True: it was in use until now. */
static bool relay_leave(ifl_weight_links *l, weight_relay *r, const char *why) {
    bool was = r->connected;
    r->connected = false;
    r->n_roots = 0;
    r->hoped_until_ns = 0;
    if (!was) return false;
    l->stats.losses++;
    ifl_warn("relay %s: %s; weights come from the next one", r->name, why);
    return true;
}

/* Refused, or the run is over there: not for ever, since a relay may be started anew. */
static bool relay_close(ifl_weight_links *l, weight_relay *r, const char *why) {
    if (strcmp(r->refusal, why) != 0 && !r->connected)
        ifl_warn("relay %s is not used: %s", r->name, why);
    snprintf(r->refusal, sizeof r->refusal, "%.*s", (int)sizeof r->refusal - 1, why);
    bool was = relay_leave(l, r, why);
    ifl_client_free(r->client);
    r->client = NULL;
    r->open_at_ns = ifl_clock_ns() + OPEN_AGAIN_NS;
    return was;
}

/* What comes over control is only of use where it is final. True: it was in use until now. */
static bool relay_tend(ifl_weight_links *l, weight_relay *r) {
    bool was = false;
    if (!r->client) {
        ifl_error err = {0};
        if (ifl_clock_ns() < r->open_at_ns) return false;
        if (relay_open(l, r, &err) == IFL_OK) {
            r->hoped_until_ns = 0;
            return false;
        }
        return relay_close(l, r, err.text);
    }
    ifl_client_event e;
    while (r->client && ifl_client_poll(r->client, 0, &e, NULL) == IFL_OK) {
        bool final = e.kind == IFL_CLIENT_REFUSED || e.kind == IFL_CLIENT_GONE ||
                     e.kind == IFL_CLIENT_UNAUTHORISED;
        bool over = e.kind == IFL_CLIENT_MESSAGE && e.message.type == IFL_WIRE_BYE &&
                    e.message.bye.code == IFL_BYE_DONE;
        if (final || over) was |= relay_close(l, r, final ? e.text : "it has ended");
        ifl_client_event_clear(&e);
    }
    return was;
}

/* An event of a relay's weight plane. True: *out is for the caller. */
static bool relay_event(ifl_weight_links *l, int32_t link, ifl_weight_links_event *out) {
    weight_relay *r = &l->relays[link];
    ifl_client_event *e = &out->event;
    out->link = link;
    switch (e->kind) {
    case IFL_CLIENT_CONNECTED:
        r->window = e->message.welcome.chunk_window;
        memcpy(r->run_uuid, e->message.welcome.run_uuid, sizeof r->run_uuid);
        r->strange_said = false;
        r->connected = true;
        r->refusal[0] = '\0';
        ifl_info("relay %s is there", r->name);
        return false;
    case IFL_CLIENT_LOST:
        return out->lost = relay_leave(l, r, e->text);
    case IFL_CLIENT_MESSAGE:
        break;
    default:
        return false;
    }
    if (e->message.type == IFL_WIRE_WANN) {
        r->roots[r->n_roots++ % ROOTS] = e->message.wann.manifest->root;
        if (r->n_roots == 2 * ROOTS) r->n_roots = ROOTS; /* the ring is full; no overflow */
        return false;
    }
    if (e->message.type == IFL_WIRE_WCHUNK) return ifl_clock_ns() >= r->shunned_until_ns;
    /* WNACK: nothing of what it has announced so far is sure to be there. */
    r->n_roots = 0;
    return out->lost = true;
}

/* --- The caller's side ------------------------------------------------------------------------ */

ifl_status ifl_weight_links_create(ifl_weight_links **out, ifl_client *learner,
                                   const ifl_weight_links_options *o, ifl_error *err) {
    *out = NULL;
    ifl_weight_links *l = calloc(1, sizeof *l);
    if (!l) return ifl_fail(err, IFL_NOMEM, "out of memory: links for weights");
    l->learner = learner;
    l->heartbeat_ns = HEARTBEAT_NS;
    l->answer_ns = ANSWER_NS;
    l->window = WINDOW;
    ifl_status st = IFL_OK;
    if (o) {
        snprintf(l->name, sizeof l->name, "%s", o->name ? o->name : "actor");
        snprintf(l->keys, sizeof l->keys, "%s", o->keys ? o->keys : "");
        snprintf(l->key, sizeof l->key, "%s", o->key ? o->key : "");
        l->insecure = o->insecure;
        IFL_TRY_GOTO(st, links_parse(l->relays, &l->n, o, err), done);
    }
    for (int32_t i = 0; i < l->n; i++)
        IFL_TRY_GOTO(st, relay_open(l, &l->relays[i], err), done);
    *out = l;
    l = NULL; /* the caller owns it now */
done:
    ifl_weight_links_free(l);
    return st;
}

void ifl_weight_links_free(ifl_weight_links *l) {
    if (!l) return;
    for (int32_t i = 0; i < l->n; i++)
        ifl_client_free(l->relays[i].client);
    free(l);
}

int32_t ifl_weight_links_learner(const ifl_weight_links *l) {
    return l->n;
}

const char *ifl_weight_links_name(const ifl_weight_links *l, int32_t link) {
    return link < l->n ? l->relays[link].name : "the learner";
}

/* How long a chunk may take: ANSWER_NS, less with heartbeats that are short. */
static void links_follow(ifl_weight_links *l, const ifl_wire_welcome *w) {
    int64_t hoped_ns = ifl_clock_ns() + HEARTBEATS_HOPED * 1000000ll * w->heartbeat_ms;
    int64_t ns = 2000000ll * w->heartbeat_ms * w->heartbeat_misses;
    l->heartbeat_ns = (int64_t)w->heartbeat_ms * 1000000;
    l->answer_ns = ns > ANSWER_NS ? ANSWER_NS : ns < ANSWER_LEAST_NS ? ANSWER_LEAST_NS : ns;
    l->window = w->chunk_window;
    memcpy(l->run_uuid, w->run_uuid, sizeof l->run_uuid);
    for (int32_t i = 0; i < l->n; i++) /* the first hope was of the usual heartbeat */
        if (l->relays[i].hoped_until_ns > hoped_ns) l->relays[i].hoped_until_ns = hoped_ns;
}

/* The learner first, so that its news is never behind a relay's chunks. */
ifl_status ifl_weight_links_poll(ifl_weight_links *l, int64_t wait_ms,
                                 ifl_weight_links_event *out) {
    memset(out, 0, sizeof *out);
    out->link = l->n;
    ifl_status st = ifl_client_poll_weights(l->learner, l->n ? 0 : wait_ms, &out->event, NULL);
    for (int32_t i = 0; st != IFL_OK && i < l->n; i++) {
        weight_relay *r = &l->relays[i];
        if (relay_tend(l, r)) {
            out->link = i;
            out->lost = true;
            return IFL_OK;
        }
        while (r->client && ifl_client_poll_weights(r->client, 0, &out->event, NULL) == IFL_OK) {
            if (relay_event(l, i, out)) return IFL_OK;
            ifl_client_event_clear(&out->event);
            wait_ms = 0; /* it may be of use now */
        }
    }
    out->link = l->n;
    if (st != IFL_OK && l->n) st = ifl_client_poll_weights(l->learner, wait_ms, &out->event, NULL);
    if (st == IFL_OK && out->event.kind == IFL_CLIENT_CONNECTED)
        links_follow(l, &out->event.message.welcome);
    return st;
}

static bool relay_has(const weight_relay *r, ifl_hash root) {
    for (int32_t i = 0; i < r->n_roots && i < ROOTS; i++)
        if (ifl_hash_equal(r->roots[i], root)) return true;
    return false;
}

/* Another run's relay has nothing to wait for. */
static bool relay_is_strange(const ifl_weight_links *l, weight_relay *r) {
    if (!r->connected || strcmp(r->run_uuid, l->run_uuid) == 0) return false;
    if (!r->strange_said)
        ifl_warn("relay %s has the weights of run %.8s, not of %.8s: it is of no use here", r->name,
                 r->run_uuid, l->run_uuid);
    r->strange_said = true;
    return true;
}

int32_t ifl_weight_links_choose(ifl_weight_links *l, const ifl_manifest *manifest) {
    int64_t now = ifl_clock_ns(), since_ns = now;
    bool known = false;
    for (int32_t i = 0; i < l->n_chosen && i < ROOTS && !known; i++) {
        known = ifl_hash_equal(l->chosen[i].root, manifest->root);
        if (known) since_ns = l->chosen[i].since_ns;
    }
    if (!known) {
        l->chosen[l->n_chosen % ROOTS].root = manifest->root;
        l->chosen[l->n_chosen % ROOTS].since_ns = now;
        if (++l->n_chosen == 2 * ROOTS) l->n_chosen = ROOTS; /* a ring, as above */
    }
    for (int32_t i = 0; i < l->n; i++) {
        weight_relay *r = &l->relays[i];
        if (now < r->shunned_until_ns || relay_is_strange(l, r)) continue;
        if (r->connected && relay_has(r, manifest->root)) return i;
        /* The learner tells it no later than us. */
        if (r->connected && now - since_ns < l->heartbeat_ns) return -1;
        if (!r->connected && now < r->hoped_until_ns) return -1;
    }
    return l->n;
}

ifl_status ifl_weight_links_ask(ifl_weight_links *l, int32_t link, const ifl_message *message,
                                ifl_error *err) {
    return ifl_client_send_weights(link < l->n ? l->relays[link].client : l->learner, message, err);
}

int32_t ifl_weight_links_window(const ifl_weight_links *l, int32_t link) {
    return link < l->n ? l->relays[link].window : l->window;
}

int64_t ifl_weight_links_answer_ns(const ifl_weight_links *l) {
    return l->answer_ns;
}

void ifl_weight_links_wrong(ifl_weight_links *l, int32_t link, int64_t version, int32_t chunk) {
    if (link >= l->n) return;
    weight_relay *r = &l->relays[link];
    ifl_warn("relay %s has sent a wrong chunk %d of version %lld: its hash is not the "
             "learner's; nothing is asked of it for %d s",
             r->name, chunk, (long long)version, (int)(BAN_NS / 1000000000));
    r->shunned_until_ns = ifl_clock_ns() + BAN_NS;
    l->stats.bans++;
}

void ifl_weight_links_late(ifl_weight_links *l, int32_t link) {
    if (link >= l->n) return;
    weight_relay *r = &l->relays[link];
    int64_t limit = l->answer_ns;
    ifl_warn("relay %s: no chunk for %.1f s; weights come from the next one for %.0f s", r->name,
             (double)limit * 1e-9, (double)limit * REST_LIMITS * 1e-9);
    r->shunned_until_ns = ifl_clock_ns() + REST_LIMITS * limit;
    l->stats.late++;
}

void ifl_weight_links_ready(ifl_weight_links *l, const ifl_message *message) {
    for (int32_t i = 0; i < l->n; i++)
        if (l->relays[i].connected) (void)ifl_client_send(l->relays[i].client, message, NULL);
}

void ifl_weight_links_stats_get(const ifl_weight_links *l, ifl_weight_links_stats *out) {
    *out = l->stats;
}

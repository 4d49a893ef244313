#include "common/relay.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/relay_internal.h"

#define POLL_MS 100
#define BYTES_MIN (64 << 10)
#define FETCH_IDLE_NS                                                                              \
    5000000000       /* an older version that nobody has asked about for so long goes              \
                      */
#define MISSES_MAX 3 /* heartbeats until children take it for dead */

/* --- Asking parents (the thread) -------------------------------------------------------------- */

/* What was asked of a link and has not come is to be asked again. */
static void relay_unask(ifl_relay *r, int32_t link) {
    pthread_mutex_lock(&r->lock);
    for (relay_want *want = r->wants; want; want = want->next)
        if (want->link == link) want->link = -1;
    r->n_asked_of[link] = 0;
    pthread_mutex_unlock(&r->lock);
}

/* One request for what follows in the list and is of the same kind. NULL: nobody to ask of now, or
 * nothing left; else where to go on. Caller holds the lock. */
static relay_want *relay_ask_from(ifl_relay *r, relay_want *first, bool *blocked) {
    int32_t link = ifl_weight_links_choose(r->links, first->version->manifest);
    bool learner = link == ifl_weight_links_learner(r->links);
    if (link < 0 || (learner && !r->connected)) return first->next;
    int32_t room = ifl_weight_links_window(r->links, link) - r->n_asked_of[link];
    if (room <= 0) return first->next;
    ifl_message m = ifl_message_make(IFL_WIRE_WGET);
    relay_want *asked[IFL_WIRE_GET_MAX], *at = first;
    m.policy = m.wget.version = first->version->manifest->version;
    m.wget.base = first->set->base;
    for (; at && m.wget.n_chunks < room && m.wget.n_chunks < IFL_WIRE_GET_MAX; at = at->next) {
        if (at->link >= 0) continue;
        if (at->set != first->set) break;
        asked[m.wget.n_chunks] = at;
        m.wget.chunks[m.wget.n_chunks++] = at->chunk;
    }
    *blocked = ifl_weight_links_ask(r->links, link, &m, NULL) != IFL_OK;
    if (*blocked) return NULL;
    if (r->n_asked_of[link] == 0) r->moved_ns[link] = ifl_clock_ns();
    r->n_asked_of[link] += m.wget.n_chunks;
    for (int32_t i = 0; i < m.wget.n_chunks; i++)
        asked[i]->link = link;
    return at;
}

static void relay_ask(ifl_relay *r) {
    bool blocked = false;
    pthread_mutex_lock(&r->lock);
    for (relay_want *at = r->wants; at && !blocked;)
        at = at->link < 0 ? relay_ask_from(r, at, &blocked) : at->next;
    pthread_mutex_unlock(&r->lock);
}

/* --- What comes from parents ------------------------------------------------------------------ */

static void relay_chunk(ifl_relay *r, ifl_wire_wchunk *c, int32_t link) {
    bool learner = link == ifl_weight_links_learner(r->links);
    ifl_status st = IFL_NOTFOUND;
    pthread_mutex_lock(&r->lock);
    relay_want **at = &r->wants;
    /* Answers come in the order asked, and a dense one doesn't say what base was named. */
    while (*at && !((*at)->link == link && (*at)->version->manifest->version == c->version &&
                    (*at)->chunk == c->chunk &&
                    (c->codec == IFL_CODEC_DENSE || (*at)->set->base == c->base)))
        at = &(*at)->next;
    if (*at) {
        r->moved_ns[link] = ifl_clock_ns();
        if (learner) r->asked_in_vain = false;
        st = relay_store(r, at, c);
        if (st == IFL_FORMAT) r->stats.damaged++;
        if (st != IFL_OK) {
            (*at)->link = -1;
            r->n_asked_of[link]--;
        }
    }
    pthread_mutex_unlock(&r->lock);
    if (st == IFL_OK) ifl_server_chunks_ready(r->server);
    if (st != IFL_FORMAT || learner) return;
    ifl_weight_links_wrong(r->links, link, c->version, c->chunk);
    relay_unask(r, link);
}

/* As the publisher: older versions go when nobody fetches them, and beyond RELAY_VERSIONS_MAX one
 * goes even so. */
static void relay_retire(ifl_relay *r) {
    bool fetched[RELAY_VERSIONS_MAX + 1];
    for (int32_t i = 0; i < r->n_versions; i++) /* only this thread changes the list */
        fetched[i] =
            r->server && ifl_server_is_fetched(r->server, r->versions[i]->manifest->version);
    pthread_mutex_lock(&r->lock);
    int64_t now = ifl_clock_ns();
    bool dropped = false;
    for (int32_t i = r->n_versions - 2; i >= 0; i--) {
        if (fetched[i] || now - r->versions[i]->asked_ns <= FETCH_IDLE_NS) continue;
        for (int32_t k = i; k + 1 < r->n_versions; k++)
            fetched[k] = fetched[k + 1];
        relay_version_drop(r, i);
        dropped = true;
    }
    if (r->n_versions > RELAY_VERSIONS_MAX) {
        int32_t out = r->n_versions - 2;
        for (int32_t i = r->n_versions - 2; i >= 0; i--)
            if (!fetched[i]) out = i;
        relay_version_drop(r, out);
        dropped = true;
    }
    pthread_mutex_unlock(&r->lock);
    if (dropped) ifl_server_chunks_ready(r->server); /* who waits for it is refused */
}

static void relay_announcement(ifl_relay *r, ifl_message *m) {
    ifl_manifest *manifest = m->wann.manifest;
    int64_t version = manifest->version;
    m->wann.manifest = NULL; /* ours now */
    pthread_mutex_lock(&r->lock);
    relay_version *known = relay_find(r, version);
    bool same = known && ifl_hash_equal(known->manifest->root, manifest->root), added = false;
    for (int32_t i = 0; known && !same && i < r->n_versions; i++)
        if (r->versions[i] == known) relay_version_drop(r, i);
    if (same)
        ifl_manifest_free(manifest);
    else
        added = relay_version_add(r, manifest);
    pthread_mutex_unlock(&r->lock);
    if (same) return;
    if (!added) {
        ifl_warn("version %lld is not relayed: no room for its tables (transport.relay_mib)",
                 (long long)version);
        return;
    }
    relay_retire(r);
    ifl_server_announce(r->server);
}

/* A version is gone at the parent that has the last word. */
static void relay_refused(ifl_relay *r, int64_t version, int32_t link) {
    pthread_mutex_lock(&r->lock);
    for (relay_want **at = &r->wants; *at;)
        if ((*at)->link == link && (*at)->version->manifest->version == version)
            relay_want_refuse(r, at);
        else
            at = &(*at)->next;
    pthread_mutex_unlock(&r->lock);
    ifl_server_chunks_ready(r->server);
}

static void relay_end(ifl_relay *r, ifl_status status, const char *text) {
    pthread_mutex_lock(&r->lock);
    r->ended = true;
    if (status != IFL_OK) ifl_fail(&r->end, status, "%s", text);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void relay_connected(ifl_relay *r, const ifl_wire_welcome *w) {
    bool same =
        r->welcome.run_epoch == w->run_epoch && strcmp(r->welcome.run_uuid, w->run_uuid) == 0;
    r->connected = true;
    r->asked_in_vain = false;
    r->welcome = *w;
    if (r->server) {
        if (same) return;
        ifl_warn("the learner has been started anew: its former versions are forgotten");
        pthread_mutex_lock(&r->lock);
        relay_clear(r);
        pthread_mutex_unlock(&r->lock);
        ifl_server_set_run(r->server, w->run_uuid, w->run_epoch);
        return;
    }
    ifl_server_options options = {
        .bind = r->bind,
        .heartbeat_ms = w->heartbeat_ms,
        .heartbeat_misses = w->heartbeat_misses < MISSES_MAX ? w->heartbeat_misses : MISSES_MAX,
        .lease_s = w->lease_s,
        .chunk_window = w->chunk_window,
        .run_epoch = w->run_epoch,
        .keys = r->keys,
        .keys_reread = r->options.keys_reread,
        .insecure = r->options.insecure,
        .weights_only = true,
        .key_name = r->key[0] ? r->key : NULL,
    };
    memcpy(options.run_uuid, w->run_uuid, sizeof options.run_uuid);
    ifl_server *server;
    ifl_error err = {0};
    ifl_status st = ifl_server_create(&server, &options, &err);
    if (st != IFL_OK) {
        relay_end(r, st, err.text);
        return;
    }
    ifl_weight_source source = relay_source;
    source.context = r;
    ifl_server_set_weight_source(server, &source);
    pthread_mutex_lock(&r->lock);
    r->server = server;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void relay_event(ifl_relay *r, ifl_weight_links_event *in) {
    ifl_client_event *e = &in->event;
    if (in->lost) {
        relay_unask(r, in->link);
        return;
    }
    if (e->kind == IFL_CLIENT_CONNECTED) {
        relay_unask(r, in->link);
        relay_connected(r, &e->message.welcome);
    } else if (e->kind == IFL_CLIENT_LOST) {
        r->connected = false;
        relay_unask(r, in->link);
    } else if (e->kind == IFL_CLIENT_MESSAGE && r->server) {
        if (e->message.type == IFL_WIRE_WANN) relay_announcement(r, &e->message);
        if (e->message.type == IFL_WIRE_WCHUNK) relay_chunk(r, &e->message.wchunk, in->link);
        if (e->message.type == IFL_WIRE_WNACK) relay_refused(r, e->message.wnack.version, in->link);
    }
}

/* --- Time ------------------------------------------------------------------------------------- */

/* The parent's word on the session. */
static void relay_control(ifl_relay *r) {
    ifl_client_event e;
    while (ifl_client_poll(r->client, 0, &e, NULL) == IFL_OK) {
        switch (e.kind) {
        case IFL_CLIENT_CONNECTED:
            ifl_info("connected to run %.8s", e.message.welcome.run_uuid);
            break;
        case IFL_CLIENT_LOST:
            ifl_warn("link to the learner lost: %s; trying again", e.text);
            break;
        case IFL_CLIENT_REFUSED:
            relay_end(r, IFL_MISMATCH, e.text);
            break;
        case IFL_CLIENT_UNAUTHORISED:
            relay_end(r, IFL_AUTH, e.text);
            break;
        case IFL_CLIENT_GONE:
            relay_end(r, IFL_PEER, e.text);
            break;
        case IFL_CLIENT_MESSAGE:
            if (e.message.type == IFL_WIRE_BYE && e.message.bye.code == IFL_BYE_DONE)
                relay_end(r, IFL_OK, NULL);
            break;
        }
        ifl_client_event_clear(&e);
    }
    ifl_client_progress(r->client, ++r->n_turns, 0, 0);
}

/* Nothing has come: who has let chunks wait for too long, and who waits here in vain? */
static void relay_check_answers(ifl_relay *r) {
    int32_t learner = ifl_weight_links_learner(r->links);
    int64_t now = ifl_clock_ns(), limit = ifl_weight_links_answer_ns(r->links);
    for (int32_t link = 0; link <= learner; link++) {
        if (r->n_asked_of[link] == 0 || now - r->moved_ns[link] <= limit) continue;
        if (link < learner) {
            ifl_weight_links_late(r->links, link);
        } else {
            if (r->asked_in_vain)
                ifl_client_reset_link(r->client, "no chunk has come, though asked for twice");
            r->asked_in_vain = !r->asked_in_vain;
        }
        relay_unask(r, link);
    }
    bool refused = false;
    pthread_mutex_lock(&r->lock);
    ifl_weight_links_stats_get(r->links, &r->stats.parents);
    for (relay_want **at = &r->wants; *at;) {
        /* Without a parent that has it: children know others. */
        if ((*at)->link < 0 && now - (*at)->since_ns > limit) {
            relay_want_refuse(r, at);
            refused = true;
        } else {
            at = &(*at)->next;
        }
    }
    pthread_mutex_unlock(&r->lock);
    if (refused) ifl_server_chunks_ready(r->server);
}

/* Tells the parents of versions that all children who have begun them have whole: they need not
 * keep them for this relay. */
static void relay_ready(ifl_relay *r) {
    for (int32_t i = 0; i < r->n_versions; i++) {
        relay_version *v = r->versions[i];
        ifl_message m = ifl_message_make(IFL_WIRE_WREADY);
        m.policy = m.wready.version = v->manifest->version;
        m.wready.root = v->manifest->root;
        bool fetched = ifl_server_is_fetched(r->server, v->manifest->version);
        pthread_mutex_lock(&r->lock);
        bool wanted = false;
        for (relay_want *want = r->wants; want; want = want->next)
            wanted |= want->version == v;
        bool now = v->served && !v->ready && !fetched && !wanted;
        v->ready |= now;
        pthread_mutex_unlock(&r->lock);
        if (!now) continue;
        (void)ifl_client_send(r->client, &m, NULL); /* without a link nobody waits for it */
        ifl_weight_links_ready(r->links, &m);
    }
}

static void *relay_run(void *context) {
    ifl_relay *r = context;
    for (;;) {
        pthread_mutex_lock(&r->lock);
        bool stop = r->stop || r->ended;
        pthread_mutex_unlock(&r->lock);
        if (stop) return NULL;
        relay_control(r);
        relay_ask(r);
        ifl_weight_links_event event;
        if (ifl_weight_links_poll(r->links, POLL_MS, &event) == IFL_OK) {
            relay_event(r, &event);
            ifl_client_event_clear(&event.event);
        } else {
            relay_check_answers(r);
            relay_retire(r);
            if (r->server) relay_ready(r);
        }
    }
}

/* --- Life ------------------------------------------------------------------------------------- */

static ifl_status relay_open(ifl_relay *r, ifl_error *err) {
    bool guarded = r->keys[0] != '\0';
    IFL_TRY(ifl_endpoint_check(r->bind, guarded || r->options.insecure, err));
    if (guarded) {
        char key[IFL_KEY_NAME_MAX];
        ifl_key_pair own;
        IFL_TRY(ifl_key_actor_name(key, r->keys, r->key, r->name, err));
        memcpy(r->key, key, sizeof key);
        IFL_TRY(ifl_key_pair_read(&own, r->keys, r->key, err)); /* what is mistyped is said now */
        explicit_bzero(&own, sizeof own);
    }
    ifl_client_options parent = {.connect = r->connect,
                                 .name = r->name,
                                 .build = "inflight",
                                 .held_version = -1,
                                 .connect_deadline_ms = r->options.connect_deadline_ms,
                                 .keys = r->keys,
                                 .key = r->key,
                                 .insecure = r->options.insecure,
                                 .weights_only = true};
    IFL_TRY(ifl_client_create(&r->client, &parent, err));
    ifl_weight_links_options links = {.relays = r->relays,
                                      .name = r->name,
                                      .keys = r->keys,
                                      .key = r->key,
                                      .insecure = r->options.insecure};
    return ifl_weight_links_create(&r->links, r->client, &links, err);
}

ifl_status ifl_relay_create(ifl_relay **out, const ifl_relay_options *o, ifl_error *err) {
    *out = NULL;
    if (o->bytes_max < BYTES_MIN)
        return ifl_fail(err, IFL_USAGE, "relay: %lld bytes to keep weights in, wanted at least %d",
                        (long long)o->bytes_max, BYTES_MIN);
    ifl_relay *r = calloc(1, sizeof *r);
    if (!r) return ifl_fail(err, IFL_NOMEM, "out of memory: the relay");
    r->options = *o;
    r->wants_end = &r->wants;
    r->stats.version = -1;
    snprintf(r->connect, sizeof r->connect, "%s", o->connect);
    snprintf(r->bind, sizeof r->bind, "%s", o->bind);
    snprintf(r->relays, sizeof r->relays, "%s", o->relays ? o->relays : "");
    snprintf(r->keys, sizeof r->keys, "%s", o->keys ? o->keys : "");
    snprintf(r->key, sizeof r->key, "%s", o->key ? o->key : "");
    snprintf(r->name, sizeof r->name, "%s", o->name ? o->name : "relay");
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&r->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    ifl_status st = relay_open(r, err);
    if (st == IFL_OK && pthread_create(&r->thread, NULL, relay_run, r) != 0)
        st = ifl_fail(err, IFL_NOMEM, "cannot start the relay's thread");
    if (st != IFL_OK) {
        ifl_relay_free(r);
        return st;
    }
    r->thread_started = true;
    *out = r;
    return IFL_OK;
}

void ifl_relay_free(ifl_relay *r) {
    if (!r) return;
    if (r->thread_started) {
        pthread_mutex_lock(&r->lock);
        r->stop = true;
        pthread_mutex_unlock(&r->lock);
        ifl_client_wake_weights(r->client);
        pthread_join(r->thread, NULL);
    }
    if (r->server) ifl_server_set_weight_source(r->server, NULL);
    ifl_server_free(r->server); /* gives back what it was sending */
    pthread_mutex_lock(&r->lock);
    relay_clear(r);
    pthread_mutex_unlock(&r->lock);
    ifl_weight_links_free(r->links);
    ifl_client_free(r->client);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

ifl_status ifl_relay_wait(ifl_relay *r, int64_t wait_ms, ifl_error *err) {
    int64_t until = ifl_clock_ns() + wait_ms * 1000000;
    struct timespec deadline = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    ifl_status st = IFL_AGAIN;
    pthread_mutex_lock(&r->lock);
    while (!r->ended && ifl_clock_ns() < until)
        pthread_cond_timedwait(&r->changed, &r->lock, &deadline);
    if (r->ended) st = r->end.status;
    if (r->ended && st != IFL_OK) ifl_fail(err, st, "%s", r->end.text);
    pthread_mutex_unlock(&r->lock);
    return st;
}

void ifl_relay_endpoint(ifl_relay *r, char out[IFL_ENDPOINT_MAX]) {
    pthread_mutex_lock(&r->lock);
    snprintf(out, IFL_ENDPOINT_MAX, "%s", r->server ? ifl_server_endpoint(r->server) : "");
    pthread_mutex_unlock(&r->lock);
}

void ifl_relay_stats_get(ifl_relay *r, ifl_relay_stats *out) {
    pthread_mutex_lock(&r->lock);
    ifl_server *server = r->server;
    *out = r->stats;
    out->bytes_kept = r->bytes_held + r->bytes_reserved;
    pthread_mutex_unlock(&r->lock);
    if (!server) return;
    ifl_server_stats stats;
    ifl_server_stats_get(server, &stats);
    out->n_children = stats.weight_peers;
}

void ifl_relay_test_forge(ifl_relay *r, int32_t chunk, int32_t times) {
    pthread_mutex_lock(&r->lock);
    r->forge_chunk = chunk;
    r->forge_times = times;
    pthread_mutex_unlock(&r->lock);
}

void ifl_relay_test_stall(ifl_relay *r, bool stalled) {
    pthread_mutex_lock(&r->lock);
    ifl_server *server = r->server;
    r->stalled = stalled;
    pthread_mutex_unlock(&r->lock);
    if (server) ifl_server_chunks_ready(server);
}

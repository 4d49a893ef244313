#include "actor/weight_receiver.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "common/recorder.h"

#define POLL_MS 100
#define REFUSED_NS 500000000 /* after WNACK, unless a newer version is announced */

typedef enum {
    CHUNK_NEEDED, /* as a patch where the buffer holds the base */
    CHUNK_NEEDED_DENSE,
    CHUNK_ASKED,
    CHUNK_ASKED_DENSE,
    CHUNK_DONE,
} chunk_state;
/* What names one learner process. */
typedef struct history {
    char run_uuid[33];
    uint64_t run_epoch;
} history;

typedef enum { BUFFER_NONE, BUFFER_OFFERED, BUFFER_FETCHING, BUFFER_READY } buffer_state;

struct ifl_weight_receiver {
    const ifl_model *model;
    ifl_client *client;
    ifl_weight_links *links; /* the thread's */
    pthread_t thread;
    bool thread_started;

    /* The thread's own. */
    ifl_manifest *announced; /* newest of this session; NULL before the first */
    ifl_manifest *fetching;  /* NULL: no fetch */
    ifl_manifest *held;      /* of the version last made ready, in this history; or NULL */
    uint8_t *states;         /* [fetching->n_chunks] chunk_state */
    uint8_t *asked_of;       /* [fetching->n_chunks] the link, of chunks that have been asked for */
    int32_t n_done, n_asked, cursor;
    int32_t n_asked_of[IFL_WEIGHT_LINKS_MAX];
    int64_t moved_ns[IFL_WEIGHT_LINKS_MAX]; /* when each link's wait began */
    bool asked_in_vain;                     /* twice now would be a dead link */
    const ifl_weights *patching;            /* the base that this fetch takes patches of; NULL: all dense */
    ifl_patch patch;
    double verify_s;
    int64_t begin_ns, not_before_ns;
    bool dropped_last; /* the fetch before this one was given up */
    bool connected;
    uint16_t *bounce; /* one chunk */
    int64_t bounce_elements;

    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t changed;
    bool stop;
    buffer_state state;
    history here;     /* of all that this object holds; the thread changes it */
    history followed; /* of the session that the application knows */
    bool has_followed;
    ifl_weights *buffer;     /* the thread writes into it while OFFERED and FETCHING */
    const ifl_weights *base; /* what it may begin from; or NULL */
    int64_t announced_version;
    int64_t done_version; /* last one made ready */
    ifl_hash done_root;
    bool has_done;
    bool has_mismatch;
    ifl_error mismatch;
    ifl_weight_receiver_stats stats;
};

/* --- The base --------------------------------------------------------------------------------- */

static void receiver_forget_base(ifl_weight_receiver *r) {
    ifl_manifest_free(r->held);
    r->held = NULL;
}

/* Room for one chunk. */
static bool receiver_bounce(ifl_weight_receiver *r, int64_t n) {
    if (r->bounce_elements >= n) return true;
    uint16_t *grown = realloc(r->bounce, (size_t)n * 2);
    if (!grown) return false;
    r->bounce = grown;
    r->bounce_elements = n;
    return true;
}

static bool receiver_same_grid(const ifl_manifest *a, const ifl_manifest *b) {
    if (a->n_chunks != b->n_chunks) return false;
    for (int32_t i = 0; i < a->n_chunks; i++)
        if (a->chunks[i].begin != b->chunks[i].begin ||
            a->chunks[i].n_elements != b->chunks[i].n_elements)
            return false;
    return true;
}

/* Reads a chunk back as it now lies in the buffer: what the hash is over is what will be used. */
static bool receiver_chunk_is_right(ifl_weight_receiver *r, int32_t chunk) {
    const ifl_manifest_chunk *want = &r->fetching->chunks[chunk];
    if (!receiver_bounce(r, want->n_elements)) return false;
    int64_t before = ifl_clock_ns();
    ifl_weights_get(r->buffer, want->begin, want->n_elements, r->bounce);
    bool right =
        ifl_hash_equal(ifl_hash_bytes(r->bounce, (size_t)want->n_elements * 2), want->hash);
    r->verify_s += (double)(ifl_clock_ns() - before) * 1e-9;
    return right;
}

/* A chunk that is the base's in the new version too is taken from there, if its hash says so. */
static bool receiver_keep_chunk(ifl_weight_receiver *r, int32_t chunk) {
    const ifl_manifest_chunk *c = &r->fetching->chunks[chunk];
    if (!receiver_bounce(r, c->n_elements)) return false;
    ifl_weights_get(r->patching, c->begin, c->n_elements, r->bounce);
    if (!ifl_hash_equal(ifl_hash_bytes(r->bounce, (size_t)c->n_elements * 2), c->hash))
        return false;
    ifl_weights_put(r->buffer, c->begin, c->n_elements, r->bounce);
    return true;
}

/* Whether this fetch can take patches: of weights that stay as they are until it is taken. */
static void receiver_begin_from_base(ifl_weight_receiver *r) {
    pthread_mutex_lock(&r->lock);
    const ifl_weights *base = r->base;
    pthread_mutex_unlock(&r->lock);
    bool fits = base && r->held && base->version == r->held->version &&
                receiver_same_grid(r->held, r->fetching);
    r->patching = fits ? base : NULL;
    for (int32_t i = 0; fits && i < r->fetching->n_chunks; i++) {
        if (!ifl_hash_equal(r->fetching->chunks[i].hash, r->held->chunks[i].hash)) continue;
        bool kept = receiver_keep_chunk(r, i);
        r->states[i] = kept ? CHUNK_DONE : CHUNK_NEEDED_DENSE;
        r->n_done += kept;
    }
}

/* --- The fetch -------------------------------------------------------------------------------- */

static void receiver_end_fetch(ifl_weight_receiver *r, buffer_state state) {
    ifl_manifest_free(r->fetching);
    r->fetching = NULL;
    free(r->states);
    free(r->asked_of);
    r->states = r->asked_of = NULL;
    r->n_done = r->n_asked = r->cursor = 0;
    memset(r->n_asked_of, 0, sizeof r->n_asked_of);
    pthread_mutex_lock(&r->lock);
    if (r->state == BUFFER_FETCHING) r->state = state;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* Gives a fetch up for a newer version. */
static void receiver_drop_fetch(ifl_weight_receiver *r) {
    pthread_mutex_lock(&r->lock);
    r->stats.dropped++;
    pthread_mutex_unlock(&r->lock);
    r->dropped_last = true;
    receiver_end_fetch(r, BUFFER_OFFERED);
}

static history history_of(const ifl_wire_welcome *welcome) {
    history h = {.run_epoch = welcome->run_epoch};
    memcpy(h.run_uuid, welcome->run_uuid, sizeof h.run_uuid);
    return h;
}

static bool history_equal(const history *a, const history *b) {
    return a->run_epoch == b->run_epoch && strcmp(a->run_uuid, b->run_uuid) == 0;
}

/* A session has begun. When it is another learner process's, nothing that an earlier one announced
 * counts any more, whatever its version: neither a fetch, nor a whole version that nobody has taken
 * yet, nor the knowledge of what was fetched last. */
static void receiver_enter(ifl_weight_receiver *r, const ifl_wire_welcome *welcome) {
    history now = history_of(welcome);
    if (history_equal(&now, &r->here)) return; /* only this thread writes it */
    if (r->fetching) receiver_drop_fetch(r);
    receiver_forget_base(r);
    r->dropped_last = false;
    pthread_mutex_lock(&r->lock);
    r->here = now;
    if (r->state == BUFFER_READY) r->state = BUFFER_OFFERED;
    r->has_done = false;
    r->announced_version = r->done_version = -1;
    pthread_mutex_unlock(&r->lock);
}

/* What has been asked of a link and not come. */
static void receiver_ask_again(ifl_weight_receiver *r, int32_t link) {
    int32_t n = 0;
    for (int32_t i = 0; r->fetching && i < r->fetching->n_chunks; i++)
        if ((r->states[i] == CHUNK_ASKED || r->states[i] == CHUNK_ASKED_DENSE) &&
            r->asked_of[i] == link) {
            r->states[i] = r->states[i] == CHUNK_ASKED ? CHUNK_NEEDED : CHUNK_NEEDED_DENSE;
            n++;
        }
    r->n_asked -= r->n_asked_of[link];
    r->n_asked_of[link] = 0;
    r->cursor = 0;
    pthread_mutex_lock(&r->lock);
    r->stats.retries += n;
    pthread_mutex_unlock(&r->lock);
}

/* The manifest against this model: a hash over the same names, places and sizes was compared in
 * HELLO, so a difference is a fault of the learner. */
static ifl_status receiver_check_model(const ifl_weight_receiver *r, const ifl_manifest *m,
                                       ifl_error *err) {
    if (m->n_elements != r->model->n_elements || m->n_tensors != r->model->n_params)
        return ifl_fail(
            err, IFL_MISMATCH,
            "version %lld has %d tensors of %lld elements, this actor's model %d of %lld",
            (long long)m->version, m->n_tensors, (long long)m->n_elements, r->model->n_params,
            (long long)r->model->n_elements);
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const ifl_manifest_tensor *t = &m->tensors[i];
        const ifl_param *p = &r->model->params[i];
        if (strcmp(t->name, p->spec.name) != 0 || t->offset != p->offset ||
            t->n_elements != p->spec.rows * p->spec.cols || t->delta_of != -1)
            return ifl_fail(
                err, IFL_MISMATCH,
                "version %lld: tensor %d is %s of %lld elements, this actor's is %s of %lld",
                (long long)m->version, i, t->name, (long long)t->n_elements, p->spec.name,
                (long long)(p->spec.rows * p->spec.cols));
    }
    return IFL_OK;
}

static void receiver_announcement(ifl_weight_receiver *r, ifl_message *message) {
    ifl_manifest *m = message->wann.manifest;
    message->wann.manifest = NULL; /* ours now */
    ifl_error err = {0};
    if (receiver_check_model(r, m, &err) != IFL_OK) {
        pthread_mutex_lock(&r->lock);
        r->has_mismatch = true;
        r->mismatch = err;
        pthread_cond_broadcast(&r->changed);
        pthread_mutex_unlock(&r->lock);
        ifl_manifest_free(m);
        return;
    }
    ifl_manifest_free(r->announced);
    r->announced = m;
    r->not_before_ns = 0;
    pthread_mutex_lock(&r->lock);
    r->announced_version = m->version;
    pthread_mutex_unlock(&r->lock);
    if (!r->fetching || ifl_hash_equal(r->fetching->root, m->root)) return;
    if (r->n_done < r->fetching->n_chunks / 2 && !r->dropped_last) receiver_drop_fetch(r);
}

/* Begins with the newest version when there is a buffer and something new. */
static void receiver_start(ifl_weight_receiver *r) {
    if (r->fetching || !r->announced || ifl_clock_ns() < r->not_before_ns) return;
    pthread_mutex_lock(&r->lock);
    bool go = r->state == BUFFER_OFFERED &&
              !(r->has_done && ifl_hash_equal(r->done_root, r->announced->root));
    if (go) r->state = BUFFER_FETCHING;
    pthread_mutex_unlock(&r->lock);
    if (!go) return;
    r->fetching = r->announced;
    r->announced = NULL;
    r->states = calloc((uint32_t)r->fetching->n_chunks, sizeof *r->states);
    r->asked_of = calloc((uint32_t)r->fetching->n_chunks, sizeof *r->asked_of);
    if (!r->states || !r->asked_of) {
        ifl_warn("out of memory: the table of %d chunks; trying again", r->fetching->n_chunks);
        r->announced = r->fetching;
        r->fetching = NULL;
        r->not_before_ns = ifl_clock_ns() + REFUSED_NS;
        receiver_end_fetch(r, BUFFER_OFFERED);
        return;
    }
    ifl_fail_point(IFL_FAIL_RECEIVER_BEGIN);
    r->begin_ns = ifl_clock_ns();
    r->verify_s = 0.0;
    pthread_mutex_lock(&r->lock);
    r->stats.version_bytes_last = r->stats.version_patched_last = 0;
    pthread_mutex_unlock(&r->lock);
    receiver_begin_from_base(r);
}

/* Keeps `window` chunks on their way. A request is for patches or for dense chunks. */
static void receiver_ask(ifl_weight_receiver *r) {
    while (r->fetching && r->n_done + r->n_asked < r->fetching->n_chunks) {
        int32_t link = ifl_weight_links_choose(r->links, r->fetching);
        if (link < 0 || (link == ifl_weight_links_learner(r->links) && !r->connected)) return;
        int32_t room = ifl_weight_links_window(r->links, link) - r->n_asked_of[link];
        if (room <= 0) return;
        ifl_message m = ifl_message_make(IFL_WIRE_WGET);
        m.policy = m.wget.version = r->fetching->version;
        uint8_t kind = CHUNK_NEEDED;
        for (; r->cursor < r->fetching->n_chunks && m.wget.n_chunks < room &&
               m.wget.n_chunks < IFL_WIRE_GET_MAX;
             r->cursor++) {
            uint8_t state = r->states[r->cursor];
            if (state != CHUNK_NEEDED && state != CHUNK_NEEDED_DENSE) continue;
            if (m.wget.n_chunks == 0) kind = state;
            if (state != kind) break;
            m.wget.chunks[m.wget.n_chunks++] = r->cursor;
        }
        if (m.wget.n_chunks == 0) {
            r->cursor = 0; /* chunks to be asked again lie before the cursor */
            continue;
        }
        if (kind == CHUNK_NEEDED && r->patching) m.wget.base = r->held->version;
        ifl_error err = {0};
        if (ifl_weight_links_ask(r->links, link, &m, &err) != IFL_OK) {
            r->cursor = 0; /* no link, or too much waits: later */
            return;
        }
        for (int32_t i = 0; i < m.wget.n_chunks; i++) {
            r->states[m.wget.chunks[i]] = kind == CHUNK_NEEDED ? CHUNK_ASKED : CHUNK_ASKED_DENSE;
            r->asked_of[m.wget.chunks[i]] = (uint8_t)link;
            ifl_record_event("asked", -1, (uint64_t)m.wget.version, m.wget.chunks[i], 0, 0);
        }
        if (r->n_asked_of[link] == 0) r->moved_ns[link] = ifl_clock_ns();
        r->n_asked += m.wget.n_chunks;
        r->n_asked_of[link] += m.wget.n_chunks;
    }
}

/* The payload as bf16 elements at an even address. */
static const uint16_t *receiver_elements(ifl_weight_receiver *r, const ifl_wire_wchunk *c,
                                         int64_t n) {
    if (((uintptr_t)c->data & 1) == 0) return (const uint16_t *)(const void *)c->data;
    if (!receiver_bounce(r, n)) return NULL;
    memcpy(r->bounce, c->data, (size_t)n * 2);
    return r->bounce;
}

/* The base's chunk with the patch's changes, by way of the bounce buffer; stored when its hash is
 * the manifest's, so that the hash is over unchanged weights as they lie in memory, too. */
static ifl_status receiver_store_patch(ifl_weight_receiver *r, const ifl_wire_wchunk *c) {
    const ifl_manifest_chunk *want = &r->fetching->chunks[c->chunk];
    if (!receiver_bounce(r, want->n_elements)) return IFL_NOMEM;
    ifl_weights_get(r->patching, want->begin, want->n_elements, r->bounce);
    ifl_status st = c->codec == IFL_CODEC_ULP_GAP
                        ? ifl_patch_decode(&r->patch, c->data, c->n_data, want->n_elements, NULL)
                        : ifl_patch_decode_classes(&r->patch, c->data, c->n_data, r->bounce,
                                                   want->n_elements, NULL);
    if (st == IFL_OK) st = ifl_patch_apply(&r->patch, r->bounce, NULL);
    if (st == IFL_NOMEM) return st;
    int64_t before = ifl_clock_ns();
    bool right =
        st == IFL_OK &&
        ifl_hash_equal(ifl_hash_bytes(r->bounce, (size_t)want->n_elements * 2), want->hash);
    r->verify_s += (double)(ifl_clock_ns() - before) * 1e-9;
    if (!right) return IFL_MISMATCH;
    ifl_weights_put(r->buffer, want->begin, want->n_elements, r->bounce);
    return IFL_OK;
}

/* Stores a chunk. What was damaged on the way is noticed before the buffer is touched. IFL_FORMAT:
 * so it was; IFL_MISMATCH: it came as it was sent, and doesn't give what the manifest says. */
static ifl_status receiver_store(ifl_weight_receiver *r, const ifl_wire_wchunk *c) {
    const ifl_manifest_chunk *want = &r->fetching->chunks[c->chunk];
    if (c->codec != IFL_CODEC_DENSE) {
        if (!ifl_codec_is_patch(c->codec) || !r->patching || c->base != r->held->version)
            return IFL_MISMATCH;
        if (!ifl_hash_equal(ifl_hash_bytes(c->data, c->n_data), c->hash)) return IFL_FORMAT;
        return receiver_store_patch(r, c);
    }
    if (c->n_data != (size_t)want->n_elements * 2 ||
        !ifl_hash_equal(ifl_hash_bytes(c->data, c->n_data), want->hash))
        return IFL_FORMAT;
    const uint16_t *elements = receiver_elements(r, c, want->n_elements);
    if (!elements) return IFL_NOMEM;
    ifl_weights_put(r->buffer, want->begin, want->n_elements, elements);
    return receiver_chunk_is_right(r, c->chunk) ? IFL_OK : IFL_MISMATCH;
}

/* A relay's mistake is not the end of patches: the next one may have the right one. */
static void receiver_chunk_failed(ifl_weight_receiver *r, const ifl_wire_wchunk *c, int32_t link,
                                  ifl_status st, bool dense) {
    bool relayed = link != ifl_weight_links_learner(r->links);
    ifl_record_event("damaged", -1, (uint64_t)c->version, c->chunk, 0, 0);
    if (!relayed && st != IFL_NOMEM) /* of a relay's the links tell */
        ifl_warn("chunk %d of version %lld came with another hash than its manifest says: asked for "
                 "again%s",
                 c->chunk, (long long)c->version,
                 st == IFL_MISMATCH ? ", whole (its patch does not fit)" : "");
    /* The learner's patch that came whole and doesn't fit will not fit next time. */
    r->states[c->chunk] =
        dense || (st == IFL_MISMATCH && !relayed) ? CHUNK_NEEDED_DENSE : CHUNK_NEEDED;
    r->cursor = 0;
    if (!relayed || st == IFL_NOMEM) return;
    ifl_weight_links_wrong(r->links, link, c->version, c->chunk);
    receiver_ask_again(r, link);
}

static void receiver_chunk(ifl_weight_receiver *r, const ifl_wire_wchunk *c, int32_t link) {
    if (!r->fetching || c->version != r->fetching->version || c->chunk >= r->fetching->n_chunks ||
        (r->states[c->chunk] != CHUNK_ASKED && r->states[c->chunk] != CHUNK_ASKED_DENSE) ||
        r->asked_of[c->chunk] != link)
        return; /* of a fetch that was given up, or of a link that was */
    bool dense = r->states[c->chunk] == CHUNK_ASKED_DENSE;
    bool relayed = link != ifl_weight_links_learner(r->links);
    r->n_asked--;
    r->n_asked_of[link]--;
    r->moved_ns[link] = ifl_clock_ns();
    if (!relayed) r->asked_in_vain = false;
    ifl_fail_point(IFL_FAIL_RECEIVER_CHUNK);
    ifl_status st = receiver_store(r, c);
    pthread_mutex_lock(&r->lock);
    if (st == IFL_OK) {
        r->stats.chunks++;
        r->stats.bytes += (int64_t)c->n_data;
        r->stats.relayed_bytes += relayed ? (int64_t)c->n_data : 0;
        r->stats.version_bytes_last += (int64_t)c->n_data;
        r->stats.version_patched_last += c->codec != IFL_CODEC_DENSE;
    } else {
        r->stats.hash_failures++;
        r->stats.retries++;
        r->stats.patch_mismatches += st == IFL_MISMATCH;
    }
    pthread_mutex_unlock(&r->lock);
    if (st == IFL_OK) {
        r->states[c->chunk] = CHUNK_DONE;
        r->n_done++;
    } else {
        receiver_chunk_failed(r, c, link, st, dense);
    }
}

/* All chunks are in, each one right as it lies in the buffer; together they are what the content
 * hash is over. */
static void receiver_finish(ifl_weight_receiver *r) {
    if (!r->fetching || r->n_done < r->fetching->n_chunks) return;
    ifl_fail_point(IFL_FAIL_RECEIVER_READY);
    ifl_manifest *m = r->fetching;
    ifl_message ready = ifl_message_make(IFL_WIRE_WREADY);
    ready.policy = ready.wready.version = m->version;
    ready.wready.root = m->root;
    (void)ifl_client_send(r->client, &ready, NULL); /* without a link nobody waits for it */
    ifl_weight_links_ready(r->links, &ready);
    pthread_mutex_lock(&r->lock);
    r->buffer->version = m->version;
    r->done_version = m->version;
    r->done_root = m->root;
    r->has_done = true;
    r->stats.versions++;
    r->stats.fetch_s_last = (double)(ifl_clock_ns() - r->begin_ns) * 1e-9;
    r->stats.verify_s_last = r->verify_s;
    r->stats.core_s = (double)ifl_clock_thread_ns() * 1e-9;
    pthread_mutex_unlock(&r->lock);
    r->dropped_last = false;
    receiver_forget_base(r);
    r->held = m;
    r->fetching = NULL;
    receiver_end_fetch(r, BUFFER_READY);
}

/* --- The thread ------------------------------------------------------------------------------- */

static void receiver_event(ifl_weight_receiver *r, ifl_weight_links_event *in) {
    ifl_client_event *event = &in->event;
    if (in->lost) {
        receiver_ask_again(r, in->link);
        return;
    }
    switch (event->kind) {
    case IFL_CLIENT_CONNECTED:
        /* What the new session announces counts; it may have gone back to a checkpoint. */
        r->connected = true;
        receiver_enter(r, &event->message.welcome);
        r->asked_in_vain = false;
        ifl_manifest_free(r->announced);
        r->announced = NULL;
        receiver_ask_again(r, in->link);
        break;
    case IFL_CLIENT_LOST:
        r->connected = false;
        receiver_ask_again(r, in->link);
        break;
    case IFL_CLIENT_MESSAGE:
        if (event->message.type == IFL_WIRE_WANN)
            receiver_announcement(r, &event->message);
        else if (event->message.type == IFL_WIRE_WCHUNK)
            receiver_chunk(r, &event->message.wchunk, in->link);
        else if (r->fetching && event->message.wnack.version == r->fetching->version) {
            /* Gone at the learner: a newer one is announced, or will be. If not (its memory was
             * short), the same one is tried again a little later. */
            if (!r->announced) {
                r->announced = r->fetching;
                r->fetching = NULL;
                r->not_before_ns = ifl_clock_ns() + REFUSED_NS;
            }
            receiver_drop_fetch(r);
        }
        break;
    default:
        break;
    }
}

/* Chunks that have been asked for and don't come. What else comes, and how often, says nothing about
 * them. A second silence of the learner's, half as long, means a stream that waits for the rest of a
 * damaged frame. */
static void receiver_look_at_time(ifl_weight_receiver *r) {
    int32_t learner = ifl_weight_links_learner(r->links);
    int64_t now = ifl_clock_ns(), limit = ifl_weight_links_answer_ns(r->links);
    for (int32_t link = 0; link <= learner; link++) {
        int64_t most = link == learner && r->asked_in_vain ? limit / 2 : limit;
        if (r->n_asked_of[link] == 0 || now - r->moved_ns[link] <= most) continue;
        if (link < learner) {
            ifl_weight_links_late(r->links, link);
        } else {
            if (r->asked_in_vain)
                ifl_client_reset_link(r->client, "no chunk has come, though asked for twice");
            r->asked_in_vain = !r->asked_in_vain;
        }
        receiver_ask_again(r, link);
    }
    pthread_mutex_lock(&r->lock);
    ifl_weight_links_stats_get(r->links, &r->stats.relays);
    pthread_mutex_unlock(&r->lock);
}

static void *receiver_run(void *context) {
    ifl_weight_receiver *r = context;
    sigset_t all; /* signals are for the application's thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (;;) {
        pthread_mutex_lock(&r->lock);
        bool stop = r->stop;
        pthread_mutex_unlock(&r->lock);
        if (stop) return NULL;
        receiver_start(r);
        receiver_finish(r); /* if the new version differs in nothing */
        receiver_ask(r);
        ifl_weight_links_event event;
        if (ifl_weight_links_poll(r->links, POLL_MS, &event) == IFL_OK) {
            receiver_event(r, &event);
            ifl_client_event_clear(&event.event);
            receiver_finish(r);
        }
        receiver_look_at_time(r);
    }
}

/* --- The application's side ------------------------------------------------------------------- */

ifl_status ifl_weight_receiver_create(ifl_weight_receiver **out, const ifl_model *model,
                                      ifl_client *client, const ifl_weight_links_options *relays,
                                      ifl_error *err) {
    *out = NULL;
    ifl_weight_links *links;
    IFL_TRY(ifl_weight_links_create(&links, client, relays, err));
    ifl_weight_receiver *r = calloc(1, sizeof *r);
    if (!r) {
        ifl_weight_links_free(links);
        return ifl_fail(err, IFL_NOMEM, "out of memory: the weight receiver");
    }
    r->links = links;
    r->model = model;
    r->client = client;
    r->announced_version = r->done_version = -1;
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&r->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    if (pthread_create(&r->thread, NULL, receiver_run, r) != 0) {
        ifl_weight_receiver_free(r);
        return ifl_fail(err, IFL_NOMEM, "cannot start the weight receiver's thread");
    }
    r->thread_started = true;
    *out = r;
    return IFL_OK;
}

void ifl_weight_receiver_free(ifl_weight_receiver *r) {
    if (!r) return;
    if (r->thread_started) {
        pthread_mutex_lock(&r->lock);
        r->stop = true;
        pthread_mutex_unlock(&r->lock);
        ifl_client_wake_weights(r->client);
        pthread_join(r->thread, NULL);
    }
    ifl_weight_links_free(r->links);
    ifl_manifest_free(r->announced);
    ifl_manifest_free(r->fetching);
    receiver_forget_base(r);
    ifl_patch_free(&r->patch);
    free(r->states);
    free(r->asked_of);
    free(r->bounce);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

ifl_status ifl_weight_receiver_offer_buffer(ifl_weight_receiver *r, ifl_weights *weights,
                                            const ifl_weights *base, ifl_error *err) {
    if (!ifl_hash_equal(weights->model->fingerprint, r->model->fingerprint))
        return ifl_fail(err, IFL_USAGE, "the offered weights belong to another model");
    ifl_status st = IFL_OK;
    pthread_mutex_lock(&r->lock);
    if (r->state != BUFFER_NONE) {
        st = ifl_fail(err, IFL_FULL, "the weight receiver has a buffer already");
    } else {
        r->buffer = weights;
        r->base = base;
        r->state = BUFFER_OFFERED;
    }
    pthread_mutex_unlock(&r->lock);
    if (st == IFL_OK) ifl_client_wake_weights(r->client);
    return st;
}

/* Caller holds the lock. */
static ifl_status receiver_take_locked(ifl_weight_receiver *r, ifl_weights **weights,
                                       ifl_error *err) {
    *weights = NULL;
    bool own = !r->has_followed || history_equal(&r->here, &r->followed);
    if (r->state == BUFFER_READY && own) {
        *weights = r->buffer;
        r->buffer = NULL;
        r->base = NULL;
        r->state = BUFFER_NONE;
        return IFL_OK;
    }
    if (r->has_mismatch) {
        r->has_mismatch = false;
        return ifl_fail(err, IFL_MISMATCH, "%s", r->mismatch.text);
    }
    return IFL_AGAIN;
}

ifl_status ifl_weight_receiver_take(ifl_weight_receiver *r, ifl_weights **weights, ifl_error *err) {
    pthread_mutex_lock(&r->lock);
    ifl_status st = receiver_take_locked(r, weights, err);
    pthread_mutex_unlock(&r->lock);
    return st;
}

ifl_status ifl_weight_receiver_wait(ifl_weight_receiver *r, int64_t wait_ms, ifl_weights **weights,
                                    ifl_error *err) {
    int64_t until = ifl_clock_ns() + wait_ms * 1000000;
    struct timespec deadline = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    ifl_status st;
    pthread_mutex_lock(&r->lock);
    while ((st = receiver_take_locked(r, weights, err)) == IFL_AGAIN)
        if (pthread_cond_timedwait(&r->changed, &r->lock, &deadline) != 0) {
            st = receiver_take_locked(r, weights, err);
            if (st == IFL_AGAIN)
                st = ifl_fail(err, IFL_TIMEOUT,
                              "no weights within %lld ms (newest announced version: %lld)",
                              (long long)wait_ms, (long long)r->announced_version);
            break;
        }
    pthread_mutex_unlock(&r->lock);
    return st;
}

void ifl_weight_receiver_follow(ifl_weight_receiver *r, const ifl_wire_welcome *welcome) {
    pthread_mutex_lock(&r->lock);
    r->followed = history_of(welcome);
    r->has_followed = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

ifl_status ifl_weight_receiver_applied(ifl_weight_receiver *r, int64_t version, int64_t stall_us,
                                       ifl_error *err) {
    ifl_message m = ifl_message_make(IFL_WIRE_WDONE);
    m.policy = m.wdone.version = version;
    m.wdone.stall_us = stall_us < 0 ? 0 : stall_us;
    pthread_mutex_lock(&r->lock);
    if (version == r->done_version) m.wdone.root = r->done_root;
    pthread_mutex_unlock(&r->lock);
    return ifl_client_send(r->client, &m, err);
}

int64_t ifl_weight_receiver_announced(ifl_weight_receiver *r) {
    pthread_mutex_lock(&r->lock);
    int64_t version = r->announced_version;
    pthread_mutex_unlock(&r->lock);
    return version;
}

void ifl_weight_receiver_stats_get(ifl_weight_receiver *r, ifl_weight_receiver_stats *out) {
    pthread_mutex_lock(&r->lock);
    *out = r->stats;
    pthread_mutex_unlock(&r->lock);
}

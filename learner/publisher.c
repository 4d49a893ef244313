#include "learner/publisher.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/weight_patch.h"

#define CHUNK_BYTES_DEFAULT (4 << 20)
#define CHUNK_BYTES_MIN (4 << 10)
#define CHUNK_BYTES_MAX (15 << 20)
#define FETCH_IDLE_NS                                                                              \
    5000000000 /* an older version that nobody has asked about for so long goes                    \
                */

/* --- Chunk buffers: counted, shared with frames that libzmq still holds when the publisher is gone
 */

typedef struct chunk_pool chunk_pool;

typedef struct chunk_buffer {
    struct chunk_buffer *next; /* in the pool's free list */
    chunk_pool *pool;
    int32_t refs;
    uint16_t *data;
} chunk_buffer;

struct chunk_pool {
    pthread_mutex_t lock; /* guards everything here and the counts of all its buffers */
    chunk_buffer *free_list;
    int32_t n_free, n_free_max;
    int32_t refs;   /* the publisher and every buffer in use */
    size_t n_bytes; /* of one buffer */
};

static void pool_unlock_and_unref(chunk_pool *pool) {
    bool last = --pool->refs == 0;
    pthread_mutex_unlock(&pool->lock);
    if (!last) return;
    for (chunk_buffer *b; (b = pool->free_list);) {
        pool->free_list = b->next;
        ifl_free(b->data);
        free(b);
    }
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

static chunk_buffer *pool_take(chunk_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    chunk_buffer *b = pool->free_list;
    if (b) {
        pool->free_list = b->next;
        pool->n_free--;
    } else if ((b = calloc(1, sizeof *b)) && !(b->data = ifl_alloc(pool->n_bytes, 1))) {
        free(b);
        b = NULL;
    }
    if (b) {
        b->pool = pool;
        b->refs = 1;
        pool->refs++;
    }
    pthread_mutex_unlock(&pool->lock);
    return b;
}

static void buffer_ref(chunk_buffer *b) {
    pthread_mutex_lock(&b->pool->lock);
    b->refs++;
    pthread_mutex_unlock(&b->pool->lock);
}

static void buffer_unref(chunk_buffer *b) {
    chunk_pool *pool = b->pool;
    pthread_mutex_lock(&pool->lock);
    if (--b->refs > 0) {
        pthread_mutex_unlock(&pool->lock);
        return;
    }
    if (pool->n_free < pool->n_free_max) {
        b->next = pool->free_list;
        pool->free_list = b;
        pool->n_free++;
    } else {
        ifl_free(b->data);
        free(b);
    }
    pool_unlock_and_unref(pool);
}

static void buffer_released(void *data, void *hint) {
    (void)data;
    buffer_unref(hint);
}

/* --- Editions: a version as it is served ------------------------------------------------------ */

typedef struct edition {
    int32_t refs; /* under the publisher's lock: being served, and manifests handed out */
    ifl_manifest *manifest;
    chunk_buffer **chunks; /* [manifest->n_chunks] */
    int64_t asked_ns;      /* when a chunk was last asked for */
    bool fetched;          /* some actor was in the middle of it, when last looked */
} edition;

static void edition_free(edition *e) {
    if (!e) return;
    for (int32_t i = 0; e->chunks && i < e->manifest->n_chunks; i++)
        if (e->chunks[i]) buffer_unref(e->chunks[i]);
    free(e->chunks);
    ifl_manifest_free(e->manifest);
    free(e);
}

/* --- Patches ---------------------------------------------------------------------------------- */

#define MERGED_MAX 4 /* patches of several versions that are kept ready, or waited for */
/* A chunk that is hardly shorter as a patch goes dense: no base, no decoding. */
#define PATCH_SHARE_MAX 0.6

typedef struct patch_chunk {
    uint8_t *bytes; /* as it is sent; NULL: dense, or of a version that is served no more */
    size_t n_bytes;
    int32_t codec;
    ifl_hash hash;
    uint8_t *packed; /* for merging: needs no base. NULL: dense, or merged already */
    size_t n_packed;
} patch_chunk;

/* Of merged ones together: a quarter of a dense version. */
#define MERGED_BYTES_MAX(model) ((model)->n_elements / 2)

/* All chunks of one version against a base. Frames that libzmq still holds count too. */
typedef struct patch_set {
    _Atomic int32_t refs;
    int64_t base, version, n_changed, asked_ns;
    int64_t n_bytes; /* what an actor fetches */
    int64_t n_coded; /* what is held */
    int32_t n_chunks, n_differing, n_dense;
    patch_chunk chunks[];
} patch_set;

static void patch_set_unref(patch_set *set) {
    if (!set || atomic_fetch_sub(&set->refs, 1) > 1) return;
    for (int32_t i = 0; i < set->n_chunks; i++) {
        free(set->chunks[i].packed);
        free(set->chunks[i].bytes);
    }
    free(set);
}

static void patch_set_released(void *data, void *hint) {
    (void)data;
    patch_set_unref(hint);
}

/* Of a step whose version is served no more only what merging takes is kept. Without effect while
 * frames or a merge under way hold it. */
static void patch_set_slim(patch_set *set) {
    if (atomic_load(&set->refs) > 1) return;
    for (int32_t i = 0; i < set->n_chunks; i++) {
        patch_chunk *c = &set->chunks[i];
        if (!c->bytes) continue;
        free(c->bytes);
        c->bytes = NULL;
        set->n_coded -= (int64_t)c->n_bytes;
    }
}

static patch_set *patch_set_create(int64_t base, int64_t version, int32_t n_chunks) {
    patch_set *set = calloc(1, sizeof *set + (size_t)n_chunks * sizeof *set->chunks);
    if (!set) return NULL;
    atomic_init(&set->refs, 1);
    set->base = base;
    set->version = version;
    set->n_chunks = n_chunks;
    set->asked_ns = ifl_clock_ns();
    return set;
}

static uint8_t *patch_copy(const uint8_t *bytes, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    if (copy) memcpy(copy, bytes, n);
    return copy;
}

/* Codes one chunk of n_elements, by class where the base is at hand (else NULL); `scratch` is
 * reused from call to call. */
static ifl_status patch_set_put(patch_set *set, int32_t chunk, ifl_patch *patch,
                                const uint16_t *base, int64_t n_elements, uint8_t **scratch,
                                size_t *cap, ifl_error *err) {
    patch_chunk *to = &set->chunks[chunk];
    size_t n;
    if (base)
        IFL_TRY(ifl_patch_encode_classes(patch, base, n_elements, scratch, cap, &n, err));
    else
        IFL_TRY(ifl_patch_encode(patch, scratch, cap, &n, err));
    bool dense = (double)n > PATCH_SHARE_MAX * 2.0 * (double)n_elements;
    if (!dense) {
        to->bytes = patch_copy(*scratch, n);
        to->n_bytes = n;
        to->codec = base ? IFL_CODEC_ULP_CLASS : IFL_CODEC_ULP_GAP;
        if (!to->bytes) return ifl_fail(err, IFL_NOMEM, "out of memory: a patch of %zu bytes", n);
        to->hash = ifl_hash_bytes(to->bytes, n);
        set->n_coded += (int64_t)n;
    }
    if (!dense && base) {
        IFL_TRY(ifl_patch_pack(patch, scratch, cap, &to->n_packed, err));
        to->packed = patch_copy(*scratch, to->n_packed);
        if (!to->packed)
            return ifl_fail(err, IFL_NOMEM, "out of memory: a patch of %zu bytes", to->n_packed);
        set->n_coded += (int64_t)to->n_packed;
    }
    set->n_changed += patch->n;
    if (patch->n == 0) return IFL_OK; /* nobody asks for it */
    set->n_differing++;
    set->n_dense += dense;
    set->n_bytes += dense ? 2 * n_elements : (int64_t)n;
    return IFL_OK;
}

/* What is reused from one patch to the next. */
typedef struct patch_scratch {
    ifl_patch a, b, c;
    uint8_t *bytes;
    size_t cap;
} patch_scratch;

static void patch_scratch_free(patch_scratch *scratch) {
    ifl_patch_free(&scratch->a);
    ifl_patch_free(&scratch->b);
    ifl_patch_free(&scratch->c);
    free(scratch->bytes);
}

/* A version that the application has asked to publish. */
typedef struct publication {
    const ifl_weights *weights; /* NULL: none */
    int64_t version, parent;
    ifl_publisher_release release;
    void *user;
} publication;

struct ifl_publisher {
    const ifl_model *model;
    ifl_server *server;
    int64_t chunk_elements;
    chunk_pool *pool;
    pthread_t thread;
    bool thread_started;

    pthread_mutex_t lock; /* guards everything below; never held while the server is called */
    pthread_cond_t changed;
    bool stop;
    publication pending, building;
    ifl_publisher_told told; /* NULL: nobody */
    void *told_user;
    int64_t version_accepted, version_announced, version_failed;
    ifl_error failure;                       /* of version_failed */
    edition *editions[IFL_EDITIONS_MAX + 1]; /* oldest first; only the thread changes the list */
    int32_t n_editions;
    int32_t n_patches_max;
    int64_t patch_bytes_max;               /* of `steps` together */
    patch_set *steps[IFL_PATCHES_MAX + 1]; /* each against the one before it; oldest first */
    int32_t n_steps;
    patch_set *merged[MERGED_MAX]; /* NULL: free */
    ifl_version_archive *archive;  /* NULL: none, or broken; the thread's own once it runs */
    int64_t wanted_base[MERGED_MAX], wanted_version[MERGED_MAX]; /* to be merged; -1: free */
    ifl_publisher_stats stats;
    int32_t corrupt_chunk, corrupt_times;
};

/* Caller holds the lock. */
static void publisher_drop_edition(ifl_publisher *p, int32_t index) {
    edition *e = p->editions[index];
    for (int32_t i = index; i + 1 < p->n_editions; i++)
        p->editions[i] = p->editions[i + 1];
    p->n_editions--;
    if (--e->refs == 0) edition_free(e);
}

/* Asks the server who still fetches what; without the lock, since its thread asks for chunks under
 * its own. */
static void publisher_look(ifl_publisher *p) {
    for (int32_t i = 0; i < p->n_editions; i++) /* only this thread changes the list */
        p->editions[i]->fetched =
            ifl_server_is_fetched(p->server, p->editions[i]->manifest->version);
}

/* Older versions go when nobody fetches them; beyond IFL_EDITIONS_MAX one goes even so: one that
 * nobody is in the middle of if there is one, else not the oldest, whose fetch is furthest on, or a
 * slow link would never see a version whole. Caller holds the lock. */
static void publisher_retire(ifl_publisher *p) {
    int64_t now = ifl_clock_ns();
    for (int32_t i = p->n_editions - 2; i >= 0; i--) {
        bool wanted = false; /* whoever waits for a merged patch asks no more until it is there */
        for (int32_t k = 0; k < MERGED_MAX; k++)
            wanted = wanted || (p->wanted_base[k] >= 0 &&
                                p->wanted_version[k] == p->editions[i]->manifest->version);
        if (!wanted && now - p->editions[i]->asked_ns > FETCH_IDLE_NS) publisher_drop_edition(p, i);
    }
    if (p->n_editions <= IFL_EDITIONS_MAX) return;
    int32_t out = p->n_editions - 2;
    for (int32_t i = p->n_editions - 2; i >= 0; i--)
        if (!p->editions[i]->fetched) out = i;
    publisher_drop_edition(p, out);
}

/* --- What the transport asks (on its thread) -------------------------------------------------- */

static const ifl_manifest *publisher_manifest_retain(void *context, void **hint) {
    ifl_publisher *p = context;
    pthread_mutex_lock(&p->lock);
    edition *e = p->n_editions ? p->editions[p->n_editions - 1] : NULL;
    if (e) e->refs++;
    pthread_mutex_unlock(&p->lock);
    *hint = e;
    return e ? e->manifest : NULL;
}

static void publisher_manifest_release(void *context, void *hint) {
    ifl_publisher *p = context;
    edition *e = hint;
    pthread_mutex_lock(&p->lock);
    if (--e->refs == 0) edition_free(e);
    pthread_mutex_unlock(&p->lock);
}

/* The test hook's chunk: a copy with one bit flipped takes its place. */
static void publisher_corrupt(ifl_publisher *p, int32_t chunk, ifl_weight_chunk *out) {
    if (p->corrupt_times <= 0 || chunk != p->corrupt_chunk) return;
    chunk_buffer *copy = pool_take(p->pool);
    if (!copy) return;
    p->corrupt_times--;
    memcpy(copy->data, out->data, out->n_bytes);
    ((uint8_t *)copy->data)[out->n_bytes / 2] ^= 1;
    out->release((void *)(uintptr_t)out->data, out->hint);
    out->data = copy->data;
    out->release = buffer_released;
    out->hint = copy;
}

/* The patch from base to version, if it is there; else whether its parts are. Caller holds the
 * lock. */
static patch_set *publisher_find_patch(ifl_publisher *p, int64_t base, int64_t version,
                                       bool *can_merge) {
    int64_t at = base;
    *can_merge = false;
    for (int32_t i = 0; i < p->n_steps; i++) {
        if (p->steps[i]->base == base && p->steps[i]->version == version) return p->steps[i];
        if (p->steps[i]->base != at) continue;
        at = p->steps[i]->version;
        *can_merge = *can_merge || at == version;
    }
    for (int32_t i = 0; i < MERGED_MAX; i++)
        if (p->merged[i] && p->merged[i]->base == base && p->merged[i]->version == version)
            return p->merged[i];
    return NULL;
}

/* Caller holds the lock. Without a free place the question comes again when one of the others is
 * done. */
static void publisher_want(ifl_publisher *p, int64_t base, int64_t version) {
    int32_t place = -1;
    for (int32_t i = 0; i < MERGED_MAX; i++) {
        if (p->wanted_base[i] == base && p->wanted_version[i] == version) return;
        if (p->wanted_base[i] < 0) place = i;
    }
    if (place < 0) return;
    p->wanted_base[place] = base;
    p->wanted_version[place] = version;
    pthread_cond_broadcast(&p->changed);
}

static void publisher_chunk_dense(edition *e, int32_t chunk, ifl_weight_chunk *out) {
    chunk_buffer *b = e->chunks[chunk];
    buffer_ref(b);
    *out = (ifl_weight_chunk){.codec = IFL_CODEC_DENSE,
                              .base = -1,
                              .data = b->data,
                              .n_bytes = (size_t)e->manifest->chunks[chunk].n_elements * 2,
                              .release = buffer_released,
                              .hint = b};
}

static void publisher_chunk_patch(patch_set *set, int32_t chunk, ifl_weight_chunk *out) {
    const patch_chunk *c = &set->chunks[chunk];
    atomic_fetch_add(&set->refs, 1);
    *out = (ifl_weight_chunk){.codec = c->codec,
                              .base = set->base,
                              .hash = c->hash,
                              .data = c->bytes,
                              .n_bytes = c->n_bytes,
                              .release = patch_set_released,
                              .hint = set};
}

static ifl_status publisher_chunk(void *context, int64_t version, int64_t base, int32_t chunk,
                                  ifl_weight_chunk *out) {
    ifl_publisher *p = context;
    ifl_status st = IFL_NOTFOUND;
    pthread_mutex_lock(&p->lock);
    for (int32_t i = 0; i < p->n_editions; i++) {
        edition *e = p->editions[i];
        if (e->manifest->version != version || chunk < 0 || chunk >= e->manifest->n_chunks)
            continue;
        st = IFL_OK;
        e->asked_ns = ifl_clock_ns();
        bool can_merge = false;
        patch_set *set = base >= 0 ? publisher_find_patch(p, base, version, &can_merge) : NULL;
        if (set) set->asked_ns = e->asked_ns;
        if (set && set->chunks[chunk].bytes) {
            publisher_chunk_patch(set, chunk, out);
        } else if (!set && can_merge) {
            publisher_want(p, base, version);
            st = IFL_AGAIN;
            break;
        } else {
            publisher_chunk_dense(e, chunk, out);
        }
        publisher_corrupt(p, chunk, out);
        p->stats.chunks++;
        p->stats.chunk_bytes += (int64_t)out->n_bytes;
        break;
    }
    pthread_mutex_unlock(&p->lock);
    return st;
}

/* --- Building --------------------------------------------------------------------------------- */

static ifl_status publisher_tables(const ifl_publisher *p, const publication *job,
                                   ifl_manifest **out, ifl_error *err) {
    const ifl_model *model = p->model;
    int64_t n_chunks = (model->n_elements + p->chunk_elements - 1) / p->chunk_elements;
    if (n_chunks > IFL_WIRE_CHUNKS_MAX)
        return ifl_fail(err, IFL_LIMIT,
                        "version %lld has %lld chunks, limit %d (raise transport.chunk_kib)",
                        (long long)job->version, (long long)n_chunks, IFL_WIRE_CHUNKS_MAX);
    ifl_manifest *m;
    IFL_TRY(ifl_manifest_create(&m, model->n_params, (int32_t)n_chunks, err));
    m->version = job->version;
    m->parent = job->parent;
    m->codec = IFL_CODEC_DENSE;
    m->n_elements = model->n_elements;
    for (int32_t i = 0; i < model->n_params; i++) {
        const ifl_param *param = &model->params[i];
        ifl_manifest_tensor *t = &m->tensors[i];
        memcpy(t->name, param->spec.name, sizeof t->name);
        t->offset = param->offset;
        t->n_elements = param->spec.rows * param->spec.cols;
        t->trainable = param->trainable;
        t->delta_of = -1;
    }
    for (int32_t i = 0; i < m->n_chunks; i++) {
        int64_t begin = i * p->chunk_elements, left = model->n_elements - begin;
        m->chunks[i].begin = begin;
        m->chunks[i].n_elements = left < p->chunk_elements ? left : p->chunk_elements;
    }
    *out = m;
    return IFL_OK;
}

static bool publisher_stopping(ifl_publisher *p) {
    pthread_mutex_lock(&p->lock);
    bool stop = p->stop;
    pthread_mutex_unlock(&p->lock);
    return stop;
}

/* Reads the borrowed weights once: unpack, difference from `before` (NULL: none), chunk hash,
 * running hash of the whole. */
static ifl_status publisher_build(ifl_publisher *p, const publication *job, const edition *before,
                                  edition **out, patch_set **patch_out, double *patch_s,
                                  ifl_error *err) {
    ifl_status st = IFL_OK;
    edition *e = calloc(1, sizeof *e);
    patch_set *set = NULL;
    patch_scratch scratch = {0};
    ifl_hasher *content = ifl_hasher_create();
    if (!e || !content) {
        st = ifl_fail(err, IFL_NOMEM, "out of memory: version %lld", (long long)job->version);
        goto done;
    }
    IFL_TRY_GOTO(st, publisher_tables(p, job, &e->manifest, err), done);
    e->chunks = calloc((uint32_t)e->manifest->n_chunks, sizeof *e->chunks);
    if (before) /* without memory for it everything goes dense */
        set = patch_set_create(before->manifest->version, job->version, e->manifest->n_chunks);
    for (int32_t i = 0; i < e->manifest->n_chunks; i++) {
        ifl_manifest_chunk *c = &e->manifest->chunks[i];
        if (i > 0) ifl_fail_point(IFL_FAIL_PUBLISH_CHUNK);
        if (publisher_stopping(p)) {
            st = ifl_fail(err, IFL_STOPPED, "stopped");
            goto done;
        }
        if (!e->chunks || !(e->chunks[i] = pool_take(p->pool))) {
            st = ifl_fail(err, IFL_NOMEM, "out of memory: chunk %d of version %lld", i,
                          (long long)job->version);
            goto done;
        }
        uint16_t *data = e->chunks[i]->data;
        ifl_weights_get(job->weights, c->begin, c->n_elements, data);
        c->hash = ifl_hash_bytes(data, (size_t)c->n_elements * 2);
        ifl_hasher_add(content, data, (size_t)c->n_elements * 2);
        if (!set) continue;
        double begin = ifl_clock_s();
        IFL_TRY_GOTO(st,
                     ifl_patch_diff(&scratch.a, before->chunks[i]->data, data, c->n_elements, err),
                     done);
        IFL_TRY_GOTO(st,
                     patch_set_put(set, i, &scratch.a, before->chunks[i]->data, c->n_elements,
                                   &scratch.bytes, &scratch.cap, err),
                     done);
        *patch_s += ifl_clock_s() - begin;
    }
    e->manifest->content = ifl_hasher_finish(content);
    e->manifest->root = ifl_manifest_root(e->manifest);
    IFL_TRY_GOTO(st, ifl_manifest_check(e->manifest, err), done);
    e->refs = 1;
    e->asked_ns = ifl_clock_ns(); /* actors get their time to ask */
    *out = e;
    *patch_out = set;
    e = NULL; /* the caller owns them now */
    set = NULL;
done:
    edition_free(e);
    patch_set_unref(set);
    patch_scratch_free(&scratch);
    ifl_hasher_free(content);
    return st;
}

/* Keeps a new step's patch. Caller holds the lock. */
static void publisher_keep_patch(ifl_publisher *p, patch_set *set, double seconds) {
    p->steps[p->n_steps++] = set;
    p->stats.patch_version = set->version;
    p->stats.patch_base = set->base;
    p->stats.patch_bytes = set->n_bytes;
    p->stats.patch_changed = set->n_changed;
    p->stats.patch_chunks = set->n_differing;
    p->stats.patch_dense = set->n_dense;
    p->stats.patch_s = seconds;
}

/* Lets go of what nobody can ask for any more, and of the oldest steps beyond their bounds; the
 * newest step always stays. Caller holds the lock. */
static void publisher_trim_patches(ifl_publisher *p) {
    int64_t n_bytes = 0;
    for (int32_t i = 0; i < p->n_steps; i++) {
        bool served = false;
        for (int32_t k = 0; k < p->n_editions; k++)
            served = served || p->editions[k]->manifest->version == p->steps[i]->version;
        if (!served) patch_set_slim(p->steps[i]);
        n_bytes += p->steps[i]->n_coded;
    }
    while (p->n_steps > p->n_patches_max || (p->n_steps > 1 && n_bytes > p->patch_bytes_max)) {
        n_bytes -= p->steps[0]->n_coded;
        patch_set_unref(p->steps[0]);
        p->n_steps--;
        memmove(p->steps, p->steps + 1, (size_t)p->n_steps * sizeof *p->steps);
    }
    p->stats.steps_kept = p->n_steps;
    p->stats.steps_bytes = n_bytes;
}

/* Steps add up, so this needs no version in between. A chunk that went dense in one of them goes
 * dense. */
static ifl_status publisher_merge(patch_set **parts, int32_t n_parts, const ifl_manifest *m,
                                  patch_set **out, ifl_error *err) {
    patch_scratch scratch = {0};
    ifl_status st = IFL_OK;
    patch_set *set =
        patch_set_create(parts[0]->base, parts[n_parts - 1]->version, parts[0]->n_chunks);
    if (!set) return ifl_fail(err, IFL_NOMEM, "out of memory: a patch of %d versions", n_parts);
    for (int32_t i = 0; i < set->n_chunks; i++) {
        ifl_patch *sum = &scratch.a, *next = &scratch.c;
        bool dense = false;
        for (int32_t k = 0; k < n_parts && !dense; k++) {
            const patch_chunk *c = &parts[k]->chunks[i];
            dense = c->packed == NULL;
            if (dense) break;
            ifl_patch *to = k == 0 ? sum : &scratch.b;
            IFL_TRY_GOTO(st,
                         ifl_patch_unpack(to, c->packed, c->n_packed, m->chunks[i].n_elements, err),
                         done);
            if (k == 0) continue;
            IFL_TRY_GOTO(st, ifl_patch_merge(next, sum, to, err), done);
            ifl_patch *swap = sum;
            sum = next;
            next = swap;
        }
        if (dense) continue;
        IFL_TRY_GOTO(st,
                     patch_set_put(set, i, sum, NULL, m->chunks[i].n_elements, &scratch.bytes,
                                   &scratch.cap, err),
                     done);
    }
    *out = set;
    set = NULL; /* the caller owns it now */
done:
    patch_set_unref(set);
    patch_scratch_free(&scratch);
    return st;
}

/* The merged patches that were asked for last, within their bytes. Caller holds the lock. */
static void publisher_keep_merged(ifl_publisher *p, patch_set *set) {
    int32_t place = -1;
    for (;;) {
        int64_t n_bytes = set->n_coded;
        int32_t oldest = -1;
        place = -1;
        for (int32_t i = 0; i < MERGED_MAX; i++) {
            if (!p->merged[i]) {
                place = i;
                continue;
            }
            n_bytes += p->merged[i]->n_coded;
            if (oldest < 0 || p->merged[i]->asked_ns < p->merged[oldest]->asked_ns) oldest = i;
        }
        if (oldest < 0 || (place >= 0 && n_bytes <= MERGED_BYTES_MAX(p->model))) break;
        patch_set_unref(p->merged[oldest]);
        p->merged[oldest] = NULL;
    }
    p->merged[place] = set;
    p->stats.n_merged++;
}

/* Makes one patch that somebody waits for. False: there was none. Caller holds the lock, which is
 * let go meanwhile. */
static bool publisher_merge_wanted(ifl_publisher *p) {
    int32_t place = 0, n_parts = 0;
    while (place < MERGED_MAX && p->wanted_base[place] < 0)
        place++;
    if (place == MERGED_MAX) return false;
    int64_t base = p->wanted_base[place], version = p->wanted_version[place], at = base;
    patch_set *parts[IFL_PATCHES_MAX + 1], *set = NULL;
    for (int32_t i = 0; i < p->n_steps && at != version; i++)
        if (p->steps[i]->base == at) {
            parts[n_parts++] = p->steps[i];
            at = p->steps[i]->version;
        }
    edition *e = NULL;
    for (int32_t i = 0; i < p->n_editions; i++)
        if (p->editions[i]->manifest->version == version) e = p->editions[i];
    ifl_error err = {0};
    if (n_parts > 0 && at == version && e) { /* else it is gone meanwhile, and will not be found */
        for (int32_t i = 0; i < n_parts; i++)
            atomic_fetch_add(&parts[i]->refs, 1);
        e->refs++;
        pthread_mutex_unlock(&p->lock);
        ifl_status st = publisher_merge(parts, n_parts, e->manifest, &set, &err);
        if (st != IFL_OK) /* an empty set: everything goes dense */
            set = patch_set_create(base, version, parts[0]->n_chunks);
        if (st != IFL_OK)
            ifl_warn("versions %lld to %lld make no patch: %s", (long long)base, (long long)version,
                     err.text);
        for (int32_t i = 0; i < n_parts; i++)
            patch_set_unref(parts[i]);
        pthread_mutex_lock(&p->lock);
        if (--e->refs == 0) edition_free(e);
    }
    p->wanted_base[place] = -1;
    if (set) publisher_keep_merged(p, set);
    pthread_mutex_unlock(&p->lock);
    ifl_server_chunks_ready(p->server);
    pthread_mutex_lock(&p->lock);
    return true;
}

/* On the publisher's thread, which alone lets editions and patches go. */
static void publisher_archive(ifl_publisher *p, const edition *e, const patch_set *set) {
    pthread_mutex_lock(&p->lock);
    ifl_version_archive *archive = p->archive;
    pthread_mutex_unlock(&p->lock);
    if (!archive) return;
    const ifl_manifest *m = e->manifest;
    bool dense = !set || ifl_version_archive_wants_dense(archive, set->base);
    ifl_archive_chunk *chunks = calloc((size_t)m->n_chunks, sizeof *chunks);
    ifl_error err = {0};
    ifl_status st = chunks ? IFL_OK : ifl_fail(&err, IFL_NOMEM, "out of memory");
    for (int32_t i = 0; st == IFL_OK && i < m->n_chunks; i++) {
        bool as_patch = !dense && set->chunks[i].bytes;
        chunks[i] = as_patch ? (ifl_archive_chunk){set->chunks[i].codec, set->chunks[i].bytes,
                                                   set->chunks[i].n_bytes}
                             : (ifl_archive_chunk){IFL_CODEC_DENSE, e->chunks[i]->data,
                                                   (size_t)m->chunks[i].n_elements * 2};
    }
    if (st == IFL_OK)
        st = ifl_version_archive_put(archive, m, dense ? -1 : set->base, chunks, &err);
    free(chunks);
    if (st == IFL_OK) return;
    ifl_warn("version %lld and those after it are not archived, and what they sample cannot be "
             "replayed later: %s",
             (long long)m->version, err.text);
    pthread_mutex_lock(&p->lock);
    p->archive = NULL;
    pthread_mutex_unlock(&p->lock);
}

static void publisher_give_back(const publication *job) {
    if (job->weights && job->release) job->release(job->weights, job->user);
}

/* Builds p->building, which this thread has just set. */
static void publisher_do(ifl_publisher *p) {
    publication job = p->building;
    edition *e = NULL;
    patch_set *set = NULL;
    ifl_fail_point(IFL_FAIL_PUBLISH_BEGIN);
    double patch_s = 0.0;
    ifl_error err = {0};
    int64_t begin = ifl_clock_ns(), core_begin = ifl_clock_thread_ns();
    /* Only this thread changes the list, so the newest stays where it is. */
    const edition *before =
        p->n_patches_max > 0 && p->n_editions > 0 ? p->editions[p->n_editions - 1] : NULL;
    ifl_status st = publisher_build(p, &job, before, &e, &set, &patch_s, &err);
    double seconds = (double)(ifl_clock_ns() - begin) * 1e-9;
    double core_s = (double)(ifl_clock_thread_ns() - core_begin) * 1e-9;
    publisher_give_back(&job);
    if (e && p->told) p->told(p->told_user, job.version, e->manifest->content);
    /* Before anybody knows of it: what a version has sampled must find it there, also when this
     * process is killed right after the announcement. */
    if (e) publisher_archive(p, e, set);
    publisher_look(p);
    if (st != IFL_OK && st != IFL_STOPPED)
        ifl_error_log("version %lld is not published: %s", (long long)job.version, err.text);
    pthread_mutex_lock(&p->lock);
    p->stats.unpack_s_last = seconds;
    p->stats.unpack_s += seconds;
    p->stats.core_s_last = core_s;
    p->stats.core_s += core_s;
    if (e) {
        if (set) publisher_keep_patch(p, set, patch_s);
        p->editions[p->n_editions++] = e;
        publisher_retire(p);
        publisher_trim_patches(p);
        p->version_announced = job.version;
        p->stats.announced++;
    } else {
        p->version_failed = job.version;
        p->failure = err;
    }
    p->building = (publication){0};
    pthread_mutex_unlock(&p->lock);
    ifl_fail_point(IFL_FAIL_PUBLISH_ANNOUNCE);
    if (e) ifl_server_announce(p->server);
    ifl_fail_point(IFL_FAIL_PUBLISH_ANNOUNCED);
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static struct timespec publisher_deadline(int64_t wait_ms) {
    int64_t until = ifl_clock_ns() + wait_ms * 1000000;
    return (struct timespec){.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
}

static void *publisher_run(void *context) {
    ifl_publisher *p = context;
    sigset_t all; /* signals are for the application's thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        if (publisher_merge_wanted(p)) continue; /* first: an actor waits for it */
        if (p->pending.weights) {
            p->building = p->pending;
            p->pending = (publication){0};
            pthread_mutex_unlock(&p->lock);
            publisher_do(p);
            pthread_mutex_lock(&p->lock);
        } else {
            struct timespec deadline = publisher_deadline(1000);
            pthread_cond_timedwait(&p->changed, &p->lock, &deadline);
            publisher_retire(p);
            publisher_trim_patches(p);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* --- Life ------------------------------------------------------------------------------------- */

static int64_t publisher_patch_bytes(const ifl_model *model, int32_t percent) {
    return model->n_elements / 50 * (percent ? percent : IFL_PATCHES_PERCENT);
}

ifl_status ifl_publisher_create(ifl_publisher **out, const ifl_model *model, ifl_server *server,
                                int64_t chunk_bytes, int32_t n_patches, int32_t patch_percent,
                                ifl_error *err) {
    *out = NULL;
    if (n_patches < 0 || n_patches > IFL_PATCHES_MAX)
        return ifl_fail(err, IFL_USAGE, "patches of %d versions, wanted 0 to %d", n_patches,
                        IFL_PATCHES_MAX);
    if (patch_percent < 0 || patch_percent > IFL_PATCHES_PERCENT_MAX)
        return ifl_fail(err, IFL_USAGE, "patches of %d %% of a dense version, wanted 0 to %d",
                        patch_percent, IFL_PATCHES_PERCENT_MAX);
    if (!chunk_bytes) chunk_bytes = CHUNK_BYTES_DEFAULT;
    if (chunk_bytes < CHUNK_BYTES_MIN || chunk_bytes > CHUNK_BYTES_MAX)
        return ifl_fail(err, IFL_USAGE, "chunks of %lld bytes, wanted %d to %d",
                        (long long)chunk_bytes, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
    ifl_publisher *p = calloc(1, sizeof *p);
    chunk_pool *pool = calloc(1, sizeof *pool);
    if (!p || !pool) {
        free(p);
        free(pool);
        return ifl_fail(err, IFL_NOMEM, "out of memory: the publisher");
    }
    p->model = model;
    p->server = server;
    p->chunk_elements = chunk_bytes / 2;
    if (p->chunk_elements > model->n_elements) p->chunk_elements = model->n_elements;
    p->version_accepted = p->version_announced = p->version_failed = -1;
    p->stats.patch_version = p->stats.patch_base = -1;
    p->n_patches_max = n_patches;
    p->patch_bytes_max = publisher_patch_bytes(model, patch_percent);
    for (int32_t i = 0; i < MERGED_MAX; i++)
        p->wanted_base[i] = -1;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&p->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    p->pool = pool;
    pthread_mutex_init(&pool->lock, NULL);
    pool->refs = 1;
    pool->n_bytes = (size_t)p->chunk_elements * 2;
    /* One version's worth stays for the next one to be unpacked into. */
    pool->n_free_max = (int32_t)((model->n_elements + p->chunk_elements - 1) / p->chunk_elements);
    if (pthread_create(&p->thread, NULL, publisher_run, p) != 0) {
        ifl_publisher_free(p);
        return ifl_fail(err, IFL_NOMEM, "cannot start the publisher's thread");
    }
    p->thread_started = true;
    ifl_weight_source source = {.context = p,
                                .manifest_retain = publisher_manifest_retain,
                                .manifest_release = publisher_manifest_release,
                                .chunk = publisher_chunk};
    ifl_server_set_weight_source(server, &source);
    *out = p;
    return IFL_OK;
}

void ifl_publisher_free(ifl_publisher *p) {
    if (!p) return;
    if (p->thread_started) {
        ifl_server_set_weight_source(p->server, NULL);
        pthread_mutex_lock(&p->lock);
        p->stop = true;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
        pthread_join(p->thread, NULL);
    }
    publisher_give_back(&p->pending);
    while (p->n_editions)
        publisher_drop_edition(p, 0);
    while (p->n_steps)
        patch_set_unref(p->steps[--p->n_steps]);
    for (int32_t i = 0; i < MERGED_MAX; i++)
        patch_set_unref(p->merged[i]);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_lock(&p->pool->lock);
    pool_unlock_and_unref(p->pool);
    free(p);
}

ifl_status ifl_publisher_publish(ifl_publisher *p, int64_t version, int64_t parent,
                                 const ifl_weights *weights, ifl_publisher_release release,
                                 void *user, ifl_error *err) {
    if (!ifl_hash_equal(weights->model->fingerprint, p->model->fingerprint))
        return ifl_fail(err, IFL_USAGE, "version %lld belongs to another model",
                        (long long)version);
    publication overtaken = {0};
    pthread_mutex_lock(&p->lock);
    if (version <= p->version_accepted || version < 0 || parent >= version || parent < -1) {
        ifl_status st = ifl_fail(
            err, IFL_USAGE, "version %lld with parent %lld after version %lld: versions ascend",
            (long long)version, (long long)parent, (long long)p->version_accepted);
        pthread_mutex_unlock(&p->lock);
        return st;
    }
    overtaken = p->pending;
    if (overtaken.weights) p->stats.skipped++;
    p->pending = (publication){weights, version, parent, release, user};
    p->version_accepted = version;
    p->stats.published++;
    pthread_cond_broadcast(&p->changed);
    if (!release) /* the thread reads the weights until both have moved on */
        while (p->pending.weights == weights || p->building.weights == weights)
            pthread_cond_wait(&p->changed, &p->lock);
    pthread_mutex_unlock(&p->lock);
    publisher_give_back(&overtaken);
    return IFL_OK;
}

ifl_status ifl_publisher_wait(ifl_publisher *p, int64_t version, int64_t wait_ms, ifl_error *err) {
    struct timespec deadline = publisher_deadline(wait_ms);
    ifl_status st = IFL_OK;
    pthread_mutex_lock(&p->lock);
    while (p->version_announced < version && st == IFL_OK) {
        if (p->version_failed == version) {
            if (err) *err = p->failure;
            st = p->failure.status;
        } else if (pthread_cond_timedwait(&p->changed, &p->lock, &deadline) != 0 &&
                   p->version_announced < version && p->version_failed != version) {
            st = ifl_fail(err, IFL_TIMEOUT, "version %lld has not been announced within %lld ms",
                          (long long)version, (long long)wait_ms);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return st;
}

int64_t ifl_publisher_version(ifl_publisher *p, ifl_hash *root, ifl_hash *content) {
    pthread_mutex_lock(&p->lock);
    int64_t version = p->version_announced;
    if (p->n_editions) {
        const ifl_manifest *m = p->editions[p->n_editions - 1]->manifest;
        if (root) *root = m->root;
        if (content) *content = m->content;
    }
    pthread_mutex_unlock(&p->lock);
    return version;
}

void ifl_publisher_stats_get(ifl_publisher *p, ifl_publisher_stats *out) {
    pthread_mutex_lock(&p->lock);
    *out = p->stats;
    out->editions = p->n_editions;
    pthread_mutex_unlock(&p->lock);
}

int64_t ifl_publisher_bytes(const ifl_model *model, int32_t n_patches, int32_t patch_percent) {
    int64_t patches = publisher_patch_bytes(model, patch_percent) + MERGED_BYTES_MAX(model);
    return (IFL_EDITIONS_MAX + 1) * model->n_elements * 2 + (n_patches > 0 ? patches : 0);
}

void ifl_publisher_test_corrupt(ifl_publisher *p, int32_t chunk, int32_t times) {
    pthread_mutex_lock(&p->lock);
    p->corrupt_chunk = chunk;
    p->corrupt_times = times;
    pthread_mutex_unlock(&p->lock);
}

void ifl_publisher_set_archive(ifl_publisher *p, ifl_version_archive *archive) {
    pthread_mutex_lock(&p->lock);
    p->archive = archive;
    pthread_mutex_unlock(&p->lock);
}

void ifl_publisher_set_told(ifl_publisher *p, ifl_publisher_told told, void *user) {
    pthread_mutex_lock(&p->lock);
    p->told = told;
    p->told_user = user;
    pthread_mutex_unlock(&p->lock);
}

#include "learner/publisher.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/memory.h"

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
} edition;

static void edition_free(edition *e) {
    if (!e) return;
    for (int32_t i = 0; e->chunks && i < e->manifest->n_chunks; i++)
        if (e->chunks[i]) buffer_unref(e->chunks[i]);
    free(e->chunks);
    ifl_manifest_free(e->manifest);
    free(e);
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
    int64_t version_accepted, version_announced;
    edition *editions[IFL_EDITIONS_MAX + 1]; /* oldest first */
    int32_t n_editions;
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

/* Older versions go when nobody fetches them; beyond IFL_EDITIONS_MAX one goes even so: not the
 * oldest, whose fetch is furthest on, or a slow link would never see a version whole. Caller holds
 * the lock. */
static void publisher_retire(ifl_publisher *p) {
    int64_t now = ifl_clock_ns();
    for (int32_t i = p->n_editions - 2; i >= 0; i--)
        if (now - p->editions[i]->asked_ns > FETCH_IDLE_NS) publisher_drop_edition(p, i);
    if (p->n_editions > IFL_EDITIONS_MAX) publisher_drop_edition(p, p->n_editions - 2);
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

/* The test hook's chunk: a copy with one bit flipped. */
static chunk_buffer *publisher_corrupted(ifl_publisher *p, const chunk_buffer *b, size_t n_bytes) {
    chunk_buffer *copy = pool_take(p->pool);
    if (!copy) return NULL;
    memcpy(copy->data, b->data, n_bytes);
    copy->data[n_bytes / 4] ^= 1;
    return copy;
}

static ifl_status publisher_chunk(void *context, int64_t version, int32_t chunk, const void **data,
                                  size_t *n_bytes, void (**release)(void *, void *), void **hint) {
    ifl_publisher *p = context;
    ifl_status st = IFL_NOTFOUND;
    pthread_mutex_lock(&p->lock);
    for (int32_t i = 0; i < p->n_editions; i++) {
        edition *e = p->editions[i];
        if (e->manifest->version != version || chunk < 0 || chunk >= e->manifest->n_chunks)
            continue;
        e->asked_ns = ifl_clock_ns();
        chunk_buffer *b = e->chunks[chunk];
        *n_bytes = (size_t)e->manifest->chunks[chunk].n_elements * 2;
        chunk_buffer *corrupted = NULL;
        if (p->corrupt_times > 0 && chunk == p->corrupt_chunk &&
            (corrupted = publisher_corrupted(p, b, *n_bytes))) {
            p->corrupt_times--;
            b = corrupted; /* its one reference goes to the frame */
        } else {
            buffer_ref(b);
        }
        *data = b->data;
        *release = buffer_released;
        *hint = b;
        p->stats.chunks++;
        p->stats.chunk_bytes += (int64_t)*n_bytes;
        st = IFL_OK;
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

/* Reads the borrowed weights once: unpack, chunk hash, running hash of the whole. */
static ifl_status publisher_build(ifl_publisher *p, const publication *job, edition **out,
                                  ifl_error *err) {
    ifl_status st = IFL_OK;
    edition *e = calloc(1, sizeof *e);
    ifl_hasher *content = ifl_hasher_create();
    if (!e || !content) {
        st = ifl_fail(err, IFL_NOMEM, "out of memory: version %lld", (long long)job->version);
        goto done;
    }
    IFL_TRY_GOTO(st, publisher_tables(p, job, &e->manifest, err), done);
    e->chunks = calloc((uint32_t)e->manifest->n_chunks, sizeof *e->chunks);
    for (int32_t i = 0; i < e->manifest->n_chunks; i++) {
        ifl_manifest_chunk *c = &e->manifest->chunks[i];
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
    }
    e->manifest->content = ifl_hasher_finish(content);
    e->manifest->root = ifl_manifest_root(e->manifest);
    IFL_TRY_GOTO(st, ifl_manifest_check(e->manifest, err), done);
    e->refs = 1;
    e->asked_ns = ifl_clock_ns(); /* actors get their time to ask */
    *out = e;
    e = NULL; /* the caller owns it now */
done:
    edition_free(e);
    ifl_hasher_free(content);
    return st;
}

static void publisher_give_back(const publication *job) {
    if (job->weights && job->release) job->release(job->weights, job->user);
}

/* Builds p->building, which this thread has just set. */
static void publisher_do(ifl_publisher *p) {
    publication job = p->building;
    edition *e = NULL;
    ifl_error err = {0};
    int64_t begin = ifl_clock_ns();
    ifl_status st = publisher_build(p, &job, &e, &err);
    double seconds = (double)(ifl_clock_ns() - begin) * 1e-9;
    publisher_give_back(&job);
    if (st != IFL_OK && st != IFL_STOPPED)
        ifl_error_log("version %lld is not published: %s", (long long)job.version, err.text);
    pthread_mutex_lock(&p->lock);
    p->stats.unpack_s_last = seconds;
    p->stats.unpack_s += seconds;
    if (e) {
        p->editions[p->n_editions++] = e;
        publisher_retire(p);
        p->version_announced = job.version;
        p->stats.announced++;
    }
    p->building = (publication){0};
    pthread_mutex_unlock(&p->lock);
    if (e) ifl_server_announce(p->server);
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
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* --- Life ------------------------------------------------------------------------------------- */

ifl_status ifl_publisher_create(ifl_publisher **out, const ifl_model *model, ifl_server *server,
                                int64_t chunk_bytes, ifl_error *err) {
    *out = NULL;
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
    p->version_accepted = p->version_announced = -1;
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
    while (p->version_announced < version && st == IFL_OK)
        if (pthread_cond_timedwait(&p->changed, &p->lock, &deadline) != 0 &&
            p->version_announced < version)
            st = ifl_fail(err, IFL_TIMEOUT, "version %lld has not been announced within %lld ms",
                          (long long)version, (long long)wait_ms);
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

int64_t ifl_publisher_bytes(const ifl_model *model) {
    return (IFL_EDITIONS_MAX + 1) * model->n_elements * 2;
}

void ifl_publisher_test_corrupt(ifl_publisher *p, int32_t chunk, int32_t times) {
    pthread_mutex_lock(&p->lock);
    p->corrupt_chunk = chunk;
    p->corrupt_times = times;
    pthread_mutex_unlock(&p->lock);
}

/* Who may join a learner that has keys. libzmq asks ZAP's handler (RFC 27) about each link after it
 * has proven that it holds the secret of the key it names; only keys of the list are let in, before
 * a socket of ours sees anything of them. A refusal costs a counter and at most a line a minute. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/transport_server_internal.h"

#define KEY_BYTES 32
#define TICK_MS 250               /* between two looks at the list's folder */
#define WARN_EVERY_NS 60000000000 /* at most one line in so long about links refused */
#define REQUESTS_MAX 64           /* in one turn */
#define FRAMES_MAX 7              /* of a request of the mechanism CURVE */

/* --- The list --------------------------------------------------------------------------------- */

/* What tells that the list may have changed: files added, renamed or removed move their folder's
 * time, in steps of some milliseconds, so that a young time says nothing about what comes next. */
static server_guard_stamp guard_look(const server_guard *g) {
    char path[sizeof g->folder + 16];
    struct stat info;
    struct timespec now = {0};
    server_guard_stamp stamp = {0};
    snprintf(path, sizeof path, "%s/actors", g->folder);
    clock_gettime(CLOCK_REALTIME, &now);
    if (stat(path, &info) == 0) {
        stamp.seconds = info.st_mtim.tv_sec;
        stamp.nanoseconds = info.st_mtim.tv_nsec;
        stamp.is_young = now.tv_sec - info.st_mtim.tv_sec <= 1;
    }
    if (g->reread) stamp.requests = atomic_load(g->reread);
    return stamp;
}

static void guard_reread(ifl_server *s) {
    server_guard *g = s->guard;
    ifl_key_list list, old;
    ifl_error err = {0};
    if (ifl_key_list_read(&list, g->folder, &err) != IFL_OK) {
        if (strcmp(err.text, g->problem) != 0)
            ifl_warn("the list of keys stays as it was: %s", err.text);
        snprintf(g->problem, sizeof g->problem, "%s", err.text);
        return;
    }
    g->problem[0] = '\0';
    pthread_mutex_lock(&g->lock);
    old = g->list;
    bool same = list.n == old.n &&
                (list.n == 0 ||
                 memcmp(list.entries, old.entries, (size_t)list.n * sizeof *list.entries) == 0);
    g->list = list;
    g->changed |= !same;
    pthread_mutex_unlock(&g->lock);
    if (!same)
        ifl_info("%d actors' keys are allowed now, %d before (%s/actors)", list.n, old.n,
                 g->folder);
    ifl_key_list_clear(&old);
    if (!same) transport_wake(s->wake_fd);
}

bool transport_guard_knows(server_guard *g, const char *key, char name[IFL_KEY_NAME_MAX]) {
    if (g->local_key[0] && strcmp(g->local_key, key) == 0) {
        snprintf(name, IFL_KEY_NAME_MAX, "local");
        return true;
    }
    pthread_mutex_lock(&g->lock);
    const ifl_key_entry *entry = ifl_key_list_find(&g->list, key);
    if (entry) memcpy(name, entry->name, IFL_KEY_NAME_MAX);
    pthread_mutex_unlock(&g->lock);
    return entry != NULL;
}

void transport_guard_sweep(ifl_server *s) {
    server_guard *g = s->guard;
    if (!g) return;
    pthread_mutex_lock(&g->lock);
    bool changed = g->changed;
    g->changed = false;
    pthread_mutex_unlock(&g->lock);
    if (!changed) return;
    for (int32_t i = s->n_peers - 1; i >= 0; i--) {
        char name[IFL_KEY_NAME_MAX];
        if (transport_guard_knows(g, s->peers[i]->key, name)) continue;
        ifl_warn("the key of actor %s is not in the list any more", s->peers[i]->name);
        transport_server_expel(s, s->peers[i], IFL_WIRE_E_FENCED, 0,
                               "its key was taken off the learner's list");
    }
}

/* --- Refusals --------------------------------------------------------------------------------- */

static void guard_report(server_guard *g, int64_t now) {
    if (g->n_keys + g->n_links == 0) return;
    if (g->warned_ns && now - g->warned_ns < WARN_EVERY_NS) return;
    ifl_warn("refused %lld links with a key that is not allowed, %lld that broke off before they "
             "had shown one (plain peers, scans, actors with another learner.public); last: %s",
             (long long)g->n_keys, (long long)g->n_links, g->last[0] ? g->last : "without a key");
    g->warned_ns = now;
    g->n_keys = g->n_links = 0;
    g->last[0] = '\0';
}

static void guard_count(ifl_server *s, int64_t n_keys, int64_t n_links) {
    s->guard->n_keys += n_keys;
    s->guard->n_links += n_links;
    pthread_mutex_lock(&s->lock);
    s->stats.keys_refused += n_keys;
    s->stats.links_refused += n_links;
    pthread_mutex_unlock(&s->lock);
}

/* --- ZAP -------------------------------------------------------------------------------------- */

typedef struct guard_request {
    char frames[FRAMES_MAX][256]; /* version, id, domain, address, identity, mechanism, key */
    size_t sizes[FRAMES_MAX];
    int n; /* frames that came, also beyond those */
} guard_request;

static bool guard_take(void *handler, guard_request *r) {
    bool more = true;
    memset(r, 0, sizeof *r);
    while (more) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, handler, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&part);
            return false;
        }
        size_t n = zmq_msg_size(&part);
        if (r->n < FRAMES_MAX && n < sizeof r->frames[0]) {
            memcpy(r->frames[r->n], zmq_msg_data(&part), n);
            r->sizes[r->n] = n;
        }
        r->n++;
        more = zmq_msg_more(&part);
        zmq_msg_close(&part);
    }
    return true;
}

static void guard_reply(void *handler, const guard_request *r, const char *code, const char *text,
                        const char *user) {
    zmq_send(handler, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(handler, r->frames[1], r->sizes[1], ZMQ_SNDMORE);
    zmq_send(handler, code, strlen(code), ZMQ_SNDMORE);
    zmq_send(handler, text, strlen(text), ZMQ_SNDMORE);
    zmq_send(handler, user, strlen(user), ZMQ_SNDMORE);
    zmq_send(handler, "", 0, 0);
}

/* The user id of a link is its key: names can be given to another key later, a key can't. */
static void guard_answer(ifl_server *s, const guard_request *r) {
    server_guard *g = s->guard;
    char key[IFL_KEY_TEXT_MAX] = "", name[IFL_KEY_NAME_MAX];
    bool curve = r->n == FRAMES_MAX && strcmp(r->frames[0], "1.0") == 0 &&
                 strcmp(r->frames[5], "CURVE") == 0 && r->sizes[6] == KEY_BYTES;
    if (curve) zmq_z85_encode(key, (const uint8_t *)r->frames[6], KEY_BYTES);
    if (curve && transport_guard_knows(g, key, name)) {
        guard_reply(g->handler, r, "200", "OK", key);
        return;
    }
    guard_reply(g->handler, r, "400", "not in the learner's list", "");
    snprintf(g->last, sizeof g->last, "%.60s with key %s", r->frames[3], curve ? key : "(none)");
    guard_count(s, 1, 0);
}

static void *guard_run(void *context) {
    ifl_server *s = context;
    server_guard *g = s->guard;
    int64_t looked_ns = ifl_clock_ns();
    for (;;) {
        zmq_pollitem_t items[4] = {{g->handler, 0, ZMQ_POLLIN, 0},
                                   {g->monitors[0], 0, ZMQ_POLLIN, 0},
                                   {g->monitors[1], 0, ZMQ_POLLIN, 0},
                                   {NULL, g->wake_fd, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, 4, TICK_MS) < 0 && zmq_errno() != EINTR) ifl_sleep_ms(TICK_MS);
        if (items[3].revents) transport_wake_clear(g->wake_fd);
        pthread_mutex_lock(&g->lock);
        bool stop = g->stop;
        pthread_mutex_unlock(&g->lock);
        if (stop) break;
        guard_request request;
        for (int i = 0; i < REQUESTS_MAX && guard_take(g->handler, &request); i++)
            guard_answer(s, &request);
        int event, value;
        for (int m = 0; m < 2; m++)
            while (transport_monitor_take(g->monitors[m], &event, &value))
                if (event != ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) guard_count(s, 0, 1);
        int64_t now = ifl_clock_ns();
        guard_report(g, now);
        if (now - looked_ns < (int64_t)TICK_MS * 1000000) continue;
        looked_ns = now;
        server_guard_stamp stamp = guard_look(g), seen = g->seen;
        g->seen = stamp; /* what changes from here on is seen next time */
        if (seen.is_young || stamp.seconds != seen.seconds ||
            stamp.nanoseconds != seen.nanoseconds || stamp.requests != seen.requests)
            guard_reread(s);
    }
    /* Sockets are closed by the thread that has used them. */
    zmq_close(g->handler);
    zmq_close(g->monitors[0]);
    zmq_close(g->monitors[1]);
    g->handler = g->monitors[0] = g->monitors[1] = NULL;
    return NULL;
}

/* --- Life ------------------------------------------------------------------------------------- */

ifl_status transport_guard_create(ifl_server *s, const ifl_server_options *options,
                                  ifl_error *err) {
    server_guard *g = calloc(1, sizeof *g);
    if (!g) return ifl_fail(err, IFL_NOMEM, "out of memory: the list of keys");
    pthread_mutex_init(&g->lock, NULL);
    g->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    g->reread = options->keys_reread;
    s->guard = g;
    if (g->wake_fd < 0) return ifl_fail(err, IFL_IO, "cannot open an eventfd: %s", strerror(errno));
    if (strlen(options->keys) >= sizeof g->folder)
        return ifl_fail(err, IFL_LIMIT, "transport.keys: a path of %zu bytes, limit %zu",
                        strlen(options->keys), sizeof g->folder - 1);
    snprintf(g->folder, sizeof g->folder, "%s", options->keys);
    if (options->local_key) snprintf(g->local_key, sizeof g->local_key, "%s", options->local_key);
    snprintf(g->own_name, sizeof g->own_name, "%s",
             options->key_name ? options->key_name : IFL_KEY_LEARNER);
    IFL_TRY(ifl_key_pair_read(&g->own, g->folder, g->own_name, err));
    g->seen = guard_look(g);
    return ifl_key_list_read(&g->list, g->folder, err);
}

ifl_status transport_guard_start(ifl_server *s, ifl_error *err) {
    server_guard *g = s->guard;
    void *sockets[2] = {s->control, s->weights};
    static const char *const names[2] = {"handshakes-control", "handshakes-weights"};
    for (int i = 0; i < 2; i++) {
        IFL_TRY(transport_socket_curve_server(sockets[i], &g->own, err));
        g->monitors[i] = transport_monitor_open(s->zmq, sockets[i], names[i]);
        if (!g->monitors[i])
            return ifl_fail(err, IFL_IO, "cannot watch handshakes: %s", zmq_strerror(zmq_errno()));
    }
    g->handler = zmq_socket(s->zmq, ZMQ_REP);
    int none = 0;
    if (!g->handler || zmq_setsockopt(g->handler, ZMQ_LINGER, &none, sizeof none) != 0 ||
        zmq_bind(g->handler, "inproc://zeromq.zap.01") != 0)
        return ifl_fail(err, IFL_IO, "cannot answer for keys: %s", zmq_strerror(zmq_errno()));
    if (transport_thread_start(&g->thread, guard_run, s) != 0)
        return ifl_fail(err, IFL_NOMEM, "cannot start the thread that answers for keys");
    g->thread_started = true;
    ifl_info("links are encrypted; %d actors' keys are allowed (%s/actors)%s", g->list.n, g->folder,
             g->local_key[0] ? ", and this host's own" : "");
    return IFL_OK;
}

void transport_guard_free(ifl_server *s) {
    server_guard *g = s->guard;
    if (!g) return;
    if (g->thread_started) {
        pthread_mutex_lock(&g->lock);
        g->stop = true;
        pthread_mutex_unlock(&g->lock);
        transport_wake(g->wake_fd);
        pthread_join(g->thread, NULL);
    }
    if (g->handler) zmq_close(g->handler);
    for (int i = 0; i < 2; i++)
        if (g->monitors[i]) zmq_close(g->monitors[i]);
    if (g->wake_fd >= 0) close(g->wake_fd);
    ifl_key_list_clear(&g->list);
    explicit_bzero(&g->own, sizeof g->own);
    pthread_mutex_destroy(&g->lock);
    free(g);
    s->guard = NULL;
}

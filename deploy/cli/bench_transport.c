/* inflight bench transport: how fast dense chunks of weights go from a learner to an actor, two
 * processes, beside a raw socket on the same path that moves the same bytes with the same copies:
 * sent from where they lie, received into memory once. Ours is the weight plane as it is: requests
 * within the window, headers, and the hash of every chunk, taken where libzmq has put it (the
 * receiver packs weights straight from there). A raw socket receives into a staging buffer;
 * "checked" is one that hashes there, too. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>
#ifdef IFL_HAVE_SODIUM
#include <sodium.h>
#endif

#include "common/clock.h"
#include "common/hash.h"
#include "common/transport.h"
#include "deploy/cli/bench.h"
#include "deploy/cli/local_endpoint.h"

enum {
    CHUNK_BYTES = 4 << 20,
    N_CHUNKS = 16,      /* in the source and in the staging buffer: 64 MiB, more than a cache */
    ANSWER_MS = 300000, /* for one measurement */
    CONNECT_MS = 20000,
};

typedef enum { PATH_IPC, PATH_TCP, N_PATHS } bench_path;
typedef enum { WAY_RAW, WAY_RAW_CHECKED, WAY_OURS, WAY_CURVE, WAY_ZMQ_CURVE, N_WAYS } bench_way;

static const char *const path_names[N_PATHS] = {"ipc", "tcp"};
static const char *const way_names[N_WAYS] = {"raw socket", "raw socket, checked", "weight plane",
                                              "weight plane, keys", "libzmq alone, keys"};
static const char *const way_ids[N_WAYS] = {"raw", "raw_checked", "plane", "plane_curve",
                                            "zmq_curve"};

typedef struct measurement {
    double seconds, cpu_seconds; /* of both processes */
} measurement;

typedef struct transport_bench {
    const ifl_bench_args *args;
    ifl_local_endpoint folder; /* of socket files and keys */
    ifl_key_pair learner, local;
    uint8_t *source;
    ifl_hash hashes[N_CHUNKS];
    int64_t n_chunks; /* timed; N_CHUNKS more come first */
} transport_bench;

/* What the processes of one measurement have: the child receives. */
typedef struct turn {
    const transport_bench *b;
    bench_path path;
    bench_way way;
    int endpoint[2], result[2]; /* pipes: to the child, to the parent */
    int listener;               /* raw */
    char address[IFL_ENDPOINT_MAX];
    struct sockaddr_storage to; /* raw */
    socklen_t n_to;
} turn;

/* --- The receiving process -------------------------------------------------------------------- */

typedef struct receiver {
    uint8_t *staging;
    int64_t n_done, n_all;
    double begin_s;
} receiver;

static bool receiver_open(receiver *r, const transport_bench *b) {
    *r = (receiver){.n_all = b->n_chunks + N_CHUNKS};
    r->staging = malloc((size_t)N_CHUNKS * CHUNK_BYTES);
    return r->staging != NULL;
}

static void receiver_count(receiver *r) {
    if (++r->n_done == N_CHUNKS) r->begin_s = ifl_clock_s();
}

static bool receive_raw(receiver *r, const turn *t) {
    int fd = socket(t->to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&t->to, t->n_to) != 0) return false;
    while (r->n_done < r->n_all) {
        int64_t chunk = r->n_done % N_CHUNKS;
        uint8_t *at = r->staging + chunk * CHUNK_BYTES;
        for (size_t n = 0; n < CHUNK_BYTES;) {
            ssize_t got = recv(fd, at + n, CHUNK_BYTES - n, 0);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return false;
            n += (size_t)got;
        }
        if (t->way == WAY_RAW_CHECKED &&
            !ifl_hash_equal(ifl_hash_bytes(at, CHUNK_BYTES), t->b->hashes[chunk]))
            return false;
        receiver_count(r);
    }
    close(fd);
    return true;
}

static bool receive_zmq(receiver *r, const turn *t) {
    void *zmq = zmq_ctx_new(), *socket = zmq_socket(zmq, ZMQ_PULL);
    int hwm = 8;
    zmq_setsockopt(socket, ZMQ_RCVHWM, &hwm, sizeof hwm);
    zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, t->b->learner.public_key, IFL_KEY_TEXT_MAX);
    zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, t->b->local.public_key, IFL_KEY_TEXT_MAX);
    zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, t->b->local.secret_key, IFL_KEY_TEXT_MAX);
    if (zmq_connect(socket, t->address) != 0) return false;
    while (r->n_done < r->n_all) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        if (zmq_msg_recv(&m, socket, 0) != CHUNK_BYTES) return false;
        zmq_msg_close(&m);
        receiver_count(r);
    }
    zmq_close(socket);
    zmq_ctx_term(zmq);
    return true;
}

/* Keeps the window full, as actor/weight_receiver.c does. */
static bool plane_ask(ifl_client *c, int64_t *n_asked, int64_t n_done, int64_t n_all, int window) {
    ifl_message m = ifl_message_make(IFL_WIRE_WGET);
    m.policy = m.wget.version = 1;
    m.wget.base = -1;
    while (*n_asked < n_all && *n_asked - n_done < window && m.wget.n_chunks < IFL_WIRE_GET_MAX)
        m.wget.chunks[m.wget.n_chunks++] = (int32_t)((*n_asked)++ % N_CHUNKS);
    return m.wget.n_chunks == 0 || ifl_client_send_weights(c, &m, NULL) == IFL_OK;
}

static bool receive_plane(receiver *r, const turn *t) {
    ifl_client_options o = {.connect = t->address,
                            .name = "bench",
                            .held_version = -1,
                            .connect_deadline_ms = CONNECT_MS,
                            .keys = t->way == WAY_CURVE ? t->b->folder.folder : NULL,
                            .key = "local"};
    ifl_client *c;
    if (ifl_client_create(&c, &o, NULL) != IFL_OK) return false;
    int64_t n_asked = 0;
    int window = 0;
    bool good = true;
    while (good && r->n_done < r->n_all) {
        ifl_client_event e;
        if (ifl_client_poll_weights(c, ANSWER_MS, &e, NULL) != IFL_OK) return false;
        if (e.kind == IFL_CLIENT_CONNECTED) {
            window = e.message.welcome.chunk_window;
        } else if (e.kind == IFL_CLIENT_MESSAGE && e.message.type == IFL_WIRE_WCHUNK) {
            const ifl_wire_wchunk *w = &e.message.wchunk;
            good = w->n_data == CHUNK_BYTES && w->chunk == (int32_t)(r->n_done % N_CHUNKS) &&
                   ifl_hash_equal(ifl_hash_bytes(w->data, w->n_data), t->b->hashes[w->chunk]);
            receiver_count(r);
        } else {
            good = false;
        }
        ifl_client_event_clear(&e);
        good = good && plane_ask(c, &n_asked, r->n_done, r->n_all, window);
    }
    double end_s = ifl_clock_s();
    ifl_client_free(c);
    r->begin_s += ifl_clock_s() - end_s; /* saying goodbye is no part of it */
    return good;
}

static _Noreturn void child_run(turn *t, pid_t parent) {
    receiver r;
    double seconds = -1.0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(t->endpoint[1]);
    close(t->result[0]);
    bool good = getppid() == parent && receiver_open(&r, t->b) &&
                read(t->endpoint[0], t->address, sizeof t->address) == sizeof t->address;
    if (good)
        good = t->way <= WAY_RAW_CHECKED ? receive_raw(&r, t)
               : t->way == WAY_ZMQ_CURVE ? receive_zmq(&r, t)
                                         : receive_plane(&r, t);
    if (good) seconds = ifl_clock_s() - r.begin_s;
    ssize_t n = write(t->result[1], &seconds, sizeof seconds);
    _exit(n == sizeof seconds && good ? 0 : 1);
}

/* --- The sending process ---------------------------------------------------------------------- */

static ifl_status turn_wait(turn *t, double *seconds, ifl_error *err) {
    struct pollfd p = {t->result[0], POLLIN, 0};
    *seconds = -1.0;
    if (poll(&p, 1, ANSWER_MS) == 1 && read(p.fd, seconds, sizeof *seconds) == sizeof *seconds &&
        *seconds > 0.0)
        return IFL_OK;
    return ifl_fail(err, IFL_PEER, "bench transport: the receiver of %s over %s has failed",
                    way_names[t->way], path_names[t->path]);
}

static ifl_status turn_tell(turn *t, ifl_error *err) {
    if (write(t->endpoint[1], t->address, sizeof t->address) == sizeof t->address) return IFL_OK;
    return ifl_fail(err, IFL_PEER, "bench transport: the receiver has not started");
}

static ifl_status raw_listen(turn *t, ifl_error *err) {
    t->n_to = sizeof t->to;
    if (t->path == PATH_IPC) {
        struct sockaddr_un *un = (struct sockaddr_un *)&t->to;
        un->sun_family = AF_UNIX;
        snprintf(un->sun_path, sizeof un->sun_path, "%s", t->b->folder.text + strlen("ipc://"));
        unlink(un->sun_path);
        t->n_to = sizeof *un;
    } else {
        struct sockaddr_in *in = (struct sockaddr_in *)&t->to;
        in->sin_family = AF_INET;
        in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        t->n_to = sizeof *in;
    }
    t->listener = socket(t->to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (t->listener < 0 || bind(t->listener, (struct sockaddr *)&t->to, t->n_to) != 0 ||
        listen(t->listener, 1) != 0 ||
        getsockname(t->listener, (struct sockaddr *)&t->to, &t->n_to) != 0)
        return ifl_fail(err, IFL_IO, "bench transport: a raw socket: %s", strerror(errno));
    return IFL_OK;
}

static ifl_status send_raw(turn *t, double *seconds, ifl_error *err) {
    IFL_TRY(turn_tell(t, err));
    struct pollfd p = {t->listener, POLLIN, 0};
    int fd = poll(&p, 1, CONNECT_MS) == 1 ? accept4(t->listener, NULL, NULL, SOCK_CLOEXEC) : -1;
    if (fd < 0) return ifl_fail(err, IFL_PEER, "bench transport: nobody has connected");
    ifl_status st = IFL_OK;
    for (int64_t i = 0; i < t->b->n_chunks + N_CHUNKS && st == IFL_OK; i++) {
        const uint8_t *at = t->b->source + (i % N_CHUNKS) * CHUNK_BYTES;
        for (size_t n = 0; n < CHUNK_BYTES && st == IFL_OK;) {
            ssize_t sent = send(fd, at + n, CHUNK_BYTES - n, MSG_NOSIGNAL);
            if (sent < 0 && errno != EINTR)
                st = ifl_fail(err, IFL_PEER, "bench transport: send: %s", strerror(errno));
            n += sent > 0 ? (size_t)sent : 0;
        }
    }
    if (st == IFL_OK) st = turn_wait(t, seconds, err);
    close(fd);
    return st;
}

static void nothing(void *data, void *hint) {
    (void)data;
    (void)hint;
}

static const char *turn_bind(const turn *t) {
    return t->path == PATH_IPC ? t->b->folder.text : "tcp://127.0.0.1:*";
}

static ifl_status send_zmq(turn *t, double *seconds, ifl_error *err) {
    void *zmq = zmq_ctx_new(), *socket = zmq_socket(zmq, ZMQ_PUSH);
    int hwm = 8, on = 1, linger = 0, wait_ms = ANSWER_MS;
    size_t n = sizeof t->address;
    zmq_setsockopt(socket, ZMQ_SNDHWM, &hwm, sizeof hwm);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_SNDTIMEO, &wait_ms, sizeof wait_ms);
    zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &on, sizeof on);
    zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, t->b->learner.secret_key, IFL_KEY_TEXT_MAX);
    ifl_status st = IFL_OK;
    if (zmq_bind(socket, turn_bind(t)) != 0 ||
        zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, t->address, &n) != 0)
        st = ifl_fail(err, IFL_IO, "bench transport: %s", zmq_strerror(zmq_errno()));
    if (st == IFL_OK) st = turn_tell(t, err);
    for (int64_t i = 0; i < t->b->n_chunks + N_CHUNKS && st == IFL_OK; i++) {
        zmq_msg_t m;
        zmq_msg_init_data(&m, t->b->source + (i % N_CHUNKS) * CHUNK_BYTES, CHUNK_BYTES, nothing,
                          NULL);
        if (zmq_msg_send(&m, socket, 0) < 0) {
            st = ifl_fail(err, IFL_PEER, "bench transport: %s", zmq_strerror(zmq_errno()));
            zmq_msg_close(&m);
        }
    }
    if (st == IFL_OK) st = turn_wait(t, seconds, err);
    zmq_close(socket);
    zmq_ctx_term(zmq);
    return st;
}

static const ifl_manifest *no_manifest(void *context, void **hint) {
    (void)context;
    (void)hint;
    return NULL;
}

static ifl_status plane_chunk(void *context, int64_t version, int64_t base, int32_t chunk,
                              ifl_weight_chunk *out) {
    const transport_bench *b = context;
    (void)base;
    if (version != 1 || chunk >= N_CHUNKS) return IFL_NOTFOUND;
    *out = (ifl_weight_chunk){.codec = IFL_CODEC_DENSE,
                              .base = -1,
                              .data = b->source + (int64_t)chunk * CHUNK_BYTES,
                              .n_bytes = CHUNK_BYTES,
                              .release = nothing};
    return IFL_OK;
}

static ifl_status send_plane(turn *t, double *seconds, ifl_error *err) {
    ifl_server_options o = {.bind = turn_bind(t), .heartbeat_misses = 30, .vocab_size = 2};
    if (t->way == WAY_CURVE) {
        o.keys = t->b->folder.folder;
        o.local_key = t->b->local.public_key;
    }
    ifl_weight_source source = {
        .context = (void *)(uintptr_t)t->b, .manifest_retain = no_manifest, .chunk = plane_chunk};
    ifl_server *s;
    IFL_TRY(ifl_server_create(&s, &o, err));
    ifl_server_set_weight_source(s, &source);
    snprintf(t->address, sizeof t->address, "%s", ifl_server_endpoint(s));
    ifl_status st = turn_tell(t, err);
    if (st == IFL_OK) st = turn_wait(t, seconds, err);
    ifl_server_free(s);
    return st;
}

/* --- One measurement -------------------------------------------------------------------------- */

static double cpu_seconds(const struct rusage *u) {
    return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) +
           (double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec) * 1e-6;
}

static void turn_close(turn *t) {
    int *fds[5] = {&t->endpoint[0], &t->endpoint[1], &t->result[0], &t->result[1], &t->listener};
    for (int i = 0; i < 5; i++)
        if (*fds[i] >= 0) close(*fds[i]);
}

static ifl_status turn_run(const transport_bench *b, bench_path path, bench_way way,
                           measurement *out, ifl_error *err) {
    turn t = {
        .b = b, .path = path, .way = way, .endpoint = {-1, -1}, .result = {-1, -1}, .listener = -1};
    struct rusage before, after, child = {0};
    ifl_status st = IFL_OK;
    int status = 0;
    pid_t pid = -1, parent = getpid();
    if (pipe2(t.endpoint, O_CLOEXEC) != 0 || pipe2(t.result, O_CLOEXEC) != 0)
        st = ifl_fail(err, IFL_IO, "bench transport: pipe: %s", strerror(errno));
    if (st == IFL_OK && way <= WAY_RAW_CHECKED) st = raw_listen(&t, err);
    if (st != IFL_OK) goto done;
    fflush(NULL);
    pid = fork(); /* this process has one thread between two measurements */
    if (pid == 0) child_run(&t, parent);
    if (pid < 0) {
        st = ifl_fail(err, IFL_IO, "bench transport: fork: %s", strerror(errno));
        goto done;
    }
    close(t.endpoint[0]);
    close(t.result[1]);
    t.endpoint[0] = t.result[1] = -1;
    getrusage(RUSAGE_SELF, &before);
    st = way <= WAY_RAW_CHECKED ? send_raw(&t, &out->seconds, err)
         : way == WAY_ZMQ_CURVE ? send_zmq(&t, &out->seconds, err)
                                : send_plane(&t, &out->seconds, err);
    getrusage(RUSAGE_SELF, &after);
    if (st != IFL_OK) kill(pid, SIGKILL);
    while (wait4(pid, &status, 0, &child) < 0 && errno == EINTR) {
    }
    out->cpu_seconds = cpu_seconds(&after) - cpu_seconds(&before) + cpu_seconds(&child);
done:
    turn_close(&t);
    return st;
}

/* --- What the cipher alone does --------------------------------------------------------------- */

/* Bytes per second of XSalsa20-Poly1305, sealed and opened, one thread each; 0: no libsodium. */
static void cipher_speed(const transport_bench *b, double *seal, double *open) {
    *seal = *open = 0.0;
#ifdef IFL_HAVE_SODIUM
    uint8_t key[crypto_secretbox_KEYBYTES] = {1}, nonce[crypto_secretbox_NONCEBYTES] = {2};
    uint8_t *sealed = malloc(CHUNK_BYTES + crypto_secretbox_MACBYTES);
    uint8_t *opened = malloc(CHUNK_BYTES);
    if (sealed && opened && sodium_init() >= 0) {
        int64_t n = b->n_chunks / 4 + 1;
        double times[3] = {0};
        for (int pass = 0; pass < 2; pass++) { /* the first touches the memory */
            times[0] = ifl_clock_s();
            for (int64_t i = 0; i < n; i++)
                crypto_secretbox_easy(sealed, b->source + (i % N_CHUNKS) * CHUNK_BYTES, CHUNK_BYTES,
                                      nonce, key);
            times[1] = ifl_clock_s();
            for (int64_t i = 0; i < n; i++)
                if (crypto_secretbox_open_easy(
                        opened, sealed, CHUNK_BYTES + crypto_secretbox_MACBYTES, nonce, key) != 0)
                    break;
            times[2] = ifl_clock_s();
        }
        *seal = (double)(n * CHUNK_BYTES) / (times[1] - times[0]);
        *open = (double)(n * CHUNK_BYTES) / (times[2] - times[1]);
    }
    free(sealed);
    free(opened);
#else
    (void)b;
#endif
}

/* --- All of them ------------------------------------------------------------------------------ */

static ifl_status bench_open(transport_bench *b, const ifl_bench_args *a, ifl_error *err) {
    *b = (transport_bench){.args = a, .folder.lock_fd = -1};
    b->n_chunks = (a->size_mib * (1 << 20) + CHUNK_BYTES - 1) / CHUNK_BYTES;
    b->source = malloc((size_t)N_CHUNKS * CHUNK_BYTES);
    if (!b->source) return ifl_fail(err, IFL_NOMEM, "bench transport: out of memory");
    uint64_t x = 1;
    for (size_t i = 0; i < (size_t)N_CHUNKS * CHUNK_BYTES / 8; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(b->source + 8 * i, &x, 8);
    }
    for (int i = 0; i < N_CHUNKS; i++)
        b->hashes[i] = ifl_hash_bytes(b->source + (int64_t)i * CHUNK_BYTES, CHUNK_BYTES);
    IFL_TRY(ifl_local_endpoint_create(&b->folder, err));
    IFL_TRY(ifl_key_pair_make(&b->learner, err));
    IFL_TRY(ifl_key_pair_make(&b->local, err));
    IFL_TRY(ifl_key_pair_write(&b->learner, b->folder.folder, IFL_KEY_LEARNER, err));
    return ifl_key_pair_write(&b->local, b->folder.folder, "local", err);
}

/* Raw sockets are what the others are held against. */
static bool way_is_wanted(const transport_bench *b, int way) {
    return way <= WAY_RAW_CHECKED || !b->args->only || strcmp(b->args->only, way_ids[way]) == 0;
}

static ifl_status report(const transport_bench *b, bench_path path, measurement *const all[N_WAYS],
                         ifl_error *err) {
    int64_t n = b->args->repeat;
    double bytes = (double)b->n_chunks * CHUNK_BYTES;
    double rates[IFL_BENCH_REPEATS_MAX], ratios[IFL_BENCH_REPEATS_MAX], cpu[IFL_BENCH_REPEATS_MAX];
    for (int w = 0; w < N_WAYS; w++) {
        if (!way_is_wanted(b, w)) continue;
        for (int64_t i = 0; i < n; i++) {
            rates[i] = bytes / all[w][i].seconds * 1e-9;
            ratios[i] = all[WAY_RAW][i].seconds / all[w][i].seconds;
            cpu[i] = all[w][i].cpu_seconds / (bytes + (double)N_CHUNKS * CHUNK_BYTES) * 1e9;
        }
        ifl_figures rate = ifl_figures_of(rates, n), ratio = ifl_figures_of(ratios, n),
                    c = ifl_figures_of(cpu, n);
        if (!b->args->json) {
            printf("%-4s %-20s %6.2f %6.2f %6.2f  %6.3f %6.3f %6.3f  %6.2f\n", path_names[path],
                   way_names[w], rate.median, rate.min, rate.max, ratio.median, ratio.min,
                   ratio.max, c.median);
            continue;
        }
        json_t *o =
            json_pack("{s:s, s:s, s:s, s:i, s:I, s:I}", "bench", "transport", "path",
                      path_names[path], "way", way_ids[w], "chunk_bytes", (int)CHUNK_BYTES, "bytes",
                      (json_int_t)b->n_chunks * CHUNK_BYTES, "rounds", (json_int_t)n);
        if (o) {
            ifl_bench_json_figures(o, "gbyte_per_s", &rate);
            ifl_bench_json_figures(o, "ratio_to_raw", &ratio);
            ifl_bench_json_figures(o, "cpu_seconds_per_gbyte", &c);
        }
        IFL_TRY(ifl_bench_json_print(o, err));
    }
    fflush(stdout);
    return IFL_OK;
}

static ifl_status bench_run(transport_bench *b, measurement *all, ifl_error *err) {
    int64_t n = b->args->repeat;
    for (int64_t i = 0; i < n; i++)
        for (int p = 0; p < N_PATHS; p++)
            for (int w = 0; w < N_WAYS; w++) {
                measurement *m = &all[(p * N_WAYS + w) * n + i];
                if (way_is_wanted(b, w)) IFL_TRY(turn_run(b, (bench_path)p, (bench_way)w, m, err));
            }
    double seal, open;
    cipher_speed(b, &seal, &open);
    if (!b->args->json)
        printf("%lld rounds in turns, %lld chunks of %d MiB, 2 processes; GB/s, ratio to the raw "
               "socket of the same round, CPU seconds per GB of both sides\n"
               "path way                  median    min    max  median    min    max  cpu/GB\n",
               (long long)n, (long long)b->n_chunks, CHUNK_BYTES >> 20);
    for (int p = 0; p < N_PATHS; p++) {
        measurement *of_path[N_WAYS];
        for (int w = 0; w < N_WAYS; w++)
            of_path[w] = &all[(p * N_WAYS + w) * n];
        IFL_TRY(report(b, (bench_path)p, of_path, err));
    }
    if (seal == 0.0) return IFL_OK;
    if (b->args->json)
        return ifl_bench_json_print(json_pack("{s:s, s:f, s:f}", "bench", "xsalsa20poly1305",
                                              "seal_gbyte_per_s", seal * 1e-9, "open_gbyte_per_s",
                                              open * 1e-9),
                                    err);
    printf("XSalsa20-Poly1305, one thread: %.2f GB/s sealed, %.2f opened (the bound of a link with "
           "keys)\n",
           seal * 1e-9, open * 1e-9);
    return IFL_OK;
}

ifl_status ifl_bench_transport(const ifl_bench_args *a, ifl_error *err) {
    transport_bench b;
    measurement *all = calloc((size_t)(N_PATHS * N_WAYS * a->repeat), sizeof *all);
    ifl_status st = all ? bench_open(&b, a, err) : ifl_fail(err, IFL_NOMEM, "bench: out of memory");
    if (st == IFL_OK) st = bench_run(&b, all, err);
    if (all) {
        ifl_local_endpoint_remove(&b.folder);
        free(b.source);
        explicit_bzero(&b, sizeof b);
    }
    free(all);
    return st;
}

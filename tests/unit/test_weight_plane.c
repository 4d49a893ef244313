/* learner/publisher.h and actor/weight_receiver.h over real sockets: only whole, verified versions
 * come out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actor/weight_receiver.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"
#include "kernels/random_model.h"
#include "learner/publisher.h"

#define WAIT_MS 10000
#define CHUNK_BYTES 4096

typedef struct plane {
    ifl_model *model;
    ifl_server *server;
    ifl_publisher *publisher;
    ifl_client *client;
    ifl_weight_receiver *receiver;
    ifl_weights *versions[4]; /* what the learner publishes: [1] to [3] */
    ifl_weights *shadow[2];
} plane;

static ifl_server *make_server(const ifl_model *model, const char *bind, uint64_t epoch) {
    ifl_server_options so = {
        .bind = bind, .heartbeat_ms = 250, .heartbeat_misses = 12, .run_epoch = epoch};
    so.fingerprint = model->fingerprint;
    so.profile = model->profile;
    so.vocab_size = model->config.vocab_size;
    ifl_server *server;
    ifl_error err = {0};
    if (ifl_server_create(&server, &so, &err) != IFL_OK) fail_msg("%s", err.text);
    return server;
}

static void plane_open_with(plane *p, int32_t patch_percent) {
    memset(p, 0, sizeof *p);
    ifl_error err = {0};
    ifl_model_config config;
    assert_true(ifl_random_model_config("tiny-qwen3", &config));
    assert_int_equal(ifl_model_create(&p->model, &config, 0, IFL_PROFILE_F32, &err), IFL_OK);
    for (int v = 1; v < 4; v++) {
        assert_int_equal(ifl_weights_create(&p->versions[v], p->model, &err), IFL_OK);
        assert_int_equal(ifl_random_weights(p->versions[v], (uint64_t)v, &err), IFL_OK);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(ifl_weights_create(&p->shadow[i], p->model, &err), IFL_OK);
    p->server = make_server(p->model, "tcp://127.0.0.1:*", 1);
    assert_int_equal(ifl_publisher_create(&p->publisher, p->model, p->server, CHUNK_BYTES, 16,
                                          patch_percent, &err),
                     IFL_OK);
    ifl_client_options co = {
        .connect = ifl_server_endpoint(p->server), .name = "actor-1", .held_version = -1};
    co.fingerprint = p->model->fingerprint;
    co.profile = p->model->profile;
    assert_int_equal(ifl_client_create(&p->client, &co, &err), IFL_OK);
    assert_int_equal(ifl_weight_receiver_create(&p->receiver, p->model, p->client, NULL, &err),
                     IFL_OK);
}

static void plane_open(plane *p) {
    plane_open_with(p, 0);
}

static void plane_close(plane *p) {
    ifl_weight_receiver_free(p->receiver);
    ifl_client_free(p->client);
    ifl_publisher_free(p->publisher);
    ifl_server_free(p->server);
    for (int v = 1; v < 4; v++)
        ifl_weights_free(p->versions[v]);
    for (int i = 0; i < 2; i++)
        ifl_weights_free(p->shadow[i]);
    ifl_model_free(p->model);
}

static void publish(plane *p, int version) {
    ifl_error err = {0};
    if (ifl_publisher_publish(p->publisher, version, version - 1, p->versions[version], NULL, NULL,
                              &err) != IFL_OK)
        fail_msg("%s", err.text);
}

static void assert_same_weights(const ifl_weights *a, const ifl_weights *b) {
    size_t n = (size_t)a->model->n_elements;
    uint16_t *x = malloc(n * 2), *y = malloc(n * 2);
    ifl_weights_get(a, 0, (int64_t)n, x);
    ifl_weights_get(b, 0, (int64_t)n, y);
    assert_memory_equal(x, y, n * 2);
    free(x);
    free(y);
}

static ifl_weights *wait_weights(plane *p) {
    ifl_weights *w;
    ifl_error err = {0};
    if (ifl_weight_receiver_wait(p->receiver, WAIT_MS, &w, &err) != IFL_OK)
        fail_msg("%s", err.text);
    return w;
}

static void test_published_bytes_arrive_whole(void **state) {
    (void)state;
    plane p;
    plane_open(&p);
    ifl_weights *w;
    assert_int_equal(ifl_weight_receiver_take(p.receiver, &w, NULL), IFL_AGAIN);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[0], NULL, NULL), IFL_OK);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[1], NULL, NULL),
                     IFL_FULL);
    publish(&p, 1);
    w = wait_weights(&p);
    assert_ptr_equal(w, p.shadow[0]);
    assert_int_equal(w->version, 1);
    assert_same_weights(w, p.versions[1]);
    ifl_hash content, root;
    assert_int_equal(ifl_publisher_version(p.publisher, &root, &content), 1);
    assert_true(ifl_hash_equal(content, ifl_weights_hash(w)));
    assert_int_equal(ifl_weight_receiver_applied(p.receiver, 1, 250, NULL), IFL_OK);

    /* WREADY and WDONE reach the learner, with the manifest's root. */
    bool ready = false, done = false;
    ifl_server_event e;
    while (!(ready && done)) {
        assert_int_equal(ifl_server_poll(p.server, WAIT_MS, &e, NULL), IFL_OK);
        if (e.kind == IFL_SERVER_MESSAGE && e.message.type == IFL_WIRE_WREADY)
            ready = ifl_hash_equal(e.message.wready.root, root);
        if (e.kind == IFL_SERVER_MESSAGE && e.message.type == IFL_WIRE_WDONE)
            done = ifl_hash_equal(e.message.wdone.root, root) && e.message.wdone.stall_us == 250;
        ifl_server_event_clear(&e);
    }
    ifl_peer_info info;
    assert_int_equal(ifl_server_peers(p.server, &info, 1), 1);
    assert_true(info.version_ready == 1 && info.version_done == 1);

    /* The same version isn't fetched again into the next buffer; the next one is. */
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[1], NULL, NULL), IFL_OK);
    assert_int_equal(ifl_weight_receiver_wait(p.receiver, 150, &w, NULL), IFL_TIMEOUT);
    publish(&p, 2);
    w = wait_weights(&p);
    assert_int_equal(w->version, 2);
    assert_same_weights(w, p.versions[2]);
    assert_same_weights(p.shadow[0], p.versions[1]); /* the one in use was left alone */
    plane_close(&p);
}

static void test_late_actor_gets_the_newest_only(void **state) {
    (void)state;
    plane p;
    plane_open(&p);
    for (int v = 1; v < 4; v++)
        publish(&p, v);
    assert_int_equal(ifl_publisher_wait(p.publisher, 3, WAIT_MS, NULL), IFL_OK);
    while (ifl_weight_receiver_announced(p.receiver) < 3)
        ifl_sleep_ms(2);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[0], NULL, NULL), IFL_OK);
    ifl_weights *w = wait_weights(&p);
    assert_int_equal(w->version, 3);
    assert_same_weights(w, p.versions[3]);
    ifl_weight_receiver_stats stats;
    ifl_weight_receiver_stats_get(p.receiver, &stats);
    assert_int_equal(stats.versions, 1);
    assert_int_equal(stats.bytes, p.model->n_elements * 2);
    plane_close(&p);
}

/* Versions come faster than a slow actor takes them: each one taken is one of them, whole, never
 * older than the last, and the newest arrives in the end. */
static void test_slow_actor_sees_only_whole_versions(void **state) {
    (void)state;
    plane p;
    plane_open(&p);
    ifl_error err = {0};
    int64_t last = 0, version = 0;
    int n_taken = 0;
    ifl_weights *spare = p.shadow[0], *w;
    for (int round = 0; round < 60; round++) {
        version++;
        /* Content is a function of the version: number 1, 2 and 3 in turn. */
        assert_int_equal(ifl_publisher_publish(p.publisher, version, version - 1,
                                               p.versions[1 + version % 3], NULL, NULL, &err),
                         IFL_OK);
        if (spare && ifl_weight_receiver_offer_buffer(p.receiver, spare, NULL, &err) == IFL_OK)
            spare = NULL;
        if (round % 4 != 3) continue; /* slow: looks at every fourth only */
        ifl_sleep_ms(2);
        if (ifl_weight_receiver_take(p.receiver, &w, &err) == IFL_OK) {
            assert_true(w->version > last);
            last = w->version;
            assert_same_weights(w, p.versions[1 + last % 3]);
            n_taken++;
            spare = w;
        }
    }
    while (last < version) {
        if (spare)
            assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, spare, NULL, &err),
                             IFL_OK);
        w = wait_weights(&p);
        assert_true(w->version > last);
        last = w->version;
        assert_same_weights(w, p.versions[1 + last % 3]);
        n_taken++;
        spare = w;
    }
    assert_true(n_taken >= 1 && n_taken < 60);
    ifl_publisher_stats stats;
    ifl_publisher_stats_get(p.publisher, &stats);
    assert_int_equal(stats.announced, 60);
    assert_true(stats.editions <= IFL_EDITIONS_MAX);
    plane_close(&p);
}

static void test_corrupted_chunk_is_asked_again(void **state) {
    (void)state;
    plane p;
    plane_open(&p);
    assert_true(p.model->n_elements * 2 > 3 * CHUNK_BYTES); /* it is one of several */
    ifl_publisher_test_corrupt(p.publisher, 1, 2);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[0], NULL, NULL), IFL_OK);
    publish(&p, 1);
    ifl_weights *w = wait_weights(&p);
    assert_same_weights(w, p.versions[1]);
    ifl_weight_receiver_stats stats;
    ifl_weight_receiver_stats_get(p.receiver, &stats);
    assert_int_equal(stats.hash_failures, 2);
    assert_int_equal(stats.retries, 2);
    plane_close(&p);
}

/* A chunk that is never right: nothing is ever handed over. */
static void test_always_corrupted_version_stays_invisible(void **state) {
    (void)state;
    plane p;
    plane_open(&p);
    ifl_publisher_test_corrupt(p.publisher, 2, 1 << 30);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[0], NULL, NULL), IFL_OK);
    publish(&p, 1);
    ifl_weights *w;
    assert_int_equal(ifl_weight_receiver_wait(p.receiver, 300, &w, NULL), IFL_TIMEOUT);
    assert_null(w);
    ifl_publisher_test_corrupt(p.publisher, 2, 0);
    w = wait_weights(&p);
    assert_same_weights(w, p.versions[1]);
    plane_close(&p);
}

static atomic_int n_released;

static void count_release(const ifl_weights *weights, void *user) {
    assert_ptr_equal(weights, user);
    atomic_fetch_add(&n_released, 1);
}

static void test_borrowed_weights_are_given_back_once_each(void **state) {
    (void)state;
    plane p;
    plane_open(&p);
    ifl_error err = {0};
    atomic_store(&n_released, 0);
    for (int v = 1; v <= 30; v++)
        assert_int_equal(ifl_publisher_publish(p.publisher, v, v - 1, p.versions[1 + v % 3],
                                               count_release, p.versions[1 + v % 3], &err),
                         IFL_OK);
    assert_int_equal(ifl_publisher_publish(p.publisher, 30, 29, p.versions[1], count_release,
                                           p.versions[1], &err),
                     IFL_USAGE); /* versions ascend; nothing was borrowed */
    assert_int_equal(ifl_publisher_wait(p.publisher, 30, WAIT_MS, &err), IFL_OK);
    assert_int_equal(ifl_publisher_wait(p.publisher, 31, 20, &err), IFL_TIMEOUT);
    ifl_publisher_stats stats;
    ifl_publisher_stats_get(p.publisher, &stats);
    assert_int_equal(stats.announced + stats.skipped, 30);
    assert_int_equal(atomic_load(&n_released), 30);
    plane_close(&p);
    assert_int_equal(atomic_load(&n_released), 30);
}

/* The learner dies without a BYE, and another process takes its place. */
static void replace_learner(plane *p) {
    char endpoint[IFL_ENDPOINT_MAX];
    snprintf(endpoint, sizeof endpoint, "%s", ifl_server_endpoint(p->server));
    ifl_server_event e;
    assert_int_equal(ifl_server_poll(p->server, WAIT_MS, &e, NULL), IFL_OK);
    ifl_server_close_peer(p->server, e.peer, IFL_WIRE_E_FENCED, "test");
    while (e.kind != IFL_SERVER_LOST) {
        ifl_server_event_clear(&e);
        assert_int_equal(ifl_server_poll(p->server, WAIT_MS, &e, NULL), IFL_OK);
    }
    ifl_publisher_free(p->publisher);
    ifl_server_free(p->server);
    p->server = make_server(p->model, endpoint, 2);
    assert_int_equal(
        ifl_publisher_create(&p->publisher, p->model, p->server, CHUNK_BYTES, 16, 0, NULL), IFL_OK);
}

static void test_restarted_learner_counts_even_with_an_older_version(void **state) {
    (void)state;
    plane p;
    plane_open(&p);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[0], NULL, NULL), IFL_OK);
    publish(&p, 2);
    ifl_weights *w = wait_weights(&p);
    assert_int_equal(w->version, 2);
    replace_learner(&p);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[1], NULL, NULL), IFL_OK);
    publish(&p, 1);
    w = wait_weights(&p);
    assert_int_equal(w->version, 1);
    assert_same_weights(w, p.versions[1]);
    plane_close(&p);
}

static void wait_versions(plane *p, int64_t n) {
    ifl_weight_receiver_stats stats;
    int64_t until = ifl_clock_ns() + WAIT_MS * (int64_t)1000000;
    do {
        if (ifl_clock_ns() > until) fail_msg("version %lld was never fetched", (long long)n);
        ifl_sleep_ms(1);
        ifl_weight_receiver_stats_get(p->receiver, &stats);
    } while (stats.versions < n);
}

/* Both ways round: a version of the former process that was fetched and not taken, and one of the
 * new process when the application hasn't heard of it yet. */
static void test_only_versions_of_the_followed_learner_process_come_out(void **state) {
    (void)state;
    plane p;
    plane_open(&p);
    ifl_weights *w;
    ifl_wire_welcome former = {.run_epoch = 1}, now = {.run_epoch = 2};
    ifl_weight_receiver_follow(p.receiver, &former);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[0], NULL, NULL), IFL_OK);
    publish(&p, 2);
    wait_versions(&p, 1);
    replace_learner(&p);
    /* The same number, other weights. */
    assert_int_equal(ifl_publisher_publish(p.publisher, 2, 1, p.versions[3], NULL, NULL, NULL),
                     IFL_OK);
    wait_versions(&p, 2);
    assert_int_equal(ifl_weight_receiver_take(p.receiver, &w, NULL), IFL_AGAIN);
    ifl_weight_receiver_follow(p.receiver, &now);
    w = wait_weights(&p);
    assert_int_equal(w->version, 2);
    assert_same_weights(w, p.versions[3]);
    plane_close(&p);
}

/* --- Patches ---------------------------------------------------------------------------------- */

/* versions[to] = versions[from] with every stride-th weight moved one or two steps. */
static void change_some(plane *p, int to, int from, int64_t stride) {
    size_t n = (size_t)p->model->n_elements;
    uint16_t *flat = malloc(n * 2);
    ifl_weights_get(p->versions[from], 0, (int64_t)n, flat);
    for (size_t i = (size_t)to; i < n; i += (size_t)stride)
        flat[i] = ifl_bf16_at_place(ifl_bf16_place(flat[i]) + (i % 3 == 0 ? 2 : -1));
    ifl_weights_put(p->versions[to], 0, (int64_t)n, flat);
    free(flat);
}

/* The actor has version 1 in use, in shadow[0]. */
static void plane_open_at_1(plane *p) {
    plane_open(p);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p->receiver, p->shadow[0], NULL, NULL),
                     IFL_OK);
    publish(p, 1);
    assert_ptr_equal(wait_weights(p), p->shadow[0]);
}

static void offer_with_base(plane *p) {
    assert_int_equal(
        ifl_weight_receiver_offer_buffer(p->receiver, p->shadow[1], p->shadow[0], NULL), IFL_OK);
}

static ifl_weight_receiver_stats receiver_stats(plane *p) {
    ifl_weight_receiver_stats stats;
    ifl_weight_receiver_stats_get(p->receiver, &stats);
    return stats;
}

static int32_t n_chunks(const plane *p) {
    return (int32_t)((p->model->n_elements * 2 + CHUNK_BYTES - 1) / CHUNK_BYTES);
}

static void test_next_version_comes_as_a_patch(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    change_some(&p, 2, 1, 100);
    offer_with_base(&p);
    publish(&p, 2);
    ifl_weights *w = wait_weights(&p);
    assert_int_equal(w->version, 2);
    assert_same_weights(w, p.versions[2]);
    assert_same_weights(p.shadow[0], p.versions[1]);
    ifl_weight_receiver_stats stats = receiver_stats(&p);
    assert_int_equal(stats.version_patched_last, n_chunks(&p));
    assert_true(stats.version_bytes_last < p.model->n_elements * 2 / 40);
    ifl_publisher_stats published;
    ifl_publisher_stats_get(p.publisher, &published);
    assert_int_equal(published.patch_version, 2);
    assert_int_equal(published.patch_base, 1);
    assert_int_equal(published.patch_bytes, stats.version_bytes_last);
    assert_int_equal(published.patch_changed, (p.model->n_elements - 2 + 99) / 100);
    assert_int_equal(published.patch_dense, 0);
    plane_close(&p);
}

static void test_missed_versions_come_as_one_patch(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    change_some(&p, 2, 1, 200);
    change_some(&p, 3, 2, 200);
    publish(&p, 2);
    publish(&p, 3);
    while (ifl_weight_receiver_announced(p.receiver) < 3)
        ifl_sleep_ms(2);
    offer_with_base(&p);
    ifl_weights *w = wait_weights(&p);
    assert_int_equal(w->version, 3);
    assert_same_weights(w, p.versions[3]);
    ifl_weight_receiver_stats stats = receiver_stats(&p);
    assert_int_equal(stats.version_patched_last, n_chunks(&p));
    ifl_publisher_stats published;
    ifl_publisher_stats_get(p.publisher, &published);
    assert_int_equal(published.n_merged, 1);
    plane_close(&p);
}

static void test_equal_versions_cost_no_bytes(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    int64_t before = receiver_stats(&p).bytes;
    offer_with_base(&p);
    ifl_error err = {0};
    assert_int_equal(ifl_publisher_publish(p.publisher, 2, 1, p.versions[1], NULL, NULL, &err),
                     IFL_OK);
    ifl_weights *w = wait_weights(&p);
    assert_int_equal(w->version, 2);
    assert_same_weights(w, p.versions[1]);
    assert_int_equal(receiver_stats(&p).bytes, before);
    plane_close(&p);
}

static void test_everything_changed_goes_dense_by_itself(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    offer_with_base(&p);
    publish(&p, 2); /* other random numbers */
    ifl_weights *w = wait_weights(&p);
    assert_same_weights(w, p.versions[2]);
    ifl_publisher_stats published;
    ifl_publisher_stats_get(p.publisher, &published);
    assert_true(published.patch_dense > n_chunks(&p) / 2);
    assert_true(receiver_stats(&p).version_bytes_last <= p.model->n_elements * 2);
    plane_close(&p);
}

static void test_damaged_patch_is_asked_again_as_a_patch(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    change_some(&p, 2, 1, 100);
    ifl_publisher_test_corrupt(p.publisher, 1, 3);
    offer_with_base(&p);
    publish(&p, 2);
    assert_same_weights(wait_weights(&p), p.versions[2]);
    ifl_weight_receiver_stats stats = receiver_stats(&p);
    assert_int_equal(stats.hash_failures, 3);
    assert_int_equal(stats.patch_mismatches, 0);
    assert_int_equal(stats.version_patched_last, n_chunks(&p));
    plane_close(&p);
}

/* The base has a flipped bit at the actor: the hash of the result says so, and that chunk alone
 * comes dense. */
static void test_patch_of_another_base_is_replaced_dense(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    change_some(&p, 2, 1, 100);
    uint16_t flat[8];
    int64_t at = 3 * CHUNK_BYTES / 2 + 5;
    ifl_weights_get(p.shadow[0], at, 8, flat);
    flat[3] ^= 1;
    ifl_weights_put(p.shadow[0], at, 8, flat);
    offer_with_base(&p);
    publish(&p, 2);
    assert_same_weights(wait_weights(&p), p.versions[2]);
    ifl_weight_receiver_stats stats = receiver_stats(&p);
    assert_int_equal(stats.patch_mismatches, 1);
    assert_int_equal(stats.version_patched_last, n_chunks(&p) - 1);
    plane_close(&p);
}

/* Another actor, of which only the weight plane is played: it asks for chunks one by one. */
static ifl_client *slow_open(plane *p) {
    ifl_error err = {0};
    ifl_client_options co = {
        .connect = ifl_server_endpoint(p->server), .name = "slow", .held_version = -1};
    co.fingerprint = p->model->fingerprint;
    co.profile = p->model->profile;
    ifl_client *slow;
    assert_int_equal(ifl_client_create(&slow, &co, &err), IFL_OK);
    return slow;
}

/* The next message of that type on the weight plane; false: a WNACK came instead. */
static bool slow_await(ifl_client *slow, ifl_wire_type type) {
    int64_t until = ifl_clock_ns() + WAIT_MS * (int64_t)1000000;
    ifl_wire_type got = IFL_WIRE_HELLO;
    while (got != type && got != IFL_WIRE_WNACK) {
        ifl_client_event event;
        assert_true(ifl_clock_ns() < until);
        if (ifl_client_poll_weights(slow, 50, &event, NULL) != IFL_OK) continue;
        if (event.kind == IFL_CLIENT_MESSAGE) got = event.message.type;
        ifl_client_event_clear(&event);
    }
    return got == type;
}

static bool slow_fetch(ifl_client *slow, int64_t version, int32_t chunk) {
    ifl_message m = ifl_message_make(IFL_WIRE_WGET);
    m.policy = m.wget.version = version;
    m.wget.base = -1;
    m.wget.n_chunks = 1;
    m.wget.chunks[0] = chunk;
    assert_int_equal(ifl_client_send_weights(slow, &m, NULL), IFL_OK);
    return slow_await(slow, IFL_WIRE_WCHUNK);
}

/* Versions come faster than a slow actor can fetch one, and a fast one has had each of them: what
 * the slow one is in the middle of is still served. */
static void test_what_a_slow_actor_fetches_outlives_what_a_fast_one_has(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    ifl_error err = {0};
    ifl_client *slow = slow_open(&p);
    assert_true(slow_await(slow, IFL_WIRE_WANN));
    offer_with_base(&p);
    publish(&p, 2);
    wait_weights(&p);
    while (!slow_fetch(slow, 2, 0)) {
    }
    for (int v = 3; v <= 6; v++)
        assert_int_equal(
            ifl_publisher_publish(p.publisher, v, v - 1, p.versions[2], NULL, NULL, &err), IFL_OK);
    assert_int_equal(ifl_publisher_wait(p.publisher, 6, WAIT_MS, &err), IFL_OK);
    assert_true(slow_fetch(slow, 2, 1));
    assert_false(slow_fetch(slow, 3, 1));
    ifl_client_free(slow);
    plane_close(&p);
}

/* Announcements taken by `slow` until none comes for a while; their versions. */
static int32_t slow_announced(ifl_client *slow, int64_t *versions, int32_t max) {
    int32_t n = 0;
    int64_t until = ifl_clock_ns() + WAIT_MS * (int64_t)1000000;
    ifl_client_event event;
    while (ifl_client_poll_weights(slow, 300, &event, NULL) == IFL_OK) {
        assert_true(ifl_clock_ns() < until);
        bool is = event.kind == IFL_CLIENT_MESSAGE && event.message.type == IFL_WIRE_WANN;
        if (is && n < max) versions[n] = event.message.wann.manifest->version;
        n += is;
        ifl_client_event_clear(&event);
    }
    return n;
}

static void slow_wait_messages(ifl_client *slow, int64_t n) {
    ifl_client_stats stats;
    int64_t until = ifl_clock_ns() + WAIT_MS * (int64_t)1000000;
    do {
        assert_true(ifl_clock_ns() < until);
        ifl_sleep_ms(2);
        ifl_client_stats_get(slow, &stats);
    } while (stats.messages_in < n);
}

/* Who is slower than versions are made is told of two, and then of the newest: nothing queues. */
static void test_peer_that_does_not_read_has_two_announcements_then_the_newest(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    ifl_error err = {0};
    ifl_client *slow = slow_open(&p);
    slow_wait_messages(slow, 2); /* WELCOME and version 1 */
    for (int v = 2; v <= 12; v++) {
        assert_int_equal(
            ifl_publisher_publish(p.publisher, v, v - 1, p.versions[2], NULL, NULL, &err), IFL_OK);
        /* A peer that reads is told of each. */
        int64_t until = ifl_clock_ns() + WAIT_MS * (int64_t)1000000;
        while (ifl_weight_receiver_announced(p.receiver) < v) {
            assert_true(ifl_clock_ns() < until);
            ifl_sleep_ms(1);
        }
    }
    int64_t versions[4] = {0};
    assert_int_equal(slow_announced(slow, versions, 4), 3);
    assert_int_equal(versions[0], 1);
    assert_int_equal(versions[1], 2);
    assert_int_equal(versions[2], 12);
    /* It reads now: whatever comes it is told of, one by one. */
    for (int v = 13; v <= 16; v++) {
        assert_int_equal(
            ifl_publisher_publish(p.publisher, v, v - 1, p.versions[2], NULL, NULL, &err), IFL_OK);
        assert_int_equal(slow_announced(slow, versions, 4), 1);
        assert_int_equal(versions[0], v);
    }
    ifl_client_free(slow);
    plane_close(&p);
}

/* A fetch of version 2 gets nearly everything, and then 2 is gone: an actor that began before it is
 * still at version 1. What it has written must not show in what comes next. */
static void test_abandoned_fetch_leaves_no_trace(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    ifl_client *slow = slow_open(&p);
    assert_true(slow_await(slow, IFL_WIRE_WANN));
    assert_true(slow_fetch(slow, 1, 0));
    change_some(&p, 2, 1, 50);
    change_some(&p, 3, 1, 70); /* not from 2: its changes go back */
    ifl_publisher_test_corrupt(p.publisher, 1, 1 << 30);
    offer_with_base(&p);
    publish(&p, 2);
    int64_t until = ifl_clock_ns() + WAIT_MS * (int64_t)1000000;
    while (receiver_stats(&p).version_patched_last < n_chunks(&p) - 1) {
        assert_true(ifl_clock_ns() < until);
        ifl_sleep_ms(2);
    }
    ifl_error err = {0};
    publish(&p, 3);
    for (int v = 4; v <= 5; v++) /* the same again: 2 is no longer served */
        assert_int_equal(
            ifl_publisher_publish(p.publisher, v, v - 1, p.versions[3], NULL, NULL, &err), IFL_OK);
    while (receiver_stats(&p).dropped == 0) {
        assert_true(ifl_clock_ns() < until);
        ifl_sleep_ms(2);
    }
    ifl_publisher_test_corrupt(p.publisher, 0, 0);
    ifl_weights *w = wait_weights(&p);
    assert_int_equal(w->version, 5);
    assert_same_weights(w, p.versions[3]);
    assert_int_equal(receiver_stats(&p).patch_mismatches, 0);
    ifl_client_free(slow);
    plane_close(&p);
}

/* versions[to] = versions[from] with one weight in `one_in`, drawn, moved by a step. */
static void change_drawn(plane *p, int to, int from, uint64_t one_in, uint64_t draw) {
    size_t n = (size_t)p->model->n_elements;
    uint16_t *flat = malloc(n * 2);
    ifl_rng_key key = {draw, 0, IFL_RNG_TEST};
    ifl_weights_get(p->versions[from], 0, (int64_t)n, flat);
    for (size_t i = 0; i < n; i++) {
        uint64_t drawn = ifl_rng_below(&key, i, 0, 2 * one_in);
        if (drawn >= 2) continue;
        flat[i] = ifl_bf16_at_place(ifl_bf16_place(flat[i]) + (drawn ? 1 : -1));
    }
    ifl_weights_put(p->versions[to], 0, (int64_t)n, flat);
    free(flat);
}

/* 16 versions that an actor at version 1 has missed, each with one weight in `one_in` changed. */
typedef struct missed {
    double percent; /* of dense: the last one alone */
    double held;    /* all that is kept for merging */
    int32_t kept;
    int64_t fetched; /* bytes */
    int64_t patched; /* chunks */
} missed;

static missed miss_16(uint64_t one_in, int32_t patch_percent) {
    plane p;
    ifl_error err = {0};
    plane_open_with(&p, patch_percent);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[0], NULL, NULL), IFL_OK);
    publish(&p, 1);
    assert_ptr_equal(wait_weights(&p), p.shadow[0]);
    int from = 1;
    for (int v = 2; v <= 17; v++) {
        int to = 2 + v % 2;
        change_drawn(&p, to, from, one_in, (uint64_t)v);
        assert_int_equal(
            ifl_publisher_publish(p.publisher, v, v - 1, p.versions[to], NULL, NULL, &err), IFL_OK);
        from = to;
    }
    while (ifl_weight_receiver_announced(p.receiver) < 17)
        ifl_sleep_ms(2);
    offer_with_base(&p);
    ifl_weights *w = wait_weights(&p);
    assert_int_equal(w->version, 17);
    assert_same_weights(w, p.versions[from]);
    ifl_weight_receiver_stats stats = receiver_stats(&p);
    ifl_publisher_stats published;
    ifl_publisher_stats_get(p.publisher, &published);
    double dense = 2.0 * (double)p.model->n_elements;
    missed m = {.percent = 100.0 * (double)published.patch_bytes / dense,
                .held = 100.0 * (double)published.steps_bytes / dense,
                .kept = published.steps_kept,
                .fetched = stats.version_bytes_last,
                .patched = stats.version_patched_last};
    if (m.patched) assert_int_equal(m.patched, n_chunks(&p));
    print_message("1 weight in %d: a patch is %.2f %% of dense, %d kept take %.1f %%, one of all "
                  "is %.1f %%\n",
                  (int)one_in, m.percent, m.kept, m.held, 100.0 * (double)m.fetched / dense);
    plane_close(&p);
    return m;
}

/* At patches of up to 2 % of dense, what optimizer steps of a usual rate come to. */
static void test_sixteen_missed_versions_come_as_one_patch(void **state) {
    (void)state;
    static const uint64_t rates[] = {100, 40, 28};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        missed m = miss_16(rates[i], 0);
        assert_int_equal(m.kept, 16);
        assert_true(m.patched > 0);
        assert_true(m.held <= IFL_PATCHES_PERCENT);
    }
}

static void test_patches_take_no_more_than_they_may(void **state) {
    (void)state;
    missed m = miss_16(40, 20);
    assert_in_range(m.kept, 2, 15);
    assert_true(m.held <= 20.0);
    assert_int_equal(m.patched, 0);
}

static void test_base_beyond_the_kept_patches_is_served_dense(void **state) {
    (void)state;
    plane p;
    plane_open_at_1(&p);
    ifl_error err = {0};
    change_some(&p, 2, 1, 100);
    change_some(&p, 3, 2, 100);
    for (int v = 2; v <= 20; v++) /* 16 are kept: from 4 on */
        assert_int_equal(
            ifl_publisher_publish(p.publisher, v, v - 1, p.versions[2 + v % 2], NULL, NULL, &err),
            IFL_OK);
    while (ifl_weight_receiver_announced(p.receiver) < 20)
        ifl_sleep_ms(2);
    offer_with_base(&p);
    ifl_weights *w = wait_weights(&p);
    assert_int_equal(w->version, 20);
    assert_same_weights(w, p.versions[2]);
    ifl_weight_receiver_stats stats = receiver_stats(&p);
    assert_int_equal(stats.version_patched_last, 0);
    assert_int_equal(stats.version_bytes_last, p.model->n_elements * 2);
    plane_close(&p);
}

/* 4 MiB chunks of a larger model, over ipc: the figure that WIRE.md quotes; says it, asserts only
 * that it works. */
static void test_throughput_is_measured(void **state) {
    (void)state;
    plane p;
    memset(&p, 0, sizeof p);
    ifl_error err = {0};
    ifl_model_config config;
    assert_true(ifl_random_model_config("tiny-qwen3", &config));
    config.vocab_size = 40000; /* a large embedding makes it some 20 MB */
    config.d_model = 256;
    assert_int_equal(ifl_model_create(&p.model, &config, 0, IFL_PROFILE_F32, &err), IFL_OK);
    for (int v = 1; v < 4; v++)
        assert_int_equal(ifl_weights_create(&p.versions[v], p.model, &err), IFL_OK);
    assert_int_equal(ifl_random_weights(p.versions[1], 1, &err), IFL_OK);
    for (int i = 0; i < 2; i++)
        assert_int_equal(ifl_weights_create(&p.shadow[i], p.model, &err), IFL_OK);
    char path[64];
    snprintf(path, sizeof path, "ipc://@ifl-test-%d", (int)getpid());
    p.server = make_server(p.model, path, 1);
    assert_int_equal(ifl_publisher_create(&p.publisher, p.model, p.server, 0, 16, 0, &err), IFL_OK);
    ifl_client_options co = {.connect = path, .name = "a", .held_version = -1};
    co.fingerprint = p.model->fingerprint;
    co.profile = p.model->profile;
    assert_int_equal(ifl_client_create(&p.client, &co, &err), IFL_OK);
    assert_int_equal(ifl_weight_receiver_create(&p.receiver, p.model, p.client, NULL, &err),
                     IFL_OK);
    assert_int_equal(ifl_weight_receiver_offer_buffer(p.receiver, p.shadow[0], NULL, &err), IFL_OK);
    publish(&p, 1);
    ifl_weights *w = wait_weights(&p);
    assert_same_weights(w, p.versions[1]);
    ifl_weight_receiver_stats stats;
    ifl_publisher_stats published;
    ifl_weight_receiver_stats_get(p.receiver, &stats);
    ifl_publisher_stats_get(p.publisher, &published);
    print_message("%.1f MB: unpacked and hashed in %.1f ms, fetched and verified in %.1f ms (%.1f "
                  "of it the last hash)\n",
                  (double)stats.version_bytes_last * 1e-6, published.unpack_s_last * 1e3,
                  stats.fetch_s_last * 1e3, stats.verify_s_last * 1e3);
    plane_close(&p);
}

int main(void) {
    ifl_log_setup("test", IFL_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_bytes_arrive_whole),
        cmocka_unit_test(test_late_actor_gets_the_newest_only),
        cmocka_unit_test(test_slow_actor_sees_only_whole_versions),
        cmocka_unit_test(test_corrupted_chunk_is_asked_again),
        cmocka_unit_test(test_always_corrupted_version_stays_invisible),
        cmocka_unit_test(test_borrowed_weights_are_given_back_once_each),
        cmocka_unit_test(test_restarted_learner_counts_even_with_an_older_version),
        cmocka_unit_test(test_only_versions_of_the_followed_learner_process_come_out),
        cmocka_unit_test(test_next_version_comes_as_a_patch),
        cmocka_unit_test(test_missed_versions_come_as_one_patch),
        cmocka_unit_test(test_equal_versions_cost_no_bytes),
        cmocka_unit_test(test_everything_changed_goes_dense_by_itself),
        cmocka_unit_test(test_damaged_patch_is_asked_again_as_a_patch),
        cmocka_unit_test(test_patch_of_another_base_is_replaced_dense),
        cmocka_unit_test(test_what_a_slow_actor_fetches_outlives_what_a_fast_one_has),
        cmocka_unit_test(test_peer_that_does_not_read_has_two_announcements_then_the_newest),
        cmocka_unit_test(test_abandoned_fetch_leaves_no_trace),
        cmocka_unit_test(test_sixteen_missed_versions_come_as_one_patch),
        cmocka_unit_test(test_patches_take_no_more_than_they_may),
        cmocka_unit_test(test_base_beyond_the_kept_patches_is_served_dense),
        cmocka_unit_test(test_throughput_is_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

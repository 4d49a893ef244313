/* common/relay.h between learner/publisher.h and actor/weight_receiver.h, over real sockets: the
 * learner sends each chunk once, and no relay can alter, hold up or lose a version. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actor/weight_receiver.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/relay.h"
#include "kernels/random_model.h"
#include "learner/publisher.h"

#define WAIT_MS 20000
#define CHUNK_BYTES 4096
#define ACTORS_MAX 5
#define RELAYS_MAX 3
#define PATIENT_MS 2000 /* heartbeat: a relay of a busy host has so long for its announcement */

typedef struct one_actor {
    ifl_client *client;
    ifl_weight_receiver *receiver;
    ifl_weights *buffers[2], *current;
} one_actor;

typedef struct farm {
    ifl_model *model;
    char place[64]; /* an abstract socket's name: no files */
    bool tcp;
    int32_t heartbeat_ms;
    int64_t relay_bytes; /* 0: plenty */
    ifl_server *server;
    ifl_publisher *publisher;
    ifl_weights *published;
    int64_t version;
    uint16_t *elements;
    ifl_relay *relays[RELAYS_MAX];
    char relay_endpoints[RELAYS_MAX][IFL_ENDPOINT_MAX];
    one_actor actors[ACTORS_MAX];
    int n_actors;
} farm;

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s", err->text);
}

static void farm_learner(farm *f, const char *bind, uint64_t epoch) {
    ifl_error err = {0};
    ifl_server_options so = {.bind = bind,
                             .heartbeat_ms = f->heartbeat_ms,
                             .heartbeat_misses = 20,
                             .run_epoch = epoch,
                             .run_uuid = "0123456789abcdef0123456789abcdef"};
    so.fingerprint = f->model->fingerprint;
    so.profile = f->model->profile;
    so.vocab_size = f->model->config.vocab_size;
    must(ifl_server_create(&f->server, &so, &err), &err);
    must(ifl_publisher_create(&f->publisher, f->model, f->server, CHUNK_BYTES, 16, 0, &err), &err);
}

static void farm_open(farm *f, bool tcp, int32_t heartbeat_ms) {
    ifl_error err = {0};
    ifl_model_config config;
    char bind[IFL_ENDPOINT_MAX];
    memset(f, 0, sizeof *f);
    f->tcp = tcp;
    f->heartbeat_ms = heartbeat_ms;
    static int n_farms;
    snprintf(f->place, sizeof f->place, "ipc://@ifl-relay-%d-%d", (int)getpid(), n_farms++);
    assert_true(ifl_random_model_config("tiny-qwen3", &config));
    must(ifl_model_create(&f->model, &config, 0, IFL_PROFILE_F32, &err), &err);
    must(ifl_weights_create(&f->published, f->model, &err), &err);
    must(ifl_random_weights(f->published, 7, &err), &err);
    f->elements = malloc((size_t)f->model->n_elements * 2);
    snprintf(bind, sizeof bind, "%s/learner", f->place);
    farm_learner(f, tcp ? "tcp://127.0.0.1:*" : bind, 1);
}

/* Behind `parent` (-1: the learner); `relays`: whom to ask first, or NULL. */
static void farm_relay_of(farm *f, int i, int parent, const char *connect, const char *relays) {
    ifl_error err = {0};
    char bind[IFL_ENDPOINT_MAX], name[16];
    snprintf(bind, sizeof bind, "%s/relay%d", f->place, i);
    snprintf(name, sizeof name, "relay-%d", i);
    if (f->tcp) snprintf(bind, sizeof bind, "tcp://127.0.0.1:*");
    if (f->relay_endpoints[i][0]) snprintf(bind, sizeof bind, "%s", f->relay_endpoints[i]);
    if (!connect)
        connect = parent < 0 ? ifl_server_endpoint(f->server) : f->relay_endpoints[parent];
    ifl_relay_options o = {.connect = connect,
                           .relays = relays,
                           .bind = bind,
                           .name = name,
                           .bytes_max = f->relay_bytes ? f->relay_bytes : (int64_t)64 << 20};
    must(ifl_relay_create(&f->relays[i], &o, &err), &err);
    for (int ms = 0;; ms++) {
        ifl_relay_endpoint(f->relays[i], f->relay_endpoints[i]);
        if (f->relay_endpoints[i][0]) break;
        if (ms > WAIT_MS) fail_msg("relay %d never listened", i);
        ifl_sleep_ms(1);
    }
}

static void farm_relay(farm *f, int i, int parent) {
    farm_relay_of(f, i, parent, NULL, NULL);
}

static one_actor *farm_actor(farm *f, const char *relays) {
    ifl_error err = {0};
    assert_true(f->n_actors < ACTORS_MAX);
    one_actor *a = &f->actors[f->n_actors++];
    ifl_client_options co = {
        .connect = ifl_server_endpoint(f->server), .name = "actor", .held_version = -1};
    co.fingerprint = f->model->fingerprint;
    co.profile = f->model->profile;
    must(ifl_client_create(&a->client, &co, &err), &err);
    ifl_weight_links_options links = {.relays = relays, .name = "actor"};
    must(ifl_weight_receiver_create(&a->receiver, f->model, a->client, &links, &err), &err);
    for (int k = 0; k < 2; k++)
        must(ifl_weights_create(&a->buffers[k], f->model, &err), &err);
    must(ifl_weight_receiver_offer_buffer(a->receiver, a->buffers[0], NULL, &err), &err);
    return a;
}

static void farm_stop_relay(farm *f, int i) {
    ifl_relay_free(f->relays[i]);
    f->relays[i] = NULL;
}

static void farm_close(farm *f) {
    for (int i = 0; i < f->n_actors; i++) {
        one_actor *a = &f->actors[i];
        ifl_weight_receiver_free(a->receiver);
        ifl_client_free(a->client);
        ifl_weights_free(a->buffers[0]);
        ifl_weights_free(a->buffers[1]);
    }
    for (int i = RELAYS_MAX - 1; i >= 0; i--)
        farm_stop_relay(f, i);
    ifl_publisher_free(f->publisher);
    ifl_server_free(f->server);
    ifl_weights_free(f->published);
    free(f->elements);
    ifl_model_free(f->model);
}

/* The next version: of every `stride`-th weight the value moves by one step. */
static void publish(farm *f, int64_t stride) {
    ifl_error err = {0};
    int64_t n = f->model->n_elements;
    ifl_weights_get(f->published, 0, n, f->elements);
    for (int64_t i = f->version % stride; f->version > 0 && i < n; i += stride)
        f->elements[i] ^= 1;
    ifl_weights_put(f->published, 0, n, f->elements);
    f->version++;
    must(ifl_publisher_publish(f->publisher, f->version, f->version - 1, f->published, NULL, NULL,
                               &err),
         &err);
}

/* The actor has the version that was published last, to the bit, and goes on from it. */
static void takes(farm *f, one_actor *a) {
    ifl_error err = {0};
    ifl_weights *w = NULL;
    ifl_hash content;
    while (!w || w->version < f->version) {
        if (w) must(ifl_weight_receiver_offer_buffer(a->receiver, w, a->current, &err), &err);
        must(ifl_weight_receiver_wait(a->receiver, WAIT_MS, &w, &err), &err);
    }
    assert_int_equal(ifl_publisher_version(f->publisher, NULL, &content), f->version);
    assert_int_equal(w->version, f->version);
    assert_true(ifl_hash_equal(ifl_weights_hash(w), content));
    a->current = w;
    must(ifl_weight_receiver_offer_buffer(
             a->receiver, w == a->buffers[0] ? a->buffers[1] : a->buffers[0], w, &err),
         &err);
}

static void all_take(farm *f) {
    for (int i = 0; i < f->n_actors; i++)
        takes(f, &f->actors[i]);
}

static ifl_weight_receiver_stats stats_of(const one_actor *a) {
    ifl_weight_receiver_stats s;
    ifl_weight_receiver_stats_get(a->receiver, &s);
    return s;
}

static int64_t learner_bytes(const farm *f) {
    ifl_server_stats s;
    ifl_server_stats_get(f->server, &s);
    return s.chunk_bytes_sent;
}

/* Three versions (one dense, two patches) for `n` actors behind a relay. Returns what the learner
 * has sent. */
static int64_t three_versions(farm *f, int n) {
    farm_relay(f, 0, -1);
    for (int i = 0; i < n; i++)
        farm_actor(f, f->relay_endpoints[0]);
    for (int v = 0; v < 3; v++) {
        publish(f, 40);
        all_take(f);
    }
    for (int i = 0; i < n; i++) {
        ifl_weight_receiver_stats s = stats_of(&f->actors[i]);
        assert_int_equal(s.versions, 3);
        assert_int_equal(s.relayed_bytes, s.bytes); /* nothing straight from the learner */
        assert_true(s.version_patched_last > 0);
        assert_int_equal(s.hash_failures, 0);
        assert_int_equal(s.bytes, stats_of(&f->actors[0]).bytes);
    }
    ifl_relay_stats relay;
    ifl_relay_stats_get(f->relays[0], &relay);
    assert_int_equal(relay.bytes_in, learner_bytes(f));
    assert_int_equal(relay.bytes_out, n * relay.bytes_in);
    assert_int_equal(relay.n_children, n);
    return relay.bytes_in;
}

static void test_learner_sends_each_chunk_once_however_many_actors(void **state) {
    (void)state;
    int64_t bytes[2];
    for (int many = 0; many < 2; many++) {
        farm f;
        farm_open(&f, many, PATIENT_MS);
        bytes[many] = three_versions(&f, many ? 4 : 1);
        ifl_server_stats s;
        ifl_server_stats_get(f.server, &s);
        assert_int_equal(s.weight_peers, 1);
        ifl_peer_info infos[8];
        assert_int_equal(ifl_server_peers(f.server, infos, 8), many ? 4 : 1); /* no relay */
        farm_close(&f);
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_true(bytes[0] > 0);
}

/* learner -> relay 0 -> relay 1 (whose learner it is) and relay 2 (which knows both). */
static void test_trees_of_relays(void **state) {
    (void)state;
    farm f;
    farm_open(&f, false, PATIENT_MS);
    farm_relay(&f, 0, -1);
    farm_relay(&f, 1, 0);
    farm_relay_of(&f, 2, -1, NULL, f.relay_endpoints[0]);
    publish(&f, 40);
    for (int i = 0; i < 4; i++)
        farm_actor(&f, f.relay_endpoints[1 + i % 2]);
    all_take(&f);
    for (int v = 0; v < 3; v++) {
        publish(&f, 40);
        all_take(&f);
    }
    ifl_relay_stats first;
    ifl_relay_stats_get(f.relays[0], &first);
    assert_int_equal(learner_bytes(&f), first.bytes_in);
    assert_int_equal(first.bytes_out, 2 * first.bytes_in);
    for (int i = 0; i < 4; i++)
        assert_int_equal(stats_of(&f.actors[i]).relayed_bytes, stats_of(&f.actors[i]).bytes);
    farm_close(&f);
}

static void test_late_actor_gets_everything_from_the_relay(void **state) {
    (void)state;
    farm f;
    farm_open(&f, false, PATIENT_MS);
    farm_relay(&f, 0, -1);
    farm_actor(&f, f.relay_endpoints[0]);
    for (int v = 0; v < 3; v++) {
        publish(&f, 40);
        all_take(&f);
    }
    int64_t before = learner_bytes(&f);
    takes(&f, farm_actor(&f, f.relay_endpoints[0])); /* dense: the relay asks for it once ... */
    int64_t dense = f.model->n_elements * 2;
    assert_int_equal(learner_bytes(&f) - before, dense);
    takes(&f, farm_actor(&f, f.relay_endpoints[0])); /* ... and has it for the next */
    assert_int_equal(learner_bytes(&f) - before, dense);
    farm_close(&f);
}

/* Where relays end, one after the other, actors go on over the next one and at last over the
 * learner; a relay that comes back is used again. */
static void test_relay_that_ends_costs_no_version(void **state) {
    (void)state;
    farm f;
    char list[2 * IFL_ENDPOINT_MAX + 2];
    farm_open(&f, false, 100);
    farm_relay(&f, 0, -1);
    farm_relay(&f, 1, -1);
    snprintf(list, sizeof list, "%s, %s", f.relay_endpoints[0], f.relay_endpoints[1]);
    for (int i = 0; i < 3; i++)
        farm_actor(&f, list);
    publish(&f, 40);
    all_take(&f);
    ifl_relay_stats s;
    ifl_relay_stats_get(f.relays[1], &s);
    assert_int_equal(s.bytes_in, 0); /* the first is preferred */
    farm_stop_relay(&f, 0);
    publish(&f, 40);
    all_take(&f);
    for (int v = 0; v < 200 && s.bytes_in == 0; v++) {
        publish(&f, 40);
        all_take(&f);
        ifl_relay_stats_get(f.relays[1], &s);
    }
    assert_true(s.bytes_in > 0);
    farm_stop_relay(&f, 1);
    publish(&f, 40);
    all_take(&f);
    for (int i = 0; i < 3; i++)
        assert_true(stats_of(&f.actors[i]).relayed_bytes < stats_of(&f.actors[i]).bytes);
    farm_relay(&f, 0, -1); /* at the same place */
    int64_t relayed = stats_of(&f.actors[0]).relayed_bytes;
    for (int v = 0; v < 200 && stats_of(&f.actors[0]).relayed_bytes == relayed; v++) {
        publish(&f, 40);
        all_take(&f);
        ifl_sleep_ms(20);
    }
    assert_true(stats_of(&f.actors[0]).relayed_bytes > relayed);
    farm_close(&f);
}

/* A relay that takes requests and answers none of them, in the middle of a version. */
static void test_stalled_relay_is_passed_over(void **state) {
    (void)state;
    farm f;
    farm_open(&f, true, 50);
    farm_relay(&f, 0, -1);
    one_actor *a = farm_actor(&f, f.relay_endpoints[0]);
    publish(&f, 40);
    takes(&f, a);
    ifl_relay_test_stall(f.relays[0], true);
    for (int v = 0; v < 50 && stats_of(a).relays.late == 0; v++) {
        publish(&f, 40);
        takes(&f, a);
        ifl_sleep_ms(150); /* statistics follow */
    }
    assert_true(stats_of(a).relays.late >= 1);
    assert_true(stats_of(a).relayed_bytes < stats_of(a).bytes);
    ifl_relay_test_stall(f.relays[0], false);
    publish(&f, 40);
    takes(&f, a);
    assert_int_equal(stats_of(a).relays.bans, 0);
    farm_close(&f);
}

/* A relay that alters what it hands on, with a hash of its own beside it. */
static void forged(bool patch) {
    farm f;
    farm_open(&f, false, PATIENT_MS);
    farm_relay(&f, 0, -1);
    one_actor *a = farm_actor(&f, f.relay_endpoints[0]);
    if (patch) {
        publish(&f, 40);
        takes(&f, a);
    }
    ifl_relay_test_forge(f.relays[0], 2, 1 << 30);
    publish(&f, 40);
    takes(&f, a);
    for (int v = 0; v < 3; v++) { /* it is not asked any more */
        publish(&f, 40);
        takes(&f, a);
    }
    ifl_sleep_ms(150);
    ifl_weight_receiver_stats s = stats_of(a);
    assert_int_equal(s.relays.bans, 1);
    assert_int_equal(s.hash_failures, 1);
    assert_true(s.relayed_bytes < s.bytes);
    farm_close(&f);
}

static void test_forged_chunk_bans_its_relay(void **state) {
    (void)state;
    forged(false);
}

static void test_forged_patch_bans_its_relay(void **state) {
    (void)state;
    forged(true);
}

/* A relay above is altered: the one below finds a dense chunk out by itself. */
static void test_relay_does_not_hand_damage_on(void **state) {
    (void)state;
    farm f;
    farm_open(&f, false, PATIENT_MS);
    farm_relay(&f, 0, -1);
    farm_relay_of(&f, 1, -1, NULL, f.relay_endpoints[0]);
    ifl_relay_test_forge(f.relays[0], 1, 1 << 30);
    one_actor *a = farm_actor(&f, f.relay_endpoints[1]);
    publish(&f, 40);
    takes(&f, a);
    ifl_sleep_ms(150);
    assert_int_equal(stats_of(a).hash_failures, 0);
    ifl_relay_stats s;
    ifl_relay_stats_get(f.relays[1], &s);
    assert_int_equal(s.damaged, 1);
    assert_int_equal(s.parents.bans, 1);
    farm_close(&f);
}

static void test_relay_keeps_no_more_than_it_may(void **state) {
    (void)state;
    farm f;
    farm_open(&f, false, PATIENT_MS);
    f.relay_bytes = 80 << 10;
    assert_true(f.relay_bytes < f.model->n_elements * 2);
    farm_relay(&f, 0, -1);
    for (int i = 0; i < 4; i++)
        farm_actor(&f, f.relay_endpoints[0]);
    for (int v = 0; v < 5; v++) {
        publish(&f, v == 3 ? 1 : 40);
        all_take(&f);
    }
    ifl_relay_stats s;
    ifl_relay_stats_get(f.relays[0], &s);
    assert_true(s.bytes_kept_max <= f.relay_bytes);
    assert_true(s.bytes_kept_max > f.relay_bytes / 2);
    assert_true(s.bytes_out > 0);
    farm_close(&f);
}

/* The learner's next process has other weights under numbers that are in use already. */
static void test_restarted_learner_counts_through_a_relay(void **state) {
    (void)state;
    farm f;
    farm_open(&f, false, 100);
    farm_relay(&f, 0, -1);
    farm_relay(&f, 1, 0);
    one_actor *a = farm_actor(&f, f.relay_endpoints[1]);
    for (int v = 0; v < 3; v++) {
        publish(&f, 40);
        takes(&f, a);
    }
    ifl_error err = {0};
    ifl_publisher_free(f.publisher);
    /* Another process in its place: sessions end without a BYE, the next ones are of its epoch. */
    ifl_server_set_run(f.server, "0123456789abcdef0123456789abcdef", 2);
    must(ifl_publisher_create(&f.publisher, f.model, f.server, CHUNK_BYTES, 16, 0, &err), &err);
    f.version = 1;
    publish(&f, 3);
    a->current = NULL;
    ifl_weights *w;
    ifl_hash content;
    must(ifl_weight_receiver_wait(a->receiver, WAIT_MS, &w, &err), &err);
    ifl_publisher_version(f.publisher, NULL, &content);
    assert_int_equal(w->version, 2);
    assert_true(ifl_hash_equal(ifl_weights_hash(w), content));
    assert_int_equal(stats_of(a).hash_failures, 0);
    farm_close(&f);
}

/* Another run's relay, by mistake: nothing it has is of use, and nothing waits for it. */
static void test_relay_of_another_run_is_of_no_use(void **state) {
    (void)state;
    farm f, other;
    farm_open(&f, false, 100);
    farm_open(&other, false, 100);
    farm_relay(&other, 0, -1);
    publish(&other, 40);
    other.version = 1;
    publish(&other, 7);
    one_actor *a = farm_actor(&f, other.relay_endpoints[0]);
    for (int v = 0; v < 2; v++) {
        publish(&f, 40);
        takes(&f, a);
    }
    assert_int_equal(stats_of(a).relayed_bytes, 0);
    assert_int_equal(stats_of(a).hash_failures, 0);
    farm_close(&f);
    farm_close(&other);
}

static void test_relay_is_no_learner(void **state) {
    (void)state;
    farm f;
    ifl_error err = {0};
    farm_open(&f, false, 100);
    farm_relay(&f, 0, -1);
    ifl_client *client;
    ifl_client_options co = {.connect = f.relay_endpoints[0], .name = "lost", .held_version = -1};
    co.fingerprint = f.model->fingerprint;
    co.profile = f.model->profile;
    must(ifl_client_create(&client, &co, &err), &err);
    ifl_client_event e;
    assert_int_equal(ifl_client_poll(client, WAIT_MS, &e, NULL), IFL_OK);
    assert_int_equal(e.kind, IFL_CLIENT_REFUSED);
    assert_non_null(strstr(e.text, "transport.relays"));
    ifl_client_event_clear(&e);
    ifl_client_free(client);
    farm_close(&f);
}

static void test_lists_of_relays_are_checked(void **state) {
    (void)state;
    static const char *const bad[] = {"tcp://10.0.0.1:5555", "rack=", "rack=http://x:1",
                                      "../x=ipc:///tmp/x",
                                      "ipc:///a,ipc:///b,ipc:///c,ipc:///d,ipc:///e,ipc:///f,"
                                      "ipc:///g,ipc:///h,ipc:///i"};
    ifl_error err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ifl_weight_links_options o = {.relays = bad[i]};
        assert_int_not_equal(ifl_weight_links_check(&o, &err), IFL_OK);
    }
    ifl_weight_links_options good = {.relays = "rack1=tcp://10.0.0.1:5560, ipc:///tmp/x",
                                     .insecure = true};
    must(ifl_weight_links_check(&good, &err), &err);
    good.keys = "/nowhere";
    assert_int_not_equal(ifl_weight_links_check(&good, &err), IFL_OK);
}

int main(void) {
    ifl_log_setup("test", getenv("IFL_TEST_LOG") ? IFL_LOG_INFO : IFL_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learner_sends_each_chunk_once_however_many_actors),
        cmocka_unit_test(test_trees_of_relays),
        cmocka_unit_test(test_late_actor_gets_everything_from_the_relay),
        cmocka_unit_test(test_relay_that_ends_costs_no_version),
        cmocka_unit_test(test_stalled_relay_is_passed_over),
        cmocka_unit_test(test_forged_chunk_bans_its_relay),
        cmocka_unit_test(test_forged_patch_bans_its_relay),
        cmocka_unit_test(test_relay_does_not_hand_damage_on),
        cmocka_unit_test(test_relay_keeps_no_more_than_it_may),
        cmocka_unit_test(test_restarted_learner_counts_through_a_relay),
        cmocka_unit_test(test_relay_of_another_run_is_of_no_use),
        cmocka_unit_test(test_relay_is_no_learner),
        cmocka_unit_test(test_lists_of_relays_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

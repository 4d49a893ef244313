/* common/transport.h: sessions, leases and trajectories over real sockets, and what happens when a
 * side vanishes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/transport.h"

#define VOCAB 100
#define WAIT_MS 10000

static ifl_server_options server_options(const char *bind) {
    ifl_server_options o = {
        .bind = bind, .heartbeat_ms = 250, .heartbeat_misses = 12, .lease_s = 60};
    o.vocab_size = VOCAB;
    o.fingerprint = (ifl_hash){1, 1};
    o.profile = (ifl_hash){2, 2};
    o.tokenizer = (ifl_hash){3, 3};
    strcpy(o.run_uuid, "00112233445566778899aabbccddeeff");
    return o;
}

static ifl_client_options client_options(const char *connect, const char *name) {
    ifl_client_options o = {.connect = connect, .name = name, .build = "test", .held_version = -1};
    o.connect_deadline_ms = WAIT_MS;
    o.fingerprint = (ifl_hash){1, 1};
    o.profile = (ifl_hash){2, 2};
    o.tokenizer = (ifl_hash){3, 3};
    return o;
}

static ifl_server *start_server(const ifl_server_options *options) {
    ifl_server *s = NULL;
    ifl_error err = {0};
    if (ifl_server_create(&s, options, &err) != IFL_OK) fail_msg("%s", err.text);
    return s;
}

static ifl_client *start_client(const ifl_client_options *options) {
    ifl_client *c = NULL;
    ifl_error err = {0};
    if (ifl_client_create(&c, options, &err) != IFL_OK) fail_msg("%s", err.text);
    return c;
}

/* The next event of that kind (STATS and the like in between are not expected here: everything
 * counts). */
static void want_server(ifl_server *s, ifl_server_event_kind kind, int type,
                        ifl_server_event *event) {
    ifl_error err = {0};
    if (ifl_server_poll(s, WAIT_MS, event, &err) != IFL_OK)
        fail_msg("no event (wanted %d %d)", kind, type);
    if (event->kind != kind || (type && (int)event->message.type != type))
        fail_msg("event %d %s \"%s\", wanted %d %s", event->kind,
                 ifl_wire_type_name((int)event->message.type), event->text, kind,
                 ifl_wire_type_name(type));
}

static void want_client(ifl_client *c, ifl_client_event_kind kind, int type,
                        ifl_client_event *event) {
    ifl_error err = {0};
    if (ifl_client_poll(c, WAIT_MS, event, &err) != IFL_OK)
        fail_msg("no event (wanted %d %d)", kind, type);
    if (event->kind != kind || (type && (int)event->message.type != type))
        fail_msg("event %d %s \"%s\", wanted %d %s", event->kind,
                 ifl_wire_type_name((int)event->message.type), event->text, kind,
                 ifl_wire_type_name(type));
}

static uint64_t join(ifl_server *s, ifl_client *c) {
    ifl_server_event se;
    ifl_client_event ce;
    want_server(s, IFL_SERVER_JOINED, 0, &se);
    want_client(c, IFL_CLIENT_CONNECTED, IFL_WIRE_WELCOME, &ce);
    uint64_t peer = se.peer;
    assert_true(peer == ce.message.welcome.session);
    ifl_server_event_clear(&se);
    ifl_client_event_clear(&ce);
    return peer;
}

static ifl_message make_lease(const int32_t *samples, const int32_t *prompt) {
    ifl_message m = ifl_message_make(IFL_WIRE_LEASE);
    m.lease = (ifl_wire_lease){.lease_id = 5,
                               .task_serial = 9,
                               .group_size = 4,
                               .n_samples = 2,
                               .samples = samples,
                               .n_prompt = 3,
                               .prompt = prompt,
                               .checker = "numeric",
                               .answer = "42",
                               .text = "6 * 7 =",
                               .temperature = 1.0f,
                               .top_p = 1.0f,
                               .max_new_tokens = 16,
                               .n_stops = 1,
                               .stops = {"\n"},
                               .seed = 11,
                               .required_version = -1};
    return m;
}

static ifl_trajectory *make_trajectory(uint64_t serial, int32_t sample) {
    ifl_trajectory *t;
    int32_t prompt[3] = {1, 2, 3};
    assert_int_equal(ifl_trajectory_create(&t, prompt, 3, NULL), IFL_OK);
    t->task_serial = serial;
    t->sample = sample;
    t->group_size = 4;
    t->lease_id = 5;
    for (int i = 0; i < 8; i++)
        assert_int_equal(ifl_trajectory_append(t, 10 + i, -0.5f, 3, NULL), IFL_OK);
    t->finish = IFL_FINISH_EOS;
    return t;
}

static void send_trajectory(ifl_client *c, uint64_t serial, int32_t sample) {
    ifl_error err = {0};
    ifl_trajectory *t = make_trajectory(serial, sample);
    if (ifl_client_send_trajectory(c, t, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_trajectory_free(t);
}

static void wait_outbox(ifl_client *c, int32_t n_want) {
    int32_t n = -1;
    for (int i = 0; i < WAIT_MS / 5; i++) {
        ifl_client_outbox(c, &n, NULL);
        if (n == n_want) return;
        ifl_sleep_ms(5);
    }
    fail_msg("outbox holds %d, wanted %d", n, n_want);
}

static void ack(ifl_server *s, const ifl_server_event *event, ifl_ack_status status) {
    ifl_error err = {0};
    if (ifl_server_ack(s, event->peer, event->message.traj.trajectory, status, &err) != IFL_OK)
        fail_msg("%s", err.text);
}

/* --- join, lease, trajectory, ack, bye -------------------------------------------------------- */

static void round_trip(const char *bind) {
    ifl_server_options so = server_options(bind);
    ifl_server *s = start_server(&so);
    ifl_client_options co = client_options(ifl_server_endpoint(s), "actor-1");
    ifl_client *c = start_client(&co);
    uint64_t peer = join(s, c);

    int32_t samples[2] = {0, 3}, prompt[3] = {7, 8, 9};
    ifl_message lease = make_lease(samples, prompt);
    ifl_error err = {0};
    assert_int_equal(ifl_server_send(s, peer, &lease, &err), IFL_OK);
    ifl_client_event ce;
    want_client(c, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &ce);
    const ifl_wire_lease *l = &ce.message.lease;
    assert_true(l->n_prompt == 3 && l->prompt[2] == 9 && l->n_samples == 2 && l->samples[1] == 3);
    assert_string_equal(l->answer, "42");
    assert_string_equal(l->meta, "");
    assert_string_equal(l->text, "6 * 7 =");
    assert_string_equal(l->stops[0], "\n");
    ifl_client_event_clear(&ce);

    send_trajectory(c, 9, 0);
    ifl_server_event se;
    want_server(s, IFL_SERVER_MESSAGE, IFL_WIRE_TRAJ, &se);
    assert_true(se.peer == peer && se.message.traj.trajectory->n_tokens == 11);
    assert_string_equal(se.name, "actor-1");
    wait_outbox(c, 1); /* not before the answer */
    ack(s, &se, IFL_ACK_STORED);
    ifl_server_event_clear(&se);
    want_client(c, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &ce);
    assert_int_equal(ce.message.traj_ack.status, IFL_ACK_STORED);
    ifl_client_event_clear(&ce);
    wait_outbox(c, 0);

    ifl_wire_stat stat = {"tokens_per_s", 123.5};
    ifl_message stats = ifl_message_make(IFL_WIRE_STATS);
    stats.stats = (ifl_wire_stats){1, &stat};
    assert_int_equal(ifl_client_send(c, &stats, &err), IFL_OK);
    want_server(s, IFL_SERVER_MESSAGE, IFL_WIRE_STATS, &se);
    assert_true(se.message.stats.n == 1 && se.message.stats.entries[0].value == 123.5);
    ifl_server_event_clear(&se);

    ifl_client_progress(c, 17, 2, 3);
    ifl_peer_info info;
    for (int i = 0; i < 200; i++) {
        assert_int_equal(ifl_server_peers(s, &info, 1), 1);
        if (info.progress == 17 && info.weights_open) break;
        ifl_sleep_ms(10);
    }
    assert_true(info.progress == 17 && info.phase == 2 && info.n_queued == 3 && info.weights_open);

    ifl_client_free(c);
    want_server(s, IFL_SERVER_MESSAGE, IFL_WIRE_BYE, &se);
    ifl_server_event_clear(&se);
    want_server(s, IFL_SERVER_LOST, 0, &se);
    assert_int_equal(ifl_server_send(s, peer, &lease, &err), IFL_PEER);
    ifl_server_free(s);
}

static void test_round_trip_over_tcp(void **state) {
    (void)state;
    round_trip("tcp://127.0.0.1:*");
}

static void test_round_trip_over_ipc(void **state) {
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "ipc:///tmp/ifl-test-%d.sock", (int)getpid());
    round_trip(path);
    unlink(path + 6);
    strcat(path, ".w");
    unlink(path + 6);
}

static void test_weights_endpoint_is_the_next_port(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:0");
    ifl_server *s = start_server(&so);
    char want[IFL_ENDPOINT_MAX];
    assert_int_equal(ifl_endpoint_weights(ifl_server_endpoint(s), want, NULL), IFL_OK);
    assert_string_equal(ifl_server_weights_endpoint(s), want);
    ifl_server *second = NULL;
    ifl_error err = {0};
    ifl_server_options again = server_options(ifl_server_endpoint(s));
    assert_int_equal(ifl_server_create(&second, &again, &err),
                     IFL_IO); /* the port is taken: says so */
    assert_non_null(strstr(err.text, ifl_server_endpoint(s)));
    ifl_server_free(s);
}

/* --- refusals --------------------------------------------------------------------------------- */

static void test_non_loopback_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"tcp://0.0.0.0:5555",
                                      "tcp://*:5555",
                                      "tcp://192.168.1.2:5555",
                                      "tcp://[::]:5555",
                                      "tcp://example.org:5555",
                                      "tcp://eth0:5555",
                                      "udp://127.0.0.1:1",
                                      "inproc://x",
                                      "tcp://127.0.0.1",
                                      "tcp://127.0.0.1:99999",
                                      "tcp://127.0.0.1:x",
                                      "ipc://",
                                      ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ifl_server_options so = server_options(bad[i]);
        ifl_server *s = NULL;
        ifl_client *c = NULL;
        ifl_error err = {0};
        if (ifl_server_create(&s, &so, &err) != IFL_USAGE) fail_msg("%s was bound", bad[i]);
        ifl_client_options co = client_options(bad[i], "a");
        if (ifl_client_create(&c, &co, &err) != IFL_USAGE) fail_msg("%s was connected", bad[i]);
    }
    static const char *const good[] = {"tcp://127.0.0.1:5555", "tcp://127.9.9.9:1",
                                       "tcp://localhost:5555", "tcp://[::1]:5555",
                                       "ipc:///tmp/x",         "tcp://127.0.0.1:*"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(ifl_endpoint_check(good[i], false, NULL), IFL_OK);
}

static void test_wrong_hashes_are_rejected_naming_both(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    ifl_server *s = start_server(&so);
    for (int which = 0; which < 3; which++) {
        ifl_client_options co = client_options(ifl_server_endpoint(s), "stranger");
        ifl_hash other = {0xabc, 0xdef};
        if (which == 0) co.fingerprint = other;
        if (which == 1) co.profile = other;
        if (which == 2) co.tokenizer = other;
        ifl_client *c = start_client(&co);
        ifl_client_event ce;
        want_client(c, IFL_CLIENT_REFUSED, 0, &ce);
        char theirs[33], ours[33];
        ifl_hash_text(other, theirs);
        ifl_hash_text((ifl_hash){(uint64_t)which + 1, (uint64_t)which + 1}, ours);
        assert_non_null(strstr(ce.text, theirs));
        assert_non_null(strstr(ce.text, ours));
        ifl_client_event_clear(&ce);
        ifl_client_free(c);
    }
    ifl_server_event se;
    assert_int_equal(ifl_server_poll(s, 0, &se, NULL), IFL_AGAIN);
    ifl_server_free(s);
}

static void test_another_profile_is_refused_by_part_or_admitted_on_request(void **state) {
    (void)state;
    for (int admit = 0; admit < 2; admit++) {
        ifl_server_options so = server_options("tcp://127.0.0.1:*");
        so.parts = (ifl_profile_parts){.n = 2, .part = {{"orders", 1}, {"rope table", 2}}};
        so.admit_foreign = admit == 1;
        ifl_server *s = start_server(&so);
        ifl_client_options co = client_options(ifl_server_endpoint(s), "stranger");
        co.parts = so.parts;
        co.parts.part[1].hash = 3;
        co.profile = (ifl_hash){0xabc, 0xdef};
        ifl_client *c = start_client(&co);
        ifl_client_event ce;
        if (admit) {
            want_client(c, IFL_CLIENT_CONNECTED, 0, &ce);
            assert_true(ce.message.welcome.caps & IFL_WIRE_CAP_FOREIGN);
        } else {
            want_client(c, IFL_CLIENT_REFUSED, 0, &ce);
            assert_non_null(strstr(ce.text, "differing: rope table)"));
            assert_non_null(strstr(ce.text, "parity.mismatch"));
        }
        ifl_client_event_clear(&ce);
        ifl_client_free(c);
        /* Other weights or another tokenizer are no matter of rounding: never admitted. */
        co = client_options(ifl_server_endpoint(s), "other");
        co.fingerprint = (ifl_hash){9, 9};
        c = start_client(&co);
        want_client(c, IFL_CLIENT_REFUSED, 0, &ce);
        ifl_client_event_clear(&ce);
        ifl_client_free(c);
        /* One of the learner's own profile is no stranger. */
        co = client_options(ifl_server_endpoint(s), "own");
        co.parts = so.parts;
        c = start_client(&co);
        want_client(c, IFL_CLIENT_CONNECTED, 0, &ce);
        assert_false(ce.message.welcome.caps & IFL_WIRE_CAP_FOREIGN);
        ifl_client_event_clear(&ce);
        ifl_client_free(c);
        ifl_server_free(s);
    }
}

static void test_no_learner_ends_in_gone(void **state) {
    (void)state;
    ifl_client_options co = client_options("tcp://127.0.0.1:9", "lonely");
    co.connect_deadline_ms = 200;
    ifl_client *c = start_client(&co);
    ifl_client_event ce;
    want_client(c, IFL_CLIENT_GONE, 0, &ce);
    ifl_client_free(c);
}

static void test_invalid_trajectory_gets_nack_and_three_end_the_session(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    ifl_server *s = start_server(&so);
    ifl_client_options co = client_options(ifl_server_endpoint(s), "liar");
    ifl_client *c = start_client(&co);
    join(s, c);
    ifl_error err = {0};
    ifl_client_event ce;
    for (int i = 0; i < 3; i++) {
        ifl_trajectory *t = make_trajectory(9, i);
        t->logprobs[5] = 0.25f; /* a probability above 1 */
        assert_int_equal(ifl_client_send_trajectory(c, t, &err), IFL_OK);
        ifl_trajectory_free(t);
        if (i == 2) break; /* this NACK drowns in the end of the session */
        want_client(c, IFL_CLIENT_MESSAGE, IFL_WIRE_NACK, &ce);
        assert_int_equal(ce.message.nack.code, IFL_NACK_INVALID);
        assert_int_equal(ce.message.nack.key.sample, i);
        ifl_client_event_clear(&ce);
    }
    ifl_server_event se;
    want_server(s, IFL_SERVER_LOST, 0, &se);
    ifl_server_stats stats;
    ifl_server_stats_get(s, &stats);
    assert_int_equal(stats.trajectories_refused, 3);
    ifl_client_free(c);
    ifl_server_free(s);
}

/* --- vanishing -------------------------------------------------------------------------------- */

/* A plain socket that says HELLO like an actor and then does what the test wants. */
typedef struct raw_actor {
    void *zmq, *socket;
    uint8_t identity[16];
    uint64_t session, ack;
} raw_actor;

static void raw_send(raw_actor *a, const ifl_message *m, uint64_t seq, bool more_parts) {
    ifl_wire_frames f;
    assert_int_equal(ifl_wire_encode(m, &f, NULL), IFL_OK);
    ifl_wire_header h = {.major = 1,
                         .type = f.type,
                         .n_meta = (uint32_t)f.n_meta,
                         .n_payload = f.n_payload,
                         .session = a->session,
                         .seq = seq,
                         .ack = a->ack,
                         .policy = -1};
    uint8_t head[64];
    ifl_wire_header_encode(&h, f.meta, head);
    zmq_send(a->socket, head, 64, ZMQ_SNDMORE);
    zmq_send(a->socket, f.meta, f.n_meta, f.n_payload || more_parts ? ZMQ_SNDMORE : 0);
    if (f.n_payload) zmq_send(a->socket, f.payload, f.n_payload, more_parts ? ZMQ_SNDMORE : 0);
    ifl_wire_frames_clear(&f);
}

static bool raw_receive(raw_actor *a, ifl_message *m) {
    uint8_t head[64], meta[65536];
    int n_head = zmq_recv(a->socket, head, sizeof head, 0);
    if (n_head < 0) return false;
    int n_meta = zmq_recv(a->socket, meta, sizeof meta, 0);
    ifl_wire_header h;
    assert_int_equal(ifl_wire_header_decode(&h, head, (size_t)n_head, meta, (size_t)n_meta, NULL),
                     IFL_OK);
    assert_int_equal(ifl_wire_decode(m, &h, meta, (size_t)n_meta, NULL, 0, NULL), IFL_OK);
    return true;
}

static void raw_join_as(raw_actor *a, ifl_server *s, uint8_t mark, uint16_t minor) {
    a->zmq = zmq_ctx_new();
    a->socket = zmq_socket(a->zmq, ZMQ_DEALER);
    memset(a->identity, mark, 16);
    a->session = a->ack = 0;
    int zero = 0, wait = 5000;
    zmq_setsockopt(a->socket, ZMQ_ROUTING_ID, a->identity, 16);
    zmq_setsockopt(a->socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(a->socket, ZMQ_RCVTIMEO, &wait, sizeof wait);
    assert_int_equal(zmq_connect(a->socket, ifl_server_endpoint(s)), 0);
    ifl_message m = ifl_message_make(IFL_WIRE_HELLO);
    m.hello.major = 1;
    m.hello.minor_max = minor;
    m.hello.fingerprint = (ifl_hash){1, 1};
    m.hello.profile = (ifl_hash){2, 2};
    m.hello.tokenizer = (ifl_hash){3, 3};
    m.hello.held_version = -1;
    memcpy(m.hello.incarnation, a->identity, 16);
    strcpy(m.hello.name, "raw");
    raw_send(a, &m, 1, false);
    ifl_message reply;
    assert_true(raw_receive(a, &reply));
    assert_int_equal(reply.type, IFL_WIRE_WELCOME);
    a->session = reply.session;
    ifl_message_clear(&reply);
    ifl_server_event se;
    want_server(s, IFL_SERVER_JOINED, 0, &se);
    assert_true(se.peer == a->session);
}

static void raw_join(raw_actor *a, ifl_server *s, uint8_t mark) {
    raw_join_as(a, s, mark, 0);
}

static void raw_leave(raw_actor *a) {
    zmq_close(a->socket);
    zmq_ctx_term(a->zmq);
}

static void test_silent_actor_is_lost_within_its_heartbeats(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    so.heartbeat_ms = 100;
    so.heartbeat_misses = 4;
    ifl_server *s = start_server(&so);
    raw_actor a;
    raw_join(&a, s, 0x41);
    int64_t before = ifl_clock_ns();
    ifl_server_event se; /* the link stays up, but nothing comes: a stopped process */
    want_server(s, IFL_SERVER_LOST, 0, &se);
    double seconds = (double)(ifl_clock_ns() - before) * 1e-9;
    assert_true(se.peer == a.session);
    assert_true(seconds > 0.25 &&
                seconds < 5.0); /* 4 heartbeats of 100 ms, with room for a busy machine */
    /* What it says afterwards is fenced. */
    ifl_message ping = ifl_message_make(IFL_WIRE_PING), reply;
    assert_true(raw_receive(&a, &reply)); /* the ERROR of the loss itself */
    assert_int_equal(reply.type, IFL_WIRE_ERROR);
    raw_send(&a, &ping, 1, false);
    assert_true(raw_receive(&a, &reply));
    assert_int_equal(reply.type, IFL_WIRE_ERROR);
    assert_int_equal(reply.error.code, IFL_WIRE_E_FENCED);
    raw_leave(&a);
    ifl_server_free(s);
}

static void test_vanished_actor_is_lost_and_others_stay(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    so.heartbeat_ms = 100;
    so.heartbeat_misses = 10;
    ifl_server *s = start_server(&so);
    ifl_client_options co = client_options(ifl_server_endpoint(s), "stays");
    ifl_client *c = start_client(&co);
    uint64_t stays = join(s, c);
    raw_actor a;
    raw_join(&a, s, 0x42);
    raw_leave(&a); /* like SIGKILL: no BYE */
    ifl_server_event se;
    want_server(s, IFL_SERVER_LOST, 0, &se);
    assert_true(se.peer == a.session);
    ifl_peer_info info;
    assert_int_equal(ifl_server_peers(s, &info, 1), 1);
    assert_true(info.peer == stays);
    ifl_client_free(c);
    ifl_server_free(s);
}

static void test_restarted_learner_gets_the_outbox_again(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    ifl_server *s = start_server(&so);
    char endpoint[IFL_ENDPOINT_MAX];
    snprintf(endpoint, sizeof endpoint, "%s", ifl_server_endpoint(s));
    ifl_client_options co = client_options(endpoint, "actor-1");
    ifl_client *c = start_client(&co);
    uint64_t first = join(s, c);
    send_trajectory(c, 1, 0);
    send_trajectory(c, 1, 1);
    ifl_server_event se;
    for (int i = 0; i < 2; i++) {
        want_server(s, IFL_SERVER_MESSAGE, IFL_WIRE_TRAJ, &se);
        if (i == 0) ack(s, &se, IFL_ACK_STORED); /* the second stays unanswered */
        ifl_server_event_clear(&se);
    }
    wait_outbox(c, 1);
    /* The session ends without a BYE (DONE), as it would when the process dies. */
    ifl_server_close_peer(s, first, IFL_WIRE_E_FENCED, "test");
    want_server(s, IFL_SERVER_LOST, 0, &se);
    ifl_server_free(s);
    send_trajectory(c, 1, 2); /* made while there is no learner */

    so = server_options(endpoint);
    so.run_epoch = 2;
    s = start_server(&so);
    want_server(s, IFL_SERVER_JOINED, 0, &se);
    uint64_t second = se.peer;
    assert_true(second != first);
    for (int i = 1; i < 3; i++) {
        want_server(s, IFL_SERVER_MESSAGE, IFL_WIRE_TRAJ, &se);
        assert_int_equal(se.message.traj.trajectory->sample, i);
        ack(s, &se, i == 1 ? IFL_ACK_DUPLICATE : IFL_ACK_STORED);
        ifl_server_event_clear(&se);
    }
    wait_outbox(c, 0);
    ifl_client_event ce;
    want_client(c, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &ce);
    want_client(c, IFL_CLIENT_LOST, 0, &ce);
    want_client(c, IFL_CLIENT_CONNECTED, IFL_WIRE_WELCOME, &ce);
    assert_int_equal(ce.message.welcome.run_epoch, 2);
    want_client(c, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &ce);
    assert_int_equal(ce.message.traj_ack.status, IFL_ACK_DUPLICATE);
    want_client(c, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &ce);
    ifl_server_free(s); /* an orderly end ... */
    want_client(c, IFL_CLIENT_MESSAGE, IFL_WIRE_BYE, &ce);
    assert_int_equal(ce.message.bye.code, IFL_BYE_DONE); /* ... ends the client for good */
    assert_int_equal(ifl_client_poll(c, 300, &ce, NULL), IFL_AGAIN);
    ifl_client_free(c);
}

static void test_full_outbox_and_full_queue_push_back_and_lose_nothing(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    so.events_max = 8; /* trajectories are taken up to 6 */
    ifl_server *s = start_server(&so);
    ifl_client_options co = client_options(ifl_server_endpoint(s), "fast");
    co.outbox_bytes_max = 12 * 800;
    ifl_client *c = start_client(&co);
    uint64_t peer = join(s, c);
    (void)peer;
    ifl_error err = {0};
    int n = 0;
    while (true) {
        ifl_trajectory *t = make_trajectory((uint64_t)n, 0);
        ifl_status st = ifl_client_send_trajectory(c, t, &err);
        ifl_trajectory_free(t);
        if (st == IFL_FULL) break;
        assert_int_equal(st, IFL_OK);
        assert_true(++n < 100);
    }
    assert_true(n > 8);
    ifl_sleep_ms(200); /* the surplus is refused as BUSY meanwhile, and sent again later */
    bool seen[100] = {false};
    for (int i = 0; i < n; i++) {
        ifl_server_event se;
        want_server(s, IFL_SERVER_MESSAGE, IFL_WIRE_TRAJ, &se);
        assert_false(seen[se.message.traj.trajectory->task_serial]);
        seen[se.message.traj.trajectory->task_serial] = true;
        ack(s, &se, IFL_ACK_STORED);
        ifl_server_event_clear(&se);
    }
    wait_outbox(c, 0);
    ifl_server_stats stats;
    ifl_server_stats_get(s, &stats);
    assert_true(stats.trajectories_busy > 0);
    ifl_client_free(c);
    ifl_server_free(s);
}

/* --- bytes outstanding -------------------------------------------------------------------------
 */

#define LEASE_TEXT_BYTES 65536

/* Sends leases until none is taken any more. Returns how many were. */
static int send_leases(ifl_server *s, uint64_t peer, ifl_error *err) {
    static char text[LEASE_TEXT_BYTES + 1];
    memset(text, 'x', LEASE_TEXT_BYTES);
    int32_t samples[2] = {0, 1}, prompt[3] = {1, 2, 3};
    ifl_message lease = make_lease(samples, prompt);
    lease.lease.text = text;
    int n = 0;
    for (int idle = 0; idle < 30 && n < 3000;) {
        if (ifl_server_send(s, peer, &lease, err) == IFL_OK) {
            n++;
            idle = 0;
        } else { /* what waits goes on its way meanwhile, if it may */
            idle++;
            ifl_sleep_ms(10);
        }
    }
    return n;
}

/* An actor that is stuck: it lives and takes nothing in. */
static void test_stuck_actor_pins_no_more_than_its_bytes(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    so.heartbeat_misses = 100;
    so.send_bytes_max = so.unacked_bytes_max = 16 * LEASE_TEXT_BYTES;
    ifl_server *s = start_server(&so);
    raw_actor a;
    raw_join(&a, s, 0x71);
    ifl_error err = {0};
    int n = send_leases(s, a.session, &err);
    assert_true(n >= 16 &&
                n <= 32); /* half of them on their way, libzmq's and the system's queues included */
    assert_non_null(strstr(err.text, "has yet to say that it has received"));
    ifl_peer_info info;
    assert_int_equal(ifl_server_peers(s, &info, 1), 1);
    assert_true(info.unacked_bytes > 0 && info.unacked_bytes <= so.unacked_bytes_max);
    /* It says how far it has come, and gets as much again. */
    for (int i = 0; i < n; i++) {
        ifl_message ping = ifl_message_make(IFL_WIRE_PING);
        char frame[256];
        int more = 1;
        for (size_t size = sizeof more; more;) {
            assert_true(zmq_recv(a.socket, frame, sizeof frame, 0) >= 0);
            zmq_getsockopt(a.socket, ZMQ_RCVMORE, &more, &size);
        }
        if (i + 1 < info.unacked_bytes / LEASE_TEXT_BYTES) continue;
        a.ack = 1 + (uint64_t)i + 1; /* WELCOME was the first */
        raw_send(&a, &ping, 1, false);
        break;
    }
    assert_true(send_leases(s, a.session, &err) >= 8);
    raw_leave(&a);
    ifl_server_free(s);
}

static void test_actor_sends_no_more_than_it_was_granted(void **state) {
    (void)state;
    ifl_server_options so = server_options("ipc://@ifl-credit-grant");
    so.trajectory_bytes_max = 6000;
    ifl_server *s = start_server(&so);
    ifl_client_options co = client_options(ifl_server_endpoint(s), "fast");
    ifl_client *c = start_client(&co);
    join(s, c);
    enum { N = 60 };
    for (int i = 0; i < N; i++)
        send_trajectory(c, (uint64_t)i, 0);
    int32_t n_out;
    int64_t all_bytes;
    ifl_client_outbox(c, &n_out, &all_bytes);
    assert_int_equal(n_out, N);
    assert_true(all_bytes > 3 * so.trajectory_bytes_max);
    ifl_sleep_ms(300);
    ifl_server_stats stats;
    ifl_peer_info info;
    ifl_server_stats_get(s, &stats);
    assert_int_equal(ifl_server_peers(s, &info, 1), 1);
    assert_true(stats.trajectories_in > 1);
    assert_true(stats.trajectories_in * (all_bytes / N) <= so.trajectory_bytes_max);
    assert_true(info.unanswered_bytes > 0 && info.unanswered_bytes <= so.trajectory_bytes_max);
    /* Each answer lets others through; nothing is lost, refused or sent twice. */
    for (int i = 0; i < N; i++) {
        ifl_server_event se;
        want_server(s, IFL_SERVER_MESSAGE, IFL_WIRE_TRAJ, &se);
        assert_int_equal(se.message.traj.trajectory->task_serial, i);
        ack(s, &se, IFL_ACK_STORED);
        ifl_server_event_clear(&se);
    }
    wait_outbox(c, 0);
    ifl_server_stats_get(s, &stats);
    assert_true(stats.trajectories_in == N && stats.trajectories_busy == 0);
    assert_int_equal(ifl_server_peers(s, &info, 1), 1);
    assert_int_equal(info.unanswered_bytes, 0);
    ifl_client_free(c);
    ifl_server_free(s);
}

/* What one that doesn't keep to its grant may do: some 32 MiB, and not a byte more. One of 1.3
 * knows of no grant. */
static void test_actor_beyond_its_grant_is_turned_away(void **state) {
    (void)state;
    for (uint16_t minor = 3; minor <= 4; minor++) {
        ifl_server_options so = server_options("tcp://127.0.0.1:*");
        so.heartbeat_misses = 100;
        so.trajectory_bytes_max = 1 << 20;
        ifl_server *s = start_server(&so);
        raw_actor a;
        raw_join_as(&a, s, 0x72, minor);
        ifl_message m = ifl_message_make(IFL_WIRE_TRAJ);
        m.traj.trajectory = make_trajectory(9, 0);
        for (int i = 0; i < 500000; i++)
            assert_int_equal(ifl_trajectory_append(m.traj.trajectory, 10, -0.5f, 3, NULL), IFL_OK);
        for (uint64_t i = 0; i < 8; i++)
            raw_send(&a, &m, i + 1, false);
        ifl_trajectory_free(m.traj.trajectory);
        int n_taken = 0;
        ifl_server_event se = {0};
        while (n_taken < 8) {
            assert_int_equal(ifl_server_poll(s, WAIT_MS, &se, NULL), IFL_OK);
            if (se.kind != IFL_SERVER_MESSAGE) break;
            assert_int_equal(se.message.type, IFL_WIRE_TRAJ);
            n_taken++;
            ifl_server_event_clear(&se);
        }
        assert_int_equal(n_taken, minor == 4 ? 5 : 8); /* of 6 MB each */
        if (minor == 4) {
            assert_int_equal(se.kind, IFL_SERVER_LOST);
            assert_non_null(strstr(se.text, "transport.trajectory_mib"));
        }
        raw_leave(&a);
        ifl_server_free(s);
    }
}

/* --- hostile peers ---------------------------------------------------------------------------- */

static void test_bad_messages_close_that_peer_alone(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    so.heartbeat_ms = 100;
    so.heartbeat_misses = 15;
    ifl_server *s = start_server(&so);
    ifl_client_options co = client_options(ifl_server_endpoint(s), "honest");
    ifl_client *c = start_client(&co);
    uint64_t honest = join(s, c);
    for (int which = 0; which < 6; which++) {
        raw_actor a;
        ifl_server_event se;
        ifl_message reply, m = ifl_message_make(IFL_WIRE_PING);
        raw_join(&a, s, (uint8_t)(0x50 + which));
        int32_t want = IFL_WIRE_E_MALFORMED;
        switch (which) {
        case 0:
            zmq_send(a.socket, "rubbish", 7, 0);
            break;
        case 1:
            raw_send(&a, &m, 1, true);
            zmq_send(a.socket, "surplus", 7, 0);
            break; /* a PING has no payload */
        case 2:
            raw_send(&a, &m, 2, false);
            want = IFL_WIRE_E_SEQUENCE;
            break; /* one was lost */
        case 3: {  /* a learner's message */
            int32_t samples[2] = {0, 1}, prompt[3] = {1, 2, 3};
            m = make_lease(samples, prompt);
            raw_send(&a, &m, 1, false);
            want = IFL_WIRE_E_TYPE;
            break;
        }
        case 4: { /* parts without end */
            uint8_t byte = 0;
            for (int i = 0; i < 50; i++)
                zmq_send(a.socket, &byte, 1, i < 49 ? ZMQ_SNDMORE : 0);
            break;
        }
        case 5: { /* far beyond ZMQ_MAXMSGSIZE: the link is cut, nothing is allocated for it */
            size_t n = (size_t)40 << 20;
            uint8_t *big = calloc(1, n);
            zmq_send(a.socket, big, n, 0);
            free(big);
            want = 0;
            break;
        }
        }
        want_server(s, IFL_SERVER_LOST, 0, &se); /* the oversized one by silence */
        assert_true(se.peer == a.session);
        if (want) {
            assert_true(raw_receive(&a, &reply));
            assert_int_equal(reply.type, IFL_WIRE_ERROR);
            assert_int_equal(reply.error.code, want);
        }
        raw_leave(&a);
    }
    ifl_peer_info info;
    assert_int_equal(ifl_server_peers(s, &info, 1), 1);
    assert_true(info.peer == honest);
    send_trajectory(c, 1, 1); /* business as usual */
    ifl_server_event se;
    want_server(s, IFL_SERVER_MESSAGE, IFL_WIRE_TRAJ, &se);
    ifl_server_event_clear(&se);
    ifl_client_free(c);
    ifl_server_free(s);
}

static void test_sends_of_the_wrong_side_are_refused(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    ifl_server *s = start_server(&so);
    ifl_client_options co = client_options(ifl_server_endpoint(s), "a");
    ifl_client *c = start_client(&co);
    uint64_t peer = join(s, c);
    ifl_message m = ifl_message_make(IFL_WIRE_HELLO);
    assert_int_equal(ifl_server_send(s, peer, &m, NULL), IFL_USAGE);
    assert_int_equal(ifl_client_send(c, &m, NULL), IFL_USAGE);
    assert_int_equal(ifl_client_send_weights(c, &m, NULL), IFL_USAGE);
    int32_t samples[2] = {3, 0}, prompt[3] = {1, 2, 3};
    m = make_lease(samples, prompt); /* samples don't ascend */
    assert_int_equal(ifl_server_send(s, peer, &m, NULL), IFL_LIMIT);
    ifl_client_free(c);
    ifl_server_free(s);
}

int main(void) {
    ifl_log_setup("test", IFL_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_over_tcp),
        cmocka_unit_test(test_round_trip_over_ipc),
        cmocka_unit_test(test_weights_endpoint_is_the_next_port),
        cmocka_unit_test(test_non_loopback_is_refused),
        cmocka_unit_test(test_wrong_hashes_are_rejected_naming_both),
        cmocka_unit_test(test_another_profile_is_refused_by_part_or_admitted_on_request),
        cmocka_unit_test(test_no_learner_ends_in_gone),
        cmocka_unit_test(test_invalid_trajectory_gets_nack_and_three_end_the_session),
        cmocka_unit_test(test_silent_actor_is_lost_within_its_heartbeats),
        cmocka_unit_test(test_vanished_actor_is_lost_and_others_stay),
        cmocka_unit_test(test_restarted_learner_gets_the_outbox_again),
        cmocka_unit_test(test_full_outbox_and_full_queue_push_back_and_lose_nothing),
        cmocka_unit_test(test_stuck_actor_pins_no_more_than_its_bytes),
        cmocka_unit_test(test_actor_sends_no_more_than_it_was_granted),
        cmocka_unit_test(test_actor_beyond_its_grant_is_turned_away),
        cmocka_unit_test(test_bad_messages_close_that_peer_alone),
        cmocka_unit_test(test_sends_of_the_wrong_side_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

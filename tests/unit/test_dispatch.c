/* learner/dispatch.h over a real link: what actors hand back, lose and lie about ends in the books.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "common/rollout_ledger.h"
#include "learner/dispatch.h"

#define WAIT_MS 10000
#define GROUP_SIZE 2
#define FIRST_LEASE 1000
#define ATTEMPTS 8 /* learner/dispatch.c */

static const char characters[] = "0123456789+*=#\n";

typedef struct desk {
    char folder[64], logs[80];
    ifl_config config;
    ifl_tokenizer *tokenizer;
    ifl_task_set *train;
    ifl_rollout_log *log;
    ifl_server *server;
    ifl_dispatch *dispatch;
    ifl_client *client;
} desk;

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s", err->text);
}

static ifl_client *join(desk *k, const char *name) {
    ifl_error err = {0};
    ifl_client *client;
    ifl_client_options co = {
        .connect = ifl_server_endpoint(k->server), .name = name, .held_version = -1};
    must(ifl_client_create(&client, &co, &err), &err);
    return client;
}

static const ifl_hash profile = {11, 12};

/* Of `so` the address and the vocabulary are set here. */
static void desk_open_on(desk *k, ifl_mode mode, int64_t version, const char *mismatch,
                         ifl_server_options so) {
    ifl_error err = {0};
    memset(k, 0, sizeof *k);
    snprintf(k->folder, sizeof k->folder, "/tmp/inflight-test-XXXXXX");
    assert_non_null(mkdtemp(k->folder));
    snprintf(k->logs, sizeof k->logs, "%s/rollouts", k->folder);
    ifl_config_defaults(&k->config);
    snprintf(k->config.parity.mismatch, sizeof k->config.parity.mismatch, "%s", mismatch);
    k->config.run.mode = mode;
    k->config.run.async_k = mode == IFL_MODE_PIPELINE ? 0 : 4;
    k->config.rollout.group_size = GROUP_SIZE;
    k->config.rollout.prompts_per_step = 1;
    k->config.learner.groups_in_flight = 40; /* that the table has room for */
    k->config.data.n_train = 1;
    k->config.data.train[0] = (ifl_source_config){.ratio = 1, .digits = 1, .steps_max = 4};
    snprintf(k->config.data.train[0].generator, sizeof k->config.data.train[0].generator, "ladder");
    snprintf(k->config.data.train[0].split, sizeof k->config.data.train[0].split, "train");
    must(ifl_tokenizer_char(&k->tokenizer, characters, sizeof characters - 1, NULL, 0, false, &err),
         &err);
    must(ifl_task_set_open(&k->train, &k->config, "train", k->tokenizer, &err), &err);
    const ifl_rollout_log_options log = {0};
    must(ifl_rollout_log_open(&k->log, k->logs, &log, &err), &err);
    must(ifl_rollout_log_run_started(k->log, 1, 0, 0, &err), &err);
    so.bind = "tcp://127.0.0.1:*";
    so.vocab_size = 32;
    must(ifl_server_create(&k->server, &so, &err), &err);
    ifl_dispatch_options o = {
        .config = &k->config, .server = k->server, .train = k->train, .log = k->log};
    o.first_lease = FIRST_LEASE;
    o.profile = profile;
    must(ifl_dispatch_create(&k->dispatch, &o, &err), &err);
    ifl_dispatch_set_version(k->dispatch, version);
    k->client = join(k, "a");
}

static void desk_open_with(desk *k, ifl_mode mode, int64_t version, const char *mismatch) {
    desk_open_on(k, mode, version, mismatch,
                 (ifl_server_options){.heartbeat_ms = 250, .heartbeat_misses = 12});
}

static void desk_open(desk *k, ifl_mode mode, int64_t version) {
    desk_open_with(k, mode, version, "refuse");
}

/* Ends the run and balances its books from the log. */
static ifl_rollout_balance desk_close(desk *k) {
    ifl_error err = {0};
    ifl_rollout_ledger *ledger = NULL;
    ifl_rollout_balance balance;
    must(ifl_dispatch_end(k->dispatch, 0, "finished", &err), &err);
    ifl_client_free(k->client);
    ifl_dispatch_free(k->dispatch);
    ifl_server_free(k->server);
    ifl_rollout_log_close(k->log);
    must(ifl_rollout_ledger_read(&ledger, k->logs, &err), &err);
    ifl_rollout_ledger_balance(ledger, &balance);
    ifl_rollout_ledger_free(ledger);
    ifl_task_set_close(k->train);
    ifl_tokenizer_free(k->tokenizer);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", k->folder);
    assert_int_equal(system(command), 0);
    return balance;
}

static void want_of(ifl_client *client, ifl_client_event_kind kind, int type,
                    ifl_client_event *event) {
    for (;;) {
        if (ifl_client_poll(client, WAIT_MS, event, NULL) != IFL_OK)
            fail_msg("waited in vain for event %d, message %d", kind, type);
        if (event->kind == kind && (type < 0 || (int)event->message.type == type)) return;
        ifl_client_event_clear(event);
    }
}

static void want(desk *k, ifl_client_event_kind kind, int type, ifl_client_event *event) {
    want_of(k->client, kind, type, event);
}

/* Nothing of that type comes for a while. */
static void want_none(ifl_client *client, int type) {
    ifl_client_event event;
    while (ifl_client_poll(client, 150, &event, NULL) == IFL_OK) {
        if (event.kind == IFL_CLIENT_MESSAGE && (int)event.message.type == type)
            fail_msg("unwanted: %s", ifl_wire_type_name(type));
        ifl_client_event_clear(&event);
    }
}

static void give_credit_of(ifl_client *client, int32_t n) {
    ifl_error err = {0};
    ifl_message m = ifl_message_make(IFL_WIRE_CREDIT);
    m.credit.n_sequences = n;
    must(ifl_client_send(client, &m, &err), &err);
}

static void give_credit(desk *k, int32_t n) {
    give_credit_of(k->client, n);
}

static void report_version(ifl_client *client, int64_t version) {
    ifl_error err = {0};
    ifl_message m = ifl_message_make(IFL_WIRE_WDONE);
    m.wdone.version = version;
    must(ifl_client_send(client, &m, &err), &err);
}

static void hand_back(desk *k, const ifl_wire_lease *lease) {
    ifl_error err = {0};
    ifl_message m = ifl_message_make(IFL_WIRE_RETURN);
    m.returned = (ifl_wire_return){.lease_id = lease->lease_id,
                                   .reason = IFL_RETURN_FAILED,
                                   .n_samples = lease->n_samples,
                                   .samples = lease->samples};
    must(ifl_client_send(k->client, &m, &err), &err);
}

/* What an honest answer says, and a lie may change. */
typedef struct answer_says {
    ifl_hash profile;
    float temperature, top_p;
    int32_t top_k;
} answer_says;

static const answer_says honest = {{11, 12}, 1, 1, 0};

static void answer_with(ifl_client *client, const ifl_wire_lease *lease, int32_t sample,
                        uint64_t seed, int64_t version, answer_says says) {
    ifl_error err = {0};
    ifl_trajectory *t = NULL;
    must(ifl_trajectory_create(&t, lease->prompt, lease->n_prompt, &err), &err);
    int32_t at = t->n_tokens;
    t->top_k = says.top_k;
    t->top_p = says.top_p;
    if (ifl_trajectory_is_truncated(t)) must(ifl_trajectory_keep_sets(t, &err), &err);
    must(ifl_trajectory_kv_event(t, (ifl_kv_event){at, 0, at, version, IFL_KV_BUILT}, &err), &err);
    must(ifl_trajectory_append(t, 3, -0.5f, version, &err), &err);
    t->task_serial = lease->task_serial;
    t->sample = sample;
    t->group_size = lease->group_size;
    t->lease_id = lease->lease_id;
    t->seed = seed;
    t->temperature = says.temperature;
    t->profile = says.profile;
    t->max_new_tokens = lease->max_new_tokens;
    t->finish = IFL_FINISH_EOS;
    t->reward.status = IFL_REWARD_OK;
    snprintf(t->task_id, sizeof t->task_id, "%s", lease->task_id);
    must(ifl_client_send_trajectory(client, t, &err), &err);
    ifl_trajectory_free(t);
}

static void answer_as(ifl_client *client, const ifl_wire_lease *lease, int32_t sample,
                      uint64_t seed, int64_t version) {
    answer_with(client, lease, sample, seed, version, honest);
}

static void answer(desk *k, const ifl_wire_lease *lease, int32_t sample, uint64_t seed) {
    answer_as(k->client, lease, sample, seed, 0);
}

static void test_members_given_up_are_dropped_in_the_log_and_not_lost(void **state) {
    (void)state;
    desk k;
    ifl_client_event e;
    desk_open(&k, IFL_MODE_PIPELINE, 0);
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    ifl_dispatch_set_in_flight(k.dispatch, 1);
    give_credit(&k, GROUP_SIZE);
    uint64_t serial = 0;
    for (int i = 0; i <= ATTEMPTS; i++) {
        want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
        if (i == 0) serial = e.message.lease.task_serial;
        if (i < ATTEMPTS) {
            assert_int_equal(e.message.lease.task_serial, serial);
            assert_int_equal(e.message.lease.attempt, i);
            hand_back(&k, &e.message.lease);
        }
        ifl_client_event_clear(&e);
        /* A complete group without a single answer waits to be taken: room for the next. */
        if (i == ATTEMPTS - 1) ifl_dispatch_set_in_flight(k.dispatch, 2);
    }
    ifl_rollout_balance b = desk_close(&k);
    assert_int_equal(b.leased, 2 * GROUP_SIZE);
    assert_int_equal(b.dropped, GROUP_SIZE);
    assert_int_equal(b.in_flight, GROUP_SIZE);
    assert_int_equal(b.lost, 0);
    assert_true(ifl_rollout_balance_holds(&b));
}

static void test_a_bad_answer_to_no_lease_of_its_own_changes_nothing(void **state) {
    (void)state;
    desk k;
    ifl_client_event e, reply;
    desk_open(&k, IFL_MODE_PIPELINE, 0);
    uint64_t seed = (uint64_t)k.config.run.seed;
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    ifl_dispatch_set_in_flight(k.dispatch, 1);
    give_credit(&k, GROUP_SIZE);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    answer(&k, &e.message.lease, 0, seed);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &reply);
    assert_int_equal(reply.message.traj_ack.status, IFL_ACK_STORED);
    ifl_client_event_clear(&reply);
    answer(&k, &e.message.lease, 0, seed + 1); /* the same key, and it fails the checks */
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_NACK, &reply);
    ifl_client_event_clear(&reply);
    ifl_groups_counts counts = ifl_dispatch_counts(k.dispatch);
    assert_int_equal(counts.stored, 1);
    assert_int_equal(ifl_groups_dropped(&counts), 0);
    answer(&k, &e.message.lease, 1, seed + 1); /* its own lease: given up */
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_NACK, &reply);
    ifl_client_event_clear(&reply);
    counts = ifl_dispatch_counts(k.dispatch);
    assert_int_equal(counts.dropped[IFL_DROP_INVALID], 1);
    ifl_client_event_clear(&e);
    ifl_rollout_balance b = desk_close(&k);
    assert_int_equal(b.dropped, 1);
    assert_int_equal(b.lost, 0);
    assert_true(ifl_rollout_balance_holds(&b));
}

static void want_nack(desk *k, ifl_nack_code code) {
    ifl_client_event reply;
    want(k, IFL_CLIENT_MESSAGE, IFL_WIRE_NACK, &reply);
    assert_int_equal(reply.message.nack.code, code);
    ifl_client_event_clear(&reply);
}

/* Task and sample are open, all checks but this one hold: what a resumed learner would meet. */
static void test_answers_of_another_history_are_refused_and_counted(void **state) {
    (void)state;
    desk k;
    ifl_client_event e, reply;
    desk_open(&k, IFL_MODE_PIPELINE, 5); /* resumed from step 5 */
    ifl_dispatch_set_version(k.dispatch, 7);
    uint64_t seed = (uint64_t)k.config.run.seed;
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    ifl_dispatch_set_in_flight(k.dispatch, 1);
    give_credit(&k, GROUP_SIZE);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    ifl_wire_lease lease = e.message.lease;
    assert_int_equal(lease.lease_id, FIRST_LEASE);
    ifl_wire_lease former = lease;
    former.lease_id = FIRST_LEASE - 1;
    answer_as(k.client, &former, 0, seed, 6);
    want_nack(&k, IFL_NACK_STALE);
    former.lease_id = FIRST_LEASE + 1; /* nor one that is still to come */
    answer_as(k.client, &former, 0, seed, 6);
    want_nack(&k, IFL_NACK_STALE);
    ifl_groups_counts counts = ifl_dispatch_counts(k.dispatch);
    assert_int_equal(counts.leased, GROUP_SIZE);
    assert_int_equal(counts.stored + counts.requeued, 0);
    ifl_dispatch_stats stats;
    ifl_dispatch_stats_get(k.dispatch, &stats);
    assert_int_equal(stats.late, 2);
    /* Its own lease, but versions that this process never made: generated again. */
    answer_as(k.client, &lease, 0, seed, 4);
    want_nack(&k, IFL_NACK_STALE);
    counts = ifl_dispatch_counts(k.dispatch);
    assert_int_equal(counts.stored, 0);
    assert_int_equal(counts.requeued, GROUP_SIZE);
    answer_as(k.client, &lease, 1, seed, 6);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &reply);
    assert_int_equal(reply.message.traj_ack.status, IFL_ACK_STORED);
    ifl_client_event_clear(&reply);
    ifl_client_event_clear(&e);
    ifl_rollout_balance b = desk_close(&k);
    assert_int_equal(b.lost, 0);
    assert_true(ifl_rollout_balance_holds(&b));
}

static void answer_all(ifl_client *client, const ifl_wire_lease *lease, uint64_t seed) {
    ifl_client_event reply;
    for (int32_t i = 0; i < GROUP_SIZE; i++) {
        answer_as(client, lease, i, seed, lease->required_version);
        want_of(client, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &reply);
        assert_int_equal(reply.message.traj_ack.status, IFL_ACK_STORED);
        ifl_client_event_clear(&reply);
    }
}

/* Two actors at version 0 share its batch; version 1 and its batch are there. Whoever is done first
 * waits, and can so do the other's work when that one is lost. */
static void test_no_actor_goes_on_before_all_older_work_is_here(void **state) {
    (void)state;
    desk k;
    ifl_client_event e, slow;
    desk_open(&k, IFL_MODE_ASYNC, 0);
    uint64_t seed = (uint64_t)k.config.run.seed;
    ifl_client *b = join(&k, "b");
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    want_of(b, IFL_CLIENT_CONNECTED, -1, &slow);
    must(ifl_dispatch_open_batch(k.dispatch, 2, 0, NULL), NULL);
    give_credit(&k, GROUP_SIZE);
    give_credit_of(b, GROUP_SIZE);
    want_none(k.client, IFL_WIRE_LEASE); /* it hasn't said that it has version 0 */
    report_version(k.client, 0);
    report_version(b, 0);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    want_of(b, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &slow);
    assert_int_equal(e.message.lease.required_version, 0);
    assert_int_equal(slow.message.lease.required_version, 0);
    ifl_dispatch_set_version(k.dispatch, 1);
    must(ifl_dispatch_open_batch(k.dispatch, 2, 1, NULL), NULL);
    answer_all(k.client, &e.message.lease, seed);
    ifl_client_event_clear(&e);
    want_none(k.client, IFL_WIRE_WSET);
    want_none(k.client, IFL_WIRE_LEASE);
    ifl_client_free(b);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    assert_int_equal(e.message.lease.task_serial, slow.message.lease.task_serial);
    assert_int_equal(e.message.lease.required_version, 0);
    answer_all(k.client, &e.message.lease, seed);
    ifl_client_event_clear(&e);
    ifl_client_event_clear(&slow);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_WSET, &e);
    assert_int_equal(e.message.wset.version, 1);
    want_none(k.client, IFL_WIRE_LEASE);
    report_version(k.client, 1);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    assert_int_equal(e.message.lease.required_version, 1);
    ifl_client_event_clear(&e);
    ifl_rollout_balance balance = desk_close(&k);
    assert_int_equal(balance.lost, 0);
}

static void test_work_for_a_version_that_nobody_has_any_more_still_ends(void **state) {
    (void)state;
    desk k;
    ifl_client_event e;
    desk_open(&k, IFL_MODE_ASYNC, 0);
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    must(ifl_dispatch_open_batch(k.dispatch, 1, 0, NULL), NULL);
    give_credit(&k, GROUP_SIZE);
    report_version(k.client, 0);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    ifl_client_event_clear(&e);
    ifl_dispatch_set_version(k.dispatch, 1);
    ifl_client *late = join(&k, "late"); /* version 0 is no longer announced */
    want_of(late, IFL_CLIENT_CONNECTED, -1, &e);
    give_credit_of(late, GROUP_SIZE);
    report_version(late, 1);
    want_none(late, IFL_WIRE_LEASE);
    ifl_client_free(k.client);
    k.client = late;
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    assert_int_equal(e.message.lease.required_version, 1);
    answer_all(late, &e.message.lease, (uint64_t)k.config.run.seed);
    ifl_client_event_clear(&e);
    ifl_rollout_balance balance = desk_close(&k);
    assert_int_equal(balance.lost, 0);
}

static void want_refusal(desk *k, const ifl_wire_lease *lease, int32_t sample, answer_says says,
                         const char *theirs, const char *ours) {
    ifl_client_event reply;
    answer_with(k->client, lease, sample, (uint64_t)k->config.run.seed, 0, says);
    want(k, IFL_CLIENT_MESSAGE, IFL_WIRE_NACK, &reply);
    assert_int_equal(reply.message.nack.code, IFL_NACK_INVALID);
    assert_non_null(strstr(reply.message.nack.text, theirs));
    assert_non_null(strstr(reply.message.nack.text, ours));
    ifl_client_event_clear(&reply);
}

/* Whatever decides a bit of a log-prob must be what the learner will score with. */
/* One that is connected and never says that it can take work: a namesake, a peer that only listens.
 */
static void test_nobody_waits_for_a_session_that_takes_no_work(void **state) {
    (void)state;
    desk k;
    ifl_client_event e;
    ifl_error err = {0};
    desk_open(&k, IFL_MODE_ASYNC, 3);
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    give_credit(&k, GROUP_SIZE);
    report_version(k.client, 3);
    ifl_client *idle = join(&k, "idle");
    want_of(idle, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    must(ifl_dispatch_wait_applied(k.dispatch, 3, 5.0, &err), &err);
    give_credit_of(idle, GROUP_SIZE); /* now it counts, and has nothing in use */
    ifl_sleep_ms(200);
    assert_int_equal(ifl_dispatch_wait_applied(k.dispatch, 3, 0.3, &err), IFL_TIMEOUT);
    report_version(idle, 3);
    must(ifl_dispatch_wait_applied(k.dispatch, 3, 5.0, &err), &err);
    ifl_client_free(idle);
    desk_close(&k);
}

static void test_the_third_answer_that_contradicts_its_lease_ends_the_session(void **state) {
    (void)state;
    desk k;
    ifl_client_event e;
    desk_open(&k, IFL_MODE_PIPELINE, 5);
    uint64_t seed = (uint64_t)k.config.run.seed;
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    ifl_dispatch_set_in_flight(k.dispatch, 1); /* after each refusal it is leased again */
    give_credit(&k, 4 * GROUP_SIZE);
    for (int i = 0; i < 3; i++) {
        want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
        answer_as(k.client, &e.message.lease, 0, seed, 1000); /* never published */
        want_nack(&k, IFL_NACK_STALE);
        ifl_client_event_clear(&e);
    }
    want(&k, IFL_CLIENT_LOST, -1, &e);
    assert_non_null(strstr(e.text, "broke the rules"));
    ifl_client_event_clear(&e);
    ifl_rollout_balance b = desk_close(&k);
    assert_int_equal(b.lost, 0);
    assert_true(ifl_rollout_balance_holds(&b));
}

/* One that has room for everything and does not say that it has received anything: others get what
 * its queue has no room for. */
static void test_a_peer_with_a_full_queue_stops_nobody_elses_leases(void **state) {
    (void)state;
    desk k;
    ifl_client_event e;
    ifl_server_options so = {.heartbeat_ms = 60000,
                             .heartbeat_misses = 3,
                             .send_bytes_max = 1000,
                             .unacked_bytes_max = 1};
    desk_open_on(&k, IFL_MODE_PIPELINE, 0, "refuse", so);
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    ifl_client *other = join(&k, "b");
    want_of(other, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    /* Credit is the last word of both for a minute, and says that they have had PONG. */
    ifl_sleep_ms(300);
    give_credit(&k, 1000);
    give_credit_of(other, GROUP_SIZE);
    ifl_sleep_ms(300);
    ifl_dispatch_set_in_flight(k.dispatch, 40);
    want_of(other, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    assert_int_equal(e.message.lease.attempt, 0);
    ifl_client_event_clear(&e);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    ifl_client_event_clear(&e);
    ifl_client_free(other);
    desk_close(&k);
}

static void test_nothing_is_acknowledged_or_leased_while_the_disk_is_full(void **state) {
    (void)state;
    desk k;
    ifl_client_event e, reply;
    ifl_error err = {0};
    desk_open(&k, IFL_MODE_PIPELINE, 0);
    uint64_t seed = (uint64_t)k.config.run.seed;
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    ifl_dispatch_set_in_flight(k.dispatch, 1);
    give_credit(&k, 4 * GROUP_SIZE);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    must(ifl_fail_points_arm("log.write=error(ENOSPC)@1+", &err), &err);
    answer(&k, &e.message.lease, 0, seed);
    want_none(k.client, IFL_WIRE_TRAJ_ACK);
    ifl_dispatch_set_in_flight(k.dispatch, 2);
    answer(&k, &e.message.lease, 1, seed);
    want_none(k.client, IFL_WIRE_LEASE);
    must(ifl_fail_points_arm("", &err), &err);
    /* What was taken in before the disk was full, then new work, then what had to wait. */
    static const int types[] = {IFL_WIRE_TRAJ_ACK, IFL_WIRE_LEASE, IFL_WIRE_TRAJ_ACK};
    for (int i = 0; i < 3; i++) {
        want(&k, IFL_CLIENT_MESSAGE, types[i], &reply);
        if (types[i] == IFL_WIRE_TRAJ_ACK)
            assert_int_equal(reply.message.traj_ack.status, IFL_ACK_STORED);
        ifl_client_event_clear(&reply);
    }
    ifl_client_event_clear(&e);
    ifl_rollout_balance b = desk_close(&k);
    assert_int_equal(b.stored, 2);
    assert_int_equal(b.lost, 0);
    assert_true(ifl_rollout_balance_holds(&b));
}

static void test_nothing_is_acknowledged_after_a_failed_sync(void **state) {
    (void)state;
    desk k;
    ifl_client_event e;
    ifl_group *groups[1];
    ifl_error err = {0};
    desk_open(&k, IFL_MODE_PIPELINE, 0);
    uint64_t seed = (uint64_t)k.config.run.seed;
    want(&k, IFL_CLIENT_CONNECTED, -1, &e);
    ifl_client_event_clear(&e);
    ifl_dispatch_set_in_flight(k.dispatch, 1);
    give_credit(&k, GROUP_SIZE);
    want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
    must(ifl_fail_points_arm("log.write=error(EIO)@1", &err), &err);
    answer(&k, &e.message.lease, 0, seed);
    want_none(k.client, IFL_WIRE_TRAJ_ACK);
    assert_int_equal(ifl_dispatch_take(k.dispatch, 1, 1, IFL_TAKE_ARRIVAL, 5.0, groups, &err),
                     IFL_IO);
    answer(&k, &e.message.lease, 1, seed); /* nor any later one, though the disk would take it */
    want_none(k.client, IFL_WIRE_TRAJ_ACK);
    assert_int_equal(ifl_dispatch_end(k.dispatch, 0, "failed", &err), IFL_IO);
    must(ifl_fail_points_arm("", &err), &err);
    ifl_client_event_clear(&e);
    ifl_client_free(k.client);
    ifl_dispatch_free(k.dispatch);
    ifl_server_free(k.server);
    ifl_rollout_log_close(k.log);
    ifl_task_set_close(k.train);
    ifl_tokenizer_free(k.tokenizer);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", k.folder);
    assert_int_equal(system(command), 0);
}

static void test_another_temperature_or_truncation_than_the_leases_is_refused(void **state) {
    (void)state;
    for (int which = 0; which < 4; which++) {
        desk k;
        ifl_client_event e;
        desk_open_with(&k, IFL_MODE_PIPELINE, 0, which == 3 ? "admit" : "refuse");
        want(&k, IFL_CLIENT_CONNECTED, -1, &e);
        ifl_client_event_clear(&e);
        ifl_dispatch_set_in_flight(k.dispatch, 1);
        give_credit(&k, GROUP_SIZE);
        want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
        answer_says says = honest;
        if (which == 0 || which == 3) says.temperature = 0x1.000002p0f; /* one bit */
        if (which == 1) says.top_k = 5;
        if (which == 2) says.top_p = 0.5f;
        static const char *const texts[] = {"temperature 1.00000012,", "top_k 5,", "top_p 0.5;",
                                            "temperature 1.00000012,"};
        want_refusal(&k, &e.message.lease, 0, says, texts[which],
                     "its lease says temperature 1, top_k 0, top_p 1");
        ifl_groups_counts counts = ifl_dispatch_counts(k.dispatch);
        assert_int_equal(counts.dropped[IFL_DROP_INVALID], 1);
        ifl_client_event_clear(&e);
        desk_close(&k);
    }
}

static void test_another_profile_is_refused_naming_both_or_admitted_and_counted(void **state) {
    (void)state;
    answer_says foreign = honest;
    foreign.profile = (ifl_hash){0xabc, 0xdef};
    char theirs[33], ours[33];
    ifl_hash_text(foreign.profile, theirs);
    ifl_hash_text(profile, ours);
    for (int admit = 0; admit < 2; admit++) {
        desk k;
        ifl_client_event e, reply;
        ifl_dispatch_stats stats;
        desk_open_with(&k, IFL_MODE_PIPELINE, 0, admit ? "admit" : "refuse");
        want(&k, IFL_CLIENT_CONNECTED, -1, &e);
        ifl_client_event_clear(&e);
        ifl_dispatch_set_in_flight(k.dispatch, 1);
        give_credit(&k, GROUP_SIZE);
        want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_LEASE, &e);
        if (admit) {
            answer_with(k.client, &e.message.lease, 0, (uint64_t)k.config.run.seed, 0, foreign);
            want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &reply);
            assert_int_equal(reply.message.traj_ack.status, IFL_ACK_STORED);
            ifl_client_event_clear(&reply);
        } else {
            want_refusal(&k, &e.message.lease, 0, foreign, theirs, ours);
        }
        answer(&k, &e.message.lease, 1, (uint64_t)k.config.run.seed);
        want(&k, IFL_CLIENT_MESSAGE, IFL_WIRE_TRAJ_ACK, &reply);
        ifl_client_event_clear(&reply);
        ifl_client_event_clear(&e);
        ifl_dispatch_stats_get(k.dispatch, &stats);
        assert_int_equal(stats.foreign, admit);
        assert_int_equal(stats.rejected, 1 - admit);
        ifl_rollout_balance b = desk_close(&k);
        assert_int_equal(b.lost, 0);
    }
}

int main(void) {
    ifl_log_setup("test", IFL_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_members_given_up_are_dropped_in_the_log_and_not_lost),
        cmocka_unit_test(test_nobody_waits_for_a_session_that_takes_no_work),
        cmocka_unit_test(test_the_third_answer_that_contradicts_its_lease_ends_the_session),
        cmocka_unit_test(test_a_peer_with_a_full_queue_stops_nobody_elses_leases),
        cmocka_unit_test(test_nothing_is_acknowledged_or_leased_while_the_disk_is_full),
        cmocka_unit_test(test_nothing_is_acknowledged_after_a_failed_sync),
        cmocka_unit_test(test_a_bad_answer_to_no_lease_of_its_own_changes_nothing),
        cmocka_unit_test(test_answers_of_another_history_are_refused_and_counted),
        cmocka_unit_test(test_another_temperature_or_truncation_than_the_leases_is_refused),
        cmocka_unit_test(test_another_profile_is_refused_naming_both_or_admitted_and_counted),
        cmocka_unit_test(test_no_actor_goes_on_before_all_older_work_is_here),
        cmocka_unit_test(test_work_for_a_version_that_nobody_has_any_more_still_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

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

#include "common/log.h"
#include "common/rollout_ledger.h"
#include "learner/dispatch.h"

#define WAIT_MS 10000
#define GROUP_SIZE 2
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

static void desk_open(desk *k) {
    ifl_error err = {0};
    memset(k, 0, sizeof *k);
    strcpy(k->folder, "/tmp/inflight-test-XXXXXX");
    assert_non_null(mkdtemp(k->folder));
    snprintf(k->logs, sizeof k->logs, "%s/rollouts", k->folder);
    ifl_config_defaults(&k->config);
    k->config.rollout.group_size = GROUP_SIZE;
    k->config.rollout.prompts_per_step = 1;
    k->config.data.n_train = 1;
    k->config.data.train[0] = (ifl_source_config){.ratio = 1, .digits = 1, .steps_max = 4};
    strcpy(k->config.data.train[0].generator, "ladder");
    strcpy(k->config.data.train[0].split, "train");
    must(ifl_tokenizer_char(&k->tokenizer, characters, sizeof characters - 1, NULL, 0, false, &err),
         &err);
    must(ifl_task_set_open(&k->train, &k->config, "train", k->tokenizer, &err), &err);
    const ifl_rollout_log_options log = {0};
    must(ifl_rollout_log_open(&k->log, k->logs, &log, &err), &err);
    must(ifl_rollout_log_run_started(k->log, 1, 0, 0, &err), &err);
    ifl_server_options so = {
        .bind = "tcp://127.0.0.1:*", .heartbeat_ms = 250, .heartbeat_misses = 12, .vocab_size = 32};
    must(ifl_server_create(&k->server, &so, &err), &err);
    ifl_dispatch_options o = {
        .config = &k->config, .server = k->server, .train = k->train, .log = k->log};
    must(ifl_dispatch_create(&k->dispatch, &o, &err), &err);
    ifl_dispatch_set_version(k->dispatch, 0);
    ifl_client_options co = {
        .connect = ifl_server_endpoint(k->server), .name = "a", .held_version = -1};
    must(ifl_client_create(&k->client, &co, &err), &err);
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

static void want(desk *k, ifl_client_event_kind kind, int type, ifl_client_event *event) {
    for (;;) {
        if (ifl_client_poll(k->client, WAIT_MS, event, NULL) != IFL_OK)
            fail_msg("waited in vain for event %d, message %d", kind, type);
        if (event->kind == kind && (type < 0 || (int)event->message.type == type)) return;
        ifl_client_event_clear(event);
    }
}

static void give_credit(desk *k, int32_t n) {
    ifl_error err = {0};
    ifl_message m = ifl_message_make(IFL_WIRE_CREDIT);
    m.credit.n_sequences = n;
    must(ifl_client_send(k->client, &m, &err), &err);
}

static void hand_back(desk *k, const ifl_wire_lease *lease) {
    ifl_error err = {0};
    ifl_message m = ifl_message_make(IFL_WIRE_RETURN);
    m.returned = (ifl_wire_return){.lease_id = lease->lease_id,
                                   .reason = IFL_RETURN_DRAIN,
                                   .n_samples = lease->n_samples,
                                   .samples = lease->samples};
    must(ifl_client_send(k->client, &m, &err), &err);
}

static void answer(desk *k, const ifl_wire_lease *lease, int32_t sample, uint64_t seed) {
    ifl_error err = {0};
    ifl_trajectory *t = NULL;
    must(ifl_trajectory_create(&t, lease->prompt, lease->n_prompt, &err), &err);
    int32_t at = t->n_tokens;
    must(ifl_trajectory_kv_event(t, (ifl_kv_event){at, 0, at, 0, IFL_KV_BUILT}, &err), &err);
    must(ifl_trajectory_append(t, 3, -0.5f, 0, &err), &err);
    t->task_serial = lease->task_serial;
    t->sample = sample;
    t->group_size = lease->group_size;
    t->lease_id = lease->lease_id;
    t->seed = seed;
    t->temperature = t->top_p = 1;
    t->max_new_tokens = lease->max_new_tokens;
    t->finish = IFL_FINISH_EOS;
    t->reward.status = IFL_REWARD_OK;
    snprintf(t->task_id, sizeof t->task_id, "%s", lease->task_id);
    must(ifl_client_send_trajectory(k->client, t, &err), &err);
    ifl_trajectory_free(t);
}

static void test_members_given_up_are_dropped_in_the_log_and_not_lost(void **state) {
    (void)state;
    desk k;
    ifl_client_event e;
    desk_open(&k);
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
    desk_open(&k);
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

int main(void) {
    ifl_log_setup("test", IFL_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_members_given_up_are_dropped_in_the_log_and_not_lost),
        cmocka_unit_test(test_a_bad_answer_to_no_lease_of_its_own_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

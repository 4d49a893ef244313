/* actor/actor.h against a learner of this program's own: what it does when that one is replaced,
 * and when it may take new weights into use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actor/actor.h"
#include "common/clock.h"
#include "common/log.h"
#include "kernels/random_model.h"
#include "kernels/replay.h"
#include "learner/publisher.h"
#include "rewards/reward.h"

enum { VOCAB = 95, POSITIONS = 4096, PROMPT = 5, WAIT_MS = 10000 };

typedef struct stage {
    char folder[64], endpoint[96];
    ifl_config config;
    ifl_model *model;
    ifl_tokenizer *tokenizer;
    ifl_weights *versions[3];
    ifl_server *server;
    ifl_publisher *publisher;
    atomic_bool stop;
    pthread_t thread;
    ifl_status ended;
    ifl_error err;
} stage;

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s", err->text);
}

static void *stage_actor(void *arg) {
    stage *s = arg;
    ifl_actor_options o = {.config = &s->config,
                           .model = s->model,
                           .tokenizer = s->tokenizer,
                           .connect = s->endpoint,
                           .name = "a",
                           .stop = &s->stop};
    s->ended = ifl_actor_run(&o, &s->err);
    return NULL;
}

static void stage_learner(stage *s, uint64_t epoch, bool directed) {
    ifl_error err = {0};
    ifl_server_options so = {.bind = s->endpoint,
                             .heartbeat_ms = 250,
                             .heartbeat_misses = 12,
                             .run_epoch = epoch,
                             .directed = directed,
                             .fingerprint = s->model->fingerprint,
                             .profile = s->model->profile,
                             .tokenizer = ifl_tokenizer_hash(s->tokenizer),
                             .vocab_size = VOCAB};
    snprintf(so.run_uuid, sizeof so.run_uuid, "00112233445566778899aabbccddeeff");
    must(ifl_server_create(&s->server, &so, &err), &err);
    must(ifl_publisher_create(&s->publisher, s->model, s->server, 0, 16, 0, &err), &err);
}

static void stage_publish(stage *s, int64_t version, int weights) {
    ifl_error err = {0};
    must(ifl_publisher_publish(s->publisher, version, -1, s->versions[weights], NULL, NULL, &err),
         &err);
}

static void stage_open(stage *s, bool directed) {
    ifl_error err = {0};
    memset(s, 0, sizeof *s);
    snprintf(s->folder, sizeof s->folder, "/tmp/inflight-test-XXXXXX");
    assert_non_null(mkdtemp(s->folder));
    snprintf(s->endpoint, sizeof s->endpoint, "ipc://%s/socket", s->folder);
    ifl_config_defaults(&s->config);
    s->config.actor.threads = s->config.reward.workers = 1;
    s->config.actor.sequences_max = 4;
    s->config.actor.kv_tokens = 4 * POSITIONS;
    ifl_model_config config;
    assert_true(ifl_random_model_config("tiny-llama", &config));
    config.vocab_size = VOCAB;
    config.n_eos = 0; /* answers end at their limit */
    must(ifl_model_create(&s->model, &config, POSITIONS, IFL_PROFILE_F32, &err), &err);
    char characters[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        characters[i] = (char)(32 + i);
    must(ifl_tokenizer_char(&s->tokenizer, characters, VOCAB, NULL, 0, false, &err), &err);
    for (int i = 0; i < 3; i++) {
        must(ifl_weights_create(&s->versions[i], s->model, &err), &err);
        must(ifl_random_weights(s->versions[i], (uint64_t)i + 1, &err), &err);
    }
    stage_learner(s, 1, directed);
    assert_int_equal(pthread_create(&s->thread, NULL, stage_actor, s), 0);
}

static void stage_close(stage *s) {
    ifl_publisher_free(s->publisher);
    ifl_server_free(s->server); /* says BYE */
    pthread_join(s->thread, NULL);
    if (s->ended != IFL_OK) fail_msg("the actor ended: %s", s->err.text);
    for (int i = 0; i < 3; i++)
        ifl_weights_free(s->versions[i]);
    ifl_tokenizer_free(s->tokenizer);
    ifl_model_free(s->model);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", s->folder);
    assert_int_equal(system(command), 0);
}

/* The next event of that kind and type; trajectories are not passed over. */
static bool next(stage *s, int64_t wait_ms, ifl_server_event_kind kind, int type,
                 ifl_server_event *e) {
    while (ifl_server_poll(s->server, wait_ms, e, NULL) == IFL_OK) {
        bool right = e->kind == kind && (type < 0 || (int)e->message.type == type);
        if (right) return true;
        if (e->kind == IFL_SERVER_MESSAGE && e->message.type == IFL_WIRE_TRAJ)
            fail_msg("an answer to lease %llu came",
                     (unsigned long long)e->message.traj.trajectory->lease_id);
        ifl_server_event_clear(e);
    }
    return false;
}

static uint64_t wait_join(stage *s) {
    ifl_server_event e;
    assert_true(next(s, WAIT_MS, IFL_SERVER_JOINED, -1, &e));
    uint64_t peer = e.peer;
    ifl_server_event_clear(&e);
    return peer;
}

static void wait_done(stage *s, int64_t version) {
    ifl_server_event e;
    ifl_hash root;
    assert_true(next(s, WAIT_MS, IFL_SERVER_MESSAGE, IFL_WIRE_WDONE, &e));
    assert_int_equal(e.message.wdone.version, version);
    assert_int_equal(ifl_publisher_version(s->publisher, &root, NULL), version);
    assert_true(ifl_hash_equal(e.message.wdone.root, root));
    ifl_server_event_clear(&e);
}

static void lease(stage *s, uint64_t peer, uint64_t id, int32_t max_new_tokens) {
    ifl_error err = {0};
    const int32_t samples[2] = {0, 1}, prompt[PROMPT] = {17, 11, 17, 29, 3};
    ifl_message m = ifl_message_make(IFL_WIRE_LEASE);
    m.lease = (ifl_wire_lease){.lease_id = id,
                               .task_serial = 7,
                               .group_size = 2,
                               .n_samples = 2,
                               .samples = samples,
                               .n_prompt = PROMPT,
                               .prompt = prompt,
                               .temperature = 1,
                               .top_p = 1,
                               .max_new_tokens = max_new_tokens,
                               .seed = (uint64_t)s->config.run.seed,
                               .required_version = -1};
    snprintf(m.lease.task_id, sizeof m.lease.task_id, "t");
    snprintf(m.lease.checker, sizeof m.lease.checker, "exact");
    must(ifl_server_send(s->server, peer, &m, &err), &err);
}

static const ifl_weights *find_weights(void *context, int64_t version) {
    const ifl_weights *weights = context;
    return version == weights->version ? weights : NULL;
}

/* Half-done answers, and a new process that publishes other weights under the number in use. */
static void test_nothing_of_a_former_learner_process_is_kept(void **state) {
    (void)state;
    stage s;
    ifl_server_event e;
    ifl_error err = {0};
    stage_open(&s, false);
    stage_publish(&s, 1, 0);
    uint64_t peer = wait_join(&s);
    wait_done(&s, 1);
    lease(&s, peer, 10, POSITIONS - PROMPT);
    ifl_sleep_ms(60); /* it is at work: four thousand tokens take longer than that */
    ifl_server_close_peer(s.server, peer, IFL_WIRE_E_FENCED, "test"); /* no BYE: a crash */
    assert_true(next(&s, WAIT_MS, IFL_SERVER_LOST, -1, &e));
    ifl_server_event_clear(&e);
    ifl_publisher_free(s.publisher);
    ifl_server_free(s.server);

    stage_learner(&s, 2, false);
    peer = wait_join(&s);
    lease(&s, peer, 20, 40); /* before there are any weights of this process */
    ifl_sleep_ms(50);
    stage_publish(&s, 1, 1);
    wait_done(&s, 1);
    ifl_workspace *workspace;
    must(ifl_workspace_create(&workspace, s.model, 64, NULL, NULL, &err), &err);
    s.versions[0]->version = s.versions[1]->version = 1;
    for (int i = 0; i < 2; i++) {
        assert_true(next(&s, WAIT_MS, IFL_SERVER_MESSAGE, IFL_WIRE_TRAJ, &e));
        const ifl_trajectory *t = e.message.traj.trajectory;
        assert_int_equal(t->lease_id, 20);
        assert_int_equal(t->n_tokens, PROMPT + 40);
        float *replayed = calloc((size_t)t->n_tokens, sizeof *replayed);
        ifl_replay_result result;
        must(ifl_replay(workspace, find_weights, s.versions[1], t, replayed, &result, &err), &err);
        assert_int_equal(result.n_checked, 40);
        assert_int_equal(result.n_differing, 0);
        must(ifl_replay(workspace, find_weights, s.versions[0], t, replayed, &result, &err), &err);
        assert_true(result.n_differing > 0); /* else the weights would not tell the two apart */
        free(replayed);
        must(ifl_server_ack(s.server, e.peer, t, IFL_ACK_STORED, &err), &err);
        ifl_server_event_clear(&e);
    }
    ifl_workspace_free(workspace);
    stage_close(&s);
}

static void test_a_directed_actor_waits_for_the_word(void **state) {
    (void)state;
    stage s;
    ifl_server_event e;
    stage_open(&s, true);
    stage_publish(&s, 1, 0);
    uint64_t peer = wait_join(&s);
    wait_done(&s, 1); /* the first one by itself: it can do nothing without */
    stage_publish(&s, 2, 1);
    assert_true(next(&s, WAIT_MS, IFL_SERVER_MESSAGE, IFL_WIRE_WREADY, &e));
    ifl_server_event_clear(&e);
    assert_false(next(&s, 150, IFL_SERVER_MESSAGE, IFL_WIRE_WDONE, &e));
    ifl_message m = ifl_message_make(IFL_WIRE_WSET);
    m.wset.version = 2;
    assert_int_equal(ifl_server_send(s.server, peer, &m, NULL), IFL_OK);
    wait_done(&s, 2);
    /* A new session of the same process is told what is in use, and changes nothing. */
    ifl_server_close_peer(s.server, peer, IFL_WIRE_E_FENCED, "test");
    wait_join(&s);
    wait_done(&s, 2);
    stage_close(&s);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "reward-worker") == 0) return ifl_reward_worker_main(0, 1);
    ifl_log_setup("test", IFL_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_of_a_former_learner_process_is_kept),
        cmocka_unit_test(test_a_directed_actor_waits_for_the_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

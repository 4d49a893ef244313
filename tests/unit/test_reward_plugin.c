/* Plug-ins that misbehave: the answer has no reward and says why, and the next one is scored. This
 * program is its own worker, and its own plug-in process: see main. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <msgpack.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>
#include <zmq.h>

#include "common/clock.h"
#include "rewards/reward.h"

#define PATIENCE_MS 20000
#define PROCESS "{\"p\": {\"use\": \"process\", \"command\": [\"/proc/self/exe\", \"plugin\"]}}"

/* --- The plug-in ------------------------------------------------------------------------------ */

static void say(const char *text) {
    fputs(text, stdout);
    fflush(stdout);
}

static void say_ok(long long id, const char *tail) {
    printf("{\"id\": %lld, \"status\": \"ok\", \"reward\": 1}%s", id, tail);
    fflush(stdout);
}

static void sleep_forever(void) {
    for (;;)
        pause();
}

/* Answers the request with `id` as `what` says. */
static void plugin_answer(const char *what, long long id, const json_t *request) {
    if (!strcmp(what, "ok")) say_ok(id, "\n");
    if (!strcmp(what, "hang")) sleep_forever();
    if (!strcmp(what, "crash")) raise(SIGKILL);
    if (!strcmp(what, "exit")) _exit(3);
    if (!strcmp(what, "flood"))
        for (;;)
            say("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    if (!strcmp(what, "lines"))
        for (;;)
            say("{}\n");
    if (!strcmp(what, "twice")) {
        char twice[128];
        snprintf(twice, sizeof twice, "\n{\"id\": %lld, \"status\": \"ok\", \"reward\": 1}\n", id);
        say_ok(id, twice);
    }
    if (!strcmp(what, "late twice")) {
        say_ok(id, "\n");
        ifl_sleep_ms(100);
        say_ok(id, "\n");
    }
    if (!strcmp(what, "nan")) printf("{\"id\": %lld, \"status\": \"ok\", \"reward\": NaN}\n", id);
    if (!strcmp(what, "huge"))
        printf("{\"id\": %lld, \"status\": \"ok\", \"reward\": 1e999}\n", id);
    if (!strcmp(what, "range"))
        printf("{\"id\": %lld, \"status\": \"ok\", \"reward\": 1.01}\n", id);
    if (!strcmp(what, "none")) printf("{\"id\": %lld, \"status\": \"ok\"}\n", id);
    if (!strcmp(what, "status"))
        printf("{\"id\": %lld, \"status\": \"good\", \"reward\": 1}\n", id);
    if (!strcmp(what, "unknown id")) say_ok(id + 100, "\n");
    if (!strcmp(what, "no id")) say("{\"status\": \"ok\", \"reward\": 1}\n");
    if (!strcmp(what, "text")) say("Traceback (most recent call last):\n");
    if (!strcmp(what, "half")) {
        say("{\"id\": ");
        sleep_forever();
    }
    if (!strcmp(what, "half exit")) {
        say("{\"id\": ");
        _exit(4);
    }
    if (!strcmp(what, "child")) { /* holds our output open, and must die with the worker's group */
        if (fork() == 0) sleep_forever();
        sleep_forever();
    }
    if (!strcmp(what, "echo")) {
        json_t *answer = json_pack("{s:I, s:s, s:o}", "id", (json_int_t)id, "status", "undecided",
                                   "info", json_string(""));
        char *text = json_dumps(request, JSON_SORT_KEYS | JSON_COMPACT);
        json_object_set_new(answer, "info", json_string(text));
        json_dumpf(answer, stdout, JSON_COMPACT);
        say("\n");
        free(text);
        json_decref(answer);
    }
    if (!strcmp(what, "parts"))
        printf("{\"id\": %lld, \"status\": \"wrong\", \"reward\": -0.5, \"components\": {\"a\": "
               "0.25}, "
               "\"tests_passed\": 1, \"tests_total\": 4}\n",
               id);
    fflush(stdout);
}

static int plugin_main(const char *hello) {
    static char line[6 << 20];
    say(hello);
    while (fgets(line, sizeof line, stdin)) {
        json_t *request = json_loads(line, JSON_ALLOW_NUL, NULL);
        if (!request) return 9;
        plugin_answer(json_string_value(json_object_get(request, "gold")),
                      json_integer_value(json_object_get(request, "id")), request);
        json_decref(request);
    }
    return 0;
}

/* --- The pool --------------------------------------------------------------------------------- */

static ifl_status pool_make(ifl_reward_pool **pool, const char *checkers, int32_t timeout_ms,
                            int32_t retries, ifl_error *err) {
    ifl_reward_pool_options options = {.n_workers = 1,
                                       .timeout_ms = timeout_ms,
                                       .queue_max = 8,
                                       .checkers = checkers,
                                       .retries = retries};
    return ifl_reward_pool_create(pool, &options, err);
}

static ifl_reward_pool *pool_of(const char *checkers, int32_t timeout_ms) {
    ifl_reward_pool *pool = NULL;
    ifl_error err = {0};
    if (pool_make(&pool, checkers, timeout_ms, 0, &err) != IFL_OK) fail_msg("%s", err.text);
    return pool;
}

static ifl_reward ask_bytes(ifl_reward_pool *pool, const char *checker, const char *gold,
                            const char *completion, size_t n, const char *meta, ifl_error *why) {
    ifl_reward_request request = {.id = 11,
                                  .checker = checker,
                                  .prompt = "p",
                                  .completion = completion,
                                  .n_completion = n,
                                  .answer = gold,
                                  .meta = meta,
                                  .finish = IFL_FINISH_EOS};
    ifl_reward out;
    uint64_t id = 0;
    assert_int_equal(ifl_reward_pool_submit(pool, &request, NULL), IFL_OK);
    memset(why, 0, sizeof *why);
    if (ifl_reward_pool_collect(pool, PATIENCE_MS, &id, &out, why) != IFL_OK)
        fail_msg("%s: no result: %s", gold, why->text);
    assert_int_equal(id, 11);
    return out;
}

static ifl_reward ask(ifl_reward_pool *pool, const char *checker, const char *gold,
                      ifl_error *why) {
    return ask_bytes(pool, checker, gold, "x", 1, "", why);
}

static void expect_alive(ifl_reward_pool *pool, const char *checker) {
    ifl_error why = {0};
    ifl_reward r = ask(pool, checker, "ok", &why);
    if (r.status != IFL_REWARD_OK || r.reward != 1.0f)
        fail_msg("the next one: status %d, %s", (int)r.status, why.text);
    assert_true(r.config != 0);
}

static void expect_fault(ifl_reward_pool *pool, const char *checker, const char *fault,
                         const char *cause) {
    ifl_error why = {0};
    ifl_reward r = ask(pool, checker, fault, &why);
    if (r.status != IFL_REWARD_CHECKER_ERROR || !strstr(why.text, cause))
        fail_msg("%s: got status %d, '%s', wanted '%s'", fault, (int)r.status, why.text, cause);
    assert_true(r.reward == 0.0f);
    expect_alive(pool, checker);
}

/* Processes whose command line holds `word`. */
static int processes_with(const char *word) {
    int n = 0;
    DIR *dir = opendir("/proc");
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        char path[300], line[512] = "";
        snprintf(path, sizeof path, "/proc/%s/cmdline", e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        size_t got = fread(line, 1, sizeof line - 1, f);
        fclose(f);
        n += memmem(line, got, word, strlen(word)) != NULL;
    }
    closedir(dir);
    return n;
}

static void test_process_that_misbehaves_costs_one_answer(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(PROCESS, 10000);
    static const char *const faults[][2] = {
        {"crash", "crashed with signal 9"},
        {"exit", "exited with status 3"},
        {"flood", "a line of more than 65536 bytes"},
        {"lines", "process"},
        {"twice", "answers more than once"},
        {"nan", "not valid JSON"},
        {"huge", "not valid JSON"},
        {"range", "reward: wanted a number -1 .. 1"},
        {"none", "reward: wanted a number -1 .. 1"},
        {"status", "status: got 'good'"},
        {"unknown id", "unknown or was answered before"},
        {"no id", "has no id"},
        {"text", "not valid JSON"},
        {"half exit", "exited with status 4 in the middle of a line, after 7 bytes"},
    };
    expect_alive(pool, "p");
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        expect_fault(pool, "p", faults[i][0], faults[i][1]);
    ifl_reward_pool_free(pool);
}

static void test_process_past_its_deadline_is_killed_with_its_children(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(PROCESS, 500);
    expect_fault(pool, "p", "hang", "timeout: no line by its deadline");
    expect_fault(pool, "p", "half", "timeout: only a part of a line");
    expect_fault(pool, "p", "child", "timeout: no line");
    ifl_reward_pool_free(pool);
    for (int i = 0; i < 500 && processes_with("self/exe"); i++)
        ifl_sleep_ms(10);
    assert_int_equal(processes_with("self/exe"), 0);
}

/* The second answer comes when nobody asks: the next sample isn't made to pay for it. */
static void test_late_second_answer_costs_nothing(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(PROCESS, 10000);
    ifl_error why = {0};
    assert_int_equal(ask(pool, "p", "late twice", &why).status, IFL_REWARD_OK);
    ifl_sleep_ms(300);
    expect_alive(pool, "p");
    ifl_reward_pool_free(pool);
}

static void test_process_is_told_all_of_the_request(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of("{\"p\": {\"use\": \"process\", \"options\": {\"a\": 1, \"b\": "
                                    "[2]}, \"command\": [\"/proc/self/exe\", \"plugin\"]}}",
                                    10000);
    ifl_error why = {0};
    ifl_reward r = ask_bytes(pool, "p", "echo", "a\0\xff\xc3\xa9\n", 6, "{\"b\": 3}", &why);
    if (r.status != IFL_REWARD_UNDECIDED) fail_msg("%s", why.text);
    const char *wanted[] = {"\"completion\":\"a\\u0000\xef\xbf\xbd\xc3\xa9\\n\"",
                            "\"meta\":{\"a\":1,\"b\":3}",
                            "\"finish\":\"eos\"",
                            "\"prompt\":\"p\"",
                            "\"gold\":\"echo\"",
                            "\"deadline_ms\":9"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!strstr(why.text, wanted[i])) fail_msg("no %s in %s", wanted[i], why.text);
    assert_string_equal(r.checker, "p=test/7");
    r = ask_bytes(pool, "p", "ok", "x", 1, "{", &why);
    assert_int_equal(r.status, IFL_REWARD_BAD_TASK);
    r = ask(pool, "p", "parts", &why);
    assert_int_equal(r.status, IFL_REWARD_WRONG);
    assert_true(r.reward == -0.5f && r.n_components == 1 && r.components[0].value == 0.25f);
    assert_int_equal(r.tests_passed, 1);
    assert_int_equal(r.tests_total, 4);
    /* As much as a request may hold goes through the pipes. */
    char *big = malloc(IFL_ANSWER_BYTES_MAX);
    assert_non_null(big);
    memset(big, 1, IFL_ANSWER_BYTES_MAX); /* six bytes each in JSON */
    r = ask_bytes(pool, "p", "ok", big, 900000, "", &why);
    assert_int_equal(r.status, IFL_REWARD_OK);
    free(big);
    ifl_reward_pool_free(pool);
}

static void expect_refused(const char *checkers, ifl_status wanted, const char *part) {
    ifl_reward_pool *pool = NULL;
    ifl_error err = {0};
    ifl_status st = pool_make(&pool, checkers, 2000, 0, &err);
    if (st != wanted || !strstr(err.text, part))
        fail_msg("%s: got %d, '%s', wanted '%s'", checkers, (int)st, err.text, part);
    assert_null(pool);
}

static void test_plugins_that_do_not_start_are_named(void **state) {
    (void)state;
#define START(hello)                                                                               \
    "{\"p\": {\"use\": \"process\", \"start_ms\": 1500, \"command\": [\"/proc/self/exe\", "        \
    "\"" hello "\"]}}"
    expect_refused("{\"p\": {\"use\": \"process\", \"command\": [\"/no/such\"]}}", IFL_FORMAT,
                   "checker p: cannot execute '/no/such'");
    expect_refused(START("mute"), IFL_PEER, "said no hello: timeout");
    expect_refused(START("protocol"), IFL_PEER, "names protocol 2, wanted 1");
    expect_refused(START("nameless"), IFL_PEER, "its hello has no name");
    expect_refused(START("garbage"), IFL_PEER, "not valid JSON");
    expect_refused(START("gone"), IFL_PEER, "exited with status 0");
#define LIBRARY(name, rest)                                                                        \
    "{\"l\": {\"use\": \"library\", \"path\": \"" IFL_PLUGIN_DIR "/" name "\"" rest "}}"
    expect_refused(LIBRARY("nothing.so", ""), IFL_FORMAT, "cannot load it");
    expect_refused(LIBRARY("libplugin_bare.so", ""), IFL_FORMAT, "exports no inflight_plugin");
    expect_refused(LIBRARY("libplugin_old.so", ""), IFL_PEER,
                   "version 99 of the plug-in interface, wanted 1");
    expect_refused(LIBRARY("libplugin_flags.so", ""), IFL_PEER, "flags 80");
    expect_refused(LIBRARY("libplugin_good.so", ", \"options\": {\"refuse\": 1}"), IFL_FORMAT,
                   "create failed with 3: refused as asked");
}

static void test_library_that_misbehaves_costs_one_answer(void **state) {
    (void)state;
    ifl_reward_pool *pool =
        pool_of(LIBRARY("libplugin_good.so", ", \"options\": {\"k\": 5}"), 1000);
    ifl_error why = {0};
    static const char *const faults[][2] = {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* make an exit of it */
        {"crash", "crashed with signal 11"},
#endif
        {"exit", "exited with status 5"},
        {"hang", "timeout: no result within 1000 ms"},
        {"nan", "garbage from the checker"},
        {"range", "garbage from the checker"},
        {"status", "garbage from the library: status 77"},
        {"component", "garbage from the library"},
        {"components", "garbage from the library"},
        {"fail", "check returned 7"},
    };
    expect_alive(pool, "l");
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        expect_fault(pool, "l", faults[i][0], faults[i][1]);
    }
    ifl_reward r = ask(pool, "l", "wrong", &why);
    assert_int_equal(r.status, IFL_REWARD_WRONG);
    assert_true(r.reward == -0.5f && r.tests_passed == 1 && r.tests_total == 3);
    assert_string_equal(r.components[0].name, "depth");
    assert_string_equal(r.checker, "l=library/2");
    r = ask_bytes(pool, "l", "undecided", "x", 1, "{\"m\":1}", &why);
    assert_int_equal(r.status, IFL_REWARD_UNDECIDED);
    assert_non_null(strstr(why.text, "state {\"k\":5}, meta {\"m\":1,\"k\":5}"));
    ifl_reward_pool_free(pool);
}

/* "flaky" fails for its first two lives; a retry goes to a new process. */
static void test_failures_are_tried_again_as_often_as_asked(void **state) {
    (void)state;
    char path[] = "/tmp/ifl_flaky_XXXXXX", checkers[512];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    snprintf(
        checkers, sizeof checkers,
        "{\"p\": {\"use\": \"process\", \"command\": [\"/proc/self/exe\", \"flaky\"], \"env\": "
        "{\"FLAKY\": \"%s\"}}}",
        path);
    for (int retries = 0; retries < 4; retries++) {
        ifl_reward_pool *pool = NULL;
        ifl_error why = {0};
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pool_make(&pool, checkers, 10000, retries, &why), IFL_OK);
        ifl_reward r = ask(pool, "p", "ok", &why);
        assert_int_equal(r.status, retries < 2 ? IFL_REWARD_CHECKER_ERROR : IFL_REWARD_OK);
        assert_int_equal(ifl_reward_pool_pending(pool), 0);
        ifl_reward_pool_free(pool);
    }
    close(fd);
    unlink(path);
}

/* --- A ROUTER that misbehaves as the gold answer says -------------------------------------------
 */

typedef struct hub {
    void *router;
    uint64_t first_id;
    atomic_int n_asked, n_same; /* the test looks at them */
} hub;

static void hub_pack_answer(msgpack_packer *p, uint64_t id, double reward) {
    msgpack_pack_map(p, 3);
    msgpack_pack_str_with_body(p, "id", 2);
    msgpack_pack_uint64(p, id);
    msgpack_pack_str_with_body(p, "status", 6);
    msgpack_pack_str_with_body(p, "ok", 2);
    msgpack_pack_str_with_body(p, "reward", 6);
    msgpack_pack_double(p, reward);
}

static void hub_send(hub *h, zmq_msg_t *to, const void *bytes, size_t n, bool more) {
    zmq_msg_t copy;
    zmq_msg_init(&copy);
    zmq_msg_copy(&copy, to);
    zmq_msg_send(&copy, h->router, ZMQ_SNDMORE);
    zmq_send(h->router, bytes, n, more ? ZMQ_SNDMORE : 0);
    if (more) zmq_send(h->router, "x", 1, 0);
}

/* Answers one request; `what` is its gold. */
static void hub_answer(hub *h, zmq_msg_t *from, const char *what, uint64_t id) {
    msgpack_sbuffer out;
    msgpack_packer p;
    msgpack_sbuffer_init(&out);
    msgpack_packer_init(&p, &out, msgpack_sbuffer_write);
    h->n_same += h->n_asked > 0 && id == h->first_id;
    h->first_id = id;
    bool again = h->n_same > 0;
    if (!strcmp(what, "garbage")) {
        hub_send(h, from, "\xc1 not msgpack", 13, false);
    } else if (!strcmp(what, "deep")) {
        char deep[1000];
        memset(deep, (char)0x91, sizeof deep); /* lists of one list */
        hub_send(h, from, deep, sizeof deep, false);
    } else if (!(strcmp(what, "lost") == 0 && !again) && strcmp(what, "silent") != 0) {
        double reward = !strcmp(what, "nan") ? (double)NAN : !strcmp(what, "range") ? 1.5 : 1.0;
        if (!strcmp(what, "old")) { /* a late answer to an earlier question comes first */
            hub_pack_answer(&p, id - 1, 0.25);
            hub_send(h, from, out.data, out.size, false);
            msgpack_sbuffer_clear(&out);
        }
        hub_pack_answer(&p, !strcmp(what, "unknown") ? id + 1 : id, reward);
        hub_send(h, from, out.data, out.size, !strcmp(what, "frames"));
        if (!strcmp(what, "twice")) hub_send(h, from, out.data, out.size, false);
    }
    h->n_asked++;
    msgpack_sbuffer_destroy(&out);
}

static void *hub_run(void *user) {
    hub *h = user;
    for (bool quit = false; !quit;) {
        zmq_msg_t from, body;
        msgpack_unpacked task;
        size_t used = 0;
        char gold[64] = "";
        uint64_t id = 0;
        zmq_msg_init(&from);
        zmq_msg_init(&body);
        msgpack_unpacked_init(&task);
        if (zmq_msg_recv(&from, h->router, 0) < 0 || zmq_msg_recv(&body, h->router, 0) < 0) break;
        quit = zmq_msg_size(&body) == 4; /* "quit" */
        if (!quit && msgpack_unpack_next(&task, zmq_msg_data(&body), zmq_msg_size(&body), &used) ==
                         MSGPACK_UNPACK_SUCCESS) {
            for (uint32_t i = 0; i < task.data.via.map.size; i++) {
                const msgpack_object_kv *kv = &task.data.via.map.ptr[i];
                if (memmem(kv->key.via.str.ptr, kv->key.via.str.size, "gold", 4))
                    snprintf(gold, sizeof gold, "%.*s", (int)kv->val.via.str.size,
                             kv->val.via.str.ptr);
                if (kv->key.via.str.size == 2) id = kv->val.via.u64;
            }
            static const char hello[] = "\x84\xa8protocol\x01\xa4name\xa3hub\xa7version\xa1"
                                        "2\xa7"
                                        "credits\x01";
            if (id)
                hub_answer(h, &from, gold, id);
            else
                hub_send(h, &from, hello, sizeof hello - 1, false);
        }
        msgpack_unpacked_destroy(&task);
        zmq_msg_close(&body);
        zmq_msg_close(&from);
    }
    return NULL;
}

static void test_zeromq_that_misbehaves_costs_one_answer(void **state) {
    (void)state;
    char endpoint[128], checkers[256];
    size_t n = sizeof endpoint;
    pthread_t thread;
    void *zmq = zmq_ctx_new(), *quit = zmq_socket(zmq, ZMQ_DEALER);
    hub h = {.router = zmq_socket(zmq, ZMQ_ROUTER)};
    assert_int_equal(zmq_bind(h.router, "tcp://127.0.0.1:*"), 0);
    assert_int_equal(zmq_getsockopt(h.router, ZMQ_LAST_ENDPOINT, endpoint, &n), 0);
    assert_int_equal(pthread_create(&thread, NULL, hub_run, &h), 0);
    snprintf(checkers, sizeof checkers, "{\"z\": {\"use\": \"zeromq\", \"endpoint\": \"%s\"}}",
             endpoint);
    ifl_reward_pool *pool = pool_of(checkers, 1000);
    static const char *const faults[][2] = {
        {"garbage", "no msgpack map"},   {"deep", "no msgpack map"},
        {"nan", "no msgpack map"},       {"range", "reward: wanted a number"},
        {"unknown", "which is unknown"}, {"frames", "several frames"},
    };
    expect_alive(pool, "z");
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        expect_fault(pool, "z", faults[i][0], faults[i][1]);
    ifl_error why = {0};
    ifl_reward r = ask(pool, "z", "silent", &why);
    assert_int_equal(r.status, IFL_REWARD_UNAVAILABLE);
    assert_non_null(strstr(why.text, "timeout: no answer"));
    expect_alive(pool, "z");
    r = ask(pool, "z", "twice", &why);
    assert_true(r.status == IFL_REWARD_OK && r.reward == 1.0f);
    expect_alive(pool, "z"); /* what came twice is passed over */
    r = ask(pool, "z", "old", &why);
    assert_true(r.status == IFL_REWARD_OK && r.reward == 1.0f);
    h.n_same = 0;
    r = ask(pool, "z", "lost", &why);
    if (r.status != IFL_REWARD_OK) fail_msg("%s", why.text);
    assert_int_equal(h.n_same, 1); /* asked again, with the same id */
    assert_string_equal(r.checker, "z=hub/2");
    ifl_reward_pool_free(pool);
    assert_int_equal(zmq_connect(quit, endpoint), 0);
    zmq_send(quit, "quit", 4, 0);
    pthread_join(thread, NULL);
    zmq_close(quit);
    zmq_close(h.router);
    zmq_ctx_term(zmq);
}

static int flaky_main(void) {
    char line[4096];
    FILE *lives = fopen(getenv("FLAKY"), "a");
    say("{\"protocol\": 1, \"name\": \"flaky\"}\n");
    if (!lives || !fgets(line, sizeof line, stdin)) return 0;
    if (ftell(lives) < 2) {
        fputc('x', lives);
        fclose(lives);
        return 3;
    }
    fclose(lives);
    say_ok(1, "\n");
    sleep_forever();
    return 0;
}

int main(int argc, char **argv) {
    const char *role = argc == 2 ? argv[1] : "";
    if (!strcmp(role, "reward-worker")) return ifl_reward_worker_main(0, 1);
    if (!strcmp(role, "plugin"))
        return plugin_main("{\"protocol\": 1, \"name\": \"test\", \"version\": \"7\"}\n");
    if (!strcmp(role, "protocol")) return plugin_main("{\"protocol\": 2, \"name\": \"test\"}\n");
    if (!strcmp(role, "nameless")) return plugin_main("{\"protocol\": 1}\n");
    if (!strcmp(role, "garbage")) return plugin_main("hello\n");
    if (!strcmp(role, "mute")) return plugin_main("");
    if (!strcmp(role, "gone")) return 0;
    if (!strcmp(role, "flaky")) return flaky_main();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_process_that_misbehaves_costs_one_answer),
        cmocka_unit_test(test_process_past_its_deadline_is_killed_with_its_children),
        cmocka_unit_test(test_late_second_answer_costs_nothing),
        cmocka_unit_test(test_process_is_told_all_of_the_request),
        cmocka_unit_test(test_plugins_that_do_not_start_are_named),
        cmocka_unit_test(test_library_that_misbehaves_costs_one_answer),
        cmocka_unit_test(test_failures_are_tried_again_as_often_as_asked),
        cmocka_unit_test(test_zeromq_that_misbehaves_costs_one_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

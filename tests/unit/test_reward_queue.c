/* What the pool does before a worker is asked: lanes of checkers, kept verdicts. This program is
 * its own worker and its own plug-in: see main. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rewards/pool_queue.h"
#include "rewards/verdict_cache.h"

#define PATIENCE_MS 20000

/* --- A plug-in that pays another reward each time it is asked --------------------------------- */

static int plugin_main(bool pure) {
    char line[65536];
    printf("{\"protocol\": 1, \"name\": \"counts\", \"version\": \"1\", \"pure\": %s}\n",
           pure ? "true" : "false");
    fflush(stdout);
    for (int n = 1; fgets(line, sizeof line, stdin); n++) {
        json_t *request = json_loads(line, 0, NULL);
        const char *gold = json_string_value(json_object_get(request, "gold"));
        if (!strcmp(gold, "end")) return 3;
        printf(
            "{\"id\": %lld, \"status\": \"%s\", \"reward\": %.2f, \"components\": {\"n\": %d}}\n",
            (long long)json_integer_value(json_object_get(request, "id")), gold, 0.01 * n, n);
        fflush(stdout);
        json_decref(request);
    }
    return 0;
}

/* --- Helpers ---------------------------------------------------------------------------------- */

static ifl_reward_pool *pool_of(int32_t n_workers, int32_t timeout_ms, int64_t cache_bytes,
                                const char *checkers) {
    ifl_reward_pool_options options = {.n_workers = n_workers,
                                       .timeout_ms = timeout_ms,
                                       .queue_max = 100,
                                       .checkers = checkers,
                                       .cache_bytes = cache_bytes};
    ifl_reward_pool *pool = NULL;
    ifl_error err = {0};
    if (ifl_reward_pool_create(&pool, &options, &err) != IFL_OK) fail_msg("%s", err.text);
    return pool;
}

static ifl_reward_request request_of(uint64_t id, const char *checker, const char *answer,
                                     const char *completion) {
    return (ifl_reward_request){.id = id,
                                .checker = checker,
                                .prompt = "p",
                                .completion = completion,
                                .n_completion = strlen(completion),
                                .answer = answer,
                                .meta = "",
                                .finish = IFL_FINISH_EOS};
}

static void submit(ifl_reward_pool *pool, uint64_t id, const char *checker, const char *answer) {
    ifl_reward_request request = request_of(id, checker, answer, "7");
    assert_int_equal(ifl_reward_pool_submit(pool, &request, NULL), IFL_OK);
}

static uint64_t collect(ifl_reward_pool *pool, ifl_reward *out, ifl_error *why) {
    uint64_t id = 0;
    memset(why, 0, sizeof *why);
    if (ifl_reward_pool_collect(pool, PATIENCE_MS, &id, out, why) != IFL_OK)
        fail_msg("no result: %s", why->text);
    return id;
}

static ifl_reward ask(ifl_reward_pool *pool, const ifl_reward_request *request, ifl_error *why) {
    ifl_reward out;
    assert_int_equal(ifl_reward_pool_submit(pool, request, NULL), IFL_OK);
    assert_int_equal(collect(pool, &out, why), request->id);
    return out;
}

/* The ids of the next results, in the order they come, as text. */
static const char *order_of(ifl_reward_pool *pool, int n) {
    static char text[256];
    size_t used = 0;
    for (int i = 0; i < n; i++) {
        ifl_reward out;
        ifl_error why;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%d", i ? " " : "",
                                 (int)collect(pool, &out, &why));
    }
    return text;
}

/* --- Lanes ------------------------------------------------------------------------------------ */

static int32_t add(ifl_pool_queue *queue, const char *checker, uint64_t id) {
    ifl_job *job = calloc(1, sizeof *job);
    assert_non_null(job);
    job->id = id;
    job->lane = ifl_pool_queue_lane(queue, checker);
    ifl_pool_queue_push(queue, job);
    return job->lane;
}

/* The request taken, 0 for none; counted as held. */
static uint64_t take(ifl_pool_queue *queue, int32_t held[IFL_LANES_MAX], int32_t n_free) {
    ifl_job *job = ifl_pool_queue_take(queue, held, n_free);
    uint64_t id = job ? job->id : 0;
    if (job) held[job->lane]++;
    ifl_job_free(job);
    return id;
}

static void test_lanes_take_turns(void **state) {
    (void)state;
    static ifl_pool_queue queue;
    int32_t held[IFL_LANES_MAX] = {0};
    memset(&queue, 0, sizeof queue);
    for (uint64_t i = 1; i <= 3; i++)
        add(&queue, "slow", i);
    add(&queue, "fast", 11);
    add(&queue, "fast", 12);
    add(&queue, "other", 21);
    assert_int_equal(queue.n_waiting, 6);
    static const uint64_t wanted[] = {1, 11, 21, 2, 12, 3, 0};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        assert_int_equal(take(&queue, held, 8), wanted[i]);
    assert_int_equal(queue.n_waiting, 0);
}

static void test_the_last_free_worker_is_not_for_who_holds_one(void **state) {
    (void)state;
    static ifl_pool_queue queue;
    int32_t held[IFL_LANES_MAX] = {0};
    memset(&queue, 0, sizeof queue);
    add(&queue, "slow", 1);
    add(&queue, "slow", 2);
    assert_int_equal(take(&queue, held, 2), 1);
    assert_int_equal(take(&queue, held, 1), 2); /* nobody else is there */
    held[0] = 0;
    add(&queue, "fast", 11);
    add(&queue, "slow", 3);
    add(&queue, "slow", 4);
    assert_int_equal(take(&queue, held, 2), 11); /* slow had its turn */
    held[1] = 0;
    assert_int_equal(take(&queue, held, 2), 3);
    assert_int_equal(take(&queue, held, 1), 0); /* fast may come any time */
    add(&queue, "fast", 12);
    assert_int_equal(take(&queue, held, 1), 12);
    assert_int_equal(take(&queue, held, 1), 4); /* both hold one */
    /* A lane that nobody has used for long is not waited for. */
    memset(held, 0, sizeof held);
    held[0] = 1;
    for (int i = 0; i < IFL_LANE_MEMORY; i++) {
        add(&queue, "slow", 100);
        bool last = i == IFL_LANE_MEMORY - 1;
        assert_int_equal(take(&queue, held, 1), last ? 100 : 0);
    }
    while (queue.n_waiting > 0)
        ifl_job_free(ifl_pool_queue_take_any(&queue));
}

static void test_more_checkers_than_lanes_share_the_last(void **state) {
    (void)state;
    static ifl_pool_queue queue;
    int32_t held[IFL_LANES_MAX] = {0}, n = 0;
    memset(&queue, 0, sizeof queue);
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 200; i++) {
            char name[16];
            snprintf(name, sizeof name, "c%d", i);
            int32_t lane = add(&queue, name, 1 + (uint64_t)i);
            assert_int_equal(lane, i < IFL_LANES_MAX - 1 ? i : IFL_LANES_MAX - 1);
        }
    for (ifl_job *job; (job = ifl_pool_queue_take(&queue, held, 8)); n++)
        ifl_job_free(job);
    assert_int_equal(n, 400);
}

/* Order proves it, not time: the sleepers end by their deadline alone, all else before them. */
static void test_slow_checker_does_not_starve_a_fast_one(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(2, 400, 0, NULL);
    submit(pool, 1, "exact", "7");
    assert_string_equal(order_of(pool, 1), "1");
    for (uint64_t i = 11; i <= 13; i++)
        submit(pool, i, "test_fault", "sleep");
    for (uint64_t i = 2; i <= 6; i++)
        submit(pool, i, "exact", "7");
    assert_string_equal(order_of(pool, 8), "2 3 4 5 6 11 12 13");
    ifl_reward_pool_free(pool);
    /* With one worker there is nothing to keep free, but turns are taken. */
    pool = pool_of(1, 400, 0, NULL);
    for (uint64_t i = 11; i <= 13; i++)
        submit(pool, i, "test_fault", "sleep");
    submit(pool, 1, "exact", "7");
    submit(pool, 2, "exact", "7");
    assert_string_equal(order_of(pool, 5), "11 1 12 2 13");
    ifl_reward_pool_free(pool);
}

/* --- Kept verdicts ---------------------------------------------------------------------------- */

static void test_cache_keeps_what_was_used_last_within_its_bytes(void **state) {
    (void)state;
    ifl_verdict_cache *cache;
    uint8_t bytes[200] = {0};
    size_t n = 0;
    assert_int_equal(ifl_verdict_cache_create(&cache, 4096, NULL), IFL_OK);
    assert_null(ifl_verdict_cache_get(cache, (ifl_hash){1, 1}, &n));
    for (uint64_t i = 1; i <= 1000; i++) {
        bytes[0] = (uint8_t)i;
        ifl_verdict_cache_put(cache, (ifl_hash){i * 64, i}, bytes, sizeof bytes); /* one bucket */
        assert_true(ifl_verdict_cache_bytes(cache) <= 4096);
        if (i > 1) assert_non_null(ifl_verdict_cache_get(cache, (ifl_hash){64, 1}, &n));
    }
    int32_t size = ifl_verdict_cache_size(cache);
    assert_in_range(size, 10, 20);
    for (uint64_t i = 2; i <= 1000; i++) {
        const uint8_t *got = ifl_verdict_cache_get(cache, (ifl_hash){i * 64, i}, &n);
        assert_int_equal(got != NULL, i > 1001 - (uint64_t)size);
        if (got) assert_true(n == sizeof bytes && got[0] == (uint8_t)i);
        assert_null(
            ifl_verdict_cache_get(cache, (ifl_hash){i * 64, i + 1}, &n)); /* all bits count */
    }
    ifl_verdict_cache_put(cache, (ifl_hash){64, 1}, bytes, 3); /* in the place of what was there */
    assert_non_null(ifl_verdict_cache_get(cache, (ifl_hash){64, 1}, &n));
    assert_int_equal(n, 3);
    assert_int_equal(ifl_verdict_cache_size(cache), size);
    uint8_t *large = calloc(1, 5000);
    assert_non_null(large);
    ifl_verdict_cache_put(cache, (ifl_hash){5, 5}, large,
                          5000); /* more than there is room at all */
    assert_null(ifl_verdict_cache_get(cache, (ifl_hash){5, 5}, &n));
    assert_int_equal(ifl_verdict_cache_size(cache), size);
    free(large);
    ifl_verdict_cache_clear(cache);
    assert_int_equal(ifl_verdict_cache_size(cache) + ifl_verdict_cache_bytes(cache), 0);
    assert_null(ifl_verdict_cache_get(cache, (ifl_hash){64, 1}, &n));
    ifl_verdict_cache_free(cache);
    ifl_verdict_cache_free(NULL);
}

static void expect_cached(ifl_reward_pool *pool, int64_t n) {
    int64_t got = ifl_reward_pool_stats_get(pool).n_cached;
    if (got != n) fail_msg("%d results from kept verdicts, wanted %d", (int)got, (int)n);
}

static void test_only_the_same_request_has_the_same_verdict(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(1, 10000, 1 << 20, NULL);
    ifl_error why, again;
    /* A gold answer that is none, a wrong answer with its reason, a right one. */
    static const char *const answers[] = {"7", "8", "\\frac{1}{0}"};
    for (size_t i = 0; i < 3; i++) {
        ifl_reward_request request = request_of(1, "math", answers[i], "\\boxed{7}");
        ifl_reward first = ask(pool, &request, &why);
        request.id = 2;
        ifl_reward second = ask(pool, &request, &again);
        first.queued_s = second.queued_s = first.run_s = second.run_s = 0;
        assert_memory_equal(&first, &second, sizeof first);
        assert_string_equal(why.text, again.text);
        expect_cached(pool, i < 2 ? (int64_t)i + 1 : 2); /* bad_task is judged again */
    }
    ifl_reward_request other = request_of(3, "math", "7", "\\boxed{7}");
    other.prompt = "q";
    ask(pool, &other, &why);
    other = request_of(3, "math", "7", "\\boxed{7}");
    other.meta = "{}";
    ask(pool, &other, &why);
    other.meta = "";
    other.finish = IFL_FINISH_LENGTH;
    ask(pool, &other, &why);
    other = request_of(3, "numeric", "7", "\\boxed{7}");
    ask(pool, &other, &why);
    other = request_of(3, "math", "7", "\\boxed{7} ");
    ask(pool, &other, &why);
    expect_cached(pool, 2);
    assert_int_equal(ifl_reward_pool_stats_get(pool).n_kept, 7);
    /* What is no pure checker's is asked again. */
    for (int i = 0; i < 3; i++) {
        other = request_of(4, "test_fault", "ok", "");
        assert_int_equal(ask(pool, &other, &why).status, IFL_REWARD_OK);
    }
    expect_cached(pool, 2);
    ifl_reward_pool_free(pool);
    pool = pool_of(1, 10000, 0, NULL); /* none is wanted */
    for (int i = 0; i < 3; i++) {
        other = request_of(5, "exact", "7", "7");
        assert_int_equal(ask(pool, &other, &why).status, IFL_REWARD_OK);
    }
    expect_cached(pool, 0);
    ifl_reward_pool_free(pool);
}

/* Siblings of a group may say the same thing at the same time: one worker judges the first, and the
 * others, which wait, need none. */
static void test_what_waits_is_answered_by_the_first(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(1, 10000, 1 << 20, NULL);
    for (uint64_t i = 1; i <= 8; i++)
        submit(pool, i, "exact", "7");
    assert_string_equal(order_of(pool, 8), "1 2 3 4 5 6 7 8");
    expect_cached(pool, 7);
    ifl_reward_pool_free(pool);
}

static float paid(ifl_reward_pool *pool, const char *checker, const char *answer) {
    ifl_error why;
    ifl_reward_request request = request_of(9, checker, answer, "7");
    ifl_reward r = ask(pool, &request, &why);
    return r.n_components > 0 ? r.components[r.n_components - 1].value : -1.0f;
}

static void test_plugins_say_whether_they_are_pure(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(
        1, 10000, 1 << 20,
        "{\"pure\": {\"use\": \"process\", \"command\": [\"/proc/self/exe\", \"pure\"]},"
        "\"drawn\": {\"use\": \"process\", \"command\": [\"/proc/self/exe\", \"drawn\"]},"
        "\"fine\": {\"use\": \"product\", \"parts\": [{\"checker\": \"exact\"}, {\"checker\": "
        "\"pure\"}]},"
        "\"mixed\": {\"use\": \"product\", \"parts\": [{\"checker\": \"exact\"}, {\"checker\": "
        "\"drawn\"}]}}");
    assert_true(paid(pool, "pure", "ok") == 1.0f);
    assert_true(paid(pool, "pure", "ok") == 1.0f);
    assert_true(paid(pool, "drawn", "ok") == 1.0f);
    assert_true(paid(pool, "drawn", "ok") == 2.0f);
    expect_cached(pool, 1);
    /* Time limits, and what is no verdict, may come out otherwise. */
    assert_true(paid(pool, "pure", "time_limit") == 2.0f);
    assert_true(paid(pool, "pure", "time_limit") == 3.0f);
    assert_true(paid(pool, "pure", "undecided") == 4.0f);
    assert_true(paid(pool, "pure", "undecided") == 5.0f);
    expect_cached(pool, 1);
    assert_true(paid(pool, "pure", "memory_limit") == 6.0f);
    assert_true(paid(pool, "pure", "memory_limit") == 6.0f);
    expect_cached(pool, 2);
    ifl_reward_pool_free(pool);
}

static void test_compositions_are_as_pure_as_the_parts_that_ran(void **state) {
    (void)state;
    ifl_error why;
    ifl_reward_pool *pool = pool_of(
        1, 10000, 1 << 20,
        "{\"pure\": {\"use\": \"process\", \"command\": [\"/proc/self/exe\", \"pure\"]},"
        "\"drawn\": {\"use\": \"process\", \"command\": [\"/proc/self/exe\", \"drawn\"]},"
        "\"seven\": {\"use\": \"format\", \"options\": {\"regex\": \"7\"}},"
        "\"eight\": {\"use\": \"format\", \"options\": {\"regex\": \"8\"}},"
        "\"fine\": {\"use\": \"product\", \"parts\": [{\"checker\": \"seven\"}, {\"checker\": "
        "\"pure\"}]},"
        "\"mixed\": {\"use\": \"product\", \"parts\": [{\"checker\": \"seven\"}, {\"checker\": "
        "\"drawn\"}]},"
        "\"gated\": {\"use\": \"product\", \"parts\": [{\"checker\": \"eight\"}, {\"checker\": "
        "\"drawn\"}]}}");
    static const struct {
        const char *checker;
        int n_cached;
    } cases[] = {{"fine", 2}, {"mixed", 2}, {"gated", 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int k = 0; k < 3; k++) {
            ifl_reward_request request = request_of(9, cases[i].checker, "ok", "7");
            assert_true(ifl_reward_is_verdict(ask(pool, &request, &why).status));
        }
        expect_cached(pool, cases[i].n_cached);
    }
    /* A part's time limit is in the sum as well, though another part gives it its status. */
    ifl_reward_pool_free(pool);
    pool = pool_of(1, 10000, 1 << 20,
                   "{\"pure\": {\"use\": \"process\", \"command\": [\"/proc/self/exe\", \"pure\"]},"
                   "\"whole\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"exact\", "
                   "\"weight\": 0.5}, {\"checker\": \"pure\", \"weight\": 0.5}]}}");
    for (int k = 0; k < 2; k++) {
        ifl_reward_request request = request_of(9, "whole", "time_limit", "7");
        assert_int_equal(ask(pool, &request, &why).status, IFL_REWARD_WRONG);
    }
    expect_cached(pool, 0);
    ifl_reward_pool_free(pool);
}

/* A plug-in that starts again may be another one. */
static void test_a_new_worker_of_plugins_forgets(void **state) {
    (void)state;
    ifl_error why;
    ifl_reward_pool *pool =
        pool_of(1, 10000, 1 << 20,
                "{\"pure\": {\"use\": \"process\", \"command\": [\"/proc/self/exe\", \"pure\"]}}");
    paid(pool, "pure", "ok");
    paid(pool, "pure", "ok");
    expect_cached(pool, 1);
    ifl_reward_request end = request_of(9, "pure", "end", "7");
    assert_int_equal(ask(pool, &end, &why).status, IFL_REWARD_CHECKER_ERROR);
    ifl_reward_request other = request_of(9, "exact", "7", "7"); /* waits for the new one */
    ask(pool, &other, &why);
    paid(pool, "pure", "ok");
    expect_cached(pool, 1);
    ifl_reward_pool_free(pool);
}

int main(int argc, char **argv) {
    const char *role = argc == 2 ? argv[1] : "";
    if (!strcmp(role, "reward-worker")) return ifl_reward_worker_main(0, 1);
    if (!strcmp(role, "pure") || !strcmp(role, "drawn")) return plugin_main(role[0] == 'p');
    setenv(IFL_REWARD_TEST_FAULTS, "1", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lanes_take_turns),
        cmocka_unit_test(test_the_last_free_worker_is_not_for_who_holds_one),
        cmocka_unit_test(test_more_checkers_than_lanes_share_the_last),
        cmocka_unit_test(test_slow_checker_does_not_starve_a_fast_one),
        cmocka_unit_test(test_cache_keeps_what_was_used_last_within_its_bytes),
        cmocka_unit_test(test_only_the_same_request_has_the_same_verdict),
        cmocka_unit_test(test_what_waits_is_answered_by_the_first),
        cmocka_unit_test(test_plugins_say_whether_they_are_pure),
        cmocka_unit_test(test_compositions_are_as_pure_as_the_parts_that_ran),
        cmocka_unit_test(test_a_new_worker_of_plugins_forgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

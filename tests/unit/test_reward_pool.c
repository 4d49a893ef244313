/* The pool against workers that misbehave. This program is its own worker: see main. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "rewards/message.h"
#include "rewards/reward.h"

#define TIMEOUT_MS 300
#define PATIENCE_MS 20000

static ifl_reward_pool *pool_of(int32_t n_workers, int32_t timeout_ms, int32_t queue_max) {
    ifl_reward_pool_options options = {
        .n_workers = n_workers, .timeout_ms = timeout_ms, .queue_max = queue_max};
    ifl_reward_pool *pool = NULL;
    ifl_error err = {0};
    if (ifl_reward_pool_create(&pool, &options, &err) != IFL_OK) fail_msg("%s", err.text);
    return pool;
}

static ifl_status submit(ifl_reward_pool *pool, uint64_t id, const char *checker,
                         const char *answer, const char *completion) {
    ifl_reward_request request = {.id = id,
                                  .checker = checker,
                                  .prompt = "p",
                                  .completion = completion,
                                  .n_completion = strlen(completion),
                                  .answer = answer,
                                  .meta = "",
                                  .finish = IFL_FINISH_EOS};
    return ifl_reward_pool_submit(pool, &request, NULL);
}

static ifl_reward collect(ifl_reward_pool *pool, uint64_t *id, ifl_error *err) {
    ifl_reward out;
    ifl_status st = ifl_reward_pool_collect(pool, PATIENCE_MS, id, &out, err);
    if (st != IFL_OK) fail_msg("no result: %s", err->text);
    return out;
}

static void expect_fault(ifl_reward_pool *pool, const char *fault, const char *cause) {
    uint64_t id = 0;
    ifl_error err = {0};
    assert_int_equal(submit(pool, 77, "test_fault", fault, ""), IFL_OK);
    ifl_reward r = collect(pool, &id, &err);
    assert_int_equal(id, 77);
    if (r.status != IFL_REWARD_CHECKER_ERROR || !strstr(err.text, cause))
        fail_msg("%s: got status %d, '%s'", fault, (int)r.status, err.text);
    assert_true(r.reward == 0.0f);
    assert_int_equal(ifl_reward_pool_pending(pool), 0);
}

static void expect_alive(ifl_reward_pool *pool) {
    uint64_t id = 0;
    ifl_error err = {0};
    assert_int_equal(submit(pool, 5, "exact", "12", " 12\n"), IFL_OK);
    ifl_reward r = collect(pool, &id, &err);
    assert_int_equal(id, 5);
    assert_int_equal(r.status, IFL_REWARD_OK);
    assert_true(r.reward == 1.0f);
    assert_string_equal(r.checker, "exact/1");
}

static int descriptors_count(void) {
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

typedef struct process_stat {
    int pid, parent, group;
    char letter;
} process_stat;

/* The next process of /proc; false at the end. */
static bool process_next(DIR *dir, process_stat *out) {
    for (struct dirent *e; (e = readdir(dir));) {
        char path[300], line[512] = "";
        snprintf(path, sizeof path, "/proc/%s/stat", e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        if (!fgets(line, sizeof line, f)) line[0] = '\0';
        fclose(f);
        const char *rest = strrchr(line, ')');
        out->pid = atoi(line);
        if (rest && sscanf(rest, ") %c %d %d", &out->letter, &out->parent, &out->group) == 3)
            return true;
    }
    return false;
}

/* Children of this process, zombies included; *last is one of them. */
static int children_count(pid_t *last) {
    int n = 0;
    process_stat p;
    DIR *dir = opendir("/proc");
    assert_non_null(dir);
    while (process_next(dir, &p)) {
        if (p.parent != getpid()) continue;
        *last = p.pid;
        n++;
    }
    closedir(dir);
    return n;
}

static int workers_count(void) {
    pid_t ignored;
    return children_count(&ignored);
}

static pid_t child_find(void) {
    pid_t child = 0;
    assert_int_equal(children_count(&child), 1);
    return child;
}

/* Orphaned zombies wait for whoever is process 1 here: they don't count as alive. */
static bool group_is_gone(pid_t group) {
    for (int i = 0; i < 500; i++) {
        int n = 0;
        process_stat p;
        DIR *dir = opendir("/proc");
        assert_non_null(dir);
        while (process_next(dir, &p))
            n += p.group == group && p.letter != 'Z' && p.letter != 'X';
        closedir(dir);
        if (n == 0) return true;
        ifl_sleep_ms(10);
    }
    return false;
}

static void test_thousand_requests_through_two_workers(void **state) {
    (void)state;
    int descriptors = descriptors_count(), workers = workers_count();
    ifl_reward_pool *pool = pool_of(2, 10000, 16);
    static uint8_t seen[1000];
    int n_done = 0, n_right = 0;
    for (uint64_t sent = 0; n_done < 1000;) {
        char answer[32], completion[64];
        snprintf(answer, sizeof answer, "%d", (int)sent);
        snprintf(completion, sizeof completion, "it is %d", (int)(sent % 3 ? sent : sent + 1));
        if (sent < 1000 && submit(pool, sent, "numeric", answer, completion) == IFL_OK) {
            sent++;
            continue;
        }
        uint64_t id = 0;
        ifl_error err = {0};
        ifl_reward r = collect(pool, &id, &err);
        assert_true(ifl_reward_is_verdict(r.status));
        assert_in_range(id, 0, 999);
        assert_int_equal(seen[id], 0);
        seen[id] = 1;
        assert_true(r.reward == (id % 3 ? 1.0f : 0.0f));
        assert_true(r.run_s >= 0 && r.queued_s >= 0);
        n_right += r.reward == 1.0f;
        n_done++;
    }
    assert_int_equal(n_right, 666);
    assert_int_equal(workers_count(), workers + 2);
    ifl_reward_pool_free(pool);
    assert_int_equal(descriptors_count(), descriptors);
    assert_int_equal(workers_count(), workers);
}

static void test_late_worker_is_killed_and_replaced(void **state) {
    (void)state;
    int descriptors = descriptors_count(), workers = workers_count();
    ifl_reward_pool *pool = pool_of(1, TIMEOUT_MS, 4);
    static const char *const faults[] = {"sleep", "spin"};
    for (int i = 0; i < 2; i++) {
        double begin = ifl_clock_s();
        expect_fault(pool, faults[i], "timeout: no result within 300 ms");
        double took = ifl_clock_s() - begin;
        assert_true(took >= TIMEOUT_MS * 1e-3 && took < TIMEOUT_MS * 1e-3 + 1.0);
        expect_alive(pool);
    }
    assert_int_equal(workers_count(), workers + 1);
    ifl_reward_pool_free(pool);
    assert_int_equal(descriptors_count(), descriptors);
    assert_int_equal(workers_count(), workers);
}

/* A decode step on a busy machine can take longer than the limit; the worker has answered long
 * before, and a reward thrown away would cost a trajectory. */
static void test_answer_is_taken_when_the_caller_was_away(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(1, TIMEOUT_MS, 8);
    uint64_t id = 0;
    ifl_error err = {0};
    ifl_reward r;
    expect_alive(pool);
    assert_int_equal(submit(pool, 6, "exact", "12", "12"), IFL_OK);
    (void)ifl_reward_pool_collect(pool, 0, &id, &r, &err); /* dispatches */
    if (id != 6) {
        usleep(2 * TIMEOUT_MS * 1000);
        r = collect(pool, &id, &err);
    }
    assert_int_equal(id, 6);
    if (r.status != IFL_REWARD_OK) fail_msg("status %d: %s", (int)r.status, err.text);
    assert_true(r.reward == 1.0f);
    ifl_reward_pool_free(pool);
}

static void test_crash_names_its_signal(void **state) {
    (void)state;
    int descriptors = descriptors_count(), workers = workers_count();
    ifl_reward_pool *pool = pool_of(1, 10000, 4);
    expect_fault(pool, "crash", "crashed with signal 11");
    expect_alive(pool);
    expect_fault(pool, "exit", "exited with status 7");
    expect_alive(pool);
    expect_fault(pool, "fail", "failed as asked");
    expect_alive(pool);
    ifl_reward_pool_free(pool);
    assert_int_equal(descriptors_count(), descriptors);
    assert_int_equal(workers_count(), workers);
}

static void test_garbage_is_refused(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(1, 10000, 4);
    static const char *const faults[] = {"garbage", "flood", "nan"};
    for (int i = 0; i < 3; i++) {
        expect_fault(pool, faults[i], "garbage");
        expect_alive(pool);
    }
    ifl_reward_pool_free(pool);
}

/* One stuck request must not hold up the others. */
static void test_stuck_worker_does_not_stop_the_rest(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(2, 2000, 64);
    double begin = ifl_clock_s();
    assert_int_equal(submit(pool, 1000, "test_fault", "sleep", ""), IFL_OK);
    for (uint64_t i = 0; i < 50; i++)
        assert_int_equal(submit(pool, i, "exact", "1", "1"), IFL_OK);
    for (int i = 0; i < 50; i++) {
        uint64_t id = 0;
        ifl_error err = {0};
        assert_int_equal(collect(pool, &id, &err).status, IFL_REWARD_OK);
        assert_true(id < 50);
    }
    assert_true(ifl_clock_s() - begin < 1.9);
    assert_int_equal(ifl_reward_pool_pending(pool), 1);
    ifl_reward_pool_free(pool);
}

static void test_grandchildren_die_with_their_worker(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(1, TIMEOUT_MS, 4);
    pid_t worker = child_find();
    assert_true(worker > 0);
    expect_fault(pool, "fork", "timeout");
    expect_alive(pool); /* so that the old one is reaped */
    assert_true(group_is_gone(worker));
    ifl_reward_pool_free(pool);
}

static void test_idle_worker_that_dies_is_replaced(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(1, 10000, 4);
    kill(child_find(), SIGKILL);
    ifl_sleep_ms(50);
    uint64_t id;
    ifl_reward r;
    for (int i = 0; i < 20; i++) /* the pool notices when it is next looked after */
        assert_int_equal(ifl_reward_pool_collect(pool, 0, &id, &r, NULL), IFL_AGAIN);
    expect_alive(pool);
    ifl_reward_pool_free(pool);
}

static void test_full_queue_says_so(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(1, 10000, 3);
    assert_int_equal(submit(pool, 0, "test_fault", "sleep", ""), IFL_OK);
    for (uint64_t i = 1; i <= 3; i++)
        assert_int_equal(submit(pool, i, "exact", "1", "1"), IFL_OK);
    assert_int_equal(submit(pool, 4, "exact", "1", "1"), IFL_FULL);
    assert_int_equal(ifl_reward_pool_pending(pool), 4);
    ifl_reward_pool_free(pool);
}

static void test_limits_of_texts(void **state) {
    (void)state;
    ifl_reward_pool *pool = pool_of(1, 10000, 4);
    size_t n = IFL_ANSWER_BYTES_MAX;
    char *text = malloc(n + 2);
    assert_non_null(text);
    memset(text, ' ', n + 1);
    text[n + 1] = '\0';
    text[0] = '7';
    uint64_t id = 0;
    ifl_error err = {0};
    assert_int_equal(submit(pool, 1, "exact", "7", text), IFL_OK); /* one byte too long */
    ifl_reward r = collect(pool, &id, &err);
    assert_int_equal(r.status, IFL_REWARD_UNDECIDED);
    assert_non_null(strstr(err.text, "1048577 bytes"));
    text[n] = '\0';
    assert_int_equal(submit(pool, 2, "exact", "7", text), IFL_OK);
    r = collect(pool, &id, &err);
    assert_int_equal(r.status, IFL_REWARD_OK);
    assert_true(r.reward == 1.0f);
    assert_int_equal(submit(pool, 3, "no such", "7", "7"), IFL_OK);
    r = collect(pool, &id, &err);
    assert_int_equal(r.status, IFL_REWARD_BAD_TASK);
    assert_non_null(strstr(err.text, "exact numeric format"));
    free(text);
    ifl_reward_pool_free(pool);
}

static void test_wrong_programs_and_options_are_refused(void **state) {
    (void)state;
    int descriptors = descriptors_count(), workers = workers_count();
    static const char *const programs[] = {"/no/such/program", "/bin/true", "/bin/echo",
                                           "/bin/cat"};
    for (int i = 0; i < 3; i++) {
        ifl_reward_pool_options options = {
            .n_workers = 2, .timeout_ms = 1000, .queue_max = 4, .program = programs[i]};
        ifl_reward_pool *pool = NULL;
        ifl_error err = {0};
        assert_int_equal(ifl_reward_pool_create(&pool, &options, &err), IFL_PEER);
        assert_null(pool);
        assert_non_null(strstr(err.text, programs[i]));
    }
    static const int32_t wrong[][3] = {{0, 1000, 4}, {257, 1000, 4}, {1, 0, 4}, {1, 1000, 0}};
    for (int i = 0; i < 4; i++) {
        ifl_reward_pool_options options = {
            .n_workers = wrong[i][0], .timeout_ms = wrong[i][1], .queue_max = wrong[i][2]};
        ifl_reward_pool *pool = NULL;
        assert_int_equal(ifl_reward_pool_create(&pool, &options, NULL), IFL_USAGE);
    }
    assert_int_equal(descriptors_count(), descriptors);
    assert_int_equal(workers_count(), workers);
}

static volatile int threads_stop;
static void *thread_allocate(void *arg) {
    while (!threads_stop)
        free(malloc(4096));
    return arg;
}

/* Replacing a worker while other threads hold locks of malloc: what a fork would deadlock on. */
static void test_replacement_works_beside_threads(void **state) {
    (void)state;
    pthread_t threads[4];
    threads_stop = 0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, thread_allocate, NULL), 0);
    ifl_reward_pool *pool = pool_of(2, 10000, 4);
    for (int i = 0; i < 20; i++)
        expect_fault(pool, "exit", "exited with status 7");
    expect_alive(pool);
    threads_stop = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    ifl_reward_pool_free(pool);
}

/* An actor that is killed leaves no worker behind, not even one that is stuck in a checker. */
static void test_workers_die_with_their_parent(void **state) {
    (void)state;
    int report[2];
    assert_int_equal(pipe(report), 0);
    pid_t actor = fork();
    assert_true(actor >= 0);
    if (actor == 0) {
        ifl_reward_pool *pool = pool_of(1, 100000, 4);
        submit(pool, 1, "test_fault", "spin", "");
        pid_t worker = child_find();
        if (write(report[1], &worker, sizeof worker) != sizeof worker) _exit(1);
        for (;;)
            pause();
    }
    pid_t worker = 0;
    assert_int_equal(read(report[0], &worker, sizeof worker), sizeof worker);
    assert_true(worker > 0);
    assert_int_equal(kill(worker, 0), 0);
    kill(actor, SIGKILL);
    waitpid(actor, NULL, 0);
    assert_true(group_is_gone(worker));
    close(report[0]);
    close(report[1]);
}

static void test_worker_sees_no_descriptor_and_no_secret(void **state) {
    (void)state;
    int secret = open("/etc/hostname", O_RDONLY); /* without O_CLOEXEC, as libraries sometimes do */
    assert_true(secret >= 0);
    setenv("SECRET_TOKEN", "hunter2", 1);
    ifl_reward_pool *pool = pool_of(1, 10000, 4);
    char path[64], text[4096];
    pid_t worker = child_find();
    snprintf(path, sizeof path, "/proc/%d/environ", worker);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    ssize_t n = read(fd, text, sizeof text);
    close(fd);
    assert_true(n > 0);
    assert_null(memmem(text, (size_t)n, "SECRET", 6));
    assert_non_null(memmem(text, (size_t)n, "LC_ALL=C.UTF-8", 14));
    int n_fds = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", worker);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        n_fds++;
    closedir(dir);
    assert_int_equal(n_fds, 2 + 5); /* ".", "..", stdin, stdout, stderr and the socket twice */
    close(secret);
    unsetenv("SECRET_TOKEN");
    ifl_reward_pool_free(pool);
}

/* Every cut and every flipped byte of a message: refused or harmless, never a wild read. */
static void test_messages_are_checked(void **state) {
    (void)state;
    ifl_reward_request request = {.id = 9,
                                  .checker = "exact",
                                  .prompt = "p",
                                  .completion = "a\0b",
                                  .n_completion = 3,
                                  .answer = "1",
                                  .meta = "{}",
                                  .finish = IFL_FINISH_STOP},
                       back;
    uint8_t *frame = NULL;
    size_t n = 0;
    assert_int_equal(ifl_reward_request_encode(&request, &frame, &n, NULL), IFL_OK);
    assert_int_equal(ifl_reward_frame_length(frame), n - 4);
    assert_int_equal(ifl_reward_request_decode(frame + 4, n - 4, &back, NULL), IFL_OK);
    assert_int_equal(back.n_completion, 3);
    assert_memory_equal(back.completion, "a\0b", 4);
    assert_string_equal(back.meta, "{}");
    assert_int_equal(back.finish, IFL_FINISH_STOP);
    for (size_t cut = 0; cut < n - 4; cut++) {
        uint8_t *part = malloc(cut ? cut : 1); /* its own block, so that a sanitizer sees the end */
        assert_non_null(part);
        memcpy(part, frame + 4, cut);
        assert_int_equal(ifl_reward_request_decode(part, cut, &back, NULL), IFL_FORMAT);
        free(part);
    }
    for (size_t at = 4; at < n; at++) {
        for (int bit = 0; bit < 8; bit++) {
            frame[at] ^= (uint8_t)(1 << bit);
            (void)ifl_reward_request_decode(frame + 4, n - 4, &back, NULL);
            frame[at] ^= (uint8_t)(1 << bit);
        }
    }
    free(frame);

    ifl_reward reward = {.status = IFL_REWARD_TIME_LIMIT,
                         .reward = 0.5f,
                         .n_components = 1,
                         .config = UINT64_MAX - 1,
                         .tests_passed = 1,
                         .tests_total = 2,
                         .tier = IFL_TIER_NS},
               got;
    strcpy(reward.components[0].name, "form");
    reward.components[0].value = 2.0f;
    strcpy(reward.checker, "x/1");
    uint8_t reply[IFL_REWARD_REPLY_MAX];
    char reason[IFL_REWARD_REASON_MAX];
    uint64_t id = 0;
    uint32_t flags = 0;
    n = ifl_reward_reply_encode(3, &reward, "why", IFL_REPLY_LAST, reply);
    assert_int_equal(ifl_reward_reply_decode(reply + 4, n - 4, &id, &got, reason, &flags, NULL),
                     IFL_OK);
    assert_int_equal(flags, IFL_REPLY_LAST);
    assert_int_equal(id, 3);
    assert_int_equal(got.status, IFL_REWARD_TIME_LIMIT);
    assert_true(got.config == UINT64_MAX - 1 && got.tests_passed == 1 && got.tests_total == 2);
    assert_int_equal(got.tier, IFL_TIER_NS);
    assert_true(got.reward == 0.5f && got.components[0].value == 2.0f);
    assert_string_equal(got.components[0].name, "form");
    assert_string_equal(reason, "why");
    for (size_t cut = 0; cut < n - 4; cut++)
        assert_int_equal(ifl_reward_reply_decode(reply + 4, cut, &id, &got, reason, &flags, NULL),
                         IFL_FORMAT);
    reward.reward = 1.5f;
    n = ifl_reward_reply_encode(3, &reward, "", 0, reply);
    assert_int_equal(ifl_reward_reply_decode(reply + 4, n - 4, &id, &got, reason, &flags, NULL),
                     IFL_FORMAT);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "reward-worker") == 0) return ifl_reward_worker_main(0, 1);
    setenv(IFL_REWARD_TEST_FAULTS, "1", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thousand_requests_through_two_workers),
        cmocka_unit_test(test_late_worker_is_killed_and_replaced),
        cmocka_unit_test(test_answer_is_taken_when_the_caller_was_away),
        cmocka_unit_test(test_crash_names_its_signal),
        cmocka_unit_test(test_garbage_is_refused),
        cmocka_unit_test(test_stuck_worker_does_not_stop_the_rest),
        cmocka_unit_test(test_grandchildren_die_with_their_worker),
        cmocka_unit_test(test_idle_worker_that_dies_is_replaced),
        cmocka_unit_test(test_full_queue_says_so),
        cmocka_unit_test(test_limits_of_texts),
        cmocka_unit_test(test_wrong_programs_and_options_are_refused),
        cmocka_unit_test(test_replacement_works_beside_threads),
        cmocka_unit_test(test_workers_die_with_their_parent),
        cmocka_unit_test(test_worker_sees_no_descriptor_and_no_secret),
        cmocka_unit_test(test_messages_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

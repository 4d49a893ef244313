/* Every program in tests/sandbox/attacks gets the verdict that its first line says, while seven
 * neighbours run and every second of them is honest; nothing is left of any. As who runs the test,
 * and, when that is root, as an ordinary user too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "rewards/code/code.h"

#define N_WORKERS 8
#define PROGRAMS_MAX 256
#define WALL_MS 2000
#define NOBODY 65534
/* The bound is the limit and two seconds; a machine whose cores are all taken gets more. */
#define LATE_S 30.0

typedef struct program {
    char name[64], expect[64], checker[32];
    char *completion;
    const char *language;
} program;

/* An emulated machine is many times slower than what the programs' limits are made for: with
 * IFL_TEST_EMULATED=1 they get more time and fewer neighbours, and C++, whose compiler takes longer
 * than its limit there, is left out. */
static bool emulated;
static int wall_ms = WALL_MS, n_workers = N_WORKERS;

static program programs[PROGRAMS_MAX];
static int n_programs;

static const char unit_answer[] =
    "{\"tests\": [\"assert f(3) == 924327\", \"assert f(10) == 897640\"]}";
static const char stdio_answer[] =
    "{\"tests\": [{\"input\": \"3 10\\n\", \"output\": \"924327 897640\\n\"}]}";

static char *text_read(const char *path) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = calloc(1, 65536);
    assert_non_null(text);
    size_t n = fread(text, 1, 65535, f);
    assert_true(n > 0 && n < 65535);
    fclose(f);
    return text;
}

static void header_read(const char *text, const char *key, char *to, size_t n_max) {
    const char *at = strstr(text, key);
    assert_non_null(at);
    at += strlen(key);
    size_t n = strcspn(at, "\n");
    assert_true(n > 0 && n < n_max);
    memcpy(to, at, n);
    to[n] = '\0';
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const program *)a)->name, ((const program *)b)->name);
}

static void programs_read(void) {
    DIR *folder = opendir(IFL_GOLDEN_DIR "/../sandbox/attacks");
    assert_non_null(folder);
    for (struct dirent *e; (e = readdir(folder));) {
        const char *dot = strrchr(e->d_name, '.');
        if (e->d_name[0] == '.' || !dot) continue;
        if (emulated && !strcmp(dot, ".cc")) continue;
        assert_true(n_programs < PROGRAMS_MAX);
        program *p = &programs[n_programs++];
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", IFL_GOLDEN_DIR "/../sandbox/attacks", e->d_name);
        char *text = text_read(path);
        snprintf(p->name, sizeof p->name, "%.60s", e->d_name);
        header_read(text, " expect: ", p->expect, sizeof p->expect);
        header_read(text, " checker: ", p->checker, sizeof p->checker);
        p->language = !strcmp(dot, ".py") ? "python" : !strcmp(dot, ".c") ? "c" : "cpp";
        assert_true(asprintf(&p->completion, "So:\n```%s\n%s```\n", p->language, text) > 0);
        free(text);
    }
    closedir(folder);
    qsort(programs, (size_t)n_programs, sizeof *programs, by_name);
}

/* Of this process, living or not yet reaped. */
static int descendants_count(void) {
    static struct {
        int pid, parent;
        bool ours;
    } rows[65536];
    int n = 0, count = 0;
    DIR *proc = opendir("/proc");
    assert_non_null(proc);
    for (struct dirent *e; (e = readdir(proc)) && n < 65536;) {
        char path[300], text[512];
        int pid = (int)strtol(e->d_name, NULL, 10);
        if (pid <= 0) continue;
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        int fd = open(path, O_RDONLY);
        if (fd < 0) continue;
        ssize_t got = read(fd, text, sizeof text - 1);
        close(fd);
        if (got <= 0) continue;
        text[got] = '\0';
        const char *at = strrchr(text, ')');
        if (!at) continue;
        rows[n].pid = pid;
        rows[n].parent = (int)strtol(at + 4, NULL, 10);
        rows[n].ours = pid == getpid();
        n++;
    }
    closedir(proc);
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n && !rows[i].ours; j++)
                if (rows[j].ours && rows[i].parent == rows[j].pid) {
                    rows[i].ours = more = true;
                    count++;
                }
    }
    return count;
}

static int descriptors_count(void) {
    int n = 0;
    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static bool verdict_matches(const char *expect, const char *got) {
    size_t n = strlen(got);
    for (const char *at = expect; at; at = strchr(at, '|')) {
        if (*at == '|') at++;
        size_t length = strcspn(at, "|");
        if (length == n && memcmp(at, got, n) == 0) return true;
    }
    return false;
}

static int n_wrong;
static ifl_sandbox_tier tier; /* of the last answer */

static void result_check(const program *p, const ifl_reward *r, const ifl_error *err) {
    const char *got = ifl_reward_status_name(r->status);
    bool honest = !strcmp(p->expect, "ok");
    bool fine = ifl_reward_is_verdict(r->status) && r->reward == (honest ? 1.0f : 0.0f) &&
                verdict_matches(p->expect, got);
    int limit_ms = !strcmp(p->language, "python") ? 2 * wall_ms : 60000;
    bool late = (double)r->run_s > limit_ms * 1e-3 + LATE_S;
    if (fine && !late) return;
    n_wrong++;
    print_message("%s: status %s, reward %g, wanted %s; %.1f s; %s\n", p->name, got,
                  (double)r->reward, p->expect, (double)r->run_s, err->text);
}

/* Attacks by turns with honest programs, which neighbours must not disturb. */
static int order_make(int *order) {
    int honest[PROGRAMS_MAX], n_honest = 0, n = 0, next = 0;
    for (int i = 0; i < n_programs; i++)
        if (!strcmp(programs[i].expect, "ok")) honest[n_honest++] = i;
    assert_true(n_honest >= 7 && n_programs - n_honest >= 60);
    for (int i = 0; i < n_programs; i++) {
        if (!strcmp(programs[i].expect, "ok")) continue;
        order[n++] = i;
        order[n++] = honest[next++ % n_honest];
    }
    return n;
}

static void collect(ifl_reward_pool *pool, const int *order, float *slowest) {
    uint64_t id;
    ifl_reward r;
    ifl_error err = {0};
    ifl_status st;
    do {
        st = ifl_reward_pool_collect(pool, 1000, &id, &r, &err);
    } while (st == IFL_AGAIN);
    assert_int_equal(st, IFL_OK);
    const program *p = &programs[order[id]];
    if (!strcmp(p->language, "python") && r.run_s > *slowest) *slowest = r.run_s;
    result_check(p, &r, &err);
    tier = (ifl_sandbox_tier)r.tier;
}

static void all_run(void) {
    static int order[2 * PROGRAMS_MAX];
    int n = order_make(order), n_before = descriptors_count();
    ifl_reward_pool *pool = NULL;
    ifl_error err = {0};
    ifl_reward_pool_options options = {.n_workers = n_workers,
                                       .timeout_ms = 120000,
                                       .queue_max = 4 * PROGRAMS_MAX,
                                       .program = IFL_BINARY};
    assert_int_equal(descendants_count(), 0);
    if (ifl_reward_pool_create(&pool, &options, &err) != IFL_OK) fail_msg("%s", err.text);
    float slowest = 0.0f;
    n_wrong = 0;
    for (int i = 0; i < n; i++) {
        const program *p = &programs[order[i]];
        char meta[256];
        snprintf(meta, sizeof meta,
                 "{\"language\": \"%s\", \"wall_ms\": %d, \"memory_mb\": 256, \"processes\": 16}",
                 p->language, !strcmp(p->expect, "ok") ? 10 * WALL_MS : wall_ms);
        ifl_reward_request request = {.id = (uint64_t)i,
                                      .checker = p->checker,
                                      .completion = p->completion,
                                      .n_completion = strlen(p->completion),
                                      .answer = strcmp(p->checker, "code_unit") ? stdio_answer
                                                                                : unit_answer,
                                      .meta = meta,
                                      .finish = IFL_FINISH_EOS};
        assert_int_equal(ifl_reward_pool_submit(pool, &request, &err), IFL_OK);
    }
    for (int i = 0; i < n; i++)
        collect(pool, order, &slowest);
    print_message(
        "as user %u, tier %s: %d programs, slowest in Python %.1f s (two tests of %.1f s)\n",
        (unsigned)geteuid(), ifl_sandbox_tier_name(tier), n, (double)slowest, wall_ms * 1e-3);
    assert_int_equal(n_wrong, 0);
    /* A worker, its launcher, that one's first process inside, with a cgroup one that waits to take
     * it away, and nothing else. */
    int n_left_max = (tier == IFL_TIER_CGROUP ? 4 : 3) * n_workers;
    for (int i = 0; i < 600 && descendants_count() > n_left_max; i++)
        usleep(100000); /* headers for C++ may be being compiled, beside the answers */
    assert_true(descendants_count() <= n_left_max);
    assert_true(tier == IFL_TIER_NS || tier == IFL_TIER_CGROUP);
    ifl_reward_pool_free(pool);
    assert_int_equal(descendants_count(), 0);
    assert_int_equal(descriptors_count(), n_before);
    static const char *const markers[] = {"/tmp/inflight-attack-marker", "/tmp/state",
                                          "/dev/shm/inflight-attack-marker", "/dev/shm/state"};
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++)
        assert_int_not_equal(access(markers[i], F_OK), 0);
}

static void test_attacks_get_nothing_and_honest_neighbours_all(void **state) {
    (void)state;
    all_run();
}

/* Started as root, the sandbox takes a spare user; here the caller is an ordinary user already. */
static void test_the_same_as_an_ordinary_user(void **state) {
    (void)state;
    if (geteuid() != 0) skip();
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
            setresuid(NOBODY, NOBODY, NOBODY))
            _exit(1);
        if (access(IFL_BINARY, X_OK)) _exit(77);
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
        static const struct CMUnitTest inner[] = {
            cmocka_unit_test(test_attacks_get_nothing_and_honest_neighbours_all)};
        _exit(cmocka_run_group_tests(inner, NULL, NULL) ? 1 : 0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("an ordinary user cannot reach %s\n", IFL_BINARY);
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* A worker killed from outside takes its launcher and a running program along. */
static void test_a_killed_worker_leaves_nothing(void **state) {
    (void)state;
    ifl_reward_pool *pool = NULL;
    ifl_error err = {0};
    ifl_reward_pool_options options = {
        .n_workers = 2, .timeout_ms = 1500, .queue_max = 16, .program = IFL_BINARY};
    assert_int_equal(ifl_reward_pool_create(&pool, &options, &err), IFL_OK);
    static const char hang[] =
        "```python\nimport os, time\nif os.fork() == 0:\n    os.setsid()\nwhile True:\n    "
        "time.sleep(1)\n```";
    for (uint64_t i = 0; i < 2; i++) {
        ifl_reward_request request = {.id = i,
                                      .checker = "code_unit",
                                      .completion = hang,
                                      .n_completion = sizeof hang - 1,
                                      .answer = unit_answer,
                                      .meta = "",
                                      .finish = IFL_FINISH_EOS};
        assert_int_equal(ifl_reward_pool_submit(pool, &request, &err), IFL_OK);
    }
    int64_t until = ifl_clock_ns() + 60000000000ll;
    while (descendants_count() < 2 * 4 && ifl_clock_ns() < until) { /* both in mid-run */
        uint64_t id;
        ifl_reward r;
        if (ifl_reward_pool_collect(pool, 5, &id, &r, &err) == IFL_OK) break;
    }
    ifl_reward_pool_free(pool);
    until = ifl_clock_ns() + 60000000000ll;
    while (descendants_count() > 0 && ifl_clock_ns() < until)
        usleep(10000);
    assert_int_equal(descendants_count(), 0);
}

int main(void) {
    const char *asked = getenv("IFL_TEST_EMULATED");
    emulated = asked && !strcmp(asked, "1");
    if (emulated) {
        wall_ms = 5 * WALL_MS;
        n_workers = 3;
    }
    programs_read();
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attacks_get_nothing_and_honest_neighbours_all),
        cmocka_unit_test(test_the_same_as_an_ordinary_user),
        cmocka_unit_test(test_a_killed_worker_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

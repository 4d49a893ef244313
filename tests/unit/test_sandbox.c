/* The sandbox itself: limits, channels, neighbours, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rewards/sandbox/canary.h"
#include "rewards/sandbox/sandbox_impl.h"

static ifl_sandbox *sandbox;

static int setup(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_status st =
        ifl_sandbox_create(&sandbox, &(ifl_sandbox_options){.program = IFL_BINARY}, &err);
    if (st != IFL_OK) print_message("%s\n", err.text);
    return st != IFL_OK;
}

static int teardown(void **state) {
    (void)state;
    ifl_sandbox_free(sandbox);
    return 0;
}

static ifl_sandbox_spec shell(const char *command) {
    return (ifl_sandbox_spec){.argv = {"/bin/sh", "-c", command},
                              .limits = ifl_sandbox_limits_default()};
}

static ifl_sandbox_result run(const ifl_sandbox_spec *spec) {
    ifl_sandbox_result r;
    ifl_error err = {0};
    if (ifl_sandbox_execute(sandbox, spec, &r, &err) != IFL_OK) fail_msg("%s", err.text);
    return r;
}

static void test_channels_files_and_environment(void **state) {
    (void)state;
    ifl_sandbox_spec spec = shell("cat; cat a.txt; echo problem >&2; echo result >&3; ./b; "
                                  "echo $X $PYTHONHASHSEED $LC_ALL $TZ; exit 3");
    spec.input = "input\n";
    spec.n_input = 6;
    spec.n_files = 2;
    spec.files[0] = (ifl_sandbox_file){"a.txt", "file\n", 5, false};
    spec.files[1] = (ifl_sandbox_file){"b", "#!/bin/sh\necho run\n", 19, true};
    spec.env[0] = "X=7";
    ifl_sandbox_result r = run(&spec);
    assert_int_equal(r.end, IFL_RUN_EXITED);
    assert_int_equal(r.code, 3);
    assert_string_equal(r.out.bytes, "input\nfile\nrun\n7 0 C.UTF-8 UTC\n");
    assert_string_equal(r.err.bytes, "problem\n");
    assert_string_equal(r.channel.bytes, "result\n");
    assert_true(r.wall_us > 0 && r.peak_bytes > 0);
    ifl_sandbox_result_clear(&r);
}

static void test_large_input_and_output_pass(void **state) {
    (void)state;
    size_t n = 4u << 20;
    char *text = malloc(n);
    assert_non_null(text);
    for (size_t i = 0; i < n; i++)
        text[i] = (char)('a' + i % 26);
    ifl_sandbox_spec spec = shell("cat");
    spec.input = text;
    spec.n_input = n;
    spec.limits.output_bytes = n;
    ifl_sandbox_result r = run(&spec);
    assert_int_equal(r.end, IFL_RUN_EXITED);
    assert_int_equal(r.out.n, n);
    assert_memory_equal(r.out.bytes, text, n);
    ifl_sandbox_result_clear(&r);
    spec.limits.output_bytes = n - 1; /* one byte over */
    r = run(&spec);
    assert_int_equal(r.end, IFL_RUN_OUTPUT);
    assert_int_equal(r.out.n, n - 1);
    ifl_sandbox_result_clear(&r);
    spec = shell("exit 0"); /* doesn't read at all */
    spec.input = text;
    spec.n_input = n;
    r = run(&spec);
    assert_int_equal(r.end, IFL_RUN_EXITED);
    ifl_sandbox_result_clear(&r);
    free(text);
}

static void test_ends_are_told_apart(void **state) {
    (void)state;
    static const struct {
        const char *command;
        ifl_run_end end;
        int code;
    } cases[] = {
        {"true", IFL_RUN_EXITED, 0},
        {"exit 7", IFL_RUN_EXITED, 7},
        {"kill -9 $$", IFL_RUN_SIGNALED, SIGKILL},
        {"kill -SEGV $$", IFL_RUN_SIGNALED, SIGSEGV},
        {"kill -SYS $$", IFL_RUN_VIOLATION, SIGSYS},
        {"sleep 100", IFL_RUN_WALL, 0},
        {"while :; do :; done", IFL_RUN_CPU, 0},
        {"sleep 100 & sleep 100 & exit 0", IFL_RUN_EXITED, 0},
        {"yes", IFL_RUN_OUTPUT, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ifl_sandbox_spec spec = shell(cases[i].command);
        spec.limits.cpu_ms = cases[i].end == IFL_RUN_CPU ? 200 : 60000;
        spec.limits.wall_ms = cases[i].end == IFL_RUN_WALL ? 300 : 60000;
        ifl_sandbox_result r = run(&spec);
        if (r.end != cases[i].end || r.code != cases[i].code)
            fail_msg("'%s' ended as %s %d, wanted %s %d", cases[i].command, ifl_run_end_name(r.end),
                     r.code, ifl_run_end_name(cases[i].end), cases[i].code);
        ifl_sandbox_result_clear(&r);
    }
}

static void test_a_missing_program_is_the_hosts_fault(void **state) {
    (void)state;
    ifl_sandbox_spec spec = {.argv = {"/usr/bin/no-such-program"},
                             .limits = ifl_sandbox_limits_default()};
    ifl_sandbox_result r;
    ifl_error err = {0};
    assert_int_equal(ifl_sandbox_execute(sandbox, &spec, &r, &err), IFL_IO);
    assert_non_null(strstr(err.text, "executing the program"));
    ifl_sandbox_result_clear(&r);
    /* but not when the program is what was brought along */
    spec.argv[0] = "/work/b";
    spec.n_files = 1;
    spec.files[0] = (ifl_sandbox_file){"b", "#!/nowhere\n", 11, true};
    r = run(&spec);
    assert_int_equal(r.end, IFL_RUN_EXITED);
    assert_int_equal(r.code, 127);
    ifl_sandbox_result_clear(&r);
}

static void test_wrong_specs_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {"", "../x", "a/b", ".hidden", "a b", "x\n"};
    ifl_sandbox_result r;
    ifl_error err = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        ifl_sandbox_spec spec = shell("true");
        spec.n_files = 1;
        spec.files[0] = (ifl_sandbox_file){names[i], "x", 1, false};
        assert_int_equal(ifl_sandbox_execute(sandbox, &spec, &r, &err), IFL_USAGE);
    }
    ifl_sandbox_spec spec = {.limits = ifl_sandbox_limits_default()};
    assert_int_equal(ifl_sandbox_execute(sandbox, &spec, &r, &err), IFL_USAGE);
    spec = shell("true");
    spec.limits.wall_ms = 0;
    assert_int_equal(ifl_sandbox_execute(sandbox, &spec, &r, &err), IFL_USAGE);
}

static void *neighbour(void *arg) {
    int64_t bad = 0;
    for (int i = 0; i < 10; i++) {
        char command[128], wanted[64];
        ifl_sandbox_result r;
        int number = (int)(intptr_t)arg * 100 + i;
        /* processes count for each run alone */
        snprintf(command, sizeof command,
                 "for i in 1 2 3 4 5 6; do sleep 0.05 & done; wait; echo %d", number);
        snprintf(wanted, sizeof wanted, "%d\n", number);
        ifl_sandbox_spec spec = shell(command);
        spec.limits.processes = 8;
        spec.limits.wall_ms = spec.limits.cpu_ms = 60000;
        ifl_error err = {0};
        ifl_status st = ifl_sandbox_execute(sandbox, &spec, &r, &err);
        if (st != IFL_OK || r.end != IFL_RUN_EXITED || r.code != 0 || !r.out.bytes ||
            strcmp(r.out.bytes, wanted)) {
            print_message("%d: %s %d, status %d %s; %s\n", number, ifl_run_end_name(r.end), r.code,
                          (int)st, err.text, r.err.bytes ? r.err.bytes : "");
            bad++;
        }
        ifl_sandbox_result_clear(&r);
    }
    return (void *)(intptr_t)bad;
}

static void test_threads_share_a_sandbox(void **state) {
    (void)state;
    pthread_t threads[8];
    for (intptr_t i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, neighbour, (void *)i), 0);
    for (int i = 0; i < 8; i++) {
        void *bad;
        assert_int_equal(pthread_join(threads[i], &bad), 0);
        assert_int_equal((intptr_t)bad, 0);
    }
}

static void test_two_runs_can_be_joined(void **state) {
    (void)state;
    int there[2], back[2];
    assert_int_equal(pipe2(there, O_CLOEXEC), 0);
    assert_int_equal(pipe2(back, O_CLOEXEC), 0);
    ifl_sandbox_spec asks = shell("echo 20 >&4; read x; echo got $x"),
                     answers = shell("while read x; do echo $((x + 1)) >&3; done; sleep 100");
    asks.input_fd = back[0];
    asks.extra_fd = there[1];
    answers.input_fd = there[0];
    answers.result_fd = back[1];
    ifl_sandbox_run *runs[2];
    ifl_sandbox_result results[2];
    ifl_error err = {0};
    assert_int_equal(ifl_sandbox_start(sandbox, &asks, &runs[0], &err), IFL_OK);
    assert_int_equal(ifl_sandbox_start(sandbox, &answers, &runs[1], &err), IFL_OK);
    for (int i = 0; i < 2; i++) {
        close(there[i]);
        close(back[i]);
    }
    assert_int_equal(ifl_sandbox_wait(runs, 2, results, &err), IFL_OK);
    assert_string_equal(results[0].out.bytes, "got 21\n");
    assert_int_equal(results[1].end, IFL_RUN_KILLED);
    ifl_sandbox_result_clear(&results[0]);
    ifl_sandbox_result_clear(&results[1]);
}

static void test_a_launcher_that_dies_is_noticed(void **state) {
    (void)state;
    ifl_sandbox *s = NULL;
    ifl_error err = {0};
    ifl_sandbox_options options = {.program = IFL_BINARY, .skip_canaries = true};
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_OK);
    ifl_sandbox_spec spec = shell("sleep 100");
    ifl_sandbox_run *r;
    ifl_sandbox_result result;
    assert_int_equal(ifl_sandbox_start(s, &spec, &r, &err), IFL_OK);
    assert_int_equal(kill(s->pid, SIGKILL), 0);
    assert_int_equal(ifl_sandbox_wait(&r, 1, &result, &err), IFL_PEER);
    assert_int_equal(ifl_sandbox_execute(s, &spec, &result, &err), IFL_PEER);
    ifl_sandbox_free(s);
}

/* Cgroups of launchers, wherever they are; how many, and one of them. */
static int cgroups_find(char first[512]) {
    int n = 0;
    char line[512];
    FILE *f = popen("find /sys/fs/cgroup -type d -name 'inflight-[0-9]*' 2>/dev/null", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (n++ == 0) snprintf(first, 512, "%.*s", (int)strcspn(line, "\n"), line);
    pclose(f);
    return n;
}

static int runs_count(const char *node) {
    char command[600], text[32] = "";
    snprintf(command, sizeof command, "find %s -type d -name 'run-*' | wc -l", node);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_non_null(fgets(text, sizeof text, f));
    pclose(f);
    return atoi(text);
}

/* Where the host lends cgroups, only. */
static void test_cgroups_limit_and_leave_nothing(void **state) {
    (void)state;
    char node[512] = "", other[512];
    if (ifl_sandbox_measured(sandbox) != IFL_TIER_CGROUP) skip();
    ifl_sandbox *s = NULL;
    ifl_error err = {0};
    ifl_sandbox_options options = {.program = IFL_BINARY};
    usleep(200000); /* until the processes of the launcher that another test killed are gone */
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_OK);
    ifl_sandbox_free(s);
    assert_int_equal(cgroups_find(node), 1); /* ours */
    ifl_sandbox_spec spec = shell("for i in 1 2 3; do sleep 0.01 & done; wait; echo done");
    for (int i = 0; i < 5; i++) {
        ifl_sandbox_result r = run(&spec);
        assert_string_equal(r.out.bytes, "done\n");
        assert_true(r.cpu_us > 0);
        ifl_sandbox_result_clear(&r);
    }
    assert_int_equal(runs_count(node), 0);
    /* each process far below its own limit, all together above that of the run */
    spec = shell("for i in 1 2 3 4; do head -c 60000000 /dev/zero | tail -c 60000000 | (sleep 60; "
                 "cat > /dev/null) & done; wait");
    spec.limits.memory_bytes = 96u << 20;
    spec.limits.wall_ms = spec.limits.cpu_ms = 50000;
    ifl_sandbox_result r = run(&spec);
    assert_int_equal(r.end, IFL_RUN_MEMORY);
    ifl_sandbox_result_clear(&r);
    assert_int_equal(runs_count(node), 0);
    /* the next start takes away what one that was killed has left; a living one's stays */
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_OK);
    assert_int_equal(cgroups_find(other), 2);
    assert_int_equal(kill(s->pid, SIGKILL), 0);
    s->tidy = false;
    ifl_sandbox_free(s);
    assert_int_equal(cgroups_find(other), 2);
    usleep(200000); /* until its processes are gone */
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_OK);
    assert_int_equal(cgroups_find(other), 2);
    ifl_sandbox_free(s);
    assert_int_equal(cgroups_find(other), 1);
    assert_string_equal(other, node);
}

static void test_creation_says_what_is_wrong(void **state) {
    (void)state;
    ifl_sandbox *s;
    ifl_error err = {0};
    ifl_sandbox_options options = {.program = "/no/such/program"};
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_IO);
    assert_non_null(strstr(err.text, "/no/such/program"));
    options = (ifl_sandbox_options){.program = "/bin/false"};
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_PEER);
    options = (ifl_sandbox_options){.program = IFL_BINARY, .show = {"relative"}};
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_USAGE);
    if (geteuid() != 0) return;
    /* root's own number is no spare user */
    options = (ifl_sandbox_options){.program = IFL_BINARY, .uid_first = 0, .n_uids = 1};
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_UNSUPPORTED);
    assert_non_null(strstr(err.text, "spare user"));
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_channels_files_and_environment),
        cmocka_unit_test(test_large_input_and_output_pass),
        cmocka_unit_test(test_ends_are_told_apart),
        cmocka_unit_test(test_a_missing_program_is_the_hosts_fault),
        cmocka_unit_test(test_wrong_specs_are_refused),
        cmocka_unit_test(test_threads_share_a_sandbox),
        cmocka_unit_test(test_two_runs_can_be_joined),
        cmocka_unit_test(test_a_launcher_that_dies_is_noticed),
        cmocka_unit_test(test_cgroups_limit_and_leave_nothing),
        cmocka_unit_test(test_creation_says_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* Which runs need a sandbox, and what they are told when the host has none that is good enough. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rewards/message.h"
#include "rewards/programs.h"
#include "rewards/sandbox/sandbox.h"

static void test_checkers_with_programs_are_found_in_compositions(void **state) {
    (void)state;
    static const char json[] =
        "{\"own\": {\"use\": \"code_stdio\"}, \"plain\": {\"use\": \"math\"}, "
        "\"gate\": {\"use\": \"product\", \"parts\": [{\"checker\": \"plain\"}, {\"checker\": "
        "\"deep\"}]}, \"deep\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"code_unit\"}]}, "
        "\"light\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"plain\"}, {\"checker\": "
        "\"exact\"}], \"clip\": [0, 1]}}";
    static const struct {
        const char *name;
        bool runs;
    } cases[] = {{"code_unit", true}, {"code_stdio", true}, {"own", true},    {"gate", true},
                 {"deep", true},      {"math", false},      {"plain", false}, {"light", false},
                 {"nobody", false},   {"", false}};
    ifl_spec *spec;
    ifl_error err = {0};
    if (ifl_spec_parse(&spec, json, &err) != IFL_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (ifl_checker_runs_programs(spec, cases[i].name) != cases[i].runs)
            fail_msg("%s: wanted %d", cases[i].name, cases[i].runs);
    ifl_spec_free(spec);
}

static void test_configurations_with_programs_are_found(void **state) {
    (void)state;
    static const struct {
        const char *overrides[2];
        bool runs;
    } cases[] = {{{"reward.checker=exact", NULL}, false},
                 {{"reward.checker=code_unit", NULL}, true},
                 {{"reward.route={mbpp: code_unit}", NULL}, true},
                 {{"reward.route={mbpp: exact}", NULL}, false},
                 {{"reward.checkers={a: {use: code_stdio}}", NULL}, false}, /* named by nobody */
                 {{"reward.checkers={a: {use: code_stdio}}", "reward.checker=a"}, true},
                 {{"data.train=[{path: x.jsonl, checker: code_unit}]", NULL}, true},
                 {{"data.eval=[{path: x.jsonl, checker: code_unit}]", NULL}, true}};
    ifl_config *c = malloc(sizeof *c);
    assert_non_null(c);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ifl_error err = {0};
        bool runs = !cases[i].runs;
        const char *given[2] = {cases[i].overrides[0], cases[i].overrides[1]};
        if (ifl_config_load(c, NULL, given, given[1] ? 2 : 1, &err) != IFL_OK ||
            ifl_config_runs_programs(c, &runs, &err) != IFL_OK)
            fail_msg("%s: %s", given[0], err.text);
        if (runs != cases[i].runs) fail_msg("%s: wanted %d", given[0], cases[i].runs);
    }
    free(c);
}

/* Whatever this host has: the answer to `cgroup` fits what is measured without it. */
static void test_a_run_is_refused_below_the_required_tier(void **state) {
    (void)state;
    ifl_config *c = malloc(sizeof *c);
    ifl_error err = {0};
    const char *given[] = {"reward.checker=code_unit", "reward.sandbox_require=cgroup"};
    assert_non_null(c);
    assert_int_equal(ifl_config_load(c, NULL, given, 2, &err), IFL_OK);
    ifl_status st = ifl_programs_start(c, IFL_BINARY, &err);
    if (st != IFL_OK) {
        assert_int_equal(st, IFL_UNSUPPORTED);
        assert_non_null(strstr(err.text, "sandbox tier 'cgroup' is required"));
        assert_non_null(strstr(err.text, "Delegate=yes"));
        assert_non_null(strstr(err.text, "reward.sandbox_require=ns"));
    }
    assert_int_equal(ifl_config_load(c, NULL, given, 1, &err), IFL_OK);
    if (ifl_programs_start(c, IFL_BINARY, &err) != IFL_OK) fail_msg("%s", err.text);
    /* a launcher that cannot isolate */
    assert_int_not_equal(ifl_programs_start(c, "/bin/false", &err), IFL_OK);
    free(c);
    ifl_sandbox *s;
    ifl_sandbox_options options = {.program = IFL_BINARY, .require = IFL_TIER_NS};
    assert_int_equal(ifl_sandbox_create(&s, &options, &err), IFL_OK);
    bool cgroup = ifl_sandbox_measured(s) == IFL_TIER_CGROUP;
    assert_true(cgroup || ifl_sandbox_measured(s) == IFL_TIER_NS);
    assert_int_equal(ifl_sandbox_canaries(s), cgroup ? 11 : 8);
    assert_true(cgroup == !*ifl_sandbox_above(s));
    if (st == IFL_OK && !cgroup) /* it may have to move processes, which only `cgroup` does */
        assert_non_null(strstr(ifl_sandbox_above(s), "processes of its own"));
    ifl_sandbox_free(s);
}

static void test_workers_are_told_the_required_tier(void **state) {
    (void)state;
    uint8_t *frame;
    size_t n;
    int32_t timeout_ms;
    ifl_sandbox_tier require;
    const char *checkers;
    ifl_error err = {0};
    assert_int_equal(ifl_reward_setup_encode(1234, IFL_TIER_CGROUP, "{}", &frame, &n, &err),
                     IFL_OK);
    assert_int_equal(
        ifl_reward_setup_decode(frame + 4, n - 4, &timeout_ms, &require, &checkers, &err), IFL_OK);
    assert_int_equal(timeout_ms, 1234);
    assert_int_equal(require, IFL_TIER_CGROUP);
    assert_string_equal(checkers, "{}");
    assert_int_equal(
        ifl_reward_setup_decode(frame + 4, n - 5, &timeout_ms, &require, &checkers, &err),
        IFL_FORMAT);
    free(frame);
    assert_int_equal(ifl_reward_setup_encode(1234, IFL_TIER_COUNT, "{}", &frame, &n, &err), IFL_OK);
    assert_int_equal(
        ifl_reward_setup_decode(frame + 4, n - 4, &timeout_ms, &require, &checkers, &err),
        IFL_FORMAT);
    free(frame);
    assert_int_equal(ifl_sandbox_tier_parse("cgroup"), IFL_TIER_CGROUP);
    assert_int_equal(ifl_sandbox_tier_parse("ns"), IFL_TIER_NS);
    assert_int_equal(ifl_sandbox_tier_parse("docker"), IFL_TIER_NONE);
}

/* A worker below its tier gives no verdict, and says why. */
static void test_a_worker_below_its_tier_is_unavailable(void **state) {
    (void)state;
    ifl_sandbox *s;
    ifl_error err = {0};
    ifl_sandbox_options options = {.program = IFL_BINARY, .require = IFL_TIER_CGROUP};
    bool has = ifl_sandbox_create(&s, &options, &err) == IFL_OK;
    if (has) ifl_sandbox_free(s);
    ifl_reward_pool *pool;
    ifl_reward_pool_options o = {.n_workers = 1,
                                 .timeout_ms = 60000,
                                 .queue_max = 4,
                                 .program = IFL_BINARY,
                                 .require = IFL_TIER_CGROUP};
    if (ifl_reward_pool_create(&pool, &o, &err) != IFL_OK) fail_msg("%s", err.text);
    static const char code[] = "```python\ndef f(x):\n    return x\n```";
    ifl_reward_request request = {.id = 1,
                                  .checker = "code_unit",
                                  .completion = code,
                                  .n_completion = sizeof code - 1,
                                  .answer = "{\"tests\": [\"assert f(1) == 1\"]}",
                                  .meta = "",
                                  .finish = IFL_FINISH_EOS};
    uint64_t id;
    ifl_reward r;
    assert_int_equal(ifl_reward_pool_submit(pool, &request, &err), IFL_OK);
    assert_int_equal(ifl_reward_pool_collect(pool, 60000, &id, &r, &err), IFL_OK);
    assert_int_equal(r.status, has ? IFL_REWARD_OK : IFL_REWARD_UNAVAILABLE);
    assert_int_equal(r.tier, has ? IFL_TIER_CGROUP : IFL_TIER_NONE);
    if (!has) assert_non_null(strstr(err.text, "sandbox tier 'cgroup' is required"));
    ifl_reward_pool_free(pool);
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checkers_with_programs_are_found_in_compositions),
        cmocka_unit_test(test_configurations_with_programs_are_found),
        cmocka_unit_test(test_a_run_is_refused_below_the_required_tier),
        cmocka_unit_test(test_workers_are_told_the_required_tier),
        cmocka_unit_test(test_a_worker_below_its_tier_is_unavailable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rewards/compose.h"
#include "rewards/host.h"

static ifl_spec *spec_of(const char *json) {
    ifl_spec *spec;
    ifl_error err = {0};
    if (ifl_spec_parse(&spec, json, &err) != IFL_OK) fail_msg("%s: %s", json, err.text);
    return spec;
}

static void refused(const char *json, const char *part) {
    ifl_spec *spec;
    ifl_error err = {0};
    ifl_status st = ifl_spec_parse(&spec, json, &err);
    assert_null(spec);
    if (st != IFL_FORMAT || !strstr(err.text, part))
        fail_msg("%s: got %d, '%s', wanted '%s'", json, (int)st, err.text, part);
}

static void test_mistakes_are_named_with_their_place(void **state) {
    (void)state;
    refused("{\"a\": 3}", "key reward.checkers.a: wanted a map");
    refused("{\"a\": {}}", "key reward.checkers.a.use: missing");
    refused("{\"a\": {\"use\": 3}}", "key reward.checkers.a.use: wanted a text");
    refused("{\"a\": {\"use\": \"mth\"}}",
            "key reward.checkers.a.use: got 'mth', wanted a built-in");
    refused("{\"exact\": {\"use\": \"exact\"}}", "key reward.checkers.exact: that is a built-in");
    refused("{\"a b\": {\"use\": \"exact\"}}", "wanted a name of 1 .. 31");
    refused("{\"a\": {\"use\": \"exact\", \"option\": {}}}",
            "key reward.checkers.a.option: unknown; use: exact takes options");
    refused("{\"a\": {\"use\": \"exact\", \"options\": []}}",
            "key reward.checkers.a.options: wanted a map");
    refused("{\"a\": {\"use\": \"exact\", \"options\": {\"afer\": \"#\"}}}",
            "key reward.checkers.a.options.afer: unknown; exact takes after end");
    refused("{\"a\": {\"use\": \"sum\"}}", "key reward.checkers.a.parts: wanted a list of 1 .. 8");
    refused("{\"a\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"b\"}]}}",
            "key reward.checkers.a.parts.0.checker: there is no checker 'b'");
    refused("{\"a\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"exact\", \"wight\": 1}]}}",
            "key reward.checkers.a.parts.0.wight: unknown");
    refused("{\"a\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"exact\", \"weight\": \"1\"}]}}",
            "key reward.checkers.a.parts.0.weight: wanted a number");
    refused("{\"a\": {\"use\": \"product\", \"parts\": [{\"checker\": \"exact\", \"weight\": 1}]}}",
            "parts.0.weight: unknown");
    refused("{\"a\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"exact\"}, {\"checker\": "
            "\"exact\"}], \"clip\": [0, 1]}}",
            "parts.1.name: another part has it");
    refused("{\"a\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"exact\"}, {\"checker\": "
            "\"format\"}]}}",
            "the weights reach 2");
    refused("{\"a\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"exact\"}], \"clip\": [1, 0]}}",
            "key reward.checkers.a.clip: wanted the lower number first");
    refused("{\"a\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"exact\"}], \"clip\": [0, 2]}}",
            "key reward.checkers.a.clip: wanted a number -1 .. 1");
    refused("{\"a\": {\"use\": \"first\", \"parts\": [{\"checker\": \"b\"}]}, \"b\": {\"use\": "
            "\"first\", \"parts\": [{\"checker\": \"a\"}]}}",
            "a cycle");
    refused("{\"p\": {\"use\": \"process\"}}", "key reward.checkers.p.command: wanted a list");
    refused("{\"p\": {\"use\": \"process\", \"command\": [\"a\", 1]}}",
            "every word must be a text");
    refused("{\"p\": {\"use\": \"process\", \"command\": [\"a\"], \"env\": {\"A\": 1}}}",
            "key reward.checkers.p.env: wanted texts");
    refused("{\"p\": {\"use\": \"process\", \"command\": [\"a\"], \"start_ms\": 0}}",
            "key reward.checkers.p.start_ms: wanted an integer 1 ..");
    refused("{\"l\": {\"use\": \"library\"}}", "key reward.checkers.l.path: missing");
    refused("{\"l\": {\"use\": \"library\", \"path\": \"a\", \"isolate\": false}}",
            "plug-ins always run in a worker");
    refused("{\"h\": {\"use\": \"http\", \"url\": \"ftp://x\"}}", "wanted http://... or https://");
    refused("{\"h\": {\"use\": \"http\", \"url\": \"http://10.0.0.5/\"}}", "unprotected");
    refused("{\"h\": {\"use\": \"http\", \"url\": \"http://127.0.0.1:1@10.0.0.5/\"}}",
            "unprotected");
    refused("{\"h\": {\"use\": \"http\", \"url\": \"http://localhost.example/\"}}", "unprotected");
    refused("{\"h\": {\"use\": \"http\", \"url\": \"http://localhost/\", \"retries\": 11}}",
            "retries: wanted an integer 0 .. 10");
    refused("[1]", "wanted a JSON object");
    ifl_spec_free(
        spec_of("{\"h\": {\"use\": \"http\", \"url\": \"http://[::1]:80/\"}, \"i\": "
                "{\"use\": \"http\", \"url\": \"https://x/\"}, \"j\": {\"use\": \"http\", "
                "\"url\": \"http://x\", \"insecure\": true}}"));
    ifl_spec_free(spec_of(""));
    ifl_spec_free(
        spec_of("{\"a\": {\"use\": \"sum\", \"parts\": [{\"checker\": \"exact\", \"weight\": "
                "0.5}, {\"checker\": \"exact\", \"weight\": -0.5, \"name\": \"again\"}]}}"));
}

static void test_depth_is_bounded(void **state) {
    (void)state;
    char json[2048];
    for (int depth = IFL_SPEC_DEPTH_MAX; depth <= IFL_SPEC_DEPTH_MAX + 1; depth++) {
        int n = snprintf(json, sizeof json, "{");
        for (int i = 0; i < depth; i++)
            n += snprintf(json + n, sizeof json - (size_t)n,
                          "%s\"c%d\": {\"use\": \"first\", \"parts\": [{\"checker\": \"%s%.0d\"}]}",
                          i ? ", " : "", i, i + 1 < depth ? "c" : "exact",
                          i + 1 < depth ? i + 1 : 0);
        snprintf(json + n, sizeof json - (size_t)n, "}");
        if (depth <= IFL_SPEC_DEPTH_MAX)
            ifl_spec_free(spec_of(json));
        else
            refused(json, "more than 4 compositions inside each other");
    }
}

/* The hash stands for all that decides a reward, in whatever order it was written. */
static void test_hash_follows_what_decides(void **state) {
    (void)state;
    static const char *const texts[] = {
        "{\"a\": {\"use\": \"exact\", \"options\": {\"after\": \"#\", \"end\": true}}, \"s\": "
        "{\"use\": \"sum\", \"parts\": [{\"checker\": \"a\", \"weight\": 1}]}}",
        "{\"s\": {\"parts\": [{\"weight\": 1, \"checker\": \"a\"}], \"use\": \"sum\"}, \"a\": "
        "{\"options\": {\"end\": true, \"after\": \"#\"}, \"use\": \"exact\"}}",
        "{\"a\": {\"use\": \"exact\", \"options\": {\"after\": \"#\", \"end\": false}}, \"s\": "
        "{\"use\": \"sum\", \"parts\": [{\"checker\": \"a\", \"weight\": 1}]}}"};
    uint64_t hashes[3][2];
    for (int i = 0; i < 3; i++) {
        ifl_spec *spec = spec_of(texts[i]);
        hashes[i][0] = spec->entries[ifl_spec_find(spec, "a")].config;
        hashes[i][1] = spec->entries[ifl_spec_find(spec, "s")].config;
        ifl_spec_free(spec);
    }
    assert_true(hashes[0][0] == hashes[1][0] && hashes[0][1] == hashes[1][1]);
    assert_true(hashes[0][0] != hashes[2][0] && hashes[0][1] != hashes[2][1]);
    assert_true(hashes[0][0] && hashes[0][1] && hashes[0][0] != hashes[0][1]);
}

/* --- Compositions ----------------------------------------------------------------------------- */

#define OK IFL_REWARD_OK
#define WRONG IFL_REWARD_WRONG
#define EMPTY IFL_REWARD_NO_ANSWER
#define UNDECIDED IFL_REWARD_UNDECIDED
#define BAD IFL_REWARD_BAD_TASK
#define ERROR IFL_REWARD_CHECKER_ERROR
#define AWAY IFL_REWARD_UNAVAILABLE
#define LATE IFL_REWARD_TIME_LIMIT

typedef struct part_result {
    ifl_reward_status status;
    float reward;
} part_result;

typedef struct compose_case {
    ifl_spec_kind kind;
    int32_t n;
    part_result parts[3];
    double weights[3];
    double clip[2];
    ifl_reward_status status;
    float reward;
    int32_t n_ran;
    int reason; /* the part whose reason is told; -1: none */
} compose_case;

typedef struct playing {
    const compose_case *c;
    int32_t n_ran;
} playing;

static void part_play(void *user, const ifl_spec_part *part, ifl_reward *out, char *reason) {
    playing *p = user;
    int32_t i = part->name[0] - 'a';
    assert_int_equal(i, p->n_ran);
    out->status = p->c->parts[i].status;
    out->reward = p->c->parts[i].reward;
    out->tests_passed = 1;
    out->tests_total = 2;
    out->tier = (uint8_t)(i == 0 ? IFL_TIER_NONE : i == 1 ? IFL_TIER_CGROUP : IFL_TIER_NS);
    if (!ifl_reward_is_verdict(out->status)) snprintf(reason, 64, "why %d", i);
    p->n_ran++;
}

static void test_compositions(void **state) {
    (void)state;
    static const compose_case cases[] = {
        {IFL_SPEC_SUM, 2, {{OK, 1}, {OK, 1}}, {0.9, 0.1}, {0, 1}, OK, 1.0f, 2, -1},
        {IFL_SPEC_SUM, 2, {{WRONG, 0}, {OK, 1}}, {0.9, 0.1}, {0, 1}, WRONG, 0.1f, 2, -1},
        {IFL_SPEC_SUM, 2, {{OK, 1}, {WRONG, 0}}, {0.9, 0.1}, {0, 1}, WRONG, 0.9f, 2, -1},
        {IFL_SPEC_SUM, 2, {{OK, 1}, {OK, 1}}, {0.9, 0.9}, {0, 1}, OK, 1.0f, 2, -1},
        {IFL_SPEC_SUM, 2, {{WRONG, 0}, {WRONG, -1}}, {1, 1}, {0, 1}, WRONG, 0.0f, 2, -1},
        {IFL_SPEC_SUM, 2, {{WRONG, 0}, {WRONG, -1}}, {1, 1}, {-1, 1}, WRONG, -1.0f, 2, -1},
        {IFL_SPEC_SUM, 2, {{OK, 1}, {OK, 1}}, {1, -0.25}, {-1, 1}, OK, 0.75f, 2, -1},
        {IFL_SPEC_SUM, 3, {{EMPTY, 0}, {LATE, 0}, {OK, 1}}, {1, 1, 1}, {0, 1}, EMPTY, 1.0f, 3, -1},
        /* No verdict in a part is none of the whole, whatever the others pay; the worst names it.
         */
        {IFL_SPEC_SUM, 2, {{OK, 1}, {UNDECIDED, 0}}, {1, 0}, {0, 1}, UNDECIDED, 0.0f, 2, 1},
        {IFL_SPEC_SUM, 2, {{UNDECIDED, 0}, {BAD, 0}}, {1, 1}, {0, 1}, BAD, 0.0f, 2, 1},
        {IFL_SPEC_SUM, 3, {{AWAY, 0}, {ERROR, 0}, {BAD, 0}}, {1, 1, 1}, {0, 1}, ERROR, 0, 3, 1},
        {IFL_SPEC_SUM, 3, {{BAD, 0}, {AWAY, 0}, {OK, 1}}, {1, 1, 1}, {0, 1}, AWAY, 0, 3, 1},
        {IFL_SPEC_PRODUCT, 2, {{OK, 1}, {OK, 0.5f}}, {1, 1}, {-1, 1}, OK, 0.5f, 2, -1},
        {IFL_SPEC_PRODUCT, 2, {{OK, 0.5f}, {OK, 0.5f}}, {1, 1}, {0.5, 1}, OK, 0.5f, 2, -1},
        {IFL_SPEC_PRODUCT, 2, {{WRONG, 0}, {ERROR, 0}}, {1, 1}, {-1, 1}, WRONG, 0.0f, 1, -1},
        {IFL_SPEC_PRODUCT, 2, {{OK, 1}, {ERROR, 0}}, {1, 1}, {-1, 1}, ERROR, 0.0f, 2, 1},
        {IFL_SPEC_PRODUCT, 2, {{UNDECIDED, 0}, {OK, 1}}, {1, 1}, {-1, 1}, UNDECIDED, 0, 1, 0},
        /* Two wrongs don't make a right. */
        {IFL_SPEC_PRODUCT, 2, {{WRONG, -1}, {WRONG, -1}}, {1, 1}, {-1, 1}, WRONG, 0.0f, 1, -1},
        {IFL_SPEC_FIRST, 2, {{OK, 1}, {ERROR, 0}}, {1, 1}, {-1, 1}, OK, 1.0f, 1, -1},
        {IFL_SPEC_FIRST, 2, {{WRONG, 0}, {OK, 1}}, {1, 1}, {-1, 1}, WRONG, 0.0f, 1, -1},
        {IFL_SPEC_FIRST, 2, {{EMPTY, 0}, {OK, 0.5f}}, {1, 1}, {-1, 1}, OK, 0.5f, 2, -1},
        {IFL_SPEC_FIRST, 2, {{UNDECIDED, 0}, {WRONG, 0}}, {1, 1}, {-1, 1}, WRONG, 0.0f, 2, -1},
        {IFL_SPEC_FIRST, 2, {{ERROR, 0}, {OK, 1}}, {1, 1}, {-1, 1}, ERROR, 0.0f, 1, 0},
        {IFL_SPEC_FIRST,
         3,
         {{EMPTY, 0}, {UNDECIDED, 0}, {EMPTY, 0}},
         {0},
         {-1, 1},
         UNDECIDED,
         0,
         3,
         1},
        {IFL_SPEC_FIRST, 2, {{EMPTY, 0}, {EMPTY, 0}}, {1, 1}, {-1, 1}, EMPTY, 0.0f, 2, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const compose_case *c = &cases[i];
        ifl_spec_entry e = {.kind = c->kind,
                            .n_parts = c->n,
                            .clip = {c->clip[0], c->clip[1]},
                            .passes = IFL_SPEC_PASS_UNDECIDED | IFL_SPEC_PASS_NO_ANSWER};
        for (int32_t k = 0; k < c->n; k++) {
            e.parts[k].name[0] = (char)('a' + k);
            e.parts[k].weight = c->weights[k];
        }
        playing p = {c, 0};
        ifl_reward out = {0};
        char reason[IFL_REWARD_REASON_MAX], wanted[64] = "";
        ifl_compose(&e, part_play, &p, &out, reason);
        if (c->reason >= 0)
            snprintf(wanted, sizeof wanted, "part %c: why %d", 'a' + c->reason, c->reason);
        if (out.status != c->status || out.reward != c->reward || p.n_ran != c->n_ran ||
            out.n_components != c->n_ran || strcmp(reason, wanted) != 0)
            fail_msg("case %zu: status %d, reward %g, %d ran, '%s'", i, (int)out.status,
                     (double)out.reward, p.n_ran, reason);
        for (int32_t k = 0; k < out.n_components; k++)
            assert_true(out.components[k].value == c->parts[k].reward);
        assert_int_equal(out.tests_total, 2 * c->n_ran);
        assert_int_equal(out.tier, c->n_ran == 1   ? IFL_TIER_NONE
                                   : c->n_ran == 2 ? IFL_TIER_CGROUP
                                                   : IFL_TIER_NS);
    }
}

/* A lax checker behind a strict one must not pay for what the strict one doesn't see, unless asked.
 */
static void test_first_passes_on_what_it_is_told_to(void **state) {
    (void)state;
    static const char head[] = "{\"a\": {\"use\": \"first\", \"parts\": [{\"checker\": \"math\"}, "
                               "{\"checker\": \"numeric\"}]";
    static const struct {
        const char *pass_on;
        bool no_answer, undecided;
    } cases[] = {
        {"", false, true},
        {", \"pass_on\": [\"undecided\"]", false, true},
        {", \"pass_on\": [\"no_answer\"]", true, false},
        {", \"pass_on\": [\"no_answer\", \"undecided\"]", true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[512], reason[IFL_REWARD_REASON_MAX];
        ifl_reward_host *host;
        ifl_reward out;
        ifl_error err = {0};
        uint32_t flags;
        snprintf(json, sizeof json, "%s%s}}", head, cases[i].pass_on);
        if (ifl_reward_host_create(&host, json, 10000, &err) != IFL_OK) fail_msg("%s", err.text);
        ifl_reward_request request = {.checker = "a", .prompt = "", .answer = "2", .meta = ""};
        request.completion = "I mention 1, then 2";
        request.n_completion = strlen(request.completion);
        ifl_reward_host_check(host, &request, &out, reason, &flags);
        assert_int_equal(out.status, cases[i].no_answer ? OK : EMPTY);
        assert_int_equal(out.n_components, cases[i].no_answer ? 2 : 1);
        request.answer = "\\int_0^1 x dx";
        request.completion = "\\boxed{3}";
        request.n_completion = strlen(request.completion);
        ifl_reward_host_check(host, &request, &out, reason, &flags);
        /* numeric then finds the task's answer to be none */
        assert_int_equal(out.status, cases[i].undecided ? BAD : UNDECIDED);
        assert_int_equal(out.n_components, cases[i].undecided ? 2 : 1);
        assert_int_equal(flags, 0);
        ifl_reward_host_free(host);
    }
    static const char *const wrong[] = {"[]", "\"undecided\"", "[\"ok\"]", "[1]",
                                        "[\"undecided\", \"undecided\"]"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char json[512];
        snprintf(json, sizeof json, "%s, \"pass_on\": %s}}", head, wrong[i]);
        refused(json,
                "key reward.checkers.a.pass_on: wanted a list of undecided, no_answer, or both");
    }
    refused("{\"a\": {\"use\": \"sum\", \"pass_on\": [\"undecided\"], \"parts\": [{\"checker\": "
            "\"exact\"}]}}",
            "key reward.checkers.a.pass_on: unknown");
}

/* The whole way, in this process: options under the task's meta, parts of parts, components. */
static void test_host_runs_what_the_specification_says(void **state) {
    (void)state;
    static const char json[] =
        "{\"hash\": {\"use\": \"exact\", \"options\": {\"after\": \"#\"}},"
        "\"digits\": {\"use\": \"format\", \"options\": {\"regex\": \"[0-9]\"}},"
        "\"both\": {\"use\": \"sum\", \"clip\": [0, 1], \"parts\": [{\"checker\": \"hash\", "
        "\"weight\": "
        "0.75}, {\"checker\": \"digits\", \"weight\": 0.25}]},"
        "\"gate\": {\"use\": \"product\", \"parts\": [{\"checker\": \"digits\"}, {\"checker\": "
        "\"both\", \"name\": \"rest\"}]},"
        "\"any\": {\"use\": \"first\", \"parts\": [{\"checker\": \"numeric\"}]}}";
    static const struct {
        const char *checker, *gold, *completion, *meta;
        ifl_reward_status status;
        float reward;
        const char *version;
    } cases[] = {
        {"hash", "7", "1#7", "", OK, 1, "hash=exact/1"},
        {"hash", "7", "1#7", "{\"after\": \"=\"}", EMPTY, 0, "hash=exact/1"},
        {"hash", "7", "1=7", "{\"after\": \"=\"}", OK, 1, "hash=exact/1"},
        {"hash", "7", "1#7", "{\"after\": ", BAD, 0, "hash=exact/1"},
        {"both", "7", "1#7", "", OK, 1, "both=sum/1"},
        {"both", "7", "1#8", "", WRONG, 0.25f, "both=sum/1"},
        {"both", "7", "x", "", EMPTY, 0, "both=sum/1"},
        {"both", "", "x", "", BAD, 0, "both=sum/1"},
        {"gate", "7", "#7", "", OK, 1, "gate=product/1"},
        {"gate", "7", "#x", "", IFL_REWARD_BAD_FORMAT, 0, "gate=product/1"},
        {"any", "7", "7", "", OK, 1, "any=first/1"},
        {"exact", "7", "7", "", OK, 1, "exact/1"},
        {"none", "7", "7", "", BAD, 0, "none"},
    };
    ifl_reward_host *host;
    ifl_error err = {0};
    if (ifl_reward_host_create(&host, json, 10000, &err) != IFL_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ifl_reward_request request = {.checker = cases[i].checker,
                                      .prompt = "",
                                      .completion = cases[i].completion,
                                      .n_completion = strlen(cases[i].completion),
                                      .answer = cases[i].gold,
                                      .meta = cases[i].meta,
                                      .finish = IFL_FINISH_EOS};
        ifl_reward out;
        char reason[IFL_REWARD_REASON_MAX];
        uint32_t flags = 7;
        ifl_reward_host_check(host, &request, &out, reason, &flags);
        uint32_t wanted = ifl_reward_is_verdict(cases[i].status) ? IFL_REPLY_PURE : 0;
        if (out.status != cases[i].status || out.reward != cases[i].reward || flags != wanted ||
            strcmp(out.checker, cases[i].version) != 0)
            fail_msg("case %zu: status %d, reward %g, %s: %s", i, (int)out.status,
                     (double)out.reward, out.checker, reason);
        assert_int_equal(out.config != 0, strchr(cases[i].version, '=') != NULL);
        if (strcmp(cases[i].checker, "gate") == 0 && out.status == OK) {
            assert_int_equal(out.n_components, 4);
            assert_string_equal(out.components[0].name, "digits");
            assert_string_equal(out.components[1].name, "rest");
            assert_string_equal(out.components[2].name, "rest/hash");
            assert_string_equal(out.components[3].name, "rest/digits");
        }
    }
    ifl_reward_host_free(host);
}

static void test_names_of_the_configuration_are_looked_up(void **state) {
    (void)state;
    static const char *const overrides[][3] = {
        {"reward.checker=nosuch", "reward.checker", NULL},
        {"reward.route={x: nosuch}", "reward.route.x", NULL},
        {"data.train=[{generator: sums, checker: nosuch}]", "data.train.0.checker", NULL},
        {"reward.checkers={a: {use: exct}}", "reward.checkers.a.use", NULL},
        {"reward.checkers={a: {use: exact}}", NULL, "reward.checker=a"},
    };
    ifl_config *c = malloc(sizeof *c);
    assert_non_null(c);
    for (size_t i = 0; i < sizeof overrides / sizeof *overrides; i++) {
        const char *given[2] = {overrides[i][0], overrides[i][2]};
        ifl_error err = {0};
        assert_int_equal(ifl_config_load(c, NULL, given, given[1] ? 2 : 1, &err), IFL_OK);
        ifl_status st = ifl_spec_check_config(c, &err);
        if ((st == IFL_OK) != !overrides[i][1] ||
            (overrides[i][1] && !strstr(err.text, overrides[i][1])))
            fail_msg("%s: %d, %s", overrides[i][0], (int)st, err.text);
    }
    free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mistakes_are_named_with_their_place),
        cmocka_unit_test(test_depth_is_bounded),
        cmocka_unit_test(test_hash_follows_what_decides),
        cmocka_unit_test(test_compositions),
        cmocka_unit_test(test_first_passes_on_what_it_is_told_to),
        cmocka_unit_test(test_host_runs_what_the_specification_says),
        cmocka_unit_test(test_names_of_the_configuration_are_looked_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The checker json_schema. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/reward_cases.h"

#define S(schema) "{\"schema\":" schema "}"
#define PERSON                                                                                     \
    S("{\"type\":\"object\",\"required\":[\"name\",\"age\"],\"properties\":{\"name\":{\"type\":"   \
      "\"string\",\"minLength\":1,\"maxLength\":5,\"pattern\":\"^[A-Z]\"},\"age\":{\"type\":"      \
      "\"integer\",\"minimum\":0,\"exclusiveMaximum\":150}},\"additionalProperties\":false}")

static void test_schema_takes_what_fits_and_nothing_else(void **state) {
    (void)state;
    VERDICTS(
        "json_schema",
        {{PERSON, "", "{\"name\":\"Ann\",\"age\":3}", IFL_REWARD_OK},
         {PERSON, "", " {\"age\":3.0,\"name\":\"Ann\"}\n", IFL_REWARD_OK},
         {PERSON, "", "<think>{}</think>{\"name\":\"Ann\",\"age\":0}", IFL_REWARD_OK},
         {PERSON, "", "{\"name\":\"\xc3\x84nn\",\"age\":3}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"ann\",\"age\":3}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"\",\"age\":3}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"Annabel\",\"age\":3}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"A\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\",\"age\":3}", IFL_REWARD_OK},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":3.5}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":-1}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":150}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":\"3\"}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":true}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"Ann\"}", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":3,\"x\":1}", IFL_REWARD_WRONG},
         {PERSON, "", "[]", IFL_REWARD_WRONG},
         {PERSON, "", "null", IFL_REWARD_WRONG},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":3,\"age\":3}", IFL_REWARD_BAD_FORMAT},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":3} {}", IFL_REWARD_BAD_FORMAT},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":3}.", IFL_REWARD_BAD_FORMAT},
         {PERSON, "", "{'name':'Ann','age':3}", IFL_REWARD_BAD_FORMAT},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":NaN}", IFL_REWARD_BAD_FORMAT},
         {PERSON, "", "{\"name\":\"Ann\",\"age\":1e999}", IFL_REWARD_BAD_FORMAT},
         {PERSON, "", "{\"name\":\"A\\u0000\",\"age\":3}", IFL_REWARD_BAD_FORMAT},
         {PERSON, "", "{\"name\":\"A\xff\",\"age\":3}", IFL_REWARD_BAD_FORMAT},
         {PERSON, "", "", IFL_REWARD_NO_ANSWER}});
}

static void test_schema_keywords(void **state) {
    (void)state;
    VERDICTS(
        "json_schema",
        {{S("true"), "", "1", IFL_REWARD_OK},
         {S("false"), "", "1", IFL_REWARD_WRONG},
         {S("{\"enum\":[1,\"a\",null]}"), "", "null", IFL_REWARD_OK},
         {S("{\"enum\":[1,\"a\",null]}"), "", "1.0", IFL_REWARD_OK},
         {S("{\"enum\":[1.0]}"), "", "1", IFL_REWARD_OK},
         {S("{\"enum\":[1]}"), "", "true", IFL_REWARD_WRONG},
         {S("{\"enum\":[1]}"), "", "\"1\"", IFL_REWARD_WRONG},
         {S("{\"const\":{\"a\":[1,2]}}"), "", "{\"a\":[1,2.0]}", IFL_REWARD_OK},
         {S("{\"const\":{\"a\":[1,2]}}"), "", "{\"a\":[2,1]}", IFL_REWARD_WRONG},
         {S("{\"type\":[\"string\",\"null\"]}"), "", "null", IFL_REWARD_OK},
         {S("{\"type\":[\"string\",\"null\"]}"), "", "0", IFL_REWARD_WRONG},
         {S("{\"type\":\"number\"}"), "", "1", IFL_REWARD_OK},
         {S("{\"type\":\"integer\"}"), "", "1e300", IFL_REWARD_OK},
         {S("{\"type\":\"integer\"}"), "", "1.5", IFL_REWARD_WRONG},
         {S("{\"maximum\":9223372036854775806}"), "", "9223372036854775807", IFL_REWARD_WRONG},
         {S("{\"maximum\":1}"), "", "\"a text has no maximum\"", IFL_REWARD_OK},
         {S("{\"exclusiveMinimum\":0}"), "", "0", IFL_REWARD_WRONG},
         {S("{\"exclusiveMinimum\":0}"), "", "-0.0", IFL_REWARD_WRONG},
         {S("{\"items\":{\"type\":\"integer\"},\"minItems\":1,\"maxItems\":2}"), "", "[1,2]",
          IFL_REWARD_OK},
         {S("{\"items\":{\"type\":\"integer\"},\"minItems\":1,\"maxItems\":2}"), "", "[1,\"2\"]",
          IFL_REWARD_WRONG},
         {S("{\"minItems\":1}"), "", "[]", IFL_REWARD_WRONG},
         {S("{\"maxItems\":1}"), "", "[1,2]", IFL_REWARD_WRONG},
         {S("{\"uniqueItems\":true}"), "", "[1,2,{\"a\":1,\"b\":2},{\"a\":1,\"b\":3}]",
          IFL_REWARD_OK},
         {S("{\"uniqueItems\":true}"), "", "[{\"a\":1,\"b\":2},{\"b\":2.0,\"a\":1}]",
          IFL_REWARD_WRONG},
         {S("{\"uniqueItems\":true}"), "", "[1,1.0]", IFL_REWARD_WRONG},
         {S("{\"uniqueItems\":true}"), "", "[1,\"1\",true]", IFL_REWARD_OK},
         {S("{\"additionalProperties\":{\"type\":\"integer\"}}"), "", "{\"a\":1}", IFL_REWARD_OK},
         {S("{\"additionalProperties\":{\"type\":\"integer\"}}"), "", "{\"a\":\"1\"}",
          IFL_REWARD_WRONG},
         {S("{\"pattern\":\"^(a+)+$\"}"), "",
          "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab\"", IFL_REWARD_UNDECIDED}});
}

static void test_schema_beyond_the_subset_is_a_bad_task(void **state) {
    (void)state;
    static const char *const metas[] = {"",
                                        "{}",
                                        S("1"),
                                        S("{\"oneOf\":[]}"),
                                        S("{\"$ref\":\"#\"}"),
                                        S("{\"format\":\"email\"}"),
                                        S("{\"type\":\"float\"}"),
                                        S("{\"type\":[]}"),
                                        S("{\"enum\":[]}"),
                                        S("{\"enum\":1}"),
                                        S("{\"minimum\":\"1\"}"),
                                        S("{\"minLength\":-1}"),
                                        S("{\"pattern\":\"(\"}"),
                                        S("{\"required\":[1]}"),
                                        S("{\"properties\":[]}"),
                                        S("{\"properties\":{\"a\":3}}"),
                                        S("{\"items\":[{}]}"),
                                        S("{\"uniqueItems\":1}"),
                                        S("{\"properties\":{\"never\":{\"items\":{\"not\":{}}}}}"),
                                        "{\"schema\":true,\"fenced\":1}"};
    for (size_t i = 0; i < sizeof metas / sizeof *metas; i++) {
        ifl_reward r = check_bytes("json_schema", "", metas[i], "{}", 2, IFL_FINISH_EOS);
        if (r.status != IFL_REWARD_BAD_TASK)
            fail_msg("%s: %s", metas[i], ifl_reward_status_name(r.status));
    }
}

static void test_schema_reads_the_last_fence(void **state) {
    (void)state;
    VERDICTS(
        "json_schema",
        {{"{\"schema\":{\"const\":1},\"fenced\":true}", "", "so:\n```json\n1\n```\ndone",
          IFL_REWARD_OK},
         {"{\"schema\":{\"const\":1},\"fenced\":true}", "", "```json\n2\n```\n```json\n1\n```",
          IFL_REWARD_OK},
         {"{\"schema\":{\"const\":1},\"fenced\":true}", "", "```json\n1\n```\n```json\n2\n```",
          IFL_REWARD_WRONG},
         {"{\"schema\":{\"const\":1},\"fenced\":true}", "", "```json\n1\n```\n```json\n2\n",
          IFL_REWARD_NO_ANSWER},
         {"{\"schema\":{\"const\":1},\"fenced\":true}", "", "```\n1\n```\n", IFL_REWARD_NO_ANSWER},
         {"{\"schema\":{\"const\":1},\"fenced\":true}", "", "1", IFL_REWARD_NO_ANSWER},
         {"{\"schema\":{\"const\":1},\"fenced\":true}", "", "```json\n\n```", IFL_REWARD_NO_ANSWER},
         {"{\"schema\":{\"const\":1}}", "", "```json\n1\n```", IFL_REWARD_BAD_FORMAT}});
}

static void test_deep_and_wide_json_is_refused_in_bounded_time(void **state) {
    (void)state;
    static const char *const seeds[] = {
        "[",         "{\"a\":",           "[1,",      "\"", "1", "[],", "\\", "\xff",
        "```json\n", "```json\n1\n```\n", "{\"a\":1}"};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        expect_bounded("json_schema", "", S("{\"uniqueItems\":true}"), seeds[i]);
        expect_bounded("json_schema", "", "{\"schema\":{},\"fenced\":true}", seeds[i]);
    }
    expect_bounded("json_schema", "", S("{}"), NULL);
    /* 10^5 deep and closed again; then many equal and many different items. */
    enum { DEPTH = 100000 };
    char *text = malloc(BIG);
    assert_non_null(text);
    memset(text, '[', DEPTH);
    memset(text + DEPTH, ']', DEPTH);
    ifl_reward r = check_bytes("json_schema", "", S("{}"), text, 2 * DEPTH, IFL_FINISH_EOS);
    assert_int_equal(r.status, IFL_REWARD_BAD_FORMAT);
    size_t n = 0;
    text[n++] = '[';
    for (int i = 0; n < BIG - 16; i++)
        n += (size_t)snprintf(text + n, 16, "%s%d", i ? "," : "", i);
    text[n++] = ']';
    clock_t begin = clock();
    r = check_bytes("json_schema", "", S("{\"uniqueItems\":true}"), text, n, IFL_FINISH_EOS);
    assert_int_equal(r.status, IFL_REWARD_OK);
    r = check_bytes("json_schema", "", S("{\"items\":{\"enum\":[\"a\",\"b\"]}}"), text, n,
                    IFL_FINISH_EOS);
    assert_int_equal(r.status, IFL_REWARD_WRONG);
    r = check_bytes("json_schema", "", S("{\"items\":{\"type\":\"integer\",\"minimum\":0}}"), text,
                    n, IFL_FINISH_EOS);
    assert_int_equal(r.status, IFL_REWARD_OK);
    assert_true((double)(clock() - begin) / CLOCKS_PER_SEC < BIG_S);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schema_takes_what_fits_and_nothing_else),
        cmocka_unit_test(test_schema_keywords),
        cmocka_unit_test(test_schema_beyond_the_subset_is_a_bad_task),
        cmocka_unit_test(test_schema_reads_the_last_fence),
        cmocka_unit_test(test_deep_and_wide_json_is_refused_in_bounded_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

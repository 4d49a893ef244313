/* The shaping checkers: overlong, length, repetition. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "tests/reward_cases.h"

typedef struct shape_case {
    const char *checker, *meta, *completion;
    ifl_finish finish;
    double reward; /* 2: bad task */
} shape_case;

#define TEN "a b c d e f g h i j"
#define TWENTY TEN " " TEN

static void test_shapes_are_those_published(void **state) {
    (void)state;
    static const shape_case cases[] = {
        {"overlong", "{\"max\":20,\"buffer\":10}", "", IFL_FINISH_EOS, 0},
        {"overlong", "{\"max\":20,\"buffer\":10}", TEN, IFL_FINISH_EOS, 0},
        {"overlong", "{\"max\":20,\"buffer\":10}", TEN " k", IFL_FINISH_EOS, -0.1},
        {"overlong", "{\"max\":20,\"buffer\":10}", TEN " a b c d e", IFL_FINISH_EOS, -0.5},
        {"overlong", "{\"max\":20,\"buffer\":10}", TWENTY, IFL_FINISH_EOS, -1},
        {"overlong", "{\"max\":20,\"buffer\":10}", TWENTY TWENTY, IFL_FINISH_EOS, -1},
        {"overlong", "{\"max\":20,\"buffer\":10}", TEN, IFL_FINISH_LENGTH, -1},
        {"overlong", "{\"max\":20}", TWENTY, IFL_FINISH_EOS, 0},
        {"overlong", "{\"max\":20}", TWENTY " k", IFL_FINISH_EOS, -1},
        /* one endless word, or a page of blanks, is long too */
        {"overlong", "{\"max\":4,\"buffer\":2}", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", IFL_FINISH_EOS,
         -1},
        {"overlong", "{\"max\":4,\"buffer\":2}", "                                ", IFL_FINISH_EOS,
         -1},
        {"overlong", "{\"max\":4,\"buffer\":2}", "111222333444", IFL_FINISH_EOS, -1},
        {"overlong", "{\"max\":10,\"buffer\":20}", "", IFL_FINISH_EOS, 2},
        {"overlong", "{\"buffer\":20}", "", IFL_FINISH_EOS, 2},
        {"overlong", "", "", IFL_FINISH_EOS, 2},
        {"length", "{\"max\":20}", "", IFL_FINISH_EOS, 1},
        {"length", "{\"max\":20}", TEN, IFL_FINISH_EOS, 0.5},
        {"length", "{\"max\":20}", TWENTY, IFL_FINISH_EOS, 0},
        {"length", "{\"max\":20}", TWENTY TWENTY, IFL_FINISH_EOS, 0},
        {"length", "{\"max\":20}", TEN, IFL_FINISH_LENGTH, 0},
        {"length", "{\"max\":40}", TEN, IFL_FINISH_EOS, 0.8535533905932737},
        {"length", "{\"max\":20,\"short\":1,\"long\":0.5}", TEN, IFL_FINISH_EOS, 0.75},
        {"length", "{\"max\":20,\"short\":-1,\"long\":-0.5}", "", IFL_FINISH_EOS, -1},
        {"length", "{\"max\":20,\"short\":-1,\"long\":-0.5}", TWENTY, IFL_FINISH_EOS, -0.5},
        {"length", "{\"max\":20,\"short\":-1,\"long\":0.5}", "", IFL_FINISH_EOS, 2},
        {"length", "{\"max\":20,\"short\":7}", "", IFL_FINISH_EOS, 2},
        {"length", "{}", "", IFL_FINISH_EOS, 2},
        {"repetition", "", "", IFL_FINISH_EOS, 0},
        {"repetition", "", "a b", IFL_FINISH_EOS, 0},
        {"repetition", "", TEN, IFL_FINISH_EOS, 0},
        {"repetition", "", "a a a a", IFL_FINISH_EOS, -0.5}, /* 2 trigrams, 1 kind */
        {"repetition", "{\"ngram\":1}", "a A  a\na", IFL_FINISH_EOS, -0.75},
        {"repetition", "{\"ngram\":2}", "a b a b a b", IFL_FINISH_EOS, -0.6},
        {"repetition", "{\"ngram\":2,\"weight\":0.5}", "a b a b a b", IFL_FINISH_EOS, -0.3},
        {"repetition", "{\"ngram\":0}", "", IFL_FINISH_EOS, 2},
        {"repetition", "{\"weight\":-1}", "", IFL_FINISH_EOS, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const shape_case *c = &cases[i];
        ifl_reward r =
            check_bytes(c->checker, "", c->meta, c->completion, strlen(c->completion), c->finish);
        bool fine = c->reward > 1
                        ? r.status == IFL_REWARD_BAD_TASK
                        : r.status == IFL_REWARD_OK && fabs((double)r.reward - c->reward) < 1e-6;
        if (!fine)
            fail_msg("%s %s '%s': got %s, %g, wanted %g", c->checker, c->meta, c->completion,
                     ifl_reward_status_name(r.status), (double)r.reward, c->reward);
    }
}

static void test_shapes_of_a_megabyte(void **state) {
    (void)state;
    static const char *const seeds[] = {"a", "a b", " ", "\n", "1", "\xff", "abc.", "aB\xcc\x81"};
    for (size_t i = 0; i <= sizeof seeds / sizeof *seeds; i++) {
        const char *seed = i < sizeof seeds / sizeof *seeds ? seeds[i] : NULL;
        expect_bounded("overlong", "", "{\"max\":1000,\"buffer\":100}", seed);
        expect_bounded("length", "", "{\"max\":1000}", seed);
        expect_bounded("repetition", "", "", seed);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes_are_those_published),
        cmocka_unit_test(test_shapes_of_a_megabyte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

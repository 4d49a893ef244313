#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/task_generator.h"

static ifl_source_config source_of(const char *generator, const char *split) {
    ifl_source_config s;
    memset(&s, 0, sizeof s);
    snprintf(s.generator, sizeof s.generator, "%s", generator);
    snprintf(s.split, sizeof s.split, "%s", split);
    return s;
}

static ifl_generator generator_of(const ifl_source_config *source, uint64_t seed) {
    ifl_generator g;
    ifl_error err = {0};
    if (ifl_generator_init(&g, source, seed, 0, "data.train.0", &err) != IFL_OK)
        fail_msg("%s", err.text);
    return g;
}

static void test_ladder_texts_are_the_recipe(void **state) {
    (void)state;
    ifl_source_config source = source_of("ladder", "train");
    ifl_generator g = generator_of(&source, 1);
    char text[IFL_GENERATOR_TEXT_MAX];
    uint32_t item = ((4 - 1) * 8 + (7 - 2)) * 700 + 417; /* 417 + 7 * 4 */
    ifl_generator_prompt(&g, item, text);
    assert_string_equal(text, "417+7*04=");
    ifl_generator_completion(&g, item, true, text);
    assert_string_equal(text, "424+7*03=431+7*02=438+7*01=445+7*00=#445\n");
    ifl_generator_completion(&g, item, false, text);
    assert_string_equal(text, "#445\n");
    ifl_generator_answer(&g, item, text);
    assert_string_equal(text, "445");

    item = ((12 - 1) * 8 + (7 - 2)) * 700 + 417;
    ifl_generator_prompt(&g, item, text);
    assert_string_equal(text, "417+7*12=");
    ifl_generator_completion(&g, item, true, text);
    assert_memory_equal(text, "424+7*11=431+7*10=", 18);
    assert_string_equal(text + strlen(text) - 14, "501+7*00=#501\n");

    ifl_generator_prompt(&g, 0, text); /* 0 + 2 * 1 */
    assert_string_equal(text, "000+2*01=");
    ifl_generator_completion(&g, 0, true, text);
    assert_string_equal(text, "002+2*00=#002\n");
}

static void test_sums_texts_are_equations(void **state) {
    (void)state;
    ifl_source_config source = source_of("sums", "train");
    ifl_generator g = generator_of(&source, 1);
    char text[IFL_GENERATOR_TEXT_MAX];
    uint32_t item = 6 * 9 + 4; /* 7 + 5 */
    ifl_generator_prompt(&g, item, text);
    assert_string_equal(text, "7 + 5 =");
    ifl_generator_answer(&g, item, text);
    assert_string_equal(text, "12");
    ifl_generator_completion(&g, item, true, text);
    assert_string_equal(text, " 12\n");
    assert_string_equal(ifl_generator_few_shot(&g),
                        "2 + 5 = 7\n8 - 3 = 5\n6 + 7 = 13\n9 - 9 = 0\n");

    source.digits = 2;
    g = generator_of(&source, 1);
    item = 90 * 90 + (45 - 10) * 90 + (17 - 10);
    ifl_generator_prompt(&g, item, text);
    assert_string_equal(text, "45 - 17 =");
    ifl_generator_answer(&g, item, text);
    assert_string_equal(text, "28");
    assert_string_equal(ifl_generator_few_shot(&g),
                        "21 + 34 = 55\n68 - 25 = 43\n47 + 19 = 66\n90 - 38 = 52\n");
}

/* Draws are part of a run's identity: the same seed must give them on every host and in every
 * release. */
static void test_known_draws(void **state) {
    (void)state;
    static const struct {
        uint64_t index;
        const char *prompt;
    } ladder[] = {{0, "287+8*04="}, {1, "525+5*02="},    {2, "096+3*12="},
                  {3, "142+9*02="}, {1000, "699+4*03="}, {1099511627776, "362+9*10="}},
      sums[] = {{0, "99 - 52 ="}, {1, "48 + 63 ="},    {2, "83 - 18 ="},
                {3, "60 - 41 ="}, {1000, "65 - 45 ="}, {1099511627776, "67 - 44 ="}};
    ifl_source_config source = source_of("ladder", "train");
    ifl_generator g = generator_of(&source, 1);
    char text[IFL_GENERATOR_TEXT_MAX];
    for (size_t i = 0; i < sizeof ladder / sizeof *ladder; i++) {
        ifl_generator_prompt(&g, ifl_generator_draw(&g, ladder[i].index), text);
        assert_string_equal(text, ladder[i].prompt);
    }
    source = source_of("sums", "heldout");
    source.digits = 2;
    g = generator_of(&source, 1);
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) {
        ifl_generator_prompt(&g, ifl_generator_draw(&g, sums[i].index), text);
        assert_string_equal(text, sums[i].prompt);
    }
}

static void test_splits_are_disjoint_and_cover_the_space(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int digits, n_tasks, heldout_min, heldout_max;
    } spaces[] = {{"ladder", 0, 700 * 8 * 16, 5300, 5900},
                  {"sums", 1, 81 + 45 - 4, 30, 42},
                  {"sums", 2, 8100 + 4095 - 4, 680, 850}};
    for (size_t s = 0; s < 3; s++) {
        ifl_source_config train = source_of(spaces[s].name, "train");
        ifl_source_config heldout = source_of(spaces[s].name, "heldout");
        train.digits = heldout.digits = spaces[s].digits;
        ifl_generator a = generator_of(&train, 1), b = generator_of(&heldout, 2);
        int n_train = 0, n_heldout = 0;
        for (uint32_t item = 0; item < a.n_space; item++) {
            bool in_train = ifl_generator_has(&a, item), in_heldout = ifl_generator_has(&b, item);
            assert_false(in_train && in_heldout);
            n_train += in_train;
            n_heldout += in_heldout;
        }
        assert_int_equal(n_train + n_heldout, spaces[s].n_tasks);
        assert_in_range(n_heldout, spaces[s].heldout_min, spaces[s].heldout_max);
        for (uint64_t i = 0; i < 20000; i++) {
            assert_true(ifl_generator_has(&a, ifl_generator_draw(&a, i)));
            assert_true(ifl_generator_has(&b, ifl_generator_draw(&b, i)));
        }
    }
}

static void test_commuted_sums_share_a_split(void **state) {
    (void)state;
    ifl_source_config source = source_of("sums", "heldout");
    source.digits = 2;
    ifl_generator g = generator_of(&source, 1);
    for (uint32_t a = 0; a < 90; a++) {
        for (uint32_t b = 0; b < 90; b++) {
            bool shown = (a == 11 && b == 24) || (b == 11 && a == 24) || (a == 37 && b == 9) ||
                         (b == 37 && a == 9); /* the few-shots are in no split */
            if (!shown)
                assert_int_equal(ifl_generator_has(&g, a * 90 + b),
                                 ifl_generator_has(&g, b * 90 + a));
        }
    }
}

static void test_few_shot_equations_are_no_tasks(void **state) {
    (void)state;
    for (int digits = 1; digits <= 2; digits++) {
        for (int split = 0; split < 2; split++) {
            ifl_source_config source = source_of("sums", split ? "heldout" : "train");
            source.digits = digits;
            ifl_generator g = generator_of(&source, 1);
            char line[IFL_GENERATOR_TEXT_MAX + 1] = "\n", shots[256];
            snprintf(shots, sizeof shots, "\n%s", ifl_generator_few_shot(&g));
            for (uint32_t item = 0; item < g.n_space; item++) {
                if (!ifl_generator_has(&g, item)) continue;
                ifl_generator_prompt(&g, item, line + 1);
                if (strstr(shots, line)) fail_msg("%s is shown and asked", line + 1);
            }
        }
    }
}

static void test_ladder_lengths_follow_the_power_law(void **state) {
    (void)state;
    enum { N = 200000 };
    ifl_source_config source = source_of("ladder", "train");
    ifl_generator g = generator_of(&source, 3);
    int count[17] = {0};
    double norm = 0;
    for (int k = 1; k <= 16; k++)
        norm += pow(k, -0.8);
    for (uint64_t i = 0; i < N; i++) {
        char text[IFL_GENERATOR_TEXT_MAX];
        ifl_generator_prompt(&g, ifl_generator_draw(&g, i), text);
        int x, d, k;
        assert_int_equal(sscanf(text, "%3d+%1d*%2d=", &x, &d, &k), 3);
        assert_in_range(x, 0, 699);
        assert_in_range(d, 2, 9);
        assert_in_range(k, 1, 16);
        count[k]++;
    }
    for (int k = 1; k <= 16; k++) {
        double want = N * pow(k, -0.8) / norm;
        /* six sigma of the draw, and 1.5 % since a hash class doesn't hold out exactly 1/16 of each
         * k */
        if (fabs(count[k] - want) > 6 * sqrt(want) + 0.015 * want)
            fail_msg("k = %d: %d draws, wanted about %.0f", k, count[k], want);
    }
}

static void test_draws_depend_on_seed_and_stream_alone(void **state) {
    (void)state;
    ifl_source_config source = source_of("ladder", "train");
    ifl_generator a = generator_of(&source, 1), b = generator_of(&source, 1),
                  c = generator_of(&source, 2), d;
    assert_int_equal(ifl_generator_init(&d, &source, 1, 9, "x", NULL), IFL_OK);
    int same_c = 0, same_d = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        uint32_t item = ifl_generator_draw(&a, i);
        assert_int_equal(item, ifl_generator_draw(&b, i));
        same_c += item == ifl_generator_draw(&c, i);
        same_d += item == ifl_generator_draw(&d, i);
    }
    assert_true(same_c < 10 && same_d < 10);
}

static void test_finite_sets_are_distinct(void **state) {
    (void)state;
    ifl_source_config source = source_of("ladder", "heldout");
    source.count = 512;
    ifl_generator g = generator_of(&source, 0);
    uint8_t *seen = calloc(g.n_space, 1);
    assert_non_null(seen);
    for (uint64_t i = 0; i < 512; i++) {
        uint32_t item = ifl_generator_draw(&g, i);
        assert_true(ifl_generator_has(&g, item));
        assert_false(seen[item]);
        seen[item] = 1;
    }
    free(seen);
    ifl_generator_clear(&g);

    /* The whole split, and one more than that. */
    source = source_of("sums", "heldout");
    g = generator_of(&source, 0);
    int64_t n = 0;
    for (uint32_t item = 0; item < g.n_space; item++)
        n += ifl_generator_has(&g, item);
    source.count = n;
    g = generator_of(&source, 0);
    assert_int_equal(g.n_items, n);
    ifl_generator_clear(&g);
    source.count = n + 1;
    ifl_error err = {0};
    assert_int_equal(ifl_generator_init(&g, &source, 0, 0, "data.eval.1", &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "data.eval.1.count"));
    ifl_generator_clear(&g);
}

static void test_wrong_settings_are_refused_by_name(void **state) {
    (void)state;
    ifl_generator g;
    ifl_error err = {0};
    ifl_source_config source = source_of("ladders", "train");
    assert_int_equal(ifl_generator_init(&g, &source, 0, 0, "data.train.2", &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "data.train.2.generator: got 'ladders'"));
    source = source_of("ladder", "test");
    assert_int_equal(ifl_generator_init(&g, &source, 0, 0, "d", &err), IFL_USAGE);
    source = source_of("ladder", "train");
    source.steps_max = 34;
    assert_int_equal(ifl_generator_init(&g, &source, 0, 0, "d", &err), IFL_USAGE);
    source = source_of("sums", "train");
    source.digits = 3;
    assert_int_equal(ifl_generator_init(&g, &source, 0, 0, "d", &err), IFL_USAGE);
    source.digits = 1;
    source.count = -1;
    assert_int_equal(ifl_generator_init(&g, &source, 0, 0, "d", &err), IFL_USAGE);
}

static void test_longest_worked_answer_fits(void **state) {
    (void)state;
    ifl_source_config source = source_of("ladder", "train");
    source.steps_max = IFL_LADDER_STEPS_MAX;
    ifl_generator g = generator_of(&source, 1);
    char text[IFL_GENERATOR_TEXT_MAX];
    ifl_generator_completion(&g, g.n_space - 1, true, text); /* 699 + 9 * 33 */
    assert_string_equal(text + strlen(text) - 14, "996+9*00=#996\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ladder_texts_are_the_recipe),
        cmocka_unit_test(test_sums_texts_are_equations),
        cmocka_unit_test(test_known_draws),
        cmocka_unit_test(test_splits_are_disjoint_and_cover_the_space),
        cmocka_unit_test(test_commuted_sums_share_a_split),
        cmocka_unit_test(test_few_shot_equations_are_no_tasks),
        cmocka_unit_test(test_ladder_lengths_follow_the_power_law),
        cmocka_unit_test(test_draws_depend_on_seed_and_stream_alone),
        cmocka_unit_test(test_finite_sets_are_distinct),
        cmocka_unit_test(test_wrong_settings_are_refused_by_name),
        cmocka_unit_test(test_longest_worked_answer_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

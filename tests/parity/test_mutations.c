/* The mutation suite: whatever is known to cost other engines their bits is done here on purpose,
 * and the checks of `inflight parity` must notice each. The table that this prints says which check
 * sees what; a mutant that no check sees fails the test.
 *
 * IFL_TEST_FULL=1 runs every mutant on every tiny family and with all batch sizes, cuts and rounds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "actor/parity_check.h"
#include "kernels/random_model.h"
#include "tests/testing.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

typedef struct subject {
    ifl_model *model;
    ifl_weights *weights;
} subject;

static subject subject_make(const char *name, ifl_profile profile) {
    subject s;
    ifl_model_config config;
    assert_true(ifl_random_model_config(name, &config));
    assert_ok(ifl_model_create(&s.model, &config, 0, profile, &err));
    assert_ok(ifl_weights_create(&s.weights, s.model, &err));
    assert_ok(ifl_random_weights(s.weights, 7, &err));
    s.weights->version = 0;
    return s;
}

static void subject_free(subject s) {
    ifl_weights_free(s.weights);
    ifl_model_free(s.model);
}

/* Compared, differing; the checks that noticed, with their counts. */
static void print_row(const char *mutant, const char *family, ifl_profile profile,
                      const ifl_parity_report *r) {
    printf("%-19s %-11s %-4s %8lld %8lld ", mutant, family, ifl_profile_name(profile),
           (long long)r->n_compared, (long long)r->n_differing);
    for (int32_t i = 0, n = 0; i < r->n_rows; i++)
        if (r->rows[i].n_differing > 0)
            printf("%s%s: %lld", n++ ? "; " : " ", r->rows[i].check,
                   (long long)r->rows[i].n_differing);
    printf("\n");
    fflush(stdout);
}

static ifl_parity_report run(const char *family, ifl_profile profile, const ifl_mutant *mutant) {
    static ifl_parity_report report;
    subject s = subject_make(family, profile);
    ifl_parity_options options = {
        .seed = 11, .threads_max = 3, .n_tokens = 24, .mutant = mutant, .quick = !testing_full()};
    if (options.n_tokens < mutant->n_tokens_min) options.n_tokens = mutant->n_tokens_min;
    assert_ok(ifl_parity_run(s.model, s.weights, &options, &report, &err));
    subject_free(s);
    return report;
}

/* Where each mutant is shown: a family whose shapes let it bite. */
static bool shown_on(const ifl_mutant *mutant, const char *family) {
    if (testing_full()) return true;
    /* Blocks of 4,096 exps, of which the C library rounds some otherwise. */
    if (strcmp(mutant->name, "libm-exp-lse") == 0) return strcmp(family, "tiny-gemma3") == 0;
    return strcmp(family, "tiny-llama") == 0;
}

static void test_every_mutant_is_noticed(void **state) {
    (void)state;
    int n, survivors = 0, runs = 0;
    const ifl_mutant *all = ifl_mutants(&n);
    const char *family;
    int shown[32][IFL_PROFILE_COUNT] = {{0}};
    assert_true(n >= 9 && n <= 32);
    printf("%-19s %-11s %-4s %8s %8s  noticed by\n", "mutant", "family", "prof", "compared",
           "differ");
    for (int i = 0; i < n; i++)
        for (int f = 0; (family = ifl_random_model_name(f)); f++)
            for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
                if (strncmp(family, "tiny-", 5) != 0 || !shown_on(&all[i], family)) continue;
                subject s = subject_make(family, (ifl_profile)profile);
                bool applies = ifl_mutant_applies(&all[i], s.model, NULL);
                subject_free(s);
                if (!applies) continue;
                ifl_parity_report r = run(family, (ifl_profile)profile, &all[i]);
                print_row(all[i].name, family, (ifl_profile)profile, &r);
                shown[i][profile]++;
                runs++;
                survivors += r.n_differing == 0;
            }
    printf("%d mutants, %d runs, %d survivors\n", n, runs, survivors);
    assert_int_equal(survivors, 0);
    for (int i = 0; i < n; i++)
        for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
            assert_int_equal(shown[i][profile] > 0, all[i].in[profile]);
}

/* What the mutants share, without a mutation: were it noticed, the table above would show nothing.
 */
static void test_the_control_is_not_noticed(void **state) {
    (void)state;
    static const char *const families[] = {"tiny-llama", "tiny-gemma3"};
    for (int f = 0; f < (testing_full() ? 2 : 1); f++)
        for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
            ifl_parity_report r = run(families[f], (ifl_profile)profile, ifl_mutant_control());
            if (r.n_differing) ifl_parity_report_print(&r, stderr);
            assert_int_equal(r.n_differing, 0);
            assert_true(r.n_compared > 1000);
        }
}

/* What `inflight parity --mutate` does, and what it says when a mutant comes through. */
static void test_the_suite_tells_survivors_from_noticed_mutants(void **state) {
    (void)state;
    ifl_parity_mutation_result r = {.n_mutants = 3, .n_noticed = 3};
    assert_int_equal(ifl_parity_mutation_status(&r, &err), IFL_PARITY);
    assert_int_equal(ifl_status_exit_code(IFL_PARITY), 65);
    r.n_noticed = 2;
    snprintf(r.survivors, sizeof r.survivors, "split-k");
    assert_int_equal(ifl_parity_mutation_status(&r, &err), IFL_INTERNAL);
    assert_non_null(strstr(err.text, "split-k"));
    assert_int_equal(ifl_status_exit_code(IFL_INTERNAL), 70);
}

static void test_mutants_are_found_by_name(void **state) {
    (void)state;
    int n;
    const ifl_mutant *all = ifl_mutants(&n);
    for (int i = 0; i < n; i++) {
        assert_ptr_equal(ifl_mutant_find(all[i].name), &all[i]);
        assert_true(all[i].what[0] != 0);
    }
    assert_null(ifl_mutant_find("no such mutant"));
    /* The one that the soak takes. */
    const ifl_ops *honest = ifl_ops_best(IFL_PROFILE_F32);
    assert_ptr_not_equal(ifl_parity_mutant(honest)->matmul, honest->matmul);
    assert_ptr_equal(ifl_parity_mutant(honest)->attention, honest->attention);
}

static void test_mutants_that_cannot_show_are_left_out(void **state) {
    (void)state;
    const char *why;
    subject s = subject_make("tiny-gemma3", IFL_PROFILE_F32);
    assert_false(ifl_mutant_applies(ifl_mutant_find("no-padding"), s.model, &why));
    assert_non_null(strstr(why, "profile"));
    assert_true(ifl_mutant_applies(ifl_mutant_find("split-k"), s.model, &why));
    subject_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mutant_is_noticed),
        cmocka_unit_test(test_the_control_is_not_noticed),
        cmocka_unit_test(test_the_suite_tells_survivors_from_noticed_mutants),
        cmocka_unit_test(test_mutants_are_found_by_name),
        cmocka_unit_test(test_mutants_that_cannot_show_are_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* kernels/contract.h: the hash over everything that decides a bit moves when any of it does, names
 * the part, and is the same on every instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/contract.h"
#include "kernels/random_model.h"

static ifl_error err;

static ifl_model *model_of(const ifl_model_config *config, ifl_profile numerics) {
    ifl_model *model;
    if (ifl_model_create(&model, config, 64, numerics, &err) != IFL_OK) fail_msg("%s", err.text);
    return model;
}

static ifl_model_config shape(const char *name) {
    ifl_model_config config;
    assert_true(ifl_random_model_config(name, &config));
    return config;
}

/* The parts in which two models differ; their hashes must agree with that. */
static const char *differing(const ifl_model_config *a, ifl_profile pa, const ifl_model_config *b,
                             ifl_profile pb) {
    static char text[256];
    ifl_model *x = model_of(a, pa), *y = model_of(b, pb);
    ifl_profile_parts_differing(&x->parts, &y->parts, text, sizeof text);
    assert_int_equal(ifl_hash_equal(x->profile, y->profile), text[0] == '\0');
    ifl_model_free(x);
    ifl_model_free(y);
    return text;
}

static void test_the_hash_moves_with_every_part_and_names_it(void **state) {
    (void)state;
    ifl_model_config a = shape("tiny-llama"), b = a;
    assert_string_equal(differing(&a, IFL_PROFILE_F32, &b, IFL_PROFILE_F32), "");
    assert_string_equal(differing(&a, IFL_PROFILE_F32, &b, IFL_PROFILE_BF16),
                        "orders, dtypes, functions, forward pass");
    b.norm_eps = 1e-5f;
    assert_string_equal(differing(&a, IFL_PROFILE_F32, &b, IFL_PROFILE_F32),
                        "model constants, forward pass");
    b = a;
    b.rope.theta = b.rope_local.theta = 10001;
    assert_string_equal(differing(&a, IFL_PROFILE_F32, &b, IFL_PROFILE_F32),
                        "rope table, forward pass");
    a = b = shape("tiny-gemma3");
    b.rope_local.theta = 10001;
    assert_string_equal(differing(&a, IFL_PROFILE_BF16, &b, IFL_PROFILE_BF16),
                        "rope table, forward pass");
    b = a;
    b.logit_softcap = 30;
    assert_string_equal(differing(&a, IFL_PROFILE_F32, &b, IFL_PROFILE_F32),
                        "model constants, forward pass");
    b = a;
    b.layer_is_sliding[0] = 0; /* of three layers one slides still */
    assert_string_equal(differing(&a, IFL_PROFILE_F32, &b, IFL_PROFILE_F32), "model constants");
}

static void test_only_our_own_names_are_printed(void **state) {
    (void)state;
    ifl_profile_parts ours = {.n = 2, .part = {{"orders", 1}, {"dtypes", 2}}}, theirs = ours;
    char text[64];
    ifl_profile_parts_differing(&ours, &theirs, text, sizeof text);
    assert_string_equal(text, "");
    snprintf(theirs.part[1].name, sizeof theirs.part[1].name, "\033[31m");
    ifl_profile_parts_differing(&ours, &theirs, text, sizeof text);
    assert_string_equal(text, "dtypes, 1 parts of another build");
    theirs.n = 0;
    ifl_profile_parts_differing(&ours, &theirs, text, sizeof text);
    assert_string_equal(text, "parts unknown");
    char small[8]; /* cut, never overrun */
    theirs.n = 2;
    ifl_profile_parts_differing(&ours, &theirs, small, sizeof small);
    assert_string_equal(small, "dtypes,");
}

static void test_every_instruction_set_gives_the_same_parts(void **state) {
    (void)state;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[8];
        int n = ifl_ops_list((ifl_profile)profile, all, 8);
        ifl_model_config config = shape("tiny-gemma3");
        ifl_model *model = model_of(&config, (ifl_profile)profile);
        uint64_t functions = ifl_contract_functions(all[0]), sums = ifl_contract_row_sums(all[0]);
        uint64_t forward;
        assert_int_equal(ifl_contract_forward(model, all[0], &forward, &err), IFL_OK);
        for (int i = 1; i < n; i++) {
            uint64_t here;
            assert_int_equal(ifl_contract_functions(all[i]), functions);
            assert_int_equal(ifl_contract_row_sums(all[i]), sums);
            assert_int_equal(ifl_contract_forward(model, all[i], &here, &err), IFL_OK);
            if (here != forward)
                fail_msg("%s, %s: another forward pass than %s", ifl_profile_name(profile),
                         all[i]->name, all[0]->name);
        }
        ifl_model_free(model);
    }
}

/* Mutants: no word of the contract changes with them. */

static const ifl_ops *honest;

static void exp_by_libm(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)__builtin_exp((double)x[i]);
}

static ifl_lse block_lse_by_halves(const float *x, int64_t n, float *p) {
    ifl_lse whole = honest->block_lse(x, n, p);
    if (n < 2) return whole;
    ifl_lse halves[2] = {honest->block_lse(x, n / 2, NULL),
                         honest->block_lse(x + n / 2, n - n / 2, NULL)};
    return honest->merge_lse(halves, 2);
}

static ifl_lse merge_lse_backwards(const ifl_lse *blocks, int64_t n) {
    ifl_lse reversed[16];
    if (n > 16) return honest->merge_lse(blocks, n);
    for (int64_t i = 0; i < n; i++)
        reversed[i] = blocks[n - 1 - i];
    return honest->merge_lse(reversed, n);
}

static void matmul_split_k(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w,
                           int64_t m, int64_t n, int64_t k, int64_t begin, int64_t end) {
    honest->matmul(y, ldy, x, ldx, w, m, n, k, begin, end);
    if (k <= IFL_DEPTH) return;
    /* The last element's share, taken out and added again: what another order does to a sum. */
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = begin * IFL_PANEL; j < end * IFL_PANEL && j < n; j++)
            y[i * ldy + j] = (y[i * ldy + j] + x[i * ldx]) - x[i * ldx];
}

static void rope_unfused(float *x, int64_t ldx, const float *c, const float *s, int64_t m,
                         int64_t d) {
    for (int64_t r = 0; r < m; r++)
        for (int64_t i = 0; i < d / 2; i++) {
            float a = x[r * ldx + i], b = x[r * ldx + i + d / 2];
            float ac = a * c[i], bc = b * c[i];
            x[r * ldx + i] = ac - b * s[i];
            x[r * ldx + i + d / 2] = bc + a * s[i];
        }
}

static void test_a_kernel_of_other_bits_is_another_contract(void **state) {
    (void)state;
    honest = ifl_ops_best(IFL_PROFILE_F32);
    ifl_model_config config = shape("tiny-llama");
    ifl_model *model = model_of(&config, IFL_PROFILE_F32);
    uint64_t functions = ifl_contract_functions(honest), sums = ifl_contract_row_sums(honest);
    uint64_t forward, mutated;
    assert_int_equal(ifl_contract_forward(model, honest, &forward, &err), IFL_OK);
    for (int mutant = 0; mutant < 5; mutant++) {
        ifl_ops ops = *honest;
        if (mutant == 0) ops.exp = exp_by_libm;
        if (mutant == 1) ops.block_lse = block_lse_by_halves;
        if (mutant == 2) ops.merge_lse = merge_lse_backwards;
        if (mutant == 3) ops.matmul = matmul_split_k;
        if (mutant == 4) ops.rope = rope_unfused;
        assert_int_equal(ifl_contract_forward(model, &ops, &mutated, &err), IFL_OK);
        bool noticed = mutated != forward || ifl_contract_functions(&ops) != functions ||
                       ifl_contract_row_sums(&ops) != sums;
        if (!noticed) fail_msg("mutant %d went unnoticed", mutant);
    }
    ifl_model_free(model);
}

static void test_it_can_be_printed(void **state) {
    (void)state;
    ifl_model_config config = shape("tiny-gemma3");
    ifl_model *model = model_of(&config, IFL_PROFILE_BF16);
    char *text = NULL, hash[33];
    size_t n;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    ifl_contract_print(model, f);
    assert_int_equal(fclose(f), 0);
    ifl_hash_text(model->profile, hash);
    assert_non_null(strstr(text, hash));
    for (int32_t i = 0; i < model->parts.n; i++)
        assert_non_null(strstr(text, model->parts.part[i].name));
    assert_non_null(strstr(text, "attention split 256, log-sum-exp block 4096"));
    assert_non_null(strstr(text, "KV cache bf16"));
    free(text);
    ifl_model_free(model);
}

#if defined(__x86_64__)
/* Another library in the process may have turned on flush-to-zero or changed the rounding:
 * log-probs don't change, so neither may the hash. */
static void test_the_callers_environment_moves_no_part(void **state) {
    (void)state;
    static const uint32_t modes[] = {0x9fc0, 0x5f80,
                                     0xffc0}; /* FTZ and DAZ, upward, both at once */
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        ifl_model_config config = shape("tiny-llama");
        ifl_model *plain = model_of(&config, (ifl_profile)profile);
        for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
            uint32_t saved = __builtin_ia32_stmxcsr();
            __builtin_ia32_ldmxcsr(modes[i]);
            ifl_model *poisoned = model_of(&config, (ifl_profile)profile);
            uint32_t after = __builtin_ia32_stmxcsr();
            __builtin_ia32_ldmxcsr(saved);
            assert_int_equal(after & ~0x3fu, modes[i]); /* the caller's own is given back */
            char text[256];
            ifl_profile_parts_differing(&plain->parts, &poisoned->parts, text, sizeof text);
            assert_string_equal(text, "");
            assert_true(ifl_hash_equal(plain->profile, poisoned->profile));
            ifl_model_free(poisoned);
        }
        ifl_model_free(plain);
    }
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_hash_moves_with_every_part_and_names_it),
        cmocka_unit_test(test_only_our_own_names_are_printed),
        cmocka_unit_test(test_every_instruction_set_gives_the_same_parts),
        cmocka_unit_test(test_a_kernel_of_other_bits_is_another_contract),
        cmocka_unit_test(test_it_can_be_printed),
#if defined(__x86_64__)
        cmocka_unit_test(test_the_callers_environment_moves_no_part),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

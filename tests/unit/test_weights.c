/* The packed weights of one version: what is put in the flat order, in pieces of any size, lies in
 * the panels that the products read, and comes out again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/bf16.h"
#include "common/memory.h"
#include "common/rng.h"
#include "kernels/random_model.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

/* Any bf16 value that survives the way through f32 (vectors are kept so): no NaN. */
static uint16_t *random_flat(int64_t n, uint64_t seed) {
    uint16_t *flat = malloc((size_t)n * sizeof *flat);
    assert_non_null(flat);
    ifl_rng_key key = {seed, 0, IFL_RNG_TEST};
    for (int64_t i = 0; i < n; i++) {
        flat[i] = (uint16_t)ifl_rng_below(&key, (uint64_t)i, 0, 65536);
        if ((flat[i] & 0x7f80u) == 0x7f80u) flat[i] ^= 0x4000u;
    }
    return flat;
}

static void check_model(const ifl_model *model, uint64_t seed) {
    int64_t n = model->n_elements;
    uint16_t *flat = random_flat(n, seed), *back = malloc((size_t)n * sizeof *back);
    assert_non_null(back);
    ifl_weights *w;
    assert_ok(ifl_weights_create(&w, model, &err));
    ifl_rng_key key = {seed, 1, IFL_RNG_TEST};
    int64_t at = 0, take, largest = 1 + (int64_t)ifl_rng_below(&key, 0, 1, (uint64_t)n);
    for (uint64_t i = 0; at < n; i++, at += take) {
        take = (int64_t)ifl_rng_below(&key, i, 2, (uint64_t)largest + 1);
        if (take > n - at) take = n - at;
        ifl_weights_put(w, at, take, flat + at);
    }
    for (int32_t i = 0; i < model->n_params; i++) {
        const ifl_param *p = &model->params[i];
        int64_t rows = p->spec.rows, cols = p->spec.cols;
        const uint16_t *from = flat + p->offset;
        if (p->spec.is_matrix) {
            size_t bytes = (size_t)ifl_panels_elements(rows, cols) * sizeof *from;
            uint16_t *want = malloc(bytes);
            assert_non_null(want);
            ifl_pack_bf16(want, from, rows, cols);
            assert_memory_equal(w->panels + p->packed_offset, want, bytes);
            free(want);
        } else {
            for (int64_t e = 0; e < rows * cols; e++) {
                float want = ifl_bf16_to_f32(from[e]);
                assert_memory_equal(&w->vectors[p->packed_offset + e], &want, sizeof want);
            }
        }
    }
    ifl_weights_get(w, 0, n, back);
    assert_memory_equal(back, flat, (size_t)n * sizeof *flat);
    for (uint64_t i = 0; i < 20; i++) {
        int64_t begin = (int64_t)ifl_rng_below(&key, i, 3, (uint64_t)n);
        int64_t count = (int64_t)ifl_rng_below(&key, i, 4, (uint64_t)(n - begin) + 1);
        memset(back, 0, (size_t)n * sizeof *back);
        ifl_weights_get(w, begin, count, back);
        assert_memory_equal(back, flat + begin, (size_t)count * sizeof *flat);
    }
    ifl_weights_free(w);
    free(flat);
    free(back);
}

static void test_pieces_of_any_size_make_the_panels(void **state) {
    (void)state;
    const char *name;
    for (int i = 0; (name = ifl_random_model_name(i)); i++) {
        if (strncmp(name, "tiny-", 5) != 0) continue;
        ifl_model_config config;
        ifl_model *model;
        assert_true(ifl_random_model_config(name, &config));
        assert_ok(ifl_model_create(&model, &config, 64, IFL_PROFILE_F32, &err));
        for (uint64_t seed = 1; seed <= 6; seed++)
            check_model(model, seed);
        ifl_model_free(model);
    }
}

/* Widths that fill neither a panel nor a block of k, and one that is odd. */
static void test_widths_that_fill_no_block(void **state) {
    (void)state;
    static const int32_t widths[][2] = {{40, 50}, {33, 70}, {64, 31}, {17, 19}};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        ifl_model_config config;
        ifl_model *model;
        assert_true(ifl_random_model_config("tiny-llama", &config));
        config.d_model = widths[i][0];
        config.d_ff = widths[i][1];
        assert_ok(ifl_model_create(&model, &config, 64, IFL_PROFILE_F32, &err));
        for (uint64_t seed = 1; seed <= 4; seed++)
            check_model(model, seed);
        ifl_model_free(model);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_of_any_size_make_the_panels),
        cmocka_unit_test(test_widths_that_fill_no_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

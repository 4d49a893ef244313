/* common/weight_patch.h: every bit comes back, and no bytes whatever make it read or write outside.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bf16.h"
#include "common/class_ranks.h"
#include "common/rng.h"
#include "common/weight_patch.h"

#define N 100000

static uint64_t draw(uint64_t *counter) {
    ifl_rng_key key = {.seed = 7, .purpose = IFL_RNG_TEST};
    return ifl_rng_u64(&key, (*counter)++, 0);
}

static size_t n_bytes_classed; /* of the last round trip */

static void assert_same_patch(const ifl_patch *a, const ifl_patch *b) {
    assert_int_equal(a->n, b->n);
    if (a->n == 0) return;
    assert_memory_equal(a->at, b->at, (size_t)a->n * sizeof *a->at);
    assert_memory_equal(a->steps, b->steps, (size_t)a->n * sizeof *a->steps);
}

/* A host without AVX2 writes the same bytes, and reads them. */
static void assert_plain_host_agrees(ifl_patch *diff, const uint16_t *base, int64_t n,
                                     const uint8_t *code, size_t n_code) {
    ifl_patch decoded = {0};
    uint8_t *bytes = NULL;
    size_t cap = 0, n_bytes;
    ifl_class_ranks_test_plain(1);
    assert_int_equal(ifl_patch_encode_classes(diff, base, n, &bytes, &cap, &n_bytes, NULL), IFL_OK);
    assert_int_equal(n_bytes, n_code);
    assert_memory_equal(bytes, code, n_code);
    assert_int_equal(ifl_patch_decode_classes(&decoded, code, n_code, base, n, NULL), IFL_OK);
    ifl_class_ranks_test_plain(0);
    assert_same_patch(&decoded, diff);
    ifl_patch_free(&decoded);
    free(bytes);
}

/* base -> diff -> encode -> decode -> apply gives `now`; returns the bytes. */
static size_t assert_round_trip(const uint16_t *base, const uint16_t *now, int64_t n) {
    ifl_patch diff = {0}, decoded = {0};
    uint8_t *bytes = NULL;
    size_t cap = 0, n_bytes, n_bytes_packed;
    ifl_error err = {0};
    assert_int_equal(ifl_patch_diff(&diff, base, now, n, &err), IFL_OK);
    assert_int_equal(ifl_patch_encode(&diff, &bytes, &cap, &n_bytes, &err), IFL_OK);
    /* At its exact size, so that a sanitizer sees a byte read beyond it. */
    uint8_t *exact = malloc(n_bytes);
    memcpy(exact, bytes, n_bytes);
    if (ifl_patch_decode(&decoded, exact, n_bytes, n, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_same_patch(&decoded, &diff);
    /* In bytes, which end with the last change and nowhere else. */
    free(exact);
    assert_int_equal(ifl_patch_pack(&diff, &bytes, &cap, &n_bytes_packed, &err), IFL_OK);
    exact = malloc(n_bytes_packed + 1);
    memcpy(exact, bytes, n_bytes_packed);
    assert_int_equal(ifl_patch_unpack(&decoded, exact, n_bytes_packed, n, &err), IFL_OK);
    assert_same_patch(&decoded, &diff);
    if (diff.n > 0) {
        assert_int_equal(ifl_patch_unpack(&decoded, exact, n_bytes_packed - 1, n, &err),
                         IFL_FORMAT);
        assert_int_equal(
            ifl_patch_unpack(&decoded, exact, n_bytes_packed, diff.at[diff.n - 1], &err),
            IFL_FORMAT);
    }
    assert_int_equal(ifl_patch_unpack(&decoded, exact, n_bytes_packed, n, &err), IFL_OK);
    uint16_t *elements = malloc((size_t)n * 2 + 1);
    memcpy(elements, base, (size_t)n * 2);
    assert_int_equal(ifl_patch_apply(&decoded, elements, &err), IFL_OK);
    assert_memory_equal(elements, now, (size_t)n * 2);
    free(exact);
    /* The same by class. */
    size_t n_classed;
    assert_int_equal(ifl_patch_encode_classes(&diff, base, n, &bytes, &cap, &n_classed, &err),
                     IFL_OK);
    exact = malloc(n_classed);
    memcpy(exact, bytes, n_classed);
    if (ifl_patch_decode_classes(&decoded, exact, n_classed, base, n, &err) != IFL_OK)
        fail_msg("%s", err.text);
    assert_same_patch(&decoded, &diff);
    assert_plain_host_agrees(&diff, base, n, exact, n_classed);
    n_bytes_classed = n_classed;
    free(elements);
    free(exact);
    free(bytes);
    ifl_patch_free(&diff);
    ifl_patch_free(&decoded);
    return n_bytes;
}

static void test_places_are_a_bijection_in_numeric_order(void **state) {
    (void)state;
    for (uint32_t b = 0; b < 65536; b++)
        assert_int_equal(ifl_bf16_at_place(ifl_bf16_place((uint16_t)b)), b);
    for (int32_t place = ifl_bf16_place(0xff80) + 1; place <= ifl_bf16_place(0x7f80); place++) {
        float below = ifl_bf16_to_f32(ifl_bf16_at_place(place - 1)),
              here = ifl_bf16_to_f32(ifl_bf16_at_place(place));
        assert_true(below < here || (below == 0.0f && here == 0.0f)); /* -0, +0 */
    }
}

/* From nothing to every weight, by one step and by any: also NaNs, infinities and both zeros. */
static void test_every_density_and_size_comes_back(void **state) {
    (void)state;
    uint16_t *base = malloc(N * 2), *now = malloc(N * 2);
    uint64_t counter = 0;
    const double shares[] = {0.0, 1e-5, 1e-3, 0.01, 0.1, 0.5, 1.0};
    for (size_t s = 0; s < sizeof shares / sizeof *shares; s++)
        for (int any = 0; any < 2; any++) {
            for (int i = 0; i < N; i++) {
                base[i] = now[i] = (uint16_t)draw(&counter);
                if ((double)(draw(&counter) >> 11) * 0x1p-53 >= shares[s]) continue;
                int32_t place = ifl_bf16_place(base[i]);
                if (any)
                    now[i] = (uint16_t)draw(&counter);
                else
                    now[i] = ifl_bf16_at_place(place == 32767 ? place - 1 : place + 1);
            }
            size_t n_bytes = assert_round_trip(base, now, N);
            if (shares[s] == 0.0) assert_int_equal(n_bytes, 8);
        }
    memset(base, 0xff, N * 2); /* -32768 ... */
    for (int i = 0; i < N; i++)
        now[i] = 0x7fff; /* ... to 32767: the largest step there is */
    assert_int_equal(ifl_bf16_place(0xffff), -32768);
    assert_round_trip(base, now, N);
    for (int64_t n = 0; n < 200; n++) /* lengths beside the strides */
        assert_round_trip(base, now, n);
    free(base);
    free(now);
}

/* What the code is for: 1 % of weights moved by one step in 0.62 % of the bytes. The bound is the
 * entropy of place and sign, 9.08 bits a change, + 4 % for whole-bit codes and the blocks' headers.
 */
static void test_one_percent_of_single_steps_is_near_its_entropy(void **state) {
    (void)state;
    uint16_t *base = calloc(N, 2), *now = calloc(N, 2);
    uint64_t counter = 0;
    int n_changed = 0;
    for (int i = 0; i < N; i++) {
        base[i] = now[i] = 0x3c00;
        if (draw(&counter) % 100 != 0) continue;
        now[i] = draw(&counter) & 1 ? 0x3c01 : 0x3bff;
        n_changed++;
    }
    size_t n_bytes = assert_round_trip(base, now, N);
    double bits = 8.0 * (double)n_bytes / n_changed;
    if (!(bits < 9.08 * 1.04)) fail_msg("%.2f bits a change", bits);
    free(base);
    free(now);
}

/* AdamW's way: every weight moves by the same amount, those of a real model lie over many
 * exponents. The bound is what plain takes: by class a third less at least. */
static void test_a_weights_exponent_foretells_its_change(void **state) {
    (void)state;
    uint16_t *base = calloc(N, 2), *now = calloc(N, 2);
    uint64_t counter = 0;
    int n_large = 0, n_changed = 0;
    for (int i = 0; i < N; i++) {
        double u = (double)(draw(&counter) >> 11) * 0x1p-53;
        float master = (float)(0.02 * u * u * u * u) * (draw(&counter) & 1 ? 1.0f : -1.0f);
        base[i] = ifl_bf16_from_f32(master);
        now[i] = ifl_bf16_from_f32(master + 3e-6f * (float)(int)(draw(&counter) % 3 - 1));
        int32_t step = ifl_bf16_place(now[i]) - ifl_bf16_place(base[i]);
        n_changed += step != 0;
        n_large += abs(step) > 1;
    }
    assert_true(n_changed > N / 20 && n_large > n_changed / 4);
    size_t plain = assert_round_trip(base, now, N);
    if (!(n_bytes_classed * 3 < plain * 2))
        fail_msg("%zu bytes by class, %zu plain", n_bytes_classed, plain);
    free(base);
    free(now);
}

/* Sizes in Huffman codes: one symbol alone, a code that would be too deep, and every size that
 * there is. */
static void test_every_distribution_of_sizes_comes_back(void **state) {
    (void)state;
    static uint16_t base[N], now[N];
    const int32_t middle = ifl_bf16_place(ifl_bf16_from_f32(1.0f));
    for (int kind = 0; kind < 3; kind++) {
        uint64_t counter = 0;
        for (int32_t i = 0; i < N; i++) {
            int32_t size = 7;
            if (kind == 1) /* each half as often as the one before it */
                size = 1 + __builtin_ctzll(draw(&counter) | 1ull << 40);
            if (kind == 2) size = 1 + i % (INT16_MAX - middle - 128);
            bool down = i % 3 == 0;
            base[i] = ifl_bf16_from_f32(1.0f);
            now[i] = ifl_bf16_at_place(down ? middle - size : middle + size);
        }
        size_t n_bytes = assert_round_trip(base, now, N);
        /* A gap and a sign each (and 5 bits for 64 gaps), and the size, whose entropy is 0, 2, and
         * some 14 bits, and whose code has one bit at least. */
        const double most[] = {2.1 + 1.01, 2.1 + 2.05, 2.1 + 15.0};
        assert_true((double)n_bytes_classed * 8 / N < most[kind]);
        assert_true(kind > 0 || n_bytes_classed < n_bytes);
    }
}

static void test_merged_patches_equal_both_in_a_row(void **state) {
    (void)state;
    uint16_t *v[4];
    uint64_t counter = 0;
    for (int k = 0; k < 4; k++)
        v[k] = malloc(N * 2);
    for (int i = 0; i < N; i++) {
        v[0][i] = (uint16_t)draw(&counter);
        for (int k = 1; k < 4; k++) {
            v[k][i] = v[k - 1][i];
            uint64_t d = draw(&counter) % 16;
            if (d == 0) v[k][i] = (uint16_t)draw(&counter);
            if (d == 1) v[k][i] = v[0][i]; /* back again: no change in the sum */
        }
    }
    ifl_patch a = {0}, b = {0}, c = {0}, ab = {0}, abc = {0}, direct = {0};
    assert_int_equal(ifl_patch_diff(&a, v[0], v[1], N, NULL), IFL_OK);
    assert_int_equal(ifl_patch_diff(&b, v[1], v[2], N, NULL), IFL_OK);
    assert_int_equal(ifl_patch_diff(&c, v[2], v[3], N, NULL), IFL_OK);
    assert_int_equal(ifl_patch_merge(&ab, &a, &b, NULL), IFL_OK);
    assert_int_equal(ifl_patch_merge(&abc, &ab, &c, NULL), IFL_OK);
    assert_int_equal(ifl_patch_diff(&direct, v[0], v[3], N, NULL), IFL_OK);
    assert_int_equal(abc.n, direct.n);
    assert_memory_equal(abc.at, direct.at, (size_t)abc.n * sizeof *abc.at);
    assert_memory_equal(abc.steps, direct.steps, (size_t)abc.n * sizeof *abc.steps);
    ifl_patch *all[] = {&a, &b, &c, &ab, &abc, &direct};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ifl_patch_free(all[i]);
    for (int k = 0; k < 4; k++)
        free(v[k]);
}

static void test_wrong_base_is_noticed_or_stays_inside_bf16(void **state) {
    (void)state;
    uint16_t base = 0x7fff, now = 0x7ff0, other = 0xffff; /* other: the lowest place */
    ifl_patch p = {0};
    assert_int_equal(ifl_patch_diff(&p, &base, &now, 1, NULL), IFL_OK);
    assert_int_equal(ifl_patch_apply(&p, &other, NULL), IFL_FORMAT);
    ifl_patch_free(&p);
}

/* Flipped bits, cut ends, noise: a status or a patch inside the chunk, never more. (The bytes' hash
 * stands before the decoder in the weight plane; this is what stands when it doesn't.) */
static void test_malformed_bytes_are_refused_or_harmless(void **state) {
    (void)state;
    enum { SMALL = 5000 };
    uint16_t *base = malloc(SMALL * 2), *now = malloc(SMALL * 2);
    uint64_t counter = 0;
    for (int i = 0; i < SMALL; i++) {
        base[i] = now[i] = (uint16_t)draw(&counter);
        if (draw(&counter) % 20 == 0) now[i] = (uint16_t)(base[i] + 1 + draw(&counter) % 3);
    }
    ifl_patch p = {0}, out = {0};
    uint8_t *bytes = NULL;
    size_t cap = 0, n_bytes;
    assert_int_equal(ifl_patch_diff(&p, base, now, SMALL, NULL), IFL_OK);
    int n_refused = 0, n_tries = 0;
    for (int i = 0; i < 40000; i++) {
        bool classes = i >= 20000;
        if (i == 0) assert_int_equal(ifl_patch_encode(&p, &bytes, &cap, &n_bytes, NULL), IFL_OK);
        if (i == 20000)
            assert_int_equal(
                ifl_patch_encode_classes(&p, base, SMALL, &bytes, &cap, &n_bytes, NULL), IFL_OK);
        size_t n = draw(&counter) % 4 == 0 ? draw(&counter) % (n_bytes + 1) : n_bytes;
        uint8_t *bad = malloc(n ? n : 1);
        memcpy(bad, bytes, n);
        for (uint64_t flips = draw(&counter) % 4; n > 0 && flips > 0; flips--)
            bad[draw(&counter) % n] ^= (uint8_t)(1u << draw(&counter) % 8);
        if (i % 8 == 0)
            for (size_t j = 0; j < n; j++)
                bad[j] = (uint8_t)draw(&counter);
        ifl_status st = classes ? ifl_patch_decode_classes(&out, bad, n, base, SMALL, NULL)
                                : ifl_patch_decode(&out, bad, n, SMALL, NULL);
        n_tries++;
        if (st != IFL_OK) {
            assert_int_equal(st, IFL_FORMAT);
            n_refused++;
        } else {
            for (int32_t c = 0; c < out.n; c++) {
                assert_true(out.at[c] < SMALL && (c == 0 || out.at[c] > out.at[c - 1]));
                assert_true(out.steps[c] != 0 && abs(out.steps[c]) <= 65535);
            }
        }
        free(bad);
    }
    assert_true(n_refused > n_tries / 4 && n_refused < n_tries);
    /* A count that the bytes can't hold asks for no memory. */
    uint8_t liar[12] = {0xff, 0xff, 0xff, 0x3f};
    assert_int_equal(ifl_patch_decode(&out, liar, sizeof liar, 1 << 30, NULL), IFL_FORMAT);
    assert_int_equal(ifl_patch_decode(&out, liar, 3, 1 << 30, NULL), IFL_FORMAT);
    free(bytes);
    free(base);
    free(now);
    ifl_patch_free(&p);
    ifl_patch_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places_are_a_bijection_in_numeric_order),
        cmocka_unit_test(test_every_density_and_size_comes_back),
        cmocka_unit_test(test_one_percent_of_single_steps_is_near_its_entropy),
        cmocka_unit_test(test_a_weights_exponent_foretells_its_change),
        cmocka_unit_test(test_every_distribution_of_sizes_comes_back),
        cmocka_unit_test(test_merged_patches_equal_both_in_a_row),
        cmocka_unit_test(test_wrong_base_is_noticed_or_stays_inside_bf16),
        cmocka_unit_test(test_malformed_bytes_are_refused_or_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

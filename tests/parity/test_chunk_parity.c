/* However a sequence is cut into chunks and laid into pages, its log-probs have the same 32 bits:
 * groups 2 and 4 of the numerics notes. IFL_TEST_FULL=1: every cut of every length on every
 * instruction set, and ten times the random splits. */
#include "parity_testing.h"

enum { SHORT = 40, LONG = 600, PAGES_MAX = LONG + SHORT };

typedef struct lane {
    subject s;
    ifl_workspace *ws;
    ifl_kv_store *kv;
    ifl_logprob want[LONG], got[LONG];
} lane;

static void lane_open(lane *l, const char *family, ifl_profile profile, const ifl_ops *ops,
                      int32_t n, int32_t page) {
    subject_open(&l->s, family, profile);
    subject_reference(&l->s, ops, n, l->want);
    assert_ok(ifl_workspace_create(&l->ws, l->s.model, n, NULL, ops, &err));
    assert_ok(ifl_kv_store_create(&l->kv, l->s.model, 4 * n / page + 8, page, &err));
}

static void lane_close(lane *l) {
    ifl_kv_store_free(l->kv);
    ifl_workspace_free(l->ws);
    subject_close(&l->s);
}

/* Chunks end at cuts[0 .. n_cuts), the last of them the length. */
static void lane_chunks(lane *l, const int32_t *pages, const int32_t *cuts, int n_cuts) {
    int32_t begin = 0;
    memset(l->got, 0xff, sizeof l->got);
    for (int c = 0; c < n_cuts; begin = cuts[c++])
        subject_rows(&l->s, l->ws, l->kv, pages, begin, cuts[c], 0, l->got);
    for (int32_t t = 0; t < begin; t++)
        if (!same_logprob(&l->got[t], &l->want[t]))
            fail_msg("length %d in %d chunks, the first of %d: token %d is %.9g, wanted %.9g",
                     begin, n_cuts, cuts[0], t + 1, (double)l->got[t].logprob,
                     (double)l->want[t].logprob);
}

static void test_every_cut_of_every_length_to_40(void **state) {
    (void)state;
    static const char *const families[] = {"tiny-llama", "tiny-qwen3"};
    static lane l;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[8];
        int n_ops = ifl_ops_list((ifl_profile)profile, all, 8);
        for (int i = 0; i < n_ops; i++)
            for (int f = 0; f < 2; f++) {
                bool sampled = !testing_full() && testing_is_slow(all[i]);
                if (sampled && f) continue;
                lane_open(&l, families[f], (ifl_profile)profile, all[i], SHORT, 16);
                for (int32_t n = 1; n <= SHORT; n++)
                    for (int32_t cut = 1; cut <= n; cut++) {
                        if (sampled && (n % 13 != 1 || cut % 5 != 1)) continue;
                        int32_t cuts[] = {cut, n};
                        lane_chunks(&l, l.s.iota, cuts, cut == n ? 1 : 2);
                    }
                lane_close(&l);
            }
    }
}

/* All 2^8 ways to cut nine tokens. */
static void test_every_way_to_cut_nine_tokens(void **state) {
    (void)state;
    static lane l;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        lane_open(&l, "tiny-gemma3", (ifl_profile)profile, NULL, 9, 4);
        for (int ends = 0; ends < 1 << 8; ends++) {
            int32_t cuts[9];
            int n = 0;
            for (int32_t t = 1; t < 9; t++)
                if (ends >> (t - 1) & 1) cuts[n++] = t;
            cuts[n++] = 9;
            lane_chunks(&l, l.s.iota, cuts, n);
        }
        lane_close(&l);
    }
}

/* Random cuts at and beside the borders of pages, tiles, blocks of 32 and KV splits. */
static void test_random_cuts_beside_borders(void **state) {
    (void)state;
    static const int32_t borders[] = {16,  32,  48,  64,  96,  128, 160, 192,
                                      255, 256, 257, 320, 384, 448, 512, 576};
    static lane l;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        ifl_rng_key key = {17, (uint64_t)profile, IFL_RNG_TEST};
        uint64_t drawn = 0;
        lane_open(&l, "tiny-llama", (ifl_profile)profile, NULL, LONG, 16);
        for (int round = 0; round < (testing_full() ? 300 : 30); round++) {
            int32_t cuts[64], n = 0, at = 0;
            for (size_t b = 0; b < sizeof borders / sizeof *borders; b++) {
                if (ifl_rng_below(&key, drawn++, 0, 3) == 0) continue;
                int32_t cut = borders[b] - 1 + (int32_t)ifl_rng_below(&key, drawn++, 0, 3);
                if (cut > at) cuts[n++] = at = cut;
            }
            cuts[n++] = LONG;
            lane_chunks(&l, l.s.iota, cuts, n);
        }
        lane_close(&l);
    }
}

static void test_the_packed_forward_has_the_bits_of_decoding(void **state) {
    (void)state;
    static const char *const families[] = {"tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3"};
    static lane l;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int f = 0; f < 4; f++) {
            int32_t n = f == 0 ? LONG - 1 : 90;
            ifl_trainer *trainer;
            lane_open(&l, families[f], (ifl_profile)profile, NULL, n, 16);
            ifl_batch_seq seq = {0, n, 0, l.s.iota};
            ifl_pack pack = {n, 1, n, l.s.tokens, &seq, l.s.iota, l.s.tokens + 1, l.s.ones, NULL};
            assert_ok(
                ifl_trainer_create(&trainer, l.s.model, n, IFL_ACTIVATION_BYTES, NULL, NULL, &err));
            assert_ok(ifl_trainer_forward(trainer, l.s.weights, &pack, l.got, &err));
            for (int32_t t = 0; t < n; t++)
                assert_true(same_logprob(&l.got[t], &l.want[t]));
            ifl_trainer_free(trainer);
            lane_close(&l);
        }
}

/* --- Pages
 * ---------------------------------------------------------------------------------------- */

/* A fork shares the full pages of a prefix and copies the partial one, for prefixes of b - 1, b and
 * b + 1 tokens; both go on, and neither sees the other. */
static void fork_after(lane *l, int32_t page, int32_t shared, int32_t n) {
    int32_t own[PAGES_MAX], fork[PAGES_MAX], n_pages = (n + page - 1) / page,
                                             full_pages = shared / page;
    subject other = l->s; /* the same model; another continuation */
    static ifl_logprob want[LONG], got[LONG];
    for (int32_t i = shared; i <= n; i++)
        other.tokens[i] = (l->s.tokens[i] + 5) % l->s.model->config.vocab_size;
    subject_reference(&other, NULL, n, want);
    for (int32_t i = 0; i < n_pages; i++) {
        own[i] = 2 * i + 1; /* not beside each other */
        fork[i] = i < full_pages ? own[i] : 2 * i;
    }
    memset(l->got, 0xff, sizeof l->got);
    subject_rows(&l->s, l->ws, l->kv, own, 0, shared, 0, l->got);
    if (shared % page) ifl_kv_store_copy(l->kv, fork[full_pages], own[full_pages], shared % page);
    subject_rows(&other, l->ws, l->kv, fork, shared, n, 0, got);
    subject_rows(&l->s, l->ws, l->kv, own, shared, n, 0, l->got);
    for (int32_t t = 0; t < n; t++) {
        if (!same_logprob(&l->got[t], &l->want[t]))
            fail_msg("pages of %d, %d shared: own token %d", page, shared, t);
        if (t >= shared && !same_logprob(&got[t], &want[t]))
            fail_msg("pages of %d, %d shared: the fork's token %d", page, shared, t);
    }
}

static void test_a_prefix_hit_has_the_bits_of_a_fresh_prefill(void **state) {
    (void)state;
    static const int32_t sizes[] = {1, 4, 16, 128};
    static lane l;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int i = 0; i < 4; i++) {
            int32_t page = sizes[i], n = 2 * page + 21;
            lane_open(&l, "tiny-llama", (ifl_profile)profile, NULL, n, page);
            for (int32_t whole = 1; whole <= 2; whole++)
                for (int32_t shared = whole * page - 1; shared <= whole * page + 1; shared++)
                    if (shared > 0) fork_after(&l, page, shared, n);
            lane_close(&l);
        }
}

/* Out to other pages while a stranger takes the first ones, back to a third place; then thrown away
 * and computed again. */
static void test_eviction_and_recomputation_change_no_bit(void **state) {
    (void)state;
    enum { N = 70, HALF = 35 };
    static const int32_t sizes[] = {1, 16, 64};
    static lane l;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++)
        for (int i = 0; i < 3; i++) {
            int32_t page = sizes[i], n_pages = (N + page - 1) / page,
                    held = (HALF + page - 1) / page;
            int32_t first[PAGES_MAX], second[PAGES_MAX], third[PAGES_MAX];
            lane_open(&l, "tiny-qwen3", (ifl_profile)profile, NULL, N, page);
            subject stranger = l.s;
            static ifl_logprob unread[N];
            for (int32_t t = 0; t <= N; t++)
                stranger.tokens[t] = (l.s.tokens[t] + 3) % l.s.model->config.vocab_size;
            for (int32_t p = 0; p < n_pages; p++) {
                first[p] = p;
                second[p] = 2 * n_pages - 1 - p;
                third[p] = 2 * n_pages + (p * 3 + 1) % n_pages;
            }
            if (n_pages % 3 == 0) /* keep the third place a permutation */
                for (int32_t p = 0; p < n_pages; p++)
                    third[p] = 2 * n_pages + p;
            subject_rows(&l.s, l.ws, l.kv, first, 0, HALF, 0, l.got);
            for (int32_t p = 0; p < held; p++)
                ifl_kv_store_copy(l.kv, second[p], first[p],
                                  p + 1 < held || HALF % page == 0 ? page : HALF % page);
            subject_rows(&stranger, l.ws, l.kv, first, 0, N, 0, unread);
            for (int32_t p = 0; p < held; p++)
                ifl_kv_store_copy(l.kv, third[p], second[p], page);
            subject_rows(&stranger, l.ws, l.kv, second, 0, N, 0, unread);
            subject_rows(&l.s, l.ws, l.kv, third, HALF, N, 0, l.got);
            for (int32_t t = 0; t < N; t++)
                assert_true(same_logprob(&l.got[t], &l.want[t]));
            int32_t cuts[] = {HALF, N};
            lane_chunks(&l, first, cuts, 2); /* computed again where the stranger was */
            lane_close(&l);
        }
}

/* The failing direction: one page of a stranger in the table shows. */
static void test_a_strangers_page_is_seen(void **state) {
    (void)state;
    enum { N = 50, PAGE = 16 };
    static lane l;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        lane_open(&l, "tiny-llama", (ifl_profile)profile, NULL, N, PAGE);
        subject stranger = l.s;
        static ifl_logprob unread[N];
        int32_t wrong[] = {0, 5, 2, 3};
        stranger.tokens[20] = (l.s.tokens[20] + 1) % l.s.model->config.vocab_size;
        subject_rows(&stranger, l.ws, l.kv, l.s.iota + 4, 0, N - 1, 0, unread);
        subject_rows(&l.s, l.ws, l.kv, l.s.iota, 0, N - 1, 0, l.got);
        subject_rows(&l.s, l.ws, l.kv, wrong, N - 1, N, 0, l.got);
        assert_false(same_logprob(&l.got[N - 1], &l.want[N - 1]));
        lane_close(&l);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cut_of_every_length_to_40),
        cmocka_unit_test(test_every_way_to_cut_nine_tokens),
        cmocka_unit_test(test_random_cuts_beside_borders),
        cmocka_unit_test(test_the_packed_forward_has_the_bits_of_decoding),
        cmocka_unit_test(test_a_prefix_hit_has_the_bits_of_a_fresh_prefill),
        cmocka_unit_test(test_eviction_and_recomputation_change_no_bit),
        cmocka_unit_test(test_a_strangers_page_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

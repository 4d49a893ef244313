/* A decode row of the whole model beside anything: batches of 1 to 1,025 rows, neighbours of huge,
 * NaN, infinite and denormal activations, a neighbour's prefill that grows. Groups 1 and 3 of the
 * numerics notes. IFL_TEST_FULL=1: every position of batches below 130, every kind of neighbour
 * everywhere. */
#include "parity_testing.h"

static const int32_t batch_sizes[] = {1,   2,   3,   7,   8,    9,    15,  16,  17,
                                      31,  32,  33,  63,  64,   65,   127, 128, 129,
                                      255, 256, 257, 511, 1023, 1024, 1025};
enum {
    N_SIZES = sizeof batch_sizes / sizeof *batch_sizes,
    ROWS_MAX = 1025,
    OWN = 37,
    PAGE = 16,
    OWN_PAGES = 3
};

/* Tokens whose embeddings are of one kind; below them, none; above, ordinary ones. */
enum { TOKEN_HUGE, TOKEN_NAN, TOKEN_INF, TOKEN_DENORMAL, N_KINDS };

static void make_kinds(subject *s) {
    static const uint16_t bits[N_KINDS] = {0x7f00, 0x7fc1, 0x7f80, 0x0013};
    int64_t d = s->model->config.d_model;
    uint16_t row[256];
    assert_true(d <= 256 && !s->model->config.tied_head);
    for (int kind = 0; kind < N_KINDS; kind++) {
        for (int64_t i = 0; i < d; i++)
            row[i] = (uint16_t)(bits[kind] | (i % 3 == 1 ? 0x8000 : 0));
        ifl_weights_put(s->weights, s->model->params[s->model->embedding].offset + kind * d, d,
                        row);
    }
}

/* The row at OWN of the sequence under test, at `at` among m rows; the others begin sequences. */
static ifl_logprob row_beside(const subject *s, ifl_workspace *ws, ifl_kv_store *kv,
                              const int32_t *pages, int32_t m, int32_t at, int32_t kind) {
    static ifl_batch_seq seqs[ROWS_MAX];
    static int32_t tokens[ROWS_MAX], targets[ROWS_MAX];
    static ifl_logprob out[ROWS_MAX];
    const float *hidden;
    for (int32_t i = 0; i < m; i++) {
        tokens[i] = i == at ? s->tokens[OWN] : kind < N_KINDS ? kind : s->tokens[OWN + 1 + i];
        targets[i] = s->tokens[OWN + 1];
        seqs[i] = i == at ? (ifl_batch_seq){i, 1, OWN, pages}
                          : (ifl_batch_seq){i, 1, 0, pages + OWN_PAGES + i};
    }
    ifl_batch batch = {m, m, m, tokens, seqs, s->iota};
    assert_ok(ifl_forward(ws, s->weights, kv, &batch, &hidden, &err));
    assert_ok(ifl_head_logprobs(ws, s->weights, hidden, m, targets, s->ones, out, &err));
    return out[at];
}

static int64_t rows_compared(subject *s, const ifl_ops *ops, int32_t m_max, int64_t *n_nan) {
    ifl_workspace *ws;
    ifl_kv_store *kv;
    static ifl_logprob before[OWN + 1];
    int64_t n = 0;
    int32_t pages[OWN_PAGES + ROWS_MAX];
    for (int32_t i = 0; i < OWN_PAGES + ROWS_MAX; i++)
        pages[i] = i;
    assert_ok(ifl_workspace_create(&ws, s->model, m_max, NULL, ops, &err));
    assert_ok(ifl_kv_store_create(&kv, s->model, OWN_PAGES + ROWS_MAX, PAGE, &err));
    for (int32_t i = 0; i < OWN; i++)
        subject_rows(s, ws, kv, pages, i, i + 1, 0, before);
    ifl_logprob alone = row_beside(s, ws, kv, pages, 1, 0, N_KINDS);
    for (int i = 0; i < N_SIZES && batch_sizes[i] <= m_max; i++) {
        int32_t m = batch_sizes[i];
        bool all = m <= (testing_full() ? 129 : 9);
        for (int32_t at = 0; at < m; at++) {
            bool edge = at == 0 || at == m / 2 || at == m - 1 || at == 191 || at == 192;
            if (!all && !edge) continue;
            for (int32_t kind = 0; kind <= N_KINDS; kind++) {
                if (!testing_full() && m > 9 && kind != (at + i) % (N_KINDS + 1)) continue;
                ifl_logprob got = row_beside(s, ws, kv, pages, m, at, kind);
                *n_nan += kind == TOKEN_NAN && m > 1;
                n++;
                if (!same_logprob(&got, &alone))
                    fail_msg("%s, profile %d: row %d of %d beside kind %d: %.9g, alone %.9g",
                             ops->name, (int)ops->profile, at, m, kind, (double)got.logprob,
                             (double)alone.logprob);
            }
        }
    }
    ifl_kv_store_free(kv);
    ifl_workspace_free(ws);
    return n;
}

static void test_a_decode_row_does_not_know_its_batch(void **state) {
    (void)state;
    int64_t n = 0, n_nan = 0;
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[8];
        int n_ops = ifl_ops_list((ifl_profile)profile, all, 8);
        static subject s;
        subject_open_at(&s, "tiny-llama", (ifl_profile)profile, N_KINDS);
        make_kinds(&s);
        for (int i = 0; i < n_ops; i++) {
            bool best = all[i] == ifl_ops_best((ifl_profile)profile);
            n += rows_compared(&s, all[i],
                               testing_full() || best    ? ROWS_MAX
                               : testing_is_slow(all[i]) ? 17
                                                         : 129,
                               &n_nan);
        }
        subject_close(&s);
    }
    print_message("%lld rows compared\n", (long long)n);
    assert_true(n > 500 && n_nan > 50);
}

/* The kinds are what they are said to be: such a neighbour's own log-prob is a NaN. */
static void test_a_neighbour_of_nans_is_one(void **state) {
    (void)state;
    static subject s;
    ifl_workspace *ws;
    ifl_kv_store *kv;
    ifl_logprob out[2];
    subject_open_at(&s, "tiny-llama", IFL_PROFILE_F32, N_KINDS);
    make_kinds(&s);
    assert_ok(ifl_workspace_create(&ws, s.model, 1, NULL, NULL, &err));
    assert_ok(ifl_kv_store_create(&kv, s.model, 1, 16, &err));
    for (int32_t kind = 0; kind < N_KINDS; kind++) {
        s.tokens[0] = kind;
        subject_rows(&s, ws, kv, s.iota, 0, 1, 0, out);
        if (kind == TOKEN_NAN || kind == TOKEN_INF) assert_true(out[0].logprob != out[0].logprob);
    }
    ifl_kv_store_free(kv);
    ifl_workspace_free(ws);
    subject_close(&s);
}

/* A decode row at position 119 beside a prefill of 1 .. 300 tokens, in front of it and behind. */
static void test_a_decode_row_does_not_see_a_prefill_grow(void **state) {
    (void)state;
    enum { AT = 119, GROWN_MAX = 300 };
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[8];
        int n_ops = ifl_ops_list((ifl_profile)profile, all, 8);
        static subject s;
        subject_open(&s, "tiny-llama", (ifl_profile)profile);
        for (int i = 0; i < n_ops; i++) {
            ifl_workspace *ws;
            ifl_kv_store *kv;
            static ifl_logprob want[AT + 1];
            const float *hidden;
            assert_ok(ifl_workspace_create(&ws, s.model, GROWN_MAX + 1, NULL, all[i], &err));
            assert_ok(ifl_kv_store_create(&kv, s.model, AT + 1 + GROWN_MAX, 1, &err));
            for (int32_t t = 0; t <= AT; t++)
                subject_rows(&s, ws, kv, s.iota, t, t + 1, 0, want);
            int32_t step = testing_full() ? 1 : testing_is_slow(all[i]) ? 59 : 3;
            for (int32_t grown = 1; grown <= GROWN_MAX; grown += step) {
                int32_t tokens[GROWN_MAX + 1], row = grown % 2 ? 0 : grown;
                ifl_batch_seq decode = {row, 1, AT, s.iota},
                              prefill = {row ? 0 : 1, grown, 0, s.iota + AT + 1};
                ifl_batch_seq seqs[2] = {row ? prefill : decode, row ? decode : prefill};
                memcpy(tokens + prefill.row_begin, s.tokens + 200, (size_t)grown * sizeof *tokens);
                tokens[row] = s.tokens[AT];
                ifl_batch batch = {grown + 1, 2, 1, tokens, seqs, &row};
                ifl_logprob got;
                assert_ok(ifl_forward(ws, s.weights, kv, &batch, &hidden, &err));
                assert_ok(ifl_head_logprobs(ws, s.weights, hidden, 1, s.tokens + AT + 1, s.ones,
                                            &got, &err));
                if (!same_logprob(&got, &want[AT]))
                    fail_msg("%s, profile %d: beside a prefill of %d", all[i]->name, profile,
                             grown);
            }
            ifl_kv_store_free(kv);
            ifl_workspace_free(ws);
        }
        subject_close(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_decode_row_does_not_know_its_batch),
        cmocka_unit_test(test_a_neighbour_of_nans_is_one),
        cmocka_unit_test(test_a_decode_row_does_not_see_a_prefill_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

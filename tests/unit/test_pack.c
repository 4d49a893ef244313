/* Packing: layout by hand, the same log-probs and gradients as unpacked trajectories, random
 * shapes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/memory.h"
#include "common/rng.h"
#include "kernels/random_model.h"
#include "learner/pack.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

static ifl_trajectory *make(uint64_t serial, int32_t sample, const int32_t *prompt,
                            int32_t n_prompt, const int32_t *answer, int32_t n_answer) {
    ifl_trajectory *t;
    assert_ok(ifl_trajectory_create(&t, prompt, n_prompt, &err));
    t->task_serial = serial;
    t->sample = sample;
    t->temperature = 0.5f;
    for (int32_t i = 0; i < n_answer; i++)
        assert_ok(ifl_trajectory_append(t, answer[i], -0.25f * (float)(i + 1), 7 + i / 2, &err));
    return t;
}

static const ifl_pack_options wide = {.pack_tokens = 100, .rows_max = 100};

static void test_group_stores_its_prompt_once(void **state) {
    (void)state;
    const int32_t prompt[4] = {10, 11, 12, 13}, a[3] = {20, 21, 22}, b[1] = {30};
    ifl_trajectory *t[2] = {make(5, 0, prompt, 4, a, 3), make(5, 1, prompt, 4, b, 1)};
    const ifl_pack_item items[2] = {{t[0], 1.0f}, {t[1], -1.0f}};
    ifl_pack_set *set;
    assert_ok(ifl_pack_build(&set, items, 2, &wide, &err));
    assert_int_equal(set->n_packs, 1);
    const ifl_pack *p = &set->packs[0].pack;
    /* Rows: prompt 10 11 12 | 13 20 21 (sample 0) | 13 (sample 1). */
    const int32_t rows[7] = {10, 11, 12, 13, 20, 21, 13};
    assert_int_equal(p->n_rows, 7);
    assert_memory_equal(p->tokens, rows, sizeof rows);
    assert_int_equal(p->n_seqs, 3);
    assert_int_equal(p->seqs[0].pos_begin, 0);
    assert_int_equal(p->seqs[0].n_rows, 3);
    assert_int_equal(p->seqs[1].row_begin, 3);
    assert_int_equal(p->seqs[1].pos_begin, 3);
    assert_int_equal(p->seqs[1].n_rows, 3);
    const int32_t pages1[6] = {0, 1, 2, 3, 4, 5}, pages2[4] = {0, 1, 2, 6};
    assert_memory_equal(p->seqs[1].pages, pages1, sizeof pages1);
    assert_int_equal(p->seqs[2].row_begin, 6);
    assert_int_equal(p->seqs[2].n_rows, 1);
    assert_memory_equal(p->seqs[2].pages, pages2, sizeof pages2);
    const int32_t target_rows[4] = {3, 4, 5, 6}, target_tokens[4] = {20, 21, 22, 30};
    assert_int_equal(p->n_targets, 4);
    assert_memory_equal(p->target_rows, target_rows, sizeof target_rows);
    assert_memory_equal(p->target_tokens, target_tokens, sizeof target_tokens);
    assert_true(p->temperatures[3] == 0.5f);
    const ifl_loss_tokens *l = &set->packs[0].loss_tokens;
    assert_int_equal(l->n, 4);
    assert_true(l->behaviour_logprobs[1] == -0.5f && l->behaviour_logprobs[3] == -0.25f);
    assert_true(l->advantages[2] == 1.0f && l->advantages[3] == -1.0f);
    assert_int_equal(l->trajectory_tokens[0], 3);
    assert_int_equal(l->trajectory_tokens[3], 1);
    assert_int_equal(l->versions[0], 7);
    assert_int_equal(l->versions[2], 8);
    assert_int_equal(set->packs[0].target_items[3], 1);
    assert_int_equal(set->packs[0].target_positions[3], 4);
    assert_int_equal(set->n_shared_rows, 3);
    ifl_pack_set_free(set);
    ifl_trajectory_free(t[0]);
    ifl_trajectory_free(t[1]);
}

static void test_other_task_or_other_prompt_shares_nothing(void **state) {
    (void)state;
    const int32_t prompt[3] = {1, 2, 3}, other[3] = {1, 9, 3}, a[2] = {4, 5};
    ifl_trajectory *t[3] = {make(1, 0, prompt, 3, a, 2), make(2, 0, prompt, 3, a, 2),
                            make(2, 1, other, 3, a, 2)};
    const ifl_pack_item items[3] = {{t[0], 1}, {t[1], 1}, {t[2], 1}};
    ifl_pack_set *set;
    assert_ok(ifl_pack_build(&set, items, 3, &wide, &err));
    assert_int_equal(set->n_shared_rows, 0);
    assert_int_equal(set->packs[0].pack.n_seqs, 3);
    assert_int_equal(set->packs[0].pack.n_rows, 12);
    ifl_pack_set_free(set);
    /* A longer prompt that begins like the other's is another prompt. */
    const int32_t longer[4] = {1, 2, 3, 8};
    ifl_trajectory *u = make(1, 1, longer, 4, a, 2);
    const ifl_pack_item pair[2] = {{t[0], 1}, {u, 1}}, reversed[2] = {{u, 1}, {t[0], 1}};
    assert_ok(ifl_pack_build(&set, pair, 2, &wide, &err));
    assert_int_equal(set->n_shared_rows, 0);
    ifl_pack_set_free(set);
    assert_ok(ifl_pack_build(&set, reversed, 2, &wide, &err));
    assert_int_equal(set->n_shared_rows, 0);
    ifl_pack_set_free(set);
    ifl_trajectory_free(u);
    for (int i = 0; i < 3; i++)
        ifl_trajectory_free(t[i]);
}

static void test_zero_advantage_and_empty_are_left_out(void **state) {
    (void)state;
    const int32_t prompt[2] = {1, 2}, a[1] = {3};
    ifl_trajectory *t[3] = {make(1, 0, prompt, 2, a, 1), make(1, 1, prompt, 2, a, 1),
                            make(1, 2, prompt, 2, a, 0)};
    ifl_pack_item items[3] = {{t[0], 0.0f}, {t[1], 2.0f}, {t[2], 1.0f}};
    ifl_pack_set *set;
    assert_ok(ifl_pack_build(&set, items, 3, &wide, &err));
    assert_int_equal(set->n_items, 1);
    assert_int_equal(set->n_zero, 1);
    assert_int_equal(set->n_empty, 1);
    assert_int_equal(set->packs[0].target_items[0], 1);
    ifl_pack_set_free(set);
    ifl_pack_options keep = wide;
    keep.keep_zero = true;
    assert_ok(ifl_pack_build(&set, items, 3, &keep, &err));
    assert_int_equal(set->n_items, 2);
    ifl_pack_set_free(set);
    items[1].advantage = 0;
    assert_ok(ifl_pack_build(&set, items, 2, &wide, &err));
    assert_int_equal(set->n_packs, 0);
    ifl_pack_set_free(set);
    assert_ok(ifl_pack_build(&set, NULL, 0, &wide, &err));
    assert_int_equal(set->n_packs, 0);
    ifl_pack_set_free(set);
    for (int i = 0; i < 3; i++)
        ifl_trajectory_free(t[i]);
}

static void test_environment_tokens_are_rows_but_no_targets(void **state) {
    (void)state;
    const int32_t prompt[2] = {1, 2}, a[2] = {3, 4}, tool[3] = {50, 51, 52}, tail[2] = {60, 61};
    ifl_trajectory *t = make(1, 0, prompt, 2, a, 2);
    assert_ok(ifl_trajectory_append_environment(t, tool, 3, &err));
    assert_ok(ifl_trajectory_append(t, 5, -1.0f, 9, &err));
    assert_ok(ifl_trajectory_append_environment(t, tail, 2, &err)); /* after the last loss token */
    const ifl_pack_item item = {t, 1.0f};
    ifl_pack_set *set;
    assert_ok(ifl_pack_build(&set, &item, 1, &wide, &err));
    const ifl_pack *p = &set->packs[0].pack;
    const int32_t rows[7] = {1, 2, 3, 4, 50, 51, 52}, targets[3] = {1, 2, 6};
    assert_int_equal(p->n_rows, 7);
    assert_memory_equal(p->tokens, rows, sizeof rows);
    assert_int_equal(p->n_targets, 3);
    assert_memory_equal(p->target_rows, targets, sizeof targets);
    ifl_pack_set_free(set);
    ifl_trajectory_free(t);
}

static void test_oversized_trajectory_gets_its_own_pack_or_an_error(void **state) {
    (void)state;
    const int32_t prompt[2] = {1, 2};
    int32_t answer[40];
    for (int i = 0; i < 40; i++)
        answer[i] = i;
    ifl_trajectory *t[3] = {make(1, 0, prompt, 2, answer, 4), make(1, 1, prompt, 2, answer, 40),
                            make(1, 2, prompt, 2, answer, 4)};
    const ifl_pack_item items[3] = {{t[0], 1}, {t[1], 1}, {t[2], 1}};
    ifl_pack_options o = {.pack_tokens = 16, .rows_max = 64};
    ifl_pack_set *set;
    assert_ok(ifl_pack_build(&set, items, 3, &o, &err));
    assert_int_equal(set->n_packs, 3);
    assert_int_equal(set->n_oversized, 1);
    assert_int_equal(set->packs[1].pack.n_rows, 41);
    assert_int_equal(set->rows_max, 41);
    ifl_pack_set_free(set);
    o.rows_max = 40;
    assert_int_equal(ifl_pack_build(&set, items, 3, &o, &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "learner.pack_tokens"));
    assert_null(set);
    o.rows_max = 8;
    assert_int_equal(ifl_pack_build(&set, items, 3, &o, &err), IFL_USAGE);
    for (int i = 0; i < 3; i++)
        ifl_trajectory_free(t[i]);
}

static void test_bad_trajectories_are_refused(void **state) {
    (void)state;
    const int32_t prompt[2] = {1, 2}, a[2] = {3, 4};
    ifl_trajectory *t = make(1, 0, prompt, 2, a, 2);
    const ifl_pack_item item = {t, 1.0f};
    ifl_pack_set *set;
    t->loss_weights[0] = 1.0f; /* nothing comes before position 0 */
    assert_int_equal(ifl_pack_build(&set, &item, 1, &wide, &err), IFL_FORMAT);
    t->loss_weights[0] = 0.0f;
    t->loss_weights[1] = 1.0f; /* a prompt token: no version sampled it */
    assert_int_equal(ifl_pack_build(&set, &item, 1, &wide, &err), IFL_FORMAT);
    t->loss_weights[1] = NAN;
    assert_int_equal(ifl_pack_build(&set, &item, 1, &wide, &err), IFL_FORMAT);
    t->loss_weights[1] = 0.0f;
    assert_ok(ifl_pack_build(&set, &item, 1, &wide, &err));
    ifl_pack_set_free(set);
    ifl_trajectory_free(t);
}

/* --- Random steps
 * ----------------------------------------------------------------------------------- */

enum { N_GROUPS = 6, G = 4, N = N_GROUPS * G };

static uint32_t draw(uint64_t stream, uint32_t below) {
    static uint64_t counter;
    ifl_rng_key key = {11, stream, IFL_RNG_TEST};
    return (uint32_t)ifl_rng_below(&key, counter++, 0, below);
}

static void random_items(ifl_pack_item items[N], ifl_trajectory *owned[N], uint32_t vocab) {
    for (int g = 0; g < N_GROUPS; g++) {
        int32_t prompt[24], answer[48];
        int32_t n_prompt = 1 + (int32_t)draw(1, 20);
        for (int i = 0; i < n_prompt; i++)
            prompt[i] = (int32_t)draw(2, vocab);
        for (int s = 0; s < G; s++) {
            int32_t n_answer = 1 + (int32_t)draw(3, 40);
            for (int i = 0; i < n_answer; i++)
                answer[i] = (int32_t)draw(4, vocab);
            int k = g * G + s;
            owned[k] = make((uint64_t)g, s, prompt, n_prompt, answer, n_answer);
            items[k] = (ifl_pack_item){owned[k], draw(5, 4) == 0 ? 0.0f : (float)draw(6, 9) - 4.5f};
        }
    }
}

static void test_every_target_lies_once_with_its_context(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        ifl_pack_item items[N];
        ifl_trajectory *owned[N];
        random_items(items, owned, 1000);
        ifl_pack_options o = {.pack_tokens = 60 + (int32_t)draw(7, 200), .rows_max = 512};
        ifl_pack_set *set;
        assert_ok(ifl_pack_build(&set, items, N, &o, &err));
        int64_t n_targets = 0, n_want = 0;
        int last_item = -1, last_position = 0;
        for (int i = 0; i < N; i++)
            if (items[i].advantage != 0.0f) n_want += ifl_pack_loss_tokens(items[i].traj);
        for (int p = 0; p < set->n_packs; p++) {
            const ifl_packed *k = &set->packs[p];
            assert_true(k->pack.n_rows <= o.pack_tokens);
            int32_t row = 0;
            for (int s = 0; s < k->pack.n_seqs; s++) { /* sequences cover the rows in order */
                assert_int_equal(k->pack.seqs[s].row_begin, row);
                row += k->pack.seqs[s].n_rows;
            }
            assert_int_equal(row, k->pack.n_rows);
            for (int i = 0; i < k->pack.n_targets; i++, n_targets++) {
                int item = k->target_items[i], t = k->target_positions[i];
                const ifl_trajectory *traj = items[item].traj;
                assert_true(item > last_item || (item == last_item && t > last_position));
                last_item = item;
                last_position = t;
                assert_int_equal(k->pack.target_tokens[i], traj->tokens[t]);
                assert_true(k->loss_tokens.behaviour_logprobs[i] == traj->logprobs[t]);
                int32_t target_row = k->pack.target_rows[i];
                int s = k->pack.n_seqs - 1;
                while (k->pack.seqs[s].row_begin > target_row)
                    s--;
                const ifl_batch_seq *seq = &k->pack.seqs[s];
                assert_int_equal(seq->pos_begin + target_row - seq->row_begin, t - 1);
                for (int q = 0; q < t; q++) /* the whole context, through the pages */
                    assert_int_equal(k->pack.tokens[seq->pages[q]], traj->tokens[q]);
            }
        }
        assert_int_equal(n_targets, n_want);
        assert_int_equal(set->n_targets, n_want);
        ifl_pack_set_free(set);
        for (int i = 0; i < N; i++)
            ifl_trajectory_free(owned[i]);
    }
}

typedef struct pass {
    float *logprobs; /* by item and position: [N * 128] */
    float *gradients;
} pass;

/* Log-probs of all targets and the gradient of sum of advantages times log-probs. */
static void run_pass(pass *out, const ifl_model *model, const ifl_weights *weights,
                     const ifl_pack_item *items, int32_t pack_tokens, bool one_each) {
    ifl_trainer *trainer;
    assert_ok(ifl_trainer_create(&trainer, model, 512, IFL_ACTIVATION_BYTES, NULL,
                                 ifl_ops_best(IFL_PROFILE_F32), &err));
    ifl_logprob logprobs[512];
    ifl_trainer_zero_gradients(trainer);
    const ifl_pack_options o = {.pack_tokens = pack_tokens, .rows_max = 512};
    for (int first = 0; first < N; first += one_each ? 1 : N) {
        ifl_pack_set *set;
        assert_ok(ifl_pack_build(&set, items + first, one_each ? 1 : N, &o, &err));
        for (int p = 0; p < set->n_packs; p++) {
            ifl_packed *k = &set->packs[p];
            assert_ok(ifl_trainer_forward(trainer, weights, &k->pack, logprobs, &err));
            for (int i = 0; i < k->pack.n_targets; i++)
                out->logprobs[(first + k->target_items[i]) * 128 + k->target_positions[i]] =
                    logprobs[i].logprob;
            assert_ok(
                ifl_trainer_backward(trainer, weights, &k->pack, k->loss_tokens.advantages, &err));
        }
        ifl_pack_set_free(set);
    }
    memcpy(out->gradients, ifl_trainer_gradients(trainer),
           (size_t)model->n_elements * sizeof *out->gradients);
    ifl_trainer_free(trainer);
}

static void test_packed_equals_one_by_one(void **state) {
    (void)state;
    ifl_model_config config;
    assert_true(ifl_random_model_config("tiny-qwen3", &config));
    ifl_model *model;
    ifl_weights *weights;
    assert_ok(ifl_model_create(&model, &config, 128, IFL_PROFILE_F32, &err));
    assert_ok(ifl_weights_create(&weights, model, &err));
    assert_ok(ifl_random_weights(weights, 3, &err));
    ifl_pack_item items[N];
    ifl_trajectory *owned[N];
    random_items(items, owned, (uint32_t)config.vocab_size);
    pass one = {0}, packed = {0};
    pass *const passes[2] = {&one, &packed};
    for (int i = 0; i < 2; i++) {
        passes[i]->logprobs = ifl_alloc(N * 128, sizeof(float));
        passes[i]->gradients = ifl_alloc((size_t)model->n_elements, sizeof(float));
    }
    run_pass(&one, model, weights, items, 512, true);
    run_pass(&packed, model, weights, items, 300, false);
    /* The forward has the same bits; gradients add the same terms in another order. */
    assert_memory_equal(one.logprobs, packed.logprobs, N * 128 * sizeof(float));
    double difference = 0, size = 0;
    for (int64_t i = 0; i < model->n_elements; i++) {
        double d = (double)(one.gradients[i] - packed.gradients[i]);
        difference += d * d;
        size += (double)one.gradients[i] * (double)one.gradients[i];
    }
    assert_true(size > 0);
    if (!(sqrt(difference / size) < 1e-5))
        fail_msg("gradients differ by %g", sqrt(difference / size));
    for (int i = 0; i < 2; i++) {
        ifl_free(passes[i]->logprobs);
        ifl_free(passes[i]->gradients);
    }
    for (int i = 0; i < N; i++)
        ifl_trajectory_free(owned[i]);
    ifl_weights_free(weights);
    ifl_model_free(model);
}

static void test_sort_is_by_task_serial_then_sample(void **state) {
    (void)state;
    const int32_t p[1] = {1}, a[1] = {2};
    ifl_trajectory *t[3] = {make(2, 0, p, 1, a, 1), make(1, 1, p, 1, a, 1), make(1, 0, p, 1, a, 1)};
    ifl_pack_item items[3] = {{t[0], 1}, {t[1], 1}, {t[2], 1}};
    ifl_pack_sort(items, 3);
    assert_ptr_equal(items[0].traj, t[2]);
    assert_ptr_equal(items[1].traj, t[1]);
    assert_ptr_equal(items[2].traj, t[0]);
    for (int i = 0; i < 3; i++)
        ifl_trajectory_free(t[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_stores_its_prompt_once),
        cmocka_unit_test(test_other_task_or_other_prompt_shares_nothing),
        cmocka_unit_test(test_zero_advantage_and_empty_are_left_out),
        cmocka_unit_test(test_environment_tokens_are_rows_but_no_targets),
        cmocka_unit_test(test_oversized_trajectory_gets_its_own_pack_or_an_error),
        cmocka_unit_test(test_bad_trajectories_are_refused),
        cmocka_unit_test(test_every_target_lies_once_with_its_context),
        cmocka_unit_test(test_packed_equals_one_by_one),
        cmocka_unit_test(test_sort_is_by_task_serial_then_sample),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Truncated tokens (top-k, top-p): the learner's softmax over the recorded kept set has the bits
 * that the sampler recorded, on every instruction set; loss and gradient are those that PyTorch
 * finds (tests/golden/make_kept.py); a set across vocabulary blocks has the gradient that the
 * untruncated path gives by another route. */
#include <math.h>
#include <stdio.h>

#include "actor/engine.h"
#include "common/model_file.h"
#include "common/safetensors.h"
#include "learner/pack.h"
#include "parity_testing.h"

/* --- The recorded bits
 * ------------------------------------------------------------------------------- */

enum { N_SAMPLES = 3, N_PROMPT = 9, N_NEW = 24 };

static void generate(const subject *s, const ifl_ops *ops, ifl_sampling sampling,
                     ifl_trajectory *out[N_SAMPLES]) {
    ifl_engine *engine;
    ifl_engine_options options = {.sequences_max = 4,
                                  .kv_tokens = 512,
                                  .page_tokens = 16,
                                  .prefill_chunk_tokens = 32,
                                  .kv_mode = IFL_KV_MODE_KEEP,
                                  .seed = 11};
    assert_ok(ifl_engine_create(&engine, s->model, NULL, &options, NULL, ops, &err));
    assert_ok(ifl_engine_swap(engine, s->weights, &err));
    ifl_engine_request r = {.task_serial = 5,
                            .purpose = IFL_PURPOSE_TRAIN,
                            .prompt = s->tokens,
                            .n_prompt = N_PROMPT,
                            .n_samples = N_SAMPLES,
                            .sampling = sampling,
                            .max_new_tokens = N_NEW,
                            .ignore_eos = true};
    assert_ok(ifl_engine_submit(engine, &r, &err));
    while (!ifl_engine_idle(engine)) {
        int32_t n;
        assert_ok(ifl_engine_step(engine, &n, &err));
    }
    for (ifl_trajectory *t; (t = ifl_engine_take_finished(engine, NULL));)
        out[t->sample] = t;
    ifl_engine_free(engine);
}

static ifl_pack_set *pack_of(ifl_trajectory *const *t, int32_t n, const float *advantages) {
    ifl_pack_item items[N_SAMPLES];
    ifl_pack_set *set;
    for (int32_t i = 0; i < n; i++)
        items[i] = (ifl_pack_item){t[i], advantages ? advantages[i] : 1.0f};
    ifl_pack_options options = {.pack_tokens = 512, .rows_max = 512};
    assert_ok(ifl_pack_build(&set, items, n, &options, &err));
    assert_int_equal(set->n_packs, 1);
    return set;
}

static int64_t differing(const subject *s, const ifl_ops *ops, int n_threads,
                         ifl_trajectory *const *t) {
    ifl_trainer *trainer;
    ifl_thread_pool *pool;
    static ifl_logprob got[512];
    int64_t n = 0;
    assert_ok(ifl_thread_pool_create(&pool, n_threads, &err));
    assert_ok(ifl_trainer_create(&trainer, s->model, 512, 0, pool, ops, &err));
    ifl_pack_set *set = pack_of(t, N_SAMPLES, NULL);
    const ifl_packed *k = &set->packs[0];
    assert_int_equal(k->pack.n_targets, N_SAMPLES * N_NEW);
    assert_ok(ifl_trainer_forward(trainer, s->weights, &k->pack, got, &err));
    for (int32_t i = 0; i < k->pack.n_targets; i++) {
        const ifl_trajectory *of = t[k->target_items[i]];
        int32_t at = k->target_positions[i];
        n += memcmp(&got[i].logprob, &of->logprobs[at], sizeof(float)) != 0 ||
             (of->full_logprobs &&
              memcmp(&got[i].full_logprob, &of->full_logprobs[at], sizeof(float)) != 0);
    }
    ifl_pack_set_free(set);
    ifl_trainer_free(trainer);
    ifl_thread_pool_free(pool);
    return n;
}

static const ifl_sampling samplings[] = {{1, 20, 1}, {1, 0, 0.8f}, {0.7f, 40, 0.9f},
                                         {1, 1, 1},  {1, 1024, 1}, {0.8f, 0, 1}};
enum { N_SAMPLINGS = sizeof samplings / sizeof *samplings };

static void test_the_learner_gives_the_recorded_bits(void **state) {
    (void)state;
    static const char *const families[] = {"tiny-llama", "tiny-gemma3"}; /* one block; two */
    for (int f = 0; f < 2; f++)
        for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
            static subject s;
            subject_open(&s, families[f], (ifl_profile)profile);
            const ifl_ops *all[8];
            int n_ops = ifl_ops_list((ifl_profile)profile, all, 8);
            for (int k = 0; k < N_SAMPLINGS; k++) {
                ifl_trajectory *t[N_SAMPLES];
                generate(&s, NULL, samplings[k], t);
                bool kept = samplings[k].top_k > 0 || samplings[k].top_p < 1;
                int64_t n_sets = 0;
                for (int i = 0; i < N_SAMPLES; i++) {
                    assert_ok(ifl_trajectory_check(t[i], s.model->config.vocab_size, &err));
                    assert_true(!t[i]->kept_ends == !kept);
                    for (int32_t p = N_PROMPT; p < t[i]->n_tokens; p++)
                        n_sets += ifl_trajectory_kept(t[i], p).n > 0;
                }
                /* A set of everything is none. */
                bool all_kept = samplings[k].top_k >= s.model->config.vocab_size;
                assert_int_equal(n_sets, kept && !all_kept ? N_SAMPLES * N_NEW : 0);
                for (int i = 0; i < n_ops; i++) {
                    if (testing_is_slow(all[i]) && (f > 0 || k > 2) && !testing_full()) continue;
                    assert_int_equal(differing(&s, all[i], 1 + i % 3, t), 0);
                }
                if (n_sets > 0 && samplings[k].top_k != 1) {
                    /* The test can fail: one token less in a set is another distribution. */
                    int32_t at = N_PROMPT + 3, end = t[0]->kept_ends[at], begin = end - 1;
                    ifl_kept_set set = ifl_trajectory_kept(t[0], at);
                    if (set.n > 1) {
                        if (t[0]->kept_ids[begin] == t[0]->tokens[at]) begin = end - set.n;
                        memmove(t[0]->kept_ids + begin, t[0]->kept_ids + begin + 1,
                                sizeof(int32_t) * (size_t)(t[0]->n_kept_ids - begin - 1));
                        t[0]->n_kept_ids--;
                        for (int32_t p = at; p < t[0]->n_tokens; p++)
                            t[0]->kept_ends[p]--;
                        assert_ok(ifl_trajectory_check(t[0], s.model->config.vocab_size, &err));
                        assert_int_equal(differing(&s, NULL, 2, t), 1);
                    }
                }
                for (int i = 0; i < N_SAMPLES; i++)
                    ifl_trajectory_free(t[i]);
            }
            subject_close(&s);
        }
}

static void test_a_set_that_indexes_elsewhere_is_refused(void **state) {
    (void)state;
    static subject s;
    subject_open(&s, "tiny-llama", IFL_PROFILE_F32);
    ifl_workspace *ws;
    ifl_logprob out;
    float *hidden = test_calloc((size_t)s.model->config.d_model, sizeof *hidden);
    int32_t vocab = s.model->config.vocab_size, target = 7;
    assert_ok(ifl_workspace_create(&ws, s.model, 4, NULL, NULL, &err));
    const int32_t good[] = {3, 7, vocab - 1}, past[] = {3, 7, vocab}, back[] = {7, 3, 9},
                  twice[] = {3, 7, 7}, negative[] = {-1, 7, 8}, without[] = {3, 8, 9};
    const int32_t *const sets[] = {good, past, back, twice, negative, without};
    for (int i = 0; i < 6; i++) {
        ifl_kept_set set = {sets[i], 3};
        ifl_status st =
            ifl_head_logprobs_kept(ws, s.weights, hidden, 1, &target, NULL, &set, &out, &err);
        assert_int_equal(st, i == 0 ? IFL_OK : IFL_FORMAT);
    }
    ifl_kept_set large = {good, IFL_KEPT_SET_MAX + 1};
    assert_int_equal(
        ifl_head_logprobs_kept(ws, s.weights, hidden, 1, &target, NULL, &large, &out, &err),
        IFL_FORMAT);
    ifl_workspace_free(ws);
    test_free(hidden);
    subject_close(&s);
}

/* --- Across blocks
 * ----------------------------------------------------------------------------------- */

/* d log p_S(a) = d log p(a) - sum over j in S of q_j d log p(j), q the softmax over S: what the
 * full softmax adds is the same on both sides. So plain targets, many to a row, give the gradient
 * of a kept one. */
static void test_a_set_across_blocks_has_the_gradient_of_plain_targets(void **state) {
    (void)state;
    enum { N = 6, IN_SET = 7 };
    ifl_model_config config;
    ifl_model *model;
    ifl_weights *weights;
    ifl_trainer *trainer;
    assert_true(ifl_random_model_config("tiny-gemma3", &config));
    config.vocab_size = 2 * IFL_VOCAB_BLOCK + 808;
    assert_ok(ifl_model_create(&model, &config, 0, IFL_PROFILE_F32, &err));
    assert_ok(ifl_weights_create(&weights, model, &err));
    assert_ok(ifl_random_weights(weights, 5, &err));
    size_t bytes = (size_t)model->n_elements * sizeof(float);
    float *kept_gradient[2] = {test_malloc(bytes), test_malloc(bytes)}, coefficients[N * IN_SET],
          temperatures[N * IN_SET];
    int32_t tokens[N], rows[N], ids[N][IN_SET], targets[N * IN_SET], target_rows[N * IN_SET];
    ifl_kept_set sets[N];
    static ifl_logprob kept[N], plain[N * IN_SET];
    for (int32_t i = 0; i < N; i++) {
        tokens[i] = i * 1201 % config.vocab_size;
        rows[i] = i;
        for (int j = 0; j < IN_SET; j++) /* in all three blocks */
            ids[i][j] = (j * 1400 + i * 37) % config.vocab_size;
        sets[i] = (ifl_kept_set){ids[i], i == N - 1 ? 0 : IN_SET};
        targets[i] = ids[i][(i * 3) % IN_SET];
        temperatures[i] = i % 2 ? 0.7f : 1.0f;
        coefficients[i] = (float)(i % 5 - 2) / 4.0f;
    }
    ifl_batch_seq seq = {0, N, 0, rows};
    ifl_pack pack = {N, 1, N, tokens, &seq, rows, targets, temperatures, sets};
    for (int budget = 0; budget < 2; budget++) { /* with the forward's logits, and made again */
        assert_ok(ifl_trainer_create(&trainer, model, N * IN_SET, budget ? INT64_C(1) << 30 : 0,
                                     NULL, NULL, &err));
        assert_ok(ifl_trainer_forward(trainer, weights, &pack, kept, &err));
        assert_ok(ifl_trainer_backward(trainer, weights, &pack, coefficients, &err));
        memcpy(kept_gradient[budget], ifl_trainer_gradients(trainer), bytes);
        ifl_trainer_free(trainer);
    }
    assert_memory_equal(kept_gradient[0], kept_gradient[1], bytes);

    /* The same from plain targets. */
    float all_temperatures[N * IN_SET], all_coefficients[N * IN_SET];
    int32_t n = 0;
    assert_ok(ifl_trainer_create(&trainer, model, N * IN_SET, INT64_C(1) << 30, NULL, NULL, &err));
    for (int32_t i = 0; i < N; i++)
        for (int j = 0; j < IN_SET; j++) {
            targets[n] = ids[i][j];
            target_rows[n] = i;
            all_temperatures[n++] = i % 2 ? 0.7f : 1.0f;
        }
    ifl_pack many = {N, 1, n, tokens, &seq, target_rows, targets, all_temperatures, NULL};
    assert_ok(ifl_trainer_forward(trainer, weights, &many, plain, &err));
    for (int32_t i = 0; i < N; i++) {
        double sum = 0, entropy = 0;
        const ifl_logprob *p = plain + i * IN_SET;
        int own = (i * 3) % IN_SET;
        for (int j = 0; j < IN_SET; j++)
            sum += exp((double)p[j].logprob);
        for (int j = 0; j < IN_SET; j++) {
            double q = exp((double)p[j].logprob) / sum;
            entropy -= q * log(q);
            all_coefficients[i * IN_SET + j] =
                (float)((double)coefficients[i] *
                        ((j == own ? 1.0 : 0.0) - (sets[i].n > 0 ? q : 0.0)));
        }
        assert_memory_equal(&p[own].logprob, &kept[i].full_logprob, sizeof(float));
        if (sets[i].n == 0) {
            assert_memory_equal(&p[own].logprob, &kept[i].logprob, sizeof(float));
            continue;
        }
        assert_true(fabs((double)kept[i].logprob - ((double)p[own].logprob - log(sum))) < 1e-5);
        assert_true(fabs((double)kept[i].entropy - entropy) < 1e-5);
    }
    assert_ok(ifl_trainer_backward(trainer, weights, &many, all_coefficients, &err));
    const float *got = ifl_trainer_gradients(trainer);
    double difference = 0, size = 0;
    for (int64_t i = 0; i < model->n_elements; i++) {
        double d = (double)got[i] - (double)kept_gradient[0][i];
        difference += d * d;
        size += (double)got[i] * (double)got[i];
    }
    print_message("a set across blocks: relative difference of gradients %.2g\n",
                  sqrt(difference / size));
    assert_true(size > 0);
    assert_true(sqrt(difference / size) < 1e-5); /* f32 sums in another order */
    ifl_trainer_free(trainer);
    test_free(kept_gradient[0]);
    test_free(kept_gradient[1]);
    ifl_weights_free(weights);
    ifl_model_free(model);
}

/* --- PyTorch
 * ----------------------------------------------------------------------------------------- */

static void model_open(const char *family, ifl_profile profile, ifl_model **model,
                       ifl_weights **weights) {
    char path[512];
    static char text[65536];
    snprintf(path, sizeof path, "%s/models/%s/config.json", IFL_GOLDEN_DIR, family);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n_text = fread(text, 1, sizeof text, f);
    fclose(f);
    ifl_model_config config;
    assert_ok(ifl_model_config_from_json(&config, text, n_text, &err));
    assert_ok(ifl_model_create(model, &config, 0, profile, &err));
    assert_ok(ifl_weights_create(weights, *model, &err));
    snprintf(path, sizeof path, "%s/models/%s/model.safetensors", IFL_GOLDEN_DIR, family);
    ifl_safetensors *st;
    assert_ok(ifl_safetensors_open(&st, path, &err));
    for (int32_t i = 0; i < (*model)->n_params; i++) {
        const ifl_param *p = &(*model)->params[i];
        int64_t n = p->spec.rows * p->spec.cols;
        int32_t at = ifl_safetensors_find(st, p->spec.name);
        if (at < 0) fail_msg("%s: no tensor %s", path, p->spec.name);
        uint16_t *bf16 = ifl_alloc((size_t)n, 2);
        assert_ok(ifl_safetensors_read_bf16(st, at, 0, n, bf16, NULL, &err));
        ifl_weights_put(*weights, p->offset, n, bf16);
        ifl_free(bf16);
    }
    ifl_safetensors_close(st);
}

enum { GOLDEN_TOKENS = 64 };

typedef struct golden_target {
    double logprob, full, entropy;
} golden_target;

static ifl_trajectory *read_trajectory(FILE *f, int32_t sample, int32_t top_k, double top_p,
                                       float *advantage, golden_target *want) {
    int32_t n_prompt, n_answer, ids[GOLDEN_TOKENS], set[IFL_KEPT_SET_MAX];
    double temperature, a;
    assert_int_equal(fscanf(f, " trajectory %d %d %lf %lf", &n_prompt, &n_answer, &temperature, &a),
                     4);
    assert_true(n_prompt + n_answer <= GOLDEN_TOKENS);
    *advantage = (float)a;
    for (int32_t i = 0; i < n_prompt + n_answer; i++)
        assert_int_equal(fscanf(f, "%d", &ids[i]), 1);
    ifl_trajectory *t;
    assert_ok(ifl_trajectory_create(&t, ids, n_prompt, &err));
    t->sample = sample;
    t->group_size = 2;
    t->temperature = (float)temperature;
    t->top_k = top_k;
    t->top_p = (float)top_p;
    assert_ok(ifl_trajectory_keep_sets(t, &err));
    for (int32_t i = 0; i < n_answer; i++) {
        int32_t n;
        double mu;
        assert_int_equal(fscanf(f, "%d", &n), 1);
        for (int32_t k = 0; k < n; k++)
            assert_int_equal(fscanf(f, "%d", &set[k]), 1);
        assert_int_equal(
            fscanf(f, "%lf %lf %lf %lf", &mu, &want[i].logprob, &want[i].full, &want[i].entropy),
            4);
        assert_ok(ifl_trajectory_append_kept(t, ids[n_prompt + i], (float)mu,
                                             (float)fmin(mu, want[i].full), (ifl_kept_set){set, n},
                                             0, &err));
    }
    return t;
}

static void test_loss_and_gradient_are_pytorchs(void **state) {
    (void)state;
    FILE *f = fopen(IFL_GOLDEN_DIR "/kept.txt", "r");
    assert_non_null(f);
    char family[32];
    int32_t top_k;
    double top_p;
    int n_families = 0;
    while (fscanf(f, " family %31s %d %lf", family, &top_k, &top_p) == 3) {
        ifl_model *model;
        ifl_weights *weights;
        ifl_trainer *trainer;
        model_open(family, IFL_PROFILE_F32, &model, &weights);
        golden_target want[2][GOLDEN_TOKENS];
        float advantages[2], coefficients[128];
        ifl_trajectory *t[2];
        for (int i = 0; i < 2; i++)
            t[i] = read_trajectory(f, i, top_k, top_p, &advantages[i], want[i]);
        ifl_pack_set *set = pack_of(t, 2, advantages);
        ifl_packed *k = &set->packs[0];
        assert_true(k->n_shared_rows > 0);
        static ifl_logprob got[128];
        assert_ok(ifl_trainer_create(&trainer, model, 128, IFL_ACTIVATION_BYTES, NULL, NULL, &err));
        assert_ok(ifl_trainer_forward(trainer, weights, &k->pack, got, &err));
        double worst = 0;
        for (int32_t i = 0; i < k->pack.n_targets; i++) {
            const golden_target *w =
                &want[k->target_items[i]]
                     [k->target_positions[i] - ifl_trajectory_n_prompt(t[k->target_items[i]])];
            worst = fmax(worst, fabs((double)got[i].logprob - w->logprob));
            worst = fmax(worst, fabs((double)got[i].full_logprob - w->full));
            worst = fmax(worst, fabs((double)got[i].entropy - w->entropy));
        }
        static ifl_config config;
        ifl_config_defaults(&config);
        config.learner.loss = IFL_LOSS_REINFORCE;
        ifl_loss_options options = ifl_loss_options_of(&config);
        ifl_loss_counts counts = {2, k->pack.n_targets};
        ifl_loss_sums sums = {0};
        k->loss_tokens.logprobs = got;
        ifl_loss_coefficients(&options, &counts, &k->loss_tokens, 1, coefficients, &sums);
        assert_ok(ifl_trainer_backward(trainer, weights, &k->pack, coefficients, &err));
        double loss, norm, relative = 0;
        assert_int_equal(fscanf(f, " loss %lf", &loss), 1);
        char name[IFL_TENSOR_NAME_MAX];
        int n_tensors = 0;
        while (fscanf(f, " gradient %127s %lf", name, &norm) == 2) {
            int32_t at = ifl_model_find(model, name);
            if (at < 0) fail_msg("no tensor %s", name);
            const ifl_param *p = &model->params[at];
            const float *g = ifl_trainer_gradients(trainer) + p->offset;
            double own = 0;
            for (int64_t i = 0; i < p->spec.rows * p->spec.cols; i++)
                own += (double)g[i] * (double)g[i];
            relative = fmax(relative, fabs(sqrt(own) - norm) / norm);
            for (int i = 0; i < 6; i++) {
                int64_t index;
                double value;
                assert_int_equal(fscanf(f, "%ld %lf", &index, &value), 2);
                relative = fmax(relative, fabs((double)g[index] - value) / norm);
            }
            n_tensors++;
        }
        assert_int_equal(fscanf(f, " end%n", &(int){0}), 0);
        print_message("%-7s top-k %d, top-p %g: log-probs %.1e, loss %.1e, gradients %.1e off\n",
                      family, top_k, top_p, worst, fabs(sums.loss - loss), relative);
        assert_int_equal(n_tensors, model->n_params);
        assert_true(worst < 3e-5); /* f32 against f64, as in test_model_golden */
        assert_true(fabs(sums.loss - loss) < 3e-5 * (1 + fabs(loss)));
        assert_true(relative < 2e-5);
        ifl_trainer_free(trainer);
        ifl_pack_set_free(set);
        for (int i = 0; i < 2; i++)
            ifl_trajectory_free(t[i]);
        ifl_weights_free(weights);
        ifl_model_free(model);
        n_families++;
    }
    fclose(f);
    assert_int_equal(n_families, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_learner_gives_the_recorded_bits),
        cmocka_unit_test(test_a_set_that_indexes_elsewhere_is_refused),
        cmocka_unit_test(test_a_set_across_blocks_has_the_gradient_of_plain_targets),
        cmocka_unit_test(test_loss_and_gradient_are_pytorchs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

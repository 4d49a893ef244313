/* Our side of tests/parity/mismatch.py, which compiles it against a build folder: log-probs that
 * the engine records while it samples with its KV cache, at several batch sizes, and those of the
 * learner's packed teacher-forced forward and of scoring one sequence at a time.
 *
 *   mismatch_ours MODEL f32|bf16 THREADS NEW_TOKENS SEED PROMPTS all|sample
 *
 * PROMPTS: texts, each ended by a NUL byte. `sample` stops behind the first pass. A line of the
 * output is one sequence of one pass, with the bits of the log-probs of its last tokens in hex:
 * PASS INDEX N_PROMPT N_TOKENS token... bits... */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "actor/engine.h"
#include "actor/parity_check.h"
#include "common/file_map.h"
#include "common/memory.h"
#include "deploy/cli/load_model.h"
#include "kernels/score.h"
#include "learner/pack.h"

enum {
    SAMPLES = 4, /* of each prompt */
    PROMPTS_MAX = 64,
    SEQUENCES_MAX = PROMPTS_MAX * SAMPLES,
    PROMPTS_BYTES_MAX = 1 << 20,
    PACK_TOKENS = 1024,
    ALONE_ROWS = 48 /* no divisor of anything else here: the chunks cut where nothing else does */
};

typedef struct mismatch {
    ifl_loaded_model loaded;
    ifl_thread_pool *pool;
    int32_t n_prompts, new_tokens, longest; /* longest: prompt and answer, tokens */
    uint64_t seed;
    ifl_token_ids prompts[PROMPTS_MAX];
    ifl_trajectory *sampled[SEQUENCES_MAX]; /* by prompt and sample; of the pass compared with */
} mismatch;

static void sequence_print(const char *pass, int32_t index, const ifl_trajectory *t,
                           const float *logprobs) {
    int32_t n_prompt = ifl_trajectory_n_prompt(t);
    printf("%s %d %d %d", pass, index, n_prompt, t->n_tokens);
    for (int32_t i = 0; i < t->n_tokens; i++)
        printf(" %d", t->tokens[i]);
    for (int32_t i = n_prompt; i < t->n_tokens; i++) {
        uint32_t bits;
        memcpy(&bits, &logprobs[i], sizeof bits);
        printf(" %08x", bits);
    }
    printf("\n");
}

/* --- Sampling
 * ------------------------------------------------------------------------------------------- */

/* A model without a tokenizer takes the text's bytes, modulo its vocabulary. */
static ifl_status prompt_encode(const ifl_loaded_model *loaded, const char *text, size_t n,
                                ifl_token_ids *ids, ifl_error *err) {
    if (loaded->tokenizer)
        return ifl_tokenizer_encode(loaded->tokenizer, text, n, IFL_ENCODE_SPECIAL, ids, err);
    IFL_TRY(ifl_grow((void **)&ids->ids, &ids->cap, n, sizeof *ids->ids, err));
    for (ids->n = 0; ids->n < n; ids->n++)
        ids->ids[ids->n] = (unsigned char)text[ids->n] % loaded->model->config.vocab_size;
    return IFL_OK;
}

static ifl_status prompts_read(mismatch *m, const char *path, ifl_error *err) {
    char *file;
    size_t n_file;
    IFL_TRY(ifl_file_read_text(path, PROMPTS_BYTES_MAX, &file, &n_file, err));
    const char *text = file, *end = text + n_file;
    ifl_status st = IFL_OK;
    while (st == IFL_OK && text < end) {
        size_t n = strnlen(text, (size_t)(end - text));
        ifl_token_ids *ids = &m->prompts[m->n_prompts];
        if (m->n_prompts == PROMPTS_MAX || text + n == end) {
            st = ifl_fail(err, IFL_FORMAT, "%s: wanted at most %d texts, each ended by NUL", path,
                          PROMPTS_MAX);
            break;
        }
        st = prompt_encode(&m->loaded, text, n, ids, err);
        int64_t longest = (int64_t)ids->n + m->new_tokens;
        if (st == IFL_OK && (ids->n < 1 || longest > m->loaded.model->config.max_positions))
            st = ifl_fail(err, IFL_LIMIT,
                          "%s: prompt %d has %zu tokens; with %d new ones wanted "
                          "2 to %d",
                          path, m->n_prompts, ids->n, m->new_tokens,
                          m->loaded.model->config.max_positions);
        if (longest > m->longest) m->longest = (int32_t)longest;
        m->n_prompts++;
        text += n + 1;
    }
    free(file);
    if (st == IFL_OK && m->n_prompts == 0) st = ifl_fail(err, IFL_FORMAT, "%s: no prompts", path);
    return st;
}

static ifl_status sample_collect(mismatch *m, ifl_engine *engine, const char *pass, bool keep,
                                 ifl_error *err) {
    ifl_trajectory *t;
    int32_t n_decoded;
    while (!ifl_engine_idle(engine)) {
        IFL_TRY(ifl_engine_step(engine, &n_decoded, err));
        while ((t = ifl_engine_take_finished(engine, NULL))) {
            int32_t index = (int32_t)t->task_serial * SAMPLES + t->sample;
            sequence_print(pass, index, t, t->logprobs);
            if (keep)
                m->sampled[index] = t;
            else
                ifl_trajectory_free(t);
        }
    }
    return IFL_OK;
}

/* All sequences, `batch` decoded together; the draws are keyed by (seed, prompt, sample). */
static ifl_status sample(mismatch *m, const char *pass, int32_t batch, bool keep, ifl_error *err) {
    ifl_engine_options options = {.sequences_max = batch,
                                  .kv_tokens = (batch + 1) * (m->longest + 32),
                                  .page_tokens = 16,
                                  .prefill_chunk_tokens = 256,
                                  .kv_mode = IFL_KV_MODE_KEEP,
                                  .seed = m->seed};
    ifl_engine *engine;
    IFL_TRY(ifl_engine_create(&engine, m->loaded.model, m->loaded.tokenizer, &options, m->pool,
                              NULL, err));
    ifl_status st = ifl_engine_swap(engine, m->loaded.weights, err);
    for (int32_t p = 0; st == IFL_OK && p < m->n_prompts; p++) {
        ifl_engine_request request = {.task_serial = (uint64_t)p,
                                      .task_id = "mismatch",
                                      .prompt = m->prompts[p].ids,
                                      .n_prompt = (int32_t)m->prompts[p].n,
                                      .n_samples = SAMPLES,
                                      .sampling = {1, 0, 1},
                                      .max_new_tokens = m->new_tokens,
                                      .ignore_eos = true};
        st = ifl_engine_submit(engine, &request, err);
    }
    if (st == IFL_OK) st = sample_collect(m, engine, pass, keep, err);
    ifl_engine_free(engine);
    return st;
}

/* --- Teacher forcing
 * ------------------------------------------------------------------------------------ */

/* The learner's own packing and forward. */
static ifl_status score_packed(mismatch *m, const char *pass, const ifl_ops *ops, ifl_error *err) {
    int32_t n = m->n_prompts * SAMPLES;
    int32_t rows_max = m->longest > PACK_TOKENS ? m->longest : PACK_TOKENS;
    ifl_pack_item items[SEQUENCES_MAX];
    ifl_pack_options options = {
        .pack_tokens = PACK_TOKENS, .rows_max = rows_max, .keep_zero = true};
    ifl_pack_set *set = NULL;
    ifl_trainer *trainer = NULL;
    ifl_logprob *scores = NULL;
    float *columns = ifl_alloc((size_t)n * (size_t)m->longest, sizeof *columns);
    ifl_status st;
    if (!columns) return ifl_fail(err, IFL_NOMEM, "mismatch: out of memory");
    for (int32_t i = 0; i < n; i++)
        items[i] = (ifl_pack_item){m->sampled[i], 0};
    IFL_TRY_GOTO(st, ifl_pack_build(&set, items, n, &options, err), done);
    scores = ifl_alloc((size_t)set->targets_max, sizeof *scores);
    if (!scores) {
        st = ifl_fail(err, IFL_NOMEM, "mismatch: out of memory");
        goto done;
    }
    IFL_TRY_GOTO(st,
                 ifl_trainer_create(&trainer, m->loaded.model, rows_max, IFL_ACTIVATION_BYTES,
                                    m->pool, ops, err),
                 done);
    for (int32_t p = 0; p < set->n_packs; p++) {
        const ifl_packed *packed = &set->packs[p];
        IFL_TRY_GOTO(
            st, ifl_trainer_forward(trainer, m->loaded.weights, &packed->pack, scores, err), done);
        for (int32_t i = 0; i < packed->pack.n_targets; i++)
            columns[packed->target_items[i] * m->longest + packed->target_positions[i]] =
                scores[i].logprob;
    }
    for (int32_t i = 0; i < n; i++)
        sequence_print(pass, i, m->sampled[i], columns + i * m->longest);
done:
    ifl_trainer_free(trainer);
    ifl_pack_set_free(set);
    ifl_free(scores);
    ifl_free(columns);
    return st;
}

static ifl_status score_alone(mismatch *m, const char *pass, ifl_error *err) {
    ifl_workspace *workspace = NULL;
    ifl_logprob *scores = ifl_alloc((size_t)m->longest, sizeof *scores);
    float *column = ifl_alloc((size_t)m->longest, sizeof *column);
    ifl_status st = IFL_OK;
    if (!scores || !column) st = ifl_fail(err, IFL_NOMEM, "mismatch: out of memory");
    if (st == IFL_OK)
        st = ifl_workspace_create(&workspace, m->loaded.model, ALONE_ROWS, m->pool, NULL, err);
    for (int32_t i = 0; st == IFL_OK && i < m->n_prompts * SAMPLES; i++) {
        const ifl_trajectory *t = m->sampled[i];
        int32_t from = ifl_trajectory_n_prompt(t);
        st = ifl_score(workspace, m->loaded.weights, t->tokens, t->n_tokens, from, 1, scores, err);
        for (int32_t at = from; st == IFL_OK && at < t->n_tokens; at++)
            column[at] = scores[at - from].logprob;
        if (st == IFL_OK) sequence_print(pass, i, t, column);
    }
    ifl_workspace_free(workspace);
    ifl_free(scores);
    ifl_free(column);
    return st;
}

static ifl_status measure(mismatch *m, const char *path, ifl_profile profile, int threads,
                          const char *prompts, bool all, ifl_error *err) {
    ifl_load_options options = {.max_positions = 4096, .numerics = profile, .notes = stderr};
    IFL_TRY(ifl_load_model(&m->loaded, path, &options, err));
    IFL_TRY(ifl_thread_pool_create(&m->pool, threads, err));
    IFL_TRY(prompts_read(m, prompts, err));
    IFL_TRY(sample(m, "cache-8", 8, true, err));
    if (!all) return IFL_OK;
    IFL_TRY(sample(m, "cache-1", 1, false, err));
    IFL_TRY(sample(m, "cache-32", 32, false, err));
    IFL_TRY(score_packed(m, "packed", NULL, err));
    IFL_TRY(score_alone(m, "alone", err));
    return score_packed(m, "packed-mutant", ifl_parity_mutant(ifl_ops_best(profile)), err);
}

/* A whole number from 0 to `most`; -1 for anything else. */
static int number_of(const char *text, long most) {
    char *end;
    long n = strtol(text, &end, 10);
    return end == text || *end != '\0' || n < 0 || n > most ? -1 : (int)n;
}

int main(int argc, char **argv) {
    static mismatch m;
    ifl_error err = {0};
    if (argc != 8 || (strcmp(argv[2], "f32") != 0 && strcmp(argv[2], "bf16") != 0)) {
        fprintf(stderr,
                "usage: mismatch_ours MODEL f32|bf16 THREADS NEW_TOKENS SEED PROMPTS all|sample\n");
        return 64;
    }
    ifl_profile profile = argv[2][0] == 'f' ? IFL_PROFILE_F32 : IFL_PROFILE_BF16;
    int threads = number_of(argv[3], IFL_THREADS_MAX);
    m.new_tokens = number_of(argv[4], 2048);
    m.seed = strtoull(argv[5], NULL, 10);
    if (threads < 0 || m.new_tokens < 1) {
        fprintf(stderr, "mismatch_ours: wanted 0 to %d threads and 1 to 2048 new tokens\n",
                IFL_THREADS_MAX);
        return 64;
    }
    ifl_status st =
        measure(&m, argv[1], profile, threads, argv[6], strcmp(argv[7], "all") == 0, &err);
    if (st != IFL_OK) fprintf(stderr, "mismatch_ours: %s\n", err.text);
    for (int32_t i = 0; i < SEQUENCES_MAX; i++)
        ifl_trajectory_free(m.sampled[i]);
    for (int32_t i = 0; i < PROMPTS_MAX; i++)
        ifl_token_ids_free(&m.prompts[i]);
    ifl_thread_pool_free(m.pool);
    ifl_loaded_model_clear(&m.loaded);
    return ifl_status_exit_code(st);
}

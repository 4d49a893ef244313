/* inflight generate: answers to one prompt, through the engine that actors use. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "actor/engine.h"
#include "common/clock.h"
#include "common/memory.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/options.h"
#include "kernels/random_model.h"

typedef struct generate_args {
    const char *prompt, *tokens, *isa;
    int64_t n;
    int32_t n_stops;
    bool logprobs, json;
    ifl_options *options;
} generate_args;

enum {
    KEY_MODEL = 'm',
    KEY_PROMPT = 'p',
    KEY_TEMPERATURE = 'T',
    KEY_MAX_NEW = 'n',
    KEY_N = 'N',
    KEY_THREADS = 't',
    KEY_TOP_K = 1,
    KEY_TOP_P,
    KEY_STOP,
    KEY_SEED,
    KEY_LOGPROBS,
    KEY_JSON,
    KEY_GREEDY,
    KEY_PAGE,
    KEY_ISA,
    KEY_TOKENS,
    KEY_MEMORY
};

static const struct argp_option generate_options[] = {
    {"model", KEY_MODEL, "PATH", 0,
     "model.path: Hugging Face folder, GGUF file, or a random shape such as tiny-llama", 0},
    {"prompt", KEY_PROMPT, "TEXT", 0, "prompt; special tokens written in it become those tokens",
     0},
    {"tokens", KEY_TOKENS, "IDS", 0, "prompt as token ids, separated by commas or spaces", 0},
    {"temperature", KEY_TEMPERATURE, "X", 0, "rollout.temperature; 0 is greedy (default 1)", 0},
    {"greedy", KEY_GREEDY, NULL, 0, "the same as --temperature 0", 0},
    {"top-k", KEY_TOP_K, "N", 0, "rollout.top_k: sample among the N best tokens (default 0: all)",
     0},
    {"top-p", KEY_TOP_P, "X", 0,
     "rollout.top_p: sample among the best tokens of mass X (default 1: all)", 0},
    {"max-new-tokens", KEY_MAX_NEW, "N", 0,
     "rollout.max_new_tokens: most tokens of one answer (default 160)", 0},
    {"stop", KEY_STOP, "TEXT", 0,
     "rollout.stops: end after this string, \\n for a new line; up to 8 times", 0},
    {"n", KEY_N, "N", 0, "answers, sharing the prompt's prefill (default 1)", 0},
    {"seed", KEY_SEED, "N", 0, "run.seed: with the prompt, all of the randomness (default 1)", 0},
    {"logprobs", KEY_LOGPROBS, NULL, 0, "print every token with its log-prob in nats", 0},
    {"json", KEY_JSON, NULL, 0, "one JSON object a line for each answer", 0},
    {"threads", KEY_THREADS, "N", 0, "actor.threads (default 0: one per CPU)", 0},
    {"page-tokens", KEY_PAGE, "N", 0,
     "actor.page_tokens: tokens of a KV page, a power of two up to 1024 (default 16)", 0},
    {"isa", KEY_ISA, "NAME", 0, "ref, generic, avx2, avx512, avx512bf16 or amx (default: the best)", 0},
    {"memory-gib", KEY_MEMORY, "X", 0,
     "memory.limit_gib: refuse to hold more than X GiB (default 0: no limit)", 0},
    {0}};

static const ifl_option_key generate_keys[] = {{KEY_MODEL, "model.path", NULL},
                                               {KEY_TEMPERATURE, "rollout.temperature", NULL},
                                               {KEY_GREEDY, "rollout.temperature", "0"},
                                               {KEY_TOP_K, "rollout.top_k", NULL},
                                               {KEY_TOP_P, "rollout.top_p", NULL},
                                               {KEY_MAX_NEW, "rollout.max_new_tokens", NULL},
                                               {KEY_SEED, "run.seed", NULL},
                                               {KEY_THREADS, "actor.threads", NULL},
                                               {KEY_PAGE, "actor.page_tokens", NULL},
                                               {KEY_MEMORY, "memory.limit_gib", NULL},
                                               {0}};

/* "\n", "\t" and "\\" as in C: a stop string is often a new line, hard to type otherwise. */
static ifl_status stop_add(generate_args *a, const char *arg, ifl_error *err) {
    char text[sizeof a->options->config->rollout.stops[0]], key[32];
    size_t n = 0;
    if (a->n_stops == IFL_STOPS_MAX)
        return ifl_fail(err, IFL_USAGE, "--stop: more than %d stop strings", IFL_STOPS_MAX);
    for (const char *c = arg; *c; c++) {
        char byte = *c;
        if (byte == '\\' && strchr("nt\\", c[1]) && c[1]) {
            c++;
            byte = *c == 'n' ? '\n' : *c == 't' ? '\t' : '\\';
        }
        if (n + 1 >= sizeof text)
            return ifl_fail(err, IFL_USAGE, "--stop: longer than %zu bytes", sizeof text - 1);
        text[n++] = byte;
    }
    if (n == 0) return ifl_fail(err, IFL_USAGE, "--stop: empty");
    text[n] = 0;
    /* The first one takes the place of the file's list. */
    if (a->n_stops == 0) IFL_TRY(ifl_options_set(a->options, "rollout.stops", "[]", err));
    snprintf(key, sizeof key, "rollout.stops.%d", a->n_stops++);
    return ifl_options_set(a->options, key, text, err);
}

static ifl_status generate_option(int key, const char *arg, void *user, ifl_error *err) {
    generate_args *a = user;
    switch (key) {
    case KEY_PROMPT:
        a->prompt = arg;
        return IFL_OK;
    case KEY_TOKENS:
        a->tokens = arg;
        return IFL_OK;
    case KEY_STOP:
        return stop_add(a, arg, err);
    case KEY_N:
        return ifl_options_int("n", arg, 1, 4096, &a->n, err);
    case KEY_LOGPROBS:
        a->logprobs = true;
        return IFL_OK;
    case KEY_JSON:
        a->json = true;
        return IFL_OK;
    case KEY_ISA:
        a->isa = arg;
        return IFL_OK;
    default:
        return ifl_fail(err, IFL_USAGE, "unknown option");
    }
}

/* --- Prompt
 * --------------------------------------------------------------------------------------------- */

static ifl_status ids_push(ifl_token_ids *ids, int32_t id, ifl_error *err) {
    IFL_TRY(ifl_grow((void **)&ids->ids, &ids->cap, ids->n + 1, sizeof *ids->ids, err));
    ids->ids[ids->n++] = id;
    return IFL_OK;
}

static ifl_status ids_parse(const char *text, ifl_token_ids *ids, ifl_error *err) {
    for (const char *c = text + strspn(text, ", []"); *c; c += strspn(c, ", []")) {
        char *end;
        long id = strtol(c, &end, 10);
        if (end == c || id < 0 || id >= IFL_VOCAB_MAX || ids->n >= IFL_TOKENS_MAX)
            return ifl_fail(err, IFL_USAGE,
                            "--tokens: got \"%.20s\", wanted token ids like 2,651,573", c);
        IFL_TRY(ids_push(ids, (int32_t)id, err));
        c = end;
    }
    return IFL_OK;
}

static ifl_status prompt_ids(const generate_args *a, const ifl_tokenizer *tokenizer,
                             ifl_token_ids *ids, ifl_error *err) {
    if (a->tokens) return ids_parse(a->tokens, ids, err);
    if (!tokenizer)
        return ifl_fail(err, IFL_USAGE, "%s has no tokenizer: give the prompt as --tokens IDS",
                        ifl_config_model_name(a->options->config));
    return ifl_tokenizer_encode(tokenizer, a->prompt, strlen(a->prompt),
                                IFL_ENCODE_SPECIAL | IFL_ENCODE_PARSE_SPECIAL, ids, err);
}

/* --- Output
 * --------------------------------------------------------------------------------------------- */

/* Prints one answer while it grows. */
typedef struct stream {
    const ifl_tokenizer *tokenizer;
    ifl_detokenizer *detok; /* NULL: ids instead of text */
    const ifl_model *model;
    int32_t n_printed;
    bool logprobs;
} stream;

static bool token_is_eos(const ifl_model *model, int32_t id) {
    for (int32_t i = 0; i < model->config.n_eos; i++)
        if (model->config.eos_ids[i] == id) return true;
    return false;
}

static ifl_status stream_token(stream *s, const ifl_trajectory *t, int32_t at, ifl_error *err) {
    const char *bytes = NULL;
    size_t n = 0;
    if (s->detok) IFL_TRY(ifl_detokenizer_push(s->detok, t->tokens[at], &bytes, &n, err));
    if (s->logprobs) {
        size_t n_spelling = 0;
        const char *spelling =
            s->tokenizer ? ifl_tokenizer_token(s->tokenizer, t->tokens[at], &n_spelling) : NULL;
        printf("%6d %12.6f  version %lld  %.*s\n", t->tokens[at], (double)t->logprobs[at],
               (long long)ifl_trajectory_version_at(t, at), (int)n_spelling,
               spelling ? spelling : "");
    } else if (!s->detok) {
        printf("%d ", t->tokens[at]);
    } else if (!token_is_eos(s->model, t->tokens[at])) {
        fwrite(bytes, 1, n, stdout);
    }
    return IFL_OK;
}

static ifl_status stream_update(stream *s, const ifl_trajectory *t, bool last, ifl_error *err) {
    for (; s->n_printed < t->n_tokens; s->n_printed++)
        IFL_TRY(stream_token(s, t, s->n_printed, err));
    if (last) {
        const char *bytes;
        size_t n;
        if (s->detok && !s->logprobs) {
            IFL_TRY(ifl_detokenizer_finish(s->detok, &bytes, &n, err));
            fwrite(bytes, 1, n, stdout);
        }
        if (!s->logprobs) putchar('\n');
    }
    fflush(stdout);
    return IFL_OK;
}

static ifl_status print_json(const ifl_trajectory *t, int32_t n_prompt, const ifl_model *model,
                             const ifl_tokenizer *tokenizer, ifl_error *err) {
    json_t *tokens = json_array(), *logprobs = json_array(), *o = NULL;
    ifl_token_text text = {0};
    ifl_status st = IFL_OK;
    for (int32_t i = n_prompt; i < t->n_tokens; i++) {
        json_array_append_new(tokens, json_integer(t->tokens[i]));
        json_array_append_new(logprobs, json_real((double)t->logprobs[i]));
    }
    int32_t n_text = t->n_tokens - n_prompt;
    if (n_text > 0 && token_is_eos(model, t->tokens[t->n_tokens - 1])) n_text--;
    if (tokenizer)
        IFL_TRY_GOTO(
            st,
            ifl_tokenizer_decode(tokenizer, t->tokens + n_prompt, (size_t)n_text, 0, &text, err),
            done);
    o = json_pack("{s:i, s:s, s:i, s:i, s:I, s:O, s:O}", "sample", t->sample, "finish",
                  ifl_finish_name(t->finish), "n_prompt", n_prompt, "n_tokens",
                  t->n_tokens - n_prompt, "version", (json_int_t)t->runs[0].version, "tokens",
                  tokens, "logprobs", logprobs);
    if (!o ||
        (tokenizer &&
         json_object_set_new(o, "text", json_stringn(text.bytes ? text.bytes : "", text.n)) != 0)) {
        st = ifl_fail(err, IFL_NOMEM, "generate: out of memory for JSON");
        goto done;
    }
    json_dumpf(o, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
    putchar('\n');
done:
    json_decref(o);
    json_decref(tokens);
    json_decref(logprobs);
    ifl_token_text_free(&text);
    return st;
}

/* --- Run
 * ------------------------------------------------------------------------------------------------
 */

static ifl_status print_answer(const generate_args *a, const ifl_loaded_model *m, stream *s,
                               const ifl_trajectory *t, int32_t n_prompt, ifl_error *err) {
    if (a->json) return print_json(t, n_prompt, m->model, m->tokenizer, err);
    if (a->n > 1) {
        printf("--- sample %d (%s, %d tokens)\n", t->sample, ifl_finish_name(t->finish),
               t->n_tokens - n_prompt);
        s->n_printed = n_prompt;
        if (s->detok) ifl_detokenizer_reset(s->detok);
    }
    return stream_update(s, t, true, err);
}

static ifl_status generate_loop(const generate_args *a, const ifl_loaded_model *m,
                                ifl_engine *engine, int32_t n_prompt, ifl_error *err) {
    stream s = {.tokenizer = m->tokenizer,
                .model = m->model,
                .n_printed = n_prompt,
                .logprobs = a->logprobs};
    if (m->tokenizer) IFL_TRY(ifl_detokenizer_create(&s.detok, m->tokenizer, 0, err));
    ifl_status st = IFL_OK;
    double start = ifl_clock_s();
    int64_t n_tokens = 0;
    ifl_trajectory *t;
    while (st == IFL_OK && !ifl_engine_idle(engine)) {
        int32_t n_decoded;
        IFL_TRY_GOTO(st, ifl_engine_step(engine, &n_decoded, err), done);
        n_tokens += n_decoded;
        const ifl_trajectory *live = a->n == 1 && !a->json ? ifl_engine_peek(engine, 0, 0) : NULL;
        if (live) IFL_TRY_GOTO(st, stream_update(&s, live, false, err), done);
        while (st == IFL_OK && (t = ifl_engine_take_finished(engine, NULL))) {
            st = print_answer(a, m, &s, t, n_prompt, err);
            ifl_trajectory_free(t);
        }
    }
    double wall_s = ifl_clock_s() - start;
    if (st == IFL_OK)
        fprintf(stderr, "%d prompt tokens, %lld new tokens in %.2f s: %.1f tokens/s\n", n_prompt,
                (long long)n_tokens, wall_s, (double)n_tokens / wall_s);
done:
    ifl_detokenizer_free(s.detok);
    return st;
}

static ifl_status generate_run_loaded(const generate_args *a, const ifl_loaded_model *m,
                                      const ifl_token_ids *ids, ifl_thread_pool *pool,
                                      ifl_error *err) {
    const ifl_config *c = a->options->config;
    if (ids->n < 1) return ifl_fail(err, IFL_USAGE, "the prompt has no tokens");
    int64_t longest = (int64_t)ids->n + c->rollout.max_new_tokens, page = c->actor.page_tokens;
    if (longest > m->model->config.max_positions)
        return ifl_fail(err, IFL_LIMIT,
                        "prompt of %zu and %d new tokens, the model has %d positions", ids->n,
                        c->rollout.max_new_tokens, m->model->config.max_positions);
    int64_t together = a->n < 64 ? a->n : 64;
    int64_t kv_tokens = together * (longest + page) + (int64_t)ids->n + page;
    if (kv_tokens > c->actor.kv_tokens) kv_tokens = c->actor.kv_tokens;
    ifl_engine_options eo = {.sequences_max = (int32_t)together,
                             .kv_tokens = (int32_t)kv_tokens,
                             .page_tokens = (int32_t)page,
                             .prefill_chunk_tokens = c->actor.prefill_chunk_tokens,
                             .kv_mode = IFL_KV_MODE_KEEP,
                             .seed = (uint64_t)c->run.seed};
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights", ifl_weights_bytes(m->model));
    ifl_memory_plan_add(&plan, "engine with KV cache",
                        ifl_engine_bytes(m->model, &eo, ifl_thread_pool_size(pool)));
    IFL_TRY(ifl_memory_plan_check(&plan, c->memory.limit_gib, stderr, err));

    ifl_engine *engine;
    IFL_TRY(ifl_engine_create(&engine, m->model, m->tokenizer, &eo, pool, NULL, err));
    const char *stops[IFL_STOPS_MAX];
    for (int32_t i = 0; i < c->rollout.n_stops; i++)
        stops[i] = c->rollout.stops[i];
    ifl_engine_request request = {
        .task_id = "generate",
        .prompt = ids->ids,
        .n_prompt = (int32_t)ids->n,
        .n_samples = (int32_t)a->n,
        .sampling = {(float)c->rollout.temperature, c->rollout.top_k, (float)c->rollout.top_p},
        .max_new_tokens = c->rollout.max_new_tokens,
        .n_stops = c->rollout.n_stops,
        .stops = stops,
    };
    ifl_status st = ifl_engine_swap(engine, m->weights, err);
    if (st == IFL_OK) st = ifl_engine_submit(engine, &request, err);
    if (st == IFL_OK) st = generate_loop(a, m, engine, (int32_t)ids->n, err);
    ifl_engine_free(engine);
    return st;
}

static ifl_status generate_work(const ifl_options *options, void *user, ifl_error *err) {
    const generate_args *a = user;
    const ifl_config *c = options->config;
    if (!c->model.path[0] && !options->config_path)
        return ifl_fail(err, IFL_USAGE,
                        "no model: give --model PATH, or a --config that names one");
    if (!a->prompt == !a->tokens)
        return ifl_fail(err, IFL_USAGE,
                        "give the prompt either as --prompt TEXT or as --tokens IDS");
    if (a->isa && !ifl_ops_force(a->isa))
        return ifl_fail(err, IFL_USAGE, "--isa %s: this host cannot run it", a->isa);
    ifl_loaded_model m = {0};
    ifl_thread_pool *pool = NULL;
    ifl_token_ids ids = {0};
    ifl_status st;
    /* A text has at most about a token per byte; RoPE tables of a whole long context would be
     * waste. */
    int64_t positions =
        4 * (int64_t)strlen(a->prompt ? a->prompt : a->tokens) + 64 + c->rollout.max_new_tokens;
    IFL_TRY_GOTO(
        st,
        ifl_config_model_bare(&m, c, positions < (1 << 24) ? (int32_t)positions : 0, stderr, err),
        done);
    ifl_model_config shape;
    if (a->prompt && ifl_random_model_config(c->model.path, &shape))
        IFL_TRY_GOTO(st, ifl_config_model_tokenizer(&m, err), done);
    IFL_TRY_GOTO(st, prompt_ids(a, m.tokenizer, &ids, err), done);
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&pool, c->actor.threads, err), done);
    st = generate_run_loaded(a, &m, &ids, pool, err);
done:
    ifl_thread_pool_free(pool);
    ifl_token_ids_free(&ids);
    ifl_loaded_model_clear(&m);
    return st;
}

int ifl_cmd_generate(int argc, char **argv) {
    /* One answer needs no more than its own length in KV cache, which is computed. */
    static const char *const presets[] = {"actor.threads=0", "actor.kv_tokens=16777216", NULL};
    generate_args a = {.n = 1};
    const ifl_options_spec spec = {
        .doc = "Generates answers to a prompt and streams the text. The same seed gives the same "
               "answer on "
               "every host, for any number of threads and answers.",
        .extra = generate_options,
        .keys = generate_keys,
        .presets = presets,
        .on_option = generate_option,
        .parsing = &a.options,
        .user = &a,
        .work = generate_work,
    };
    return ifl_options_run(argc, argv, &spec);
}

/* inflight generate: answers to one prompt, through the engine that actors use. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "actor/engine.h"
#include "common/clock.h"
#include "common/memory.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/load_model.h"
#include "deploy/cli/options.h"

typedef struct generate_args {
    const char *model, *prompt, *tokens, *isa;
    double temperature, top_p, memory_gib;
    int64_t top_k, max_new_tokens, n, seed, threads, page_tokens;
    int32_t n_stops;
    char stops[IFL_STOPS_MAX][64];
    bool logprobs, json, greedy;
} generate_args;

enum {
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
    {"model", 'm', "PATH", 0,
     "Hugging Face folder, GGUF file, or a random shape such as tiny-llama", 0},
    {"prompt", 'p', "TEXT", 0, "prompt; special tokens written in it become those tokens", 0},
    {"tokens", KEY_TOKENS, "IDS", 0, "prompt as token ids, separated by commas or spaces", 0},
    {"temperature", 'T', "X", 0, "0 is greedy (default 1)", 0},
    {"greedy", KEY_GREEDY, NULL, 0, "the same as --temperature 0", 0},
    {"top-k", KEY_TOP_K, "N", 0, "sample among the N best tokens (default 0: all)", 0},
    {"top-p", KEY_TOP_P, "X", 0, "sample among the best tokens of mass X (default 1: all)", 0},
    {"max-new-tokens", 'n', "N", 0, "most tokens of one answer (default 256)", 0},
    {"stop", KEY_STOP, "TEXT", 0, "end after this string, \\n for a new line; up to 8 times", 0},
    {"n", 'N', "N", 0, "answers, sharing the prompt's prefill (default 1)", 0},
    {"seed", KEY_SEED, "N", 0, "with the prompt, all of the randomness (default 0)", 0},
    {"logprobs", KEY_LOGPROBS, NULL, 0, "print every token with its log-prob in nats", 0},
    {"json", KEY_JSON, NULL, 0, "one JSON object a line for each answer", 0},
    {"threads", 't', "N", 0, "default: one per CPU", 0},
    {"page-tokens", KEY_PAGE, "N", 0, "tokens of a KV page, a power of two up to 1024 (default 16)",
     0},
    {"isa", KEY_ISA, "NAME", 0, "ref, generic, avx2 or avx512 (default: the best)", 0},
    {"memory-gib", KEY_MEMORY, "X", 0, "refuse to hold more than X GiB (default 0: no limit)", 0},
    {0}};

/* "\n", "\t" and "\\" as in C: a stop string is often a new line, hard to type otherwise. */
static ifl_status stop_add(generate_args *a, const char *arg, ifl_error *err) {
    if (a->n_stops == IFL_STOPS_MAX)
        return ifl_fail(err, IFL_USAGE, "--stop: more than %d stop strings", IFL_STOPS_MAX);
    char *out = a->stops[a->n_stops];
    size_t n = 0;
    for (const char *c = arg; *c; c++) {
        char byte = *c;
        if (byte == '\\' && strchr("nt\\", c[1]) && c[1]) {
            c++;
            byte = *c == 'n' ? '\n' : *c == 't' ? '\t' : '\\';
        }
        if (n + 1 >= sizeof a->stops[0])
            return ifl_fail(err, IFL_USAGE, "--stop: longer than %zu bytes",
                            sizeof a->stops[0] - 1);
        out[n++] = byte;
    }
    if (n == 0) return ifl_fail(err, IFL_USAGE, "--stop: empty");
    out[n] = 0;
    a->n_stops++;
    return IFL_OK;
}

static ifl_status generate_option(int key, const char *arg, void *user, ifl_error *err) {
    generate_args *a = user;
    switch (key) {
    case 'm':
        a->model = arg;
        return IFL_OK;
    case 'p':
        a->prompt = arg;
        return IFL_OK;
    case KEY_TOKENS:
        a->tokens = arg;
        return IFL_OK;
    case 'T':
        return ifl_options_double("temperature", arg, 0, 1000, &a->temperature, err);
    case KEY_GREEDY:
        a->greedy = true;
        return IFL_OK;
    case KEY_TOP_K:
        return ifl_options_int("top-k", arg, 0, IFL_TOP_K_MAX, &a->top_k, err);
    case KEY_TOP_P:
        return ifl_options_double("top-p", arg, 1e-6, 1, &a->top_p, err);
    case 'n':
        return ifl_options_int("max-new-tokens", arg, 1, IFL_TOKENS_MAX, &a->max_new_tokens, err);
    case KEY_STOP:
        return stop_add(a, arg, err);
    case 'N':
        return ifl_options_int("n", arg, 1, 4096, &a->n, err);
    case KEY_SEED:
        return ifl_options_int("seed", arg, 0, INT64_MAX, &a->seed, err);
    case KEY_LOGPROBS:
        a->logprobs = true;
        return IFL_OK;
    case KEY_JSON:
        a->json = true;
        return IFL_OK;
    case 't':
        return ifl_options_int("threads", arg, 1, IFL_THREADS_MAX, &a->threads, err);
    case KEY_PAGE:
        return ifl_options_int("page-tokens", arg, 1, 1024, &a->page_tokens, err);
    case KEY_ISA:
        a->isa = arg;
        return IFL_OK;
    case KEY_MEMORY:
        return ifl_options_double("memory-gib", arg, 0, 1e6, &a->memory_gib, err);
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
                        a->model);
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
    if (ids->n < 1) return ifl_fail(err, IFL_USAGE, "the prompt has no tokens");
    int64_t longest = (int64_t)ids->n + a->max_new_tokens, page = a->page_tokens;
    if (longest > m->model->config.max_positions)
        return ifl_fail(err, IFL_LIMIT,
                        "prompt of %zu and %lld new tokens, the model has %d positions", ids->n,
                        (long long)a->max_new_tokens, m->model->config.max_positions);
    int64_t together = a->n < 64 ? a->n : 64;
    int64_t kv_tokens = together * (longest + page) + (int64_t)ids->n + page;
    ifl_engine_options eo = {.sequences_max = (int32_t)together,
                             .kv_tokens = kv_tokens < (1 << 24) ? (int32_t)kv_tokens : 1 << 24,
                             .page_tokens = (int32_t)page,
                             .prefill_chunk_tokens = 256,
                             .kv_mode = IFL_KV_MODE_KEEP,
                             .seed = (uint64_t)a->seed};
    ifl_memory_plan plan = {0};
    ifl_memory_plan_add(&plan, "weights", ifl_weights_bytes(m->model));
    ifl_memory_plan_add(&plan, "engine with KV cache",
                        ifl_engine_bytes(m->model, &eo, ifl_thread_pool_size(pool)));
    IFL_TRY(ifl_memory_plan_check(&plan, a->memory_gib, stderr, err));

    ifl_engine *engine;
    IFL_TRY(ifl_engine_create(&engine, m->model, m->tokenizer, &eo, pool, NULL, err));
    const char *stops[IFL_STOPS_MAX];
    for (int32_t i = 0; i < a->n_stops; i++)
        stops[i] = a->stops[i];
    ifl_engine_request request = {
        .task_id = "generate",
        .prompt = ids->ids,
        .n_prompt = (int32_t)ids->n,
        .n_samples = (int32_t)a->n,
        .sampling = {a->greedy ? 0 : (float)a->temperature, (int32_t)a->top_k, (float)a->top_p},
        .max_new_tokens = (int32_t)a->max_new_tokens,
        .n_stops = a->n_stops,
        .stops = stops,
    };
    ifl_status st = ifl_engine_swap(engine, m->weights, err);
    if (st == IFL_OK) st = ifl_engine_submit(engine, &request, err);
    if (st == IFL_OK) st = generate_loop(a, m, engine, (int32_t)ids->n, err);
    ifl_engine_free(engine);
    return st;
}

static ifl_status generate_run(const generate_args *a, ifl_error *err) {
    if (!a->model) return ifl_fail(err, IFL_USAGE, "no model: give --model PATH");
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
        4 * (int64_t)strlen(a->prompt ? a->prompt : a->tokens) + 64 + a->max_new_tokens;
    ifl_load_options lo = {.max_positions = positions < (1 << 24) ? (int32_t)positions : 0,
                           .seed = (uint64_t)a->seed,
                           .allow_random = true,
                           .notes = stderr};
    IFL_TRY_GOTO(st, ifl_load_model(&m, a->model, &lo, err), done);
    IFL_TRY_GOTO(st, prompt_ids(a, m.tokenizer, &ids, err), done);
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&pool, (int)a->threads, err), done);
    st = generate_run_loaded(a, &m, &ids, pool, err);
done:
    ifl_thread_pool_free(pool);
    ifl_token_ids_free(&ids);
    ifl_loaded_model_clear(&m);
    return st;
}

int ifl_cmd_generate(int argc, char **argv) {
    generate_args a = {
        .temperature = 1, .top_p = 1, .max_new_tokens = 256, .n = 1, .page_tokens = 16};
    ifl_error err = {0};
    ifl_options options = {0};
    const ifl_options_spec spec = {
        .doc = "Generates answers to a prompt and streams the text. The same seed gives the same "
               "answer on "
               "every host, for any number of threads and answers.",
        .extra = generate_options,
        .on_option = generate_option,
        .user = &a,
        .no_config = true,
    };
    ifl_status st = ifl_options_parse(&options, argc, argv, &spec, &err);
    if (st == IFL_OK) st = generate_run(&a, &err);
    ifl_options_free(&options);
    return ifl_options_exit(st, argv[0], &err);
}

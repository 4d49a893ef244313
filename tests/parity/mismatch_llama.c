/* llama.cpp's side of tests/parity/mismatch.py, which compiles it against the headers and libraries
 * that the caller names: log-probs of given tokens, with the same prompts and the same KV cache,
 * decoded one sequence at a time, 8 together, 32 together, and as one prefill chunk.
 *
 *   mismatch_llama MODEL.gguf THREADS SEQUENCES
 *
 * SEQUENCES and the output: a line is PASS INDEX N_PROMPT N_TOKENS token... bits..., as
 * mismatch_ours.c prints it; the input's bits are not read. All sequences have the same number of
 * tokens behind the prompt. A log-prob is computed in double from the f32 logits, by the same loop
 * in every pass, and rounded to f32. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <llama.h>

enum { SEQUENCES_MAX = 256, TOKENS_MAX = 4096, KV_ALIGN = 256 };

typedef struct sequence {
    int n_prompt, n_tokens;
    llama_token *tokens; /* [n_tokens] */
    float *logprobs;     /* [n_tokens], of the pass under way; 0 in the prompt */
} sequence;

typedef struct run {
    struct llama_model *model;
    struct llama_context *context;
    int n_vocab, n_threads;
    int n_sequences, n_new, longest;
    sequence sequences[SEQUENCES_MAX];
    struct llama_batch batch; /* of `longest` tokens, at least a token per sequence */
} run;

static bool fail(const char *what) {
    fprintf(stderr, "mismatch_llama: %s\n", what);
    return false;
}

static bool sequence_read(run *r, FILE *f) {
    sequence *s = &r->sequences[r->n_sequences];
    if (r->n_sequences == SEQUENCES_MAX) return fail("too many sequences");
    if (fscanf(f, "%*s %*d %d %d", &s->n_prompt, &s->n_tokens) != 2 || s->n_prompt < 1 ||
        s->n_tokens <= s->n_prompt || s->n_tokens > TOKENS_MAX)
        return fail("wanted PASS INDEX N_PROMPT N_TOKENS with 1 <= N_PROMPT < N_TOKENS <= 4096");
    r->n_sequences++; /* from here on run_clear frees it */
    s->tokens = calloc((size_t)s->n_tokens, sizeof *s->tokens);
    s->logprobs = calloc((size_t)s->n_tokens, sizeof *s->logprobs);
    if (!s->tokens || !s->logprobs) return fail("out of memory");
    for (int i = 0; i < s->n_tokens; i++)
        if (fscanf(f, "%d", &s->tokens[i]) != 1 || s->tokens[i] < 0 || s->tokens[i] >= r->n_vocab)
            return fail("a token is missing or outside the vocabulary");
    for (int c; (c = fgetc(f)) != EOF && c != '\n';)
        continue;
    int n_new = s->n_tokens - s->n_prompt;
    if (r->n_sequences > 1 && n_new != r->n_new) return fail("sequences of different lengths");
    r->n_new = n_new;
    if (s->n_tokens > r->longest) r->longest = s->n_tokens;
    return true;
}

static bool sequences_read(run *r, const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) return fail("the sequences cannot be opened");
    bool ok = true;
    int c;
    while (ok && (c = fgetc(f)) != EOF) {
        ungetc(c, f);
        ok = sequence_read(r, f);
    }
    fclose(f);
    return ok && (r->n_sequences > 0 || fail("no sequences"));
}

/* --- One pass
 * ------------------------------------------------------------------------------------------- */

static float logprob(const float *logits, int n, int target) {
    double max = (double)logits[0], sum = 0;
    for (int i = 1; i < n; i++)
        if ((double)logits[i] > max) max = (double)logits[i];
    for (int i = 0; i < n; i++)
        sum += exp((double)logits[i] - max);
    return (float)((double)logits[target] - max - log(sum));
}

static void batch_add(run *r, llama_token token, int position, int slot, bool wanted) {
    struct llama_batch *b = &r->batch;
    b->token[b->n_tokens] = token;
    b->pos[b->n_tokens] = position;
    b->n_seq_id[b->n_tokens] = 1;
    b->seq_id[b->n_tokens][0] = slot;
    b->logits[b->n_tokens] = wanted;
    b->n_tokens++;
}

/* The log-prob of token `at` of a sequence, from the logits of row `row` of the last batch. */
static bool take(run *r, sequence *s, int at, int row) {
    const float *logits = llama_get_logits_ith(r->context, row);
    if (!logits) return fail("no logits");
    s->logprobs[at] = logprob(logits, r->n_vocab, s->tokens[at]);
    return true;
}

/* Tokens [0, n) of a sequence in one chunk; the log-probs of tokens [n_prompt, n]. */
static bool chunk(run *r, sequence *s, int n, int slot) {
    r->batch.n_tokens = 0;
    for (int i = 0; i < n; i++)
        batch_add(r, s->tokens[i], i, slot, i + 1 >= s->n_prompt);
    if (llama_decode(r->context, r->batch) != 0) return fail("llama_decode of a chunk failed");
    for (int at = s->n_prompt; at <= n; at++)
        if (!take(r, s, at, at - 1)) return false;
    return true;
}

/* Prompts one by one, each in one chunk; then a token of each sequence per step. */
static bool decode_together(run *r, sequence *first, int n) {
    llama_memory_clear(llama_get_memory(r->context), true);
    for (int i = 0; i < n; i++)
        if (!chunk(r, &first[i], first[i].n_prompt, i)) return false;
    for (int t = 0; t + 1 < r->n_new; t++) {
        r->batch.n_tokens = 0;
        for (int i = 0; i < n; i++) {
            int at = first[i].n_prompt + t;
            batch_add(r, first[i].tokens[at], at, i, true);
        }
        if (llama_decode(r->context, r->batch) != 0) return fail("llama_decode of a step failed");
        for (int i = 0; i < n; i++)
            if (!take(r, &first[i], first[i].n_prompt + t + 1, i)) return false;
    }
    return true;
}

static void sequences_print(const run *r, const char *pass) {
    for (int i = 0; i < r->n_sequences; i++) {
        const sequence *s = &r->sequences[i];
        printf("%s %d %d %d", pass, i, s->n_prompt, s->n_tokens);
        for (int t = 0; t < s->n_tokens; t++)
            printf(" %d", s->tokens[t]);
        for (int t = s->n_prompt; t < s->n_tokens; t++) {
            uint32_t bits;
            memcpy(&bits, &s->logprobs[t], sizeof bits);
            printf(" %08x", bits);
        }
        printf("\n");
    }
    fflush(stdout);
}

/* together = 0: every sequence as one prefill chunk. */
static bool pass(run *r, const char *name, int together) {
    struct llama_context_params p = llama_context_default_params();
    int slots = together ? together : 1;
    int context = (r->longest + KV_ALIGN - 1) / KV_ALIGN * KV_ALIGN;
    p.n_ctx = (uint32_t)(slots * context);
    p.n_seq_max = (uint32_t)slots;
    p.n_batch = p.n_ubatch = (uint32_t)(r->longest > slots ? r->longest : slots);
    p.n_threads = p.n_threads_batch = r->n_threads;
    r->context = llama_init_from_model(r->model, p);
    if (!r->context) return fail("no context: too little memory?");
    bool ok = true;
    for (int i = 0; ok && i < r->n_sequences; i += slots) {
        int n = r->n_sequences - i < slots ? r->n_sequences - i : slots;
        if (together) {
            ok = decode_together(r, &r->sequences[i], n);
        } else {
            llama_memory_clear(llama_get_memory(r->context), true);
            ok = chunk(r, &r->sequences[i], r->sequences[i].n_tokens - 1, 0);
        }
    }
    llama_free(r->context);
    r->context = NULL;
    if (ok) sequences_print(r, name);
    return ok;
}

static bool measure(run *r, const char *model, const char *sequences) {
    static const struct {
        const char *name;
        int together;
    } passes[] = {
        {"decode-1", 1}, {"decode-1-again", 1}, {"decode-8", 8}, {"decode-32", 32}, {"chunk", 0}};
    r->model = llama_model_load_from_file(model, llama_model_default_params());
    if (!r->model) return fail("the model cannot be loaded");
    r->n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(r->model));
    if (!sequences_read(r, sequences)) return false;
    int rows = r->longest > 32 ? r->longest : 32;
    r->batch = llama_batch_init(rows, 0, 1);
    for (size_t i = 0; i < sizeof passes / sizeof passes[0]; i++)
        if (!pass(r, passes[i].name, passes[i].together)) return false;
    return true;
}

/* A whole number from 0 to `most`; -1 for anything else. */
static int number_of(const char *text, long most) {
    char *end;
    long n = strtol(text, &end, 10);
    return end == text || *end != '\0' || n < 0 || n > most ? -1 : (int)n;
}

int main(int argc, char **argv) {
    static run r;
    r.n_threads = argc == 4 ? number_of(argv[2], 1024) : 0;
    if (r.n_threads < 1) {
        fprintf(stderr, "usage: mismatch_llama MODEL.gguf THREADS SEQUENCES\n");
        return 64;
    }
    llama_backend_init();
    bool ok = measure(&r, argv[1], argv[3]);
    if (r.batch.token) llama_batch_free(r.batch);
    for (int i = 0; i < r.n_sequences; i++) {
        free(r.sequences[i].tokens);
        free(r.sequences[i].logprobs);
    }
    if (r.model) llama_model_free(r.model);
    llama_backend_free();
    return ok ? 0 : 70;
}

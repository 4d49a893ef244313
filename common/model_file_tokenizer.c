/* The tokenizer that comes with a model file. */
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/model_file_impl.h"

/* The configuration may name ids beyond the vocabulary's last token: models pad their embedding. */
static ifl_status tokenizer_set_roles(const ifl_model_file *file, ifl_tokenizer *tok,
                                      ifl_error *err) {
    const ifl_model_config *c = &file->config;
    int32_t bos = c->bos_id, eos = c->n_eos > 0 ? c->eos_ids[0] : -1;
    if (bos >= 0 && !ifl_tokenizer_token(tok, bos, NULL)) bos = -1;
    if (eos >= 0 && !ifl_tokenizer_token(tok, eos, NULL)) eos = -1;
    return ifl_tokenizer_set_roles(tok, bos, eos, -1, err);
}

typedef struct gguf_vocab {
    ifl_vocab_arrays arrays;
    char model[32], pre[64];
    ifl_gguf_text *texts; /* tokens, then merges */
    ifl_vocab_text *vocab_texts;
    float *scores;
    int32_t *types;
} gguf_vocab;

static ifl_status vocab_name(const ifl_gguf *g, const char *key, char *out, size_t n, bool *found,
                             ifl_error *err) {
    ifl_gguf_text text = {0};
    IFL_TRY(ifl_gguf_get_text(g, key, &text, err));
    *found = text.bytes != NULL;
    if (text.n_bytes >= n || (text.n_bytes && memchr(text.bytes, 0, text.n_bytes)))
        return ifl_fail(err, IFL_UNSUPPORTED, "%s: a name of %zu bytes is not known", key,
                        text.n_bytes);
    if (text.n_bytes) memcpy(out, text.bytes, text.n_bytes);
    out[text.n_bytes] = '\0';
    return IFL_OK;
}

static ifl_status vocab_read_arrays(const ifl_gguf *g, gguf_vocab *v, ifl_error *err) {
    ifl_vocab_arrays *a = &v->arrays;
    int64_t n_scores, n_types;
    IFL_TRY(ifl_gguf_array_count(g, "tokenizer.ggml.tokens", &a->n_tokens, err));
    IFL_TRY(ifl_gguf_array_count(g, "tokenizer.ggml.merges", &a->n_merges, err));
    IFL_TRY(ifl_gguf_array_count(g, "tokenizer.ggml.scores", &n_scores, err));
    IFL_TRY(ifl_gguf_array_count(g, "tokenizer.ggml.token_type", &n_types, err));
    if (a->n_tokens < 1 || a->n_tokens > IFL_VOCAB_MAX || a->n_merges > IFL_MERGES_MAX)
        return ifl_fail(
            err, IFL_LIMIT, "tokenizer.ggml: %lld tokens and %lld merges, limits %d and %d",
            (long long)a->n_tokens, (long long)a->n_merges, IFL_VOCAB_MAX, IFL_MERGES_MAX);
    size_t n = (size_t)(a->n_tokens + a->n_merges);
    v->texts = ifl_alloc(n, sizeof *v->texts);
    v->vocab_texts = ifl_alloc(n, sizeof *v->vocab_texts);
    v->scores = n_scores > 0 ? ifl_alloc((size_t)a->n_tokens, sizeof *v->scores) : NULL;
    v->types = n_types > 0 ? ifl_alloc((size_t)a->n_tokens, sizeof *v->types) : NULL;
    if (!v->texts || !v->vocab_texts || (n_scores > 0 && !v->scores) || (n_types > 0 && !v->types))
        return ifl_fail(err, IFL_NOMEM, "out of memory for %zu tokens and merges", n);
    IFL_TRY(ifl_gguf_array_text(g, "tokenizer.ggml.tokens", a->n_tokens, v->texts, err));
    if (a->n_merges > 0)
        IFL_TRY(ifl_gguf_array_text(g, "tokenizer.ggml.merges", a->n_merges, v->texts + a->n_tokens,
                                    err));
    if (v->scores)
        IFL_TRY(ifl_gguf_array_f32(g, "tokenizer.ggml.scores", a->n_tokens, v->scores, err));
    if (v->types)
        IFL_TRY(ifl_gguf_array_int32(g, "tokenizer.ggml.token_type", a->n_tokens, v->types, err));
    for (size_t i = 0; i < n; i++)
        v->vocab_texts[i] =
            (ifl_vocab_text){.bytes = v->texts[i].bytes, .n_bytes = v->texts[i].n_bytes};
    a->tokens = v->vocab_texts;
    a->merges = a->n_merges > 0 ? v->vocab_texts + a->n_tokens : NULL;
    a->scores = v->scores;
    a->types = v->types;
    return IFL_OK;
}

static ifl_status vocab_read(const ifl_gguf *g, gguf_vocab *v, ifl_error *err) {
    ifl_vocab_arrays *a = &v->arrays;
    bool found;
    IFL_TRY(vocab_name(g, "tokenizer.ggml.model", v->model, sizeof v->model, &found, err));
    if (!found) return ifl_fail(err, IFL_NOTFOUND, "tokenizer.ggml.model: missing");
    a->model = v->model;
    IFL_TRY(vocab_name(g, "tokenizer.ggml.pre", v->pre, sizeof v->pre, &found, err));
    a->pre = found ? v->pre : NULL;
    IFL_TRY(vocab_read_arrays(g, v, err));
    a->bos_id = a->eos_id = a->pad_id = a->unk_id = -1;
    int32_t last = (int32_t)a->n_tokens - 1;
    IFL_TRY(ifl_gguf_get_int32(g, "tokenizer.ggml.bos_token_id", 0, last, &a->bos_id, err));
    IFL_TRY(ifl_gguf_get_int32(g, "tokenizer.ggml.eos_token_id", 0, last, &a->eos_id, err));
    IFL_TRY(ifl_gguf_get_int32(g, "tokenizer.ggml.padding_token_id", 0, last, &a->pad_id, err));
    IFL_TRY(ifl_gguf_get_int32(g, "tokenizer.ggml.unknown_token_id", 0, last, &a->unk_id, err));
    a->add_bos = a->add_space_prefix = strcmp(a->model, "llama") == 0;
    IFL_TRY(ifl_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &a->add_bos, err));
    IFL_TRY(ifl_gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &a->add_eos, err));
    return ifl_gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &a->add_space_prefix, err);
}

static ifl_status tokenizer_from_gguf(const ifl_gguf *g, ifl_tokenizer **tok, ifl_error *err) {
    gguf_vocab v = {0};
    ifl_status st = vocab_read(g, &v, err);
    if (st == IFL_OK) st = ifl_tokenizer_from_vocab(tok, &v.arrays, err);
    ifl_free(v.texts);
    ifl_free(v.vocab_texts);
    ifl_free(v.scores);
    ifl_free(v.types);
    return st;
}

ifl_status ifl_model_file_tokenizer(const ifl_model_file *file, ifl_tokenizer **out,
                                    ifl_error *err) {
    ifl_status st;
    ifl_tokenizer *tok = NULL;
    char *text = NULL;
    size_t n = 0;
    *out = NULL;
    if (file->gguf) {
        st = tokenizer_from_gguf(file->gguf, &tok, err);
    } else {
        IFL_TRY_GOTO(st, ifl_model_file_tokenizer_json(file, &text, &n, err), done);
        st = ifl_tokenizer_from_json(&tok, text, n, err);
    }
    if (st != IFL_OK) ifl_error_wrap(err, "%s", file->path);
    if (st != IFL_OK) goto done;
    IFL_TRY_GOTO(st, tokenizer_set_roles(file, tok, err), done);
    *out = tok;
    tok = NULL;
done:
    ifl_tokenizer_free(tok);
    free(text);
    return st;
}

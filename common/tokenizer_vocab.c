/* Tokenizers that don't come from a tokenizer.json: GGUF metadata and the character tokenizer. */
#include "common/tokenizer_impl.h"

#include "common/memory.h"
#include "common/model_config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ifl_status tokenizer_create(ifl_tokenizer **out, ifl_error *err) {
    ifl_tokenizer *tok = calloc(1, sizeof *tok);
    *out = tok;
    if (!tok) return ifl_fail(err, IFL_NOMEM, "out of memory: tokenizer");
    tok->unk_id = tok->bos = tok->eos = tok->pad = -1;
    return IFL_OK;
}

static stage *stage_add(stage_list *list, stage_kind kind) {
    IFL_ASSERT(list->n < IFL_TOKENIZER_STAGES_MAX);
    stage *s = &list->stages[list->n++];
    *s = (stage){.kind = kind};
    return s;
}

static ifl_status stage_set_content(stage *s, const char *text, ifl_error *err) {
    s->content = strdup(text);
    s->n_content = strlen(text);
    return s->content ? IFL_OK : ifl_fail(err, IFL_NOMEM, "out of memory: tokenizer");
}

static ifl_status stage_add_replace(stage_list *list, const char *from, const char *to,
                                    ifl_error *err) {
    stage *s = stage_add(list, STAGE_REPLACE);
    IFL_TRY(text_pattern_compile(&s->pattern, from, strlen(from), true, "Replace", err));
    return stage_set_content(s, to, err);
}

static ifl_status stage_add_split(stage_list *list, const char *pattern, split_behavior behavior,
                                  bool digits, ifl_error *err) {
    stage *s = stage_add(list, STAGE_SPLIT);
    s->behavior = behavior;
    s->digits = digits;
    return text_pattern_compile(&s->pattern, pattern, strlen(pattern), false, "Split", err);
}

/* ---- checks ---- */

static int32_t vocab_type(const ifl_vocab_arrays *v, int64_t id) {
    return v->types ? v->types[id] : IFL_VOCAB_NORMAL;
}

static ifl_status vocab_check(const ifl_vocab_arrays *v, ifl_error *err) {
    if (!v->model) return ifl_fail(err, IFL_FORMAT, "the file names no tokenizer model");
    if (v->n_tokens < 1 || v->n_tokens > IFL_VOCAB_MAX || !v->tokens)
        return ifl_fail(err, IFL_LIMIT, "a vocabulary of %lld tokens, wanted 1 to %d",
                        (long long)v->n_tokens, IFL_VOCAB_MAX);
    if (v->n_merges < 0 || v->n_merges > IFL_MERGES_MAX || (v->n_merges && !v->merges))
        return ifl_fail(err, IFL_LIMIT, "%lld merges, at most %d", (long long)v->n_merges,
                        IFL_MERGES_MAX);
    const int32_t ids[] = {v->bos_id, v->eos_id, v->pad_id, v->unk_id};
    static const char *const names[] = {"bos", "eos", "padding", "unknown"};
    for (int i = 0; i < 4; i++)
        if (ids[i] < -1 || ids[i] >= v->n_tokens)
            return ifl_fail(err, IFL_FORMAT, "%s token id %d, the vocabulary has %lld tokens",
                            names[i], (int)ids[i], (long long)v->n_tokens);
    if ((v->add_bos && v->bos_id < 0) || (v->add_eos && v->eos_id < 0))
        return ifl_fail(err, IFL_FORMAT, "the tokenizer adds a %s token, but no such id is given",
                        v->add_bos && v->bos_id < 0 ? "bos" : "eos");
    for (int64_t i = 0; i < v->n_tokens; i++) {
        int32_t type = vocab_type(v, i);
        if (type < IFL_VOCAB_NORMAL || type > IFL_VOCAB_BYTE)
            return ifl_fail(err, IFL_FORMAT, "token %lld has type %d, wanted 1 to 6", (long long)i,
                            (int)type);
        if (!v->tokens[i].bytes || !ifl_utf8_valid(v->tokens[i].bytes, v->tokens[i].n_bytes))
            return ifl_fail(err, IFL_FORMAT, "token %lld is not UTF-8", (long long)i);
        if (v->scores && isnan(v->scores[i]))
            return ifl_fail(err, IFL_FORMAT, "token %lld has the score NaN", (long long)i);
    }
    return IFL_OK;
}

/* ---- "llama": SentencePiece ---- */

typedef struct scored_merge {
    int32_t left, right, id;
    uint16_t n_left, n_right; /* characters */
    bool user_defined;
    float score;
} scored_merge;

static int scored_merge_compare(const void *va, const void *vb) {
    const scored_merge *a = va, *b = vb;
    if (a->user_defined != b->user_defined) return a->user_defined ? -1 : 1;
    if (a->user_defined && a->id != b->id) return a->id < b->id ? -1 : 1;
    if (!a->user_defined && (a->score < b->score || a->score > b->score))
        return a->score > b->score ? -1 : 1;
    if (a->n_left != b->n_left) return a->n_left > b->n_left ? -1 : 1;
    if (a->n_right != b->n_right) return a->n_right > b->n_right ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static bool token_merges(const ifl_tokenizer *tok, const ifl_vocab_arrays *v, int32_t id) {
    return id >= 0 && tok->tokens.entries[id].flags & TOKEN_MODEL &&
           vocab_type(v, id) != IFL_VOCAB_BYTE;
}

/* Every cut of every piece into two pieces of the vocabulary is a merge. */
static ifl_status merges_from_scores(ifl_tokenizer *tok, const ifl_vocab_arrays *v,
                                     ifl_error *err) {
    scored_merge *merges = NULL;
    size_t n = 0, cap = 0;
    ifl_status st = IFL_OK;
    for (int32_t id = 0; (size_t)id < tok->tokens.n_ids; id++) {
        if (!token_merges(tok, v, id)) continue;
        const char *text = token_table_text(&tok->tokens, id);
        size_t length = tok->tokens.entries[id].n_bytes, n_chars = 0, n_left = 1;
        for (size_t i = 0; i < length; i += ifl_utf8_length(text[i]))
            n_chars++;
        for (size_t cut = ifl_utf8_length(text[0]); cut < length;
             cut += ifl_utf8_length(text[cut]), n_left++) {
            int32_t left = token_table_find(&tok->tokens, text, cut);
            if (!token_merges(tok, v, left)) continue;
            int32_t right = token_table_find(&tok->tokens, text + cut, length - cut);
            if (!token_merges(tok, v, right)) continue;
            if (n == IFL_MERGES_MAX) {
                st = ifl_fail(err, IFL_LIMIT, "the vocabulary implies more than %d merges",
                              IFL_MERGES_MAX);
                goto done;
            }
            IFL_TRY_GOTO(st, ifl_grow((void **)&merges, &cap, n + 1, sizeof *merges, err), done);
            merges[n++] = (scored_merge){left,
                                         right,
                                         id,
                                         (uint16_t)n_left,
                                         (uint16_t)(n_chars - n_left),
                                         vocab_type(v, id) == IFL_VOCAB_USER_DEFINED,
                                         v->scores[id]};
        }
    }
    if (n) qsort(merges, n, sizeof *merges, scored_merge_compare);
    for (size_t i = 0; i < n; i++)
        IFL_TRY_GOTO(
            st, merge_table_add(&tok->merges, merges[i].left, merges[i].right, merges[i].id, err),
            done);
done:
    free(merges);
    return st;
}

/* Adds token `id` to the table; `*added` says that texts are searched for it. */
static ifl_status vocab_add_llama(ifl_tokenizer *tok, const ifl_vocab_arrays *v, int32_t id,
                                  bool *added, ifl_error *err) {
    const char *text = v->tokens[id].bytes;
    size_t n = v->tokens[id].n_bytes, n_spaces = 0;
    char spelled[IFL_TOKEN_BYTES_MAX];
    int32_t type = vocab_type(v, id);
    while (n_spaces < n && text[n_spaces] == ' ')
        n_spaces++;
    *added = false;
    switch (type) {
    case IFL_VOCAB_CONTROL:
    case IFL_VOCAB_UNKNOWN:
        *added = true;
        return token_table_add(&tok->tokens, id, text, n, TOKEN_ADDED | TOKEN_SPECIAL, err);
    case IFL_VOCAB_UNUSED:
        return token_table_add(&tok->tokens, id, text, n, TOKEN_PLACE, err);
    case IFL_VOCAB_USER_DEFINED:
        if (n && n_spaces == n && n * strlen(IFL_METASPACE) <= sizeof spelled) {
            /* GGUF spells a run of spaces with spaces, the model's normalized text with U+2581. */
            for (size_t i = 0; i < n; i++)
                memcpy(spelled + i * strlen(IFL_METASPACE), IFL_METASPACE, strlen(IFL_METASPACE));
            return token_table_add(&tok->tokens, id, spelled, n * strlen(IFL_METASPACE),
                                   TOKEN_MODEL, err);
        }
        *added = true;
        return token_table_add(&tok->tokens, id, text, n, TOKEN_MODEL | TOKEN_ADDED, err);
    default:
        return token_table_add(&tok->tokens, id, text, n, TOKEN_MODEL, err);
    }
}

static ifl_status build_llama(ifl_tokenizer *tok, const ifl_vocab_arrays *v, ifl_error *err) {
    if (!v->scores) return ifl_fail(err, IFL_FORMAT, "a 'llama' tokenizer without scores");
    IFL_TRY(stage_add_replace(&tok->decoders, IFL_METASPACE, " ", err));
    stage_add(&tok->decoders, STAGE_BYTE_FALLBACK);
    stage_add(&tok->decoders, STAGE_FUSE);
    if (v->add_space_prefix) {
        stage *s = stage_add(&tok->decoders, STAGE_STRIP);
        s->strip_start = 1;
        IFL_TRY(stage_set_content(s, " ", err));
        s = stage_add(&tok->pre_tokenizers, STAGE_METASPACE);
        s->scheme = PREPEND_FIRST;
        IFL_TRY(stage_set_content(s, IFL_METASPACE, err));
    } else {
        IFL_TRY(stage_add_replace(&tok->normalizers, " ", IFL_METASPACE, err));
    }
    for (int32_t id = 0; id < v->n_tokens; id++) {
        bool searched;
        IFL_TRY(vocab_add_llama(tok, v, id, &searched, err));
        if (searched) {
            added_token added = {.id = id, .special = vocab_type(v, id) != IFL_VOCAB_USER_DEFINED};
            IFL_TRY(tokenizer_add_added(tok, &added, err));
        }
    }
    tok->unk_id = v->unk_id;
    tok->fuse_unk = true;
    tok->byte_fallback = true;
    return merges_from_scores(tok, v, err);
}

/* ---- "gpt2": byte-level BPE ---- */

typedef struct pre_name {
    const char *name, *pattern;
    bool nfc, ignore_merges, digits;
} pre_name;

static const pre_name PRE_NAMES[] = {
    {"gpt-2", PATTERN_GPT2, false, false, false},
    {"llama-bpe", PATTERN_LLAMA3, false, true, false},
    {"llama3", PATTERN_LLAMA3, false, true, false},
    {"llama-v3", PATTERN_LLAMA3, false, true, false},
    {"qwen2", PATTERN_QWEN2, true, false, false},
    {"deepseek-r1-qwen", PATTERN_QWEN2, true, false, false},
    {"smollm", PATTERN_GPT2, false, false, true},
};

static ifl_status vocab_merge(ifl_tokenizer *tok, int64_t index, ifl_vocab_text merge,
                              ifl_error *err) {
    const char *space = merge.bytes ? memchr(merge.bytes, ' ', merge.n_bytes) : NULL;
    size_t n_left = space ? (size_t)(space - merge.bytes) : 0;
    size_t n_right = space ? merge.n_bytes - n_left - 1 : 0;
    char both[2 * IFL_TOKEN_BYTES_MAX];
    int32_t left = -1, right = -1, id = -1;
    if (space) left = token_table_find(&tok->tokens, merge.bytes, n_left);
    if (space) right = token_table_find(&tok->tokens, space + 1, n_right);
    if (left >= 0 && right >= 0) { /* found, hence within the token limit */
        memcpy(both, merge.bytes, n_left);
        memcpy(both + n_left, space + 1, n_right);
        id = token_table_find(&tok->tokens, both, n_left + n_right);
    }
    if (id < 0)
        return ifl_fail(err, IFL_FORMAT,
                        "merge %lld, '%.*s': wanted two tokens and a space, both and their "
                        "join in the vocabulary",
                        (long long)index, merge.n_bytes > 80 ? 80 : (int)merge.n_bytes,
                        merge.bytes ? merge.bytes : "");
    return merge_table_add(&tok->merges, left, right, id, err);
}

static ifl_status build_gpt2(ifl_tokenizer *tok, const ifl_vocab_arrays *v, ifl_error *err) {
    const pre_name *pre = NULL;
    for (size_t i = 0; i < sizeof PRE_NAMES / sizeof *PRE_NAMES; i++)
        if (v->pre && strcmp(PRE_NAMES[i].name, v->pre) == 0) pre = &PRE_NAMES[i];
    if (!pre)
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "pre-tokenizer '%.80s' (tokenizer.ggml.pre) is not supported: gpt-2, "
                        "llama-bpe, qwen2, smollm are; a tokenizer.json beside the file "
                        "can take its place",
                        v->pre ? v->pre : "(none)");
    if (pre->nfc) stage_add(&tok->normalizers, STAGE_FORM)->form = IFL_NFC;
    if (pre->digits)
        IFL_TRY(stage_add_split(&tok->pre_tokenizers, "\\p{N}", SPLIT_ISOLATED, true, err));
    IFL_TRY(stage_add_split(&tok->pre_tokenizers, pre->pattern, SPLIT_ISOLATED, false, err));
    stage_add(&tok->pre_tokenizers, STAGE_BYTE_LEVEL);
    stage_add(&tok->decoders, STAGE_BYTE_LEVEL);
    tok->ignore_merges = pre->ignore_merges;
    for (int32_t id = 0; id < v->n_tokens; id++) {
        int32_t type = vocab_type(v, id);
        bool special = type == IFL_VOCAB_CONTROL || type == IFL_VOCAB_UNKNOWN;
        bool searched = special || type == IFL_VOCAB_USER_DEFINED;
        unsigned flags = searched                   ? TOKEN_ADDED | (special ? TOKEN_SPECIAL : 0u)
                         : type == IFL_VOCAB_UNUSED ? TOKEN_PLACE
                                                    : TOKEN_MODEL;
        IFL_TRY(token_table_add(&tok->tokens, id, v->tokens[id].bytes, v->tokens[id].n_bytes, flags,
                                err));
        if (!searched) continue;
        added_token added = {.id = id, .special = special};
        IFL_TRY(tokenizer_add_added(tok, &added, err));
    }
    for (int64_t i = 0; i < v->n_merges; i++)
        IFL_TRY(vocab_merge(tok, i, v->merges[i], err));
    return IFL_OK;
}

static ifl_status vocab_hash(const ifl_vocab_arrays *v, ifl_hash *out, ifl_error *err) {
    ifl_hasher *h = ifl_hasher_create();
    if (!h) return ifl_fail(err, IFL_NOMEM, "out of memory: hash");
    const char *names[2] = {v->model, v->pre ? v->pre : ""};
    for (int i = 0; i < 2; i++)
        ifl_hasher_add(h, names[i], strlen(names[i]) + 1);
    const int32_t numbers[] = {v->bos_id,  v->eos_id,  v->pad_id,           v->unk_id,
                               v->add_bos, v->add_eos, v->add_space_prefix, v->scores != NULL};
    ifl_hasher_add(h, numbers, sizeof numbers);
    for (int list = 0; list < 2; list++) {
        const ifl_vocab_text *texts = list ? v->merges : v->tokens;
        uint64_t n = (uint64_t)(list ? v->n_merges : v->n_tokens);
        ifl_hasher_add(h, &n, sizeof n);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t length = texts[i].n_bytes;
            int32_t type = list ? 0 : vocab_type(v, (int64_t)i);
            ifl_hasher_add(h, &length, sizeof length);
            ifl_hasher_add(h, &type, sizeof type);
            ifl_hasher_add(h, texts[i].bytes, texts[i].n_bytes);
        }
    }
    if (v->scores) ifl_hasher_add(h, v->scores, (size_t)v->n_tokens * sizeof *v->scores);
    *out = ifl_hasher_finish(h);
    ifl_hasher_free(h);
    return IFL_OK;
}

ifl_status ifl_tokenizer_from_vocab(ifl_tokenizer **out, const ifl_vocab_arrays *v,
                                    ifl_error *err) {
    *out = NULL;
    ifl_tokenizer *tok = NULL;
    ifl_status st;
    IFL_TRY_GOTO(st, vocab_check(v, err), done);
    IFL_TRY_GOTO(st, tokenizer_create(&tok, err), done);
    if (strcmp(v->model, "llama") == 0) {
        st = build_llama(tok, v, err);
    } else if (strcmp(v->model, "gpt2") == 0) {
        st = build_gpt2(tok, v, err);
    } else {
        st = ifl_fail(err, IFL_UNSUPPORTED,
                      "model '%.80s' (tokenizer.ggml.model) is not supported: llama and "
                      "gpt2 are",
                      v->model);
    }
    if (st != IFL_OK) goto done;
    if (v->add_bos) tok->prefix[tok->n_prefix++] = v->bos_id;
    if (v->add_eos) tok->suffix[tok->n_suffix++] = v->eos_id;
    tok->bos = v->bos_id;
    tok->eos = v->eos_id;
    tok->pad = v->pad_id;
    IFL_TRY_GOTO(st, vocab_hash(v, &tok->hash, err), done);
    IFL_TRY_GOTO(st, tokenizer_finish(tok, err), done);
    *out = tok;
    tok = NULL;
done:
    if (st != IFL_OK) ifl_error_wrap(err, "tokenizer vocabulary");
    ifl_tokenizer_free(tok);
    return st;
}

/* ---- characters ---- */

static ifl_status build_char(ifl_tokenizer *tok, const char *characters, size_t n_bytes,
                             const char *const *specials, int32_t n_specials, bool add_bos,
                             ifl_error *err) {
    int32_t id = 0;
    for (; id < n_specials; id++) {
        added_token added = {.id = id, .special = true};
        IFL_TRY(token_table_add(&tok->tokens, id, specials[id], strlen(specials[id]),
                                TOKEN_MODEL | TOKEN_ADDED | TOKEN_SPECIAL, err));
        IFL_TRY(tokenizer_add_added(tok, &added, err));
    }
    for (size_t i = 0; i < n_bytes; id++) {
        int32_t cp;
        size_t length = ifl_utf8_decode(characters + i, n_bytes - i, &cp, NULL);
        if (cp < 0)
            return ifl_fail(err, IFL_FORMAT, "the list of characters is not UTF-8 at byte %zu", i);
        if (cp == 0)
            return ifl_fail(err, IFL_FORMAT, "the list of characters has a NUL at byte %zu", i);
        IFL_TRY(token_table_add(&tok->tokens, id, characters + i, length, TOKEN_MODEL, err));
        i += length;
    }
    stage_add(&tok->decoders, STAGE_FUSE);
    if (add_bos) {
        int32_t bos = token_table_find(&tok->tokens, "<bos>", 5);
        if (bos < 0)
            return ifl_fail(err, IFL_FORMAT,
                            "a text is to begin with <bos>, which is not among the special tokens");
        tok->prefix[tok->n_prefix++] = bos;
    }
    return tokenizer_finish(tok, err);
}

ifl_status ifl_tokenizer_char(ifl_tokenizer **out, const char *characters, size_t n_bytes,
                              const char *const *specials, int32_t n_specials, bool add_bos,
                              ifl_error *err) {
    *out = NULL;
    ifl_tokenizer *tok = NULL;
    ifl_status st;
    IFL_TRY_GOTO(st, tokenizer_create(&tok, err), done);
    IFL_TRY_GOTO(st, build_char(tok, characters, n_bytes, specials, n_specials, add_bos, err),
                 done);
    /* The written form is the content: a tokenizer read back from it has the same hash. */
    IFL_TRY_GOTO(st, tokenizer_write_json(tok, &tok->json, &tok->n_json, err), done);
    tok->hash = ifl_hash_bytes(tok->json, tok->n_json);
    *out = tok;
    tok = NULL;
done:
    if (st != IFL_OK) ifl_error_wrap(err, "character tokenizer");
    ifl_tokenizer_free(tok);
    return st;
}

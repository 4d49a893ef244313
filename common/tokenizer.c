#include "common/tokenizer_impl.h"

#include "common/memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ifl_token_ids_free(ifl_token_ids *ids) {
    free(ids->ids);
    *ids = (ifl_token_ids){0};
}

void ifl_token_text_free(ifl_token_text *text) {
    free(text->bytes);
    *text = (ifl_token_text){0};
}

ifl_status token_text_append(ifl_token_text *text, const char *bytes, size_t n, ifl_error *err) {
    if (n == 0) return IFL_OK;
    size_t n_max = text->n_max ? text->n_max : IFL_TOKENIZER_GROWN_BYTES_MAX;
    if (n > n_max || text->n > n_max - n)
        return ifl_fail(err, IFL_LIMIT, "a text grows beyond %zu bytes in the tokenizer", n_max);
    IFL_TRY(ifl_grow((void **)&text->bytes, &text->cap, text->n + n, 1, err));
    memcpy(text->bytes + text->n, bytes, n);
    text->n += n;
    return IFL_OK;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool token_is_byte(const char *text, size_t n, unsigned char *byte) {
    if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return false;
    int high = text[3] == '+' ? 0 : hex_digit(text[3]); /* the library reads "+A" as a number too */
    int low = hex_digit(text[4]);
    if (high < 0 || low < 0) return false;
    *byte = (unsigned char)(high << 4 | low);
    return true;
}

void stage_list_free(stage_list *list) {
    for (int32_t i = 0; i < list->n; i++) {
        text_pattern_free(list->stages[i].pattern);
        free(list->stages[i].content);
    }
    list->n = 0;
}

void ifl_tokenizer_free(ifl_tokenizer *tok) {
    if (!tok) return;
    token_table_free(&tok->tokens);
    merge_table_free(&tok->merges);
    stage_list_free(&tok->normalizers);
    stage_list_free(&tok->pre_tokenizers);
    stage_list_free(&tok->decoders);
    for (size_t i = 0; i < tok->n_added; i++)
        free(tok->added[i].match);
    free(tok->added);
    free(tok->added_of);
    free(tok->raw.nodes);
    free(tok->normalized.nodes);
    free(tok->json);
    free(tok);
}

ifl_status tokenizer_add_added(ifl_tokenizer *tok, const added_token *flags, ifl_error *err) {
    IFL_TRY(
        ifl_grow((void **)&tok->added, &tok->added_cap, tok->n_added + 1, sizeof *tok->added, err));
    added_token *added = &tok->added[tok->n_added];
    *added = *flags;
    const char *text = token_table_text(&tok->tokens, flags->id);
    size_t n = tok->tokens.entries[flags->id].n_bytes;
    ifl_token_text match = {.n_max = 64 * n};
    pattern_scratch scratch = {0};
    ifl_status st = flags->normalized ? tokenizer_normalize(tok, &scratch, text, n, &match, err)
                                      : token_text_append(&match, text, n, err);
    pattern_scratch_free(&scratch);
    if (st != IFL_OK) {
        ifl_token_text_free(&match);
        return st;
    }
    added->match = match.bytes;
    added->n_match = match.n;
    tok->n_added++; /* from here on `match` belongs to the tokenizer */
    return added_trie_add(flags->normalized ? &tok->normalized : &tok->raw, added->match,
                          added->n_match, (int32_t)tok->n_added - 1, err);
}

static int32_t first_id_of(const ifl_tokenizer *tok, const char *const *names) {
    for (; *names; names++) {
        int32_t id = ifl_tokenizer_id(tok, *names, strlen(*names));
        if (id >= 0) return id;
    }
    return -1;
}

static void guess_roles(ifl_tokenizer *tok) {
    static const char *const bos[] = {"<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", NULL};
    static const char *const eos[] = {"<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", NULL};
    static const char *const pad[] = {"<pad>", "<|pad|>", "<|finetune_right_pad_id|>",
                                      "<|endoftext|>", NULL};
    if (tok->bos < 0 && tok->n_prefix) tok->bos = tok->prefix[0];
    if (tok->bos < 0) tok->bos = first_id_of(tok, bos);
    if (tok->eos < 0) tok->eos = first_id_of(tok, eos);
    if (tok->pad < 0) tok->pad = first_id_of(tok, pad);
}

ifl_status tokenizer_finish(ifl_tokenizer *tok, ifl_error *err) {
    const token_table *tokens = &tok->tokens;
    if (tokens->n_ids == 0) return ifl_fail(err, IFL_FORMAT, "the vocabulary is empty");
    for (int b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", b);
        int32_t id = token_table_find(tokens, name, 6);
        tok->byte_ids[b] = id >= 0 && tokens->entries[id].flags & TOKEN_MODEL ? id : -1;
    }
    for (int c = 0; c < 128; c++) {
        char one = (char)c;
        int32_t id = token_table_find(tokens, &one, 1);
        tok->ascii_ids[c] = id >= 0 && tokens->entries[id].flags & TOKEN_MODEL ? id : -1;
    }
    if (tok->n_added) {
        tok->added_of = malloc(tokens->n_ids * sizeof *tok->added_of);
        if (!tok->added_of)
            return ifl_fail(err, IFL_NOMEM, "out of memory: %zu tokens", tokens->n_ids);
        memset(tok->added_of, 0xff, tokens->n_ids * sizeof *tok->added_of);
        for (size_t i = 0; i < tok->n_added; i++)
            tok->added_of[tok->added[i].id] = (int32_t)i;
    }
    guess_roles(tok);
    return IFL_OK;
}

ifl_status ifl_tokenizer_from_file(ifl_tokenizer **out, const char *path, ifl_error *err) {
    *out = NULL;
    FILE *f = fopen(path, "rb");
    if (!f)
        return ifl_fail(err, errno == ENOENT ? IFL_NOTFOUND : IFL_IO, "%s: cannot open: %s", path,
                        strerror(errno));
    ifl_token_text text = {0};
    ifl_status st = IFL_OK;
    for (;;) {
        IFL_TRY_GOTO(st, ifl_grow((void **)&text.bytes, &text.cap, text.n + (1 << 16), 1, err),
                     done);
        size_t got = fread(text.bytes + text.n, 1, text.cap - text.n, f);
        text.n += got;
        if (text.n > IFL_TOKENIZER_JSON_BYTES_MAX) {
            st = ifl_fail(err, IFL_LIMIT, "%s: larger than %zu bytes", path,
                          IFL_TOKENIZER_JSON_BYTES_MAX);
            goto done;
        }
        if (got == 0) break;
    }
    if (ferror(f)) {
        st = ifl_fail(err, IFL_IO, "%s: cannot read: %s", path, strerror(errno));
        goto done;
    }
    st = ifl_tokenizer_from_json(out, text.bytes, text.n, err);
    if (st != IFL_OK) ifl_error_wrap(err, "%s", path);
done:
    fclose(f);
    ifl_token_text_free(&text);
    return st;
}

static ifl_status ids_append(ifl_token_ids *out, const int32_t *ids, int32_t n, ifl_error *err) {
    IFL_TRY(ifl_grow((void **)&out->ids, &out->cap, out->n + (size_t)n, sizeof *out->ids, err));
    for (int32_t i = 0; i < n; i++)
        out->ids[out->n++] = ids[i];
    return IFL_OK;
}

static ifl_status encode_pieces(const ifl_tokenizer *tok, const piece_work *work, bpe_work *bpe,
                                ifl_token_ids *out, ifl_error *err) {
    for (size_t i = 0; i < work->list.n; i++) {
        const text_piece *piece = &work->list.pieces[i];
        if (piece->id >= 0) {
            IFL_TRY(ids_append(out, &piece->id, 1, err));
        } else {
            IFL_TRY(bpe_encode(tok, bpe, work->text.bytes + piece->start, piece->n, out, err));
        }
    }
    return IFL_OK;
}

ifl_status ifl_tokenizer_encode(const ifl_tokenizer *tok, const char *text, size_t n_bytes,
                                unsigned flags, ifl_token_ids *out, ifl_error *err) {
    if (n_bytes > IFL_TOKENIZER_TEXT_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "a text of %zu bytes, at most %zu are encoded at once",
                        n_bytes, IFL_TOKENIZER_TEXT_BYTES_MAX);
    size_t n_before = out->n;
    piece_work work = {0};
    bpe_work bpe = {0};
    ifl_status st;
    if (flags & IFL_ENCODE_SPECIAL)
        IFL_TRY_GOTO(st, ids_append(out, tok->prefix, tok->n_prefix, err), done);
    IFL_TRY_GOTO(st,
                 tokenizer_split(tok, &work, text, n_bytes, flags & IFL_ENCODE_PARSE_SPECIAL, err),
                 done);
    IFL_TRY_GOTO(st, encode_pieces(tok, &work, &bpe, out, err), done);
    if (flags & IFL_ENCODE_SPECIAL)
        IFL_TRY_GOTO(st, ids_append(out, tok->suffix, tok->n_suffix, err), done);
done:
    if (st != IFL_OK) out->n = n_before;
    piece_work_free(&work);
    bpe_work_free(&bpe);
    return st;
}

int32_t ifl_tokenizer_vocab_size(const ifl_tokenizer *tok) {
    return (int32_t)tok->tokens.n_ids;
}

static bool has_token(const ifl_tokenizer *tok, int32_t id) {
    return id >= 0 && (size_t)id < tok->tokens.n_ids && tok->tokens.entries[id].flags;
}

const char *ifl_tokenizer_token(const ifl_tokenizer *tok, int32_t id, size_t *n_bytes) {
    if (!has_token(tok, id)) return NULL;
    if (n_bytes) *n_bytes = tok->tokens.entries[id].n_bytes;
    return token_table_text(&tok->tokens, id);
}

int32_t ifl_tokenizer_id(const ifl_tokenizer *tok, const char *token, size_t n_bytes) {
    return token_table_find(&tok->tokens, token, n_bytes);
}

bool ifl_tokenizer_is_special(const ifl_tokenizer *tok, int32_t id) {
    return has_token(tok, id) && tok->tokens.entries[id].flags & TOKEN_SPECIAL;
}

int32_t ifl_tokenizer_bos(const ifl_tokenizer *tok) {
    return tok->bos;
}
int32_t ifl_tokenizer_eos(const ifl_tokenizer *tok) {
    return tok->eos;
}
int32_t ifl_tokenizer_pad(const ifl_tokenizer *tok) {
    return tok->pad;
}
int32_t ifl_tokenizer_unk(const ifl_tokenizer *tok) {
    return tok->unk_id;
}

ifl_status ifl_tokenizer_set_roles(ifl_tokenizer *tok, int32_t bos, int32_t eos, int32_t pad,
                                   ifl_error *err) {
    const int32_t ids[3] = {bos, eos, pad};
    static const char *const names[3] = {"bos", "eos", "pad"};
    int32_t *roles[3] = {&tok->bos, &tok->eos, &tok->pad};
    for (int i = 0; i < 3; i++)
        if (ids[i] != -1 && !has_token(tok, ids[i]))
            return ifl_fail(err, IFL_FORMAT, "%s id %d has no token in a vocabulary of %d",
                            names[i], (int)ids[i], (int)ifl_tokenizer_vocab_size(tok));
    for (int i = 0; i < 3; i++)
        if (ids[i] != -1) *roles[i] = ids[i];
    return IFL_OK;
}

ifl_hash ifl_tokenizer_hash(const ifl_tokenizer *tok) {
    return tok->hash;
}

ifl_status ifl_tokenizer_to_json(const ifl_tokenizer *tok, char **out, size_t *n_bytes,
                                 ifl_error *err) {
    *out = NULL;
    if (!tok->json) return tokenizer_write_json(tok, out, n_bytes, err);
    char *copy = malloc(tok->n_json + 1);
    if (!copy)
        return ifl_fail(err, IFL_NOMEM, "out of memory: %zu bytes of tokenizer.json", tok->n_json);
    memcpy(copy, tok->json, tok->n_json);
    copy[tok->n_json] = 0;
    *out = copy;
    if (n_bytes) *n_bytes = tok->n_json;
    return IFL_OK;
}

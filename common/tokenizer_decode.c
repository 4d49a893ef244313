/* From token ids to text: each token's spelling runs through the decoder's stages, one after
 * another. */
#include "common/tokenizer_impl.h"

#include "common/memory.h"

#include <stdlib.h>
#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd"
#define DECODED_TOKEN_BYTES_MAX ((size_t)1 << 20) /* what a stage may make of one token */

struct ifl_detokenizer {
    const ifl_tokenizer *tok;
    unsigned flags;
    bool whole_runs;  /* byte fallback: judge a run as a whole, as decode does */
    int64_t n_tokens; /* tokens pushed that were not skipped */
    int32_t
        strip_left[IFL_TOKENIZER_STAGES_MAX]; /* characters a Strip behind Fuse may still take */
    ifl_token_text run;                       /* byte fallback: bytes not given yet */
    ifl_token_text pending;                   /* ByteLevel: the beginning of a character */
    ifl_token_text buffers[IFL_TOKENIZER_STAGES_MAX]; /* one for each stage's output */
    ifl_token_text out;
    pattern_scratch scratch;
};

/* Hands bytes to stage i and those behind it. */
static ifl_status detok_stage(ifl_detokenizer *d, int32_t i, const char *bytes, size_t n,
                              ifl_error *err);

/* ---- ByteLevel ---- */

/* Moves what is certain of `pending` to the next stage, ill-formed bytes as U+FFFD. */
static ifl_status byte_level_drain(ifl_detokenizer *d, int32_t i, bool at_end, ifl_error *err) {
    if (d->pending.n == 0) return IFL_OK;
    ifl_token_text *text = &d->buffers[i];
    text->n = 0;
    size_t at = 0;
    while (at < d->pending.n) {
        int32_t cp;
        bool incomplete;
        size_t length = ifl_utf8_decode(d->pending.bytes + at, d->pending.n - at, &cp, &incomplete);
        if (incomplete && !at_end) break;
        IFL_TRY(cp < 0 ? token_text_append(text, REPLACEMENT, 3, err)
                       : token_text_append(text, d->pending.bytes + at, length, err));
        at += length;
    }
    memmove(d->pending.bytes, d->pending.bytes + at, d->pending.n - at);
    d->pending.n -= at;
    return text->n ? detok_stage(d, i + 1, text->bytes, text->n, err) : IFL_OK;
}

static ifl_status byte_level_push(ifl_detokenizer *d, int32_t i, const char *bytes, size_t n,
                                  ifl_error *err) {
    size_t before = d->pending.n;
    IFL_TRY(ifl_grow((void **)&d->pending.bytes, &d->pending.cap, before + n, 1, err));
    for (size_t at = 0; at < n;) {
        int32_t cp;
        at += ifl_utf8_decode(bytes + at, n - at, &cp, NULL);
        int byte = byte_level_byte(cp);
        if (byte < 0) { /* not spelled in the alphabet (an added token): its own bytes count */
            memcpy(d->pending.bytes + before, bytes, n);
            d->pending.n = before + n;
            break;
        }
        d->pending.bytes[d->pending.n++] = (char)byte;
    }
    return byte_level_drain(d, i, false, err);
}

/* ---- ByteFallback ---- */

static ifl_status run_give_replacements(ifl_detokenizer *d, int32_t i, size_t n, ifl_error *err) {
    for (size_t k = 0; k < n; k++)
        IFL_TRY(detok_stage(d, i + 1, REPLACEMENT, 3, err));
    return IFL_OK;
}

static ifl_status run_flush(ifl_detokenizer *d, int32_t i, ifl_error *err) {
    size_t n = d->run.n;
    d->run.n = 0;
    if (n == 0) return IFL_OK;
    if (ifl_utf8_valid(d->run.bytes, n)) return detok_stage(d, i + 1, d->run.bytes, n, err);
    return run_give_replacements(d, i, n, err);
}

/* Streaming: gives each character as soon as its last byte is there. */
static ifl_status run_drain(ifl_detokenizer *d, int32_t i, ifl_error *err) {
    while (d->run.n) {
        int32_t cp;
        bool incomplete;
        size_t length = ifl_utf8_decode(d->run.bytes, d->run.n, &cp, &incomplete);
        if (incomplete) break;
        IFL_TRY(cp < 0 ? run_give_replacements(d, i, length, err)
                       : detok_stage(d, i + 1, d->run.bytes, length, err));
        memmove(d->run.bytes, d->run.bytes + length, d->run.n - length);
        d->run.n -= length;
    }
    return IFL_OK;
}

static ifl_status byte_fallback_push(ifl_detokenizer *d, int32_t i, const char *bytes, size_t n,
                                     ifl_error *err) {
    unsigned char byte;
    if (!token_is_byte(bytes, n, &byte)) {
        IFL_TRY(run_flush(d, i, err));
        return detok_stage(d, i + 1, bytes, n, err);
    }
    char one = (char)byte;
    IFL_TRY(token_text_append(&d->run, &one, 1, err));
    return d->whole_runs ? IFL_OK : run_drain(d, i, err);
}

/* ---- Replace, Metaspace, Strip ---- */

static ifl_status decode_replace(ifl_detokenizer *d, int32_t i, const char *bytes, size_t n,
                                 ifl_error *err) {
    const stage *s = &d->tok->decoders.stages[i];
    ifl_token_text *text = &d->buffers[i];
    text->n = 0;
    for (size_t done = 0;;) {
        bool found;
        size_t start = 0, end = 0;
        IFL_TRY(
            text_pattern_next(s->pattern, &d->scratch, bytes, n, done, &found, &start, &end, err));
        IFL_TRY(token_text_append(text, bytes + done, (found ? start : n) - done, err));
        if (!found) break;
        IFL_TRY(token_text_append(text, s->content, s->n_content, err));
        done = end;
    }
    return detok_stage(d, i + 1, text->bytes, text->n, err);
}

static ifl_status decode_metaspace(ifl_detokenizer *d, int32_t i, const char *bytes, size_t n,
                                   ifl_error *err) {
    const stage *s = &d->tok->decoders.stages[i];
    bool drop =
        d->n_tokens == 1 && s->scheme != PREPEND_NEVER; /* the space put before the first word */
    ifl_token_text *text = &d->buffers[i];
    text->n = 0;
    for (size_t at = 0; at < n;) {
        size_t length = ifl_utf8_length(bytes[at]);
        bool space = length == s->n_content && memcmp(bytes + at, s->content, length) == 0;
        if (!space) IFL_TRY(token_text_append(text, bytes + at, length, err));
        if (space && !drop) IFL_TRY(token_text_append(text, " ", 1, err));
        at += length;
    }
    return detok_stage(d, i + 1, text->bytes, text->n, err);
}

static ifl_status decode_strip(ifl_detokenizer *d, int32_t i, const char *bytes, size_t n,
                               ifl_error *err) {
    const stage *s = &d->tok->decoders.stages[i];
    bool fused = false; /* behind Fuse there is one text: its beginning is taken off once */
    for (int32_t k = 0; k < i; k++)
        fused = fused || d->tok->decoders.stages[k].kind == STAGE_FUSE;
    int32_t whole = s->strip_start, *left = fused ? &d->strip_left[i] : &whole;
    size_t c = s->n_content, end = n;
    while (*left > 0 && n > 0) {
        if (n < c || memcmp(bytes, s->content, c) != 0) {
            *left = 0;
            break;
        }
        bytes += c;
        n -= c;
        end -= c;
        (*left)--;
    }
    for (int32_t k = 0;
         k < s->strip_stop && end >= c && memcmp(bytes + end - c, s->content, c) == 0; k++)
        end -= c;
    return detok_stage(d, i + 1, bytes, end, err);
}

static ifl_status detok_stage(ifl_detokenizer *d, int32_t i, const char *bytes, size_t n,
                              ifl_error *err) {
    if (i == d->tok->decoders.n) return token_text_append(&d->out, bytes, n, err);
    switch (d->tok->decoders.stages[i].kind) {
    case STAGE_BYTE_LEVEL:
        return byte_level_push(d, i, bytes, n, err);
    case STAGE_BYTE_FALLBACK:
        return byte_fallback_push(d, i, bytes, n, err);
    case STAGE_REPLACE:
        return decode_replace(d, i, bytes, n, err);
    case STAGE_METASPACE:
        return decode_metaspace(d, i, bytes, n, err);
    case STAGE_STRIP:
        return decode_strip(d, i, bytes, n, err);
    case STAGE_JOIN:
        if (d->n_tokens > 1) IFL_TRY(detok_stage(d, i + 1, " ", 1, err));
        return detok_stage(d, i + 1, bytes, n, err);
    default:
        return detok_stage(d, i + 1, bytes, n, err); /* Fuse: our output is one text anyway */
    }
}

/* ---- the two ways in ---- */

static ifl_status detok_token(ifl_detokenizer *d, int32_t id, ifl_error *err) {
    size_t n;
    const char *text = ifl_tokenizer_token(d->tok, id, &n);
    if (!text) return IFL_OK;
    if (d->flags & IFL_DECODE_SKIP_SPECIAL && ifl_tokenizer_is_special(d->tok, id)) return IFL_OK;
    if (d->tok->added_of && d->tok->added_of[id] >= 0) {
        /* A normalized added token is spelled as the normalizers left it, so that the decoder
         * undoes them. */
        const added_token *added = &d->tok->added[d->tok->added_of[id]];
        text = added->match;
        n = added->n_match;
    }
    d->n_tokens++;
    return detok_stage(d, 0, text, n, err);
}

static ifl_status detok_end(ifl_detokenizer *d, ifl_error *err) {
    for (int32_t i = 0; i < d->tok->decoders.n; i++) {
        if (d->tok->decoders.stages[i].kind == STAGE_BYTE_FALLBACK) IFL_TRY(run_flush(d, i, err));
        if (d->tok->decoders.stages[i].kind == STAGE_BYTE_LEVEL)
            IFL_TRY(byte_level_drain(d, i, true, err));
    }
    return IFL_OK;
}

static void detok_start(ifl_detokenizer *d) {
    d->n_tokens = 0;
    d->run.n = d->pending.n = d->out.n = 0;
    for (int32_t i = 0; i < d->tok->decoders.n; i++) {
        d->strip_left[i] = d->tok->decoders.stages[i].strip_start;
        d->buffers[i].n_max = DECODED_TOKEN_BYTES_MAX;
    }
}

static void detok_release(ifl_detokenizer *d) {
    ifl_token_text_free(&d->run);
    ifl_token_text_free(&d->pending);
    ifl_token_text_free(&d->out);
    for (size_t i = 0; i < sizeof d->buffers / sizeof *d->buffers; i++)
        ifl_token_text_free(&d->buffers[i]);
    pattern_scratch_free(&d->scratch);
}

ifl_status ifl_tokenizer_decode(const ifl_tokenizer *tok, const int32_t *ids, size_t n,
                                unsigned flags, ifl_token_text *out, ifl_error *err) {
    ifl_detokenizer d = {.tok = tok, .flags = flags, .whole_runs = true};
    size_t n_before = out->n;
    ifl_status st = IFL_OK;
    detok_start(&d);
    d.out = *out; /* the text goes straight behind what the caller has */
    for (size_t i = 0; i < n; i++)
        IFL_TRY_GOTO(st, detok_token(&d, ids[i], err), done);
    st = detok_end(&d, err);
done:
    *out = d.out;
    d.out = (ifl_token_text){0};
    if (st != IFL_OK) out->n = n_before;
    detok_release(&d);
    return st;
}

ifl_status ifl_detokenizer_create(ifl_detokenizer **out, const ifl_tokenizer *tok, unsigned flags,
                                  ifl_error *err) {
    *out = NULL;
    ifl_detokenizer *d = calloc(1, sizeof *d);
    if (!d) return ifl_fail(err, IFL_NOMEM, "out of memory: detokenizer");
    d->tok = tok;
    d->flags = flags;
    size_t n_longest = 16;
    for (size_t id = 0; id < tok->tokens.n_ids; id++)
        if (tok->tokens.entries[id].flags && tok->tokens.entries[id].n_bytes > n_longest)
            n_longest = tok->tokens.entries[id].n_bytes;
    /* Room for every token three times over (U+FFFD for each byte), so that a push allocates
     * nothing. */
    ifl_token_text *buffers[3] = {&d->run, &d->pending, &d->out};
    ifl_status st = IFL_OK;
    for (int32_t i = 0; i < 3 + tok->decoders.n; i++) {
        ifl_token_text *text = i < 3 ? buffers[i] : &d->buffers[i - 3];
        IFL_TRY_GOTO(st, ifl_grow((void **)&text->bytes, &text->cap, 3 * n_longest + 16, 1, err),
                     done);
    }
    detok_start(d);
    *out = d;
    d = NULL;
done:
    ifl_detokenizer_free(d);
    return st;
}

ifl_status ifl_detokenizer_push(ifl_detokenizer *d, int32_t id, const char **bytes, size_t *n,
                                ifl_error *err) {
    d->out.n = 0;
    ifl_status st = detok_token(d, id, err);
    *bytes = d->out.bytes;
    *n = st == IFL_OK ? d->out.n : 0;
    return st;
}

ifl_status ifl_detokenizer_finish(ifl_detokenizer *d, const char **bytes, size_t *n,
                                  ifl_error *err) {
    d->out.n = 0;
    ifl_status st = detok_end(d, err);
    *bytes = d->out.bytes;
    *n = st == IFL_OK ? d->out.n : 0;
    return st;
}

void ifl_detokenizer_reset(ifl_detokenizer *d) {
    detok_start(d);
}

void ifl_detokenizer_free(ifl_detokenizer *d) {
    if (!d) return;
    detok_release(d);
    free(d);
}

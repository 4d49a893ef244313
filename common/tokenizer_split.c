/* From a text to the pieces that the model merges: added tokens, normalizers, pre-tokenizers. */
#include "common/tokenizer_impl.h"

#include "common/memory.h"

#include <stdlib.h>
#include <string.h>

/* ---- the byte-level alphabet (GPT-2): printable Latin-1 stands for itself, the rest from U+0100
 * ---- */

static bool byte_is_plain(unsigned b) {
    return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
}

uint32_t byte_level_char(unsigned char byte) {
    if (byte_is_plain(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;
    return byte == 0xad ? 0x143 : 0x121u + (byte - 0x7fu); /* 0x7f..0xa0 come after the 33 below */
}

int byte_level_byte(int32_t cp) {
    if (cp >= 0 && cp <= 0xff) return byte_is_plain((unsigned)cp) ? cp : -1;
    if (cp >= 0x100 && cp <= 0x120) return cp - 0x100;
    if (cp >= 0x121 && cp <= 0x142) return cp - 0x121 + 0x7f;
    return cp == 0x143 ? 0xad : -1;
}

/* ---- lists of pieces ---- */

static ifl_status piece_add(piece_list *list, size_t start, size_t n, int32_t id, bool first,
                            ifl_error *err) {
    if (n == 0 && id < 0) return IFL_OK; /* empty pieces vanish at every stage */
    IFL_TRY(ifl_grow((void **)&list->pieces, &list->cap, list->n + 1, sizeof *list->pieces, err));
    list->pieces[list->n++] = (text_piece){start, n, id, first};
    return IFL_OK;
}

static void work_swap_list(piece_work *work) {
    piece_list list = work->list;
    work->list = work->list_next;
    work->list_next = list;
}

static void work_swap_text(piece_work *work) {
    ifl_token_text text = work->text;
    work->text = work->text_next;
    work->text_next = text;
}

void piece_work_free(piece_work *work) {
    ifl_token_text_free(&work->text);
    ifl_token_text_free(&work->text_next);
    free(work->list.pieces);
    free(work->list_next.pieces);
    pattern_scratch_free(&work->scratch);
}

/* ---- added tokens ---- */

#define TRIE_NODES_MAX (4 << 20) /* Gemma's 6,000 added tokens need 5,000 */

ifl_status added_trie_add(added_trie *trie, const char *text, size_t n, int32_t added,
                          ifl_error *err) {
    if (!trie->n) memset(trie->root, 0xff, sizeof trie->root);
    int32_t node = -1;
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)text[i];
        int32_t head = node < 0 ? trie->root[byte] : trie->nodes[node].child, at = head;
        while (at >= 0 && trie->nodes[at].byte != byte)
            at = trie->nodes[at].sibling;
        if (at < 0) {
            if (trie->n >= TRIE_NODES_MAX)
                return ifl_fail(err, IFL_LIMIT, "more than %d bytes of added tokens",
                                TRIE_NODES_MAX);
            IFL_TRY(
                ifl_grow((void **)&trie->nodes, &trie->cap, trie->n + 1, sizeof *trie->nodes, err));
            at = (int32_t)trie->n++;
            trie->nodes[at] = (trie_node){-1, node < 0 ? -1 : head, -1, byte};
            if (node < 0) {
                trie->root[byte] = at;
            } else {
                trie->nodes[node].child = at;
            }
        }
        node = at;
    }
    if (node >= 0) trie->nodes[node].added = added;
    return IFL_OK;
}

/* Index of the longest added token at `text`, -1 = none. */
static int32_t added_trie_find(const added_trie *trie, const char *text, size_t n, size_t *length) {
    int32_t best = -1, node = n ? trie->root[(unsigned char)text[0]] : -1;
    for (size_t i = 1; node >= 0; i++) {
        if (trie->nodes[node].added >= 0) {
            best = trie->nodes[node].added;
            *length = i;
        }
        if (i == n) break;
        node = trie->nodes[node].child;
        while (node >= 0 && trie->nodes[node].byte != (unsigned char)text[i])
            node = trie->nodes[node].sibling;
    }
    return best;
}

/* The character that ends just before `end`. */
static int32_t char_before(const char *text, size_t end, size_t *start) {
    size_t i = end - 1;
    while (i > 0 && ((unsigned char)text[i] & 0xc0) == 0x80)
        i--;
    int32_t cp;
    ifl_utf8_decode(text + i, end - i, &cp, NULL);
    *start = i;
    return cp;
}

static int32_t char_at(const char *text, size_t n, size_t *length) {
    int32_t cp;
    *length = ifl_utf8_decode(text, n, &cp, NULL);
    return cp;
}

/* A single-word token must not touch word characters on either side. */
static bool added_stands_alone(const char *text, size_t n, size_t start, size_t end) {
    size_t ignored;
    return !(start > 0 && ifl_unicode_is_word(char_before(text, start, &ignored))) &&
           !(end < n && ifl_unicode_is_word(char_at(text + end, n - end, &ignored)));
}

/* Cuts one piece at the added tokens of a trie: leftmost, longest. */
static ifl_status piece_split_added(const ifl_tokenizer *tok, const added_trie *trie,
                                    bool parse_special, piece_work *work, text_piece piece,
                                    ifl_error *err) {
    const char *text = work->text.bytes + piece.start;
    size_t done = 0; /* what comes before this is in pieces already */
    for (size_t i = 0; i < piece.n;) {
        size_t length = 0;
        int32_t index = added_trie_find(trie, text + i, piece.n - i, &length);
        if (index < 0) {
            i++;
            continue;
        }
        const added_token *added = &tok->added[index];
        size_t start = i, end = i + length;
        i = end;
        if (added->special && !parse_special) continue;
        if (added->single_word && !added_stands_alone(text, piece.n, start, end)) continue;
        if (added->lstrip) {
            size_t before;
            while (start > done && ifl_unicode_is_space(char_before(text, start, &before)))
                start = before;
        }
        if (added->rstrip) {
            size_t space;
            while (end < piece.n &&
                   ifl_unicode_is_space(char_at(text + end, piece.n - end, &space)))
                end += space;
        }
        if (done < start)
            IFL_TRY(piece_add(&work->list_next, piece.start + done, start - done, -1,
                              piece.first && done == 0, err));
        IFL_TRY(
            piece_add(&work->list_next, piece.start + start, end - start, added->id, false, err));
        done = end;
    }
    if (done == piece.n) return IFL_OK;
    return piece_add(&work->list_next, piece.start + done, piece.n - done, -1,
                     piece.first && done == 0, err);
}

static ifl_status split_added(const ifl_tokenizer *tok, const added_trie *trie, bool parse_special,
                              piece_work *work, ifl_error *err) {
    if (!trie->n) return IFL_OK;
    work->list_next.n = 0;
    for (size_t i = 0; i < work->list.n; i++) {
        text_piece piece = work->list.pieces[i];
        if (piece.id >= 0) {
            IFL_TRY(piece_add(&work->list_next, piece.start, piece.n, piece.id, false, err));
        } else {
            IFL_TRY(piece_split_added(tok, trie, parse_special, work, piece, err));
        }
    }
    work_swap_list(work);
    return IFL_OK;
}

/* ---- normalizers ---- */

static ifl_status normalize_replace(const stage *s, pattern_scratch *scratch, const char *text,
                                    size_t n, ifl_token_text *out, ifl_error *err) {
    size_t done = 0, start = 0, end = 0;
    for (;;) {
        bool found;
        IFL_TRY(text_pattern_next(s->pattern, scratch, text, n, done, &found, &start, &end, err));
        if (!found) return token_text_append(out, text + done, n - done, err);
        IFL_TRY(token_text_append(out, text + done, start - done, err));
        IFL_TRY(token_text_append(out, s->content, s->n_content, err));
        done = end;
    }
}

static ifl_status normalize_stage(const stage *s, pattern_scratch *scratch, const char *text,
                                  size_t n, ifl_token_text *out, ifl_error *err) {
    if (s->kind == STAGE_REPLACE) return normalize_replace(s, scratch, text, n, out, err);
    if (s->kind == STAGE_PREPEND) {
        if (n) IFL_TRY(token_text_append(out, s->content, s->n_content, err));
        return token_text_append(out, text, n, err);
    }
    IFL_ASSERT(s->kind == STAGE_FORM);
    char *formed;
    size_t n_formed;
    IFL_TRY(ifl_unicode_normalize(s->form, text, n, &formed, &n_formed, err));
    if (!formed) return token_text_append(out, text, n, err);
    ifl_status st = token_text_append(out, formed, n_formed, err);
    free(formed);
    return st;
}

ifl_status tokenizer_normalize(const ifl_tokenizer *tok, pattern_scratch *scratch, const char *text,
                               size_t n, ifl_token_text *out, ifl_error *err) {
    ifl_token_text a = {.n_max = out->n_max}, b = {.n_max = out->n_max};
    ifl_status st;
    IFL_TRY_GOTO(st, token_text_append(&a, text, n, err), done);
    for (int32_t i = 0; i < tok->normalizers.n; i++) {
        b.n = 0;
        IFL_TRY_GOTO(
            st, normalize_stage(&tok->normalizers.stages[i], scratch, a.bytes, a.n, &b, err), done);
        ifl_token_text swap = a;
        a = b;
        b = swap;
    }
    st = token_text_append(out, a.bytes, a.n, err);
done:
    ifl_token_text_free(&a);
    ifl_token_text_free(&b);
    return st;
}

/* ---- pre-tokenizers ---- */

typedef struct span {
    size_t start, n;
    bool match;
} span;

/* Adds one run of matched or unmatched text under a behavior. `open` holds the piece still growing.
 */
typedef struct splitter {
    piece_list *out;
    text_piece piece; /* what is being cut */
    split_behavior behavior;
    span open;
    bool has_open, previous_match;
} splitter;

static ifl_status splitter_close(splitter *s, ifl_error *err) {
    if (!s->has_open) return IFL_OK;
    s->has_open = false;
    return piece_add(s->out, s->piece.start + s->open.start, s->open.n, -1,
                     s->piece.first && s->open.start == 0, err);
}

static ifl_status splitter_add(splitter *s, span run, ifl_error *err) {
    bool join = false;
    switch (s->behavior) {
    case SPLIT_REMOVED:
        if (run.match) return splitter_close(s, err);
        break;
    case SPLIT_ISOLATED:
        break;
    case SPLIT_CONTIGUOUS:
        join = run.match == s->previous_match;
        break;
    case SPLIT_PREVIOUS:
        join = run.match && !s->previous_match;
        break;
    /* A delimiter waits for the text after it; of several in a row the last one joins. */
    case SPLIT_NEXT:
        join = !run.match && s->previous_match;
        break;
    }
    s->previous_match = run.match;
    if (join && s->has_open) {
        s->open.n += run.n;
        return IFL_OK;
    }
    IFL_TRY(splitter_close(s, err));
    s->open = run;
    s->has_open = true;
    return IFL_OK;
}

static ifl_status piece_split(const text_pattern *pattern, split_behavior behavior, bool invert,
                              piece_work *work, text_piece piece, ifl_error *err) {
    splitter s = {.out = &work->list_next, .piece = piece, .behavior = behavior};
    const char *text = work->text.bytes + piece.start;
    size_t done = 0;
    for (;;) {
        bool found;
        size_t start = 0, end = 0;
        IFL_TRY(text_pattern_next(pattern, &work->scratch, text, piece.n, done, &found, &start,
                                  &end, err));
        if (!found) start = piece.n;
        if (start > done) IFL_TRY(splitter_add(&s, (span){done, start - done, invert}, err));
        if (!found) return splitter_close(&s, err);
        IFL_TRY(splitter_add(&s, (span){start, end - start, !invert}, err));
        done = end;
    }
}

static ifl_status stage_split(const text_pattern *pattern, split_behavior behavior, bool invert,
                              piece_work *work, ifl_error *err) {
    work->list_next.n = 0;
    for (size_t i = 0; i < work->list.n; i++) {
        text_piece piece = work->list.pieces[i];
        if (piece.id >= 0) {
            IFL_TRY(piece_add(&work->list_next, piece.start, piece.n, piece.id, false, err));
        } else {
            IFL_TRY(piece_split(pattern, behavior, invert, work, piece, err));
        }
    }
    work_swap_list(work);
    return IFL_OK;
}

/* Rewrites every text piece into text_next by `rewrite`; the pieces stay. */
typedef ifl_status (*piece_rewrite)(const stage *s, pattern_scratch *scratch, bool first,
                                    const char *text, size_t n, ifl_token_text *out,
                                    ifl_error *err);

static ifl_status stage_rewrite(const stage *s, piece_rewrite rewrite, piece_work *work,
                                ifl_error *err) {
    work->text_next.n = 0;
    work->list_next.n = 0;
    for (size_t i = 0; i < work->list.n; i++) {
        text_piece piece = work->list.pieces[i];
        size_t start = work->text_next.n;
        if (piece.id < 0)
            IFL_TRY(rewrite(s, &work->scratch, piece.first, work->text.bytes + piece.start, piece.n,
                            &work->text_next, err));
        IFL_TRY(piece_add(&work->list_next, start, work->text_next.n - start, piece.id, piece.first,
                          err));
    }
    work_swap_text(work);
    work_swap_list(work);
    return IFL_OK;
}

static ifl_status rewrite_normalize(const stage *s, pattern_scratch *scratch, bool first,
                                    const char *text, size_t n, ifl_token_text *out,
                                    ifl_error *err) {
    (void)first;
    return normalize_stage(s, scratch, text, n, out, err);
}

static ifl_status rewrite_prefix_space(const stage *s, pattern_scratch *scratch, bool first,
                                       const char *text, size_t n, ifl_token_text *out,
                                       ifl_error *err) {
    (void)s, (void)scratch, (void)first;
    if (n && text[0] != ' ') IFL_TRY(token_text_append(out, " ", 1, err));
    return token_text_append(out, text, n, err);
}

static ifl_status rewrite_bytes(const stage *s, pattern_scratch *scratch, bool first,
                                const char *text, size_t n, ifl_token_text *out, ifl_error *err) {
    (void)s, (void)scratch, (void)first;
    IFL_TRY(ifl_grow((void **)&out->bytes, &out->cap, out->n + 2 * n, 1, err));
    for (size_t i = 0; i < n; i++)
        out->n += ifl_utf8_encode(byte_level_char((unsigned char)text[i]), out->bytes + out->n);
    return IFL_OK;
}

static ifl_status rewrite_metaspace(const stage *s, pattern_scratch *scratch, bool first,
                                    const char *text, size_t n, ifl_token_text *out,
                                    ifl_error *err) {
    (void)scratch;
    bool starts =
        n && (text[0] == ' ' || (n >= s->n_content && memcmp(text, s->content, s->n_content) == 0));
    if (!starts && (s->scheme == PREPEND_ALWAYS || (s->scheme == PREPEND_FIRST && first)))
        IFL_TRY(token_text_append(out, s->content, s->n_content, err));
    for (size_t i = 0; i < n;) {
        size_t run = 0;
        while (i + run < n && text[i + run] != ' ')
            run++;
        IFL_TRY(token_text_append(out, text + i, run, err));
        i += run;
        if (i < n) {
            IFL_TRY(token_text_append(out, s->content, s->n_content, err));
            i++;
        }
    }
    return IFL_OK;
}

static ifl_status pre_tokenize(const stage *s, piece_work *work, ifl_error *err) {
    if (s->kind == STAGE_SPLIT) return stage_split(s->pattern, s->behavior, s->invert, work, err);
    if (s->kind == STAGE_BYTE_LEVEL) {
        if (s->add_prefix_space) IFL_TRY(stage_rewrite(s, rewrite_prefix_space, work, err));
        if (s->pattern) IFL_TRY(stage_split(s->pattern, SPLIT_ISOLATED, false, work, err));
        return stage_rewrite(s, rewrite_bytes, work, err);
    }
    IFL_ASSERT(s->kind == STAGE_METASPACE);
    IFL_TRY(stage_rewrite(s, rewrite_metaspace, work, err));
    return s->split ? stage_split(s->pattern, SPLIT_NEXT, false, work, err) : IFL_OK;
}

static ifl_status text_append_lossy(ifl_token_text *out, const char *text, size_t n,
                                    ifl_error *err) {
    size_t good = 0;
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t length = ifl_utf8_decode(text + i, n - i, &cp, NULL);
        if (cp < 0) {
            IFL_TRY(token_text_append(out, text + good, i - good, err));
            IFL_TRY(token_text_append(out, "\xef\xbf\xbd", 3, err));
            good = i + length;
        }
        i += length;
    }
    return token_text_append(out, text + good, n - good, err);
}

ifl_status tokenizer_split(const ifl_tokenizer *tok, piece_work *work, const char *text, size_t n,
                           bool parse_special, ifl_error *err) {
    work->text.n = 0;
    work->list.n = 0;
    work->text.n_max = work->text_next.n_max = token_grown_max(n);
    IFL_TRY(text_append_lossy(&work->text, text, n, err));
    IFL_TRY(piece_add(&work->list, 0, work->text.n, -1, true, err));
    IFL_TRY(split_added(tok, &tok->raw, parse_special, work, err));
    for (int32_t i = 0; i < tok->normalizers.n; i++)
        IFL_TRY(stage_rewrite(&tok->normalizers.stages[i], rewrite_normalize, work, err));
    IFL_TRY(split_added(tok, &tok->normalized, parse_special, work, err));
    for (int32_t i = 0; i < tok->pre_tokenizers.n; i++)
        IFL_TRY(pre_tokenize(&tok->pre_tokenizers.stages[i], work, err));
    return IFL_OK;
}

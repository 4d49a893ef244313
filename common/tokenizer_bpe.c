/* Byte-pair merging of one piece: a linked list of symbols and a heap of candidate merges, so that
 * a piece of n characters costs n log n (Gemma's pre-tokenizer leaves whole texts in one piece). */
#include "common/tokenizer_impl.h"

#include "common/memory.h"

#include <stdlib.h>
#include <string.h>

/* Lower rank first; of equal ranks the leftmost. */
static bool candidate_before(const bpe_candidate *a, const bpe_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

static ifl_status heap_push(bpe_work *work, bpe_candidate c, ifl_error *err) {
    IFL_TRY(
        ifl_grow((void **)&work->heap, &work->heap_cap, work->n_heap + 1, sizeof *work->heap, err));
    size_t i = work->n_heap++;
    while (i > 0) {
        size_t parent = (i - 1) / 2;
        if (!candidate_before(&c, &work->heap[parent])) break;
        work->heap[i] = work->heap[parent];
        i = parent;
    }
    work->heap[i] = c;
    return IFL_OK;
}

static bpe_candidate heap_pop(bpe_work *work) {
    bpe_candidate top = work->heap[0], last = work->heap[--work->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= work->n_heap) break;
        if (child + 1 < work->n_heap &&
            candidate_before(&work->heap[child + 1], &work->heap[child]))
            child++;
        if (!candidate_before(&work->heap[child], &last)) break;
        work->heap[i] = work->heap[child];
        i = child;
    }
    work->heap[i] = last;
    return top;
}

static ifl_status symbol_add(bpe_work *work, int32_t id, ifl_error *err) {
    IFL_TRY(ifl_grow((void **)&work->symbols, &work->cap, work->n + 1, sizeof *work->symbols, err));
    work->symbols[work->n] = (bpe_symbol){id, (int32_t)work->n - 1, -1, false};
    if (work->n) work->symbols[work->n - 1].next = (int32_t)work->n;
    work->n++;
    return IFL_OK;
}

static ifl_status candidate_add(const ifl_tokenizer *tok, bpe_work *work, int32_t pos,
                                ifl_error *err) {
    const bpe_symbol *left = &work->symbols[pos];
    const merge_entry *merge =
        merge_table_find(&tok->merges, left->id, work->symbols[left->next].id);
    return merge ? heap_push(work, (bpe_candidate){merge->rank, pos, merge->id}, err) : IFL_OK;
}

static int32_t model_id(const ifl_tokenizer *tok, const char *text, size_t n) {
    int32_t id = token_table_find(&tok->tokens, text, n);
    return id >= 0 && tok->tokens.entries[id].flags & TOKEN_MODEL ? id : -1;
}

/* Appends the byte tokens of one character; false when one of them is missing. */
static ifl_status symbols_add_bytes(const ifl_tokenizer *tok, bpe_work *work, const char *text,
                                    size_t n, bool *done, ifl_error *err) {
    *done = false;
    for (size_t i = 0; i < n; i++)
        if (tok->byte_ids[(unsigned char)text[i]] < 0) return IFL_OK;
    for (size_t i = 0; i < n; i++)
        IFL_TRY(symbol_add(work, tok->byte_ids[(unsigned char)text[i]], err));
    *done = true;
    return IFL_OK;
}

static ifl_status symbols_init(const ifl_tokenizer *tok, bpe_work *work, const char *text, size_t n,
                               ifl_error *err) {
    bool unk_waiting = false; /* an unknown token that further unknown characters may join */
    work->n = 0;
    for (size_t i = 0; i < n;) {
        size_t length = ifl_utf8_length(text[i]);
        int32_t id = (unsigned char)text[i] < 0x80 ? tok->ascii_ids[(unsigned char)text[i]]
                                                   : model_id(tok, text + i, length);
        if (id >= 0) {
            if (unk_waiting) IFL_TRY(symbol_add(work, tok->unk_id, err));
            unk_waiting = false;
            IFL_TRY(symbol_add(work, id, err));
        } else {
            bool done = false;
            if (tok->byte_fallback)
                IFL_TRY(symbols_add_bytes(tok, work, text + i, length, &done, err));
            if (!done && tok->unk_id < 0) {
                int32_t cp;
                ifl_utf8_decode(text + i, length, &cp, NULL);
                return ifl_fail(
                    err, IFL_NOTFOUND,
                    "character U+%04X has no token in this vocabulary and there is no unknown "
                    "token: leave it out of the text or add it to the vocabulary",
                    (unsigned)cp);
            }
            if (!done) {
                if (unk_waiting && !tok->fuse_unk) IFL_TRY(symbol_add(work, tok->unk_id, err));
                unk_waiting = true;
            }
        }
        i += length;
    }
    return unk_waiting ? symbol_add(work, tok->unk_id, err) : IFL_OK;
}

ifl_status bpe_encode(const ifl_tokenizer *tok, bpe_work *work, const char *text, size_t n,
                      ifl_token_ids *out, ifl_error *err) {
    if (tok->ignore_merges) {
        int32_t id = model_id(tok, text, n);
        if (id >= 0) {
            IFL_TRY(ifl_grow((void **)&out->ids, &out->cap, out->n + 1, sizeof *out->ids, err));
            out->ids[out->n++] = id;
            return IFL_OK;
        }
    }
    IFL_TRY(symbols_init(tok, work, text, n, err));
    work->n_heap = 0;
    for (size_t i = 0; i + 1 < work->n; i++)
        IFL_TRY(candidate_add(tok, work, (int32_t)i, err));
    bpe_symbol *symbols = work->symbols;
    while (work->n_heap) {
        bpe_candidate top = heap_pop(work);
        bpe_symbol *left = &symbols[top.pos];
        if (left->gone || left->next < 0) continue;
        bpe_symbol *right = &symbols[left->next];
        const merge_entry *merge = merge_table_find(&tok->merges, left->id, right->id);
        if (!merge || merge->id != top.id) continue; /* the pair changed since it was queued */
        left->id = top.id;
        left->next = right->next;
        right->gone = true;
        if (left->next >= 0) symbols[left->next].prev = top.pos;
        if (left->prev >= 0) IFL_TRY(candidate_add(tok, work, left->prev, err));
        if (left->next >= 0) IFL_TRY(candidate_add(tok, work, top.pos, err));
    }
    IFL_TRY(ifl_grow((void **)&out->ids, &out->cap, out->n + work->n, sizeof *out->ids, err));
    for (int32_t i = work->n ? 0 : -1; i >= 0; i = symbols[i].next)
        out->ids[out->n++] = symbols[i].id;
    return IFL_OK;
}

void bpe_work_free(bpe_work *work) {
    free(work->symbols);
    free(work->heap);
}

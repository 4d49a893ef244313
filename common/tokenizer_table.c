/* Hash tables of a vocabulary: open addressing, linear probing, at most two thirds full. */
#include "common/tokenizer_impl.h"

#include "common/memory.h"
#include "common/model_config.h"

#include <stdlib.h>
#include <string.h>

/* The slot that holds the text or is free for it. */
static size_t token_slot_of(const token_table *table, uint64_t hash, const char *bytes, size_t n) {
    size_t i = (size_t)hash & (table->n_slots - 1);
    uint32_t tag = (uint32_t)(hash >> 32);
    for (; table->slots[i].id >= 0; i = (i + 1) & (table->n_slots - 1)) {
        if (table->slots[i].tag != tag) continue;
        int32_t id = table->slots[i].id;
        if (table->entries[id].n_bytes == n && memcmp(token_table_text(table, id), bytes, n) == 0)
            break;
    }
    return i;
}

static ifl_status token_table_rehash(token_table *table, size_t n_slots, ifl_error *err) {
    struct token_slot *slots = malloc(n_slots * sizeof *slots);
    if (!slots) return ifl_fail(err, IFL_NOMEM, "out of memory: vocabulary of %zu slots", n_slots);
    memset(slots, 0xff, n_slots * sizeof *slots);
    free(table->slots);
    table->slots = slots;
    table->n_slots = n_slots;
    for (size_t id = 0; id < table->n_ids; id++) {
        if (!table->entries[id].flags) continue;
        const char *text = token_table_text(table, (int32_t)id);
        uint64_t hash = ifl_hash64(text, table->entries[id].n_bytes);
        size_t i = (size_t)hash & (n_slots - 1);
        while (slots[i].id >= 0)
            i = (i + 1) & (n_slots - 1);
        slots[i] = (struct token_slot){(int32_t)id, (uint32_t)(hash >> 32)};
    }
    return IFL_OK;
}

static int token_shown(size_t n) {
    return n > 60 ? 60 : (int)n;
}

ifl_status token_table_add(token_table *table, int64_t id, const char *bytes, size_t n,
                           unsigned flags, ifl_error *err) {
    if (id < 0 || id >= IFL_VOCAB_MAX)
        return ifl_fail(err, IFL_LIMIT, "token '%.*s' has id %lld, ids are 0 to %d", token_shown(n),
                        bytes, (long long)id, IFL_VOCAB_MAX - 1);
    if (n == 0 || n > IFL_TOKEN_BYTES_MAX)
        return ifl_fail(err, n ? IFL_LIMIT : IFL_FORMAT, "token %lld has %zu bytes, wanted 1 to %d",
                        (long long)id, n, IFL_TOKEN_BYTES_MAX);
    if ((size_t)id < table->n_ids && table->entries[id].flags) {
        token_entry *entry = &table->entries[id];
        if (entry->n_bytes == n && memcmp(token_table_text(table, (int32_t)id), bytes, n) == 0 &&
            !(entry->flags & flags & (TOKEN_MODEL | TOKEN_ADDED))) {
            entry->flags |= (uint16_t)flags;
            return IFL_OK;
        }
        return ifl_fail(err, IFL_FORMAT, "id %lld is given to two tokens, '%.*s' and '%.*s'",
                        (long long)id, token_shown(entry->n_bytes),
                        token_table_text(table, (int32_t)id), token_shown(n), bytes);
    }
    if (table->n_used * 3 >= table->n_slots * 2)
        IFL_TRY(token_table_rehash(table, table->n_slots ? table->n_slots * 4 : 4096, err));
    uint64_t hash = ifl_hash64(bytes, n);
    size_t slot = token_slot_of(table, hash, bytes, n);
    if (table->slots[slot].id >= 0)
        return ifl_fail(err, IFL_FORMAT, "token '%.*s' has two ids, %d and %lld", token_shown(n),
                        bytes, (int)table->slots[slot].id, (long long)id);
    if (table->arena_n + n + 1 > UINT32_MAX)
        return ifl_fail(err, IFL_LIMIT, "the vocabulary's text is longer than 4 GiB");
    IFL_TRY(ifl_grow((void **)&table->entries, &table->entries_cap, (size_t)id + 1,
                     sizeof *table->entries, err));
    IFL_TRY(ifl_grow((void **)&table->arena, &table->arena_cap, table->arena_n + n + 1, 1, err));
    if ((size_t)id >= table->n_ids) {
        memset(table->entries + table->n_ids, 0,
               ((size_t)id + 1 - table->n_ids) * sizeof *table->entries);
        table->n_ids = (size_t)id + 1;
    }
    memcpy(table->arena + table->arena_n, bytes, n);
    table->arena[table->arena_n + n] = 0; /* so that a token can be printed */
    table->entries[id] = (token_entry){(uint32_t)table->arena_n, (uint16_t)n, (uint16_t)flags};
    table->arena_n += n + 1;
    table->slots[slot] = (struct token_slot){(int32_t)id, (uint32_t)(hash >> 32)};
    table->n_used++;
    return IFL_OK;
}

int32_t token_table_find(const token_table *table, const char *bytes, size_t n) {
    if (!table->n_slots || n > IFL_TOKEN_BYTES_MAX) return -1;
    return table->slots[token_slot_of(table, ifl_hash64(bytes, n), bytes, n)].id;
}

void token_table_free(token_table *table) {
    free(table->arena);
    free(table->entries);
    free(table->slots);
}

static size_t merge_slot(const merge_table *table, uint64_t pair) {
    uint64_t h =
        pair * 0x9e3779b97f4a7c15u; /* Fibonacci hashing; the high bits are the good ones */
    size_t i = (size_t)(h >> 20) & (table->n_slots - 1);
    while (table->slots[i].pair != UINT64_MAX && table->slots[i].pair != pair)
        i = (i + 1) & (table->n_slots - 1);
    return i;
}

static ifl_status merge_table_rehash(merge_table *table, size_t n_slots, ifl_error *err) {
    merge_entry *old = table->slots;
    size_t n_old = table->n_slots;
    merge_entry *slots = malloc(n_slots * sizeof *slots);
    if (!slots) return ifl_fail(err, IFL_NOMEM, "out of memory: merges of %zu slots", n_slots);
    for (size_t i = 0; i < n_slots; i++)
        slots[i].pair = UINT64_MAX;
    table->slots = slots;
    table->n_slots = n_slots;
    for (size_t i = 0; i < n_old; i++)
        if (old[i].pair != UINT64_MAX) slots[merge_slot(table, old[i].pair)] = old[i];
    free(old);
    return IFL_OK;
}

ifl_status merge_table_add(merge_table *table, int32_t left, int32_t right, int32_t id,
                           ifl_error *err) {
    if (table->n_ranks == IFL_MERGES_MAX)
        return ifl_fail(err, IFL_LIMIT, "more than %d merges", IFL_MERGES_MAX);
    if (table->n_used * 2 >= table->n_slots)
        IFL_TRY(merge_table_rehash(table, table->n_slots ? table->n_slots * 4 : 1024, err));
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i = merge_slot(table, pair);
    table->n_used += table->slots[i].pair == UINT64_MAX;
    table->slots[i] = (merge_entry){pair, table->n_ranks++, id};
    return IFL_OK;
}

const merge_entry *merge_table_find(const merge_table *table, int32_t left, int32_t right) {
    if (!table->n_slots) return NULL;
    const merge_entry *entry =
        &table->slots[merge_slot(table, (uint64_t)(uint32_t)left << 32 | (uint32_t)right)];
    return entry->pair == UINT64_MAX ? NULL : entry;
}

void merge_table_free(merge_table *table) {
    free(table->slots);
}

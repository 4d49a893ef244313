/* Hash tables of a vocabulary: open addressing, linear probing, at most two thirds full. */
#include "common/tokenizer_impl.h"

#include "common/memory.h"
#include "common/model_config.h"

#include <stdlib.h>
#include <string.h>

static size_t token_slot(const token_table *table, const char *bytes, size_t n) {
    size_t i = (size_t)ifl_hash64(bytes, n) & (table->n_slots - 1);
    while (table->slots[i] >= 0) {
        int32_t id = table->slots[i];
        if (table->entries[id].n_bytes == n && memcmp(token_table_text(table, id), bytes, n) == 0)
            break;
        i = (i + 1) & (table->n_slots - 1);
    }
    return i;
}

static ifl_status token_table_rehash(token_table *table, size_t n_slots, ifl_error *err) {
    int32_t *slots = malloc(n_slots * sizeof *slots);
    if (!slots) return ifl_fail(err, IFL_NOMEM, "out of memory: vocabulary of %zu slots", n_slots);
    memset(slots, 0xff, n_slots * sizeof *slots);
    free(table->slots);
    table->slots = slots;
    table->n_slots = n_slots;
    for (size_t id = 0; id < table->n_ids; id++) {
        if (!table->entries[id].flags) continue;
        size_t i =
            token_slot(table, token_table_text(table, (int32_t)id), table->entries[id].n_bytes);
        slots[i] = (int32_t)id;
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
        IFL_TRY(token_table_rehash(table, table->n_slots ? table->n_slots * 2 : 1024, err));
    size_t slot = token_slot(table, bytes, n);
    if (table->slots[slot] >= 0)
        return ifl_fail(err, IFL_FORMAT, "token '%.*s' has two ids, %d and %lld", token_shown(n),
                        bytes, (int)table->slots[slot], (long long)id);
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
    table->slots[slot] = (int32_t)id;
    table->n_used++;
    return IFL_OK;
}

int32_t token_table_find(const token_table *table, const char *bytes, size_t n) {
    if (!table->n_slots || n > IFL_TOKEN_BYTES_MAX) return -1;
    return table->slots[token_slot(table, bytes, n)];
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

ifl_status merge_table_init(merge_table *table, size_t n, ifl_error *err) {
    if (n > IFL_MERGES_MAX)
        return ifl_fail(err, IFL_LIMIT, "%zu merges, at most %d are read", n, IFL_MERGES_MAX);
    size_t n_slots = 16;
    while (n_slots < n * 2)
        n_slots *= 2;
    table->slots = malloc(n_slots * sizeof *table->slots);
    if (!table->slots) return ifl_fail(err, IFL_NOMEM, "out of memory: %zu merges", n);
    for (size_t i = 0; i < n_slots; i++)
        table->slots[i].pair = UINT64_MAX;
    table->n_slots = n_slots;
    return IFL_OK;
}

void merge_table_add(merge_table *table, int32_t left, int32_t right, int32_t id) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i = merge_slot(table, pair);
    if (table->slots[i].pair == UINT64_MAX) {
        table->n_used++;
        IFL_ASSERT(table->n_used < table->n_slots);
    }
    table->slots[i] = (merge_entry){pair, table->n_ranks++, id};
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

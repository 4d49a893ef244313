/* The inside of a tokenizer, shared by the common/tokenizer*.c files only. */
#ifndef IFL_COMMON_TOKENIZER_IMPL_H
#define IFL_COMMON_TOKENIZER_IMPL_H

#include "common/tokenizer.h"
#include "common/unicode.h"

#define IFL_METASPACE "\xe2\x96\x81" /* U+2581, a space in SentencePiece's spelling */

/* ---- tokenizer_table.c: token texts by id, ids by text, merges by pair ---- */

/* MODEL: the merges may give it. ADDED: looked for in the text. PLACE: has an id and a spelling
 * only. */
enum { TOKEN_MODEL = 1, TOKEN_ADDED = 2, TOKEN_SPECIAL = 4, TOKEN_PLACE = 8 };

typedef struct token_entry {
    uint32_t offset; /* into the arena */
    uint16_t n_bytes;
    uint16_t flags; /* 0: no token has this id */
} token_entry;

typedef struct token_table {
    char *arena;
    size_t arena_n, arena_cap;
    token_entry *entries; /* [n_ids] by id */
    size_t n_ids, entries_cap;
    struct token_slot {
        int32_t id;   /* -1 = free */
        uint32_t tag; /* of the text's hash: spares a look at the text */
    } * slots;
    size_t n_slots, n_used;
} token_table;

/* Adds a token, or more flags to the token that has this id and this text already. */
ifl_status token_table_add(token_table *table, int64_t id, const char *bytes, size_t n,
                           unsigned flags, ifl_error *err);
int32_t token_table_find(const token_table *table, const char *bytes, size_t n); /* -1 = absent */
static inline const char *token_table_text(const token_table *table, int32_t id) {
    return table->arena + table->entries[id].offset;
}
void token_table_free(token_table *table);

typedef struct merge_entry {
    uint64_t pair; /* left << 32 | right; UINT64_MAX = free slot */
    int32_t rank, id;
} merge_entry;

typedef struct merge_table {
    merge_entry *slots;
    size_t n_slots;
    size_t n_used; /* distinct pairs */
    int32_t n_ranks;
} merge_table;

/* Takes merges in rank order; a repeated pair gets its last rank. */
ifl_status merge_table_add(merge_table *table, int32_t left, int32_t right, int32_t id,
                           ifl_error *err);
const merge_entry *merge_table_find(const merge_table *table, int32_t left, int32_t right);
void merge_table_free(merge_table *table);

/* ---- tokenizer_regex.c: patterns in the syntax of tokenizer.json (Oniguruma, Ruby flavour) ----
 */

extern const char PATTERN_GPT2[], PATTERN_LLAMA3[], PATTERN_QWEN2[];

typedef struct text_pattern text_pattern;
typedef struct pattern_scratch {
    void *match_data, *match_context, *jit_stack;
    int64_t steps_left; /* of costly matching, for all texts that it is used for */
} pattern_scratch;

/* `literal`: the pattern is the text itself. `where` names the component in errors. */
ifl_status text_pattern_compile(text_pattern **out, const char *source, size_t n, bool literal,
                                const char *where, ifl_error *err);
/* The first match at or after `start`; *found false when there is none. Empty matches are passed
 * over. */
ifl_status text_pattern_next(const text_pattern *pattern, pattern_scratch *scratch,
                             const char *text, size_t n, size_t start, bool *found,
                             size_t *match_start, size_t *match_end, ifl_error *err);
const char *text_pattern_source(const text_pattern *pattern, size_t *n, bool *literal);
void text_pattern_free(text_pattern *pattern);
void pattern_scratch_free(pattern_scratch *scratch);

/* ---- the stages of a tokenizer ---- */

typedef enum {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_PREVIOUS,
    SPLIT_NEXT,
    SPLIT_CONTIGUOUS
} split_behavior;
typedef enum { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } prepend_scheme;

typedef enum {
    STAGE_FORM,       /* normalizer NFC, NFD, NFKC, NFKD */
    STAGE_REPLACE,    /* normalizer or decoder Replace */
    STAGE_PREPEND,    /* normalizer Prepend */
    STAGE_SPLIT,      /* pre-tokenizer Split, Digits */
    STAGE_BYTE_LEVEL, /* pre-tokenizer or decoder ByteLevel */
    STAGE_METASPACE,  /* pre-tokenizer or decoder Metaspace */
    STAGE_BYTE_FALLBACK,
    STAGE_FUSE,
    STAGE_STRIP,
    STAGE_JOIN, /* no decoder: tokens are joined by spaces */
} stage_kind;

typedef struct stage {
    stage_kind kind;
    ifl_unicode_form form;
    text_pattern *pattern; /* owned */
    char *content;         /* owned: Replace, Prepend, Metaspace's and Strip's character */
    size_t n_content;
    split_behavior behavior;
    bool invert;
    bool add_prefix_space; /* ByteLevel */
    prepend_scheme scheme; /* Metaspace */
    bool split;            /* Metaspace */
    bool digits;           /* the Split stands for Digits */
    int32_t strip_start, strip_stop;
} stage;

typedef struct stage_list {
    stage stages[IFL_TOKENIZER_STAGES_MAX];
    int32_t n;
} stage_list;

void stage_list_free(stage_list *list);

typedef struct added_token {
    int32_t id;
    bool lstrip, rstrip, single_word, normalized, special;
    char *match; /* owned: what is looked for in the text, normalized when the flag says so */
    size_t n_match;
} added_token;

typedef struct trie_node {
    int32_t child, sibling; /* -1 = none */
    int32_t added;          /* index of the added token ending here, -1 = none */
    unsigned char byte;
} trie_node;

/* Finds the longest added token at a position. */
typedef struct added_trie {
    trie_node *nodes;
    size_t n, cap;
    int32_t root[256];
} added_trie;

struct ifl_tokenizer {
    token_table tokens;
    merge_table merges;
    int32_t ascii_ids[128]; /* of the model's one-character tokens, -1 */
    int32_t byte_ids[256];  /* ids of <0x00>.., -1 */
    int32_t unk_id;         /* the model's unknown token, -1 */
    bool fuse_unk, byte_fallback, ignore_merges;

    stage_list normalizers, pre_tokenizers, decoders;
    added_token *added;
    size_t n_added, added_cap;
    int32_t *added_of; /* [n_ids] index into added, -1; NULL when n_added is 0 */
    added_trie raw, normalized;

    int32_t prefix[IFL_TEMPLATE_TOKENS_MAX], suffix[IFL_TEMPLATE_TOKENS_MAX];
    int32_t n_prefix, n_suffix;
    int32_t bos, eos, pad;

    char *json; /* owned original text, or NULL */
    size_t n_json;
    ifl_hash hash;
};

/* ---- tokenizer_scan.c: the big parts of a tokenizer.json ---- */

typedef struct text_span {
    size_t start, n; /* n = 0: absent */
} text_span;

/* Finds model.vocab (an object) and model.merges (an array) in a file. False when it isn't even an
 * object with a model: parse it whole, for the error. */
bool tokenizer_scan(const char *text, size_t n, text_span *vocab, text_span *merges);
ifl_status tokenizer_read_vocab(ifl_tokenizer *tok, const char *text, text_span span,
                                ifl_error *err);
ifl_status tokenizer_read_merges(ifl_tokenizer *tok, const char *text, text_span span,
                                 ifl_error *err);

/* ---- tokenizer.c ---- */

/* Appends an added token (its text must be in the table already). */
ifl_status tokenizer_add_added(ifl_tokenizer *tok, const added_token *flags, ifl_error *err);
/* The last step of every constructor: tries, byte ids, guessed roles. */
ifl_status tokenizer_finish(ifl_tokenizer *tok, ifl_error *err);
/* What n bytes may become in normalizers and pre-tokenizers. NFKD gives eleven for one at most,
 * ByteLevel two, but a file can ask for a thousand, stage after stage. */
static inline size_t token_grown_max(size_t n) {
    size_t grown = 64 * n + 4096; /* n <= IFL_TOKENIZER_TEXT_BYTES_MAX */
    return grown < IFL_TOKENIZER_GROWN_BYTES_MAX ? grown : IFL_TOKENIZER_GROWN_BYTES_MAX;
}
ifl_status token_text_append(ifl_token_text *text, const char *bytes, size_t n, ifl_error *err);
bool token_is_byte(const char *text, size_t n, unsigned char *byte); /* "<0x41>" */

/* ---- tokenizer_split.c: from a text to the pieces the model sees ---- */

typedef struct text_piece {
    size_t start, n; /* in the buffer */
    int32_t id;      /* an added token found in the text, or -1 */
    bool first;      /* begins where the whole text began */
} text_piece;

typedef struct piece_list {
    text_piece *pieces;
    size_t n, cap;
} piece_list;

typedef struct piece_work {
    ifl_token_text text, text_next;
    piece_list list, list_next;
    pattern_scratch scratch;
} piece_work;

/* Cuts `text` (any bytes) into work->list over work->text. */
ifl_status tokenizer_split(const ifl_tokenizer *tok, piece_work *work, const char *text, size_t n,
                           bool parse_special, ifl_error *err);
/* Runs the normalizers over one text; out->n_max holds in between too. */
ifl_status tokenizer_normalize(const ifl_tokenizer *tok, pattern_scratch *scratch, const char *text,
                               size_t n, ifl_token_text *out, ifl_error *err);
ifl_status added_trie_add(added_trie *trie, const char *text, size_t n, int32_t added,
                          ifl_error *err);
void piece_work_free(piece_work *work);

/* The printable character that stands for a byte in byte-level vocabularies, and back (-1 = none).
 */
uint32_t byte_level_char(unsigned char byte);
int byte_level_byte(int32_t cp);

/* ---- tokenizer_bpe.c ---- */

typedef struct bpe_symbol {
    int32_t id, prev, next;
    bool gone;
} bpe_symbol;

typedef struct bpe_candidate {
    int32_t rank, pos, id;
} bpe_candidate;

typedef struct bpe_work {
    bpe_symbol *symbols;
    size_t n, cap;
    bpe_candidate *heap;
    size_t n_heap, heap_cap;
} bpe_work;

ifl_status bpe_encode(const ifl_tokenizer *tok, bpe_work *work, const char *text, size_t n,
                      ifl_token_ids *out, ifl_error *err);
void bpe_work_free(bpe_work *work);

/* ---- tokenizer_write.c ---- */

/* Writes what the tokenizer is now, not a text it came from. Owned, NUL-terminated. */
ifl_status tokenizer_write_json(const ifl_tokenizer *tok, char **out, size_t *n_bytes,
                                ifl_error *err);

#endif

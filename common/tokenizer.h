/* Tokenizers: text <-> token ids, as the `tokenizers` library of Hugging Face gives them.
 *
 * Model type BPE in its three forms: byte-level (GPT-2 alphabet; Llama 3, Qwen),
 * SentencePiece-style with byte fallback (Llama 2, Gemma), and single characters without merges
 * (the default job). Sources: Sennrich et al. 2016 (BPE); Radford et al. 2019 (byte-level); Kudo
 * and Richardson 2018 (SentencePiece); the component names are those of the tokenizer.json format.
 *
 * An ifl_tokenizer is immutable once made (ifl_tokenizer_set_roles excepted): any number of threads
 * may encode and decode with one object. */
#ifndef IFL_COMMON_TOKENIZER_H
#define IFL_COMMON_TOKENIZER_H

#include "common/hash.h"
#include "common/status.h"

#define IFL_TOKENIZER_JSON_BYTES_MAX ((size_t)64 << 20)
#define IFL_TOKENIZER_TEXT_BYTES_MAX ((size_t)16 << 20)   /* one call of encode */
#define IFL_TOKENIZER_GROWN_BYTES_MAX ((size_t)256 << 20) /* a text normalized or decoded */
#define IFL_TOKEN_BYTES_MAX 1024                          /* one token's text */
#define IFL_MERGES_MAX (4 << 20)
#define IFL_PATTERN_BYTES_MAX 8192
#define IFL_TOKENIZER_STAGES_MAX 16 /* normalizers, pre-tokenizers or decoders, each */
#define IFL_TEMPLATE_TOKENS_MAX 16  /* special tokens before, or after, a text */

typedef struct ifl_tokenizer ifl_tokenizer;

/* Growable arrays of the caller; zero-initialise, release with the functions below, reuse by n = 0.
 */
typedef struct ifl_token_ids {
    int32_t *ids;
    size_t n, cap;
} ifl_token_ids;

typedef struct ifl_token_text {
    char *bytes; /* not NUL-terminated */
    size_t n, cap;
    size_t n_max; /* the tokenizer's own: 0 = IFL_TOKENIZER_GROWN_BYTES_MAX */
} ifl_token_text;

void ifl_token_ids_free(ifl_token_ids *ids);
void ifl_token_text_free(ifl_token_text *text);

/* Parses a Hugging Face tokenizer.json. `text` is borrowed (a copy is kept). A component we don't
 * have is IFL_UNSUPPORTED and named; malformed or contradictory content is IFL_FORMAT; sizes beyond
 * the limits above or IFL_VOCAB_MAX are IFL_LIMIT. `truncation` and `padding` of the file are not
 * applied. */
ifl_status ifl_tokenizer_from_json(ifl_tokenizer **out, const char *text, size_t n_bytes,
                                   ifl_error *err);

/* Reads the file and parses it as above. */
ifl_status ifl_tokenizer_from_file(ifl_tokenizer **out, const char *path, ifl_error *err);

typedef struct ifl_vocab_text {
    const char *bytes;
    size_t n_bytes;
} ifl_vocab_text;

/* tokenizer.ggml.token_type */
enum {
    IFL_VOCAB_NORMAL = 1,
    IFL_VOCAB_UNKNOWN = 2,
    IFL_VOCAB_CONTROL = 3,
    IFL_VOCAB_USER_DEFINED = 4,
    IFL_VOCAB_UNUSED = 5,
    IFL_VOCAB_BYTE = 6,
};

/* A vocabulary as GGUF metadata holds it. Everything is borrowed for the call. */
typedef struct ifl_vocab_arrays {
    const char *model; /* tokenizer.ggml.model: "llama" or "gpt2" */
    const char *pre;   /* tokenizer.ggml.pre; NULL or "default" when absent */
    int64_t n_tokens;
    const ifl_vocab_text *tokens; /* [n_tokens] */
    const float *scores;          /* [n_tokens]; required for "llama" */
    const int32_t *types;         /* [n_tokens]; NULL = all normal */
    int64_t n_merges;
    const ifl_vocab_text *merges;           /* [n_merges] "left right"; for "gpt2" */
    int32_t bos_id, eos_id, pad_id, unk_id; /* -1 = none */
    bool add_bos;          /* absent in the file: true for "llama", false for "gpt2" */
    bool add_eos;          /* absent: false */
    bool add_space_prefix; /* absent: true for "llama"; unused for "gpt2" */
} ifl_vocab_arrays;

/* Builds a tokenizer from such arrays.
 * "llama": SentencePiece BPE: the adjacent pair whose merged piece has the highest score is merged
 * first. User-defined pieces come before all others, in id order (Gemma's runs of spaces, which the
 * file spells with spaces). Ties are broken as in a tokenizer.json made from the vocabulary: longer
 * left part first. Control and user-defined tokens are matched in the text before that.
 * "gpt2": byte-level BPE with the pre-tokenizer named by `pre`. An unknown name is IFL_UNSUPPORTED.
 */
ifl_status ifl_tokenizer_from_vocab(ifl_tokenizer **out, const ifl_vocab_arrays *vocab,
                                    ifl_error *err);

/* One token per character. Special tokens take the ids 0..n_specials-1, the characters follow in
 * the order given. `add_bos` puts the token named "<bos>" before a text encoded with
 * IFL_ENCODE_SPECIAL. */
ifl_status ifl_tokenizer_char(ifl_tokenizer **out, const char *characters, size_t n_bytes,
                              const char *const *specials, int32_t n_specials, bool add_bos,
                              ifl_error *err);

void ifl_tokenizer_free(ifl_tokenizer *tok); /* NULL is fine */

/* A tokenizer.json that `tokenizers` loads: the original text where there was one. Owned by the
 * caller, free() it; NUL-terminated, `*n_bytes` (may be NULL) without that. */
ifl_status ifl_tokenizer_to_json(const ifl_tokenizer *tok, char **out, size_t *n_bytes,
                                 ifl_error *err);

/* Appends the token ids of `text` to `out`. Ill-formed UTF-8 is read as U+FFFD, NUL is a character.
 * IFL_NOTFOUND when a character has no token and the vocabulary no unknown token; IFL_LIMIT when
 * the text is too long or a pattern backtracks beyond its limit. On failure `out` is as before. */
enum {
    IFL_ENCODE_SPECIAL = 1,      /* add what the post-processor adds (BOS, EOS) */
    IFL_ENCODE_PARSE_SPECIAL = 2 /* special tokens written in the text become those tokens */
};
ifl_status ifl_tokenizer_encode(const ifl_tokenizer *tok, const char *text, size_t n_bytes,
                                unsigned flags, ifl_token_ids *out, ifl_error *err);

/* Appends the text of `ids` to `out`: valid UTF-8, with U+FFFD for bytes that are none. Ids without
 * a token are skipped (models pad their vocabulary). */
enum { IFL_DECODE_SKIP_SPECIAL = 1 };
ifl_status ifl_tokenizer_decode(const ifl_tokenizer *tok, const int32_t *ids, size_t n,
                                unsigned flags, ifl_token_text *out, ifl_error *err);

/* Decoding token by token. Each push gives the bytes that are now certain; the beginning of a
 * character waits for its rest. All pushes and the finish together give what ifl_tokenizer_decode
 * gives, except that a run of byte-fallback tokens which turns ill-formed keeps the characters
 * already given (decode replaces every byte of such a run). A stop string ending in a byte token
 * must not wait for a next token, hence the difference. Not thread-safe; borrows the tokenizer.
 * `*bytes` is valid until the next call. After its creation a push allocates nothing unless a token
 * outgrows every token of the vocabulary. */
typedef struct ifl_detokenizer ifl_detokenizer;
ifl_status ifl_detokenizer_create(ifl_detokenizer **out, const ifl_tokenizer *tok, unsigned flags,
                                  ifl_error *err);
ifl_status ifl_detokenizer_push(ifl_detokenizer *detok, int32_t id, const char **bytes, size_t *n,
                                ifl_error *err);
ifl_status ifl_detokenizer_finish(ifl_detokenizer *detok, const char **bytes, size_t *n,
                                  ifl_error *err);
void ifl_detokenizer_reset(ifl_detokenizer *detok);
void ifl_detokenizer_free(ifl_detokenizer *detok);

/* The largest id plus one. Ids between may have no token. */
int32_t ifl_tokenizer_vocab_size(const ifl_tokenizer *tok);

/* The token's text as the vocabulary spells it, borrowed from `tok`; NULL when `id` has none. */
const char *ifl_tokenizer_token(const ifl_tokenizer *tok, int32_t id, size_t *n_bytes);

/* The id of a token by its spelling, -1 when there is none. */
int32_t ifl_tokenizer_id(const ifl_tokenizer *tok, const char *token, size_t n_bytes);

bool ifl_tokenizer_is_special(const ifl_tokenizer *tok, int32_t id);

/* -1 = none. A tokenizer.json doesn't say which tokens these are: they are guessed from well-known
 * spellings (and BOS from the template) until ifl_tokenizer_set_roles is told by config.json. */
int32_t ifl_tokenizer_bos(const ifl_tokenizer *tok);
int32_t ifl_tokenizer_eos(const ifl_tokenizer *tok);
int32_t ifl_tokenizer_pad(const ifl_tokenizer *tok);
int32_t ifl_tokenizer_unk(const ifl_tokenizer *tok);

/* Sets the roles; -1 leaves one as it is. Before the object is shared between threads. IFL_FORMAT
 * when an id has no token. Doesn't change what encode adds. */
ifl_status ifl_tokenizer_set_roles(ifl_tokenizer *tok, int32_t bos, int32_t eos, int32_t pad,
                                   ifl_error *err);

/* XXH3-128 over the content: equal for two loads of the same file or the same arrays. A vocabulary
 * from GGUF and the tokenizer.json written from it have different hashes. */
ifl_hash ifl_tokenizer_hash(const ifl_tokenizer *tok);

#endif

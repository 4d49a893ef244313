/* Reads a Hugging Face tokenizer.json. Everything in it is checked before it is used; what we don't
 * have is refused by name rather than read approximately, since a wrong token id shows nowhere but
 * in accuracy. */
#include "common/tokenizer_impl.h"

#include "common/json_util.h"
#include "common/memory.h"
#include "common/model_config.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- fields ---- */

static const char *json_kind(const json_t *v) {
    static const char *const names[] = {"an object",     "an array", "a string", "an integer",
                                        "a real number", "true",     "false",    "null"};
    return v ? names[json_typeof(v)] : "nothing";
}

static ifl_status want(const char *where, const char *key, const char *wanted, const json_t *got,
                       ifl_error *err) {
    return ifl_fail(err, IFL_FORMAT, "%s.%s: wanted %s, got %s", where, key, wanted,
                    json_kind(got));
}

/* Absent and null give the default. */
static ifl_status get_bool(const json_t *object, const char *where, const char *key, bool absent,
                           bool *out, ifl_error *err) {
    const json_t *v = json_object_get(object, key);
    *out = absent;
    if (!v || json_is_null(v)) return IFL_OK;
    if (!json_is_boolean(v)) return want(where, key, "true or false", v, err);
    *out = json_is_true(v);
    return IFL_OK;
}

static ifl_status get_text(const json_t *object, const char *where, const char *key,
                           const char **out, size_t *n, ifl_error *err) {
    const json_t *v = json_object_get(object, key);
    if (!json_is_string(v)) return want(where, key, "a string", v, err);
    *out = json_string_value(v);
    *n = json_string_length(v);
    return IFL_OK;
}

static ifl_status get_int(const json_t *object, const char *where, const char *key, json_int_t low,
                          json_int_t high, json_int_t *out, ifl_error *err) {
    const json_t *v = json_object_get(object, key);
    if (!json_is_integer(v)) return want(where, key, "an integer", v, err);
    *out = json_integer_value(v);
    if (*out < low || *out > high)
        return ifl_fail(err, IFL_FORMAT, "%s.%s is %lld, wanted %lld to %lld", where, key,
                        (long long)*out, (long long)low, (long long)high);
    return IFL_OK;
}

static ifl_status type_of(const json_t *object, const char *where, const char **type,
                          ifl_error *err) {
    if (!json_is_object(object))
        return ifl_fail(err, IFL_FORMAT, "%s: wanted an object, got %s", where, json_kind(object));
    const json_t *v = json_object_get(object, "type");
    if (!json_is_string(v)) return want(where, "type", "a string", v, err);
    *type = json_string_value(v);
    return IFL_OK;
}

static ifl_status stage_content(stage *s, const char *text, size_t n, ifl_error *err) {
    if (n > IFL_TOKEN_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "a replacement of %zu bytes, at most %d", n,
                        IFL_TOKEN_BYTES_MAX);
    s->content = malloc(n + 1);
    if (!s->content) return ifl_fail(err, IFL_NOMEM, "out of memory: %zu bytes", n);
    memcpy(s->content, text, n);
    s->content[n] = 0;
    s->n_content = n;
    return IFL_OK;
}

/* A field that must hold exactly one character. */
static ifl_status stage_character(stage *s, const json_t *object, const char *where,
                                  const char *key, ifl_error *err) {
    const char *text;
    size_t n;
    IFL_TRY(get_text(object, where, key, &text, &n, err));
    if (n == 0 || ifl_utf8_length(text[0]) != n)
        return ifl_fail(err, IFL_FORMAT, "%s.%s: wanted one character, got %zu bytes", where, key,
                        n);
    return stage_content(s, text, n, err);
}

/* {"String": ".."} or {"Regex": ".."} */
static ifl_status stage_pattern(stage *s, const json_t *object, const char *where, ifl_error *err) {
    const json_t *v = json_object_get(object, "pattern");
    bool literal = json_is_object(v) && json_object_get(v, "String");
    const char *text;
    size_t n;
    if (!json_is_object(v))
        return want(where, "pattern", "{\"String\": ..} or {\"Regex\": ..}", v, err);
    IFL_TRY(get_text(v, where, literal ? "String" : "Regex", &text, &n, err));
    return text_pattern_compile(&s->pattern, text, n, literal, where, err);
}

static ifl_status stage_scheme(stage *s, const json_t *object, const char *where, ifl_error *err) {
    const json_t *v = json_object_get(object, "prepend_scheme");
    bool add_prefix;
    IFL_TRY(get_bool(object, where, "add_prefix_space", true, &add_prefix,
                     err)); /* the older spelling */
    const char *text = v && !json_is_null(v) ? json_string_value(v)
                       : add_prefix          ? "always"
                                             : "never";
    if (!text) return want(where, "prepend_scheme", "a string", v, err);
    if (strcmp(text, "always") == 0) {
        s->scheme = PREPEND_ALWAYS;
    } else if (strcmp(text, "first") == 0) {
        s->scheme = PREPEND_FIRST;
    } else if (strcmp(text, "never") == 0) {
        s->scheme = PREPEND_NEVER;
    } else {
        return ifl_fail(err, IFL_UNSUPPORTED, "%s.prepend_scheme '%s' is not supported", where,
                        text);
    }
    if (!add_prefix && s->scheme != PREPEND_NEVER)
        return ifl_fail(err, IFL_FORMAT, "%s: add_prefix_space is false, prepend_scheme is '%s'",
                        where, text);
    return IFL_OK;
}

/* ---- lists of stages ---- */

typedef ifl_status (*stage_reader)(stage *s, const json_t *object, const char *type,
                                   ifl_error *err);

/* Reads one component, or the components of a Sequence (`members` names its list) one after
 * another. */
static ifl_status read_stages(stage_list *list, const json_t *object, const char *where,
                              const char *members, stage_reader reader, int depth, ifl_error *err) {
    if (!object || json_is_null(object)) return IFL_OK;
    const char *type;
    IFL_TRY(type_of(object, where, &type, err));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *array = json_object_get(object, members), *member;
        size_t i;
        if (!json_is_array(array)) return want(where, members, "an array", array, err);
        if (depth >= 4)
            return ifl_fail(err, IFL_LIMIT, "%s: sequences nested more than 4 deep", where);
        json_array_foreach(array, i, member)
            IFL_TRY(read_stages(list, member, where, members, reader, depth + 1, err));
        return IFL_OK;
    }
    if (list->n == IFL_TOKENIZER_STAGES_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: more than %d components", where,
                        IFL_TOKENIZER_STAGES_MAX);
    stage *s =
        &list->stages[list->n++]; /* counted at once, so that what it owns is freed on failure */
    *s = (stage){0};
    return reader(s, object, type, err);
}

static ifl_status read_normalizer(stage *s, const json_t *object, const char *type,
                                  ifl_error *err) {
    static const char *const where = "normalizer";
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    for (int i = 0; i < 4; i++)
        if (strcmp(type, forms[i]) == 0) {
            s->kind = STAGE_FORM;
            s->form = (ifl_unicode_form)i;
            return IFL_OK;
        }
    const char *text;
    size_t n;
    if (strcmp(type, "Replace") == 0) {
        s->kind = STAGE_REPLACE;
        IFL_TRY(stage_pattern(s, object, where, err));
        IFL_TRY(get_text(object, where, "content", &text, &n, err));
        return stage_content(s, text, n, err);
    }
    if (strcmp(type, "Prepend") == 0) {
        s->kind = STAGE_PREPEND;
        IFL_TRY(get_text(object, where, "prepend", &text, &n, err));
        return stage_content(s, text, n, err);
    }
    return ifl_fail(err, IFL_UNSUPPORTED,
                    "normalizer '%s' is not supported: NFC, NFD, NFKC, NFKD, Replace, "
                    "Prepend and Sequence are",
                    type);
}

static ifl_status read_pre_tokenizer(stage *s, const json_t *object, const char *type,
                                     ifl_error *err) {
    static const char *const where = "pre_tokenizer";
    bool flag;
    if (strcmp(type, "Split") == 0) {
        static const char *const behaviors[] = {"Removed", "Isolated", "MergedWithPrevious",
                                                "MergedWithNext", "Contiguous"};
        const char *text;
        size_t n;
        s->kind = STAGE_SPLIT;
        IFL_TRY(get_text(object, where, "behavior", &text, &n, err));
        int i = 0;
        while (i < 5 && strcmp(text, behaviors[i]) != 0)
            i++;
        if (i == 5)
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "pre_tokenizer Split: behavior '%s' is not supported", text);
        s->behavior = (split_behavior)i;
        IFL_TRY(get_bool(object, where, "invert", false, &s->invert, err));
        return stage_pattern(s, object, "pre_tokenizer Split", err);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        s->kind = STAGE_BYTE_LEVEL;
        IFL_TRY(get_bool(object, where, "add_prefix_space", true, &s->add_prefix_space, err));
        IFL_TRY(get_bool(object, where, "use_regex", true, &flag, err));
        return flag ? text_pattern_compile(&s->pattern, PATTERN_GPT2, strlen(PATTERN_GPT2), false,
                                           where, err)
                    : IFL_OK;
    }
    if (strcmp(type, "Digits") == 0) {
        s->kind = STAGE_SPLIT;
        s->digits = true;
        IFL_TRY(get_bool(object, where, "individual_digits", false, &flag, err));
        s->behavior = flag ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return text_pattern_compile(&s->pattern, "\\p{N}", 5, false, where, err);
    }
    if (strcmp(type, "Metaspace") == 0) {
        s->kind = STAGE_METASPACE;
        IFL_TRY(stage_character(s, object, where, "replacement", err));
        IFL_TRY(stage_scheme(s, object, where, err));
        IFL_TRY(get_bool(object, where, "split", true, &s->split, err));
        return text_pattern_compile(&s->pattern, s->content, s->n_content, true, where, err);
    }
    return ifl_fail(err, IFL_UNSUPPORTED,
                    "pre_tokenizer '%s' is not supported: Split, ByteLevel, Digits, "
                    "Metaspace and Sequence are",
                    type);
}

static ifl_status read_decoder(stage *s, const json_t *object, const char *type, ifl_error *err) {
    static const char *const where = "decoder";
    const char *text;
    size_t n;
    json_int_t value;
    if (strcmp(type, "ByteLevel") == 0) {
        s->kind = STAGE_BYTE_LEVEL;
    } else if (strcmp(type, "ByteFallback") == 0) {
        s->kind = STAGE_BYTE_FALLBACK;
    } else if (strcmp(type, "Fuse") == 0) {
        s->kind = STAGE_FUSE;
    } else if (strcmp(type, "Replace") == 0) {
        s->kind = STAGE_REPLACE;
        IFL_TRY(stage_pattern(s, object, where, err));
        IFL_TRY(get_text(object, where, "content", &text, &n, err));
        return stage_content(s, text, n, err);
    } else if (strcmp(type, "Strip") == 0) {
        s->kind = STAGE_STRIP;
        IFL_TRY(stage_character(s, object, where, "content", err));
        IFL_TRY(get_int(object, where, "start", 0, IFL_TOKEN_BYTES_MAX, &value, err));
        s->strip_start = (int32_t)value;
        IFL_TRY(get_int(object, where, "stop", 0, IFL_TOKEN_BYTES_MAX, &value, err));
        s->strip_stop = (int32_t)value;
    } else if (strcmp(type, "Metaspace") == 0) {
        s->kind = STAGE_METASPACE;
        IFL_TRY(stage_character(s, object, where, "replacement", err));
        return stage_scheme(s, object, where, err);
    } else {
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "decoder '%s' is not supported: ByteLevel, ByteFallback, Fuse, "
                        "Replace, Strip, Metaspace and Sequence are",
                        type);
    }
    return IFL_OK;
}

/* A streaming decoder can't look ahead: what would need the whole text is refused. */
static ifl_status check_decoders(stage_list *list, ifl_error *err) {
    bool fused = false, bytes = false;
    int n_bytes = 0;
    for (int32_t i = 0; i < list->n; i++) {
        const stage *s = &list->stages[i];
        if (bytes && s->kind != STAGE_FUSE)
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "decoder: a component behind ByteLevel is not supported");
        if (fused && s->kind != STAGE_FUSE && !(s->kind == STAGE_STRIP && s->strip_stop == 0))
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "decoder: behind Fuse only a Strip at the start is supported");
        fused = fused || s->kind == STAGE_FUSE;
        bytes = bytes || s->kind == STAGE_BYTE_LEVEL;
        n_bytes += s->kind == STAGE_BYTE_FALLBACK || s->kind == STAGE_BYTE_LEVEL;
    }
    if (n_bytes > 1)
        return ifl_fail(err, IFL_UNSUPPORTED,
                        "decoder: more than one ByteLevel or ByteFallback is not supported");
    if (list->n == 0) list->stages[list->n++] = (stage){.kind = STAGE_JOIN};
    return IFL_OK;
}

/* ---- the model ---- */

static ifl_status refuse_affix(const json_t *model, const char *key, ifl_error *err) {
    const json_t *v = json_object_get(model, key);
    if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0)) return IFL_OK;
    return ifl_fail(err, IFL_UNSUPPORTED, "model.%s is not supported", key);
}

/* `vocab` and `merges` lie in tok->json; in `model` they are empty. */
static ifl_status read_model(ifl_tokenizer *tok, const json_t *model, text_span vocab,
                             text_span merges, ifl_error *err) {
    if (!json_is_object(model))
        return ifl_fail(err, IFL_FORMAT, "model: wanted an object, got %s", json_kind(model));
    const json_t *type = json_object_get(model, "type"), *v;
    /* Files from before the field existed have none; merges tell a BPE from the others. */
    if (type ? !json_is_string(type) || strcmp(json_string_value(type), "BPE") != 0
             : !json_object_get(model, "merges"))
        return ifl_fail(err, IFL_UNSUPPORTED, "model type '%s' is not supported: BPE is",
                        json_is_string(type) ? json_string_value(type) : "(none)");
    v = json_object_get(model, "dropout");
    if (v && !json_is_null(v) && !(json_is_number(v) && json_number_value(v) == 0.0))
        return ifl_fail(err, IFL_UNSUPPORTED, "model.dropout is not supported: set it to null");
    IFL_TRY(refuse_affix(model, "continuing_subword_prefix", err));
    IFL_TRY(refuse_affix(model, "end_of_word_suffix", err));
    IFL_TRY(get_bool(model, "model", "fuse_unk", false, &tok->fuse_unk, err));
    IFL_TRY(get_bool(model, "model", "byte_fallback", false, &tok->byte_fallback, err));
    IFL_TRY(get_bool(model, "model", "ignore_merges", false, &tok->ignore_merges, err));
    if (vocab.n == 0)
        return want("model", "vocab", "an object", json_object_get(model, "vocab"), err);
    if (merges.n == 0)
        return want("model", "merges", "an array", json_object_get(model, "merges"), err);
    IFL_TRY(tokenizer_read_vocab(tok, tok->json, vocab, err));
    IFL_TRY(tokenizer_read_merges(tok, tok->json, merges, err));
    v = json_object_get(model, "unk_token");
    if (!v || json_is_null(v)) return IFL_OK;
    if (!json_is_string(v)) return want("model", "unk_token", "a string", v, err);
    tok->unk_id = token_table_find(&tok->tokens, json_string_value(v), json_string_length(v));
    if (tok->unk_id < 0)
        return ifl_fail(err, IFL_FORMAT, "model.unk_token '%.80s' is not in the vocabulary",
                        json_string_value(v));
    return IFL_OK;
}

/* ---- added tokens, post-processor ---- */

static ifl_status read_added(ifl_tokenizer *tok, const json_t *array, ifl_error *err) {
    if (!array || json_is_null(array)) return IFL_OK;
    if (!json_is_array(array)) return want("tokenizer", "added_tokens", "an array", array, err);
    size_t i;
    const json_t *object;
    json_array_foreach(array, i, object) {
        static const char *const where = "added_tokens[]";
        added_token added = {0};
        const char *text;
        size_t n;
        json_int_t id;
        if (!json_is_object(object))
            return ifl_fail(err, IFL_FORMAT, "added_tokens[%zu]: wanted an object, got %s", i,
                            json_kind(object));
        IFL_TRY(get_text(object, where, "content", &text, &n, err));
        IFL_TRY(get_int(object, where, "id", 0, IFL_VOCAB_MAX - 1, &id, err));
        IFL_TRY(get_bool(object, where, "special", false, &added.special, err));
        IFL_TRY(get_bool(object, where, "single_word", false, &added.single_word, err));
        IFL_TRY(get_bool(object, where, "lstrip", false, &added.lstrip, err));
        IFL_TRY(get_bool(object, where, "rstrip", false, &added.rstrip, err));
        IFL_TRY(get_bool(object, where, "normalized", !added.special, &added.normalized, err));
        added.id = (int32_t)id;
        IFL_TRY(token_table_add(&tok->tokens, id, text, n,
                                added.special ? TOKEN_ADDED | TOKEN_SPECIAL : TOKEN_ADDED, err));
        IFL_TRY(tokenizer_add_added(tok, &added, err));
    }
    return IFL_OK;
}

/* Appends the ids of one special token of a template. */
static ifl_status template_token(ifl_tokenizer *tok, const json_t *specials, const char *name,
                                 int32_t *ids, int32_t *n_ids, ifl_error *err) {
    const json_t *entry = json_object_get(specials, name), *list = json_object_get(entry, "ids"),
                 *id;
    size_t i;
    if (!json_is_array(list))
        return ifl_fail(err, IFL_FORMAT,
                        "post_processor: template names '%.80s', special_tokens doesn't", name);
    json_array_foreach(list, i, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            !ifl_tokenizer_token(
                tok,
                (int32_t)(json_integer_value(id) < IFL_VOCAB_MAX ? json_integer_value(id) : -1),
                NULL))
            return ifl_fail(
                err, IFL_FORMAT,
                "post_processor: special token '%.80s' has an id outside the vocabulary", name);
        if (*n_ids == IFL_TEMPLATE_TOKENS_MAX)
            return ifl_fail(err, IFL_LIMIT, "post_processor: more than %d special tokens",
                            IFL_TEMPLATE_TOKENS_MAX);
        ids[(*n_ids)++] = (int32_t)json_integer_value(id);
    }
    return IFL_OK;
}

static ifl_status read_template(ifl_tokenizer *tok, const json_t *object, ifl_error *err) {
    const json_t *single = json_object_get(object, "single"), *piece;
    const json_t *specials = json_object_get(object, "special_tokens");
    bool seen = false;
    size_t i;
    if (!json_is_array(single)) return want("post_processor", "single", "an array", single, err);
    json_array_foreach(single, i, piece) {
        const json_t *special = json_object_get(piece, "SpecialToken"),
                     *sequence = json_object_get(piece, "Sequence");
        const char *name;
        size_t n;
        IFL_TRY(get_text(special ? special : sequence, "post_processor.single[]", "id", &name, &n,
                         err));
        if (special) {
            IFL_TRY(template_token(tok, specials, name, seen ? tok->suffix : tok->prefix,
                                   seen ? &tok->n_suffix : &tok->n_prefix, err));
        } else if (seen || strcmp(name, "A") != 0) {
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "post_processor: a template other than one text 'A' is not supported");
        } else {
            seen = true;
        }
    }
    return seen ? IFL_OK
                : ifl_fail(err, IFL_FORMAT, "post_processor: the template has no text 'A'");
}

static ifl_status read_post_processor(ifl_tokenizer *tok, const json_t *object, int depth,
                                      ifl_error *err) {
    if (!object || json_is_null(object)) return IFL_OK;
    const char *type;
    IFL_TRY(type_of(object, "post_processor", &type, err));
    if (strcmp(type, "ByteLevel") == 0) return IFL_OK; /* touches offsets only */
    if (strcmp(type, "Sequence") == 0) {
        const json_t *array = json_object_get(object, "processors"), *member;
        size_t i;
        if (!json_is_array(array))
            return want("post_processor", "processors", "an array", array, err);
        if (depth >= 4)
            return ifl_fail(err, IFL_LIMIT, "post_processor: sequences nested more than 4 deep");
        json_array_foreach(array, i, member)
            IFL_TRY(read_post_processor(tok, member, depth + 1, err));
        return IFL_OK;
    }
    if (strcmp(type, "TemplateProcessing") == 0) {
        if (tok->n_prefix || tok->n_suffix)
            return ifl_fail(err, IFL_UNSUPPORTED,
                            "post_processor: two templates are not supported");
        return read_template(tok, object, err);
    }
    return ifl_fail(err, IFL_UNSUPPORTED,
                    "post_processor '%s' is not supported: TemplateProcessing, ByteLevel "
                    "and Sequence are",
                    type);
}

/* ---- the file ---- */

static ifl_status read_tokenizer(ifl_tokenizer *tok, const json_t *root, text_span vocab,
                                 text_span merges, ifl_error *err) {
    if (!json_is_object(root))
        return ifl_fail(err, IFL_FORMAT, "wanted an object, got %s", json_kind(root));
    IFL_TRY(read_model(tok, json_object_get(root, "model"), vocab, merges, err));
    IFL_TRY(read_stages(&tok->normalizers, json_object_get(root, "normalizer"), "normalizer",
                        "normalizers", read_normalizer, 0, err));
    IFL_TRY(read_stages(&tok->pre_tokenizers, json_object_get(root, "pre_tokenizer"),
                        "pre_tokenizer", "pretokenizers", read_pre_tokenizer, 0, err));
    IFL_TRY(read_stages(&tok->decoders, json_object_get(root, "decoder"), "decoder", "decoders",
                        read_decoder, 0, err));
    IFL_TRY(check_decoders(&tok->decoders, err));
    IFL_TRY(read_added(tok, json_object_get(root, "added_tokens"), err));
    IFL_TRY(read_post_processor(tok, json_object_get(root, "post_processor"), 0, err));
    return tokenizer_finish(tok, err);
}

/* The file without its two big values ("null" in their places, so that lines keep their numbers as
 * far as they can), as a tree. */
static ifl_status parse_rest(const char *text, size_t n_bytes, text_span vocab, text_span merges,
                             json_t **root, ifl_error *err) {
    text_span spans[2] = {vocab, merges};
    if (merges.n && merges.start < vocab.start) {
        spans[0] = merges;
        spans[1] = vocab;
    }
    ifl_token_text rest = {0};
    ifl_status st = IFL_OK;
    size_t done = 0;
    for (int i = 0; i < 2; i++) {
        if (spans[i].n == 0) continue;
        IFL_TRY_GOTO(st, token_text_append(&rest, text + done, spans[i].start - done, err), done);
        IFL_TRY_GOTO(st, token_text_append(&rest, "null", 4, err), done);
        done = spans[i].start + spans[i].n;
    }
    IFL_TRY_GOTO(st, token_text_append(&rest, text + done, n_bytes - done, err), done);
    IFL_TRY_GOTO(st,
                 ifl_json_check_values(rest.n ? rest.bytes : "", rest.n,
                                       "all but model.vocab and model.merges", err),
                 done);
    json_error_t at = {.text = ""};
    *root =
        json_loadb(rest.n ? rest.bytes : "", rest.n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &at);
    if (!*root)
        st = ifl_fail(err, IFL_FORMAT,
                      "line %d, column %d (not counting model.vocab and model.merges): %s", at.line,
                      at.column, at.text);
done:
    ifl_token_text_free(&rest);
    return st;
}

ifl_status ifl_tokenizer_from_json(ifl_tokenizer **out, const char *text, size_t n_bytes,
                                   ifl_error *err) {
    *out = NULL;
    if (n_bytes > IFL_TOKENIZER_JSON_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "tokenizer.json has %zu bytes, at most %zu are read",
                        n_bytes, IFL_TOKENIZER_JSON_BYTES_MAX);
    json_t *root = NULL;
    text_span vocab = {0, 0}, merges = {0, 0};
    ifl_status st = IFL_NOMEM;
    ifl_tokenizer *tok = calloc(1, sizeof *tok);
    if (tok) tok->json = malloc(n_bytes ? n_bytes : 1);
    if (!tok || !tok->json) {
        ifl_fail(err, st, "out of memory: tokenizer");
        goto done;
    }
    memcpy(tok->json, text, n_bytes);
    tok->n_json = n_bytes;
    tok->hash = ifl_hash_bytes(text, n_bytes);
    tok->unk_id = tok->bos = tok->eos = tok->pad = -1;
    tokenizer_scan(tok->json, n_bytes, &vocab, &merges);
    st = parse_rest(tok->json, n_bytes, vocab, merges, &root, err);
    if (st == IFL_OK) st = read_tokenizer(tok, root, vocab, merges, err);
    if (st != IFL_OK) {
        ifl_error_wrap(err, "tokenizer.json");
        goto done;
    }
    *out = tok;
    tok = NULL;
done:
    json_decref(root);
    ifl_tokenizer_free(tok);
    return st;
}

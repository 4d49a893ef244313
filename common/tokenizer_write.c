/* Writes a tokenizer.json of the format that Hugging Face `tokenizers` reads. */
#include "common/tokenizer_impl.h"

#include "common/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct writer {
    ifl_token_text text;
    ifl_status st; /* the first failure; everything after it is skipped */
    ifl_error *err;
} writer;

static void put(writer *w, const char *text) {
    if (w->st == IFL_OK) w->st = token_text_append(&w->text, text, strlen(text), w->err);
}

static void put_int(writer *w, int64_t value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)value);
    put(w, digits);
}

static void put_bool(writer *w, const char *key, bool value) {
    put(w, key);
    put(w, value ? "true" : "false");
}

/* A JSON string of valid UTF-8. */
static void put_string(writer *w, const char *bytes, size_t n) {
    put(w, "\"");
    for (size_t i = 0; i < n && w->st == IFL_OK; i++) {
        unsigned char c = (unsigned char)bytes[i];
        char escape[8];
        if (c == '"' || c == '\\') {
            snprintf(escape, sizeof escape, "\\%c", c);
            put(w, escape);
        } else if (c < 0x20) {
            snprintf(escape, sizeof escape, "\\u%04x", c);
            put(w, escape);
        } else {
            w->st = token_text_append(&w->text, bytes + i, 1, w->err);
        }
    }
    put(w, "\"");
}

static void put_token(writer *w, const ifl_tokenizer *tok, int32_t id) {
    size_t n;
    const char *text = ifl_tokenizer_token(tok, id, &n);
    put_string(w, text, n);
}

static void put_pattern(writer *w, const text_pattern *pattern) {
    size_t n;
    bool literal;
    const char *source = text_pattern_source(pattern, &n, &literal);
    put(w, literal ? "\"pattern\":{\"String\":" : "\"pattern\":{\"Regex\":");
    put_string(w, source, n);
    put(w, "}");
}

static void put_metaspace(writer *w, const stage *s) {
    static const char *const schemes[] = {"never", "first", "always"};
    put(w, "{\"type\":\"Metaspace\",\"replacement\":");
    put_string(w, s->content, s->n_content);
    put(w, ",\"prepend_scheme\":\"");
    put(w, schemes[s->scheme]);
    put_bool(w, "\",\"split\":", s->split);
    put(w, "}");
}

static void put_replace(writer *w, const stage *s) {
    put(w, "{\"type\":\"Replace\",");
    put_pattern(w, s->pattern);
    put(w, ",\"content\":");
    put_string(w, s->content, s->n_content);
    put(w, "}");
}

static void put_normalizer(writer *w, const stage *s) {
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    if (s->kind == STAGE_REPLACE) {
        put_replace(w, s);
    } else if (s->kind == STAGE_PREPEND) {
        put(w, "{\"type\":\"Prepend\",\"prepend\":");
        put_string(w, s->content, s->n_content);
        put(w, "}");
    } else {
        put(w, "{\"type\":\"");
        put(w, forms[s->form]);
        put(w, "\"}");
    }
}

static void put_pre_tokenizer(writer *w, const stage *s) {
    static const char *const behaviors[] = {"Removed", "Isolated", "MergedWithPrevious",
                                            "MergedWithNext", "Contiguous"};
    if (s->kind == STAGE_METASPACE) {
        put_metaspace(w, s);
    } else if (s->kind == STAGE_BYTE_LEVEL) {
        put_bool(w, "{\"type\":\"ByteLevel\",\"add_prefix_space\":", s->add_prefix_space);
        put_bool(w, ",\"trim_offsets\":true,\"use_regex\":", s->pattern != NULL);
        put(w, "}");
    } else if (s->digits) {
        put_bool(w, "{\"type\":\"Digits\",\"individual_digits\":", s->behavior == SPLIT_ISOLATED);
        put(w, "}");
    } else {
        put(w, "{\"type\":\"Split\",");
        put_pattern(w, s->pattern);
        put(w, ",\"behavior\":\"");
        put(w, behaviors[s->behavior]);
        put_bool(w, "\",\"invert\":", s->invert);
        put(w, "}");
    }
}

static void put_decoder(writer *w, const stage *s) {
    switch (s->kind) {
    case STAGE_REPLACE:
        put_replace(w, s);
        break;
    case STAGE_METASPACE:
        put_metaspace(w, s);
        break;
    case STAGE_BYTE_LEVEL:
        put(w, "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_"
               "regex\":true}");
        break;
    case STAGE_BYTE_FALLBACK:
        put(w, "{\"type\":\"ByteFallback\"}");
        break;
    case STAGE_STRIP:
        put(w, "{\"type\":\"Strip\",\"content\":");
        put_string(w, s->content, s->n_content);
        put(w, ",\"start\":");
        put_int(w, s->strip_start);
        put(w, ",\"stop\":");
        put_int(w, s->strip_stop);
        put(w, "}");
        break;
    default:
        put(w, "{\"type\":\"Fuse\"}");
        break;
    }
}

static void put_stages(writer *w, const char *key, const char *members, const stage_list *list,
                       void (*put_stage)(writer *, const stage *)) {
    put(w, key);
    bool none = list->n == 0 || list->stages[0].kind == STAGE_JOIN;
    if (none) put(w, "null");
    if (none) return;
    if (list->n > 1) {
        put(w, "{\"type\":\"Sequence\",\"");
        put(w, members);
        put(w, "\":[");
    }
    for (int32_t i = 0; i < list->n; i++) {
        if (i) put(w, ",");
        put_stage(w, &list->stages[i]);
    }
    if (list->n > 1) put(w, "]}");
}

static void put_added(writer *w, const ifl_tokenizer *tok) {
    put(w, ",\n\"added_tokens\":[");
    for (size_t i = 0; i < tok->n_added; i++) {
        const added_token *a = &tok->added[i];
        put(w, i ? ",\n{\"id\":" : "\n{\"id\":");
        put_int(w, a->id);
        put(w, ",\"content\":");
        put_token(w, tok, a->id);
        put_bool(w, ",\"single_word\":", a->single_word);
        put_bool(w, ",\"lstrip\":", a->lstrip);
        put_bool(w, ",\"rstrip\":", a->rstrip);
        put_bool(w, ",\"normalized\":", a->normalized);
        put_bool(w, ",\"special\":", a->special);
        put(w, "}");
    }
    put(w, "]");
}

/* The ids of a template as `SpecialToken` pieces. */
static void put_template_ids(writer *w, const ifl_tokenizer *tok, const int32_t *ids, int32_t n,
                             int type_id, bool *comma) {
    for (int32_t i = 0; i < n; i++) {
        put(w, *comma ? ",{\"SpecialToken\":{\"id\":" : "{\"SpecialToken\":{\"id\":");
        put_token(w, tok, ids[i]);
        put(w, type_id ? ",\"type_id\":1}}" : ",\"type_id\":0}}");
        *comma = true;
    }
}

static void put_template_text(writer *w, const ifl_tokenizer *tok, const char *name, int type_id,
                              bool *comma) {
    put_template_ids(w, tok, tok->prefix, tok->n_prefix, type_id, comma);
    put(w, *comma ? ",{\"Sequence\":{\"id\":\"" : "{\"Sequence\":{\"id\":\"");
    put(w, name);
    put(w, type_id ? "\",\"type_id\":1}}" : "\",\"type_id\":0}}");
    *comma = true;
    put_template_ids(w, tok, tok->suffix, tok->n_suffix, type_id, comma);
}

static void put_post_processor(writer *w, const ifl_tokenizer *tok) {
    put(w, ",\n\"post_processor\":");
    if (tok->n_prefix + tok->n_suffix == 0) {
        put(w, "null");
        return;
    }
    bool comma = false;
    put(w, "{\"type\":\"TemplateProcessing\",\"single\":[");
    put_template_text(w, tok, "A", 0, &comma);
    put(w, "],\"pair\":[");
    comma = false;
    put_template_text(w, tok, "A", 0, &comma);
    put_template_text(w, tok, "B", 1, &comma);
    put(w, "],\"special_tokens\":{");
    for (int32_t i = 0; i < tok->n_prefix + tok->n_suffix; i++) {
        int32_t id = i < tok->n_prefix ? tok->prefix[i] : tok->suffix[i - tok->n_prefix];
        bool repeated = false;
        for (int32_t k = 0; k < i; k++)
            repeated = repeated ||
                       id == (k < tok->n_prefix ? tok->prefix[k] : tok->suffix[k - tok->n_prefix]);
        if (repeated) continue;
        if (i) put(w, ",");
        put_token(w, tok, id);
        put(w, ":{\"id\":");
        put_token(w, tok, id);
        put(w, ",\"ids\":[");
        put_int(w, id);
        put(w, "],\"tokens\":[");
        put_token(w, tok, id);
        put(w, "]}");
    }
    put(w, "}}");
}

static int merge_rank_compare(const void *a, const void *b) {
    int32_t x = ((const merge_entry *)a)->rank, y = ((const merge_entry *)b)->rank;
    return x < y ? -1 : x > y;
}

static void put_merges(writer *w, const ifl_tokenizer *tok) {
    size_t n = 0;
    merge_entry *merges = malloc((tok->merges.n_used + 1) * sizeof *merges);
    if (!merges) {
        if (w->st == IFL_OK)
            w->st = ifl_fail(w->err, IFL_NOMEM, "out of memory: %zu merges", tok->merges.n_used);
        return;
    }
    for (size_t i = 0; i < tok->merges.n_slots; i++)
        if (tok->merges.slots[i].pair != UINT64_MAX) merges[n++] = tok->merges.slots[i];
    qsort(merges, n, sizeof *merges, merge_rank_compare);
    put(w, ",\"merges\":[");
    for (size_t i = 0; i < n; i++) {
        put(w, i ? ",\n[" : "\n[");
        put_token(w, tok, (int32_t)(merges[i].pair >> 32));
        put(w, ",");
        put_token(w, tok, (int32_t)(merges[i].pair & UINT32_MAX));
        put(w, "]");
    }
    put(w, "]");
    free(merges);
}

static void put_model(writer *w, const ifl_tokenizer *tok) {
    put(w, ",\n\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":");
    if (tok->unk_id >= 0) {
        put_token(w, tok, tok->unk_id);
    } else {
        put(w, "null");
    }
    put_bool(w, ",\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":",
             tok->fuse_unk);
    put_bool(w, ",\"byte_fallback\":", tok->byte_fallback);
    put_bool(w, ",\"ignore_merges\":", tok->ignore_merges);
    /* Special tokens stand in the vocabulary too: readers number added tokens that don't anew. */
    put(w, ",\n\"vocab\":{");
    bool comma = false;
    for (int32_t id = 0; id < ifl_tokenizer_vocab_size(tok); id++) {
        if (!ifl_tokenizer_token(tok, id, NULL)) continue;
        put(w, comma ? ",\n" : "\n");
        put_token(w, tok, id);
        put(w, ":");
        put_int(w, id);
        comma = true;
    }
    put(w, "}");
    put_merges(w, tok);
    put(w, "}");
}

ifl_status tokenizer_write_json(const ifl_tokenizer *tok, char **out, size_t *n_bytes,
                                ifl_error *err) {
    writer w = {.err = err};
    *out = NULL;
    put(&w, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null");
    put_added(&w, tok);
    put_stages(&w, ",\n\"normalizer\":", "normalizers", &tok->normalizers, put_normalizer);
    put_stages(&w, ",\n\"pre_tokenizer\":", "pretokenizers", &tok->pre_tokenizers,
               put_pre_tokenizer);
    put_post_processor(&w, tok);
    put_stages(&w, ",\n\"decoder\":", "decoders", &tok->decoders, put_decoder);
    put_model(&w, tok);
    put(&w, "}\n");
    if (w.st == IFL_OK) w.st = token_text_append(&w.text, "", 1, err); /* the NUL, not counted */
    if (w.st != IFL_OK) {
        ifl_token_text_free(&w.text);
        return w.st;
    }
    *out = w.text.bytes;
    if (n_bytes) *n_bytes = w.text.n - 1;
    return IFL_OK;
}

/* The two big values of a tokenizer.json, model.vocab and model.merges: a quarter of a million and
 * half a million entries in Gemma's. They are read straight from the text, in one pass and without
 * a tree of nodes for each string; the small rest of the file goes to jansson. */
#include "common/tokenizer_impl.h"

#include "common/memory.h"

#include <string.h>

typedef struct cursor {
    const char *text; /* the whole file */
    size_t at, end;
    const char *what; /* for errors */
    ifl_error *err;
} cursor;

static ifl_status cursor_fail(const cursor *c, const char *wanted) {
    size_t line = 1;
    for (size_t i = 0; i < c->at; i++)
        line += c->text[i] == '\n';
    return ifl_fail(c->err, IFL_FORMAT, "%s: wanted %s in line %zu, at byte %zu", c->what, wanted,
                    line, c->at);
}

static char cursor_peek(cursor *c) {
    while (c->at < c->end && strchr(" \t\r\n", c->text[c->at]) && c->text[c->at])
        c->at++;
    return c->at < c->end ? c->text[c->at] : 0;
}

static bool cursor_take(cursor *c, char wanted) {
    if (cursor_peek(c) != wanted || c->at == c->end) return false;
    c->at++;
    return true;
}

static int hex4(const char *p) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        char h = p[i];
        int digit = h >= '0' && h <= '9'   ? h - '0'
                    : h >= 'a' && h <= 'f' ? h - 'a' + 10
                    : h >= 'A' && h <= 'F' ? h - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* Behind "\u". */
static ifl_status cursor_code_point(cursor *c, int32_t *cp) {
    int high = c->end - c->at >= 4 ? hex4(c->text + c->at) : -1;
    if (high < 0 || (high >= 0xdc00 && high <= 0xdfff)) return cursor_fail(c, "a \\u escape");
    c->at += 4;
    *cp = high;
    if (high < 0xd800 || high > 0xdbff) return IFL_OK;
    int low = c->end - c->at >= 6 && c->text[c->at] == '\\' && c->text[c->at + 1] == 'u'
                  ? hex4(c->text + c->at + 2)
                  : -1;
    if (low < 0xdc00 || low > 0xdfff) return cursor_fail(c, "the second half of a surrogate pair");
    c->at += 6;
    *cp = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    return IFL_OK;
}

/* Appends one escape, behind its backslash, to `out`. */
static ifl_status cursor_escape(cursor *c, ifl_token_text *out) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char name = c->at < c->end ? c->text[c->at] : 0;
    const char *known = name ? strchr(names, name) : NULL;
    if (known) {
        c->at++;
        return token_text_append(out, values + (known - names), 1, c->err);
    }
    if (name != 'u') return cursor_fail(c, "an escape");
    c->at++;
    int32_t cp = 0;
    char bytes[4];
    IFL_TRY(cursor_code_point(c, &cp));
    return token_text_append(out, bytes, ifl_utf8_encode((uint32_t)cp, bytes), c->err);
}

/* A string. `*bytes` lies in the file or, when there are escapes, in `scratch`. */
static ifl_status cursor_string(cursor *c, ifl_token_text *scratch, const char **bytes, size_t *n) {
    if (!cursor_take(c, '"')) return cursor_fail(c, "a string");
    size_t start = c->at;
    bool escaped = false;
    scratch->n = 0;
    for (;; c->at++) {
        if (c->at == c->end || (unsigned char)c->text[c->at] < 0x20)
            return cursor_fail(c, "the end of a string");
        if (c->text[c->at] == '"') break;
        if (c->text[c->at] != '\\') continue;
        IFL_TRY(token_text_append(scratch, c->text + start, c->at - start, c->err));
        escaped = true;
        c->at++;
        IFL_TRY(cursor_escape(c, scratch));
        start = c->at;
        c->at--; /* the loop steps over it */
    }
    if (escaped) IFL_TRY(token_text_append(scratch, c->text + start, c->at - start, c->err));
    *bytes = escaped ? scratch->bytes : c->text + start;
    *n = escaped ? scratch->n : c->at - start;
    if (!ifl_utf8_valid(*bytes, *n)) return cursor_fail(c, "UTF-8");
    c->at++;
    return IFL_OK;
}

static ifl_status cursor_id(cursor *c, int64_t *id) {
    cursor_peek(c);
    size_t start = c->at;
    bool negative = c->at < c->end && c->text[c->at] == '-';
    if (negative) c->at++;
    int64_t value = 0;
    size_t n_digits = 0;
    for (; c->at < c->end && c->text[c->at] >= '0' && c->text[c->at] <= '9' && n_digits < 18;
         n_digits++)
        value = value * 10 + (c->text[c->at++] - '0');
    bool more = c->at < c->end && strchr("0123456789.eE", c->text[c->at]) && c->text[c->at];
    bool leading_zero = n_digits > 1 && c->text[start + negative] == '0';
    if (n_digits == 0 || more || leading_zero) {
        c->at = start;
        return cursor_fail(c, "an integer");
    }
    *id = negative ? -value : value;
    return IFL_OK;
}

/* Steps over any value without looking into it; brackets inside strings don't count. Malformed
 * values may pass: what is stepped over is parsed by jansson afterwards. */
static bool cursor_skip(cursor *c) {
    int64_t depth = 0;
    cursor_peek(c);
    size_t start = c->at;
    for (; c->at < c->end; c->at++) {
        char ch = c->text[c->at];
        if (ch == '"') {
            for (c->at++; c->at < c->end && c->text[c->at] != '"'; c->at++)
                if (c->text[c->at] == '\\') c->at++;
            if (c->at >= c->end) return false;
        } else if (ch == '{' || ch == '[') {
            depth++;
        } else if (ch == '}' || ch == ']') {
            if (depth == 0) return c->at > start;
            if (--depth == 0) {
                c->at++;
                return true;
            }
            continue;
        } else if (ch == ',' && depth == 0) {
            return c->at > start;
        }
    }
    return false;
}

static bool key_is(const cursor *c, size_t start, size_t end, const char *key) {
    return end - start == strlen(key) + 2 && memcmp(c->text + start + 1, key, strlen(key)) == 0;
}

/* Walks an object for the values of up to two keys. False when the text isn't such an object. */
static bool object_find(const char *text, text_span object, const char *const keys[2],
                        text_span found[2]) {
    cursor c = {.text = text, .at = object.start, .end = object.start + object.n};
    if (!cursor_take(&c, '{')) return false;
    if (cursor_peek(&c) == '}') return true;
    for (;;) {
        if (cursor_peek(&c) != '"') return false;
        size_t key_start = c.at;
        for (c.at++; c.at < c.end && c.text[c.at] != '"'; c.at++)
            if (c.text[c.at] == '\\') c.at++;
        if (c.at >= c.end) return false;
        size_t key_end = ++c.at;
        if (!cursor_take(&c, ':')) return false;
        cursor_peek(&c);
        text_span value = {c.at, 0};
        if (!cursor_skip(&c)) return false;
        value.n = c.at - value.start;
        for (int k = 0; k < 2; k++)
            if (keys[k] && found[k].n == 0 && key_is(&c, key_start, key_end, keys[k]))
                found[k] = value;
        if (cursor_take(&c, ',')) continue;
        return cursor_take(&c, '}');
    }
}

bool tokenizer_scan(const char *text, size_t n, text_span *vocab, text_span *merges) {
    text_span found[2] = {{0, 0}, {0, 0}}, inner[2] = {{0, 0}, {0, 0}};
    *vocab = *merges = (text_span){0, 0};
    if (!object_find(text, (text_span){0, n}, (const char *const[2]){"model", NULL}, found) ||
        found[0].n == 0)
        return false;
    if (text[found[0].start] != '{' ||
        !object_find(text, found[0], (const char *const[2]){"vocab", "merges"}, inner))
        return false;
    if (inner[0].n && text[inner[0].start] == '{') *vocab = inner[0];
    if (inner[1].n && text[inner[1].start] == '[') *merges = inner[1];
    return true;
}

ifl_status tokenizer_read_vocab(ifl_tokenizer *tok, const char *text, text_span span,
                                ifl_error *err) {
    cursor c = {text, span.start, span.start + span.n, "model.vocab", err};
    ifl_token_text scratch = {0};
    ifl_status st = cursor_take(&c, '{') ? IFL_OK : cursor_fail(&c, "an object");
    while (st == IFL_OK && cursor_peek(&c) != '}') {
        const char *bytes = NULL;
        size_t n = 0;
        int64_t id = 0;
        IFL_TRY_GOTO(st, cursor_string(&c, &scratch, &bytes, &n), done);
        if (!cursor_take(&c, ':')) {
            st = cursor_fail(&c, "':'");
            goto done;
        }
        IFL_TRY_GOTO(st, cursor_id(&c, &id), done);
        IFL_TRY_GOTO(st, token_table_add(&tok->tokens, id, bytes, n, TOKEN_MODEL, err), done);
        if (cursor_take(&c, ',')) {
            if (cursor_peek(&c) == '}') st = cursor_fail(&c, "a string");
        } else if (cursor_peek(&c) != '}') {
            st = cursor_fail(&c, "',' or '}'");
        }
    }
    if (st == IFL_OK && !cursor_take(&c, '}')) st = cursor_fail(&c, "'}'");
    if (st == IFL_OK && c.at != c.end) st = cursor_fail(&c, "the end of the object");
done:
    ifl_token_text_free(&scratch);
    return st;
}

static ifl_status merge_part(const ifl_tokenizer *tok, size_t index, const char *text, size_t n,
                             int32_t *id, ifl_error *err) {
    *id = token_table_find(&tok->tokens, text, n);
    if (*id < 0)
        return ifl_fail(err, IFL_FORMAT, "model.merges[%zu]: '%.*s' is not in the vocabulary",
                        index, n > 80 ? 80 : (int)n, text);
    return IFL_OK;
}

static ifl_status add_merge(ifl_tokenizer *tok, size_t index, const char *left, size_t n_left,
                            const char *right, size_t n_right, ifl_error *err) {
    char both[2 * IFL_TOKEN_BYTES_MAX];
    int32_t ids[3];
    IFL_TRY(merge_part(tok, index, left, n_left, &ids[0],
                       err)); /* found, hence within the token limit */
    IFL_TRY(merge_part(tok, index, right, n_right, &ids[1], err));
    memcpy(both, left, n_left);
    memcpy(both + n_left, right, n_right);
    IFL_TRY(merge_part(tok, index, both, n_left + n_right, &ids[2], err));
    return merge_table_add(&tok->merges, ids[0], ids[1], ids[2], err);
}

/* "left right", as GPT-2's merges.txt has it */
static ifl_status read_merge_text(ifl_tokenizer *tok, size_t i, const char *text, size_t n,
                                  ifl_error *err) {
    if (n >= 8 && memcmp(text, "#version", 8) == 0) return IFL_OK;
    const char *space = memchr(text, ' ', n);
    if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - text)))
        return ifl_fail(err, IFL_FORMAT,
                        "model.merges[%zu]: wanted two tokens and a space, got '%.*s'", i,
                        n > 80 ? 80 : (int)n, text);
    size_t n_left = (size_t)(space - text);
    return add_merge(tok, i, text, n_left, space + 1, n - n_left - 1, err);
}

/* One element of the list. `scratch` holds what its strings need when they have escapes. */
static ifl_status read_merge(ifl_tokenizer *tok, cursor *c, size_t i, ifl_token_text scratch[2]) {
    const char *bytes[2];
    size_t n[2];
    char first = cursor_peek(c);
    if (first == '"') {
        IFL_TRY(cursor_string(c, &scratch[0], &bytes[0], &n[0]));
        return read_merge_text(tok, i, bytes[0], n[0], c->err);
    }
    if (first == '[') {
        cursor_take(c, '[');
        bool strings =
            cursor_peek(c) == '"' && cursor_string(c, &scratch[0], &bytes[0], &n[0]) == IFL_OK &&
            cursor_take(c, ',') && cursor_peek(c) == '"' &&
            cursor_string(c, &scratch[1], &bytes[1], &n[1]) == IFL_OK && cursor_take(c, ']');
        if (strings) return add_merge(tok, i, bytes[0], n[0], bytes[1], n[1], c->err);
    }
    return ifl_fail(c->err, IFL_FORMAT, "model.merges[%zu]: wanted \"a b\" or [\"a\", \"b\"]", i);
}

ifl_status tokenizer_read_merges(ifl_tokenizer *tok, const char *text, text_span span,
                                 ifl_error *err) {
    cursor c = {text, span.start, span.start + span.n, "model.merges", err};
    ifl_token_text scratch[2] = {{0}, {0}};
    ifl_status st = cursor_take(&c, '[') ? IFL_OK : cursor_fail(&c, "an array");
    for (size_t i = 0; st == IFL_OK && cursor_peek(&c) != ']'; i++) {
        IFL_TRY_GOTO(st, read_merge(tok, &c, i, scratch), done);
        if (cursor_take(&c, ',')) {
            if (cursor_peek(&c) == ']') st = cursor_fail(&c, "a merge");
        } else if (cursor_peek(&c) != ']') {
            st = cursor_fail(&c, "',' or ']'");
        }
    }
    if (st == IFL_OK && !cursor_take(&c, ']')) st = cursor_fail(&c, "']'");
    if (st == IFL_OK && c.at != c.end) st = cursor_fail(&c, "the end of the array");
done:
    ifl_token_text_free(&scratch[0]);
    ifl_token_text_free(&scratch[1]);
    return st;
}

/* Tokenizers against goldens of the `tokenizers` library (tests/golden/make_tokenizers.py).
 * "test_tokenizer serve json|vocab FILE" answers tests/parity/compare_tokenizer.py instead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "common/clock.h"
#include "common/tokenizer.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void assert_ok(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s", err->text);
}

static ifl_tokenizer *load(const char *name) {
    char path[1024];
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    snprintf(path, sizeof path, "%s/tokenizer/%s.json", IFL_GOLDEN_DIR, name);
    assert_ok(ifl_tokenizer_from_file(&tok, path, &err), &err);
    return tok;
}

static size_t unhex(const char *hex, char *out) {
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned value = 0;
        sscanf(hex + 2 * i, "%2x", &value);
        out[i] = (char)value;
    }
    return n;
}

static bool ids_equal(const ifl_token_ids *got, const json_t *want) {
    if (got->n != json_array_size(want)) return false;
    for (size_t i = 0; i < got->n; i++)
        if (got->ids[i] != json_integer_value(json_array_get(want, i))) return false;
    return true;
}

static void text_add(ifl_token_text *text, const char *bytes, size_t n) {
    text->bytes = realloc(text->bytes, text->n + n + 1);
    memcpy(text->bytes + text->n, bytes, n);
    text->n += n;
}

/* Pushes the ids one by one and gathers what comes out. */
static void stream(const ifl_tokenizer *tok, const int32_t *ids, size_t n, unsigned flags,
                   ifl_token_text *out) {
    ifl_detokenizer *d = NULL;
    ifl_error err = {0};
    const char *bytes;
    size_t length;
    assert_ok(ifl_detokenizer_create(&d, tok, flags, &err), &err);
    for (size_t i = 0; i < n; i++) {
        assert_ok(ifl_detokenizer_push(d, ids[i], &bytes, &length, &err), &err);
        text_add(out, bytes, length);
    }
    assert_ok(ifl_detokenizer_finish(d, &bytes, &length, &err), &err);
    text_add(out, bytes, length);
    ifl_detokenizer_free(d);
}

static void check_golden_row(const ifl_tokenizer *tok, const char *name, size_t row,
                             const json_t *want) {
    static char text[1 << 16];
    size_t n = unhex(json_string_value(json_object_get(want, "hex")), text);
    ifl_token_ids ids = {0};
    ifl_token_text decoded = {0}, streamed = {0};
    ifl_error err = {0};
    assert_ok(ifl_tokenizer_encode(tok, text, n, IFL_ENCODE_SPECIAL | IFL_ENCODE_PARSE_SPECIAL,
                                   &ids, &err),
              &err);
    if (!ids_equal(&ids, json_object_get(want, "ids")))
        fail_msg("%s: row %zu: other ids", name, row);
    assert_ok(ifl_tokenizer_decode(tok, ids.ids, ids.n, IFL_DECODE_SKIP_SPECIAL, &decoded, &err),
              &err);
    const json_t *want_text = json_object_get(want, "text");
    if (decoded.n != json_string_length(want_text) ||
        memcmp(decoded.n ? decoded.bytes : "", json_string_value(want_text), decoded.n) != 0)
        fail_msg("%s: row %zu: decodes to another text", name, row);
    stream(tok, ids.ids, ids.n, IFL_DECODE_SKIP_SPECIAL, &streamed);
    assert_int_equal(streamed.n, decoded.n);
    if (decoded.n) assert_memory_equal(streamed.bytes, decoded.bytes, decoded.n);
    if (json_object_get(want, "plain")) {
        ids.n = 0;
        assert_ok(ifl_tokenizer_encode(tok, text, n, 0, &ids, &err), &err);
        if (!ids_equal(&ids, json_object_get(want, "plain")))
            fail_msg("%s: row %zu: other plain ids", name, row);
    }
    ifl_token_ids_free(&ids);
    ifl_token_text_free(&decoded);
    ifl_token_text_free(&streamed);
}

static void check_golden(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/tokenizer/%s.golden.json", IFL_GOLDEN_DIR, name);
    json_t *rows = json_load_file(path, JSON_ALLOW_NUL, NULL);
    assert_non_null(rows);
    assert_true(json_array_size(rows) >= 60);
    ifl_tokenizer *tok = load(name);
    for (size_t i = 0; i < json_array_size(rows); i++)
        check_golden_row(tok, name, i, json_array_get(rows, i));
    ifl_tokenizer_free(tok);
    json_decref(rows);
}

static void test_byte_level_with_qwen_pattern_equals_golden(void **state) {
    (void)state;
    check_golden("qwen");
}

static void test_byte_level_with_llama3_pattern_equals_golden(void **state) {
    (void)state;
    check_golden("llama3");
}

static void test_sentencepiece_with_byte_fallback_equals_golden(void **state) {
    (void)state;
    check_golden("gemma");
}

static void test_characters_equal_golden(void **state) {
    (void)state;
    check_golden("char");
}

static json_t *load_json(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/tokenizer/%s.json", IFL_GOLDEN_DIR, name);
    json_t *root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    return root;
}

static ifl_status parse(const json_t *root, ifl_tokenizer **tok, ifl_error *err) {
    char *text = json_dumps(root, JSON_COMPACT);
    assert_non_null(text);
    ifl_status st = ifl_tokenizer_from_json(tok, text, strlen(text), err);
    free(text);
    return st;
}

/* The failing direction of the goldens: one exchanged merge must show. */
static void test_golden_notices_an_exchanged_merge(void **state) {
    (void)state;
    json_t *root = load_json("qwen");
    json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    json_t *first = json_incref(json_array_get(merges, 0));
    json_array_set(merges, 0, json_array_get(merges, 40));
    json_array_set_new(merges, 40, first);
    ifl_tokenizer *tok = NULL, *right = load("qwen");
    ifl_error err = {0};
    assert_ok(parse(root, &tok, &err), &err);
    char path[1024];
    snprintf(path, sizeof path, "%s/tokenizer/qwen.golden.json", IFL_GOLDEN_DIR);
    json_t *rows = json_load_file(path, JSON_ALLOW_NUL, NULL);
    size_t n_other = 0;
    static char text[1 << 16];
    for (size_t i = 0; i < json_array_size(rows); i++) {
        ifl_token_ids ids = {0};
        size_t n = unhex(json_string_value(json_object_get(json_array_get(rows, i), "hex")), text);
        assert_ok(ifl_tokenizer_encode(tok, text, n, IFL_ENCODE_PARSE_SPECIAL, &ids, &err), &err);
        n_other += !ids_equal(&ids, json_object_get(json_array_get(rows, i), "ids"));
        ifl_token_ids_free(&ids);
    }
    assert_true(n_other > 0);
    assert_false(ifl_hash_equal(ifl_tokenizer_hash(tok), ifl_tokenizer_hash(right)));
    ifl_tokenizer_free(tok);
    ifl_tokenizer_free(right);
    json_decref(rows);
    json_decref(root);
}

static void test_special_tokens_in_text_are_text_unless_asked_for(void **state) {
    (void)state;
    ifl_tokenizer *tok = load("qwen");
    ifl_token_ids plain = {0}, parsed = {0};
    ifl_error err = {0};
    static const char text[] = "hi<|im_end|>there";
    int32_t special = ifl_tokenizer_id(tok, "<|im_end|>", 10);
    assert_true(special >= 0 && ifl_tokenizer_is_special(tok, special));
    assert_ok(ifl_tokenizer_encode(tok, text, strlen(text), 0, &plain, &err), &err);
    assert_ok(
        ifl_tokenizer_encode(tok, text, strlen(text), IFL_ENCODE_PARSE_SPECIAL, &parsed, &err),
        &err);
    size_t n_plain = 0, n_parsed = 0;
    for (size_t i = 0; i < plain.n; i++)
        n_plain += plain.ids[i] == special;
    for (size_t i = 0; i < parsed.n; i++)
        n_parsed += parsed.ids[i] == special;
    assert_int_equal(n_plain, 0);
    assert_int_equal(n_parsed, 1);
    ifl_token_text out = {0};
    assert_ok(ifl_tokenizer_decode(tok, plain.ids, plain.n, IFL_DECODE_SKIP_SPECIAL, &out, &err),
              &err);
    assert_int_equal(out.n, strlen(text));
    assert_memory_equal(out.bytes, text, out.n);
    ifl_token_text_free(&out);
    ifl_token_ids_free(&plain);
    ifl_token_ids_free(&parsed);
    ifl_tokenizer_free(tok);
}

static void test_unknown_character_is_an_error_and_leaves_output_alone(void **state) {
    (void)state;
    ifl_tokenizer *tok = NULL;
    static const char *const specials[] = {"<pad>", "<bos>", "<eos>"};
    ifl_error err = {0};
    ifl_token_ids ids = {0};
    assert_ok(ifl_tokenizer_char(&tok, "01+=\xc3\xa9", 6, specials, 3, true, &err), &err);
    assert_int_equal(ifl_tokenizer_vocab_size(tok), 8);
    assert_int_equal(ifl_tokenizer_pad(tok), 0);
    assert_int_equal(ifl_tokenizer_bos(tok), 1);
    assert_int_equal(ifl_tokenizer_eos(tok), 2);
    assert_int_equal(ifl_tokenizer_unk(tok), -1);
    assert_ok(ifl_tokenizer_encode(tok, "1+\xc3\xa9", 4, IFL_ENCODE_SPECIAL, &ids, &err), &err);
    assert_int_equal(ids.n, 4);
    assert_int_equal(ids.ids[0], 1);
    assert_int_equal(ids.ids[3], 7);
    assert_int_equal(ifl_tokenizer_encode(tok, "1+2", 3, IFL_ENCODE_SPECIAL, &ids, &err),
                     IFL_NOTFOUND);
    assert_non_null(strstr(err.text, "U+0032"));
    assert_int_equal(ids.n, 4);
    ifl_token_ids_free(&ids);
    ifl_tokenizer_free(tok);
    assert_int_equal(ifl_tokenizer_char(&tok, "aa", 2, specials, 3, true, &err), IFL_FORMAT);
    assert_int_equal(ifl_tokenizer_char(&tok, "a\xff", 2, specials, 3, true, &err), IFL_FORMAT);
}

static void test_character_tokenizer_survives_its_own_json(void **state) {
    (void)state;
    static const char *const specials[] = {"<pad>", "<bos>", "<eos>"};
    static const char chars[] = "0123456789 \n\"\\\t\xe2\x82\xac";
    ifl_tokenizer *tok = NULL, *again = NULL;
    ifl_error err = {0};
    char *json = NULL;
    size_t n_json = 0;
    assert_ok(ifl_tokenizer_char(&tok, chars, strlen(chars), specials, 3, true, &err), &err);
    assert_ok(ifl_tokenizer_to_json(tok, &json, &n_json, &err), &err);
    assert_ok(ifl_tokenizer_from_json(&again, json, n_json, &err), &err);
    assert_true(ifl_hash_equal(ifl_tokenizer_hash(tok), ifl_tokenizer_hash(again)));
    ifl_token_ids a = {0}, b = {0};
    assert_ok(ifl_tokenizer_encode(tok, chars, strlen(chars), IFL_ENCODE_SPECIAL, &a, &err), &err);
    assert_ok(ifl_tokenizer_encode(again, chars, strlen(chars), IFL_ENCODE_SPECIAL, &b, &err),
              &err);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    assert_int_equal(ifl_tokenizer_eos(again), 2);
    free(json);
    ifl_token_ids_free(&a);
    ifl_token_ids_free(&b);
    ifl_tokenizer_free(tok);
    ifl_tokenizer_free(again);
}

/* ---- streaming ---- */

static void test_detokenizer_holds_back_a_begun_character(void **state) {
    (void)state;
    ifl_tokenizer *tok = load("gemma");
    ifl_detokenizer *d = NULL;
    ifl_error err = {0};
    const char *bytes;
    size_t n;
    static const char *const names[] = {"<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x0A>", "<0xE2>"};
    static const size_t wanted[] = {0, 0, 0, 4, 1, 0};
    assert_ok(ifl_detokenizer_create(&d, tok, 0, &err), &err);
    for (size_t i = 0; i < 6; i++) {
        assert_ok(ifl_detokenizer_push(d, ifl_tokenizer_id(tok, names[i], 6), &bytes, &n, &err),
                  &err);
        assert_int_equal(n, wanted[i]);
    }
    assert_ok(ifl_detokenizer_finish(d, &bytes, &n, &err), &err);
    assert_int_equal(n, 3); /* U+FFFD for the byte that nothing followed */
    ifl_detokenizer_reset(d);
    assert_ok(ifl_detokenizer_finish(d, &bytes, &n, &err), &err);
    assert_int_equal(n, 0);
    ifl_detokenizer_free(d);
    ifl_tokenizer_free(tok);
}

static void test_ids_without_token_are_skipped(void **state) {
    (void)state;
    ifl_tokenizer *tok = load("qwen");
    ifl_error err = {0};
    ifl_token_text out = {0};
    const int32_t ids[] = {-1, INT32_MIN, ifl_tokenizer_vocab_size(tok), INT32_MAX,
                           ifl_tokenizer_id(tok, "a", 1)};
    assert_ok(ifl_tokenizer_decode(tok, ids, 5, 0, &out, &err), &err);
    assert_int_equal(out.n, 1);
    assert_int_equal(out.bytes[0], 'a');
    assert_null(ifl_tokenizer_token(tok, -1, NULL));
    assert_null(ifl_tokenizer_token(tok, ifl_tokenizer_vocab_size(tok), NULL));
    assert_int_equal(ifl_tokenizer_set_roles(tok, 1, 1 << 19, -1, &err), IFL_FORMAT);
    assert_int_equal(ifl_tokenizer_bos(tok), -1);
    assert_ok(ifl_tokenizer_set_roles(tok, 1, -1, -1, &err), &err);
    assert_int_equal(ifl_tokenizer_bos(tok), 1);
    ifl_token_text_free(&out);
    ifl_tokenizer_free(tok);
}

/* ---- hostile input ---- */

static void replace(json_t *object, const char *key, const char *value) {
    json_t *parsed = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(parsed);
    json_object_set_new(object, key, parsed);
}

static void check_refused(const char *part, const char *key, const char *value, ifl_status want,
                          const char *text) {
    json_t *root = load_json("gemma");
    replace(*part ? json_object_get(root, part) : root, key, value);
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    ifl_status st = parse(root, &tok, &err);
    if (st != want || !strstr(err.text, text))
        fail_msg("%s.%s = %s: status %d (%s), wanted %d naming '%s'", part, key, value, (int)st,
                 err.text, (int)want, text);
    assert_null(tok);
    json_decref(root);
}

static void test_unsupported_components_are_named(void **state) {
    (void)state;
    check_refused("model", "type", "\"Unigram\"", IFL_UNSUPPORTED, "Unigram");
    check_refused("model", "dropout", "0.1", IFL_UNSUPPORTED, "dropout");
    check_refused("model", "end_of_word_suffix", "\"</w>\"", IFL_UNSUPPORTED, "end_of_word_suffix");
    check_refused("", "normalizer", "{\"type\":\"BertNormalizer\"}", IFL_UNSUPPORTED,
                  "BertNormalizer");
    check_refused("", "pre_tokenizer", "{\"type\":\"Whitespace\"}", IFL_UNSUPPORTED, "Whitespace");
    check_refused("", "decoder", "{\"type\":\"WordPiece\"}", IFL_UNSUPPORTED, "WordPiece");
    check_refused("", "post_processor", "{\"type\":\"BertProcessing\"}", IFL_UNSUPPORTED,
                  "BertProcessing");
    check_refused("", "pre_tokenizer",
                  "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},\"behavior\":"
                  "\"Isolated\",\"invert\":false}",
                  IFL_UNSUPPORTED, "escape");
    check_refused("", "pre_tokenizer",
                  "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(*UTF)a\"},\"behavior\":"
                  "\"Isolated\",\"invert\":false}",
                  IFL_UNSUPPORTED, "'(*'");
}

/* Four characters behind \u that close its brace would let the next ones through unseen: here \C,
 * which cuts characters in two, so that the last piece's character would end behind the text. */
static void test_a_pattern_cannot_break_out_of_an_escape(void **state) {
    (void)state;
    check_refused("", "pre_tokenizer",
                  "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\u1}\\\\C?\"},\"behavior\":"
                  "\"Isolated\",\"invert\":false}",
                  IFL_UNSUPPORTED, "four digits");
}

/* A thousand for one, three times: a gigabyte for one character. */
static void test_a_text_does_not_grow_without_bound(void **state) {
    (void)state;
    static const char *const places[] = {"normalizer", "decoder"};
    static const char *const lists[] = {"normalizers", "decoders"};
    for (int i = 0; i < 2; i++) {
        json_t *root = load_json("char");
        json_t *stages = json_array();
        char content[1001] = {0};
        memset(content, 'a', sizeof content - 1);
        for (int k = 0; k < 3; k++)
            json_array_append_new(stages, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace",
                                                    "pattern", "String", "a", "content", content));
        json_object_set_new(root, places[i],
                            json_pack("{s:s, s:o}", "type", "Sequence", lists[i], stages));
        ifl_tokenizer *tok = NULL;
        ifl_error err = {0};
        ifl_token_ids ids = {0};
        ifl_token_text text = {0};
        assert_ok(parse(root, &tok, &err), &err);
        if (i == 0) {
            assert_int_equal(ifl_tokenizer_encode(tok, "a", 1, 0, &ids, &err), IFL_LIMIT);
        } else {
            int32_t id = ifl_tokenizer_id(tok, "a", 1);
            assert_int_equal(ifl_tokenizer_decode(tok, &id, 1, 0, &text, &err), IFL_LIMIT);
        }
        assert_non_null(strstr(err.text, "grows beyond"));
        assert_true(ids.n == 0 && text.n == 0);
        ifl_token_ids_free(&ids);
        ifl_token_text_free(&text);
        ifl_tokenizer_free(tok);
        json_decref(root);
    }
}

/* Each of these bytes would cost a hundred as a tree. */
static void test_a_file_of_brackets_is_refused_before_it_is_parsed(void **state) {
    (void)state;
    size_t n = 5000000;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, '[', n);
    memcpy(text, "{\"added_tokens\":", 16);
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    assert_int_equal(ifl_tokenizer_from_json(&tok, text, n, &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "values of JSON"));
    assert_null(tok);
    free(text);
}

static void test_malformed_files_are_refused_with_a_reason(void **state) {
    (void)state;
    check_refused("model", "vocab", "{\"a\":0,\"b\":0}", IFL_FORMAT, "two tokens");
    check_refused("model", "vocab", "{\"a\":1048576}", IFL_LIMIT, "1048576");
    check_refused("model", "vocab", "{\"a\":-1}", IFL_LIMIT, "-1");
    check_refused("model", "vocab", "{\"a\":\"x\"}", IFL_FORMAT, "integer");
    check_refused("model", "vocab", "[]", IFL_FORMAT, "vocab");
    check_refused("model", "merges", "[[\"a\",\"nowhere\"]]", IFL_FORMAT, "nowhere");
    check_refused("model", "merges", "[\"a b c\"]", IFL_FORMAT, "merges[0]");
    check_refused("model", "merges", "[7]", IFL_FORMAT, "merges[0]");
    check_refused("model", "merges", "[[]]", IFL_FORMAT, "merges[0]");
    check_refused("model", "unk_token", "\"nowhere\"", IFL_FORMAT, "nowhere");
    check_refused("", "model", "null", IFL_FORMAT, "model");
    check_refused("", "added_tokens", "[{\"id\":0,\"content\":\"other\"}]", IFL_FORMAT,
                  "two tokens");
    check_refused("", "added_tokens", "[{\"id\":4000000000,\"content\":\"x\"}]", IFL_FORMAT,
                  "4000000000");
    check_refused("", "added_tokens", "[3]", IFL_FORMAT, "added_tokens[0]");
    check_refused("", "normalizer", "{\"type\":\"Sequence\"}", IFL_FORMAT, "normalizers");
    check_refused("", "pre_tokenizer",
                  "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":\"Isolated\"}",
                  IFL_FORMAT, "compile");
    check_refused("", "post_processor",
                  "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<q>\","
                  "\"type_id\":0}}]}",
                  IFL_FORMAT, "<q>");
}

/* A minimal file around the two big values. */
static ifl_status parse_model(const char *vocab, const char *merges, ifl_tokenizer **tok,
                              ifl_error *err) {
    char text[1024];
    snprintf(text, sizeof text,
             "{ \"x\":[1,{\"vocab\":\"}\"}],\n\"model\" : {\"merges\": %s , "
             "\"type\":\"BPE\",\"vocab\":%s}}",
             merges, vocab);
    return ifl_tokenizer_from_json(tok, text, strlen(text), err);
}

static void test_escapes_in_the_vocabulary_are_read(void **state) {
    (void)state;
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    assert_ok(parse_model("{\"\\\"\":0,\"\\\\\": 1 "
                          ",\"\\n\":2,\"\\u00e9\":3,\"\\ud83d\\ude00\":4,\"\\\"\\\\\":5,\"a\\tb\":"
                          "6,\"\\u0000\":7}",
                          "[ [\"\\\"\", \"\\\\\"] ]", &tok, &err),
              &err);
    static const struct {
        const char *text;
        size_t n;
    } wanted[] = {{"\"", 1},   {"\\", 1},   {"\n", 1}, {"\xc3\xa9", 2}, {"\xf0\x9f\x98\x80", 4},
                  {"\"\\", 2}, {"a\tb", 3}, {"", 1}};
    for (int32_t i = 0; i < 8; i++)
        assert_int_equal(ifl_tokenizer_id(tok, wanted[i].text, wanted[i].n), i);
    ifl_token_ids ids = {0};
    assert_ok(ifl_tokenizer_encode(tok, "\"\\\0", 3, 0, &ids, &err), &err);
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.ids[0], 5);
    assert_int_equal(ids.ids[1], 7);
    ifl_token_ids_free(&ids);
    ifl_tokenizer_free(tok);
}

static void test_malformed_vocabularies_and_merges_are_refused(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"{\"a\":0,}", "[]"},
        {"{\"a\" 0}", "[]"},
        {"{\"a\":0 \"b\":1}", "[]"},
        {"{\"a\":00}", "[]"},
        {"{\"a\":1.5}", "[]"},
        {"{\"a\":1e3}", "[]"},
        {"{\"a\":-}", "[]"},
        {"{\"a\":99999999999999999999}", "[]"},
        {"{\"\\ud83d\":0}", "[]"},
        {"{\"\\udc00\":0}", "[]"},
        {"{\"\\ud83dx\":0}", "[]"},
        {"{\"\\x41\":0}", "[]"},
        {"{\"a\nb\":0}", "[]"},
        {"{\"\xff\":0}", "[]"},
        {"{\"\":0}", "[]"},
        {"{\"a\":0,\"a\":1}", "[]"},
        {"{\"a\":0,\"a\":0}", "[]"},
        {"{a:0}", "[]"},
        {"{\"a\":0}", "[,]"},
        {"{\"a\":0}", "[\"a a\",]"},
        {"{\"a\":0}", "[[\"a\",\"a\",\"a\"]]"},
        {"{\"a\":0}", "[[\"a\"]]"},
        {"{\"a\":0}", "[[\"a\" \"a\"]]"},
        {"{\"a\":0}", "[\"aa\"]"},
        {"{\"a\":0}", "[\"a a\"]"},
        {"{\"a\":0}", "null"},
        {"null", "[]"},
        {"{}", "[]"},
        {"{\"a\":0,\"b\":[1]}", "[]"},
        {"{\"a\":{}}", "[]"},
        {"{\"a\":0]", "[]"},
        {"{\"a\":0}", "[}"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ifl_tokenizer *tok = NULL;
        ifl_error err = {0};
        ifl_status st = parse_model(bad[i][0], bad[i][1], &tok, &err);
        if (st != IFL_FORMAT || !err.text[0])
            fail_msg("vocab %s merges %s: status %d: %s", bad[i][0], bad[i][1], (int)st, err.text);
        assert_null(tok);
    }
}

static void test_deep_nesting_is_refused(void **state) {
    (void)state;
    char text[512] = "";
    for (int i = 0; i < 6; i++)
        strcat(text, "{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 6; i++)
        strcat(text, "]}");
    check_refused("", "normalizer", text, IFL_LIMIT, "nested");
}

/* Every prefix of a file, and every file with one byte changed, loads or is refused: nothing
 * crashes. */
static void test_cut_and_altered_files_do_not_crash(void **state) {
    (void)state;
    json_t *root = load_json("llama3");
    json_t *model = json_object_get(root, "model");
    json_t *vocab = json_object();
    const char *key;
    json_t *id;
    json_object_foreach(json_object_get(model, "vocab"), key, id) if (json_integer_value(id) < 40)
        json_object_set(vocab, key, id);
    json_object_set_new(model, "vocab", vocab);
    replace(model, "merges", "[]");
    char *text = json_dumps(root, JSON_COMPACT);
    size_t n = strlen(text), n_loaded = 0;
    for (size_t i = 0; i < n; i++) {
        ifl_tokenizer *tok = NULL;
        ifl_error err = {0};
        assert_int_not_equal(ifl_tokenizer_from_json(&tok, text, i, &err), IFL_OK);
        assert_true(err.text[0]);
        char kept = text[i];
        text[i] = (char)(kept ^ (1 << (i % 7)));
        n_loaded += ifl_tokenizer_from_json(&tok, text, n, &err) == IFL_OK;
        ifl_tokenizer_free(tok);
        text[i] = kept;
    }
    assert_true(n_loaded > 0 && n_loaded < n);
    free(text);
    json_decref(root);
}

static void test_backtracking_pattern_is_a_limit_error(void **state) {
    (void)state;
    json_t *root = load_json("gemma");
    replace(root, "pre_tokenizer",
            "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?:a+)+(?:a+)+(?:a+)+[bc]\"},"
            "\"behavior\":\"Isolated\"}");
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    ifl_token_ids ids = {0};
    char text[400];
    memset(text, 'a', sizeof text);
    assert_ok(parse(root, &tok, &err), &err);
    assert_int_equal(ifl_tokenizer_encode(tok, text, sizeof text, 0, &ids, &err), IFL_LIMIT);
    assert_int_equal(ids.n, 0);
    assert_non_null(strstr(err.text, "backtracks too much, limit 2001600 steps at one place"));
    ifl_tokenizer_free(tok);
    json_decref(root);
}

/* At each single place it stays below the limit, with some 5 x 10^5 steps; at 4,000 places together it
 * would take most of a minute. */
static void test_pattern_that_backtracks_at_every_place_is_a_limit_error(void **state) {
    (void)state;
    json_t *root = load_json("gemma");
    replace(root, "pre_tokenizer",
            "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a{0,100}a{0,100}a{0,60}[bc]\"},"
            "\"behavior\":\"Isolated\"}");
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    ifl_token_ids ids = {0};
    static char text[4000];
    memset(text, 'a', sizeof text);
    assert_ok(parse(root, &tok, &err), &err);
    assert_int_equal(ifl_tokenizer_encode(tok, text, sizeof text, 0, &ids, &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "limit 33024000 steps for all of the text"));
    assert_int_equal(ids.n, 0);
    /* A short text of the same pattern has its allowance. */
    assert_int_equal(ifl_tokenizer_encode(tok, "aab", 3, 0, &ids, &err), IFL_OK);
    ifl_token_ids_free(&ids);
    ifl_tokenizer_free(tok);
    json_decref(root);
}

static void test_growing_normalizers_are_a_limit_error(void **state) {
    (void)state;
    static const char stage[] =
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaaaaaaaaaaaaaa\"}";
    char text[2048] = "{\"type\":\"Sequence\",\"normalizers\":[";
    for (int i = 0; i < 8; i++) {
        strcat(text, stage);
        strcat(text, i < 7 ? "," : "]}");
    }
    json_t *root = load_json("gemma");
    replace(root, "normalizer", text);
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    ifl_token_ids ids = {0};
    assert_ok(parse(root, &tok, &err), &err);
    assert_int_equal(ifl_tokenizer_encode(tok, "a", 1, 0, &ids, &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "grows"));
    assert_int_equal(ids.n, 0);
    ifl_token_ids_free(&ids);
    ifl_tokenizer_free(tok);
    json_decref(root);
}

static void test_long_texts_are_not_quadratic(void **state) {
    (void)state;
    static const char *const names[] = {"gemma", "qwen", "llama3"};
    static const char *const units[] = {"a", " ", "\n", "ab c", "\xf0\x9f\x98\x80", "\xff"};
    size_t n = (size_t)1 << 18;
    char *text = malloc(n);
    for (size_t k = 0; k < 3; k++) {
        ifl_tokenizer *tok = load(names[k]);
        for (size_t u = 0; u < 6; u++) {
            size_t length = strlen(units[u]);
            for (size_t i = 0; i < n; i++)
                text[i] = units[u][i % length];
            ifl_token_ids ids = {0};
            ifl_error err = {0};
            int64_t start_ns = ifl_clock_ns();
            assert_ok(ifl_tokenizer_encode(tok, text, n, 0, &ids, &err), &err);
            /* About 0.05 s; a quadratic way would take minutes, a sanitizer takes seconds. */
            assert_true(ifl_clock_ns() - start_ns < (int64_t)60 * 1000 * 1000 * 1000);
            assert_true(ids.n > 0);
            ifl_token_ids_free(&ids);
        }
        ifl_tokenizer_free(tok);
    }
    ifl_error err = {0};
    ifl_token_ids ids = {0};
    ifl_tokenizer *tok = load("gemma");
    assert_int_equal(
        ifl_tokenizer_encode(tok, text, IFL_TOKENIZER_TEXT_BYTES_MAX + 1, 0, &ids, &err),
        IFL_LIMIT);
    ifl_tokenizer_free(tok);
    free(text);
}

/* ---- GGUF arrays ---- */

typedef struct vocab_fixture {
    ifl_vocab_text tokens[300];
    float scores[300];
    int32_t types[300];
    char bytes[256][8];
    ifl_vocab_arrays arrays;
} vocab_fixture;

static void fixture_add(vocab_fixture *f, const char *text, float score, int32_t type) {
    int64_t i = f->arrays.n_tokens++;
    f->tokens[i] = (ifl_vocab_text){text, strlen(text)};
    f->scores[i] = score;
    f->types[i] = type;
}

static void fixture_llama(vocab_fixture *f) {
    memset(f, 0, sizeof *f);
    f->arrays = (ifl_vocab_arrays){.model = "llama",
                                   .tokens = f->tokens,
                                   .scores = f->scores,
                                   .types = f->types,
                                   .bos_id = 1,
                                   .eos_id = 2,
                                   .pad_id = -1,
                                   .unk_id = 0,
                                   .add_bos = true};
    fixture_add(f, "<unk>", 0, IFL_VOCAB_UNKNOWN);
    fixture_add(f, "<s>", 0, IFL_VOCAB_CONTROL);
    fixture_add(f, "</s>", 0, IFL_VOCAB_CONTROL);
    for (int b = 0; b < 256; b++) {
        snprintf(f->bytes[b], sizeof f->bytes[b], "<0x%02X>", b);
        fixture_add(f, f->bytes[b], 0, IFL_VOCAB_BYTE);
    }
    fixture_add(f, "  ", -1000, IFL_VOCAB_USER_DEFINED); /* 259 */
    fixture_add(f, "a", -10, IFL_VOCAB_NORMAL);
    fixture_add(f, "b", -11, IFL_VOCAB_NORMAL);
    fixture_add(f, "c", -12, IFL_VOCAB_NORMAL);
    fixture_add(f, "\xe2\x96\x81", -13, IFL_VOCAB_NORMAL);
    fixture_add(f, "ab", -3, IFL_VOCAB_NORMAL);  /* 264 */
    fixture_add(f, "bc", -2, IFL_VOCAB_NORMAL);  /* 265: a better score than "ab" */
    fixture_add(f, "abc", -4, IFL_VOCAB_NORMAL); /* 266 */
    fixture_add(f,
                "\xe2\x96\x81"
                "a",
                -1, IFL_VOCAB_NORMAL); /* 267 */
}

static void check_ids(const ifl_tokenizer *tok, const char *text, const int32_t *want, size_t n) {
    ifl_token_ids ids = {0};
    ifl_error err = {0};
    assert_ok(ifl_tokenizer_encode(tok, text, strlen(text),
                                   IFL_ENCODE_SPECIAL | IFL_ENCODE_PARSE_SPECIAL, &ids, &err),
              &err);
    assert_int_equal(ids.n, n);
    assert_memory_equal(ids.ids, want, n * sizeof *want);
    ifl_token_ids_free(&ids);
}

static void test_llama_vocabulary_merges_the_best_score_first(void **state) {
    (void)state;
    vocab_fixture f;
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    fixture_llama(&f);
    assert_ok(ifl_tokenizer_from_vocab(&tok, &f.arrays, &err), &err);
    check_ids(tok, "abc", (const int32_t[]){1, 266}, 2); /* bc, then a+bc */
    check_ids(tok, "bbc", (const int32_t[]){1, 261, 265}, 3);
    check_ids(tok, "  a", (const int32_t[]){1, 259, 260}, 3); /* two spaces before _a */
    check_ids(tok, " a", (const int32_t[]){1, 267}, 2);
    check_ids(tok, "\n</s>", (const int32_t[]){1, 3 + 10, 2}, 3); /* a byte, a control token */
    f.scores[264] = -1.5f;
    ifl_tokenizer *other = NULL;
    assert_ok(ifl_tokenizer_from_vocab(&other, &f.arrays, &err), &err);
    check_ids(other, "bbc", (const int32_t[]){1, 261, 265}, 3);
    check_ids(other, "abb", (const int32_t[]){1, 264, 261}, 3);
    assert_false(ifl_hash_equal(ifl_tokenizer_hash(tok), ifl_tokenizer_hash(other)));
    ifl_tokenizer_free(other);
    char *json = NULL;
    size_t n_json;
    assert_ok(ifl_tokenizer_to_json(tok, &json, &n_json, &err), &err);
    assert_ok(ifl_tokenizer_from_json(&other, json, n_json, &err), &err);
    check_ids(other, "\n</s>  a abc", (const int32_t[]){1, 13, 2, 259, 260, 267, 265}, 7);
    check_ids(tok, "\n</s>  a abc", (const int32_t[]){1, 13, 2, 259, 260, 267, 265}, 7);
    free(json);
    ifl_tokenizer_free(other);
    ifl_tokenizer_free(tok);
}

static void test_llama_vocabulary_with_space_prefix_round_trips(void **state) {
    (void)state;
    vocab_fixture f;
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    fixture_llama(&f);
    f.arrays.add_space_prefix = true;
    f.arrays.add_eos = true;
    assert_ok(ifl_tokenizer_from_vocab(&tok, &f.arrays, &err), &err);
    check_ids(tok, "abc", (const int32_t[]){1, 267, 265, 2}, 4);
    ifl_token_text out = {0};
    assert_ok(ifl_tokenizer_decode(tok, (const int32_t[]){1, 267, 265, 2}, 4,
                                   IFL_DECODE_SKIP_SPECIAL, &out, &err),
              &err);
    assert_int_equal(out.n, 3);
    assert_memory_equal(out.bytes, "abc", 3);
    ifl_token_text_free(&out);
    ifl_tokenizer_free(tok);
}

static void check_vocab_refused(vocab_fixture *f, ifl_status want, const char *text) {
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    ifl_status st = ifl_tokenizer_from_vocab(&tok, &f->arrays, &err);
    if (st != want || !strstr(err.text, text))
        fail_msg("status %d (%s), wanted %d: %s", (int)st, err.text, (int)want, text);
    assert_null(tok);
}

static void test_lying_vocabularies_are_refused(void **state) {
    (void)state;
    vocab_fixture f;
    fixture_llama(&f);
    f.arrays.bos_id = 5000;
    check_vocab_refused(&f, IFL_FORMAT, "5000");
    fixture_llama(&f);
    f.arrays.n_tokens = (int64_t)1 << 40;
    check_vocab_refused(&f, IFL_LIMIT, "tokens");
    fixture_llama(&f);
    f.tokens[260] = f.tokens[261];
    check_vocab_refused(&f, IFL_FORMAT, "two ids");
    fixture_llama(&f);
    f.tokens[260] = (ifl_vocab_text){"\xff", 1};
    check_vocab_refused(&f, IFL_FORMAT, "UTF-8");
    fixture_llama(&f);
    f.tokens[260].n_bytes = 0;
    check_vocab_refused(&f, IFL_FORMAT, "0 bytes");
    fixture_llama(&f);
    f.types[260] = 9;
    check_vocab_refused(&f, IFL_FORMAT, "type 9");
    fixture_llama(&f);
    f.scores[260] = (float)(0.0 / 0.0 * (f.arrays.n_tokens ? 1.0 : 0.0));
    check_vocab_refused(&f, IFL_FORMAT, "NaN");
    fixture_llama(&f);
    f.arrays.scores = NULL;
    check_vocab_refused(&f, IFL_FORMAT, "scores");
    fixture_llama(&f);
    f.arrays.model = "rwkv";
    check_vocab_refused(&f, IFL_UNSUPPORTED, "rwkv");
    fixture_llama(&f);
    f.arrays.model = "gpt2";
    f.arrays.pre = "unheard-of";
    check_vocab_refused(&f, IFL_UNSUPPORTED, "unheard-of");
    f.arrays.pre = "qwen2";
    f.arrays.n_merges = 1;
    ifl_vocab_text merge = {"a", 1};
    f.arrays.merges = &merge;
    check_vocab_refused(&f, IFL_FORMAT, "merge 0");
}

/* The arrays of a GGUF file for a byte-level BPE, taken from the fixture: same ids as its
 * tokenizer.json. */
static void test_gpt2_vocabulary_equals_its_tokenizer_json(void **state) {
    (void)state;
    ifl_tokenizer *json_tok = load("llama3"), *tok = NULL;
    json_t *root = load_json("llama3");
    json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    int32_t n = ifl_tokenizer_vocab_size(json_tok);
    size_t n_merges = json_array_size(merges);
    ifl_vocab_text *tokens = calloc((size_t)n, sizeof *tokens),
                   *pairs = calloc(n_merges, sizeof *pairs);
    int32_t *types = calloc((size_t)n, sizeof *types);
    for (int32_t i = 0; i < n; i++) {
        tokens[i].bytes = ifl_tokenizer_token(json_tok, i, &tokens[i].n_bytes);
        types[i] = ifl_tokenizer_is_special(json_tok, i) ? IFL_VOCAB_CONTROL : IFL_VOCAB_NORMAL;
    }
    for (size_t i = 0; i < n_merges; i++) {
        pairs[i].bytes = json_string_value(json_array_get(merges, i));
        pairs[i].n_bytes = strlen(pairs[i].bytes);
    }
    ifl_vocab_arrays arrays = {.model = "gpt2",
                               .pre = "llama-bpe",
                               .n_tokens = n,
                               .tokens = tokens,
                               .types = types,
                               .n_merges = (int64_t)n_merges,
                               .merges = pairs,
                               .pad_id = -1,
                               .unk_id = -1,
                               .bos_id = ifl_tokenizer_bos(json_tok),
                               .eos_id = ifl_tokenizer_eos(json_tok),
                               .add_bos = true};
    ifl_error err = {0};
    assert_ok(ifl_tokenizer_from_vocab(&tok, &arrays, &err), &err);
    static const char text[] = "The people said: it's 12345 - 678,\n\n  then "
                               "<|eot_id|>\xe4\xb8\xad\xe6\x96\x87 \xf0\x9f\x98\x80";
    ifl_token_ids a = {0}, b = {0};
    unsigned flags = IFL_ENCODE_SPECIAL | IFL_ENCODE_PARSE_SPECIAL;
    assert_ok(ifl_tokenizer_encode(json_tok, text, strlen(text), flags, &a, &err), &err);
    assert_ok(ifl_tokenizer_encode(tok, text, strlen(text), flags, &b, &err), &err);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    ifl_token_ids_free(&a);
    ifl_token_ids_free(&b);
    ifl_tokenizer_free(tok);
    ifl_tokenizer_free(json_tok);
    free(tokens);
    free(pairs);
    free(types);
    json_decref(root);
}

/* ---- threads ---- */

static void *encode_many(void *arg) {
    const ifl_tokenizer *tok = arg;
    static const char text[] = "The people said it's 12345 \xe4\xb8\xad\xe6\x96\x87  <|im_end|>\n";
    int32_t first[64];
    size_t n_first = 0;
    for (int i = 0; i < 200; i++) {
        ifl_token_ids ids = {0};
        ifl_token_text out = {0};
        if (ifl_tokenizer_encode(tok, text, strlen(text), IFL_ENCODE_PARSE_SPECIAL, &ids, NULL) !=
            IFL_OK)
            return NULL;
        if (ifl_tokenizer_decode(tok, ids.ids, ids.n, 0, &out, NULL) != IFL_OK) return NULL;
        bool same = out.n == strlen(text) && memcmp(out.bytes, text, out.n) == 0 && ids.n <= 64;
        if (i == 0) n_first = ids.n;
        same = same && ids.n == n_first;
        if (same && i == 0) memcpy(first, ids.ids, n_first * sizeof *first);
        same = same && memcmp(first, ids.ids, n_first * sizeof *first) == 0;
        ifl_token_ids_free(&ids);
        ifl_token_text_free(&out);
        if (!same) return NULL;
    }
    return arg;
}

static void test_one_object_serves_many_threads(void **state) {
    (void)state;
    ifl_tokenizer *tok = load("qwen");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, tok), 0);
    for (int i = 0; i < 4; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        assert_ptr_equal(result, tok);
    }
    ifl_tokenizer_free(tok);
}

/* ---- serving the comparison script: length-prefixed requests on stdin, answers on stdout ---- */

static void read_exactly(void *to, size_t n, FILE *f) {
    if (fread(to, 1, n, f) != n) exit(3);
}

static uint32_t read_u32(FILE *f) {
    uint32_t value;
    read_exactly(&value, sizeof value, f);
    return value;
}

static void write_block(const void *bytes, size_t n_elements, size_t size) {
    uint32_t n = (uint32_t)n_elements;
    fwrite(&n, sizeof n, 1, stdout);
    if (n) fwrite(bytes, size, n, stdout);
}

/* model, pre: u32 length and bytes; bos eos pad unk: i32; add_bos add_eos add_space_prefix: u32;
 * tokens: u32 n, each {u32 length, bytes, f32 score, i32 type}; merges: u32 n, each {u32 length,
 * bytes}. */
static ifl_tokenizer *load_vocab(const char *path, ifl_error *err) {
    FILE *f = fopen(path, "rb");
    if (!f) exit(3);
    char names[2][64] = {{0}};
    for (int i = 0; i < 2; i++) {
        uint32_t n = read_u32(f);
        if (n > 63) exit(3);
        read_exactly(names[i], n, f);
    }
    ifl_vocab_arrays v = {.model = names[0], .pre = names[1]};
    int32_t ids[4];
    read_exactly(ids, sizeof ids, f);
    v.bos_id = ids[0];
    v.eos_id = ids[1];
    v.pad_id = ids[2];
    v.unk_id = ids[3];
    v.add_bos = read_u32(f);
    v.add_eos = read_u32(f);
    v.add_space_prefix = read_u32(f);
    ifl_vocab_text *lists[2];
    float *scores = NULL;
    int32_t *types = NULL;
    for (int list = 0; list < 2; list++) {
        uint32_t n = read_u32(f);
        lists[list] = calloc(n + 1, sizeof **lists);
        if (list == 0) scores = calloc(n + 1, sizeof *scores);
        if (list == 0) types = calloc(n + 1, sizeof *types);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t length = read_u32(f);
            char *bytes = malloc(length + 1);
            read_exactly(bytes, length, f);
            lists[list][i] = (ifl_vocab_text){bytes, length};
            if (list == 0) read_exactly(&scores[i], sizeof *scores, f);
            if (list == 0) read_exactly(&types[i], sizeof *types, f);
        }
        *(list ? &v.n_merges : &v.n_tokens) = n;
    }
    v.tokens = lists[0];
    v.merges = lists[1];
    v.scores = scores;
    v.types = types;
    fclose(f);
    ifl_tokenizer *tok = NULL;
    int64_t start_ns = ifl_clock_ns();
    ifl_tokenizer_from_vocab(&tok, &v, err);
    fprintf(stderr, "from_vocab: %.3f s\n", (double)(ifl_clock_ns() - start_ns) * 1e-9);
    for (int list = 0; list < 2; list++) {
        for (int64_t i = 0; i < (list ? v.n_merges : v.n_tokens); i++)
            free((void *)(uintptr_t)lists[list][i].bytes);
        free(lists[list]);
    }
    free(scores);
    free(types);
    return tok;
}

/* Requests: u32 kind (1 encode, 2 decode, 3 to_json), u32 flags, u32 n, n bytes or ids. Answer to
 * encode: u32 status, ids. To decode: u32 status, text, u32 whether streaming gave the same text.
 */
static int serve(const char *kind, const char *path) {
    ifl_error err = {0};
    ifl_tokenizer *tok = NULL;
    int64_t start_ns = ifl_clock_ns();
    if (strcmp(kind, "json") == 0) {
        ifl_tokenizer_from_file(&tok, path, &err);
        fprintf(stderr, "from_json: %.3f s\n", (double)(ifl_clock_ns() - start_ns) * 1e-9);
    } else {
        tok = load_vocab(path, &err);
    }
    if (!tok) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    uint32_t head[3];
    int64_t busy_ns = 0, n_bytes = 0;
    while (fread(head, sizeof head, 1, stdin) == 1) {
        size_t size = (head[0] == 2 ? sizeof(int32_t) : 1) * (size_t)head[2];
        char *payload = malloc(size + 1);
        read_exactly(payload, size, stdin);
        ifl_token_ids ids = {0};
        ifl_token_text text = {0}, streamed = {0};
        uint32_t status = 0;
        if (head[0] == 1) {
            start_ns = ifl_clock_ns();
            status = (uint32_t)ifl_tokenizer_encode(tok, payload, size, head[1], &ids, &err);
            busy_ns += ifl_clock_ns() - start_ns;
            n_bytes += (int64_t)size;
            fwrite(&status, sizeof status, 1, stdout);
            write_block(ids.ids, ids.n, sizeof *ids.ids);
        } else if (head[0] == 2) {
            status = (uint32_t)ifl_tokenizer_decode(tok, (const int32_t *)(const void *)payload,
                                                    head[2], head[1], &text, &err);
            fwrite(&status, sizeof status, 1, stdout);
            write_block(text.bytes, text.n, 1);
            stream(tok, (const int32_t *)(const void *)payload, head[2], head[1], &streamed);
            uint32_t same = streamed.n == text.n &&
                            (!text.n || memcmp(streamed.bytes, text.bytes, text.n) == 0);
            fwrite(&same, sizeof same, 1, stdout);
        } else {
            char *json = NULL;
            size_t n = 0;
            status = (uint32_t)ifl_tokenizer_to_json(tok, &json, &n, &err);
            fwrite(&status, sizeof status, 1, stdout);
            write_block(json, n, 1);
            free(json);
        }
        ifl_token_ids_free(&ids);
        ifl_token_text_free(&text);
        ifl_token_text_free(&streamed);
        free(payload);
    }
    fprintf(stderr, "encoded %.1f MB at %.1f MB/s\n", (double)n_bytes * 1e-6,
            busy_ns ? (double)n_bytes * 1e3 / (double)busy_ns : 0.0);
    ifl_tokenizer_free(tok);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "serve") == 0) return serve(argv[2], argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_byte_level_with_qwen_pattern_equals_golden),
        cmocka_unit_test(test_byte_level_with_llama3_pattern_equals_golden),
        cmocka_unit_test(test_sentencepiece_with_byte_fallback_equals_golden),
        cmocka_unit_test(test_characters_equal_golden),
        cmocka_unit_test(test_golden_notices_an_exchanged_merge),
        cmocka_unit_test(test_special_tokens_in_text_are_text_unless_asked_for),
        cmocka_unit_test(test_unknown_character_is_an_error_and_leaves_output_alone),
        cmocka_unit_test(test_character_tokenizer_survives_its_own_json),
        cmocka_unit_test(test_detokenizer_holds_back_a_begun_character),
        cmocka_unit_test(test_ids_without_token_are_skipped),
        cmocka_unit_test(test_unsupported_components_are_named),
        cmocka_unit_test(test_a_pattern_cannot_break_out_of_an_escape),
        cmocka_unit_test(test_a_text_does_not_grow_without_bound),
        cmocka_unit_test(test_a_file_of_brackets_is_refused_before_it_is_parsed),
        cmocka_unit_test(test_malformed_files_are_refused_with_a_reason),
        cmocka_unit_test(test_escapes_in_the_vocabulary_are_read),
        cmocka_unit_test(test_malformed_vocabularies_and_merges_are_refused),
        cmocka_unit_test(test_deep_nesting_is_refused),
        cmocka_unit_test(test_cut_and_altered_files_do_not_crash),
        cmocka_unit_test(test_backtracking_pattern_is_a_limit_error),
        cmocka_unit_test(test_pattern_that_backtracks_at_every_place_is_a_limit_error),
        cmocka_unit_test(test_growing_normalizers_are_a_limit_error),
        cmocka_unit_test(test_long_texts_are_not_quadratic),
        cmocka_unit_test(test_llama_vocabulary_merges_the_best_score_first),
        cmocka_unit_test(test_llama_vocabulary_with_space_prefix_round_trips),
        cmocka_unit_test(test_lying_vocabularies_are_refused),
        cmocka_unit_test(test_gpt2_vocabulary_equals_its_tokenizer_json),
        cmocka_unit_test(test_one_object_serves_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

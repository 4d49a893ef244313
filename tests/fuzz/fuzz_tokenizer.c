/* common/tokenizer.h: a tokenizer.json, then 0xff and a text for it (there is one for files that
 * bring none). Ids that come out of a text are the vocabulary's, texts that come out of ids are
 * UTF-8, and a tokenizer's own JSON makes the same tokenizer. */
#include "common/tokenizer.h"
#include "common/tokenizer_impl.h"
#include "tests/fuzz/fuzz.h"

#define TEXT_MAX 256

static void check_utf8(const char *text, size_t n) {
    FUZZ_CHECK(n == 0 || ifl_utf8_valid(text, n));
}

static void decode(const ifl_tokenizer *tok, const ifl_token_ids *ids, unsigned flags) {
    ifl_error err = {0};
    ifl_token_text text = {0};
    ifl_detokenizer *detok = NULL;
    if (ifl_tokenizer_decode(tok, ids->ids, ids->n, flags, &text, &err) == IFL_OK)
        check_utf8(text.bytes, text.n);
    ifl_token_text_free(&text);
    if (ifl_detokenizer_create(&detok, tok, flags, &err) == IFL_OK) {
        const char *bytes;
        size_t n;
        ifl_status st = IFL_OK;
        for (size_t i = 0; st == IFL_OK && i < ids->n; i++) {
            st = ifl_detokenizer_push(detok, ids->ids[i], &bytes, &n, &err);
            if (st == IFL_OK) check_utf8(bytes, n);
        }
        if (st == IFL_OK) st = ifl_detokenizer_finish(detok, &bytes, &n, &err);
        if (st == IFL_OK) check_utf8(bytes, n);
    }
    ifl_detokenizer_free(detok);
}

static void use(const ifl_tokenizer *tok, const char *text, size_t n) {
    ifl_error err = {0};
    ifl_token_ids ids = {0};
    for (unsigned flags = 0; flags < 4; flags += 3) {
        ids.n = 0;
        if (ifl_tokenizer_encode(tok, text, n, flags, &ids, &err) != IFL_OK) continue;
        for (size_t i = 0; i < ids.n; i++)
            FUZZ_CHECK(ifl_tokenizer_token(tok, ids.ids[i], NULL));
        decode(tok, &ids, flags ? IFL_DECODE_SKIP_SPECIAL : 0);
    }
    /* Ids that no text gives, too: a model samples what it likes. */
    ids.n = 0;
    for (size_t i = 0; i < n && i < 64 && ids.n < ids.cap; i++)
        ids.ids[ids.n++] = (int32_t)(unsigned char)text[i];
    decode(tok, &ids, 0);
    ifl_token_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char other[] =
        "It's 2024: caf\xc3\xa9, na\xc3\xafve <s>\xe2\x96\x81 x\n\n\t\xf0\x9f"
        "\x98\x80 \xc3 [lst] end";
    fuzz_input in = fuzz_input_of(data, size);
    fuzz_input json = fuzz_take_until(&in, 0xff);
    uint8_t *exact = fuzz_copy(json), *own = fuzz_copy(in);
    ifl_tokenizer *tok = NULL, *again = NULL;
    ifl_error err = {0};
    if (ifl_tokenizer_from_json(&tok, (const char *)exact, fuzz_left(&json), &err) == IFL_OK) {
        use(tok, other, sizeof other - 1);
        /* A hostile pattern may take its millions of steps at each character: few of these. */
        use(tok, (const char *)own, fuzz_left(&in) < TEXT_MAX ? fuzz_left(&in) : TEXT_MAX);
        char *text = NULL;
        size_t n = 0;
        if (ifl_tokenizer_to_json(tok, &text, &n, &err) == IFL_OK) {
            FUZZ_CHECK(ifl_tokenizer_from_json(&again, text, n, &err) == IFL_OK);
            FUZZ_CHECK(ifl_hash_equal(ifl_tokenizer_hash(tok), ifl_tokenizer_hash(again)));
        }
        free(text);
        text = NULL;
        (void)tokenizer_write_json(tok, &text, &n, &err);
        free(text);
    }
    ifl_tokenizer_free(tok);
    ifl_tokenizer_free(again);
    free(exact);
    free(own);
    return 0;
}

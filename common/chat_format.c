#include "common/chat_format.h"

#include "common/memory.h"
#include "common/tokenizer_impl.h"

#include <string.h>

typedef struct chat_markers {
    const char *name;
    const char *begin, *open, *close; /* special tokens; NULL = none */
    const char *stops[IFL_CHAT_STOPS_MAX];
} chat_markers;

static const chat_markers CHAT_FORMATS[] = {
    [IFL_CHAT_NONE] = {"none", NULL, NULL, NULL, {NULL}},
    [IFL_CHAT_LLAMA3] = {"llama3",
                         "<|begin_of_text|>",
                         "<|start_header_id|>",
                         "<|eot_id|>",
                         {"<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"}},
    [IFL_CHAT_CHATML] =
        {"chatml", NULL, "<|im_start|>", "<|im_end|>", {"<|im_end|>", "<|endoftext|>"}},
    [IFL_CHAT_GEMMA] =
        {"gemma", "<bos>", "<start_of_turn>", "<end_of_turn>", {"<end_of_turn>", "<eos>"}},
};

ifl_status ifl_chat_format_parse(const char *name, ifl_chat_format *out, ifl_error *err) {
    for (size_t i = 0; i < sizeof CHAT_FORMATS / sizeof *CHAT_FORMATS; i++)
        if (strcmp(name, CHAT_FORMATS[i].name) == 0) {
            *out = (ifl_chat_format)i;
            return IFL_OK;
        }
    return ifl_fail(err, IFL_NOTFOUND,
                    "chat format '%.80s' is unknown: none, llama3, chatml and gemma are there",
                    name);
}

const char *ifl_chat_format_name(ifl_chat_format format) {
    return CHAT_FORMATS[format].name;
}

/* Text that has not been encoded yet: markers cut it, everything between two markers is encoded at
 * once, as it would be in the rendered string. */
typedef struct chat_writer {
    const ifl_tokenizer *tok;
    const chat_markers *markers;
    ifl_token_text text;
    ifl_token_ids *out;
    ifl_error *err;
} chat_writer;

static ifl_status chat_text(chat_writer *w, const char *text) {
    return token_text_append(&w->text, text, strlen(text), w->err);
}

static ifl_status chat_flush(chat_writer *w) {
    if (w->text.n == 0) return IFL_OK;
    IFL_TRY(ifl_tokenizer_encode(w->tok, w->text.bytes, w->text.n, 0, w->out, w->err));
    w->text.n = 0;
    return IFL_OK;
}

static ifl_status chat_marker(chat_writer *w, const char *marker) {
    IFL_TRY(chat_flush(w));
    int32_t id = ifl_tokenizer_id(w->tok, marker, strlen(marker));
    if (id < 0)
        return ifl_fail(w->err, IFL_NOTFOUND,
                        "chat format %s needs the token %s, which the vocabulary lacks: choose "
                        "the format that the model was trained with",
                        w->markers->name, marker);
    IFL_TRY(
        ifl_grow((void **)&w->out->ids, &w->out->cap, w->out->n + 1, sizeof *w->out->ids, w->err));
    w->out->ids[w->out->n++] = id;
    return IFL_OK;
}

/* The content without the white space around it, as the formats' own templates trim it. */
static ifl_status chat_stripped(chat_writer *w, const char *text, size_t n) {
    size_t start = 0, end = 0;
    bool seen = false;
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t length = ifl_utf8_decode(text + i, n - i, &cp, NULL);
        bool space = ifl_unicode_is_space(cp) ||
                     (cp >= 0x1c && cp <= 0x1f); /* Python's strip takes these too */
        if (!space && !seen) start = i;
        if (!space) end = i + length;
        seen = seen || !space;
        i += length;
    }
    return seen ? token_text_append(&w->text, text + start, end - start, w->err) : IFL_OK;
}

static bool role_is(const ifl_chat_message *m, const char *role) {
    return m->role && strcmp(m->role, role) == 0;
}

static ifl_status role_check(const chat_writer *w, const ifl_chat_message *m, size_t index,
                             bool tool_allowed) {
    if (role_is(m, "system") || role_is(m, "user") || role_is(m, "assistant") ||
        (tool_allowed && role_is(m, "tool")))
        return IFL_OK;
    return ifl_fail(w->err, IFL_FORMAT,
                    "message %zu has the role '%.40s', chat format %s has system, user%s", index,
                    m->role ? m->role : "(none)", w->markers->name,
                    tool_allowed ? ", assistant and tool" : " and assistant");
}

static ifl_status llama3_header(chat_writer *w, const char *role) {
    IFL_TRY(chat_marker(w, w->markers->open));
    IFL_TRY(chat_text(w, role));
    IFL_TRY(chat_marker(w, "<|end_header_id|>"));
    return chat_text(w, "\n\n");
}

static ifl_status render_llama3(chat_writer *w, const ifl_chat_message *m, size_t n,
                                bool generate) {
    for (size_t i = 0; i < n; i++) {
        IFL_TRY(role_check(w, &m[i], i, false));
        IFL_TRY(llama3_header(w, m[i].role));
        IFL_TRY(chat_stripped(w, m[i].content, m[i].n_content));
        IFL_TRY(chat_marker(w, w->markers->close));
    }
    return generate ? llama3_header(w, "assistant") : IFL_OK;
}

static ifl_status turn_open(chat_writer *w, const char *role) {
    IFL_TRY(chat_marker(w, w->markers->open));
    IFL_TRY(chat_text(w, role));
    return chat_text(w, "\n");
}

static ifl_status render_chatml(chat_writer *w, const ifl_chat_message *m, size_t n,
                                bool generate) {
    for (size_t i = 0; i < n; i++) {
        IFL_TRY(role_check(w, &m[i], i, true));
        IFL_TRY(turn_open(w, m[i].role));
        IFL_TRY(token_text_append(&w->text, m[i].content, m[i].n_content, w->err));
        IFL_TRY(chat_marker(w, w->markers->close));
        IFL_TRY(chat_text(w, "\n"));
    }
    return generate ? turn_open(w, "assistant") : IFL_OK;
}

static ifl_status render_gemma(chat_writer *w, const ifl_chat_message *m, size_t n, bool generate) {
    const ifl_chat_message *system = n && role_is(&m[0], "system") ? &m[0] : NULL;
    for (size_t i = system ? 1 : 0; i < n; i++) {
        IFL_TRY(role_check(w, &m[i], i, false));
        bool user = (i - (system ? 1 : 0)) % 2 == 0;
        if (!role_is(&m[i], user ? "user" : "assistant"))
            return ifl_fail(
                w->err, IFL_FORMAT,
                "message %zu has the role '%s', chat format gemma wants '%s' there: user "
                "and assistant alternate after an optional system message",
                i, m[i].role, user ? "user" : "assistant");
        IFL_TRY(turn_open(w, user ? "user" : "model"));
        if (system && i == 1) {
            IFL_TRY(token_text_append(&w->text, system->content, system->n_content, w->err));
            IFL_TRY(chat_text(w, "\n\n"));
        }
        IFL_TRY(chat_stripped(w, m[i].content, m[i].n_content));
        IFL_TRY(chat_marker(w, w->markers->close));
        IFL_TRY(chat_text(w, "\n"));
    }
    return generate ? turn_open(w, "model") : IFL_OK;
}

static ifl_status render_none(chat_writer *w, const ifl_chat_message *m, size_t n) {
    for (size_t i = 0; i < n; i++)
        IFL_TRY(token_text_append(&w->text, m[i].content, m[i].n_content, w->err));
    ifl_status st = ifl_tokenizer_encode(w->tok, w->text.n ? w->text.bytes : "", w->text.n,
                                         IFL_ENCODE_SPECIAL, w->out, w->err);
    w->text.n = 0;
    return st;
}

ifl_status ifl_chat_format_render(ifl_chat_format format, const ifl_tokenizer *tok,
                                  const ifl_chat_message *messages, size_t n_messages,
                                  bool add_generation_prompt, ifl_token_ids *out, ifl_error *err) {
    IFL_ASSERT((size_t)format < sizeof CHAT_FORMATS / sizeof *CHAT_FORMATS);
    if (n_messages > IFL_CHAT_MESSAGES_MAX)
        return ifl_fail(err, IFL_LIMIT, "a conversation of %zu messages, at most %d", n_messages,
                        IFL_CHAT_MESSAGES_MAX);
    size_t n_before = out->n, n_bytes = 0;
    for (size_t i = 0; i < n_messages; i++)
        if (messages[i].n_content > IFL_TOKENIZER_TEXT_BYTES_MAX ||
            (n_bytes += messages[i].n_content) > IFL_TOKENIZER_TEXT_BYTES_MAX)
            return ifl_fail(err, IFL_LIMIT, "a conversation of more than %zu bytes",
                            IFL_TOKENIZER_TEXT_BYTES_MAX);
    chat_writer w = {.tok = tok, .markers = &CHAT_FORMATS[format], .out = out, .err = err};
    ifl_status st = w.markers->begin ? chat_marker(&w, w.markers->begin) : IFL_OK;
    if (st == IFL_OK && format == IFL_CHAT_NONE) st = render_none(&w, messages, n_messages);
    if (st == IFL_OK && format == IFL_CHAT_LLAMA3)
        st = render_llama3(&w, messages, n_messages, add_generation_prompt);
    if (st == IFL_OK && format == IFL_CHAT_CHATML)
        st = render_chatml(&w, messages, n_messages, add_generation_prompt);
    if (st == IFL_OK && format == IFL_CHAT_GEMMA)
        st = render_gemma(&w, messages, n_messages, add_generation_prompt);
    if (st == IFL_OK) st = chat_flush(&w);
    if (st != IFL_OK) out->n = n_before;
    ifl_token_text_free(&w.text);
    return st;
}

int32_t ifl_chat_format_stops(ifl_chat_format format, const ifl_tokenizer *tok,
                              int32_t out[IFL_CHAT_STOPS_MAX]) {
    int32_t n = 0;
    for (int32_t i = 0; i < IFL_CHAT_STOPS_MAX && CHAT_FORMATS[format].stops[i]; i++) {
        const char *stop = CHAT_FORMATS[format].stops[i];
        int32_t id = ifl_tokenizer_id(tok, stop, strlen(stop));
        if (id >= 0) out[n++] = id;
    }
    if (n == 0 && format == IFL_CHAT_NONE && ifl_tokenizer_eos(tok) >= 0)
        out[n++] = ifl_tokenizer_eos(tok);
    return n;
}

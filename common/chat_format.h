/* Conversations as token ids. A format's own markers are special tokens of the vocabulary; what a
 * message says is encoded as plain text, so that no message can smuggle in a marker. */
#ifndef IFL_COMMON_CHAT_FORMAT_H
#define IFL_COMMON_CHAT_FORMAT_H

#include "common/tokenizer.h"

#define IFL_CHAT_MESSAGES_MAX 4096
#define IFL_CHAT_STOPS_MAX 4

/* NONE: the contents one after another, beginning as the tokenizer begins a text.
 * LLAMA3: <|begin_of_text|>, then <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>;
 * contents are stripped of outer white space (Meta, "Llama 3 model card and prompt formats").
 * CHATML: <|im_start|>role\ncontent<|im_end|>\n (Qwen2, 2.5, 3); no default system message is
 * added. GEMMA: <bos>, then <start_of_turn>role\ncontent<end_of_turn>\n; "assistant" is written
 * "model", a first system message goes before the first user message with an empty line between;
 * contents are stripped (Gemma 3 technical report, table 4). */
typedef enum { IFL_CHAT_NONE, IFL_CHAT_LLAMA3, IFL_CHAT_CHATML, IFL_CHAT_GEMMA } ifl_chat_format;

typedef struct ifl_chat_message {
    const char *role; /* "system", "user", "assistant" or "tool" (CHATML); NONE takes any */
    const char *content;
    size_t n_content;
} ifl_chat_message;

/* "none", "llama3", "chatml", "gemma". IFL_NOTFOUND for others. */
ifl_status ifl_chat_format_parse(const char *name, ifl_chat_format *out, ifl_error *err);
const char *ifl_chat_format_name(ifl_chat_format format);

/* Appends the conversation's ids to `out`. `add_generation_prompt` opens the assistant's turn
 * (NONE: does nothing). IFL_NOTFOUND when the vocabulary lacks a marker, IFL_FORMAT for a role or
 * an order of roles that the format doesn't have. On failure `out` is as before. */
ifl_status ifl_chat_format_render(ifl_chat_format format, const ifl_tokenizer *tok,
                                  const ifl_chat_message *messages, size_t n_messages,
                                  bool add_generation_prompt, ifl_token_ids *out, ifl_error *err);

/* The tokens that end the assistant's turn and those that end a text, as far as the vocabulary has
 * them. NONE: the tokenizer's end of sequence. Returns how many. */
int32_t ifl_chat_format_stops(ifl_chat_format format, const ifl_tokenizer *tok,
                              int32_t out[IFL_CHAT_STOPS_MAX]);

#endif

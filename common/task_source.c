#include "common/task_source.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/rng.h"
#include "common/trajectory.h"

#define PROMPT_BYTES_MAX ((size_t)8 << 20)
#define WORKED_INDEX                                                                               \
    (1u << 23) /* beyond a draw's attempts: an example's text doesn't move its task */

/* Streams of IFL_RNG_TASK: two per source. */
static uint64_t stream_of(int32_t index, bool examples) {
    return 2 * (uint64_t)index + examples;
}

/* --- Prompts: few-shots, then the template around the task's text
 * -------------------------------------- */

static const char *source_few_shot(const ifl_task_source *s) {
    if (*s->config.few_shot) return s->config.few_shot;
    return s->file ? "" : ifl_generator_few_shot(&s->tasks);
}

/* Every "{prompt}" of the template becomes `text`. */
static ifl_status prompt_render(const ifl_task_source *s, const char *text, char **out,
                                ifl_error *err) {
    static const char mark[] = "{prompt}";
    const char *template_text = *s->config.template_text ? s->config.template_text : mark;
    const char *few_shot = source_few_shot(s);
    size_t n_text = strlen(text), n_few = strlen(few_shot), n_marks = 0;
    for (const char *p = template_text; (p = strstr(p, mark)); p += sizeof mark - 1)
        n_marks++;
    if (n_text > PROMPT_BYTES_MAX || (n_marks > 0 && n_text > PROMPT_BYTES_MAX / n_marks))
        return ifl_fail(err, IFL_LIMIT, "%s: a prompt of %zu bytes, limit %zu", s->where, n_text,
                        PROMPT_BYTES_MAX);
    char *p = malloc(n_few + strlen(template_text) + n_marks * n_text + 1);
    if (!p) return ifl_fail(err, IFL_NOMEM, "%s: no memory for a prompt", s->where);
    *out = p;
    memcpy(p, few_shot, n_few);
    p += n_few;
    for (const char *at = template_text;;) {
        const char *next = strstr(at, mark);
        size_t n = next ? (size_t)(next - at) : strlen(at);
        memcpy(p, at, n);
        p += n;
        if (!next) break;
        memcpy(p, text, n_text);
        p += n_text;
        at = next + sizeof mark - 1;
    }
    *p = '\0';
    return IFL_OK;
}

/* Hands the ids to the task. */
static ifl_status prompt_own(const ifl_task_source *s, ifl_token_ids *ids, ifl_task *task,
                             ifl_error *err) {
    if (ids->n > IFL_TOKENS_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: the prompt of task %s has %zu tokens, limit %d",
                        s->where, task->id, ids->n, IFL_TOKENS_MAX);
    task->n_prompt = (int32_t)ids->n;
    task->prompt = ids->ids; /* malloc'ed: free() fits */
    memset(ids, 0, sizeof *ids);
    return IFL_OK;
}

/* With a chat format the text is the user's turn. Without one it is encoded as it stands; markers
 * such as <start_of_turn> written in a template become their tokens, in a task's own text alone
 * they don't. */
static ifl_status prompt_encode(const ifl_task_source *s, ifl_task *task, ifl_error *err) {
    ifl_token_ids ids = {0};
    size_t n = strlen(task->text);
    if (!s->tokenizer) return IFL_OK;
    ifl_status st;
    if (s->chat_format != IFL_CHAT_NONE) {
        ifl_chat_message message = {"user", task->text, n};
        st = ifl_chat_format_render(s->chat_format, s->tokenizer, &message, 1, true, &ids, err);
    } else {
        unsigned flags = IFL_ENCODE_SPECIAL;
        if (*s->config.template_text) flags |= IFL_ENCODE_PARSE_SPECIAL;
        st = ifl_tokenizer_encode(s->tokenizer, task->text, n, flags, &ids, err);
    }
    if (st == IFL_OK)
        st = prompt_own(s, &ids, task, err);
    else if (err)
        ifl_error_wrap(err, "%s: prompt of task %s", s->where, task->id);
    ifl_token_ids_free(&ids);
    return st;
}

static ifl_status prompt_no_frame(const ifl_task_source *s, const ifl_task *task, const char *what,
                                  ifl_error *err) {
    if (!*s->config.template_text && !*s->config.few_shot) return IFL_OK;
    return ifl_fail(
        err, IFL_FORMAT,
        "%s: task %s has %s as its prompt, which no template and no few_shot can be put "
        "around: drop those keys or write the prompt as text",
        s->where, task->id, what);
}

/* The ids of a conversation; for people also their text. */
static ifl_status prompt_take_messages(const ifl_task_source *s, const json_t *list, ifl_task *task,
                                       ifl_error *err) {
    ifl_chat_message messages[IFL_TASK_MESSAGES_MAX];
    ifl_token_ids ids = {0};
    ifl_token_text text = {0};
    size_t n = json_array_size(list);
    IFL_ASSERT(n <= IFL_TASK_MESSAGES_MAX);
    IFL_TRY(prompt_no_frame(s, task, "messages", err));
    if (!s->tokenizer) return IFL_OK;
    for (size_t i = 0; i < n; i++) {
        const json_t *message = json_array_get(list, i),
                     *content = json_object_get(message, "content");
        messages[i] = (ifl_chat_message){json_string_value(json_object_get(message, "role")),
                                         json_string_value(content), json_string_length(content)};
    }
    ifl_status st =
        ifl_chat_format_render(s->chat_format, s->tokenizer, messages, n, true, &ids, err);
    if (st == IFL_OK) st = ifl_tokenizer_decode(s->tokenizer, ids.ids, ids.n, 0, &text, err);
    if (st == IFL_OK && !(task->text = strndup(text.n ? text.bytes : "", text.n)))
        st = ifl_fail(err, IFL_NOMEM, "no memory for a prompt");
    if (st == IFL_OK)
        st = prompt_own(s, &ids, task, err);
    else if (err)
        ifl_error_wrap(err, "%s: prompt of task %s", s->where, task->id);
    ifl_token_ids_free(&ids);
    ifl_token_text_free(&text);
    return st;
}

static ifl_status prompt_take_ids(const ifl_task_source *s, const json_t *list, ifl_task *task,
                                  ifl_error *err) {
    size_t n = json_array_size(list);
    int32_t id_end = s->tokenizer ? ifl_tokenizer_vocab_size(s->tokenizer) : INT32_MAX;
    IFL_TRY(prompt_no_frame(s, task, "token ids", err));
    task->prompt = malloc(n * sizeof *task->prompt);
    if (!task->prompt) return ifl_fail(err, IFL_NOMEM, "%s: no memory for a prompt", s->where);
    task->n_prompt = (int32_t)n;
    for (size_t i = 0; i < n; i++) {
        int64_t id = json_integer_value(json_array_get(list, i));
        if (id >= id_end)
            return ifl_fail(err, IFL_FORMAT,
                            "%s: task %s: token id %" PRId64 " of its prompt is outside the "
                            "vocabulary of %d tokens",
                            s->where, task->id, id, id_end);
        task->prompt[i] = (int32_t)id;
    }
    return IFL_OK;
}

static ifl_status prompt_check(const ifl_task_source *s, const ifl_task *task, ifl_error *err) {
    if (!task->prompt) return IFL_OK;
    if (task->n_prompt == 0)
        return ifl_fail(err, IFL_FORMAT,
                        "%s: the prompt of task %s has no token: a model needs one "
                        "to start from",
                        s->where, task->id);
    if (task->n_prompt > s->prompt_tokens_max)
        return ifl_fail(err, IFL_LIMIT,
                        "%s: the prompt of task %s has %d tokens, data.prompt_tokens_max is %d",
                        s->where, task->id, task->n_prompt, s->prompt_tokens_max);
    return IFL_OK;
}

/* --- Files
 * --------------------------------------------------------------------------------------------- */

static ifl_status file_get(const ifl_task_source *s, int64_t index, ifl_task *out,
                           char **completion, ifl_error *err) {
    ifl_task_line line;
    ifl_status st = ifl_task_file_read(s->file, index, &line, err);
    if (st != IFL_OK) return st;
    ifl_task *task = &line.task;
    if (line.ids) {
        st = prompt_take_ids(s, line.ids, task, err);
    } else if (line.messages) {
        st = prompt_take_messages(s, line.messages, task, err);
    } else {
        st = prompt_render(s, line.text, &task->text, err);
        if (st == IFL_OK) st = prompt_encode(s, task, err);
    }
    if (st == IFL_OK) st = prompt_check(s, task, err);
    if (st == IFL_OK && *s->config.checker) {
        free(task->checker);
        task->checker = strdup(s->config.checker);
        if (!task->checker) st = ifl_fail(err, IFL_NOMEM, "%s: no memory for a task", s->where);
    }
    if (st == IFL_OK && completion) {
        const char *wanted = line.completion ? line.completion : task->answer;
        if (!*wanted)
            st = ifl_fail(err, IFL_FORMAT,
                          "%s: %s:%" PRId64 ": neither a completion nor an answer to learn from",
                          s->where, s->config.path, ifl_task_file_line(s->file, index));
        else if (!(*completion = strdup(wanted)))
            st = ifl_fail(err, IFL_NOMEM, "%s: no memory for an example", s->where);
    }
    if (st == IFL_OK) {
        *out = *task;
        memset(task, 0, sizeof *task); /* the caller owns it now */
    }
    ifl_task_line_clear(&line);
    return st;
}

/* Which tasks have prompts short enough. A prompt that can't be made at all is an error here, not
 * in the middle of a run. */
static ifl_status file_choose(ifl_task_source *s, ifl_error *err) {
    int64_t n = ifl_task_file_size(s->file);
    s->kept = ifl_alloc((size_t)n, sizeof *s->kept);
    if (!s->kept) return ifl_fail(err, IFL_NOMEM, "%s: no memory for its index", s->where);
    if (!s->tokenizer) { /* texts only: nothing to measure */
        for (; s->n < n; s->n++)
            s->kept[s->n] = s->n;
        return IFL_OK;
    }
    for (int64_t i = 0; i < n; i++) {
        ifl_task task;
        ifl_error why = {0};
        ifl_status st = file_get(s, i, &task, NULL, &why);
        if (st == IFL_OK) {
            s->kept[s->n++] = i;
            ifl_task_clear(&task);
        } else if (st != IFL_LIMIT) {
            if (err) *err = why;
            return st;
        } else if (s->n == 0 && i == n - 1) {
            return ifl_fail(err, IFL_LIMIT,
                            "%s: all %" PRId64 " prompts of %s are too long; the last: %s",
                            s->where, n, s->config.path, why.text);
        }
    }
    if (s->n < n)
        ifl_warn("%s: %" PRId64 " of %" PRId64
                 " prompts of %s are longer than data.prompt_tokens_max "
                 "(%d tokens) and left out",
                 s->where, n - s->n, n, s->config.path, s->prompt_tokens_max);
    return IFL_OK;
}

/* A benchmark's tasks must not be trained on, by mistake or by a copied line of a configuration. */
static ifl_status file_check_purpose(const ifl_task_source *s, ifl_error *err) {
    int64_t line = ifl_task_file_eval_only_line(s->file);
    if (line == 0) return IFL_OK;
    return ifl_fail(err, IFL_MISMATCH,
                    "%s: %s:%" PRId64 ": this task is for evaluation only (eval_only) and must not "
                    "be trained on; name the file under data.eval",
                    s->where, s->config.path, line);
}

/* --- Generators
 * ---------------------------------------------------------------------------------------- */

static ifl_status generator_make(const ifl_task_source *s, const ifl_generator *g, uint32_t item,
                                 ifl_task *out, ifl_error *err) {
    char prompt[IFL_GENERATOR_TEXT_MAX], answer[IFL_GENERATOR_TEXT_MAX], id[IFL_TASK_ID_MAX];
    ifl_task task = {.weight = 1.0};
    ifl_generator_prompt(g, item, prompt);
    ifl_generator_answer(g, item, answer);
    snprintf(id, sizeof id, "%s:%s", ifl_generator_name(g), prompt);
    task.id = strdup(id);
    task.data_source = strdup(s->name);
    task.checker = strdup(*s->config.checker ? s->config.checker : ifl_generator_checker(g));
    task.answer = strdup(answer);
    task.meta = strdup(ifl_generator_meta(g));
    ifl_status st = IFL_OK;
    json_t *meta = json_loads(ifl_generator_meta(g), 0, NULL);
    json_t *line = json_pack("{s:s, s:s, s:s, s:s, s:s, s:o}", "id", id, "data_source", s->name,
                             "prompt", prompt, "checker", task.checker ? task.checker : "",
                             "answer", answer, "meta", meta);
    if (line) task.line = json_dumps(line, JSON_COMPACT);
    json_decref(line);
    if (!task.id || !task.data_source || !task.checker || !task.answer || !task.meta || !task.line)
        st = ifl_fail(err, IFL_NOMEM, "%s: no memory for a task", s->where);
    if (st == IFL_OK) st = prompt_render(s, prompt, &task.text, err);
    if (st == IFL_OK) st = prompt_encode(s, &task, err);
    if (st == IFL_OK) st = prompt_check(s, &task, err);
    if (st == IFL_OK)
        *out = task;
    else
        ifl_task_clear(&task);
    return st;
}

/* --- Both
 * ---------------------------------------------------------------------------------------------- */

ifl_status ifl_task_source_get(const ifl_task_source *s, uint64_t item, ifl_task *out,
                               ifl_error *err) {
    memset(out, 0, sizeof *out);
    if (s->file) return file_get(s, s->kept[item], out, NULL, err);
    return generator_make(s, &s->tasks, ifl_generator_draw(&s->tasks, item), out, err);
}

ifl_status ifl_task_source_example(const ifl_task_source *s, uint64_t item, double worked_share,
                                   ifl_task *out, char **completion, ifl_error *err) {
    memset(out, 0, sizeof *out);
    *completion = NULL;
    if (s->file) return file_get(s, s->kept[item], out, completion, err);
    const ifl_generator *g = &s->examples;
    ifl_rng_key key = {s->seed, g->stream, IFL_RNG_TASK};
    bool worked = (double)ifl_rng_uniform(&key, item, WORKED_INDEX) < worked_share;
    uint32_t drawn = ifl_generator_draw(g, item);
    char text[IFL_GENERATOR_TEXT_MAX];
    ifl_generator_completion(g, drawn, worked, text);
    IFL_TRY(generator_make(s, g, drawn, out, err));
    *completion = strdup(text);
    if (*completion) return IFL_OK;
    ifl_task_clear(out);
    return ifl_fail(err, IFL_NOMEM, "%s: no memory for an example", s->where);
}

uint64_t ifl_task_source_id(const ifl_task_source *s, uint64_t item) {
    if (s->file) return ifl_task_file_id(s->file, s->kept[item]).low;
    char prompt[IFL_GENERATOR_TEXT_MAX], id[IFL_TASK_ID_MAX];
    ifl_generator_prompt(&s->tasks, ifl_generator_draw(&s->tasks, item), prompt);
    snprintf(id, sizeof id, "%s:%s", ifl_generator_name(&s->tasks), prompt);
    return ifl_hash_bytes(id, strlen(id)).low;
}

ifl_status ifl_task_source_keys(const ifl_task_source *s, ifl_hash **keys, int64_t *n,
                                ifl_error *err) {
    int64_t n_max = s->file ? ifl_task_file_size(s->file) : (int64_t)s->tasks.n_space;
    *n = 0;
    *keys = malloc((size_t)n_max * sizeof **keys);
    if (!*keys) return ifl_fail(err, IFL_NOMEM, "%s: no memory for its hashes", s->where);
    for (int64_t i = 0; i < n_max; i++) {
        char prompt[IFL_GENERATOR_TEXT_MAX], answer[IFL_GENERATOR_TEXT_MAX];
        if (s->file) {
            (*keys)[(*n)++] = ifl_task_file_key(s->file, i);
        } else if (ifl_generator_has(&s->tasks, (uint32_t)i)) {
            ifl_generator_prompt(&s->tasks, (uint32_t)i, prompt);
            ifl_generator_answer(&s->tasks, (uint32_t)i, answer);
            (*keys)[(*n)++] = ifl_task_key(prompt, answer);
        }
    }
    return IFL_OK;
}

void ifl_task_source_describe(const ifl_task_source *s, int64_t key_index,
                              char out[IFL_PATH_MAX + 128]) {
    if (s->file) {
        snprintf(out, IFL_PATH_MAX + 128, "%s (%s:%" PRId64 ")", s->where, s->config.path,
                 ifl_task_file_line(s->file, key_index));
        return;
    }
    char prompt[IFL_GENERATOR_TEXT_MAX] = "";
    for (uint32_t item = 0; item < s->tasks.n_space; item++) {
        if (!ifl_generator_has(&s->tasks, item) || key_index-- > 0) continue;
        ifl_generator_prompt(&s->tasks, item, prompt);
        break;
    }
    snprintf(out, IFL_PATH_MAX + 128, "%s (generator %s, split %s, '%.40s')", s->where,
             ifl_generator_name(&s->tasks), s->tasks.heldout ? "heldout" : "train", prompt);
}

static ifl_status generator_open(ifl_task_source *s, int32_t index, ifl_error *err) {
    ifl_task probe;
    IFL_TRY(
        ifl_generator_init(&s->tasks, &s->config, s->seed, stream_of(index, false), s->where, err));
    /* A finite set is one set: its examples are its tasks. */
    bool finite = s->tasks.n_items > 0;
    IFL_TRY(ifl_generator_init(&s->examples, &s->config, s->seed, stream_of(index, !finite),
                               s->where, err));
    s->n = s->tasks.n_items;
    IFL_TRY(ifl_task_source_get(s, 0, &probe, err)); /* the tokenizer may lack its characters */
    ifl_task_clear(&probe);
    return IFL_OK;
}

ifl_status ifl_task_source_open(ifl_task_source *s, const ifl_config *config, const char *purpose,
                                int32_t index, const ifl_tokenizer *tokenizer, uint64_t seed,
                                ifl_error *err) {
    memset(s, 0, sizeof *s);
    s->config = strcmp(purpose, "eval") == 0 ? config->data.eval[index] : config->data.train[index];
    snprintf(s->where, sizeof s->where, "data.%s.%d", purpose, index);
    if (*config->data.chat_format)
        IFL_TRY(ifl_chat_format_parse(config->data.chat_format, &s->chat_format, err));
    s->tokenizer = tokenizer;
    s->prompt_tokens_max = config->data.prompt_tokens_max;
    s->seed = seed;
    bool has_path = *s->config.path, has_generator = *s->config.generator;
    if (has_path == has_generator)
        return ifl_fail(err, IFL_USAGE, "%s: got %s, wanted exactly one of path and generator",
                        s->where, has_path ? "both" : "neither");
    const char *slash = strrchr(s->config.path, '/');
    const char *fallback = has_generator ? s->config.generator : slash ? slash + 1 : s->config.path;
    snprintf(s->name, sizeof s->name, "%s", *s->config.name ? s->config.name : fallback);
    ifl_status st;
    if (has_generator) {
        st = generator_open(s, index, err);
    } else {
        st = ifl_task_file_open(&s->file, s->config.path, s->name, s->config.count, err);
        if (st != IFL_OK && err) ifl_error_wrap(err, "%s", s->where);
        if (st == IFL_OK && strcmp(purpose, "eval") != 0) st = file_check_purpose(s, err);
        if (st == IFL_OK) st = file_choose(s, err);
    }
    if (st != IFL_OK) ifl_task_source_close(s);
    return st;
}

void ifl_task_source_close(ifl_task_source *s) {
    ifl_task_file_close(s->file);
    ifl_generator_clear(&s->tasks);
    ifl_generator_clear(&s->examples);
    ifl_free(s->kept);
    s->file = NULL;
    s->kept = NULL;
    s->n = 0;
}

#include "common/task_file.h"

#include <stdlib.h>
#include <string.h>

#include "common/file_map.h"
#include "common/json_util.h"
#include "common/memory.h"
#include "common/trajectory.h"

typedef struct file_entry {
    uint64_t offset, bytes_hash;
    uint32_t n_bytes;
    int64_t line;
    ifl_hash id, key;
} file_entry;

struct ifl_task_file {
    ifl_file_map map;
    char *name;
    file_entry *entries;
    size_t n_entries, cap_entries;
    int64_t eval_only_line; /* the first such; 0: none */
};

static char *text_copy(const char *text) {
    return strdup(text ? text : "");
}

ifl_hash ifl_task_key(const char *prompt, const char *answer) {
    ifl_hash parts[2] = {ifl_hash_bytes(prompt, strlen(prompt)),
                         ifl_hash_bytes(answer, strlen(answer))};
    return ifl_hash_bytes(parts, sizeof parts);
}

static ifl_status messages_check(const json_t *list, ifl_error *err) {
    size_t n = json_array_size(list);
    if (n > IFL_TASK_MESSAGES_MAX)
        return ifl_fail(err, IFL_LIMIT, "prompt: got %zu messages, limit %d", n,
                        IFL_TASK_MESSAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *message = json_array_get(list, i);
        if (!json_is_string(json_object_get(message, "role")) ||
            !json_is_string(json_object_get(message, "content")))
            return ifl_fail(err, IFL_FORMAT,
                            "prompt: message %zu wants the texts 'role' and 'content'", i);
    }
    return IFL_OK;
}

static ifl_status ids_check(const json_t *list, ifl_error *err) {
    size_t n = json_array_size(list);
    if (n > IFL_TOKENS_MAX)
        return ifl_fail(err, IFL_LIMIT, "prompt: got %zu token ids, limit %d", n, IFL_TOKENS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT32_MAX)
            return ifl_fail(err, IFL_FORMAT, "prompt: item %zu of the list is no token id", i);
    }
    return IFL_OK;
}

static ifl_status prompt_parse(ifl_task_line *line, ifl_error *err) {
    const json_t *prompt = json_object_get(line->root, "prompt");
    if (json_is_string(prompt) && json_string_length(prompt) > 0) {
        line->text = json_string_value(prompt);
        return IFL_OK;
    }
    if (json_is_array(prompt) && json_array_size(prompt) > 0) {
        if (json_is_object(json_array_get(prompt, 0))) {
            line->messages = prompt;
            return messages_check(prompt, err);
        }
        line->ids = prompt;
        return ids_check(prompt, err);
    }
    return ifl_fail(err, IFL_FORMAT,
                    "prompt: wanted a text, a list of {role, content} or a list of token ids, not "
                    "empty; got %s",
                    !prompt                  ? "none"
                    : json_is_string(prompt) ? "an empty text"
                    : json_is_array(prompt)  ? "an empty list"
                    : json_is_object(prompt) ? "an object"
                                             : "something else");
}

/* Answers are compared as text; an integer is taken as its digits. A real number isn't: 0.1 as
 * written and as printed could differ. */
static ifl_status answer_parse(const json_t *root, char **out, ifl_error *err) {
    const json_t *answer = json_object_get(root, "answer");
    char digits[32];
    if (json_is_integer(answer)) {
        snprintf(digits, sizeof digits, "%lld", (long long)json_integer_value(answer));
        *out = text_copy(digits);
        return IFL_OK;
    }
    if (answer && !json_is_null(answer) && !json_is_string(answer))
        return ifl_fail(err, IFL_FORMAT,
                        "answer: wanted a text or an integer (write 0.5 as \"0.5\")");
    const char *text = json_is_string(answer) ? json_string_value(answer) : "";
    if (strlen(text) > (size_t)1 << 20)
        return ifl_fail(err, IFL_LIMIT, "answer: %zu bytes, limit 1 MiB", strlen(text));
    *out = text_copy(text);
    return IFL_OK;
}

static ifl_status text_parse(const json_t *root, const char *key, size_t n_max,
                             const char *fallback, char **out, ifl_error *err) {
    const char *text = NULL;
    IFL_TRY(ifl_json_text(root, key, &text, err));
    if (text && strlen(text) > n_max)
        return ifl_fail(err, IFL_LIMIT, "%s: %zu bytes, limit %zu", key, strlen(text), n_max);
    *out = text_copy(text && *text ? text : fallback);
    return IFL_OK;
}

static ifl_status line_parse_keys(ifl_task_line *out, const char *bytes, size_t n_bytes,
                                  const char *name, int64_t number, ifl_error *err) {
    ifl_task *task = &out->task;
    char id[IFL_TASK_ID_MAX];
    const json_t *meta = NULL;
    snprintf(id, sizeof id, "%.100s:%lld", name, (long long)number);
    IFL_TRY(prompt_parse(out, err));
    IFL_TRY(answer_parse(out->root, &task->answer, err));
    IFL_TRY(text_parse(out->root, "id", IFL_TASK_ID_MAX - 1, id, &task->id, err));
    IFL_TRY(text_parse(out->root, "data_source", IFL_NAME_MAX - 1, name, &task->data_source, err));
    IFL_TRY(text_parse(out->root, "checker", 63, "", &task->checker, err));
    IFL_TRY(ifl_json_text(out->root, "completion", &out->completion, err));
    IFL_TRY(ifl_json_bool(out->root, "eval_only", &out->eval_only, err));
    IFL_TRY(ifl_json_child(out->root, "meta", &meta, err));
    task->meta = meta ? json_dumps(meta, JSON_COMPACT) : text_copy("");
    if (task->meta && strlen(task->meta) > 65536)
        return ifl_fail(err, IFL_LIMIT, "meta: %zu bytes, limit 65536", strlen(task->meta));
    IFL_TRY(
        ifl_json_int32(out->root, "max_new_tokens", 1, IFL_TOKENS_MAX, &task->max_new_tokens, err));
    IFL_TRY(ifl_json_double(out->root, "weight", 0.0, 1e6, &task->weight, err));
    task->line = malloc(n_bytes + 1);
    if (!task->line || !task->answer || !task->id || !task->data_source || !task->checker ||
        !task->meta)
        return ifl_fail(err, IFL_NOMEM, "no memory for a task of %zu bytes", n_bytes);
    memcpy(task->line, bytes, n_bytes);
    task->line[n_bytes] = '\0';
    return IFL_OK;
}

static ifl_status line_parse(ifl_task_line *out, const char *bytes, size_t n_bytes,
                             const char *path, const char *name, int64_t number, ifl_error *err) {
    char what[IFL_PATH_MAX + 32];
    snprintf(what, sizeof what, "%s:%lld", path, (long long)number);
    memset(out, 0, sizeof *out);
    out->task.weight = 1.0;
    IFL_TRY(ifl_json_parse_object(&out->root, bytes, n_bytes, IFL_TASK_LINE_BYTES_MAX, what, err));
    ifl_status st = line_parse_keys(out, bytes, n_bytes, name, number, err);
    if (st != IFL_OK) {
        ifl_task_line_clear(out);
        if (err) ifl_error_wrap(err, "%s", what);
    }
    return st;
}

void ifl_task_line_clear(ifl_task_line *line) {
    ifl_task_clear(&line->task);
    json_decref(line->root);
    memset(line, 0, sizeof *line);
}

static ifl_status line_key(const ifl_task_line *line, ifl_hash *out, ifl_error *err) {
    if (line->text) {
        *out = ifl_task_key(line->text, line->task.answer);
        return IFL_OK;
    }
    char *dump =
        json_dumps(line->messages ? line->messages : line->ids, JSON_COMPACT | JSON_SORT_KEYS);
    if (!dump) return ifl_fail(err, IFL_NOMEM, "no memory for a prompt's text");
    *out = ifl_task_key(dump, line->task.answer);
    free(dump);
    return IFL_OK;
}

static ifl_status file_add(ifl_task_file *file, uint64_t offset, size_t n_bytes, int64_t number,
                           ifl_error *err) {
    const char *bytes = (const char *)file->map.bytes + offset;
    ifl_task_line line;
    ifl_hash key;
    if ((int64_t)file->n_entries >= IFL_TASK_LINES_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: more than %lld tasks", file->map.path,
                        (long long)IFL_TASK_LINES_MAX);
    IFL_TRY(ifl_grow((void **)&file->entries, &file->cap_entries, file->n_entries + 1,
                     sizeof *file->entries, err));
    IFL_TRY(line_parse(&line, bytes, n_bytes, file->map.path, file->name, number, err));
    if (line.eval_only && !file->eval_only_line) file->eval_only_line = number;
    ifl_status st = line_key(&line, &key, err);
    if (st == IFL_OK)
        file->entries[file->n_entries++] =
            (file_entry){.offset = offset,
                         .bytes_hash = ifl_hash64(bytes, n_bytes),
                         .n_bytes = (uint32_t)n_bytes,
                         .line = number,
                         .id = ifl_hash_bytes(line.task.id, strlen(line.task.id)),
                         .key = key};
    ifl_task_line_clear(&line);
    return st;
}

static bool blank(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != ' ' && bytes[i] != '\t' && bytes[i] != '\r') return false;
    return true;
}

static ifl_status file_index(ifl_task_file *file, int64_t count, ifl_error *err) {
    int64_t number = 0;
    for (uint64_t at = 0; at < file->map.n_bytes;) {
        const uint8_t *begin = file->map.bytes + at;
        uint64_t left = file->map.n_bytes - at;
        const uint8_t *end = memchr(begin, '\n', left);
        uint64_t n = end ? (uint64_t)(end - begin) : left;
        number++;
        if (n > IFL_TASK_LINE_BYTES_MAX)
            return ifl_fail(err, IFL_LIMIT, "%s:%lld: a line of %llu bytes, limit %zu",
                            file->map.path, (long long)number, (unsigned long long)n,
                            IFL_TASK_LINE_BYTES_MAX);
        if (!blank(begin, n)) {
            if (count > 0 && (int64_t)file->n_entries == count) return IFL_OK;
            IFL_TRY(file_add(file, at, n, number, err));
        }
        at += n + 1;
    }
    if (file->n_entries == 0)
        return ifl_fail(err, IFL_FORMAT, "%s: no task in it: wanted one JSON object per line",
                        file->map.path);
    return IFL_OK;
}

static int entry_compare(const void *a, const void *b) {
    const file_entry *x = *(const file_entry *const *)a, *y = *(const file_entry *const *)b;
    if (x->id.high != y->id.high) return x->id.high < y->id.high ? -1 : 1;
    if (x->id.low != y->id.low) return x->id.low < y->id.low ? -1 : 1;
    return x->line < y->line ? -1 : x->line > y->line;
}

static ifl_status file_check_ids(const ifl_task_file *file, ifl_error *err) {
    ifl_status st = IFL_OK;
    const file_entry **sorted = ifl_alloc(file->n_entries, sizeof *sorted);
    if (!sorted) return ifl_fail(err, IFL_NOMEM, "%s: no memory for its index", file->map.path);
    for (size_t i = 0; i < file->n_entries; i++)
        sorted[i] = &file->entries[i];
    qsort(sorted, file->n_entries, sizeof *sorted, entry_compare);
    for (size_t i = 1; i < file->n_entries && st == IFL_OK; i++)
        if (ifl_hash_equal(sorted[i - 1]->id, sorted[i]->id))
            st = ifl_fail(
                err, IFL_FORMAT, "%s:%lld: the id of line %lld again; ids are unique in a file",
                file->map.path, (long long)sorted[i]->line, (long long)sorted[i - 1]->line);
    ifl_free(sorted);
    return st;
}

ifl_status ifl_task_file_open(ifl_task_file **out, const char *path, const char *name,
                              int64_t count, ifl_error *err) {
    ifl_status st;
    *out = NULL;
    ifl_task_file *file = calloc(1, sizeof *file);
    if (!file) return ifl_fail(err, IFL_NOMEM, "no memory for the task file %s", path);
    file->name = strdup(name);
    if (!file->name) {
        st = ifl_fail(err, IFL_NOMEM, "no memory for the task file %s", path);
        goto done;
    }
    st = ifl_file_map_open(&file->map, path, err);
    if (st != IFL_OK) memset(&file->map, 0, sizeof file->map);
    if (st == IFL_OK) st = file_index(file, count, err);
    if (st == IFL_OK) st = file_check_ids(file, err);
    if (st != IFL_OK) goto done;
    *out = file;
    file = NULL;
done:
    ifl_task_file_close(file);
    return st;
}

void ifl_task_file_close(ifl_task_file *file) {
    if (!file) return;
    ifl_file_map_close(&file->map);
    free(file->entries);
    free(file->name);
    free(file);
}

int64_t ifl_task_file_size(const ifl_task_file *file) {
    return (int64_t)file->n_entries;
}

int64_t ifl_task_file_eval_only_line(const ifl_task_file *file) {
    return file->eval_only_line;
}

ifl_status ifl_task_file_read(const ifl_task_file *file, int64_t index, ifl_task_line *out,
                              ifl_error *err) {
    IFL_ASSERT(index >= 0 && index < (int64_t)file->n_entries);
    const file_entry *e = &file->entries[index];
    const uint8_t *bytes = NULL;
    memset(out, 0, sizeof *out);
    IFL_TRY(ifl_file_map_range(&file->map, e->offset, e->n_bytes, &bytes, err));
    if (ifl_hash64(bytes, e->n_bytes) != e->bytes_hash)
        return ifl_fail(err, IFL_MISMATCH,
                        "%s:%lld: the line has changed since the file was opened: leave data files "
                        "alone while a run uses them",
                        file->map.path, (long long)e->line);
    return line_parse(out, (const char *)bytes, e->n_bytes, file->map.path, file->name, e->line,
                      err);
}

int64_t ifl_task_file_line(const ifl_task_file *file, int64_t index) {
    return file->entries[index].line;
}

ifl_hash ifl_task_file_key(const ifl_task_file *file, int64_t index) {
    return file->entries[index].key;
}

ifl_hash ifl_task_file_id(const ifl_task_file *file, int64_t index) {
    return file->entries[index].id;
}

#include "deploy/cli/score_input.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"
#include "common/memory.h"

static int hash_compare(ifl_hash a, ifl_hash b) {
    if (a.high != b.high) return a.high < b.high ? -1 : 1;
    return a.low < b.low ? -1 : a.low > b.low;
}

static int order_compare(const void *a, const void *b, void *tasks) {
    return hash_compare(ifl_task_file_id(tasks, *(const int64_t *)a),
                        ifl_task_file_id(tasks, *(const int64_t *)b));
}

ifl_status ifl_score_input_open(ifl_score_input *in, const char *tasks_path,
                                const char *completions_path, ifl_error *err) {
    memset(in, 0, sizeof *in);
    in->by_id = -1;
    in->path = completions_path;
    const char *slash = strrchr(tasks_path, '/');
    IFL_TRY(ifl_task_file_open(&in->tasks, tasks_path, slash ? slash + 1 : tasks_path, 0, err));
    ifl_status st = ifl_file_map_open(&in->completions, completions_path, err);
    if (st != IFL_OK) {
        memset(&in->completions, 0, sizeof in->completions);
        ifl_score_input_close(in);
        return st;
    }
    int64_t n = ifl_task_file_size(in->tasks);
    in->order = ifl_alloc((size_t)n, sizeof *in->order);
    if (!in->order) {
        ifl_score_input_close(in);
        return ifl_fail(err, IFL_NOMEM, "%s: no memory for its index", tasks_path);
    }
    for (int64_t i = 0; i < n; i++)
        in->order[i] = i;
    qsort_r(in->order, (size_t)n, sizeof *in->order, order_compare, in->tasks);
    return IFL_OK;
}

void ifl_score_input_close(ifl_score_input *in) {
    ifl_task_file_close(in->tasks);
    ifl_file_map_close(&in->completions);
    ifl_free(in->order);
    memset(in, 0, sizeof *in);
}

void ifl_scored_line_clear(ifl_scored_line *line) {
    ifl_task_line_clear(&line->task);
    json_decref(line->root);
    memset(line, 0, sizeof *line);
}

static int64_t task_find(const ifl_score_input *in, const char *id) {
    ifl_hash want = ifl_hash_bytes(id, strlen(id));
    int64_t low = 0, high = ifl_task_file_size(in->tasks);
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int c = hash_compare(ifl_task_file_id(in->tasks, in->order[middle]), want);
        if (c == 0) return in->order[middle];
        if (c < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

static ifl_status finish_parse(const json_t *root, ifl_finish *out, ifl_error *err) {
    const char *text = NULL;
    *out = IFL_FINISH_EOS; /* a file of answers holds whole ones unless it says otherwise */
    IFL_TRY(ifl_json_text(root, "finish", &text, err));
    if (!text) return IFL_OK;
    for (ifl_finish f = IFL_FINISH_EOS; f <= IFL_FINISH_ABORTED; f++) {
        if (strcmp(text, ifl_finish_name(f)) != 0) continue;
        *out = f;
        return IFL_OK;
    }
    return ifl_fail(err, IFL_FORMAT, "finish: got '%.40s', wanted %s, %s, %s or %s", text,
                    ifl_finish_name(IFL_FINISH_EOS), ifl_finish_name(IFL_FINISH_STOP),
                    ifl_finish_name(IFL_FINISH_LENGTH), ifl_finish_name(IFL_FINISH_ABORTED));
}

static ifl_status line_take(ifl_score_input *in, ifl_scored_line *out, ifl_error *err) {
    const json_t *completion = json_object_get(out->root, "completion");
    const char *id = NULL;
    if (!json_is_string(completion)) return ifl_fail(err, IFL_FORMAT, "completion: wanted a text");
    out->completion = json_string_value(completion);
    out->n_completion = json_string_length(completion);
    IFL_TRY(finish_parse(out->root, &out->finish, err));
    IFL_TRY(ifl_json_text(out->root, "id", &id, err));
    if (in->by_id < 0) in->by_id = id != NULL;
    if (in->by_id != (id != NULL))
        return ifl_fail(err, IFL_FORMAT,
                        "id: %s, unlike in the lines before: wanted one in every line "
                        "or in none",
                        id ? "present" : "missing");
    int64_t n = ifl_task_file_size(in->tasks);
    int64_t index = id ? task_find(in, id) : in->n_read;
    if (id && index < 0) return ifl_fail(err, IFL_FORMAT, "id: there is no task '%.100s'", id);
    if (index >= n)
        return ifl_fail(err, IFL_FORMAT,
                        "completion %" PRId64 " has no task: there are %" PRId64
                        " and no ids to match by",
                        index + 1, n);
    return ifl_task_file_read(in->tasks, index, &out->task, err);
}

static bool blank(const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != ' ' && bytes[i] != '\t' && bytes[i] != '\r') return false;
    return true;
}

/* ifl_json_parse_object, but a completion may hold NUL characters. */
static ifl_status completion_parse(const char *bytes, size_t n, json_t **out, ifl_error *err) {
    json_error_t where;
    if (n > IFL_COMPLETION_LINE_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "a line of %zu bytes, limit %zu", n,
                        IFL_COMPLETION_LINE_BYTES_MAX);
    *out = json_loadb(bytes, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!*out)
        return ifl_fail(err, IFL_FORMAT, "not valid JSON at column %d: %s", where.column,
                        where.text);
    if (json_is_object(*out)) return IFL_OK;
    json_decref(*out);
    *out = NULL;
    return ifl_fail(err, IFL_FORMAT, "wanted an object {id?, completion, finish?}");
}

ifl_status ifl_score_input_next(ifl_score_input *in, ifl_scored_line *out, ifl_error *err) {
    memset(out, 0, sizeof *out);
    const uint8_t *bytes = NULL;
    uint64_t n_file = in->completions.n_bytes;
    IFL_TRY(ifl_file_map_range(&in->completions, 0, n_file, &bytes, err));
    while (in->offset < n_file) {
        const char *begin = (const char *)bytes + in->offset;
        uint64_t left = n_file - in->offset;
        const char *end = memchr(begin, '\n', left);
        size_t n = end ? (size_t)(end - begin) : left;
        in->offset += n + 1;
        in->line++;
        if (blank(begin, n)) continue;
        ifl_status st = completion_parse(begin, n, &out->root, err);
        if (st == IFL_OK) st = line_take(in, out, err);
        if (st != IFL_OK) {
            ifl_scored_line_clear(out);
            if (err) ifl_error_wrap(err, "%s:%" PRId64, in->path, in->line);
            return st;
        }
        in->n_read++;
        return IFL_OK;
    }
    return IFL_NOTFOUND;
}

#include "learner/eval_results.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/file_map.h"
#include "common/hash.h"
#include "common/memory.h"
#include "common/run_dir.h"

/* Longer answers are cut in the file: even with every byte escaped a line stays small. */
#define ANSWER_BYTES_MAX ((size_t)1 << 18)

void ifl_eval_results_clear(ifl_eval_results *r) {
    for (size_t i = 0; i < r->n_rows; i++) {
        free(r->rows[i].id);
        free(r->rows[i].answer);
    }
    free(r->rows);
    memset(r, 0, sizeof *r);
}

int32_t ifl_eval_results_source(const ifl_eval_results *r, const char *name) {
    for (int32_t i = 0; i < r->n_sources; i++)
        if (strcmp(r->sources[i], name) == 0) return i;
    return -1;
}

ifl_status ifl_eval_results_add_source(ifl_eval_results *r, const char *name, ifl_error *err) {
    if (ifl_eval_results_source(r, name) >= 0) return IFL_OK;
    if (strlen(name) >= IFL_NAME_MAX)
        return ifl_fail(err, IFL_LIMIT, "evaluation: a source's name has %zu bytes, limit %d",
                        strlen(name), IFL_NAME_MAX - 1);
    if (r->n_sources == IFL_SOURCES_MAX)
        return ifl_fail(err, IFL_LIMIT, "evaluation: more than %d sources", IFL_SOURCES_MAX);
    snprintf(r->sources[r->n_sources++], sizeof *r->sources, "%s", name);
    return IFL_OK;
}

static ifl_status row_add(ifl_eval_results *r, const char *source, const char *id, uint64_t task,
                          ifl_error *err) {
    if (r->n_rows >= IFL_EVAL_ROWS_MAX)
        return ifl_fail(err, IFL_LIMIT, "evaluation: more than %d tasks", IFL_EVAL_ROWS_MAX);
    IFL_TRY(ifl_eval_results_add_source(r, source, err));
    IFL_TRY(ifl_grow((void **)&r->rows, &r->rows_cap, r->n_rows + 1, sizeof *r->rows, err));
    char *copy = strdup(id);
    if (!copy) return ifl_fail(err, IFL_NOMEM, "evaluation: out of memory");
    r->rows[r->n_rows++] = (ifl_eval_row){.id = copy,
                                          .task = task,
                                          .source = ifl_eval_results_source(r, source),
                                          .status = IFL_REWARD_NONE};
    return IFL_OK;
}

ifl_status ifl_eval_results_add(ifl_eval_results *r, const char *source, const char *id,
                                const char *definition, ifl_error *err) {
    return row_add(r, source, id, ifl_hash64(definition, strlen(definition)), err);
}

ifl_status ifl_eval_answer_text(char **out, const ifl_tokenizer *tokenizer,
                                const ifl_config *config, const ifl_trajectory *traj,
                                ifl_error *err) {
    int32_t n_prompt = ifl_trajectory_n_prompt(traj);
    ifl_token_text text = {0};
    *out = NULL;
    ifl_status st = ifl_tokenizer_decode(tokenizer, traj->tokens + n_prompt,
                                         (size_t)(traj->n_tokens - n_prompt),
                                         IFL_DECODE_SKIP_SPECIAL, &text, err);
    if (st == IFL_OK) {
        *out = malloc(text.n + 1);
        if (!*out) st = ifl_fail(err, IFL_NOMEM, "evaluation: out of memory for an answer");
    }
    if (st == IFL_OK) {
        if (text.n > 0) memcpy(*out, text.bytes, text.n);
        (*out)[text.n] = '\0';
        for (int32_t i = 0; traj->finish == IFL_FINISH_STOP && i < config->rollout.n_stops; i++) {
            const char *stop = config->rollout.stops[i];
            char *at = stop[0] ? strstr(*out, stop) : NULL;
            if (at) *at = '\0';
        }
    }
    ifl_token_text_free(&text);
    return st;
}

/* --- Writing
 * ---------------------------------------------------------------------------------------- */

/* Takes `object`; false when it is NULL or cannot be written. */
static bool line_write(FILE *f, json_t *object) {
    bool good = object && json_dumpf(object, f, JSON_COMPACT) == 0 && fputc('\n', f) != EOF;
    json_decref(object);
    return good;
}

static json_t *answer_json(const char *answer) {
    if (!answer) return json_null();
    size_t n = strlen(answer);
    if (n > ANSWER_BYTES_MAX) {
        n = ANSWER_BYTES_MAX;
        while (n > 0 && ((unsigned char)answer[n] & 0xc0) == 0x80)
            n--; /* not into the middle of a character */
    }
    return json_stringn(answer, n);
}

static json_t *row_json(const ifl_eval_results *r, const ifl_eval_row *row) {
    char hash[17];
    snprintf(hash, sizeof hash, "%016" PRIx64, row->task);
    json_t *object = json_pack(
        "{s:s,s:s,s:s,s:s,s:o,s:o}", "id", row->id, "data_source", r->sources[row->source], "task",
        hash, "status", ifl_reward_status_name(row->status), "reward",
        ifl_eval_judged(row->status, row->reward) ? json_real((double)row->reward) : json_null(),
        "answer", answer_json(row->answer));
    if (object && r->k > 0) {
        json_object_set_new(object, "samples", json_integer(row->n_judged));
        json_object_set_new(object, "samples_right", json_integer(row->n_right));
    }
    return object;
}

ifl_status ifl_eval_results_write(const ifl_eval_results *r, const char *path, ifl_error *err) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    bool good =
        line_write(f, json_pack("{s:i,s:s,s:I,s:s,s:i,s:I}", "inflight_eval", IFL_EVAL_FORMAT,
                                "model", r->model, "version", (json_int_t)r->version, "run_uuid",
                                r->run_uuid, "k", (int)r->k, "n", (json_int_t)r->n_rows));
    for (size_t i = 0; i < r->n_rows && good; i++)
        good = line_write(f, row_json(r, &r->rows[i]));
    good = !ferror(f) && good;
    ifl_status st = IFL_OK;
    if (fclose(f) || !good)
        st = ifl_fail(err, IFL_IO,
                      "%s: the results cannot be written as JSON (out of memory, or a name that is "
                      "no UTF-8)",
                      path);
    if (st == IFL_OK) st = ifl_file_write_atomic(path, text, n, err);
    free(text);
    return st;
}

/* --- Reading
 * ---------------------------------------------------------------------------------------- */

static bool text_at(const json_t *object, const char *key, size_t n_max, const char **out) {
    *out = json_string_value(json_object_get(object, key));
    return *out && json_string_length(json_object_get(object, key)) <= n_max;
}

static bool count_at(const json_t *object, const char *key, int32_t max, int32_t *out) {
    const json_t *value = json_object_get(object, key);
    *out = 0;
    if (!value) return true;
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > max)
        return false;
    *out = (int32_t)json_integer_value(value);
    return true;
}

static bool status_at(const json_t *object, ifl_reward_status *out) {
    const char *name;
    return text_at(object, "status", 64, &name) && ifl_reward_status_parse(name, out);
}

static ifl_status head_read(ifl_eval_results *r, const json_t *line, const char *path,
                            json_int_t *n_rows, ifl_error *err) {
    const json_t *format = json_object_get(line, "inflight_eval");
    const char *model, *uuid;
    if (!json_is_integer(format))
        return ifl_fail(err, IFL_FORMAT,
                        "%s:1: no \"inflight_eval\": this is no file of `inflight eval --out` or "
                        "of a run's evals folder",
                        path);
    if (json_integer_value(format) != IFL_EVAL_FORMAT)
        return ifl_fail(err, IFL_UNSUPPORTED, "%s:1: format %lld, this program reads %d", path,
                        (long long)json_integer_value(format), IFL_EVAL_FORMAT);
    if (text_at(line, "model", sizeof r->model - 1, &model))
        snprintf(r->model, sizeof r->model, "%s", model);
    if (text_at(line, "run_uuid", sizeof r->run_uuid - 1, &uuid))
        snprintf(r->run_uuid, sizeof r->run_uuid, "%s", uuid);
    r->version = json_integer_value(json_object_get(line, "version"));
    if (!json_is_integer(json_object_get(line, "n")))
        return ifl_fail(err, IFL_FORMAT, "%s:1: n, the number of tasks, is missing", path);
    *n_rows = json_integer_value(json_object_get(line, "n"));
    if (!count_at(line, "k", IFL_EVAL_SAMPLES_MAX, &r->k))
        return ifl_fail(err, IFL_FORMAT, "%s:1: k is no number 0 .. %d", path,
                        IFL_EVAL_SAMPLES_MAX);
    return IFL_OK;
}

static ifl_status row_read(ifl_eval_results *r, const json_t *line, const char *path,
                           int64_t number, ifl_error *err) {
    const char *id, *source, *task, *wrong = NULL;
    ifl_eval_row row = {0};
    const json_t *reward = json_object_get(line, "reward"),
                 *answer = json_object_get(line, "answer");
    if (!text_at(line, "id", IFL_TASK_ID_MAX - 1, &id))
        wrong = "id";
    else if (!text_at(line, "data_source", IFL_NAME_MAX - 1, &source))
        wrong = "data_source";
    else if (!text_at(line, "task", 16, &task) || strspn(task, "0123456789abcdef") != 16)
        wrong = "task";
    else if (!status_at(line, &row.status))
        wrong = "status";
    else if (!json_is_number(reward) && !json_is_null(reward))
        wrong = "reward";
    else if (!count_at(line, "samples", IFL_EVAL_SAMPLES_MAX, &row.n_judged))
        wrong = "samples";
    else if (!count_at(line, "samples_right", row.n_judged, &row.n_right))
        wrong = "samples_right";
    if (wrong)
        return ifl_fail(err, IFL_FORMAT, "%s:%lld: %s is missing or not what it has to be", path,
                        (long long)number, wrong);
    ifl_status st = row_add(r, source, id, strtoull(task, NULL, 16), err);
    if (st != IFL_OK) return ifl_error_wrap(err, "%s:%lld", path, (long long)number);
    ifl_eval_row *added = &r->rows[r->n_rows - 1];
    added->status = row.status;
    added->reward = json_is_number(reward) ? (float)json_number_value(reward) : NAN;
    added->n_judged = row.n_judged;
    added->n_right = row.n_right;
    if (json_is_string(answer) && !(added->answer = strdup(json_string_value(answer))))
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    return IFL_OK;
}

ifl_status ifl_eval_results_read(ifl_eval_results *out, const char *path, ifl_error *err) {
    memset(out, 0, sizeof *out);
    char *text = NULL;
    size_t n = 0;
    int64_t number = 0;
    json_int_t n_rows = 0;
    ifl_status st = IFL_OK;
    IFL_TRY(ifl_file_read_text(path, IFL_EVAL_FILE_BYTES_MAX, &text, &n, err));
    for (size_t at = 0; at < n && st == IFL_OK;) {
        const char *newline = memchr(text + at, '\n', n - at);
        size_t length = newline ? (size_t)(newline - (text + at)) : n - at;
        number++;
        json_error_t problem;
        json_t *line = json_loadb(text + at, length, 0, &problem);
        if (!json_is_object(line))
            st = ifl_fail(err, IFL_FORMAT, "%s:%lld: not a JSON object: %s", path,
                          (long long)number, line ? "something else" : problem.text);
        else
            st = number == 1 ? head_read(out, line, path, &n_rows, err)
                             : row_read(out, line, path, number, err);
        json_decref(line);
        at += length + 1;
    }
    if (st == IFL_OK && number == 0) st = ifl_fail(err, IFL_FORMAT, "%s: the file is empty", path);
    if (st == IFL_OK && n_rows != (json_int_t)out->n_rows)
        st = ifl_fail(err, IFL_FORMAT,
                      "%s: %zu tasks, its first line says %lld: the file is not whole", path,
                      out->n_rows, (long long)n_rows);
    free(text);
    if (st != IFL_OK) ifl_eval_results_clear(out);
    return st;
}

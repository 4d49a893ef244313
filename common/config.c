#include "common/config.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "common/config_table.h"

#define FILE_BYTES_MAX (1 << 20)
#define OVERRIDE_BYTES_MAX 8192

static void rows_default(void *base, const ifl_config_row *rows, int n_rows) {
    const ifl_config_place place = {"defaults", 0, 0};
    for (int i = 0; i < n_rows; i++) {
        if (rows[i].type == IFL_CONFIG_STOPS || rows[i].type == IFL_CONFIG_SOURCES) continue;
        if (rows[i].type == IFL_CONFIG_JSON) {
            memcpy((char *)base + rows[i].offset, rows[i].fallback, strlen(rows[i].fallback) + 1);
            continue;
        }
        ifl_error err = {0};
        ifl_status st = ifl_config_scalar(base, &rows[i], rows[i].key, rows[i].fallback,
                                          strlen(rows[i].fallback), false, &place, &err);
        IFL_ASSERT(st == IFL_OK); /* the table contradicts itself */
    }
}

void ifl_config_defaults(ifl_config *config) {
    memset(config, 0, sizeof *config);
    rows_default(config, ifl_config_rows, ifl_config_n_rows);
}

void ifl_source_config_defaults(ifl_source_config *source) {
    memset(source, 0, sizeof *source);
    rows_default(source, ifl_config_source_rows, ifl_config_n_source_rows);
}

ifl_source_config *ifl_config_sources(ifl_config *config, const ifl_config_row *row, int32_t **n) {
    bool train = row->offset == offsetof(ifl_config, data.train);
    *n = train ? &config->data.n_train : &config->data.n_eval;
    return train ? config->data.train : config->data.eval;
}

/* Splits "data.train.0.path" into a list's row, an index and the rest. False when it is not of that
 * form. */
static bool key_indexed(const char *key, const ifl_config_row **row, int *index,
                        const char **rest) {
    for (int i = 0; i < ifl_config_n_rows; i++) {
        const ifl_config_row *candidate = &ifl_config_rows[i];
        if (candidate->type != IFL_CONFIG_SOURCES && candidate->type != IFL_CONFIG_STOPS) continue;
        size_t n = strlen(candidate->key);
        if (strncmp(key, candidate->key, n) || key[n] != '.') continue;
        const char *digits = key + n + 1;
        size_t n_digits = strspn(digits, "0123456789");
        if (n_digits < 1 || n_digits > 3 || (digits[n_digits] && digits[n_digits] != '.'))
            return false;
        *row = candidate;
        *index = (int)strtol(digits, NULL, 10);
        *rest = digits[n_digits] ? digits + n_digits + 1 : "";
        return true;
    }
    return false;
}

static ifl_status unknown_key(const char *where, const char *key, const char *near_key,
                              ifl_error *err) {
    if (near_key)
        return ifl_fail(err, IFL_USAGE, "%s: key %.200s: unknown; did you mean %s?", where, key,
                        near_key);
    return ifl_fail(err, IFL_USAGE,
                    "%s: key %.200s: unknown; `inflight train --help-config` lists "
                    "the keys",
                    where, key);
}

static ifl_status set_indexed(ifl_config *config, const ifl_config_row *row, int index,
                              const char *rest, const char *key, const char *value,
                              const ifl_config_place *place, ifl_error *err) {
    if (row->type == IFL_CONFIG_STOPS) {
        if (*rest || index > config->rollout.n_stops || index >= IFL_STOPS_MAX)
            return ifl_fail(err, IFL_USAGE,
                            "%s: key %s: wanted rollout.stops.0 .. rollout.stops.%d", place->file,
                            key, config->rollout.n_stops);
        ifl_config *scratch = calloc(1, sizeof *scratch); /* validates before the list changes */
        if (!scratch) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", place->file);
        ifl_status st = ifl_config_stop_add(scratch, key, value, strlen(value), place, err);
        if (st == IFL_OK) {
            memcpy(config->rollout.stops[index], scratch->rollout.stops[0],
                   sizeof scratch->rollout.stops[0]);
            if (index == config->rollout.n_stops) config->rollout.n_stops++;
        }
        free(scratch);
        return st;
    }
    int32_t *n;
    ifl_source_config *sources = ifl_config_sources(config, row, &n);
    if (index > *n || index >= IFL_SOURCES_MAX)
        return ifl_fail(err, IFL_USAGE, "%s: key %s: the list has %d sources (0 .. %d; %d appends)",
                        place->file, key, *n, *n - 1, *n);
    int row_index = ifl_config_source_row_find(rest);
    if (row_index < 0)
        return unknown_key(place->file, key,
                           ifl_config_near(ifl_config_source_rows, ifl_config_n_source_rows, rest),
                           err);
    ifl_source_config fresh;
    if (index == *n)
        ifl_source_config_defaults(&fresh);
    else
        fresh = sources[index];
    IFL_TRY(ifl_config_scalar(&fresh, &ifl_config_source_rows[row_index], key, value, strlen(value),
                              false, place, err));
    sources[index] = fresh;
    if (index == *n) (*n)++;
    return IFL_OK;
}

/* Lists and quoted texts are read as YAML, anything else is taken as it stands. A list goes through
 * a copy, so that a broken one leaves the old list alone. */
static ifl_status set_yaml(ifl_config *config, const ifl_config_row *row, const char *value,
                           const char *where, ifl_error *err) {
    ifl_config *copy = malloc(sizeof *copy);
    if (!copy) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", where);
    *copy = *config;
    ifl_status st = ifl_config_read_text(copy, where, value, strlen(value), row, err);
    if (st == IFL_OK)
        *config = *copy;
    else if (st == IFL_FORMAT && err)
        st = err->status = IFL_USAGE;
    free(copy);
    return st;
}

ifl_status ifl_config_set(ifl_config *config, const char *key, const char *value, ifl_error *err) {
    const ifl_config_place place = {"override", 0, 0};
    const ifl_config_row *list = NULL;
    const char *rest = "";
    int index = 0;
    if (strlen(value) > OVERRIDE_BYTES_MAX)
        return ifl_fail(err, IFL_USAGE, "override: key %.200s: got %zu bytes, wanted at most %d",
                        key, strlen(value), OVERRIDE_BYTES_MAX);
    if (key_indexed(key, &list, &index, &rest))
        return set_indexed(config, list, index, rest, key, value, &place, err);
    int i = ifl_config_row_find(key);
    if (i < 0)
        return unknown_key("override", key,
                           ifl_config_near(ifl_config_rows, ifl_config_n_rows, key), err);
    const ifl_config_row *row = &ifl_config_rows[i];
    bool is_list = row->type == IFL_CONFIG_STOPS || row->type == IFL_CONFIG_SOURCES ||
                   row->type == IFL_CONFIG_JSON;
    if (is_list || *value == '"' || *value == '\'')
        return set_yaml(config, row, value, "override", err);
    return ifl_config_scalar(config, row, key, value, strlen(value), false, &place, err);
}

void ifl_config_checker(const ifl_config *config, const char *own, const char *data_source,
                        char out[64]) {
    json_t *route = NULL;
    const char *found = own && *own ? own : NULL;
    if (!found && data_source && strcmp(config->reward.route, "{}") != 0) {
        route = json_loads(config->reward.route, 0, NULL); /* ifl_config_check has read it before */
        found = json_string_value(json_object_get(route, data_source));
    }
    if (!found) found = config->reward.checker;
    snprintf(out, 64, "%s", found);
    json_decref(route);
}

static ifl_status file_read(const char *path, char **text, size_t *n_text, ifl_error *err) {
    ifl_status st = IFL_OK;
    char *buffer = NULL;
    FILE *f = fopen(path, "rb");
    if (!f)
        return ifl_fail(err, errno == ENOENT ? IFL_NOTFOUND : IFL_IO,
                        "%s: cannot open the configuration: %s", path, strerror(errno));
    buffer = malloc(FILE_BYTES_MAX + 1);
    if (!buffer) {
        st = ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
        goto done;
    }
    size_t n = fread(buffer, 1, FILE_BYTES_MAX + 1, f);
    if (ferror(f)) {
        st = ifl_fail(err, IFL_IO, "%s: cannot read the configuration: %s", path, strerror(errno));
        goto done;
    }
    if (n > FILE_BYTES_MAX) {
        st = ifl_fail(err, IFL_LIMIT, "%s: larger than 1 MiB; that is no configuration", path);
        goto done;
    }
    *text = buffer;
    *n_text = n;
    buffer = NULL;
done:
    free(buffer);
    fclose(f);
    return st;
}

ifl_status ifl_config_load(ifl_config *config, const char *path, const char *const *overrides,
                           int n_overrides, ifl_error *err) {
    ifl_config_defaults(config);
    if (path) {
        char *text = NULL;
        size_t n_text = 0;
        IFL_TRY(file_read(path, &text, &n_text, err));
        ifl_status st = ifl_config_read_text(config, path, text, n_text, NULL, err);
        free(text);
        IFL_TRY(st);
    }
    for (int i = 0; i < n_overrides; i++) {
        const char *equals = strchr(overrides[i], '=');
        size_t n_key = equals ? (size_t)(equals - overrides[i]) : 0;
        char key[256];
        if (!n_key || n_key >= sizeof key)
            return ifl_fail(err, IFL_USAGE, "override: got \"%.80s\", wanted key=value",
                            overrides[i]);
        memcpy(key, overrides[i], n_key);
        key[n_key] = 0;
        IFL_TRY(ifl_config_set(config, key, equals + 1, err));
    }
    ifl_status st = ifl_config_check(config, err);
    if (st != IFL_OK && path) ifl_error_wrap(err, "%s", path);
    return st;
}

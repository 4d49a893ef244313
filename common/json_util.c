#include "common/json_util.h"

#include <inttypes.h>
#include <math.h>

static const char *json_kind(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

ifl_status ifl_json_check_values(const char *text, size_t n_bytes, const char *what,
                                 ifl_error *err) {
    size_t n_values = 1; /* an upper bound: the same bytes inside strings count too */
    for (size_t i = 0; i < n_bytes; i++)
        n_values += text[i] == ',' || text[i] == '[' || text[i] == '{';
    if (n_values <= IFL_JSON_VALUES_MAX) return IFL_OK;
    return ifl_fail(err, IFL_LIMIT, "%s: about %zu values of JSON, limit %d", what, n_values,
                    IFL_JSON_VALUES_MAX);
}

ifl_status ifl_json_parse_object(json_t **out, const char *text, size_t n_bytes, size_t n_bytes_max,
                                 const char *what, ifl_error *err) {
    *out = NULL;
    if (n_bytes > n_bytes_max)
        return ifl_fail(err, IFL_LIMIT, "%s: %zu bytes of JSON, limit %zu", what, n_bytes,
                        n_bytes_max);
    IFL_TRY(ifl_json_check_values(text, n_bytes, what, err));
    json_error_t where;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return ifl_fail(err, IFL_FORMAT, "%s: not valid JSON, line %d column %d: %s", what,
                        where.line, where.column, where.text);
    if (!json_is_object(root)) {
        ifl_fail(err, IFL_FORMAT, "%s: wanted a JSON object, got %s", what, json_kind(root));
        json_decref(root);
        return IFL_FORMAT;
    }
    *out = root;
    return IFL_OK;
}

/* NULL for an absent key and for null: both mean "not given" in these files. */
static const json_t *json_given(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value) ? value : NULL;
}

static ifl_status json_to_int(const json_t *value, const char *key, int64_t min, int64_t max,
                              int64_t *out, ifl_error *err) {
    int64_t got;
    if (json_is_integer(value)) {
        got = json_integer_value(value);
    } else if (json_is_real(value) && fabs(json_real_value(value)) < 9e15 &&
               rint(json_real_value(value)) == json_real_value(value)) {
        got = (int64_t)json_real_value(value);
    } else {
        return ifl_fail(err, IFL_FORMAT, "%s: wanted an integer, got %s", key, json_kind(value));
    }
    if (got < min || got > max)
        return ifl_fail(err, IFL_LIMIT, "%s: %" PRId64 " is outside %" PRId64 " .. %" PRId64, key,
                        got, min, max);
    *out = got;
    return IFL_OK;
}

ifl_status ifl_json_int(const json_t *object, const char *key, int64_t min, int64_t max,
                        int64_t *out, ifl_error *err) {
    const json_t *value = json_given(object, key);
    return value ? json_to_int(value, key, min, max, out, err) : IFL_OK;
}

ifl_status ifl_json_int32(const json_t *object, const char *key, int32_t min, int32_t max,
                          int32_t *out, ifl_error *err) {
    int64_t wide = *out;
    IFL_TRY(ifl_json_int(object, key, min, max, &wide, err));
    *out = (int32_t)wide;
    return IFL_OK;
}

ifl_status ifl_json_double(const json_t *object, const char *key, double min, double max,
                           double *out, ifl_error *err) {
    const json_t *value = json_given(object, key);
    if (!value) return IFL_OK;
    if (!json_is_number(value))
        return ifl_fail(err, IFL_FORMAT, "%s: wanted a number, got %s", key, json_kind(value));
    double got = json_number_value(value);
    if (!(got >= min && got <= max))
        return ifl_fail(err, IFL_LIMIT, "%s: %g is outside %g .. %g", key, got, min, max);
    *out = got;
    return IFL_OK;
}

ifl_status ifl_json_bool(const json_t *object, const char *key, bool *out, ifl_error *err) {
    const json_t *value = json_given(object, key);
    if (!value) return IFL_OK;
    if (!json_is_boolean(value))
        return ifl_fail(err, IFL_FORMAT, "%s: wanted true or false, got %s", key, json_kind(value));
    *out = json_is_true(value);
    return IFL_OK;
}

ifl_status ifl_json_text(const json_t *object, const char *key, const char **out, ifl_error *err) {
    const json_t *value = json_given(object, key);
    if (!value) return IFL_OK;
    if (!json_is_string(value))
        return ifl_fail(err, IFL_FORMAT, "%s: wanted a string, got %s", key, json_kind(value));
    *out = json_string_value(value);
    return IFL_OK;
}

ifl_status ifl_json_child(const json_t *object, const char *key, const json_t **out,
                          ifl_error *err) {
    *out = json_given(object, key);
    if (*out && !json_is_object(*out))
        return ifl_fail(err, IFL_FORMAT, "%s: wanted an object, got %s", key, json_kind(*out));
    return IFL_OK;
}

static ifl_status json_add_id(const json_t *value, const char *key, int32_t id_end, int32_t n_max,
                              int32_t *ids, int32_t *n, ifl_error *err) {
    int64_t id = 0;
    IFL_TRY(json_to_int(value, key, 0, (int64_t)id_end - 1, &id, err));
    for (int32_t i = 0; i < *n; i++)
        if (ids[i] == id) return IFL_OK;
    if (*n == n_max) return ifl_fail(err, IFL_LIMIT, "%s: more than %d ids", key, (int)n_max);
    ids[(*n)++] = (int32_t)id;
    return IFL_OK;
}

ifl_status ifl_json_ids(const json_t *object, const char *key, int32_t id_end, int32_t n_max,
                        int32_t *ids, int32_t *n, ifl_error *err) {
    const json_t *value = json_given(object, key);
    if (!value) return IFL_OK;
    if (!json_is_array(value)) return json_add_id(value, key, id_end, n_max, ids, n, err);
    for (size_t i = 0; i < json_array_size(value); i++)
        IFL_TRY(json_add_id(json_array_get(value, i), key, id_end, n_max, ids, n, err));
    return IFL_OK;
}

#include "rewards/json_value.h"

#include <math.h>
#include <string.h>

#include "common/json_util.h"

#define WHOLE_MAX 9007199254740992.0 /* 2^53: doubles beyond it name several integers */

static bool deeper_than(ifl_slice s, int depth_max) {
    int depth = 0;
    bool in_text = false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.text[i];
        if (in_text) {
            if (c == '\\') i++;
            if (c == '"') in_text = false;
        } else if (c == '"') {
            in_text = true;
        } else if (c == '[' || c == '{') {
            if (++depth > depth_max) return true;
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return false;
}

/* A whole real as the integer that it is; NULL: it stays. Owned. */
static json_t *whole_of(const json_t *value) {
    if (!json_is_real(value)) return NULL;
    double x = json_real_value(value);
    return floor(x) == x && fabs(x) <= WHOLE_MAX ? json_integer((json_int_t)x) : NULL;
}

static ifl_status normalise(json_t *value, int depth, ifl_error *err) {
    if (depth > IFL_JSON_DEPTH_MAX)
        return ifl_fail(err, IFL_FORMAT, "JSON nested deeper than %d", IFL_JSON_DEPTH_MAX);
    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            json_t *whole = whole_of(json_array_get(value, i));
            if (whole && json_array_set_new(value, i, whole) != 0)
                return ifl_fail(err, IFL_NOMEM, "no memory for JSON");
            IFL_TRY(normalise(json_array_get(value, i), depth + 1, err));
        }
    }
    for (void *at = json_object_iter(value); at; at = json_object_iter_next(value, at)) {
        json_t *whole = whole_of(json_object_iter_value(at));
        if (whole && json_object_iter_set_new(value, at, whole) != 0)
            return ifl_fail(err, IFL_NOMEM, "no memory for JSON");
        IFL_TRY(normalise(json_object_iter_value(at), depth + 1, err));
    }
    return IFL_OK;
}

ifl_status ifl_json_value_normalise(json_t *value, ifl_error *err) {
    return normalise(value, 0, err);
}

ifl_status ifl_json_value_parse(json_t **out, ifl_slice s, ifl_error *err) {
    *out = NULL;
    if (deeper_than(s, IFL_JSON_DEPTH_MAX))
        return ifl_fail(err, IFL_FORMAT, "JSON nested deeper than %d", IFL_JSON_DEPTH_MAX);
    if (ifl_json_check_values(s.text, s.n, "JSON", err) != IFL_OK) return IFL_FORMAT;
    json_error_t why;
    json_t *value = json_loadb(s.text, s.n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (!value && json_error_code(&why) == json_error_out_of_memory)
        return ifl_fail(err, IFL_NOMEM, "no memory for JSON");
    if (!value)
        return ifl_fail(err, IFL_FORMAT, "no JSON: %.100s at byte %d", why.text, why.position);
    json_t *whole = whole_of(value);
    if (whole) {
        json_decref(value);
        value = whole;
    }
    ifl_status st = normalise(value, 0, err);
    if (st != IFL_OK) {
        json_decref(value);
        return st;
    }
    *out = value;
    return IFL_OK;
}

bool ifl_json_last_fence(ifl_slice s, ifl_slice *out) {
    bool inside = false, json = false, found = false;
    const char *begin = NULL;
    for (ifl_slice line; ifl_slice_line(&s, &line);) {
        ifl_slice trimmed = ifl_slice_trim(line);
        if (!ifl_slice_starts(trimmed, "```")) continue;
        if (!inside) {
            ifl_slice name = ifl_slice_trim(ifl_slice_skip(trimmed, 3));
            json = name.n == 4 && strncasecmp(name.text, "json", 4) == 0;
            begin = line.text + line.n;
            if (json) found = false; /* until this one is closed */
        } else if (json) {
            *out = (ifl_slice){begin, (size_t)(line.text - begin)};
            found = true;
        }
        inside = !inside;
    }
    return found;
}

/* json_schema: whether the completion is JSON that fits meta "schema", a subset of JSON Schema:
 * type (also a list), enum, const, required, properties, additionalProperties, minimum, maximum,
 * exclusiveMinimum, exclusiveMaximum, minLength, maxLength, pattern, items, minItems, maxItems,
 * uniqueItems; true and false as schemas. Any other keyword but descriptions is a bad task, since
 * passing over it would accept what it forbids. The JSON is the whole completion, or with meta
 * {"fenced": true} the last block fenced by ```json. Duplicate keys and deep nesting are refused.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"
#include "rewards/json_value.h"

#define WORK_MAX 4000000 /* comparisons with enums: list length times values */

static const char *const type_names[] = {"null",   "boolean", "integer", "number",
                                         "string", "array",   "object"};

static bool type_known(const json_t *name) {
    for (size_t i = 0; json_is_string(name) && i < sizeof type_names / sizeof *type_names; i++)
        if (strcmp(json_string_value(name), type_names[i]) == 0) return true;
    return false;
}

static bool type_fits(const char *type, const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_NULL:
        return strcmp(type, "null") == 0;
    case JSON_TRUE:
    case JSON_FALSE:
        return strcmp(type, "boolean") == 0;
    case JSON_INTEGER:
        return strcmp(type, "integer") == 0 || strcmp(type, "number") == 0;
    case JSON_REAL: {
        double x = json_real_value(value); /* whole ones beyond 2^53 are left as reals */
        return strcmp(type, "number") == 0 || (floor(x) == x && strcmp(type, "integer") == 0);
    }
    case JSON_STRING:
        return strcmp(type, "string") == 0;
    case JSON_ARRAY:
        return strcmp(type, "array") == 0;
    case JSON_OBJECT:
        return strcmp(type, "object") == 0;
    }
    return false;
}

/* --- The schema itself */
typedef enum {
    WANT_NOTE,
    WANT_TYPE,
    WANT_LIST,
    WANT_ANY,
    WANT_NAMES,
    WANT_SCHEMAS,
    WANT_SCHEMA,
    WANT_NUMBER,
    WANT_COUNT,
    WANT_PATTERN,
    WANT_BOOL
} want;

static const struct {
    const char *name;
    want want;
    const char *text;
} keywords[] = {
    {"type", WANT_TYPE, "a type's name or a list of such"},
    {"enum", WANT_LIST, "a list that is not empty"},
    {"const", WANT_ANY, ""},
    {"required", WANT_NAMES, "a list of names"},
    {"properties", WANT_SCHEMAS, "an object of schemas"},
    {"additionalProperties", WANT_SCHEMA, "a schema"},
    {"minimum", WANT_NUMBER, "a number"},
    {"maximum", WANT_NUMBER, "a number"},
    {"exclusiveMinimum", WANT_NUMBER, "a number"},
    {"exclusiveMaximum", WANT_NUMBER, "a number"},
    {"minLength", WANT_COUNT, "a count"},
    {"maxLength", WANT_COUNT, "a count"},
    {"pattern", WANT_PATTERN, "a regular expression"},
    {"items", WANT_SCHEMA, "a schema"},
    {"minItems", WANT_COUNT, "a count"},
    {"maxItems", WANT_COUNT, "a count"},
    {"uniqueItems", WANT_BOOL, "true or false"},
    {"$schema", WANT_NOTE, ""},
    {"$id", WANT_NOTE, ""},
    {"$comment", WANT_NOTE, ""},
    {"title", WANT_NOTE, ""},
    {"description", WANT_NOTE, ""},
    {"default", WANT_NOTE, ""},
    {"examples", WANT_NOTE, ""},
};

static bool list_of(const json_t *list, bool (*fits)(const json_t *)) {
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!fits(json_array_get(list, i))) return false;
    return json_is_array(list);
}

static bool is_text(const json_t *value) {
    return json_is_string(value);
}

static ifl_status schema_check(const json_t *schema, ifl_error *err);

static ifl_status keyword_check(size_t k, const json_t *value, ifl_error *err) {
    bool fine = true;
    switch (keywords[k].want) {
    case WANT_NOTE:
    case WANT_ANY:
        return IFL_OK;
    case WANT_TYPE:
        fine = type_known(value) || (json_array_size(value) > 0 && list_of(value, type_known));
        break;
    case WANT_LIST:
        fine = json_array_size(value) > 0;
        break;
    case WANT_NAMES:
        fine = list_of(value, is_text);
        break;
    case WANT_NUMBER:
        fine = json_is_number(value);
        break;
    case WANT_COUNT:
        fine = json_is_integer(value) && json_integer_value(value) >= 0;
        break;
    case WANT_BOOL:
        fine = json_is_boolean(value);
        break;
    case WANT_SCHEMA:
        return schema_check(value, err);
    case WANT_SCHEMAS:
        fine = json_is_object(value);
        for (void *at = json_object_iter((json_t *)value); at;
             at = json_object_iter_next((json_t *)value, at))
            IFL_TRY(schema_check(json_object_iter_value(at), err));
        break;
    case WANT_PATTERN:
        fine = json_is_string(value);
        if (fine) {
            ifl_regex *regex;
            IFL_TRY(
                ifl_regex_compile(&regex, json_string_value(value), "meta.schema: pattern", err));
            ifl_regex_free(regex);
        }
        break;
    }
    return fine ? IFL_OK
                : ifl_fail(err, IFL_FORMAT, "meta.schema: %s: wanted %s", keywords[k].name,
                           keywords[k].text);
}

/* All of it, before any value is looked at: a fault in a corner of the schema must not depend on
 * the completion. Its depth was bounded when it was normalised. */
static ifl_status schema_check(const json_t *schema, ifl_error *err) {
    if (json_is_boolean(schema)) return IFL_OK;
    if (!json_is_object(schema))
        return ifl_fail(err, IFL_FORMAT, "meta.schema: wanted an object, true or false");
    for (void *at = json_object_iter((json_t *)schema); at;
         at = json_object_iter_next((json_t *)schema, at)) {
        const char *name = json_object_iter_key(at);
        size_t k = 0, n = sizeof keywords / sizeof *keywords;
        while (k < n && strcmp(keywords[k].name, name) != 0)
            k++;
        if (k == n)
            return ifl_fail(err, IFL_FORMAT,
                            "meta.schema: '%.60s' is not of the subset that json_schema knows",
                            name);
        IFL_TRY(keyword_check(k, json_object_iter_value(at), err));
    }
    return IFL_OK;
}

/* --- A value against it */
typedef struct validation {
    ifl_error *err;
    char path[96]; /* of the value looked at, cut where it is long */
    int64_t work;
    ifl_status trouble; /* IFL_NOMEM; IFL_LIMIT: undecided */
} validation;

/* Does not fit; the reason of the innermost place stays. */
static bool misfit(validation *v, const char *what) {
    ifl_fail(v->err, IFL_FORMAT, "$%s: %s", v->path, what);
    return false;
}

static bool trouble(validation *v, ifl_status st) {
    v->trouble = st;
    return false;
}

/* Exact where both are integers: doubles would call 2^63 - 1 and 2^63 the same. */
static int number_compare(const json_t *a, const json_t *b) {
    if (json_is_integer(a) && json_is_integer(b)) {
        json_int_t x = json_integer_value(a), y = json_integer_value(b);
        return (x > y) - (x < y);
    }
    double x = json_number_value(a), y = json_number_value(b);
    return (x > y) - (x < y);
}

static bool fits_type(validation *v, const json_t *type, const json_t *value) {
    if (json_is_string(type)) return type_fits(json_string_value(type), value) || misfit(v, "type");
    for (size_t i = 0; i < json_array_size(type); i++)
        if (type_fits(json_string_value(json_array_get(type, i)), value)) return true;
    return !type || misfit(v, "type");
}

static bool fits_values(validation *v, const json_t *schema, const json_t *value) {
    const json_t *one = json_object_get(schema, "const"), *list = json_object_get(schema, "enum");
    if (one && !json_equal(one, value)) return misfit(v, "const");
    if (!list) return true;
    v->work += (int64_t)json_array_size(list);
    if (v->work > WORK_MAX) {
        ifl_fail(v->err, IFL_LIMIT, "$%s: too many comparisons with enums", v->path);
        return trouble(v, IFL_LIMIT);
    }
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_equal(json_array_get(list, i), value)) return true;
    return misfit(v, "enum");
}

static bool fits_number(validation *v, const json_t *schema, const json_t *value) {
    const json_t *min = json_object_get(schema, "minimum"),
                 *max = json_object_get(schema, "maximum"),
                 *above = json_object_get(schema, "exclusiveMinimum"),
                 *below = json_object_get(schema, "exclusiveMaximum");
    if (min && number_compare(value, min) < 0) return misfit(v, "minimum");
    if (max && number_compare(value, max) > 0) return misfit(v, "maximum");
    if (above && number_compare(value, above) <= 0) return misfit(v, "exclusiveMinimum");
    if (below && number_compare(value, below) >= 0) return misfit(v, "exclusiveMaximum");
    return true;
}

static bool in_range(const json_t *schema, const char *min, const char *max, size_t n) {
    const json_t *low = json_object_get(schema, min), *high = json_object_get(schema, max);
    return (!low || (json_int_t)n >= json_integer_value(low)) &&
           (!high || (json_int_t)n <= json_integer_value(high));
}

static bool fits_text(validation *v, const json_t *schema, const json_t *value) {
    ifl_slice s = {json_string_value(value), json_string_length(value)};
    const char *pattern = json_string_value(json_object_get(schema, "pattern"));
    size_t n_code_points = 0;
    for (size_t i = 0; i < s.n; i++)
        n_code_points += ((unsigned char)s.text[i] & 0xc0) != 0x80;
    if (!in_range(schema, "minLength", "maxLength", n_code_points)) return misfit(v, "length");
    if (!pattern) return true;
    ifl_regex *regex;
    v->work += 1000 + (int64_t)s.n;
    if (v->work > WORK_MAX * 4) {
        ifl_fail(v->err, IFL_LIMIT, "$%s: too many patterns to match", v->path);
        return trouble(v, IFL_LIMIT);
    }
    ifl_status st = ifl_regex_compile(&regex, pattern, "pattern", v->err);
    if (st != IFL_OK) return trouble(v, st);
    ifl_regex_found found = ifl_regex_match(regex, s, 0, false, 0, NULL, NULL, v->err);
    ifl_regex_free(regex);
    if (found == IFL_REGEX_BEYOND) return trouble(v, IFL_LIMIT);
    return found == IFL_REGEX_MATCH || misfit(v, "pattern");
}

/* By the values' own texts with sorted keys, as keys of an object: n log n, not n squared. */
static bool all_unique(validation *v, const json_t *list) {
    json_t *seen = json_object();
    bool unique = seen != NULL;
    if (!seen) trouble(v, IFL_NOMEM);
    for (size_t i = 0; unique && i < json_array_size(list); i++) {
        char *text =
            json_dumps(json_array_get(list, i), JSON_SORT_KEYS | JSON_COMPACT | JSON_ENCODE_ANY);
        if (!text) {
            unique = trouble(v, IFL_NOMEM);
        } else if (json_object_get(seen, text)) {
            unique = misfit(v, "uniqueItems");
        } else if (json_object_set_new(seen, text, json_true()) != 0) {
            unique = trouble(v, IFL_NOMEM);
        }
        free(text);
    }
    json_decref(seen);
    return unique;
}

static bool fits(validation *v, const json_t *schema, const json_t *value);

/* The value under `name` (NULL: element i), with its path in reasons. */
static bool fits_child(validation *v, const json_t *schema, const json_t *value, const char *name,
                       size_t i) {
    size_t n = strlen(v->path), room = sizeof v->path - n;
    if (name)
        snprintf(v->path + n, room, ".%.40s", name);
    else
        snprintf(v->path + n, room, "[%zu]", i);
    bool fine = fits(v, schema, value);
    v->path[n] = '\0';
    return fine;
}

static bool fits_array(validation *v, const json_t *schema, const json_t *value) {
    const json_t *items = json_object_get(schema, "items");
    if (!in_range(schema, "minItems", "maxItems", json_array_size(value)))
        return misfit(v, "number of items");
    for (size_t i = 0; items && i < json_array_size(value); i++)
        if (!fits_child(v, items, json_array_get(value, i), NULL, i)) return false;
    return !json_is_true(json_object_get(schema, "uniqueItems")) || all_unique(v, value);
}

static bool fits_object(validation *v, const json_t *schema, const json_t *value) {
    const json_t *required = json_object_get(schema, "required"),
                 *properties = json_object_get(schema, "properties"),
                 *others = json_object_get(schema, "additionalProperties");
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!json_object_get(value, json_string_value(json_array_get(required, i))))
            return misfit(v, "a required property is missing");
    for (void *at = json_object_iter((json_t *)value); at;
         at = json_object_iter_next((json_t *)value, at)) {
        const char *name = json_object_iter_key(at);
        const json_t *own = json_object_get(properties, name);
        if (!own) own = others;
        if (own && !fits_child(v, own, json_object_iter_value(at), name, 0)) return false;
    }
    return true;
}

/* Recursion follows the value, whose depth is bounded. */
static bool fits(validation *v, const json_t *schema, const json_t *value) {
    if (json_is_boolean(schema))
        return json_is_true(schema) || misfit(v, "nothing is allowed here");
    if (!fits_type(v, json_object_get(schema, "type"), value) || !fits_values(v, schema, value))
        return false;
    if (json_is_number(value)) return fits_number(v, schema, value);
    if (json_is_string(value)) return fits_text(v, schema, value);
    if (json_is_array(value)) return fits_array(v, schema, value);
    return !json_is_object(value) || fits_object(v, schema, value);
}

static ifl_status schema_judge(const json_t *schema, bool fenced, const ifl_reward_request *request,
                               ifl_reward *out, ifl_error *err) {
    ifl_slice s = ifl_slice_after_thinking((ifl_slice){request->completion, request->n_completion});
    if (fenced && !ifl_json_last_fence(s, &s))
        return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "no closed block fenced by ```json");
    if (ifl_slice_trim(s).n == 0)
        return ifl_verdict_why(out, err, IFL_REWARD_NO_ANSWER, "nothing was answered");
    json_t *value = NULL;
    ifl_status st = ifl_json_value_parse(&value, s, err);
    if (st == IFL_FORMAT) {
        out->status = IFL_REWARD_BAD_FORMAT;
        return IFL_OK;
    }
    IFL_TRY(st);
    validation v = {.err = err, .trouble = IFL_OK};
    bool right = fits(&v, schema, value);
    json_decref(value);
    if (v.trouble == IFL_LIMIT) {
        out->status = IFL_REWARD_UNDECIDED;
        return IFL_OK;
    }
    if (v.trouble != IFL_OK) return v.trouble;
    return ifl_verdict(out, right);
}

static ifl_status schema_of(json_t *meta, json_t **schema, bool *fenced, ifl_error *err) {
    *schema = json_object_get(meta, "schema");
    if (meta) IFL_TRY(ifl_json_bool(meta, "fenced", fenced, err));
    if (!*schema) return ifl_fail(err, IFL_FORMAT, "meta.schema: wanted a schema, got none");
    IFL_TRY(ifl_json_value_normalise(meta, err));
    return schema_check(*schema, err);
}

static ifl_status json_schema_check(const ifl_reward_request *request, ifl_reward *out,
                                    ifl_error *err) {
    json_t *meta = NULL, *schema = NULL;
    bool fenced = false;
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    ifl_status st = schema_of(meta, &schema, &fenced, err);
    if (st == IFL_OK)
        st = schema_judge(schema, fenced, request, out, err);
    else if (st == IFL_FORMAT)
        st = ifl_verdict_bad_option(out);
    json_decref(meta);
    return st;
}

static const char *const json_schema_names[] = {"schema", "fenced", NULL};

const ifl_checker ifl_checker_json_schema = {
    .name = "json_schema",
    .version = "1",
    .help = "meta: \"schema\" (a subset of JSON Schema), \"fenced\" (read the last block fenced by "
            "```json, not the whole completion); no answer",
    .check = json_schema_check,
    .flags = IFL_CHECKER_PURE,
    .options = json_schema_names,
};

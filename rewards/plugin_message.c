#include "rewards/plugin_message.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "common/clock.h"
#include "common/json_util.h"
#include "rewards/checkers.h"

/* Completions are bytes; JSON is UTF-8. */
static json_t *text_json(const char *text, size_t n) {
    static const char replacement[] = "\xef\xbf\xbd";
    json_t *whole = json_stringn(text, n);
    if (whole) return whole; /* it was UTF-8 */
    char *fixed = malloc(3 * n + 1);
    size_t used = 0;
    if (!fixed) return NULL;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &c);
        memcpy(fixed + used, k > 0 ? text + i : replacement, k > 0 ? (size_t)k : 3);
        used += k > 0 ? (size_t)k : 3;
        i += k > 0 ? (size_t)k : 1;
    }
    whole = json_stringn(fixed, used);
    free(fixed);
    return whole;
}

int64_t ifl_plugin_ms_left(const ifl_plugin_call *call) {
    int64_t ns = call->deadline_ns - ifl_clock_ns();
    return ns > 0 ? ns / 1000000 : 0;
}

ifl_status ifl_plugin_request_json(json_t **json, const ifl_plugin_call *call, uint64_t id,
                                   ifl_reward *out, ifl_error *err) {
    const ifl_reward_request *r = call->request;
    json_t *meta = NULL, *o = json_object();
    *json = NULL;
    ifl_status st = ifl_checker_meta(r, &meta, out, err);
    if (st != IFL_OK || out->status == IFL_REWARD_BAD_TASK) {
        json_decref(o);
        return st;
    }
    bool fine =
        json_object_set_new(o, "id", json_integer((json_int_t)id)) == 0 &&
        json_object_set_new(o, "prompt", text_json(r->prompt, strlen(r->prompt))) == 0 &&
        json_object_set_new(o, "completion", text_json(r->completion, r->n_completion)) == 0 &&
        json_object_set_new(o, "gold", text_json(r->answer, strlen(r->answer))) == 0 &&
        json_object_set(o, "meta", meta ? meta : json_null()) == 0 &&
        json_object_set_new(o, "finish", json_string(ifl_finish_name(r->finish))) == 0 &&
        json_object_set_new(o, "deadline_ms", json_integer(ifl_plugin_ms_left(call))) == 0;
    if (fine && !meta) fine = json_object_set_new(o, "meta", json_object()) == 0;
    json_decref(meta);
    if (!fine) {
        json_decref(o);
        return ifl_fail(err, IFL_NOMEM, "no memory for a message of %zu bytes", r->n_completion);
    }
    *json = o;
    return IFL_OK;
}

ifl_status ifl_plugin_hello_read(const char *text, size_t n, char checker[64], bool *pure,
                                 ifl_error *err) {
    json_t *hello;
    int64_t protocol = 0;
    bool is_pure = false;
    const char *name = NULL, *version = NULL, *error = NULL;
    IFL_TRY(ifl_json_parse_object(&hello, text, n, IFL_PLUGIN_LINE_MAX, "its hello", err));
    ifl_status st = ifl_json_int(hello, "protocol", 0, INT32_MAX, &protocol, err);
    if (st == IFL_OK && protocol != IFL_PLUGIN_PROTOCOL)
        st = ifl_fail(err, IFL_MISMATCH,
                      "its hello names protocol %" PRId64
                      ", wanted %d: {\"protocol\": 1, \"name\": ..., \"version\": ...}",
                      protocol, IFL_PLUGIN_PROTOCOL);
    if (st == IFL_OK) st = ifl_json_text(hello, "name", &name, err);
    if (st == IFL_OK) st = ifl_json_text(hello, "version", &version, err);
    if (st == IFL_OK) st = ifl_json_bool(hello, "pure", &is_pure, err);
    if (st == IFL_OK) st = ifl_json_text(hello, "error", &error, err);
    if (st == IFL_OK && (!name || !*name)) st = ifl_fail(err, IFL_FORMAT, "its hello has no name");
    if (st == IFL_OK && error) st = ifl_fail(err, IFL_PEER, "it cannot work: %.400s", error);
    if (st == IFL_OK) snprintf(checker, 64, "%.20s/%.10s", name, version ? version : "0");
    if (pure) *pure = is_pure;
    json_decref(hello);
    return st;
}

static ifl_status components_take(const json_t *components, ifl_reward *out, ifl_error *err) {
    const char *name;
    json_t *value;
    if (!components || json_is_null(components)) return IFL_OK;
    if (!json_is_object(components) || json_object_size(components) > IFL_COMPONENTS_MAX)
        return ifl_fail(err, IFL_FORMAT, "components: wanted a map of at most %d numbers",
                        IFL_COMPONENTS_MAX);
    json_object_foreach((json_t *)components, name, value) {
        float v = (float)json_number_value(value);
        if (!json_is_number(value) || !isfinite(v) || !*name ||
            strlen(name) >= sizeof out->components[0].name)
            return ifl_fail(err, IFL_FORMAT,
                            "components.%.40s: wanted a finite number under a name of 1 .. 31 "
                            "bytes",
                            name);
        snprintf(out->components[out->n_components].name, sizeof out->components[0].name, "%s",
                 name);
        out->components[out->n_components++].value = v;
    }
    return IFL_OK;
}

ifl_status ifl_plugin_answer_take(const json_t *answer, uint64_t id, ifl_reward *out,
                                  ifl_error *err) {
    const json_t *got_id = json_object_get(answer, "id");
    const json_t *reward = json_object_get(answer, "reward");
    const char *status = NULL, *info = NULL;
    if (!json_is_integer(got_id))
        return ifl_fail(err, IFL_FORMAT, "its answer has no id, wanted the request's");
    if ((uint64_t)json_integer_value(got_id) != id)
        return ifl_fail(err, IFL_FORMAT,
                        "it answered id %" JSON_INTEGER_FORMAT
                        ", which is unknown or was answered before; asked was %" PRIu64,
                        json_integer_value(got_id), id);
    IFL_TRY(ifl_json_text(answer, "status", &status, err));
    IFL_TRY(ifl_json_text(answer, "info", &info, err));
    if (!status || !ifl_reward_status_parse(status, &out->status) ||
        out->status == IFL_REWARD_NONE) {
        out->status = IFL_REWARD_NONE;
        return ifl_fail(err, IFL_FORMAT,
                        "status: got '%.40s', wanted ok, wrong or another of PLUGINS.md",
                        status ? status : "");
    }
    double v = json_number_value(reward);
    if (ifl_reward_is_verdict(out->status) && !(json_is_number(reward) && v >= -1.0 && v <= 1.0))
        return ifl_fail(err, IFL_FORMAT, "reward: wanted a number -1 .. 1 beside status %s",
                        status);
    out->reward = ifl_reward_is_verdict(out->status) ? (float)v : 0.0f;
    IFL_TRY(components_take(json_object_get(answer, "components"), out, err));
    IFL_TRY(ifl_json_int32(answer, "tests_total", 0, INT32_MAX, &out->tests_total, err));
    IFL_TRY(ifl_json_int32(answer, "tests_passed", 0, out->tests_total, &out->tests_passed, err));
    if (!ifl_reward_is_verdict(out->status))
        ifl_fail(err, IFL_OK, "%.800s", info && *info ? info : "the plug-in gave no reason");
    return IFL_OK;
}

ifl_status ifl_plugin_answer_read(const char *text, size_t n, uint64_t id, ifl_reward *out,
                                  ifl_error *err) {
    json_t *answer;
    IFL_TRY(ifl_json_parse_object(&answer, text, n, IFL_PLUGIN_LINE_MAX, "its answer", err));
    ifl_status st = ifl_plugin_answer_take(answer, id, out, err);
    json_decref(answer);
    return st;
}

#include "rewards/spec.h"

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/json_util.h"
#include "common/transport.h"

#define OPTIONS_BYTES_MAX 32768 /* half of what a meta may have */
#define START_MS_MAX 600000

static const struct {
    const char *name;
    const char *keys; /* what it takes besides `use`, with spaces around each */
    bool composes;
} kinds[] = {
    [IFL_SPEC_BUILTIN] = {"NAME of a built-in", " options ", false},
    [IFL_SPEC_SUM] = {"sum", " parts clip ", true},
    [IFL_SPEC_PRODUCT] = {"product", " parts clip ", true},
    [IFL_SPEC_FIRST] = {"first", " parts pass_on ", true},
    [IFL_SPEC_LIBRARY] = {"library", " path options isolate ", false},
    [IFL_SPEC_PROCESS] = {"process", " command options env start_ms memory_gib ", false},
    [IFL_SPEC_HTTP] = {"http", " url options token_file ca_file retries batch insecure ", false},
    [IFL_SPEC_ZEROMQ] = {"zeromq", " endpoint options keys key insecure ", false},
};

const char *ifl_spec_kind_name(ifl_spec_kind kind) {
    return kinds[kind].name;
}

/* Where a value stands, for errors: reward.checkers.NAME or .NAME.parts.2 */
typedef struct place {
    char text[128];
} place;

static place place_of(const char *name) {
    place p;
    snprintf(p.text, sizeof p.text, "reward.checkers.%.40s", name);
    return p;
}

static bool name_is_sound(const char *name) {
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t n = strlen(name);
    return n > 0 && n < IFL_SPEC_NAME_MAX && strspn(name, good) == n;
}

/* Names of the built-ins, for errors. */
static const char *builtins_text(char out[512]) {
    const ifl_checker *all[64];
    int n = ifl_checker_list(all, 64);
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < n && used + 40 < 512; i++)
        used += (size_t)snprintf(out + used, 512 - used, "%s%.30s", i ? ", " : "", all[i]->name);
    return out;
}

static ifl_status entry_fail(const place *at, const char *key, ifl_error *err, const char *what) {
    return ifl_fail(err, IFL_FORMAT, "key %s.%s: %s", at->text, key, what);
}

static ifl_status text_get(const json_t *object, const place *at, const char *key, bool needed,
                           const char **out, ifl_error *err) {
    const json_t *value = json_object_get(object, key);
    *out = json_string_value(value);
    if (value && (!*out || !**out))
        return entry_fail(at, key, err, "wanted a text that is not empty");
    if (!value && needed) return entry_fail(at, key, err, "missing; wanted a text");
    if (*out && strlen(*out) >= IFL_PATH_MAX)
        return entry_fail(at, key, err, "wanted fewer than 1024 bytes");
    return IFL_OK;
}

static ifl_status number_get(const json_t *value, const place *at, const char *key, double low,
                             double high, double *out, ifl_error *err) {
    char what[96];
    if (!value) return IFL_OK;
    double v = json_number_value(value);
    if (json_is_number(value) && v >= low && v <= high) {
        *out = v;
        return IFL_OK;
    }
    snprintf(what, sizeof what, "wanted a number %g .. %g", low, high);
    return entry_fail(at, key, err, what);
}

static ifl_status integer_get(const json_t *object, const place *at, const char *key, int32_t low,
                              int32_t high, int32_t *out, ifl_error *err) {
    char what[96];
    const json_t *value = json_object_get(object, key);
    if (!value) return IFL_OK;
    json_int_t v = json_integer_value(value);
    snprintf(what, sizeof what, "wanted an integer %d .. %d", low, high);
    if (!json_is_integer(value) || v < low || v > high) return entry_fail(at, key, err, what);
    *out = (int32_t)v;
    return IFL_OK;
}

static ifl_status bool_get(const json_t *object, const place *at, const char *key, bool *out,
                           ifl_error *err) {
    const json_t *value = json_object_get(object, key);
    if (value && !json_is_boolean(value)) return entry_fail(at, key, err, "wanted true or false");
    if (value) *out = json_is_true(value);
    return IFL_OK;
}

/* Every key of the object is one of `allowed` (words with spaces around). */
static ifl_status keys_check(const json_t *object, const place *at, const char *use,
                             const char *allowed, ifl_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        char word[72];
        snprintf(word, sizeof word, " %.60s ", key);
        if (strcmp(key, "use") != 0 && !strstr(allowed, word))
            return ifl_fail(err, IFL_FORMAT, "key %s.%.60s: unknown; use: %s takes%s", at->text,
                            key, use, allowed);
    }
    return IFL_OK;
}

static ifl_status options_check(ifl_spec_entry *e, const place *at, ifl_error *err) {
    const char *key;
    json_t *value;
    if (!e->options) return IFL_OK;
    if (!json_is_object(e->options)) return entry_fail(at, "options", err, "wanted a map");
    char *text = json_dumps(e->options, JSON_COMPACT);
    size_t n = text ? strlen(text) : 0;
    free(text);
    if (!text) return ifl_fail(err, IFL_NOMEM, "%s: no memory for its options", at->text);
    if (n > OPTIONS_BYTES_MAX)
        return entry_fail(at, "options", err, "wanted at most 32 KiB as JSON");
    if (!e->builtin || !e->builtin->options) return IFL_OK;
    json_object_foreach(e->options, key, value) {
        char known[256] = "";
        bool found = false;
        for (const char *const *o = e->builtin->options; *o; o++) {
            size_t used = strlen(known);
            snprintf(known + used, sizeof known - used, " %s", *o);
            found |= strcmp(*o, key) == 0;
        }
        if (!found)
            return ifl_fail(err, IFL_FORMAT, "key %s.options.%.60s: unknown; %s takes%s", at->text,
                            key, e->builtin->name, *known ? known : " none");
    }
    return IFL_OK;
}

static ifl_status part_parse(const ifl_spec *spec, ifl_spec_entry *e, json_t *object,
                             const place *whole, size_t index, ifl_error *err) {
    place at;
    const char *checker, *name;
    ifl_spec_part *part = &e->parts[e->n_parts];
    snprintf(at.text, sizeof at.text, "%.90s.parts.%zu", whole->text, index);
    if (!json_is_object(object))
        return ifl_fail(err, IFL_FORMAT, "key %s: wanted a map {checker: NAME%s}", at.text,
                        e->kind == IFL_SPEC_SUM ? ", weight: W" : "");
    IFL_TRY(keys_check(object, &at, "a part of this",
                       e->kind == IFL_SPEC_SUM ? " checker name weight " : " checker name ", err));
    IFL_TRY(text_get(object, &at, "checker", true, &checker, err));
    IFL_TRY(text_get(object, &at, "name", false, &name, err));
    if (!name) name = checker;
    if (!name_is_sound(name))
        return entry_fail(&at, "name", err, "wanted 1 .. 31 letters, digits, '_' and '-'");
    part->entry = ifl_spec_find(spec, checker);
    part->builtin = part->entry < 0 ? ifl_checker_find(checker) : NULL;
    if (part->entry < 0 && !part->builtin) {
        char known[512];
        return ifl_fail(err, IFL_FORMAT,
                        "key %s.checker: there is no checker '%.60s'; wanted one of "
                        "reward.checkers or a built-in (%s)",
                        at.text, checker, builtins_text(known));
    }
    part->weight = 1.0;
    IFL_TRY(number_get(json_object_get(object, "weight"), &at, "weight", -100.0, 100.0,
                       &part->weight, err));
    snprintf(part->name, sizeof part->name, "%s", name);
    for (int32_t i = 0; i < e->n_parts; i++)
        if (strcmp(e->parts[i].name, part->name) == 0)
            return entry_fail(&at, "name", err, "another part has it; give this one a `name`");
    e->n_parts++;
    return IFL_OK;
}

static ifl_status clip_parse(ifl_spec_entry *e, const json_t *object, const place *at,
                             ifl_error *err) {
    const json_t *clip = json_object_get(object, "clip");
    double most = 0.0;
    e->clip[0] = -1.0;
    e->clip[1] = 1.0;
    if (clip && json_array_size(clip) != 2)
        return entry_fail(at, "clip", err, "wanted two numbers, [lowest, highest]");
    for (int i = 0; i < 2; i++)
        IFL_TRY(
            number_get(json_array_get(clip, (size_t)i), at, "clip", -1.0, 1.0, &e->clip[i], err));
    if (e->clip[0] >= e->clip[1])
        return entry_fail(at, "clip", err, "wanted the lower number first");
    for (int32_t i = 0; i < e->n_parts; i++)
        most += e->parts[i].weight < 0 ? -e->parts[i].weight : e->parts[i].weight;
    if (e->kind == IFL_SPEC_SUM && !clip && most > 1.0 + 1e-9)
        return ifl_fail(err, IFL_FORMAT,
                        "key %s.parts: the weights reach %g and a reward lies in -1 .. 1; give "
                        "weights whose sizes add up to 1 at most, or say what to cut: clip: [0, 1]",
                        at->text, most);
    return IFL_OK;
}

static ifl_status pass_on_parse(ifl_spec_entry *e, const json_t *object, const place *at,
                                ifl_error *err) {
    static const char wanted[] = "wanted a list of undecided, no_answer, or both";
    const json_t *list = json_object_get(object, "pass_on");
    size_t i;
    json_t *name;
    e->passes = IFL_SPEC_PASS_UNDECIDED;
    if (!list) return IFL_OK;
    if (json_array_size(list) < 1) return entry_fail(at, "pass_on", err, wanted);
    e->passes = 0;
    json_array_foreach(list, i, name) {
        const char *text = json_is_string(name) ? json_string_value(name) : "";
        uint32_t pass = strcmp(text, "undecided") == 0   ? IFL_SPEC_PASS_UNDECIDED
                        : strcmp(text, "no_answer") == 0 ? IFL_SPEC_PASS_NO_ANSWER
                                                         : 0;
        if (!pass || (e->passes & pass)) return entry_fail(at, "pass_on", err, wanted);
        e->passes |= pass;
    }
    return IFL_OK;
}

static ifl_status parts_parse(const ifl_spec *spec, ifl_spec_entry *e, const json_t *object,
                              const place *at, ifl_error *err) {
    const json_t *parts = json_object_get(object, "parts");
    size_t n = json_array_size(parts), i;
    json_t *part;
    if (n < 1 || n > IFL_SPEC_PARTS_MAX)
        return entry_fail(at, "parts", err, "wanted a list of 1 .. 8 maps, {checker: NAME}");
    json_array_foreach(parts, i, part) IFL_TRY(part_parse(spec, e, part, at, i, err));
    IFL_TRY(pass_on_parse(e, object, at, err));
    return clip_parse(e, object, at, err);
}

static ifl_status process_parse(ifl_spec_entry *e, const json_t *object, const place *at,
                                ifl_error *err) {
    const json_t *command = json_object_get(object, "command");
    size_t n = json_array_size(command);
    const char *key;
    json_t *value;
    if (n < 1 || n > IFL_SPEC_WORDS_MAX)
        return entry_fail(at, "command", err,
                          "wanted a list of 1 .. 32 texts, [python3, reward.py]");
    for (size_t i = 0; i < n; i++) {
        e->command[i] = json_string_value(json_array_get(command, i));
        if (!e->command[i] || (i == 0 && !*e->command[0]))
            return entry_fail(at, "command", err,
                              "every word must be a text; put numbers in quotes");
    }
    e->env = json_object_get(object, "env");
    if (e->env && (!json_is_object(e->env) || json_object_size(e->env) > 64))
        return entry_fail(at, "env", err, "wanted a map of at most 64 texts");
    json_object_foreach((json_t *)e->env, key, value) {
        if (!json_is_string(value) || !*key || strchr(key, '='))
            return entry_fail(at, "env", err, "wanted texts; put numbers in quotes");
    }
    e->start_ms = 30000;
    IFL_TRY(integer_get(object, at, "start_ms", 1, START_MS_MAX, &e->start_ms, err));
    return number_get(json_object_get(object, "memory_gib"), at, "memory_gib", 0.0, 65536.0,
                      &e->memory_gib, err);
}

/* Whether an URL may be asked without a cipher: its host is this one. */
static bool url_is_local(const char *url) {
    static const char *const local[] = {"http://127.0.0.1", "http://localhost", "http://[::1]"};
    for (size_t i = 0; i < sizeof local / sizeof *local; i++) {
        size_t n = strlen(local[i]);
        if (strncmp(url, local[i], n) == 0 && (url[n] == ':' || url[n] == '/' || !url[n]))
            return !strchr(url, '@'); /* http://127.0.0.1:x@host is not on this one */
    }
    return false;
}

static ifl_status http_parse(ifl_spec_entry *e, const json_t *object, const place *at,
                             ifl_error *err) {
    IFL_TRY(text_get(object, at, "url", true, &e->url, err));
    IFL_TRY(text_get(object, at, "token_file", false, &e->token_file, err));
    IFL_TRY(text_get(object, at, "ca_file", false, &e->ca_file, err));
    IFL_TRY(bool_get(object, at, "batch", &e->batch, err));
    IFL_TRY(bool_get(object, at, "insecure", &e->insecure, err));
    e->retries = 2;
    IFL_TRY(integer_get(object, at, "retries", 0, 10, &e->retries, err));
    bool https = strncmp(e->url, "https://", 8) == 0;
    if (!https && strncmp(e->url, "http://", 7) != 0)
        return entry_fail(at, "url", err, "wanted http://... or https://...");
    if (!https && !e->insecure && !url_is_local(e->url))
        return entry_fail(at, "url", err,
                          "answers and rewards would cross the network unprotected; wanted "
                          "https://, or http:// on this host, or insecure: true");
    return IFL_OK;
}

static ifl_status zeromq_parse(ifl_spec_entry *e, const json_t *object, const place *at,
                               ifl_error *err) {
    IFL_TRY(text_get(object, at, "endpoint", true, &e->endpoint, err));
    IFL_TRY(text_get(object, at, "keys", false, &e->keys, err));
    IFL_TRY(text_get(object, at, "key", false, &e->key, err));
    IFL_TRY(bool_get(object, at, "insecure", &e->insecure, err));
    if (ifl_endpoint_check(e->endpoint, e->keys || e->insecure, err) == IFL_OK) return IFL_OK;
    if (err) ifl_error_wrap(err, "key %s.endpoint", at->text);
    return IFL_FORMAT;
}

static ifl_status plugin_parse(ifl_spec_entry *e, const json_t *object, const place *at,
                               ifl_error *err) {
    bool isolate = true;
    switch (e->kind) {
    case IFL_SPEC_LIBRARY:
        IFL_TRY(text_get(object, at, "path", true, &e->path, err));
        IFL_TRY(bool_get(object, at, "isolate", &isolate, err));
        if (!isolate)
            return entry_fail(at, "isolate", err,
                              "plug-ins always run in a worker process, so that a crash costs an "
                              "answer and not the actor; wanted true, or nothing");
        return IFL_OK;
    case IFL_SPEC_PROCESS:
        return process_parse(e, object, at, err);
    case IFL_SPEC_HTTP:
        return http_parse(e, object, at, err);
    case IFL_SPEC_ZEROMQ:
        return zeromq_parse(e, object, at, err);
    default:
        return IFL_OK;
    }
}

static ifl_status entry_kind(ifl_spec_entry *e, const place *at, const char *use, ifl_error *err) {
    char known[512];
    for (size_t k = IFL_SPEC_SUM; k < sizeof kinds / sizeof *kinds; k++)
        if (strcmp(kinds[k].name, use) == 0) {
            e->kind = (ifl_spec_kind)k;
            return IFL_OK;
        }
    e->kind = IFL_SPEC_BUILTIN;
    e->builtin = ifl_checker_find(use);
    if (e->builtin) return IFL_OK;
    return ifl_fail(
        err, IFL_FORMAT,
        "key %s.use: got '%.60s', wanted a built-in (%s), sum, product, first, library, "
        "process, http or zeromq",
        at->text, use, builtins_text(known));
}

/* All but what refers to other checkers. */
static ifl_status entry_parse(ifl_spec_entry *e, const char *name, json_t *object, ifl_error *err) {
    place at = place_of(name);
    const char *use;
    if (!name_is_sound(name))
        return ifl_fail(err, IFL_FORMAT,
                        "key %s: wanted a name of 1 .. 31 letters, digits, '_' and '-'", at.text);
    if (ifl_checker_find(name))
        return ifl_fail(err, IFL_FORMAT,
                        "key %s: that is a built-in; give yours a name of its own, and use: %s",
                        at.text, name);
    if (!json_is_object(object))
        return ifl_fail(err, IFL_FORMAT, "key %s: wanted a map {use: ...}", at.text);
    snprintf(e->name, sizeof e->name, "%s", name);
    IFL_TRY(text_get(object, &at, "use", true, &use, err));
    IFL_TRY(entry_kind(e, &at, use, err));
    IFL_TRY(keys_check(object, &at, use, kinds[e->kind].keys, err));
    e->options = json_object_get(object, "options");
    IFL_TRY(options_check(e, &at, err));
    return plugin_parse(e, object, &at, err);
}

/* Walks what `e` is made of; `path` are the names from the top, for the error. Its hash is set on
 * the way back, when those of its parts are known. */
static ifl_status entry_walk(ifl_spec *spec, int32_t index, int depth, char path[256],
                             ifl_error *err) {
    ifl_spec_entry *e = &spec->entries[index];
    size_t used = strlen(path);
    snprintf(path + used, 256 - used, "%s%s", used ? " -> " : "", e->name);
    for (int32_t i = 0; i < e->n_parts; i++) {
        if (e->parts[i].entry < 0) continue;
        if (depth == IFL_SPEC_DEPTH_MAX)
            return ifl_fail(err, IFL_FORMAT,
                            "key reward.checkers: %s -> %s: a cycle, or more than %d compositions "
                            "inside each other",
                            path, spec->entries[e->parts[i].entry].name, IFL_SPEC_DEPTH_MAX);
        IFL_TRY(entry_walk(spec, e->parts[i].entry, depth + 1, path, err));
    }
    path[used] = '\0';
    char *text = json_dumps(json_object_get(spec->root, e->name), JSON_SORT_KEYS | JSON_COMPACT);
    if (!text) return ifl_fail(err, IFL_NOMEM, "no memory for checker %s", e->name);
    uint64_t hashes[IFL_SPEC_PARTS_MAX + 1] = {ifl_hash64(text, strlen(text))};
    free(text);
    for (int32_t i = 0; i < e->n_parts; i++)
        if (e->parts[i].entry >= 0) hashes[i + 1] = spec->entries[e->parts[i].entry].config;
    e->config =
        e->n_parts ? ifl_hash64(hashes, ((size_t)e->n_parts + 1) * sizeof *hashes) : hashes[0];
    if (e->config == 0) e->config = 1; /* 0 says that a checker has no options */
    return IFL_OK;
}

static ifl_status spec_read(ifl_spec *spec, ifl_error *err) {
    const char *name;
    json_t *object;
    size_t n = json_object_size(spec->root);
    if (n > IFL_SPEC_CHECKERS_MAX)
        return ifl_fail(err, IFL_FORMAT, "key reward.checkers: %zu checkers, wanted at most %d", n,
                        IFL_SPEC_CHECKERS_MAX);
    spec->entries = calloc(n ? n : 1, sizeof *spec->entries);
    if (!spec->entries) return ifl_fail(err, IFL_NOMEM, "no memory for %zu checkers", n);
    json_object_foreach(spec->root, name, object) {
        spec->n++;
        IFL_TRY(entry_parse(&spec->entries[spec->n - 1], name, object, err));
    }
    for (int32_t i = 0; i < spec->n; i++) { /* a part may stand behind what it is a part of */
        ifl_spec_entry *e = &spec->entries[i];
        place at = place_of(e->name);
        if (kinds[e->kind].composes)
            IFL_TRY(parts_parse(spec, e, json_object_get(spec->root, e->name), &at, err));
    }
    for (int32_t i = 0; i < spec->n; i++) {
        char path[256] = "";
        IFL_TRY(entry_walk(spec, i, 1, path, err));
    }
    return IFL_OK;
}

ifl_status ifl_spec_parse(ifl_spec **out, const char *json, ifl_error *err) {
    *out = NULL;
    ifl_spec *spec = calloc(1, sizeof *spec);
    if (!spec) return ifl_fail(err, IFL_NOMEM, "no memory for reward.checkers");
    if (!json || !*json) json = "{}";
    ifl_status st = ifl_json_parse_object(&spec->root, json, strlen(json), IFL_CHECKERS_BYTES_MAX,
                                          "key reward.checkers", err);
    if (st == IFL_OK) st = spec_read(spec, err);
    if (st != IFL_OK) {
        ifl_spec_free(spec);
        return st;
    }
    *out = spec;
    return IFL_OK;
}

void ifl_spec_free(ifl_spec *spec) {
    if (!spec) return;
    json_decref(spec->root);
    free(spec->entries);
    free(spec);
}

int32_t ifl_spec_find(const ifl_spec *spec, const char *name) {
    for (int32_t i = 0; i < spec->n; i++)
        if (strcmp(spec->entries[i].name, name) == 0) return i;
    return -1;
}

bool ifl_spec_knows(const ifl_spec *spec, const char *name) {
    return ifl_spec_find(spec, name) >= 0 || ifl_checker_find(name) != NULL;
}

bool ifl_spec_has_plugins(const ifl_spec *spec) {
    for (int32_t i = 0; i < spec->n; i++)
        if (spec->entries[i].kind >= IFL_SPEC_LIBRARY) return true;
    return false;
}

int32_t ifl_spec_start_ms(const ifl_spec *spec) {
    int64_t sum = 0; /* a worker starts its processes one after another */
    for (int32_t i = 0; i < spec->n; i++)
        sum += spec->entries[i].start_ms;
    return sum > START_MS_MAX ? START_MS_MAX : (int32_t)sum;
}

static ifl_status name_check(const ifl_spec *spec, const char *key, const char *name,
                             ifl_error *err) {
    char known[512];
    if (!*name || ifl_spec_knows(spec, name)) return IFL_OK;
    return ifl_fail(err, IFL_USAGE,
                    "key %.90s: there is no checker '%.60s'; wanted one of reward.checkers or a "
                    "built-in (%s); inflight score --list shows them",
                    key, name, builtins_text(known));
}

ifl_status ifl_spec_check_config(const ifl_config *config, ifl_error *err) {
    ifl_spec *spec;
    const char *source;
    json_t *checker;
    char key[96];
    ifl_status st = IFL_OK;
    IFL_TRY(ifl_spec_parse(&spec, config->reward.checkers, err));
    json_t *route = json_loads(config->reward.route, 0, NULL);
    IFL_TRY_GOTO(st, name_check(spec, "reward.checker", config->reward.checker, err), done);
    json_object_foreach(route, source, checker) {
        snprintf(key, sizeof key, "reward.route.%.60s", source);
        IFL_TRY_GOTO(st, name_check(spec, key, json_string_value(checker), err), done);
    }
    for (int i = 0; i < config->data.n_train + config->data.n_eval; i++) {
        bool train = i < config->data.n_train;
        int at = train ? i : i - config->data.n_train;
        snprintf(key, sizeof key, "data.%s.%d.checker", train ? "train" : "eval", at);
        IFL_TRY_GOTO(
            st,
            name_check(spec, key,
                       train ? config->data.train[at].checker : config->data.eval[at].checker, err),
            done);
    }
done:
    json_decref(route);
    ifl_spec_free(spec);
    return st;
}

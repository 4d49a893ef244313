/* YAML events -> rows of the table. Depth is bounded by the grammar itself: a key that is not in
 * the table ends the reading, so nothing nests deeper than file > section > list > map, but for
 * rows that take any map, which have a bound of their own. */
#include "common/config_table.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include <yaml.h>

#define KEY_BYTES_MAX 256
#define NODE_DEPTH_MAX 16
#define NODE_INTEGER_DIGITS 18 /* of a JSON integer, which has 64 bits */

typedef struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; valid while have_event */
    bool have_event;
    const char *file;
    ifl_config *config;
    size_t seen[IFL_CONFIG_ROWS_MAX]; /* line where a row was first set; 0 = not yet */
    ifl_error *err;
} reader;

static ifl_config_place reader_place(const reader *r) {
    return (ifl_config_place){r->file, r->event.start_mark.line + 1,
                              r->event.start_mark.column + 1};
}

static void reader_drop(reader *r) {
    if (r->have_event) yaml_event_delete(&r->event);
    r->have_event = false;
}

/* Moves to the next event. Aliases are refused at once: they could multiply a small file into a big
 * one. */
static ifl_status reader_next(reader *r) {
    reader_drop(r);
    if (!yaml_parser_parse(&r->parser, &r->event)) {
        const char *problem = r->parser.problem ? r->parser.problem : "unreadable";
        if (r->parser.error == YAML_MEMORY_ERROR)
            return ifl_fail(r->err, IFL_NOMEM, "%s: out of memory while parsing", r->file);
        return ifl_fail(r->err, IFL_FORMAT, "%s:%zu:%zu: not YAML: %s", r->file,
                        r->parser.problem_mark.line + 1, r->parser.problem_mark.column + 1,
                        problem);
    }
    r->have_event = true;
    if (r->event.type == YAML_ALIAS_EVENT) {
        ifl_config_place place = reader_place(r);
        return ifl_fail(r->err, IFL_FORMAT, "%s:%zu:%zu: aliases (*name) are not supported",
                        place.file, place.line, place.column);
    }
    return IFL_OK;
}

static const char *event_name(const yaml_event_t *event) {
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return "a single value";
    case YAML_SEQUENCE_START_EVENT:
        return "a list";
    case YAML_MAPPING_START_EVENT:
        return "a map";
    default:
        return "the end";
    }
}

/* The current event is not what `key` takes. */
static ifl_status reader_unexpected(reader *r, const char *key, const char *wanted) {
    ifl_config_place place = reader_place(r);
    return ifl_fail(r->err, IFL_FORMAT, "%s:%zu:%zu: key %s: got %s, wanted %s", place.file,
                    place.line, place.column, key, event_name(&r->event), wanted);
}

/* Copies the current event, a map's key, into out. */
static ifl_status reader_key(reader *r, const char *parent, char *out, size_t n_out) {
    if (r->event.type != YAML_SCALAR_EVENT) return reader_unexpected(r, parent, "a key");
    const char *text = (const char *)r->event.data.scalar.value;
    size_t n = r->event.data.scalar.length;
    if (n >= n_out || strlen(text) != n) {
        ifl_config_place place = reader_place(r);
        return ifl_config_fail(&place, parent, text, "a key of this configuration", r->err);
    }
    memcpy(out, text, n + 1);
    return IFL_OK;
}

static ifl_status reader_unknown(reader *r, const char *key, const char *near_key) {
    ifl_config_place place = reader_place(r);
    char wanted[KEY_BYTES_MAX + 64] = "a key of `inflight train --help-config`";
    if (near_key) snprintf(wanted, sizeof wanted, "a known key; did you mean %s?", near_key);
    return ifl_fail(r->err, IFL_FORMAT, "%s:%zu:%zu: key %.200s: unknown; wanted %s", place.file,
                    place.line, place.column, key, wanted);
}

static ifl_status reader_duplicate(reader *r, const char *key, size_t line) {
    ifl_config_place place = reader_place(r);
    return ifl_fail(r->err, IFL_FORMAT, "%s:%zu:%zu: key %s: given twice; first on line %zu",
                    place.file, place.line, place.column, key, line);
}

static ifl_status reader_scalar(reader *r, void *base, const ifl_config_row *row, const char *key) {
    if (r->event.type != YAML_SCALAR_EVENT) {
        char wanted[256];
        ifl_config_wanted(row, wanted, sizeof wanted);
        return reader_unexpected(r, key, wanted);
    }
    ifl_config_place place = reader_place(r);
    return ifl_config_scalar(base, row, key, (const char *)r->event.data.scalar.value,
                             r->event.data.scalar.length,
                             r->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE, &place, r->err);
}

/* One map of data.train or data.eval; the current event is its start. */
static ifl_status reader_source(reader *r, const char *list_key, ifl_source_config *source) {
    size_t seen[32] = {0};
    char key[KEY_BYTES_MAX], full[KEY_BYTES_MAX * 2];
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return reader_unexpected(r, list_key, "a map: {name: ..., path: ...}");
    for (;;) {
        IFL_TRY(reader_next(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) return IFL_OK;
        IFL_TRY(reader_key(r, list_key, key, sizeof key));
        snprintf(full, sizeof full, "%s.%s", list_key, key);
        int index = ifl_config_source_row_find(key);
        if (index < 0)
            return reader_unknown(
                r, full, ifl_config_near(ifl_config_source_rows, ifl_config_n_source_rows, key));
        if (seen[index]) return reader_duplicate(r, full, seen[index]);
        seen[index] = r->event.start_mark.line + 1;
        IFL_TRY(reader_next(r));
        IFL_TRY(reader_scalar(r, source, &ifl_config_source_rows[index], full));
    }
}

static ifl_status reader_sources(reader *r, const ifl_config_row *row) {
    char wanted[256];
    ifl_config_wanted(row, wanted, sizeof wanted);
    if (r->event.type != YAML_SEQUENCE_START_EVENT) return reader_unexpected(r, row->key, wanted);
    int32_t *n;
    ifl_source_config *sources = ifl_config_sources(r->config, row, &n);
    memset(sources, 0, sizeof *sources * IFL_SOURCES_MAX);
    *n = 0;
    for (;;) {
        IFL_TRY(reader_next(r));
        if (r->event.type == YAML_SEQUENCE_END_EVENT) return IFL_OK;
        if (*n >= IFL_SOURCES_MAX) return reader_unexpected(r, row->key, wanted);
        ifl_source_config_defaults(&sources[*n]);
        (*n)++;
        IFL_TRY(reader_source(r, row->key, &sources[*n - 1]));
    }
}

static ifl_status reader_stops(reader *r, const ifl_config_row *row) {
    char wanted[256];
    ifl_config_wanted(row, wanted, sizeof wanted);
    if (r->event.type != YAML_SEQUENCE_START_EVENT) return reader_unexpected(r, row->key, wanted);
    memset(r->config->rollout.stops, 0, sizeof r->config->rollout.stops);
    r->config->rollout.n_stops = 0;
    for (;;) {
        IFL_TRY(reader_next(r));
        if (r->event.type == YAML_SEQUENCE_END_EVENT) return IFL_OK;
        if (r->event.type != YAML_SCALAR_EVENT) return reader_unexpected(r, row->key, "a text");
        ifl_config_place place = reader_place(r);
        IFL_TRY(ifl_config_stop_add(r->config, row->key, (const char *)r->event.data.scalar.value,
                                    r->event.data.scalar.length, &place, r->err));
    }
}

/* What a text of ours reads back as, whatever it holds. */
static bool text_plain(const char *text, size_t n) {
    utf8proc_int32_t c;
    for (size_t i = 0; i < n;) {
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &c);
        if (k <= 0 || (c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7f && c < 0xa0)) return false;
        if (c == 0xfeff || c >= 0xfffe) /* YAML's own set of characters ends here and there */
            if (c < 0x10000) return false;
        i += (size_t)k;
    }
    return true;
}

/* The current scalar as YAML's core schema has it. NULL: no memory. */
static json_t *node_scalar(const reader *r) {
    const char *text = (const char *)r->event.data.scalar.value;
    size_t n = r->event.data.scalar.length;
    if (r->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return json_stringn(text, n);
    if (n == 0 || !strcmp(text, "null") || !strcmp(text, "~")) return json_null();
    if (!strcmp(text, "true") || !strcmp(text, "false")) return json_boolean(*text == 't');
    const char *digits = *text == '-' ? text + 1 : text;
    size_t n_digits = strspn(digits, "0123456789");
    if (n_digits > 0 && n_digits <= NODE_INTEGER_DIGITS && !digits[n_digits])
        return json_integer(strtoll(text, NULL, 10));
    char *end = NULL;
    double v = n_digits > 0 && strspn(text, "0123456789+-.eE") == n ? strtod(text, &end) : 0.0;
    if (end && !*end && v - v == 0.0) return json_real(v);
    return json_stringn(text, n);
}

/* The current event and what belongs to it, as JSON; `key` is for errors. */
static ifl_status reader_node(reader *r, const char *key, int depth, json_t **out) {
    ifl_status st = IFL_OK;
    *out = NULL;
    if (depth > NODE_DEPTH_MAX) return reader_unexpected(r, key, "at most 16 levels");
    bool map = r->event.type == YAML_MAPPING_START_EVENT;
    if (r->event.type == YAML_SCALAR_EVENT) {
        ifl_config_place place = reader_place(r);
        if (!text_plain((const char *)r->event.data.scalar.value, r->event.data.scalar.length))
            return ifl_config_fail(&place, key, (const char *)r->event.data.scalar.value,
                                   "a text without control characters", r->err);
        *out = node_scalar(r);
        return *out ? IFL_OK : ifl_fail(r->err, IFL_NOMEM, "%s: out of memory", r->file);
    }
    if (!map && r->event.type != YAML_SEQUENCE_START_EVENT)
        return reader_unexpected(r, key, "a value");
    json_t *whole = map ? json_object() : json_array(), *part = NULL;
    if (!whole) return ifl_fail(r->err, IFL_NOMEM, "%s: out of memory", r->file);
    for (;;) {
        char name[KEY_BYTES_MAX] = "", full[KEY_BYTES_MAX * 2];
        size_t line = 0;
        IFL_TRY_GOTO(st, reader_next(r), done);
        if (r->event.type == YAML_MAPPING_END_EVENT || r->event.type == YAML_SEQUENCE_END_EVENT) {
            *out = whole;
            return IFL_OK;
        }
        if (map) {
            IFL_TRY_GOTO(st, reader_key(r, key, name, sizeof name), done);
            line = r->event.start_mark.line + 1;
            ifl_config_place place = reader_place(r);
            if (!text_plain(name, strlen(name)) || json_object_get(whole, name)) {
                st = ifl_config_fail(&place, key, name,
                                     "keys that differ, without control characters", r->err);
                goto done;
            }
            IFL_TRY_GOTO(st, reader_next(r), done);
        }
        snprintf(full, sizeof full, "%.250s.%s", key, map ? name : "N");
        IFL_TRY_GOTO(st, reader_node(r, full, depth + 1, &part), done);
        int code =
            map ? json_object_set_new(whole, name, part) : json_array_append_new(whole, part);
        if (code != 0) {
            st = ifl_fail(r->err, IFL_NOMEM, "%s:%zu: out of memory", r->file, line);
            goto done;
        }
    }
done:
    json_decref(whole);
    return st;
}

/* Any map, kept as JSON text. */
static ifl_status reader_json(reader *r, const ifl_config_row *row) {
    char wanted[256];
    ifl_config_wanted(row, wanted, sizeof wanted);
    ifl_config_place place = reader_place(r);
    char *to = (char *)r->config + row->offset;
    bool nothing = r->event.type == YAML_SCALAR_EVENT && !r->event.data.scalar.length;
    if (!nothing && r->event.type != YAML_MAPPING_START_EVENT)
        return reader_unexpected(r, row->key, wanted);
    json_t *node = NULL;
    IFL_TRY(nothing ? IFL_OK : reader_node(r, row->key, 1, &node));
    char *text = nothing ? strdup("{}") : json_dumps(node, 0);
    json_decref(node);
    if (!text) return ifl_fail(r->err, IFL_NOMEM, "%s: out of memory", r->file);
    size_t n = strlen(text);
    ifl_status st = IFL_OK;
    if (n >= row->size) {
        st = ifl_fail(r->err, IFL_FORMAT, "%s:%zu:%zu: key %s: got %zu bytes of JSON, wanted %s",
                      place.file, place.line, place.column, row->key, n, wanted);
    } else {
        memset(to, 0, row->size); /* equal configurations are equal bytes */
        memcpy(to, text, n);
    }
    free(text);
    return st;
}

static ifl_status reader_value(reader *r, const ifl_config_row *row) {
    switch (row->type) {
    case IFL_CONFIG_SOURCES:
        return reader_sources(r, row);
    case IFL_CONFIG_STOPS:
        return reader_stops(r, row);
    case IFL_CONFIG_JSON:
        return reader_json(r, row);
    default:
        return reader_scalar(r, r->config, row, row->key);
    }
}

/* The current event is a key: looks it up, moves on to the value and reads it. */
static ifl_status reader_pair(reader *r, const char *full) {
    int index = ifl_config_row_find(full);
    if (index < 0)
        return reader_unknown(r, full, ifl_config_near(ifl_config_rows, ifl_config_n_rows, full));
    if (r->seen[index]) return reader_duplicate(r, full, r->seen[index]);
    r->seen[index] = r->event.start_mark.line + 1;
    IFL_TRY(reader_next(r));
    return reader_value(r, &ifl_config_rows[index]);
}

static bool section_exists(const char *name) {
    size_t n = strlen(name);
    for (int i = 0; i < ifl_config_n_rows; i++)
        if (!strncmp(ifl_config_rows[i].key, name, n) && ifl_config_rows[i].key[n] == '.')
            return true;
    return false;
}

static ifl_status reader_section(reader *r, const char *section) {
    char key[KEY_BYTES_MAX], full[KEY_BYTES_MAX * 2];
    IFL_TRY(reader_next(r));
    /* A section whose keys are all commented out. */
    if (r->event.type == YAML_SCALAR_EVENT && !r->event.data.scalar.length) return IFL_OK;
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return reader_unexpected(r, section, "a map of its keys");
    for (;;) {
        IFL_TRY(reader_next(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) return IFL_OK;
        IFL_TRY(reader_key(r, section, key, sizeof key));
        snprintf(full, sizeof full, "%s.%s", section, key);
        IFL_TRY(reader_pair(r, full));
    }
}

static ifl_status reader_document(reader *r) {
    char key[KEY_BYTES_MAX];
    char sections[32][64];
    size_t section_lines[32];
    int n_sections = 0;
    if (r->event.type == YAML_SCALAR_EVENT && !r->event.data.scalar.length) return IFL_OK;
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return reader_unexpected(r, "(the file)", "a map of sections");
    for (;;) {
        IFL_TRY(reader_next(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) return IFL_OK;
        IFL_TRY(reader_key(r, "(the file)", key, sizeof key));
        if (!section_exists(key)) {
            IFL_TRY(reader_pair(r, key));
            continue;
        }
        for (int i = 0; i < n_sections; i++)
            if (!strcmp(sections[i], key)) return reader_duplicate(r, key, section_lines[i]);
        IFL_ASSERT(n_sections < 32);
        snprintf(sections[n_sections], sizeof sections[0], "%s", key);
        section_lines[n_sections++] = r->event.start_mark.line + 1;
        IFL_TRY(reader_section(r, key));
    }
}

ifl_status ifl_config_read_text(ifl_config *config, const char *file, const char *text,
                                size_t n_text, const ifl_config_row *row, ifl_error *err) {
    reader r = {.file = file, .config = config, .err = err};
    ifl_status st;
    if (!yaml_parser_initialize(&r.parser))
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory for the YAML parser", file);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n_text);

    IFL_TRY_GOTO(st, reader_next(&r), done); /* the stream's start */
    IFL_TRY_GOTO(st, reader_next(&r), done);
    if (r.event.type == YAML_STREAM_END_EVENT) {
        if (row) st = ifl_fail(err, IFL_USAGE, "%s: key %s: got nothing", file, row->key);
        goto done; /* a file without content: all defaults */
    }
    IFL_TRY_GOTO(st, reader_next(&r), done); /* past the document's start */
    IFL_TRY_GOTO(st, row ? reader_value(&r, row) : reader_document(&r), done);
    IFL_TRY_GOTO(st, reader_next(&r), done); /* the document's end */
    IFL_TRY_GOTO(st, reader_next(&r), done);
    if (r.event.type != YAML_STREAM_END_EVENT)
        st = ifl_fail(err, IFL_FORMAT, "%s:%zu:%zu: a second document begins; wanted one", file,
                      r.event.start_mark.line + 1, r.event.start_mark.column + 1);
done:
    reader_drop(&r);
    yaml_parser_delete(&r.parser);
    return st;
}

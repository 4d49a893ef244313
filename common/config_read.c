/* YAML events -> rows of the table. Depth is bounded by the grammar itself: a key that is not in
 * the table ends the reading, so nothing nests deeper than file > section > list > map. */
#include "common/config_table.h"

#include <string.h>
#include <yaml.h>

#define KEY_BYTES_MAX 256

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

static ifl_status reader_value(reader *r, const ifl_config_row *row) {
    switch (row->type) {
    case IFL_CONFIG_SOURCES:
        return reader_sources(r, row);
    case IFL_CONFIG_STOPS:
        return reader_stops(r, row);
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

/* The table behind config.h: one row per key. Everything that reads, writes, checks or explains
 * keys goes through these rows, so a key is described in one place. Internal to common/config*.c.
 */
#ifndef IFL_COMMON_CONFIG_TABLE_H
#define IFL_COMMON_CONFIG_TABLE_H

#include "common/config.h"

typedef enum {
    IFL_CONFIG_INT32,
    IFL_CONFIG_INT64,
    IFL_CONFIG_DOUBLE,
    IFL_CONFIG_BOOL,
    IFL_CONFIG_TEXT,    /* char[size] */
    IFL_CONFIG_CHOICE,  /* char[size], one of `choices` */
    IFL_CONFIG_ENUM,    /* C enum; its value is the index in `choices` */
    IFL_CONFIG_MODE,    /* run.mode and run.async_k together: pipeline | sync | async:K */
    IFL_CONFIG_STOPS,   /* rollout.stops */
    IFL_CONFIG_SOURCES, /* data.train, data.eval */
    IFL_CONFIG_JSON,    /* char[size]: any YAML map, as JSON text in one line */
} ifl_config_type;

typedef struct ifl_config_row {
    const char *key; /* "section.key"; inside a source: "key" */
    ifl_config_type type;
    size_t offset; /* in ifl_config, or in ifl_source_config */
    size_t size;   /* of a text's buffer */
    double min, max;
    const char *fallback; /* default, as text */
    const char *choices;  /* "a|b|c" */
    const char *unit;     /* "" = none */
    const char *help;
} ifl_config_row;

#define IFL_CONFIG_ROWS_MAX 192

extern const ifl_config_row ifl_config_rows[];
extern const int ifl_config_n_rows;
extern const ifl_config_row ifl_config_source_rows[];
extern const int ifl_config_n_source_rows;

/* Index in the table; -1 when there is none. */
int ifl_config_row_find(const char *key);
int ifl_config_source_row_find(const char *key);

/* The key most like `key`, or NULL when none is near. `rows` is one of the two tables. */
const char *ifl_config_near(const ifl_config_row *rows, int n_rows, const char *key);

/* Where a value came from, for errors: "file:line:column" or "override". */
typedef struct ifl_config_place {
    const char *file;
    size_t line, column; /* from 1; 0 = not in a file */
} ifl_config_place;

/* "file:line:column: key K: got G, wanted W", with `text` (any bytes) shown shortened and escaped.
 */
ifl_status ifl_config_fail(const ifl_config_place *place, const char *key, const char *got,
                           const char *wanted, ifl_error *err);

/* Parses one scalar into base + row->offset. `quoted`: it stood in quotes, so it is no number. For
 * every type except STOPS and SOURCES. The destination is unchanged on failure. */
ifl_status ifl_config_scalar(void *base, const ifl_config_row *row, const char *key,
                             const char *text, size_t n_text, bool quoted,
                             const ifl_config_place *place, ifl_error *err);

/* One stop string, appended. */
ifl_status ifl_config_stop_add(ifl_config *config, const char *key, const char *text, size_t n_text,
                               const ifl_config_place *place, ifl_error *err);

/* What a row takes, in words: "an integer 1 .. 1024 (tokens)". */
void ifl_config_wanted(const ifl_config_row *row, char *out, size_t n_out);

/* A scalar as the text that ifl_config_scalar reads back; texts are not quoted. */
void ifl_config_value_text(const void *base, const ifl_config_row *row, char *out, size_t n_out);

void ifl_source_config_defaults(ifl_source_config *source);

/* The list that a SOURCES row stands for, and its length. */
ifl_source_config *ifl_config_sources(ifl_config *config, const ifl_config_row *row, int32_t **n);

/* Reads YAML text into `config` (config_read.c). With a row: the text is the value of that row
 * alone. */
ifl_status ifl_config_read_text(ifl_config *config, const char *file, const char *text,
                                size_t n_text, const ifl_config_row *row, ifl_error *err);

/* Rules between keys (config_check.c). */
ifl_status ifl_config_check(const ifl_config *config, ifl_error *err);

#endif

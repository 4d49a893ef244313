/* Values of the configuration as text: parsing, checking, formatting. */
#include "common/config_table.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define GOT_CHARS_MAX 60

/* `text` in quotes, control bytes escaped, long ones cut: errors go to a terminal. */
static void text_shown(const char *text, char *out, size_t n_out) {
    size_t used = 0;
    int chars = 0;
    out[used++] = '"';
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (used + 8 >= n_out || chars++ >= GOT_CHARS_MAX) {
            memcpy(out + used, "...", 3);
            used += 3;
            break;
        }
        if (*p == '\n') {
            out[used++] = '\\';
            out[used++] = 'n';
        } else if (*p < 0x20 || *p == 0x7f) {
            used += (size_t)snprintf(out + used, n_out - used, "\\x%02x", *p);
        } else {
            out[used++] = (char)*p;
        }
    }
    out[used++] = '"';
    out[used] = 0;
}

ifl_status ifl_config_fail(const ifl_config_place *place, const char *key, const char *got,
                           const char *wanted, ifl_error *err) {
    char shown[GOT_CHARS_MAX * 4 + 16];
    text_shown(got, shown, sizeof shown);
    if (place->line)
        return ifl_fail(err, IFL_FORMAT, "%s:%zu:%zu: key %s: got %s, wanted %s", place->file,
                        place->line, place->column, key, shown, wanted);
    return ifl_fail(err, IFL_USAGE, "%s: key %s: got %s, wanted %s", place->file, key, shown,
                    wanted);
}

void ifl_config_wanted(const ifl_config_row *row, char *out, size_t n_out) {
    const char *open = *row->unit ? " (" : "", *close = *row->unit ? ")" : "";
    switch (row->type) {
    case IFL_CONFIG_INT32:
    case IFL_CONFIG_INT64:
        snprintf(out, n_out, "an integer %.0f .. %.0f%s%s%s", row->min, row->max, open, row->unit,
                 close);
        break;
    case IFL_CONFIG_DOUBLE:
        snprintf(out, n_out, "a number %g .. %g%s%s%s", row->min, row->max, open, row->unit, close);
        break;
    case IFL_CONFIG_BOOL:
        snprintf(out, n_out, "true or false");
        break;
    case IFL_CONFIG_TEXT:
        snprintf(out, n_out, "a UTF-8 text of at most %zu bytes", row->size - 1);
        break;
    case IFL_CONFIG_CHOICE:
    case IFL_CONFIG_ENUM:
        snprintf(out, n_out, "one of %s", row->choices);
        break;
    case IFL_CONFIG_MODE:
        snprintf(out, n_out, "one of %s with K %.0f .. %.0f", row->choices, row->min, row->max);
        break;
    case IFL_CONFIG_STOPS:
        snprintf(out, n_out, "a list of at most %.0f texts of 1 .. 63 bytes", row->max);
        break;
    case IFL_CONFIG_SOURCES:
        snprintf(out, n_out, "a list of at most %.0f maps", row->max);
        break;
    case IFL_CONFIG_JSON:
        snprintf(out, n_out, "a map, of at most %zu bytes as JSON", row->size - 1);
        break;
    }
}

/* Index of `text` among "a|b|c"; -1 when it is not there. */
static int choice_index(const char *choices, const char *text) {
    size_t n = strlen(text);
    int index = 0;
    for (const char *p = choices;; index++) {
        const char *end = strchr(p, '|');
        size_t length = end ? (size_t)(end - p) : strlen(p);
        if (length == n && !memcmp(p, text, n)) return index;
        if (!end) return -1;
        p = end + 1;
    }
}

static bool integer_parse(const char *text, int64_t *out) {
    const char *digits = *text == '-' ? text + 1 : text;
    if (!*digits || strspn(digits, "0123456789") != strlen(digits)) return false;
    errno = 0;
    *out = strtoll(text, NULL, 10);
    return errno == 0;
}

static bool number_parse(const char *text, double *out) {
    if (!*text || strspn(text, "0123456789+-.eE") != strlen(text)) return false;
    char *end = NULL;
    *out = strtod(text, &end);
    return !*end && isfinite(*out);
}

static bool utf8_valid(const char *text, size_t n) {
    utf8proc_int32_t c;
    for (size_t i = 0; i < n;) {
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &c);
        if (k <= 0) return false;
        i += (size_t)k;
    }
    return true;
}

/* The rest of the buffer is zeroed, so that equal configurations are equal bytes. */
static void text_store(char *to, size_t size, const char *text, size_t n) {
    memset(to, 0, size);
    memcpy(to, text, n);
}

static bool mode_parse(ifl_config *config, const ifl_config_row *row, const char *text) {
    int64_t k = 0;
    if (!strcmp(text, "pipeline")) {
        config->run.mode = IFL_MODE_PIPELINE;
    } else if (!strcmp(text, "sync")) {
        config->run.mode = IFL_MODE_SYNC;
    } else if (!strncmp(text, "async:", 6) && integer_parse(text + 6, &k) &&
               (double)k >= row->min && (double)k <= row->max) {
        config->run.mode = IFL_MODE_ASYNC;
    } else {
        return false;
    }
    config->run.async_k = (int32_t)k;
    return true;
}

ifl_status ifl_config_scalar(void *base, const ifl_config_row *row, const char *key,
                             const char *text, size_t n_text, bool quoted,
                             const ifl_config_place *place, ifl_error *err) {
    char wanted[256];
    ifl_config_wanted(row, wanted, sizeof wanted);
    if (memchr(text, 0, n_text))
        return ifl_config_fail(place, key, text, "a text without a zero byte", err);
    char *at = (char *)base + row->offset;
    bool good = false;
    switch (row->type) {
    case IFL_CONFIG_INT32:
    case IFL_CONFIG_INT64: {
        int64_t v;
        good = !quoted && integer_parse(text, &v) && (double)v >= row->min && (double)v <= row->max;
        if (!good) break;
        if (row->type == IFL_CONFIG_INT64)
            memcpy(at, &v, sizeof v);
        else
            memcpy(at, &(int32_t){(int32_t)v}, sizeof(int32_t));
        break;
    }
    case IFL_CONFIG_DOUBLE: {
        double v;
        good = !quoted && number_parse(text, &v) && v >= row->min && v <= row->max;
        if (good) memcpy(at, &v, sizeof v);
        break;
    }
    case IFL_CONFIG_BOOL: {
        bool yes = !strcmp(text, "true"), no = !strcmp(text, "false");
        good = !quoted && (yes || no);
        if (good) memcpy(at, &yes, sizeof yes);
        break;
    }
    case IFL_CONFIG_TEXT:
        good = n_text < row->size && utf8_valid(text, n_text);
        if (good) text_store(at, row->size, text, n_text);
        break;
    case IFL_CONFIG_CHOICE:
        good = n_text < row->size && choice_index(row->choices, text) >= 0;
        if (good) text_store(at, row->size, text, n_text);
        break;
    case IFL_CONFIG_ENUM: {
        int index = choice_index(row->choices, text);
        good = index >= 0;
        if (good) memcpy(at, &index, sizeof index);
        break;
    }
    case IFL_CONFIG_MODE:
        good = mode_parse(base, row, text);
        break;
    case IFL_CONFIG_STOPS:
    case IFL_CONFIG_SOURCES:
    case IFL_CONFIG_JSON:
        break; /* lists and maps; a scalar never fits */
    }
    if (good) return IFL_OK;
    bool number = row->type == IFL_CONFIG_INT32 || row->type == IFL_CONFIG_INT64 ||
                  row->type == IFL_CONFIG_DOUBLE || row->type == IFL_CONFIG_BOOL;
    if (quoted && number)
        snprintf(wanted + strlen(wanted), sizeof wanted - strlen(wanted), ", without quotes");
    return ifl_config_fail(place, key, text, wanted, err);
}
_Static_assert(sizeof(ifl_kv_mode) == sizeof(int) && sizeof(ifl_loss_kind) == sizeof(int),
               "ENUM rows store an int");

ifl_status ifl_config_stop_add(ifl_config *config, const char *key, const char *text, size_t n_text,
                               const ifl_config_place *place, ifl_error *err) {
    if (config->rollout.n_stops >= IFL_STOPS_MAX)
        return ifl_config_fail(place, key, text, "at most 8 stop strings", err);
    char *to = config->rollout.stops[config->rollout.n_stops];
    if (!n_text || n_text >= sizeof config->rollout.stops[0] || memchr(text, 0, n_text) ||
        !utf8_valid(text, n_text))
        return ifl_config_fail(place, key, text, "a UTF-8 text of 1 .. 63 bytes", err);
    text_store(to, sizeof config->rollout.stops[0], text, n_text);
    config->rollout.n_stops++;
    return IFL_OK;
}

/* The shortest decimal that reads back to the same double. */
static void number_text(double v, char *out, size_t n_out) {
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(out, n_out, "%.*g", digits, v);
        if (strtod(out, NULL) == v) return;
    }
}

void ifl_config_value_text(const void *base, const ifl_config_row *row, char *out, size_t n_out) {
    const char *at = (const char *)base + row->offset;
    int64_t i64;
    int32_t i32;
    double d;
    bool b;
    out[0] = 0;
    switch (row->type) {
    case IFL_CONFIG_INT32:
        memcpy(&i32, at, sizeof i32);
        snprintf(out, n_out, "%d", i32);
        break;
    case IFL_CONFIG_INT64:
        memcpy(&i64, at, sizeof i64);
        snprintf(out, n_out, "%lld", (long long)i64);
        break;
    case IFL_CONFIG_DOUBLE:
        memcpy(&d, at, sizeof d);
        number_text(d, out, n_out);
        break;
    case IFL_CONFIG_BOOL:
        memcpy(&b, at, sizeof b);
        snprintf(out, n_out, "%s", b ? "true" : "false");
        break;
    case IFL_CONFIG_TEXT:
    case IFL_CONFIG_CHOICE:
        snprintf(out, n_out, "%s", at);
        break;
    case IFL_CONFIG_ENUM: {
        int index;
        memcpy(&index, at, sizeof index);
        const char *p = row->choices;
        for (; index > 0 && strchr(p, '|'); index--)
            p = strchr(p, '|') + 1;
        snprintf(out, n_out, "%.*s", (int)strcspn(p, "|"), p);
        break;
    }
    case IFL_CONFIG_MODE: {
        const ifl_config *config = base;
        if (config->run.mode == IFL_MODE_ASYNC)
            snprintf(out, n_out, "async:%d", config->run.async_k);
        else
            snprintf(out, n_out, "%s", config->run.mode == IFL_MODE_SYNC ? "sync" : "pipeline");
        break;
    }
    case IFL_CONFIG_JSON:
        snprintf(out, n_out, "%s", at);
        break;
    case IFL_CONFIG_STOPS:
    case IFL_CONFIG_SOURCES:
        break;
    }
}

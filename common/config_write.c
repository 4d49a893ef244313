/* The configuration as YAML that reads back to the same struct. */
#include "common/config.h"

#include <errno.h>
#include <string.h>
#include <utf8proc.h>

#include "common/config_table.h"

#define VALUE_BYTES_MAX 4096
_Static_assert(sizeof(((ifl_source_config *)0)->few_shot) <= VALUE_BYTES_MAX, "longest text");

/* In double quotes; everything that a YAML reader could fold, refuse or mistake is escaped. */
static void text_write(FILE *f, const char *text) {
    fputc('"', f);
    size_t n = strlen(text);
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c = 0;
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &c);
        if (k <= 0) break; /* ifl_config_scalar lets only UTF-8 in */
        bool printable =
            (c >= 0x20 && c <= 0x7e) || (c >= 0xa0 && c <= 0xd7ff && c != 0x2028 && c != 0x2029);
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", (char)c);
        else if (c == '\n')
            fputs("\\n", f);
        else if (c == '\t')
            fputs("\\t", f);
        else if (printable)
            fwrite(text + i, 1, (size_t)k, f);
        else
            fprintf(f, "\\U%08X", (unsigned)c);
        i += (size_t)k;
    }
    fputc('"', f);
}

static void scalar_write(FILE *f, const void *base, const ifl_config_row *row) {
    char value[VALUE_BYTES_MAX];
    ifl_config_value_text(base, row, value, sizeof value);
    if (row->type == IFL_CONFIG_TEXT || (row->type == IFL_CONFIG_CHOICE && !*value))
        text_write(f, value);
    else
        fputs(value, f);
}

static void comment_write(FILE *f, const ifl_config_row *row) {
    char wanted[256];
    ifl_config_wanted(row, wanted, sizeof wanted);
    fprintf(f, "  # %s; %s", row->help, wanted);
}

static void source_write(FILE *f, const ifl_source_config *source) {
    for (int i = 0; i < ifl_config_n_source_rows; i++) {
        fprintf(f, "    %s %s: ", i ? " " : "-", ifl_config_source_rows[i].key);
        scalar_write(f, source, &ifl_config_source_rows[i]);
        fputc('\n', f);
    }
}

static void row_write(FILE *f, const ifl_config *config, const ifl_config_row *row, bool comments) {
    const char *dot = strchr(row->key, '.');
    fprintf(f, "%s%s:", dot ? "  " : "", dot ? dot + 1 : row->key);
    if (row->type == IFL_CONFIG_STOPS) {
        fputs(" [", f);
        for (int i = 0; i < config->rollout.n_stops; i++) {
            if (i) fputs(", ", f);
            text_write(f, config->rollout.stops[i]);
        }
        fputc(']', f);
    } else if (row->type == IFL_CONFIG_SOURCES) {
        bool train = row->offset == offsetof(ifl_config, data.train);
        int32_t n = train ? config->data.n_train : config->data.n_eval;
        const ifl_source_config *sources = train ? config->data.train : config->data.eval;
        if (!n) fputs(" []", f);
        if (comments) comment_write(f, row);
        fputc('\n', f);
        for (int i = 0; i < n; i++)
            source_write(f, &sources[i]);
        return;
    } else if (row->type == IFL_CONFIG_JSON) {
        fprintf(f, " %s", (const char *)config + row->offset); /* JSON is YAML */
    } else {
        fputc(' ', f);
        scalar_write(f, config, row);
    }
    if (comments) comment_write(f, row);
    fputc('\n', f);
}

ifl_status ifl_config_write(const ifl_config *config, FILE *f, bool comments, ifl_error *err) {
    char section[64] = "";
    for (int i = 0; i < ifl_config_n_rows; i++) {
        const ifl_config_row *row = &ifl_config_rows[i];
        size_t n = strcspn(row->key, ".");
        if (row->key[n] && (strlen(section) != n || strncmp(section, row->key, n))) {
            snprintf(section, sizeof section, "%.*s", (int)n, row->key);
            fprintf(f, "\n%s:\n", section);
        }
        row_write(f, config, row, comments);
    }
    if (ferror(f))
        return ifl_fail(err, IFL_IO, "cannot write the configuration: %s", strerror(errno));
    return IFL_OK;
}

void ifl_config_help(FILE *f) {
    char section[64] = "";
    for (int i = 0; i < ifl_config_n_rows; i++) {
        const ifl_config_row *row = &ifl_config_rows[i];
        size_t n = strcspn(row->key, ".");
        if (row->key[n] && (strlen(section) != n || strncmp(section, row->key, n))) {
            snprintf(section, sizeof section, "%.*s", (int)n, row->key);
            fprintf(f, "\n%s\n", section);
        }
        char wanted[256];
        ifl_config_wanted(row, wanted, sizeof wanted);
        char fallback[64];
        size_t used = 0;
        for (const char *p = row->fallback; *p && used < sizeof fallback - 3; p++) {
            if (*p == '\n') fallback[used++] = '\\';
            fallback[used++] = *p == '\n' ? 'n' : *p;
        }
        fallback[used] = 0;
        fprintf(f, "  %s = %s\n      %s; %s\n", row->key, *fallback ? fallback : "\"\"", row->help,
                wanted);
    }
    fprintf(f, "\nkeys of one source, as in data.train.0.path=FILE\n");
    for (int i = 0; i < ifl_config_n_source_rows; i++) {
        const ifl_config_row *row = &ifl_config_source_rows[i];
        char wanted[256];
        ifl_config_wanted(row, wanted, sizeof wanted);
        fprintf(f, "  %s = %s\n      %s; %s\n", row->key, *row->fallback ? row->fallback : "\"\"",
                row->help, wanted);
    }
}

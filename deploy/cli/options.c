#include "deploy/cli/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_CONFIG = 1000, KEY_DRY_RUN, KEY_HELP_CONFIG, KEY_VERBOSE };

typedef struct parse_state {
    ifl_options *out;
    const ifl_options_spec *spec;
    ifl_status status;
    ifl_error *err;
} parse_state;

/* key=value with a key of the form a.b: a file name with '=' in it still counts as an argument. */
static bool is_override(const char *arg) {
    size_t n = strspn(arg, "abcdefghijklmnopqrstuvwxyz0123456789_.");
    return n > 0 && arg[n] == '=';
}

static void state_fail(parse_state *s, ifl_status st) {
    if (s->status == IFL_OK) s->status = st;
}

static void argument_add(parse_state *s, const char *arg) {
    ifl_options *o = s->out;
    if (is_override(arg)) {
        if (o->n_overrides < IFL_OVERRIDES_MAX)
            o->overrides[o->n_overrides++] = arg;
        else
            state_fail(s, ifl_fail(s->err, IFL_USAGE, "more than %d key=value arguments",
                                   IFL_OVERRIDES_MAX));
    } else if (o->n_args < s->spec->n_args_max && o->n_args < IFL_ARGS_MAX) {
        o->args[o->n_args++] = arg;
    } else {
        state_fail(s, ifl_fail(s->err, IFL_USAGE,
                               "unexpected argument \"%.80s\"; wanted %s and key=value overrides, "
                               "see --help",
                               arg, s->spec->args_doc ? s->spec->args_doc : "no arguments"));
    }
}

ifl_status ifl_options_set(ifl_options *out, const char *key, const char *value, ifl_error *err) {
    if (out->n_settings == IFL_SETTINGS_MAX)
        return ifl_fail(err, IFL_USAGE, "more than %d options that set a key", IFL_SETTINGS_MAX);
    /* Tried out here, where it is known which option it was; it counts when all is read. */
    IFL_TRY(ifl_config_set(out->config, key, value, err));
    char *text = NULL;
    if (asprintf(&text, "%s=%s", key, value) < 0)
        return ifl_fail(err, IFL_NOMEM, "out of memory for the options");
    out->settings[out->n_settings++] = text;
    return IFL_OK;
}

static const char *option_name(const ifl_options_spec *spec, int key) {
    for (const struct argp_option *o = spec->extra; o && (o->name || o->key); o++)
        if (o->key == key && o->name) return o->name;
    return "option";
}

/* True when the option stands for keys of the configuration. */
static bool key_take(parse_state *s, int option, const char *arg) {
    bool any = false;
    for (const ifl_option_key *k = s->spec->keys; k && k->option; k++) {
        if (k->option != option) continue;
        any = true;
        if (s->status != IFL_OK) continue; /* the first error is the one to tell */
        ifl_status st = ifl_options_set(s->out, k->key, k->value ? k->value : arg, s->err);
        if (st != IFL_OK) ifl_error_wrap(s->err, "--%s", option_name(s->spec, option));
        state_fail(s, st);
    }
    return any;
}

static error_t on_argp(int key, char *arg, struct argp_state *state) {
    parse_state *s = state->input;
    switch (key) {
    case KEY_CONFIG:
        s->out->config_path = arg;
        return 0;
    case KEY_DRY_RUN:
        s->out->dry_run = true;
        return 0;
    case KEY_VERBOSE:
        s->out->verbose = true;
        return 0;
    case KEY_HELP_CONFIG:
        ifl_config_help(stdout);
        exit(0);
    case ARGP_KEY_ARG:
        argument_add(s, arg);
        return 0;
    case ARGP_KEY_END:
    case ARGP_KEY_NO_ARGS:
    case ARGP_KEY_INIT:
    case ARGP_KEY_SUCCESS:
    case ARGP_KEY_ERROR:
    case ARGP_KEY_FINI:
    case ARGP_KEY_ARGS:
        return ARGP_ERR_UNKNOWN;
    default:
        if (key_take(s, key, arg)) return 0;
        if (!s->spec->on_option) return ARGP_ERR_UNKNOWN;
        if (s->status != IFL_OK) return 0; /* the first error is the one to tell */
        state_fail(s, s->spec->on_option(key, arg, s->spec->user, s->err));
        return 0;
    }
}

static const struct argp_option config_options[] = {
    {"config", KEY_CONFIG, "FILE", 0, "YAML configuration; key=value arguments go over it", 10},
    {"dry-run", KEY_DRY_RUN, NULL, 0, "print the resolved configuration and stop", 10},
    {"help-config", KEY_HELP_CONFIG, NULL, 0, "list every configuration key", 10},
    {"verbose", KEY_VERBOSE, NULL, 0, "say more", 10},
    {0},
};

static size_t options_count(const struct argp_option *options) {
    size_t n = 0;
    while (options && (options[n].name || options[n].key || options[n].doc))
        n++;
    return n;
}

/* What is read over what: presets or the file, then key=value arguments, then options. */
static ifl_status config_resolve(ifl_options *o, const ifl_options_spec *spec, ifl_error *err) {
    enum { PRESETS_MAX = 16, ALL_MAX = PRESETS_MAX + IFL_OVERRIDES_MAX + IFL_SETTINGS_MAX };
    const char *all[ALL_MAX];
    int n = 0;
    for (const char *const *p = spec->presets; p && *p && !o->config_path; p++) {
        IFL_ASSERT(n < PRESETS_MAX);
        all[n++] = *p;
    }
    for (int i = 0; i < o->n_overrides; i++)
        all[n++] = o->overrides[i];
    for (int i = 0; i < o->n_settings; i++)
        all[n++] = o->settings[i];
    return ifl_config_load(o->config, o->config_path, all, n, err);
}

bool ifl_options_may_say(const ifl_options *options, const char *key) {
    size_t n = strlen(key);
    if (options->config_path) return true;
    for (int i = 0; i < options->n_overrides; i++)
        if (!strncmp(options->overrides[i], key, n) && options->overrides[i][n] == '=') return true;
    return false;
}

static ifl_status options_parse(ifl_options *out, int argc, char **argv,
                                const ifl_options_spec *spec, ifl_error *err) {
    memset(out, 0, sizeof *out);
    out->config = malloc(sizeof *out->config);
    if (!out->config) return ifl_fail(err, IFL_NOMEM, "out of memory for the configuration");
    ifl_config_defaults(out->config);
    if (spec->parsing) *spec->parsing = out;
    char args_doc[256];
    snprintf(args_doc, sizeof args_doc, "%s [key=value ...]", spec->args_doc ? spec->args_doc : "");
    size_t n_common = options_count(config_options), n_extra = options_count(spec->extra);
    struct argp_option *all = calloc(n_common + n_extra + 1, sizeof *all);
    if (!all) return ifl_fail(err, IFL_NOMEM, "out of memory for the list of options");
    if (n_extra) memcpy(all, spec->extra, n_extra * sizeof *all);
    memcpy(all + n_extra, config_options, n_common * sizeof *all);
    struct argp argp = {.options = all, .parser = on_argp, .args_doc = args_doc, .doc = spec->doc};
    parse_state state = {out, spec, IFL_OK, err};

    argp_err_exit_status = 64;
    error_t code = argp_parse(&argp, argc, argv, 0, NULL, &state);
    free(all);
    if (code) return ifl_fail(err, IFL_USAGE, "command line: %s", strerror(code));
    IFL_TRY(state.status);
    if (out->n_args < spec->n_args_min)
        return ifl_fail(err, IFL_USAGE, "got %d arguments, wanted %s; see --help", out->n_args,
                        spec->args_doc);
    return config_resolve(out, spec, err);
}

static void options_free(ifl_options *options) {
    for (int i = 0; i < options->n_settings; i++)
        free(options->settings[i]);
    options->n_settings = 0;
    free(options->config);
    options->config = NULL;
}

void ifl_options_print(const ifl_options *options, FILE *f) {
    char *text = NULL;
    size_t n = 0;
    FILE *memory = open_memstream(&text, &n);
    if (memory) {
        ifl_config_describe(options->config, memory);
        fclose(memory);
        for (char *line = text; line && *line;) {
            size_t length = strcspn(line, "\n");
            fprintf(f, "# %.*s\n", (int)length, line);
            line += length + (line[length] == '\n');
        }
        free(text);
    }
    ifl_config_write(options->config, f, true, NULL);
}

int ifl_options_run(int argc, char **argv, const ifl_options_spec *spec) {
    ifl_options options = {0};
    ifl_error err = {0};
    ifl_status st = options_parse(&options, argc, argv, spec, &err);
    if (st == IFL_OK && options.dry_run) {
        if (spec->dry_run)
            st = spec->dry_run(&options, spec->user, &err);
        else
            ifl_options_print(&options, stdout);
    } else if (st == IFL_OK) {
        st = spec->work(&options, spec->user, &err);
    }
    options_free(&options);
    if (st != IFL_OK)
        fprintf(stderr, "%s: %s\n", argv[0], *err.text ? err.text : ifl_status_text(st));
    return ifl_status_exit_code(st);
}

ifl_status ifl_options_int(const char *option, const char *arg, int64_t min, int64_t max,
                           int64_t *out, ifl_error *err) {
    char *end = NULL;
    errno = 0;
    long long v = strtoll(arg, &end, 10);
    if (errno || end == arg || *end || v < min || v > max)
        return ifl_fail(err, IFL_USAGE, "--%s: got \"%.40s\", wanted an integer %lld .. %lld",
                        option, arg, (long long)min, (long long)max);
    *out = v;
    return IFL_OK;
}

ifl_status ifl_options_double(const char *option, const char *arg, double min, double max,
                              double *out, ifl_error *err) {
    char *end = NULL;
    double v = strtod(arg, &end);
    if (end == arg || *end || !isfinite(v) || v < min || v > max)
        return ifl_fail(err, IFL_USAGE, "--%s: got \"%.40s\", wanted a number %g .. %g", option,
                        arg, min, max);
    *out = v;
    return IFL_OK;
}

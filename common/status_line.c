#include "common/status_line.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/clock.h"

#define DRAW_INTERVAL_S 0.2
#define PLAIN_INTERVAL_S 30.0
#define WIDTH_DEFAULT 80
#define WIDTH_MIN 20

void ifl_status_view_clear(ifl_status_view *v) {
    *v = (ifl_status_view){.accuracy_step = -1};
    v->reward = v->accuracy = v->accuracy_first = (double)NAN;
    v->actor_tokens_per_s = v->learner_tokens_per_s = (double)NAN;
    v->lag_mean = v->lag_max = v->ess = v->swap_stall_ms = v->mean_length = (double)NAN;
    v->elapsed_s = v->eta_s = (double)NAN;
}

/* "-" when unknown; 1234 as 1.2k, 1234567 as 1.2M when `compact`. */
static const char *number_shown(char out[32], double v, int decimals, bool compact) {
    if (!isfinite(v))
        snprintf(out, 32, "-");
    else if (compact && v >= 1e6)
        snprintf(out, 32, "%.1fM", v / 1e6);
    else if (compact && v >= 1e4)
        snprintf(out, 32, "%.0fk", v / 1e3);
    else if (compact && v >= 1e3)
        snprintf(out, 32, "%.1fk", v / 1e3);
    else
        snprintf(out, 32, "%.*f", decimals, v);
    return out;
}

static const char *duration_shown(char out[32], double s) {
    if (!isfinite(s) || s < 0 || s > 1e9) {
        snprintf(out, 32, "-");
    } else if (s < 3600) {
        snprintf(out, 32, "%d:%02d", (int)(s / 60), (int)s % 60);
    } else {
        int m = (int)(s / 60);
        snprintf(out, 32, "%dh%02d", m / 60, m % 60);
    }
    return out;
}

/* "0.93 (was 0.35)" */
static void accuracy_shown(char *out, size_t n, const ifl_status_view *v) {
    char a[32], b[32];
    number_shown(a, v->accuracy, 3, false);
    if (isfinite(v->accuracy) && isfinite(v->accuracy_first) && v->accuracy_step > 0)
        snprintf(out, n, "%s (was %s)", a, number_shown(b, v->accuracy_first, 3, false));
    else
        snprintf(out, n, "%s", a);
}

static void bar_draw(char *out, size_t n_out, double share, int cells) {
    if (!(share >= 0)) share = 0;
    if (share > 1) share = 1;
    int full = (int)(share * cells);
    size_t used = 0;
    for (int i = 0; i < cells && used + 2 < n_out; i++)
        out[used++] = i < full ? '#' : '.';
    out[used] = 0;
}

typedef struct line_builder {
    char *out;
    size_t n_out, used;
    int columns, width;
    bool color;
} line_builder;

/* Appends "  label value" if it fits whole into the width. Colour codes take no columns. */
static bool field_add(line_builder *b, const char *label, const char *value, const char *style) {
    int columns = (int)(strlen(label) + strlen(value)) + (*label ? 1 : 0) + (b->columns ? 2 : 0);
    if (b->columns + columns > b->width) return false;
    bool styled = b->color && *style;
    int n = snprintf(b->out + b->used, b->n_out - b->used, "%s%s%s%s%s%s", b->columns ? "  " : "",
                     label, *label ? " " : "", styled ? style : "", value, styled ? "\033[0m" : "");
    if (n < 0 || (size_t)n >= b->n_out - b->used) {
        b->out[b->used] = 0;
        return false;
    }
    b->used += (size_t)n;
    b->columns += columns;
    return true;
}

void ifl_status_block(const ifl_status_view *v, int width, bool color,
                      char lines[IFL_STATUS_LINES_MAX][512], int *n_lines) {
    static const char bold[] = "\033[1m", green[] = "\033[32m", dim[] = "\033[2m";
    if (width > IFL_STATUS_WIDTH_MAX) width = IFL_STATUS_WIDTH_MAX;
    if (width < WIDTH_MIN) width = WIDTH_MIN;
    char a[32], b[32], text[128], bar[64];
    line_builder l[3];
    for (int i = 0; i < 3; i++) {
        lines[i][0] = 0;
        l[i] = (line_builder){lines[i], sizeof lines[i], 0, 0, width - 1, color};
    }
    double share = v->steps > 0 ? (double)v->step / (double)v->steps : 0;

    snprintf(text, sizeof text, "%lld/%lld", (long long)v->step, (long long)v->steps);
    field_add(&l[0], "step", text, bold);
    int cells = width < 50 ? 8 : width < 90 ? 20 : 32;
    bar_draw(bar, sizeof bar, share, cells);
    snprintf(text, sizeof text, "[%s]", bar);
    field_add(&l[0], "", text, green);
    field_add(&l[0], "ETA", duration_shown(a, v->eta_s), "");
    field_add(&l[0], "elapsed", duration_shown(a, v->elapsed_s), dim);
    field_add(&l[0], "", v->phase ? v->phase : "training", dim);

    field_add(&l[1], "reward", number_shown(a, v->reward, 3, false), bold);
    accuracy_shown(text, sizeof text, v);
    if (!field_add(&l[1], "accuracy", text, bold))
        field_add(&l[1], "accuracy", number_shown(a, v->accuracy, 3, false), bold);
    snprintf(text, sizeof text, "%s/%s", number_shown(a, v->lag_mean, 2, false),
             number_shown(b, v->lag_max, 0, false));
    field_add(&l[1], "lag mean/max", text, "");
    field_add(&l[1], "ESS", number_shown(a, v->ess, 3, false), "");
    field_add(&l[1], "length", number_shown(a, v->mean_length, 0, false), "");

    snprintf(text, sizeof text, "%s tok/s", number_shown(a, v->actor_tokens_per_s, 0, true));
    field_add(&l[2], "actors", text, "");
    snprintf(text, sizeof text, "%s tok/s", number_shown(a, v->learner_tokens_per_s, 0, true));
    field_add(&l[2], "learner", text, "");
    snprintf(text, sizeof text, "%s ms", number_shown(a, v->swap_stall_ms, 2, false));
    field_add(&l[2], "swap", text, "");
    snprintf(text, sizeof text, "%d", v->in_flight);
    field_add(&l[2], "in flight", text, dim);
    snprintf(text, sizeof text, "%d", v->actors);
    field_add(&l[2], "actors alive", text, dim);
    *n_lines = 3;
}

void ifl_status_plain(const ifl_status_view *v, char *out, size_t n_out) {
    char reward[32], lag[32], lag_max[32], ess[32], actor[32], learner[32], stall[32], eta[32];
    char accuracy[96], phase[64] = "";
    accuracy_shown(accuracy, sizeof accuracy, v);
    if (v->phase) snprintf(phase, sizeof phase, " [%s]", v->phase);
    snprintf(
        out, n_out,
        "step %lld/%lld%s reward %s accuracy %s lag %s max %s ESS %s actors %s tok/s learner %s "
        "tok/s swap %s ms ETA %s",
        (long long)v->step, (long long)v->steps, phase, number_shown(reward, v->reward, 3, false),
        accuracy, number_shown(lag, v->lag_mean, 2, false),
        number_shown(lag_max, v->lag_max, 0, false), number_shown(ess, v->ess, 3, false),
        number_shown(actor, v->actor_tokens_per_s, 0, true),
        number_shown(learner, v->learner_tokens_per_s, 0, true),
        number_shown(stall, v->swap_stall_ms, 2, false), duration_shown(eta, v->eta_s));
}

struct ifl_status_line {
    FILE *out;
    bool live, color;
    int n_drawn; /* lines of the block on the screen, the cursor below them */
    double drawn_s;
    int64_t step;
    char phase[64];
    bool have_view;
};

ifl_status_line *ifl_status_line_create(FILE *out) {
    ifl_status_line *line = calloc(1, sizeof *line);
    if (!line) return NULL;
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    line->out = out;
    line->live = isatty(fileno(out)) && term && *term && strcmp(term, "dumb") != 0;
    line->color = line->live && !(no_color && *no_color);
    line->step = -1;
    return line;
}

void ifl_status_line_free(ifl_status_line *line) {
    if (!line) return;
    fflush(line->out);
    free(line);
}

static int width_now(const ifl_status_line *line) {
    struct winsize w;
    if (ioctl(fileno(line->out), TIOCGWINSZ, &w) || w.ws_col < 1) return WIDTH_DEFAULT;
    return w.ws_col;
}

/* Goes to the block's first line and clears everything below. */
static void block_erase(ifl_status_line *line) {
    if (line->n_drawn) fprintf(line->out, "\033[%dA\r\033[J", line->n_drawn);
    line->n_drawn = 0;
}

void ifl_status_line_update(ifl_status_line *line, const ifl_status_view *view) {
    if (!line) return;
    double now = ifl_clock_s();
    const char *phase = view->phase ? view->phase : "training";
    bool news = !line->have_view || view->step != line->step || strcmp(line->phase, phase) != 0;
    double interval = line->live ? DRAW_INTERVAL_S : PLAIN_INTERVAL_S;
    if (!news && now - line->drawn_s < interval) return;
    line->have_view = true;
    line->step = view->step;
    snprintf(line->phase, sizeof line->phase, "%s", phase);
    line->drawn_s = now;
    if (line->live) {
        char lines[IFL_STATUS_LINES_MAX][512];
        int n;
        ifl_status_block(view, width_now(line), line->color, lines, &n);
        block_erase(line);
        for (int i = 0; i < n; i++)
            fprintf(line->out, "%s\n", lines[i]);
        line->n_drawn = n;
    } else {
        char text[512];
        ifl_status_plain(view, text, sizeof text);
        fprintf(line->out, "%s\n", text);
    }
    fflush(line->out);
}

void ifl_status_line_note(ifl_status_line *line, const char *format, ...) {
    if (!line) return;
    block_erase(line);
    va_list args;
    va_start(args, format);
    vfprintf(line->out, format, args);
    va_end(args);
    fputc('\n', line->out);
    line->drawn_s = 0; /* the block comes back with the next update */
    fflush(line->out);
}

#include "deploy/cli/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 420.0
#define HEIGHT 210.0
#define LEFT 46.0
#define RIGHT 12.0
#define TOP 10.0
#define BOTTOM 26.0
#define POINTS_MAX 400 /* drawn; more are averaged */
#define BINS_MAX 24

void ifl_html_text(FILE *f, const char *text) {
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '&')
            fputs("&amp;", f);
        else if (c == '<')
            fputs("&lt;", f);
        else if (c == '>')
            fputs("&gt;", f);
        else if (c == '"')
            fputs("&quot;", f);
        else if (c == '\'')
            fputs("&#39;", f);
        else if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            fputs("\xef\xbf\xbd", f); /* U+FFFD */
        else
            fputc(c, f);
    }
}

void ifl_number_short(double v, char out[32]) {
    double a = fabs(v);
    if (!isfinite(v))
        snprintf(out, 32, "–");
    else if (a >= 1e9)
        snprintf(out, 32, "%.3gG", v / 1e9);
    else if (a >= 1e6)
        snprintf(out, 32, "%.3gM", v / 1e6);
    else if (a >= 1e4)
        snprintf(out, 32, "%.3gk", v / 1e3);
    else if (a >= 100 || v == floor(v))
        snprintf(out, 32, "%.0f", v);
    else
        snprintf(out, 32, "%.3g", v);
}

/* --- Axes ---------------------------------------------------------------------------------------
 */

typedef struct axis {
    double min, max, step;
} axis;

/* 1, 2 or 5 times a power of ten, so that about `n` ticks cover the range. */
static axis axis_nice(double min, double max, int n) {
    if (!(max > min)) {
        double pad = fabs(max) > 0 ? fabs(max) * 0.1 : 1;
        min -= pad;
        max += pad;
    }
    double raw = (max - min) / n;
    double power = pow(10, floor(log10(raw)));
    double unit = raw / power;
    double step = (unit <= 1 ? 1 : unit <= 2 ? 2 : unit <= 5 ? 5 : 10) * power;
    return (axis){floor(min / step) * step, ceil(max / step - 1e-9) * step, step};
}

static double x_of(const axis *x, double v) {
    return LEFT + (v - x->min) / (x->max - x->min) * (WIDTH - LEFT - RIGHT);
}

static double y_of(const axis *y, double v) {
    return HEIGHT - BOTTOM - (v - y->min) / (y->max - y->min) * (HEIGHT - TOP - BOTTOM);
}

/* Data range over all series; false when nothing is finite. */
static bool chart_range(const ifl_chart *c, double *x0, double *x1, double *y0, double *y1) {
    *x0 = *y0 = (double)INFINITY;
    *x1 = *y1 = -(double)INFINITY;
    for (int s = 0; s < c->n_series; s++)
        for (size_t i = 0; i < c->series[s].n; i++) {
            const ifl_chart_point *p = &c->series[s].points[i];
            if (!isfinite(p->y)) continue;
            *x0 = fmin(*x0, p->x);
            *x1 = fmax(*x1, p->x);
            *y0 = fmin(*y0, fmin(p->y, isfinite(p->low) ? p->low : p->y));
            *y1 = fmax(*y1, fmax(p->y, isfinite(p->high) ? p->high : p->y));
        }
    return *x0 <= *x1;
}

static void axes_write(FILE *f, const axis *x, const axis *y) {
    char label[32];
    int n = (int)((y->max - y->min) / y->step + 0.5);
    for (int i = 0; i <= n && i < 20; i++) {
        double v = y->min + i * y->step;
        if (fabs(v) < y->step * 1e-6) v = 0;
        ifl_number_short(v, label);
        fprintf(f,
                "<line class=\"%s\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
                "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                i == 0 ? "base" : "grid", LEFT, WIDTH - RIGHT, y_of(y, v), y_of(y, v), LEFT - 6,
                y_of(y, v) + 4, label);
    }
    double first = ceil(x->min / x->step - 1e-9) * x->step;
    for (int i = 0; i < 20; i++) {
        double v = first + i * x->step;
        if (v > x->max + x->step * 1e-6) break;
        ifl_number_short(v, label);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x_of(x, v),
                HEIGHT - 8, x_of(x, v) > WIDTH - RIGHT - 14 ? "end" : "middle", label);
    }
}

/* --- Lines --------------------------------------------------------------------------------------
 */

/* Averages runs of points so that at most POINTS_MAX are left; gaps are kept out of the means. */
static size_t points_thin(const ifl_chart_series *s, ifl_chart_point *out) {
    size_t stride = (s->n + POINTS_MAX - 1) / POINTS_MAX, n = 0;
    if (stride < 2) {
        memcpy(out, s->points, s->n * sizeof *out);
        return s->n;
    }
    for (size_t i = 0; i < s->n; i += stride) {
        double x = 0, y = 0;
        size_t k = 0;
        for (size_t j = i; j < s->n && j < i + stride; j++) {
            if (!isfinite(s->points[j].y)) continue;
            x += s->points[j].x;
            y += s->points[j].y;
            k++;
        }
        if (!k) continue;
        out[n++] = (ifl_chart_point){x / (double)k, y / (double)k, (double)NAN, (double)NAN};
    }
    return n;
}

static void interval_write(FILE *f, const ifl_chart_point *p, const axis *x, const axis *y, int s) {
    if (!isfinite(p->low) || !isfinite(p->high)) return;
    fprintf(f, "<line class=\"band s%d\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
            s + 1, x_of(x, p->x), x_of(x, p->x), y_of(y, p->low), y_of(y, p->high));
}

static void point_write(FILE *f, const ifl_chart *c, const ifl_chart_series *s,
                        const ifl_chart_point *p, const axis *x, const axis *y, int index) {
    fprintf(f, "<circle class=\"%s s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"><title>step %.0f: ",
            s->markers ? "mark" : "hit", index + 1, x_of(x, p->x), y_of(y, p->y),
            s->markers ? "4" : "6", p->x);
    if (c->n_series > 1) {
        ifl_html_text(f, s->name);
        fputc(' ', f);
    }
    fprintf(f, "%.*f %s", c->decimals, p->y, c->unit);
    if (isfinite(p->low) && isfinite(p->high))
        fprintf(f, " (95 %%: %.*f to %.*f)", c->decimals, p->low, c->decimals, p->high);
    fputs("</title></circle>\n", f);
}

static void series_write(FILE *f, const ifl_chart *c, int index, const axis *x, const axis *y) {
    const ifl_chart_series *s = &c->series[index];
    ifl_chart_point *points =
        malloc((s->n < POINTS_MAX ? s->n + 1 : POINTS_MAX + 1) * sizeof *points);
    if (!points) return; /* the chart then lacks a line; the report is still written */
    size_t n = points_thin(s, points);
    bool pen_down = false;
    for (size_t i = 0; i < n; i++)
        interval_write(f, &points[i], x, y, index);
    fprintf(f, "<path class=\"line s%d\" d=\"", index + 1);
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(points[i].y)) {
            pen_down = false;
            continue;
        }
        fprintf(f, "%s%.1f %.1f", pen_down ? "L" : "M", x_of(x, points[i].x), y_of(y, points[i].y));
        pen_down = true;
    }
    fputs("\"/>\n", f);
    for (size_t i = 0; i < n; i++)
        if (isfinite(points[i].y)) point_write(f, c, s, &points[i], x, y, index);
    free(points);
}

static void legend_write(FILE *f, const ifl_chart *c) {
    if (c->n_series < 2) return;
    fputs("<div class=\"legend\">", f);
    for (int s = 0; s < c->n_series; s++) {
        fprintf(f, "<span><i class=\"k%d\"></i>", s + 1);
        ifl_html_text(f, c->series[s].name);
        fputs("</span>", f);
    }
    fputs("</div>\n", f);
}

static double last_value(const ifl_chart_series *s) {
    for (size_t i = s->n; i > 0; i--)
        if (isfinite(s->points[i - 1].y)) return s->points[i - 1].y;
    return (double)NAN;
}

void ifl_chart_write(FILE *f, const ifl_chart *c) {
    double x0, x1, y0, y1;
    fputs("<figure class=\"card\"><figcaption><b>", f);
    ifl_html_text(f, c->title);
    fputs("</b>", f);
    if (*c->unit) {
        fputs(" <span>", f);
        ifl_html_text(f, c->unit);
        fputs("</span>", f);
    }
    if (!chart_range(c, &x0, &x1, &y0, &y1)) {
        fputs("</figcaption><p class=\"none\">not recorded</p></figure>\n", f);
        return;
    }
    if (c->n_series == 1)
        fprintf(f, "<span class=\"now\">%.*f</span>", c->decimals, last_value(&c->series[0]));
    fputs("</figcaption>\n", f);
    legend_write(f, c);
    if (c->from_zero && y0 > 0) y0 = 0;
    if (c->y_max_at_least > 0 && y1 < c->y_max_at_least) y1 = c->y_max_at_least;
    if (c->y_min_at_most > 0 && y0 > c->y_min_at_most) y0 = c->y_min_at_most;
    axis y = axis_nice(y0, y1, 4), x = axis_nice(x0, x1, 6);
    if (x1 > x0) { /* the line fills the width; ticks stay on round steps */
        x.min = x0;
        x.max = x1;
    }
    if (x.step < 1) x.step = 1;
    fprintf(f, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    ifl_html_text(f, c->title);
    fputs(" by step\">\n", f);
    axes_write(f, &x, &y);
    for (int s = 0; s < c->n_series; s++)
        series_write(f, c, s, &x, &y);
    fputs("</svg></figure>\n", f);
}

/* --- Histograms ---------------------------------------------------------------------------------
 */

void ifl_histogram_write(FILE *f, const char *title, const char *unit, const ifl_histogram *h) {
    int32_t top = 0;
    size_t counts[2][BINS_MAX] = {{0}};
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < h->n[k]; i++)
            if (h->values[k][i] > top) top = h->values[k][i];
    int32_t width = top / BINS_MAX + 1;
    int n_bins = (int)(top / width) + 1;
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < h->n[k]; i++)
            if (h->values[k][i] >= 0) counts[k][h->values[k][i] / width]++;
    fputs("<figure class=\"card\"><figcaption><b>", f);
    ifl_html_text(f, title);
    fputs("</b> <span>", f);
    ifl_html_text(f, unit);
    fputs("</span></figcaption>\n", f);
    fprintf(f, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    ifl_html_text(f, title);
    fputs("\">\n", f);
    const double row = (HEIGHT - BOTTOM) / 2, bar = (WIDTH - LEFT - RIGHT) / n_bins;
    for (int k = 0; k < 2; k++) {
        double base = row * (k + 1), largest = 0, mean = 0;
        for (int b = 0; b < n_bins; b++)
            largest = fmax(largest, (double)counts[k][b]);
        for (size_t i = 0; i < h->n[k]; i++)
            mean += (double)h->values[k][i] / (double)h->n[k];
        fprintf(f, "<line class=\"base\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", LEFT,
                WIDTH - RIGHT, base, base);
        for (int b = 0; b < n_bins && largest > 0; b++) {
            double share = (double)counts[k][b] / (double)h->n[k];
            double height = (double)counts[k][b] / largest * (row - 26);
            if (!counts[k][b]) continue;
            fprintf(f,
                    "<rect class=\"bar b%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                    "rx=\"1.5\"><title>%d to %d: %.1f %%</title></rect>\n",
                    k + 1, LEFT + b * bar + 1, base - height, bar - 2 > 1 ? bar - 2 : 1, height,
                    b * width, (b + 1) * width - 1, share * 100);
        }
        fprintf(f, "<text class=\"strong\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">",
                WIDTH - RIGHT, base - row + 16);
        ifl_html_text(f, h->name[k]);
        if (h->n[k])
            fprintf(f, ": mean %.1f, n %zu</text>\n", mean, h->n[k]);
        else
            fputs(": none</text>\n", f);
    }
    axis x = {0, (double)n_bins * width, axis_nice(0, (double)n_bins * width, 6).step};
    for (double v = 0; v <= x.max + 1e-9; v += x.step < 1 ? 1 : x.step) {
        char label[32];
        ifl_number_short(v, label);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x_of(&x, v),
                HEIGHT - 8, x_of(&x, v) > WIDTH - RIGHT - 10 ? "end" : "middle", label);
    }
    fputs("</svg></figure>\n", f);
}

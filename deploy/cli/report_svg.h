/* Line charts and histograms as inline SVG without scripts: colours come from the page's CSS
 * variables, so that dark mode needs no second drawing; points carry <title>, which browsers show
 * on hover. */
#ifndef IFL_DEPLOY_CLI_REPORT_SVG_H
#define IFL_DEPLOY_CLI_REPORT_SVG_H

#include <stdio.h>

#include "common/status.h"

#define IFL_CHART_SERIES_MAX 3

typedef struct ifl_chart_point {
    double x, y;      /* y NAN = a gap */
    double low, high; /* an interval around y; NAN = none */
} ifl_chart_point;

typedef struct ifl_chart_series {
    const char *name;              /* in the legend when there are two or more series */
    const ifl_chart_point *points; /* ascending x */
    size_t n;
    bool markers; /* few points that matter one by one */
} ifl_chart_series;

typedef struct ifl_chart {
    const char *title, *unit; /* unit may be "" */
    ifl_chart_series series[IFL_CHART_SERIES_MAX];
    int n_series;
    bool from_zero;                       /* the y axis begins at zero */
    double y_max_at_least, y_min_at_most; /* the axis reaches these; 0 = from the data */
    int decimals;                         /* of values on hover */
} ifl_chart;

/* Writes a <figure>. A chart without a finite point says so. */
void ifl_chart_write(FILE *f, const ifl_chart *chart);

/* Two histograms over the same bins, one above the other. */
typedef struct ifl_histogram {
    const char *name[2];
    const int32_t *values[2]; /* >= 0 */
    size_t n[2];
} ifl_histogram;
void ifl_histogram_write(FILE *f, const char *title, const char *unit, const ifl_histogram *h);

/* `text` with & < > " ' escaped and control characters replaced. */
void ifl_html_text(FILE *f, const char *text);

/* 1234567 as 1.2M, 0.0123 as 0.0123; "–" when not finite. */
void ifl_number_short(double v, char out[32]);

#endif

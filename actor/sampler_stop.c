#include "actor/sampler_stop.h"

#include <string.h>

#include "common/config.h"
#include "common/memory.h"

struct ifl_stop_matcher {
    ifl_detokenizer *detok;
    int32_t n_stops;
    size_t n_longest;
    size_t n_bytes[IFL_STOPS_MAX];
    char stops[IFL_STOPS_MAX][IFL_STOP_BYTES_MAX];
    /* The last n_longest - 1 bytes of the stream, then what a push adds, piece by piece: nothing
     * grows. */
    size_t n_window;
    char window[2 * IFL_STOP_BYTES_MAX];
};

ifl_status ifl_stop_matcher_create(ifl_stop_matcher **out, const ifl_tokenizer *tokenizer,
                                   const char *const *stops, int32_t n_stops, ifl_error *err) {
    *out = NULL;
    if (!tokenizer)
        return ifl_fail(err, IFL_USAGE,
                        "stop strings need a tokenizer, and this model has none; use token limits");
    if (n_stops < 1 || n_stops > IFL_STOPS_MAX)
        return ifl_fail(err, IFL_LIMIT, "%d stop strings, wanted 1 to %d", n_stops, IFL_STOPS_MAX);
    ifl_stop_matcher *m = ifl_alloc(1, sizeof *m);
    if (!m) return ifl_fail(err, IFL_NOMEM, "stop strings: out of memory");
    ifl_status st = IFL_OK;
    m->n_stops = n_stops;
    for (int32_t i = 0; i < n_stops; i++) {
        size_t n = strlen(stops[i]);
        if (n < 1 || n > IFL_STOP_BYTES_MAX) {
            st = ifl_fail(err, IFL_LIMIT, "stop string %d has %zu bytes, wanted 1 to %d", i, n,
                          IFL_STOP_BYTES_MAX);
            goto done;
        }
        memcpy(m->stops[i], stops[i], n);
        m->n_bytes[i] = n;
        if (n > m->n_longest) m->n_longest = n;
    }
    IFL_TRY_GOTO(st, ifl_detokenizer_create(&m->detok, tokenizer, 0, err), done);
    *out = m;
    m = NULL; /* the caller owns it now */
done:
    ifl_stop_matcher_free(m);
    return st;
}

void ifl_stop_matcher_free(ifl_stop_matcher *matcher) {
    if (!matcher) return;
    ifl_detokenizer_free(matcher->detok);
    ifl_free(matcher);
}

static bool window_has_stop(const ifl_stop_matcher *m) {
    for (int32_t i = 0; i < m->n_stops; i++)
        if (memmem(m->window, m->n_window, m->stops[i], m->n_bytes[i])) return true;
    return false;
}

ifl_status ifl_stop_matcher_add(ifl_stop_matcher *m, int32_t token, bool *stopped, ifl_error *err) {
    const char *bytes;
    size_t n;
    *stopped = false;
    IFL_TRY(ifl_detokenizer_push(m->detok, token, &bytes, &n, err));
    while (n > 0 && !*stopped) {
        size_t take = sizeof m->window - m->n_window;
        if (take > n) take = n;
        memcpy(m->window + m->n_window, bytes, take);
        m->n_window += take;
        bytes += take;
        n -= take;
        *stopped = window_has_stop(m);
        if (m->n_window >= m->n_longest) {
            size_t keep = m->n_longest - 1;
            memmove(m->window, m->window + (m->n_window - keep), keep);
            m->n_window = keep;
        }
    }
    return IFL_OK;
}

/* A plug-in behind a URL: the message of a process as the body of a POST. Only what happened to the
 * transport is tried again; an answer is an answer, also a wrong one. No failure is a zero. */
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "rewards/plugin_message.h"

#define TOKEN_BYTES_MAX 4096
#define FIRST_PAUSE_MS 50
#define CONNECT_MS_MAX 5000

typedef struct http {
    const ifl_spec_entry *entry;
    CURL *curl;
    struct curl_slist *headers;
    uint64_t n_asked;
    size_t n_in;
    char in[IFL_PLUGIN_LINE_MAX];
    char problem[CURL_ERROR_SIZE];
} http;

static size_t http_receive(char *bytes, size_t size, size_t n, void *user) {
    http *h = user;
    n *= size;
    if (n > sizeof h->in - h->n_in) return 0; /* ends the transfer: CURLE_WRITE_ERROR */
    memcpy(h->in + h->n_in, bytes, n);
    h->n_in += n;
    return n;
}

static void http_destroy(void *state) {
    http *h = state;
    if (!h) return;
    curl_slist_free_all(h->headers);
    if (h->curl) curl_easy_cleanup(h->curl);
    free(h);
}

/* "Authorization: Bearer ..." from a file: no secret belongs into a configuration, which is copied
 * into the run folder. */
static ifl_status http_token(http *h, ifl_error *err) {
    char token[TOKEN_BYTES_MAX], line[TOKEN_BYTES_MAX + 32];
    FILE *f = fopen(h->entry->token_file, "r");
    if (!f)
        return ifl_fail(err, IFL_NOTFOUND, "token_file %s: %s", h->entry->token_file,
                        strerror(errno));
    size_t n = fread(token, 1, sizeof token - 1, f);
    fclose(f);
    while (n > 0 && (token[n - 1] == '\n' || token[n - 1] == '\r'))
        n--;
    token[n] = '\0';
    bool plain = n > 0 && n < sizeof token - 1 && strlen(token) == n;
    for (size_t i = 0; i < n; i++)
        plain = plain && token[i] > ' ' && token[i] <= '~';
    if (plain) snprintf(line, sizeof line, "Authorization: Bearer %s", token);
    struct curl_slist *more = plain ? curl_slist_append(h->headers, line) : NULL;
    if (more) h->headers = more;
    explicit_bzero(token, sizeof token);
    explicit_bzero(line, sizeof line);
    if (!plain)
        return ifl_fail(err, IFL_FORMAT,
                        "token_file %s: wanted one line of printable characters without spaces",
                        h->entry->token_file);
    return more ? IFL_OK : ifl_fail(err, IFL_NOMEM, "no memory for a token");
}

/* curl_easy_setopt is variadic and says by its status what it doesn't know. */
#define SET(option, value) (good = good && curl_easy_setopt(h->curl, option, value) == CURLE_OK)

static ifl_status http_create(void **state, const ifl_spec_entry *entry, ifl_error *err) {
    ifl_status st = IFL_OK;
    http *h = calloc(1, sizeof *h);
    bool good = h && curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    if (good) h->curl = curl_easy_init();
    if (good) h->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (!good || !h->curl || !h->headers) {
        http_destroy(h);
        return ifl_fail(err, IFL_NOMEM, "cannot start an HTTP client");
    }
    h->entry = entry;
    if (entry->token_file) st = http_token(h, err);
    SET(CURLOPT_URL, entry->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L); /* a redirect could take the token elsewhere */
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    if (entry->ca_file) SET(CURLOPT_CAINFO, entry->ca_file);
    SET(CURLOPT_HTTPHEADER, h->headers);
    SET(CURLOPT_WRITEFUNCTION, http_receive);
    SET(CURLOPT_WRITEDATA, h);
    SET(CURLOPT_ERRORBUFFER, h->problem);
    if (st == IFL_OK && !good) st = ifl_fail(err, IFL_UNSUPPORTED, "this libcurl lacks an option");
    if (st != IFL_OK) {
        http_destroy(h);
        return st;
    }
    *state = h;
    return IFL_OK;
}

/* Nothing has come of it, and another try might. */
static bool is_transport(CURLcode code) {
    return code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST ||
           code == CURLE_GOT_NOTHING || code == CURLE_SEND_ERROR || code == CURLE_RECV_ERROR ||
           code == CURLE_PARTIAL_FILE;
}

/* One POST. IFL_AGAIN: an error of the transport. */
static ifl_status http_post(http *h, const ifl_plugin_call *call, const char *text,
                            ifl_error *err) {
    bool good = true;
    long code = 0;
    int64_t left_ms = ifl_plugin_ms_left(call);
    if (left_ms == 0) return ifl_fail(err, IFL_TIMEOUT, "no time left to ask it");
    SET(CURLOPT_POSTFIELDS, text);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(text));
    SET(CURLOPT_TIMEOUT_MS, (long)left_ms);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)(left_ms < CONNECT_MS_MAX ? left_ms : CONNECT_MS_MAX));
    if (!good) return ifl_fail(err, IFL_INTERNAL, "libcurl refuses an option");
    h->n_in = 0;
    h->problem[0] = '\0';
    CURLcode end = curl_easy_perform(h->curl);
    const char *why = h->problem[0] ? h->problem : curl_easy_strerror(end);
    if (end == CURLE_OPERATION_TIMEDOUT) return ifl_fail(err, IFL_TIMEOUT, "timeout: %s", why);
    if (is_transport(end)) return ifl_fail(err, IFL_AGAIN, "%s", why);
    if (end == CURLE_WRITE_ERROR)
        return ifl_fail(err, IFL_LIMIT, "an answer of more than %d bytes", IFL_PLUGIN_LINE_MAX);
    if (end != CURLE_OK) return ifl_fail(err, IFL_PEER, "%s", why);
    curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &code);
    if (code == 502 || code == 503 || code == 504) /* a gateway's: nobody has judged */
        return ifl_fail(err, IFL_AGAIN, "HTTP status %ld", code);
    if (code != 200)
        return ifl_fail(err, IFL_PEER, "HTTP status %ld, wanted 200: %.*s", code,
                        (int)(h->n_in < 200 ? h->n_in : 200), h->in);
    return IFL_OK;
}

static ifl_status http_answer(http *h, ifl_reward *out, ifl_error *err) {
    json_t *root;
    if (!h->entry->batch) return ifl_plugin_answer_read(h->in, h->n_in, h->n_asked, out, err);
    json_error_t where;
    root = json_loadb(h->in, h->n_in, JSON_REJECT_DUPLICATES, &where);
    ifl_status st;
    if (json_is_array(root) && json_array_size(root) == 1)
        st = ifl_plugin_answer_take(json_array_get(root, 0), h->n_asked, out, err);
    else
        st = ifl_fail(err, IFL_FORMAT, "batch: wanted a list of one answer for a list of one");
    json_decref(root);
    return st;
}

static ifl_status http_ask(http *h, const ifl_plugin_call *call, const char *text, ifl_reward *out,
                           ifl_error *err) {
    ifl_status st = http_post(h, call, text, err);
    int64_t pause_ms = FIRST_PAUSE_MS;
    for (int32_t i = 0; st == IFL_AGAIN && i < h->entry->retries; i++, pause_ms *= 4) {
        if (ifl_plugin_ms_left(call) <= pause_ms) break;
        ifl_sleep_ms((int)pause_ms);
        st = http_post(h, call, text, err);
    }
    if (st == IFL_OK) {
        *err = (ifl_error){0}; /* what was tried before is of no interest */
        return http_answer(h, out, err);
    }
    /* Nobody has answered: that is not the checker's verdict, and not its error either. */
    if (st == IFL_AGAIN || st == IFL_TIMEOUT || st == IFL_PEER) {
        out->status = IFL_REWARD_UNAVAILABLE;
        return IFL_OK;
    }
    return st;
}

static ifl_status http_check(void *state, const ifl_plugin_call *call, ifl_reward *out,
                             ifl_error *err) {
    http *h = state;
    json_t *json, *list = NULL;
    snprintf(out->checker, sizeof out->checker, "http/%d", IFL_PLUGIN_PROTOCOL);
    h->n_asked++;
    IFL_TRY(ifl_plugin_request_json(&json, call, h->n_asked, out, err));
    if (!json) return IFL_OK;
    if (h->entry->batch && (list = json_array())) json_array_append(list, json);
    char *text = json_dumps(h->entry->batch ? list : json, JSON_COMPACT);
    json_decref(list);
    json_decref(json);
    if (!text) return ifl_fail(err, IFL_NOMEM, "no memory for a message");
    ifl_status st = http_ask(h, call, text, out, err);
    free(text);
    if (err->text[0] && !ifl_reward_is_verdict(out->status))
        ifl_error_wrap(err, "%.200s", h->entry->url);
    return st;
}

const ifl_plugin_kind ifl_plugin_http = {http_create, http_check, http_destroy, NULL};

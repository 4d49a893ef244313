/* A plug-in behind a ZeroMQ address: a DEALER here, a ROUTER there, the message of a process as one
 * msgpack map. An id is asked again when nothing has come of it, and stays the same: a server may
 * answer from memory, and what comes twice or late is passed over. Sockets are opened at the first
 * question, since a worker forks its processes before that and must have one thread then. */
#include <errno.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/keys.h"
#include "common/transport_internal.h"
#include "rewards/plugin_message.h"

#define MS_NS ((int64_t)1000000)
#define DEPTH_MAX 16
#define HWM 16
#define SESSION_BITS 31 /* of an id, above a counter of 32 */

typedef struct remote {
    const ifl_spec_entry *entry;
    ifl_key_pair own;
    char server_key[IFL_KEY_TEXT_MAX];
    void *zmq, *socket;
    bool greeted, pure;
    uint64_t session, n_asked;
    char checker[64];
} remote;

/* --- Messages --------------------------------------------------------------------------------- */

static int pack_json(msgpack_packer *p, const json_t *v) {
    const char *key;
    json_t *part;
    size_t i;
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        if (msgpack_pack_map(p, json_object_size(v)) != 0) return -1;
        json_object_foreach((json_t *)v, key, part) {
            if (msgpack_pack_str_with_body(p, key, strlen(key)) != 0 || pack_json(p, part) != 0)
                return -1;
        }
        return 0;
    case JSON_ARRAY:
        if (msgpack_pack_array(p, json_array_size(v)) != 0) return -1;
        json_array_foreach(v, i, part) if (pack_json(p, part) != 0) return -1;
        return 0;
    case JSON_STRING:
        return msgpack_pack_str_with_body(p, json_string_value(v), json_string_length(v));
    case JSON_INTEGER:
        return msgpack_pack_int64(p, json_integer_value(v));
    case JSON_REAL:
        return msgpack_pack_double(p, json_real_value(v));
    case JSON_TRUE:
        return msgpack_pack_true(p);
    case JSON_FALSE:
        return msgpack_pack_false(p);
    case JSON_NULL:
        return msgpack_pack_nil(p);
    }
    return -1;
}

/* NULL for what JSON has no word for: NaN, bytes, keys that are no texts, depth. */
static json_t *unpack_json(const msgpack_object *o, int depth) {
    json_t *whole;
    if (depth > DEPTH_MAX) return NULL;
    switch (o->type) {
    case MSGPACK_OBJECT_NIL:
        return json_null();
    case MSGPACK_OBJECT_BOOLEAN:
        return json_boolean(o->via.boolean);
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        return o->via.u64 > INT64_MAX ? NULL : json_integer((json_int_t)o->via.u64);
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return json_integer(o->via.i64);
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return json_real(o->via.f64); /* NULL for NaN and inf */
    case MSGPACK_OBJECT_STR:
        return json_stringn(o->via.str.ptr, o->via.str.size);
    case MSGPACK_OBJECT_ARRAY:
        whole = json_array();
        for (uint32_t i = 0; whole && i < o->via.array.size; i++)
            if (json_array_append_new(whole, unpack_json(&o->via.array.ptr[i], depth + 1)) != 0) {
                json_decref(whole);
                return NULL;
            }
        return whole;
    case MSGPACK_OBJECT_MAP:
        whole = json_object();
        for (uint32_t i = 0; whole && i < o->via.map.size; i++) {
            const msgpack_object_kv *kv = &o->via.map.ptr[i];
            char key[64];
            bool text = kv->key.type == MSGPACK_OBJECT_STR && kv->key.via.str.size < sizeof key;
            if (text)
                snprintf(key, sizeof key, "%.*s", (int)kv->key.via.str.size, kv->key.via.str.ptr);
            if (!text || json_object_get(whole, key) ||
                json_object_set_new(whole, key, unpack_json(&kv->val, depth + 1)) != 0) {
                json_decref(whole);
                return NULL;
            }
        }
        return whole;
    default:
        return NULL;
    }
}

static ifl_status message_read(json_t **out, const void *bytes, size_t n, ifl_error *err) {
    msgpack_unpacked whole;
    size_t at = 0;
    *out = NULL;
    msgpack_unpacked_init(&whole);
    if (msgpack_unpack_next(&whole, bytes, n, &at) == MSGPACK_UNPACK_SUCCESS && at == n &&
        whole.data.type == MSGPACK_OBJECT_MAP)
        *out = unpack_json(&whole.data, 1);
    msgpack_unpacked_destroy(&whole);
    return *out ? IFL_OK
                : ifl_fail(err, IFL_FORMAT,
                           "its answer of %zu bytes is no msgpack map of numbers and texts", n);
}

/* --- The socket ------------------------------------------------------------------------------- */

static void remote_close(remote *r) {
    if (r->socket) zmq_close(r->socket);
    r->socket = NULL;
    r->greeted = false;
}

static ifl_status remote_open(remote *r, ifl_error *err) {
    int64_t most = IFL_PLUGIN_LINE_MAX;
    if (r->socket) return IFL_OK;
    if (!r->zmq) r->zmq = zmq_ctx_new();
    r->socket = r->zmq ? zmq_socket(r->zmq, ZMQ_DEALER) : NULL;
    bool good = r->socket &&
                transport_socket_setup(r->socket, r->entry->endpoint, HWM, HWM, 0, err) == IFL_OK &&
                zmq_setsockopt(r->socket, ZMQ_MAXMSGSIZE, &most, sizeof most) == 0;
    if (good && r->entry->keys)
        good = transport_socket_curve_client(r->socket, &r->own, r->server_key, err) == IFL_OK;
    if (good && zmq_connect(r->socket, r->entry->endpoint) == 0) return IFL_OK;
    ifl_fail(err, IFL_IO, "cannot connect: %s", zmq_strerror(zmq_errno()));
    remote_close(r);
    return IFL_IO;
}

static ifl_status remote_send(remote *r, const json_t *message, ifl_error *err) {
    msgpack_sbuffer bytes;
    msgpack_packer packer;
    msgpack_sbuffer_init(&bytes);
    msgpack_packer_init(&packer, &bytes, msgpack_sbuffer_write);
    ifl_status st = IFL_OK;
    if (pack_json(&packer, message) != 0)
        st = ifl_fail(err, IFL_NOMEM, "no memory for a message");
    else if (zmq_send(r->socket, bytes.data, bytes.size, ZMQ_DONTWAIT) < 0)
        st = ifl_fail(err, IFL_AGAIN, "cannot send: %s", zmq_strerror(zmq_errno()));
    msgpack_sbuffer_destroy(&bytes);
    return st;
}

/* The next message; IFL_AGAIN: none by then. One of several frames is refused whole. */
static ifl_status remote_receive(remote *r, int64_t until_ns, json_t **out, ifl_error *err) {
    *out = NULL;
    for (;;) {
        int64_t left_ns = until_ns - ifl_clock_ns();
        if (left_ns <= 0) return ifl_fail(err, IFL_AGAIN, "timeout: no answer");
        zmq_pollitem_t item = {r->socket, 0, ZMQ_POLLIN, 0};
        if (zmq_poll(&item, 1, (long)(left_ns / MS_NS) + 1) <= 0) continue;
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, r->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&part);
            continue;
        }
        bool more = zmq_msg_more(&part);
        ifl_status st = more ? ifl_fail(err, IFL_FORMAT, "its answer has several frames")
                             : message_read(out, zmq_msg_data(&part), zmq_msg_size(&part), err);
        zmq_msg_close(&part);
        return st;
    }
}

/* Says hello, where this socket hasn't: the server's name goes into the results. */
static ifl_status remote_greet(remote *r, int64_t until_ns, ifl_error *err) {
    IFL_TRY(remote_open(r, err));
    if (r->greeted) return IFL_OK;
    json_t *hello = json_pack("{s:i, s:s}", "protocol", IFL_PLUGIN_PROTOCOL, "hello", "inflight");
    if (!hello) return ifl_fail(err, IFL_NOMEM, "no memory for a hello");
    ifl_status st = remote_send(r, hello, err);
    json_decref(hello);
    if (st == IFL_OK) st = remote_receive(r, until_ns, &hello, err);
    if (st != IFL_OK) return st;
    char *text = json_dumps(hello, JSON_COMPACT);
    json_int_t credits = json_integer_value(json_object_get(hello, "credits"));
    st = text ? ifl_plugin_hello_read(text, strlen(text), r->checker, &r->pure, err)
              : ifl_fail(err, IFL_NOMEM, "no memory for a hello");
    if (st == IFL_OK && credits < 1)
        st = ifl_fail(err, IFL_AGAIN, "its hello grants no credits, wanted at least 1");
    free(text);
    json_decref(hello);
    r->greeted = st == IFL_OK;
    return st;
}

/* --- Life ------------------------------------------------------------------------------------- */

static void remote_destroy(void *state) {
    remote *r = state;
    if (!r) return;
    remote_close(r);
    if (r->zmq) zmq_ctx_term(r->zmq);
    explicit_bzero(&r->own, sizeof r->own);
    free(r);
}

static ifl_status remote_create(void **state, const ifl_spec_entry *entry, ifl_error *err) {
    char name[IFL_KEY_NAME_MAX];
    ifl_status st = IFL_OK;
    remote *r = calloc(1, sizeof *r);
    if (!r) return ifl_fail(err, IFL_NOMEM, "no memory for a plug-in");
    r->entry = entry;
    if (getrandom(&r->session, sizeof r->session, 0) != sizeof r->session)
        st = ifl_fail(err, IFL_IO, "no random numbers: %s", strerror(errno));
    r->session &= ((uint64_t)1 << SESSION_BITS) - 1;
    if (st == IFL_OK && entry->keys) {
        st = ifl_key_actor_name(name, entry->keys, entry->key ? entry->key : "", NULL, err);
        if (st == IFL_OK) st = ifl_key_pair_read(&r->own, entry->keys, name, err);
        if (st == IFL_OK) st = ifl_key_learner_read(r->server_key, entry->keys, err);
    }
    if (st != IFL_OK) {
        remote_destroy(r);
        return st;
    }
    *state = r;
    return IFL_OK;
}

/* Whether an id is one of this worker's earlier ones: an answer that comes late, or twice. */
static bool is_old(const remote *r, const json_t *answer, uint64_t id) {
    const json_t *got = json_object_get(answer, "id");
    uint64_t v = (uint64_t)json_integer_value(got);
    return json_is_integer(got) && v >> 32 == r->session && v < id;
}

/* Asks once. IFL_AGAIN: nobody has answered. */
static ifl_status remote_ask(remote *r, const json_t *question, uint64_t id, int64_t until_ns,
                             ifl_reward *out, ifl_error *err) {
    json_t *answer = NULL;
    IFL_TRY(remote_greet(r, until_ns, err));
    IFL_TRY(remote_send(r, question, err));
    do {
        json_decref(answer);
        IFL_TRY(remote_receive(r, until_ns, &answer, err));
    } while (is_old(r, answer, id));
    ifl_status st = ifl_plugin_answer_take(answer, id, out, err);
    json_decref(answer);
    return st;
}

static ifl_status remote_check(void *state, const ifl_plugin_call *call, ifl_reward *out,
                               ifl_error *err) {
    remote *r = state;
    json_t *question;
    uint64_t id = r->session << 32 | (++r->n_asked & 0xffffffff);
    IFL_TRY(ifl_plugin_request_json(&question, call, id, out, err));
    if (!question) {
        snprintf(out->checker, sizeof out->checker, "zeromq/%d", IFL_PLUGIN_PROTOCOL);
        return IFL_OK;
    }
    int64_t now = ifl_clock_ns();
    ifl_status st = remote_ask(r, question, id, now + (call->deadline_ns - now) / 2, out, err);
    if (st == IFL_AGAIN) { /* on a new link: the old one may have been cut on the way */
        remote_close(r);
        *err = (ifl_error){0};
        st = remote_ask(r, question, id, call->deadline_ns, out, err);
    }
    json_decref(question);
    if (st != IFL_OK) remote_close(r);
    snprintf(out->checker, sizeof out->checker, "%s", r->checker[0] ? r->checker : "zeromq/1");
    if (st == IFL_AGAIN || st == IFL_IO) {
        out->status = IFL_REWARD_UNAVAILABLE;
        st = IFL_OK;
    }
    if (err->text[0] && !ifl_reward_is_verdict(out->status))
        ifl_error_wrap(err, "%.200s", r->entry->endpoint);
    return st;
}

static bool remote_is_pure(const void *state) {
    return ((const remote *)state)->pure;
}

const ifl_plugin_kind ifl_plugin_zeromq = {remote_create, remote_check, remote_destroy,
                                           remote_is_pure};

/* A peer that ends handshakes without a word: is it a learner with keys, which cannot read what was
 * sealed for another one, or no learner at all (a proxy in front of none)? The greeting tells,
 * which goes ahead of any key. */
#include <string.h>

#include "common/clock.h"
#include "common/transport_internal.h"

#define GREETING_BYTES 64
#define MECHANISM_AT 12
#define PROBE_NS 1000000000

void transport_probe_close(transport_probe *p) {
    if (p->socket) zmq_close(p->socket);
    p->socket = NULL;
}

bool transport_probe_open(transport_probe *p, void *zmq, const char *endpoint, int64_t now) {
    int none = 0;
    *p = (transport_probe){.socket = zmq_socket(zmq, ZMQ_STREAM), .until_ns = now + PROBE_NS};
    if (p->socket && zmq_setsockopt(p->socket, ZMQ_LINGER, &none, sizeof none) == 0 &&
        zmq_connect(p->socket, endpoint) == 0)
        return true;
    transport_probe_close(p);
    return false;
}

/* Ours, as ZMTP 3.0 wants it: the other side says its mechanism only then. */
static void probe_greet(transport_probe *p, const void *peer, size_t n_peer) {
    uint8_t greeting[GREETING_BYTES] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3};
    memcpy(greeting + MECHANISM_AT, "CURVE", 5);
    zmq_send(p->socket, peer, n_peer, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(p->socket, greeting, sizeof greeting, ZMQ_DONTWAIT);
    p->greeted = true;
}

transport_probe_result transport_probe_take(transport_probe *p, int64_t now) {
    uint8_t peer[256], bytes[256];
    for (int n_peer, n; (n_peer = zmq_recv(p->socket, peer, sizeof peer, ZMQ_DONTWAIT)) >= 0;) {
        n = zmq_recv(p->socket, bytes, sizeof bytes, ZMQ_DONTWAIT);
        if (n < 0) break;
        if (n > (int)sizeof bytes) n = (int)sizeof bytes;
        if (n_peer > (int)sizeof peer) continue;
        if (n == 0 && p->greeted) return TRANSPORT_PROBE_NONE; /* it has closed */
        if (!p->greeted) probe_greet(p, peer, (size_t)n_peer);
        int room = GREETING_BYTES - p->n_seen, take = n < room ? n : room;
        memcpy(p->seen + p->n_seen, bytes, (size_t)take);
        p->n_seen += take;
    }
    if (p->n_seen == GREETING_BYTES)
        return strncmp((const char *)p->seen + MECHANISM_AT, "CURVE", 20) == 0
                   ? TRANSPORT_PROBE_CURVE
                   : TRANSPORT_PROBE_NONE;
    return now > p->until_ns ? TRANSPORT_PROBE_NONE : TRANSPORT_PROBE_WAITS;
}

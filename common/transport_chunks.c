/* The server's weight plane: manifests out, chunks on demand. The source's bytes go out as they
 * lie. */
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/transport_server_internal.h"

int64_t transport_server_newest_version(ifl_server *s) {
    int64_t version = -1;
    void *hint = NULL;
    pthread_mutex_lock(&s->source_lock);
    if (s->has_source) {
        const ifl_manifest *m = s->source.manifest_retain(s->source.context, &hint);
        if (m) {
            version = m->version;
            s->source.manifest_release(s->source.context, hint);
        }
    }
    pthread_mutex_unlock(&s->source_lock);
    return version;
}

/* --- Announcements ---------------------------------------------------------------------------- */

void transport_server_announce(server_peer *peer) {
    transport_out_free(peer->announcement);
    peer->announcement = NULL;
    peer->announce_due = true;
}

transport_out *transport_server_announcement(ifl_server *s, server_peer *peer) {
    /* Before 1.5 a peer that asks for nothing does not say what it has read. */
    if (!peer->announce_due || (peer->minor >= 5 && peer->n_unread == UNREAD_MAX)) return NULL;
    if (peer->announcement) return peer->announcement;
    void *hint = NULL;
    ifl_error err = {0};
    pthread_mutex_lock(&s->source_lock);
    const ifl_manifest *manifest =
        s->has_source ? s->source.manifest_retain(s->source.context, &hint) : NULL;
    ifl_status st = IFL_NOTFOUND;
    if (manifest) {
        ifl_message m = ifl_message_make(IFL_WIRE_WANN);
        m.policy = manifest->version;
        m.wann.manifest = (ifl_manifest *)(uintptr_t)manifest;
        st = transport_out_create(&peer->announcement, &m, &err);
        if (st != IFL_OK)
            ifl_warn("cannot announce version %lld: %s", (long long)manifest->version, err.text);
        s->source.manifest_release(s->source.context, hint);
    }
    pthread_mutex_unlock(&s->source_lock);
    if (st == IFL_OK) return peer->announcement;
    peer->announcement = NULL;
    peer->announce_due = false; /* until there is another one */
    return NULL;
}

void transport_server_announced(server_peer *peer) {
    transport_out_free(peer->announcement);
    peer->announcement = NULL;
    peer->announce_due = false;
    if (peer->n_unread < UNREAD_MAX) peer->unread[peer->n_unread++] = peer->weights.seq_out;
}

void transport_server_weights_read(server_peer *peer, uint64_t seq) {
    int32_t n = 0;
    while (n < peer->n_unread && peer->unread[n] <= seq)
        n++;
    peer->n_unread -= n;
    memmove(peer->unread, peer->unread + n, (size_t)peer->n_unread * sizeof *peer->unread);
}

/* --- Chunks ----------------------------------------------------------------------------------- */

static void server_wnack(ifl_server *s, server_peer *peer, int64_t version, const char *why) {
    ifl_message m = ifl_message_make(IFL_WIRE_WNACK);
    m.wnack.version = version;
    m.wnack.newest = transport_server_newest_version(s);
    snprintf(m.wnack.text, sizeof m.wnack.text, "%s", why);
    transport_out *out;
    s->stats.chunks_refused++;
    if (transport_out_create(&out, &m, NULL) == IFL_OK) transport_out_push(&peer->weights_out, out);
}

static ifl_status server_queue_chunk(ifl_server *s, server_peer *peer, const server_wanted *want) {
    ifl_weight_chunk c = {0};
    pthread_mutex_lock(&s->source_lock);
    ifl_status st = s->has_source ? s->source.chunk(s->source.context, want->version, want->base,
                                                    want->chunk, &c)
                                  : IFL_NOTFOUND;
    pthread_mutex_unlock(&s->source_lock);
    if (st != IFL_OK) return st;
    ifl_message m = ifl_message_make(IFL_WIRE_WCHUNK);
    m.policy = want->version;
    m.wchunk.version = want->version;
    m.wchunk.chunk = want->chunk;
    m.wchunk.codec = c.codec;
    m.wchunk.base = c.base;
    m.wchunk.hash = c.hash;
    m.wchunk.n_data = c.n_bytes;
    transport_out *out = NULL;
    st = transport_out_create(&out, &m, NULL);
    if (st == IFL_OK) st = transport_out_borrow(out, c.data, c.n_bytes, c.release, c.hint);
    if (st != IFL_OK) {
        c.release((void *)(uintptr_t)c.data, c.hint);
        transport_out_free(out);
        return st == IFL_AGAIN ? IFL_INTERNAL : st;
    }
    transport_out_push(&peer->weights_out, out);
    s->stats.chunks_sent++;
    s->stats.chunk_bytes_sent += (int64_t)c.n_bytes;
    return IFL_OK;
}

void transport_server_serve_chunks(ifl_server *s, server_peer *peer) {
    while (peer->n_wanted > 0) {
        server_wanted want = peer->wanted[peer->wanted_first];
        ifl_status st = server_queue_chunk(s, peer, &want);
        if (st == IFL_AGAIN) return;
        do { /* a refusal stands for all that is wanted of that version */
            peer->wanted_first = (peer->wanted_first + 1) % WANTED_MAX;
            peer->n_wanted--;
        } while (st != IFL_OK && peer->n_wanted > 0 &&
                 peer->wanted[peer->wanted_first].version == want.version);
        if (st != IFL_OK) server_wnack(s, peer, want.version, ifl_status_text(st));
    }
}

void transport_server_weight_message(ifl_server *s, server_peer *peer, const ifl_message *m,
                                     int64_t now) {
    if (m->type == IFL_WIRE_CREDIT) {
        /* A later one says what it has read, and before 1.5 nothing. */
        if (!peer->weights_open || peer->minor < 5) transport_server_announce(peer);
        peer->weights_open = true;
    } else if (m->type == IFL_WIRE_WGET && peer->weights_open) {
        if (peer->weights_out.n + peer->n_wanted + m->wget.n_chunks > WANTED_MAX) {
            transport_server_expel(s, peer, IFL_WIRE_E_LIMIT, m->seq,
                                   "more chunks asked for than the window allows");
            return;
        }
        peer->version_wanted = m->wget.version;
        for (int32_t i = 0; i < m->wget.n_chunks; i++)
            peer->wanted[(peer->wanted_first + peer->n_wanted++) % WANTED_MAX] =
                (server_wanted){m->wget.version, m->wget.base, m->wget.chunks[i]};
        transport_server_serve_chunks(s, peer);
    } else {
        transport_server_offence(s, peer->identity, peer->key, now);
        transport_server_expel(s, peer, IFL_WIRE_E_TYPE, m->seq,
                               "not a message for the weight plane at this point");
    }
}

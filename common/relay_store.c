/* What a relay keeps, and how it answers its children. */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/relay_internal.h"

#define REFUSED_NS 1000000000 /* a chunk that can't be had is not tried again for so long */
#define COPIED_MAX 16384      /* shorter frames may be pieces of a buffer of libzmq's: copied */

static void relay_count(ifl_relay *r) {
    int64_t n = r->bytes_held + r->bytes_reserved;
    if (n > r->stats.bytes_kept_max) r->stats.bytes_kept_max = n;
}

static int64_t chunk_dense_bytes(const relay_version *v, int32_t chunk) {
    return v->manifest->chunks[chunk].n_elements * 2;
}

/* --- Parts ------------------------------------------------------------------------------------ */

static void part_release(relay_part *part) {
    if (part->n_places > 0 || part->n_sending > 0) return;
    part->relay->bytes_held -= (int64_t)part->n_bytes;
    if (part->frame) part->frame_free(part->frame);
    free(part);
}

/* On any thread, when libzmq is done with it. */
static void part_sent(void *data, void *hint) {
    (void)data;
    relay_part *part = hint;
    ifl_relay *r = part->relay;
    pthread_mutex_lock(&r->lock);
    part->n_sending--;
    part_release(part);
    pthread_mutex_unlock(&r->lock);
}

static void place_clear(relay_place *place) {
    relay_part *part = place->part;
    place->part = NULL;
    if (!part) return;
    part->n_places--;
    part_release(part);
}

static void place_put(relay_place *place, relay_part *part) {
    place_clear(place);
    place->part = part;
    part->n_places++;
}

/* --- Versions --------------------------------------------------------------------------------- */

relay_version *relay_find(ifl_relay *r, int64_t version) {
    for (int32_t i = 0; i < r->n_versions; i++)
        if (r->versions[i]->manifest->version == version) return r->versions[i];
    return NULL;
}

static int64_t set_bytes(const relay_version *v) {
    return (int64_t)v->manifest->n_chunks * (int64_t)sizeof(relay_place);
}

static void version_unref(ifl_relay *r, relay_version *v) {
    if (--v->refs > 0) return;
    for (int32_t k = 0; k < v->n_sets; k++) {
        for (int32_t i = 0; i < v->manifest->n_chunks; i++)
            place_clear(&v->sets[k].places[i]);
        free(v->sets[k].places);
        r->bytes_held -= set_bytes(v);
    }
    ifl_manifest_free(v->manifest);
    free(v);
}

/* Parts that nobody is being sent go, those not wanted for longest first, until `n_bytes` more have
 * room. */
static bool relay_make_room(ifl_relay *r, int64_t n_bytes) {
    while (r->bytes_held + r->bytes_reserved + n_bytes > r->options.bytes_max) {
        relay_version *from = NULL;
        relay_part *oldest = NULL;
        int32_t chunk = 0;
        for (int32_t v = 0; v < r->n_versions; v++)
            for (int32_t k = 0; k < r->versions[v]->n_sets; k++)
                for (int32_t i = 0; i < r->versions[v]->manifest->n_chunks; i++) {
                    relay_part *part = r->versions[v]->sets[k].places[i].part;
                    if (!part || part->n_sending > 0) continue;
                    if (oldest && part->used_ns >= oldest->used_ns) continue;
                    oldest = part;
                    from = r->versions[v];
                    chunk = i;
                }
        if (!oldest) return false;
        for (int32_t k = from->n_sets - 1; k >= 0; k--)
            if (from->sets[k].places[chunk].part == oldest) {
                bool last = oldest->n_places == 1;
                place_clear(&from->sets[k].places[chunk]);
                if (last) break; /* it is gone */
            }
    }
    return true;
}

/* NULL: no room. */
static relay_set *version_set(ifl_relay *r, relay_version *v, int64_t base) {
    for (int32_t k = 0; k < v->n_sets; k++)
        if (v->sets[k].base == base) return &v->sets[k];
    if (v->n_sets == RELAY_SETS_MAX || !relay_make_room(r, set_bytes(v))) return NULL;
    relay_place *places = calloc((size_t)v->manifest->n_chunks, sizeof *places);
    if (!places) return NULL;
    r->bytes_held += set_bytes(v);
    relay_count(r);
    v->sets[v->n_sets] = (relay_set){.base = base, .places = places};
    return &v->sets[v->n_sets++];
}

bool relay_version_add(ifl_relay *r, ifl_manifest *manifest) {
    relay_version *v = calloc(1, sizeof *v);
    if (!v) {
        ifl_manifest_free(manifest);
        return false;
    }
    v->refs = 1;
    v->manifest = manifest;
    v->asked_ns = ifl_clock_ns();
    if (!version_set(r, v, -1)) {
        version_unref(r, v);
        return false;
    }
    r->versions[r->n_versions++] = v;
    r->stats.version = manifest->version;
    return true;
}

void relay_version_drop(ifl_relay *r, int32_t index) {
    relay_version *v = r->versions[index];
    for (relay_want **at = &r->wants; *at;)
        if ((*at)->version == v)
            relay_want_end(r, at);
        else
            at = &(*at)->next;
    for (int32_t i = index; i + 1 < r->n_versions; i++)
        r->versions[i] = r->versions[i + 1];
    r->n_versions--;
    version_unref(r, v);
}

void relay_clear(ifl_relay *r) {
    while (r->n_versions)
        relay_version_drop(r, r->n_versions - 1);
    r->stats.version = -1;
}

/* --- Wants ------------------------------------------------------------------------------------ */

void relay_want_end(ifl_relay *r, relay_want **at) {
    relay_want *want = *at;
    *at = want->next;
    if (!want->next) r->wants_end = at;
    want->set->places[want->chunk].wanted = false;
    if (want->link >= 0) r->n_asked_of[want->link]--;
    r->bytes_reserved -= chunk_dense_bytes(want->version, want->chunk);
    free(want);
}

void relay_want_refuse(ifl_relay *r, relay_want **at) {
    (*at)->set->places[(*at)->chunk].refused_until_ns = ifl_clock_ns() + REFUSED_NS;
    r->stats.refused++;
    relay_want_end(r, at);
}

/* False: no room for it. */
static bool relay_want_chunk(ifl_relay *r, relay_version *v, relay_set *set, int32_t chunk) {
    if (set->places[chunk].wanted) return true;
    int64_t n_bytes = chunk_dense_bytes(v, chunk); /* a patch is shorter, or it isn't sent */
    relay_want *want = relay_make_room(r, n_bytes) ? calloc(1, sizeof *want) : NULL;
    if (!want) return false;
    *want = (relay_want){
        .version = v, .set = set, .chunk = chunk, .link = -1, .since_ns = ifl_clock_ns()};
    *r->wants_end = want;
    r->wants_end = &want->next;
    set->places[chunk].wanted = true;
    r->bytes_reserved += n_bytes;
    relay_count(r);
    return true;
}

ifl_status relay_store(ifl_relay *r, relay_want **at, ifl_wire_wchunk *c) {
    relay_want *want = *at;
    relay_version *v = want->version;
    bool dense = c->codec == IFL_CODEC_DENSE;
    size_t n_dense = (size_t)chunk_dense_bytes(v, want->chunk);
    ifl_hash right = dense ? v->manifest->chunks[want->chunk].hash : c->hash;
    if ((dense ? c->n_data != n_dense : c->n_data > n_dense) ||
        !ifl_hash_equal(ifl_hash_bytes(c->data, c->n_data), right))
        return IFL_FORMAT;
    relay_part *part = calloc(1, sizeof *part);
    uint8_t *copy = c->n_data <= COPIED_MAX ? malloc(c->n_data ? c->n_data : 1) : NULL;
    if (!part || (!copy && c->n_data <= COPIED_MAX)) {
        free(part);
        free(copy);
        return IFL_NOMEM;
    }
    if (copy) memcpy(copy, c->data, c->n_data);
    *part = (relay_part){.relay = r,
                         .used_ns = ifl_clock_ns(),
                         .codec = c->codec,
                         .base = c->base,
                         .hash = c->hash,
                         .data = copy ? copy : c->data,
                         .n_bytes = c->n_data,
                         .frame = copy ? copy : c->frame,
                         .frame_free = copy ? free : c->frame_free};
    if (!copy) { /* the part owns it now */
        c->frame = NULL;
        c->frame_free = NULL;
    }
    place_put(&want->set->places[want->chunk], part);
    if (dense && !v->sets[0].places[want->chunk].part)
        place_put(&v->sets[0].places[want->chunk], part);
    relay_want_end(r, at);
    r->bytes_held += (int64_t)part->n_bytes;
    relay_count(r);
    r->stats.chunks_in++;
    r->stats.bytes_in += (int64_t)part->n_bytes;
    return IFL_OK;
}

/* --- What the transport asks (on its thread) -------------------------------------------------- */

static const ifl_manifest *source_manifest_retain(void *context, void **hint) {
    ifl_relay *r = context;
    pthread_mutex_lock(&r->lock);
    relay_version *v = r->n_versions ? r->versions[r->n_versions - 1] : NULL;
    if (v) v->refs++;
    pthread_mutex_unlock(&r->lock);
    *hint = v;
    return v ? v->manifest : NULL;
}

static void source_manifest_release(void *context, void *hint) {
    ifl_relay *r = context;
    pthread_mutex_lock(&r->lock);
    version_unref(r, hint);
    pthread_mutex_unlock(&r->lock);
}

/* For tests: a copy with another bit, and a hash of its own, takes the place of the right one. */
static relay_part *part_forged(ifl_relay *r, const relay_part *part) {
    relay_part *forged = calloc(1, sizeof *forged);
    uint8_t *bytes = malloc(part->n_bytes);
    if (!forged || !bytes) {
        free(forged);
        free(bytes);
        return NULL;
    }
    memcpy(bytes, part->data, part->n_bytes);
    bytes[part->n_bytes / 2] ^= 1;
    *forged = *part;
    forged->hash = ifl_hash_bytes(bytes, part->n_bytes);
    forged->n_places = forged->n_sending = 0;
    forged->data = forged->frame = bytes;
    forged->frame_free = free;
    r->bytes_held += (int64_t)part->n_bytes;
    return forged;
}

static void part_send(ifl_relay *r, relay_part *part, int32_t chunk, ifl_weight_chunk *out) {
    part->used_ns = ifl_clock_ns();
    bool hooked = r->forge_times > 0 && chunk == r->forge_chunk;
    bool forge = ifl_fail_point(IFL_FAIL_RELAY_CHUNK) > 0 || hooked;
    r->forge_times -= hooked;
    relay_part *forged = forge ? part_forged(r, part) : NULL;
    if (forged) part = forged;
    part->n_sending++;
    *out = (ifl_weight_chunk){.codec = part->codec,
                              .base = part->base,
                              .hash = part->hash,
                              .data = part->data,
                              .n_bytes = part->n_bytes,
                              .release = part_sent,
                              .hint = part};
    r->stats.chunks_out++;
    r->stats.bytes_out += (int64_t)part->n_bytes;
}

static ifl_status source_chunk(void *context, int64_t version, int64_t base, int32_t chunk,
                               ifl_weight_chunk *out) {
    ifl_relay *r = context;
    ifl_status st = IFL_NOTFOUND;
    pthread_mutex_lock(&r->lock);
    relay_version *v = relay_find(r, version);
    if (r->stalled) {
        st = IFL_AGAIN;
    } else if (v && chunk >= 0 && chunk < v->manifest->n_chunks) {
        v->asked_ns = ifl_clock_ns();
        v->served = true;
        v->ready = false;
        /* Beyond the bases that there is room for everything is dense. */
        relay_set *set = base >= 0 ? version_set(r, v, base) : NULL;
        if (!set) set = &v->sets[0];
        relay_place *place = &set->places[chunk];
        if (place->part) {
            part_send(r, place->part, chunk, out);
            st = IFL_OK;
        } else if (v->asked_ns >= place->refused_until_ns && relay_want_chunk(r, v, set, chunk)) {
            st = IFL_AGAIN;
        } else {
            r->stats.refused++;
        }
    }
    pthread_mutex_unlock(&r->lock);
    if (st == IFL_AGAIN) ifl_client_wake_weights(r->client);
    return st;
}

const ifl_weight_source relay_source = {.manifest_retain = source_manifest_retain,
                                        .manifest_release = source_manifest_release,
                                        .chunk = source_chunk};

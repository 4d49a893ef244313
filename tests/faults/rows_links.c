/* Rows 20 to 31: links that fail, bytes that change, peers that are nobody's. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>

#include "common/wire.h"
#include "tests/faults/rows_internal.h"

/* What actors had sent and got no answer for, each of them. */
typedef struct under_way {
    key_set keys[JOB_ACTORS];
    pid_t pids[JOB_ACTORS];
} under_way;

static void under_way_note(job *j, under_way *u) {
    for (int i = 0; i < JOB_ACTORS; i++) {
        u->pids[i] = j->actors[i].pid;
        keys_unanswered(j, &j->actors[i], u->pids[i], 0, &u->keys[i]);
    }
}

static bool under_way_answered(job *j, const under_way *u) {
    for (int i = 0; i < JOB_ACTORS; i++)
        if (j->actors[i].pid == u->pids[i] &&
            !await_answered(j, &j->actors[i], &u->keys[i], j->hang_ms))
            return false;
    return true;
}

bool row_20(job *j) {                   /* a partition, all actors */
    int64_t ms = 10 * JOB_HEARTBEAT_MS; /* the table's 10 s */
    int64_t mark = process_mark(&j->learner), at_proxy = proxy_mark(j), marks[JOB_ACTORS];
    under_way u;
    j->variant = "all";
    for (int i = 0; i < JOB_ACTORS; i++)
        marks[i] = process_mark(&j->actors[i]);
    proxy_tell(j, "* both both stall %lld", (long long)ms);
    if (!await_did(j, at_proxy, "stall", ms)) return false;
    for (int i = 0; i < JOB_ACTORS; i++) /* decode steps that are passed from now on */
        process_arm(j, &j->actors[i], "actor.step=sleep(1)@1");
    job_pass(j, ms);
    under_way_note(j, &u);
    bool generating = false;
    for (int i = 0; i < JOB_ACTORS; i++)
        generating |= process_said(&j->actors[i], marks[i], "fail point actor.step");
    /* It may find them all waiting: for the next weights, or at the cap on what is in flight. */
    if (!generating) return not_played(j, "no actor had anything left to generate");
    for (int i = 0; i < JOB_ACTORS; i++)
        if (!await_text(j, &j->actors[i], marks[i], JOB_DETECT_MS, "link to the learner lost") ||
            !await_joined(j, mark, j->actors[i].name, j->hang_ms))
            return false;
    return under_way_answered(j, &u) && await_steps(j, 1, j->hang_ms);
}

bool row_21(job *j) { /* longer than the lease, one actor */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), at_proxy = proxy_mark(j), ms = 2000;
    key_set held;
    under_way u;
    ms += job_draw(j, 2000);
    j->variant = a->name;
    proxy_tell(j, "%d both both stall %lld", lane_of(j, a), (long long)ms);
    if (!await_did(j, at_proxy, "stall", ms)) return false;
    keys_held(j, a, a->pid, &held);
    if (!await_gone(j, mark, a->name, JOB_DETECT_MS)) return false;
    mark = process_mark(&j->learner); /* on a slow host the stall may be over before the rest is */
    if (!await_leased_again(j, &held, j->hang_ms) || !await_steps(j, 3, j->hang_ms)) return false;
    job_pass(j, ms / 2);
    under_way_note(j, &u);
    proxy_tell(j, "%d both both stall 0", lane_of(j, a));
    /* Its late answers are taken where their key is open, and refused or duplicates elsewhere. */
    return await_joined(j, mark, a->name, j->hang_ms) && under_way_answered(j, &u) &&
           await_stored_once(j, &held, j->hang_ms);
}

/* Both ends notice. */
static bool noticed(job *j, job_process *a, int64_t learner_mark, int64_t actor_mark) {
    return await_gone(j, learner_mark, a->name, JOB_DETECT_MS) &&
           await_text(j, a, actor_mark, JOB_DETECT_MS, "link to the learner lost");
}

bool row_22(job *j) { /* half-open */
    job_process *a = any_actor(j);
    int64_t at_learner = process_mark(&j->learner), at_actor = process_mark(a);
    int64_t at_proxy = proxy_mark(j);
    const char *plane = PICK(j, "control", "both");
    proxy_tell(j, "%d %s both half-open", lane_of(j, a), plane);
    if (!await_did(j, at_proxy, "half-open", 1000)) return false;
    if (!noticed(j, a, at_learner, at_actor)) return false;
    /* The learner's side was closed for it; the actor closes its own. */
    return await_did(j, at_proxy, "closed", JOB_DETECT_MS) ||
           refuse(j, "%s has not closed its half-open socket", a->name);
}

bool row_23(job *j) { /* one-way loss */
    job_process *a = any_actor(j);
    int64_t at_learner = process_mark(&j->learner), at_actor = process_mark(a);
    int64_t at_proxy = proxy_mark(j);
    const char *way = PICK(j, "up", "down");
    proxy_tell(j, "%d both %s stall 4000", lane_of(j, a), way);
    return await_did(j, at_proxy, "stall", 1000) && noticed(j, a, at_learner, at_actor);
}

/* --- Row 25 ----------------------------------------------------------------------------------- */

/* Versions that an actor has taken into use since a place in its recorder. */
typedef struct swaps {
    const job_process *actor;
    int64_t from;
    int64_t before, last; /* the one in use there, the newest now; -1 = none */
    int n, n_skips;
    int64_t until; /* what is waited for: this version, ... */
    int skips;     /* ... or so many gaps */
} swaps;

static void swaps_read(const job *j, swaps *s) {
    records r = records_of(j, s->actor, s->actor->pid);
    s->before = s->last = -1;
    s->n = s->n_skips = 0;
    for (int64_t i = 0; i < r.n; i++) {
        if (strcmp(r.all[i].what, "swapped") != 0) continue;
        int64_t version = (int64_t)r.all[i].serial;
        if (i >= s->from && s->last >= 0 && version > s->last + 1) s->n_skips++;
        s->n += i >= s->from;
        if (i < s->from) s->before = version;
        s->last = version;
    }
    records_free(&r);
}

static bool has_swapped(job *j, void *context) {
    swaps *s = context;
    swaps_read(j, s);
    return s->skips > 0 ? s->n_skips >= s->skips : s->last >= s->until;
}

bool row_25(job *j) { /* a link slower than the swaps */
    job_process *a = any_actor(j);
    /* Steps of 25 ms with patches of 3.2 kB are 130 kB/s and manifests of 1 kB another 40: the
     * manifests must fit, as they would by far with a model that is not as small as this one. */
    int64_t rate = 55000 + job_draw(j, 25000);
    int64_t rss = process_rss_kib(&j->learner), at_proxy = proxy_mark(j);
    int kind = j->number % 4;
    /* `sync` gives its work to those who have the version, and the slow one may skip or not;
     * `async:2` skips nothing and waits for it. */
    bool directed = kind >= 2, bounded = kind == 3;
    swaps s = {.actor = a, .from = records_mark(j, a, a->pid), .skips = 1};
    j->variant = directed ? "lock-step" : "pipeline";
    proxy_tell(j, "%d weights down rate %lld 20000", lane_of(j, a), (long long)rate);
    if (!await_did(j, at_proxy, "rate", 4000)) return false;
    if (!directed && !job_await(j, j->hang_ms, has_swapped, &s))
        return refuse(j, "at %lld B/s %s took %d versions into use and skipped none",
                      (long long)rate, a->name, s.n);
    /* Versions in order go no further ahead of the slowest actor than the mode says: in `async:2`
     * two, and the one that is being published. */
    int64_t ahead_max = 3;
    for (int i = 0; directed && i < 8; i++) {
        job_pass(j, 250);
        double newest = metric(j, "step"); /* before the actor's, which may only grow meanwhile */
        swaps_read(j, &s);
        if (bounded && s.last >= 0 && !isnan(newest) && (int64_t)newest - s.last > ahead_max)
            return refuse(j, "step %.0f is done and %s still uses version %lld, wanted %lld behind",
                          newest, a->name, (long long)s.last, (long long)ahead_max);
    }
    if (bounded && s.n_skips > 0) return refuse(j, "%s skipped versions in lock-step", a->name);
    if (!grew_little(j, rss)) return false;
    /* Nothing has piled up: at full speed again it is with the newest after the one under way. */
    s.until = (int64_t)metric(j, "step");
    s.skips = 0;
    s.from = records_mark(j, a, a->pid);
    proxy_tell(j, "%d weights down rate 1000000000 1", lane_of(j, a));
    if (!job_await(j, JOB_DETECT_MS, has_swapped, &s))
        return refuse(j, "%s uses version %lld, and not %lld, %d ms after its link was well",
                      a->name, (long long)s.last, (long long)s.until, JOB_DETECT_MS);
    return directed || s.n <= 1 + (int)(s.last - s.until) + 2 ||
           refuse(j, "%s took %d versions into use on its way to version %lld", a->name, s.n,
                  (long long)s.until);
}

/* --- Row 26 ----------------------------------------------------------------------------------- */

/* A chunk comes with another hash: that one is asked for again, no other, and the link stays. */
static bool chunk_again(job *j, job_process *a, int64_t own, int64_t from) {
    swaps s = {.actor = a, .from = from};
    bool again = true;
    if (!await_text(j, a, own, JOB_DETECT_MS, "came with another hash than its manifest says"))
        return false;
    records r = records_of(j, a, a->pid);
    int64_t at = from;
    while (at < r.n && strcmp(r.all[at].what, "damaged") != 0)
        at++;
    uint64_t version = at < r.n ? r.all[at].serial : 0;
    records_free(&r);
    /* That version, or a newer one that took its place, comes into use. */
    s.until = (int64_t)version;
    if (!job_await(j, j->hang_ms, has_swapped, &s))
        return refuse(j, "version %llu, of which a chunk came damaged, or a newer one never came",
                      (unsigned long long)version);
    r = records_of(j, a, a->pid);
    int32_t chunk = r.all[at].sample;
    for (int64_t i = at + 1; i < r.n; i++) {
        if (strcmp(r.all[i].what, "asked") != 0 || r.all[i].serial != version) continue;
        for (int64_t k = from; k < at; k++)
            again = again && (strcmp(r.all[k].what, "asked") != 0 || r.all[k].serial != version ||
                              r.all[k].sample != r.all[i].sample || r.all[i].sample == chunk);
    }
    records_free(&r);
    if (!again)
        return refuse(j, "more than chunk %d of version %llu was asked for again", chunk,
                      (unsigned long long)version);
    return !process_said(a, own, "link to the learner lost") ||
           refuse(j, "%s lost its link for a damaged chunk", a->name);
}

/* Learner or actor names a damaged message and ends the session; what was under way comes again. */
static bool refused_as_malformed(job *j, job_process *a, bool up, int64_t mark, int64_t own) {
    char text[64];
    under_way u;
    snprintf(text, sizeof text, "malformed message from %s", up ? a->name : "the learner");
    if (!await_text(j, up ? &j->learner : a, up ? mark : own, JOB_DETECT_MS, text) ||
        !await_text(j, a, own, JOB_DETECT_MS, "link to the learner lost"))
        return false;
    under_way_note(j, &u);
    if (!await_joined(j, mark, a->name, j->hang_ms)) return false;
    return under_way_answered(j, &u);
}

/* Anywhere in the stream: who reads it notices by some check, or by the silence that follows. */
static bool noticed_somehow(job *j, job_process *a, int64_t mark, int64_t own) {
    int64_t turns = (JOB_DETECT_MS + GRACE_MS) / 50;
    for (int64_t i = 0; i < turns; i++) {
        if (learner_said_of(j, mark, a->name, "is gone") ||
            process_said(a, own, "link to the learner lost") ||
            process_said(a, own, "malformed message") || process_said(a, own, "another hash") ||
            process_said(&j->learner, mark, "malformed message from"))
            return true;
        job_pass(j, 50);
    }
    return not_played(j, "the bit was one that nothing depends on (reserved in ZMTP)");
}

bool row_26(job *j) { /* a bit flips */
    job_process *a = any_actor(j);
    int lane = lane_of(j, a);
    int64_t mark = process_mark(&j->learner), own = process_mark(a), at_proxy = proxy_mark(j);
    int64_t from = records_mark(j, a, a->pid);
    double malformed = metric(j, "transport/malformed");
    const char *where = j->guarded
                            ? PICK(j, "control up", "control down", "weights up", "weights down")
                            : PICK(j, "chunk", "trajectory", "header up", "header down",
                                   "control up", "control down", "weights up", "weights down");
    bool up = !strcmp(where, "trajectory") || !strcmp(where, "header up");
    if (!strcmp(where, "chunk"))
        proxy_tell(j, "%d weights down flip-payload %d", lane, IFL_WIRE_WCHUNK);
    else if (!strcmp(where, "trajectory"))
        proxy_tell(j, "%d control up flip-payload %d", lane, IFL_WIRE_TRAJ);
    else if (!strcmp(where, "header up"))
        proxy_tell(j, "%d control up flip-header %d", lane, IFL_WIRE_PING);
    else if (!strcmp(where, "header down"))
        proxy_tell(j, "%d control down flip-header %d", lane, IFL_WIRE_PONG);
    else
        proxy_tell(j, "%d %s flip %lld", lane, where, (long long)job_draw(j, 600));
    if (!await_did(j, at_proxy, "flip", 4000)) return false;
    if (!strcmp(where, "chunk")) return chunk_again(j, a, own, from);
    if (up || !strcmp(where, "header down"))
        return refused_as_malformed(j, a, up, mark, own) &&
               (!up || await_metric(j, "transport/malformed", malformed, j->hang_ms));
    return noticed_somehow(j, a, mark, own);
}

/* --- Rows 27 to 31 ---------------------------------------------------------------------------- */

bool row_27(job *j) { /* truncated, oversized, empty frames */
    static char variant[32];
    int64_t rss = process_rss_kib(&j->learner), mark = process_mark(&j->learner);
    double malformed = metric(j, "transport/malformed");
    int n = (int)job_draw(j, ODD_FRAMES + 2);
    if (n >= ODD_FRAMES) { /* in the middle of what an actor is saying */
        job_process *a = any_actor(j);
        int64_t at_proxy = proxy_mark(j), own = process_mark(a);
        const char *way = PICK(j, "up", "down");
        proxy_tell(j, "%d %s %s truncate %lld", lane_of(j, a),
                   n == ODD_FRAMES ? "control" : "weights", way, (long long)(1 + job_draw(j, 700)));
        j->variant = "truncated stream";
        if (!await_did(j, at_proxy, "truncate", 4000)) return false;
        return (noticed_somehow(j, a, mark, own) && await_acks(j, a, 1, j->hang_ms)) ||
               refuse(j, "a truncated stream of %s went unnoticed", a->name);
    }
    snprintf(variant, sizeof variant, "frames %d", n);
    j->variant = variant;
    return odd_frames(&j->facts, n, j->seed + (uint64_t)job_draw(j, 1 << 30), j->why) &&
           grew_little(j, rss) && all_stayed(j, mark) &&
           (n == ODD_FRAMES - 1 || /* libzmq cuts that link before anything of it is ours */
            await_metric(j, "transport/malformed", malformed + 9.0, j->hang_ms));
}

bool row_29(job *j) { /* replays */
    static const char *const which[] = {"old session", "number again", "other run", "copied stream",
                                        "ended stream"};
    static const char *const counts[] = {"transport/fenced", "transport/out_of_sequence",
                                         "stats/late_answers"};
    int n = (int)job_draw(j, 5);
    job_process *a = any_actor(j);
    int lane = lane_of(j, a);
    int64_t at_proxy = proxy_mark(j), mark = process_mark(&j->learner);
    j->variant = which[n];
    if (n < 3) {
        double before = metric(j, counts[n]);
        return odd_replay(&j->facts, n, j->why) && await_metric(j, counts[n], before, j->hang_ms);
    }
    if (n == 4) {
        proxy_tell(j, "%d both both cut", lane);
        if (!await_did(j, at_proxy, "cut", 1000) || !await_joined(j, mark, a->name, GRACE_MS))
            return false;
    }
    const char *count = j->guarded ? "transport/links_refused" : "transport/fenced";
    double before = metric(j, count);
    mark = process_mark(&j->learner);
    at_proxy = proxy_mark(j);
    proxy_tell(j, "%d control up %s", lane, n == 3 ? "duplicate" : "replay");
    if (!await_did(j, at_proxy, n == 3 ? "duplicate" : "replay", 1000)) return false;
    /* With keys no handshake succeeds twice. Without, the copied HELLO may take the session over,
     * but every message behind it is of a session that has ended, and the actor comes back. */
    return await_metric(j, count, before, j->hang_ms) && await_acks(j, a, 1, j->hang_ms);
}

/* Refused links are told in one line a minute, whatever their number. */
static bool logged_seldom(job *j, bool must) {
    const char *text = process_text(&j->learner, j->learner.log_from);
    int n = 0;
    for (const char *at = text; (at = strstr(at, "refused ")) != NULL; at++)
        n += strstr(at, "links with a key that is not allowed") != NULL &&
             memchr(at, '\n', (size_t)(strstr(at, "links with a key that is not allowed") - at)) ==
                 NULL;
    int64_t minutes = process_age_ms(&j->learner) / 60000;
    if (must && n == 0) return refuse(j, "no line in the log tells of refused links");
    return n <= minutes + 1 ||
           refuse(j, "%d lines about refused links in %lld minutes", n, (long long)minutes);
}

/* An actor with keys that don't fit: told so, and what to do, with status 77. */
static bool keys_refused(job *j, const char *which) {
    char out[8192], arguments[256];
    bool known = !strcmp(which, "wrong learner key");
    int64_t mark = process_mark(&j->learner);
    double before = metric(j, known ? "transport/links_refused" : "transport/keys_refused");
    const char *want = known ? "learner.public" : "inflight keys allow FOLDER stranger.public";
    snprintf(arguments, sizeof arguments,
             "actor --config job.yaml --name stranger --connect tcp://127.0.0.1:%d --keys %s",
             j->port,
             known                           ? "mistaken"
             : !strcmp(which, "foreign key") ? "stranger"
                                             : "former");
    if (!strcmp(which, "key taken off the list")) want = "inflight keys allow FOLDER former.public";
    int code = job_run(j, arguments, out, sizeof out);
    if (code != 77) return refuse(j, "%s: status %d, wanted 77: %.300s", which, code, out);
    if (!strstr(out, want)) return refuse(j, "%s: said nothing of %s: %.300s", which, want, out);
    if (process_said(&j->learner, mark, "stranger joined"))
        return refuse(j, "%s: it joined", which);
    return await_metric(j, known ? "transport/links_refused" : "transport/keys_refused", before,
                        j->hang_ms) &&
           logged_seldom(j, true) && all_stayed(j, mark);
}

/* An allowed actor works; its key is taken off the list, which ends its session, and it can't come
 * back. */
static bool key_revoked(job *j) {
    job_process *x = &j->actors[JOB_EXTRA];
    int64_t mark = process_mark(&j->learner);
    bool good = job_allow(j, "former", true);
    x->keys = "former";
    x->wanted = true;
    good = good && process_start(j, x) && await_acks(j, x, 1, j->hang_ms);
    x->wanted = false;
    x->may_end = true;
    good = good && job_allow(j, "former", false) &&
           await_text(j, &j->learner, mark, JOB_DETECT_MS,
                      "the key of actor extra is not in the list any more") &&
           await_gone(j, mark, "extra", JOB_DETECT_MS);
    int64_t ends = x->n_ends;
    process_kill(j, x, SIGKILL);
    x->keys = NULL;
    return await_end(j, x, ends, GRACE_MS) && good && keys_refused(j, "key taken off the list");
}

bool row_30(job *j) { /* strangers */
    static const char *const which[] = {"port scan", "HTTP", "random bytes", "half a greeting",
                                        "ZeroMQ, no actor"};
    static const char *const keys[] = {"foreign key", "wrong learner key", "key taken off the list",
                                       "plain client"};
    int64_t rss = process_rss_kib(&j->learner), mark = process_mark(&j->learner);
    int n = (int)job_draw(j, ODD_STRANGERS + (j->guarded ? 4 : 0));
    bool good;
    if (n >= ODD_STRANGERS + 3) { /* an honest HELLO, without CURVE */
        odd_facts plain = j->facts;
        double before = metric(j, "transport/links_refused");
        j->variant = keys[3];
        plain.learner_key[0] = '\0';
        good = odd_plain(&plain, j->why) &&
               await_metric(j, "transport/links_refused", before, j->hang_ms) &&
               logged_seldom(j, true);
    } else if (n >= ODD_STRANGERS) {
        j->variant = keys[n - ODD_STRANGERS];
        good = n == ODD_STRANGERS + 2 ? key_revoked(j) : keys_refused(j, j->variant);
    } else {
        j->variant = which[n];
        good = odd_stranger(&j->facts, n, j->seed + (uint64_t)job_draw(j, 1 << 30), j->why) &&
               (!process_said(&j->learner, mark, " joined") || refuse(j, "a stranger joined")) &&
               logged_seldom(j, false);
    }
    return good && all_stayed(j, mark) && grew_little(j, rss);
}

bool row_31(job *j) {
    static const char *const which[] = {"NaN", "above 0", "unpublished version", "infinite"};
    int n = (int)job_draw(j, 4);
    double before = metric(j, "transport/refused");
    j->variant = which[n];
    return odd_liar(&j->facts, n, j->why) &&
           await_metric(j, "transport/refused", before + 2.0, j->hang_ms);
}

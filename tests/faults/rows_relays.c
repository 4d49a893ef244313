/* Row 32: relays between the learner and an actor that die, stop, or hand on other bytes than they
 * were given. The actor is the one that comes and goes; it asks two relays before the learner. */
#include <signal.h>

#include "tests/faults/rows_internal.h"

#define CHUNKS 8 /* of a version of the job's model there are more */

static bool relays_start(job *j) {
    for (int i = 0; i < JOB_RELAYS; i++) {
        job_process *r = &j->relays[i];
        int64_t mark = process_mark(r);
        process_arm(j, r, "");
        if (!process_start(j, r) || !await_text(j, r, mark, GRACE_MS, "connected to run"))
            return false;
    }
    return true;
}

static void relays_end(job *j) {
    for (int i = 0; i < JOB_RELAYS; i++) {
        job_process *r = &j->relays[i];
        int64_t ends = r->n_ends;
        if (r->pid <= 0) continue;
        process_kill(j, r, SIGCONT);
        process_kill(j, r, SIGKILL);
        await_end(j, r, ends, 1000);
    }
}

/* The first of them fails while it hands chunks on to `x`, which must notice within the table's 3 s
 * and have the rest from the second. */
static bool first_fails(job *j, job_process *x, int64_t own) {
    job_process *r = &j->relays[0], *next = &j->relays[1];
    int64_t ends = r->n_ends, at_r = process_mark(r), at_next = process_mark(next);
    long long chunk = 1 + job_draw(j, CHUNKS);
    const char *how = PICK(j, "killed", "stopped", "alters", "alters all");
    char point[64];
    bool alters = strncmp(how, "alters", 6) == 0;
    snprintf(point, sizeof point, "relay.chunk=%s@%lld%s",
             alters                   ? "error(EIO)"
             : !strcmp(how, "killed") ? "kill"
                                      : "sleep(1)",
             chunk, strcmp(how, "alters all") ? "" : "+");
    process_arm(j, next, "relay.chunk=sleep(1)@1");
    process_arm(j, r, point);
    if (!process_start(j, x)) return refuse(j, "no further actor");
    if (!await_fired(j, r, at_r, "relay.chunk")) return false;
    if (!strcmp(how, "stopped")) process_kill(j, r, SIGSTOP);
    if (!strcmp(how, "killed") && !await_end(j, r, ends, 1000)) return false;
    if (!await_text(j, x, own, JOB_DETECT_MS,
                    alters ? "has sent a wrong chunk" : "; weights come from the next one"))
        return false;
    return await_text(j, next, at_next, JOB_DETECT_MS, "fail point relay.chunk");
}

bool row_32(job *j) {
    job_process *x = &j->actors[JOB_EXTRA];
    int64_t mark = process_mark(&j->learner), own = process_mark(x);
    bool good = relays_start(j);
    if (good) {
        x->wanted = x->relayed = true;
        process_arm(j, x, "");
        good = first_fails(j, x, own);
        /* What it has from the other one is right: it samples under it, and goes on from it. */
        good = good && await_acks(j, x, 3, j->hang_ms);
        if (good && !job_await(j, j->hang_ms, has_swapped_twice, x))
            good = refuse(j, "the actor has not taken a second version into use");
        /* One that was wrong once is not asked again for a minute. */
        if (good && process_said(x, own, "has sent a wrong chunk")) {
            int64_t at = process_mark(&j->relays[0]);
            process_arm(j, &j->relays[0], "relay.chunk=sleep(1)@1");
            job_pass(j, 2 * JOB_HEARTBEAT_MS);
            if (process_said(&j->relays[0], at, "fail point relay.chunk"))
                good = refuse(j, "a relay that was wrong was asked again at once");
        }
        int64_t ends = x->n_ends;
        x->wanted = false;
        x->may_end = true;
        process_kill(j, x, SIGTERM);
        bool ended = x->pid <= 0 || await_end(j, x, ends, GRACE_MS);
        if (!ended) process_kill(j, x, SIGKILL);
        x->relayed = false;
        good = good && ended && ended_with(j, x, 0);
    }
    relays_end(j);
    return good && all_stayed(j, mark);
}

/* Rows 1 to 11 and 33: actors that die, stop, leave, lie about what they are, come in crowds. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>

#include "tests/faults/rows_internal.h"

bool dies_at(job *j, job_process *p, const char *point, const char *act, int64_t range) {
    char text[128], said[128];
    int64_t ends = p->n_ends, mark = process_mark(p);
    p->may_end = true;
    snprintf(text, sizeof text, "%s=%s@%lld", point, act, (long long)(1 + job_draw(j, range)));
    process_arm(j, p, text);
    if (!await_end(j, p, ends, FIRE_MS))
        return not_played(j, "%s of %s was not passed often enough in %d ms", point, p->name,
                          FIRE_MS);
    process_arm(j, p, "");
    snprintf(said, sizeof said, "fail point %s: ", point);
    return ended_by_signal(j, p, SIGKILL) &&
           (process_said(p, mark, said) || refuse(j, "%s died, and not of %s", p->name, point));
}

/* It is noticed within the table's 3 s, and each of the leases that it held when it was lost
 * (looked up at once: a little later others have answered them) is given out once more. */
static bool noticed_gone(job *j, const job_process *a, const key_set *held, int64_t learner_mark) {
    return await_gone(j, learner_mark, a->name, JOB_DETECT_MS) &&
           await_leased_again(j, held, j->hang_ms);
}

bool row_1(job *j) { /* SIGKILL while generating */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), ends = a->n_ends;
    pid_t pid = a->pid;
    key_set held;
    j->variant = a->name;
    job_pass(j, job_draw(j, 200));
    a->may_end = true;
    a->wanted = false; /* so that the learner has to notice by itself */
    process_kill(j, a, SIGKILL);
    bool good = await_end(j, a, ends, 1000) && ended_by_signal(j, a, SIGKILL);
    keys_held(j, a, pid, &held);
    good = good && noticed_gone(j, a, &held, mark) && await_steps(j, 2, JOB_DETECT_MS);
    a->wanted = true;
    return good;
}

/* An answer that the process has sent since `from` and the learner has (not) stored. */
typedef struct sent_key {
    const job_process *actor;
    int64_t from;
    bool stored;
    key_set key; /* of one */
} sent_key;

static bool has_sent(job *j, void *context) {
    sent_key *s = context;
    key_set sent;
    keys_unanswered(j, s->actor, s->actor->pid, s->from, &sent);
    records r = records_of(j, &j->learner, j->learner.pid);
    bool found = false;
    for (int i = 0; i < sent.n && !found; i++) {
        bool stored = false;
        for (int64_t k = 0; k < r.n && !stored; k++)
            stored = r.all[k].purpose == 0 && !strcmp(r.all[k].what, "stored") &&
                     r.all[k].lease == sent.keys[i].lease &&
                     r.all[k].sample == sent.keys[i].sample &&
                     r.all[k].serial == sent.keys[i].serial && r.all[k].status == 1;
        found = stored == s->stored;
        s->key = (key_set){.n = 1, .learner = sent.learner};
        s->key.keys[0] = sent.keys[i];
    }
    records_free(&r);
    return found;
}

/* The learner has stored it, and its word doesn't arrive: nothing is left to be leased again. */
static bool dies_unanswered(job *j, job_process *a) {
    int64_t mark = process_mark(&j->learner), ends = a->n_ends;
    pid_t pid = a->pid;
    sent_key s = {.actor = a, .stored = true, .from = records_mark(j, a, pid)};
    proxy_tell(j, "%d control down stall 20000", lane_of(j, a));
    bool sent = job_await(j, JOB_SILENCE_MS, has_sent, &s) && a->pid == pid;
    a->may_end = true;
    process_kill(j, a, SIGKILL);
    bool ended = await_end(j, a, ends, 1000);
    proxy_tell(j, "%d control down stall 0", lane_of(j, a));
    if (!sent) return not_played(j, "no answer of %s was stored and unacknowledged", a->name);
    key_set held;
    keys_held(j, a, pid, &held);
    if (!ended || !noticed_gone(j, a, &held, mark)) return false;
    job_pass(j, 300);
    records r = records_of(j, &j->learner, s.key.learner);
    bool again = false;
    for (int64_t i = 0; i < r.n; i++)
        again |= r.all[i].purpose == 0 && !strcmp(r.all[i].what, "leased") &&
                 r.all[i].serial == s.key.keys[0].serial &&
                 r.all[i].sample == s.key.keys[0].sample && r.all[i].lease > s.key.keys[0].lease;
    records_free(&r);
    return await_stored_once(j, &s.key, 1) &&
           (!again || refuse(j, "%llu/%d is stored, and was leased again",
                             (unsigned long long)s.key.keys[0].serial, s.key.keys[0].sample));
}

static bool has_two_answers(job *j, void *context) {
    const sent_key *s = context;
    records r = records_of(j, &j->learner, s->key.learner);
    bool duplicate = false;
    for (int64_t i = 0; i < r.n; i++)
        duplicate |= r.all[i].purpose == 0 && !strcmp(r.all[i].what, "stored") &&
                     r.all[i].serial == s->key.keys[0].serial &&
                     r.all[i].sample == s->key.keys[0].sample && r.all[i].status == 2;
    records_free(&r);
    return duplicate;
}

/* Its answer is under way while its lease is given to another: both arrive, one is stored, the
 * other one is told `duplicate`. */
static bool dies_after_release(job *j, job_process *a) {
    int64_t mark = process_mark(&j->learner), ends = a->n_ends;
    sent_key s = {.actor = a, .from = records_mark(j, a, a->pid)};
    for (job_process *b = next_actor(j, a); b != a; b = next_actor(j, b))
        process_arm(j, b, "actor.step=sleep(15)@1+");
    proxy_tell(j, "%d control up stall 20000", lane_of(j, a));
    if (!job_await(j, JOB_SILENCE_MS, has_sent, &s))
        return not_played(j, "%s had no answer to send", a->name);
    if (!await_gone(j, mark, a->name, JOB_DETECT_MS) || !await_leased_again(j, &s.key, j->hang_ms))
        return false;
    mark = process_mark(&j->learner);
    proxy_tell(j, "%d control up stall 0", lane_of(j, a));
    if (!await_joined(j, mark, a->name, GRACE_MS)) return false;
    a->may_end = true;
    process_arm(j, a, "link.acked=kill@1");
    if (!await_end(j, a, ends, GRACE_MS)) /* the other one was first, and it had a NACK instead */
        process_arm(j, a, "");
    for (job_process *b = next_actor(j, a); b != a; b = next_actor(j, b))
        process_arm(j, b, "");
    if (!await_stored_once(j, &s.key, j->hang_ms)) return false;
    if (job_await(j, j->hang_ms / 2, has_two_answers, &s)) return true;
    /* When its group was trained meanwhile the late one is refused as late: that is no duplicate,
     * and stored once it is all the same. */
    return not_played(j, "the second answer came when the group was closed");
}

bool row_2(job *j) { /* SIGKILL between send and acknowledgement */
    job_process *a = any_actor(j);
    const char *how = PICK(j, "unanswered", "duplicate", "link.sent", "link.acked", "actor.send");
    if (!strcmp(how, "unanswered")) return dies_unanswered(j, a);
    if (!strcmp(how, "duplicate")) return dies_after_release(j, a);
    int64_t mark = process_mark(&j->learner);
    pid_t pid = a->pid;
    key_set sent, held;
    if (!dies_at(j, a, how, "kill", 20)) return false;
    keys_unanswered(j, a, pid, 0, &sent);
    keys_held(j, a, pid, &held);
    return noticed_gone(j, a, &held, mark) && await_stored_once(j, &sent, j->hang_ms);
}

bool row_3(job *j) { /* SIGSTOP, short and long */
    job_process *a = any_actor(j);
    bool is_long = !strcmp(PICK(j, "short", "long"), "long");
    int64_t mark = process_mark(&j->learner), own = process_mark(a);
    process_kill(j, a, SIGSTOP);
    if (!is_long) {
        job_pass(j, JOB_SILENCE_MS / 3);
        process_kill(j, a, SIGCONT);
        job_pass(j, 200);
        if (learner_said_of(j, mark, a->name, "is gone"))
            return refuse(j, "%s was given up after %d ms", a->name, JOB_SILENCE_MS / 3);
        return !process_said(a, own, "link to the learner lost") ||
               refuse(j, "%s gave its link up after %d ms", a->name, JOB_SILENCE_MS / 3);
    }
    key_set held;
    keys_held(j, a, a->pid, &held);
    bool gone = noticed_gone(j, a, &held, mark);
    job_pass(j, job_draw(j, 1000));
    mark = process_mark(&j->learner);
    process_kill(j, a, SIGCONT);
    /* Its old session is fenced, or it has seen the silence itself; then HELLO. */
    return gone && await_text(j, a, own, GRACE_MS, "link to the learner lost") &&
           await_joined(j, mark, a->name, GRACE_MS);
}

bool row_4(job *j) { /* SIGTERM */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), own = process_mark(a), ends = a->n_ends;
    pid_t pid = a->pid;
    char bye[64], begun[64];
    j->variant = a->name;
    a->may_end = true;
    a->wanted = false;
    key_set held;
    keys_held(j, a, pid, &held);
    process_kill(j, a, SIGTERM);
    bool good = await_end(j, a, ends, GRACE_MS) && ended_with(j, a, 0) &&
                await_text(j, a, own, 1, "asked to stop: all answers are handed over, ") &&
                noticed_gone(j, a, &held, mark);
    a->wanted = true;
    snprintf(bye, sizeof bye, "%s is gone (bye: ", a->name);
    snprintf(begun, sizeof begun, "%s had begun ", a->name);
    if (!good) return false;
    if (!process_said(&j->learner, mark, bye))
        return refuse(j, "%s ended without a BYE that the learner heard", a->name);
    /* What it had begun goes to others as far as it had come. */
    return process_said(a, own, "handed over, 0 of them begun") ||
           await_text(j, &j->learner, mark, JOB_DETECT_MS, begun);
}

bool row_5(job *j) { /* killed while staging */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner);
    pid_t pid = a->pid;
    const char *at = PICK(j, "receiver.chunk", "receiver.begin", "receiver.ready", "actor.swap");
    key_set held;
    if (!dies_at(j, a, at, "kill", 6)) return false;
    keys_held(j, a, pid, &held);
    return noticed_gone(j, a, &held, mark);
}

bool row_6(job *j) { /* the device fails */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), own = process_mark(a), ends = a->n_ends;
    pid_t pid = a->pid;
    char text[64];
    key_set held;
    j->variant = a->name;
    a->may_end = true;
    snprintf(text, sizeof text, "actor.step=error(EIO)@%lld", (long long)(1 + job_draw(j, 50)));
    process_arm(j, a, text);
    if (!await_fired(j, a, own, "actor.step") || !await_end(j, a, ends, FIRE_MS)) return false;
    process_arm(j, a, "");
    keys_held(j, a, pid, &held);
    if (!ended_with(j, a, 75) ||
        !await_text(j, &j->learner, mark, JOB_DETECT_MS, "its device failed"))
        return false;
    /* The device's work is tainted: nothing that was under way there may come any more. */
    int64_t from = records_mark(j, &j->learner, held.learner);
    if (!await_leased_again(j, &held, j->hang_ms)) return false;
    records r = records_of(j, &j->learner, held.learner);
    bool tainted = false;
    for (int64_t i = from; i < r.n; i++)
        for (int k = 0; k < held.n; k++)
            tainted |= !strcmp(r.all[i].what, "stored") && r.all[i].lease == held.keys[k].lease;
    records_free(&r);
    return !tainted || refuse(j, "an answer of the failed device of %s was stored", a->name);
}

bool row_7(job *j) {
    static const char *const which[] = {"model", "profile", "tokenizer"};
    int n = (int)job_draw(j, 3);
    double before = metric(j, "transport/rejected");
    j->variant = which[n];
    return odd_wrong_hash(&j->facts, n, j->why) &&
           await_metric(j, "transport/rejected", before, j->hang_ms);
}

bool row_8(job *j) {
    static const char *const which[] = {"other major", "only later", "also later", "earlier"};
    int n = (int)job_draw(j, 4);
    double before = metric(j, "transport/rejected");
    j->variant = which[n];
    return odd_protocol(&j->facts, n, j->why) &&
           (n >= 2 || await_metric(j, "transport/rejected", before, j->hang_ms));
}

/* How much slower steps are meanwhile is a figure (tests assert no wall-clock speed). */
bool row_9(job *j) { /* 100 join at once */
    int64_t mark = process_mark(&j->learner), rss = process_rss_kib(&j->learner);
    int64_t steps = job_steps(j);
    double said_s, before_s = step_median(j, 60);
    j->variant = "100 sessions";
    bool good = odd_crowd(&j->facts, 100, 10000, &said_s, j->why);
    if (said_s > 1.0)
        return not_played(j, "it took %.2f s to say HELLO 100 times, wanted 1 s at most", said_s);
    if (!good) return false;
    int64_t n = job_steps(j) - steps;
    double during_s = step_median(j, (int)n);
    if (n >= 3 && !isnan(before_s) && !isnan(during_s)) {
        j->crowd_before_us = (int64_t)(before_s * 1e6);
        j->crowd_during_us = (int64_t)(during_s * 1e6);
    }
    return all_stayed(j, mark) && grew_little(j, rss);
}

bool has_swapped_twice(job *j, void *context) {
    const job_process *x = context;
    records r = records_of(j, x, x->pid);
    uint64_t first = UINT64_MAX;
    bool twice = false;
    for (int64_t i = 0; i < r.n; i++) {
        if (strcmp(r.all[i].what, "swapped") != 0) continue;
        twice |= r.all[i].serial > first;
        if (first == UINT64_MAX) first = r.all[i].serial;
    }
    records_free(&r);
    return twice;
}

bool visitor(job *j, const char *point, pid_t *pid) {
    job_process *x = &j->actors[JOB_EXTRA];
    x->wanted = true;
    process_arm(j, x, point); /* before it starts */
    bool good = process_start(j, x);
    *pid = x->pid;
    good = good && await_acks(j, x, 3, j->hang_ms);
    if (good && !job_await(j, j->hang_ms, has_swapped_twice, x))
        good = refuse(j, "the newcomer has not taken a second version into use");
    int64_t ends = x->n_ends;
    x->wanted = false;
    x->may_end = true;
    process_kill(j, x, SIGTERM);
    bool ended = await_end(j, x, ends, GRACE_MS);
    process_arm(j, x, "");
    if (!ended) process_kill(j, x, SIGKILL);
    return good && ended && ended_with(j, x, 0);
}

bool row_10(job *j) { /* joins in mid swap */
    job_process *x = &j->actors[JOB_EXTRA];
    int64_t mark = process_mark(x);
    pid_t pid;
    /* Where lag is bounded one that is always late gets no work. */
    const char *point = j->strict
                            ? PICK(j, "receiver.begin=sleep(300)@1", "receiver.ready=sleep(300)@1")
                            : PICK(j, "receiver.begin=sleep(300)@1", "receiver.chunk=sleep(60)@1+",
                                   "receiver.ready=sleep(300)@1");
    if (!visitor(j, point, &pid)) return false;
    if (!process_said(x, mark, "fail point receiver."))
        return not_played(j, "%s did not act", point);
    /* The first version it used was committed when it came or later, and it did not stay there. */
    records r = records_of(j, x, pid);
    int64_t first = -1, last = -1;
    for (int64_t i = 0; i < r.n; i++) {
        if (strcmp(r.all[i].what, "swapped") != 0) continue;
        if (first < 0) first = (int64_t)r.all[i].serial;
        if ((int64_t)r.all[i].serial < last) last = INT64_MIN;
        if (last != INT64_MIN) last = (int64_t)r.all[i].serial;
    }
    records_free(&r);
    if (first < 0) return refuse(j, "the newcomer has taken no version into use");
    return last > first || refuse(j, "the newcomer took version %lld and then %lld",
                                  (long long)first, (long long)last);
}

bool row_11(job *j) { /* two of one name */
    job_process *x = &j->actors[JOB_EXTRA], *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), steps = job_steps(j);
    char own[32];
    pid_t pid;
    bool good;
    if (!strcmp(PICK(j, "session", "process"), "session")) {
        good = odd_namesake(&j->facts, a->name, 1500, j->why);
    } else {
        memcpy(own, x->name, sizeof own);
        memcpy(x->name, a->name, sizeof x->name);
        good = visitor(j, "", &pid);
        memcpy(x->name, own, sizeof own);
    }
    if (!good || !await_acks(j, a, 1, j->hang_ms)) return false;
    /* The metric of some step meanwhile counts both, and the first one stayed. */
    if (metric_max(j, "stats/namesakes", (int)(job_steps(j) - steps)) < 2.0)
        return refuse(j, "no step's stats/namesakes counts two");
    char replaced[64];
    snprintf(replaced, sizeof replaced, "%s is gone (said HELLO again)", a->name);
    return !process_said(&j->learner, mark, replaced) ||
           refuse(j, "one of two actors called %s took the other's place", a->name);
}

bool row_33(job *j) { /* a slow actor */
    job_process *a = any_actor(j), *b = next_actor(j, a), *c = next_actor(j, b);
    int64_t mark = process_mark(&j->learner), own = process_mark(a);
    j->variant = a->name;
    process_arm(j, a, "actor.step=sleep(20)@1+");
    if (!await_fired(j, a, own, "actor.step")) return false;
    int64_t slow = actor_acks(j, a), others[2] = {actor_acks(j, b), actor_acks(j, c)};
    if (!await_steps(j, 10, 2 * j->hang_ms)) return false;
    slow = actor_acks(j, a) - slow;
    int64_t fast = actor_acks(j, b) - others[0], fast2 = actor_acks(j, c) - others[1];
    /* In lock-step all wait for it; elsewhere only its own share shrinks. */
    if (j->number % 4 < 2 && (slow >= fast || slow >= fast2))
        return refuse(j, "%s, ten times as slow, did %lld answers beside %lld and %lld", a->name,
                      (long long)slow, (long long)fast, (long long)fast2);
    return all_stayed(j, mark);
}

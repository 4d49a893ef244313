#include "tests/faults/rows.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"

#define FIRE_MS 8000 /* until a fail point that is passed all the time has acted */
#define GRACE_MS 5000
#define START_FROM_MS 10000 /* a learner that is started again has its checkpoint */
#ifdef __SANITIZE_ADDRESS__
#define RSS_GROWTH_KIB (1 << 20) /* what is freed stays for a while, to be watched */
#else
#define RSS_GROWTH_KIB (48 << 10)
#endif

static bool refuse(job *j, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(job *j, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(j->why, sizeof j->why, format, args);
    va_end(args);
    return false;
}

static const char *pick(job *j, const char *const *list, int n) {
    return j->variant = list[job_draw(j, n)];
}
#define PICK(j, ...)                                                                               \
    pick(j, (const char *const[]){__VA_ARGS__},                                                    \
         (int)(sizeof(const char *const[]){__VA_ARGS__} / sizeof(const char *)))

static job_process *any_actor(job *j) {
    return &j->actors[job_draw(j, JOB_ACTORS)];
}
static int lane_of(const job *j, const job_process *actor) {
    return (int)(actor - j->actors);
}

/* --- Conditions ------------------------------------------------------------------------------- */

typedef struct wanted {
    job_process *process;
    int64_t n; /* ends, steps, acknowledgements before; or a mark in the log */
    const char *text, *other;
    pid_t pid;
} wanted;

static bool has_ended(job *j, void *context) {
    (void)j;
    const wanted *w = context;
    return process_ended(w->process, w->n);
}
static bool has_said(job *j, void *context) {
    (void)j;
    const wanted *w = context;
    return process_said(w->process, w->n, w->text) &&
           (!w->other || process_said(w->process, w->n, w->other));
}
static bool has_stepped(job *j, void *context) {
    const wanted *w = context;
    return job_steps(j) > w->n;
}
static bool has_acked(job *j, void *context) {
    const wanted *w = context;
    return w->process->pid > 0 && actor_acks(j, w->process) > w->n;
}

static bool await_end(job *j, job_process *p, int64_t n_ends, int64_t ms) {
    wanted w = {.process = p, .n = n_ends};
    return job_await(j, ms, has_ended, &w) ||
           refuse(j, "%s has not ended in %lld ms", p->name, (long long)ms);
}
static bool await_text(job *j, job_process *p, int64_t mark, int64_t ms, const char *text) {
    wanted w = {.process = p, .n = mark, .text = text};
    return job_await(j, ms, has_said, &w) ||
           refuse(j, "%s has not said \"%s\" in %lld ms", p->name, text, (long long)ms);
}
static bool await_steps(job *j, int64_t more, int64_t ms) {
    wanted w = {.n = job_steps(j) + more - 1};
    return job_await(j, ms, has_stepped, &w) ||
           refuse(j, "not %lld more steps in %lld ms", (long long)more, (long long)ms);
}
static bool await_acks(job *j, job_process *p, int64_t more, int64_t ms) {
    wanted w = {.process = p, .n = actor_acks(j, p) + more - 1};
    return job_await(j, ms, has_acked, &w) ||
           refuse(j, "not %lld more answers of %s acknowledged in %lld ms", (long long)more,
                  p->name, (long long)ms);
}
/* The learner gives an actor up. */
static bool await_gone(job *j, int64_t mark, const char *name, int64_t ms) {
    char text[64];
    snprintf(text, sizeof text, "%s is gone", name);
    return await_text(j, &j->learner, mark, ms, text);
}
static bool await_joined(job *j, int64_t mark, const char *name, int64_t ms) {
    char text[64];
    snprintf(text, sizeof text, "%s joined", name);
    return await_text(j, &j->learner, mark, ms, text);
}

static bool ended_by_signal(job *j, const job_process *p, int number) {
    return (WIFSIGNALED(p->status) && WTERMSIG(p->status) == number) ||
           refuse(j, "%s ended with status %x, wanted signal %d", p->name, (unsigned)p->status,
                  number);
}
static bool ended_with(job *j, const job_process *p, int code) {
    return (WIFEXITED(p->status) && WEXITSTATUS(p->status) == code) ||
           refuse(j, "%s ended with status %x, wanted exit %d", p->name, (unsigned)p->status, code);
}

/* The process dies of a fail point; others may see its links end. */
static bool dies_at(job *j, job_process *p, const char *point, const char *act, int64_t range) {
    char text[128], said[128];
    int64_t ends = p->n_ends, mark = process_mark(p);
    p->may_end = true;
    snprintf(text, sizeof text, "%s=%s@%lld", point, act, (long long)(1 + job_draw(j, range)));
    process_arm(j, p, text);
    if (!await_end(j, p, ends, FIRE_MS)) return false;
    process_arm(j, p, "");
    snprintf(said, sizeof said, "fail point %s: ", point);
    return ended_by_signal(j, p, SIGKILL) &&
           (process_said(p, mark, said) || refuse(j, "%s died, and not of %s", p->name, point));
}

/* ... and the learner goes on from its last checkpoint. */
static bool learner_dies_at(job *j, const char *point, const char *act, int64_t range) {
    int64_t mark = process_mark(&j->learner);
    return dies_at(j, &j->learner, point, act, range) &&
           await_text(j, &j->learner, mark, START_FROM_MS, "resumed from step");
}

/* --- Actors ----------------------------------------------------------------------------------- */

static bool row_1(job *j) { /* SIGKILL while generating */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), ends = a->n_ends, steps;
    j->variant = a->name;
    job_pass(j, job_draw(j, 200));
    a->may_end = true;
    a->wanted = false; /* so that the learner has to notice by itself */
    process_kill(j, a, SIGKILL);
    bool good = await_end(j, a, ends, 1000) && await_gone(j, mark, a->name, JOB_DETECT_MS);
    steps = job_steps(j);
    good = good && await_steps(j, 2, JOB_DETECT_MS); /* the others go on */
    a->wanted = true;
    (void)steps;
    return good;
}

static bool row_2(job *j) { /* SIGKILL between send and acknowledgement */
    job_process *a = any_actor(j);
    return dies_at(j, a, PICK(j, "link.sent", "link.acked", "actor.send"), "kill", 20);
}

static bool row_3(job *j) { /* SIGSTOP, short and long */
    job_process *a = any_actor(j);
    bool is_long = !strcmp(PICK(j, "short", "long"), "long");
    int64_t mark = process_mark(&j->learner);
    process_kill(j, a, SIGSTOP);
    if (!is_long) {
        job_pass(j, JOB_SILENCE_MS / 3);
        process_kill(j, a, SIGCONT);
        job_pass(j, 200);
        return !learner_said_of(j, mark, a->name, "is gone") ||
               refuse(j, "%s was given up after %d ms", a->name, JOB_SILENCE_MS / 3);
    }
    bool gone = await_gone(j, mark, a->name, JOB_DETECT_MS);
    job_pass(j, job_draw(j, 1000));
    mark = process_mark(&j->learner);
    process_kill(j, a, SIGCONT);
    return gone && await_joined(j, mark, a->name, GRACE_MS);
}

static bool row_4(job *j) { /* SIGTERM */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), ends = a->n_ends;
    j->variant = a->name;
    a->may_end = true;
    a->wanted = false;
    process_kill(j, a, SIGTERM);
    bool good = await_end(j, a, ends, GRACE_MS) && ended_with(j, a, 0) &&
                await_gone(j, mark, a->name, JOB_DETECT_MS);
    a->wanted = true;
    return good;
}

static bool row_5(job *j) { /* killed while staging */
    return dies_at(j, any_actor(j),
                   PICK(j, "receiver.chunk", "receiver.begin", "receiver.ready", "actor.swap"),
                   "kill", 6);
}

static bool row_6(job *j) { /* the device fails */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), ends = a->n_ends;
    char text[64];
    j->variant = a->name;
    a->may_end = true;
    snprintf(text, sizeof text, "actor.step=error(EIO)@%lld", (long long)(1 + job_draw(j, 50)));
    process_arm(j, a, text);
    if (!await_end(j, a, ends, FIRE_MS)) return false;
    process_arm(j, a, "");
    return ended_with(j, a, 75) &&
           await_text(j, &j->learner, mark, JOB_DETECT_MS, "its device failed");
}

static bool row_7(job *j) {
    static const char *const which[] = {"model", "profile", "tokenizer"};
    int n = (int)job_draw(j, 3);
    j->variant = which[n];
    return odd_wrong_hash(&j->facts, n, j->why);
}

static bool row_8(job *j) {
    static const char *const which[] = {"other major", "only later", "also later", "earlier"};
    int n = (int)job_draw(j, 4);
    j->variant = which[n];
    return odd_protocol(&j->facts, n, j->why);
}

static bool row_9(job *j) { /* 100 join at once */
    int64_t mark = process_mark(&j->learner);
    j->variant = "100 sessions";
    if (!odd_crowd(&j->facts, 100, 10000, j->why)) return false;
    for (int i = 0; i < JOB_ACTORS; i++)
        if (learner_said_of(j, mark, j->actors[i].name, "is gone"))
            return refuse(j, "%s was lost", j->actors[i].name);
    return true;
}

/* An actor that comes, has answers acknowledged, and goes in order. */
static bool visitor(job *j, const char *point) {
    job_process *x = &j->actors[JOB_EXTRA];
    x->wanted = true;
    process_arm(j, x, point); /* before it starts */
    bool good = process_start(j, x) && await_acks(j, x, 3, j->hang_ms);
    int64_t ends = x->n_ends;
    x->wanted = false;
    x->may_end = true;
    process_kill(j, x, SIGTERM);
    bool ended = await_end(j, x, ends, GRACE_MS);
    process_arm(j, x, "");
    if (!ended) process_kill(j, x, SIGKILL);
    return good && ended && ended_with(j, x, 0);
}

static bool row_10(job *j) { /* joins in mid swap */
    /* Where lag is bounded one that is always late gets no work. */
    if (j->strict)
        return visitor(j, PICK(j, "receiver.begin=sleep(300)@1", "receiver.ready=sleep(300)@1"));
    return visitor(j, PICK(j, "receiver.begin=sleep(300)@1", "receiver.chunk=sleep(60)@1+",
                           "receiver.ready=sleep(300)@1"));
}

static bool row_11(job *j) { /* two of one name */
    job_process *x = &j->actors[JOB_EXTRA], *a = any_actor(j);
    int64_t mark = process_mark(&j->learner);
    if (!strcmp(PICK(j, "session", "process"), "session")) {
        if (!odd_namesake(&j->facts, a->name, 1500, j->why)) return false;
        return await_acks(j, a, 1, j->hang_ms);
    }
    char own[32];
    memcpy(own, x->name, sizeof own);
    memcpy(x->name, a->name, sizeof x->name);
    bool good = visitor(j, "");
    memcpy(x->name, own, sizeof own);
    (void)mark;
    return good && await_acks(j, a, 1, j->hang_ms);
}

/* --- Learner ---------------------------------------------------------------------------------- */

static bool row_12(job *j) { /* SIGKILL while it waits */
    j->variant = "desk.wait";
    proxy_tell(j, "* both up stall 3000"); /* nothing comes in any more */
    return learner_dies_at(j, "desk.wait", "kill", 3);
}

static bool row_13(job *j) { /* between write and sync */
    const char *how = PICK(j, "log.append", "log.sync", "tear");
    if (!strcmp(how, "tear")) return learner_dies_at(j, "log.write", "tear", 40);
    return learner_dies_at(j, how, "kill", 40);
}

static bool row_14(job *j) { /* between sync and acknowledgement */
    j->variant = "log.synced";
    return learner_dies_at(j, "log.synced", "kill", 40);
}

static bool row_15(job *j) { /* in the step */
    return learner_dies_at(j, PICK(j, "step.gradients", "step.updated", "step.close"), "kill", 12);
}

static bool row_16(job *j) { /* while a checkpoint is written */
    const char *at =
        PICK(j, "checkpoint.begin", "checkpoint.file", "checkpoint.index", "checkpoint.reveal",
             "checkpoint.done", "file.sync", "file.rename", "tear");
    if (!strcmp(at, "tear")) return learner_dies_at(j, "file.write", "tear", 6);
    return learner_dies_at(j, at, "kill",
                           !strncmp(at, "file", 4) || !strcmp(at, "checkpoint.file") ? 6 : 2);
}

static bool row_17(job *j) { /* while publishing */
    return learner_dies_at(
        j, PICK(j, "publish.begin", "publish.chunk", "publish.announce", "publish.announced"),
        "kill", 10);
}

static bool row_19(job *j) { /* a second learner by mistake */
    char out[4096];
    int64_t ends = j->learner.n_ends, steps = job_steps(j);
    j->variant = "same run";
    int code = job_run(j, "learner --config job.yaml run.resume=true", out, sizeof out);
    if (code != 69) return refuse(j, "it ended with %d, wanted 69: %.300s", code, out);
    if (!strstr(out, "in use by another learner")) return refuse(j, "it said: %.300s", out);
    return (j->learner.n_ends == ends || refuse(j, "the first one ended")) &&
           (job_steps(j) > steps || await_steps(j, 1, j->hang_ms));
}

/* --- Links ------------------------------------------------------------------------------------ */

static bool row_20(job *j) {            /* a partition, all actors */
    int64_t ms = 10 * JOB_HEARTBEAT_MS; /* the table's 10 s */
    j->variant = "all";
    proxy_tell(j, "* both both stall %lld", (long long)ms);
    job_pass(j, ms);
    return await_steps(j, 1, j->hang_ms);
}

static bool row_21(job *j) { /* longer than the lease, one actor */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner), ms = 2000 + job_draw(j, 2000);
    j->variant = a->name;
    proxy_tell(j, "%d both both stall %lld", lane_of(j, a), (long long)ms);
    if (!await_gone(j, mark, a->name, JOB_DETECT_MS)) return false;
    mark = process_mark(&j->learner); /* on a slow host the stall may be over before the rest is */
    if (!await_steps(j, 3, j->hang_ms)) return false; /* leased again, done by others */
    job_pass(j, ms / 2);
    proxy_tell(j, "%d both both stall 0", lane_of(j, a));
    return await_joined(j, mark, a->name, j->hang_ms);
}

/* Both ends notice. */
static bool noticed(job *j, job_process *a, int64_t learner_mark, int64_t actor_mark) {
    return await_gone(j, learner_mark, a->name, JOB_DETECT_MS) &&
           await_text(j, a, actor_mark, JOB_DETECT_MS, "link to the learner lost");
}

static bool row_22(job *j) { /* half-open */
    job_process *a = any_actor(j);
    int64_t at_learner = process_mark(&j->learner), at_actor = process_mark(a);
    const char *plane = PICK(j, "control", "both");
    proxy_tell(j, "%d %s both half-open", lane_of(j, a), plane);
    return noticed(j, a, at_learner, at_actor);
}

static bool row_23(job *j) { /* one-way loss */
    job_process *a = any_actor(j);
    int64_t at_learner = process_mark(&j->learner), at_actor = process_mark(a);
    const char *way = PICK(j, "up", "down");
    proxy_tell(j, "%d both %s stall 4000", lane_of(j, a), way);
    return noticed(j, a, at_learner, at_actor);
}

static bool row_25(job *j) { /* a link slower than the swaps */
    job_process *a = any_actor(j);
    int64_t rate = 4000 + job_draw(j, 16000); /* a dense version is 40 kB, a step 50 ms */
    char text[64];
    j->variant = "weights";
    snprintf(text, sizeof text, "%lld B/s", (long long)rate);
    int64_t rss = process_rss_kib(&j->learner);
    proxy_tell(j, "%d weights down rate %lld 4000", lane_of(j, a), (long long)rate);
    /* async:k skips no version, and so goes at the pace of its slowest actor. */
    bool good =
        (j->strict || await_acks(j, a, 2, 4000)) && (j->number % 4 == 3 || await_steps(j, 3, 4000));
    job_pass(j, 1500);
    return good && (process_rss_kib(&j->learner) - rss < RSS_GROWTH_KIB ||
                    refuse(j, "the learner grew from %lld to %lld KiB at %s", (long long)rss,
                           (long long)process_rss_kib(&j->learner), text));
}

static bool row_26(job *j) { /* a bit flips */
    char plane[16], way[16], did[32];
    int lane = (int)job_draw(j, JOB_ACTORS);
    char log[JOB_PATH_MAX + 32];
    snprintf(plane, sizeof plane, "%s", PICK(j, "control", "weights"));
    snprintf(way, sizeof way, "%s", PICK(j, "up", "down"));
    static const char *const names[] = {"control up", "control down", "weights up", "weights down"};
    j->variant = names[(plane[0] == 'w') * 2 + (way[0] == 'd')];
    snprintf(log, sizeof log, "%s/proxy.jsonl", j->folder);
    struct stat before;
    if (stat(log, &before) != 0) return refuse(j, "the proxy has no log");
    proxy_tell(j, "%d %s %s flip %lld", lane, plane, way, (long long)job_draw(j, 600));
    snprintf(did, sizeof did, "\"did\":\"flip\"");
    job_process proxy = {.name = "proxy"};
    snprintf(proxy.log, sizeof proxy.log, "%.1000s", log);
    if (!await_text(j, &proxy, before.st_size, 4000, did)) return false;
    job_pass(j, 300);
    return true; /* that nothing of it was taken, the books and the replay say; job_recover the rest
                  */
}

static bool row_27(job *j) { /* truncated, oversized, empty frames */
    static char variant[32];
    int64_t rss = process_rss_kib(&j->learner);
    int n = (int)job_draw(j, ODD_FRAMES + 2);
    if (n >= ODD_FRAMES) { /* in the middle of what an actor is saying */
        job_process *a = any_actor(j);
        proxy_tell(j, "%d %s %s truncate %lld", lane_of(j, a),
                   n == ODD_FRAMES ? "control" : "weights", PICK(j, "up", "down"),
                   (long long)(1 + job_draw(j, 700)));
        job_pass(j, 500);
        j->variant = "truncated stream";
        return true;
    }
    snprintf(variant, sizeof variant, "frames %d", n);
    j->variant = variant;
    if (!odd_frames(&j->facts, n, j->seed + (uint64_t)job_draw(j, 1 << 30), j->why)) return false;
    int64_t grown = process_rss_kib(&j->learner) - rss;
    return grown < RSS_GROWTH_KIB || refuse(j, "the learner grew by %lld KiB", (long long)grown);
}

static bool row_29(job *j) { /* replays */
    static const char *const which[] = {"old session", "number again", "other run", "copied stream",
                                        "ended stream"};
    int n = (int)job_draw(j, 5), lane = (int)job_draw(j, JOB_ACTORS);
    j->variant = which[n];
    if (n < 3) return odd_replay(&j->facts, n, j->why);
    if (n == 4) proxy_tell(j, "%d both both cut", lane);
    if (n == 4) job_pass(j, 700);
    proxy_tell(j, "%d both up %s", lane, n == 3 ? "duplicate" : "replay");
    job_pass(j, 500);
    return true;
}

static bool row_30(job *j) { /* strangers */
    static const char *const which[] = {"port scan", "HTTP", "random bytes", "half a greeting",
                                        "ZeroMQ, no actor"};
    int n = (int)job_draw(j, ODD_STRANGERS);
    int64_t rss = process_rss_kib(&j->learner), mark = process_mark(&j->learner);
    j->variant = which[n];
    if (!odd_stranger(&j->facts, n, j->seed + (uint64_t)job_draw(j, 1 << 30), j->why)) return false;
    if (process_said(&j->learner, mark, " joined")) return refuse(j, "a stranger joined");
    int64_t grown = process_rss_kib(&j->learner) - rss;
    return grown < RSS_GROWTH_KIB || refuse(j, "the learner grew by %lld KiB", (long long)grown);
}

static bool row_31(job *j) {
    static const char *const which[] = {"NaN", "above 0", "unpublished version", "infinite"};
    int n = (int)job_draw(j, 4);
    j->variant = which[n];
    return odd_liar(&j->facts, n, j->why);
}

/* --- Speeds, disks, clocks -------------------------------------------------------------------- */

static bool row_33(job *j) { /* a slow actor */
    job_process *a = any_actor(j);
    int64_t mark = process_mark(&j->learner);
    j->variant = a->name;
    process_arm(j, a, "actor.step=sleep(10)@1+");
    if (!await_steps(j, 5, j->hang_ms)) return false;
    for (int i = 0; i < JOB_ACTORS; i++)
        if (learner_said_of(j, mark, j->actors[i].name, "is gone"))
            return refuse(j, "%s was given up", j->actors[i].name);
    return true;
}

static bool row_34(job *j) { /* a slow learner */
    int64_t rss = process_rss_kib(&j->learner);
    j->variant = "step";
    process_arm(j, &j->learner, "step.gradients=sleep(700)@1+");
    if (!await_steps(j, 4, j->hang_ms)) return false;
    int64_t grown = process_rss_kib(&j->learner) - rss;
    return grown < RSS_GROWTH_KIB || refuse(j, "the learner grew by %lld KiB", (long long)grown);
}

static int64_t acks_of_all(const job *j) {
    int64_t n = 0;
    for (int i = 0; i < JOB_ACTORS; i++)
        n += actor_acks(j, &j->actors[i]);
    return n;
}

static bool row_35(job *j) { /* the disk is full */
    int64_t mark = process_mark(&j->learner), ends = j->learner.n_ends;
    if (!strcmp(PICK(j, "log", "log", "checkpoint"), "checkpoint")) {
        process_arm(j, &j->learner, "checkpoint.begin=error(ENOSPC)@1+");
        if (!await_text(j, &j->learner, mark, FIRE_MS, "no checkpoint of step")) return false;
        return await_steps(j, 4, j->hang_ms) &&
               (j->learner.n_ends == ends || refuse(j, "the learner ended"));
    }
    process_arm(j, &j->learner,
                "log.write=error(ENOSPC)@1+;metrics.write=error(ENOSPC)@1+;"
                "checkpoint.begin=error(ENOSPC)@1+");
    if (!await_text(j, &j->learner, mark, FIRE_MS, "nothing is acknowledged and nothing is leased"))
        return false;
    job_pass(j, 300); /* what was on its way when it began */
    int64_t acks = acks_of_all(j), steps = job_steps(j);
    job_pass(j, 300 + job_draw(j, 1500));
    if (acks_of_all(j) != acks)
        return refuse(j, "%lld answers acknowledged with a full disk",
                      (long long)(acks_of_all(j) - acks));
    if (job_steps(j) > steps + 1) return refuse(j, "steps went on with a full disk");
    process_arm(j, &j->learner, "");
    return await_text(j, &j->learner, mark, 3000, "there is room for the log again") &&
           await_steps(j, 2, j->hang_ms) &&
           (j->learner.n_ends == ends || refuse(j, "the learner ended"));
}

static bool row_36(job *j) { /* a sync fails */
    job_process *l = &j->learner;
    int64_t ends = l->n_ends, mark = process_mark(l);
    char text[64];
    const char *at = PICK(j, "log.sync", "log.sync", "log.write", "checkpoint.begin");
    snprintf(text, sizeof text, "%s=error(EIO)@%lld", at,
             (long long)(1 + job_draw(j, at[0] == 'c' ? 2 : 30)));
    l->may_end = true;
    for (int i = 0; i < JOB_ACTORS; i++)
        j->actors[i].may_end = true; /* told that this learner has ended */
    process_arm(j, l, text);
    if (!await_end(j, l, ends, 2 * FIRE_MS)) return false;
    process_arm(j, l, "");
    return ended_with(j, l, 74) && await_text(j, l, mark, START_FROM_MS, "resumed from step");
}

static int step_descending(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x < y) - (x > y);
}

/* Steps of the checkpoints, the newest first. */
static int checkpoints_list(const job *j, long *steps, int max) {
    char path[JOB_PATH_MAX + 128];
    int n = 0;
    snprintf(path, sizeof path, "%s/runs/job/checkpoints", j->folder);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && n < max && (e = readdir(dir));) {
        char *end;
        if (strncmp(e->d_name, "step_", 5) != 0) continue;
        steps[n] = strtol(e->d_name + 5, &end, 10);
        n += *end == '\0';
    }
    if (dir) closedir(dir);
    qsort(steps, (size_t)n, sizeof *steps, step_descending);
    return n;
}

static bool has_checkpoints(job *j, void *context) {
    long steps[64];
    (void)context;
    return checkpoints_list(j, steps, 64) >= 3;
}

static bool checkpoint_rots(job *j) {
    static const char *const files[] = {"masters.f32", "moment2.f32",     "state.json",
                                        "model.json",  "checkpoint.json", "COMPLETE"};
    job_process *l = &j->learner;
    char path[JOB_PATH_MAX + 128];
    long steps[64];
    int n = 0;
    int64_t ends = l->n_ends, mark;
    if (!job_await(j, j->hang_ms, has_checkpoints, NULL)) return refuse(j, "no three checkpoints");
    l->may_end = true;
    l->wanted = false;
    process_kill(j, l, SIGKILL);
    if (!await_end(j, l, ends, 2000)) return false;
    n = checkpoints_list(j, steps, 64);
    l->wanted = true;
    if (n < 2) return refuse(j, "%d checkpoints, wanted two", n);
    const char *file = files[job_draw(j, 6)];
    bool torn = job_draw(j, 3) == 0;
    snprintf(path, sizeof path, "%s/runs/job/checkpoints/step_%ld/%s", j->folder, steps[0], file);
    j->variant = torn ? "torn checkpoint" : "rotten checkpoint";
    struct stat s;
    if (stat(path, &s) != 0 || s.st_size < 8) return refuse(j, "%s: no such file", path);
    if (torn) {
        if (truncate(path, job_draw(j, s.st_size - 1)) != 0) return refuse(j, "%s: truncate", path);
    } else {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        uint8_t byte = 0;
        /* The marker's last byte is a line's end, which says nothing. */
        off_t at = (off_t)job_draw(j, s.st_size - 1);
        bool done = fd >= 0 && pread(fd, &byte, 1, at) == 1;
        byte ^= (uint8_t)(1 << job_draw(j, 7));
        done = done && pwrite(fd, &byte, 1, at) == 1;
        if (fd >= 0) close(fd);
        if (!done) return refuse(j, "%s: cannot change it", path);
    }
    char refused[64], resumed[64];
    mark = process_mark(l);
    snprintf(refused, sizeof refused, "checkpoint of step %ld is refused: ", steps[0]);
    snprintf(resumed, sizeof resumed, "resumed from step %ld", steps[1]);
    bool marker = !strcmp(file, "COMPLETE");
    if (!await_text(j, l, mark, START_FROM_MS, resumed)) return false;
    snprintf(path, sizeof path, "step_%ld/%s", steps[0], marker ? "" : file);
    if (!process_said(l, mark, refused))
        return refuse(j, "the checkpoint of step %ld (%s) was not refused by name", steps[0], file);
    return marker || process_said(l, mark, path) || refuse(j, "the refusal does not name %s", path);
}

static bool log_rots(job *j) {
    char path[JOB_PATH_MAX + 128], out[8192], best[JOB_PATH_MAX + 128] = "";
    struct stat s;
    j->variant = "rotten log";
    int64_t size = 0;
    for (int i = 1; i < 1000; i++) {
        snprintf(path, sizeof path, "%s/runs/job/rollouts/%06d.ifl", j->folder, i);
        if (stat(path, &s) != 0) break;
        if (s.st_size > 8192 && (size == 0 || job_draw(j, 2))) {
            snprintf(best, sizeof best, "%s", path);
            size = s.st_size;
        }
    }
    if (!size) return refuse(j, "no segment is long enough");
    int fd = open(best, O_RDWR | O_CLOEXEC);
    off_t at = (off_t)job_draw(j, size / 2);
    uint8_t byte = 0, wrong;
    if (fd < 0 || pread(fd, &byte, 1, at) != 1) return refuse(j, "%s: cannot read", best);
    wrong = (uint8_t)(byte ^ 1 << job_draw(j, 8));
    bool changed = pwrite(fd, &wrong, 1, at) == 1;
    int code = job_run(j, "rollouts runs/job --check", out, sizeof out);
    changed = pwrite(fd, &byte, 1, at) == 1 && changed;
    close(fd);
    const char *name = strrchr(best, '/') + 1;
    if (!changed) return refuse(j, "%s: cannot change it", best);
    return (code == 65 && strstr(out, name) && strstr(out, "offset")) ||
           refuse(j, "a flipped bit at %lld of %s: status %d, %.250s", (long long)at, name, code,
                  out);
}

static bool row_37(job *j) {
    return job_draw(j, 3) == 0 ? log_rots(j) : checkpoint_rots(j);
}

static bool row_38(job *j) { /* the wall clock jumps */
    int64_t marks = process_mark(&j->learner), ends = j->learner.n_ends;
    bool on = !strcmp(PICK(j, "an hour on", "an hour back"), "an hour on");
    const char *text = on ? "clock.wall=jump(3600000)" : "clock.wall=jump(-3600000)";
    process_arm(j, &j->learner, text);
    for (int i = 0; i < JOB_ACTORS; i++)
        process_arm(j, &j->actors[i], text);
    if (!await_text(j, &j->learner, marks, FIRE_MS, "fail point clock.wall")) return false;
    if (!await_steps(j, 5, j->hang_ms)) return false;
    for (int i = 0; i < JOB_ACTORS; i++)
        if (learner_said_of(j, marks, j->actors[i].name, "is gone"))
            return refuse(j, "%s was given up", j->actors[i].name);
    return j->learner.n_ends == ends || refuse(j, "the learner ended");
}

const fault_row fault_rows[] = {
    {1, "actor killed while generating", false, row_1},
    {2, "actor killed between send and ack", false, row_2},
    {3, "actor stopped, short and long", false, row_3},
    {4, "actor preempted (SIGTERM)", false, row_4},
    {5, "actor killed while staging", false, row_5},
    {6, "device error on an actor", false, row_6},
    {7, "actor of another model or build", false, row_7},
    {8, "actor of another protocol", false, row_8},
    {9, "100 actors join at once", false, row_9},
    {10, "actor joins in mid swap", false, row_10},
    {11, "two actors of one name", false, row_11},
    {12, "learner killed while idle", true, row_12},
    {13, "learner killed before fsync", false, row_13},
    {14, "learner killed before ack", false, row_14},
    {15, "learner killed in the step", false, row_15},
    {16, "learner killed in a checkpoint", false, row_16},
    {17, "learner killed while publishing", false, row_17},
    {19, "second learner by mistake", false, row_19},
    {20, "partition", true, row_20},
    {21, "partition longer than the lease", false, row_21},
    {22, "half-open TCP", false, row_22},
    {23, "one-way loss", false, row_23},
    {25, "slow link", false, row_25},
    {26, "bit flips", false, row_26},
    {27, "malformed frames", false, row_27},
    {29, "replayed frames", false, row_29},
    {30, "strangers and port scans", false, row_30},
    {31, "actor lies", false, row_31},
    {33, "slow actor", false, row_33},
    {34, "slow learner", true, row_34},
    {35, "disk full", true, row_35},
    {36, "fsync fails", false, row_36},
    {37, "torn or rotten files", false, row_37},
    {38, "clock jumps", false, row_38},
};
const int n_fault_rows = (int)(sizeof fault_rows / sizeof *fault_rows);

/* Rows 12 to 19 and 34 to 38: the learner, its disk, its clock. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/faults/rows_internal.h"

/* --- Learner ---------------------------------------------------------------------------------- */

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

/* What actors had sent and no answer had come for when the learner died. */
typedef struct resent {
    key_set keys[JOB_ACTORS];
    pid_t pids[JOB_ACTORS];
} resent;

/* The learner dies, goes on from its newest whole checkpoint, and all actors come back to it; what
 * they had sent and nobody had acknowledged they send again, and it is answered. */
static bool learner_dies_at(job *j, const char *point, const char *act, int64_t range) {
    int64_t mark = process_mark(&j->learner);
    char text[64];
    long steps[64];
    resent r;
    if (!dies_at(j, &j->learner, point, act, range)) return false;
    for (int i = 0; i < JOB_ACTORS; i++) {
        r.pids[i] = j->actors[i].pid;
        keys_unanswered(j, &j->actors[i], r.pids[i], 0, &r.keys[i]);
    }
    if (checkpoints_list(j, steps, 64) < 1) return refuse(j, "no checkpoint is there");
    snprintf(text, sizeof text, "resumed from step %ld\n", steps[0]);
    if (!await_text(j, &j->learner, mark, START_FROM_MS, text)) return false;
    for (int i = 0; i < JOB_ACTORS; i++)
        if (j->actors[i].pid == r.pids[i] &&
            (!await_joined(j, mark, j->actors[i].name, j->hang_ms) ||
             !await_answered(j, &j->actors[i], &r.keys[i], j->hang_ms)))
            return false;
    return true;
}

bool row_12(job *j) { /* SIGKILL while it waits */
    j->variant = "desk.wait";
    proxy_tell(j, "* both up stall 3000"); /* nothing comes in any more */
    job_pass(j, 100);
    int64_t mark = process_mark(&j->learner), ends = j->learner.n_ends;
    j->learner.may_end = true;
    process_arm(j, &j->learner, "desk.wait=kill@3");
    if (!await_end(j, &j->learner, ends, FIRE_MS)) return not_played(j, "it never waited");
    proxy_tell(j, "* both up stall 0");
    if (!ended_by_signal(j, &j->learner, SIGKILL) ||
        !await_text(j, &j->learner, mark, START_FROM_MS, "resumed from step"))
        return false;
    for (int i = 0; i < JOB_ACTORS; i++)
        if (!await_joined(j, mark, j->actors[i].name, j->hang_ms)) return false;
    return true;
}

bool row_13(job *j) { /* between write and sync */
    const char *how = PICK(j, "log.append", "log.sync", "tear");
    if (strcmp(how, "tear") != 0) return learner_dies_at(j, how, "kill", 40);
    if (!learner_dies_at(j, "log.write", "tear", 40)) return false;
    j->n_torn++; /* the reader must have cut that many tails off when the job is over */
    return true;
}

bool row_14(job *j) { /* between sync and acknowledgement */
    j->variant = "log.synced";
    return learner_dies_at(j, "log.synced", "kill", 40);
}

bool row_15(
    job *j) { /* in the step; that it has the same bits again, the archives say at the end */
    return learner_dies_at(j, PICK(j, "step.gradients", "step.updated", "step.close"), "kill", 12);
}

/* Folders of checkpoints that were not finished; removes nothing. */
static int temporary_list(const job *j, char names[][64], int max) {
    char path[JOB_PATH_MAX + 128];
    int n = 0;
    snprintf(path, sizeof path, "%s/runs/job/checkpoints", j->folder);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && n < max && (e = readdir(dir));)
        if (strstr(e->d_name, ".tmp")) snprintf(names[n++], 64, "%.63s", e->d_name);
    if (dir) closedir(dir);
    return n;
}

typedef struct left_over {
    char names[16][64];
    int n;
} left_over;

static bool are_gone(job *j, void *context) {
    const left_over *l = context;
    char now[16][64];
    int n = temporary_list(j, now, 16);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < l->n; k++)
            if (!strcmp(now[i], l->names[k])) return false;
    return true;
}

bool row_16(job *j) { /* while a checkpoint is written */
    const char *at =
        PICK(j, "checkpoint.begin", "checkpoint.file", "checkpoint.index", "checkpoint.reveal",
             "checkpoint.done", "file.sync", "file.rename", "tear");
    bool file = !strncmp(at, "file", 4) || !strcmp(at, "checkpoint.file");
    bool good = !strcmp(at, "tear") ? learner_dies_at(j, "file.write", "tear", 6)
                                    : learner_dies_at(j, at, "kill", file ? 6 : 2);
    if (!good) return false;
    /* What the dead one left goes with the next checkpoint. */
    left_over l;
    l.n = temporary_list(j, l.names, 16);
    return job_await(j, j->hang_ms, are_gone, &l) ||
           refuse(j, "%s is still in checkpoints/", l.names[0]);
}

bool row_17(
    job *j) { /* while publishing; the archives and the replay say at the end what was seen */
    return learner_dies_at(
        j, PICK(j, "publish.begin", "publish.chunk", "publish.announce", "publish.announced"),
        "kill", 10);
}

bool row_19(job *j) { /* a second learner by mistake */
    char out[4096];
    int64_t ends = j->learner.n_ends, steps = job_steps(j);
    j->variant = "same run";
    int code = job_run(j, "learner --config job.yaml run.resume=true", out, sizeof out);
    if (code != 69) return refuse(j, "it ended with %d, wanted 69: %.300s", code, out);
    if (!strstr(out, "in use by another learner")) return refuse(j, "it said: %.300s", out);
    return (j->learner.n_ends == ends || refuse(j, "the first one ended")) &&
           (job_steps(j) > steps || await_steps(j, 1, j->hang_ms));
}

/* --- Speeds, disks, clocks -------------------------------------------------------------------- */

/* Leases that the learner has given out. */
static int64_t leases_of(const job *j) {
    records r = records_of(j, &j->learner, j->learner.pid);
    int64_t n = 0;
    for (int64_t i = 0; i < r.n; i++)
        n += r.all[i].purpose == 0 && !strcmp(r.all[i].what, "leased");
    records_free(&r);
    return n;
}

bool row_34(job *j) { /* a slow learner */
    int64_t rss = process_rss_kib(&j->learner), mark = process_mark(&j->learner);
    j->variant = "step";
    process_arm(j, &j->learner, "step.gradients=sleep(700)@1+");
    if (!await_fired(j, &j->learner, mark, "step.gradients")) return false;
    int64_t leases = leases_of(j), steps = job_steps(j);
    if (!await_steps(j, 4, j->hang_ms)) return false;
    /* It gives out what its steps take and what may wait (12 groups and those of a step), no more,
     * however fast the actors are; and drops nothing. */
    int64_t given = leases_of(j) - leases, most = (job_steps(j) - steps + 1) * 12 + (12 + 3) * 4;
    if (given > most)
        return refuse(j, "%lld leases in %lld slow steps, wanted %lld at most", (long long)given,
                      (long long)(job_steps(j) - steps), (long long)most);
    double dropped = metric(j, "staleness/dropped");
    if (dropped > 0.0) return refuse(j, "%.0f answers were dropped", dropped);
    return all_stayed(j, mark) && grew_little(j, rss);
}

static int64_t acks_of_all(const job *j) {
    int64_t n = 0;
    for (int i = 0; i < JOB_ACTORS; i++)
        n += actor_acks(j, &j->actors[i]);
    return n;
}

bool row_35(job *j) { /* the disk is full */
    int64_t mark = process_mark(&j->learner), ends = j->learner.n_ends;
    if (!strcmp(PICK(j, "log", "log", "checkpoint"), "checkpoint")) {
        process_arm(j, &j->learner, "checkpoint.begin=error(ENOSPC)@1+");
        if (!await_fired(j, &j->learner, mark, "checkpoint.begin") ||
            !await_text(j, &j->learner, mark, FIRE_MS, "no checkpoint of step"))
            return false;
        return await_steps(j, 4, j->hang_ms) &&
               (j->learner.n_ends == ends || refuse(j, "the learner ended"));
    }
    process_arm(j, &j->learner,
                "log.write=error(ENOSPC)@1+;metrics.write=error(ENOSPC)@1+;"
                "checkpoint.begin=error(ENOSPC)@1+");
    if (!await_fired(j, &j->learner, mark, "log.write") ||
        !await_text(j, &j->learner, mark, FIRE_MS, "nothing is acknowledged and nothing is leased"))
        return false;
    job_pass(j, 300); /* what was on its way when it began */
    int64_t acks = acks_of_all(j), steps = job_steps(j), leases = leases_of(j);
    job_pass(j, 300 + job_draw(j, 1500));
    if (leases_of(j) != leases)
        return refuse(j, "%lld leases given out with a full disk",
                      (long long)(leases_of(j) - leases));
    if (acks_of_all(j) != acks)
        return refuse(j, "%lld answers acknowledged with a full disk",
                      (long long)(acks_of_all(j) - acks));
    if (job_steps(j) > steps + 1) return refuse(j, "steps went on with a full disk");
    process_arm(j, &j->learner, "");
    return await_text(j, &j->learner, mark, 3000, "there is room for the log again") &&
           await_steps(j, 2, j->hang_ms) &&
           (j->learner.n_ends == ends || refuse(j, "the learner ended"));
}

bool row_36(job *j) { /* a sync fails */
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
    if (!await_end(j, l, ends, 2 * FIRE_MS)) return not_played(j, "%s was not passed so often", at);
    process_arm(j, l, "");
    if (!process_said(l, mark, "Input/output error") && !process_said(l, mark, "has failed before"))
        return refuse(j, "the learner ended, and not for the disk's error");
    return ended_with(j, l, 74) && await_text(j, l, mark, START_FROM_MS, "resumed from step");
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

bool row_37(job *j) {
    return job_draw(j, 3) == 0 ? log_rots(j) : checkpoint_rots(j);
}

bool row_38(job *j) { /* the wall clock jumps */
    int64_t mark = process_mark(&j->learner), ends = j->learner.n_ends, own[JOB_ACTORS];
    bool on = !strcmp(PICK(j, "an hour on", "an hour back"), "an hour on");
    const char *text = on ? "clock.wall=jump(3600000)" : "clock.wall=jump(-3600000)";
    process_arm(j, &j->learner, text);
    for (int i = 0; i < JOB_ACTORS; i++) {
        own[i] = process_mark(&j->actors[i]);
        process_arm(j, &j->actors[i], text);
    }
    if (!await_fired(j, &j->learner, mark, "clock.wall")) return false;
    for (int i = 0; i < JOB_ACTORS; i++)
        if (!await_fired(j, &j->actors[i], own[i], "clock.wall")) return false;
    return await_steps(j, 5, j->hang_ms) && all_stayed(j, mark) &&
           (j->learner.n_ends == ends || refuse(j, "the learner ended"));
}

/* Plays seeded faults on living jobs, and balances the books of each afterwards.
 *
 *     run_faults --inflight BINARY --proxy BINARY [--seed S] [--count N] [--jobs J] [--per-job K]
 *                [--minutes M] [--out FOLDER] [--row R] [--only JOB] [--hang-ms T] [--keys 0|1]
 *
 * The N faults are the rows of the table (rows.c) in rounds, each round in an order of its own; K
 * after each other in one job, J jobs side by side. A job ends in order; then its books, the
 * checker's own and a replay of its trajectories must hold. A hang is no step trained for T ms
 * (2,000: 10 s of the table's time), or no recovery for so long after the fault has been lifted.
 * Two jobs in five have links with keys; --keys says it for all. A fault that did not take place (a
 * place that was not passed, a link without traffic) is tried again, twice; then it counts as not
 * played, which is neither held nor violated.
 * Same seed, same faults: --only runs one job of a former run again. Status 0: no violation; 65:
 * some; 75: not all faults were played, or the minutes were over before. */
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/faults/books.h"
#include "tests/faults/rows.h"

#define ROWS_MAX 64
#define JOBS_MAX 32
#define REPLAYED 100
#define ATTEMPTS 8                      /* at a fault, until it has taken place */
#define HANG_MS (10 * JOB_HEARTBEAT_MS) /* the table's 10 s, at a heartbeat of 1 s */
#define DEAD_MS 10000                   /* a job that has not recovered after so long is given up */

typedef struct options {
    const char *binary, *proxy, *out;
    long long seed, count, jobs, per_job, minutes, row, only, hang_ms, keys;
} options;

/* What a job's process writes as its last line, and what they add up to. */
typedef struct tally {
    int64_t injected[ROWS_MAX], required[ROWS_MAX], hangs[ROWS_MAX], not_played[ROWS_MAX];
    int64_t lost, stored_twice, trained_twice, wrong_policy, other; /* of whole jobs */
    int64_t jobs, jobs_failed, leased, stored, trained, acked, multi_version, replayed,
        not_replayable, processes;
    int64_t recover_max_us, recover_sum_us;
    int64_t republished, torn_writes;
    int64_t crowds, crowd_before_us, crowd_during_us; /* medians of steps, summed */
    int64_t pause_max_us[ROWS_MAX];                   /* longest time without a step */
} tally;

/* Row (index) of fault n. */
static int row_of_fault(const options *o, int64_t n) {
    if (o->row > 0)
        for (int i = 0; i < n_fault_rows; i++)
            if (fault_rows[i].row == o->row) return i;
    return (int)ifl_rng_permute((uint64_t)o->seed, (uint64_t)(n / n_fault_rows),
                                (uint64_t)n_fault_rows, (uint64_t)(n % n_fault_rows));
}

static void json_text(FILE *f, const char *text) {
    for (const char *c = text; *c; c++)
        fputc(*c == '"' || *c == '\\' ? '\'' : (unsigned char)*c < 0x20 ? ' ' : *c, f);
}

/* --- One job, in a process of its own --------------------------------------------------------- */

static int64_t number_before(const char *text, const char *word) {
    const char *at = strstr(text, word);
    if (!at) return -1;
    while (at > text && at[-1] == ' ')
        at--;
    while (at > text && at[-1] >= '0' && at[-1] <= '9')
        at--;
    return strtoll(at, NULL, 10);
}

static bool leftovers(const job *j) {
    char path[JOB_PATH_MAX + 64];
    bool any = false;
    snprintf(path, sizeof path, "%s/runs/job/checkpoints", j->folder);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));)
        any |= strstr(e->d_name, ".tmp") != NULL;
    if (dir) closedir(dir);
    return any;
}

static void complain(FILE *f, tally *t, int64_t *count, const char *what, const char *text) {
    ++*count;
    (void)t;
    fprintf(f, "{\"violation\":\"%s\",\"why\":\"", what);
    json_text(f, text);
    fprintf(f, "\"}\n");
    fprintf(stderr, "  VIOLATION %s: %.400s\n", what, text);
}

/* The three proofs over a job that has ended. */
static void job_prove(job *j, FILE *f, tally *t) {
    char path[JOB_PATH_MAX + 64], record[JOB_PATH_MAX + 64], versions[JOB_PATH_MAX + 64];
    char out[65536], arguments[128];
    job_books b;
    ifl_error err = {0};
    snprintf(path, sizeof path, "%s/runs/job/rollouts", j->folder);
    snprintf(record, sizeof record, "%s/record", j->folder);
    snprintf(versions, sizeof versions, "%s/runs/job/versions", j->folder);
    if (job_books_read(&b, path, record, versions, &err) != IFL_OK) {
        complain(f, t, &t->other, "books", err.text);
        return;
    }
    t->lost += b.lost + b.trained_unstored;
    t->stored_twice += b.stored_twice;
    t->trained_twice += b.trained_twice;
    t->wrong_policy += b.wrong_version + b.other_weights;
    t->republished += b.republished;
    t->other += b.not_leased;
    t->leased += b.leased;
    t->stored += b.stored;
    t->trained += b.trained;
    t->acked += b.acked;
    t->multi_version += b.multi_version;
    t->processes += b.processes;
    if (b.first[0]) {
        int64_t counted = 0;
        complain(f, t, &counted, "books", b.first);
    }
    if (job_run(j, "rollouts runs/job --check", out, sizeof out) != 0)
        complain(f, t, &t->other, "rollouts --check", out);
    snprintf(arguments, sizeof arguments, "replay runs/job --random %d --seed %lld", REPLAYED,
             (long long)(j->seed % 1000000));
    int code = job_run(j, arguments, out, sizeof out);
    int64_t differ = number_before(out, " differ in token"),
            gone = number_before(out, " trajectories not replayable");
    if (code != 0 || differ != 0) {
        if (differ > 0) t->wrong_policy += differ;
        int64_t counted = 0;
        complain(f, t, differ > 0 ? &counted : &t->other, "replay", out);
    }
    t->replayed += REPLAYED - (gone > 0 ? gone : 0);
    t->not_replayable += gone > 0 ? gone : 0;
    t->torn_writes += j->n_torn;
    if (j->n_torn > 0 && b.torn_bytes == 0)
        complain(f, t, &t->other, "books", "writes were torn, and no segment has a torn end");
    if (leftovers(j))
        complain(f, t, &t->other, "leftovers", "a temporary folder is left in checkpoints/");
}

static void tally_write(FILE *f, const tally *t) {
    fprintf(f, "{\"tally\":[");
    const int64_t *words = (const int64_t *)(const void *)t;
    for (size_t i = 0; i < sizeof *t / sizeof *words; i++)
        fprintf(f, "%s%lld", i ? "," : "", (long long)words[i]);
    fprintf(f, "]}\n");
}

/* Plays fault n and lifts it again. False: it has not taken place, and is to be tried again. */
static bool fault_play(const options *o, job *j, tally *t, FILE *f, int64_t n, bool last,
                       bool *alive) {
    int at = row_of_fault(o, n);
    const fault_row *row = &fault_rows[at];
    double took_s = 0.0;
    char why[JOB_TEXT_MAX];
    int64_t begin = ifl_clock_ns();
    job_steps(j);
    j->stepped_ns = begin;
    j->pause_ns = j->crowd_before_us = 0;
    j->variant = "";
    j->not_played = false;
    j->why[0] = j->unexpected[0] = '\0';
    bool good = row->play(j);
    double played_s = (double)(ifl_clock_ns() - begin) * 1e-9;
    snprintf(why, sizeof why, "%s", j->why);
    *alive = job_recover(j, &took_s);
    if (good && j->unexpected[0]) snprintf(why, sizeof why, "%.500s", j->unexpected);
    good = good && !j->unexpected[0];
    /* Even so the job must be well afterwards, and nothing have ended without a reason. */
    bool played = !j->not_played || j->unexpected[0] || !*alive;
    int64_t pause_us = j->pause_ns / 1000, limit_us = o->hang_ms * 1000;
    bool hangs =
        !*alive || took_s * 1e6 > (double)limit_us || (!row->stands && pause_us > limit_us);
    t->injected[at] += played;
    t->not_played[at] += !played && last;
    t->required[at] += good && *alive && played;
    t->hangs[at] += hangs;
    if (pause_us > t->pause_max_us[at]) t->pause_max_us[at] = pause_us;
    int64_t took_us = (int64_t)(took_s * 1e6);
    t->recover_sum_us += took_us;
    if (took_us > t->recover_max_us) t->recover_max_us = took_us;
    if (j->crowd_before_us > 0) {
        t->crowds++;
        t->crowd_before_us += j->crowd_before_us;
        t->crowd_during_us += j->crowd_during_us;
    }
    fprintf(f,
            "{\"fault\":%lld,\"row\":%d,\"variant\":\"%s\",\"played\":%s,\"as_required\":%s,"
            "\"hang\":%s,\"played_s\":%.2f,\"recovered_s\":%.2f,\"pause_s\":%.2f,\"why\":\"",
            (long long)n, row->row, j->variant, played ? "true" : "false", good ? "true" : "false",
            hangs ? "true" : "false", played_s, took_s, (double)pause_us * 1e-6);
    json_text(f, *alive ? why : j->why);
    fprintf(f, "\"}\n");
    if (!good || hangs)
        fprintf(stderr, "  fault %lld, row %d (%s; %s), job %d%s: %.300s\n", (long long)n, row->row,
                row->fault, j->variant, j->number, played ? "" : ", not played",
                !*alive ? j->why
                : !good ? why
                        : "a hang: see pause_s and recovered_s in faults.jsonl");
    return played;
}

static int entry_remove(const char *path, const struct stat *s, int kind, struct FTW *walk) {
    (void)s, (void)kind, (void)walk;
    return remove(path);
}

static bool folder_remove(const job *j, const char *name) {
    char path[JOB_PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", j->folder, name);
    return nftw(path, entry_remove, 16, FTW_DEPTH | FTW_PHYS) == 0;
}

/* The process of one job. */
static int job_main(const options *o, int number, int slot, int64_t deadline_ns) {
    static job j;
    static tally t;
    char path[JOB_PATH_MAX + 64];
    j = (job){.binary = o->binary,
              .proxy_binary = o->proxy,
              .seed = (uint64_t)o->seed,
              .number = number,
              .hang_ms = o->hang_ms > DEAD_MS ? o->hang_ms : DEAD_MS,
              .guarded = o->keys >= 0 ? o->keys > 0 : number % 5 == 1 || number % 5 == 3,
              .proxy_in = -1};
    /* Ports of their own for each job that runs at a time and for other runs of this program, below
     * those that the system gives to clients. */
    j.port = 12000 + (int)((uint64_t)getppid() * 7919 % 50) * 400 + slot * 40;
    snprintf(j.folder, sizeof j.folder, "%.900s/job-%d", o->out, number);
    mkdir(j.folder, 0755);
    snprintf(path, sizeof path, "%s/faults.jsonl", j.folder);
    FILE *f = fopen(path, "w");
    if (!f) return 74;
    setvbuf(f, NULL, _IOLBF, 0);
    t.jobs = 1;
    int64_t first = number * o->per_job, end = first + o->per_job;
    if (end > o->count) end = o->count;
    bool alive = job_start(&j);
    if (!alive) complain(f, &t, &t.other, "start", j.why);
    for (int64_t n = first; alive && n < end && ifl_clock_ns() < deadline_ns; n++)
        for (int attempt = 0; attempt < ATTEMPTS && alive; attempt++)
            if (fault_play(o, &j, &t, f, n, attempt + 1 == ATTEMPTS, &alive)) break;
    if (alive && !job_stop(&j)) complain(f, &t, &t.other, "end", j.why);
    job_kill(&j);
    job_prove(&j, f, &t);
    bool clean = !t.lost && !t.stored_twice && !t.trained_twice && !t.wrong_policy && !t.other;
    for (int i = 0; i < n_fault_rows; i++)
        clean =
            clean && t.injected[i] == t.required[i] && !t.hangs[i]; /* not played is not failed */
    t.jobs_failed = !clean;
    tally_write(f, &t);
    fclose(f);
    if (clean && !(getenv("KEEP") &&
                   *getenv("KEEP"))) { /* nothing to look at: its rollouts would fill the disk */
        if (!folder_remove(&j, "runs") || !folder_remove(&j, "record")) return 74;
    }
    return clean ? 0 : 65;
}

/* --- All of them ------------------------------------------------------------------------------ */

static void tally_add(tally *sum, const char *out, int number) {
    char path[JOB_PATH_MAX + 64];
    static char line[65536];
    snprintf(path, sizeof path, "%.900s/job-%d/faults.jsonl", out, number);
    FILE *f = fopen(path, "r");
    bool found = false;
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "{\"tally\":[", 10) != 0) continue;
        tally t = {0};
        int64_t *words = (int64_t *)(void *)&t, *to = (int64_t *)(void *)sum;
        char *at = line + 10;
        for (size_t i = 0; i < sizeof t / sizeof *words; i++, at++)
            words[i] = strtoll(at, &at, 10);
        int64_t longest =
            sum->recover_max_us > t.recover_max_us ? sum->recover_max_us : t.recover_max_us;
        int64_t pauses[ROWS_MAX];
        for (int i = 0; i < ROWS_MAX; i++)
            pauses[i] =
                sum->pause_max_us[i] > t.pause_max_us[i] ? sum->pause_max_us[i] : t.pause_max_us[i];
        for (size_t i = 0; i < sizeof t / sizeof *words; i++)
            to[i] += words[i];
        sum->recover_max_us = longest;
        memcpy(sum->pause_max_us, pauses, sizeof pauses);
        found = true;
    }
    if (f) fclose(f);
    if (!found) sum->other++; /* its process has died */
}

static int64_t total(const int64_t *of) {
    int64_t n = 0;
    for (int i = 0; i < n_fault_rows; i++)
        n += of[i];
    return n;
}

static void table_print(const tally *t) {
    printf("\n%4s  %-34s %9s %12s %6s %11s %14s\n", "row", "fault", "injected", "as required",
           "hangs", "not played", "longest pause");
    for (int i = 0; i < n_fault_rows; i++)
        printf("%4d  %-34s %9lld %12lld %6lld %11lld %12.2f s%s\n", fault_rows[i].row,
               fault_rows[i].fault, (long long)t->injected[i], (long long)t->required[i],
               (long long)t->hangs[i], (long long)t->not_played[i],
               (double)t->pause_max_us[i] * 1e-6,
               fault_rows[i].stands ? " (stands while it lasts)" : "");
    printf("%4s  %-34s %9lld %12lld %6lld %11lld\n\n", "", "all", (long long)total(t->injected),
           (long long)total(t->required), (long long)total(t->hangs),
           (long long)total(t->not_played));
    if (t->crowds > 0)
        printf(
            "while 100 actors join: a step takes %.1f ms, before %.1f ms (medians, mean of %lld)\n",
            (double)t->crowd_during_us * 1e-3 / (double)t->crowds,
            (double)t->crowd_before_us * 1e-3 / (double)t->crowds, (long long)t->crowds);
    printf("lost %lld, stored twice %lld, trained twice %lld, under another policy %lld, other "
           "violations %lld\n",
           (long long)t->lost, (long long)t->stored_twice, (long long)t->trained_twice,
           (long long)t->wrong_policy, (long long)t->other);
    printf(
        "%lld jobs, %lld learner processes: %lld trajectories leased, %lld stored, %lld trained, "
        "%lld of several versions; %lld acknowledged to actors\n",
        (long long)t->jobs, (long long)t->processes, (long long)t->leased, (long long)t->stored,
        (long long)t->trained, (long long)t->multi_version, (long long)t->acked);
    printf("%lld versions published again by a resumed learner, with the same bits\n",
           (long long)t->republished);
    printf("%lld replayed from their versions, %lld not replayable; recovery after the lift mean "
           "%.2f s, "
           "longest %.2f s\n",
           (long long)t->replayed, (long long)t->not_replayable,
           total(t->injected) ? (double)t->recover_sum_us * 1e-6 / (double)total(t->injected) : 0.0,
           (double)t->recover_max_us * 1e-6);
}

static bool option_take(options *o, const char *name, const char *value) {
    const struct {
        const char *name;
        const char **text;
        long long *number;
    } known[] = {{"--inflight", &o->binary, NULL}, {"--proxy", &o->proxy, NULL},
                 {"--out", &o->out, NULL},         {"--seed", NULL, &o->seed},
                 {"--count", NULL, &o->count},     {"--jobs", NULL, &o->jobs},
                 {"--per-job", NULL, &o->per_job}, {"--minutes", NULL, &o->minutes},
                 {"--row", NULL, &o->row},         {"--only", NULL, &o->only},
                 {"--hang-ms", NULL, &o->hang_ms}, {"--keys", NULL, &o->keys}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) != 0) continue;
        char *end = NULL;
        if (known[i].text) *known[i].text = value;
        if (known[i].number) *known[i].number = strtoll(value, &end, 10);
        return known[i].text || (end != value && !*end);
    }
    return false;
}

int main(int argc, char **argv) {
    options o = {.seed = 1,
                 .count = 1000,
                 .jobs = 3,
                 .per_job = 40,
                 .only = -1,
                 .hang_ms = HANG_MS,
                 .keys = -1};
    char out[512];
    for (int i = 1; i < argc; i += 2)
        if (i + 1 >= argc || !option_take(&o, argv[i], argv[i + 1])) {
            fprintf(stderr, "run_faults: %s: unknown, or without its value; see %s\n", argv[i],
                    __FILE__);
            return 64;
        }
    if (!o.binary || !o.proxy || o.count < 1 || o.jobs < 1 || o.jobs > 10 || o.per_job < 1 ||
        o.hang_ms < 1) {
        fprintf(stderr,
                "run_faults: wanted --inflight, --proxy, --jobs 1 to 10, and counts above 0\n");
        return 64;
    }
    snprintf(out, sizeof out, "%s", o.out ? o.out : "faults-run");
    if (mkdir(out, 0755) != 0 && errno != EEXIST) {
        fprintf(stderr, "run_faults: %s: %s\n", out, strerror(errno));
        return 74;
    }
    char *whole = realpath(out, NULL);
    o.out = whole;
    signal(SIGPIPE, SIG_IGN);
    int n_jobs = (int)((o.count + o.per_job - 1) / o.per_job), next = 0, n_running = 0, done = 0;
    int64_t begin = ifl_clock_ns();
    int64_t deadline = o.minutes > 0 ? begin + o.minutes * 60000000000ll : INT64_MAX;
    struct {
        pid_t pid;
        int number;
    } slots[JOBS_MAX] = {{0}};
    tally sum = {0};
    printf("%lld faults of %d rows, seed %lld, %d jobs of %lld, %lld at a time; artefacts in %s\n",
           o.count, n_fault_rows, o.seed, n_jobs, o.per_job, o.jobs, o.out);
    fflush(stdout);
    while (next < n_jobs || n_running > 0) {
        for (int s = 0; s < o.jobs && next < n_jobs && ifl_clock_ns() < deadline; s++) {
            if (slots[s].pid) continue;
            int number = next++;
            if (o.only >= 0 && number != o.only) {
                s--;
                continue;
            }
            pid_t pid = fork();
            if (pid == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                _exit(job_main(&o, number, s, deadline));
            }
            slots[s].pid = pid;
            slots[s].number = number;
            n_running++;
        }
        if (n_running == 0) break;
        int status;
        pid_t pid = wait(&status);
        for (int s = 0; s < JOBS_MAX; s++)
            if (pid > 0 && slots[s].pid == pid) {
                slots[s].pid = 0;
                n_running--;
                done++;
                tally_add(&sum, o.out, slots[s].number);
                printf(
                    "%6.0f s: job %d %s; %lld of %lld faults, %lld as required, %lld hangs, %lld "
                    "lost, %lld twice\n",
                    (double)(ifl_clock_ns() - begin) * 1e-9, slots[s].number,
                    WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "holds" : "FAILED",
                    (long long)total(sum.injected), o.count, (long long)total(sum.required),
                    (long long)total(sum.hangs), (long long)sum.lost,
                    (long long)(sum.stored_twice + sum.trained_twice));
                fflush(stdout);
            }
    }
    table_print(&sum);
    double minutes = (double)(ifl_clock_ns() - begin) / 60e9;
    bool clean = !sum.jobs_failed && !sum.lost && !sum.other;
    bool whole_count = o.only >= 0 || total(sum.injected) == o.count;
    printf("%.1f minutes; %s\n", minutes,
           !clean
               ? "VIOLATIONS: job folders of those that failed are kept; --only JOB with the same "
                 "seed and counts plays one again"
           : whole_count ? "no violation"
                         : "no violation, but not all faults were played");
    free(whole);
    return !clean ? 65 : whole_count ? 0 : 75;
}

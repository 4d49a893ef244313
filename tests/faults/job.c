#include "tests/faults/job.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/keys.h"
#include "common/rng.h"

#define RUN_NAME "job"
#define START_MS 30000
#define STOP_MS 30000
#define LOG_TAIL (1 << 20)
#define COMMAND_MS 60000 /* that a command may take; it is killed then */
#define RECOVERED_STEPS 6
#define START_STEPS 24

static bool refuse(job *j, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(job *j, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(j->why, sizeof j->why, format, args);
    va_end(args);
    return false;
}

int64_t job_draw(job *j, int64_t n) {
    ifl_rng_key key = {j->seed, (uint64_t)j->number, IFL_RNG_TEST};
    return (int64_t)ifl_rng_below(&key, j->n_drawn++, 0, (uint64_t)n);
}

/* --- Files ------------------------------------------------------------------------------------ */

static bool text_write(const char *path, const char *text) {
    char temp[JOB_PATH_MAX + 8];
    snprintf(temp, sizeof temp, "%s.new", path);
    FILE *f = fopen(temp, "w");
    if (!f) return false;
    fputs(text, f);
    return fclose(f) == 0 && rename(temp, path) == 0;
}

/* A folder with a pair of its own, and the learner's public key that it believes in. */
static bool key_folder(job *j, const char *name, const char *learner_key, ifl_error *err) {
    char path[JOB_PATH_MAX + 32];
    ifl_key_pair pair;
    snprintf(path, sizeof path, "%s/%s", j->folder, name);
    return ifl_key_pair_make(&pair, err) == IFL_OK &&
           ifl_key_pair_write(&pair, path, name, err) == IFL_OK &&
           ifl_key_learner_write(path, learner_key, err) == IFL_OK;
}

/* keys/: the learner's, and one of all the job's actors and odd peers. stranger/: an actor's that
 * nobody allows; former/: one that comes and goes; mistaken/: the allowed one, and another
 * learner's public key. */
static bool keys_write(job *j) {
    char path[JOB_PATH_MAX + 32];
    ifl_key_pair learner, other, crew;
    ifl_error err = {0};
    snprintf(path, sizeof path, "%s/keys", j->folder);
    bool good = ifl_key_pair_make(&learner, &err) == IFL_OK &&
                ifl_key_pair_write(&learner, path, IFL_KEY_LEARNER, &err) == IFL_OK &&
                ifl_key_pair_make(&crew, &err) == IFL_OK &&
                ifl_key_pair_write(&crew, path, "crew", &err) == IFL_OK &&
                ifl_key_allow(path, "crew", crew.public_key, &err) == IFL_OK &&
                key_folder(j, "stranger", learner.public_key, &err) &&
                key_folder(j, "former", learner.public_key, &err) &&
                ifl_key_pair_make(&other, &err) == IFL_OK;
    snprintf(path, sizeof path, "%s/mistaken", j->folder);
    good = good && ifl_key_pair_write(&crew, path, "crew", &err) == IFL_OK &&
           ifl_key_learner_write(path, other.public_key, &err) == IFL_OK;
    if (!good) return refuse(j, "%.400s", err.text);
    snprintf(j->facts.learner_key, sizeof j->facts.learner_key, "%s", learner.public_key);
    j->facts.own = crew;
    return true;
}

bool job_allow(job *j, const char *name, bool may) {
    char path[JOB_PATH_MAX + 32], file[JOB_PATH_MAX + 96], key[IFL_KEY_TEXT_MAX];
    ifl_error err = {0};
    snprintf(path, sizeof path, "%s/keys", j->folder);
    snprintf(file, sizeof file, "%s/%s/%s.public", j->folder, name, name);
    ifl_status st = may ? ifl_key_public_read(key, file, &err) : ifl_key_revoke(path, name, &err);
    if (st == IFL_OK && may) st = ifl_key_allow(path, name, key, &err);
    if (st != IFL_OK) return refuse(j, "%.400s", err.text);
    int64_t mark = process_mark(&j->learner);
    process_kill(j, &j->learner, SIGHUP);
    for (int i = 0; i < 100 && !process_said(&j->learner, mark, "keys are allowed now"); i++)
        job_pass(j, 50);
    return process_said(&j->learner, mark, "keys are allowed now") ||
           refuse(j, "the learner has not read its list again");
}

static bool files_write(job *j) {
    char path[JOB_PATH_MAX + 32];
    if (mkdir(j->folder, 0755) != 0 && errno != EEXIST)
        return refuse(j, "%s: %s", j->folder, strerror(errno));
    snprintf(path, sizeof path, "%s/record", j->folder);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/tasks.jsonl", j->folder);
    FILE *f = fopen(path, "w");
    if (!f) return refuse(j, "%s: %s", path, strerror(errno));
    for (int i = 0; i < 96; i++)
        fprintf(
            f,
            "{\"id\":\"t%d\",\"prompt\":\"%03d+%d*%02d=\",\"checker\":\"format\",\"answer\":\"\","
            "\"meta\":{\"regex\":\"[02468]\\\\s*\\\\z\"}}\n",
            i, i * 37 % 700, 2 + i % 8, 1 + i % 12);
    fclose(f);
    snprintf(path, sizeof path, "%s/job.yaml", j->folder);
    f = fopen(path, "w");
    if (!f) return refuse(j, "%s: %s", path, strerror(errno));
    /* All four kinds of job have both KV modes within eight jobs. */
    static const char *const modes[] = {"pipeline", "pipeline", "sync", "async:2"};
    j->strict = j->number % 4 >= 1;
    bool keep = (j->number + j->number / 4) % 2 == 1, wait = j->number % 4 == 1;
    fprintf(f,
            "config_version: 1\n"
            "run: {name: %s, dir: runs, mode: %s, steps: 1000000, seed: %llu}\n"
            "model: {family: llama, d_model: 32, n_layers: 2, n_heads: 2, n_kv_heads: 2, head_dim: "
            "16,\n"
            "        d_ff: 64, max_positions: 64, tied_head: false, characters: "
            "\"0123456789+*=#\\n\"}\n"
            "data: {train: [{name: even, path: tasks.jsonl}]}\n"
            "rollout: {prompts_per_step: 3, group_size: 4, temperature: 1, max_new_tokens: 40}\n"
            "actor: {count: 3, threads: 1, sequences_max: 8, kv_tokens: 1024, page_tokens: 16, kv: "
            "%s}\n"
            "reward: {workers: 1}\n"
            "learner: {threads: 1, loss: reinforce, learning_rate: 1.0e-4, warmup_steps: 1,\n"
            "          pack_tokens: 512, groups_in_flight: 12}\n"
            "staleness: {max_versions: %d, policy: wait}\n"
            "eval: {before: false, after: false}\n"
            "parity: {audit: 0.1, versions_kept: 16}\n"
            "checkpoint: {every_steps: 5, keep: 4}\n"
            "memory: {limit_gib: 2}\n"
            "transport: {bind: \"tcp://127.0.0.1:%d\", heartbeat_ms: %d, heartbeat_misses: %d,\n"
            "            lease_s: 2, chunk_kib: 4%s}\n",
            RUN_NAME, modes[j->number % 4],
            (unsigned long long)(j->seed % 1000 + (uint64_t)j->number + 1),
            keep ? "keep" : "recompute", wait ? 12 : 0, j->port, JOB_HEARTBEAT_MS, JOB_MISSES,
            j->guarded ? ", keys: keys" : "");
    fclose(f);
    return !j->guarded || keys_write(j);
}

/* The end of a file, from `from` on; NUL-terminated, in one static buffer. */
static const char *file_from(const char *path, int64_t from) {
    static char text[LOG_TAIL + 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : pread(fd, text, LOG_TAIL, from);
    if (fd >= 0) close(fd);
    text[n > 0 ? n : 0] = '\0';
    for (ssize_t i = 0; i < n; i++)
        if (!text[i]) text[i] = ' ';
    return text;
}

static int64_t file_size(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 ? s.st_size : 0;
}

/* --- Processes -------------------------------------------------------------------------------- */

static pid_t spawn(job *j, char *const *argv, const char *log, const char *arm, const char *record,
                   int in) {
    pid_t parent = getpid(), pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(70);
    char variable[JOB_PATH_MAX + 8];
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644), null = open("/dev/null", O_RDWR);
    dup2(in >= 0 ? in : null, STDIN_FILENO);
    dup2(arm ? null : out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    if (arm) {
        snprintf(variable, sizeof variable, "@%s", arm);
        setenv("INFLIGHT_FAILPOINT", variable, 1);
        setenv("INFLIGHT_RECORD", record, 1);
    }
    if (chdir(j->folder) != 0) _exit(70);
    execvp(argv[0], argv);
    _exit(70);
}

static int relay_port(const job *j, int relay) {
    return j->port + 30 + 2 * relay;
}

/* Relays stand beside the proxy: what happens to them is theirs. */
static bool relay_start(job *j, job_process *p) {
    char learner[64], bind[64];
    snprintf(learner, sizeof learner, "tcp://127.0.0.1:%d", j->port);
    snprintf(bind, sizeof bind, "tcp://127.0.0.1:%d", relay_port(j, (int)(p - j->relays)));
    char *const argv[] = {(char *)(uintptr_t)j->binary,
                          "relay",
                          "--config",
                          "job.yaml",
                          "--name",
                          p->name,
                          "--learner",
                          learner,
                          "--bind",
                          bind,
                          "transport.relay_mib=64",
                          NULL};
    char record[JOB_PATH_MAX + 64];
    snprintf(record, sizeof record, "%s/record/%s", j->folder, p->name);
    p->started_ns = ifl_clock_ns();
    p->log_from = file_size(p->log);
    p->pid = spawn(j, argv, p->log, p->arm, record, -1);
    p->n_starts++;
    p->may_end = true;
    return p->pid > 0;
}

bool process_start(job *j, job_process *p) {
    char connect[64], name[64], record[JOB_PATH_MAX + 64], run[JOB_PATH_MAX + 32], relays[256];
    for (int i = 0; i < JOB_RELAYS; i++)
        if (p == &j->relays[i]) return relay_start(j, p);
    int actor = (int)(p - j->actors);
    bool learner = p == &j->learner;
    const char *key = j->guarded ? "crew=" : ""; /* that all of the job have */
    snprintf(relays, sizeof relays, "transport.relays=%stcp://127.0.0.1:%d,%stcp://127.0.0.1:%d",
             key, relay_port(j, 0), key, relay_port(j, 1));
    snprintf(run, sizeof run, "%s/runs/" RUN_NAME, j->folder);
    snprintf(record, sizeof record, "%s/record/%s", j->folder, learner ? "learner" : p->name);
    snprintf(connect, sizeof connect, "tcp://127.0.0.1:%d", j->port + 10 + 2 * actor);
    snprintf(name, sizeof name, "%s", p->name);
    bool resume = access(run, F_OK) == 0;
    char *const as_learner[] = {
        (char *)(uintptr_t)j->binary,      "learner", "--config", "job.yaml",
        resume ? "run.resume=true" : NULL, NULL};
    char *const as_actor[] = {(char *)(uintptr_t)j->binary,
                              "actor",
                              "--config",
                              "job.yaml",
                              "--name",
                              name,
                              "--connect",
                              connect,
                              p->relayed ? relays
                              : p->keys  ? "--keys"
                                         : NULL,
                              p->relayed ? NULL : (char *)(uintptr_t)p->keys,
                              NULL};
    p->started_ns = ifl_clock_ns();
    p->log_from = file_size(p->log);
    p->pid = spawn(j, learner ? as_learner : as_actor, p->log, p->arm, record, -1);
    p->n_starts++;
    p->may_end = false;
    return p->pid > 0;
}

static void process_init(job *j, job_process *p, const char *name, const char *base) {
    *p = (job_process){0};
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(p->log, sizeof p->log, "%.900s/%s.log", j->folder, name);
    snprintf(p->arm, sizeof p->arm, "%.900s/%s.failpoints", j->folder, name);
    snprintf(p->base, sizeof p->base, "%s", base);
    text_write(p->arm, base);
}

void process_arm(job *j, job_process *p, const char *text) {
    char all[JOB_TEXT_MAX];
    (void)j;
    snprintf(all, sizeof all, "%s;%.300s\n", p->base, text);
    text_write(p->arm, all);
    /* Its first line comes after it has set up its handler, without which the signal would kill. */
    if (p->pid > 0 && file_size(p->log) > p->log_from) kill(p->pid, SIGUSR2);
}

void process_kill(job *j, job_process *p, int signal) {
    (void)j;
    if (p->pid > 0) kill(p->pid, signal);
}

bool process_ended(const job_process *p, int64_t before) {
    return p->n_ends > before;
}

static job_process *process_of(job *j, pid_t pid) {
    if (j->learner.pid == pid) return &j->learner;
    for (int i = 0; i <= JOB_EXTRA; i++)
        if (j->actors[i].pid == pid) return &j->actors[i];
    for (int i = 0; i < JOB_RELAYS; i++)
        if (j->relays[i].pid == pid) return &j->relays[i];
    return NULL;
}

static void collect(job *j) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        job_process *p = process_of(j, pid);
        if (pid == j->proxy) {
            j->proxy = 0;
            snprintf(j->unexpected, sizeof j->unexpected, "the proxy has ended, status %d", status);
        }
        if (!p) continue;
        p->pid = 0;
        p->status = status;
        p->n_ends++;
        if (!p->may_end && !j->unexpected[0])
            snprintf(j->unexpected, sizeof j->unexpected, "%s ended by %s %d: %.300s", p->name,
                     WIFSIGNALED(status) ? "signal" : "status",
                     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                     file_from(p->log, file_size(p->log) > 250 ? file_size(p->log) - 250 : 0));
    }
}

/* Without what its predecessor has died of. */
static void process_restart(job *j, job_process *p) {
    process_arm(j, p, "");
    process_start(j, p);
}

void job_supervise(job *j) {
    collect(j);
    job_steps(j);
    if (j->learner.wanted && j->learner.pid == 0) process_restart(j, &j->learner);
    for (int i = 0; i <= JOB_EXTRA; i++)
        if (j->actors[i].wanted && j->actors[i].pid == 0) process_restart(j, &j->actors[i]);
}

int64_t process_mark(const job_process *p) {
    return file_size(p->log);
}

const char *process_text(const job_process *p, int64_t mark) {
    return file_from(p->log, mark);
}

bool process_said(const job_process *p, int64_t mark, const char *text) {
    return strstr(file_from(p->log, mark), text) != NULL;
}

bool learner_said_of(const job *j, int64_t mark, const char *name, const char *text) {
    char line[128];
    snprintf(line, sizeof line, "%s %s", name, text);
    return process_said(&j->learner, mark, line);
}

int64_t process_age_ms(const job_process *p) {
    return (ifl_clock_ns() - p->started_ns) / 1000000;
}

int64_t process_rss_kib(const job_process *p) {
    char path[64];
    long pages = 0, rss = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)p->pid);
    FILE *f = p->pid > 0 ? fopen(path, "r") : NULL;
    if (f && fscanf(f, "%ld %ld", &pages, &rss) != 2) rss = 0;
    if (f) fclose(f);
    return (int64_t)rss * sysconf(_SC_PAGESIZE) / 1024;
}

/* --- Progress --------------------------------------------------------------------------------- */

static void pause_note(job *j, int64_t ns) {
    if (ns > j->pause_ns) j->pause_ns = ns;
}

/* A row says itself when it was, by the clock of its process: nobody need have looked meanwhile. */
static void step_seen(job *j) {
    const char *at = strstr(j->partial, "\"time_s\":");
    double time_s = at ? strtod(at + 9, NULL) : 0.0;
    int64_t now = ifl_clock_ns();
    bool same = j->n_steps > 0 && time_s >= j->time_s;
    pause_note(j, same ? (int64_t)((time_s - j->time_s) * 1e9) : now - j->stepped_ns);
    j->time_s = time_s;
    j->stepped_ns = now;
    j->n_steps++;
}

int64_t job_steps(job *j) {
    char path[JOB_PATH_MAX + 64], block[65536];
    snprintf(path, sizeof path, "%s/runs/" RUN_NAME "/metrics.jsonl", j->folder);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    for (ssize_t n; fd >= 0 && (n = pread(fd, block, sizeof block, j->metrics_at)) > 0;) {
        j->metrics_at += n;
        for (ssize_t i = 0; i < n; i++) {
            if (block[i] == '\n') {
                j->partial[j->n_partial] = '\0';
                if (strncmp(j->partial, "{\"kind\":\"step\"", 14) == 0) {
                    step_seen(j);
                }
                j->n_partial = 0;
            } else if (j->n_partial + 1 < sizeof j->partial) {
                j->partial[j->n_partial++] = block[i];
            }
        }
    }
    if (fd >= 0) close(fd);
    pause_note(j, ifl_clock_ns() - j->stepped_ns);
    return j->n_steps;
}

int64_t actor_acks(const job *j, const job_process *p) {
    char path[JOB_PATH_MAX + 64], line[256];
    int64_t n = 0;
    snprintf(path, sizeof path, "%s/record/%s.%d", j->folder, p->name, (int)p->pid);
    FILE *f = p->pid > 0 ? fopen(path, "r") : NULL;
    while (f && fgets(line, sizeof line, f))
        n += strncmp(line, "acked ", 6) == 0;
    if (f) fclose(f);
    return n;
}

bool job_await(job *j, int64_t ms, job_condition condition, void *context) {
    int64_t until = ifl_clock_ns() + ms * 1000000;
    for (;;) {
        job_supervise(j);
        if (condition(j, context)) return true;
        if (ifl_clock_ns() > until) return false;
        ifl_sleep_ms(10);
    }
}

static bool never(job *j, void *context) {
    (void)j;
    (void)context;
    return false;
}

void job_pass(job *j, int64_t ms) {
    job_await(j, ms, never, NULL);
}

/* --- The proxy -------------------------------------------------------------------------------- */

void proxy_tell(job *j, const char *format, ...) {
    char line[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    line[n++] = '\n';
    if (write(j->proxy_in, line, (size_t)n) != n)
        snprintf(j->unexpected, sizeof j->unexpected, "the proxy takes no commands");
}

static bool proxy_start(job *j) {
    char to[16], listen_on[128], seed[32], log[JOB_PATH_MAX + 32];
    int ends[2], n = 0;
    snprintf(to, sizeof to, "%d", j->port);
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)(j->seed + (uint64_t)j->number));
    for (int i = 0; i <= JOB_EXTRA; i++)
        n += snprintf(listen_on + n, sizeof listen_on - (size_t)n, "%s%d", i ? "," : "",
                      j->port + 10 + 2 * i);
    snprintf(log, sizeof log, "%s/proxy.jsonl", j->folder);
    if (pipe(ends) != 0) return refuse(j, "pipe: %s", strerror(errno));
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    char *const argv[] = {(char *)(uintptr_t)j->proxy_binary,
                          "--to",
                          to,
                          "--listen",
                          listen_on,
                          "--seed",
                          seed,
                          NULL};
    j->proxy = spawn(j, argv, log, NULL, NULL, ends[0]);
    close(ends[0]);
    j->proxy_in = ends[1];
    return j->proxy > 0;
}

/* --- Life ------------------------------------------------------------------------------------- */

typedef struct recovery {
    int64_t steps, more, acks[JOB_ACTORS];
    pid_t pids[JOB_ACTORS];
} recovery;

static bool is_recovered(job *j, void *context) {
    recovery *r = context;
    if (job_steps(j) < r->steps + r->more) return false;
    for (int i = 0; i < JOB_ACTORS; i++) {
        const job_process *a = &j->actors[i];
        int64_t before = a->pid == r->pids[i] ? r->acks[i] : 0;
        if (a->pid <= 0 || actor_acks(j, a) <= before) return false;
    }
    return true;
}

static void stacks_dump(job *j, const job_process *p) {
    char path[JOB_PATH_MAX + 64], pid[16];
    if (p->pid <= 0) return;
    snprintf(path, sizeof path, "%s/stacks-%s.txt", j->folder, p->name);
    snprintf(pid, sizeof pid, "%d", (int)p->pid);
    char *const argv[] = {"gdb", "-p", pid, "-batch", "-ex", "thread apply all bt", NULL};
    pid_t gdb = spawn(j, argv, path, NULL, NULL, -1); /* without gdb there are the logs */
    if (gdb > 0) waitpid(gdb, NULL, 0);
}

bool job_recover(job *j, double *took_s) {
    int64_t begin = ifl_clock_ns();
    proxy_tell(j, "* both both clear");
    job_process *all[JOB_ACTORS + 2] = {&j->learner};
    for (int i = 0; i <= JOB_EXTRA; i++)
        all[i + 1] = &j->actors[i];
    for (int i = 0; i < JOB_RELAYS; i++) /* the row is over */
        process_kill(j, &j->relays[i], SIGKILL);
    for (int i = 0; i < JOB_ACTORS + 2; i++) {
        process_kill(j, all[i], SIGCONT);
        process_arm(j, all[i], "");
    }
    job_supervise(j);
    /* Enough for a checkpoint; at the start for several. */
    recovery r = {.steps = job_steps(j), .more = j->n_steps ? RECOVERED_STEPS : START_STEPS};
    for (int i = 0; i < JOB_ACTORS; i++) {
        r.pids[i] = j->actors[i].pid;
        r.acks[i] = actor_acks(j, &j->actors[i]);
    }
    bool good = job_await(j, j->hang_ms, is_recovered, &r);
    *took_s = (double)(ifl_clock_ns() - begin) * 1e-9;
    for (int i = 0; i < JOB_ACTORS + 2; i++)
        all[i]->may_end = false;
    if (good) return true;
    for (int i = 0; i < JOB_ACTORS + 2; i++)
        stacks_dump(j, all[i]);
    char waits[128] = "";
    for (int i = 0; i < JOB_ACTORS; i++) {
        const job_process *a = &j->actors[i];
        if (actor_acks(j, a) <= (a->pid == r.pids[i] ? r.acks[i] : 0))
            snprintf(waits + strlen(waits), sizeof waits - strlen(waits), " %s", a->name);
    }
    return refuse(j, "hang: %lld steps in %.1f s; without an acknowledged answer:%s",
                  (long long)(job_steps(j) - r.steps), *took_s, waits[0] ? waits : " none");
}

bool job_start(job *j) {
    double took_s;
    if (!files_write(j)) return false;
    process_init(j, &j->learner, "learner", "step.begin=sleep(20)@1+");
    for (int i = 0; i <= JOB_EXTRA; i++) {
        char name[32];
        snprintf(name, sizeof name, i == JOB_EXTRA ? "extra" : "actor-%d", i + 1);
        process_init(j, &j->actors[i], name, "");
        j->actors[i].wanted = i != JOB_EXTRA;
    }
    for (int i = 0; i < JOB_RELAYS; i++) {
        char name[32];
        snprintf(name, sizeof name, "relay-%d", i + 1);
        process_init(j, &j->relays[i], name, "");
    }
    j->learner.wanted = true;
    j->facts.port = j->port;
    if (!proxy_start(j)) return false;
    int64_t limit = j->hang_ms;
    j->hang_ms = START_MS;
    bool good = job_recover(j, &took_s);
    j->hang_ms = limit;
    return good && (odd_learn(&j->facts, j->why) || refuse(j, "the refusals: %.400s", j->why));
}

static bool are_over(job *j, void *context) {
    (void)context;
    if (j->learner.pid > 0) return false;
    for (int i = 0; i <= JOB_EXTRA; i++)
        if (j->actors[i].pid > 0) return false;
    for (int i = 0; i < JOB_RELAYS; i++)
        if (j->relays[i].pid > 0) return false;
    return true;
}

void job_kill(job *j) {
    j->learner.wanted = false;
    j->learner.may_end = true;
    process_kill(j, &j->learner, SIGKILL);
    for (int i = 0; i <= JOB_EXTRA; i++) {
        j->actors[i].wanted = false;
        j->actors[i].may_end = true;
        process_kill(j, &j->actors[i], SIGKILL);
    }
    for (int i = 0; i < JOB_RELAYS; i++)
        process_kill(j, &j->relays[i], SIGKILL);
    job_await(j, 5000, are_over, NULL);
    if (j->proxy > 0) {
        pid_t pid = j->proxy;
        j->proxy = 0;
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    if (j->proxy_in > 0) close(j->proxy_in);
    j->proxy_in = -1;
}

bool job_stop(job *j) {
    j->learner.wanted = false;
    j->learner.may_end = true;
    for (int i = 0; i <= JOB_EXTRA; i++) {
        j->actors[i].wanted = false;
        j->actors[i].may_end = true;
    }
    process_kill(j, &j->learner, SIGTERM);
    bool over = job_await(j, STOP_MS, are_over, NULL);
    for (int i = 0; over && i < JOB_ACTORS; i++)
        if (!WIFEXITED(j->actors[i].status) || WEXITSTATUS(j->actors[i].status) != 0)
            over = refuse(j, "%s ended with status %x at the run's end", j->actors[i].name,
                          (unsigned)j->actors[i].status);
    if (!over && j->learner.pid > 0) stacks_dump(j, &j->learner);
    job_kill(j);
    if (!over) return j->why[0] ? false : refuse(j, "not over within %d ms", STOP_MS);
    if (WIFEXITED(j->learner.status) && WEXITSTATUS(j->learner.status) == 75) return true;
    return refuse(j, "the learner ended with status %x, wanted 75", (unsigned)j->learner.status);
}

int job_run(job *j, const char *arguments, char *out, size_t n_out) {
    char path[JOB_PATH_MAX + 32], words[JOB_TEXT_MAX];
    char *argv[32] = {(char *)(uintptr_t)j->binary};
    int n = 1, status;
    snprintf(words, sizeof words, "%s", arguments);
    char *rest = words;
    for (char *word; n < 31 && (word = strtok_r(rest, " ", &rest)) != NULL;)
        argv[n++] = word;
    snprintf(path, sizeof path, "%s/command.txt", j->folder);
    unlink(path);
    out[0] = '\0';
    pid_t pid = spawn(j, argv, path, NULL, NULL, -1);
    if (pid < 0) return 70;
    int64_t until = ifl_clock_ns() + (int64_t)COMMAND_MS * 1000000;
    for (pid_t ended = 0; ended != pid; ifl_sleep_ms(5)) {
        if (ifl_clock_ns() > until) kill(pid, SIGKILL);
        if ((ended = waitpid(pid, &status, WNOHANG)) < 0) return 70;
    }
    FILE *f = fopen(path, "r");
    size_t got = f ? fread(out, 1, n_out - 1, f) : 0;
    if (f) fclose(f);
    out[got] = '\0';
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

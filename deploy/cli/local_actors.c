#include "deploy/cli/local_actors.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/run_dir.h"
#include "deploy/cli/affinity.h"

#define RESTARTS_MAX 3
#define ARGS_MAX 320

typedef struct local_actor {
    pid_t pid; /* 0: not running */
    int n_starts;
    bool ended; /* for good */
} local_actor;

struct ifl_local_actors {
    ifl_local_actors_options options;
    local_actor *actors;
    pthread_t thread;
    atomic_bool stop, failed;
};

static pid_t actor_spawn(const ifl_local_actors_options *o, int32_t i) {
    char name[32], log[IFL_PATH_MAX + 32], cpus[96], keys[IFL_PATH_MAX + 32];
    snprintf(name, sizeof name, "actor-%d", i + 1);
    snprintf(log, sizeof log, "%s/%s.log", o->log_dir, name);
    int n = snprintf(cpus, sizeof cpus, "actor.cpus=");
    ifl_cpu_list_part(cpus + n, sizeof cpus - (size_t)n, o->cpus, i);
    const char *argv[ARGS_MAX];
    int argc = 0;
    argv[argc++] = "inflight";
    argv[argc++] = "actor";
    if (o->config_path) {
        argv[argc++] = "--config";
        argv[argc++] = o->config_path;
    }
    argv[argc++] = "--connect";
    argv[argc++] = o->connect;
    argv[argc++] = "--name";
    argv[argc++] = name;
    for (int k = 0; k < o->n_overrides && argc < ARGS_MAX - 5; k++)
        argv[argc++] = o->overrides[k];
    argv[argc++] = cpus;
    /* Theirs, whatever the run's configuration says about other hosts. */
    snprintf(keys, sizeof keys, "transport.keys=%s", o->keys);
    argv[argc++] = keys;
    argv[argc++] = "transport.key=";
    argv[argc++] = "transport.relays="; /* for actors elsewhere */
    argv[argc] = NULL;
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) {
        ifl_warn("cannot open %s: %s", log, strerror(errno));
        return -1;
    }
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        /* Only async-signal-safe calls here: the parent has threads. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        sched_setaffinity(0, sizeof *o->mask, o->mask);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        setpgid(
            0,
            0); /* a Ctrl-C at the terminal reaches the learner, which ends the actors in order */
        execv("/proc/self/exe", (char *const *)argv);
        _exit(127);
    }
    close(fd);
    return pid;
}

static void actor_reap(ifl_local_actors *a, int32_t i, int status) {
    local_actor *actor = &a->actors[i];
    actor->pid = 0;
    if (atomic_load(&a->stop) || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
        actor->ended = true;
        return;
    }
    char how[64];
    if (WIFSIGNALED(status))
        snprintf(how, sizeof how, "by signal %d", WTERMSIG(status));
    else
        snprintf(how, sizeof how, "with status %d", WEXITSTATUS(status));
    bool again = actor->n_starts <= RESTARTS_MAX;
    ifl_warn("actor-%d ended %s; %s (%s/actor-%d.log)", i + 1, how,
             again ? "starting it again" : "not starting it again", a->options.log_dir, i + 1);
    actor->ended = !again;
}

static void *actors_thread(void *arg) {
    ifl_local_actors *a = arg;
    while (!atomic_load(&a->stop)) {
        bool any = false;
        for (int32_t i = 0; i < a->options.count; i++) {
            local_actor *actor = &a->actors[i];
            int status;
            if (actor->pid > 0 && waitpid(actor->pid, &status, WNOHANG) == actor->pid)
                actor_reap(a, i, status);
            if (actor->pid == 0 && !actor->ended && !atomic_load(&a->stop)) {
                pid_t pid = actor_spawn(&a->options, i);
                actor->n_starts++;
                if (pid > 0)
                    actor->pid = pid;
                else
                    actor->ended = true;
            }
            any |= !actor->ended;
        }
        if (!any) atomic_store(&a->failed, true);
        ifl_sleep_ms(50);
    }
    /* They were told BYE, or are not wanted any more. */
    for (int wait_ms = 0; wait_ms < 6000; wait_ms += 20) {
        bool any = false;
        for (int32_t i = 0; i < a->options.count; i++) {
            local_actor *actor = &a->actors[i];
            int status;
            if (actor->pid > 0 && waitpid(actor->pid, &status, WNOHANG) == actor->pid)
                actor->pid = 0;
            if (actor->pid > 0 && wait_ms == 2000) kill(actor->pid, SIGTERM);
            if (actor->pid > 0 && wait_ms == 5000) kill(actor->pid, SIGKILL);
            any |= actor->pid > 0;
        }
        if (!any) break;
        ifl_sleep_ms(20);
    }
    return NULL;
}

ifl_status ifl_local_actors_start(ifl_local_actors **out, const ifl_local_actors_options *options,
                                  ifl_error *err) {
    *out = NULL;
    IFL_TRY(ifl_dir_create(options->log_dir, err));
    ifl_local_actors *a = calloc(1, sizeof *a);
    if (a) a->actors = calloc((size_t)options->count, sizeof *a->actors);
    if (!a || !a->actors) {
        free(a);
        return ifl_fail(err, IFL_NOMEM, "actors: out of memory");
    }
    a->options = *options;
    if (pthread_create(&a->thread, NULL, actors_thread, a) != 0) {
        free(a->actors);
        free(a);
        return ifl_fail(err, IFL_NOMEM, "actors: cannot start a thread");
    }
    *out = a;
    return IFL_OK;
}

void ifl_local_actors_stop(ifl_local_actors *actors) {
    if (!actors) return;
    atomic_store(&actors->stop, true);
    pthread_join(actors->thread, NULL);
    free(actors->actors);
    free(actors);
}

const atomic_bool *ifl_local_actors_failed(const ifl_local_actors *actors) {
    return &actors->failed;
}

#include "rewards/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rewards/reward.h"

/* Checkers must not see secrets of ours nor depend on the user's locale or time zone. What a loader
 * or a sanitizer needs in order to start at all is handed on. */
static void environment_make(char *out[16], char texts[16][1024]) {
    static const char *const fixed[] = {"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8",
                                        "TZ=UTC"};
    static const char *const kept[] = {"LD_LIBRARY_PATH", "ASAN_OPTIONS", "UBSAN_OPTIONS",
                                       "LSAN_OPTIONS",    "TSAN_OPTIONS", IFL_REWARD_TEST_FAULTS};
    int n = 0;
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++, n++)
        snprintf(texts[n], 1024, "%s", fixed[i]);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        const char *value = getenv(kept[i]);
        if (value && strlen(value) < 900) snprintf(texts[n++], 1024, "%s=%s", kept[i], value);
    }
    for (int i = 0; i < n; i++)
        out[i] = texts[i];
    out[n] = NULL;
}

/* posix_spawn, not fork: between fork and exec in a process with threads hardly anything is
 * allowed, and glibc's posix_spawn keeps to that. */
int ifl_spawn_helper(const char *program, const char *command, int fd, bool new_group, pid_t *pid) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    char name[] = "inflight", argument[32];
    char *argv[] = {name, argument, NULL}, *environment[16], texts[16][1024];
    snprintf(argument, sizeof argument, "%s", command);
    environment_make(environment, texts);
    sigemptyset(&none);
    sigfillset(&all);
    int code = posix_spawn_file_actions_init(&actions);
    if (code) return code;
    code = posix_spawnattr_init(&attributes);
    if (code) {
        posix_spawn_file_actions_destroy(&actions);
        return code;
    }
    if (!code) code = posix_spawn_file_actions_adddup2(&actions, fd, STDIN_FILENO);
    if (!code) code = posix_spawn_file_actions_adddup2(&actions, fd, STDOUT_FILENO);
    if (!code) code = posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    if (new_group) flags |= POSIX_SPAWN_SETPGROUP; /* so that one kill gets them all */
    if (!code) code = posix_spawnattr_setpgroup(&attributes, 0);
    if (!code) code = posix_spawnattr_setsigmask(&attributes, &none);
    if (!code) code = posix_spawnattr_setsigdefault(&attributes, &all);
    if (!code) code = posix_spawnattr_setflags(&attributes, flags);
    if (!code) code = posix_spawn(pid, program, &actions, &attributes, argv, environment);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return code;
}

const char *ifl_wait_text(char out[128], int status) {
    if (WIFSIGNALED(status))
        snprintf(out, 128, "crashed with signal %d (%.80s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(out, 128, "exited with status %d", WEXITSTATUS(status));
    return out;
}

int ifl_fd_above_stdio(int fd) {
    if (fd > STDERR_FILENO) return fd;
    int higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(fd);
    return higher;
}

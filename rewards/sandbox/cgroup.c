#include "rewards/sandbox/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"

#define NODE_PREFIX "inflight-"
#define HOST_LEAF "inflight-host" /* where the group's own processes go */
#define LAUNCHER_LEAF "launcher"
#define CONTROLLERS "+memory +pids"
#define MOVE_ROUNDS_MAX 20 /* processes are born while others move */
#define GONE_MS_MAX 5000   /* from the kill to the last process's end */
#define PATH_BYTES 1024

static ssize_t text_read(int dir, const char *name, char *text, size_t n_max) {
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, n_max - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    return n;
}

static bool text_write(int dir, const char *name, const char *text) {
    int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = write(fd, text, strlen(text));
    int code = errno;
    close(fd);
    errno = code;
    return n == (ssize_t)strlen(text);
}

/* Where a word stands among words. */
static bool has_word(const char *words, const char *word) {
    size_t n = strlen(word);
    for (const char *at = words; (at = strstr(at, word)); at += n)
        if ((at == words || at[-1] == ' ') && strchr(" \n", at[n])) return true;
    return false;
}

static bool path_join(char out[PATH_BYTES], const char *a, const char *b) {
    return snprintf(out, PATH_BYTES, "%s%s%s", a, *b && *b != '/' ? "/" : "",
                    strcmp(b, "/") == 0 ? "" : b) < PATH_BYTES;
}

/* --- The group above -------------------------------------------------------------------------- */

/* Where cgroup v2 is mounted, and the group that is its top. */
static bool mount_find(char point[PATH_BYTES], char top[PATH_BYTES]) {
    FILE *f = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    while (f && !found && getline(&line, &room, f) > 0)
        found = strstr(line, " - cgroup2 ") &&
                sscanf(line, "%*s %*s %*s %1023s %1023s", top, point) == 2;
    free(line);
    if (f) fclose(f);
    return found;
}

/* This process's group, below the mount's top; false when it lies elsewhere. */
static bool own_find(const char *top, char out[PATH_BYTES]) {
    FILE *f = fopen("/proc/self/cgroup", "re");
    char *line = NULL;
    size_t room = 0, n_top = strcmp(top, "/") == 0 ? 0 : strlen(top);
    bool found = false;
    while (f && !found && getline(&line, &room, f) > 0) {
        if (strncmp(line, "0::/", 4) != 0) continue;
        line[strcspn(line, "\n")] = '\0';
        const char *path = line + 3;
        found = strncmp(path, top, n_top) == 0 && (!path[n_top] || path[n_top] == '/' || !n_top) &&
                !strstr(path, "/..") &&
                snprintf(out, PATH_BYTES, "%s", path[n_top] ? path + n_top : "/") < PATH_BYTES;
    }
    free(line);
    if (f) fclose(f);
    return found;
}

static bool is_writable(const char *folder) {
    static const char *const names[] = {"", "cgroup.procs", "cgroup.subtree_control"};
    char path[PATH_BYTES];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!path_join(path, folder, names[i]) || access(path, W_OK)) return false;
    return true;
}

static bool is_marked(const char *folder) { /* by systemd, as somebody else's to divide */
    char value[4] = "";
    if (getxattr(folder, "user.delegate", value, sizeof value - 1) > 0 && *value == '1')
        return true;
    return getxattr(folder, "trusted.delegate", value, sizeof value - 1) > 0 && *value == '1';
}

/* Ours to divide: marked so, or writable where the group above is not. Below a session's own
 * manager everything is writable, and the manager's. */
static bool is_delegated(const char *folder, const char *point) {
    char above[PATH_BYTES];
    if (!is_writable(folder)) return false;
    if (is_marked(folder)) return true;
    if (geteuid() == 0) return false;
    if (strcmp(folder, point) == 0) return true;
    snprintf(above, sizeof above, "%s", folder);
    *strrchr(above, '/') = '\0';
    return !is_writable(above);
}

static bool base_find(char base[PATH_BYTES], char why[CGROUP_WHY_MAX]) {
    char point[PATH_BYTES], top[PATH_BYTES], own[PATH_BYTES], controllers[512] = "";
    if (!mount_find(point, top)) {
        snprintf(why, CGROUP_WHY_MAX, "no cgroup v2 is mounted");
        return false;
    }
    bool found = own_find(top, own) && path_join(base, point, own);
    char *leaf = found ? strrchr(base, '/') : NULL;
    if (leaf && strcmp(leaf + 1, HOST_LEAF) == 0) *leaf = '\0'; /* divided before */
    found = found && is_delegated(base, point);
    if (!found && geteuid() == 0) { /* no group was given to us: the top, where nobody's rules are
                                       broken by one more beside the others */
        snprintf(base, PATH_BYTES, "%s", point);
        found = is_writable(base);
    }
    if (!found) {
        snprintf(why, CGROUP_WHY_MAX, "cgroup %.120s is not delegated to this user",
                 leaf ? base : point);
        return false;
    }
    int fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) text_read(fd, "cgroup.controllers", controllers, sizeof controllers);
    if (fd >= 0) close(fd);
    if (has_word(controllers, "memory") && has_word(controllers, "pids")) return true;
    snprintf(why, CGROUP_WHY_MAX, "cgroup v2 at %.120s has no %s controller%s", base,
             has_word(controllers, "memory") ? "pids" : "memory",
             strcmp(base, point) == 0 ? ": cgroup v1 has it" : "");
    return false;
}

static void processes_move(int base) {
    char text[65536];
    if (mkdirat(base, HOST_LEAF, 0755) && errno != EEXIST) return;
    if (text_read(base, "cgroup.procs", text, sizeof text) <= 0) return;
    char *save = NULL;
    for (char *pid = strtok_r(text, "\n", &save); pid; pid = strtok_r(NULL, "\n", &save))
        text_write(base, HOST_LEAF "/cgroup.procs", pid);
}

static bool base_divide(int base, const char *path, bool move, char why[CGROUP_WHY_MAX]) {
    for (int i = 0; i < MOVE_ROUNDS_MAX; i++) {
        char on[512] = "";
        if (text_read(base, "cgroup.subtree_control", on, sizeof on) > 0 &&
            has_word(on, "memory") && has_word(on, "pids"))
            return true;
        if (text_write(base, "cgroup.subtree_control", CONTROLLERS)) return true;
        if (errno != EBUSY || !move) break;
        processes_move(base);
    }
    if (errno == EBUSY && !move)
        snprintf(why, CGROUP_WHY_MAX,
                 "cgroup %.100s has processes of its own; reward.sandbox_require=cgroup moves "
                 "them to a leaf of it",
                 path);
    else
        snprintf(why, CGROUP_WHY_MAX, "cgroup %.120s cannot be divided: %s", path, strerror(errno));
    return false;
}

/* --- Nodes ------------------------------------------------------------------------------------ */

static void pause_ms(int ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* The leaves of a node and then itself; `fd` is its own. */
static bool node_clear(int base, const char *name, int fd) {
    bool fine = text_write(fd, "cgroup.kill", "1");
    int64_t until_ns = ifl_clock_ns() + GONE_MS_MAX * (int64_t)1000000;
    do {
        int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *folder = copy >= 0 ? fdopendir(copy) : NULL;
        if (!folder && copy >= 0) close(copy);
        for (struct dirent *e; folder && (e = readdir(folder));)
            if (e->d_type == DT_DIR && e->d_name[0] != '.') unlinkat(fd, e->d_name, AT_REMOVEDIR);
        if (folder) closedir(folder);
        if (unlinkat(base, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return true;
        pause_ms(2);
    } while (fine && ifl_clock_ns() < until_ns);
    return false;
}

/* Nodes of launchers that have died: nobody holds their lock. */
static void stale_remove(int base) {
    int copy = openat(base, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = copy >= 0 ? fdopendir(copy) : NULL;
    if (!folder && copy >= 0) close(copy);
    for (struct dirent *e; folder && (e = readdir(folder));) {
        if (strncmp(e->d_name, NODE_PREFIX, strlen(NODE_PREFIX)) != 0 ||
            strcmp(e->d_name, HOST_LEAF) == 0)
            continue;
        int fd = openat(base, e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) node_clear(base, e->d_name, fd);
        close(fd);
    }
    if (folder) closedir(folder);
}

/* A new folder with a lock on it; another launcher's sweep may come between the two. */
static int node_open(int base, const char *base_path, cgroup_node *node) {
    for (int i = 0; i < 10; i++) {
        char name[64];
        snprintf(name, sizeof name, NODE_PREFIX "%d-%08x", (int)getpid(),
                 (unsigned)(uint64_t)ifl_clock_ns());
        if (!path_join(node->path, base_path, name) || mkdirat(base, name, 0755)) return -1;
        int fd = openat(base, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 &&
            faccessat(fd, "cgroup.procs", F_OK, 0) == 0)
            return fd;
        if (fd >= 0) close(fd);
        unlinkat(base, name, AT_REMOVEDIR);
    }
    errno = EAGAIN;
    return -1;
}

static bool node_give(int fd, uid_t owner) {
    static const char *const names[] = {"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"};
    if (!owner) return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (fchownat(fd, names[i], owner, owner, 0) && errno != ENOENT) return false;
    return fchown(fd, owner, owner) == 0;
}

bool cgroup_node_make(cgroup_node *node, uid_t owner, bool move, char why[CGROUP_WHY_MAX]) {
    char path[PATH_BYTES];
    node->fd = -1;
    if (!base_find(path, why)) return false;
    int base = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (base < 0) {
        snprintf(why, CGROUP_WHY_MAX, "cgroup %.120s: %s", path, strerror(errno));
        return false;
    }
    stale_remove(base);
    bool fine = base_divide(base, path, move, why);
    if (fine) {
        node->fd = node_open(base, path, node);
        fine = node->fd >= 0 && text_write(node->fd, "cgroup.subtree_control", CONTROLLERS) &&
               mkdirat(node->fd, LAUNCHER_LEAF, 0755) == 0 &&
               faccessat(node->fd, LAUNCHER_LEAF "/cgroup.kill", F_OK, 0) == 0 &&
               node_give(node->fd, owner);
        if (!fine)
            snprintf(why, CGROUP_WHY_MAX, "a cgroup below %.120s: %s", path, strerror(errno));
    }
    close(base);
    if (!fine && node->fd >= 0) cgroup_node_remove(node);
    return fine;
}

bool cgroup_node_enter(const cgroup_node *node) {
    return text_write(node->fd, LAUNCHER_LEAF "/cgroup.procs", "0");
}

void cgroup_node_remove(cgroup_node *node) {
    char base[PATH_BYTES];
    snprintf(base, sizeof base, "%s", node->path);
    char *name = strrchr(base, '/');
    *name++ = '\0';
    int fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        node_clear(fd, name, node->fd);
        close(fd);
    }
    close(node->fd);
    node->fd = -1;
}

/* --- Runs ------------------------------------------------------------------------------------- */

static void run_name(char out[32], uint32_t id) {
    snprintf(out, 32, "run-%u", (unsigned)id);
}

int cgroup_run_make(int node_fd, uint32_t id, const ifl_sandbox_limits *limits) {
    char name[32], text[32];
    run_name(name, id);
    if (mkdirat(node_fd, name, 0755)) return -1;
    int fd = openat(node_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* The work folder's files count as memory here. */
    snprintf(text, sizeof text, "%llu",
             (unsigned long long)(limits->memory_bytes + limits->disk_bytes));
    bool fine =
        fd >= 0 && text_write(fd, "memory.max", text) && text_write(fd, "memory.oom.group", "1");
    fine = fine && (text_write(fd, "memory.swap.max", "0") || errno == ENOENT);
    snprintf(text, sizeof text, "%d", limits->processes + 1); /* and the init */
    if (fine && text_write(fd, "pids.max", text)) return fd;
    int code = errno;
    if (fd >= 0) close(fd);
    unlinkat(node_fd, name, AT_REMOVEDIR);
    errno = code;
    return -1;
}

bool cgroup_run_remove(int node_fd, uint32_t id) {
    char name[32];
    run_name(name, id);
    return unlinkat(node_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT;
}

bool cgroup_run_kill(int fd) {
    return text_write(fd, "cgroup.kill", "1");
}

/* The number behind a key at the start of a line; 0 without. */
static uint64_t value_of(const char *text, const char *key) {
    size_t n = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, key, n) == 0 && line[n] == ' ') return strtoull(line + n, NULL, 10);
    }
    return 0;
}

cgroup_use cgroup_run_use(int fd) {
    char text[4096];
    cgroup_use use = {0};
    if (text_read(fd, "cpu.stat", text, sizeof text) > 0)
        use.cpu_us = (int64_t)value_of(text, "usage_usec");
    if (text_read(fd, "memory.stat", text, sizeof text) > 0)
        use.memory_bytes = value_of(text, "anon");
    if (text_read(fd, "memory.events", text, sizeof text) > 0)
        use.out_of_memory = value_of(text, "oom_kill") > 0;
    return use;
}

#include "rewards/sandbox/usage.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static ssize_t text_read(int proc_fd, pid_t pid, const char *name, char *text, size_t n_max) {
    char path[64];
    snprintf(path, sizeof path, "%d/%s", (int)pid, name);
    int fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, n_max - 1);
    close(fd);
    if (n >= 0) text[n] = '\0';
    return n;
}

/* /proc/PID/stat, behind the name, which may hold anything: fields 3 and on. */
static bool row_read(int proc_fd, pid_t pid, usage_row *row) {
    char text[1024];
    if (text_read(proc_fd, pid, "stat", text, sizeof text) <= 0) return false;
    char *at = strrchr(text, ')');
    if (!at) return false;
    long long field[25] = {0};
    char *save = NULL, *word = strtok_r(at + 1, " ", &save);
    for (int i = 3; i < 25 && word; i++, word = strtok_r(NULL, " ", &save))
        field[i] = strtoll(word, NULL, 10);
    int64_t tick_us = 1000000 / sysconf(_SC_CLK_TCK);
    row->pid = pid;
    row->parent = (pid_t)field[4];
    row->cpu_us = (field[14] + field[15] + field[16] + field[17]) * tick_us;
    row->resident_bytes = (uint64_t)field[24] * (uint64_t)sysconf(_SC_PAGESIZE);
    return true;
}

void usage_scan(int proc_fd, usage_table *table) {
    table->n = 0;
    int fd = openat(proc_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd >= 0 ? fdopendir(fd) : NULL;
    if (!folder) {
        if (fd >= 0) close(fd);
        return;
    }
    for (struct dirent *entry; (entry = readdir(folder)) && table->n < USAGE_PROCESSES_MAX;) {
        char *end;
        long pid = strtol(entry->d_name, &end, 10);
        if (pid > 1 && !*end && row_read(proc_fd, (pid_t)pid, &table->rows[table->n])) table->n++;
    }
    closedir(folder);
}

/* Marks root and all below it; parents may come behind their children. */
static void mark(const usage_table *table, pid_t root, bool in[USAGE_PROCESSES_MAX]) {
    for (int i = 0; i < table->n; i++)
        in[i] = table->rows[i].pid == root;
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < table->n; i++) {
            for (int j = 0; j < table->n && !in[i]; j++) {
                if (!in[j] || table->rows[i].parent != table->rows[j].pid) continue;
                in[i] = more = true;
            }
        }
    }
}

usage_sum usage_of(const usage_table *table, pid_t root) {
    bool in[USAGE_PROCESSES_MAX];
    usage_sum sum = {0};
    mark(table, root, in);
    for (int i = 0; i < table->n; i++) {
        if (!in[i]) continue;
        sum.cpu_us += table->rows[i].cpu_us;
        sum.resident_bytes += table->rows[i].resident_bytes;
    }
    return sum;
}

uint64_t usage_shared(int proc_fd, const usage_table *table, pid_t root) {
    bool in[USAGE_PROCESSES_MAX];
    uint64_t kib = 0;
    mark(table, root, in);
    for (int i = 0; i < table->n; i++) {
        char text[2048];
        if (!in[i]) continue;
        /* The kernel may refuse for a process that changed its credentials: what it has resident
         * then counts whole. */
        const char *at = NULL;
        if (text_read(proc_fd, table->rows[i].pid, "smaps_rollup", text, sizeof text) > 0)
            at = strstr(text, "\nPss:");
        kib += at ? strtoull(at + 5, NULL, 10) : table->rows[i].resident_bytes / 1024;
    }
    return kib * 1024;
}

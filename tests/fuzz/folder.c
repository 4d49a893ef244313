#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

static char folder_path[512];

static void folder_remove(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        char inner[1024];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(inner, sizeof inner, "%s/%.255s", path, entry->d_name);
        if (unlink(inner) != 0 && (errno == EISDIR || errno == EPERM)) folder_remove(inner);
    }
    closedir(dir);
    rmdir(path);
}

static void folder_at_exit(void) {
    folder_remove(folder_path);
}

const char *fuzz_folder(void) {
    if (folder_path[0]) return folder_path;
    const char *parent = getenv("IFL_FUZZ_FOLDER");
    if (!parent) parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder_path, sizeof folder_path, "%s/inflight-fuzz-XXXXXX", parent);
    if (!mkdtemp(folder_path)) {
        perror(folder_path);
        exit(74);
    }
    atexit(folder_at_exit);
    return folder_path;
}

void fuzz_folder_write(const char *folder, const char *name, fuzz_input content) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t n = fuzz_left(&content);
    if (fd < 0 || (n && write(fd, content.at, n) != (ssize_t)n)) {
        perror(path);
        exit(74);
    }
    close(fd);
}

#include "deploy/cli/local_endpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREFIX "inflight-sockets-"
#define TEMPLATE PREFIX "XXXXXX"
#define TRIES_MAX 16

/* Sockets of control and weights; keys of actors that a learner with keys starts. */
static const char *const file_names[] = {"sock",           "sock.w",       "learner.secret",
                                         "learner.public", "local.public", "local.secret"};

/* A socket's whole path has to fit in 107 bytes. */
static const char *base_folder(void) {
    const char *folder = getenv("XDG_RUNTIME_DIR");
    if (!folder || folder[0] != '/' || strlen(folder) > 60 || access(folder, W_OK | X_OK) != 0)
        folder = "/tmp";
    return folder;
}

/* The folder's descriptor with its lock, when it is this user's and nobody holds it; else -1. */
static int folder_lock(const char *path) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return -1;
    if (fstat(fd, &info) == 0 && info.st_uid == geteuid() && flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    close(fd);
    return -1;
}

/* With the lock held, so that no other process takes it for its own meanwhile. */
static void folder_remove(const char *path, int fd) {
    for (size_t i = 0; i < sizeof file_names / sizeof *file_names; i++)
        unlinkat(fd, file_names[i], 0);
    rmdir(path);
    close(fd);
}

/* A killed process's lock is gone with it, so a folder that can be locked belongs to nobody: that
 * holds for process ids of other containers too. */
static void leftovers_remove(const char *base) {
    DIR *dir = opendir(base);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        char path[sizeof((ifl_local_endpoint *)0)->folder];
        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) != 0 ||
            strlen(entry->d_name) != strlen(TEMPLATE))
            continue;
        snprintf(path, sizeof path, "%s/%s", base, entry->d_name);
        int fd = folder_lock(path);
        if (fd >= 0) folder_remove(path, fd);
    }
    closedir(dir);
}

/* Between the making and the lock another process may have taken it for a leftover. */
static bool folder_is_there(const char *path, int fd) {
    struct stat named, held;
    return lstat(path, &named) == 0 && fstat(fd, &held) == 0 && named.st_dev == held.st_dev &&
           named.st_ino == held.st_ino;
}

ifl_status ifl_local_endpoint_create(ifl_local_endpoint *out, ifl_error *err) {
    const char *base = base_folder();
    *out = (ifl_local_endpoint){.lock_fd = -1};
    leftovers_remove(base);
    for (int i = 0; i < TRIES_MAX; i++) {
        snprintf(out->folder, sizeof out->folder, "%s/%s", base, TEMPLATE);
        if (!mkdtemp(out->folder)) {
            ifl_status st = ifl_fail(err, IFL_IO,
                                     "%s: cannot make a folder for the socket files: %s; set "
                                     "XDG_RUNTIME_DIR, or transport.bind",
                                     base, strerror(errno));
            out->folder[0] = '\0';
            return st;
        }
        out->lock_fd = folder_lock(out->folder);
        if (out->lock_fd >= 0 && folder_is_there(out->folder, out->lock_fd)) {
            snprintf(out->text, sizeof out->text, "ipc://%s/%s", out->folder, file_names[0]);
            return IFL_OK;
        }
        if (out->lock_fd >= 0) close(out->lock_fd);
    }
    *out = (ifl_local_endpoint){.lock_fd = -1};
    return ifl_fail(err, IFL_IO, "%s: cannot lock a folder for the socket files", base);
}

ifl_status ifl_local_keys_create(ifl_local_endpoint *out, const char *keys,
                                 char public_key[IFL_KEY_TEXT_MAX], ifl_error *err) {
    ifl_key_pair learner, local;
    IFL_TRY(ifl_key_pair_read(&learner, keys, IFL_KEY_LEARNER, err));
    IFL_TRY(ifl_key_pair_make(&local, err));
    IFL_TRY(ifl_local_endpoint_create(out, err));
    ifl_status st = ifl_key_pair_write(&local, out->folder, "local", err);
    if (st == IFL_OK) st = ifl_key_learner_write(out->folder, learner.public_key, err);
    memcpy(public_key, local.public_key, IFL_KEY_TEXT_MAX);
    explicit_bzero(&learner, sizeof learner);
    explicit_bzero(&local, sizeof local);
    return st;
}

void ifl_local_endpoint_remove(ifl_local_endpoint *endpoint) {
    if (!endpoint->folder[0]) return;
    folder_remove(endpoint->folder, endpoint->lock_fd);
    *endpoint = (ifl_local_endpoint){.lock_fd = -1};
}

#include "common/keys.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#define KEY_CHARACTERS 40
#define KEY_BYTES 32
#define PATH_BYTES 1024
#define ACTORS "actors"
#define SECRET ".secret"
#define PUBLIC ".public"

static ifl_status keys_supported(ifl_error *err) {
    if (zmq_has("curve")) return IFL_OK;
    return ifl_fail(err, IFL_UNSUPPORTED,
                    "this libzmq was built without CURVE: links with keys need one that has it");
}

/* --- Names and texts -------------------------------------------------------------------------- */

static bool key_name_is_good(const char *name, size_t n) {
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (n < 1 || n >= IFL_KEY_NAME_MAX || name[0] == '.') return false;
    return strspn(name, letters) >= n;
}

ifl_status ifl_key_name_check(const char *name, ifl_error *err) {
    if (key_name_is_good(name, strlen(name))) return IFL_OK;
    return ifl_fail(err, IFL_USAGE,
                    "\"%.60s\" is no name for a key: wanted 1 to %d letters, digits, '.', '_', "
                    "'-', no '.' in front",
                    name, IFL_KEY_NAME_MAX - 1);
}

/* NAME of NAME<ending>; false when the file has another ending or the name won't do. */
static bool key_name_of(char out[IFL_KEY_NAME_MAX], const char *file, const char *ending) {
    size_t n = strlen(file), n_ending = strlen(ending);
    if (n <= n_ending || strcmp(file + n - n_ending, ending) != 0) return false;
    if (!key_name_is_good(file, n - n_ending)) return false;
    memcpy(out, file, n - n_ending);
    out[n - n_ending] = '\0';
    return true;
}

static ifl_status key_path(char out[PATH_BYTES], const char *folder, const char *below,
                           const char *name, const char *ending, ifl_error *err) {
    int n = snprintf(out, PATH_BYTES, "%s/%s%s%s", folder, below, name, ending);
    if (n >= 0 && n < PATH_BYTES) return IFL_OK;
    return ifl_fail(err, IFL_LIMIT, "%.200s...: a path of %d bytes, limit %d", folder, n,
                    PATH_BYTES - 1);
}

static bool key_text_is_key(const char *text) {
    static const char alphabet[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   ".-:+=^!/*?&<>()[]{}@%$#";
    uint8_t bytes[KEY_BYTES];
    return strlen(text) == KEY_CHARACTERS && strspn(text, alphabet) == KEY_CHARACTERS &&
           zmq_z85_decode(bytes, text) != NULL;
}

/* --- Files ------------------------------------------------------------------------------------ */

/* Whose a file is, and who may touch it: `forbidden` are the bits that it must not have. */
static ifl_status key_mode_check(const char *path, const struct stat *info, mode_t forbidden,
                                 const char *chmod, const char *why, ifl_error *err) {
    bool root_may_own = !(forbidden & 0044); /* a secret must be this user's own */
    if (info->st_uid != geteuid() && !(root_may_own && info->st_uid == 0))
        return ifl_fail(err, IFL_USAGE, "%s belongs to user %u, and this is user %u; %s", path,
                        (unsigned)info->st_uid, (unsigned)geteuid(), why);
    if (info->st_mode & forbidden)
        return ifl_fail(err, IFL_USAGE, "%s has mode %04o: %s; chmod %s %s", path,
                        (unsigned)(info->st_mode & 07777), why, chmod, path);
    return IFL_OK;
}

static ifl_status key_file_read(char out[IFL_KEY_TEXT_MAX], const char *path, mode_t forbidden,
                                const char *chmod, const char *why, ifl_error *err) {
    char text[128];
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return ifl_fail(err, errno == ENOENT ? IFL_NOTFOUND : IFL_IO, "%s: %s", path,
                        strerror(errno));
    ifl_status st = IFL_OK;
    ssize_t n = -1;
    if (fstat(fd, &info) != 0)
        st = ifl_fail(err, IFL_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        st = ifl_fail(err, IFL_FORMAT, "%s is no ordinary file", path);
    else
        st = key_mode_check(path, &info, forbidden, chmod, why, err);
    if (st == IFL_OK && (n = read(fd, text, sizeof text - 1)) < 0)
        st = ifl_fail(err, IFL_IO, "%s: %s", path, strerror(errno));
    close(fd);
    if (st != IFL_OK) return st;
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r' || text[n - 1] == ' '))
        n--;
    text[n] = '\0';
    if (!key_text_is_key(text))
        return ifl_fail(err, IFL_FORMAT, "%s: wanted one line of %d characters of Z85", path,
                        KEY_CHARACTERS);
    memcpy(out, text, IFL_KEY_TEXT_MAX);
    return IFL_OK;
}

/* Whole or not at all, and never over what is there: a temporary file, then link(2). */
static ifl_status key_file_write(const char *path, const char *key, mode_t mode, ifl_error *err) {
    char temporary[PATH_BYTES + 32];
    snprintf(temporary, sizeof temporary, "%s.%d.tmp", path, (int)getpid());
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return ifl_fail(err, IFL_IO, "%s: %s", temporary, strerror(errno));
    char line[IFL_KEY_TEXT_MAX + 1];
    int n = snprintf(line, sizeof line, "%s\n", key);
    bool good = write(fd, line, (size_t)n) == n && fchmod(fd, mode) == 0 && fsync(fd) == 0;
    int code = errno;
    close(fd);
    if (good && link(temporary, path) != 0) {
        good = false;
        code = errno;
    }
    unlink(temporary);
    if (good) return IFL_OK;
    if (code == EEXIST)
        return ifl_fail(err, IFL_USAGE, "%s is there already; keys are never overwritten", path);
    return ifl_fail(err, IFL_IO, "%s: %s", path, strerror(code));
}

static ifl_status key_folder_make(const char *path, mode_t mode, ifl_error *err) {
    if (mkdir(path, mode) == 0 || errno == EEXIST) return IFL_OK;
    return ifl_fail(err, IFL_IO, "%s: cannot make the folder: %s", path, strerror(errno));
}

/* --- Pairs ------------------------------------------------------------------------------------ */

ifl_status ifl_key_pair_make(ifl_key_pair *out, ifl_error *err) {
    IFL_TRY(keys_supported(err));
    if (zmq_curve_keypair(out->public_key, out->secret_key) == 0) return IFL_OK;
    return ifl_fail(err, IFL_IO, "cannot make a key pair: %s", zmq_strerror(zmq_errno()));
}

ifl_status ifl_key_pair_read(ifl_key_pair *out, const char *folder, const char *name,
                             ifl_error *err) {
    char path[PATH_BYTES];
    IFL_TRY(keys_supported(err));
    IFL_TRY(ifl_key_name_check(name, err));
    IFL_TRY(key_path(path, folder, "", name, SECRET, err));
    ifl_status st = key_file_read(out->secret_key, path, 0077, "600",
                                  "a secret key is for its user's eyes alone", err);
    if (st == IFL_NOTFOUND)
        return ifl_fail(err, IFL_NOTFOUND, "%s: no such file; `inflight keys new %s%s%s` makes it",
                        path, folder, strcmp(name, IFL_KEY_LEARNER) == 0 ? "" : " ",
                        strcmp(name, IFL_KEY_LEARNER) == 0 ? "" : name);
    IFL_TRY(st);
    if (zmq_curve_public(out->public_key, out->secret_key) != 0)
        return ifl_fail(err, IFL_FORMAT, "%s: no public key follows from it: %s", path,
                        zmq_strerror(zmq_errno()));
    return IFL_OK;
}

ifl_status ifl_key_pair_write(const ifl_key_pair *pair, const char *folder, const char *name,
                              ifl_error *err) {
    char secret[PATH_BYTES], public[PATH_BYTES];
    IFL_TRY(ifl_key_name_check(name, err));
    IFL_TRY(key_folder_make(folder, 0700, err));
    IFL_TRY(key_path(secret, folder, "", name, SECRET, err));
    IFL_TRY(key_path(public, folder, "", name, PUBLIC, err));
    if (access(public, F_OK) == 0)
        return ifl_fail(err, IFL_USAGE, "%s is there already; keys are never overwritten", public);
    IFL_TRY(key_file_write(secret, pair->secret_key, 0600, err));
    return key_file_write(public, pair->public_key, 0644, err);
}

ifl_status ifl_key_public_read(char out[IFL_KEY_TEXT_MAX], const char *path, ifl_error *err) {
    return key_file_read(out, path, 0022, "go-w", "others must not be able to put their key there",
                         err);
}

ifl_status ifl_key_learner_read(char out[IFL_KEY_TEXT_MAX], const char *folder, ifl_error *err) {
    char path[PATH_BYTES];
    IFL_TRY(key_path(path, folder, "", IFL_KEY_LEARNER, PUBLIC, err));
    ifl_status st = ifl_key_public_read(out, path, err);
    if (st == IFL_NOTFOUND)
        return ifl_fail(err, IFL_NOTFOUND,
                        "%s: no such file; copy it from the keys of the learner's host", path);
    return st;
}

ifl_status ifl_key_peer_read(char out[IFL_KEY_TEXT_MAX], const char *folder, const char *name,
                             ifl_error *err) {
    char path[PATH_BYTES];
    IFL_TRY(ifl_key_name_check(name, err));
    IFL_TRY(key_path(path, folder, "", name, PUBLIC, err));
    ifl_status st = ifl_key_public_read(out, path, err);
    if (st == IFL_NOTFOUND)
        return ifl_fail(err, IFL_NOTFOUND, "%s: no such file; copy it from the keys of %s's host",
                        path, name);
    return st;
}

ifl_status ifl_key_learner_write(const char *folder, const char *key, ifl_error *err) {
    char path[PATH_BYTES];
    IFL_TRY(key_path(path, folder, "", IFL_KEY_LEARNER, PUBLIC, err));
    return key_file_write(path, key, 0644, err);
}

ifl_status ifl_key_actor_name(char out[IFL_KEY_NAME_MAX], const char *folder, const char *wanted,
                              const char *or_else, ifl_error *err) {
    if (wanted && *wanted) {
        IFL_TRY(ifl_key_name_check(wanted, err));
        snprintf(out, IFL_KEY_NAME_MAX, "%s", wanted);
        return IFL_OK;
    }
    DIR *dir = opendir(folder);
    if (!dir) return ifl_fail(err, IFL_NOTFOUND, "%s: %s", folder, strerror(errno));
    int n = 0;
    bool has_other = false;
    char name[IFL_KEY_NAME_MAX], first[IFL_KEY_NAME_MAX] = "";
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!key_name_of(name, entry->d_name, SECRET) || strcmp(name, IFL_KEY_LEARNER) == 0)
            continue;
        if (n++ == 0) memcpy(first, name, sizeof first);
        has_other |= or_else && strcmp(name, or_else) == 0;
    }
    closedir(dir);
    if (n == 1 || has_other) {
        snprintf(out, IFL_KEY_NAME_MAX, "%s", n == 1 ? first : or_else);
        return IFL_OK;
    }
    if (n == 0)
        return ifl_fail(err, IFL_USAGE,
                        "%s holds no actor's secret key; `inflight keys new %s NAME` makes one",
                        folder, folder);
    return ifl_fail(err, IFL_USAGE, "%s holds %d actors' secret keys; say which with transport.key",
                    folder, n);
}

/* --- The allow-list --------------------------------------------------------------------------- */

static int key_entry_order(const void *a, const void *b) {
    return strcmp(((const ifl_key_entry *)a)->name, ((const ifl_key_entry *)b)->name);
}

static ifl_status key_list_add(ifl_key_list *list, int32_t *n_max, const char *folder,
                               const char *file, ifl_error *err) {
    char path[PATH_BYTES];
    ifl_key_entry entry = {0};
    if (!key_name_of(entry.name, file, PUBLIC)) return IFL_OK; /* not ours, or half written */
    IFL_TRY(key_path(path, folder, ACTORS "/", entry.name, PUBLIC, err));
    IFL_TRY(ifl_key_public_read(entry.key, path, err));
    if (list->n == IFL_KEYS_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s/" ACTORS ": more than %d keys", folder, IFL_KEYS_MAX);
    if (list->n == *n_max) {
        int32_t more = *n_max ? *n_max * 2 : 16;
        ifl_key_entry *grown = realloc(list->entries, (size_t)more * sizeof *grown);
        if (!grown) return ifl_fail(err, IFL_NOMEM, "out of memory: the list of keys");
        list->entries = grown;
        *n_max = more;
    }
    list->entries[list->n++] = entry;
    return IFL_OK;
}

ifl_status ifl_key_list_read(ifl_key_list *out, const char *folder, ifl_error *err) {
    char path[PATH_BYTES];
    struct stat info;
    *out = (ifl_key_list){0};
    IFL_TRY(key_path(path, folder, ACTORS, "", "", err));
    DIR *dir = opendir(path);
    if (!dir && errno == ENOENT && access(folder, R_OK | X_OK) == 0) return IFL_OK;
    if (!dir) return ifl_fail(err, IFL_IO, "%s: %s", path, strerror(errno));
    ifl_key_list list = {0};
    int32_t n_max = 0;
    ifl_status st = IFL_OK;
    if (fstat(dirfd(dir), &info) == 0)
        st = key_mode_check(path, &info, 0022, "go-w", "others could let themselves in", err);
    for (struct dirent *entry; st == IFL_OK && (entry = readdir(dir));)
        st = key_list_add(&list, &n_max, folder, entry->d_name, err);
    closedir(dir);
    if (st != IFL_OK) {
        ifl_key_list_clear(&list);
        return st;
    }
    if (list.n) qsort(list.entries, (size_t)list.n, sizeof *list.entries, key_entry_order);
    *out = list;
    return IFL_OK;
}

void ifl_key_list_clear(ifl_key_list *list) {
    free(list->entries);
    *list = (ifl_key_list){0};
}

const ifl_key_entry *ifl_key_list_find(const ifl_key_list *list, const char *key) {
    for (int32_t i = 0; i < list->n; i++)
        if (strcmp(list->entries[i].key, key) == 0) return &list->entries[i];
    return NULL;
}

ifl_status ifl_key_allow(const char *folder, const char *name, const char *key, ifl_error *err) {
    char path[PATH_BYTES], there[IFL_KEY_TEXT_MAX];
    IFL_TRY(ifl_key_name_check(name, err));
    if (strcmp(name, IFL_KEY_LEARNER) == 0)
        return ifl_fail(err, IFL_USAGE, "\"%s\" is the learner's own name, not an actor's", name);
    if (!key_text_is_key(key))
        return ifl_fail(err, IFL_FORMAT, "%s: wanted a public key of %d characters of Z85", name,
                        KEY_CHARACTERS);
    IFL_TRY(key_path(path, folder, ACTORS, "", "", err));
    IFL_TRY(key_folder_make(path, 0755, err));
    IFL_TRY(key_path(path, folder, ACTORS "/", name, PUBLIC, err));
    ifl_status st = ifl_key_public_read(there, path, NULL);
    if (st == IFL_OK && strcmp(there, key) == 0) return IFL_OK;
    if (st == IFL_OK)
        return ifl_fail(err, IFL_USAGE,
                        "another key is allowed as %s (%s); take that one out first with `inflight "
                        "keys revoke %s %s`, or give another name",
                        name, path, folder, name);
    return key_file_write(path, key, 0644, err);
}

ifl_status ifl_key_revoke(const char *folder, const char *name, ifl_error *err) {
    char path[PATH_BYTES];
    IFL_TRY(ifl_key_name_check(name, err));
    IFL_TRY(key_path(path, folder, ACTORS "/", name, PUBLIC, err));
    if (unlink(path) == 0) return IFL_OK;
    return ifl_fail(err, errno == ENOENT ? IFL_NOTFOUND : IFL_IO, "%s: %s", path, strerror(errno));
}

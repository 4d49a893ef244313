/* The root that runs see: in memory, read-only, with the runtime and a few devices. */
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rewards/sandbox/launch.h"

static int fail(char stage[LAUNCH_STAGE_MAX], const char *what, const char *path) {
    int code = errno;
    snprintf(stage, LAUNCH_STAGE_MAX, "%s %.120s", what, path);
    errno = code;
    return -1;
}

/* Folders on the way to `path`, which is relative. */
static int folders_make(const char *path) {
    char text[256];
    int n = snprintf(text, sizeof text, "%s", path);
    if (n < 0 || n >= (int)sizeof text) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (char *p = text; (p = strchr(p, '/')); p++) {
        *p = '\0';
        if (mkdir(text, 0755) && errno != EEXIST) return -1;
        *p = '/';
    }
    return 0;
}

/* Shows the host's `path` (absolute) at the same place below the working folder, read-only, or as
 * the symbolic link that it is. What the host lacks is left out. */
static int show(const char *path, bool device, char stage[LAUNCH_STAGE_MAX]) {
    struct stat st;
    char target[256];
    const char *to = path + 1;
    if (lstat(path, &st)) return errno == ENOENT ? 0 : fail(stage, "stat of", path);
    if (folders_make(to)) return fail(stage, "mkdir for", path);
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0) return fail(stage, "readlink of", path);
        target[n] = '\0';
        return symlink(target, to) ? fail(stage, "symlink of", path) : 0;
    }
    if (S_ISDIR(st.st_mode)) {
        if (mkdir(to, 0755) && errno != EEXIST) return fail(stage, "mkdir for", path);
    } else {
        int fd = open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
        if (fd < 0) return fail(stage, "create for", path);
        close(fd);
    }
    if (mount(path, to, NULL, MS_BIND | MS_REC, NULL)) return fail(stage, "bind mount of", path);
    struct mount_attr attr = {
        .attr_set = MOUNT_ATTR_NOSUID |
                    (device ? MOUNT_ATTR_NOEXEC : MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV)};
    if (syscall(SYS_mount_setattr, AT_FDCWD, to, AT_RECURSIVE, &attr, sizeof attr))
        return fail(stage, "read-only mount of", path);
    return 0;
}

/* A procfs of this pid namespace, mounted nowhere: runs must not see it. The kernel wants to see
 * the host's own, uncovered, at this moment. */
static int proc_open(char stage[LAUNCH_STAGE_MAX]) {
    int fs = (int)syscall(SYS_fsopen, "proc", FSOPEN_CLOEXEC);
    if (fs < 0) return fail(stage, "fsopen of", "proc");
    if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0)) {
        fail(stage, "superblock of", "proc (does a container mask parts of /proc?)");
        close(fs);
        return -1;
    }
    int fd = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
    if (fd < 0) fail(stage, "mount of", "proc (does a container mask parts of /proc?)");
    close(fs);
    return fd;
}

static int root_fill(const launch_setup *setup, char stage[LAUNCH_STAGE_MAX]) {
    static const char *const runtime[] = {
        "/usr",   "/lib",  "/lib64",           "/lib32",
        "/bin",   "/sbin", "/etc/ld.so.cache", "/etc/alternatives",
        "/libx32"};
    static const char *const devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random",
                                          "/dev/urandom"};
    for (size_t i = 0; i < sizeof runtime / sizeof *runtime; i++)
        if (show(runtime[i], false, stage)) return -1;
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (show(devices[i], true, stage)) return -1;
    for (int i = 0; i < IFL_SANDBOX_SHOW_MAX && setup->show[i][0]; i++)
        if (show(setup->show[i], false, stage)) return -1;
    char options[64];
    snprintf(options, sizeof options, "size=%llu,nr_inodes=16,mode=0755",
             (unsigned long long)IFL_SANDBOX_KEEP_BYTES);
    if (mkdir(IFL_SANDBOX_KEEP + 1, 0755) ||
        mount("keep", IFL_SANDBOX_KEEP + 1, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options))
        return fail(stage, "making", IFL_SANDBOX_KEEP);
    if (mkdir(LAUNCH_WORK + 1, 0755) || symlink(LAUNCH_WORK, "tmp") ||
        symlink(LAUNCH_WORK, "dev/shm"))
        return fail(stage, "making", LAUNCH_WORK);
    return 0;
}

int launch_root(const launch_setup *setup, int *proc_fd, char stage[LAUNCH_STAGE_MAX]) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) return fail(stage, "remount of", "/");
    if ((*proc_fd = proc_open(stage)) < 0) return -1;
    /* Any folder that is on every host will do: it is covered in this namespace alone. */
    if (mount("root", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=512,mode=0755"))
        return fail(stage, "mount of a", "tmpfs");
    if (chdir("/tmp")) return fail(stage, "chdir to", "/tmp");
    if (root_fill(setup, stage)) return -1;
    if (syscall(SYS_pivot_root, ".", ".")) return fail(stage, "pivot_root to", "the new root");
    if (umount2(".", MNT_DETACH)) return fail(stage, "umount of", "the old root");
    if (chdir("/")) return fail(stage, "chdir to", "the new root");
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL))
        return fail(stage, "read-only remount of", "the new root");
    if (sethostname("sandbox", 7)) return fail(stage, "sethostname", "");
    return 0;
}

static int text_write(int dir_fd, const char *path, const char *text) {
    int fd = openat(dir_fd, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = write(fd, text, strlen(text));
    int code = errno;
    close(fd);
    errno = code;
    return n == (ssize_t)strlen(text) ? 0 : -1;
}

int launch_map_user(int dir_fd, const char *who, uid_t uid, gid_t gid) {
    char path[64], text[64];
    snprintf(path, sizeof path, "%s/setgroups", who);
    if (text_write(dir_fd, path, "deny")) return -1;
    snprintf(path, sizeof path, "%s/uid_map", who);
    snprintf(text, sizeof text, "1000 %u 1\n", (unsigned)uid);
    if (text_write(dir_fd, path, text)) return -1;
    snprintf(path, sizeof path, "%s/gid_map", who);
    snprintf(text, sizeof text, "1000 %u 1\n", (unsigned)gid);
    return text_write(dir_fd, path, text);
}

/* The system call filter: a deny list over namespaces that already hold, for what namespaces don't
 * cover (kernel interfaces with a record of faults, memory that no limit counts, other processes of
 * the same user). What only an attack asks for kills the process (SIGSYS: a violation); what honest
 * runtimes probe for fails with an errno. Written as plain BPF: no library's list decides. */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rewards/sandbox/launch.h"

#if defined(__x86_64__)
#define FILTER_ARCH AUDIT_ARCH_X86_64
#define FILTER_NR_MAX 0x3fffffffu /* beyond: x32 */
#elif defined(__aarch64__)
#define FILTER_ARCH AUDIT_ARCH_AARCH64
#define FILTER_NR_MAX 0x7fffffffu
#else
#error "the sandbox's filter knows x86-64 and arm64 only"
#endif

#define KILL SECCOMP_RET_KILL_PROCESS
#define REFUSE(e) (SECCOMP_RET_ERRNO | (e))
#define NAMESPACES                                                                                 \
    (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS |     \
     CLONE_NEWCGROUP | 0x80 /* CLONE_NEWTIME */)
#define LOW(i) (offsetof(struct seccomp_data, args) + 8 * (i))
#define LOAD(at) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (at))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))
#define DENY(name, what) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), RETURN(what)
/* Denied when the argument's low word has one of the bits, or equals the value, or doesn't. The
 * accumulator holds the number again behind each. */
#define DENY_BITS(name, i, bits, what)                                                             \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4), LOAD(LOW(i)),                           \
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 0, 1), RETURN(what),                          \
        LOAD(offsetof(struct seccomp_data, nr))
#define DENY_EQUAL(name, i, value, what)                                                           \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4), LOAD(LOW(i)),                           \
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, 1), RETURN(what),                \
        LOAD(offsetof(struct seccomp_data, nr))
#define DENY_UNLESS(name, i, value, what)                                                          \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4), LOAD(LOW(i)),                           \
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 1, 0), RETURN(what),                \
        LOAD(offsetof(struct seccomp_data, nr))

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#endif
#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static struct sock_filter filter[] = {
    LOAD(offsetof(struct seccomp_data, arch)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCH, 1, 0),
    RETURN(KILL),
    LOAD(offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, FILTER_NR_MAX, 0, 1),
    RETURN(KILL),
    /* Newer than this list: unknown to it, so it isn't there. */
    BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, SYS_mseal, 0, 1),
    RETURN(REFUSE(ENOSYS)),
    /* Namespaces, mounts, the machine. */
    DENY_BITS(clone, 0, NAMESPACES, KILL),
    DENY(clone3, REFUSE(ENOSYS)), /* its flags lie in memory; libraries fall back on clone */
    DENY_BITS(unshare, 0, NAMESPACES, KILL),
    DENY(setns, KILL),
    DENY(mount, KILL),
    DENY(umount2, KILL),
    DENY(pivot_root, KILL),
    DENY(chroot, KILL),
    DENY(open_tree, KILL),
    DENY(move_mount, KILL),
    DENY(fsopen, KILL),
    DENY(fsmount, KILL),
    DENY(fsconfig, KILL),
    DENY(fspick, KILL),
    DENY(mount_setattr, KILL),
    DENY(swapon, KILL),
    DENY(swapoff, KILL),
    DENY(reboot, KILL),
    DENY(kexec_load, KILL),
    DENY(kexec_file_load, KILL),
    DENY(init_module, KILL),
    DENY(finit_module, KILL),
    DENY(delete_module, KILL),
    DENY(acct, KILL),
    DENY(quotactl, KILL),
    DENY(settimeofday, KILL),
    DENY(clock_settime, KILL),
    DENY(adjtimex, REFUSE(EPERM)),
    DENY(clock_adjtime, REFUSE(EPERM)),
    DENY(sethostname, KILL),
    DENY(setdomainname, KILL),
    DENY(syslog, REFUSE(EPERM)),
    DENY(name_to_handle_at, REFUSE(EPERM)),
    DENY(open_by_handle_at, KILL),
#if defined(__x86_64__)
    DENY(iopl, KILL),
    DENY(ioperm, KILL),
    DENY(modify_ldt, KILL),
    DENY(uselib, KILL),
#endif
    /* Other processes. */
    DENY(ptrace, KILL),
    DENY(process_vm_readv, KILL),
    DENY(process_vm_writev, KILL),
    DENY(pidfd_getfd, KILL),
    DENY(process_madvise, KILL),
    DENY(kcmp, KILL),
    DENY(migrate_pages, KILL),
    DENY(move_pages, REFUSE(EPERM)),
    DENY_UNLESS(prlimit64, 0, 0, REFUSE(EPERM)), /* the init has the same user */
    DENY_UNLESS(sched_setaffinity, 0, 0, REFUSE(EPERM)),
    DENY_UNLESS(sched_setscheduler, 0, 0, REFUSE(EPERM)),
    DENY_UNLESS(sched_setattr, 0, 0, REFUSE(EPERM)),
    DENY_UNLESS(sched_setparam, 0, 0, REFUSE(EPERM)),
    /* Wide interfaces with a record of faults. */
    DENY(bpf, KILL),
    DENY(perf_event_open, KILL),
    DENY(userfaultfd, KILL),
    DENY(keyctl, KILL),
    DENY(add_key, KILL),
    DENY(request_key, KILL),
    DENY(io_uring_setup, KILL),
    DENY(io_uring_enter, KILL),
    DENY(io_uring_register, KILL),
    DENY(fanotify_init, KILL),
    DENY(seccomp, REFUSE(EPERM)),
    DENY_EQUAL(prctl, 0, PR_SET_SECCOMP, REFUSE(EPERM)),
    DENY_UNLESS(personality, 0, 0xffffffff, REFUSE(EPERM)),
    DENY(vhangup, KILL),
    DENY_EQUAL(ioctl, 1, TIOCSTI, KILL),
    DENY_EQUAL(ioctl, 1, 0x541c /* TIOCLINUX */, KILL),
    DENY_EQUAL(ioctl, 1, TIOCSCTTY, REFUSE(EPERM)),
    /* Sockets: pairs only. The name service's library asks and is content without. */
    DENY(socket, REFUSE(EACCES)),
    /* Memory that no limit of the tree counts. */
    DENY(memfd_create, REFUSE(ENOSYS)),
    DENY(memfd_secret, REFUSE(ENOSYS)),
    DENY(shmget, REFUSE(ENOSYS)),
    DENY(shmat, REFUSE(ENOSYS)),
    DENY(semget, REFUSE(ENOSYS)),
    DENY(msgget, REFUSE(ENOSYS)),
    DENY(mq_open, REFUSE(ENOSYS)),
    DENY_EQUAL(fcntl, 1, F_SETPIPE_SZ, REFUSE(EPERM)),
    RETURN(SECCOMP_RET_ALLOW),
};

int launch_filter(void) {
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

#include "rewards/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "rewards/checkers.h"
#include "rewards/code/code.h"
#include "rewards/host.h"

#define WORKER_MEMORY_BYTES                                                                        \
    ((rlim_t)2 << 30) /* a checker beyond this gets no memory, not the host's */
#define EXIT_GARBLED 65

static int worker_result_fd = -1; /* for test_fault alone: garbage must get onto the wire somehow */

static bool read_all(int fd, void *to, size_t n) {
    for (uint8_t *p = to; n > 0;) {
        ssize_t got = read(fd, p, n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        p += got;
        n -= (size_t)got;
    }
    return true;
}

static bool write_all(int fd, const void *from, size_t n) {
    for (const uint8_t *p = from; n > 0;) {
        ssize_t put = write(fd, p, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        p += put;
        n -= (size_t)put;
    }
    return true;
}

/* What a checker prints must not end up among the results, and nobody starts a program from here
 * that could hold the sockets open. */
static bool worker_isolate(int *in_fd, int *out_fd) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a parent that died before this line shows as end of file */
    signal(SIGPIPE, SIG_IGN);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they map terabytes */
    /* Soft: a plug-in's process has a limit of its own. */
    struct rlimit memory = {0, RLIM_INFINITY};
    if (getrlimit(RLIMIT_AS, &memory) == 0 && memory.rlim_max > WORKER_MEMORY_BYTES)
        memory.rlim_cur = WORKER_MEMORY_BYTES;
    setrlimit(RLIMIT_AS, &memory);
#endif
    int in = fcntl(*in_fd, F_DUPFD_CLOEXEC, 10), out = fcntl(*out_fd, F_DUPFD_CLOEXEC, 10);
    int nowhere = open("/dev/null", O_RDWR);
    if (in < 0 || out < 0 || nowhere < 0) return false;
    if (dup2(nowhere, STDIN_FILENO) < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) return false;
    if (nowhere > STDERR_FILENO) close(nowhere);
    if (*in_fd > STDERR_FILENO) close(*in_fd);
    if (*out_fd > STDERR_FILENO && *out_fd != *in_fd) close(*out_fd);
    *in_fd = in;
    *out_fd = out;
    return true;
}

/* Makes the checkers ready and says so, or why not. */
static bool worker_set_up(int in_fd, int out_fd, ifl_reward_host **host) {
    uint8_t head[4], *body = NULL, reply[IFL_REWARD_REPLY_MAX];
    int32_t timeout_ms;
    ifl_sandbox_tier require;
    const char *checkers;
    ifl_error err = {0};
    if (!read_all(in_fd, head, sizeof head)) return true; /* a pool that went away at once */
    uint32_t n = ifl_reward_frame_length(head);
    bool fine = n <= IFL_REWARD_FRAME_MAX && (body = malloc(n ? n : 1)) &&
                read_all(in_fd, body, n) &&
                ifl_reward_setup_decode(body, n, &timeout_ms, &require, &checkers, NULL) == IFL_OK;
    if (fine) {
        ifl_code_setup(&(ifl_sandbox_options){.require = require});
        ifl_status st = ifl_reward_host_create(host, checkers, timeout_ms, &err);
        bool theirs = st == IFL_USAGE || st == IFL_FORMAT || st == IFL_NOTFOUND;
        ifl_reward reward = {.status = st == IFL_OK ? IFL_REWARD_OK
                                       : theirs     ? IFL_REWARD_BAD_TASK
                                                    : IFL_REWARD_CHECKER_ERROR};
        fine = write_all(
                   out_fd, reply,
                   ifl_reward_reply_encode(0, &reward, st == IFL_OK ? "" : err.text, 0, reply)) &&
               st == IFL_OK;
    }
    free(body);
    return fine;
}

int ifl_reward_worker_main(int in_fd, int out_fd) {
    uint8_t head[4], reply[IFL_REWARD_REPLY_MAX];
    if (!worker_isolate(&in_fd, &out_fd)) return EXIT_FAILURE;
    worker_result_fd = out_fd;
    if (!write_all(out_fd, IFL_REWARD_HELLO, sizeof IFL_REWARD_HELLO)) return EXIT_FAILURE;
    ifl_reward_host *host = NULL;
    if (!worker_set_up(in_fd, out_fd, &host)) return EXIT_GARBLED;
    bool fine = true;
    while (fine && read_all(in_fd, head, sizeof head)) {
        uint32_t n = ifl_reward_frame_length(head);
        uint8_t *body = n <= IFL_REWARD_FRAME_MAX ? malloc(n ? n : 1) : NULL;
        if (!body) fine = false;
        if (!body) break;
        ifl_reward_request request;
        fine = read_all(in_fd, body, n) &&
               ifl_reward_request_decode(body, n, &request, NULL) == IFL_OK;
        if (fine) {
            ifl_reward reward;
            char reason[IFL_REWARD_REASON_MAX];
            uint32_t flags;
            ifl_reward_host_check(host, &request, &reward, reason, &flags);
            fine = write_all(out_fd, reply,
                             ifl_reward_reply_encode(request.id, &reward, reason, flags, reply));
        }
        free(body);
    }
    ifl_reward_host_free(host);
    return fine ? EXIT_SUCCESS : EXIT_GARBLED;
}

static void fault_sleep(void) {
    for (;;)
        nanosleep(&(struct timespec){1, 0}, NULL);
}

static ifl_status test_fault_check(const ifl_reward_request *request, ifl_reward *out,
                                   ifl_error *err) {
    const char *what = request->answer;
    if (strcmp(what, "ok") == 0) return ifl_verdict(out, true);
    if (strcmp(what, "fail") == 0) return ifl_fail(err, IFL_NOMEM, "failed as asked");
    if (strcmp(what, "sleep") == 0) fault_sleep();
    if (strcmp(what, "exit") == 0) _exit(7);
    if (strcmp(what, "crash") == 0) {
        signal(SIGSEGV, SIG_DFL); /* a sanitizer's handler would turn it into an exit */
        raise(SIGSEGV);
    }
    if (strcmp(what, "spin") == 0) {
        for (volatile int i = 0;;)
            i = !i;
    }
    if (strcmp(what, "fork") == 0) { /* a child that must die with the worker's group */
        pid_t pid = fork();
        if (pid < 0) return ifl_fail(err, IFL_IO, "fork: %s", strerror(errno));
        fault_sleep();
    }
    if (strcmp(what, "garbage") == 0) {
        static const char noise[] = "\x10\0\0\0this is no reply of ours";
        write_all(worker_result_fd, noise, sizeof noise);
        fault_sleep();
    }
    if (strcmp(what, "flood") == 0) {
        static const char flood[4096] = {(char)0xff, (char)0xff, (char)0xff, (char)0xff};
        while (write_all(worker_result_fd, flood, sizeof flood)) {
        }
        fault_sleep();
    }
    if (strcmp(what, "nan") == 0) {
        out->status = IFL_REWARD_OK;
        out->reward = NAN;
        return IFL_OK;
    }
    return ifl_verdict_bad_task(out, err, "test_fault doesn't know '%.60s'", what);
}

const ifl_checker ifl_checker_test_fault = {
    .name = "test_fault",
    .version = "1",
    .help = "for tests: misbehaves as the answer says",
    .check = test_fault_check,
};

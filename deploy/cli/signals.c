#include "deploy/cli/signals.h"

#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

static atomic_bool stop_requested;

static void signal_stop(int number) {
    if (atomic_exchange(&stop_requested, true)) _exit(128 + number);
}

static atomic_uint hangups;

static void signal_hangup(int number) {
    (void)number;
    atomic_fetch_add(&hangups, 1);
}

const atomic_uint *ifl_signals_count_hangups(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = signal_hangup;
    action.sa_flags = SA_RESTART;
    sigaction(SIGHUP, &action, NULL);
    return &hangups;
}

const atomic_bool *ifl_signals_install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = signal_stop;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    return &stop_requested;
}

#include <stdio.h>
#include <string.h>

#include "common/fail_point.h"
#include "common/recorder.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/options.h"
#include "rewards/reward.h"
#include "rewards/sandbox/sandbox.h"

#define EXIT_USAGE 64 /* sysexits.h */

typedef struct command {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} command;

static const command commands[] = {
#define COMMAND_ROW(id, name, help) {name, help, ifl_cmd_##id},
    IFL_COMMANDS(COMMAND_ROW)
#undef COMMAND_ROW
};

static void usage_print(FILE *f) {
    fprintf(f, "usage: inflight COMMAND [--config FILE] [key=value ...]\n\n"
               "On-policy RL post-training with weights that change in flight.\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(f,
            "\n`inflight COMMAND --help` explains one; `inflight train --help-config` lists every "
            "key.\n");
}

int main(int argc, char **argv) {
    if (argc < 2) {
        usage_print(stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        usage_print(stdout);
        return 0;
    }
    if (!strcmp(name, "--version")) {
        printf("inflight %s\n", IFL_VERSION);
        return 0;
    }
    /* Hidden: what a reward pool starts (rewards/reward.h). */
    if (!strcmp(name, "reward-worker")) return ifl_reward_worker_main(0, 1);
    /* Hidden: what runs the programs of code rewards (rewards/sandbox/sandbox.h). */
    if (!strcmp(name, "sandbox-launch")) return ifl_sandbox_launch_main(0);
    ifl_error err = {0};
    if (ifl_fail_points_setup(&err) != IFL_OK || ifl_recorder_setup(&err) != IFL_OK) {
        fprintf(stderr, "inflight: %s\n", err.text);
        return ifl_status_exit_code(err.status);
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(name, commands[i].name)) continue;
        char full[64];
        snprintf(full, sizeof full, "inflight %s", name);
        argv[1] = full; /* outlives the command: it is main's */
        return commands[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "inflight: unknown command \"%.60s\"; `inflight --help` lists them\n", name);
    return EXIT_USAGE;
}

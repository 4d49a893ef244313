/* The subcommands of the `inflight` binary, one file each: deploy/cli/cmd_<name>.c. argv[0] is
 * "inflight <name>"; the return value is the exit code (ifl_status_exit_code). */
#ifndef IFL_DEPLOY_CLI_COMMANDS_H
#define IFL_DEPLOY_CLI_COMMANDS_H

/* name (also the C name's end), one line of help; sorted by what a user does first. */
#define IFL_COMMANDS(X)                                                                            \
    X(train, "train", "start a learner and local actors, show progress, write the run folder")     \
    X(sft, "sft", "warm-start a policy by supervised fine-tuning, write a model folder")           \
    X(generate, "generate", "generate answers to a prompt")                                        \
    X(eval, "eval", "measure a model on held-out tasks")                                           \
    X(score, "score", "run a checker on answers")                                                  \
    X(parity, "parity", "prove that log-probs have the same bits on every path")                   \
    X(bench, "bench", "measure speed, beside what this host can do and beside other engines")      \
    X(export, "export", "write a checkpoint or a model file as a Hugging Face folder")             \
    X(rollouts, "rollouts", "read a run's trajectories; --check balances its books")               \
    X(replay, "replay", "generate trajectories of a run again and compare every bit")              \
    X(ledger, "ledger",                                                                            \
      "where a run's off-policyness comes from, in nats; --check scores it again")                 \
    X(report, "report", "write a run's report.html")                                               \
    X(learner, "learner", "the learner process alone, for actors elsewhere")                       \
    X(actor, "actor", "one actor process, for a learner elsewhere")                                \
    X(relay, "relay", "hands weights on to many actors, so that the learner sends them once")      \
    X(keys, "keys", "make and allow the keys of links between hosts")

#define IFL_COMMAND_DECLARE(id, name, help) int ifl_cmd_##id(int argc, char **argv);
IFL_COMMANDS(IFL_COMMAND_DECLARE)
#undef IFL_COMMAND_DECLARE

#endif

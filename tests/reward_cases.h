/* Tables of cases for the checkers. Include after cmocka's own headers. */
#ifndef IFL_TESTS_REWARD_CASES_H
#define IFL_TESTS_REWARD_CASES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rewards/reward.h"
#include "rewards/worker.h"

#define BIG IFL_ANSWER_BYTES_MAX
/* CPU seconds for one completion of 1 MiB: 0.2 are usual, sanitizers take ten times that, and
 * anything quadratic would take hours. */
#define BIG_S 30.0

static inline ifl_reward check_bytes(const char *checker, const char *answer, const char *meta,
                                     const char *completion, size_t n, ifl_finish finish) {
    ifl_reward_request request = {.id = 1,
                                  .checker = checker,
                                  .prompt = "",
                                  .completion = completion,
                                  .n_completion = n,
                                  .answer = answer,
                                  .meta = meta,
                                  .finish = finish};
    ifl_reward out;
    char reason[1024];
    ifl_reward_check(&request, &out, reason);
    /* What is no verdict says why; a plain right or wrong needs no words. */
    if (!ifl_reward_is_verdict(out.status)) assert_true(reason[0] != '\0');
    if (out.status == IFL_REWARD_OK) assert_true(reason[0] == '\0');
    return out;
}

typedef struct pair_case {
    const char *answer, *completion;
    int right; /* 1; 0: a verdict that pays nothing; -1: bad task */
} pair_case;

static inline void expect_cases(const char *checker, const char *meta, const pair_case *cases,
                                size_t n) {
    for (size_t i = 0; i < n; i++) {
        ifl_reward r = check_bytes(checker, cases[i].answer, meta, cases[i].completion,
                                   strlen(cases[i].completion), IFL_FINISH_EOS);
        bool fine = cases[i].right < 0   ? r.status == IFL_REWARD_BAD_TASK
                    : cases[i].right > 0 ? r.status == IFL_REWARD_OK
                                         : r.status >= IFL_REWARD_WRONG;
        float reward = cases[i].right > 0 ? 1.0f : 0.0f;
        if (!fine || r.reward != reward)
            fail_msg("%s: answer '%s', completion '%s': got status %d reward %g, wanted %d",
                     checker, cases[i].answer, cases[i].completion, (int)r.status, (double)r.reward,
                     cases[i].right);
    }
}

#define EXPECT(checker, meta, ...)                                                                 \
    do {                                                                                           \
        static const pair_case cases[] = __VA_ARGS__;                                              \
        expect_cases(checker, meta, cases, sizeof cases / sizeof *cases);                          \
    } while (0)

/* The same with the status itself, each case with its own meta. */
typedef struct verdict_case {
    const char *meta, *answer, *completion;
    ifl_reward_status status;
} verdict_case;

static inline void expect_verdicts(const char *checker, const verdict_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        ifl_reward r = check_bytes(checker, cases[i].answer, cases[i].meta, cases[i].completion,
                                   strlen(cases[i].completion), IFL_FINISH_EOS);
        if (r.status != cases[i].status || r.reward != (r.status == IFL_REWARD_OK ? 1.0f : 0.0f))
            fail_msg("%s: meta %s, answer '%s', completion '%s': got %s, reward %g, wanted %s",
                     checker, cases[i].meta, cases[i].answer, cases[i].completion,
                     ifl_reward_status_name(r.status), (double)r.reward,
                     ifl_reward_status_name(cases[i].status));
    }
}

#define VERDICTS(checker, ...)                                                                     \
    do {                                                                                           \
        static const verdict_case cases[] = __VA_ARGS__;                                           \
        expect_verdicts(checker, cases, sizeof cases / sizeof *cases);                             \
    } while (0)

/* 1 MiB of `seed` over and over (NULL: of NULs): a verdict or UNDECIDED comes, in time. */
static inline void expect_bounded(const char *checker, const char *answer, const char *meta,
                                  const char *seed) {
    char *text = malloc(BIG);
    assert_non_null(text);
    size_t n = seed ? strlen(seed) : 1;
    for (size_t at = 0; at < BIG; at++)
        text[at] = seed ? seed[at % n] : '\0';
    clock_t begin = clock();
    ifl_reward r = check_bytes(checker, answer, meta, text, BIG, IFL_FINISH_LENGTH);
    double took = (double)(clock() - begin) / CLOCKS_PER_SEC;
    free(text);
    if (!ifl_reward_is_verdict(r.status) && r.status != IFL_REWARD_UNDECIDED)
        fail_msg("%s on 1 MiB of '%s': %s", checker, seed ? seed : "NUL",
                 ifl_reward_status_name(r.status));
    if (took > BIG_S)
        fail_msg("%s on 1 MiB of '%s' took %.2f s of CPU time", checker, seed ? seed : "NUL", took);
}

#endif

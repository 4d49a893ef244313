/* rewards/message.h, and the checkers behind it.
 *
 *   u8 mode     0: the rest is a request's body; 1: a reply's body; 250: what a plug-in says;
 *               251: reward.checkers; else texts: u8 checker, u8
 *               finish, then prompt, completion, answer and meta, separated by 0xff */
#include <math.h>

#include "rewards/message.h"
#include "rewards/plugin_message.h"
#include "rewards/worker.h"
#include "tests/fuzz/fuzz.h"

#define PATTERN_TEXT_MAX 48

static void check_same(const ifl_reward_request *a, const ifl_reward_request *b) {
    FUZZ_CHECK(a->id == b->id && a->finish == b->finish && !strcmp(a->checker, b->checker) &&
               !strcmp(a->prompt, b->prompt) && !strcmp(a->answer, b->answer) &&
               !strcmp(a->meta, b->meta) && a->n_completion == b->n_completion &&
               !memcmp(a->completion, b->completion, a->n_completion));
}

static void answer(const ifl_reward_request *request) {
    /* A hostile pattern may take its millions of steps at each character, until the worker's
     * deadline, which isn't here. */
    bool patterned = !strcmp(request->checker, "format") || !strcmp(request->checker, "regex") ||
                     (!strcmp(request->checker, "json_schema") && strstr(request->meta, "patt"));
    if (patterned && request->n_completion > PATTERN_TEXT_MAX) return;
    if (!strncmp(request->checker, "code_", 5)) return; /* start processes: fuzz_code_value */
    ifl_reward reward, back;
    ifl_error err = {0};
    char reason[IFL_REWARD_REASON_MAX], reason_back[IFL_REWARD_REASON_MAX];
    uint8_t frame[IFL_REWARD_REPLY_MAX];
    uint64_t id;
    ifl_reward_check(request, &reward, reason);
    FUZZ_CHECK(reward.reward >= -1 && reward.reward <= 1);
    uint32_t flags = 0;
    size_t n = ifl_reward_reply_encode(request->id, &reward, reason, IFL_REPLY_LAST, frame);
    uint8_t *body = fuzz_copy(fuzz_input_of(frame + 4, n - 4));
    FUZZ_CHECK(ifl_reward_frame_length(frame) == n - 4);
    FUZZ_CHECK(ifl_reward_reply_decode(body, n - 4, &id, &back, reason_back, &flags, &err) ==
                   IFL_OK &&
               flags == IFL_REPLY_LAST);
    FUZZ_CHECK(id == request->id && back.status == reward.status && back.reward == reward.reward &&
               !strcmp(reason, reason_back));
    free(body);
}

/* A request that is accepted is one that we could have sent. */
static void take_request(const uint8_t *body, size_t n) {
    ifl_reward_request request, again;
    ifl_error err = {0};
    uint8_t *frame = NULL;
    size_t n_frame = 0;
    if (ifl_reward_request_decode(body, n, &request, &err) != IFL_OK) return;
    answer(&request);
    if (ifl_reward_request_encode(&request, &frame, &n_frame, &err) == IFL_OK) {
        FUZZ_CHECK(ifl_reward_request_decode(frame + 4, n_frame - 4, &again, &err) == IFL_OK);
        check_same(&request, &again);
    }
    free(frame);
}

static void take_texts(fuzz_input in) {
    const ifl_checker *known[32];
    int n_known = ifl_checker_list(known, 32);
    int checker = (int)fuzz_take(&in, 1) % (n_known + 1);
    ifl_finish finish = (ifl_finish)(fuzz_take(&in, 1) % (IFL_FINISH_ABORTED + 1));
    fuzz_input completion_part;
    char *prompt = fuzz_text(fuzz_take_until(&in, 0xff));
    completion_part = fuzz_take_until(&in, 0xff);
    uint8_t *completion = fuzz_copy(completion_part);
    char *text = fuzz_text(fuzz_take_until(&in, 0xff)), *meta = fuzz_text(in);
    ifl_reward_request request = {.id = 7,
                                  .checker = checker < n_known ? known[checker]->name : "none",
                                  .prompt = prompt,
                                  .completion = (const char *)completion,
                                  .n_completion = fuzz_left(&completion_part),
                                  .answer = text,
                                  .meta = meta,
                                  .finish = finish};
    ifl_error err = {0};
    uint8_t *frame = NULL;
    size_t n = 0;
    if (ifl_reward_request_encode(&request, &frame, &n, &err) == IFL_OK) {
        uint8_t *body = fuzz_copy(fuzz_input_of(frame + 4, n - 4));
        ifl_reward_request back;
        FUZZ_CHECK(ifl_reward_request_decode(body, n - 4, &back, &err) == IFL_OK);
        check_same(&request, &back);
        answer(&back);
        free(body);
    }
    free(frame);
    free(prompt);
    free(completion);
    free(text);
    free(meta);
}

static void take_reply(const uint8_t *body, size_t n) {
    ifl_reward reward;
    ifl_error err = {0};
    char reason[IFL_REWARD_REASON_MAX];
    uint64_t id;
    uint32_t flags;
    if (ifl_reward_reply_decode(body, n, &id, &reward, reason, &flags, &err) != IFL_OK) return;
    FUZZ_CHECK(strlen(reason) < sizeof reason && reward.n_components <= IFL_COMPONENTS_MAX);
    for (int i = 0; i < reward.n_components; i++)
        FUZZ_CHECK(strlen(reward.components[i].name) < sizeof reward.components[i].name &&
                   isfinite(reward.components[i].value));
    uint8_t frame[IFL_REWARD_REPLY_MAX];
    (void)ifl_reward_reply_encode(id, &reward, reason, flags, frame);
}

/* What a plug-in says, and what a configuration says about plug-ins. */
static void take_json(fuzz_input in, bool is_answer) {
    char *text = fuzz_text(in), checker[64];
    ifl_error err = {0};
    ifl_reward reward = {.status = IFL_REWARD_NONE};
    ifl_spec *spec = NULL;
    if (!is_answer) {
        if (ifl_spec_parse(&spec, text, &err) == IFL_OK)
            FUZZ_CHECK(spec->n <= IFL_SPEC_CHECKERS_MAX);
        ifl_spec_free(spec);
    } else if (ifl_plugin_answer_read(text, strlen(text), 1, &reward, &err) == IFL_OK) {
        FUZZ_CHECK(reward.reward >= -1 && reward.reward <= 1);
        FUZZ_CHECK(reward.n_components <= IFL_COMPONENTS_MAX);
        FUZZ_CHECK(ifl_reward_is_verdict(reward.status) || err.text[0]);
    } else {
        FUZZ_CHECK(err.text[0]);
        (void)ifl_plugin_hello_read(text, strlen(text), checker, NULL, &err);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = fuzz_input_of(data, size);
    int mode = (int)fuzz_take(&in, 1);
    if (mode >= 250) {
        take_json(in, mode == 250);
        return 0;
    }
    if (mode > 1) {
        take_texts(in);
        return 0;
    }
    uint8_t *body = fuzz_copy(in);
    if (mode == 0)
        take_request(body, fuzz_left(&in));
    else
        take_reply(body, fuzz_left(&in));
    free(body);
    return 0;
}

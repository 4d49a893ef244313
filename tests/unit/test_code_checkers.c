/* code_unit and code_stdio as a worker runs them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "rewards/code/code.h"
#include "rewards/worker.h"

static char reason[1024];

static ifl_reward check_timed(const char *checker, const char *answer, const char *meta,
                              const char *completion, int32_t timeout_ms) {
    ifl_reward_request request = {.checker = checker,
                                  .completion = completion,
                                  .n_completion = strlen(completion),
                                  .answer = answer,
                                  .meta = meta,
                                  .finish = IFL_FINISH_EOS,
                                  .timeout_ms = timeout_ms};
    ifl_reward out;
    ifl_reward_check(&request, &out, reason);
    return out;
}

static bool is(const ifl_reward *r, ifl_code_verdict verdict) {
    return !strcmp(ifl_reward_status_name(r->status), ifl_code_verdict_name(verdict));
}

typedef struct code_case {
    const char *answer, *meta, *completion;
    float reward; /* -1: bad task */
    ifl_code_verdict verdict;
} code_case;

static void expect_case(const char *checker, const code_case *c) {
    ifl_reward r = check_timed(checker, c->answer, c->meta, c->completion, 0);
    bool bad = c->reward < 0.0f;
    bool fine = bad ? r.status == IFL_REWARD_BAD_TASK : is(&r, c->verdict) && r.reward == c->reward;
    if (!fine)
        fail_msg("%s %s: status %s, reward %g, wanted %g and %s; %s", c->answer, c->completion,
                 ifl_reward_status_name(r.status), (double)r.reward, (double)c->reward,
                 ifl_code_verdict_name(c->verdict), reason);
}

#define EXPECT(checker, ...)                                                                       \
    do {                                                                                           \
        static const code_case cases[] = __VA_ARGS__;                                              \
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)                                  \
            expect_case(checker, &cases[i]);                                                       \
    } while (0)

#define PY(text) "```python\n" text "\n```"
#define ADD "{\"tests\": [\"assert add(1, 2) == 3\", \"assert add(-1, 1) == 0\"]}"

static void test_python_functions_by_asserts(void **state) {
    (void)state;
    EXPECT("code_unit",
           {{ADD, "", PY("def add(a, b):\n    return a + b"), 1.0f, IFL_CODE_OK},
            {ADD, "", PY("def add(a, b):\n    return a - b"), 0.0f, IFL_CODE_WRONG},
            {ADD, "", PY("def add(a, b):\n    return str(a + b)"), 0.0f, IFL_CODE_WRONG},
            {ADD, "", PY("def sub(a, b):\n    return a + b"), 0.0f, IFL_CODE_RUNTIME_ERROR},
            {ADD, "", PY("def add(a, b)\n    return a + b"), 0.0f, IFL_CODE_RUNTIME_ERROR},
            {ADD, "", PY("import nothing_of_that_name"), 0.0f, IFL_CODE_RUNTIME_ERROR},
            {ADD, "", "no code", 0.0f, IFL_CODE_NO_ANSWER},
            {ADD, "{\"bare\": true}", "add = lambda a, b: a + b", 1.0f, IFL_CODE_OK},
            {ADD, "{\"score\": \"fraction\"}", PY("def add(a, b):\n    return 3"), 0.5f,
             IFL_CODE_WRONG},
            {"{\"tests\": [\"assert sorted(f(3)) == [0, 1, 2]\"]}", "",
             PY("def f(n):\n    return range(n)"), 1.0f, IFL_CODE_OK},
            {"{\"tests\": [\"assert f(3) == {'a': (1, 2.5, None), 'b': {1, 2}}\"]}", "",
             PY("def f(n):\n    return dict(b={2, 1}, a=(1, 2.5, None))"), 1.0f, IFL_CODE_OK},
            {"{\"tests\": [\"assert not f(3)\", \"assert f(4)\"]}", "",
             PY("def f(n):\n    return n - 3"), 1.0f, IFL_CODE_OK},
            {"{\"setup\": \"root = Node(5)\", \"tests\": [\"assert value(root) == 5\"]}", "",
             PY("class Node:\n    def __init__(self, v):\n        self.v = v\n\n\ndef "
                "value(n):\n    return n.v"),
             1.0f, IFL_CODE_OK}});
}

static void test_what_is_no_comparison_runs_beside_the_candidate(void **state) {
    (void)state;
#define NEAR "{\"tests\": [\"assert abs(half(3) - 1.5) < 1e-9\"]}"
#define CHECK                                                                                      \
    "{\"entry\": \"half\", \"prompt\": \"def twice(x):\\n    return 2 * x\\n\\ndef "               \
    "half(x):\\n\", \"check\": \"def check(candidate):\\n    for i in range(20):\\n        "       \
    "assert twice(candidate(i)) == i\\n\"}"
    EXPECT(
        "code_unit",
        {{NEAR, "", PY("def half(x):\n    return x / 2"), 1.0f, IFL_CODE_OK},
         {NEAR, "", PY("def half(x):\n    return x / 3"), 0.0f, IFL_CODE_WRONG},
         {NEAR, "", PY("def half(x):\n    return float('nan')"), 0.0f, IFL_CODE_WRONG},
         {NEAR, "",
          PY("class A(float):\n    def __sub__(self, x):\n        return 0\n\n\ndef half(x):\n  "
             "  return A()"),
          0.0f, IFL_CODE_RUNTIME_ERROR},
         {NEAR, "", PY("import builtins\nbuiltins.abs = lambda x: 0\ndef half(x):\n    return 7"),
          0.0f, IFL_CODE_WRONG},
         {NEAR, "", PY("def half(x):\n    raise ValueError"), 0.0f, IFL_CODE_RUNTIME_ERROR},
         {NEAR, "{\"wall_ms\": 1000}", PY("def half(x):\n    while True: pass"), 0.0f,
          IFL_CODE_TIME_LIMIT},
         {NEAR, "", PY("import os\nos.write(3, b'ok')\nos._exit(0)"), 0.0f, IFL_CODE_RUNTIME_ERROR},
         {CHECK, "", PY("def half(x):\n    return x / 2"), 1.0f, IFL_CODE_OK},
         {CHECK, "", PY("    return x / 2"), 1.0f, IFL_CODE_OK},
         {CHECK, "", PY("def half(x):\n    return x // 2"), 0.0f, IFL_CODE_WRONG},
         {CHECK, "", PY("def twice(x):\n    return x\ndef half(x):\n    return x"), 0.0f,
          IFL_CODE_WRONG}});
}

static void test_tests_without_sense_are_bad_tasks(void **state) {
    (void)state;
#define RIGHT PY("def f(x):\n    return x")
    EXPECT("code_unit",
           {{"", "", RIGHT, -1, 0},
            {"[]", "", RIGHT, -1, 0},
            {"{}", "", RIGHT, -1, 0},
            {"{\"tests\": []}", "", RIGHT, -1, 0},
            {"{\"tests\": [\"assert f(\"]}", "", RIGHT, -1, 0},
            {"{\"tests\": [\"assert 1 == 2\"]}", "", RIGHT, -1, 0},
            {"{\"check\": \"x\", \"entry\": \"f\"}", "", RIGHT, -1, 0},
            {"{\"tests\": [\"assert f(1) == 1\"]}", "{\"language\": \"perl\"}", RIGHT, -1, 0},
            {"{\"tests\": [\"assert f(1) == 1\"]}", "{\"wall_ms\": 0}", RIGHT, -1, 0},
            {"{\"setup\": 5, \"tests\": [\"assert f(1) == 1\"]}", "", RIGHT, -1, 0}});
    EXPECT("code_stdio",
           {{"{\"tests\": []}", "", PY("print(1)"), -1, 0},
            {"{\"tests\": [{\"input\": \"1\"}]}", "", PY("print(1)"), -1, 0},
            {"{\"tests\": [{\"output\": \"1\"}]}", "{\"compare\": \"x\"}", PY("print(1)"), -1, 0}});
}

static void test_functions_in_c_and_cpp(void **state) {
    (void)state;
#define C_TASK                                                                                     \
    "{\"tests\": [{\"call\": \"twice(21)\", \"expect\": 42}, {\"call\": \"half(3)\", \"expect\": " \
    "1.5}, {\"call\": \"name()\", \"expect\": \"a b\"}]}"
#define CPP_TASK                                                                                   \
    "{\"tests\": [{\"call\": \"firsts({3, 1, 2}, 2)\", \"expect\": [1, 2]}, {\"call\": "           \
    "\"count(\\\"aab\\\")\", \"expect\": {\"a\": 2, \"b\": 1}}]}"
    EXPECT("code_unit",
           {{C_TASK, "{\"language\": \"c\"}",
             "```c\nint twice(int x) { return 2 * x; }\ndouble half(int x) { return x / 2.0; }\n"
             "const char *name(void) { return \"a b\"; }\n```",
             1.0f, IFL_CODE_OK},
            {C_TASK, "{\"language\": \"c\", \"score\": \"fraction\"}",
             "```c\nint twice(int x) { return 2 * x; }\nint half(int x) { return x / 2; }\n"
             "const char *name(void) { return 0; }\n```",
             1.0f / 3.0f, IFL_CODE_WRONG},
            {C_TASK, "{\"language\": \"c\"}", "```c\nint twice(int x) { return 2 * }\n```", 0.0f,
             IFL_CODE_COMPILE_ERROR},
            {C_TASK, "{\"language\": \"c\"}",
             "```c\n#include <stdlib.h>\nint twice(int x) { exit(0); }\ndouble half(int x) { "
             "return 1.5; }\nconst char *name(void) { return 0; }\n```",
             0.0f, IFL_CODE_RUNTIME_ERROR},
            {CPP_TASK, "{\"language\": \"cpp\"}",
             "```cpp\n#include <algorithm>\n#include <map>\n#include <string>\n#include "
             "<vector>\nstd::vector<int> firsts(std::vector<int> v, int n) { std::sort(v.begin(), "
             "v.end()); v.resize(n); return v; }\nstd::map<std::string, int> count(std::string s) "
             "{ std::map<std::string, int> m; for (char c : s) m[std::string(1, c)]++; return m; "
             "}\n```",
             1.0f, IFL_CODE_OK}});
}

static void test_programs_by_their_output(void **state) {
    (void)state;
#define SUM                                                                                        \
    "{\"tests\": [{\"input\": \"1 2\", \"output\": \"3\\n\"}, {\"input\": \"5 5\", \"output\": "   \
    "\"10\"}]}"
#define THIRD "{\"tests\": [{\"input\": \"1\", \"output\": \"0.333333333\"}]}"
    EXPECT("code_stdio",
           {{SUM, "", PY("print(sum(map(int, input().split())))"), 1.0f, IFL_CODE_OK},
            {SUM, "", PY("print(3)"), 0.0f, IFL_CODE_WRONG},
            {SUM, "{\"score\": \"fraction\"}", PY("print(3)"), 0.5f, IFL_CODE_WRONG},
            {SUM, "", PY("print(3, 10)"), 0.0f, IFL_CODE_WRONG},
            {SUM, "", PY("1 / 0"), 0.0f, IFL_CODE_RUNTIME_ERROR},
            {SUM, "{\"wall_ms\": 500}", PY("while True: pass"), 0.0f, IFL_CODE_TIME_LIMIT},
            {SUM, "{\"cpu_ms\": 300}", PY("while True: pass"), 0.0f, IFL_CODE_TIME_LIMIT},
            {SUM, "{\"output_kb\": 1}", PY("print('3 ' * 1000)"), 0.0f, IFL_CODE_OUTPUT_LIMIT},
            {SUM, "{\"memory_mb\": 64}", PY("a = [0] * 10 ** 8"), 0.0f, IFL_CODE_MEMORY_LIMIT},
            {THIRD, "", PY("print(1 / 3)"), 0.0f, IFL_CODE_WRONG},
            {THIRD, "{\"compare\": \"float\"}", PY("print(1 / 3)"), 1.0f, IFL_CODE_OK},
            {SUM, "{\"language\": \"c\"}",
             "```c\n#include <stdio.h>\nint main(void) { int a, b; scanf(\"%d %d\", &a, &b); "
             "printf(\"%d\", a + b); return 0; }\n```",
             1.0f, IFL_CODE_OK},
            {SUM, "{\"language\": \"cpp\"}",
             "```cpp\n#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << "
             "a + b; }\n```",
             1.0f, IFL_CODE_OK},
            {SUM, "{\"language\": \"cpp\"}", PY("print(3)"), 0.0f, IFL_CODE_NO_ANSWER}});
}

#define PROGRAM(language, source)                                                                  \
    "{\"compare\": \"program\", \"checker_language\": \"" language                                 \
    "\", \"checker_source\": \"" source "\"}"
/* Any two numbers with the sum that is asked for. */
#define SUM_TO "{\"tests\": [{\"input\": \"10\"}, {\"input\": \"7\", \"output\": \"two numbers\"}]}"
#define SUM_CHECKER                                                                                \
    "import sys\\nwant = int(open(sys.argv[1]).read())\\ngot = "                                   \
    "open(sys.argv[2]).read().split()\\nif "                                                       \
    "len(got) != 2: sys.exit(2)\\nsys.exit(0 if sum(map(int, got)) == want else 1)\\n"
#define SPLIT PY("n = int(input())\nprint(n - 3, 3)")

static void test_a_tasks_own_checker_program(void **state) {
    (void)state;
    EXPECT(
        "code_stdio",
        {{SUM_TO, PROGRAM("python", SUM_CHECKER), SPLIT, 1.0f, IFL_CODE_OK},
         {SUM_TO, PROGRAM("python", SUM_CHECKER), PY("print(5, 5)"), 0.0f, IFL_CODE_WRONG},
         {SUM_TO, PROGRAM("python", SUM_CHECKER), PY("print(10)"), 0.0f, IFL_CODE_WRONG},
         {SUM_TO, PROGRAM("python", SUM_CHECKER), PY("1 / 0"), 0.0f, IFL_CODE_RUNTIME_ERROR},
         {SUM_TO, PROGRAM("python", SUM_CHECKER), PY("raise SystemExit(3)"), 0.0f,
          IFL_CODE_RUNTIME_ERROR},
         /* what was expected comes as the third file */
         {"{\"tests\": [{\"output\": \"b a\"}]}",
          PROGRAM("python", "import sys\\na, b = (sorted(open(n).read().split()) for n in "
                            "sys.argv[2:4])\\nsys.exit(a != b)"),
          PY("print('a b')"), 1.0f, IFL_CODE_OK},
         {SUM_TO,
          PROGRAM("c",
                  "#include <stdio.h>\\nint main(int n, char **a) { int w, x, y; FILE *i = "
                  "fopen(a[1], \\\"r\\\"), *o = fopen(a[2], \\\"r\\\"); if (n != 4 || !i || !o "
                  "|| fscanf(i, \\\"%d\\\", &w) != 1) return 3; if (fscanf(o, \\\"%d %d\\\", &x, "
                  "&y) != 2) return 2; puts(\\\"read two numbers\\\"); return x + y != w; }"),
          SPLIT, 1.0f, IFL_CODE_OK},
         {SUM_TO,
          PROGRAM("cpp",
                  "#include <fstream>\\nint main(int, char **a) { std::ifstream i(a[1]), "
                  "o(a[2]); int w, x, y; i >> w; return o >> x >> y && x + y == w ? 0 : 1; }"),
          PY("print(5, 5)"), 0.0f, IFL_CODE_WRONG},
         /* a share instead of all or nothing */
         {SUM_TO,
          "{\"compare\": \"program\", \"score\": \"fraction\", \"checker_source\": "
          "\"import sys\\nprint(1 if open(sys.argv[2]).read() == '10' else 0.5)\"}",
          PY("print(10, end='')"), 1.0f, IFL_CODE_OK},
         {SUM_TO,
          "{\"compare\": \"program\", \"score\": \"fraction\", \"checker_source\": "
          "\"import sys\\nprint(1 if open(sys.argv[2]).read() == '10' else 0.5)\"}",
          PY("print(input(), end='')"), 0.75f, IFL_CODE_WRONG},
         {SUM_TO, PROGRAM("python", "print(0.5)"), SPLIT, 0.0f, IFL_CODE_WRONG}});
}

/* None of it is the answer's fault. */
static void test_a_checker_program_that_fails_is_no_verdict(void **state) {
    (void)state;
    EXPECT(
        "code_stdio",
        {{SUM_TO, PROGRAM("python", "raise ValueError(1)"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", "import os\\nos.kill(os.getpid(), 11)"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", "raise SystemExit(3)"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", "this is no Python"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", "print(1.5)"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", "print('nan')"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", "print('x' * 3000000)"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", "a = [0] * 10 ** 9"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", "import ctypes\\nctypes.CDLL(None).ptrace(0)"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("c", "int main(void) { return }"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("c", "#include <stdlib.h>\\nint main(void) { abort(); }"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("perl", "exit 0"), SPLIT, -1, 0},
         {SUM_TO, PROGRAM("python", ""), SPLIT, -1, 0},
         {SUM_TO, "{\"compare\": \"program\"}", SPLIT, -1, 0},
         {SUM, "{\"checker_source\": \"exit()\"}", SPLIT, -1, 0}});
    ifl_reward r =
        check_timed("code_stdio", SUM_TO, PROGRAM("python", "while True: pass"), SPLIT, 0);
    assert_int_equal(r.status, IFL_REWARD_CHECKER_ERROR);
    assert_true(r.reward == 0.0f && strstr(reason, "checker program ended as"));
    /* its slowness uses up the time, not the answer's */
    r = check_timed("code_stdio", SUM_TO, PROGRAM("python", "import time\\ntime.sleep(2.5)"), SPLIT,
                    4000);
    assert_int_equal(r.status, IFL_REWARD_CHECKER_ERROR);
    /* as the answer's is its own */
    r = check_timed("code_stdio", SUM_TO, PROGRAM("python", SUM_CHECKER),
                    PY("import time\ntime.sleep(2.5)\nn = int(input())\nprint(n, 0)"), 4000);
    assert_int_equal(r.status, IFL_REWARD_TIME_LIMIT);
}

/* Neither sees the other: what one leaves behind, or what its checker is, is not there. */
static void test_a_checker_program_is_out_of_reach(void **state) {
    (void)state;
    EXPECT("code_stdio",
           {{SUM_TO, PROGRAM("python", SUM_CHECKER),
             PY("import glob, os, sys\nopen('/work/checker.py', 'w').write('exit()')\n"
                "open('/work/output', 'w').write('10 0')\nif os.fork() == 0:\n    os.setsid()\n    "
                "import time\n    time.sleep(60)\nprint(len(glob.glob('/work/*')))"),
             0.0f, IFL_CODE_WRONG},
            {SUM_TO,
             PROGRAM("python", "import os, sys\\nsys.exit(0 if sorted(os.listdir('/work')) == "
                               "['checker.py', 'expected', 'input', 'output'] else 3)"),
             PY("import os, sys\nassert os.listdir('/work') == ['solution.py']\n"
                "assert len(sys.argv) == 1\nopen('/work/mark', 'w').write('x')"),
             1.0f, IFL_CODE_OK}});
}

/* The kept folder's headers serve, nobody writes there, and a new sandbox makes them anew. */
static void test_headers_are_compiled_once(void **state) {
    (void)state;
    static const char answer[] = "{\"tests\": [{\"input\": \"3 1 2\", \"output\": \"1 2 3\"}]}";
#define SORTS(more)                                                                                \
    "```cpp\n#include <bits/stdc++.h>\n" more                                                      \
    "\nint main() { std::vector<int> v(3); for (int &x : v) "                                      \
    "std::cin >> x; std::sort(v.begin(), v.end()); for (int x : v) std::cout << x << ' '; }\n```"
    ifl_code_teardown();
    for (int round = 0; round < 2; round++) {
        EXPECT("code_stdio",
               {{answer, "{\"language\": \"cpp\"}", SORTS("// 1"), 1.0f, IFL_CODE_OK},
                {answer, "{\"language\": \"cpp\"}", SORTS("// 2"), 1.0f, IFL_CODE_OK}});
        assert_false(code_headers_wait()); /* not worth it yet */
        EXPECT("code_stdio",
               {{answer, "{\"language\": \"cpp\"}", SORTS("// 3"), 1.0f, IFL_CODE_OK}});
        assert_true(code_headers_wait());
        EXPECT(
            "code_stdio",
            {{answer, "{\"language\": \"cpp\"}", SORTS("// 4"), 1.0f, IFL_CODE_OK},
             {answer, "{\"language\": \"cpp\"}", SORTS("#error no"), 0.0f, IFL_CODE_COMPILE_ERROR},
             {"{\"tests\": [{\"output\": \"['stdc++.h.gch'] 30\"}]}", "",
              PY("import os\ntry:\n    e = 0\n    open('/keep/bits/stdc++.h.gch', 'ab')\n"
                 "except OSError as x:\n    e = x.errno\nprint(os.listdir('/keep/bits'), e)"),
              1.0f, IFL_CODE_OK}});
        ifl_slice used = {"#include <bits/stdc++.h>", 24}, unused = {"#include <map>", 14};
        assert_true(code_headers_ready(used) && !code_headers_ready(unused));
        ifl_code_teardown();
    }
}

/* What a pool would kill, and mask, is cut off before and pays nothing. */
static void test_all_tests_together_stay_within_the_time(void **state) {
    (void)state;
    static const char answer[] =
        "{\"tests\": [\"assert f(1) == 1\", \"assert f(2) == 2\", \"assert f(3) == 3\", \"assert "
        "f(4) == 4\", \"assert f(5) == 5\", \"assert f(6) == 6\"]}";
    ifl_reward r =
        check_timed("code_unit", answer, "",
                    PY("import time\n\n\ndef f(x):\n    time.sleep(2)\n    return x"), 6000);
    assert_int_equal(r.status, IFL_REWARD_TIME_LIMIT);
    assert_true(r.reward == 0.0f);
    assert_true(r.tests_passed < 4 && r.tests_total == 6);
}

static void test_without_a_sandbox_there_is_no_verdict(void **state) {
    (void)state;
    ifl_code_teardown();
    ifl_code_setup(&(ifl_sandbox_options){.program = "/bin/false"});
    ifl_reward r = check_timed("code_unit", ADD, "", PY("def add(a, b):\n    return a + b"), 0);
    ifl_code_setup(&(ifl_sandbox_options){.program = IFL_BINARY});
    assert_true(r.status == IFL_REWARD_CHECKER_ERROR || r.status == IFL_REWARD_UNAVAILABLE);
    assert_true(r.reward == 0.0f && reason[0]);
    static const struct {
        const char *checker, *answer, *meta;
    } others[] = {{"code_unit", NEAR, ""},
                  {"code_unit", CPP_TASK, "{\"language\": \"cpp\"}"},
                  {"code_stdio", SUM, ""},
                  {"code_stdio", SUM, "{\"language\": \"c\"}"}};
    ifl_code_setup(&(ifl_sandbox_options){.program = "/bin/false"});
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        ifl_reward o =
            check_timed(others[i].checker, others[i].answer, others[i].meta, "```\nx\n```", 0);
        assert_true(o.status == IFL_REWARD_CHECKER_ERROR && reason[0]);
    }
    ifl_code_setup(&(ifl_sandbox_options){.program = IFL_BINARY});
    r = check_timed("code_unit", ADD, "", PY("def add(a, b):\n    return a + b"), 0);
    assert_true(r.status == IFL_REWARD_OK && r.reward == 1.0f);
}

static int teardown(void **state) {
    (void)state;
    ifl_code_teardown();
    return 0;
}

int main(void) {
    ifl_code_setup(&(ifl_sandbox_options){.program = IFL_BINARY});
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_python_functions_by_asserts),
        cmocka_unit_test(test_what_is_no_comparison_runs_beside_the_candidate),
        cmocka_unit_test(test_tests_without_sense_are_bad_tasks),
        cmocka_unit_test(test_functions_in_c_and_cpp),
        cmocka_unit_test(test_programs_by_their_output),
        cmocka_unit_test(test_a_tasks_own_checker_program),
        cmocka_unit_test(test_a_checker_program_that_fails_is_no_verdict),
        cmocka_unit_test(test_a_checker_program_is_out_of_reach),
        cmocka_unit_test(test_headers_are_compiled_once),
        cmocka_unit_test(test_all_tests_together_stay_within_the_time),
        cmocka_unit_test(test_without_a_sandbox_there_is_no_verdict),
    };
    return cmocka_run_group_tests(tests, NULL, teardown);
}

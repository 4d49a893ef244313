#!/usr/bin/env bash
# Plug-ins as a user writes them: the examples of deploy/examples as a process, a shared library and behind HTTP pay what
# the built-in pays, in training too; a server that fails, stalls or babbles costs its answers, never a zero, and a run
# whose checker always fails ends and says so.
. "$(dirname "$0")/lib.sh"
examples=$source_dir/deploy/examples
server=0
stop_server() {
    [ "$server" = 0 ] || kill "$server" 2>/dev/null || true
    server=0
}
trap 'stop_server; leave' EXIT

# serve COMMAND...: a server that prints its port first; sets $port.
serve() {
    stop_server
    rm -f port.txt
    "$@" >port.txt 2>server.txt &
    server=$!
    until_true 20 "a server's port" grep -qs . port.txt
    port=$(head -n 1 port.txt)
}

# --- One answer, by each way in ---------------------------------------------------------------------------------------
$(grep -ohE 'cc -shared .*' "$examples/reward.c" | sed "s|-I rewards|-I $source_dir/rewards|; s|deploy/examples|$examples|") ||
    fail "the compile line of reward.c does not work"
echo secret-token >token
serve python3 "$examples/reward_server.py" 0 token
options='options: {after: "#", end: true}'
cat >checkers.yaml <<YAML
config_version: 1
reward:
  timeout_ms: 20000
  checkers:
    strict: {use: exact, $options}
    py: {use: process, command: [python3, $examples/reward.py], $options}
    c: {use: library, path: reward.so}
    far: {use: http, url: "http://127.0.0.1:$port/score", token_file: token, $options}
    lists: {use: http, url: "http://127.0.0.1:$port/score", token_file: token, batch: true, $options}
    nobody: {use: http, url: "http://127.0.0.1:$port/score", $options}
    both: {use: sum, parts: [{checker: strict, weight: 0.5}, {checker: py, weight: 0.5}]}
YAML
expect 0 "$inflight" score --config checkers.yaml --list
has out.txt "lists      of reward.checkers, use: http"
awk 'BEGIN {
    for (i = 0; i < 60; i++) {
        answer = i % 3 == 0 ? i : i + 1
        printf "{\"prompt\":\"p%d\",\"answer\":\"%d\"}\n", i, i >"tasks.jsonl"
        printf "{\"completion\":\"%s%d%s\",\"finish\":\"%s\"}\n", i % 7 ? "x#" : "", answer, i % 2 ? "\\n" : " ",
            i % 5 ? "eos" : "length" >"answers.jsonl"
    }
}'
# "status","reward" of each line. The built-in tells no_answer from wrong, the examples don't: both are verdicts of 0.
verdicts() { grep -oE '"status":"[a-z_]*","reward":[0-9.a-z-]*' "$1" | sed 's/no_answer/wrong/'; }
for checker in strict py c far lists both; do
    expect 0 "$inflight" score --config checkers.yaml --checker $checker --tasks tasks.jsonl --completions answers.jsonl \
        --out "$checker.jsonl"
    verdicts "$checker.jsonl" >"$checker.rewards"
    cmp strict.rewards $checker.rewards || fail "$checker pays other rewards than the built-in"
done
[ "$(grep -c '"ok"' strict.rewards)" -ge 5 ] && [ "$(grep -c '"wrong"' strict.rewards)" -ge 5 ] || fail "rewards are all alike"
has py.jsonl '"checker":"py=reward.py/1"'
grep -qE '"config":"?[0-9a-f]+' py.jsonl || fail "no hash of options: $(head -n 1 py.jsonl)"
expect 69 "$inflight" score --config checkers.yaml --checker nobody --pair 1 '#1'
has out.txt '"status":"unavailable","reward":null'
has out.txt 'HTTP status 401'

# --- Servers that misbehave -------------------------------------------------------------------------------------------
cat >odd.py <<'PY'
import http.server, json, socket, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        task = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what, ok = task["gold"], {"id": task["id"], "status": "ok", "reward": 1.0}
        body = json.dumps(ok)
        if what == "nan": body = body.replace("1.0", "NaN")
        if what == "id": body = json.dumps({**ok, "id": task["id"] + 1})
        if what == "text": body = "<html>it works</html>"
        if what == "flood": body = " " * 100000
        if what == "stall": time.sleep(30)
        if what == "cut":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n{")
            return
        if what == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if what == "redirect":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:%d/" % server.server_address[1])
            self.end_headers()
            return
        self.send_response(500 if what == "500" else 503 if what == "503" else 200)
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *args): print(self.path, file=sys.stderr, flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
PY
serve python3 odd.py
cat >odd.yaml <<YAML
config_version: 1
reward:
  timeout_ms: 1500
  workers: 1
  checkers: {odd: {use: http, url: "http://127.0.0.1:$port/odd", retries: 1}}
YAML
odd() { # GOLD STATUS REASON
    expect 69 "$inflight" score --config odd.yaml --timeout-ms 1500 --checker odd --pair "$1" x
    has out.txt "\"status\":\"$2\",\"reward\":null"
    has out.txt "$3"
}
odd nan checker_error 'not valid JSON'
odd id checker_error 'it answered id 2'
odd text checker_error 'not valid JSON'
odd flood checker_error 'more than 65536 bytes'
odd stall unavailable 'timeout'
odd cut unavailable 'http://127.0.0.1'
odd drop unavailable 'http://127.0.0.1'
odd redirect unavailable 'HTTP status 302'
odd 500 unavailable 'HTTP status 500'
odd 503 unavailable 'HTTP status 503'
expect 0 "$inflight" score --config odd.yaml --checker odd --pair ok x
has out.txt '"status":"ok","reward":1.0'
stop_server
odd ok unavailable 'http://127.0.0.1'

# --- ZeroMQ -----------------------------------------------------------------------------------------------------------
$(grep -ohE 'cc -O2 -o reward_server .*' "$examples/reward_server.c" | sed "s|deploy/examples|$examples|") ||
    fail "the compile line of reward_server.c does not work"
"$inflight" keys new keys >keys.txt
"$inflight" keys new keys here >>keys.txt
"$inflight" keys new others >>keys.txt
"$inflight" keys new others here >>keys.txt
hub_config() { # KEYS: a line more of the checker
    cat >hub.yaml <<YAML
config_version: 1
reward: {timeout_ms: 20000, checkers: {hub: {use: zeromq, endpoint: "tcp://127.0.0.1:$port"$1, $options}}}
YAML
}
hub_agrees() {
    expect 0 "$inflight" score --config hub.yaml --checker hub --tasks tasks.jsonl --completions answers.jsonl --out hub.jsonl
    verdicts hub.jsonl >hub.rewards
    cmp strict.rewards hub.rewards || fail "hub$1 pays other rewards than the built-in"
    has hub.jsonl '"checker":"hub=server.c/1"'
}
serve ./reward_server 'tcp://127.0.0.1:*'
hub_config ""
hub_agrees
hub_config ", keys: keys"
expect 69 "$inflight" score --config hub.yaml --timeout-ms 1000 --checker hub --pair 1 '#1'
has out.txt '"status":"unavailable","reward":null' # a server without the secret that goes with learner.public
serve ./reward_server 'tcp://127.0.0.1:*' keys/learner.secret
hub_config ", keys: keys"
hub_agrees " with keys"
for wrong in "" ", keys: others"; do
    hub_config "$wrong"
    expect 69 "$inflight" score --config hub.yaml --timeout-ms 1000 --checker hub --pair 1 '#1'
    has out.txt '"status":"unavailable","reward":null'
done
expect 65 "$inflight" score 'reward.checkers={hub: {use: zeromq, endpoint: "tcp://10.0.0.5:5599"}}' --checker hub --pair 1 1
has err.txt "key reward.checkers.hub.endpoint"
expect 65 "$inflight" score 'reward.checkers={hub: {use: zeromq, endpoint: "tcp://10.0.0.5:5599", keys: nokeys}}' --checker hub --pair 1 1
has err.txt "checker hub"

# --- Training ---------------------------------------------------------------------------------------------------------
small_config
serve python3 "$examples/reward_server.py" 0 token
sed -i "s|^reward: .*|reward: {workers: 1, timeout_ms: 20000, checkers: {strict: {use: exact, $options}, py: {use: process, command: [python3, $examples/reward.py], $options}, c: {use: library, path: reward.so}, far: {use: http, url: \"http://127.0.0.1:$port/\", token_file: token, $options}}}|" small.yaml
quick="run.mode=sync rollout.group_size=8 eval.before=false eval.after=false"
awk 'BEGIN { for (i = 0; i < 8; i++) printf "{\"id\":\"t%d\",\"prompt\":\"%03d+%d*%02d=\",\"answer\":\"-\"}\n", i, 37 * i, 2 + i, 1 + i }' >mine.jsonl
source="data.train=[{name: mine, path: mine.jsonl}]"
# What this policy says to these tasks at the first step; some of it becomes the gold answers, so that some is right.
train probe $quick run.steps=1 "$source" "reward.route={mine: strict}"
"$inflight" rollouts runs/probe --json >probe.json
python3 - <<'PY'
import json
gold = {}
for line in open("probe.json"):
    row = json.loads(line)
    text = row["answer"].rpartition("#")
    if text[1] and row["finish"] == "eos" and text[2].strip():
        gold.setdefault(row["task"], text[2].strip())
tasks = [json.loads(line) for line in open("mine.jsonl")]
assert len(gold) > 2, gold
with open("mine.jsonl", "w") as f:
    for task in tasks:
        f.write(json.dumps({**task, "answer": gold.get(task["id"], "-")}) + "\n")
PY
for checker in strict py c far; do
    train $checker $quick run.steps=3 "$source" "reward.route={mine: $checker}"
    # Which answer of which task, what was said, what it paid: all but who judged, how finely, and who generated.
    "$inflight" rollouts runs/$checker --json |
        sed -E 's/"(checker|actor|reward_reason)":"[^"]*",//g; s/"no_answer"/"wrong"/' | sort >$checker.json
    cmp strict.json $checker.json || fail "a run with $checker has other rewards than one with the built-in"
    books runs/$checker
done
[ "$(wc -l <strict.json)" = 192 ] || fail "wanted 3 steps of 64 answers"
[ "$(grep -c '"reward":1.0' strict.json)" -ge 3 ] || fail "nothing was right: $(head -c 500 strict.json)"
[ "$(grep -c '"reward":0.0' strict.json)" -ge 3 ] || fail "all was right"

# --- A checker that always fails --------------------------------------------------------------------------------------
# More than half of a window: the run ends, with the checker and its first reason, whatever the answers would have paid.
cat >broken.py <<'PY'
import sys
print('{"protocol": 1, "name": "broken"}', flush=True)
for line in sys.stdin:
    print('{"id": 0}', flush=True)
PY
broken='reward.checkers={broken: {use: process, command: [python3, broken.py]}}'
expect 69 "$inflight" train --config small.yaml model.path=start run.name=broken $quick run.steps=3 "$source" \
    "$broken" reward.route="{mine: broken}" reward.errors_window=8
grep -qE "of the last 8 answers could not be judged.*checker broken=broken/0, task t[0-9]: checker_error: .*it answered id 0" err.txt ||
    fail "the run does not say why it ended: $(tail -n 3 err.txt)"
[ -z "$(step_rows runs/broken)" ] || fail "a run without a verdict has trained"
# So does a step whose answers all failed, where the window is larger than it.
expect 69 "$inflight" train --config small.yaml model.path=start run.name=broken2 $quick run.steps=3 "$source" \
    "$broken" reward.route="{mine: broken}" reward.errors_window=500 rollout.prompts_per_step=2 rollout.group_size=2
has err.txt "none of its 4 answers could be judged"
has err.txt "it answered id 0"
# Failures now and then are masked, counted, and the run goes on; with retries nothing is lost.
cat >flaky.py <<'PY'
import json, sys
print('{"protocol": 1, "name": "flaky"}', flush=True)
for n, line in enumerate(sys.stdin):
    task = json.loads(line)
    if n == 9: sys.exit(1)
    reward = float(len(task["completion"]) % 2)
    print(json.dumps({"id": task["id"], "status": "ok", "reward": reward}), flush=True)
PY
flaky='reward.checkers={flaky: {use: process, command: [python3, flaky.py]}}'
for on_error in mask retry; do
    train flaky-$on_error $quick run.steps=2 "$source" "$flaky" reward.route="{mine: flaky}" reward.on_error=$on_error
    "$inflight" rollouts runs/flaky-$on_error --json >flaky.json
    books runs/flaky-$on_error
    failed=$(grep -c '"reward_status":"checker_error".*"reward":null.*"reward_reason":".*exited with status 1' flaky.json) || true
    [ $on_error = retry ] || holds "$failed >= 5" "failures among 128 answers"
    [ $on_error = mask ] || holds "$failed == 0" "failures in spite of retries"
done

stop_server
is_gone || fail "processes are left over: $(processes)"
echo "ok: $(grep -c '"reward":1.0' strict.json) of 192 right, by each way in"

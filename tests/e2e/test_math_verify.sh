#!/usr/bin/env bash
# What `math` leaves undecided goes to Math-Verify, as rewards/PLUGINS.md shows it, and nothing else does: no answer is no
# answer. Needs a python3 with math-verify; IFL_MATH_VERIFY_PYTHON may name one.
. "$(dirname "$0")/lib.sh"
ln -s "$source_dir/deploy" deploy
python=$(command -v "${IFL_MATH_VERIFY_PYTHON:-python3}") || python=python3

# The document's example is the file.
example=deploy/examples/math_verify.yaml
sed -n '/^reward:/,$p' $example >wanted.txt
awk '/^```yaml$/ { inside = 1; text = ""; next } /^```$/ { if (inside && text ~ /math_verify/) printf "%s", text; inside = 0 }
    inside { text = text $0 "\n" }' "$source_dir/rewards/PLUGINS.md" >shown.txt
cmp wanted.txt shown.txt || fail "rewards/PLUGINS.md shows another example than $example"

# Without the package a command ends at its start, and says what to do.
cat >bare.py <<PYTHON
import importlib.metadata, runpy
def version(name): raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = version
runpy.run_path("$source_dir/deploy/workers/math_verify_worker.py", run_name="__main__")
PYTHON
sed "s|\[python3, [^]]*\]|[python3, $work/bare.py]|" $example >bare.yaml
expect 69 "$inflight" score --config bare.yaml --pair 1 1 --checker proved
has err.txt "pip install 'math-verify[antlr4_13_2]==0.9.0'"

if ! "$python" -c "import math_verify" 2>/dev/null; then
    echo "SKIPPED: no python3 with math-verify (set IFL_MATH_VERIFY_PYTHON)"
    exit 77
fi
sed "s|\[python3, |[$python, |" $example >here.yaml
n=0
while IFS='|' read -r gold answer math verify proved; do
    [ -n "$gold" ] || continue
    n=$((n + 1))
    "$python" -c 'import json, sys; print(json.dumps({"prompt": "p", "answer": sys.argv[1]}))' "$gold" >>tasks.jsonl
    "$python" -c 'import json, sys; print(json.dumps({"completion": sys.argv[1]}))' "$answer" >>answers.jsonl
    for checker in math verify proved; do echo "${!checker}" >>$checker.wanted; done
done <<'CASES'
\int_0^1 x^2 dx|\boxed{1/3}|undecided|ok|ok
\int_0^1 x^2 dx|\boxed{\frac{1}{4}}|undecided|wrong|wrong
\int_0^1 x^2 dx|Answer: $\frac{1}{3}$|undecided|ok|ok
\int_0^1 x^2 dx|<think>\boxed{1/3}</think> \boxed{2/3}|undecided|wrong|wrong
\int_0^1 x^2 dx|so it must be 1/3, or 1/4|undecided|no_answer|no_answer
\int_0^1 x^2 dx|\boxed{1/3} or \boxed{1/4}|no_answer|no_answer|no_answer
\sum_{k=1}^{10} k|\boxed{55}|undecided|ok|ok
\sum_{k=1}^{10} k|\boxed{56}|undecided|wrong|wrong
\lim_{x \to 0} \frac{\sin x}{x}|\boxed{1}|undecided|ok|ok
\int \cos x dx|\boxed{\sin x}|undecided|ok|ok
\int_0^1 x dx|\boxed{5=5}|undecided|wrong|wrong
2|\boxed{2}|ok|ok|ok
2|2 is mentioned here, and 3|no_answer|no_answer|no_answer
2|I can't tell.|no_answer|no_answer|no_answer
\frac{1}{2004!}|\boxed{\frac{1}{2006!}}|wrong|undecided|wrong
CASES
for checker in math verify proved; do
    expect 0 "$inflight" score --config here.yaml --checker $checker --tasks tasks.jsonl --completions answers.jsonl --workers 1
    sed -n 's/.*"status":"\([a-z_]*\)".*/\1/p' out.txt >$checker.got
    diff $checker.wanted $checker.got >diff.txt || fail "$checker: $(cat diff.txt)"
done
# What math has decided never gets that far.
[ "$(grep -c '"verify":' out.txt)" = "$(grep -c undecided math.wanted)" ] || fail "Math-Verify was asked for more than is undecided"

# A power tower keeps it busy for ever. That is undecided, and no error of the checker, which a policy could end a run
# with; the next one is judged, and nothing goes on computing.
cat >tower.jsonl <<'JSON'
{"prompt":"p","answer":"\\int_0^1 x^2 dx"}
{"prompt":"p","answer":"\\int_0^1 x^2 dx"}
JSON
cat >tower.answers <<'JSON'
{"completion":"\\boxed{9^{9^{9^{9}}}}"}
{"completion":"\\boxed{1/3}"}
JSON
expect 0 "$inflight" score --config here.yaml --checker proved --timeout-ms 4000 --workers 1 --tasks tower.jsonl \
    --completions tower.answers
head -n 1 out.txt | grep -qF '"status":"undecided","reward":null' || fail "a power tower: $(cat out.txt)"
tail -n 1 out.txt | grep -qF '"status":"ok","reward":1.0' || fail "after a power tower: $(cat out.txt)"
none_left() {
    ! find /proc/[0-9]* -maxdepth 1 -name cwd -lname "$work" 2>/dev/null | sed 's|cwd$|cmdline|' |
        xargs -r grep -lsa math_verify_worker >left.txt
}
until_true 10 "the end of the worker's processes" none_left
echo "ok: $n pairs"

#!/usr/bin/env bash
# Where user namespaces are blocked, code isn't run in a weaker way: a command whose checkers run programs ends at its
# start and names cause and cure. The same for a tier that the host doesn't have.
set -euo pipefail
binary=$1

fail() {
    echo "FAIL: $*" >&2
    exit 1
}
pair=(score --checker code_unit --meta '{"bare": true}' --timeout-ms 60000
    --pair '{"tests": ["assert add(1, 2) == 3"]}' 'def add(a, b): return a + b')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 777 "$work"
got=$("$binary" "${pair[@]}" 2>"$work/err")
[[ $got == *'"status":"ok","reward":1.0'* ]] || fail "with namespaces: $got"
[[ $(grep -c "rewards: sandbox tier .* canaries passed" "$work/err") == 1 ]] || fail "no tier: $(cat "$work/err")"
if got=$("$binary" "${pair[@]}" --sandbox-require cgroup 2>"$work/err"); then
    [[ $got == *'"tier":"cgroup"'* ]] || fail "below the required tier: $got"
else
    grep -q "sandbox tier 'cgroup' is required but only 'ns' can be had" "$work/err" ||
        fail "no cause: $(cat "$work/err")"
    grep -q "Delegate=yes" "$work/err" || fail "no cure: $(cat "$work/err")"
fi

# A namespace in which there may be no further ones; some hosts can't even do that.
if ! unshare -U --map-user=1000 --keep-caps sh -c 'echo 0 >/proc/sys/user/max_user_namespaces' 2>/dev/null; then
    echo "skipped: no namespace to try this in"
    exit 0
fi
# without COMMAND...: what it says on both of its outputs; it must not end well.
without() {
    if unshare -U --map-user=1000 --keep-caps sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"' sh \
        "$@" >"$work/out" 2>"$work/err"; then
        fail "ended well: $*"
    fi
    grep -q "user.max_user_namespaces=0" "$work/err" || fail "the cause is not named: $(cat "$work/err")"
    grep -q "use a remote checker" "$work/err" || fail "the cure is not named: $(cat "$work/err")"
}
without "$binary" "${pair[@]}"
[[ ! -s $work/out ]] || fail "there are results: $(cat "$work/out")"
cd "$work"
printf '{"prompt":"1+1=","answer":"{}","checker":"code_unit"}\n' >tasks.jsonl # the task says it, not the configuration
quick=(train run.steps=1 run.name=refused eval.before=false eval.after=false eval.every_steps=0)
without "$binary" "${quick[@]}" 'data.train=[{name: own, path: tasks.jsonl}]'
[[ ! -e runs/refused ]] || fail "there is a run folder"
printf '{"prompt":"1+1=","answer":"{}"}\n' >plain.jsonl
without "$binary" "${quick[@]}" reward.checker=code_stdio 'data.train=[{name: own, path: plain.jsonl}]'
[[ ! -e runs/refused ]] || fail "there is a run folder"
# A checker that runs no programs asks for none of it.
got=$(unshare -U --map-user=1000 --keep-caps sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"' sh \
    "$binary" score --checker numeric --pair 3 3 2>"$work/err")
[[ $got == *'"reward":1.0'* ]] && ! grep -q sandbox "$work/err" || fail "numeric: $got $(cat "$work/err")"

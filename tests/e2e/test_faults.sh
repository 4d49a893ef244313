#!/usr/bin/env bash
# Every row of the fault table twice, on small jobs that live on; deploy/soak faults plays a thousand. COUNT=N, SEED=S for
# more, or others. (unit/test_fault_books.c has the checker's failing directions.)
. "$(dirname "$0")/lib.sh"
tools=$(dirname "$inflight")/tests

# A fail point that there is none of is an error at the start, which lists those that there are.
INFLIGHT_FAILPOINT="log.sinc=kill" expect 64 "$inflight" rollouts nothing
has err.txt "log.sinc"
has err.txt "known: log.append log.write log.sync"

"$tools/run_faults" --inflight "$inflight" --proxy "$tools/chaos_proxy" --seed "${SEED:-1}" --count "${COUNT:-70}" \
    --per-job 18 --jobs 3 --hang-ms 10000 --out faults >faults.txt 2>&1 || [ $? = 75 ] || {
    cat faults.txt >&2
    tail -n 20 faults/job-*/*.log >&2
    fail "faults: $(tail -n 1 faults.txt)"
}
has faults.txt "no violation"
# Twice; once where one of them did not take place, on a host that is busy elsewhere.
holds "$(grep -cE '^ +[0-9]+  .* ([12])            \1      0 ' faults.txt) == 35 || ${COUNT:-70} != 70" "each row twice"
cat faults.txt

# Row 30 on links with keys: foreign ones, one taken off the list, another learner's, none.
"$tools/run_faults" --inflight "$inflight" --proxy "$tools/chaos_proxy" --seed 7 --row 30 --keys 1 --count 16 --per-job 8 \
    --jobs 2 --hang-ms 10000 --out keys >keys.txt 2>&1 || { cat keys.txt >&2; fail "keys: $(tail -n 1 keys.txt)"; }
has keys.txt "no violation"
for variant in "foreign key" "wrong learner key" "key taken off the list"; do
    cat keys/job-*/faults.jsonl | grep -q "\"variant\":\"$variant\"" || fail "no fault with a $variant"
done
